//! The simulated world: one queue of events in time, and every party's effects carried out on it.

use super::disk::Disk;
use super::net::{Net, Party};
use super::{Rng, Truth};
use bytes::Bytes;
use pf_broker_core as broker;
use pf_link::Timing;
use pf_manager_core as manager;
use pf_protocol::job::{Body, Command, JobSpec, content_hash};
use pf_protocol::outcome::{OutcomeBatch, OutcomeKind, Usage};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::{AttemptId, BlockId, JobId, JobKey, ManagerId, Micros, OwnerId, TaskId};
use pf_relay_core as relay;
use std::collections::{BTreeMap, BTreeSet};

const MS: Micros = 1_000;
const S: Micros = 1_000_000;
const GROUP: u64 = 77;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seed of all chance.
    pub seed: u64,
    /// Jobs.
    pub jobs: u32,
    /// Tasks of each.
    pub tasks: u32,
    /// Blocks at the most.
    pub blocks: u32,
    /// Nodes of a block.
    pub nodes: u32,
    /// Cores of a node.
    pub cores: usize,
    /// Longest task, milliseconds.
    pub task_ms_max: u64,
    /// Of a million tasks so many exit with 1.
    pub failing_ppm: u64,
    /// Walltime of a block, milliseconds.
    pub walltime_ms: u64,
    /// Faults.
    pub faults: Faults,
    /// Every invariant of every core after every event; else now and then.
    pub check_always: bool,
}

/// Faults, until a time after which all goes well.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Until when, simulated microseconds.
    pub until: Micros,
    /// Frames lost, in a million.
    pub lose_ppm: u64,
    /// Frames repeated, in a million.
    pub repeat_ppm: u64,
    /// How often the broker is killed.
    pub broker_kills: u32,
    /// How often the relay is killed.
    pub relay_kills: u32,
    /// How many nodes die.
    pub node_kills: u32,
    /// How many managers are cut off from the network for a while.
    pub partitions: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            seed: 1,
            jobs: 3,
            tasks: 60,
            blocks: 2,
            nodes: 3,
            cores: 2,
            task_ms_max: 3_000,
            failing_ppm: 50_000,
            walltime_ms: 3_600_000,
            faults: Faults::default(),
            check_always: true,
        }
    }
}

#[derive(Debug)]
enum Event {
    Deliver { party: Party, conn: u64, bytes: Bytes },
    Closed { party: Party, conn: u64 },
    Connected { party: Party, conn: u64 },
    Timer { party: Party, at: Micros },
    TurnEnd { party: Party },
    Synced { life: u32, position: usize },
    Loaded { life: u32, token: u64, blobs: Vec<pf_protocol::BlobRef> },
    TaskEnds { manager: usize, attempt: AttemptId, status: manager::ProcessStatus },
    Spooled { manager: usize, upto: u64 },
    RelayDials,
    ToRelay { life: u32, input: Box<relay::Input> },
    BlockStarts { block: BlockId },
    BlockIsKilled { block: BlockId, how: BlockEnd },
    Kill(Party),
    Partition { manager: usize, on: bool },
    StartBroker,
    StartRelay,
    ClientActs,
}

/// A manager and the node under it.
#[derive(Debug)]
struct Node {
    core: manager::ManagerCore,
    block: BlockId,
    alive: bool,
    cut_off: bool,
    /// What runs, with the moment of its natural end.
    running: BTreeMap<AttemptId, TaskId>,
    armed: Option<Micros>,
}

/// A batch job in the simulated scheduler.
#[derive(Debug)]
struct Batch {
    name: String,
    id: String,
    state: BlockState,
    nodes: Vec<usize>,
    size: u32,
    walltime_ms: u64,
    ends: Micros,
    spools: Vec<OutcomeBatch>,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    /// The time.
    pub now: Micros,
    /// What really happened.
    pub truth: Truth,
    plan: Plan,
    rng: Rng,
    events: BTreeMap<(Micros, u64), Event>,
    last_event: u64,
    net: Net,
    disk: Disk,
    broker: Option<broker::Broker>,
    broker_life: u32,
    broker_armed: Option<Micros>,
    syncing: bool,
    relay: Option<relay::Relay>,
    relay_life: u32,
    relay_armed: Option<Micros>,
    roster: relay::Roster,
    nodes: Vec<Node>,
    batches: BTreeMap<BlockId, Batch>,
    dirty: BTreeSet<Party>,
    log: Vec<u8>,
    client_cursor: u64,
    subscribed: bool,
    pending_submits: BTreeMap<u64, u32>,
    /// Events handled.
    pub handled: u64,
}

impl World {
    /// A world at rest; [`World::run`] lets it go.
    #[must_use]
    pub fn new(plan: Plan) -> World {
        let mut world = World {
            now: 0,
            truth: Truth::default(),
            rng: Rng::new(plan.seed),
            events: BTreeMap::new(),
            last_event: 0,
            net: Net::default(),
            disk: Disk::default(),
            broker: None,
            broker_life: 0,
            broker_armed: None,
            syncing: false,
            relay: None,
            relay_life: 0,
            relay_armed: None,
            roster: relay::Roster::default(),
            nodes: Vec::new(),
            batches: BTreeMap::new(),
            dirty: BTreeSet::new(),
            log: Vec::new(),
            client_cursor: 0,
            subscribed: false,
            pending_submits: (0..u64::from(plan.jobs)).map(|n| (n, 0)).collect(),
            handled: 0,
            plan,
        };
        world.at(1, Event::StartBroker);
        world.at(2, Event::StartRelay);
        world.at(10 * MS, Event::ClientActs);
        world.plan_faults();
        world
    }

    fn plan_faults(&mut self) {
        let faults = self.plan.faults.clone();
        let when = |world: &mut World| world.rng.between(S, faults.until.max(2 * S));
        for _ in 0..faults.broker_kills {
            let at = when(self);
            self.at(at, Event::Kill(Party::Broker));
        }
        for _ in 0..faults.relay_kills {
            let at = when(self);
            self.at(at, Event::Kill(Party::Relay));
        }
        for _ in 0..faults.node_kills {
            let (at, which) = (when(self), self.rng.below(64) as usize);
            self.at(at, Event::Kill(Party::Manager(which)));
        }
        for _ in 0..faults.partitions {
            let (at, which) = (when(self), self.rng.below(64) as usize);
            let length = self.rng.between(S, 400 * S);
            self.at(at, Event::Partition { manager: which, on: true });
            self.at(at + length, Event::Partition { manager: which, on: false });
        }
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.last_event += 1;
        self.events.insert((at.max(self.now), self.last_event), event);
    }

    /// Runs until the client has every outcome.
    ///
    /// # Panics
    /// When that does not come within `limit` of simulated time, or a promise is broken.
    pub fn run(&mut self, limit: Micros) {
        while !self.is_done() {
            let Some((&key, _)) = self.events.first_key_value() else { panic!("nothing happens any more: {}", self.state()) };
            assert!(key.0 < limit, "not done after {} s: {}", limit / S, self.state());
            if key.0 > self.now && !self.dirty.is_empty() {
                for party in std::mem::take(&mut self.dirty) {
                    self.handle(Event::TurnEnd { party });
                }
                continue;
            }
            let Some(event) = self.events.remove(&key) else { continue };
            self.now = key.0;
            self.handled += 1;
            self.handle(event);
            if self.plan.check_always || self.handled.is_multiple_of(20_000) {
                self.check();
            }
        }
        self.check();
    }

    fn is_done(&self) -> bool {
        let told = self.truth.told.len() as u64;
        self.pending_submits.is_empty() && told == u64::from(self.plan.jobs) * u64::from(self.plan.tasks)
    }

    fn state(&self) -> String {
        format!(
            "at {} s: {} of {} submits open, {} outcomes told, {} running, {} records, broker {}, relay {}, blocks {:?}",
            self.now / S,
            self.pending_submits.len(),
            self.plan.jobs,
            self.truth.told.len(),
            self.truth.running(),
            self.disk.appended(),
            self.broker.is_some(),
            self.relay.is_some(),
            self.batches.iter().map(|(b, batch)| format!("{b} {:?}", batch.state)).collect::<Vec<_>>()
        )
    }

    fn check(&self) {
        if let Some(broker) = &self.broker {
            broker.check();
        }
        if let Some(relay) = &self.relay {
            relay.check();
        }
        self.nodes.iter().filter(|n| n.alive).for_each(|n| n.core.check());
    }

    /// A hash of everything that was ever appended to the log, with its time.
    #[must_use]
    pub fn log_hash(&self) -> String {
        content_hash(&self.log).to_string()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { party, conn, bytes } => {
                if self.net.other(party, conn).is_some() {
                    self.deliver(party, conn, bytes);
                }
            }
            Event::Closed { party, conn } => self.closed(party, conn),
            Event::Connected { party, conn } => {
                if let (Party::Manager(m), true) = (party, self.net.other(party, conn).is_some()) {
                    self.to_manager(m, manager::Input::Connected { conn });
                }
            }
            Event::Timer { party, at } => self.timer(party, at),
            Event::TurnEnd { party } => match party {
                Party::Relay => self.to_relay(relay::Input::TurnEnd),
                Party::Manager(m) => self.to_manager(m, manager::Input::TurnEnd),
                Party::Broker => {}
            },
            Event::Synced { life, position } => {
                if life == self.broker_life && self.broker.is_some() {
                    self.disk.sync(position);
                    self.syncing = false;
                    self.to_broker(broker::Input::Synced { position: position as u64 });
                    self.begin_sync();
                }
            }
            Event::Loaded { life, token, blobs } => {
                if life == self.broker_life {
                    let result = blobs.iter().map(|b| self.disk.read(*b)).collect();
                    self.to_broker(broker::Input::Loaded { token, result });
                }
            }
            Event::TaskEnds { manager, attempt, status } => self.task_ends(manager, attempt, status),
            Event::Spooled { manager, upto } => self.to_manager(manager, manager::Input::Spooled { upto, ok: true }),
            Event::RelayDials => self.relay_dials(),
            Event::ToRelay { life, input } => {
                if life == self.relay_life {
                    self.to_relay(*input);
                }
            }
            Event::BlockStarts { block } => self.block_starts(block),
            Event::BlockIsKilled { block, how } => self.block_is_killed(block, how),
            Event::Kill(party) => self.kill(party),
            Event::Partition { manager, on } => self.partition(manager, on),
            Event::StartBroker => self.start_broker(),
            Event::StartRelay => self.start_relay(),
            Event::ClientActs => self.client_acts(),
        }
    }

    // --- wires ---

    fn send(&mut self, from: Party, conn: u64, bytes: Bytes) {
        let delay = self.rng.between(50, 2 * MS);
        let faulty = self.now < self.plan.faults.until;
        let (lost, twice) = (
            faulty && self.rng.chance(self.plan.faults.lose_ppm),
            faulty && self.rng.chance(self.plan.faults.repeat_ppm),
        );
        if let Party::Manager(m) = from
            && self.nodes[m].cut_off
        {
            return;
        }
        let now = self.now;
        let Some(end) = self.net.other(from, conn) else { return };
        let arrival = (now + delay).max(end.last_arrival + 1);
        end.last_arrival = arrival;
        let (party, conn) = (end.party, end.conn);
        if let Party::Manager(m) = party
            && self.nodes[m].cut_off
        {
            return;
        }
        if lost {
            return;
        }
        if twice {
            self.at(arrival, Event::Deliver { party, conn, bytes: bytes.clone() });
        }
        self.at(arrival, Event::Deliver { party, conn, bytes });
    }

    fn deliver(&mut self, party: Party, conn: u64, bytes: Bytes) {
        match party {
            Party::Broker => self.to_broker(broker::Input::Frame { conn, bytes }),
            Party::Relay => self.to_relay(relay::Input::Frame { conn, bytes }),
            Party::Manager(m) => self.to_manager(m, manager::Input::Frame { conn, bytes }),
        }
    }

    fn close(&mut self, party: Party, conn: u64) {
        if let Some(end) = self.net.cut(party, conn) {
            let at = self.now + MS;
            self.at(at, Event::Closed { party: end.party, conn: end.conn });
        }
    }

    fn closed(&mut self, party: Party, conn: u64) {
        match party {
            Party::Broker => self.to_broker(broker::Input::ConnClosed { conn }),
            Party::Relay => {
                self.to_relay(relay::Input::ConnClosed { conn });
                let at = self.now + 100 * MS;
                self.at(at, Event::RelayDials);
            }
            Party::Manager(m) => self.to_manager(m, manager::Input::ConnClosed { conn }),
        }
    }

    fn cut_all(&mut self, party: Party) {
        for conn in self.net.conns(party) {
            self.close(party, conn);
        }
    }

    fn timer(&mut self, party: Party, at: Micros) {
        let armed = match party {
            Party::Broker => self.broker_armed,
            Party::Relay => self.relay_armed,
            Party::Manager(m) => self.nodes[m].armed,
        };
        if armed == Some(at) {
            match party {
                Party::Broker => {
                    self.broker_armed = None;
                    self.to_broker(broker::Input::Timer);
                }
                Party::Relay => {
                    self.relay_armed = None;
                    self.to_relay(relay::Input::Timer);
                }
                Party::Manager(m) => {
                    self.nodes[m].armed = None;
                    self.to_manager(m, manager::Input::Timer);
                }
            }
        }
    }

    // --- the broker ---

    fn start_broker(&mut self) {
        if self.broker.is_some() {
            return;
        }
        let mut recovery = broker::Recovery::new();
        for (head, bytes) in self.disk.records() {
            recovery.record(*head, bytes).expect("the log replays");
        }
        self.broker_life += 1;
        self.syncing = false;
        self.broker = Some(recovery.finish(broker::Config {
            seed: self.rng.any(),
            timing: Timing::default(),
            owner_name: "user".into(),
            now: self.now,
            wall_us: 1_700_000_000_000_000 + self.now,
        }));
        self.subscribed = false;
        let position = self.disk.synced() as u64;
        self.to_broker(broker::Input::Synced { position });
        self.ask(900_000, broker::Request::PutEndpoint { name: "local".into(), relay_key: None });
        self.at(self.now + MS, Event::RelayDials);
        self.at(self.now + MS, Event::ClientActs);
    }

    fn ask(&mut self, ticket: u64, request: broker::Request) {
        let caller = broker::Caller { owner: OwnerId(1), is_broker_owner: true };
        self.to_broker(broker::Input::Request { ticket, caller, request });
    }

    fn to_broker(&mut self, input: broker::Input) {
        let Some(mut core) = self.broker.take() else { return };
        let mut out = Vec::new();
        core.handle(self.now, input, &mut self.disk, &mut out);
        self.broker = Some(core);
        for effect in out {
            self.broker_effect(effect);
        }
        self.begin_sync();
    }

    fn broker_effect(&mut self, effect: broker::Effect) {
        match effect {
            broker::Effect::Append { kind, version, critical, bytes, .. } => {
                self.log.extend_from_slice(&self.now.to_le_bytes());
                self.log.extend_from_slice(&bytes);
                self.disk.append(kind, version, critical, bytes);
            }
            broker::Effect::Reply { ticket, reply } => self.client_hears(ticket, reply),
            broker::Effect::Stream { batch, .. } => self.client_reads(&batch),
            broker::Effect::Frame { conn, bytes } => self.send(Party::Broker, conn, bytes),
            broker::Effect::CloseConn { conn } => self.close(Party::Broker, conn),
            broker::Effect::SetTimer { at } => {
                self.broker_armed = Some(at.max(self.now));
                self.at(at, Event::Timer { party: Party::Broker, at: at.max(self.now) });
            }
            broker::Effect::Load { token, blobs } => {
                let at = self.now + self.rng.between(100, 5 * MS);
                self.at(at, Event::Loaded { life: self.broker_life, token, blobs });
            }
            broker::Effect::DropJob { .. } => {}
        }
    }

    fn begin_sync(&mut self) {
        let position = self.disk.appended();
        if !self.syncing && position > self.disk.synced() {
            self.syncing = true;
            let slow = if self.rng.chance(10_000) { 500 * MS } else { 3 * MS };
            let at = self.now + self.rng.between(200, slow);
            self.at(at, Event::Synced { life: self.broker_life, position });
        }
    }

    // --- the client ---

    fn client_acts(&mut self) {
        if self.broker.is_none() {
            return;
        }
        let open: Vec<u64> = self.pending_submits.keys().copied().collect();
        for n in open {
            let spec = JobSpec {
                group: GROUP,
                endpoints: vec!["local".into()],
                body: Body::Command(Command { argv: vec![format!("work-{n}")], ..Command::default() }),
                ..JobSpec::default()
            };
            let mut key = [0u8; 16];
            key[..8].copy_from_slice(&n.to_le_bytes());
            // Every second job has items.
            let items = n.is_multiple_of(2);
            let count = self.plan.tasks;
            let tasks = broker::Tasks {
                count,
                lens: if items { vec![3; count as usize] } else { vec![] },
                blob: if items { Bytes::from(vec![b'i'; 3 * count as usize]) } else { Bytes::new() },
            };
            let request = broker::Request::Submit {
                key: JobKey(key),
                hash: content_hash(&key),
                spec: Box::new(spec),
                tasks,
                open: false,
            };
            self.ask(n, request);
        }
        if !self.subscribed && self.broker.is_some() {
            self.subscribed = true;
            let request = broker::Request::Subscribe {
                subscription: 1,
                of: broker::StreamOf::Group(GROUP),
                after: self.client_cursor,
                follow: true,
            };
            self.ask(800_000, request);
        }
    }

    fn client_hears(&mut self, ticket: u64, reply: Result<broker::Reply, broker::Refusal>) {
        match reply {
            Ok(broker::Reply::Submitted(reply)) => {
                if let Some(before) = self.truth.acknowledged.insert(reply.job, reply.tasks) {
                    assert_eq!(before, reply.tasks, "{} changed its size", reply.job);
                }
                self.pending_submits.remove(&ticket);
            }
            Ok(broker::Reply::Subscribed { .. }) => self.to_broker(broker::Input::Pull { subscription: 1 }),
            Ok(_) => {}
            Err(refusal) => panic!("the broker refused: {refusal:?}"),
        }
    }

    fn client_reads(&mut self, batch: &broker::StreamBatch) {
        assert!(batch.seq >= self.client_cursor, "the stream went back: {} after {}", batch.seq, self.client_cursor);
        for part in &batch.parts {
            for row in &part.rows {
                let task = TaskId { job: part.job, index: row.index };
                self.truth.told(task, row.kind);
                assert_eq!(row.kind, self.expected(task), "{task} ended otherwise than it ran");
            }
        }
        self.client_cursor = batch.seq;
        self.to_broker(broker::Input::Pull { subscription: 1 });
    }

    /// How a task ends, known beforehand.
    fn expected(&self, task: TaskId) -> OutcomeKind {
        let chance = Rng::new(self.plan.seed ^ (task.job.0 << 32) ^ u64::from(task.index)).below(1_000_000);
        if chance < self.plan.failing_ppm { OutcomeKind::Exit } else { OutcomeKind::Value }
    }

    // --- the relay ---

    fn start_relay(&mut self) {
        if self.relay.is_some() {
            return;
        }
        self.relay_life += 1;
        let scaling = relay::Scaling {
            max_blocks: self.plan.blocks,
            nodes_per_block: self.plan.nodes,
            walltime_ms: self.plan.walltime_ms,
            ..relay::Scaling::default()
        };
        let config = relay::Config {
            host: "login1".into(),
            incarnation: self.rng.any(),
            clock_offset_ms: 1_700_000_000_000,
            scaling,
            ..relay::Config::default()
        };
        self.relay = Some(relay::Relay::new(config, self.roster.clone()));
        self.to_relay(relay::Input::Start);
        self.relay_dials();
    }

    fn relay_dials(&mut self) {
        let connected = self.net.conns(Party::Broker).len();
        if self.relay.is_none() || self.broker.is_none() || connected > 0 {
            return;
        }
        let (at_relay, at_broker) = self.net.connect(Party::Relay, Party::Broker);
        self.to_broker(broker::Input::Accepted { conn: at_broker, peer: None });
        self.to_relay(relay::Input::BrokerConnected { conn: at_relay });
    }

    fn to_relay(&mut self, input: relay::Input) {
        let Some(mut core) = self.relay.take() else { return };
        if input != relay::Input::TurnEnd {
            self.dirty.insert(Party::Relay);
        }
        let mut out = Vec::new();
        core.handle(self.now, input, &mut out);
        self.relay = Some(core);
        for effect in out {
            self.relay_effect(effect);
        }
    }

    fn relay_hears(&mut self, delay: Micros, input: relay::Input) {
        let at = self.now + delay;
        self.at(at, Event::ToRelay { life: self.relay_life, input: Box::new(input) });
    }

    fn relay_effect(&mut self, effect: relay::Effect) {
        match effect {
            relay::Effect::Frame { conn, bytes } => self.send(Party::Relay, conn, bytes),
            relay::Effect::CloseConn { conn } => self.close(Party::Relay, conn),
            relay::Effect::SetTimer { at } => {
                self.relay_armed = Some(at.max(self.now));
                self.at(at, Event::Timer { party: Party::Relay, at: at.max(self.now) });
            }
            relay::Effect::SaveRoster { roster } => {
                let version = roster.version;
                // The write is atomic: a crash before its end would leave the old one, which here never happens in between.
                self.roster = roster;
                self.relay_hears(2 * MS, relay::Input::RosterSaved { version });
            }
            relay::Effect::RefreshTickets { .. } | relay::Effect::BlockOver { .. } => {}
            relay::Effect::Submit { record } => self.submit(&record),
            relay::Effect::QueryBlocks { blocks } => {
                let seen = blocks.iter().filter_map(|b| self.seen(b.block)).collect();
                self.relay_hears(50 * MS, relay::Input::Blocks { seen: Ok(seen) });
            }
            relay::Effect::CancelBlock { record } => {
                self.at(self.now + 100 * MS, Event::BlockIsKilled { block: record.block, how: BlockEnd::Cancelled });
                self.relay_hears(50 * MS, relay::Input::BlockCancelled { block: record.block, result: Ok(()) });
            }
            relay::Effect::ReadSpools { record } => {
                let spools = self.batches.get(&record.block).map(|b| b.spools.clone()).unwrap_or_default();
                let input = relay::Input::SpoolsRead { block: record.block, result: Ok(spools) };
                self.relay_hears(20 * MS, input);
                self.relay_hears(20 * MS, relay::Input::BlockLog { block: record.block, tail: String::new() });
            }
            relay::Effect::ReadLog { .. } | relay::Effect::ReadBlockLog { .. } => {}
            relay::Effect::Exit { reason, .. } => panic!("the relay gave up: {reason}"),
        }
    }

    // --- the scheduler ---

    fn submit(&mut self, record: &relay::BlockRecord) {
        let id = format!("{}", 1000 + record.block.0);
        let batch = Batch {
            name: record.name.clone(),
            id: id.clone(),
            state: BlockState::Queued("Priority".into()),
            nodes: Vec::new(),
            size: record.nodes,
            walltime_ms: record.walltime_ms,
            ends: 0,
            spools: Vec::new(),
        };
        assert!(self.batches.insert(record.block, batch).is_none(), "{} was submitted twice", record.block);
        let input = relay::Input::Submitted { block: record.block, result: relay::SubmitResult::Accepted(id) };
        self.relay_hears(200 * MS, input);
        let at = self.now + self.rng.between(500 * MS, 20 * S);
        self.at(at, Event::BlockStarts { block: record.block });
    }

    fn seen(&self, block: BlockId) -> Option<relay::Seen> {
        let batch = self.batches.get(&block)?;
        let left = matches!(batch.state, BlockState::Running).then(|| batch.ends.saturating_sub(self.now) / MS);
        Some(relay::Seen {
            scheduler_id: batch.id.clone(),
            name: batch.name.clone(),
            state: batch.state.clone(),
            walltime_left_ms: left,
        })
    }

    fn block_starts(&mut self, block: BlockId) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        if !matches!(batch.state, BlockState::Queued(_)) {
            return;
        }
        batch.state = BlockState::Running;
        let ends = self.now + batch.walltime_ms * MS;
        batch.ends = ends;
        let size = batch.size;
        self.at(ends, Event::BlockIsKilled { block, how: BlockEnd::Walltime });
        for node in 0..size {
            let place = self.nodes.len();
            let config = manager::ManagerConfig {
                manager: ManagerId { block, node: node as u16, incarnation: self.rng.any() },
                node: format!("n{place}"),
                pid: place as u32,
                clock_ms: 0,
                shape: manager::NodeShape::unpinned(self.plan.cores),
                walltime_end: ends,
                epoch_seen: Default::default(),
                timing: Timing::default(),
            };
            let core = manager::ManagerCore::new(config, self.now);
            let running = BTreeMap::new();
            self.nodes.push(Node { core, block, alive: true, cut_off: false, running, armed: None });
            if let Some(batch) = self.batches.get_mut(&block) {
                batch.nodes.push(place);
            }
            self.to_manager(place, manager::Input::Start);
        }
    }

    fn block_is_killed(&mut self, block: BlockId, how: BlockEnd) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        if matches!(batch.state, BlockState::Ended(_)) {
            return;
        }
        batch.state = BlockState::Ended(how);
        for place in batch.nodes.clone() {
            self.node_dies(place);
        }
    }

    /// A block whose managers have all ended by themselves is over.
    fn end_if_empty(&mut self, block: BlockId) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        let over = batch.nodes.iter().all(|place| !self.nodes[*place].alive);
        if over && !matches!(batch.state, BlockState::Ended(_)) {
            batch.state = BlockState::Ended(BlockEnd::Completed);
        }
    }

    // --- managers ---

    fn to_manager(&mut self, place: usize, input: manager::Input) {
        if !self.nodes[place].alive {
            return;
        }
        if !matches!(input, manager::Input::TurnEnd) {
            self.dirty.insert(Party::Manager(place));
        }
        let mut out = Vec::new();
        self.nodes[place].core.handle(self.now, input, &mut out);
        for effect in out {
            self.manager_effect(place, effect);
        }
    }

    fn manager_effect(&mut self, place: usize, effect: manager::Effect) {
        let party = Party::Manager(place);
        match effect {
            manager::Effect::Dial => self.manager_dials(place),
            manager::Effect::Frame { conn, bytes } => self.send(party, conn, bytes),
            manager::Effect::CloseConn { conn } => self.close(party, conn),
            manager::Effect::SetTimer { at } => {
                self.nodes[place].armed = at.map(|at| at.max(self.now));
                if let Some(at) = at {
                    self.at(at, Event::Timer { party, at: at.max(self.now) });
                }
            }
            manager::Effect::StartCommand(start) => {
                let task = TaskId { job: start.job.job, index: start.index };
                self.truth.started(task, place, start.attempt);
                self.nodes[place].running.insert(start.attempt, task);
                let code = i32::from(self.expected(task) == OutcomeKind::Exit);
                let at = self.now + self.rng.between(MS, self.plan.task_ms_max * MS);
                let status = manager::ProcessStatus::Exit(code);
                self.at(at, Event::TaskEnds { manager: place, attempt: start.attempt, status });
                self.to_manager(place, manager::Input::CommandStarted { attempt: start.attempt });
            }
            manager::Effect::SignalCommand { attempt, signal } => {
                let at = self.now + MS;
                let status = manager::ProcessStatus::Signal(signal);
                self.at(at, Event::TaskEnds { manager: place, attempt, status });
            }
            manager::Effect::Spool { upto, batches } => {
                let block = self.nodes[place].block;
                if let Some(batch) = self.batches.get_mut(&block) {
                    batch.spools.extend(batches);
                }
                self.at(self.now + 5 * MS, Event::Spooled { manager: place, upto });
            }
            manager::Effect::Exit { .. } => {
                self.node_dies(place);
                self.end_if_empty(self.nodes[place].block);
            }
            other => panic!("the simulation has no Python workers: {other:?}"),
        }
    }

    fn manager_dials(&mut self, place: usize) {
        if self.relay.is_none() || self.nodes[place].cut_off {
            return self.to_manager(place, manager::Input::Dialled { conns: vec![] });
        }
        let (at_manager, at_relay) = self.net.connect(Party::Manager(place), Party::Relay);
        let block = self.nodes[place].block;
        self.to_manager(place, manager::Input::Dialled { conns: vec![at_manager] });
        self.to_relay(relay::Input::Accepted { conn: at_relay, block });
        self.at(self.now + MS, Event::Connected { party: Party::Manager(place), conn: at_manager });
    }

    fn task_ends(&mut self, place: usize, attempt: AttemptId, status: manager::ProcessStatus) {
        let Some(task) = self.nodes[place].running.remove(&attempt) else { return };
        self.truth.ended(task);
        let end = manager::ProcessEnd {
            status,
            usage: Usage::default(),
            out_of_memory: false,
            stderr_tail: String::new(),
        };
        self.to_manager(place, manager::Input::CommandEnded { attempt, end });
    }

    fn node_dies(&mut self, place: usize) {
        if !std::mem::replace(&mut self.nodes[place].alive, false) {
            return;
        }
        for task in std::mem::take(&mut self.nodes[place].running).into_values() {
            self.truth.ended(task);
        }
        self.cut_all(Party::Manager(place));
    }

    // --- faults ---

    fn kill(&mut self, party: Party) {
        match party {
            Party::Broker => {
                if self.broker.take().is_none() {
                    return;
                }
                self.cut_all(Party::Broker);
                self.broker_armed = None;
                let pending = (self.disk.appended() - self.disk.synced()) as u64;
                let kept = self.rng.below(pending + 1) as usize;
                self.disk.crash(kept);
                let at = self.now + self.rng.between(100 * MS, 30 * S);
                self.at(at, Event::StartBroker);
            }
            Party::Relay => {
                if self.relay.take().is_none() {
                    return;
                }
                self.cut_all(Party::Relay);
                self.relay_armed = None;
                self.relay_life += 1;
                let at = self.now + self.rng.between(100 * MS, 60 * S);
                self.at(at, Event::StartRelay);
            }
            Party::Manager(which) => {
                let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect();
                if let Some(place) = alive.get(which % alive.len().max(1)).copied() {
                    self.node_dies(place);
                    self.end_if_empty(self.nodes[place].block);
                }
            }
        }
    }

    fn partition(&mut self, which: usize, on: bool) {
        if self.nodes.is_empty() {
            return;
        }
        let place = which % self.nodes.len();
        if on {
            self.nodes[place].cut_off = true;
        } else {
            // Whichever were cut off are reachable again: `place` may be another one than when it began.
            self.nodes.iter_mut().for_each(|n| n.cut_off = false);
        }
    }

    /// Jobs that the client was promised.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobId> {
        self.truth.acknowledged.keys().copied().collect()
    }
}
