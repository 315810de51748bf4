//! Everything that ends: time limits, the lease, the walltime, the manager itself.

use super::ManagerCore;
use super::attempts::{Ending, State, Step};
use super::workers::Phase;
use crate::Effect;
use crate::limits::{
    ABANDONED_AFTER_US, CONFIRM_WAIT_US, KILL_GRACE_US, PIPE_HEAD_US_MAX, SPOOL_AFTER_US, WARN_BEFORE_US,
};
use pf_protocol::message::Recalled;
use pf_protocol::outcome::{ErrorDetail, OutcomeKind};
use pf_protocol::{AttemptId, Micros};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The manager is on its way out.
#[derive(Debug)]
pub(super) struct Drain {
    pub(super) reason: String,
    warn_at: Micros,
    warned: bool,
    term_at: Micros,
    termed: bool,
    kill_at: Micros,
    killed: bool,
    /// It exits by then, whatever still hangs.
    exit_at: Micros,
    /// Confirmations are waited for until then; set when nothing runs any more.
    confirm_until: Option<Micros>,
    /// What is left was given to the spool; exit when that is done.
    last_spool: bool,
}

impl ManagerCore {
    /// Everything whose time has come.
    pub(super) fn on_time(&mut self, now: Micros, out: &mut Vec<Effect>) {
        self.on_attempts_due(now, out);
        self.unpipe(now, out);
        self.report_started(now);
        self.report_load(now);
        self.on_lease(now, out);
        self.on_slow_workers(now, out);
        if now >= self.walltime_drain_at() && self.drain.is_none() {
            let grace = self.config.walltime_end.saturating_sub(self.reserve_us / 4).saturating_sub(now);
            self.begin_drain(now, "the walltime of the block is nearly over".into(), grace, out);
        }
        if self.drain.is_none() && self.cut_since.is_some_and(|since| now >= since + ABANDONED_AFTER_US) {
            let why = format!("no relay was heard for {} s", ABANDONED_AFTER_US / 1_000_000);
            self.begin_drain(now, why, 0, out);
        }
        self.on_drain_time(now, out);
        let silent = self.cut_since.is_some_and(|since| now >= since + SPOOL_AFTER_US);
        let rested = self.spooling.is_none_or(|at| now >= at + SPOOL_AFTER_US);
        if silent && rested && self.drain.is_none() {
            self.spool(now, out);
        }
    }

    /// When one of these is due next.
    pub(super) fn next_end(&self) -> Option<Micros> {
        let drain = self.drain.as_ref().map(|d| {
            let steps = [(d.warned, d.warn_at), (d.termed, d.term_at), (d.killed, d.kill_at)];
            let step = steps.into_iter().filter(|(done, _)| !done).map(|(_, at)| at).min();
            let confirm = d.confirm_until.filter(|_| !d.last_spool);
            [step, confirm, Some(d.exit_at)].into_iter().flatten().min().unwrap_or(d.exit_at)
        });
        let walltime = self.drain.is_none().then(|| self.walltime_drain_at());
        let lease = self.cut_since.filter(|_| !self.lease_killed).map(|since| since + 2 * self.lease_us);
        let abandoned =
            self.cut_since.filter(|_| self.drain.is_none()).map(|since| since + ABANDONED_AFTER_US);
        let spool = self
            .cut_since
            .filter(|_| self.outgoing.has_unspooled() && self.drain.is_none())
            .map(|since| (since + SPOOL_AFTER_US).max(self.spooling.map_or(0, |at| at + SPOOL_AFTER_US)));
        [drain, walltime, lease, abandoned, spool, self.next_belief()].into_iter().flatten().min()
    }

    fn walltime_drain_at(&self) -> Micros {
        self.config.walltime_end.saturating_sub(self.reserve_us)
    }

    /// Sets the deadlines of an attempt that begins to run.
    pub(super) fn watch_limit(&mut self, now: Micros, id: AttemptId) {
        let Some(attempt) = self.attempts.all.get(&id) else { return };
        let Some(spec) = self.attempts.jobs.get(&attempt.job).map(|j| &j.def.spec) else { return };
        let Some(limit_us) = spec.time_limit_ms.map(|ms| ms.saturating_mul(1_000)) else { return };
        let due = if spec.warn_signal.is_some() && limit_us > WARN_BEFORE_US {
            (now.saturating_add(limit_us - WARN_BEFORE_US), Step::Warn)
        } else {
            (now.saturating_add(limit_us), Step::Limit)
        };
        self.attempts.set_due(id, Some(due));
    }

    fn on_attempts_due(&mut self, now: Micros, out: &mut Vec<Effect>) {
        while let Some(&(at, id)) = self.attempts.due.first() {
            if at > now {
                return;
            }
            let step = self.attempts.all.get(&id).and_then(|a| a.due).map(|(_, step)| step);
            self.attempts.set_due(id, None);
            match step {
                Some(Step::Warn) => {
                    self.warn(id, out);
                    self.attempts.set_due(id, Some((at + WARN_BEFORE_US, Step::Limit)));
                }
                Some(Step::Limit) => self.terminate(now, id, Ending::TimeLimit, out),
                Some(Step::Kill) => self.signal(id, SIGKILL, out),
                // A deadline of an attempt that is gone: not to be looked at again.
                None => {
                    self.attempts.due.remove(&(at, id));
                }
            }
        }
    }

    /// Asks an attempt that runs to end, and kills it after the grace.
    pub(super) fn terminate(&mut self, now: Micros, id: AttemptId, ending: Ending, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.all.get_mut(&id) else { return };
        // Dropped stays dropped, whatever else comes; else the first reason is the one that is told.
        if attempt.ending.is_none() || ending == Ending::Dropped {
            attempt.ending = Some(ending);
        }
        if attempt.state.running_since().is_some() {
            self.signal(id, SIGTERM, out);
            self.attempts.set_due(id, Some((now + KILL_GRACE_US, Step::Kill)));
        }
    }

    fn warn(&self, id: AttemptId, out: &mut Vec<Effect>) {
        let spec =
            self.attempts.all.get(&id).and_then(|a| self.attempts.jobs.get(&a.job)).map(|j| &j.def.spec);
        if let Some(signal) = spec.and_then(|s| s.warn_signal) {
            self.signal(id, signal, out);
        }
    }

    fn signal(&self, id: AttemptId, signal: i32, out: &mut Vec<Effect>) {
        let Some(&State::Running { worker, .. }) = self.attempts.all.get(&id).map(|a| &a.state) else {
            return;
        };
        let is_lane = self.workers.all.get(&worker).is_some_and(|w| w.kind.is_none());
        out.push(if is_lane {
            Effect::SignalCommand { attempt: id, signal }
        } else {
            Effect::SignalWorker { worker, signal }
        });
    }

    /// Takes back whatever has not started.
    fn take_all_back(&self, out: &mut Vec<Effect>) {
        out.extend(self.workers.all.keys().map(|&worker| Effect::TakeBack { worker }));
    }

    /// A task that runs for long is no company for short ones: what waits behind it is taken back, for others to run.
    fn unpipe(&mut self, now: Micros, out: &mut Vec<Effect>) {
        while let Some(&(since, id)) = self.begun.front() {
            if since + PIPE_HEAD_US_MAX > now {
                return;
            }
            self.begun.pop_front();
            let Some(attempt) = self.attempts.all.get(&id) else { continue };
            let State::Running { worker, since: at } = attempt.state else { continue };
            if at == since {
                self.young.push_back((since, id));
                if self.workers.all.get(&worker).is_some_and(|w| w.pipe.len() > 1) {
                    out.push(Effect::TakeBack { worker });
                }
            }
        }
    }

    fn running(&self) -> Vec<AttemptId> {
        self.attempts.all.iter().filter(|(_, a)| !a.state.has_not_started()).map(|(id, _)| *id).collect()
    }

    /// Cut off for so long that what runs here is taken for dead elsewhere: make it true.
    fn on_lease(&mut self, now: Micros, out: &mut Vec<Effect>) {
        let over = self.cut_since.is_some_and(|since| now >= since + 2 * self.lease_us);
        if !over || self.lease_killed {
            return;
        }
        self.lease_killed = true;
        let why = format!("the manager was cut off from its relay for {} s", 2 * self.lease_us / 1_000_000);
        self.kill_all(&why, out);
        self.give_up_held(now, &why);
    }

    fn kill_all(&mut self, why: &str, out: &mut Vec<Effect>) {
        self.take_all_back(out);
        for attempt in self.attempts.all.values_mut().filter(|a| a.state.worker().is_some()) {
            attempt.ending.get_or_insert_with(|| Ending::GivenUp(why.into()));
        }
        self.running().into_iter().for_each(|id| self.signal(id, SIGKILL, out));
        let starting = self.workers.all.iter().filter(|(_, w)| matches!(w.phase, Phase::Starting { .. }));
        out.extend(starting.map(|(id, _)| Effect::SignalWorker { worker: *id, signal: SIGKILL }));
    }

    /// What has not started ends as lost without having run: whoever queues it again need not ask.
    fn give_up_held(&mut self, now: Micros, why: &str) {
        for id in self.attempts.held() {
            let error = ErrorDetail { message: format!("not started: {why}"), ..ErrorDetail::default() };
            self.end_not_started(now, id, OutcomeKind::Lost, error);
        }
    }

    fn on_slow_workers(&mut self, now: Micros, out: &mut Vec<Effect>) {
        for (id, worker) in &mut self.workers.all {
            if let Phase::Starting { until } = &mut worker.phase
                && *until <= now
            {
                // Killed; its end is reported as any other. Asked again should the kill not help.
                *until = now + KILL_GRACE_US;
                out.push(Effect::SignalWorker { worker: *id, signal: SIGKILL });
            }
        }
    }

    /// Starts nothing more, gives back what has not started, kills what runs after `grace_us`, and ends.
    pub(super) fn begin_drain(
        &mut self,
        now: Micros,
        reason: String,
        grace_us: Micros,
        out: &mut Vec<Effect>,
    ) {
        let last = self.config.walltime_end.saturating_sub(self.reserve_us / 8).max(now);
        let kill_at = now.saturating_add(grace_us).min(last);
        let term_at = kill_at.saturating_sub(KILL_GRACE_US.min((kill_at - now) / 2));
        if let Some(drain) = &mut self.drain {
            // Told again: only ever sooner.
            drain.term_at = drain.term_at.min(term_at);
            drain.kill_at = drain.kill_at.min(kill_at);
            drain.exit_at = drain.exit_at.min(kill_at + KILL_GRACE_US);
        } else {
            let warn_at = term_at.saturating_sub(WARN_BEFORE_US).max(now);
            self.drain = Some(Drain {
                reason,
                warn_at,
                warned: false,
                term_at,
                termed: false,
                kill_at,
                killed: false,
                exit_at: (kill_at + KILL_GRACE_US).min(last.max(kill_at)),
                confirm_until: None,
                last_spool: false,
            });
            self.take_all_back(out);
        }
        self.on_drain_time(now, out);
    }

    fn on_drain_time(&mut self, now: Micros, out: &mut Vec<Effect>) {
        let Some(drain) = &mut self.drain else { return };
        let warn = now >= drain.warn_at && !std::mem::replace(&mut drain.warned, now >= drain.warn_at);
        let term = now >= drain.term_at && !std::mem::replace(&mut drain.termed, now >= drain.term_at);
        let kill = now >= drain.kill_at && !std::mem::replace(&mut drain.killed, now >= drain.kill_at);
        let why = drain.reason.clone();
        if warn {
            self.running().into_iter().for_each(|id| self.warn(id, out));
        }
        if term {
            self.running()
                .into_iter()
                .for_each(|id| self.terminate(now, id, Ending::GivenUp(why.clone()), out));
        }
        if kill {
            self.kill_all(&why, out);
        }
    }

    /// A drain gives back what has not started; also what a worker gives back later.
    pub(super) fn give_back_if_draining(&mut self, now: Micros) {
        let Some(drain) = &self.drain else { return };
        let attempts = self.attempts.held();
        if attempts.is_empty() {
            return;
        }
        if !self.dial.is_up() {
            let why = drain.reason.clone();
            return self.give_up_held(now, &why);
        }
        for id in &attempts {
            self.attempts.remove(*id);
        }
        // Request 0: nobody asked.
        self.dial.send(now, Recalled { id: 0, attempts }.into(), &mut self.links);
    }

    /// Ends the manager once nothing runs and every outcome is in safe hands.
    pub(super) fn leave_if_drained(&mut self, now: Micros, out: &mut Vec<Effect>) {
        let Some(drain) = &mut self.drain else { return };
        let hopeless = now >= drain.exit_at;
        if (!self.attempts.all.is_empty() && !hopeless) || drain.last_spool {
            return;
        }
        if self.outgoing.is_empty() {
            return self.leave(now, out);
        }
        let until = *drain.confirm_until.get_or_insert((now + CONFIRM_WAIT_US).min(drain.exit_at));
        if self.dial.is_up() && now < until && !hopeless {
            return;
        }
        drain.last_spool = true;
        if !self.spool(now, out) {
            self.leave(now, out);
        }
    }

    /// Gives to the spool what it does not hold; false when there is nothing.
    fn spool(&mut self, now: Micros, out: &mut Vec<Effect>) -> bool {
        let Some((upto, batches)) = self.outgoing.unspooled() else { return false };
        self.spooling = Some(now);
        out.push(Effect::Spool { upto, batches });
        true
    }

    pub(super) fn on_spooled(&mut self, now: Micros, upto: u64, ok: bool, out: &mut Vec<Effect>) {
        if ok {
            self.outgoing.spooled(upto);
        }
        if self.drain.as_ref().is_some_and(|d| d.last_spool) {
            self.leave(now, out);
        }
    }

    fn leave(&mut self, now: Micros, out: &mut Vec<Effect>) {
        self.flush(now);
        let reason = self.drain.as_ref().map_or_else(String::new, |d| d.reason.clone());
        self.dial.bye(now, &reason, &mut self.links);
        self.over = true;
        out.push(Effect::Exit { reason });
    }
}
