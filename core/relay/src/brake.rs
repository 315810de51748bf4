//! Tasks that end without running: those of a job that has used the node-hours that it may, and those that no block can ever run. They would
//! take the place of others in what the broker may hand out.

use crate::limits::BRAKED_JOBS_MAX;
use crate::plan::hours;
use crate::relay::Relay;
use crate::scaling::{NODE_MS_A_MILLI_HOUR, Shape};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::{AttemptId, JobId, ManagerId, Ranges};
use std::collections::BTreeMap;

impl Relay {
    fn node_ms_limit(&self, id: JobId) -> Option<u64> {
        let limit = self.jobs.get(&id)?.def.as_ref()?.spec.max_node_hours_milli?;
        Some(limit.saturating_mul(NODE_MS_A_MILLI_HOUR))
    }

    /// What a job with a limit may still use beside what its own blocks may.
    pub(crate) fn node_ms_left(&self, id: JobId) -> u64 {
        let own = self.blocks.live().filter(|b| b.record.job == Some(id));
        let intended: u64 = own.map(|b| b.record.intended_node_ms()).sum();
        let limit = self.node_ms_limit(id).unwrap_or(0);
        limit.saturating_sub(self.node_ms_used(id)).saturating_sub(intended)
    }

    /// What the tasks of a job with a limit have used: of each node the part that they filled.
    pub(crate) fn node_ms_used(&self, id: JobId) -> u64 {
        let ended = self.blocks.roster.jobs_node_ms.get(&id).copied().unwrap_or(0);
        let running = self.flights.values().filter(|f| f.job == id).map(|f| {
            let manager = self.managers.get(&f.manager).map(|m| m.id);
            let one = manager.map_or(0, |m| self.share_us(m, f.class, self.now - f.since));
            u64::from(f.live()) * one
        });
        ended + running.sum::<u64>() / 1_000
    }

    /// So much of a node's time is one task's that ran this long.
    fn share_us(&self, manager: ManagerId, class: usize, ran_us: u64) -> u64 {
        let manager = self.manager_handles.get(&manager).and_then(|h| self.managers.get(h));
        let fit = manager.map_or(1, |m| self.classes.all[class].resources.fit_count(&m.capacity));
        ran_us / u64::from(fit.max(1))
    }

    /// Attempts of a job ran for so long in all.
    pub(crate) fn count_use(&mut self, id: JobId, manager: ManagerId, ran_us: u64) {
        if self.node_ms_limit(id).is_none() {
            return;
        }
        let class = self.jobs.get(&id).map_or(0, |j| j.class);
        let used = self.share_us(manager, class, ran_us);
        let book = &mut self.blocks.roster.jobs_node_ms;
        // Thousandths are lost on each batch: of the user's hours, in the user's favour.
        *book.entry(id).or_insert(0) += used / 1_000;
        while book.len() > BRAKED_JOBS_MAX {
            book.pop_first();
        }
    }

    /// Ends the tasks of jobs that have used what they may: those that wait as refused, those that run by a kill.
    pub(crate) fn brake_jobs(&mut self) {
        let limited =
            |id: &JobId| self.node_ms_limit(*id).is_some_and(|limit| self.node_ms_used(*id) >= limit);
        let over: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(id, j)| (j.waiting_count + j.placed > 0) && (j.braked || limited(id)))
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let first = !std::mem::replace(&mut job.braked, true);
            let limit = hours(self.node_ms_limit(id).unwrap_or(0));
            let why = format!("the job has used the {limit} node-hours that it may");
            if first {
                self.decide(format!("end {id}: {why}"));
                self.kill_running(id);
            }
            let gone = self.forget_waiting(id, &Ranges::from_range(0, u32::MAX));
            self.end_waiting(id, &gone, OutcomeKind::Refused, &why);
            self.retire(id);
        }
    }

    /// Ends the tasks that no shape of blocks can ever run, by what is configured.
    pub(crate) fn refuse_hopeless(&mut self) {
        let shapes = &self.config.scaling.shapes;
        let mut hopeless: Vec<(JobId, String)> = Vec::new();
        for (id, job) in self.jobs.iter().filter(|(_, j)| j.waiting_count > 0) {
            let Some(def) = &job.def else { continue };
            let needed_ms = def.spec.time_needed_ms.unwrap_or(0);
            let never = |s: &Shape| {
                let why = s.never(&def.spec.resources, def.spec.account.as_deref(), needed_ms)?;
                Some(if shapes.len() == 1 { why } else { format!("{}: {why}", s.name) })
            };
            if let Some(why) = shapes.iter().map(never).collect::<Option<Vec<String>>>() {
                hopeless.push((*id, why.join("; ")));
            }
        }
        for (id, why) in hopeless {
            self.decide(format!("refuse {id}: {why}"));
            let gone = self.forget_waiting(id, &Ranges::from_range(0, u32::MAX));
            let why = format!("no block of endpoint {} can run it: {why}", self.config.endpoint);
            self.end_waiting(id, &gone, OutcomeKind::Refused, &why);
            self.retire(id);
        }
    }

    fn kill_running(&mut self, id: JobId) {
        let mut asked: BTreeMap<u32, Vec<AttemptId>> = BTreeMap::new();
        for flight in self.flights.values().filter(|f| f.job == id) {
            asked.entry(flight.manager).or_default().extend(flight.live_places().map(|p| flight.attempt(p)));
        }
        for (handle, attempts) in asked {
            self.cancel_at(handle, attempts, true);
        }
    }
}
