//! Plays the manager's relay, processes and workers.

use crate::manager::{ManagerConfig, ManagerCore};
use crate::shape::NodeShape;
use crate::{Effect, Input, ProcessEnd, ProcessStatus, WorkerAnswer, WorkerEnd, WorkerTask};
use bytes::Bytes;
use pf_link::{Acceptor, Event, Out, Timing};
use pf_protocol::job::{Body, Command, Function, FunctionKind, JobDef, JobSpec, Python};
use pf_protocol::message::{AttemptBatch, Confirm, Define, Dispatch, Inventory, Message, Welcome};
use pf_protocol::outcome::{Outcome, OutcomeKind, Usage};
use pf_protocol::{AttemptId, EndpointId, Epoch, JobId, JobKey, ManagerId, Micros, OwnerId, Ranges};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(super) const SECOND: Micros = 1_000_000;

pub(super) struct Rig {
    pub(super) core: ManagerCore,
    pub(super) relay: Acceptor,
    pub(super) now: Micros,
    pub(super) conn: u64,
    pub(super) reachable: bool,
    pub(super) timer: Option<Micros>,
    pub(super) messages: Vec<Message>,
    /// Commands in each lane, first the one that runs or starts.
    pub(super) lanes: BTreeMap<u32, VecDeque<AttemptId>>,
    /// Those that were asked for and have not started.
    pub(super) starting: BTreeSet<AttemptId>,
    pub(super) running: BTreeSet<AttemptId>,
    pub(super) signals: Vec<(AttemptId, i32)>,
    pub(super) workers: BTreeMap<u32, VecDeque<WorkerTask>>,
    pub(super) worker_signals: Vec<(u32, i32)>,
    pub(super) spooled: usize,
    pub(super) exit: Option<String>,
    pub(super) next_attempt: u32,
    pub(super) lowest_epoch: u32,
}

pub(super) fn exit(code: i32) -> ProcessEnd {
    let status = ProcessStatus::Exit(code);
    ProcessEnd {
        status,
        ran_us: 1_000,
        usage: Usage::default(),
        out_of_memory: None,
        stderr_tail: String::new(),
    }
}

pub(super) fn killed(signal: i32) -> ProcessEnd {
    ProcessEnd { status: ProcessStatus::Signal(signal), ..exit(0) }
}

pub(super) fn command() -> JobSpec {
    JobSpec {
        body: Body::Command(Command { argv: vec!["true".into()], ..Command::default() }),
        ..JobSpec::default()
    }
}

pub(super) fn python() -> JobSpec {
    JobSpec { body: Body::Python(Python::default()), ..JobSpec::default() }
}

impl Rig {
    pub(super) fn new(cores: usize) -> Rig {
        Rig::with_walltime(cores, 3_600 * SECOND)
    }

    pub(super) fn with_walltime(cores: usize, walltime: Micros) -> Rig {
        let config = ManagerConfig {
            manager: ManagerId { incarnation: 77, ..ManagerId::default() },
            node: "n0".into(),
            pid: 1,
            clock_ms: 0,
            shape: NodeShape::unpinned(cores),
            walltime_end: walltime,
            epoch_seen: Epoch(1),
            timing: Timing::default(),
        };
        let mut rig = Rig {
            core: ManagerCore::new(config, 0),
            relay: Acceptor::new(Timing::default(), 1_000),
            now: 0,
            conn: 0,
            reachable: true,
            timer: None,
            messages: Vec::new(),
            lanes: BTreeMap::new(),
            starting: BTreeSet::new(),
            running: BTreeSet::new(),
            signals: Vec::new(),
            workers: BTreeMap::new(),
            worker_signals: Vec::new(),
            spooled: 0,
            exit: None,
            next_attempt: 1,
            lowest_epoch: 1,
        };
        rig.give(Input::Start);
        rig
    }

    pub(super) fn give(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.core.handle(self.now, input, &mut effects);
            self.core.check();
            for effect in effects {
                self.carry_out(effect, &mut inputs);
            }
        }
    }

    pub(super) fn carry_out(&mut self, effect: Effect, inputs: &mut VecDeque<Input>) {
        match effect {
            Effect::Dial => {
                self.conn += 1;
                let conns = if self.reachable { vec![self.conn] } else { Vec::new() };
                inputs.push_back(Input::Dialled { conns });
                if self.reachable {
                    inputs.push_back(Input::Connected { conn: self.conn });
                }
            }
            Effect::Frame { conn, bytes } => {
                let (mut events, mut outs) = (Vec::new(), Vec::new());
                if self.reachable {
                    self.relay.on_frame(self.now, conn, &bytes, &mut events, &mut outs);
                }
                for event in events {
                    match event {
                        Event::Hello { conn, .. } => {
                            let welcome = Welcome {
                                session: 0,
                                version: 0,
                                epoch: Epoch(self.lowest_epoch),
                                endpoint: EndpointId(1),
                                heartbeat_ms: 1_000,
                                silent_ms: 10_000,
                                lease_ms: 60_000,
                                redial_ms_max: 2_000,
                            };
                            self.relay.welcome(self.now, conn, welcome, &mut outs);
                        }
                        Event::Message { message, .. } => self.messages.push(message),
                        _ => {}
                    }
                }
                self.deliver(outs, inputs);
            }
            Effect::SetTimer { at } => self.timer = at,
            Effect::StartCommand(start) => {
                assert!(self.starting.insert(start.attempt));
                self.lanes.entry(start.lane).or_default().push_back(start.attempt);
            }
            Effect::SignalCommand { attempt, signal } => self.signals.push((attempt, signal)),
            Effect::StartWorker(start) => drop(self.workers.insert(start.worker, VecDeque::new())),
            Effect::WorkerTasks { worker, tasks } => self.workers.get_mut(&worker).unwrap().extend(tasks),
            Effect::TakeBack { worker } => {
                let attempts = self.take_back(worker);
                inputs.push_front(Input::TakenBack { worker, attempts });
            }
            Effect::SignalWorker { worker, signal } => self.worker_signals.push((worker, signal)),
            Effect::EndWorker { worker } => {
                self.workers.remove(&worker);
                inputs.push_back(Input::WorkerGone {
                    worker,
                    end: WorkerEnd::Ended { end: exit(0), marked: 0 },
                });
            }
            Effect::Spool { upto, batches } => {
                self.spooled += batches.iter().map(|b| b.outcomes.len()).sum::<usize>();
                inputs.push_back(Input::Spooled { upto, ok: true });
            }
            Effect::Exit { reason } => self.exit = Some(reason),
            Effect::CloseConn { .. } | Effect::WorkerJob { .. } => {}
        }
    }

    /// All but the first, which runs, or is starting.
    fn take_back(&mut self, worker: u32) -> Vec<AttemptId> {
        if let Some(lane) = self.lanes.get_mut(&worker) {
            let taken: Vec<AttemptId> = lane.drain(1..).collect();
            self.starting.retain(|id| !taken.contains(id));
            return taken;
        }
        let pipe = self.workers.get_mut(&worker);
        pipe.map_or_else(Vec::new, |pipe| pipe.drain(1.min(pipe.len())..).map(|t| t.attempt).collect())
    }

    pub(super) fn deliver(&mut self, outs: Vec<Out>, inputs: &mut VecDeque<Input>) {
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                inputs.push_back(Input::Frame { conn, bytes });
            }
        }
    }

    pub(super) fn say(&mut self, message: impl Into<Message>) {
        let mut outs = Vec::new();
        self.relay.send(self.now, self.conn, message.into(), &mut outs);
        let mut inputs = VecDeque::new();
        self.deliver(outs, &mut inputs);
        inputs.into_iter().for_each(|input| self.give(input));
    }

    pub(super) fn define(&mut self, job: u64, spec: JobSpec) {
        let function =
            Some(Function { kind: FunctionKind::Reference, bytes: b"m:f".to_vec(), name: "f".into() });
        let def = JobDef { job: JobId(job), key: JobKey::default(), owner: OwnerId(1), spec, function };
        self.say(Define { jobs: vec![def] });
    }

    pub(super) fn dispatch(&mut self, job: u64, count: u32) -> Vec<AttemptId> {
        let first = AttemptId { epoch: Epoch(self.lowest_epoch), n: self.next_attempt };
        self.next_attempt += count;
        let tasks = Ranges::from_range(first.n, count);
        let batch = AttemptBatch { job: JobId(job), first, tasks, lens: Vec::new(), blob: Bytes::new() };
        self.say(Dispatch { epoch: first.epoch, batches: vec![batch] });
        (0..count).map(|n| AttemptId { n: first.n + n, ..first }).collect()
    }

    pub(super) fn start_all(&mut self) {
        for attempt in self.lanes.values().filter_map(VecDeque::front).copied().collect::<Vec<_>>() {
            if self.starting.remove(&attempt) {
                self.running.insert(attempt);
                self.give(Input::CommandStarted { attempt });
            }
        }
    }

    pub(super) fn end(&mut self, attempt: AttemptId, end: ProcessEnd) {
        assert!(self.running.remove(&attempt));
        self.lanes.values_mut().for_each(|lane| lane.retain(|id| *id != attempt));
        self.lanes.retain(|_, lane| !lane.is_empty());
        self.give(Input::CommandEnded { attempt, end });
    }

    /// Time goes on, with every timer on its way.
    pub(super) fn wait_until(&mut self, at: Micros) {
        let mut rounds = 0;
        while let Some(timer) = self.timer.filter(|timer| *timer <= at) {
            rounds += 1;
            assert!(rounds < 100_000, "the timer spins at {timer}");
            self.now = self.now.max(timer);
            self.timer = None;
            self.give(Input::Timer);
            let (mut events, mut outs) = (Vec::new(), Vec::new());
            if self.reachable {
                self.relay.on_timer(self.now, &mut events, &mut outs);
            }
            let mut inputs = VecDeque::new();
            self.deliver(outs, &mut inputs);
            inputs.into_iter().for_each(|input| self.give(input));
        }
        self.now = self.now.max(at);
    }

    pub(super) fn turn_end(&mut self) {
        self.give(Input::TurnEnd);
    }

    pub(super) fn cut(&mut self) {
        self.reachable = false;
        self.give(Input::ConnClosed { conn: self.conn });
    }

    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        let batches = self.messages.iter().filter_map(|m| match m {
            Message::Outcomes(o) => Some(o),
            _ => None,
        });
        batches.flat_map(|o| &o.batches).flat_map(|b| b.outcomes.clone()).collect()
    }

    pub(super) fn confirm_all(&mut self) {
        let last = self.messages.iter().filter_map(|m| match m {
            Message::Outcomes(o) => Some(o.number),
            _ => None,
        });
        let upto = last.max().unwrap_or(0);
        self.say(Confirm { upto });
    }

    pub(super) fn answer(&mut self, worker: u32, count: usize, ran_us: u32) {
        let tasks: Vec<WorkerTask> = self.workers.get_mut(&worker).unwrap().drain(..count).collect();
        let one = |t: WorkerTask| WorkerAnswer {
            seq: t.seq,
            kind: OutcomeKind::Value,
            ran_us,
            value: Bytes::from_static(b"v"),
            is_large: false,
            error: None,
        };
        self.give(Input::WorkerAnswers { worker, answers: tasks.into_iter().map(one).collect() });
    }

    pub(super) fn last_inventory(&self) -> &Inventory {
        let found = self.messages.iter().rev().find_map(|m| match m {
            Message::Inventory(inventory) => Some(inventory),
            _ => None,
        });
        found.unwrap()
    }
}
