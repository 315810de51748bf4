//! Workers: which there are, what is in their pipes. A worker is a warm Python process, or a lane of commands: tasks of one seat, one after another, each a
//! process of its own. A lane is there while its pipe is not empty.

use super::attempts::Attempts;
use crate::limits::{PIPE_BYTES_MAX, PIPE_TASKS_MAX, PIPE_US_MAX};
use crate::slots::Claim;
use pf_protocol::job::Environment;
use pf_protocol::outcome::ErrorDetail;
use pf_protocol::{AttemptId, JobId, Micros};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What workers are alike in.
#[derive(Debug)]
pub(crate) struct Kind {
    pub python: Option<String>,
    pub env: Environment,
    /// Starts that failed in a row.
    pub failures: u32,
    /// Until then no start is tried, and why.
    pub rest: Option<(Micros, ErrorDetail)>,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Has not said HELLO; is killed at this time.
    Starting {
        until: Micros,
    },
    Up,
    /// Was told to end, or is being killed: gets nothing new.
    Ending,
}

/// A task in a pipe.
#[derive(Debug)]
pub(crate) struct InPipe {
    pub seq: u64,
    pub attempt: AttemptId,
    estimate_us: Micros,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Worker {
    /// None: a lane of commands.
    pub kind: Option<u32>,
    /// Class of the tasks in the pipe.
    pub class: u32,
    pub phase: Phase,
    /// Where it is bound to.
    pub seat: Claim,
    /// Whether it holds its seat: while its pipe is not empty.
    pub seated: bool,
    /// Jobs that it was told of, with their names for it.
    pub jobs: BTreeMap<JobId, u32>,
    pub pipe: VecDeque<InPipe>,
    pipe_us: Micros,
    pipe_bytes: usize,
    next_seq: u64,
    pub idle_since: Micros,
}

impl Worker {
    pub fn push(&mut self, attempt: AttemptId, estimate_us: Micros, bytes: usize) -> u64 {
        self.next_seq += 1;
        self.pipe.push_back(InPipe { seq: self.next_seq, attempt, estimate_us, bytes });
        self.pipe_us += estimate_us;
        self.pipe_bytes += bytes;
        self.next_seq
    }

    pub fn pop(&mut self) -> Option<InPipe> {
        self.remove_at(0)
    }

    /// Takes an attempt out, wherever it is.
    pub fn remove(&mut self, attempt: AttemptId) -> Option<InPipe> {
        let at = self.pipe.iter().position(|p| p.attempt == attempt)?;
        self.remove_at(at)
    }

    fn remove_at(&mut self, at: usize) -> Option<InPipe> {
        let removed = self.pipe.remove(at)?;
        self.pipe_us -= removed.estimate_us;
        self.pipe_bytes -= removed.bytes;
        Some(removed)
    }

    /// Whether a task of this length may wait behind what is in the pipe. The first one in it runs since `head_since`.
    pub fn has_room(
        &self,
        now: Micros,
        head_since: Option<Micros>,
        estimate_us: Micros,
        bytes: usize,
    ) -> bool {
        let head_is_long = head_since.is_some_and(|since| now.saturating_sub(since) > PIPE_US_MAX);
        self.phase == Phase::Up
            && !head_is_long
            && estimate_us > 0
            && self.pipe_us + estimate_us <= PIPE_US_MAX
            && self.pipe.len() < PIPE_TASKS_MAX
            && self.pipe_bytes + bytes <= PIPE_BYTES_MAX
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    pub all: BTreeMap<u32, Worker>,
    /// Idle ones that take work, by kind.
    pub idle: BTreeSet<(u32, u32)>,
    pub kinds: BTreeMap<u32, Kind>,
    next_worker: u32,
    next_kind: u32,
}

impl Workers {
    /// The kind with this interpreter and environment.
    pub fn kind_of(&mut self, python: Option<&String>, env: &Environment) -> u32 {
        let known = self.kinds.iter().find(|(_, k)| k.python.as_ref() == python && k.env == *env);
        if let Some((id, _)) = known {
            return *id;
        }
        self.next_kind += 1;
        let kind = Kind { python: python.cloned(), env: env.clone(), failures: 0, rest: None };
        self.kinds.insert(self.next_kind, kind);
        self.next_kind
    }

    /// Forgets kinds that neither job nor worker is of.
    pub fn forget_unused_kinds(&mut self, attempts: &Attempts) {
        let used: BTreeSet<u32> = attempts
            .jobs
            .values()
            .filter_map(|j| j.kind)
            .chain(self.all.values().filter_map(|w| w.kind))
            .collect();
        self.kinds.retain(|id, _| used.contains(id));
    }

    /// A lane of commands.
    pub fn add_lane(&mut self, class: u32, seat: Claim) -> u32 {
        self.add(None, class, seat, Phase::Up)
    }

    /// A Python worker of a kind, which is given up if it is not up at `until`.
    pub fn add_python(&mut self, kind: u32, class: u32, seat: Claim, until: Micros) -> u32 {
        self.add(Some(kind), class, seat, Phase::Starting { until })
    }

    fn add(&mut self, kind: Option<u32>, class: u32, seat: Claim, phase: Phase) -> u32 {
        self.next_worker += 1;
        let worker = Worker {
            kind,
            class,
            phase,
            seat,
            seated: true,
            jobs: BTreeMap::new(),
            pipe: VecDeque::new(),
            pipe_us: 0,
            pipe_bytes: 0,
            next_seq: 0,
            idle_since: 0,
        };
        self.all.insert(self.next_worker, worker);
        self.next_worker
    }

    pub fn remove(&mut self, id: u32) -> Option<Worker> {
        let worker = self.all.remove(&id)?;
        if let Some(kind) = worker.kind {
            self.idle.remove(&(kind, id));
        }
        Some(worker)
    }

    /// When the first of those that start is given up.
    pub fn next_deadline(&self) -> Option<Micros> {
        let starting = self.all.values().filter_map(|w| match w.phase {
            Phase::Starting { until } => Some(until),
            _ => None,
        });
        starting.min()
    }

    /// The one that is idle for longest, if more than `most` are.
    pub fn idle_too_many(&self, most: usize) -> Option<u32> {
        if self.idle.len() <= most {
            return None;
        }
        self.idle.iter().map(|(_, id)| *id).min_by_key(|id| (self.all[id].idle_since, *id))
    }

    pub fn check(&self) {
        for (id, worker) in &self.all {
            assert_eq!(
                worker.seated,
                !worker.pipe.is_empty(),
                "worker {id} holds a seat without work, or works without one"
            );
            let idle = worker.kind.is_some_and(|kind| self.idle.contains(&(kind, *id)));
            assert!(
                !idle || (worker.pipe.is_empty() && worker.phase == Phase::Up),
                "worker {id} is not idle"
            );
            assert_eq!(
                worker.pipe_us,
                worker.pipe.iter().map(|p| p.estimate_us).sum::<Micros>(),
                "estimate of {id}"
            );
        }
        assert!(self.idle.iter().all(|(_, id)| self.all.contains_key(id)), "idle workers exist");
    }
}
