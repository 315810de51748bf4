//! What must always hold, by name. Called by tests and the simulation after every event.

use crate::broker::Broker;
use pf_protocol::limits::WANTS_MAX;

impl Broker {
    /// Checks the invariants.
    ///
    /// # Panics
    /// When one does not hold, with its name and the object.
    pub fn check(&self) {
        assert!(self.synced <= self.position, "synced_not_above_position");
        let in_order = self.waiting.iter().zip(self.waiting.iter().skip(1)).all(|(a, b)| a.0 <= b.0);
        assert!(in_order, "waiting_is_in_order_of_positions");
        for (id, job) in &self.state.jobs {
            let counted = job.ok + job.failed + job.cancelled;
            assert_eq!(counted, u64::from(job.ended.len()), "one_outcome_a_task: {id}");
            assert!(job.ended.len() <= job.total, "no_more_outcomes_than_tasks: {id}");
            assert_eq!(job.is_over(), job.ended_us.is_some(), "an_over_job_has_an_end: {id}");
            assert!(!(self.jobs.contains_key(id) && job.is_over()), "an_over_job_is_not_live: {id}");
            assert!(self.jobs.contains_key(id) || job.is_over(), "an_unfinished_job_is_live: {id}");
        }
        for (id, live) in &self.jobs {
            let job = self.state.jobs.get(id);
            assert!(job.is_some(), "a_live_job_is_known: {id}");
            let unfinished = job.map_or(0, crate::job::Job::unfinished);
            let placed = live.waiting_count() + live.assigned;
            assert_eq!(placed, unfinished, "a_task_is_in_one_place: {id}");
            for waiting in [&live.syncing, &live.queued, &live.suspects] {
                let ended = waiting.iter().take(64).any(|at| job.is_some_and(|j| j.ended.contains(at)));
                assert!(!ended, "what_ended_does_not_wait: {id}");
            }
            assert!(live.running.len() as u64 <= live.assigned, "what_runs_is_handed_out: {id}");
            assert_eq!(live.loading, self.is_loading(*id), "a_loading_job_has_a_load: {id}");
        }
        for (id, endpoint) in &self.endpoints {
            if let Some(link) = &endpoint.link {
                let sent = (link.sent_tasks, link.sent_bytes);
                let credit = (link.credit.tasks_upto, link.credit.bytes_upto);
                assert!(sent.0 <= credit.0 && sent.1 <= credit.1, "credit_is_kept: {id}");
                assert!(
                    link.pieces_due <= WANTS_MAX && link.wants.len() <= WANTS_MAX,
                    "wants_are_bounded: {id}"
                );
                assert!(link.confirmed_upto <= link.taken_upto, "only_what_came_is_confirmed: {id}");
                let served = self.conns.get(&link.conn).and_then(|c| c.endpoint);
                assert_eq!(served, Some(*id), "a_link_has_its_connection: {id}");
            }
        }
        for (job, after) in self.stream_cursors() {
            assert!(after <= self.state.seq, "no_cursor_is_ahead: {job:?}");
        }
    }
}
