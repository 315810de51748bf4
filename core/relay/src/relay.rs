//! The state and its one entrance, [`Relay::handle`]: links, timers, and the order of a turn. What messages mean is in the modules beside.

use crate::blocks::Blocks;
use crate::classes::Classes;
use crate::flight::Flight;
use crate::io::{Config, Effect, Input, Roster};
use crate::limits::{REPORT_US, SCALE_QUIET_US, SCALE_SOON_US, SCALE_US, STOP_LOOK_US, STRANGERS_MAX};
use crate::manager::Manager;
use crate::outbox::Outbox;
use crate::payloads::Payloads;
use crate::queue::Job;
use crate::recover::Recovery;
use pf_link::{Acceptor, Dialer, Event, Out, Timing};
use pf_protocol::message::{Hello, Message, Refuse, VERSION_MAX, VERSION_MIN, Welcome, Who};
use pf_protocol::report::Decision;
use pf_protocol::{AttemptId, BlockId, EndpointId, Epoch, JobId, ManagerId, Micros};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Has the key of this block and has not been welcomed.
    Stranger(BlockId),
    Manager(BlockId, u32),
    Pilot(BlockId),
}

/// Queue of jobs with waiting tasks: by priority (highest first), then class.
pub(crate) type ReadyKey = (Reverse<i32>, usize);

/// What was granted to the broker in this session, and what it used.
#[derive(Debug, Default)]
pub(crate) struct CreditBook {
    pub tasks_taken: u64,
    pub bytes_taken: u64,
    pub tasks_upto: u64,
    pub bytes_upto: u64,
    /// Tasks that may be here at once, and when that is thought over again.
    pub window: u64,
    pub window_until: Micros,
}

/// The relay's core. See the crate.
#[derive(Debug)]
pub struct Relay {
    pub(crate) config: Config,
    pub(crate) now: Micros,
    // Links.
    pub(crate) broker: Dialer,
    broker_conns: BTreeSet<u64>,
    pub(crate) managers_link: Acceptor,
    pub(crate) peers: BTreeMap<u64, Peer>,
    events: Vec<Event>,
    pub(crate) outs: Vec<Out>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) epoch: Epoch,
    pub(crate) endpoint: EndpointId,
    pub(crate) recovery: Recovery,
    // Tasks.
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) classes: Classes,
    pub(crate) ready: BTreeMap<ReadyKey, VecDeque<JobId>>,
    pub(crate) flights: BTreeMap<AttemptId, Flight>,
    pub(crate) last_attempt: u32,
    pub(crate) waiting_bytes: u64,
    pub(crate) placed_bytes: u64,
    pub(crate) payloads: Payloads,
    pub(crate) outbox: Outbox,
    pub(crate) confirms: BTreeMap<ManagerId, u64>,
    pub(crate) credit: CreditBook,
    // Managers.
    pub(crate) managers: BTreeMap<u32, Manager>,
    pub(crate) manager_handles: BTreeMap<ManagerId, u32>,
    last_handle: u32,
    /// `(free cores, handle)` of usable managers with a free core.
    pub(crate) room: BTreeSet<(i64, u32)>,
    /// Managers that may take work ahead.
    pub(crate) hungry: BTreeSet<u32>,
    /// Managers whose counts changed in this turn.
    pub(crate) touched: Vec<u32>,
    /// Managers with something to send.
    pub(crate) talkative: BTreeSet<u32>,
    pub(crate) last_recall: u64,
    pub(crate) recall_at: Micros,
    // Blocks.
    pub(crate) blocks: Blocks,
    /// What speaks against nodes, by name; those without a stain are not in it.
    pub(crate) nodes: BTreeMap<String, crate::quarantine::NodeBook>,
    // People.
    pub(crate) decisions: VecDeque<Decision>,
    pub(crate) report_dirty: bool,
    pub(crate) report_at: Micros,
    pub(crate) scale_at: Micros,
    pub(crate) dirty: bool,
    timer_at: Micros,
    pub(crate) stopping: Option<crate::stop::Stopping>,
    pub(crate) exited: bool,
}

impl Relay {
    /// A relay that begins (or begins again) with what `roster` remembers.
    #[must_use]
    pub fn new(config: Config, roster: Roster) -> Self {
        let hello = Hello {
            who: Who::Relay { endpoint: config.endpoint.clone(), takeover: config.takeover },
            incarnation: config.incarnation,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: config.host.clone(),
            pid: config.pid,
            clock_ms: config.clock_offset_ms,
        };
        let timing = Timing::default();
        let blocks = Blocks::new(roster);
        Relay {
            now: 0,
            broker: Dialer::new(hello, timing),
            broker_conns: BTreeSet::new(),
            managers_link: Acceptor::new(timing, config.incarnation),
            peers: BTreeMap::new(),
            events: Vec::new(),
            outs: Vec::new(),
            effects: Vec::new(),
            epoch: Epoch(0),
            endpoint: EndpointId(0),
            recovery: Recovery::default(),
            jobs: BTreeMap::new(),
            classes: Classes::new(),
            ready: BTreeMap::new(),
            flights: BTreeMap::new(),
            last_attempt: 0,
            waiting_bytes: 0,
            placed_bytes: 0,
            payloads: Payloads::default(),
            outbox: Outbox::default(),
            confirms: BTreeMap::new(),
            credit: CreditBook::default(),
            managers: BTreeMap::new(),
            manager_handles: BTreeMap::new(),
            last_handle: 0,
            room: BTreeSet::new(),
            hungry: BTreeSet::new(),
            touched: Vec::new(),
            talkative: BTreeSet::new(),
            last_recall: 0,
            recall_at: 0,
            blocks,
            nodes: BTreeMap::new(),
            decisions: VecDeque::new(),
            report_dirty: true,
            report_at: 0,
            scale_at: 0,
            dirty: false,
            timer_at: 0,
            stopping: None,
            exited: false,
            config,
        }
    }

    /// Takes one input; what is to be done is appended to `effects`.
    pub fn handle(&mut self, now: Micros, input: Input, effects: &mut Vec<Effect>) {
        self.now = now.max(self.now);
        let turn_ends = matches!(input, Input::TurnEnd | Input::Timer);
        match input {
            Input::Start => self.on_start(),
            Input::BrokerConnected { conn } => {
                self.broker_conns.insert(conn);
                self.broker.on_connected(self.now, conn, &mut self.outs);
            }
            Input::Accepted { conn, block } => self.on_accepted(conn, block),
            Input::Frame { conn, bytes } => self.on_frame(conn, &bytes),
            Input::ConnClosed { conn } => self.on_conn_closed(conn),
            Input::Timer => self.on_timer(),
            Input::TurnEnd => {}
            Input::ClockGap { gap_us } => self.on_clock_gap(gap_us),
            Input::RosterSaved { version } => self.on_roster_saved(version),
            Input::RosterFailed { error } => self.on_roster_failed(&error),
            Input::Submitted { block, result } => self.on_submitted(block, result),
            Input::Blocks { seen } => self.on_blocks(seen),
            Input::BlockCancelled { block, result } => self.on_block_cancelled(block, result),
            Input::SpoolsRead { block, result } => self.on_spools_read(block, result),
            Input::BlockLog { block, tail } => self.on_block_log(block, tail),
            Input::LogRead { ask, what } => self.answer(ask, what),
            Input::PayloadWritten { job, hash, offset, result } => {
                self.on_payload_written((job, hash), offset, result);
            }
            Input::PayloadRead { job, hash, offset, result } => {
                self.on_payload_read((job, hash), offset, result)
            }
            Input::Stop { kill } => self.begin_stop(kill),
        }
        self.drain_events();
        if turn_ends {
            self.end_turn();
            self.drain_events();
        } else {
            self.dirty = true;
        }
        self.flush_links();
        self.arm_timer();
        effects.append(&mut self.effects);
    }

    fn on_start(&mut self) {
        self.recovery.give_up_at = self.now + self.config.grace_ms * 1_000;
        self.scale_at = self.now;
        self.report_at = self.now;
        self.blocks.begin(self.now);
        self.bound_waits();
        self.tidy_blocks();
        self.poll_blocks_now();
    }

    fn on_accepted(&mut self, conn: u64, block: BlockId) {
        if self.peers.len() >= STRANGERS_MAX || !self.blocks.is_live(block) {
            self.effects.push(Effect::CloseConn { conn });
            return;
        }
        self.peers.insert(conn, Peer::Stranger(block));
    }

    fn on_frame(&mut self, conn: u64, bytes: &[u8]) {
        if self.broker_conns.contains(&conn) {
            self.broker.on_frame(self.now, conn, bytes, &mut self.events, &mut self.outs);
        } else if self.peers.contains_key(&conn) {
            self.managers_link.on_frame(self.now, conn, bytes, &mut self.events, &mut self.outs);
        }
    }

    fn on_conn_closed(&mut self, conn: u64) {
        if self.broker_conns.remove(&conn) {
            self.broker.on_closed(conn, &mut self.events);
        } else {
            self.managers_link.on_closed(conn, &mut self.events);
            self.drain_events();
            self.peers.remove(&conn);
        }
    }

    fn on_clock_gap(&mut self, gap_us: u64) {
        self.broker.on_clock_gap(self.now);
        self.managers_link.on_clock_gap(self.now);
        for manager in self.managers.values_mut().filter(|m| m.conn.is_none()) {
            manager.away_since = (manager.away_since + gap_us).min(self.now);
        }
        self.recovery.give_up_at += gap_us;
    }

    fn on_timer(&mut self) {
        self.timer_at = 0;
        if self.broker.next_deadline().is_some_and(|at| at <= self.now) {
            self.broker.on_timer(self.now, &mut self.events, &mut self.outs);
        }
        if self.managers_link.next_deadline().is_some_and(|at| at <= self.now) {
            self.managers_link.on_timer(self.now, &mut self.events, &mut self.outs);
        }
        if self.now >= self.scale_at {
            let quiet = self.managers.is_empty() && self.blocks.live().next().is_none();
            self.scale_at = self.now
                + match (&self.stopping, quiet) {
                    (Some(_), _) => STOP_LOOK_US,
                    (None, true) => SCALE_QUIET_US,
                    (None, false) => SCALE_US,
                };
            self.drain_events();
            self.bury_the_silent();
            self.check_barrier();
            self.scale();
            self.sweep_payloads();
            self.go_on_stopping();
        }
    }

    fn drain_events(&mut self) {
        while !self.events.is_empty() {
            for event in std::mem::take(&mut self.events) {
                self.on_event(event);
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Up { welcome, .. } => self.on_broker_up(&welcome),
            Event::Refused { refuse, .. } => self.on_broker_refused(&refuse),
            Event::Hello { conn, hello } => self.on_hello(conn, hello),
            Event::Message { conn, message } if self.broker_conns.contains(&conn) => {
                self.on_broker_message(message);
            }
            Event::Message { conn, message } => match self.peers.get(&conn) {
                Some(&Peer::Manager(_, handle)) => self.on_manager_message(handle, message),
                Some(&Peer::Pilot(block)) => self.on_pilot_message(block, message),
                _ => {}
            },
            Event::Down { conn, reason, .. } if self.broker_conns.contains(&conn) => {
                self.on_broker_down(&reason);
            }
            Event::Down { conn, reason, done } => self.on_peer_down(conn, &reason, done),
        }
    }

    /// What was gathered goes out: placements, outcomes, confirmations, credit, reports.
    fn end_turn(&mut self) {
        self.dirty = false;
        if self.exited {
            return;
        }
        if self.scale_soon() {
            self.blocks.soon_after = self.now + SCALE_SOON_US;
            self.scale();
        }
        self.pull_items();
        self.place();
        self.send_to_managers();
        self.send_to_broker();
        if self.now >= self.report_at && self.recovery.ready() {
            self.report_at = self.now + REPORT_US;
            if std::mem::take(&mut self.report_dirty) {
                let report = self.report();
                self.tell_broker(pf_protocol::message::Report { report });
            }
        }
    }

    fn flush_links(&mut self) {
        for out in self.outs.drain(..) {
            self.effects.push(match out {
                Out::Frame { conn, bytes } => Effect::Frame { conn, bytes },
                Out::Close { conn } => {
                    self.broker_conns.remove(&conn);
                    Effect::CloseConn { conn }
                }
            });
        }
    }

    fn arm_timer(&mut self) {
        if self.exited {
            return;
        }
        let mut at = self.scale_at;
        if self.dirty {
            at = self.now;
        }
        at = at.min(self.broker.next_deadline().unwrap_or(at));
        at = at.min(self.managers_link.next_deadline().unwrap_or(at)).max(self.now);
        if at != self.timer_at {
            self.timer_at = at;
            self.effects.push(Effect::SetTimer { at });
        }
    }

    /// Sends to the broker; false when there is no session.
    pub(crate) fn tell_broker(&mut self, message: impl Into<Message>) -> bool {
        self.broker.send(self.now, message.into(), &mut self.outs)
    }

    /// Sends to a manager or pilot.
    pub(crate) fn tell_peer(&mut self, conn: u64, message: impl Into<Message>) -> bool {
        self.managers_link.send(self.now, conn, message.into(), &mut self.outs)
    }

    /// Refuses a HELLO.
    pub(crate) fn refuse(&mut self, conn: u64, code: &str, message: String, retry: bool) {
        let refuse = Refuse { code: code.into(), message, retry };
        self.managers_link.refuse(conn, refuse, &mut self.outs);
    }

    /// The interval of heartbeats that so many managers allow, milliseconds.
    pub(crate) fn heartbeat_ms(&self) -> u64 {
        let managers = self.managers.len() as u64;
        let spread = managers * 1_000 / pf_protocol::limits::HEARTBEATS_PER_S_MAX;
        self.managers_link.timing().heartbeat_ms.max(spread).max(pf_protocol::limits::HEARTBEAT_MS_MIN)
    }

    /// The pause between two rounds of dialling that so many managers allow, milliseconds.
    fn redial_ms_max(&self) -> u64 {
        let (least, most) = pf_protocol::limits::REDIAL_MS_MAX;
        (self.managers.len() as u64 * 1_000 / pf_protocol::limits::REDIALS_PER_S_MAX).clamp(least, most)
    }

    /// Welcomes a manager or pilot.
    pub(crate) fn welcome(&mut self, conn: u64) -> bool {
        let heartbeat_ms = self.heartbeat_ms();
        let welcome = Welcome {
            session: 0,
            version: 0,
            epoch: self.epoch,
            endpoint: self.endpoint,
            heartbeat_ms,
            silent_ms: heartbeat_ms * pf_protocol::limits::SILENT_INTERVALS,
            lease_ms: pf_protocol::limits::LEASE_MS,
            redial_ms_max: self.redial_ms_max(),
        };
        self.managers_link.welcome(self.now, conn, welcome, &mut self.outs)
    }

    pub(crate) fn new_handle(&mut self) -> u32 {
        self.last_handle += 1;
        self.last_handle
    }

    /// Mints `count` attempts in a row; the first of them.
    pub(crate) fn mint(&mut self, count: u32) -> AttemptId {
        let first = AttemptId { epoch: self.epoch, n: self.last_attempt.wrapping_add(1).max(1) };
        self.last_attempt = first.n.wrapping_add(count - 1);
        first
    }

    /// Writes a line for `pf endpoint explain`.
    pub(crate) fn decide(&mut self, text: String) {
        if self.decisions.len() >= crate::limits::DECISIONS_MAX {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision { at_ms: self.config.clock_offset_ms + self.now / 1_000, text });
        self.report_dirty = true;
    }

    /// Tasks here in any state, the outcomes that are not confirmed included.
    pub(crate) fn tasks_held(&self) -> u64 {
        let live: u64 = self.classes.all.iter().map(|c| c.waiting + c.placed).sum();
        live + self.outbox.task_count()
    }

    /// The relay's epoch; 0 before the broker granted one.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}
