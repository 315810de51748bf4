//! Anything in any order: each attempt that was accepted is told of once.

use super::rig::{Rig, SECOND, command, exit, killed, python};
use crate::{Input, WorkerEnd};
use pf_protocol::job::JobSpec;
use pf_protocol::message::{CancelAttempts, Drain, Recall, Verdict};
use pf_protocol::resources::Resources;
use pf_protocol::{AttemptId, Epoch, Micros};
use proptest::prelude::*;
use std::collections::BTreeMap;

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
