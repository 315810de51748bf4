//! Placement, prefetch, recall, cancel, credit.

use crate::world::{World, scaling};
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Cancel, Refused};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::resources::Resources;
use pf_protocol::{JobId, Ranges};

/// A broker, and one block with managers of 4 cores.
fn ready(managers: u16) -> World {
    let mut world = World::new(scaling());
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 0, 1);
    assert_eq!(world.submits.len(), 1, "work asks for a block at once");
    world.start_block(1, managers, 4);
    world.pass(100_000);
    for handle in 1..=u32::from(managers) {
        world.end_tasks(handle, 1, 1_000_000);
    }
    world
}

#[test]
fn slots_are_filled_and_each_task_ends_once() {
    let mut world = ready(2);
    world.assign(1, 10, 100);
    while world.held() > 0 {
        // A job of unknown or long tasks: slots and at most one more.
        assert!(world.managers.values().all(|m| m.held.len() <= 5), "{}", world.held());
        for handle in [1, 2] {
            world.end_tasks(handle, 2, 1_000_000);
        }
    }
    let ends = world.ends();
    assert_eq!(ends.len(), 101);
    assert!(ends.values().all(|n| *n == 1));
    assert!(world.managers.values().all(|m| m.unconfirmed.is_empty()), "all is confirmed to the managers");
}

#[test]
fn short_tasks_get_work_ahead_and_long_ones_none() {
    let mut world = ready(1);
    world.define(2, JobSpec::default());
    world.assign(2, 0, 2_000);
    assert!(world.held() <= 5);
    world.end_tasks(1, 1, 1_000);
    world.pass(1_000);
    // 20 ms of 1 ms tasks for each of 4 slots, and the slots.
    assert_eq!(world.held(), 84);
    world.define(3, JobSpec { priority: 9, ..JobSpec::default() });
    world.assign(3, 0, 100);
    while world.managers[&1].held.values().any(|t| t.job == JobId(2)) && world.managers[&1].held.len() > 4 {
        world.end_tasks(1, 1, 1_000_000);
    }
    world.end_tasks(1, 4, 1_000_000);
    assert_eq!(world.held(), 4, "long tasks fill slots and nothing else");
    assert!(world.managers[&1].held.values().all(|t| t.job == JobId(3)), "higher priority goes first");
}

#[test]
fn work_ahead_is_bounded_for_tasks_of_no_length() {
    let mut world = ready(1);
    world.define(2, JobSpec::default());
    world.assign(2, 0, 4_000);
    world.end_tasks(1, 5, 1);
    world.pass(100_000);
    assert!(world.held() <= 4 + 4 * 512, "{}", world.held());
    assert!(world.held() > 1_000, "{}", world.held());
}

#[test]
fn work_ahead_is_called_back_for_idle_managers() {
    let mut world = ready(1);
    world.define(2, JobSpec::default());
    world.assign(2, 0, 200);
    world.end_tasks(1, 1, 100_000);
    // 100 ms: one ahead for each slot.
    assert_eq!(world.held(), 8);
    while world.relay.report().waiting > 0 {
        world.end_tasks(1, 1, 100_000);
    }
    let held = world.held();
    assert!((6..=8).contains(&held), "{held}");
    world.add_manager(1, 1, 4);
    world.pass(300_000);
    assert!(!world.managers[&1].recalls.is_empty());
    assert!(!world.managers[&2].held.is_empty(), "{:?}", world.relay.report().decisions);
    assert_eq!(world.held(), held);
}

#[test]
fn jobs_of_one_class_take_turns_and_max_running_holds() {
    let mut world = ready(2);
    world.define(2, JobSpec { max_running: Some(3), ..JobSpec::default() });
    world.define(3, JobSpec::default());
    world.assign(2, 0, 50);
    world.assign(3, 0, 50);
    for _ in 0..20 {
        let running = |job| {
            world.managers.values().flat_map(|m| m.held.values()).filter(|t| t.job == JobId(job)).count()
        };
        assert!(running(2) <= 3 && running(3) >= 5);
        world.end_tasks(1, 1, 1_000_000);
        world.end_tasks(2, 1, 1_000_000);
    }
    while world.end_tasks(1, 4, 1_000_000) + world.end_tasks(2, 4, 1_000_000) > 0 {}
    assert_eq!(world.count(OutcomeKind::Value), 101);
}

#[test]
fn classes_share_a_node_without_over_commitment() {
    let mut world = ready(1);
    let wide = JobSpec { resources: Resources { cores: 3, ..Resources::default() }, ..JobSpec::default() };
    world.define(2, wide);
    world.define(3, JobSpec::default());
    world.assign(2, 0, 10);
    world.assign(3, 0, 10);
    assert_eq!(world.held(), 2, "3 cores and 1 core");
    while world.end_tasks(1, 1, 1_000_000) > 0 {}
    assert_eq!(world.count(OutcomeKind::Value), 21);
}

#[test]
fn cancel_reaches_what_waits_and_what_is_placed() {
    let mut world = ready(1);
    world.assign(1, 10, 20);
    let placed = world.held();
    world.say(Cancel { job: JobId(1), tasks: Ranges::from_range(10, 20), kill: true });
    assert_eq!(world.count(OutcomeKind::Cancelled), 20 - placed);
    assert_eq!(world.managers[&1].cancelled.len(), placed);
    world.end_tasks(1, 99, 5);
    assert_eq!(world.count(OutcomeKind::Cancelled), 20);
}

#[test]
fn a_refused_task_waits_again_and_a_cancelled_one_ends() {
    let mut world = ready(1);
    world.assign(1, 10, 2);
    let attempts: Vec<_> = world.managers[&1].held.keys().copied().collect();
    world.say(Cancel { job: JobId(1), tasks: Ranges::from_range(10, 1), kill: false });
    if let Some(manager) = world.managers.get_mut(&1) {
        manager.held.clear();
    }
    world.manager_says(1, Refused { attempts, reason: "no GPU".into() });
    assert_eq!(world.count(OutcomeKind::Cancelled), 1);
    assert_eq!(world.managers[&1].held.values().map(|t| t.index).collect::<Vec<_>>(), [11]);
    assert!(world.relay.report().decisions.iter().any(|d| d.text.contains("no GPU")));
}

#[test]
fn suspects_run_apart() {
    let mut world = ready(2);
    world.assign_lost(1, 10, 6, 1);
    assert!(world.managers.values().all(|m| m.held.len() == 1));
    world.assign(1, 50, 6);
    assert_eq!(world.held(), 8, "others may run beside a suspect");
}

#[test]
fn credit_follows_what_is_done() {
    let mut world = ready(1);
    world.define(2, JobSpec::default());
    let first = world.credit.tasks_upto - world.assigned;
    assert!((200..1_000).contains(&first), "{first}");
    world.assign(2, 0, 100);
    for _ in 0..50 {
        world.end_tasks(1, 99, 20);
        world.pass(30_000);
        let more = (world.credit.tasks_upto - world.assigned).min(4_000) as u32;
        world.assign(2, 1_000 + world.assigned as u32, more);
    }
    assert!(world.credit.tasks_upto > 20_000, "short tasks open the window: {}", world.credit.tasks_upto);
    let held = world.relay.report();
    assert!(held.waiting + held.placed <= 200_000);
}
