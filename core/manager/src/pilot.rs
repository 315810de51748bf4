//! The pilot: starts one manager on each node of its block once the relay knows the block, watches them and the clock, and ends when they have.

use crate::dial::{Dial, DialEffect};
use crate::limits::{ABANDONED_AFTER_US, LAUNCHER_END_US, MANAGER_END_US, PILOT_RESERVE_US};
use bytes::Bytes;
use pf_link::{Event, Timing};
use pf_protocol::message::{Drain, Hello, Message, PilotReport, Refuse, VERSION_MAX, VERSION_MIN, Who};
use pf_protocol::{BlockId, Epoch, Micros};
use std::collections::BTreeMap;

/// What a pilot is born with.
#[derive(Debug, Clone)]
pub struct PilotConfig {
    /// Its block.
    pub block: BlockId,
    /// Random for each process.
    pub incarnation: u64,
    /// The scheduler's id of the batch job, if the environment says it.
    pub scheduler_id: Option<String>,
    /// How often the scheduler has started the job again under that id.
    pub restarts: u32,
    /// Names of the nodes; a manager is started on each.
    pub nodes: Vec<String>,
    /// When the block's walltime is over, on this host's clock.
    pub walltime_end: Micros,
    /// This host, for people.
    pub host: String,
    /// This process, for people.
    pub pid: u32,
    /// This host's wall clock, Unix milliseconds, for people.
    pub clock_ms: u64,
    /// The ticket's epoch: a relay of a lower one is not listened to.
    pub epoch_seen: Epoch,
    /// Intervals until the relay says others.
    pub timing: Timing,
}

/// What happens to a pilot.
#[derive(Debug, Clone)]
pub enum PilotInput {
    /// The process begins to run. Once, first.
    Start,
    /// Answer to [`PilotEffect::Dial`]: these connections are being tried.
    Dialled {
        /// They are followed by [`PilotInput::Connected`] or [`PilotInput::ConnClosed`].
        conns: Vec<u64>,
    },
    /// A connection to the relay is there.
    Connected {
        /// Connection.
        conn: u64,
    },
    /// A frame came.
    Frame {
        /// Connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// A connection is gone, or could not be made.
    ConnClosed {
        /// Connection.
        conn: u64,
    },
    /// The time of the last [`PilotEffect::SetTimer`] has come.
    Timer,
    /// The process stood still for this long.
    ClockGap {
        /// How long, microseconds.
        gap_us: u64,
    },
    /// The manager of a node ended, or could not be started.
    ManagerEnded {
        /// The node's place in the block.
        node: u16,
        /// How, for people: `exit 1`, `signal 9`.
        how: String,
        /// Whether it ended as it should, with exit code 0.
        ok: bool,
        /// Whether it is certain that nothing of it runs. Else the relay is not told, and waits for the manager's lease.
        proof: bool,
    },
    /// The process was told to end by its host.
    Stop {
        /// Why, for people.
        reason: String,
        /// Running tasks are killed after this long, milliseconds.
        grace_ms: u64,
    },
}

/// What a pilot wants done.
#[derive(Debug, Clone)]
pub enum PilotEffect {
    /// Read the ticket again and dial all its addresses; answer with [`PilotInput::Dialled`].
    Dial,
    /// Send.
    Frame {
        /// Connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// Close; no [`PilotInput::ConnClosed`] is needed.
    CloseConn {
        /// Connection.
        conn: u64,
    },
    /// Call with [`PilotInput::Timer`] at this time; replaces the last.
    SetTimer {
        /// When; None: not at all.
        at: Option<Micros>,
    },
    /// Start a manager on each node; answer with [`PilotInput::ManagerEnded`] for each, whenever it ends.
    StartManagers,
    /// Ask the managers that run to end in order.
    DrainManagers {
        /// What their running tasks may have, milliseconds.
        grace_ms: u64,
    },
    /// End the managers that run.
    KillManagers {
        /// With SIGKILL to what was launched: the launcher was asked before and did not obey.
        hard: bool,
    },
    /// A line for the pilot's log.
    Log {
        /// The line.
        text: String,
    },
    /// Nothing is left to do: flush the sockets and end the process.
    Exit {
        /// 0: all is well. 1: managers failed. 2: the relay did not want this pilot. 3: no relay was heard for a while.
        code: i32,
        /// Why, for people.
        reason: String,
    },
}

/// Exit code of a pilot whose managers failed.
const EXIT_MANAGERS_FAILED: i32 = 1;
/// Exit code of a pilot that the relay did not want.
const EXIT_REFUSED: i32 = 2;
/// Exit code of a pilot that never reached its relay.
const EXIT_NO_RELAY: i32 = 3;

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Has not been welcomed: nothing is started.
    Unclaimed,
    Running,
    /// Managers are on their way out: what is done at this time to those that are left.
    Ending {
        next: Option<(Micros, Step)>,
        /// For [`Step::Drain`], microseconds.
        grace_us: Micros,
    },
    Over,
}

#[derive(Debug)]
struct Ended {
    how: String,
    ok: bool,
    proof: bool,
}

/// What is done to managers that have not ended, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Drain,
    Kill,
    KillHard,
}

/// See the module.
#[derive(Debug)]
pub struct PilotCore {
    config: PilotConfig,
    dial: Dial,
    state: State,
    epoch: Epoch,
    /// Since when no relay has answered, while the block is not claimed.
    unheard_since: Micros,
    /// Managers that have ended, or were lost sight of.
    ended: BTreeMap<u16, Ended>,
    armed: Option<Micros>,
}

impl PilotCore {
    /// A pilot that has not begun; [`PilotInput::Start`] begins it.
    #[must_use]
    pub fn new(config: PilotConfig) -> Self {
        let hello = Hello {
            who: Who::Pilot {
                block: config.block,
                incarnation: config.incarnation,
                scheduler_id: config.scheduler_id.clone(),
                restarts: config.restarts,
                nodes: config.nodes.clone(),
                walltime_left_ms: 0,
            },
            incarnation: config.incarnation,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: config.epoch_seen,
            host: config.host.clone(),
            pid: config.pid,
            clock_ms: config.clock_ms,
        };
        let dial = Dial::new(hello, config.timing);
        let epoch = config.epoch_seen;
        PilotCore {
            config,
            dial,
            state: State::Unclaimed,
            epoch,
            unheard_since: 0,
            ended: BTreeMap::new(),
            armed: None,
        }
    }

    /// The only way in.
    pub fn handle(&mut self, now: Micros, input: PilotInput, out: &mut Vec<PilotEffect>) {
        if self.state == State::Over {
            return;
        }
        let (mut events, mut links) = (Vec::new(), Vec::new());
        let left_ms = self.left_ms(now);
        if let Who::Pilot { walltime_left_ms, .. } = &mut self.dial.hello_mut().who {
            *walltime_left_ms = left_ms;
        }
        match input {
            PilotInput::Start => {
                self.unheard_since = now;
                self.dial.start(now, &mut links);
            }
            PilotInput::Dialled { conns } => self.dial.on_dialled(now, &conns),
            PilotInput::Connected { conn } => self.dial.on_connected(now, conn, &mut links),
            PilotInput::Frame { conn, bytes } => {
                self.dial.on_frame(now, conn, &bytes, &mut events, &mut links);
            }
            PilotInput::ConnClosed { conn } => self.dial.on_closed(now, conn, &mut events),
            PilotInput::Timer => self.armed = None,
            PilotInput::ClockGap { gap_us } => self.dial.on_clock_gap(now, gap_us),
            PilotInput::ManagerEnded { node, how, ok, proof } => {
                self.on_manager_ended(now, node, Ended { how, ok, proof }, &mut links, out);
            }
            PilotInput::Stop { reason, grace_ms } => {
                self.end(now, &reason, (now, Step::Drain), grace_ms.saturating_mul(1_000), out);
            }
        }
        self.dial.on_timer(now, &mut events, &mut links);
        for event in events {
            self.on_event(now, event, &mut links, out);
        }
        self.watch_the_clock(now, out);
        self.leave_when_done(now, &mut links, out);
        out.extend(links.into_iter().map(|effect| match effect {
            DialEffect::Dial => PilotEffect::Dial,
            DialEffect::Frame { conn, bytes } => PilotEffect::Frame { conn, bytes },
            DialEffect::Close { conn } => PilotEffect::CloseConn { conn },
        }));
        // An exit is the last thing that is carried out.
        if let Some(at) = out.iter().position(|e| matches!(e, PilotEffect::Exit { .. })) {
            let exit = out.remove(at);
            out.push(exit);
        } else {
            self.arm(now, out);
        }
    }

    /// What must always hold.
    pub fn check(&self) {
        assert!(self.ended.len() <= self.config.nodes.len(), "a manager ended twice");
        if self.state == State::Unclaimed {
            assert!(self.ended.is_empty(), "managers ran in a block that nobody claimed");
        }
    }

    fn left_ms(&self, now: Micros) -> u64 {
        self.config.walltime_end.saturating_sub(now) / 1_000
    }

    fn on_event(
        &mut self,
        now: Micros,
        event: Event,
        links: &mut Vec<DialEffect>,
        out: &mut Vec<PilotEffect>,
    ) {
        match event {
            Event::Up { welcome, .. } => {
                self.epoch = welcome.epoch;
                if self.state == State::Unclaimed {
                    self.state = State::Running;
                    out.push(PilotEffect::Log {
                        text: format!("claimed by relay epoch {}", welcome.epoch.0),
                    });
                    out.push(PilotEffect::StartManagers);
                }
                self.report(now, links);
            }
            Event::Refused { refuse, .. } => self.on_refused(now, &refuse, out),
            Event::Message { message: Message::Drain(Drain { epoch, reason, grace_ms }), .. } => {
                if epoch >= self.epoch {
                    // The managers have their own Drain from the relay, whose grace a signal would cut short; it is for those that are cut off.
                    let at = now.saturating_add(grace_ms.saturating_mul(1_000));
                    self.end(now, &reason, (at, Step::Drain), 0, out);
                }
            }
            Event::Down { reason, .. } => {
                out.push(PilotEffect::Log { text: format!("the link to the relay is down: {reason}") });
            }
            Event::Hello { .. } | Event::Message { .. } => {}
        }
    }

    fn on_refused(&mut self, now: Micros, refuse: &Refuse, out: &mut Vec<PilotEffect>) {
        let text = format!("the relay refused this pilot: {} ({})", refuse.message, refuse.code);
        if refuse.retry {
            self.unheard_since = now;
            out.push(PilotEffect::Log { text });
        } else if self.state == State::Unclaimed {
            self.state = State::Over;
            out.push(PilotEffect::Exit { code: EXIT_REFUSED, reason: text });
        } else if matches!(refuse.code.as_str(), "claimed" | "ended") {
            self.end(now, &text, (now, Step::Drain), 0, out);
        } else {
            out.push(PilotEffect::Log { text });
        }
    }

    fn on_manager_ended(
        &mut self,
        now: Micros,
        node: u16,
        end: Ended,
        links: &mut Vec<DialEffect>,
        out: &mut Vec<PilotEffect>,
    ) {
        // What is proven stays so, whatever its launcher says of its own end later.
        let proven = self.ended.get(&node).is_some_and(|end| end.proof);
        if usize::from(node) >= self.config.nodes.len() || proven {
            return;
        }
        let seen = if end.proof { "ended" } else { "was lost sight of" };
        out.push(PilotEffect::Log { text: format!("manager {node} {seen}: {}", end.how) });
        self.ended.insert(node, end);
        self.report(now, links);
    }

    fn report(&mut self, now: Micros, links: &mut Vec<DialEffect>) {
        let proven = self.ended.iter().filter(|(_, end)| end.proof);
        let ended = proven.map(|(node, end)| (*node, end.how.clone())).collect();
        self.dial.send(now, PilotReport { walltime_left_ms: self.left_ms(now), ended }.into(), links);
    }

    /// Begins to end the managers with `first`.
    fn end(
        &mut self,
        now: Micros,
        reason: &str,
        first: (Micros, Step),
        grace_us: Micros,
        out: &mut Vec<PilotEffect>,
    ) {
        match &mut self.state {
            State::Unclaimed => {
                self.state = State::Over;
                out.push(PilotEffect::Exit { code: 0, reason: reason.into() });
            }
            State::Running => {
                out.push(PilotEffect::Log { text: format!("ending: {reason}") });
                self.state = State::Ending { next: Some(first), grace_us };
            }
            // A drain that waits for its grace is overtaken by one that does not.
            State::Ending { next: Some((at, Step::Drain)), grace_us: grace } if first.0 < *at => {
                out.push(PilotEffect::Log { text: format!("ending sooner: {reason}") });
                (*at, *grace) = (first.0, grace_us);
            }
            State::Ending { .. } | State::Over => {}
        }
        self.step(now, out);
    }

    /// Does to the managers what is due.
    fn step(&mut self, now: Micros, out: &mut Vec<PilotEffect>) {
        let last_call = self.last_call();
        let State::Ending { next, grace_us } = &mut self.state else { return };
        while let Some((at, step)) = *next {
            // Whatever grace was given, at the end of the walltime it is over.
            let at = if step == Step::KillHard { at } else { at.min(last_call) };
            if now < at {
                return;
            }
            *next = match step {
                Step::Drain if now >= last_call => Some((now, Step::Kill)),
                Step::Drain => {
                    out.push(PilotEffect::DrainManagers { grace_ms: *grace_us / 1_000 });
                    Some((now.saturating_add(*grace_us).saturating_add(MANAGER_END_US), Step::Kill))
                }
                Step::Kill => {
                    out.push(PilotEffect::KillManagers { hard: false });
                    Some((now + LAUNCHER_END_US, Step::KillHard))
                }
                Step::KillHard => {
                    out.push(PilotEffect::KillManagers { hard: true });
                    None
                }
            };
        }
    }

    /// When even a manager that hangs must go, so that the pilot can still report.
    fn last_call(&self) -> Micros {
        self.config.walltime_end.saturating_sub(PILOT_RESERVE_US)
    }

    /// When a block that nobody claims is left.
    fn give_up_at(&self) -> Micros {
        self.last_call().min(self.unheard_since.saturating_add(ABANDONED_AFTER_US))
    }

    fn watch_the_clock(&mut self, now: Micros, out: &mut Vec<PilotEffect>) {
        let last_call = self.last_call();
        match self.state {
            State::Unclaimed if now >= self.give_up_at() => {
                self.state = State::Over;
                let seconds = (now - self.unheard_since) / 1_000_000;
                let reason = format!("no relay was heard for {seconds} s: nodes are not held for nothing");
                out.push(PilotEffect::Exit { code: EXIT_NO_RELAY, reason });
            }
            // Managers watch the walltime themselves; this is for those that hang.
            State::Running if now >= last_call => {
                self.end(now, "the walltime is over: managers are killed", (now, Step::Kill), 0, out);
            }
            _ => self.step(now, out),
        }
    }

    fn leave_when_done(&mut self, now: Micros, links: &mut Vec<DialEffect>, out: &mut Vec<PilotEffect>) {
        if matches!(self.state, State::Unclaimed | State::Over) || self.ended.len() < self.config.nodes.len()
        {
            return;
        }
        let asked = matches!(self.state, State::Ending { .. });
        let failed = self.ended.values().filter(|end| !end.ok).count();
        let code = if failed > 0 && !asked { EXIT_MANAGERS_FAILED } else { 0 };
        let reason = format!("all managers ended, {failed} of {} not well", self.ended.len());
        self.state = State::Over;
        self.dial.bye(now, &reason, links);
        out.push(PilotEffect::Exit { code, reason });
    }

    fn arm(&mut self, now: Micros, out: &mut Vec<PilotEffect>) {
        let own = match self.state {
            State::Unclaimed => Some(self.give_up_at()),
            State::Running => Some(self.last_call()),
            State::Ending { next: Some((at, Step::KillHard)), .. } => Some(at),
            State::Ending { next: Some((at, _)), .. } => Some(at.min(self.last_call())),
            State::Ending { next: None, .. } | State::Over => None,
        };
        let next = [own, self.dial.next_deadline()].into_iter().flatten().min();
        if next.is_some_and(|at| self.armed.is_none_or(|armed| at < armed || armed <= now)) {
            self.armed = next;
            out.push(PilotEffect::SetTimer { at: next });
        }
    }
}

#[cfg(test)]
mod tests;
