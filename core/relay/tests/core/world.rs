//! A broker, managers and a scheduler around one relay core, in one thread, on the real link ends.

use bytes::Bytes;
use pf_link::{Acceptor, Dialer, Event, Out, Timing};
use pf_protocol::job::{JobDef, JobSpec, content_hash};
use pf_protocol::message::*;
use pf_protocol::outcome::{Outcome, OutcomeBatch, OutcomeKind};
use pf_protocol::payload::{LARGE, PayloadRef, held, is_large};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::{
    AttemptId, BlockId, ContentHash, EndpointId, Epoch, JobId, JobKey, ManagerId, OwnerId, Ranges, TaskId,
};
use pf_relay_core::{Config, Effect, Input, Relay, Roster, Scaling, Seen, SubmitResult};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const BROKER: u64 = 1;

/// A manager that holds what it gets until the test ends it.
pub struct FakeManager {
    pub id: ManagerId,
    pub cores: u32,
    pub dialer: Dialer,
    pub conn: u64,
    pub held: BTreeMap<AttemptId, TaskId>,
    pub cancelled: BTreeSet<AttemptId>,
    pub unconfirmed: BTreeMap<u64, OutcomeBatch>,
    pub defined: BTreeSet<JobId>,
    pub recalls: Vec<Recall>,
    pub drained: bool,
    pub seq: u64,
    pub number: u64,
    pub most_held: usize,
}

pub struct World {
    pub now: u64,
    pub relay: Relay,
    pub roster: Roster,
    pub timer: u64,
    pub broker: Acceptor,
    pub broker_up: bool,
    pub epoch: u32,
    pub unfinished: Vec<UnfinishedJob>,
    pub credit: Credit,
    pub assigned: u64,
    pub outcomes: Vec<OutcomeBatch>,
    pub confirm: bool,
    pub holding: BTreeMap<JobId, Ranges>,
    pub holdings: u32,
    /// What the last list said of the rest.
    pub rest: pf_protocol::message::Rest,
    pub returned: BTreeMap<JobId, Ranges>,
    pub reports: Vec<pf_protocol::report::EndpointReport>,
    pub answers: Vec<Answer>,
    pub last_outcomes: u64,
    pub managers: BTreeMap<u32, FakeManager>,
    pub pilots: BTreeMap<BlockId, (Dialer, u64)>,
    pub next_conn: u64,
    pub conns: BTreeMap<u64, u32>,
    pub pilot_conns: BTreeMap<u64, BlockId>,
    pub blocks: BTreeMap<BlockId, BlockState>,
    pub submits: Vec<BlockId>,
    pub submit_result: Option<SubmitResult>,
    /// The scheduler has no block without any of its nodes.
    pub scarce: bool,
    /// The scheduler does not say where blocks are, but this.
    pub no_status: Option<String>,
    /// What pilots know of their job's id.
    pub pilots_id: Option<String>,
    pub cancels: Vec<BlockId>,
    /// How often the scheduler says that it started a block again.
    pub restarts: BTreeMap<BlockId, u32>,
    /// The scheduler takes this many cancels that end nothing.
    pub deaf_cancels: usize,
    pub exit: Option<(String, bool)>,
    pub refused: Vec<Refuse>,
    pub spools: BTreeMap<BlockId, Vec<OutcomeBatch>>,
    pub log_tail: String,
    /// The broker keeps its list of unfinished tasks to itself.
    pub silent_broker: bool,
    /// Folders of blocks, as the shell would have them.
    pub folders: BTreeSet<BlockId>,
    /// Pieces of items that the relay wanted, and of values that it sent.
    pub wants: Vec<Want>,
    pub pieces: Vec<Piece>,
    /// Files of large items.
    pub files: BTreeMap<(JobId, ContentHash), Vec<u8>>,
    /// Files are written, but that is not told: these are.
    pub slow_files: bool,
    pub unwritten: Vec<(ContentHash, u64)>,
    /// Pieces of values that are to be read.
    pub reads: Vec<(ContentHash, u64)>,
    /// Orders to delete files.
    pub file_effects: Vec<Effect>,
    /// What managers speak at the most.
    pub version_max: u16,
    /// Blocks whose programs were to be kept when the shell was last told to tidy up.
    pub in_use: Vec<BlockId>,
    inputs: VecDeque<Input>,
    running: bool,
}

pub fn scaling() -> Scaling {
    Scaling { max_blocks: 4, idle_ms: 60_000, unclear_ms: 30_000, ..Scaling::default() }
}

impl World {
    pub fn new(scaling: Scaling) -> World {
        World::again(scaling, Roster::default(), 0)
    }

    /// A relay process that begins with this roster.
    pub fn again(scaling: Scaling, roster: Roster, now: u64) -> World {
        World::with(Config { scaling, incarnation: 77 + now, ..Config::default() }, roster, now, None)
    }

    /// One whose scheduler does not say where blocks are, but this.
    pub fn without_status(scaling: Scaling, roster: Roster, words: &str) -> World {
        World::with(Config { scaling, incarnation: 79, ..Config::default() }, roster, 0, Some(words.into()))
    }

    /// One whose clock begins at 0 when the wall clock shows `unix_ms`.
    pub fn after(scaling: Scaling, roster: Roster, unix_ms: u64) -> World {
        let config = Config { scaling, incarnation: 78, clock_offset_ms: unix_ms, ..Config::default() };
        World::with(config, roster, 0, None)
    }

    fn with(config: Config, roster: Roster, now: u64, no_status: Option<String>) -> World {
        let mut world = World {
            now,
            relay: Relay::new(config, roster.clone()),
            roster,
            timer: now,
            broker: Acceptor::new(Timing::default(), 5),
            broker_up: false,
            epoch: 0,
            unfinished: Vec::new(),
            credit: Credit::default(),
            assigned: 0,
            outcomes: Vec::new(),
            confirm: true,
            holding: BTreeMap::new(),
            holdings: 0,
            rest: pf_protocol::message::Rest::Unknown,
            returned: BTreeMap::new(),
            reports: Vec::new(),
            answers: Vec::new(),
            last_outcomes: 0,
            managers: BTreeMap::new(),
            pilots: BTreeMap::new(),
            next_conn: 10,
            conns: BTreeMap::new(),
            pilot_conns: BTreeMap::new(),
            blocks: BTreeMap::new(),
            submits: Vec::new(),
            submit_result: None,
            scarce: false,
            no_status,
            pilots_id: None,
            cancels: Vec::new(),
            restarts: BTreeMap::new(),
            deaf_cancels: 0,
            exit: None,
            refused: Vec::new(),
            spools: BTreeMap::new(),
            log_tail: String::new(),
            silent_broker: false,
            folders: BTreeSet::new(),
            wants: Vec::new(),
            pieces: Vec::new(),
            files: BTreeMap::new(),
            slow_files: false,
            unwritten: Vec::new(),
            reads: Vec::new(),
            file_effects: Vec::new(),
            version_max: VERSION_MAX,
            in_use: Vec::new(),
            inputs: VecDeque::new(),
            running: false,
        };
        world.input(Input::Start);
        world
    }

    pub fn connect_broker(&mut self) {
        self.input(Input::BrokerConnected { conn: BROKER });
    }

    /// The session with the broker breaks; it comes back at once.
    pub fn break_broker(&mut self) {
        self.broker = Acceptor::new(Timing::default(), 5 + self.now);
        self.broker_up = false;
        self.input(Input::ConnClosed { conn: BROKER });
        self.connect_broker();
    }

    /// Hands an input in, and everything that follows from it, in order.
    pub fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        if std::mem::replace(&mut self.running, true) {
            return;
        }
        while let Some(input) = self.inputs.pop_front() {
            let mut effects = Vec::new();
            self.relay.handle(self.now, input, &mut effects);
            self.relay.check();
            self.relay.handle(self.now, Input::TurnEnd, &mut effects);
            self.relay.check();
            effects.into_iter().for_each(|e| self.act(e));
        }
        self.running = false;
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Frame { conn: BROKER, bytes } => {
                let (mut events, mut out) = (Vec::new(), Vec::new());
                self.broker.on_frame(self.now, BROKER, &bytes, &mut events, &mut out);
                self.out_to_relay(out);
                events.into_iter().for_each(|e| self.broker_event(e));
            }
            Effect::Frame { conn, bytes } => {
                if let Some(handle) = self.conns.get(&conn).copied() {
                    self.tell_manager(handle, conn, &bytes);
                } else if let Some(block) = self.pilot_conns.get(&conn).copied() {
                    self.tell_pilot(block, conn, &bytes);
                }
            }
            Effect::CloseConn { conn } => {
                self.conns.remove(&conn);
            }
            Effect::SetTimer { at } => self.timer = at,
            Effect::SaveRoster { roster } => {
                let version = roster.version;
                self.roster = roster;
                self.input(Input::RosterSaved { version });
            }
            Effect::Submit { record } => {
                assert!(
                    self.roster.blocks.iter().any(|b| b.block == record.block),
                    "intent is on disk before submit"
                );
                self.submits.push(record.block);
                self.folders.insert(record.block);
                let refused = (self.scarce && !record.exclude.is_empty())
                    .then(|| SubmitResult::Refused("node configuration is not available".into()));
                let result = refused.or(self.submit_result.clone());
                let result = result.unwrap_or(SubmitResult::Accepted(format!("id{}", record.block)));
                if matches!(result, SubmitResult::Accepted(_)) {
                    self.blocks.insert(record.block, BlockState::Queued("Resources".into()));
                }
                self.input(Input::Submitted { block: record.block, result });
            }
            Effect::QueryBlocks { blocks } => {
                let seen = blocks.iter().filter_map(|b| {
                    let state = self.blocks.get(&b.block)?.clone();
                    Some(Seen {
                        scheduler_id: format!("id{}", b.block),
                        name: b.name.clone(),
                        state,
                        walltime_left_ms: None,
                        restarts: self.restarts.get(&b.block).copied(),
                    })
                });
                let seen = self.no_status.clone().map_or_else(|| Ok(seen.collect()), Err);
                self.input(Input::Blocks { seen });
            }
            Effect::CancelBlock { record, round } => {
                self.cancels.push(record.block);
                let before = self.cancels.iter().filter(|b| **b == record.block).count() - 1;
                assert_eq!(round as usize, before);
                if self.cancels.len() > self.deaf_cancels {
                    self.blocks.insert(record.block, BlockState::Ended(BlockEnd::Cancelled));
                }
                self.input(Input::BlockCancelled { block: record.block, result: Ok(()) });
            }
            Effect::ReadSpools { record } => {
                let found = self.spools.remove(&record.block).unwrap_or_default();
                let tail = self.log_tail.clone();
                self.input(Input::BlockLog { block: record.block, tail });
                self.input(Input::SpoolsRead { block: record.block, result: Ok(found) });
            }
            Effect::TidyBlocks { keep, live, upto } => {
                self.folders.retain(|b| *b > upto || keep.contains(b));
                self.in_use = live;
            }
            Effect::NotYet { .. } => {}
            Effect::PayloadWrite { job, hash, offset, bytes, .. } => {
                let file = self.files.entry((job, hash)).or_default();
                file.truncate(offset as usize);
                file.extend_from_slice(&bytes);
                if self.slow_files {
                    self.unwritten.push((hash, offset));
                } else {
                    self.input(Input::PayloadWritten { job, hash, offset, result: Ok(()) });
                }
            }
            Effect::PayloadRead { hash, offset, .. } => self.reads.push((hash, offset)),
            Effect::PayloadDrop { job, hash, value } => {
                if !value {
                    self.files.remove(&(job, hash));
                }
                self.file_effects.push(effect);
            }
            Effect::PayloadsDrop { .. } => self.file_effects.push(effect),
            Effect::Exit { reason, ok } => self.exit = Some((reason, ok)),
            _ => {}
        }
    }

    fn out_to_relay(&mut self, out: Vec<Out>) {
        for o in out {
            match o {
                Out::Frame { conn, bytes } => self.input(Input::Frame { conn, bytes }),
                Out::Close { conn } => self.input(Input::ConnClosed { conn }),
            }
        }
    }

    fn broker_event(&mut self, event: Event) {
        match event {
            Event::Hello { conn, .. } => {
                self.epoch += 1;
                self.broker_up = true;
                self.credit = Credit::default();
                self.assigned = 0;
                self.last_outcomes = 0;
                let welcome = Welcome {
                    session: 0,
                    version: 0,
                    epoch: Epoch(self.epoch),
                    endpoint: EndpointId(1),
                    heartbeat_ms: 1_000,
                    silent_ms: 10_000,
                    lease_ms: 60_000,
                    redial_ms_max: 2_000,
                };
                let mut out = Vec::new();
                self.broker.welcome(self.now, conn, welcome, &mut out);
                if !self.silent_broker {
                    let jobs = self.unfinished.clone();
                    self.broker.send(self.now, conn, Unfinished { jobs, last: true }.into(), &mut out);
                }
                self.out_to_relay(out);
            }
            Event::Message { message, .. } => self.broker_hears(message),
            Event::Down { done: true, .. } => self.broker_up = false,
            other => panic!("the broker did not expect {other:?}"),
        }
    }

    fn broker_hears(&mut self, message: Message) {
        match message {
            Message::Credit(credit) => {
                assert!(credit.tasks_upto >= self.credit.tasks_upto, "credit is never taken back");
                self.credit = credit;
            }
            Message::Outcomes(outcomes) => {
                assert_eq!(outcomes.number, self.last_outcomes + 1);
                self.last_outcomes = outcomes.number;
                self.outcomes.extend(outcomes.batches);
                if self.confirm {
                    self.say(Confirm { upto: outcomes.number });
                }
            }
            Message::Holding(page) => {
                for (job, tasks) in page.jobs {
                    self.holding.entry(job).or_default().union_with(&tasks);
                }
                self.holdings += u32::from(page.last);
                self.rest = page.rest;
            }
            Message::Return(back) => {
                for (job, tasks) in back.jobs {
                    self.returned.entry(job).or_default().union_with(&tasks);
                }
            }
            Message::Report(report) => self.reports.push(report.report),
            Message::Answer(answer) => self.answers.push(answer),
            Message::Started(_) => {}
            Message::Want(want) => self.wants.push(want),
            Message::Piece(piece) => self.pieces.push(piece),
            other => panic!("the broker did not expect {}", other.name()),
        }
    }

    /// The broker says something.
    pub fn say(&mut self, message: impl Into<Message>) {
        let mut out = Vec::new();
        self.broker.send(self.now, BROKER, message.into(), &mut out);
        self.out_to_relay(out);
    }

    pub fn define(&mut self, job: u64, spec: JobSpec) {
        let def = JobDef { job: JobId(job), key: JobKey::default(), owner: OwnerId(1), spec, function: None };
        self.say(Define { jobs: vec![def] });
    }

    pub fn assign(&mut self, job: u64, first: u32, count: u32) {
        self.assign_lost(job, first, count, 0);
    }

    pub fn assign_lost(&mut self, job: u64, first: u32, count: u32, lost: u32) {
        let tasks = Ranges::from_range(first, count);
        let lens = vec![2; count as usize];
        let blob: Vec<u8> = tasks.iter().flat_map(|i| [i as u8, (i >> 8) as u8]).collect();
        let batch = TaskBatch { job: JobId(job), tasks, lost, lens, blob: blob.into() };
        self.assigned += u64::from(count);
        self.say(Assign { batches: vec![batch] });
    }

    /// The scheduler starts a block; a pilot and one manager a node connect.
    pub fn start_block(&mut self, block: u64, nodes: u16, cores: u32) {
        self.blocks.insert(BlockId(block), BlockState::Running);
        self.connect_pilot(block, 1);
        for node in 0..nodes {
            self.add_manager(block, node, cores);
        }
    }

    pub fn connect_pilot(&mut self, block: u64, incarnation: u64) -> u64 {
        self.connect_pilot_again(block, incarnation, 0)
    }

    /// A pilot in the run of the block's job after so many restarts.
    pub fn connect_pilot_again(&mut self, block: u64, incarnation: u64, restarts: u32) -> u64 {
        let nodes = self.roster.blocks.iter().find(|b| b.block.0 == block).map_or(1, |b| b.nodes);
        let who = Who::Pilot {
            block: BlockId(block),
            incarnation,
            scheduler_id: self.pilots_id.clone(),
            restarts,
            nodes: (0..nodes).map(|n| format!("n{n}")).collect(),
            walltime_left_ms: 3_600_000,
        };
        let conn = self.conn();
        self.pilot_conns.insert(conn, BlockId(block));
        let dialer = Dialer::new(hello(who, incarnation), Timing::default());
        self.pilots.insert(BlockId(block), (dialer, conn));
        self.input(Input::Accepted { conn, block: BlockId(block) });
        let mut out = Vec::new();
        let Some((dialer, _)) = self.pilots.get_mut(&BlockId(block)) else { panic!("no pilot") };
        dialer.on_connected(self.now, conn, &mut out);
        self.out_to_relay(out);
        conn
    }

    fn conn(&mut self) -> u64 {
        self.next_conn += 1;
        self.next_conn
    }

    pub fn add_manager(&mut self, block: u64, node: u16, cores: u32) -> u32 {
        let handle = self.managers.keys().max().copied().unwrap_or(0) + 1;
        let incarnation = u64::from(handle) * 1_000 + block;
        let id = ManagerId { block: BlockId(block), node, incarnation };
        let manager = FakeManager {
            id,
            cores,
            dialer: Dialer::new(manager_hello(id, cores, self.version_max), Timing::default()),
            conn: 0,
            held: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            unconfirmed: BTreeMap::new(),
            defined: BTreeSet::new(),
            recalls: Vec::new(),
            drained: false,
            seq: 0,
            number: 0,
            most_held: 0,
        };
        self.managers.insert(handle, manager);
        self.connect_manager(handle);
        handle
    }

    pub fn connect_manager(&mut self, handle: u32) {
        let conn = self.conn();
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        manager.conn = conn;
        let hello = manager_hello(manager.id, manager.cores, self.version_max);
        manager.dialer = Dialer::new(hello, Timing::default());
        let block = manager.id.block;
        self.conns.insert(conn, handle);
        self.input(Input::Accepted { conn, block });
        let mut out = Vec::new();
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        manager.dialer.on_connected(self.now, conn, &mut out);
        self.out_to_relay(out);
    }

    /// The connection of a manager breaks; it keeps what it has.
    pub fn cut_manager(&mut self, handle: u32) {
        let conn = self.managers[&handle].conn;
        self.conns.remove(&conn);
        self.input(Input::ConnClosed { conn });
    }

    fn tell_pilot(&mut self, block: BlockId, conn: u64, bytes: &Bytes) {
        let (mut events, mut out) = (Vec::new(), Vec::new());
        if let Some((dialer, now)) = self.pilots.get_mut(&block).filter(|p| p.1 == conn) {
            let _ = now;
            dialer.on_frame(self.now, conn, bytes, &mut events, &mut out);
        }
        for event in events {
            match event {
                Event::Refused { refuse, .. } => self.refused.push(refuse),
                Event::Message { message: Message::Drain(_), .. } => {
                    self.blocks.insert(block, BlockState::Ended(BlockEnd::Completed));
                    if let Some((dialer, _)) = self.pilots.get_mut(&block) {
                        dialer.bye(self.now, "drained", true, &mut out);
                    }
                }
                _ => {}
            }
        }
        self.out_to_relay(out);
    }

    fn tell_manager(&mut self, handle: u32, conn: u64, bytes: &Bytes) {
        let (mut events, mut out) = (Vec::new(), Vec::new());
        let Some(manager) = self.managers.get_mut(&handle).filter(|m| m.conn == conn) else { return };
        manager.dialer.on_frame(self.now, conn, bytes, &mut events, &mut out);
        for event in events {
            let mut reply: Vec<Message> = Vec::new();
            match event {
                Event::Up { .. } => {
                    manager.defined.clear();
                    manager.number = 0;
                    let ended = manager.unconfirmed.values().flat_map(|b| &b.outcomes);
                    reply.push(
                        Inventory {
                            held: manager.held.iter().map(|(a, t)| (*t, *a)).collect(),
                            running: Vec::new(),
                            ended: ended.map(|o| (o.task(), o.attempt)).collect(),
                            last: true,
                        }
                        .into(),
                    );
                    for batch in manager.unconfirmed.values() {
                        manager.number += 1;
                        reply.push(Outcomes { number: manager.number, batches: vec![batch.clone()] }.into());
                    }
                }
                Event::Message { message, .. } => manager.hears(message, &mut reply),
                Event::Refused { refuse, .. } => self.refused.push(refuse),
                _ => {}
            }
            for message in reply {
                manager.dialer.send(self.now, message, &mut out);
            }
        }
        self.out_to_relay(out);
    }

    /// Ends up to `count` held tasks of a manager with success.
    pub fn end_tasks(&mut self, handle: u32, count: usize, ran_us: u64) -> usize {
        self.end_tasks_as(handle, count, ran_us, OutcomeKind::Value)
    }

    pub fn end_tasks_as(&mut self, handle: u32, count: usize, ran_us: u64, how: OutcomeKind) -> usize {
        self.end_tasks_with(handle, count, ran_us, how, &[])
    }

    /// Ends all tasks that managers hold.
    pub fn finish_all(&mut self) {
        let handles: Vec<u32> = self.managers.keys().copied().collect();
        for handle in handles {
            self.end_tasks(handle, usize::MAX, 1_000);
        }
    }

    /// Ends one task of some manager with a value that it only names.
    pub fn finish_named(&mut self, value: &[u8]) {
        let name = PayloadRef { hash: content_hash(value), len: value.len() as u64 }.to_bytes();
        let busy = self.managers.iter().find(|(_, m)| !m.held.is_empty()).map(|(handle, _)| *handle);
        let handle = busy.expect("a manager holds a task");
        self.end_tasks_with(handle, 1, 1_000, OutcomeKind::Value, &name);
    }

    /// Ends tasks; the value of each is `named`, which names it, or empty.
    fn end_tasks_with(
        &mut self,
        handle: u32,
        count: usize,
        ran_us: u64,
        how: OutcomeKind,
        named: &[u8],
    ) -> usize {
        let Some(manager) = self.managers.get_mut(&handle) else { return 0 };
        let mut outcomes = Vec::new();
        for _ in 0..count {
            let Some((attempt, task)) = manager.held.pop_first() else { break };
            let kind = if manager.cancelled.remove(&attempt) { OutcomeKind::Cancelled } else { how };
            outcomes.push(Outcome {
                job: task.job,
                index: task.index,
                attempt,
                kind,
                ran_us,
                value_len: if named.is_empty() { 0 } else { LARGE | named.len() as u32 },
                ..Outcome::default()
            });
        }
        let ended = outcomes.len();
        if ended == 0 {
            return 0;
        }
        manager.seq += 1;
        let batch = OutcomeBatch {
            manager: manager.id,
            node: format!("n{}", manager.id.node),
            seq: manager.seq,
            outcomes,
            blob: named.repeat(ended).into(),
        };
        manager.unconfirmed.insert(manager.seq, batch.clone());
        manager.number += 1;
        let number = manager.number;
        self.manager_says(handle, Outcomes { number, batches: vec![batch] });
        ended
    }

    pub fn manager_says(&mut self, handle: u32, message: impl Into<Message>) {
        let mut out = Vec::new();
        if let Some(manager) = self.managers.get_mut(&handle) {
            manager.dialer.send(self.now, message.into(), &mut out);
        }
        self.out_to_relay(out);
    }

    pub fn pilot_says(&mut self, block: u64, message: impl Into<Message>) {
        let mut out = Vec::new();
        if let Some((dialer, _)) = self.pilots.get_mut(&BlockId(block)) {
            dialer.send(self.now, message.into(), &mut out);
        }
        self.out_to_relay(out);
    }

    /// Time goes by, with every timer of the relay, and heartbeats of all that are connected.
    pub fn pass(&mut self, us: u64) {
        let end = self.now + us;
        // A relay that has left sets no timer any more.
        while self.now < end && self.exit.is_none() {
            self.now = self.timer.clamp(self.now + 1, end).min(self.now + 500_000);
            let (mut events, mut out) = (Vec::new(), Vec::new());
            self.broker.on_timer(self.now, &mut events, &mut out);
            let live: Vec<u64> = self.conns.keys().copied().collect();
            for conn in live {
                let Some(manager) = self.conns.get(&conn).and_then(|h| self.managers.get_mut(h)) else {
                    continue;
                };
                manager.dialer.on_timer(self.now, &mut events, &mut out);
            }
            for (dialer, _) in self.pilots.values_mut() {
                dialer.on_timer(self.now, &mut events, &mut out);
            }
            self.out_to_relay(out);
            self.input(Input::Timer);
        }
    }

    pub fn held(&self) -> usize {
        self.managers.values().map(|m| m.held.len()).sum()
    }

    /// How often each task ended, by kind.
    pub fn ends(&self) -> BTreeMap<(TaskId, OutcomeKind), u32> {
        let mut ends = BTreeMap::new();
        for outcome in self.outcomes.iter().flat_map(|b| &b.outcomes) {
            *ends.entry((outcome.task(), outcome.kind)).or_insert(0) += 1;
        }
        ends
    }

    pub fn count(&self, kind: OutcomeKind) -> usize {
        self.outcomes.iter().flat_map(|b| &b.outcomes).filter(|o| o.kind == kind).count()
    }
}

impl FakeManager {
    fn hears(&mut self, message: Message, reply: &mut Vec<Message>) {
        match message {
            Message::Define(define) => self.defined.extend(define.jobs.iter().map(|d| d.job)),
            Message::Dispatch(dispatch) => {
                for batch in dispatch.batches {
                    assert!(self.defined.contains(&batch.job), "a job is defined before its first task");
                    let mut at = 0;
                    for (i, index) in batch.tasks.iter().enumerate() {
                        let n = batch.first.n + i as u32;
                        let item = &batch.blob[at..at + held(batch.lens[i])];
                        at += held(batch.lens[i]);
                        if is_large(batch.lens[i]) {
                            assert!(PayloadRef::read(item).is_some(), "what is marked names a payload");
                        } else {
                            assert_eq!(
                                item,
                                [index as u8, (index >> 8) as u8],
                                "items stay with their tasks"
                            );
                        }
                        let task = TaskId { job: batch.job, index };
                        let old = self.held.insert(AttemptId { n, ..batch.first }, task);
                        assert!(old.is_none(), "an attempt is dispatched once");
                    }
                }
                self.most_held = self.most_held.max(self.held.len());
            }
            Message::Recall(recall) => {
                let wanted = recall.attempts.clone();
                // The first `cores` run.
                let held: Vec<AttemptId> = self.held.keys().skip(self.cores as usize).copied().collect();
                let back: Vec<AttemptId> =
                    held.into_iter().filter(|a| wanted.as_ref().is_none_or(|w| w.contains(a))).collect();
                for attempt in &back {
                    self.held.remove(attempt);
                }
                reply.push(Recalled { id: recall.id, attempts: back }.into());
                self.recalls.push(recall);
            }
            Message::CancelAttempts(cancel) => self.cancelled.extend(cancel.attempts),
            Message::Verdict(verdict) => {
                for attempt in verdict.drop {
                    self.held.remove(&attempt);
                }
            }
            Message::Confirm(confirm) => self.unconfirmed.retain(|seq, _| *seq > confirm.upto),
            Message::Drain(_) => self.drained = true,
            Message::Release(_) => {}
            other => panic!("a manager did not expect {}", other.name()),
        }
    }
}

fn hello(who: Who, incarnation: u64) -> Hello {
    Hello {
        who,
        incarnation,
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        epoch_seen: Epoch(0),
        host: "n".into(),
        pid: 1,
        clock_ms: 0,
    }
}

fn manager_hello(id: ManagerId, cores: u32, version_max: u16) -> Hello {
    let capacity = NodeCapacity { cores, ..NodeCapacity::default() };
    let who =
        Who::Manager { manager: id, node: format!("n{}", id.node), capacity, walltime_left_ms: 3_600_000 };
    Hello { version_max, ..hello(who, id.incarnation) }
}
