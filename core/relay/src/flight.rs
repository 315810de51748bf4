//! What is placed: runs of attempts on managers. A flight is one dispatched run; its attempts are numbered in a row.

use crate::queue::Chunk;
use bytes::Bytes;
use pf_protocol::payload::{PayloadRef, held, is_large};
use pf_protocol::{AttemptId, JobId, Micros};

/// Where one attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Given to the manager.
    Placed,
    /// Known to run.
    Started,
    /// Over, or taken back.
    Over,
}

/// One run of attempts of one job on one manager.
#[derive(Debug)]
pub(crate) struct Flight {
    pub job: JobId,
    /// Handle of the manager.
    pub manager: u32,
    pub first: AttemptId,
    /// Resource class that its tasks were counted with.
    pub class: usize,
    pub lost: u32,
    /// Taken over from an earlier relay: what its items are, the broker knows.
    pub adopted: bool,
    /// When it was dispatched, or adopted.
    pub since: Micros,
    tasks: Vec<u32>,
    /// Lengths of the items, and where each ends in `blob`; empty if there are none.
    lens: Vec<u32>,
    ends: Vec<u32>,
    blob: Bytes,
    states: Vec<State>,
    live: u32,
}

impl Flight {
    pub fn new(
        job: JobId,
        manager: u32,
        first: AttemptId,
        class: usize,
        chunk: &Chunk,
        since: Micros,
    ) -> Flight {
        let tasks: Vec<u32> = chunk.tasks.iter().collect();
        let ends = chunk.lens().iter().scan(0u32, |at, len| {
            *at += held(*len) as u32;
            Some(*at)
        });
        let states = vec![State::Placed; tasks.len()];
        let live = tasks.len() as u32;
        let (ends, lens, blob) = (ends.collect(), chunk.lens().to_vec(), chunk.blob.clone());
        Flight {
            job,
            manager,
            first,
            class,
            lost: chunk.lost,
            adopted: false,
            since,
            tasks,
            lens,
            ends,
            blob,
            states,
            live,
        }
    }

    /// Attempts that are not over.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// The place of an attempt in this run.
    pub fn place(&self, attempt: AttemptId) -> Option<usize> {
        if attempt.epoch != self.first.epoch {
            return None;
        }
        let place = attempt.n.checked_sub(self.first.n)? as usize;
        (place < self.tasks.len()).then_some(place)
    }

    pub fn attempt(&self, place: usize) -> AttemptId {
        AttemptId { epoch: self.first.epoch, n: self.first.n + place as u32 }
    }

    pub fn index(&self, place: usize) -> u32 {
        self.tasks[place]
    }

    pub fn state(&self, place: usize) -> State {
        self.states[place]
    }

    pub fn start(&mut self, place: usize) {
        if self.states[place] == State::Placed {
            self.states[place] = State::Started;
        }
    }

    /// Marks an attempt over; false if it was.
    pub fn end(&mut self, place: usize) -> bool {
        let was_live = self.states[place] != State::Over;
        if was_live {
            self.states[place] = State::Over;
            self.live -= 1;
        }
        was_live
    }

    pub fn item_len(&self, place: usize) -> u64 {
        let start = if place == 0 { 0 } else { self.ends.get(place - 1).copied().unwrap_or(0) };
        self.ends.get(place).map_or(0, |end| u64::from(end - start))
    }

    /// The task as something that waits again.
    pub fn chunk(&self, place: usize) -> Chunk {
        let len = self.lens.get(place).copied();
        let item = if len.is_some() {
            let start = if place == 0 { 0 } else { self.ends[place - 1] as usize };
            self.blob.slice(start..self.ends[place] as usize)
        } else {
            Bytes::new()
        };
        Chunk::single(self.tasks[place], item, len, self.lost)
    }

    /// The payloads that items of attempts name which are not over.
    pub fn names(&self) -> impl Iterator<Item = PayloadRef> + '_ {
        let large = self.live_places().filter(|p| self.lens.get(*p).is_some_and(|len| is_large(*len)));
        large.flat_map(|place| self.chunk(place).names())
    }

    /// Places that are not over, in order.
    pub fn live_places(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.tasks.len()).filter(|p| self.states[*p] != State::Over)
    }
}
