//! Whose turn it is at an endpoint: by priority, then by owner in turn, then by job in turn. Used by [`crate::assign`].

use pf_protocol::{JobId, OwnerId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// Jobs of one endpoint that have tasks to hand out. The caller puts a job in once.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    levels: BTreeMap<Reverse<i32>, Level>,
}

#[derive(Debug, Default)]
struct Level {
    /// Owners with jobs, next one first.
    turns: VecDeque<OwnerId>,
    jobs: BTreeMap<OwnerId, VecDeque<JobId>>,
}

impl Ready {
    /// Puts a job behind the others.
    pub fn push(&mut self, priority: i32, owner: OwnerId, job: JobId) {
        let level = self.levels.entry(Reverse(priority)).or_default();
        let jobs = level.jobs.entry(owner).or_default();
        if jobs.is_empty() {
            level.turns.push_back(owner);
        }
        jobs.push_back(job);
    }

    /// Puts a job in front of all of its priority: its turn had begun.
    pub fn push_front(&mut self, priority: i32, owner: OwnerId, job: JobId) {
        let level = self.levels.entry(Reverse(priority)).or_default();
        level.turns.retain(|turn| *turn != owner);
        level.turns.push_front(owner);
        level.jobs.entry(owner).or_default().push_front(job);
    }

    /// Takes the job whose turn it is.
    pub fn pop(&mut self) -> Option<JobId> {
        let (&priority, level) = self.levels.iter_mut().next()?;
        let owner = level.turns.pop_front()?;
        let jobs = level.jobs.get_mut(&owner)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            level.jobs.remove(&owner);
        } else {
            level.turns.push_back(owner);
        }
        if level.turns.is_empty() {
            self.levels.remove(&priority);
        }
        job
    }

    /// Whether no job has its turn.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_first_then_owners_in_turn_then_jobs_in_turn() {
        let mut ready = Ready::default();
        let (a, b) = (OwnerId(1), OwnerId(2));
        for job in [1, 2, 3] {
            ready.push(0, a, JobId(job));
        }
        ready.push(0, b, JobId(4));
        ready.push(5, b, JobId(5));
        let order: Vec<u64> = std::iter::from_fn(|| ready.pop()).map(|job| job.0).collect();
        assert_eq!(order, [5, 1, 4, 2, 3]);
        assert!(ready.is_empty());
    }

    #[test]
    fn a_job_whose_turn_was_broken_off_comes_first() {
        let mut ready = Ready::default();
        ready.push(0, OwnerId(1), JobId(1));
        ready.push(0, OwnerId(2), JobId(2));
        ready.push_front(0, OwnerId(2), JobId(3));
        assert_eq!(ready.pop(), Some(JobId(3)));
        assert_eq!(ready.pop(), Some(JobId(1)));
        assert_eq!(ready.pop(), Some(JobId(2)));
        assert_eq!(ready.pop(), None);
    }
}
