//! Submit, append, close, wait, retry, forget, dependencies, owners.

use super::world::*;
use crate::*;
use pf_protocol::api::JobState;
use pf_protocol::job::{After, ArraySpec, Function, FunctionKind, JobSpec};
use pf_protocol::message::{Message, Report};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::report::{BlockReport, BlockState, EndpointReport, ManagerReport};
use pf_protocol::resources::{NodeCapacity, Resources};
use pf_protocol::*;

#[test]
fn a_submit_is_answered_only_once_it_is_synced() {
    let mut w = World::new();
    w.auto_sync = false;
    let request = w.submit_request(command(), Tasks { count: 3, ..Tasks::default() }, false);
    let ticket = w.ask_later(ME, request);
    assert!(!w.replies.contains_key(&ticket));
    w.feed(Input::Synced { position: w.disk.records.len() as u64 });
    assert!(matches!(&w.replies[&ticket], Ok(Reply::Submitted(r)) if r.job == JobId(1) && r.tasks == 3));
}

#[test]
fn the_same_key_is_the_same_job_and_other_content_a_conflict() {
    let mut w = World::new();
    let request = w.submit_request(command(), Tasks { count: 2, ..Tasks::default() }, false);
    let first = w.ask(request.clone()).unwrap();
    let second = w.ask(request.clone()).unwrap();
    assert!(matches!(first, Reply::Submitted(r) if !r.repeated && r.job == JobId(1)));
    assert!(matches!(second, Reply::Submitted(r) if r.repeated && r.job == JobId(1)));
    let Request::Submit { key, spec, tasks, open, .. } = request else { panic!() };
    let other = Request::Submit { key, hash: ContentHash([9; 32]), spec, tasks, open };
    let refusal = w.ask(other.clone()).unwrap_err();
    assert_eq!((refusal.code, refusal.code.status()), (Code::Conflict, 409));
    // The key of somebody else is another key.
    let you = Caller { owner: OwnerId(2), is_broker_owner: true };
    assert!(matches!(w.ask_as(you, other).unwrap(), Reply::Submitted(r) if r.job == JobId(2)));
}

#[test]
fn appends_may_be_repeated_and_leave_no_hole() {
    let mut w = World::new();
    let job = w.try_submit(command(), World::items(&["a", "b"]), true).unwrap();
    let append = |first, items: &[&str]| Request::Append { job, first, tasks: World::items(items) };
    let done = Reply::Appended(pf_protocol::api::AppendReply { tasks: 4 });
    assert_eq!(w.ask(append(2, &["c", "d"])), Ok(done.clone()));
    assert_eq!(w.ask(append(2, &["c", "d"])), Ok(done.clone()));
    assert_eq!(w.ask(append(5, &["x"])).unwrap_err().code, Code::Conflict);
    assert_eq!(w.ask(append(3, &["d", "e"])).unwrap_err().code, Code::Conflict);
    assert_eq!(w.ask(Request::Close { job }), Ok(done.clone()));
    assert_eq!(w.ask(append(2, &["c", "d"])), Ok(done));
    let closed = w.ask(append(4, &["e"])).unwrap_err();
    assert_eq!(closed.message, "job j1 is closed and takes no more tasks");
    let conn = w.relay();
    let batches = w.got(conn).assigned();
    let items: Vec<u8> = batches.iter().flat_map(|b| b.blob.to_vec()).collect();
    assert_eq!(items, b"abcd");
    assert_eq!(batches.iter().flat_map(|b| b.lens.clone()).collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn references_that_are_not_there_are_refused() {
    let mut w = World::new();
    let refused = |w: &mut World, change: &dyn Fn(&mut JobSpec)| {
        let mut spec = command();
        change(&mut spec);
        w.try_submit(spec, Tasks { count: 1, ..Tasks::default() }, false).unwrap_err()
    };
    let endpoint = refused(&mut w, &|s| s.endpoints = vec!["frontier".into()]);
    assert_eq!(endpoint.code, Code::UnknownEndpoint);
    assert_eq!(endpoint.hint.as_deref(), Some("known are: local"));
    let after = refused(&mut w, &|s| s.after = vec![After { job: JobId(9), ok: true }]);
    assert_eq!(after.code, Code::UnknownJob);
    let function = refused(&mut w, &|s| s.body = pf_protocol::job::Body::Python(Default::default()));
    assert_eq!(function.code, Code::UnknownFunction);
}

#[test]
fn what_no_node_can_run_is_refused_once_the_nodes_are_known() {
    let mut w = World::new();
    let conn = w.relay();
    let node = NodeCapacity { cores: 4, ..NodeCapacity::default() };
    let report = EndpointReport { largest_node: Some(node), ..EndpointReport::default() };
    w.say(conn, Report { report });
    let resources = Resources { cores: 64, ..Resources::default() };
    let spec = JobSpec { resources, ..command() };
    let refusal = w.try_submit(spec, Tasks { count: 1, ..Tasks::default() }, false).unwrap_err();
    assert_eq!(refusal.code.status(), 422);
    assert!(refusal.message.contains("it asks for 64 cores, the node has 4"), "{}", refusal.message);
}

#[test]
fn a_full_disk_refuses_new_work_and_takes_outcomes() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    w.feed(Input::Pressure(Some(PutError::Busy("64 MiB".into()))));
    let refusal = w.try_submit(command(), Tasks { count: 1, ..Tasks::default() }, false).unwrap_err();
    assert_eq!((refusal.code.name(), refusal.body().retryable), ("busy", true));
    w.feed(Input::Pressure(Some(PutError::Full("3 MiB are left".into()))));
    let refusal = w.try_submit(command(), Tasks { count: 1, ..Tasks::default() }, false).unwrap_err();
    assert_eq!((refusal.code.name(), refusal.code.status()), ("disk_full", 507));
    assert!(refusal.body().retryable);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    assert_eq!(w.summary(job).state, JobState::Ok);
    w.feed(Input::Pressure(None));
    w.disk.full = true;
    let refusal = w.try_submit(command(), World::items(&["a"]), false).unwrap_err();
    assert_eq!(refusal.code, Code::DiskFull);
}

#[test]
fn a_wait_is_answered_at_the_end_or_when_its_time_is_over() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let until = w.now + 5_000_000;
    let long = w.ask_later(ME, Request::Job { job, wait_until: Some(until) });
    let short = w.ask_later(ME, Request::Job { job, wait_until: Some(w.now + 1_000) });
    w.now += 1_000;
    w.feed(Input::Timer);
    assert!(w.replies.contains_key(&short) && !w.replies.contains_key(&long));
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    assert!(matches!(&w.replies[&long], Ok(Reply::Job(s)) if s.state == JobState::Ok));
}

#[test]
fn who_waits_is_told_what_the_scheduler_says_of_the_first_block() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let mut report = EndpointReport::default();
    for (state, told) in [
        (BlockState::Queued(String::new()), None),
        (BlockState::Queued("Priority".into()), Some("is queued: Priority")),
        (BlockState::Held("by its user".into()), Some("is held: by its user")),
    ] {
        report.blocks = vec![BlockReport { state, ..BlockReport::default() }];
        w.say(conn, Report { report: report.clone() });
        let reason = w.summary(job).reason;
        assert_eq!(reason.is_some(), told.is_some(), "{reason:?}");
        assert!(told.is_none_or(|words| reason.iter().any(|r| r.contains(words))), "{reason:?}");
    }
    report.managers = vec![ManagerReport::default()];
    w.say(conn, Report { report });
    assert_eq!(w.summary(job).reason, None, "others are at work");
}

#[test]
fn a_job_after_another_waits_and_is_cancelled_if_that_fails() {
    let mut w = World::new();
    let conn = w.relay();
    let first = w.submit(command(), 2);
    let on = |job, ok| JobSpec { after: vec![After { job, ok }], ..command() };
    let strict = w.submit(on(first, true), 1);
    let any = w.submit(on(first, false), 1);
    let chained = w.submit(on(strict, true), 1);
    assert_eq!(w.summary(strict).state, JobState::Waiting);
    assert_eq!(w.got(conn).assigned_count(), 2);
    w.report(conn, vec![outcome(first, 0, OutcomeKind::Value), outcome(first, 1, OutcomeKind::Exit)]);
    assert_eq!(w.got(conn).assigned_count(), 3);
    let summary = w.summary(strict);
    assert_eq!(summary.state, JobState::Cancelled);
    let reason = "j1, after which it was to run, did not succeed: 1 failed, 0 cancelled";
    assert_eq!(summary.reason.as_deref(), Some(reason));
    assert_eq!(w.summary(chained).state, JobState::Cancelled);
    assert_eq!(w.summary(any).counts.assigned, 1);
}

#[test]
fn a_retry_is_a_new_job_of_what_failed_with_items_and_labels() {
    let mut w = World::new();
    let conn = w.relay();
    let array = ArraySpec { first: 10, step: 5, ..ArraySpec::default() };
    let job =
        w.try_submit(JobSpec { array, ..command() }, World::items(&["a", "bb", "ccc", "d"]), false).unwrap();
    let key = JobKey([7; 16]);
    assert_eq!(w.ask(Request::Retry { job, key }).unwrap_err().code, Code::Conflict);
    let kinds = [OutcomeKind::Value, OutcomeKind::Exit, OutcomeKind::Signal, OutcomeKind::Value];
    w.report(conn, (0..).zip(kinds).map(|(i, kind)| outcome(job, i, kind)).collect());
    let Reply::Submitted(reply) = w.ask(Request::Retry { job, key }).unwrap() else { panic!() };
    assert_eq!((reply.job, reply.tasks), (JobId(2), 2));
    let Reply::Submitted(again) = w.ask(Request::Retry { job, key }).unwrap() else { panic!() };
    assert!(again.repeated);
    let last = w.got(conn).assigned().pop().unwrap();
    assert_eq!((last.job, &last.blob[..]), (JobId(2), &b"bbccc"[..]));
    assert_eq!(w.task(JobId(2), 20).row.task, "j2.20");
    let unknown = w.ask(Request::Task { job: JobId(2), label: 10 }).unwrap_err();
    assert_eq!(unknown.hint.as_deref(), Some("its labels go from 15 to 20"));
}

#[test]
fn an_ended_job_is_forgotten_on_demand_or_by_its_retention() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    let kept = w.submit(JobSpec { retention_s: Some(60), ..command() }, 1);
    assert_eq!(w.ask(Request::Forget { job }).unwrap_err().code, Code::Conflict);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value), outcome(kept, 0, OutcomeKind::Value)]);
    w.ask(Request::Forget { job }).unwrap();
    assert_eq!(w.dropped, [job]);
    assert_eq!(w.ask(Request::Job { job, wait_until: None }).unwrap_err().code, Code::UnknownJob);
    w.now += 59_000_000;
    w.feed(Input::Timer);
    assert_eq!(w.summary(kept).state, JobState::Ok);
    w.now += 2_000_000;
    w.feed(Input::Timer);
    assert_eq!(w.dropped, [job, kept]);
}

#[test]
fn people_see_only_what_is_theirs() {
    let mut w = World::new();
    let job = w.submit(command(), 1);
    let you = Caller { owner: OwnerId(2), is_broker_owner: false };
    for request in [
        Request::Job { job, wait_until: None },
        Request::Forget { job },
        Request::Close { job },
        Request::Explain { job },
        Request::Task { job, label: 0 },
        Request::Cancel { job, how: Default::default() },
        Request::Subscribe { subscription: 1, of: StreamOf::Job(job), after: 0, follow: false },
    ] {
        assert_eq!(w.ask_as(you, request).unwrap_err().code, Code::UnknownJob);
    }
    assert_eq!(w.ask_as(you, Request::Jobs(JobsFilter::default())), Ok(Reply::Jobs(Vec::new())));
    let stop = Request::Verb { name: "local".into(), verb: Verb::Pause };
    assert_eq!(w.ask_as(you, stop).unwrap_err().code, Code::Forbidden);
    let put = Request::PutEndpoint { name: "local".into(), relay_key: Some([1; 32]) };
    assert_eq!(w.ask_as(you, put).unwrap_err().code, Code::Forbidden);
    // Nor do they run anything where they were not let in, named or not.
    assert_eq!(w.ask_as(you, Request::Endpoints), Ok(Reply::Endpoints(Vec::new())));
    let show = Request::Endpoint { name: "local".into() };
    assert_eq!(w.ask_as(you, show).unwrap_err().code, Code::Forbidden);
    let submit = |endpoints: &[&str]| Request::Submit {
        key: JobKey([9; 16]),
        hash: ContentHash([9; 32]),
        spec: Box::new(JobSpec { endpoints: endpoints.iter().map(|e| (*e).into()).collect(), ..command() }),
        tasks: Tasks { count: 1, ..Tasks::default() },
        open: false,
    };
    let refused = w.ask_as(you, submit(&["local"])).unwrap_err();
    assert_eq!((refused.code, refused.hint.as_deref()), (Code::Forbidden, Some("there is none yet")));
    assert_eq!(w.ask_as(you, submit(&[])).unwrap_err().code, Code::UnknownEndpoint);
    w.ask_as(you, Request::PutEndpoint { name: "mine".into(), relay_key: None }).unwrap();
    assert!(matches!(w.ask_as(you, submit(&[])), Ok(Reply::Submitted(reply)) if reply.endpoint == "mine"));
}

#[test]
fn functions_are_registered_by_content_for_each_owner() {
    let mut w = World::new();
    let function = Function { kind: FunctionKind::Source, bytes: b"{}".to_vec(), name: "f".into() };
    let id = function.id();
    let put = Request::PutFunction { id, function: function.clone() };
    assert!(matches!(w.ask(put.clone()), Ok(Reply::Function(row)) if row.size_bytes == 2));
    let records = w.disk.records.len();
    w.ask(put).unwrap();
    assert_eq!(w.disk.records.len(), records, "a repetition makes no record");
    assert_eq!(w.ask(Request::Function { id }), Ok(Reply::FunctionBytes(function.clone())));
    let you = Caller { owner: OwnerId(2), is_broker_owner: false };
    assert_eq!(w.ask_as(you, Request::Function { id }).unwrap_err().code, Code::UnknownFunction);
    let wrong = Request::PutFunction { id: FunctionId([0; 32]), function };
    assert_eq!(w.ask(wrong).unwrap_err().code, Code::BadRequest);
}

#[test]
fn tokens_are_kept_by_hash_and_revoked() {
    let mut w = World::new();
    let hash = ContentHash([5; 32]);
    w.ask(Request::AddToken { name: "laptop".into(), hash }).unwrap();
    assert_eq!(w.broker.token_owner(&hash), Some(OwnerId(1)));
    let again = Request::AddToken { name: "laptop".into(), hash };
    assert_eq!(w.ask(again).unwrap_err().code, Code::Conflict);
    assert!(matches!(w.ask(Request::Tokens), Ok(Reply::Tokens(rows)) if rows.len() == 1));
    w.ask(Request::RevokeToken { name: "laptop".into() }).unwrap();
    assert_eq!(w.broker.token_owner(&hash), None);
}

#[test]
fn higher_priority_first_and_owners_in_turn() {
    let mut w = World::new();
    let you = Caller { owner: OwnerId(2), is_broker_owner: true };
    let low = w.submit(command(), 2_000);
    let request = w.submit_request(command(), Tasks { count: 10, ..Tasks::default() }, false);
    let Ok(Reply::Submitted(theirs)) = w.ask_as(you, request) else { panic!() };
    let high = w.submit(JobSpec { priority: 5, ..command() }, 10);
    let conn = w.relay();
    let order: Vec<JobId> = w.got(conn).assigned().iter().map(|b| b.job).collect();
    assert_eq!(order[..3], [high, low, theirs.job]);
}

#[test]
fn no_more_than_max_running_are_out() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(JobSpec { max_running: Some(3), ..command() }, 10);
    assert_eq!(w.got(conn).assigned_count(), 3);
    w.report(conn, vec![outcome(job, 1, OutcomeKind::Value)]);
    assert_eq!(w.got(conn).assigned_count(), 4);
    let Reply::Lines(lines) = ({
        let ticket = w.ask_later(ME, Request::Explain { job });
        let ask =
            w.got(conn).last(|m| if let Message::Ask(ask) = m { Some(ask.clone()) } else { None }).unwrap();
        let what = pf_protocol::message::AnswerWhat::Text(vec!["no slot is free".into()]);
        w.say(conn, pf_protocol::message::Answer { id: ask.id, what });
        w.replies.remove(&ticket).unwrap().unwrap()
    }) else {
        panic!()
    };
    assert!(lines.iter().any(|l| l == "max_running is reached: 3 tasks are out"), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("no slot is free"));
}
