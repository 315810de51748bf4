//! Large payloads: items are pulled from the broker into files of the endpoint's folder before their tasks are placed; values are read from
//! there for the broker, piece by piece as it wants them (`docs/decisions/0007-large-payloads.md`). Everybody who names a payload here holds a
//! reference in its batch; what nobody names any more is swept.

use crate::io::Effect;
use crate::limits::{PULLS_ASIDE_MAX, STAGED_BYTES_MAX};
use crate::queue::Chunk;
use crate::relay::Relay;
use bytes::Bytes;
use pf_protocol::limits::{PIECE_BYTES, WANTS_MAX};
use pf_protocol::message::{Piece, Want};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::payload::{PayloadHash, PayloadRef};
use pf_protocol::{ContentHash, JobId, Ranges};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Names a payload's file.
pub(crate) type Key = (JobId, ContentHash);

/// An item on its way into its file, or there.
#[derive(Debug)]
struct Staged {
    len: u64,
    /// Bytes that were wanted, that came, that are written.
    asked: u64,
    came: u64,
    written: u64,
    hash: PayloadHash,
}

impl Staged {
    /// Pieces that are wanted or wait to be written.
    fn under_way(&self) -> usize {
        (self.asked - self.written).div_ceil(PIECE_BYTES as u64) as usize
    }

    fn is_whole(&self) -> bool {
        self.written == self.len
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Payloads {
    items: BTreeMap<Key, Staged>,
    /// Those that are not whole, in the order in which they are pulled.
    pulling: VecDeque<Key>,
    /// Bytes of the files that are there or begun.
    bytes: u64,
    /// Pieces of values that are being read for the broker in this session.
    reads: BTreeSet<(Key, u64)>,
    /// Jobs that have, or had, files here.
    jobs: BTreeSet<JobId>,
}

impl Payloads {
    fn forget(&mut self, key: Key) -> bool {
        let Some(staged) = self.items.remove(&key) else { return false };
        self.pulling.retain(|other| *other != key);
        if staged.asked > 0 {
            self.bytes -= staged.len;
        }
        staged.asked > 0
    }

    fn under_way(&self) -> usize {
        self.pulling
            .iter()
            .take(PULLS_ASIDE_MAX)
            .filter_map(|key| self.items.get(key))
            .map(Staged::under_way)
            .sum()
    }

    /// Panics when the counts are wrong. For the invariants.
    pub fn check(&self) {
        let begun = self.items.values().filter(|s| s.asked > 0).map(|s| s.len).sum::<u64>();
        assert_eq!(begun, self.bytes, "staged bytes are counted");
        let open: BTreeSet<&Key> = self.pulling.iter().collect();
        let expected: BTreeSet<&Key> =
            self.items.iter().filter(|(_, s)| !s.is_whole()).map(|(key, _)| key).collect();
        assert_eq!(open, expected, "what is not whole is pulled");
        let begun = self.pulling.iter().filter(|key| self.items[key].under_way() > 0).count();
        assert!(begun <= PULLS_ASIDE_MAX, "{begun} payloads are pulled at a time");
        assert!(self.under_way() <= WANTS_MAX, "no more pieces are under way than may be");
        assert!(self.reads.len() <= WANTS_MAX, "no more pieces are read than may be");
    }
}

impl Relay {
    /// Whether the payload's file is whole. If not, it will be pulled.
    pub(crate) fn stage(&mut self, job: JobId, payload: PayloadRef) -> bool {
        let key = (job, payload.hash);
        self.payloads.jobs.insert(job);
        let staged = self.payloads.items.entry(key).or_insert_with(|| {
            self.payloads.pulling.push_back(key);
            Staged { len: payload.len, asked: 0, came: 0, written: 0, hash: PayloadHash::default() }
        });
        staged.is_whole()
    }

    /// Wants pieces in the order in which their tasks came, as many as may be under way.
    pub(crate) fn pull_items(&mut self) {
        if !self.recovery.ready() {
            return;
        }
        let payloads = &mut self.payloads;
        let mut under_way = payloads.under_way();
        let mut wants = Vec::new();
        for key in payloads.pulling.iter().take(PULLS_ASIDE_MAX) {
            let Some(staged) = payloads.items.get_mut(key).filter(|_| under_way < WANTS_MAX) else { break };
            if staged.asked == 0 {
                if payloads.bytes > 0 && payloads.bytes + staged.len > STAGED_BYTES_MAX {
                    break;
                }
                payloads.bytes += staged.len;
            }
            while under_way < WANTS_MAX && staged.asked < staged.len {
                wants.push(Want { job: key.0, hash: key.1, offset: staged.asked });
                staged.asked = (staged.asked + PIECE_BYTES as u64).min(staged.len);
                under_way += 1;
            }
        }
        for want in wants {
            self.tell_broker(want);
        }
    }

    /// A new session: what was wanted and has not come is wanted again; what the broker wanted, it wants again itself.
    pub(crate) fn pulls_begin_anew(&mut self) {
        self.payloads.items.values_mut().for_each(|staged| staged.asked = staged.came);
        let begun = self.payloads.items.values().filter(|staged| staged.asked > 0);
        self.payloads.bytes = begun.map(|staged| staged.len).sum();
        self.payloads.reads.clear();
    }

    /// The broker sends a piece of an item. What was not wanted, or came twice, is not taken.
    pub(crate) fn on_item_piece(&mut self, piece: Piece) {
        let Piece { job, hash, offset, bytes, fault } = piece;
        let key = (job, hash);
        let Some(staged) = self.payloads.items.get_mut(&key) else { return };
        if staged.came != offset || staged.asked <= offset {
            return;
        }
        let length = (staged.len - offset).min(PIECE_BYTES as u64);
        if !fault.is_empty() {
            return self.no_item(key, &fault);
        }
        if bytes.len() as u64 != length {
            let why = format!("a piece of {} bytes came where {length} were due", bytes.len());
            return self.no_item(key, &why);
        }
        staged.hash.update(&bytes);
        staged.came += length;
        let last = staged.came == staged.len;
        if last {
            let found = std::mem::take(&mut staged.hash).finish();
            if found != hash {
                return self.no_item(key, &format!("its hash is {found} and should be {hash}"));
            }
        }
        self.effects.push(Effect::PayloadWrite { job, hash, offset, bytes, last });
    }

    /// A piece is in its file, or could not be written.
    pub(crate) fn on_payload_written(&mut self, key: Key, offset: u64, result: Result<(), String>) {
        let Some(staged) = self.payloads.items.get_mut(&key).filter(|s| s.written == offset) else { return };
        if let Err(why) = result {
            return self.no_item(key, &format!("it cannot be written in the endpoint's folder: {why}"));
        }
        staged.written = (offset + PIECE_BYTES as u64).min(staged.len);
        if !staged.is_whole() {
            return;
        }
        self.payloads.pulling.retain(|other| *other != key);
        let Some(job) = self.jobs.get_mut(&key.0) else { return };
        for chunk in job.staged(key.1) {
            job.push(chunk, false);
        }
        self.make_ready(key.0);
    }

    /// A payload will not come: the tasks that wait for it end with that.
    fn no_item(&mut self, key: Key, why: &str) {
        if self.payloads.forget(key) {
            self.effects.push(Effect::PayloadDrop { job: key.0, hash: key.1, value: false });
        }
        let Some(job) = self.jobs.get(&key.0) else { return };
        let tasks: Ranges = job.waiting_for(key.1).collect();
        let gone = self.forget_waiting(key.0, &tasks);
        self.end_waiting(key.0, &gone, OutcomeKind::Other, &format!("its argument did not arrive: {why}"));
        self.retire(key.0);
    }

    /// Deletes the files of items that no task here names any more.
    pub(crate) fn sweep_payloads(&mut self) {
        if self.payloads.items.is_empty() {
            return;
        }
        let mut named: BTreeSet<Key> = BTreeSet::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.names_payloads) {
            named.extend(job.chunks().flat_map(Chunk::names).map(|name| (*id, name.hash)));
        }
        for flight in self.flights.values() {
            named.extend(flight.names().map(|name| (flight.job, name.hash)));
        }
        let gone: Vec<Key> = self.payloads.items.keys().filter(|key| !named.contains(key)).copied().collect();
        for key in gone {
            if self.payloads.forget(key) {
                self.effects.push(Effect::PayloadDrop { job: key.0, hash: key.1, value: false });
            }
        }
    }

    /// No task of these jobs will come any more, and all their outcomes are on the broker's disk.
    pub(crate) fn drop_payloads_of(&mut self, jobs: &[JobId]) {
        let keys: Vec<Key> =
            self.payloads.items.keys().filter(|key| jobs.contains(&key.0)).copied().collect();
        for key in keys {
            self.payloads.forget(key);
        }
        let jobs: Vec<JobId> = jobs.iter().filter(|job| self.payloads.jobs.remove(job)).copied().collect();
        if !jobs.is_empty() {
            self.effects.push(Effect::PayloadsDrop { jobs });
        }
    }

    /// A value that was only named is on the broker's disk.
    pub(crate) fn value_confirmed(&mut self, (job, hash): Key) {
        self.payloads.jobs.insert(job);
        self.effects.push(Effect::PayloadDrop { job, hash, value: true });
    }

    /// The broker has told which jobs have unfinished tasks here: nobody waits for payloads of others.
    pub(crate) fn keep_payloads_of(&mut self, jobs: BTreeSet<JobId>) {
        let keys: Vec<Key> =
            self.payloads.items.keys().filter(|key| !jobs.contains(&key.0)).copied().collect();
        for key in keys {
            self.payloads.forget(key);
        }
        self.payloads.jobs.extend(&jobs);
        self.payloads.jobs.retain(|job| jobs.contains(job));
        self.effects.push(Effect::PayloadsKeep { jobs });
    }

    /// The broker wants a piece of a value.
    pub(crate) fn on_value_want(&mut self, want: Want) {
        let Want { job, hash, offset } = want;
        if self.payloads.reads.len() >= WANTS_MAX {
            return self
                .decide(format!("the broker wants more than {WANTS_MAX} pieces at a time: one is not read"));
        }
        if self.payloads.reads.insert(((job, hash), offset)) {
            self.effects.push(Effect::PayloadRead { job, hash, offset });
        }
    }

    pub(crate) fn on_payload_read(&mut self, key: Key, offset: u64, result: Result<Bytes, String>) {
        if !self.payloads.reads.remove(&(key, offset)) {
            return;
        }
        let (bytes, fault) = match result {
            Ok(bytes) => (bytes, String::new()),
            Err(why) => (Bytes::new(), why),
        };
        self.tell_broker(Piece { job: key.0, hash: key.1, offset, bytes, fault });
    }
}
