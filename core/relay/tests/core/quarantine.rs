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
