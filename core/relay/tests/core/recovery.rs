//! The barrier after a restart, broken sessions, lost managers, adoption, the ordered end.

use crate::world::{World, scaling};
use pf_protocol::job::{JobSpec, OnLost};
use pf_protocol::message::{
    AnswerWhat, Ask, AskWhat, Confirm, PilotReport, Recalled, Rest, Unfinished, UnfinishedJob,
};
use pf_protocol::outcome::{Outcome, OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::{AttemptId, BlockId, Epoch, JobId, Ranges};
use pf_relay_core::{BlockRecord, Input, Roster, Scaling};

const SECOND: u64 = 1_000_000;

fn busy(managers: u16, tasks: u32) -> World {
    let mut world = World::new(scaling());
    world.connect_broker();
    world.define(1, JobSpec::default());
    world.assign(1, 0, tasks);
    world.start_block(1, managers, 4);
    world.pass(100_000);
    world
}

fn unfinished(tasks: u32) -> Vec<UnfinishedJob> {
    vec![UnfinishedJob { job: JobId(1), tasks: Ranges::from_range(0, tasks), ..UnfinishedJob::default() }]
}

fn running_roster() -> Roster {
    let record = BlockRecord {
        block: BlockId(1),
        name: "pf-local-b1".into(),
        scheduler_id: Some("idb1".into()),
        nodes: 2,
        walltime_ms: 3_600_000,
        came_up: true,
        state: BlockState::Running,
        ..BlockRecord::default()
    };
    Roster { version: 7, next_block: 1, blocks: vec![record], ..Roster::default() }
}

#[test]
fn a_confirmation_of_the_session_before_releases_nothing() {
    let mut world = busy(1, 20);
    world.confirm = false;
    world.end_tasks(1, 3, 1_000_000);
    world.end_tasks(1, 3, 1_000_000);
    // The session breaks, and what the broker had to say in it comes in the next one.
    world.silent_broker = true;
    world.break_broker();
    world.say(Confirm { upto: 2 });
    world.pass(SECOND);
    assert_eq!(world.managers[&1].unconfirmed.len(), 2, "nothing was sent in this session yet");
    world.unfinished = unfinished(20);
    world.say(Unfinished { jobs: unfinished(20), last: true });
    assert_eq!(world.outcomes.len(), 4, "everything is sent again");
    world.say(Confirm { upto: 1 });
    assert_eq!(world.managers[&1].unconfirmed.len(), 1);
    world.say(Confirm { upto: 2 });
    assert!(world.managers[&1].unconfirmed.is_empty());
}

#[test]
fn a_broken_session_with_the_broker_loses_nothing() {
    let mut world = busy(1, 20);
    world.confirm = false;
    world.end_tasks(1, 3, 1_000_000);
    assert_eq!(world.outcomes.len(), 1);
    world.unfinished = unfinished(20);
    world.break_broker();
    assert_eq!(
        world.holding[&JobId(1)],
        Ranges::from_range(0, 20),
        "ended and not confirmed ones are held as well"
    );
    assert_eq!(world.outcomes.len(), 2, "what was not confirmed is sent again");
    assert!(!world.managers[&1].unconfirmed.is_empty());
    world.confirm = true;
    world.end_tasks(1, 2, 1_000_000);
    assert!(world.managers[&1].unconfirmed.is_empty(), "one confirmation covers what was sent before it");
}

#[test]
fn what_the_broker_does_not_list_is_dropped() {
    let mut world = busy(1, 20);
    world.unfinished = unfinished(2);
    world.break_broker();
    assert_eq!(world.holding[&JobId(1)], Ranges::from_range(0, 2));
    assert_eq!(world.held(), 2, "the manager was told to drop the others");
    assert_eq!(world.relay.report().waiting, 0);
}

#[test]
fn a_manager_that_comes_back_keeps_its_tasks() {
    let mut world = busy(2, 40);
    let held = world.managers[&1].held.clone();
    world.cut_manager(1);
    world.pass(20 * SECOND);
    assert_eq!(world.count(OutcomeKind::NodeLost), 0);
    world.connect_manager(1);
    assert_eq!(world.managers[&1].held, held);
    world.end_tasks(1, 99, 1_000_000);
    assert!(!world.managers[&1].held.is_empty(), "it gets work again");
}

#[test]
fn what_a_manager_never_got_waits_again() {
    let mut world = busy(1, 4);
    world.cut_manager(1);
    let lost = world.managers.get_mut(&1).and_then(|m| m.held.pop_first());
    world.connect_manager(1);
    let again = lost.map(|(_, task)| task);
    assert_eq!(world.managers[&1].held.values().filter(|t| Some(**t) == again).count(), 1);
    assert_eq!(world.count(OutcomeKind::NodeLost), 0);
}

#[test]
fn a_silent_manager_is_given_up_after_twice_its_lease_and_not_before() {
    let mut world = busy(1, 3);
    world.define(2, JobSpec { on_lost: OnLost::Wait, ..JobSpec::default() });
    world.assign(2, 0, 1);
    assert_eq!(world.held(), 4);
    world.cut_manager(1);
    world.pass(135 * SECOND);
    assert_eq!(world.count(OutcomeKind::NodeLost), 0);
    world.pass(15 * SECOND);
    assert_eq!(world.count(OutcomeKind::NodeLost), 3, "the job that waits for proof still waits");
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Failed(1)));
    world.pass(15 * SECOND);
    assert_eq!(world.count(OutcomeKind::NodeLost), 4);
    let lost = world.outcomes.iter().flat_map(|b| &b.outcomes).find(|o| o.kind == OutcomeKind::NodeLost);
    assert_eq!(lost.map(|o| o.ran), Some(Ran::Unknown));
}

#[test]
fn the_end_of_a_block_is_proof_and_its_spools_count_first() {
    let mut world = busy(1, 4);
    world.cut_manager(1);
    let manager = world.managers[&1].id;
    let (attempt, task) = world.managers[&1].held.first_key_value().map(|(a, t)| (*a, *t)).unwrap();
    let done = Outcome { job: task.job, index: task.index, attempt, ..Outcome::default() };
    let batch = OutcomeBatch { manager, seq: 1, outcomes: vec![done], ..OutcomeBatch::default() };
    world.spools.insert(BlockId(1), vec![batch]);
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Walltime));
    world.pass(12 * SECOND);
    assert_eq!(world.count(OutcomeKind::Value), 1);
    assert_eq!(world.count(OutcomeKind::Lost), 3, "a walltime throws no suspicion on a task");
}

#[test]
fn a_pilot_tells_of_the_end_of_a_manager() {
    let mut world = busy(2, 40);
    let held = world.managers[&2].held.len();
    world.cut_manager(2);
    world.pilot_says(1, PilotReport { walltime_left_ms: 1_000_000, ended: vec![(1, "signal 9".into())] });
    assert_eq!(world.count(OutcomeKind::NodeLost), held);
}

#[test]
fn a_second_pilot_is_refused() {
    let mut world = busy(1, 1);
    world.connect_pilot(1, 99);
    assert_eq!(world.refused.last().map(|r| (r.code.as_str(), r.retry)), Some(("claimed", false)));
}

#[test]
fn a_block_that_is_started_again_has_another_pilot_and_runs_its_tasks_again() {
    for pilot_first in [true, false] {
        let mut world = busy(1, 4);
        let held = world.managers[&1].held.len();
        assert!(held > 0);
        if !pilot_first {
            world.blocks.insert(BlockId(1), BlockState::Queued("BeginTime".into()));
            world.restarts.insert(BlockId(1), 1);
            world.cut_manager(1);
            world.pass(30 * SECOND);
            assert_eq!(
                world.count(OutcomeKind::Lost),
                held,
                "the scheduler's own doing: nobody is a suspect"
            );
            world.blocks.insert(BlockId(1), BlockState::Running);
        }
        world.connect_pilot_again(1, 99, 1);
        assert!(world.refused.is_empty(), "{:?}", world.refused);
        assert_eq!(world.count(OutcomeKind::Lost), held);
        world.add_manager(1, 0, 4);
        world.pass(SECOND);
        assert_eq!(world.relay.report().blocks[0].incarnation, 1);
        world.connect_pilot_again(1, 100, 1);
        assert_eq!(world.refused.last().map(|r| r.code.as_str()), Some("claimed"), "one pilot a run");
        world.connect_pilot(1, 1);
        assert_eq!(world.refused.len(), 2, "one of the run before has nothing to say");
    }
}

#[test]
fn an_inherited_intent_is_looked_for_until_it_surfaces_or_its_time_is_over() {
    for surfaces in [true, false] {
        let mut roster = running_roster();
        (roster.blocks[0].state, roster.blocks[0].scheduler_id) = (BlockState::Intended, None);
        roster.blocks[0].came_up = false;
        let mut world = World::again(scaling(), roster, 0);
        (world.epoch, world.unfinished) = (3, unfinished(10));
        world.connect_broker();
        world.pass(20 * SECOND);
        assert_eq!(
            world.relay.report().blocks[0].state,
            BlockState::Intended,
            "not given up, and not asked for again"
        );
        assert!(world.submits.is_empty());
        if surfaces {
            world.blocks.insert(BlockId(1), BlockState::Queued("Priority".into()));
            world.pass(20 * SECOND);
            assert_eq!(world.relay.report().blocks[0].scheduler_id.as_deref(), Some("idb1"));
        } else {
            world.pass(scaling().unclear_ms * 1_000);
            let state = &world.relay.report().blocks[0].state;
            assert!(matches!(state, BlockState::Ended(BlockEnd::SubmitFailed(_))), "{state:?}");
        }
    }
}

#[test]
fn an_old_answer_of_the_scheduler_does_not_take_back_that_a_block_runs() {
    let mut world = World::again(scaling(), running_roster(), 5_000_000);
    world.blocks.insert(BlockId(1), BlockState::Queued("Priority".into()));
    world.restarts.insert(BlockId(1), 0);
    (world.epoch, world.unfinished) = (3, unfinished(10));
    world.connect_broker();
    world.pass(SECOND);
    assert_eq!(world.holdings, 0, "the managers of a block whose pilot was heard may hold tasks");
    // Where it was put back into the queue there are none.
    world.restarts.insert(BlockId(1), 1);
    world.pass(60 * SECOND);
    assert_eq!(world.holdings, 1);
}

#[test]
fn a_new_relay_waits_for_every_manager_before_it_dispatches() {
    let mut world = World::again(scaling(), running_roster(), 5_000_000);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.epoch = 3;
    world.unfinished = unfinished(10);
    world.connect_broker();
    assert_eq!(world.holdings, 0);
    world.connect_pilot(1, 1);
    let adopted = AttemptId { epoch: Epoch(3), n: 44 };
    let stale = AttemptId { epoch: Epoch(2), n: 9 };
    world.add_manager(1, 0, 4);
    world.pass(SECOND);
    assert_eq!(world.holdings, 0, "one of two managers has told");
    let second = world.add_manager(1, 1, 4);
    world.cut_manager(second);
    world.pass(SECOND);
    if let Some(manager) = world.managers.get_mut(&second) {
        manager.held.insert(adopted, pf_protocol::TaskId { job: JobId(1), index: 3 });
        manager.held.insert(stale, pf_protocol::TaskId { job: JobId(9), index: 3 });
    }
    world.connect_manager(second);
    assert_eq!((world.holdings, world.rest), (1, Rest::NotStarted), "all have told");
    assert_eq!(world.submits.len(), 0, "nothing is submitted twice");
}

/// A scheduler may not be asked again at once, or hang: what runs and says so need not wait for it.
#[test]
fn a_pilot_s_word_is_enough_for_its_block() {
    let mut world = World::without_status(scaling(), running_roster(), "squeue hangs");
    world.unfinished = unfinished(10);
    world.connect_broker();
    (0..2).for_each(|node| _ = world.add_manager(1, node, 4));
    world.pass(SECOND);
    assert_eq!(world.holdings, 0, "which run of its job that is nobody has said");
    world.connect_pilot(1, 1);
    world.pass(SECOND);
    assert_eq!((world.holdings, world.rest), (1, Rest::NotStarted));
    world.pass(60 * SECOND);
    let told = world.relay.report().decisions;
    let failed = told.iter().filter(|d| d.text.contains("squeue hangs")).count();
    assert_eq!(failed, 1, "told once: {told:?}");
}

#[test]
fn what_ran_in_a_block_that_was_started_again_meanwhile_may_have_run() {
    let mut world = World::again(scaling(), running_roster(), 0);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.restarts.insert(BlockId(1), 1);
    world.unfinished = unfinished(10);
    world.connect_broker();
    world.connect_pilot_again(1, 1, 1);
    (0..2).for_each(|node| _ = world.add_manager(1, node, 4));
    world.pass(SECOND);
    assert_eq!((world.holdings, world.rest), (1, Rest::Over));
}

#[test]
fn inventories_are_adopted_and_the_rest_is_left_to_the_broker() {
    let mut world = World::again(scaling(), running_roster(), 0);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.epoch = 3;
    world.unfinished = unfinished(10);
    world.connect_broker();
    for node in 0..2 {
        let handle = world.add_manager(1, node, 4);
        if node == 0 {
            world.cut_manager(handle);
            let task = |job, index| pf_protocol::TaskId { job: JobId(job), index };
            if let Some(manager) = world.managers.get_mut(&handle) {
                manager.held.insert(AttemptId { epoch: Epoch(3), n: 44 }, task(1, 3));
                manager.held.insert(AttemptId { epoch: Epoch(3), n: 2 }, task(9, 3));
            }
            world.connect_manager(handle);
        }
    }
    assert_eq!(world.holdings, 1);
    assert_eq!(world.holding[&JobId(1)], Ranges::from_range(3, 1));
    assert_eq!(world.held(), 1, "what the broker does not want is dropped");
    world.define(1, JobSpec::default());
    world.assign(1, 0, 3);
    world.assign(1, 4, 6);
    while world.end_tasks(1, 9, 50_000) + world.end_tasks(2, 9, 50_000) > 0 {}
    let ends = world.ends();
    assert_eq!(ends.len(), 10);
    assert!(ends.values().all(|n| *n == 1));
}

#[test]
fn grace_ends_the_barrier() {
    let mut world = World::again(scaling(), running_roster(), 0);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.unfinished = unfinished(10);
    world.connect_broker();
    world.pass(139 * SECOND);
    assert_eq!(world.holdings, 0);
    world.pass(3 * SECOND);
    assert_eq!((world.holdings, world.rest), (1, Rest::Unknown));
    assert!(world.holding.is_empty());
    // The proof that was missing comes late, and is passed on.
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Failed(2)));
    world.pass(70 * SECOND);
    assert_eq!((world.holdings, world.rest), (2, Rest::Over));
    // The broker has acted on it once it assigns again: from then on nothing of the earlier relay is in question.
    world.define(1, JobSpec::default());
    world.assign(1, 0, 3);
    world.break_broker();
    assert_eq!((world.holdings, world.rest), (3, Rest::NotStarted));
}

/// Its managers are stopped and hold tasks: that they are silent is no sign that nothing began there.
#[test]
fn a_suspended_block_holds_the_barrier() {
    let mut world = World::again(scaling(), running_roster(), 0);
    world.blocks.insert(BlockId(1), BlockState::Suspended("for another job".into()));
    world.unfinished = unfinished(10);
    world.connect_broker();
    world.pass(2 * SECOND);
    assert_eq!(world.holdings, 0);
    world.pass(140 * SECOND);
    assert_eq!((world.holdings, world.rest), (1, Rest::Unknown));
}

#[test]
fn queued_and_ended_blocks_do_not_hold_the_barrier() {
    let mut roster = running_roster();
    let queued = BlockRecord {
        block: BlockId(2),
        name: "q".into(),
        scheduler_id: Some("idb2".into()),
        ..roster.blocks[0].clone()
    };
    roster.blocks.push(queued);
    roster.next_block = 2;
    let mut world = World::again(Scaling { max_blocks: 1, ..scaling() }, roster, 0);
    assert_eq!(world.holdings, 0);
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Failed(2)));
    world.blocks.insert(BlockId(2), BlockState::Queued("Priority".into()));
    world.unfinished = unfinished(10);
    world.connect_broker();
    world.pass(2 * SECOND);
    assert_eq!((world.holdings, world.rest), (1, Rest::Over), "the first one may have run some");
    assert!(world.submits.is_empty());
}

#[test]
fn a_stop_gives_back_ends_blocks_and_leaves() {
    let mut world = busy(1, 40);
    world.say(Ask { id: 5, what: AskWhat::Stop { kill: false } });
    assert_eq!(world.answers.last().map(|a| (a.id, a.what.clone())), Some((5, AnswerWhat::Done)));
    assert!(world.returned[&JobId(1)].len() >= 35);
    world.pass(SECOND);
    assert!(world.exit.is_some(), "{:?}", world.relay.report());
}

#[test]
fn a_stop_with_kill_does_not_hang_on_a_deaf_manager() {
    let mut world = busy(1, 4);
    world.cut_manager(1);
    let pilot = world.pilots[&BlockId(1)].1;
    world.pilot_conns.remove(&pilot);
    world.input(Input::ConnClosed { conn: pilot });
    world.input(Input::Stop { kill: true });
    world.pass(30 * SECOND);
    assert_eq!(world.cancels, [BlockId(1)]);
    assert_eq!(world.exit.as_ref().map(|e| e.1), Some(true));
}

#[test]
fn what_was_adopted_is_counted_once_its_job_is_defined() {
    let mut world = World::again(
        scaling(),
        Roster {
            blocks: vec![BlockRecord { nodes: 1, ..running_roster().blocks[0].clone() }],
            ..running_roster()
        },
        0,
    );
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.epoch = 3;
    world.unfinished = unfinished(2);
    let handle = world.add_manager(1, 0, 4);
    world.cut_manager(handle);
    if let Some(manager) = world.managers.get_mut(&handle) {
        manager
            .held
            .insert(AttemptId { epoch: Epoch(3), n: 44 }, pf_protocol::TaskId { job: JobId(1), index: 0 });
    }
    world.connect_broker();
    world.connect_manager(handle);
    let wide = pf_protocol::resources::Resources { cores: 3, ..Default::default() };
    world.define(1, JobSpec { resources: wide, ..JobSpec::default() });
    world.define(2, JobSpec::default());
    world.assign(2, 0, 9);
    assert_eq!(world.held(), 2, "3 cores are taken: one is free");
}

#[test]
fn what_was_adopted_and_comes_back_unstarted_goes_to_the_broker_which_has_its_item() {
    let roster = Roster {
        blocks: vec![BlockRecord { nodes: 1, ..running_roster().blocks[0].clone() }],
        ..running_roster()
    };
    let mut world = World::again(scaling(), roster, 0);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.epoch = 3;
    world.unfinished = unfinished(2);
    let handle = world.add_manager(1, 0, 4);
    world.cut_manager(handle);
    let attempt = AttemptId { epoch: Epoch(3), n: 44 };
    if let Some(manager) = world.managers.get_mut(&handle) {
        manager.held.insert(attempt, pf_protocol::TaskId { job: JobId(1), index: 0 });
    }
    world.connect_broker();
    world.connect_manager(handle);
    world.define(1, JobSpec::default());
    if let Some(manager) = world.managers.get_mut(&handle) {
        manager.held.clear();
    }
    world.manager_says(handle, Recalled { id: 0, attempts: vec![attempt] });
    assert_eq!(world.returned[&JobId(1)], Ranges::from_range(0, 1));
    assert_eq!(world.held(), 0, "without its item it is not placed again");
}
