//! The pilot against a relay and a launcher that are played here.

use super::{PilotConfig, PilotCore, PilotEffect, PilotInput};
use crate::limits::{ABANDONED_AFTER_US, LAUNCHER_END_US, MANAGER_END_US, PILOT_RESERVE_US};
use pf_link::{Acceptor, Event, Out, Timing};
use pf_protocol::message::{Drain, Message, PilotReport, Refuse, Welcome, Who};
use pf_protocol::{BlockId, EndpointId, Epoch, Micros};
use proptest::prelude::*;
use std::collections::VecDeque;

const SECOND: Micros = 1_000_000;
const WALLTIME: Micros = 3_600 * SECOND;

/// What the relay does with a HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Welcome,
    Refuse { retry: bool },
    Silence,
}

struct Rig {
    core: PilotCore,
    relay: Acceptor,
    now: Micros,
    conn: u64,
    answer: Answer,
    epoch: u32,
    timer: Option<Micros>,
    started: u32,
    /// What was done to the managers, in words.
    done: Vec<String>,
    reports: Vec<PilotReport>,
    hellos: Vec<Who>,
    goodbyes: u32,
    exit: Option<i32>,
}

impl Rig {
    fn new(nodes: usize, answer: Answer) -> Rig {
        let config = PilotConfig {
            block: BlockId(7),
            incarnation: 77,
            scheduler_id: Some("4711".into()),
            restarts: 0,
            nodes: (0..nodes).map(|n| format!("n{n}")).collect(),
            walltime_end: WALLTIME,
            host: "n0".into(),
            pid: 1,
            clock_ms: 0,
            epoch_seen: Epoch(3),
            timing: Timing::default(),
        };
        let mut rig = Rig {
            core: PilotCore::new(config),
            relay: Acceptor::new(Timing::default(), 1_000),
            now: 0,
            conn: 0,
            answer,
            epoch: 3,
            timer: None,
            started: 0,
            done: Vec::new(),
            reports: Vec::new(),
            hellos: Vec::new(),
            goodbyes: 0,
            exit: None,
        };
        rig.give(PilotInput::Start);
        rig
    }

    fn give(&mut self, input: PilotInput) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.core.handle(self.now, input, &mut effects);
            self.core.check();
            assert!(self.exit.is_none() || effects.is_empty(), "{effects:?} after the exit");
            for effect in effects {
                assert!(self.exit.is_none(), "{effect:?} after the exit");
                self.carry_out(effect, &mut inputs);
            }
        }
    }

    fn carry_out(&mut self, effect: PilotEffect, inputs: &mut VecDeque<PilotInput>) {
        match effect {
            PilotEffect::Dial => {
                self.conn += 1;
                inputs.push_back(PilotInput::Dialled { conns: vec![self.conn] });
                inputs.push_back(match self.answer {
                    Answer::Silence => PilotInput::ConnClosed { conn: self.conn },
                    _ => PilotInput::Connected { conn: self.conn },
                });
            }
            PilotEffect::Frame { conn, bytes } => {
                let (mut events, mut outs) = (Vec::new(), Vec::new());
                if self.answer != Answer::Silence {
                    self.relay.on_frame(self.now, conn, &bytes, &mut events, &mut outs);
                }
                for event in events {
                    self.on_event(event, &mut outs);
                }
                deliver(outs, inputs);
            }
            PilotEffect::SetTimer { at } => self.timer = at,
            PilotEffect::StartManagers => self.started += 1,
            PilotEffect::DrainManagers { grace_ms } => self.did(format!("drain {grace_ms}")),
            PilotEffect::KillManagers { hard } => {
                self.did(format!("kill{}", if hard { " hard" } else { "" }))
            }
            PilotEffect::Exit { code, .. } => self.exit = Some(code),
            PilotEffect::CloseConn { .. } | PilotEffect::Log { .. } => {}
        }
    }

    fn on_event(&mut self, event: Event, outs: &mut Vec<Out>) {
        match event {
            Event::Hello { conn, hello } => {
                self.hellos.push(hello.who);
                if let Answer::Refuse { retry } = self.answer {
                    let refuse = Refuse { code: "claimed".into(), message: "it has a pilot".into(), retry };
                    return self.relay.refuse(conn, refuse, outs);
                }
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
                self.relay.welcome(self.now, conn, welcome, outs);
            }
            Event::Message { message: Message::PilotReport(report), .. } => self.reports.push(report),
            Event::Down { done: true, .. } => self.goodbyes += 1,
            _ => {}
        }
    }

    fn did(&mut self, what: String) {
        self.done.push(format!("{}s {what}", self.now / SECOND));
    }

    fn say(&mut self, message: impl Into<Message>) {
        let mut outs = Vec::new();
        self.relay.send(self.now, self.conn, message.into(), &mut outs);
        let mut inputs = VecDeque::new();
        deliver(outs, &mut inputs);
        inputs.into_iter().for_each(|input| self.give(input));
    }

    fn drain(&mut self, epoch: u32, grace_ms: u64) {
        self.say(Drain { epoch: Epoch(epoch), reason: "nothing waits".into(), grace_ms });
    }

    fn stop(&mut self, grace_ms: u64) {
        self.give(PilotInput::Stop { reason: "a signal".into(), grace_ms });
    }

    fn end(&mut self, node: u16, ok: bool, proof: bool) {
        let how = if ok { "exit 0" } else { "signal 9" };
        self.give(PilotInput::ManagerEnded { node, how: how.into(), ok, proof });
    }

    fn cut(&mut self) {
        self.answer = Answer::Silence;
        self.give(PilotInput::ConnClosed { conn: self.conn });
    }

    /// Time goes on, with every timer on its way.
    fn wait_until(&mut self, at: Micros) {
        let mut rounds = 0;
        while let Some(timer) = self.timer.filter(|timer| *timer <= at && self.exit.is_none()) {
            rounds += 1;
            assert!(rounds < 100_000, "the timer spins at {timer}");
            self.now = self.now.max(timer);
            self.timer = None;
            self.give(PilotInput::Timer);
            let (mut events, mut outs) = (Vec::new(), Vec::new());
            if self.answer != Answer::Silence {
                self.relay.on_timer(self.now, &mut events, &mut outs);
            }
            let mut inputs = VecDeque::new();
            deliver(outs, &mut inputs);
            inputs.into_iter().for_each(|input| self.give(input));
        }
        self.now = self.now.max(at);
    }
}

fn deliver(outs: Vec<Out>, inputs: &mut VecDeque<PilotInput>) {
    for out in outs {
        if let Out::Frame { conn, bytes } = out {
            inputs.push_back(PilotInput::Frame { conn, bytes });
        }
    }
}

#[test]
fn managers_are_started_once_and_only_when_the_relay_knows_the_block() {
    let mut rig = Rig::new(2, Answer::Silence);
    rig.wait_until(60 * SECOND);
    assert_eq!(rig.started, 0);
    rig.answer = Answer::Welcome;
    rig.wait_until(120 * SECOND);
    assert_eq!(rig.started, 1);
    let Who::Pilot { block, scheduler_id, nodes, walltime_left_ms, .. } = &rig.hellos[0] else { panic!() };
    assert_eq!((*block, scheduler_id.as_deref(), nodes.len()), (BlockId(7), Some("4711"), 2));
    assert!((3_480_000..3_540_000).contains(walltime_left_ms), "{walltime_left_ms}");
    // The relay is gone for a while, and comes back.
    rig.cut();
    rig.wait_until(180 * SECOND);
    rig.answer = Answer::Welcome;
    rig.wait_until(240 * SECOND);
    assert_eq!((rig.started, rig.hellos.len(), rig.exit), (1, 2, None));
}

#[test]
fn a_block_that_another_pilot_has_is_left_at_once() {
    let rig = Rig::new(2, Answer::Refuse { retry: false });
    assert_eq!((rig.exit, rig.started), (Some(2), 0));
    let mut rig = Rig::new(2, Answer::Refuse { retry: true });
    rig.wait_until(60 * SECOND);
    assert_eq!((rig.exit, rig.started), (None, 0));
    assert!(rig.hellos.len() > 1, "it asks again");
}

#[test]
fn without_a_relay_it_leaves_after_a_while_or_before_the_walltime_is_over() {
    let mut rig = Rig::new(2, Answer::Silence);
    rig.wait_until(ABANDONED_AFTER_US - 1);
    assert_eq!(rig.exit, None);
    rig.wait_until(ABANDONED_AFTER_US);
    assert_eq!((rig.exit, rig.started), (Some(3), 0));
    // A relay that answers, but has no broker yet, is worth waiting for.
    let mut rig = Rig::new(2, Answer::Refuse { retry: true });
    rig.wait_until(WALLTIME - PILOT_RESERVE_US - 1);
    assert_eq!(rig.exit, None);
    rig.wait_until(WALLTIME);
    assert_eq!((rig.exit, rig.started), (Some(3), 0));
}

#[test]
fn the_relay_hears_of_ends_that_are_proven_and_of_no_others() {
    let mut rig = Rig::new(3, Answer::Welcome);
    rig.end(0, false, true);
    rig.end(1, false, false);
    let told = |rig: &Rig| rig.reports.last().unwrap().ended.clone();
    assert_eq!(told(&rig), [(0, "signal 9".to_string())]);
    // Also after a break: the new session begins with all that is known.
    rig.cut();
    rig.wait_until(60 * SECOND);
    let reports = rig.reports.len();
    rig.answer = Answer::Welcome;
    rig.wait_until(120 * SECOND);
    assert!(rig.reports.len() > reports);
    assert_eq!(told(&rig), [(0, "signal 9".to_string())]);
    // The launcher's own end takes nothing back.
    rig.end(0, false, false);
    assert_eq!(told(&rig), [(0, "signal 9".to_string())]);
    // A node that the block does not have.
    rig.end(9, true, true);
    assert_eq!(rig.exit, None);
    rig.end(2, true, true);
    assert_eq!((rig.exit, rig.goodbyes), (Some(1), 1), "two of three failed, and nobody had asked for it");
}

#[test]
fn managers_that_end_well_end_the_pilot_well() {
    let mut rig = Rig::new(2, Answer::Welcome);
    rig.end(0, true, true);
    rig.end(1, true, true);
    assert_eq!((rig.exit, rig.done.len()), (Some(0), 0));
}

#[test]
fn a_signal_drains_then_kills_then_kills_the_launcher() {
    let mut rig = Rig::new(2, Answer::Welcome);
    rig.wait_until(100 * SECOND);
    rig.stop(20_000);
    rig.wait_until(300 * SECOND);
    let kill = 100 + 20 + MANAGER_END_US / SECOND;
    let hard = kill + LAUNCHER_END_US / SECOND;
    assert_eq!(rig.done, ["100s drain 20000".into(), format!("{kill}s kill"), format!("{hard}s kill hard")]);
    rig.end(0, false, true);
    rig.end(1, false, true);
    assert_eq!(rig.exit, Some(0), "it was asked to end");
}

#[test]
fn a_drain_of_the_relay_has_its_whole_grace_before_a_signal() {
    let mut rig = Rig::new(1, Answer::Welcome);
    rig.drain(2, 0);
    assert!(rig.done.is_empty(), "of a relay that is fenced");
    rig.drain(3, 60_000);
    rig.wait_until(59 * SECOND);
    assert!(rig.done.is_empty(), "managers heard of it from the relay: {:?}", rig.done);
    rig.wait_until(61 * SECOND);
    assert_eq!(rig.done, ["60s drain 0"]);
    // What comes later changes nothing any more.
    rig.stop(5_000);
    assert_eq!(rig.done.len(), 1);
}

#[test]
fn a_signal_overtakes_a_drain_that_waits() {
    let mut rig = Rig::new(1, Answer::Welcome);
    rig.drain(3, 600_000);
    rig.wait_until(10 * SECOND);
    rig.stop(5_000);
    assert_eq!(rig.done, ["10s drain 5000"]);
    // And is not put off by another drain.
    rig.drain(3, 600_000);
    rig.wait_until(10 * SECOND + 5 * SECOND + MANAGER_END_US);
    assert_eq!(rig.done.len(), 2);
}

#[test]
fn whatever_hangs_is_killed_at_the_end_of_the_walltime() {
    let mut rig = Rig::new(1, Answer::Welcome);
    rig.wait_until(WALLTIME);
    assert_eq!(rig.done, [format!("{}s kill", WALLTIME / SECOND - 1)]);
    // Also when a grace is longer than what is left.
    let mut rig = Rig::new(1, Answer::Welcome);
    rig.wait_until(WALLTIME - 2 * SECOND);
    rig.drain(3, 600_000);
    rig.wait_until(WALLTIME);
    assert_eq!(rig.done, [format!("{}s kill", WALLTIME / SECOND - 1)]);
}

#[test]
fn a_clock_that_stood_still_is_no_silence_of_the_relay() {
    let mut rig = Rig::new(1, Answer::Welcome);
    rig.wait_until(10 * SECOND);
    rig.now += 300 * SECOND;
    rig.give(PilotInput::ClockGap { gap_us: 300 * SECOND });
    rig.give(PilotInput::Timer);
    assert_eq!((rig.hellos.len(), rig.exit), (1, None), "the session goes on");
}

#[derive(Debug, Clone)]
enum Op {
    Answer(Answer),
    Cut,
    Epoch(u32),
    Drain(u64),
    Stop(u64),
    End(u16, bool, bool),
    Wait(Micros),
    Garbage(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    let answer = prop_oneof![
        4 => Just(Answer::Welcome),
        1 => Just(Answer::Refuse { retry: true }),
        1 => Just(Answer::Refuse { retry: false }),
        2 => Just(Answer::Silence),
    ];
    prop_oneof![
        2 => answer.prop_map(Op::Answer),
        2 => Just(Op::Cut),
        1 => (0u32..6).prop_map(Op::Epoch),
        1 => (0u64..200_000).prop_map(Op::Drain),
        1 => (0u64..60_000).prop_map(Op::Stop),
        2 => (0u16..5, any::<bool>(), any::<bool>()).prop_map(|(node, ok, proof)| Op::End(node, ok, proof)),
        4 => (0u64..400 * SECOND).prop_map(Op::Wait),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Op::Garbage),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// `check()` runs after every input, and nothing may come after the exit; here: it starts managers once at most, never leaves those that run without having
    /// told them, and always leaves by the end of the walltime if what it kills ends.
    #[test]
    fn whatever_happens_it_ends(ops in proptest::collection::vec(op(), 0..60)) {
        let mut rig = Rig::new(4, Answer::Welcome);
        let mut ended = std::collections::BTreeSet::new();
        for op in ops {
            if rig.exit.is_some() {
                break;
            }
            match op {
                Op::Answer(answer) => rig.answer = answer,
                Op::Cut => rig.give(PilotInput::ConnClosed { conn: rig.conn }),
                Op::Epoch(epoch) => rig.epoch = epoch,
                Op::Drain(grace_ms) => rig.drain(rig.epoch, grace_ms),
                Op::Stop(grace_ms) => rig.stop(grace_ms),
                Op::End(node, ok, proof) if rig.started > 0 => {
                    if node < 4 {
                        ended.insert(node);
                    }
                    rig.end(node, ok, proof);
                }
                Op::End(..) => {}
                Op::Wait(us) => rig.wait_until(rig.now + us),
                Op::Garbage(bytes) => rig.give(PilotInput::Frame { conn: rig.conn, bytes: bytes.into() }),
            }
            prop_assert!(rig.started <= 1);
        }
        if rig.exit.is_none() {
            rig.wait_until(WALLTIME.max(rig.now) + LAUNCHER_END_US);
            if rig.started > 0 {
                prop_assert!(rig.done.iter().any(|done| done.contains("kill")), "{:?}", rig.done);
                (0..4).filter(|node| !ended.contains(node)).for_each(|node| {
                    if rig.exit.is_none() {
                        rig.end(node, false, true);
                    }
                });
            }
        }
        prop_assert!(rig.exit.is_some());
    }
}
