//! Blocks: demand, idleness, failures and the pause they lead to.

use crate::world::{World, scaling};
use pf_protocol::BlockId;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Ask, AskWhat};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::NodeCapacity;
use pf_relay_core::{Scaling, SubmitResult};

const SECOND: u64 = 1_000_000;

fn begin(scaling: Scaling, tasks: u32) -> World {
    begin_with(scaling, tasks, None)
}

/// With a scheduler that answers submits like this.
fn begin_with(scaling: Scaling, tasks: u32, submit_result: Option<SubmitResult>) -> World {
    let mut world = World::new(scaling);
    world.submit_result = submit_result;
    world.connect_broker();
    world.define(1, JobSpec::default());
    if tasks > 0 {
        world.assign(1, 0, tasks);
    }
    world
}

#[test]
fn no_work_no_block() {
    let mut world = begin(scaling(), 0);
    world.pass(10 * SECOND);
    assert!(world.submits.is_empty());
}

#[test]
fn one_block_first_then_as_many_as_the_demand_fills() {
    let mut world = begin(scaling(), 40);
    world.pass(5 * SECOND);
    assert_eq!(world.submits.len(), 1, "nothing is known of nodes yet");
    world.start_block(1, 1, 16);
    world.pass(2 * SECOND);
    // 40 tasks at 16 a node.
    assert_eq!(world.submits.len(), 3);
    world.assign(1, 100, 200);
    world.pass(2 * SECOND);
    assert_eq!(world.submits.len(), 4, "max_blocks");
    let decisions = world.relay.report().decisions;
    assert!(decisions.iter().any(|d| d.text.contains("240 tasks fill")), "{decisions:?}");
}

#[test]
fn a_known_node_is_believed_at_once() {
    let node = NodeCapacity { cores: 10, ..NodeCapacity::default() };
    let mut world = begin(Scaling { node: Some(node), ..scaling() }, 25);
    world.pass(SECOND);
    assert_eq!(world.submits.len(), 3);
}

#[test]
fn init_and_min_blocks_need_no_demand_and_idle_ones_go_down_to_min() {
    let mut world = begin(Scaling { init_blocks: 3, min_blocks: 1, ..scaling() }, 0);
    world.pass(SECOND);
    assert_eq!(world.submits.len(), 3);
    (1..=3).for_each(|b| world.start_block(b, 1, 4));
    world.pass(59 * SECOND);
    assert_eq!(world.relay.report().blocks.iter().filter(|b| b.managers > 0).count(), 3);
    world.pass(10 * SECOND);
    let over = |b: &&pf_protocol::report::BlockReport| matches!(b.state, BlockState::Ended(_));
    assert_eq!(world.relay.report().blocks.iter().filter(over).count(), 2);
    world.pass(200 * SECOND);
    assert_eq!(world.relay.report().blocks.iter().filter(over).count(), 2);
    assert_eq!(world.submits.len(), 3);
}

#[test]
fn ten_blocks_that_die_young_pause_the_endpoint() {
    let mut world = begin(scaling(), 40);
    let mut tries = 0;
    for _ in 0..3 * 60 {
        if let Some(last) = world.submits.last().filter(|_| world.submits.len() > tries) {
            world.blocks.insert(*last, BlockState::Ended(BlockEnd::Failed(127)));
            tries = world.submits.len();
        }
        world.pass(60 * SECOND);
    }
    assert_eq!(world.submits.len(), 10);
    let paused = world.relay.report().paused.unwrap();
    assert!(paused.contains("10 blocks in a row") && paused.contains("exit code 127"), "{paused}");
    assert_eq!(world.roster.failures, 10, "failures survive a restart");
    let mut again = World::again(scaling(), world.roster.clone(), 0);
    again.connect_broker();
    again.define(1, JobSpec::default());
    again.assign(1, 0, 5);
    again.pass(600 * SECOND);
    assert!(again.submits.is_empty());
    again.say(Ask { id: 1, what: AskWhat::Resume });
    again.pass(SECOND);
    assert_eq!(again.submits.len(), 1);
    assert_eq!(again.submits[0], BlockId(11));
}

#[test]
fn refused_submits_count_and_later_does_not() {
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Refused("invalid partition".into())));
    world.pass(2 * 3_600 * SECOND);
    assert_eq!(world.submits.len(), 10);
    let paused = world.relay.report().paused.unwrap();
    assert!(paused.contains("invalid partition"), "{paused}");
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Later("QOSMaxJobsPerUserLimit".into())));
    world.pass(3_600 * SECOND);
    assert_eq!((world.relay.report().paused, world.roster.failures), (None, 0));
    assert!((50..=61).contains(&world.submits.len()), "{}", world.submits.len());
}

#[test]
fn preemption_and_walltime_are_no_failures() {
    let mut world = begin(scaling(), 40);
    for round in 0..30u64 {
        if let Some(last) = world.submits.last() {
            let end = if round % 2 == 0 { BlockEnd::Preempted } else { BlockEnd::Walltime };
            world.blocks.insert(*last, BlockState::Ended(end));
        }
        world.pass(3 * SECOND);
    }
    assert_eq!((world.relay.report().paused, world.roster.failures), (None, 0));
    assert!(world.submits.len() > 20);
}

#[test]
fn a_submit_without_an_answer_is_recognised_by_name() {
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Unclear("timeout".into())));
    world.pass(20 * SECOND);
    assert_eq!(world.submits.len(), 1, "not submitted twice");
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.pass(20 * SECOND);
    assert_eq!(world.relay.report().blocks[0].scheduler_id.as_deref(), Some("idb1"));
    assert_eq!(world.submits.len(), 1);
}

#[test]
fn a_submit_that_nobody_ever_lists_failed() {
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Unclear("timeout".into())));
    world.pass(35 * SECOND);
    assert!(world.submits.len() > 1);
    assert_eq!(world.roster.failures, 1);
}

#[test]
fn a_relay_killed_between_submit_and_answer_knows_its_block() {
    let world = begin(scaling(), 5);
    let mut roster = world.roster.clone();
    roster.blocks[0].scheduler_id = None;
    roster.blocks[0].state = BlockState::Intended;
    let mut again = World::again(scaling(), roster, 0);
    again.blocks.insert(BlockId(1), BlockState::Queued("Priority".into()));
    again.connect_broker();
    again.define(1, JobSpec::default());
    again.assign(1, 0, 5);
    again.pass(10 * SECOND);
    assert!(again.submits.is_empty(), "{:?}", again.relay.report().decisions);
}

#[test]
fn explain_says_why() {
    let mut world = begin(Scaling { max_blocks: 0, ..scaling() }, 7);
    world.say(Ask { id: 3, what: AskWhat::ExplainJob { job: pf_protocol::JobId(1) } });
    let text = format!("{:?}", world.answers);
    assert!(text.contains("7 tasks wait") && text.contains("there is no block"), "{text}");
}
