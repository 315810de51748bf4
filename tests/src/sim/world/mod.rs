//! The simulated world: one queue of events in time, and every party's effects carried out on it.

mod endpoint;
mod nodes;
mod payloads;
mod scheduler;
mod service;
mod workers;

use super::disk::Disk;
use super::net::{Net, Party};
use super::{Rng, Truth};
use bytes::Bytes;
use payloads::number_of;
use pf_broker_core as broker;
use pf_link::Timing;
use pf_manager_core as manager;
use pf_protocol::job::{Body, Command, Function, FunctionKind, JobSpec, Python, content_hash};
use pf_protocol::outcome::{OutcomeBatch, OutcomeKind, Usage};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::{AttemptId, BlockId, JobId, JobKey, ManagerId, Micros, OwnerId, TaskId};
use pf_relay_core as relay;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

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
    /// Shapes of blocks, if there are several; else `nodes` and `walltime_ms` are the only one.
    pub shapes: Vec<relay::Shape>,
    /// Accounts that jobs name, in turn; none if empty.
    pub accounts: Vec<&'static str>,
    /// The batch scheduler.
    pub scheduler: Scheduler,
    /// Some items and values are large; every second job is then of Python, since only that returns values.
    pub has_large: bool,
    /// Faults.
    pub faults: Faults,
    /// Every invariant of every core after every event; else now and then.
    pub check_always: bool,
}

/// How the batch scheduler is.
#[derive(Debug, Clone)]
pub struct Scheduler {
    /// Shortest and longest time in the queue.
    pub wait: (Micros, Micros),
    /// Jobs that a user may have at once; more are refused for now.
    pub jobs_max: Option<u32>,
    /// Of a million blocks so many are preempted within five minutes.
    pub preempt_ppm: u64,
    /// Every block ends with exit code 127 within seconds.
    pub broken: bool,
}

impl Default for Scheduler {
    fn default() -> Self {
        Scheduler { wait: (500 * MS, 20 * S), jobs_max: None, preempt_ppm: 0, broken: false }
    }
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
            shapes: Vec::new(),
            accounts: Vec::new(),
            scheduler: Scheduler::default(),
            has_large: false,
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
    WorkerUp { manager: usize, worker: u32 },
    WorkerTaskEnds { manager: usize, worker: u32, seq: u64 },
    WorkerEnds { manager: usize, worker: u32, status: manager::ProcessStatus },
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
    /// Commands that run.
    running: BTreeMap<AttemptId, TaskId>,
    /// Commands of each lane, first the one that runs.
    lanes: BTreeMap<u32, VecDeque<manager::StartCommand>>,
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
    account: Option<String>,
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
    /// Submits with large items that are under way: the job, and which item is put.
    putting: BTreeMap<u64, (JobId, u32)>,
    numbers: BTreeMap<JobId, u64>,
    /// Large values that the client asked for.
    got: u64,
    /// The endpoint's folder of large payloads.
    shared: BTreeMap<String, Vec<u8>>,
    /// When the relay's thread for it is free.
    porter_free_at: Micros,
    workers: BTreeMap<(usize, u32), workers::Worker>,
    /// Events handled.
    pub handled: u64,
    /// Every submit: when, which shape, on which account.
    pub submits: Vec<(Micros, String, Option<String>)>,
    /// Submits that the scheduler refused for now.
    pub later: u32,
    /// Faults that really struck: frames lost, frames repeated, brokers, relays, nodes killed.
    pub struck: [u64; 5],
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
            putting: BTreeMap::new(),
            numbers: BTreeMap::new(),
            got: 0,
            shared: BTreeMap::new(),
            porter_free_at: 0,
            workers: BTreeMap::new(),
            handled: 0,
            submits: Vec::new(),
            later: 0,
            struck: [0; 5],
            plan,
        };
        world.at(1, Event::StartBroker);
        world.at(2, Event::StartRelay);
        world.at(10 * MS, Event::ClientActs);
        world.plan_faults();
        world
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
        self.run_until(limit, true);
    }

    /// Runs until the client has every outcome, or time is over.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn run_for(&mut self, limit: Micros) {
        self.run_until(limit, false);
    }

    fn run_until(&mut self, limit: Micros, must_end: bool) {
        while !self.is_done() {
            let Some((&key, _)) = self.events.first_key_value() else {
                panic!("nothing happens any more: {}", self.state())
            };
            assert!(key.0 < limit || !must_end, "not done after {} s: {}", limit / S, self.state());
            if key.0 >= limit {
                return;
            }
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
                    self.tell_manager(m, manager::Input::Connected { conn });
                }
            }
            Event::Timer { party, at } => self.timer(party, at),
            Event::TurnEnd { party } => match party {
                Party::Relay => self.tell_relay(relay::Input::TurnEnd),
                Party::Manager(m) => self.tell_manager(m, manager::Input::TurnEnd),
                Party::Broker => {}
            },
            Event::Synced { life, position } => {
                if life == self.broker_life && self.broker.is_some() {
                    self.disk.sync(position);
                    self.syncing = false;
                    self.tell_broker(broker::Input::Synced { position: position as u64 });
                    self.begin_sync();
                }
            }
            Event::Loaded { life, token, blobs } => {
                if life == self.broker_life {
                    let result = blobs.iter().map(|b| self.disk.read(*b)).collect();
                    self.tell_broker(broker::Input::Loaded { token, result });
                }
            }
            Event::TaskEnds { manager, attempt, status } => self.task_ends(manager, attempt, status),
            Event::Spooled { manager, upto } => {
                self.tell_manager(manager, manager::Input::Spooled { upto, ok: true })
            }
            Event::WorkerUp { manager, worker } => self.worker_up(manager, worker),
            Event::WorkerTaskEnds { manager, worker, seq } => self.worker_task_ends(manager, worker, seq),
            Event::WorkerEnds { manager, worker, status } => self.worker_ends(manager, worker, status),
            Event::RelayDials => self.relay_dials(),
            Event::ToRelay { life, input } => {
                if life == self.relay_life {
                    self.tell_relay(*input);
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
            self.struck[0] += 1;
            return;
        }
        if twice {
            self.struck[1] += 1;
            self.at(arrival, Event::Deliver { party, conn, bytes: bytes.clone() });
        }
        self.at(arrival, Event::Deliver { party, conn, bytes });
    }

    fn deliver(&mut self, party: Party, conn: u64, bytes: Bytes) {
        match party {
            Party::Broker => self.tell_broker(broker::Input::Frame { conn, bytes }),
            Party::Relay => self.tell_relay(relay::Input::Frame { conn, bytes }),
            Party::Manager(m) => self.tell_manager(m, manager::Input::Frame { conn, bytes }),
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
            Party::Broker => self.tell_broker(broker::Input::ConnClosed { conn }),
            Party::Relay => {
                self.tell_relay(relay::Input::ConnClosed { conn });
                let at = self.now + 100 * MS;
                self.at(at, Event::RelayDials);
            }
            Party::Manager(m) => self.tell_manager(m, manager::Input::ConnClosed { conn }),
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
                    self.tell_broker(broker::Input::Timer);
                }
                Party::Relay => {
                    self.relay_armed = None;
                    self.tell_relay(relay::Input::Timer);
                }
                Party::Manager(m) => {
                    self.nodes[m].armed = None;
                    self.tell_manager(m, manager::Input::Timer);
                }
            }
        }
    }
}
