//! The attempts at this manager, each in exactly one state, and the queue of those that have not started.

use bytes::Bytes;
use pf_protocol::job::JobDef;
use pf_protocol::resources::Resources;
use pf_protocol::{AttemptId, JobId, Micros, TaskId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A job that was defined here.
#[derive(Debug)]
pub(crate) struct Job {
    pub def: Arc<JobDef>,
    pub class: u32,
    /// Kind of Python worker that it needs; None for commands.
    pub kind: Option<u32>,
    /// Attempts of it that are here.
    pub live: u32,
    /// What one of its tasks takes of a worker's time, microseconds; 0: not known yet.
    pub estimate_us: Micros,
}

/// What tasks have in common that can follow each other in one slot.
#[derive(Debug)]
pub(crate) struct Class {
    /// What to claim, best first.
    pub wants: Vec<Resources>,
    pub kind: Option<u32>,
    /// Held attempts, oldest first. May hold some that are held no longer.
    pub queue: VecDeque<AttemptId>,
}

/// Where an attempt is.
#[derive(Debug)]
pub(crate) enum State {
    /// In its class's queue.
    Held,
    /// In a worker's pipe, behind others, or while its process starts. Counts as not started.
    Piped { worker: u32 },
    /// First in the pipe of a Python worker that is up, or a command whose process runs.
    Running { worker: u32, since: Micros },
}

impl State {
    /// Since when it runs; None if it does not, as far as is known.
    pub fn running_since(&self) -> Option<Micros> {
        match self {
            State::Running { since, .. } => Some(*since),
            State::Held | State::Piped { .. } => None,
        }
    }

    /// In whose pipe it is.
    pub fn worker(&self) -> Option<u32> {
        match self {
            State::Piped { worker } | State::Running { worker, .. } => Some(*worker),
            State::Held => None,
        }
    }

    pub fn has_not_started(&self) -> bool {
        self.running_since().is_none()
    }
}

/// Why this manager ends an attempt that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    TimeLimit,
    Cancelled,
    /// Cancelled if it has not started.
    Unwanted,
    /// The relay does not want to know.
    Dropped,
    /// The block or the manager ends: the attempt is lost through no fault of its own.
    GivenUp(String),
}

/// What comes next in the life of an attempt that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Warn,
    Limit,
    Kill,
}

impl Job {
    /// One of its tasks has taken this long.
    pub fn learn(&mut self, took_us: Micros) {
        let took_us = took_us.max(1);
        self.estimate_us = if self.estimate_us == 0 { took_us } else { (3 * self.estimate_us + took_us) / 4 };
    }
}

#[derive(Debug)]
pub(crate) struct Attempt {
    pub job: JobId,
    pub index: u32,
    pub item: Bytes,
    /// Whether `item` only names the payload.
    pub is_large: bool,
    pub arrived: Micros,
    /// How many workers died before they told its end.
    pub requeues: u8,
    pub state: State,
    pub ending: Option<Ending>,
    pub due: Option<(Micros, Step)>,
}

impl Attempt {
    pub fn task(&self) -> TaskId {
        TaskId { job: self.job, index: self.index }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    pub all: BTreeMap<AttemptId, Attempt>,
    pub jobs: BTreeMap<JobId, Job>,
    pub classes: BTreeMap<u32, Class>,
    class_ids: BTreeMap<(Vec<Resources>, Option<u32>), u32>,
    next_class: u32,
    /// When something is due for an attempt.
    pub due: BTreeSet<(Micros, AttemptId)>,
}

impl Attempts {
    /// The class of tasks that want one of `wants` and run on a worker of `kind`.
    pub fn class_of(&mut self, wants: Vec<Resources>, kind: Option<u32>) -> u32 {
        let next = self.next_class + 1;
        let id = *self.class_ids.entry((wants.clone(), kind)).or_insert(next);
        if id == next {
            self.next_class = next;
            self.classes.insert(id, Class { wants, kind, queue: VecDeque::new() });
        }
        id
    }

    /// Forgets classes that no job is of.
    pub fn forget_unused_classes(&mut self) {
        let used: BTreeSet<u32> = self.jobs.values().map(|j| j.class).collect();
        self.class_ids.retain(|_, id| used.contains(id));
        self.classes.retain(|id, _| used.contains(id));
    }

    /// Takes a new attempt of a job that is defined.
    pub fn hold(&mut self, id: AttemptId, attempt: Attempt) {
        let Some(job) = self.jobs.get_mut(&attempt.job) else { return };
        job.live += 1;
        if let Some(class) = self.classes.get_mut(&job.class) {
            class.queue.push_back(id);
        }
        self.all.insert(id, attempt);
    }

    /// Puts an attempt that did not start after all back to the front of its queue.
    pub fn hold_again(&mut self, id: AttemptId) {
        let Some(attempt) = self.all.get_mut(&id) else { return };
        attempt.state = State::Held;
        let class = self.jobs.get(&attempt.job).and_then(|job| self.classes.get_mut(&job.class));
        if let Some(class) = class {
            class.queue.push_front(id);
        }
        self.set_due(id, None);
    }

    /// The attempt is over here.
    pub fn remove(&mut self, id: AttemptId) -> Option<Attempt> {
        let attempt = self.all.remove(&id)?;
        if let Some((at, _)) = attempt.due {
            self.due.remove(&(at, id));
        }
        if let Some(job) = self.jobs.get_mut(&attempt.job) {
            job.live -= 1;
        }
        Some(attempt)
    }

    pub fn set_due(&mut self, id: AttemptId, due: Option<(Micros, Step)>) {
        let Some(attempt) = self.all.get_mut(&id) else { return };
        if let Some((at, _)) = std::mem::replace(&mut attempt.due, due) {
            self.due.remove(&(at, id));
        }
        if let Some((at, _)) = due {
            self.due.insert((at, id));
        }
    }

    /// The oldest held attempt of a class; forgets those in front that are held no longer.
    pub fn first_held(&mut self, class: u32) -> Option<AttemptId> {
        let class = self.classes.get_mut(&class)?;
        while let Some(&id) = class.queue.front() {
            if self.all.get(&id).is_some_and(|a| matches!(a.state, State::Held)) {
                return Some(id);
            }
            class.queue.pop_front();
        }
        None
    }

    /// Classes in the order of arrival of their oldest held attempt.
    pub fn classes_by_age(&mut self) -> Vec<u32> {
        let ids: Vec<u32> =
            self.classes.iter().filter(|(_, c)| !c.queue.is_empty()).map(|(id, _)| *id).collect();
        let mut by_age: Vec<(Micros, AttemptId, u32)> = ids
            .into_iter()
            .filter_map(|class| self.first_held(class).map(|id| (self.all[&id].arrived, id, class)))
            .collect();
        by_age.sort_unstable();
        by_age.into_iter().map(|(_, _, class)| class).collect()
    }

    /// Takes the first of the class's queue, which [`Attempts::first_held`] just answered.
    pub fn pop_held(&mut self, class: u32) {
        if let Some(class) = self.classes.get_mut(&class) {
            class.queue.pop_front();
        }
    }

    pub fn held(&self) -> Vec<AttemptId> {
        self.all.iter().filter(|(_, a)| matches!(a.state, State::Held)).map(|(id, _)| *id).collect()
    }

    pub fn check(&self) {
        for (id, attempt) in &self.all {
            let job = self
                .jobs
                .get(&attempt.job)
                .unwrap_or_else(|| panic!("attempt {id} of a job that is not defined"));
            if matches!(attempt.state, State::Held) {
                let class = &self.classes[&job.class];
                assert!(class.queue.contains(id), "held attempt {id} is in no queue");
            }
            if let Some((at, _)) = attempt.due {
                assert!(self.due.contains(&(at, *id)), "deadline of {id} is not watched");
            }
        }
        let due = self.all.values().filter(|a| a.due.is_some()).count();
        assert_eq!(due, self.due.len(), "deadlines of attempts that are over");
        for (id, job) in &self.jobs {
            let live = self.all.values().filter(|a| a.job == *id).count();
            assert_eq!(live, job.live as usize, "live attempts of {id}");
        }
    }
}
