//! Where the tasks of a job wait and when the job is over: the live side of jobs, kept in step with the log.

use crate::broker::{Broker, Then, Turn};
use crate::io::Effect;
use crate::live::LiveJob;
use crate::record::{Cancelled, JobForgotten};
use pf_protocol::api::JobState;
use pf_protocol::message::Cancel;
use pf_protocol::{EndpointId, JobId, Ranges};

/// What a cancel is to do.
#[derive(Debug, Clone)]
pub(crate) struct CancelOrder {
    /// Positions; None: all, and the job takes no more.
    pub tasks: Option<Ranges>,
    pub kill: bool,
    /// What is handed out ends at once, too.
    pub force: bool,
    /// What is handed out is left alone.
    pub queued_only: bool,
    pub reason: String,
}

impl CancelOrder {
    /// The whole job, killing what runs.
    pub fn whole(reason: String) -> Self {
        CancelOrder { tasks: None, kill: true, force: false, queued_only: false, reason }
    }
}

impl Broker {
    /// Takes up a job: at its submit with nothing handed out (the caller queues its tasks), and after a restart, where what the log cannot
    /// tell was possibly handed out.
    pub(crate) fn begin_job(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        if job.is_over() {
            if let (Some(ended_us), Some(keep_s)) = (job.ended_us, job.spec.retention_s) {
                self.expiries.insert((ended_us.saturating_add(keep_s.saturating_mul(1_000_000)), id));
            }
            return;
        }
        let mut live = LiveJob::default();
        live.waiting = !job.spec.after.is_empty();
        let missing = job.ended.missing(job.total);
        if self.state.in_doubt(job) {
            live.assigned = missing.len();
        } else {
            live.queued = missing;
        }
        for after in &job.spec.after {
            self.dependents.entry(after.job).or_default().insert(id);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&job.endpoint) {
            endpoint.jobs.insert(id);
        }
        self.jobs.insert(id, live);
        self.to_check.insert(id);
    }

    /// Tasks whose record is made wait for it to be synced.
    pub(crate) fn queue_after_sync(&mut self, id: JobId, tasks: Ranges, turn: &mut Turn<'_>) {
        if let Some(live) = self.jobs.get_mut(&id)
            && !tasks.is_empty()
        {
            live.syncing.union_with(&tasks);
            self.after_sync(Then::Queue { job: id, tasks }, turn);
        }
    }

    /// Their record is synced: they wait to be handed out.
    pub(crate) fn queue_synced(&mut self, id: JobId, tasks: &Ranges) {
        if let Some(live) = self.jobs.get_mut(&id) {
            let there = live.syncing.intersection(tasks);
            live.syncing.subtract(&there);
            self.queue(id, &there);
        }
    }

    /// Puts tasks, which are nowhere now, into the queue: suspects apart.
    fn queue(&mut self, id: JobId, tasks: &Ranges) {
        let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else { return };
        live.queued.union_with(tasks);
        let lost = job.history.iter().filter(|(index, h)| h.losses > 0 && tasks.contains(**index));
        for (&index, _) in lost {
            live.queued.remove(index);
            live.suspects.insert(index);
        }
        self.refresh(id);
    }

    /// Gives a job its place in the ready queue if it has something to hand out.
    pub(crate) fn refresh(&mut self, id: JobId) {
        let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else { return };
        if live.in_ready || !live.can_hand_out(job.spec.max_running) {
            return;
        }
        if let Some(endpoint) = self.endpoints.get_mut(&job.endpoint) {
            endpoint.ready.push(job.spec.priority, job.owner, id);
            live.in_ready = true;
            self.to_pump.insert(job.endpoint);
        }
    }

    /// Tasks that were handed out come back unstarted: to the queue, or to their end if they are to be cancelled.
    pub(crate) fn give_back(&mut self, id: JobId, tasks: &Ranges, turn: &mut Turn<'_>) {
        let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else { return };
        let mut back = live.assigned_of(&job.ended.missing(job.total).intersection(tasks));
        if back.is_empty() {
            return;
        }
        let cancelled = if job.cancel.whole { back.clone() } else { back.intersection(&job.cancel.tasks) };
        back.subtract(&cancelled);
        live.leave_all(&back);
        let reason = job.cancel.reason.clone();
        self.queue(id, &back);
        if !cancelled.is_empty() {
            let record = Cancelled {
                at_us: turn.at_us,
                job: id,
                ended: cancelled.clone(),
                reason,
                ..Cancelled::default()
            };
            if self.log(record, turn).is_ok() {
                self.left(id, &cancelled);
            }
        }
        self.to_check.insert(id);
    }

    /// All that an endpoint holds comes back.
    pub(crate) fn give_back_all(&mut self, endpoint: EndpointId, turn: &mut Turn<'_>) {
        let jobs = self.endpoints.get(&endpoint).map(|e| e.jobs.clone()).unwrap_or_default();
        for job in jobs {
            let all = self.state.missing(job);
            self.give_back(job, &all, turn);
        }
    }

    /// Tasks have ended by a record that was just made.
    fn left(&mut self, id: JobId, tasks: &Ranges) {
        if let Some(live) = self.jobs.get_mut(&id) {
            live.leave_all(tasks);
        }
        self.to_check.insert(id);
    }

    /// Cancels by order of a person or of policy. Returns what ended now and how many were asked to end.
    pub(crate) fn cancel_tasks(
        &mut self,
        id: JobId,
        order: &CancelOrder,
        turn: &mut Turn<'_>,
    ) -> (Ranges, u64) {
        let none = (Ranges::new(), 0);
        let (Some(live), Some(job)) = (self.jobs.get(&id), self.state.jobs.get(&id)) else { return none };
        let mut chosen = job.ended.missing(job.total);
        if let Some(tasks) = &order.tasks {
            chosen = chosen.intersection(tasks);
        }
        let handed = live.assigned_of(&chosen);
        let whole = order.tasks.is_none() && !order.queued_only;
        let mut ended = chosen;
        if !order.force {
            ended.subtract(&handed);
        }
        let asked = if order.queued_only || order.force { Ranges::new() } else { handed.clone() };
        let may_run = if order.force { handed.clone() } else { Ranges::new() };
        let news = !asked.is_empty() && !(job.cancel.whole && (job.cancel.kill || !order.kill));
        if ended.is_empty() && !news && (!whole || job.cancel.whole) {
            return (ended, asked.len());
        }
        let record = Cancelled {
            at_us: turn.at_us,
            job: id,
            ended: ended.clone(),
            may_run,
            asked: if whole { Ranges::new() } else { asked.clone() },
            whole,
            kill: order.kill,
            reason: order.reason.clone(),
        };
        if self.log(record, turn).is_err() {
            return none;
        }
        self.left(id, &ended);
        if !handed.is_empty() && !order.queued_only {
            self.after_sync(Then::Cancel { job: id, tasks: handed, kill: order.kill }, turn);
        }
        (ended, asked.len())
    }

    /// The intent to cancel is on disk: the relay is told, if it is there; else it is told at its next session.
    pub(crate) fn send_cancel(&mut self, job: JobId, tasks: Ranges, kill: bool, turn: &mut Turn<'_>) {
        let Some(endpoint) = self.state.jobs.get(&job).map(|j| j.endpoint) else { return };
        let link = self.endpoints.get(&endpoint).and_then(|e| e.link.as_ref());
        if let Some(conn) = link.map(|link| link.conn).filter(|conn| self.acceptor.is_up(*conn)) {
            self.send(conn, Cancel { job, tasks, kill }.into(), turn);
        }
    }

    /// Looks at a job after something changed: whether it is over, failed too often, may begin.
    pub(crate) fn check_job(&mut self, id: JobId, turn: &mut Turn<'_>) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let Some(live) = self.jobs.get(&id) else { return };
        if job.is_over() {
            return self.job_over(id, turn);
        }
        if job.spec.max_fails.is_some_and(|most| job.failed >= u64::from(most.max(1))) && !job.cancel.whole {
            let reason = format!("{} of its tasks failed, {} were allowed to", job.failed, job.failed - 1);
            self.cancel_tasks(id, &CancelOrder::whole(reason), turn);
        } else if live.waiting {
            self.check_dependencies(id, turn);
        }
        self.refresh(id);
    }

    fn check_dependencies(&mut self, id: JobId, turn: &mut Turn<'_>) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let mut all_over = true;
        let mut broken = None;
        for after in &job.spec.after {
            match self.state.jobs.get(&after.job) {
                Some(other) if !other.is_over() => all_over = false,
                Some(other) if after.ok && other.state() != JobState::Ok => {
                    let (failed, cancelled) = (other.failed, other.cancelled);
                    broken = Some(format!(
                        "{}, after which it was to run, did not succeed: {failed} failed, {cancelled} cancelled",
                        after.job
                    ));
                }
                None if after.ok => {
                    broken = Some(format!("{}, after which it was to run, was forgotten", after.job));
                }
                _ => {}
            }
        }
        if let Some(reason) = broken {
            if !job.cancel.whole {
                self.cancel_tasks(id, &CancelOrder::whole(reason), turn);
            }
        } else if all_over && let Some(live) = self.jobs.get_mut(&id) {
            live.waiting = false;
        }
    }

    fn job_over(&mut self, id: JobId, turn: &mut Turn<'_>) {
        if self.jobs.remove(&id).is_none() {
            return;
        }
        let Some(job) = self.state.jobs.get(&id) else { return };
        let (endpoint, after) = (job.endpoint, job.spec.after.clone());
        self.cache.remove_job(id);
        if let Some(live) = self.endpoints.get_mut(&endpoint) {
            live.jobs.remove(&id);
        }
        for after in after {
            if let Some(others) = self.dependents.get_mut(&after.job) {
                others.remove(&id);
            }
        }
        self.to_check.extend(self.dependents.remove(&id).unwrap_or_default());
        self.begin_job(id);
        for ticket in self.waiters.take(id) {
            let reply = self.job_reply(id);
            self.reply(ticket, reply, turn);
        }
        self.after_sync(Then::Release { endpoint, job: id }, turn);
        self.streams.wake();
    }

    /// Retention is over.
    pub(crate) fn expire(&mut self, id: JobId, turn: &mut Turn<'_>) {
        if self.state.jobs.get(&id).is_some_and(crate::job::Job::is_over) {
            self.drop_job(id, true, turn);
        }
    }

    /// Drops an ended job and its payloads.
    pub(crate) fn drop_job(&mut self, id: JobId, expired: bool, turn: &mut Turn<'_>) {
        let forgotten = JobForgotten { at_us: turn.at_us, job: id, expired };
        if self.log(forgotten, turn).is_ok() {
            self.expiries.retain(|(_, job)| *job != id);
            self.after_sync(Then::DropJob { job: id }, turn);
            self.streams.wake();
        }
    }

    /// Tells the store to drop what was put for a job that was not made after all.
    pub(crate) fn drop_payloads(job: JobId, turn: &mut Turn<'_>) {
        turn.out.push(Effect::DropJob { job });
    }
}
