//! What waits: jobs and their tasks in chunks, as they came from the broker. Taking `k` tasks off the front costs per chunk, not per task.

use bytes::Bytes;
use pf_protocol::job::JobDef;
use pf_protocol::message::TaskBatch;
use pf_protocol::payload::{PayloadRef, held, held_sum, is_large, refs};
use pf_protocol::{ContentHash, Micros, Ranges};
use std::collections::VecDeque;
use std::sync::Arc;

/// A run of tasks of one job with their items.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chunk {
    /// Positions, increasing.
    pub tasks: Ranges,
    /// Lengths of the items, marked where they are only named; empty if there are none.
    lens: Vec<u32>,
    /// How many of `lens` are used up.
    at: usize,
    pub blob: Bytes,
    pub lost: u32,
}

impl Chunk {
    /// None when lengths, positions and blob do not agree: a peer's mistake.
    pub fn new(batch: TaskBatch) -> Option<Chunk> {
        let fits = batch.lens.is_empty() || batch.lens.len() as u64 == batch.tasks.len();
        let agrees = refs(&batch.lens, &batch.blob).is_some();
        (fits && agrees && !batch.tasks.is_empty()).then_some(Chunk {
            tasks: batch.tasks,
            lens: batch.lens,
            at: 0,
            blob: batch.blob,
            lost: batch.lost,
        })
    }

    /// One task that comes back, with the length that its item was told to have.
    pub fn single(index: u32, item: Bytes, len: Option<u32>, lost: u32) -> Chunk {
        Chunk {
            tasks: Ranges::from_range(index, 1),
            lens: len.into_iter().collect(),
            at: 0,
            blob: item,
            lost,
        }
    }

    /// The same tasks in order, those with an item that is only named each for itself: they wait for different payloads.
    pub fn split_named(mut self) -> Vec<Chunk> {
        let mut parts = Vec::new();
        while let Some(at) = self.lens().iter().position(|len| is_large(*len)) {
            if at > 0 {
                parts.push(self.take(at as u64));
            }
            parts.push(self.take(1));
        }
        if self.len() > 0 {
            parts.push(self);
        }
        parts
    }

    /// The payloads that its items name.
    pub fn names(&self) -> Vec<PayloadRef> {
        refs(self.lens(), &self.blob).unwrap_or_default()
    }

    pub fn len(&self) -> u64 {
        self.tasks.len()
    }

    pub fn lens(&self) -> &[u32] {
        &self.lens[self.at..]
    }

    /// The first `most` tasks as a chunk of their own.
    pub fn take(&mut self, most: u64) -> Chunk {
        let tasks = self.tasks.take_first(most);
        if self.lens.is_empty() {
            return Chunk { tasks, lost: self.lost, ..Chunk::default() };
        }
        let count = tasks.len() as usize;
        let lens = self.lens[self.at..self.at + count].to_vec();
        self.at += count;
        let blob = self.blob.split_to(held_sum(&lens) as usize);
        Chunk { tasks, lens, at: 0, blob, lost: self.lost }
    }

    /// Takes those of `which` out that are in it.
    pub fn remove(&mut self, which: &Ranges) -> Ranges {
        let gone = self.tasks.intersection(which);
        if gone.is_empty() {
            return gone;
        }
        if !self.lens.is_empty() {
            let (mut lens, mut blob) = (Vec::new(), Vec::new());
            let mut at = 0usize;
            for (index, len) in self.tasks.iter().zip(&self.lens[self.at..]) {
                let end = at + held(*len);
                if !gone.contains(index) {
                    lens.push(*len);
                    blob.extend_from_slice(&self.blob[at..end]);
                }
                at = end;
            }
            (self.lens, self.at, self.blob) = (lens, 0, blob.into());
        }
        self.tasks.subtract(&gone);
        gone
    }
}

/// One job, as the relay knows it.
#[derive(Debug)]
pub(crate) struct Job {
    /// None until the broker defines it: its tasks wait.
    pub def: Option<Arc<JobDef>>,
    /// Number of its resource class.
    pub class: usize,
    pub priority: i32,
    pub waiting: VecDeque<Chunk>,
    /// Tasks that lost a manager before: run one at a time on a manager.
    pub suspects: VecDeque<Chunk>,
    /// Tasks, each for itself, that wait for the payload that their item names.
    fetching: VecDeque<Chunk>,
    /// Tasks in `waiting`, `suspects` and `fetching`.
    pub waiting_count: u64,
    /// Whether an item of it ever named a payload.
    pub names_payloads: bool,
    /// Attempts that have not ended.
    pub placed: u64,
    /// Whether it stands in the ready queue of its class.
    pub ready: bool,
    /// Tasks to be cancelled.
    pub cancelled: Ranges,
    /// Whether those are killed if they run.
    pub cancel_kill: bool,
    /// Mean run time, microseconds; None until the first outcome.
    pub mean_us: Option<u64>,
    pub released: bool,
    /// Attempts that succeeded, and that failed.
    pub ok: u64,
    pub bad: u64,
    /// It has used the node-hours that it may.
    pub braked: bool,
}

impl Job {
    pub fn new() -> Job {
        Job {
            def: None,
            class: 0,
            priority: 0,
            waiting: VecDeque::new(),
            suspects: VecDeque::new(),
            fetching: VecDeque::new(),
            waiting_count: 0,
            names_payloads: false,
            placed: 0,
            ready: false,
            cancelled: Ranges::new(),
            cancel_kill: false,
            mean_us: None,
            released: false,
            ok: 0,
            bad: 0,
            braked: false,
        }
    }

    /// How many of its tasks may be placed now.
    pub fn available(&self) -> u64 {
        let Some(def) = self.def.as_ref().filter(|_| !self.braked) else { return 0 };
        let room = def.spec.max_running.map_or(u64::MAX, |most| u64::from(most).saturating_sub(self.placed));
        (self.waiting_count - self.fetching.len() as u64).min(room)
    }

    pub fn time_needed_us(&self) -> Micros {
        self.def.as_ref().and_then(|d| d.spec.time_needed_ms).unwrap_or(0).saturating_mul(1_000)
    }

    pub fn push(&mut self, chunk: Chunk, front: bool) {
        self.waiting_count += chunk.len();
        let queue = if chunk.lost > 0 { &mut self.suspects } else { &mut self.waiting };
        if front { queue.push_front(chunk) } else { queue.push_back(chunk) }
    }

    /// Puts a task aside until its payload is there.
    pub fn fetch(&mut self, chunk: Chunk) {
        self.waiting_count += chunk.len();
        self.fetching.push_back(chunk);
    }

    /// Tasks that wait for payloads.
    pub fn fetching_count(&self) -> usize {
        self.fetching.len()
    }

    /// Takes the tasks out that waited for this payload.
    pub fn staged(&mut self, hash: ContentHash) -> Vec<Chunk> {
        let all = std::mem::take(&mut self.fetching);
        let (there, others): (Vec<Chunk>, Vec<Chunk>) =
            all.into_iter().partition(|chunk| chunk.names().iter().any(|name| name.hash == hash));
        self.fetching = others.into();
        self.waiting_count -= there.len() as u64;
        there
    }

    /// Positions of the tasks that wait for this payload.
    pub fn waiting_for(&self, hash: ContentHash) -> impl Iterator<Item = u32> + '_ {
        let named =
            self.fetching.iter().filter(move |chunk| chunk.names().iter().any(|name| name.hash == hash));
        named.flat_map(|chunk| chunk.tasks.iter())
    }

    /// Everything that waits.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.waiting.iter().chain(&self.suspects).chain(&self.fetching)
    }

    /// Up to `most` tasks of one chunk from the front of the queue.
    pub fn take(&mut self, most: u64, suspects: bool) -> Option<Chunk> {
        let queue = if suspects { &mut self.suspects } else { &mut self.waiting };
        let front = queue.front_mut()?;
        let taken = if front.len() <= most { queue.pop_front()? } else { front.take(most) };
        self.waiting_count -= taken.len();
        Some(taken)
    }

    /// Takes those of `which` out that wait; how many item bytes went with them.
    pub fn remove_waiting(&mut self, which: &Ranges) -> (Ranges, u64) {
        let (mut gone, mut bytes) = (Ranges::new(), 0u64);
        for queue in [&mut self.waiting, &mut self.suspects, &mut self.fetching] {
            for chunk in queue.iter_mut() {
                let before = chunk.blob.len();
                gone.union_with(&chunk.remove(which));
                bytes += (before - chunk.blob.len()) as u64;
            }
            queue.retain(|c| c.len() > 0);
        }
        self.waiting_count -= gone.len();
        (gone, bytes)
    }

    /// Positions that wait.
    pub fn waiting_tasks(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks().flat_map(|c| c.tasks.iter())
    }

    /// Takes a measured mean of `count` runs in.
    pub fn measured(&mut self, sum_us: u64, count: u64) {
        if let Some(here) = sum_us.checked_div(count) {
            self.mean_us = Some(self.mean_us.map_or(here, |before| (3 * before + here) / 4));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::JobId;
    use proptest::prelude::*;

    fn batch(tasks: Ranges) -> TaskBatch {
        let lens: Vec<u32> = tasks.iter().map(|i| i % 5).collect();
        let blob: Vec<u8> = tasks.iter().flat_map(|i| vec![i as u8; (i % 5) as usize]).collect();
        TaskBatch { job: JobId(1), tasks, lost: 0, lens, blob: blob.into() }
    }

    fn agrees(chunk: &Chunk) -> bool {
        let mut at = 0;
        chunk.tasks.iter().zip(chunk.lens()).all(|(index, len)| {
            let item = &chunk.blob[at..at + *len as usize];
            at += *len as usize;
            item.len() == (index % 5) as usize && item.iter().all(|b| *b == index as u8)
        }) && chunk.lens().len() as u64 == chunk.len()
    }

    proptest! {
        #[test]
        fn items_stay_with_their_tasks(
            tasks in proptest::collection::btree_set(0u32..200, 1..60),
            takes in proptest::collection::vec((0u64..9, 0u32..200, 1u32..20), 0..20),
        ) {
            let mut job = Job::new();
            let all: Ranges = tasks.iter().copied().collect();
            job.push(Chunk::new(batch(all.clone())).unwrap(), false);
            let mut seen = Ranges::new();
            for (most, first, count) in takes {
                if let Some(taken) = job.take(most.max(1), false) {
                    prop_assert!(agrees(&taken));
                    seen.union_with(&taken.tasks);
                }
                let (gone, _) = job.remove_waiting(&Ranges::from_range(first, count));
                seen.union_with(&gone);
                prop_assert!(job.waiting.iter().all(agrees));
                prop_assert_eq!(job.waiting_count, job.waiting_tasks().count() as u64);
            }
            let left: Ranges = job.waiting_tasks().collect();
            prop_assert!(left.intersection(&seen).is_empty());
            seen.union_with(&left);
            prop_assert_eq!(seen, all);
        }
    }

    #[test]
    fn lengths_that_do_not_agree_are_refused() {
        let mut bad = batch(Ranges::from_range(0, 3));
        bad.lens.pop();
        assert!(Chunk::new(bad).is_none());
        let mut bad = batch(Ranges::from_range(0, 3));
        bad.blob = Bytes::from_static(b"xxxxxxxxx");
        assert!(Chunk::new(bad).is_none());
        assert!(Chunk::new(TaskBatch::default()).is_none());
    }
}
