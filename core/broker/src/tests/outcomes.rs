//! What the ends of attempts lead to.

use super::world::*;
use crate::*;
use bytes::Bytes;
use pf_protocol::api::JobState;
use pf_protocol::job::{JobSpec, OnLost, Retry};
use pf_protocol::limits::LOST_ATTEMPTS_MAX;
use pf_protocol::message::{Message, Outcomes, Started, StartedTask};
use pf_protocol::outcome::{Outcome, OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::*;

fn newer(job: JobId, index: u32, kind: OutcomeKind, n: u32) -> Outcome {
    Outcome { attempt: AttemptId { epoch: Epoch(1), n }, ..outcome(job, index, kind) }
}

#[test]
fn outcomes_are_confirmed_only_once_they_are_synced() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 2);
    w.auto_sync = false;
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    w.report(conn, vec![outcome(job, 1, OutcomeKind::Value)]);
    assert_eq!(w.got(conn).confirmed(), None);
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert_eq!(w.got(conn).confirmed(), Some(2));
    w.auto_sync = true;
    assert_eq!(w.summary(job).state, JobState::Ok);
}

#[test]
fn values_and_details_are_found_again() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 3);
    let outcomes = vec![
        (outcome(job, 0, OutcomeKind::Value), &b"zero"[..]),
        (outcome(job, 1, OutcomeKind::Exception), &b"pickle"[..]),
        (outcome(job, 2, OutcomeKind::Value), &b"two"[..]),
    ];
    w.report_values(conn, outcomes);
    let view = w.task(job, 2);
    assert_eq!(w.disk.read(view.value.unwrap()), Bytes::from_static(b"two"));
    assert_eq!((view.row.state.as_str(), view.row.node.as_deref()), ("value", Some("n1")));
    let failed = w.task(job, 1);
    assert_eq!(failed.row.message.as_deref(), Some("exception happened\nmore"));
    assert_eq!(w.disk.read(failed.value.unwrap()), Bytes::from_static(b"pickle"));
    let summary = w.summary(job);
    assert_eq!(summary.state, JobState::Failed);
    let group = &summary.errors[0];
    assert_eq!(
        (group.kind.as_str(), group.message.as_str(), group.count),
        ("exception", "exception happened", 1)
    );
    assert_eq!((group.examples.as_slice(), group.nodes.get("n1")), (&[1][..], Some(&1)));
}

#[test]
fn the_first_success_wins_and_repeats_change_nothing() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 2);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value), newer(job, 0, OutcomeKind::Exit, 9)]);
    let records = w.disk.records.len();
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 10)]);
    assert_eq!(w.disk.records.len(), records);
    assert_eq!(w.got(conn).confirmed(), Some(2), "what is dropped is confirmed");
    assert_eq!(w.task(job, 0).row.state, "value");
    assert_eq!(w.counts(job).assigned, 1);
}

#[test]
fn outcomes_of_unknown_tasks_are_dropped_and_malformed_batches_end_the_session() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    w.report(conn, vec![outcome(JobId(99), 0, OutcomeKind::Value), outcome(job, 7, OutcomeKind::Value)]);
    assert_eq!(w.got(conn).confirmed(), Some(1));
    let outcomes = vec![Outcome { value_len: 5, ..outcome(job, 0, OutcomeKind::Value) }];
    let batch = OutcomeBatch { outcomes, ..OutcomeBatch::default() };
    w.say(conn, Outcomes { number: 2, batches: vec![batch] });
    assert_eq!(w.got(conn).refused.as_ref().map(|r| r.retry), Some(true));
    assert_eq!(w.counts(job).assigned, 1);
}

#[test]
fn a_failure_is_tried_again_if_the_job_says_so() {
    let mut w = World::new();
    let conn = w.relay();
    let retry = Retry { failure: true, ..Retry::default() };
    let job = w.submit(JobSpec { max_attempts: 2, retry, ..command() }, 1);
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 1)]);
    assert_eq!(w.got(conn).assigned_count(), 2);
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 1)]);
    assert_eq!(w.counts(job).assigned, 1, "the same attempt is history");
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 2)]);
    let view = w.task(job, 0);
    assert_eq!((view.row.state.as_str(), view.row.attempts_before), ("exit", 1));
}

#[test]
fn a_lost_task_is_a_suspect_and_is_convicted_in_the_end() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 3);
    w.report(conn, vec![newer(job, 1, OutcomeKind::NodeLost, 1)]);
    let batch = w.got(conn).assigned().pop().unwrap();
    assert_eq!((batch.tasks, batch.lost), (set(&[1]), 1));
    for n in 2..=LOST_ATTEMPTS_MAX {
        w.report(conn, vec![newer(job, 1, OutcomeKind::NodeLost, n)]);
    }
    assert_eq!(w.task(job, 1).row.state, "node_lost");
    assert_eq!(w.task(job, 1).row.attempts_before, LOST_ATTEMPTS_MAX - 1);
}

#[test]
fn on_lost_fail_ends_the_task_as_lost() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(JobSpec { on_lost: OnLost::Fail, ..command() }, 2);
    let unstarted = Outcome { ran: Ran::No, ..outcome(job, 0, OutcomeKind::NodeLost) };
    let started = Outcome { ran: Ran::Unknown, ..outcome(job, 1, OutcomeKind::NodeLost) };
    w.report(conn, vec![unstarted, started]);
    assert_eq!(w.task(job, 1).row.state, "lost");
    assert_eq!(w.got(conn).assigned_count(), 3, "what did not start is sent again");
}

#[test]
fn too_many_failures_cancel_the_rest() {
    let mut w = World::new();
    let job = w.submit(JobSpec { max_fails: Some(2), max_running: Some(3), ..command() }, 10);
    let conn = w.relay();
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Exit), outcome(job, 1, OutcomeKind::Exit)]);
    let counts = w.counts(job);
    assert_eq!((counts.failed, counts.cancelled, counts.assigned), (2, 7, 1));
    let cancel =
        w.got(conn).last(|m| if let Message::Cancel(c) = m { Some(c.clone()) } else { None }).unwrap();
    assert_eq!((cancel.tasks, cancel.kill), (set(&[2]), true));
    w.report(conn, vec![outcome(job, 2, OutcomeKind::Cancelled)]);
    let summary = w.summary(job);
    assert_eq!(summary.reason.as_deref(), Some("2 of its tasks failed, 1 were allowed to"));
    assert_eq!(summary.state, JobState::Cancelled);
}

#[test]
fn what_runs_is_shown_and_an_older_attempt_cannot_fail_it() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 2);
    let task = TaskId { job, index: 0 };
    let attempt = AttemptId { epoch: Epoch(1), n: 5 };
    let tasks = vec![StartedTask { task, attempt, ran_us: 60_000 }];
    w.say(conn, Started { manager: ManagerId::default(), node: "n9".into(), tasks });
    let counts = w.counts(job);
    assert_eq!((counts.running, counts.assigned), (1, 1));
    assert_eq!(w.task(job, 0).row.node.as_deref(), Some("n9"));
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 4)]);
    assert_eq!(w.counts(job).running, 1);
    w.report(conn, vec![newer(job, 0, OutcomeKind::Exit, 5)]);
    assert_eq!(w.task(job, 0).row.state, "exit");
}

#[test]
fn times_are_summed_where_they_are_known() {
    let mut w = World::new();
    let job = w.submit(command(), 1);
    w.now += 3_000;
    let conn = w.relay();
    w.now += 1_000;
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    let times = w.summary(job).times;
    assert_eq!(
        (times.queued_us, times.transferred_us, times.held_us, times.ran_us, times.tasks),
        (3_000, 985, 5, 10, 1)
    );
}

#[test]
fn outcomes_that_cannot_be_stored_end_the_session_and_come_again() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    w.disk.full = true;
    w.report_values(conn, vec![(outcome(job, 0, OutcomeKind::Value), &b"v"[..])]);
    assert_eq!(w.got(conn).confirmed(), None);
    assert_eq!(w.got(conn).refused.as_ref().map(|r| (r.code.as_str(), r.retry)), Some(("not_ready", true)));
    assert_eq!(w.counts(job).ok, 0);
}

#[test]
fn items_that_are_not_in_memory_are_loaded() {
    let mut w = World::new();
    let item = "x".repeat(1 << 16);
    let items: Vec<&str> = (0..960).map(|_| item.as_str()).collect();
    let job = w.try_submit(command(), World::items(&items), false).unwrap();
    let conn = w.relay();
    assert!(w.loads > 0, "60 MiB are more than the cache");
    let assigned = w.got(conn).assigned();
    assert_eq!(assigned.iter().map(|b| b.tasks.len()).sum::<u64>(), 960);
    assert!(assigned.iter().all(|b| b.blob.len() as u64 == b.tasks.len() << 16));
    assert_eq!(w.counts(job).assigned, 960);
}

#[test]
fn items_that_cannot_be_read_end_their_tasks() {
    let mut w = World::new();
    let job = w.try_submit(command(), World::items(&["a", "b"]), false).unwrap();
    w.restart();
    w.load_fails = true;
    w.relay();
    let summary = w.summary(job);
    assert_eq!(summary.counts.failed, 2);
    let message = "the task's arguments could not be read from the broker's disk: I/O error";
    assert_eq!(summary.errors[0].message, message);
}
