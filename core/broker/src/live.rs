//! What the broker knows of a job beside the log: which of its tasks wait where. Lost in a restart and found again by asking the relay.

use crate::limits::HANDED_LOOK_BACK;
use pf_protocol::{AttemptId, Ranges};
use std::collections::BTreeMap;

/// A task that is known to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub attempt: AttemptId,
    pub node: String,
}

/// A job that is not over. A task of it that has not ended is in exactly one of `syncing`, `queued`, `suspects`, or it is handed out.
#[derive(Debug, Default)]
pub(crate) struct LiveJob {
    /// Waits for its record to be synced.
    pub syncing: Ranges,
    /// Waits to be handed out.
    pub queued: Ranges,
    /// The same, after the manager was lost under it.
    pub suspects: Ranges,
    /// How many are handed out.
    pub assigned: u64,
    /// Handed out before the relay's present epoch, and claimed by it: their attempts may be older than the epoch.
    pub claimed: Ranges,
    /// Those of `claimed` that no relay holds: they may have started somewhere, and the job waits for proof that they are over.
    pub unproven: Ranges,
    /// Known to run.
    pub running: BTreeMap<u32, Run>,
    /// Waits for other jobs.
    pub waiting: bool,
    /// Waits for items.
    pub loading: bool,
    /// Is in the ready queue.
    pub in_ready: bool,
    /// When runs of tasks were handed out: first → (count, left, Unix microseconds).
    handed: BTreeMap<u32, Handed>,
}

#[derive(Debug, Clone, Copy)]
struct Handed {
    count: u32,
    left: u32,
    at_us: u64,
}

impl LiveJob {
    /// Whether the task, which has not ended, is handed out.
    pub fn is_assigned(&self, position: u32) -> bool {
        !(self.syncing.contains(position)
            || self.queued.contains(position)
            || self.suspects.contains(position))
    }

    /// Of `tasks`, none of which has ended, those that are handed out.
    pub fn assigned_of(&self, tasks: &Ranges) -> Ranges {
        let mut out = tasks.clone();
        out.subtract(&self.syncing);
        out.subtract(&self.queued);
        out.subtract(&self.suspects);
        out
    }

    /// The task leaves wherever it is.
    pub fn leave(&mut self, position: u32) {
        let waited =
            self.syncing.remove(position) || self.queued.remove(position) || self.suspects.remove(position);
        if !waited {
            self.assigned = self.assigned.saturating_sub(1);
            self.claimed.remove(position);
            self.unproven.remove(position);
            self.running.remove(&position);
        }
    }

    /// The tasks leave wherever they are. None of them has ended before.
    pub fn leave_all(&mut self, tasks: &Ranges) {
        let assigned = self.assigned_of(tasks);
        self.assigned = self.assigned.saturating_sub(assigned.len());
        self.syncing.subtract(tasks);
        self.queued.subtract(tasks);
        self.suspects.subtract(tasks);
        self.claimed.subtract(tasks);
        self.unproven.subtract(tasks);
        if !self.running.is_empty() {
            self.running.retain(|position, _| !tasks.contains(*position));
        }
    }

    /// A run of tasks, just taken from the queue, is handed out.
    pub fn hand_out(&mut self, tasks: &Ranges, at_us: u64) {
        self.assigned += tasks.len();
        for &(first, count) in tasks.pairs() {
            self.handed.insert(first, Handed { count, left: count, at_us });
        }
    }

    /// When the task was handed out, if that is known; asked once for each.
    pub fn handed_at(&mut self, position: u32) -> Option<u64> {
        let mut near = self.handed.range_mut(..=position).rev().take(HANDED_LOOK_BACK);
        let (first, entry) = near.find(|(first, entry)| position - **first < entry.count)?;
        let (first, at_us) = (*first, entry.at_us);
        entry.left = entry.left.saturating_sub(1);
        if entry.left == 0 {
            self.handed.remove(&first);
        }
        Some(at_us)
    }

    /// Tasks that wait in the broker.
    pub fn waiting_count(&self) -> u64 {
        self.syncing.len() + self.queued.len() + self.suspects.len()
    }

    /// Whether a task may be handed out now.
    pub fn can_hand_out(&self, max_running: Option<u32>) -> bool {
        let has = !self.queued.is_empty() || !self.suspects.is_empty();
        has && !self.waiting && !self.loading && self.assigned < u64::from(max_running.unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_in_one_place() {
        let mut job = LiveJob { queued: Ranges::from_range(0, 10), ..LiveJob::default() };
        let taken = job.queued.take_first(4);
        job.hand_out(&taken, 7);
        assert!(job.is_assigned(3) && !job.is_assigned(4));
        assert_eq!(job.handed_at(3), Some(7));
        job.leave(3);
        job.leave(9);
        assert_eq!((job.assigned, job.waiting_count()), (3, 5));
        job.leave_all(&Ranges::from_range(0, 6).intersection(&Ranges::from_range(2, 1)));
        assert_eq!((job.assigned, job.waiting_count()), (2, 5));
    }
}
