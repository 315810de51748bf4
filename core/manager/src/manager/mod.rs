//! The manager: what it holds, and the one way in.
//!
//! `relay` takes what comes over the link, `start` gives held attempts to free slots, `commands` and `python` take what happens to
//! processes, `ending` watches limits, lease and walltime, `outgoing` keeps outcomes until they are confirmed.

mod attempts;
mod commands;
mod ending;
mod host;
mod outgoing;
mod python;
mod relay;
mod start;
mod workers;

#[cfg(test)]
mod tests;

use crate::dial::{Dial, DialEffect};
use crate::limits::{GATHER_US, PIPE_HEAD_US_MAX, WALLTIME_RESERVE_US};
use crate::shape::NodeShape;
use crate::slots::{Claim, Slots};
use crate::{Effect, Input};
use attempts::{Attempt, Attempts};
use ending::Drain;
use outgoing::Outgoing;
use pf_link::Timing;
use pf_protocol::limits::{LEASE_MS, STARTED_AFTER_MS};
use pf_protocol::message::{Hello, VERSION_MAX, VERSION_MIN, Who};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeKind, Ran};
use pf_protocol::report::ManagerReport;
use pf_protocol::{AttemptId, Epoch, ManagerId, Micros};
use std::collections::VecDeque;
use workers::{Worker, Workers};

/// What a manager is born with.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Its id; the incarnation is random for each process.
    pub manager: ManagerId,
    /// Its node, for people.
    pub node: String,
    /// This process, for people.
    pub pid: u32,
    /// This host's wall clock, Unix milliseconds, for people.
    pub clock_ms: u64,
    /// What it carves.
    pub shape: NodeShape,
    /// When the block's walltime is over, on this host's clock.
    pub walltime_end: Micros,
    /// The ticket's epoch: a relay of a lower one is not listened to.
    pub epoch_seen: Epoch,
    /// Intervals until the relay says others.
    pub timing: Timing,
}

/// See the module.
#[derive(Debug)]
pub struct ManagerCore {
    config: ManagerConfig,
    dial: Dial,
    links: Vec<DialEffect>,
    epoch: Epoch,
    lease_us: Micros,
    /// Whether relay and broker take values that are only named.
    takes_large: bool,
    /// Whether the link was up when last looked at.
    link_up: bool,
    /// Since when it is down, after it was up once.
    cut_since: Option<Micros>,
    /// Whether everything was killed because the lease is long over.
    lease_killed: bool,
    attempts: Attempts,
    slots: Slots,
    workers: Workers,
    outgoing: Outgoing,
    /// Until when outcomes may gather; None: none do.
    gathers_until: Option<Micros>,
    /// Attempts that started just now, oldest first, with their start: once they have run for a while nothing is to wait behind them.
    begun: VecDeque<(Micros, AttemptId)>,
    /// Those that have, to be reported once they have run for longer.
    young: VecDeque<(Micros, AttemptId)>,
    /// When a block this long should begin to end, before its walltime is over.
    reserve_us: Micros,
    drain: Option<Drain>,
    /// Ends by a signal to end that is not ours, until they are believed: see `host`.
    unsure: VecDeque<(Micros, Input)>,
    /// When outcomes were last given to the spool; None: never.
    spooling: Option<Micros>,
    load_sent: Option<(Micros, ManagerReport)>,
    /// Something was freed or came: `start` may find work.
    dirty: bool,
    armed: Option<Micros>,
    over: bool,
}

impl ManagerCore {
    /// A manager that has not begun; [`Input::Start`] begins it. `now` is when its block's walltime began to run for it.
    #[must_use]
    pub fn new(config: ManagerConfig, now: Micros) -> Self {
        let hello = Hello {
            who: Who::Manager {
                manager: config.manager,
                node: config.node.clone(),
                capacity: config.shape.capacity(),
                walltime_left_ms: 0,
            },
            incarnation: config.manager.incarnation,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: config.epoch_seen,
            host: config.node.clone(),
            pid: config.pid,
            clock_ms: config.clock_ms,
        };
        let (least, most) = WALLTIME_RESERVE_US;
        ManagerCore {
            dial: Dial::new(hello, config.timing),
            links: Vec::new(),
            epoch: config.epoch_seen,
            lease_us: LEASE_MS * 1_000,
            takes_large: false,
            link_up: false,
            cut_since: Some(now),
            lease_killed: false,
            attempts: Attempts::default(),
            slots: Slots::new(&config.shape),
            workers: Workers::default(),
            outgoing: Outgoing::new(config.manager, config.node.clone()),
            gathers_until: None,
            begun: VecDeque::new(),
            young: VecDeque::new(),
            reserve_us: (config.walltime_end.saturating_sub(now) / 10).clamp(least, most),
            drain: None,
            unsure: VecDeque::new(),
            spooling: None,
            load_sent: None,
            dirty: false,
            armed: None,
            over: false,
            config,
        }
    }

    /// The only way in.
    pub fn handle(&mut self, now: Micros, input: Input, out: &mut Vec<Effect>) {
        if self.over {
            return;
        }
        let turn_end = matches!(input, Input::TurnEnd);
        if let Some(input) = self.believe_or_wait(now, input) {
            self.take(now, input, out);
        }
        self.believe_what_is_due(now, out);
        self.see_link(now);
        self.fill(now, out);
        self.give_back_if_draining(now);
        let gathered = self.gathers_until.is_some_and(|until| until <= now);
        if gathered || (turn_end && !self.may_gather(now)) {
            self.flush(now);
        }
        self.leave_if_drained(now, out);
        out.extend(self.links.drain(..).map(|effect| match effect {
            DialEffect::Dial => Effect::Dial,
            DialEffect::Frame { conn, bytes } => Effect::Frame { conn, bytes },
            DialEffect::Close { conn } => Effect::CloseConn { conn },
        }));
        if self.over {
            // An exit is the last thing that is carried out.
            if let Some(at) = out.iter().position(|e| matches!(e, Effect::Exit { .. })) {
                let exit = out.remove(at);
                out.push(exit);
            }
        } else {
            self.arm(now, out);
        }
    }

    fn take(&mut self, now: Micros, input: Input, out: &mut Vec<Effect>) {
        let mut events = Vec::new();
        match input {
            Input::Start => self.dial.start(now, &mut self.links),
            Input::Dialled { conns } => self.dial.on_dialled(now, &conns),
            Input::Connected { conn } => {
                self.tell_walltime(now);
                self.dial.on_connected(now, conn, &mut self.links);
            }
            Input::Frame { conn, bytes } => {
                self.dial.on_frame(now, conn, &bytes, &mut events, &mut self.links);
            }
            Input::ConnClosed { conn } => self.dial.on_closed(now, conn, &mut events),
            Input::Timer => {
                self.armed = None;
                self.tell_walltime(now);
                self.dial.on_timer(now, &mut events, &mut self.links);
                self.on_time(now, out);
            }
            Input::TurnEnd => {}
            Input::ClockGap { gap_us } => {
                self.dial.on_clock_gap(now, gap_us);
                // The lease does not move: the relay, which did not stand still, counts on its end.
            }
            Input::CommandStarted { attempt } => self.on_command_started(now, attempt, out),
            Input::CommandNotStarted { attempt, error } => self.on_command_not_started(now, attempt, error),
            Input::CommandEnded { attempt, end } => self.on_command_ended(now, attempt, end),
            Input::WorkerUp { worker } => self.on_worker_up(now, worker, out),
            Input::WorkerAnswers { worker, answers } => self.on_worker_answers(now, worker, answers, out),
            Input::WorkerGone { worker, end } => self.on_worker_gone(now, worker, end),
            Input::TakenBack { worker, attempts } => self.on_taken_back(now, worker, attempts),
            Input::Spooled { upto, ok } => self.on_spooled(now, upto, ok, out),
            Input::Stop { reason, grace_ms } => self.begin_drain(now, reason, grace_ms * 1_000, out),
        }
        for event in events {
            self.on_link_event(now, event, out);
        }
    }

    /// What must always hold; panics by name. For tests and the simulation.
    pub fn check(&self) {
        self.attempts.check();
        self.workers.check();
        self.outgoing.check();
        self.slots.check(self.workers.all.values().filter(|w| w.seated).map(|w| &w.seat));
        for (id, attempt) in &self.attempts.all {
            let Some(worker) = attempt.state.worker() else { continue };
            let Worker { pipe, kind, .. } = &self.workers.all[&worker];
            let found = pipe.iter().position(|p| p.attempt == *id);
            let at = found.unwrap_or_else(|| panic!("attempt {id} is not in the pipe of worker {worker}"));
            // In a lane it may follow one whose end is not believed yet.
            assert!(
                at <= self.unsure.len() * usize::from(kind.is_none()) || attempt.state.has_not_started(),
                "two tasks run in worker {worker}"
            );
        }
        let piped: usize = self.workers.all.values().map(|w| w.pipe.len()).sum();
        let in_pipes = self.attempts.all.values().filter(|a| a.state.worker().is_some()).count();
        assert_eq!(piped, in_pipes, "pipes and attempts agree");
    }

    /// Attempts that are here and have no outcome yet: `(not started, running)`. For tests and the simulation.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let held = self.attempts.all.iter().filter(|(id, a)| !self.may_run(**id, a)).count();
        (held, self.attempts.all.len() - held)
    }

    /// Whether an attempt runs, or may have begun to: the first in a lane is being started.
    fn may_run(&self, id: AttemptId, attempt: &Attempt) -> bool {
        let first_in_lane = |worker: &Worker| {
            worker.kind.is_none() && worker.pipe.front().is_some_and(|first| first.attempt == id)
        };
        !attempt.state.has_not_started()
            || attempt.state.worker().and_then(|id| self.workers.all.get(&id)).is_some_and(first_in_lane)
    }

    /// Whether every outcome was confirmed. For tests and the simulation.
    #[must_use]
    pub fn all_confirmed(&self) -> bool {
        self.outgoing.is_empty()
    }

    fn tell_walltime(&mut self, now: Micros) {
        // Without what it keeps for the end: no task is to come that it would refuse for lack of time.
        let left_ms = self.config.walltime_end.saturating_sub(self.reserve_us).saturating_sub(now) / 1_000;
        if let Who::Manager { walltime_left_ms, .. } = &mut self.dial.hello_mut().who {
            *walltime_left_ms = left_ms;
        }
    }

    /// Ends an attempt with an outcome, and frees nothing: the caller has done that.
    fn end_attempt(&mut self, id: AttemptId, end: AttemptEnd, value: &[u8]) {
        self.end_attempt_with(id, end, value, false);
    }

    /// The same with a value that may be only named.
    fn end_attempt_with(&mut self, id: AttemptId, end: AttemptEnd, value: &[u8], is_large: bool) {
        let Some(attempt) = self.attempts.remove(id) else { return };
        if attempt.ending == Some(attempts::Ending::Dropped) {
            return;
        }
        let outcome = Outcome {
            job: attempt.job,
            index: attempt.index,
            attempt: id,
            kind: end.kind,
            ran: end.ran,
            held_us: end.started.saturating_sub(attempt.arrived),
            ran_us: end.ran_us,
            value_len: 0,
            error: end.error,
            usage: end.usage,
        };
        self.outgoing.push(outcome, value, is_large);
    }

    /// Ends an attempt that provably did not start.
    fn end_not_started(&mut self, now: Micros, id: AttemptId, kind: OutcomeKind, error: ErrorDetail) {
        let end = AttemptEnd { ran: Ran::No, error: Some(Box::new(error)), ..AttemptEnd::new(kind, now, 0) };
        self.end_attempt(id, end, b"");
    }

    fn free(&mut self, claim: &Claim) {
        self.slots.free(claim);
        self.dirty = true;
    }

    /// Whether outcomes may wait for others: see [`GATHER_US`].
    fn may_gather(&mut self, now: Micros) -> bool {
        let waits = || self.workers.all.values().any(|worker| worker.pipe.len() > 1);
        let waits = self.outgoing.has_gathered() && (waits() || !self.attempts.classes_by_age().is_empty());
        if !waits || self.drain.is_some() {
            self.gathers_until = None;
            return false;
        }
        self.gathers_until.get_or_insert(now + GATHER_US);
        true
    }

    /// Sends what has gathered.
    fn flush(&mut self, now: Micros) {
        self.gathers_until = None;
        self.outgoing.close();
        while self.dial.is_up() {
            let Some(batch) = self.outgoing.next_unsent() else { break };
            // The number is the batch's own, and counts on over sessions: what the relay confirms is clear in each of them.
            let outcomes = pf_protocol::message::Outcomes { number: batch.seq, batches: vec![batch] };
            self.dial.send(now, outcomes.into(), &mut self.links);
        }
    }

    /// Sets the timer, if something is due before it would come.
    fn arm(&mut self, now: Micros, out: &mut Vec<Effect>) {
        let next = self.next_deadline();
        if next.is_some_and(|at| self.armed.is_none_or(|armed| at < armed || armed <= now)) {
            self.armed = next;
            out.push(Effect::SetTimer { at: next });
        }
    }

    fn next_deadline(&mut self) -> Option<Micros> {
        for began in [&mut self.begun, &mut self.young] {
            while let Some(&(since, id)) = began.front() {
                if self.attempts.all.get(&id).and_then(|a| a.state.running_since()) == Some(since) {
                    break;
                }
                began.pop_front();
            }
        }
        let due = self.attempts.due.first().map(|d| d.0);
        let begun = self.begun.front().map(|(since, _)| since + PIPE_HEAD_US_MAX);
        let young = self.young.front().map(|(since, _)| since + STARTED_AFTER_MS * 1_000);
        [
            due,
            begun,
            young,
            self.gathers_until,
            self.dial.next_deadline(),
            self.next_end(),
            self.workers.next_deadline(),
            self.next_load(),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// What an attempt's outcome says.
struct AttemptEnd {
    kind: OutcomeKind,
    ran: Ran,
    started: Micros,
    ran_us: Micros,
    error: Option<Box<ErrorDetail>>,
    usage: Option<pf_protocol::outcome::Usage>,
}

impl AttemptEnd {
    fn new(kind: OutcomeKind, started: Micros, ran_us: Micros) -> Self {
        AttemptEnd { kind, ran: Ran::Yes, started, ran_us, error: None, usage: None }
    }

    fn failed(mut self, error: ErrorDetail) -> Self {
        self.error = Some(Box::new(error));
        self
    }
}
