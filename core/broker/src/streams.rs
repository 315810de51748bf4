//! Subscriptions: where each stands, and the next batch for each that asked for one. Only outcomes on disk are shown.

use crate::broker::{Broker, Turn};
use crate::io::Effect;
use crate::job::Job;
use crate::limits::{STREAM_BYTES_MAX, STREAM_ROWS_MAX, SUBSCRIPTIONS_MAX};
use crate::requests::{Caller, Code, Refusal, Reply, StreamOf};
use crate::stream::{StreamBatch, StreamPart, StreamRow};
use pf_protocol::payload::held;
use pf_protocol::{BlobRef, JobId, OwnerId};
use std::collections::{BTreeMap, BTreeSet};

/// One subscriber.
#[derive(Debug)]
struct Subscription {
    owner: OwnerId,
    of: StreamOf,
    /// Number of the last outcome given.
    after: u64,
    follow: bool,
    /// Batches it can take.
    pulls: u32,
}

/// All subscribers.
#[derive(Debug)]
pub(crate) struct Streams {
    open: BTreeMap<u64, Subscription>,
    /// Those that can take a batch.
    hungry: BTreeSet<u64>,
    /// Number of the last outcome on disk.
    shown: u64,
    /// Whether something changed since the hungry ones were looked at.
    news: bool,
}

impl Streams {
    pub fn new(shown: u64) -> Self {
        Streams { open: BTreeMap::new(), hungry: BTreeSet::new(), shown, news: false }
    }

    /// One more batch can be taken.
    pub fn pull(&mut self, id: u64) {
        if let Some(subscription) = self.open.get_mut(&id) {
            subscription.pulls += 1;
            self.hungry.insert(id);
            self.news = true;
        }
    }

    pub fn remove(&mut self, id: u64) {
        self.open.remove(&id);
        self.hungry.remove(&id);
    }

    /// Outcomes up to `seq` are on disk.
    pub fn show(&mut self, seq: u64) {
        self.shown = self.shown.max(seq);
        self.news = true;
    }

    /// A job is over or gone: its streams may end.
    pub fn wake(&mut self) {
        self.news = true;
    }
}

impl Broker {
    pub(crate) fn subscribe(
        &mut self,
        caller: Caller,
        id: u64,
        of: StreamOf,
        after: u64,
        follow: bool,
    ) -> Result<Reply, Refusal> {
        let mut owner = caller.owner;
        if let StreamOf::Job(job) = of {
            owner = self.own_job(caller, job)?.owner;
        }
        if after > self.state.seq {
            let message =
                format!("the cursor is {after}, but only {} outcomes were ever recorded", self.state.seq);
            return Err(Refusal::new(Code::BadRequest, message).hint("begin anew without a cursor"));
        }
        if self.streams.open.len() >= SUBSCRIPTIONS_MAX {
            return Err(Refusal::new(Code::TooMany, format!("{SUBSCRIPTIONS_MAX} streams are open already")));
        }
        if self.streams.open.contains_key(&id) {
            return Err(Refusal::new(Code::Conflict, format!("stream {id} is open already")));
        }
        self.streams.open.insert(id, Subscription { owner, of, after, follow, pulls: 0 });
        Ok(Reply::Subscribed { subscription: id, seq: self.state.seq })
    }

    pub(crate) fn pump_streams(&mut self, turn: &mut Turn<'_>) {
        if !std::mem::take(&mut self.streams.news) {
            return;
        }
        let hungry: Vec<u64> = self.streams.hungry.iter().copied().collect();
        for id in hungry {
            while let Some(batch) = self.next_batch(id) {
                let end = batch.end;
                if let Some(subscription) = self.streams.open.get_mut(&id) {
                    subscription.after = batch.seq;
                    subscription.pulls -= 1;
                    if subscription.pulls == 0 {
                        self.streams.hungry.remove(&id);
                    }
                }
                turn.out.push(Effect::Stream { subscription: id, batch });
                if end {
                    self.streams.remove(id);
                }
            }
        }
    }

    /// The next batch for a subscriber, if there is something to tell and it can take it.
    fn next_batch(&self, id: u64) -> Option<StreamBatch> {
        let subscription = self.streams.open.get(&id).filter(|s| s.pulls > 0)?;
        let mut batch = StreamBatch { seq: subscription.after, ..StreamBatch::default() };
        let mut room = (STREAM_ROWS_MAX, STREAM_BYTES_MAX);
        let is_over = match subscription.of {
            StreamOf::Job(id) => match self.state.jobs.get(&id) {
                None => true,
                Some(job) => {
                    let chunks = job.ended.chunks();
                    let from = chunks.partition_point(|c| c.first_seq <= subscription.after + 1);
                    for chunk in from.saturating_sub(1)..chunks.len() {
                        if !self.add_chunk(job, chunk, &mut batch, &mut room) {
                            break;
                        }
                    }
                    let last = chunks.last().map_or(0, |c| c.first_seq);
                    job.is_over() && last <= self.streams.shown && self.position <= self.synced
                }
            },
            StreamOf::Group(group) => {
                let key = (subscription.owner, group);
                let entries = self.state.groups.get(&key).map(Vec::as_slice).unwrap_or_default();
                let from = entries.partition_point(|entry| entry.first_seq <= subscription.after + 1);
                for entry in entries.iter().skip(from.saturating_sub(1)) {
                    let Some(job) = self.state.jobs.get(&entry.job) else { continue };
                    if !self.add_chunk(job, entry.chunk as usize, &mut batch, &mut room) {
                        break;
                    }
                }
                false
            }
        };
        if !batch.parts.is_empty() {
            return Some(batch);
        }
        batch.end = is_over || !subscription.follow;
        batch.end.then_some(batch)
    }

    /// Adds what is new of a chunk; whether more may be added after it.
    fn add_chunk(
        &self,
        job: &Job,
        number: usize,
        batch: &mut StreamBatch,
        room: &mut (usize, usize),
    ) -> bool {
        let Some(chunk) = job.ended.chunks().get(number) else { return false };
        if chunk.first_seq > self.streams.shown || room.0 == 0 {
            return false;
        }
        let rows = job.ended.chunk_rows(number);
        let skip =
            (batch.seq + 1).saturating_sub(chunk.first_seq).min(u64::from(rows.end - rows.start)) as u32;
        let most = (rows.end - rows.start - skip).min(room.0 as u32);
        let before = job.ended.rows_from(rows.start).take(skip as usize);
        let offset: u32 = before.map(|row| held(row.value_len) as u32).sum();
        let mut bytes = 0u32;
        let mut out = Vec::with_capacity(most as usize);
        for row in job.ended.rows_from(rows.start + skip).take(most as usize) {
            let is_first = batch.parts.is_empty() && out.is_empty();
            let here = held(row.value_len);
            if bytes as usize + here > room.1 && !is_first {
                break;
            }
            bytes += here as u32;
            out.push(StreamRow {
                index: row.index,
                label: job.spec.array.label(row.index),
                kind: row.kind,
                ran: row.ran,
                held_us: row.held_us,
                ran_us: row.ran_us,
                value_len: row.value_len,
                attempts_before: job.history.get(&row.index).map_or(0, |h| h.attempts()),
            });
        }
        let complete = out.len() as u32 == rows.end - rows.start - skip;
        if out.is_empty() {
            return complete;
        }
        let first_seq = chunk.first_seq + u64::from(skip);
        batch.seq = first_seq + out.len() as u64 - 1;
        room.0 -= out.len();
        room.1 = room.1.saturating_sub(bytes as usize);
        batch.parts.push(StreamPart {
            job: job.id,
            node: self.state.node_name(chunk.node).into(),
            first_seq,
            rows: out,
            values: if bytes == 0 { BlobRef::default() } else { chunk.value(offset, bytes) },
            details: chunk.details(),
            first_detail: skip,
        });
        complete
    }

    /// Whether a job has outcomes that are not shown yet; for tests of the order of effects.
    #[cfg(test)]
    pub(crate) fn shown(&self) -> u64 {
        self.streams.shown
    }

    /// Jobs with open streams of their own, for the invariants.
    pub(crate) fn stream_cursors(&self) -> impl Iterator<Item = (Option<JobId>, u64)> + '_ {
        self.streams.open.values().map(|s| match s.of {
            StreamOf::Job(job) => (Some(job), s.after),
            StreamOf::Group(_) => (None, s.after),
        })
    }
}
