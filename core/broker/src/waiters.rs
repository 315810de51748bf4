//! Clients that wait for a job to be over. Used by [`crate::queries`] and the timer.

use pf_protocol::{JobId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// Open waits.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_job: BTreeMap<JobId, BTreeMap<u64, Micros>>,
    due: BTreeSet<(Micros, u64, JobId)>,
}

impl Waiters {
    /// `ticket` waits for `job`, at the longest until `until`.
    pub fn add(&mut self, job: JobId, ticket: u64, until: Micros) {
        self.by_job.entry(job).or_default().insert(ticket, until);
        self.due.insert((until, ticket, job));
    }

    /// Takes those who wait for `job`.
    pub fn take(&mut self, job: JobId) -> Vec<u64> {
        let waiting = self.by_job.remove(&job).unwrap_or_default();
        for (ticket, until) in &waiting {
            self.due.remove(&(*until, *ticket, job));
        }
        waiting.into_keys().collect()
    }

    /// Takes those whose time has come.
    pub fn due(&mut self, now: Micros) -> Vec<(u64, JobId)> {
        let mut out = Vec::new();
        while let Some(&(until, ticket, job)) = self.due.first() {
            if until > now {
                break;
            }
            self.due.pop_first();
            if let Some(waiting) = self.by_job.get_mut(&job) {
                waiting.remove(&ticket);
                if waiting.is_empty() {
                    self.by_job.remove(&job);
                }
            }
            out.push((ticket, job));
        }
        out
    }

    /// When somebody's time comes next.
    pub fn next_due(&self) -> Option<Micros> {
        self.due.first().map(|due| due.0)
    }
}
