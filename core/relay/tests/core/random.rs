//! Random events, from a seed: whatever happens, the invariants hold (`World::input` checks them after every input), and when the trouble is over
//! each task that was assigned has an outcome or went back.

use crate::world::{World, scaling};
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Cancel, Refused};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::Resources;
use pf_protocol::{BlockId, JobId, Ranges, TaskId};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
enum Step {
    Assign(u64, u32),
    AssignSuspects(u64, u32),
    End(u32, usize, u64),
    Refuse(u32),
    Cut(u32),
    Back(u32),
    Add,
    Cancel(u64, u32, u32),
    BreakBroker,
    Confirm(bool),
    EndBlock,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..4, 1u32..60).prop_map(|(j, n)| Step::Assign(j, n)),
        1 => (1u64..4, 1u32..4).prop_map(|(j, n)| Step::AssignSuspects(j, n)),
        8 => (1u32..6, 1usize..20, prop_oneof![Just(10u64), Just(5_000), Just(900_000)]).prop_map(|(m, n, us)| Step::End(m, n, us)),
        1 => (1u32..6).prop_map(Step::Refuse),
        2 => (1u32..6).prop_map(Step::Cut),
        3 => (1u32..6).prop_map(Step::Back),
        1 => Just(Step::Add),
        1 => (1u64..4, 0u32..300, 1u32..40).prop_map(|(j, f, n)| Step::Cancel(j, f, n)),
        1 => Just(Step::BreakBroker),
        1 => any::<bool>().prop_map(Step::Confirm),
        1 => Just(Step::EndBlock),
        4 => (1u64..400_000).prop_map(Step::Pass),
    ]
}

struct Run {
    world: World,
    assigned: BTreeSet<TaskId>,
    next: u32,
    connected: BTreeSet<u32>,
}

impl Run {
    fn new() -> Run {
        let mut world = World::new(scaling());
        world.connect_broker();
        let specs = [
            JobSpec::default(),
            JobSpec {
                resources: Resources { cores: 3, ..Resources::default() },
                priority: 2,
                ..JobSpec::default()
            },
            JobSpec { max_running: Some(5), ..JobSpec::default() },
        ];
        for (n, spec) in specs.into_iter().enumerate() {
            world.define(n as u64 + 1, spec);
        }
        let mut run = Run { world, assigned: BTreeSet::new(), next: 0, connected: BTreeSet::new() };
        run.assign(1, 4, 0);
        run.world.start_block(1, 2, 4);
        run.connected.extend([1, 2]);
        run
    }

    fn assign(&mut self, job: u64, count: u32, lost: u32) {
        let room = self.world.credit.tasks_upto.saturating_sub(self.world.assigned) as u32;
        let count = count.min(room);
        if count > 0 {
            self.world.assign_lost(job, self.next, count, lost);
            self.assigned
                .extend((self.next..self.next + count).map(|index| TaskId { job: JobId(job), index }));
            self.next += count;
        }
    }

    fn open(&self) -> BTreeSet<TaskId> {
        let ended: BTreeSet<TaskId> =
            self.world.outcomes.iter().flat_map(|b| &b.outcomes).map(|o| o.task()).collect();
        self.assigned.difference(&ended).copied().collect()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Assign(job, count) => self.assign(job, count, 0),
            Step::AssignSuspects(job, count) => self.assign(job, count, 1),
            Step::End(handle, count, us) if self.connected.contains(&handle) => {
                self.world.end_tasks(handle, count, us);
            }
            Step::Refuse(handle) if self.connected.contains(&handle) => {
                let Some(manager) = self.world.managers.get_mut(&handle) else { return };
                let Some((attempt, _)) = manager.held.pop_last() else { return };
                self.world.manager_says(handle, Refused { attempts: vec![attempt], reason: "test".into() });
            }
            Step::Cut(handle) if self.connected.remove(&handle) => self.world.cut_manager(handle),
            Step::Back(handle)
                if self.world.managers.contains_key(&handle) && !self.connected.contains(&handle) =>
            {
                let block = self.world.managers[&handle].id.block;
                if matches!(self.world.blocks.get(&block), Some(BlockState::Running)) {
                    self.world.connect_manager(handle);
                    self.connected.insert(handle);
                }
            }
            Step::Add => {
                let waiting = self.world.blocks.iter().find(|(_, s)| matches!(s, BlockState::Queued(_)));
                if let Some(block) = waiting.map(|(b, _)| b.0).filter(|_| self.connected.len() < 5) {
                    self.world.blocks.insert(BlockId(block), BlockState::Running);
                    self.world.connect_pilot(block, block);
                    let handle = self.world.add_manager(block, 0, 4);
                    self.connected.insert(handle);
                }
            }
            Step::Cancel(job, first, count) => {
                let tasks = Ranges::from_range(first, count);
                self.world.say(Cancel { job: JobId(job), tasks, kill: true });
            }
            Step::BreakBroker => {
                // The broker lists what it has no outcome of; the others were recorded.
                self.world.unfinished = (1..4)
                    .map(|job| pf_protocol::message::UnfinishedJob {
                        job: JobId(job),
                        tasks: self.open().iter().filter(|t| t.job.0 == job).map(|t| t.index).collect(),
                        ..Default::default()
                    })
                    .collect();
                self.world.break_broker();
                let holding = self.world.holding.clone();
                self.world.holding.clear();
                for task in self.open() {
                    let held = holding.get(&task.job).is_some_and(|r| r.contains(task.index));
                    assert!(held, "{task} is neither held nor ended");
                }
            }
            Step::Confirm(confirm) => self.world.confirm = confirm,
            Step::EndBlock => {
                let running = self.world.blocks.iter().rev().find(|(_, s)| **s == BlockState::Running);
                if let Some(block) = running.map(|(b, _)| *b).filter(|b| b.0 > 1) {
                    let members: Vec<u32> = self
                        .connected
                        .iter()
                        .copied()
                        .filter(|h| self.world.managers[h].id.block == block)
                        .collect();
                    for handle in members {
                        self.connected.remove(&handle);
                        self.world.cut_manager(handle);
                    }
                    self.world.blocks.insert(block, BlockState::Ended(BlockEnd::NodeFailed));
                }
            }
            Step::Pass(us) => self.world.pass(us),
            _ => {}
        }
        // A task is held by one manager at most, of those that are connected.
        let mut seen = BTreeSet::new();
        for handle in &self.connected {
            for task in self.world.managers[handle].held.values() {
                assert!(seen.insert(*task), "{task} is at two managers");
            }
        }
    }

    fn finish(&mut self) {
        self.world.confirm = true;
        for handle in 1..=2 {
            self.step(Step::Back(handle));
        }
        for _ in 0..400 {
            for handle in self.connected.clone() {
                self.world.end_tasks(handle, 50, 50_000);
            }
            self.world.pass(1_000_000);
            self.step(Step::Add);
            if self.open().is_empty() {
                break;
            }
        }
        assert!(self.open().is_empty(), "{:?} {:?}", self.open(), self.world.relay.report().waiting_why);
        for ((task, kind), count) in self.world.ends() {
            // Resent outcomes are duplicates of the same attempt; a broken session is the only cause.
            assert!(kind != OutcomeKind::Value || count >= 1, "{task}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn no_task_is_lost_and_no_slot_held_twice(steps in proptest::collection::vec(step(), 1..60)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.finish();
    }
}
