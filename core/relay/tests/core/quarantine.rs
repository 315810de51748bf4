//! Nodes that fail everything.

use crate::world::{World, scaling};
use pf_protocol::BlockId;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Ask, AskWhat, PilotReport};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::report::{BlockEnd, BlockState};
use pf_relay_core::{Scaling, Shape};

const SECOND: u64 = 1_000_000;

/// One block with managers 1, 2, 3 on n0, n1, n2, and many tasks.
fn three_nodes() -> World {
    let shapes = vec![Shape { nodes: 3, ..Shape::default() }];
    let mut world = World::new(Scaling { shapes, max_blocks: 1, ..scaling() });
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 0, 250);
    world.start_block(1, 3, 4);
    world.pass(SECOND);
    assert!(world.held() >= 12);
    world
}

fn quarantined(world: &World) -> Vec<String> {
    world.roster.quarantine.keys().cloned().collect()
}

#[test]
fn a_node_that_fails_all_while_others_succeed_is_quarantined_and_excluded() {
    let mut world = three_nodes();
    for _ in 0..4 {
        world.end_tasks(2, 4, 30 * SECOND);
        world.end_tasks_as(1, 4, 10_000, OutcomeKind::Exit);
        world.pass(SECOND);
    }
    assert_eq!(quarantined(&world), ["n0"]);
    assert!(world.managers[&1].held.is_empty() && !world.managers[&2].held.is_empty());
    let report = world.relay.report();
    assert!(report.quarantine[0].reason.contains("ran elsewhere"), "{:?}", report.quarantine);
    world.say(Ask { id: 1, what: AskWhat::Resume });
    world.pass(SECOND);
    assert!(quarantined(&world).is_empty() && !world.managers[&1].held.is_empty());
}

#[test]
fn the_next_block_does_not_get_a_node_in_quarantine() {
    let mut world = three_nodes();
    for _ in 0..4 {
        world.end_tasks(2, 1, 30 * SECOND);
        world.end_tasks_as(1, 4, 10_000, OutcomeKind::Refused);
        world.pass(SECOND);
    }
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Preempted));
    world.pass(20 * SECOND);
    let next = world.roster.blocks.iter().find(|b| b.block == BlockId(2)).expect("another block");
    assert_eq!(next.exclude, ["n0"]);
}

#[test]
fn a_quarantine_ends_by_itself() {
    let mut world = three_nodes();
    for _ in 0..4 {
        world.end_tasks(2, 1, 30 * SECOND);
        world.end_tasks_as(1, 4, 10_000, OutcomeKind::Signal);
        world.pass(SECOND);
    }
    assert_eq!(quarantined(&world), ["n0"]);
    world.pass(3_605 * SECOND);
    assert!(quarantined(&world).is_empty());
}

#[test]
fn a_job_that_fails_everywhere_is_no_node_s_fault() {
    let mut world = three_nodes();
    for _ in 0..15 {
        (1..=3).for_each(|m| _ = world.end_tasks_as(m, 4, 10_000, OutcomeKind::Exit));
        world.pass(SECOND / 10);
    }
    assert!(quarantined(&world).is_empty());
    assert_eq!(world.count(OutcomeKind::Exit), 180, "and nothing slows it down");
}

#[test]
fn failures_among_successes_are_no_node_s_fault() {
    let mut world = three_nodes();
    for _ in 0..10 {
        world.end_tasks_as(1, 3, 10_000, OutcomeKind::Exit);
        world.end_tasks(1, 1, 10_000);
        world.end_tasks(2, 4, 10_000);
        world.pass(SECOND);
    }
    assert!(quarantined(&world).is_empty());
}

#[test]
fn a_hungry_black_hole_is_held_back_until_the_others_have_shown_themselves() {
    let mut world = three_nodes();
    // It fails within milliseconds; the others run for minutes.
    for _ in 0..20 {
        world.end_tasks_as(1, 4, 1_000, OutcomeKind::Exit);
        world.pass(SECOND / 10);
    }
    let eaten = world.count(OutcomeKind::Exit);
    assert!(eaten <= 16, "{eaten} tasks were eaten");
    assert!(quarantined(&world).is_empty(), "nothing is known of the others yet");
    world.pass(10 * SECOND);
    assert_eq!(quarantined(&world), ["n0"], "{:?}", world.relay.report().decisions);
}

#[test]
fn a_node_whose_managers_die_young_again_and_again_is_quarantined() {
    let mut world = three_nodes();
    let mut handle = 1;
    for _ in 0..3 {
        assert!(quarantined(&world).is_empty());
        world.cut_manager(handle);
        let ended = vec![(0, "signal 9".to_string())];
        world.pilot_says(1, PilotReport { walltime_left_ms: 3_000_000, ended });
        world.pass(2 * SECOND);
        handle = world.add_manager(1, 0, 4);
        world.pass(SECOND);
    }
    assert_eq!(quarantined(&world), ["n0"]);
    assert!(world.managers[&handle].held.is_empty());
}

#[test]
fn the_only_node_is_not_quarantined_for_deaths() {
    let mut world = World::new(Scaling { max_blocks: 1, ..scaling() });
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 0, 250);
    world.start_block(1, 1, 4);
    let mut handle = 1;
    for _ in 0..5 {
        world.pass(SECOND);
        world.cut_manager(handle);
        let ended = vec![(0, "signal 9".to_string())];
        world.pilot_says(1, PilotReport { walltime_left_ms: 3_000_000, ended });
        handle = world.add_manager(1, 0, 4);
    }
    world.pass(SECOND);
    assert!(quarantined(&world).is_empty());
    assert!(!world.managers[&handle].held.is_empty(), "it gets tasks: there is no better node");
}

/// A node of three fails everything, and its block is over.
fn bad_node(shape_nodes: u32) -> World {
    let shapes = vec![Shape { nodes: shape_nodes, ..Shape::default() }];
    let mut world = World::new(Scaling { shapes, max_blocks: 3 / shape_nodes, ..scaling() });
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 0, 250);
    for node in 0..3 {
        let block = if shape_nodes == 3 { 1 } else { u64::from(node) + 1 };
        if node == 0 || shape_nodes == 1 {
            world.blocks.insert(BlockId(block), BlockState::Running);
            world.connect_pilot(block, 1);
        }
        world.add_manager(block, node, 4);
        world.pass(SECOND);
    }
    for _ in 0..4 {
        world.end_tasks(2, 1, 30 * SECOND);
        world.end_tasks_as(1, 4, 10_000, OutcomeKind::Exit);
        world.pass(SECOND);
    }
    assert_eq!(quarantined(&world), ["n0"]);
    let live: Vec<BlockId> = world.blocks.keys().copied().collect();
    live.into_iter().for_each(|b| _ = world.blocks.insert(b, BlockState::Ended(BlockEnd::Preempted)));
    world.scarce = true;
    world.pass(20 * SECOND);
    world
}

fn left_out(world: &World, block: BlockId) -> Vec<String> {
    world.roster.blocks.iter().find(|b| b.block == block).map(|b| b.exclude.clone()).unwrap_or_default()
}

#[test]
fn a_block_that_cannot_do_without_a_node_in_quarantine_gets_it_and_no_task_does() {
    let mut world = bad_node(3);
    assert_eq!(world.submits, [1, 2, 3].map(BlockId), "{:?}", world.relay.report().decisions);
    assert_eq!((left_out(&world, BlockId(2)), left_out(&world, BlockId(3))), (vec!["n0".into()], vec![]));
    assert_eq!(world.roster.shapes.values().map(|b| b.failures).sum::<u32>(), 0, "that is no failure");
    world.start_block(3, 3, 4);
    world.pass(SECOND);
    let held = |m: u32| world.managers[&m].held.len();
    assert_eq!((held(4), held(5) > 0, held(6) > 0), (0, true, true));
    let told = &world.relay.report().quarantine;
    assert!(told[0].reason.contains("no block without it"), "{told:?}");
}

#[test]
fn the_only_node_that_there_is_is_tried_again() {
    let mut world = bad_node(1);
    let next = *world.submits.last().expect("another block");
    assert_eq!(left_out(&world, next), Vec::<String>::new(), "{:?}", world.relay.report().decisions);
    world.start_block(next.0, 1, 4);
    world.pass(SECOND);
    assert!(quarantined(&world).is_empty());
    assert!(!world.managers[&4].held.is_empty(), "there is no better one");
}
