//! The manager against a relay, processes and workers that are played here.

use super::{ManagerConfig, ManagerCore};
use crate::shape::NodeShape;
use crate::{Effect, Input, ProcessEnd, ProcessStatus, WorkerAnswer, WorkerEnd, WorkerTask};
use bytes::Bytes;
use pf_link::{Acceptor, Event, Out, Timing};
use pf_protocol::job::{Body, Command, Function, FunctionKind, JobDef, JobSpec, Python};
use pf_protocol::message::{
    AttemptBatch, CancelAttempts, Confirm, Define, Dispatch, Drain, Inventory, Message, Recall, Verdict,
    Welcome,
};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeKind, Ran, Usage};
use pf_protocol::resources::Resources;
use pf_protocol::{AttemptId, EndpointId, Epoch, JobId, JobKey, ManagerId, Micros, OwnerId, Ranges};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const SECOND: Micros = 1_000_000;

struct Rig {
    core: ManagerCore,
    relay: Acceptor,
    now: Micros,
    conn: u64,
    reachable: bool,
    timer: Option<Micros>,
    messages: Vec<Message>,
    starting: BTreeSet<AttemptId>,
    running: BTreeSet<AttemptId>,
    signals: Vec<(AttemptId, i32)>,
    workers: BTreeMap<u32, VecDeque<WorkerTask>>,
    worker_signals: Vec<(u32, i32)>,
    skips: Vec<u64>,
    spooled: usize,
    exit: Option<String>,
    next_attempt: u32,
    lowest_epoch: u32,
}

fn exit(code: i32) -> ProcessEnd {
    let status = ProcessStatus::Exit(code);
    ProcessEnd { status, usage: Usage::default(), out_of_memory: false, stderr_tail: String::new() }
}

fn killed(signal: i32) -> ProcessEnd {
    ProcessEnd { status: ProcessStatus::Signal(signal), ..exit(0) }
}

fn command() -> JobSpec {
    JobSpec {
        body: Body::Command(Command { argv: vec!["true".into()], ..Command::default() }),
        ..JobSpec::default()
    }
}

fn python() -> JobSpec {
    JobSpec { body: Body::Python(Python::default()), ..JobSpec::default() }
}

impl Rig {
    fn new(cores: usize) -> Rig {
        Rig::with_walltime(cores, 3_600 * SECOND)
    }

    fn with_walltime(cores: usize, walltime: Micros) -> Rig {
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
            starting: BTreeSet::new(),
            running: BTreeSet::new(),
            signals: Vec::new(),
            workers: BTreeMap::new(),
            worker_signals: Vec::new(),
            skips: Vec::new(),
            spooled: 0,
            exit: None,
            next_attempt: 1,
            lowest_epoch: 1,
        };
        rig.give(Input::Start);
        rig
    }

    fn give(&mut self, input: Input) {
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

    fn carry_out(&mut self, effect: Effect, inputs: &mut VecDeque<Input>) {
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
            Effect::StartCommand(start) => assert!(self.starting.insert(start.attempt)),
            Effect::SignalCommand { attempt, signal } => self.signals.push((attempt, signal)),
            Effect::StartWorker(start) => drop(self.workers.insert(start.worker, VecDeque::new())),
            Effect::WorkerTasks { worker, tasks } => self.workers.get_mut(&worker).unwrap().extend(tasks),
            Effect::WorkerSkip { seqs, .. } => self.skips.extend(seqs),
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

    fn deliver(&mut self, outs: Vec<Out>, inputs: &mut VecDeque<Input>) {
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                inputs.push_back(Input::Frame { conn, bytes });
            }
        }
    }

    fn say(&mut self, message: impl Into<Message>) {
        let mut outs = Vec::new();
        self.relay.send(self.now, self.conn, message.into(), &mut outs);
        let mut inputs = VecDeque::new();
        self.deliver(outs, &mut inputs);
        inputs.into_iter().for_each(|input| self.give(input));
    }

    fn define(&mut self, job: u64, spec: JobSpec) {
        let function =
            Some(Function { kind: FunctionKind::Reference, bytes: b"m:f".to_vec(), name: "f".into() });
        let def = JobDef { job: JobId(job), key: JobKey::default(), owner: OwnerId(1), spec, function };
        self.say(Define { jobs: vec![def] });
    }

    fn dispatch(&mut self, job: u64, count: u32) -> Vec<AttemptId> {
        let first = AttemptId { epoch: Epoch(self.lowest_epoch), n: self.next_attempt };
        self.next_attempt += count;
        let tasks = Ranges::from_range(first.n, count);
        let batch = AttemptBatch { job: JobId(job), first, tasks, lens: Vec::new(), blob: Bytes::new() };
        self.say(Dispatch { epoch: first.epoch, batches: vec![batch] });
        (0..count).map(|n| AttemptId { n: first.n + n, ..first }).collect()
    }

    fn start_all(&mut self) {
        for attempt in std::mem::take(&mut self.starting) {
            self.running.insert(attempt);
            self.give(Input::CommandStarted { attempt });
        }
    }

    fn end(&mut self, attempt: AttemptId, end: ProcessEnd) {
        assert!(self.running.remove(&attempt));
        self.give(Input::CommandEnded { attempt, end });
    }

    /// Time goes on, with every timer on its way.
    fn wait_until(&mut self, at: Micros) {
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

    fn turn_end(&mut self) {
        self.give(Input::TurnEnd);
    }

    fn cut(&mut self) {
        self.reachable = false;
        self.give(Input::ConnClosed { conn: self.conn });
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let batches = self.messages.iter().filter_map(|m| match m {
            Message::Outcomes(o) => Some(o),
            _ => None,
        });
        batches.flat_map(|o| &o.batches).flat_map(|b| b.outcomes.clone()).collect()
    }

    fn confirm_all(&mut self) {
        let last = self.messages.iter().filter_map(|m| match m {
            Message::Outcomes(o) => Some(o.number),
            _ => None,
        });
        let upto = last.max().unwrap_or(0);
        self.say(Confirm { upto });
    }

    fn answer(&mut self, worker: u32, count: usize, ran_us: u32) {
        let tasks: Vec<WorkerTask> = self.workers.get_mut(&worker).unwrap().drain(..count).collect();
        let one = |t: WorkerTask| WorkerAnswer {
            seq: t.seq,
            kind: OutcomeKind::Value,
            ran_us,
            value: Bytes::from_static(b"v"),
            error: None,
        };
        self.give(Input::WorkerAnswers { worker, answers: tasks.into_iter().map(one).collect() });
    }

    fn last_inventory(&self) -> &Inventory {
        let found = self.messages.iter().rev().find_map(|m| match m {
            Message::Inventory(inventory) => Some(inventory),
            _ => None,
        });
        found.unwrap()
    }
}

#[test]
fn commands_fill_the_cores_and_their_outcomes_wait_for_confirmation() {
    let mut rig = Rig::new(2);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    assert_eq!(rig.starting.len(), 2);
    rig.start_all();
    rig.end(ids[0], exit(0));
    assert_eq!(rig.starting.len(), 1, "the third starts at once");
    rig.start_all();
    rig.end(ids[1], exit(3));
    rig.end(ids[2], killed(11));
    assert!(rig.outcomes().is_empty());
    rig.turn_end();
    let kinds: Vec<OutcomeKind> = rig.outcomes().iter().map(|o| o.kind).collect();
    assert_eq!(kinds, [OutcomeKind::Value, OutcomeKind::Exit, OutcomeKind::Signal]);
    assert_eq!(rig.outcomes()[1].error.as_ref().unwrap().message, "exit code 3");
    assert!(!rig.core.all_confirmed());
    rig.confirm_all();
    assert!(rig.core.all_confirmed());
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let mut rig = Rig::new(2);
    rig.define(1, JobSpec { resources: Resources { cores: 3, ..Resources::default() }, ..command() });
    rig.dispatch(1, 2);
    rig.dispatch(9, 1);
    let refused: Vec<String> = rig
        .messages
        .iter()
        .filter_map(|m| match m {
            Message::Refused(r) => Some(r.reason.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(refused, ["it asks for 3 cores, the node has 2", "j9 was not defined"]);
}

#[test]
fn recall_gives_back_only_what_has_not_started() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    rig.say(Recall { id: 5, epoch: Epoch(1), attempts: None });
    let Some(Message::Recalled(recalled)) = rig.messages.last() else { panic!("no answer") };
    assert_eq!((recalled.id, &recalled.attempts[..]), (5, &ids[1..]));
    assert_eq!(rig.core.counts(), (0, 1));
}

#[test]
fn a_time_limit_warns_then_ends_then_kills() {
    let mut rig = Rig::new(1);
    rig.define(1, JobSpec { time_limit_ms: Some(30_000), warn_signal: Some(10), ..command() });
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    let begin = rig.now;
    rig.wait_until(begin + 19 * SECOND);
    assert!(rig.signals.is_empty());
    rig.wait_until(begin + 29 * SECOND);
    assert_eq!(rig.signals, [(id, 10)]);
    rig.wait_until(begin + 31 * SECOND);
    assert_eq!(rig.signals[1..], [(id, 15)]);
    rig.wait_until(begin + 36 * SECOND);
    assert_eq!(rig.signals[2..], [(id, 9)]);
    rig.end(id, killed(9));
    rig.turn_end();
    let outcome = &rig.outcomes()[0];
    assert_eq!(outcome.kind, OutcomeKind::TimeLimit);
    assert_eq!(outcome.error.as_ref().unwrap().message, "killed at its time limit of 30 s");
}

#[test]
fn long_tasks_are_reported_as_started_short_ones_are_not() {
    let mut rig = Rig::new(2);
    rig.define(1, command());
    let ids = rig.dispatch(1, 2);
    rig.start_all();
    rig.wait_until(rig.now + 20_000);
    rig.end(ids[0], exit(0));
    rig.wait_until(rig.now + 100_000);
    let started: Vec<AttemptId> = rig
        .messages
        .iter()
        .filter_map(|m| match m {
            Message::Started(s) => Some(s.tasks.iter().map(|t| t.attempt)),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(started, [ids[1]]);
}

#[test]
fn cancel_ends_held_ones_at_once_and_running_ones_only_with_kill() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 2);
    rig.start_all();
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: ids.clone(), kill: false });
    rig.turn_end();
    assert_eq!((rig.outcomes()[0].kind, rig.outcomes()[0].ran), (OutcomeKind::Cancelled, Ran::No));
    assert!(rig.signals.is_empty());
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: ids.clone(), kill: true });
    assert_eq!(rig.signals, [(ids[0], 15)]);
    rig.end(ids[0], killed(15));
    rig.turn_end();
    assert_eq!((rig.outcomes()[1].kind, rig.outcomes()[1].ran), (OutcomeKind::Cancelled, Ran::Yes));
}

#[test]
fn a_cancel_that_comes_before_the_process_is_there_still_kills_it() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: vec![id], kill: true });
    assert!(rig.signals.is_empty());
    rig.start_all();
    assert_eq!(rig.signals, [(id, 15)]);
}

#[test]
fn a_break_sends_inventory_and_unconfirmed_outcomes_again() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    rig.start_all();
    rig.end(ids[0], exit(0));
    rig.turn_end();
    rig.start_all();
    rig.cut();
    rig.reachable = true;
    rig.lowest_epoch = 2;
    rig.wait_until(rig.now + 30 * SECOND);
    let inventory = rig.last_inventory();
    assert_eq!(inventory.ended.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(inventory.running.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[1]]);
    assert_eq!(inventory.held.iter().map(|e| e.1).collect::<Vec<_>>(), [ids[2]]);
    assert_eq!(rig.outcomes().len(), 2, "the same outcome, twice");
    // The new relay knows better about two of them, and an older one has nothing to say.
    rig.say(Verdict { drop: vec![ids[0], ids[2]] });
    assert!(rig.core.all_confirmed());
    assert_eq!(rig.core.counts(), (0, 1));
    rig.say(Recall { id: 1, epoch: Epoch(1), attempts: None });
    assert!(!rig.messages.iter().any(|m| matches!(m, Message::Recalled(_))));
}

#[test]
fn a_relay_of_a_lower_epoch_is_not_listened_to() {
    let mut rig = Rig::new(1);
    rig.lowest_epoch = 5;
    rig.cut();
    rig.reachable = true;
    rig.wait_until(rig.now + 30 * SECOND);
    rig.define(1, command());
    rig.dispatch(1, 1);
    assert_eq!(rig.core.counts(), (0, 1));
    rig.lowest_epoch = 4;
    rig.cut();
    rig.reachable = true;
    rig.messages.clear();
    rig.wait_until(rig.now + 30 * SECOND);
    assert!(!rig.messages.iter().any(|m| matches!(m, Message::Inventory(_))));
}

#[test]
fn cut_off_for_the_lease_it_starts_nothing_and_for_twice_the_lease_it_kills() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 3);
    rig.start_all();
    rig.cut();
    let cut = rig.now;
    rig.wait_until(cut + 61 * SECOND);
    rig.end(ids[0], exit(0));
    assert!(rig.starting.is_empty(), "the lease is over");
    assert_eq!(rig.spooled, 0);
    rig.wait_until(cut + 100 * SECOND);
    assert_eq!(rig.spooled, 1);
    rig.wait_until(cut + 121 * SECOND);
    assert_eq!(rig.core.counts(), (0, 0));
    rig.reachable = true;
    rig.wait_until(cut + 160 * SECOND);
    let kinds: BTreeMap<AttemptId, (OutcomeKind, Ran)> =
        rig.outcomes().iter().map(|o| (o.attempt, (o.kind, o.ran))).collect();
    assert_eq!(kinds[&ids[0]], (OutcomeKind::Value, Ran::Yes));
    assert_eq!(kinds[&ids[1]], (OutcomeKind::Lost, Ran::No));
    rig.dispatch(1, 1);
    assert!(
        rig.messages.iter().any(|m| matches!(m, Message::Refused(_))),
        "a new session defines its jobs again"
    );
}

#[test]
fn cut_off_for_twice_the_lease_kills_what_runs() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    rig.cut();
    rig.wait_until(rig.now + 121 * SECOND);
    assert_eq!(rig.signals, [(id, 9)]);
    rig.end(id, killed(9));
    rig.turn_end();
    assert!(!rig.core.all_confirmed());
}

#[test]
fn the_walltime_ends_in_order_warn_kill_spool_exit() {
    let mut rig = Rig::with_walltime(1, 20 * SECOND);
    rig.define(1, JobSpec { warn_signal: Some(10), ..command() });
    let ids = rig.dispatch(1, 2);
    rig.start_all();
    rig.wait_until(17 * SECOND);
    assert!(rig.signals.is_empty());
    rig.wait_until(18 * SECOND);
    assert_eq!(rig.signals, [(ids[0], 10)]);
    assert!(rig.messages.iter().any(|m| matches!(m, Message::Recalled(r) if r.attempts == ids[1..])));
    rig.wait_until(19_500_000);
    assert_eq!(rig.signals[1..], [(ids[0], 15), (ids[0], 9)]);
    rig.end(ids[0], killed(9));
    rig.turn_end();
    assert_eq!(rig.outcomes()[0].kind, OutcomeKind::Lost);
    rig.wait_until(20 * SECOND);
    assert_eq!(rig.spooled, 1, "nobody confirmed");
    assert!(rig.exit.is_some());
}

#[test]
fn a_drain_lets_run_what_runs_and_exits_once_all_is_confirmed() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let id = rig.dispatch(1, 1)[0];
    rig.start_all();
    rig.say(Drain { epoch: Epoch(1), reason: "idle".into(), grace_ms: 60_000 });
    rig.wait_until(rig.now + 30 * SECOND);
    assert!(rig.signals.is_empty() && rig.exit.is_none());
    rig.end(id, exit(0));
    rig.turn_end();
    assert!(rig.exit.is_none());
    rig.confirm_all();
    assert_eq!(rig.exit.as_deref(), Some("idle"));
    assert_eq!(rig.spooled, 0);
    assert!(rig.messages.iter().any(|m| matches!(m, Message::Outcomes(_))));
}

#[test]
fn a_task_starts_only_with_the_time_it_needs() {
    let mut rig = Rig::with_walltime(1, 100 * SECOND);
    rig.define(1, JobSpec { time_needed_ms: Some(95_000), ..command() });
    rig.define(2, JobSpec { time_needed_ms: Some(80_000), ..command() });
    rig.dispatch(1, 1);
    rig.dispatch(2, 1);
    assert_eq!(rig.starting.len(), 1);
    assert!(
        rig.messages
            .iter()
            .any(|m| matches!(m, Message::Refused(r) if r.reason.starts_with("it needs 95 s")))
    );
}

#[test]
fn workers_stay_warm_and_short_tasks_are_piped() {
    let mut rig = Rig::new(2);
    rig.define(1, python());
    rig.dispatch(1, 100);
    assert_eq!(rig.workers.len(), 2);
    let piped = |rig: &Rig| rig.workers.values().map(VecDeque::len).collect::<Vec<_>>();
    assert_eq!(piped(&rig), [1, 1], "nothing is piped before it is known how long a task takes");
    rig.give(Input::WorkerUp { worker: 1 });
    rig.give(Input::WorkerUp { worker: 2 });
    rig.answer(1, 1, 90);
    assert_eq!(piped(&rig), [50, 49], "5 ms of 100 µs");
    rig.answer(1, 50, 90);
    rig.answer(2, 49, 90);
    assert_eq!(rig.core.counts(), (0, 0));
    rig.turn_end();
    assert_eq!(rig.outcomes().len(), 100);
    rig.dispatch(1, 1);
    assert_eq!(rig.workers.len(), 2, "a warm worker takes it");
}

#[test]
fn long_python_tasks_are_not_piped() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 4);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 20_000);
    assert_eq!(rig.workers[&1].len(), 1);
    assert_eq!(rig.core.counts(), (2, 1));
}

#[test]
fn a_dead_worker_loses_one_task_and_gives_back_the_others() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    let ids = rig.dispatch(1, 10);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 10);
    // Tasks 2 to 10 are in its pipe. Two ended, their answers were not flushed; the third was running.
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::Ended { end: killed(11), marked: 3 } });
    rig.turn_end();
    let lost: Vec<_> = rig.outcomes().into_iter().filter(|o| o.kind == OutcomeKind::WorkerLost).collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].attempt, ids[3]);
    let error = lost[0].error.as_ref().unwrap();
    assert_eq!(error.message, "the worker process was killed by signal 11 (SIGSEGV) while it ran this task");
    assert_eq!(rig.core.counts(), (8, 0));
    rig.give(Input::WorkerUp { worker: 2 });
    let order: Vec<AttemptId> = rig.workers[&2].iter().map(|t| t.attempt).collect();
    assert_eq!(order, [&ids[1..3], &ids[4..]].concat(), "in the order in which they came");
}

#[test]
fn a_python_that_is_missing_refuses_its_tasks_and_only_for_a_while() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 5);
    let error = ErrorDetail { message: "no such interpreter".into(), ..ErrorDetail::default() };
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::NotStarted(error) });
    rig.turn_end();
    assert!(rig.outcomes().iter().all(|o| o.kind == OutcomeKind::Refused && o.ran == Ran::No));
    assert_eq!(rig.outcomes().len(), 5);
    rig.wait_until(rig.now + 11 * SECOND);
    rig.workers.clear();
    rig.dispatch(1, 1);
    assert_eq!(rig.workers.len(), 1, "it is tried again");
}

#[test]
fn a_worker_that_dies_at_its_start_is_tried_three_times() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 1);
    for worker in 1..=3 {
        assert!(rig.workers.contains_key(&worker));
        rig.give(Input::WorkerGone { worker, end: WorkerEnd::Ended { end: exit(1), marked: 0 } });
    }
    rig.turn_end();
    assert_eq!(rig.outcomes()[0].kind, OutcomeKind::Refused);
    assert_eq!(rig.core.counts(), (0, 0));
}

#[test]
fn a_python_task_over_its_limit_takes_its_worker_with_it() {
    let mut rig = Rig::new(1);
    rig.define(1, JobSpec { time_limit_ms: Some(1_000), ..python() });
    let id = rig.dispatch(1, 1)[0];
    rig.wait_until(rig.now + 2 * SECOND);
    assert!(rig.worker_signals.is_empty(), "the start of the worker is not the task's time");
    rig.give(Input::WorkerUp { worker: 1 });
    rig.wait_until(rig.now + 1_100_000);
    assert_eq!(rig.worker_signals, [(1, 15)]);
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::Ended { end: killed(15), marked: 0 } });
    rig.turn_end();
    assert_eq!((rig.outcomes()[0].attempt, rig.outcomes()[0].kind), (id, OutcomeKind::TimeLimit));
}

#[test]
fn a_worker_that_answers_what_was_not_asked_is_killed() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 1);
    rig.give(Input::WorkerUp { worker: 1 });
    let answer =
        WorkerAnswer { seq: 99, kind: OutcomeKind::Value, ran_us: 1, value: Bytes::new(), error: None };
    rig.give(Input::WorkerAnswers { worker: 1, answers: vec![answer] });
    assert_eq!(rig.worker_signals, [(1, 9)]);
}

#[derive(Debug, Clone)]
enum Op {
    Dispatch(u64, u32),
    StartAll,
    End(usize, i32),
    Up(usize),
    Answer(usize, usize, u32),
    WorkerDies(usize, u64),
    Cancel(usize, bool),
    Drop(usize),
    Recall,
    Confirm,
    Cut,
    Heal,
    Wait(Micros),
    TurnEnd,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (1u64..5, 1u32..12).prop_map(|(j, n)| Op::Dispatch(j, n)),
        5 => Just(Op::StartAll),
        6 => (0usize..9, 0i32..3).prop_map(|(n, c)| Op::End(n, c)),
        3 => (0usize..9).prop_map(Op::Up),
        6 => (0usize..9, 1usize..9, 0u32..4_000).prop_map(|(w, n, us)| Op::Answer(w, n, us)),
        1 => (0usize..9, 0u64..9).prop_map(|(w, m)| Op::WorkerDies(w, m)),
        2 => (0usize..30, any::<bool>()).prop_map(|(n, k)| Op::Cancel(n, k)),
        1 => (0usize..30).prop_map(Op::Drop),
        1 => Just(Op::Recall),
        2 => Just(Op::Confirm),
        1 => Just(Op::Cut),
        2 => Just(Op::Heal),
        3 => (0u64..90 * SECOND).prop_map(Op::Wait),
        4 => Just(Op::TurnEnd),
        1 => Just(Op::Drain),
    ]
}

impl Rig {
    fn nth_attempt(&self, n: usize) -> AttemptId {
        AttemptId { epoch: Epoch(1), n: self.next_attempt.saturating_sub(n as u32) }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Dispatch(job, count) => drop(self.dispatch(job, count)),
            Op::StartAll => self.start_all(),
            Op::End(n, code) => {
                if let Some(&id) = self.running.iter().nth(n) {
                    self.end(id, if code == 2 { killed(9) } else { exit(code) });
                }
            }
            Op::Up(n) => {
                if let Some(&worker) = self.workers.keys().nth(n) {
                    self.give(Input::WorkerUp { worker });
                }
            }
            Op::Answer(n, count, ran_us) => {
                if let Some((&worker, tasks)) = self.workers.iter().nth(n) {
                    let count = count.min(tasks.len());
                    // Only a worker that is up answers.
                    self.give(Input::WorkerUp { worker });
                    self.answer(worker, count, ran_us);
                }
            }
            Op::WorkerDies(n, marked) => {
                if let Some(&worker) = self.workers.keys().nth(n) {
                    self.workers.remove(&worker);
                    self.give(Input::WorkerGone { worker, end: WorkerEnd::Ended { end: killed(9), marked } });
                }
            }
            Op::Cancel(n, kill) => {
                let attempts = vec![self.nth_attempt(n)];
                self.say(CancelAttempts { epoch: Epoch(9), attempts, kill });
            }
            Op::Drop(n) => self.say(Verdict { drop: vec![self.nth_attempt(n)] }),
            Op::Recall => self.say(Recall { id: 1, epoch: Epoch(9), attempts: None }),
            Op::Confirm => self.confirm_all(),
            Op::Cut => self.cut(),
            Op::Heal => self.reachable = true,
            Op::Wait(us) => self.wait_until(self.now + us),
            Op::TurnEnd => self.turn_end(),
            Op::Drain => self.say(Drain { epoch: Epoch(9), reason: "test".into(), grace_ms: 1_000 }),
        }
    }

    fn define_all(&mut self) {
        self.define(1, command());
        self.define(2, JobSpec { time_limit_ms: Some(5_000), warn_signal: Some(10), ..python() });
        self.define(3, JobSpec { resources: Resources { cores: 2, ..Resources::default() }, ..command() });
        self.define(4, python());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// `check()` runs after every input; here: every attempt that was accepted is told of in the end, and nothing is told twice.
    #[test]
    fn whatever_happens_each_attempt_ends_once(ops in proptest::collection::vec(op(), 0..120)) {
        let mut rig = Rig::new(3);
        rig.define_all();
        for op in ops {
            rig.run(op);
            if rig.exit.is_some() { break; }
        }
        // All heals; what runs ends; everything is told.
        rig.reachable = true;
        for _ in 0..60 {
            if rig.exit.is_some() { break; }
            rig.wait_until(rig.now + 10 * SECOND);
            rig.define_all();
            rig.start_all();
            for id in rig.running.clone() { rig.end(id, exit(0)); }
            for (worker, tasks) in rig.workers.clone() {
                rig.give(Input::WorkerUp { worker });
                rig.answer(worker, tasks.len(), 100);
            }
            rig.turn_end();
        }
        if rig.exit.is_none() {
            prop_assert_eq!(rig.core.counts(), (0, 0));
            rig.confirm_all();
            prop_assert!(rig.core.all_confirmed());
        }
        let mut seen = BTreeMap::new();
        for outcome in rig.outcomes() {
            let first = seen.entry(outcome.attempt).or_insert_with(|| outcome.clone());
            prop_assert_eq!(&*first, &outcome, "told again only as it was told first");
        }
    }
}
