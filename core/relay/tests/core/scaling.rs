//! Blocks: demand, idleness, failures and the pause they lead to.

use crate::world::{World, scaling};
use pf_protocol::BlockId;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{Ask, AskWhat};
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::NodeCapacity;
use pf_relay_core::{Accounts, Input, Roster, Scaling, Seen, Shape, SubmitResult};

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

fn failures(roster: &Roster) -> u32 {
    roster.shapes.values().map(|b| b.failures).sum()
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
    assert!(decisions.iter().any(|d| d.text.contains("tasks that wait find no room")), "{decisions:?}");
}

#[test]
fn a_known_node_is_believed_at_once() {
    let node = NodeCapacity { cores: 10, ..NodeCapacity::default() };
    let shapes = vec![Shape { node: Some(node), ..Shape::default() }];
    let mut world = begin(Scaling { shapes, ..scaling() }, 25);
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
    assert_eq!(failures(&world.roster), 10, "failures survive a restart");
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
    assert_eq!((world.relay.report().paused, failures(&world.roster)), (None, 0));
    assert!((50..=61).contains(&world.submits.len()), "{}", world.submits.len());
}

#[test]
fn preemption_walltime_and_lost_nodes_are_no_failures() {
    let mut world = begin(Scaling { max_blocks: 1, ..scaling() }, 200);
    let mut ended = 0;
    for round in 0..60u64 {
        if let Some(last) = world.submits.last().copied().filter(|_| world.submits.len() > ended) {
            ended = world.submits.len();
            let end = match round % 3 {
                0 => BlockEnd::Preempted,
                // These two count unless a manager was there.
                1 => BlockEnd::Walltime,
                _ => BlockEnd::NodeFailed,
            };
            if round % 3 > 0 {
                world.start_block(last.0, 1, 2);
            }
            world.blocks.insert(last, BlockState::Ended(end));
        }
        world.pass(11 * SECOND);
    }
    assert_eq!((world.relay.report().paused, failures(&world.roster)), (None, 0));
    assert!(world.submits.len() > 20, "{}", world.submits.len());
}

#[test]
fn a_block_that_can_never_run_is_a_failure_and_leaves_the_queue() {
    let mut world = begin(scaling(), 40);
    let mut tries = 0;
    for _ in 0..3 * 60 {
        if let Some(last) = world.submits.last().copied().filter(|_| world.submits.len() > tries) {
            tries = world.submits.len();
            world.blocks.insert(last, BlockState::Impossible("PartitionTimeLimit".into()));
        }
        world.pass(60 * SECOND);
    }
    assert_eq!((world.submits.len(), world.cancels.len()), (10, 10));
    let paused = world.relay.report().paused.unwrap();
    assert!(paused.contains("it will never run: PartitionTimeLimit"), "{paused}");
}

#[test]
fn a_walltime_without_any_manager_is_a_failure() {
    let mut world = begin(scaling(), 40);
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Walltime));
    world.pass(3 * SECOND);
    assert_eq!(failures(&world.roster), 1);
}

#[test]
fn a_block_that_comes_up_and_does_nothing_is_a_failure_too() {
    let mut world = begin(Scaling { max_blocks: 1, ..scaling() }, 80);
    let mut tries = 0;
    for _ in 0..3 * 60 {
        if let Some(last) = world.submits.last().copied().filter(|_| world.submits.len() > tries) {
            tries = world.submits.len();
            world.start_block(last.0, 1, 4);
            world.blocks.insert(last, BlockState::Ended(BlockEnd::Failed(1)));
        }
        world.pass(60 * SECOND);
    }
    assert_eq!(world.submits.len(), 10);
    let paused = world.relay.report().paused.unwrap();
    assert!(paused.contains("before its managers had done anything"), "{paused}");
}

#[test]
fn a_block_that_somebody_else_cancels_is_not_back_at_once() {
    let mut world = begin(scaling(), 4);
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Cancelled));
    world.pass(55 * SECOND);
    assert_eq!((world.submits.len(), failures(&world.roster)), (1, 0));
    world.pass(10 * SECOND);
    assert_eq!(world.submits.len(), 2);
}

#[test]
fn a_cancel_that_was_taken_is_no_end() {
    let mut world = begin(scaling(), 4);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.deaf_cancels = 2;
    world.input(Input::Stop { kill: true });
    world.pass(60 * SECOND);
    assert_eq!((world.cancels.len(), world.exit.is_some()), (1, false), "it has time to end");
    world.pass(60 * SECOND);
    assert_eq!(world.cancels.len(), 2);
    assert!(world.relay.report().decisions.iter().any(|d| d.text.contains("still there")));
    world.pass(120 * SECOND);
    assert_eq!((world.cancels.len(), world.exit.is_some()), (2, false), "twice as long before the next");
    world.pass(120 * SECOND);
    assert_eq!((world.cancels.len(), world.exit.is_some()), (3, true));
}

#[test]
fn the_scheduler_s_words_and_the_log_s_last_line_are_in_the_reason() {
    let mut world = begin(Scaling { failures_max: 1, ..scaling() }, 4);
    world.log_tail = "line\npf: command not found\n".into();
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Failed(127)));
    world.pass(5 * SECOND);
    let paused = world.relay.report().paused.unwrap();
    assert!(paused.contains("exit code 127") && paused.contains("pf: command not found"), "{paused}");
}

#[test]
fn back_off_survives_a_restart_by_the_wall_clock() {
    let mut world = begin(Scaling { backoff_ms: 600_000, ..scaling() }, 4);
    world.blocks.insert(BlockId(1), BlockState::Ended(BlockEnd::Failed(1)));
    world.pass(10 * SECOND);
    let scaling = world.relay.report();
    assert!(scaling.shapes[0].why.contains("waits 5"), "{:?}", scaling.shapes);
    // The clock of the next relay begins at 0 again; the wall clock has gone on for 5 minutes.
    let mut again =
        World::after(Scaling { backoff_ms: 600_000, ..self::scaling() }, world.roster.clone(), 300_000);
    again.connect_broker();
    again.define(1, JobSpec::default());
    again.assign(1, 0, 4);
    again.pass(280 * SECOND);
    assert!(again.submits.is_empty());
    again.pass(30 * SECOND);
    assert_eq!(again.submits.len(), 1);
}

#[test]
fn jobs_of_two_accounts_get_blocks_of_their_own() {
    let shapes = vec![Shape { accounts: Accounts::Any(None), ..Shape::default() }];
    let mut world = World::new(Scaling { shapes, ..scaling() });
    world.connect_broker();
    let on = |account: &str| JobSpec { account: Some(account.into()), ..JobSpec::default() };
    world.define(1, on("a"));
    world.define(2, on("b"));
    world.assign(1, 0, 3);
    world.assign(2, 0, 3);
    world.pass(SECOND);
    let accounts: Vec<_> = world.roster.blocks.iter().map(|b| b.account.clone().unwrap()).collect();
    assert_eq!(accounts, ["a", "b"]);
    world.start_block(1, 1, 16);
    world.pass(SECOND);
    assert!(world.managers[&1].held.values().all(|t| t.job.0 == 1));
    assert_eq!(world.held(), 3, "those of b wait, whatever room there is");
    world.start_block(2, 1, 16);
    world.pass(SECOND);
    assert_eq!(world.held(), 6);
}

#[test]
fn what_no_block_can_ever_run_is_refused_and_takes_nobody_s_place() {
    let shapes = vec![Shape {
        accounts: Accounts::Only(vec!["a".into()]),
        walltime_ms: 3_600_000,
        ..Shape::default()
    }];
    let mut world = World::new(Scaling { shapes, ..scaling() });
    world.connect_broker();
    world.define(1, JobSpec { account: Some("b".into()), ..JobSpec::default() });
    world.define(2, JobSpec { time_needed_ms: Some(3_600_000), ..JobSpec::default() });
    world.define(3, JobSpec::default());
    (1..=3).for_each(|job| world.assign(job, 0, 10));
    world.pass(2 * SECOND);
    assert_eq!(world.count(pf_protocol::outcome::OutcomeKind::Refused), 20);
    let why = world.outcomes[0].outcomes[0].error.as_ref().map(|e| e.message.clone()).unwrap();
    assert!(why.contains("account b is none of those"), "{why}");
    assert_eq!(world.submits.len(), 1);
}

#[test]
fn a_job_ends_when_its_node_hours_are_used() {
    let mut world = World::new(scaling());
    world.connect_broker();
    // A thousandth of a node-hour is 3.6 s of a whole node.
    world.define(1, JobSpec { max_node_hours_milli: Some(200), ..JobSpec::default() });
    world.assign(1, 0, 200);
    world.pass(SECOND);
    assert_eq!(world.roster.blocks[0].walltime_ms, 720_000, "0.2 hours of one node");
    world.start_block(1, 1, 4);
    world.pass(710 * SECOND);
    assert_eq!(world.outcomes.len(), 0);
    world.pass(15 * SECOND);
    assert_eq!(world.managers[&1].cancelled.len(), 4, "what runs is killed");
    assert_eq!(world.count(pf_protocol::outcome::OutcomeKind::Refused), 196);
    assert_eq!(world.submits.len(), 1);
}

#[test]
fn folders_of_old_blocks_are_deleted_and_the_last_are_kept() {
    let mut world = begin(Scaling { max_blocks: 1, ..scaling() }, 5);
    let mut ended = 0;
    while ended < 30 {
        if let Some(last) = world.submits.last().copied().filter(|_| world.submits.len() > ended) {
            ended = world.submits.len();
            world.blocks.insert(last, BlockState::Ended(BlockEnd::Preempted));
        }
        world.pass(3 * SECOND);
    }
    let last = world.submits.last().copied().map_or(0, |b| b.0);
    // Twenty that were read, and the one that lives.
    assert_eq!(world.folders.first(), Some(&BlockId(last - 20)), "{:?}", world.folders);
    assert_eq!(world.folders.last(), Some(&BlockId(last)));
    assert_eq!(world.in_use, [BlockId(last)], "programs of blocks that are over are of no use");
}

#[test]
fn node_hours_are_counted() {
    let mut world = begin(scaling(), 1);
    world.start_block(1, 1, 4);
    world.pass(1_000 * SECOND);
    let hours = world.relay.report().node_hours;
    assert!((999_000..=1_001_000).contains(&hours.used_node_ms) && hours.idle_node_ms < 2_000, "{hours:?}");
    assert_eq!(hours.intended_node_ms + hours.used_node_ms, 24 * 3_600_000);
    world.end_tasks(1, 1, 900_000_000);
    world.pass(100 * SECOND);
    let hours = world.relay.report().node_hours;
    assert!((55_000..=65_000).contains(&hours.idle_node_ms), "idle for a minute, then given back: {hours:?}");
    assert_eq!(hours.intended_node_ms, 0);
    assert_eq!(world.roster.used_node_ms, hours.used_node_ms);
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
fn an_id_that_comes_after_the_pilot_is_written_down_and_told() {
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Unclear("timeout".into())));
    world.connect_pilot(1, 9);
    world.pass(SECOND);
    assert_eq!(world.relay.report().blocks[0].state, BlockState::Running);
    assert_eq!(world.roster.blocks[0].scheduler_id, None);
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.pass(20 * SECOND);
    assert_eq!(world.roster.blocks[0].scheduler_id.as_deref(), Some("idb1"));
}

#[test]
fn a_submit_without_an_answer_is_known_by_its_pilot_too() {
    let mut world = begin_with(scaling(), 4, Some(SubmitResult::Unclear("timed out".into())));
    world.pilots_id = Some("4711".into());
    world.connect_pilot(1, 1);
    world.pass(SECOND);
    assert_eq!(world.roster.blocks[0].scheduler_id.as_deref(), Some("4711"));
    // The scheduler's own word counts for more.
    world.blocks.insert(BlockId(1), BlockState::Running);
    world.pass(25 * SECOND);
    assert_eq!(world.roster.blocks[0].scheduler_id.as_deref(), Some("idb1"));
}

/// A listing that was cut off in one line and goes on in the next tells one block's id with another's name.
#[test]
fn the_id_of_one_block_never_becomes_that_of_another() {
    let mut world = begin(Scaling { init_blocks: 2, max_blocks: 2, ..scaling() }, 500);
    world.pass(8 * SECOND);
    let names: Vec<String> = world.roster.blocks.iter().map(|b| b.name.clone()).collect();
    let ids = |world: &World| world.roster.blocks.iter().map(|b| b.scheduler_id.clone()).collect::<Vec<_>>();
    let before = ids(&world);
    assert_eq!(before, [Some("idb1".into()), Some("idb2".into())]);
    let damaged = Seen {
        scheduler_id: "idb1".into(),
        name: names[1].clone(),
        state: BlockState::Running,
        walltime_left_ms: None,
        restarts: None,
    };
    world.input(Input::Blocks { seen: Ok(vec![damaged]) });
    assert_eq!(ids(&world), before);
    assert!(world.roster.blocks.iter().all(|b| b.state != BlockState::Running), "{:?}", world.roster.blocks);
}

#[test]
fn a_submit_that_nobody_ever_lists_failed() {
    let mut world = begin_with(scaling(), 5, Some(SubmitResult::Unclear("timeout".into())));
    world.pass(35 * SECOND);
    assert!(world.submits.len() > 1);
    assert_eq!(failures(&world.roster), 1);
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
    let mut world = begin(scaling(), 7);
    world.pass(11 * SECOND);
    let why = |world: &World| format!("{:?}", world.relay.report().waiting_why);
    assert!(why(&world).contains("b1 is queued: Resources"), "{}", why(&world));
    world.blocks.insert(BlockId(1), BlockState::Held("by its user".into()));
    world.pass(11 * SECOND);
    assert!(why(&world).contains("b1 is held: by its user"), "{}", why(&world));
    assert_eq!((failures(&world.roster), world.cancels.len()), (0, 0), "somebody wants it to wait");
}
