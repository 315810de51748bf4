//! What runs as commands: slots, refusals, recall, limits of time, cancel.

use super::rig::{Rig, SECOND, command, exit, killed};
use crate::limits::GATHER_US;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{CancelAttempts, Drain, Message, Recall};
use pf_protocol::outcome::{OutcomeKind, Ran};
use pf_protocol::resources::Resources;
use pf_protocol::{AttemptId, Epoch};

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
fn short_commands_follow_each_other_on_a_seat_and_start_one_at_a_time() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 20);
    assert_eq!(rig.lanes.len(), 1);
    assert_eq!(rig.starting.len(), 1, "nothing waits there before it is known how long a task takes");
    rig.start_all();
    rig.end(ids[0], exit(0));
    let row = |rig: &Rig| rig.lanes.values().flatten().copied().collect::<Vec<_>>();
    assert_eq!(row(&rig), ids[1..6], "5 ms of 1 ms");
    rig.start_all();
    assert_eq!((rig.running.len(), rig.core.counts()), (1, (18, 1)));
    // What waits is cancelled without a signal; what was to be killed and runs gets one.
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: ids[1..4].to_vec(), kill: true });
    assert_eq!(rig.signals, [(ids[1], 15)]);
    assert_eq!(row(&rig), [&ids[1..2], &ids[4..8]].concat());
    rig.end(ids[1], killed(15));
    // The next is the shell's to start: it cannot be taken back any more.
    rig.start_all();
    assert!(rig.running.contains(&ids[4]));
    rig.turn_end();
    rig.wait_until(rig.now + GATHER_US);
    let cancelled: Vec<_> = rig.outcomes().into_iter().map(|o| (o.attempt, o.kind, o.ran)).collect();
    let told = |n: usize, ran| (ids[n], OutcomeKind::Cancelled, ran);
    assert_eq!(cancelled[1..], [told(3, Ran::No), told(2, Ran::No), told(1, Ran::Yes)]);
}

#[test]
fn a_drain_takes_back_what_waits_in_a_lane() {
    let mut rig = Rig::new(1);
    rig.define(1, command());
    let ids = rig.dispatch(1, 4);
    rig.start_all();
    rig.end(ids[0], exit(0));
    rig.start_all();
    rig.say(Drain { epoch: Epoch(1), reason: "test".into(), grace_ms: 60_000 });
    let Some(Message::Recalled(recalled)) = rig.messages.last() else { panic!("nothing was given back") };
    assert_eq!(recalled.attempts, ids[2..]);
    assert_eq!(rig.core.counts(), (0, 1));
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
