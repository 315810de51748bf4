//! Relays: epochs, who may serve, credit, reconciliation.

use super::world::*;
use crate::*;
use pf_protocol::job::{JobSpec, OnLost};
use pf_protocol::message::*;
use pf_protocol::outcome::{Outcome, OutcomeKind};
use pf_protocol::*;

fn code(relay: &Relay) -> Option<(&str, bool)> {
    relay.refused.as_ref().map(|r| (r.code.as_str(), r.retry))
}

fn epoch(relay: &Relay) -> Option<u32> {
    relay.welcome.as_ref().map(|w| w.epoch.0)
}

#[test]
fn the_epoch_is_on_disk_before_welcome_and_stays_for_the_same_process() {
    let mut w = World::new();
    w.auto_sync = false;
    let conn = w.dial(7, false, None);
    assert_eq!(epoch(w.got(conn)), None);
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert_eq!(epoch(w.got(conn)), Some(1));
    w.auto_sync = true;
    w.feed(Input::ConnClosed { conn });
    let again = w.dial(7, false, None);
    assert_eq!(epoch(w.got(again)), Some(1));
    w.restart();
    let again = w.dial(7, false, None);
    assert_eq!(epoch(w.got(again)), Some(1));
    w.feed(Input::ConnClosed { conn: again });
    w.now += 20_000_000;
    let other = w.dial(8, false, None);
    assert_eq!(epoch(w.got(other)), Some(2));
}

#[test]
fn a_second_relay_is_refused_until_the_first_is_silent_or_replaced() {
    let mut w = World::new();
    let first = w.relay();
    let second = w.dial(8, false, None);
    assert_eq!(code(w.got(second)), Some(("claimed", false)));
    let message = &w.got(second).refused.as_ref().unwrap().message;
    assert!(message.contains("process 7 on login1"), "{message}");
    w.feed(Input::ConnClosed { conn: first });
    let early = w.dial(8, false, None);
    assert_eq!(code(w.got(early)), Some(("claimed", true)));
    w.now += 11_000_000;
    let late = w.dial(8, false, None);
    assert_eq!(epoch(w.got(late)), Some(2));
    let fenced = w.dial(7, false, None);
    assert_eq!(code(w.got(fenced)), Some(("fenced", false)));
}

#[test]
fn a_takeover_fences_the_first_relay() {
    let mut w = World::new();
    let first = w.relay();
    let second = w.dial(8, true, None);
    assert_eq!(epoch(w.got(second)), Some(2));
    assert_eq!(code(w.got(first)), Some(("fenced", false)));
    assert_eq!(w.closed, [first]);
}

#[test]
fn the_same_process_on_a_new_connection_replaces_the_old_one() {
    let mut w = World::new();
    let first = w.relay();
    let second = w.dial(7, false, None);
    assert_eq!(epoch(w.got(second)), Some(1));
    assert_eq!((code(w.got(first)), w.closed.clone()), (None, vec![first]));
}

#[test]
fn a_relay_from_elsewhere_needs_its_endpoints_key() {
    let mut w = World::new();
    let stranger = w.dial(8, false, Some([3; 32]));
    assert_eq!(code(w.got(stranger)), Some(("not_allowed", false)));
    w.ask(Request::PutEndpoint { name: "local".into(), relay_key: Some([3; 32]) }).unwrap();
    assert_eq!(w.broker.relay_keys(), [[3; 32]]);
    let known = w.dial(8, false, Some([3; 32]));
    assert_eq!(epoch(w.got(known)), Some(1));
}

#[test]
fn an_unknown_endpoint_is_named() {
    let mut w = World::new();
    w.ask(Request::RemoveEndpoint { name: "local".into() }).unwrap();
    let conn = w.dial(8, false, None);
    assert_eq!(code(w.got(conn)), Some(("unknown_endpoint", false)));
}

#[test]
fn tasks_are_handed_out_within_credit_after_their_submit_is_synced() {
    let mut w = World::new();
    let conn = w.dial(7, false, None);
    w.say(conn, Credit { tasks_upto: 3, bytes_upto: 100 });
    let job = w.submit(command(), 5);
    assert_eq!(w.got(conn).assigned_count(), 0, "not before it said what it holds");
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    assert_eq!(w.got(conn).assigned_count(), 3);
    w.say(conn, Credit { tasks_upto: 4, bytes_upto: 100 });
    assert_eq!(w.got(conn).assigned_count(), 4);
    w.auto_sync = false;
    w.say(conn, Credit { tasks_upto: 10, bytes_upto: 100 });
    let request = w.submit_request(command(), Tasks { count: 1, ..Tasks::default() }, false);
    w.ask_later(ME, request);
    assert_eq!(w.got(conn).assigned_count(), 5, "the last of the synced job only");
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert_eq!(w.got(conn).assigned_count(), 6);
    let first = w.got(conn).got.iter().position(|m| matches!(m, Message::Assign(_)));
    let define = w.got(conn).got.iter().position(|m| matches!(m, Message::Define(d) if d.jobs[0].job == job));
    assert!(define < first, "a job is defined before its first task");
}

#[test]
fn credit_counts_bytes_of_items_too() {
    let mut w = World::new();
    let conn = w.dial(7, false, None);
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    w.say(conn, Credit { tasks_upto: 100, bytes_upto: 7 });
    w.try_submit(command(), World::items(&["aaa", "bbb", "ccc"]), false).unwrap();
    assert_eq!(w.got(conn).assigned_count(), 2);
    w.say(conn, Credit { tasks_upto: 100, bytes_upto: 9 });
    assert_eq!(w.got(conn).assigned_count(), 3);
}

#[test]
fn what_the_relay_does_not_hold_is_queued_again_and_what_it_holds_is_not() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 4);
    w.feed(Input::ConnClosed { conn });
    let conn = w.dial(7, false, None);
    w.say(conn, Credit { tasks_upto: 100, bytes_upto: 100 });
    let page =
        w.got(conn).last(|m| if let Message::Unfinished(u) = m { Some(u.clone()) } else { None }).unwrap();
    assert_eq!((&page.jobs[0].tasks, page.last), (&set(&[0, 1, 2, 3]), true));
    w.say(conn, Holding { jobs: vec![(job, set(&[0]))], last: false, rest: Rest::NotStarted });
    assert_eq!(w.got(conn).assigned_count(), 0);
    w.say(conn, Holding { jobs: vec![(job, set(&[2]))], last: true, rest: Rest::NotStarted });
    let again: Vec<Ranges> = w.got(conn).assigned().into_iter().map(|b| b.tasks).collect();
    assert_eq!(again, [set(&[1, 3])]);
}

/// A job of four tasks, of which three were handed out; then the relay and its managers die, and a new relay holds task 0 and says `rest`.
/// With `restart` the broker dies too.
fn after_all_died(on_lost: OnLost, rest: Rest, restart: bool) -> (World, u64, JobId) {
    let mut w = World::new();
    let conn = w.dial(7, false, None);
    w.say(conn, Credit { tasks_upto: 3, bytes_upto: 100 });
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    let job = w.submit(JobSpec { on_lost, ..command() }, 4);
    assert_eq!(w.got(conn).assigned_count(), 3);
    w.feed(Input::ConnClosed { conn });
    if restart {
        w.restart();
    }
    let conn = w.dial(8, true, None);
    w.say(conn, Holding { jobs: vec![(job, set(&[0]))], last: true, rest });
    w.say(conn, Credit { tasks_upto: 100, bytes_upto: 100 });
    (w, conn, job)
}

#[test]
fn what_may_have_started_where_all_died_is_treated_as_the_job_wants() {
    for restart in [false, true] {
        for rest in [Rest::NotStarted, Rest::Over, Rest::Unknown] {
            let known = rest == Rest::NotStarted;
            let (mut w, conn, job) = after_all_died(OnLost::Rerun, rest, restart);
            assert_eq!((w.got(conn).assigned_count(), w.counts(job).failed), (3, 0), "{rest:?}");
            let (mut w, conn, job) = after_all_died(OnLost::Fail, rest, restart);
            // Of the three that were handed out one is held; the fourth was never handed out.
            let expected = if known { (3, 0) } else { (1, 2) };
            assert_eq!((w.got(conn).assigned_count(), w.counts(job).failed), expected, "{rest:?}");
            let (mut w, conn, job) = after_all_died(OnLost::Wait, rest, restart);
            let expected = if rest == Rest::Unknown { (1, 0) } else { (3, 0) };
            assert_eq!((w.got(conn).assigned_count(), w.counts(job).failed), expected, "{rest:?}");
        }
    }
}

#[test]
fn who_waits_for_proof_runs_again_once_it_comes() {
    let (mut w, conn, job) = after_all_died(OnLost::Wait, Rest::Unknown, true);
    assert_eq!((w.got(conn).assigned_count(), w.counts(job).assigned), (1, 4));
    // One of the two is heard of after all, under its old attempt.
    let attempt = AttemptId { epoch: Epoch(1), n: 1 };
    w.report(conn, vec![Outcome { attempt, ..outcome(job, 1, OutcomeKind::Exit) }]);
    assert_eq!(w.counts(job).failed, 1);
    w.say(conn, Holding { jobs: vec![(job, set(&[0]))], last: true, rest: Rest::Over });
    // The fourth, on its way, is not in that list, and stays where it is.
    let all: Vec<Ranges> = w.got(conn).assigned().into_iter().map(|b| b.tasks).collect();
    assert_eq!(all, [set(&[3]), set(&[2])]);
}

#[test]
fn tasks_that_must_not_run_twice_are_written_down_before_they_leave() {
    let mut w = World::new();
    let conn = w.relay();
    w.auto_sync = false;
    let request = w.submit_request(
        JobSpec { on_lost: OnLost::Fail, ..command() },
        Tasks { count: 2, ..Tasks::default() },
        false,
    );
    w.ask_later(ME, request);
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert_eq!(w.got(conn).assigned_count(), 0, "the record of it is not synced");
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert_eq!(w.got(conn).assigned_count(), 2);
}

#[test]
fn after_a_restart_what_was_possibly_handed_out_is_asked_for() {
    let mut w = World::new();
    let before = w.submit(command(), 2);
    w.restart();
    assert_eq!(w.counts(before).queued, 2, "no relay was ever there");
    w.relay();
    w.restart();
    assert_eq!(w.counts(before).assigned, 2);
    let conn = w.dial(9, true, None);
    w.say(conn, Credit { tasks_upto: 100, bytes_upto: 100 });
    w.say(conn, Holding { jobs: vec![(before, set(&[1]))], last: true, rest: Rest::NotStarted });
    assert_eq!(w.got(conn).assigned_count(), 1);
    // The claimed one may end with an attempt of an older epoch; the other one has a newer attempt by now.
    let old = |index| Outcome {
        attempt: AttemptId { epoch: Epoch(1), n: 1 },
        ..outcome(before, index, OutcomeKind::Exit)
    };
    w.report(conn, vec![old(0), old(1)]);
    let counts = w.counts(before);
    assert_eq!((counts.failed, counts.assigned), (1, 1));
}

#[test]
fn a_relay_that_ends_for_good_leaves_nothing_behind() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 2);
    w.say(conn, Bye { reason: "stopped".into(), done: true });
    assert_eq!(w.counts(job).queued, 2);
    assert!(
        matches!(w.ask(Request::Endpoint { name: "local".into() }), Ok(Reply::Endpoint(e)) if e.state == "stopped")
    );
    let reason = w.summary(job).reason.unwrap_or_default();
    assert!(reason.contains("`pf endpoint start local`"), "who waits there is told: {reason}");
    w.restart();
    assert_eq!(w.counts(job).queued, 2);
    let next = w.dial(8, false, None);
    assert_eq!(epoch(w.got(next)), Some(2), "and the next one need not wait");
}

#[test]
fn a_silent_relay_is_dropped() {
    let mut w = World::new();
    let conn = w.relay();
    w.now += 11_000_000;
    w.feed(Input::Timer);
    assert!(w.closed.contains(&conn));
    assert!(
        matches!(w.ask(Request::Endpoint { name: "local".into() }), Ok(Reply::Endpoint(e)) if e.state == "absent")
    );
}

#[test]
fn messages_that_a_relay_does_not_send_end_the_session() {
    let mut w = World::new();
    let conn = w.relay();
    w.say(conn, Confirm { upto: 3 });
    assert_eq!(code(w.got(conn)), Some(("unexpected", true)));
    let conn = w.dial(7, false, None);
    w.feed(Input::Frame { conn, bytes: bytes::Bytes::from_static(b"garbage") });
    assert_eq!(code(w.got(conn)), Some(("unreadable", true)));
}

#[test]
fn questions_are_passed_on_and_have_an_end() {
    let mut w = World::new();
    let pause = Request::Verb { name: "local".into(), verb: Verb::Pause };
    assert_eq!(w.ask(pause.clone()).unwrap_err().code, Code::NotConnected);
    let conn = w.relay();
    let asked = w.ask_later(ME, pause.clone());
    let ask = w.got(conn).last(|m| if let Message::Ask(a) = m { Some(a.clone()) } else { None }).unwrap();
    assert_eq!(ask.what, AskWhat::Pause);
    w.say(conn, Answer { id: ask.id, what: AnswerWhat::Done });
    assert_eq!(w.replies.remove(&asked), Some(Ok(Reply::Answer(AnswerWhat::Done))));
    let late = w.ask_later(ME, pause.clone());
    w.now += 9_000_000;
    w.feed(Input::ClockGap);
    w.now += 22_000_000;
    w.feed(Input::ClockGap);
    w.feed(Input::Timer);
    assert_eq!(w.replies.remove(&late).unwrap().unwrap_err().code, Code::NotConnected);
    let conn = w.dial(7, false, None);
    let cut = w.ask_later(ME, pause);
    w.feed(Input::ConnClosed { conn });
    assert_eq!(w.replies.remove(&cut).unwrap().unwrap_err().code, Code::NotConnected);
}

#[test]
fn jobs_are_released_when_they_are_over() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    let released =
        w.got(conn).last(|m| if let Message::Release(r) = m { Some(r.jobs.clone()) } else { None });
    assert_eq!(released, Some(vec![job]));
}
