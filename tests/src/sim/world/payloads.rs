//! Large payloads in the simulation: the endpoint's folder, the client that puts items, and what must come out of it.

use super::*;
use pf_protocol::limits::{INLINE_BYTES_MAX, PIECE_BYTES};
use pf_protocol::payload::{LARGE, PayloadRef, REF_BYTES, file_job, file_name, is_large};

/// Tickets of the steps of a submit with large items: the number of the job, and one of these.
pub(super) const PUT: u64 = 100_000;
const APPEND: u64 = 200_000;
const CLOSE: u64 = 300_000;
const GOT: u64 = 400_000;

/// The number under which the client submitted a job: its name.
pub(super) fn number_of(spec: &JobSpec) -> u64 {
    spec.name.as_ref().and_then(|name| name.parse().ok()).expect("the client names its jobs by number")
}

/// A payload that tells whose it is. Every fifth one is large, if there are large ones.
fn payload(salt: u64, number: u64, index: u32, has_large: bool) -> Vec<u8> {
    let is_large = has_large && (u64::from(index) + salt).is_multiple_of(5);
    let extra = (index as usize * 7_919) % (2 * PIECE_BYTES);
    let size = if is_large { INLINE_BYTES_MAX + 1 + extra } else { 3 };
    let mut bytes = vec![(salt + number) as u8; size];
    if is_large {
        bytes[..4].copy_from_slice(&index.to_le_bytes());
    }
    bytes
}

impl World {
    /// The item of a task.
    pub(super) fn item_of(&self, number: u64, index: u32) -> Vec<u8> {
        payload(0, number, index, self.plan.has_large)
    }

    /// What a Python task returns.
    pub(super) fn value_of(&self, number: u64, index: u32) -> Vec<u8> {
        payload(2, number, index, self.plan.has_large)
    }

    /// What a task finds as its item is what the client meant.
    pub(super) fn check_item(&self, task: TaskId, number: u64, item: &[u8], large: bool) {
        let wanted = if self.has_items(number) { self.item_of(number, task.index) } else { Vec::new() };
        let found = if large {
            let name = PayloadRef::read(item).expect("a large item names its payload");
            let file = file_name(task.job, name.hash, false);
            self.shared.get(&file).unwrap_or_else(|| panic!("{task} starts without its item {file}"))
        } else {
            item
        };
        assert_eq!(found.len(), wanted.len(), "{task} has another item");
        assert!(found == wanted, "{task} has another item of the same length");
    }

    /// Every second job has items; where some are large, all have.
    pub(super) fn has_items(&self, number: u64) -> bool {
        self.plan.has_large || number.is_multiple_of(2)
    }

    pub(super) fn payload_effect(&mut self, effect: relay::Effect) {
        let delay = self.rng.between(100, 5 * MS);
        match effect {
            relay::Effect::PayloadWrite { job, hash, offset, bytes, last } => {
                let (draft, name) = (format!("{job}-{hash}.draft"), file_name(job, hash, false));
                let file = self.shared.entry(draft.clone()).or_default();
                file.resize(offset as usize, 0);
                file.extend_from_slice(&bytes);
                if last && let Some(whole) = self.shared.remove(&draft) {
                    self.shared.insert(name, whole);
                }
                self.relay_hears_in_order(
                    relay::Input::PayloadWritten { job, hash, offset, result: Ok(()) },
                    delay,
                );
            }
            relay::Effect::PayloadRead { job, hash, offset } => {
                let file = self.shared.get(&file_name(job, hash, true));
                let read = |file: &Vec<u8>| {
                    let from = (offset as usize).min(file.len());
                    Bytes::copy_from_slice(&file[from..(from + PIECE_BYTES).min(file.len())])
                };
                let result = file.map(read).ok_or_else(|| "no such file".to_string());
                self.relay_hears_in_order(relay::Input::PayloadRead { job, hash, offset, result }, delay);
            }
            relay::Effect::PayloadDrop { job, hash, value } => {
                self.shared.remove(&file_name(job, hash, value));
            }
            relay::Effect::PayloadsDrop { jobs } => {
                self.shared.retain(|name, _| file_job(name).is_none_or(|job| !jobs.contains(&job)));
            }
            relay::Effect::PayloadsKeep { jobs } => {
                self.shared.retain(|name, _| file_job(name).is_none_or(|job| jobs.contains(&job)));
            }
            other => panic!("this is no effect on payloads: {other:?}"),
        }
    }

    /// The thread of the payloads' files takes one order after another.
    fn relay_hears_in_order(&mut self, input: relay::Input, delay: Micros) {
        self.porter_free_at = self.porter_free_at.max(self.now) + delay;
        let delay = self.porter_free_at - self.now;
        self.relay_hears(delay, input);
    }

    /// The next step of the submit of job `number`: its large items from `index` on, then its tasks, then its end.
    pub(super) fn put_next(&mut self, number: u64, job: JobId, index: u32) {
        let next = (index..self.plan.tasks).find(|i| self.item_of(number, *i).len() > INLINE_BYTES_MAX);
        match next {
            Some(index) => {
                self.putting.insert(number, (job, index));
                self.put_piece(number, 0);
            }
            None => self.append(number, job),
        }
    }

    fn put_piece(&mut self, number: u64, offset: u64) {
        let Some(&(job, index)) = self.putting.get(&number) else { return };
        let item = self.item_of(number, index);
        let payload = PayloadRef { hash: content_hash(&item), len: item.len() as u64 };
        let (from, to) = (offset as usize, (offset as usize + PIECE_BYTES).min(item.len()));
        let bytes = Bytes::copy_from_slice(&item[from..to]);
        self.ask(PUT + number, broker::Request::PutPiece { job, payload, offset, bytes });
    }

    pub(super) fn piece_taken(&mut self, number: u64, upto: u64) {
        let Some(&(job, index)) = self.putting.get(&number) else { return };
        if upto < self.item_of(number, index).len() as u64 {
            self.put_piece(number, upto);
        } else {
            self.put_next(number, job, index + 1);
        }
    }

    fn append(&mut self, number: u64, job: JobId) {
        let (mut lens, mut blob) = (Vec::new(), Vec::new());
        for index in 0..self.plan.tasks {
            let item = self.item_of(number, index);
            if item.len() > INLINE_BYTES_MAX {
                let name = PayloadRef { hash: content_hash(&item), len: item.len() as u64 };
                lens.push(LARGE | REF_BYTES as u32);
                blob.extend_from_slice(&name.to_bytes());
            } else {
                lens.push(item.len() as u32);
                blob.extend_from_slice(&item);
            }
        }
        let tasks = broker::Tasks { count: self.plan.tasks, lens, blob: blob.into() };
        self.putting.insert(number, (job, self.plan.tasks));
        self.ask(APPEND + number, broker::Request::Append { job, first: 0, tasks });
    }

    /// The broker has answered an append or a close.
    pub(super) fn appended(&mut self, ticket: u64, tasks: u32) {
        let (step, number) = (ticket / PUT * PUT, ticket % PUT);
        let Some(&(job, _)) = self.putting.get(&number) else { return };
        if step == APPEND {
            self.ask(CLOSE + number, broker::Request::Close { job });
        } else if step == CLOSE {
            assert_eq!(tasks, self.plan.tasks, "{job} has another number of tasks");
            self.putting.remove(&number);
            self.pending_submits.remove(&number);
            self.truth.acknowledged.insert(job, tasks);
        }
    }

    /// The client checks the value of an outcome that it was told of.
    pub(super) fn check_value(&mut self, task: TaskId, value: &[u8], value_len: u32) {
        let Some(number) = self.numbers.get(&task.job).copied().filter(|n| self.is_python(*n)) else {
            return;
        };
        let wanted = self.value_of(number, task.index);
        if !is_large(value_len) {
            assert!(value == wanted, "{task} returned something else");
            return;
        }
        let name = PayloadRef::read(value).expect("a large value names its payload");
        assert_eq!(name.hash, content_hash(&wanted), "{task} returned something else");
        self.got += 1;
        self.ask(GOT + self.got, broker::Request::Payload { job: task.job, hash: name.hash });
    }

    /// A large value lies whole at the broker.
    pub(super) fn payload_found(&self, len: u64, blobs: &[pf_protocol::BlobRef]) {
        let pieces = blobs.iter().map(|blob| self.disk.read(*blob).expect("a piece of a value is on disk"));
        let whole: Vec<u8> = pieces.flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(whole.len() as u64, len, "a value is cut");
    }

    /// Where some payloads are large, every second job is of Python: only such tasks return something.
    pub(super) fn is_python(&self, number: u64) -> bool {
        self.plan.has_large && !number.is_multiple_of(2)
    }

    /// Large payloads that are in the endpoint's folder.
    #[must_use]
    pub fn files(&self) -> usize {
        self.shared.len()
    }

    /// Large values that the client got.
    #[must_use]
    pub fn large_values(&self) -> u64 {
        self.got
    }
}
