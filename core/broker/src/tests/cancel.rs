//! Cancel: what is queued ends at once, what is handed out is asked to.

use super::world::*;
use crate::*;
use pf_protocol::api::{CancelRequest, JobState};
use pf_protocol::job::{JobSpec, Retry};
use pf_protocol::message::{Credit, Holding, Message, Rest, Return, Unfinished};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::*;

fn cancel_of(relay: &Relay) -> Option<pf_protocol::message::Cancel> {
    relay.last(|m| if let Message::Cancel(cancel) = m { Some(cancel.clone()) } else { None })
}

fn unfinished_of(relay: &Relay) -> Unfinished {
    relay.last(|m| if let Message::Unfinished(page) = m { Some(page.clone()) } else { None }).unwrap()
}

/// A relay that takes two tasks only, and a job of five.
fn two_of_five(spec: JobSpec) -> (World, u64, JobId) {
    let mut w = World::new();
    let conn = w.dial(7, false, None);
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    w.say(conn, Credit { tasks_upto: 2, bytes_upto: 1 << 20 });
    let job = w.submit(spec, 5);
    (w, conn, job)
}

#[test]
fn queued_tasks_end_at_once_and_handed_out_ones_are_asked_to() {
    let (mut w, conn, job) = two_of_five(command());
    let reply = w.cancel(job, CancelRequest { kill: true, ..CancelRequest::default() });
    assert_eq!((reply.cancelled, reply.asked), (set(&[2, 3, 4]), 2));
    let cancel = cancel_of(w.got(conn)).unwrap();
    assert_eq!((cancel.tasks, cancel.kill), (set(&[0, 1]), true));
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Cancelled), outcome(job, 1, OutcomeKind::Value)]);
    let summary = w.summary(job);
    assert_eq!((summary.counts.ok, summary.counts.cancelled, summary.state), (1, 4, JobState::Cancelled));
    assert_eq!(w.task(job, 3).row.message.as_deref(), Some("cancelled"));
}

#[test]
fn a_future_cancels_only_what_has_not_left_the_queue() {
    let (mut w, conn, job) = two_of_five(command());
    let how = |tasks: &[u32]| CancelRequest {
        tasks: Some(set(tasks)),
        queued_only: true,
        ..CancelRequest::default()
    };
    let reply = w.cancel(job, how(&[1, 3]));
    assert_eq!((reply.cancelled, reply.asked), (set(&[3]), 0));
    assert_eq!(cancel_of(w.got(conn)), None);
    assert_eq!(w.counts(job).assigned, 2);
}

#[test]
fn force_ends_what_may_still_run_and_drops_its_outcome() {
    let (mut w, conn, job) = two_of_five(command());
    w.feed(Input::ConnClosed { conn });
    let reply = w.cancel(job, CancelRequest { force: true, kill: true, ..CancelRequest::default() });
    assert_eq!((reply.cancelled, reply.asked), (set(&[0, 1, 2, 3, 4]), 0));
    let summary = w.summary(job);
    assert_eq!(summary.state, JobState::Cancelled);
    assert_eq!(summary.reason.as_deref(), Some("cancelled by force: it may still run"));
    let conn = w.dial(7, false, None);
    assert!(unfinished_of(w.got(conn)).jobs.is_empty(), "the relay drops what it holds beyond this");
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    assert_eq!(w.counts(job).ok, 0);
}

#[test]
fn an_absent_relay_is_told_when_it_is_back_even_by_another_broker() {
    let (mut w, conn, job) = two_of_five(command());
    w.feed(Input::ConnClosed { conn });
    let reply =
        w.cancel(job, CancelRequest { tasks: Some(set(&[0, 4])), kill: true, ..CancelRequest::default() });
    assert_eq!((reply.cancelled, reply.asked), (set(&[4]), 1));
    w.restart();
    let conn = w.dial(7, false, None);
    let page = unfinished_of(w.got(conn));
    let told = &page.jobs[0];
    assert_eq!((&told.tasks, &told.cancel, told.kill), (&set(&[0, 1, 2, 3]), &set(&[0]), true));
    // It holds neither: one ends as cancelled, the others are queued again.
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    assert_eq!(w.task(job, 0).row.state, "cancelled");
    assert_eq!(w.counts(job).queued, 3);
}

#[test]
fn what_comes_back_cancelled_is_not_queued_again() {
    let retry = Retry { failure: true, ..Retry::default() };
    let (mut w, conn, job) = two_of_five(JobSpec { max_attempts: 9, retry, ..command() });
    w.cancel(job, CancelRequest::default());
    w.say(conn, Return { jobs: vec![(job, set(&[0]))] });
    w.report(conn, vec![outcome(job, 1, OutcomeKind::Exit)]);
    let summary = w.summary(job);
    assert_eq!((summary.counts.cancelled, summary.counts.failed), (4, 1));
    assert!(summary.ended_ms.is_some());
}

#[test]
fn a_second_cancel_changes_nothing_unless_it_says_more() {
    let (mut w, conn, job) = two_of_five(command());
    w.cancel(job, CancelRequest::default());
    let records = w.disk.records.len();
    assert_eq!(w.cancel(job, CancelRequest::default()).asked, 2);
    assert_eq!(w.disk.records.len(), records);
    w.cancel(job, CancelRequest { kill: true, ..CancelRequest::default() });
    assert!(cancel_of(w.got(conn)).unwrap().kill);
}

#[test]
fn an_open_job_takes_no_more_after_a_cancel() {
    let mut w = World::new();
    let job = w.try_submit(command(), Tasks::default(), true).unwrap();
    w.cancel(job, CancelRequest::default());
    assert_eq!(w.summary(job).state, JobState::Cancelled);
    let append = Request::Append { job, first: 0, tasks: Tasks { count: 1, ..Tasks::default() } };
    assert_eq!(w.ask(append).unwrap_err().message, "job j1 was cancelled and takes no more tasks");
}

#[test]
fn jobs_that_end_with_their_client_are_cancelled_when_it_goes() {
    let mut w = World::new();
    let spec = |end_with_client| JobSpec { group: 5, end_with_client, ..command() };
    let (ends, stays) = (w.submit(spec(true), 1), w.submit(spec(false), 1));
    w.ask(Request::ClientGone { group: 5 }).unwrap();
    assert_eq!(w.summary(ends).state, JobState::Cancelled);
    assert_eq!(w.summary(stays).state, JobState::Active);
}
