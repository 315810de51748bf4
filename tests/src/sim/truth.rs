//! What really happened, seen from outside: which task ran where and when, and what the client was told. Broken promises panic here.

use pf_protocol::outcome::OutcomeKind;
use pf_protocol::{AttemptId, JobId, TaskId};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub struct Truth {
    /// Running now: the task, and where.
    running: BTreeMap<TaskId, (usize, AttemptId)>,
    /// How often each task was started.
    pub starts: BTreeMap<TaskId, u32>,
    /// What the client was told of each task, once.
    pub told: BTreeMap<TaskId, OutcomeKind>,
    /// Jobs whose submit was acknowledged, with their tasks.
    pub acknowledged: BTreeMap<JobId, u32>,
    /// Every place in which two runs of one task met.
    pub at_once: BTreeSet<TaskId>,
}

impl Truth {
    /// A manager starts a task.
    ///
    /// # Panics
    /// When it runs elsewhere at this moment: never two at once, whatever the fault.
    pub fn started(&mut self, task: TaskId, manager: usize, attempt: AttemptId) {
        if let Some(other) = self.running.insert(task, (manager, attempt)) {
            panic!(
                "{task} runs twice at once: on manager {} as {}, now on {manager} as {attempt}",
                other.0, other.1
            );
        }
        *self.starts.entry(task).or_insert(0) += 1;
    }

    /// It ended, or was killed, or died with its node.
    pub fn ended(&mut self, task: TaskId) {
        self.running.remove(&task);
    }

    /// The client is told of an outcome.
    ///
    /// # Panics
    /// When it was told something else before.
    pub fn told(&mut self, task: TaskId, kind: OutcomeKind) {
        if let Some(before) = self.told.insert(task, kind) {
            assert_eq!(before, kind, "{task} had one outcome and now has another");
        }
    }

    /// Tasks that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }
}
