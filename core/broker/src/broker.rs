//! The broker's core as a whole: takes inputs, keeps what waits for a sync, and ends each turn with the work that inputs left behind.
//! What each input means is in the modules named after it.

use crate::asks::Asks;
use crate::io::{Blobs, Effect, Input, PutError};
use crate::items::ItemCache;
use crate::live::LiveJob;
use crate::load::Load;
use crate::payloads::Upload;
use crate::record::{Record, VERSION};
use crate::relays::{Conn, LiveEndpoint};
use crate::requests::{Code, Refusal, Reply};
use crate::state::State;
use crate::streams::Streams;
use crate::waiters::Waiters;
use bytes::Bytes;
use pf_link::{Acceptor, Timing};
use pf_protocol::message::TaskBatch;
use pf_protocol::{ContentHash, EndpointId, JobId, Micros, OwnerId, Ranges};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the shell tells the core once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Random for each process: numbers of sessions begin there.
    pub seed: u64,
    /// Intervals of the links to relays.
    pub timing: Timing,
    /// Name of the user who runs the broker, owner 1.
    pub owner_name: String,
    /// The monotonic clock now.
    pub now: Micros,
    /// The wall clock now, Unix microseconds. Records are dated from it and the monotonic clock.
    pub wall_us: u64,
}

/// What a turn works with.
pub(crate) struct Turn<'a> {
    pub now: Micros,
    /// Broker time for records, Unix microseconds.
    pub at_us: u64,
    pub blobs: &'a mut dyn Blobs,
    pub out: &'a mut Vec<Effect>,
}

/// What is done once a position is synced.
#[derive(Debug)]
pub(crate) enum Then {
    Reply { ticket: u64, reply: Reply },
    Queue { job: JobId, tasks: Ranges },
    Assign { conn: u64, endpoint: EndpointId, batches: Vec<TaskBatch> },
    Confirm { conn: u64, upto: u64 },
    Welcome { conn: u64, endpoint: EndpointId },
    Cancel { job: JobId, tasks: Ranges, kill: bool },
    Release { endpoint: EndpointId, job: JobId },
    Show { seq: u64 },
    DropJob { job: JobId },
}

/// See the crate.
#[derive(Debug)]
pub struct Broker {
    pub(crate) config: Config,
    pub(crate) state: State,
    /// Position of the last record made.
    pub(crate) position: u64,
    /// Position up to which all is on disk.
    pub(crate) synced: u64,
    /// What waits for which position, in order.
    pub(crate) waiting: VecDeque<(u64, Then)>,
    /// Jobs that are not over.
    pub(crate) jobs: BTreeMap<JobId, LiveJob>,
    pub(crate) endpoints: BTreeMap<EndpointId, LiveEndpoint>,
    pub(crate) acceptor: Acceptor,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) cache: ItemCache,
    pub(crate) loads: BTreeMap<u64, Load>,
    pub(crate) last_load: u64,
    /// Pieces of large items that are read for relays, by token.
    pub(crate) piece_loads: BTreeMap<u64, EndpointId>,
    /// Large payloads that clients put.
    pub(crate) uploads: BTreeMap<(JobId, ContentHash), Upload>,
    /// Endpoints whose values are not pulled further before a time, since the disk is behind.
    pub(crate) pulls_rest: BTreeMap<EndpointId, Micros>,
    pub(crate) streams: Streams,
    pub(crate) waiters: Waiters,
    pub(crate) asks: Asks,
    /// Which jobs wait for this one.
    pub(crate) dependents: BTreeMap<JobId, BTreeSet<JobId>>,
    /// When jobs expire, Unix microseconds.
    pub(crate) expiries: BTreeSet<(u64, JobId)>,
    /// Why new work is refused.
    pub(crate) pressure: Option<PutError>,
    /// Jobs to look at before the turn ends: whether they are over, may go on, failed too often.
    pub(crate) to_check: BTreeSet<JobId>,
    /// Endpoints that may be given tasks before the turn ends.
    pub(crate) to_pump: BTreeSet<EndpointId>,
    /// Endpoints whose turn was broken off to keep it short.
    pub(crate) pump_again: bool,
    /// Endpoints of this host that have no relay, by name, and why.
    pub(crate) broken: BTreeMap<String, String>,
    armed: Option<Micros>,
}

impl Broker {
    /// Says of an endpoint of this host that it has no relay, and why.
    pub fn cannot_serve(&mut self, endpoint: &str, why: String) {
        self.broken.insert(endpoint.into(), why);
    }

    pub(crate) fn from_state(config: Config, state: State, position: u64) -> Self {
        let mut broker = Broker {
            acceptor: Acceptor::new(config.timing, config.seed),
            streams: Streams::new(state.seq),
            config,
            state,
            position,
            synced: position,
            waiting: VecDeque::new(),
            jobs: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            conns: BTreeMap::new(),
            cache: ItemCache::default(),
            loads: BTreeMap::new(),
            last_load: 0,
            piece_loads: BTreeMap::new(),
            uploads: BTreeMap::new(),
            pulls_rest: BTreeMap::new(),
            waiters: Waiters::default(),
            asks: Asks::default(),
            dependents: BTreeMap::new(),
            expiries: BTreeSet::new(),
            pressure: None,
            to_check: BTreeSet::new(),
            to_pump: BTreeSet::new(),
            pump_again: false,
            broken: BTreeMap::new(),
            armed: None,
        };
        broker.endpoints = broker.state.endpoints.keys().map(|id| (*id, LiveEndpoint::default())).collect();
        let ids: Vec<JobId> = broker.state.jobs.keys().copied().collect();
        for id in ids {
            broker.begin_job(id);
        }
        broker
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Micros, input: Input, blobs: &mut dyn Blobs, out: &mut Vec<Effect>) {
        let at_us = self.wall_us(now);
        let turn = &mut Turn { now, at_us, blobs, out };
        match input {
            Input::Request { ticket, caller, request } => self.request(ticket, caller, request, turn),
            Input::Accepted { conn, peer } => {
                self.conns.insert(conn, Conn { peer, endpoint: None });
            }
            Input::Frame { conn, bytes } => self.frame(conn, &bytes, turn),
            Input::ConnClosed { conn } => self.conn_closed(conn, turn),
            Input::Synced { position } => self.on_synced(position, turn),
            Input::Loaded { token, result } => self.on_loaded(token, result, turn),
            Input::Pull { subscription } => self.streams.pull(subscription),
            Input::Unsubscribe { subscription } => self.streams.remove(subscription),
            Input::Pressure(why) => self.pressure = why,
            Input::ClockGap => self.acceptor.on_clock_gap(now),
            Input::Timer => self.on_timer(turn),
        }
        self.end_turn(turn);
    }

    /// Broker time at `now`, Unix microseconds.
    pub(crate) fn wall_us(&self, now: Micros) -> u64 {
        self.config.wall_us + now.saturating_sub(self.config.now)
    }

    /// Applies a record and appends it.
    ///
    /// # Errors
    /// When it contradicts the state, which is a bug; nothing has changed then.
    pub(crate) fn log(&mut self, record: impl Into<Record>, turn: &mut Turn<'_>) -> Result<(), Refusal> {
        let record = record.into();
        let internal = |why: String| {
            Refusal::new(Code::Internal, why).hint("this is a bug of the broker: please report it")
        };
        let bytes = record.encode().map_err(|e| internal(format!("{} record: {e}", record.name())))?;
        let seq = self.state.seq;
        self.state.apply(&record).map_err(|e| internal(e.to_string()))?;
        self.position += 1;
        turn.out.push(Effect::Append {
            kind: record.kind(),
            version: VERSION,
            critical: record.is_critical(),
            class: record.class(),
            bytes: Bytes::from(bytes),
        });
        if self.state.seq != seq {
            self.after_sync(Then::Show { seq: self.state.seq }, turn);
        }
        Ok(())
    }

    /// Does something once all records made so far are synced.
    pub(crate) fn after_sync(&mut self, then: Then, turn: &mut Turn<'_>) {
        if self.position <= self.synced && self.waiting.is_empty() {
            self.run(then, turn);
        } else {
            self.waiting.push_back((self.position, then));
        }
    }

    /// Answers, once what the answer tells is on disk. A refusal tells nothing of the kind.
    pub(crate) fn reply(&mut self, ticket: u64, reply: Result<Reply, Refusal>, turn: &mut Turn<'_>) {
        match reply {
            Ok(reply) => self.after_sync(Then::Reply { ticket, reply }, turn),
            Err(refusal) => turn.out.push(Effect::Reply { ticket, reply: Err(refusal) }),
        }
    }

    fn on_synced(&mut self, position: u64, turn: &mut Turn<'_>) {
        self.synced = self.synced.max(position.min(self.position));
        let mut confirms: BTreeMap<u64, u64> = BTreeMap::new();
        while self.waiting.front().is_some_and(|(at, _)| *at <= self.synced) {
            match self.waiting.pop_front() {
                Some((_, Then::Confirm { conn, upto })) => {
                    let highest = confirms.entry(conn).or_default();
                    *highest = upto.max(*highest);
                }
                Some((_, then)) => {
                    if let Then::Welcome { conn, .. } = &then {
                        // What was gathered names messages of the session before.
                        confirms.remove(conn);
                    }
                    self.run(then, turn);
                }
                None => break,
            }
        }
        for (conn, upto) in confirms {
            self.run(Then::Confirm { conn, upto }, turn);
        }
    }

    fn run(&mut self, then: Then, turn: &mut Turn<'_>) {
        match then {
            Then::Reply { ticket, reply } => turn.out.push(Effect::Reply { ticket, reply: Ok(reply) }),
            Then::Queue { job, tasks } => self.queue_synced(job, &tasks),
            Then::Assign { conn, endpoint, batches } => self.assign(conn, endpoint, batches, turn),
            Then::Confirm { conn, upto } => self.confirm(conn, upto, turn),
            Then::Welcome { conn, endpoint } => self.welcome(conn, endpoint, turn),
            Then::Cancel { job, tasks, kill } => self.send_cancel(job, tasks, kill, turn),
            Then::Release { endpoint, job } => self.release(endpoint, job, turn),
            Then::Show { seq } => self.streams.show(seq),
            Then::DropJob { job } => turn.out.push(Effect::DropJob { job }),
        }
    }

    fn on_timer(&mut self, turn: &mut Turn<'_>) {
        self.armed = None;
        self.link_timer(turn);
        for (ticket, job) in self.waiters.due(turn.now) {
            let reply = self.job_reply(job);
            self.reply(ticket, reply, turn);
        }
        for ask in self.asks.due(turn.now) {
            let late = Refusal::new(Code::NotConnected, "the endpoint's relay did not answer in time");
            self.answer_ask(ask, Err(late), turn);
        }
        while let Some(&(at_us, job)) = self.expiries.first() {
            if at_us > turn.at_us {
                break;
            }
            self.expiries.pop_first();
            self.expire(job, turn);
        }
        self.pulls_go_on(turn);
        if std::mem::take(&mut self.pump_again) {
            self.to_pump.extend(self.endpoints.keys().copied());
        }
    }

    fn end_turn(&mut self, turn: &mut Turn<'_>) {
        while let Some(job) = self.to_check.pop_first() {
            self.check_job(job, turn);
        }
        while let Some(endpoint) = self.to_pump.pop_first() {
            self.pump(endpoint, turn);
        }
        while let Some(job) = self.to_check.pop_first() {
            self.check_job(job, turn);
        }
        self.pump_streams(turn);
        let expiry = self
            .expiries
            .first()
            .map(|(at_us, _)| self.config.now + at_us.saturating_sub(self.config.wall_us));
        let again = self.pump_again.then_some(turn.now);
        let rest = self.pulls_rest.values().min().copied();
        let (waiters, asks) = (self.waiters.next_due(), self.asks.next_due());
        let deadlines = [self.acceptor.next_deadline(), waiters, asks, expiry, again, rest];
        let next = deadlines.into_iter().flatten().min();
        if let Some(at) = next.filter(|at| self.armed != Some(*at)) {
            self.armed = Some(at);
            turn.out.push(Effect::SetTimer { at });
        }
    }

    /// The owner of the token with this hash.
    #[must_use]
    pub fn token_owner(&self, hash: &ContentHash) -> Option<OwnerId> {
        self.state.tokens.iter().find(|(_, token)| token.hash == *hash).map(|((owner, _), _)| *owner)
    }

    /// Public keys of the relays that may connect.
    #[must_use]
    pub fn relay_keys(&self) -> Vec<[u8; 32]> {
        self.state.endpoints.values().filter_map(|e| e.relay_key.map(|key| key.0)).collect()
    }

    /// Position of the last record made.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Number of the last outcome recorded: the cursor of "now".
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.state.seq
    }
}
