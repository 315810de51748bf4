//! Replay leads to the same state, from any mix of inputs, with and without a snapshot.

use super::world::*;
use crate::*;
use pf_protocol::api::CancelRequest;
use pf_protocol::job::{After, JobSpec, OnLost, Retry};
use pf_protocol::message::{Holding, Rest, Return};
use pf_protocol::outcome::{Outcome, OutcomeKind};
use pf_protocol::*;
use proptest::prelude::*;

fn recovered(w: &World, snapshot: Option<(u64, &[u8])>) -> Broker {
    let mut recovery = Recovery::new();
    let from = snapshot.map_or(0, |(position, bytes)| {
        assert_eq!(recovery.snapshot(bytes).unwrap(), position);
        position
    });
    for (head, bytes) in w.disk.records.iter().skip(from as usize) {
        recovery.record(*head, bytes).unwrap();
    }
    recovery.finish(config(w.now))
}

#[derive(Debug, Clone)]
enum Step {
    Submit { count: u32, items: bool, open: bool, spec: u8 },
    Append { job: u64, items: bool },
    Close { job: u64 },
    Cancel { job: u64, index: Option<u32>, kill: bool, force: bool, queued_only: bool },
    Outcome { job: u64, index: u32, kind: usize, n: u32, repeat: bool },
    Return { job: u64, index: u32 },
    Reconnect { holds: u32 },
    Forget { job: u64 },
    Retry { job: u64 },
    Snapshot,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (job, index) = (1u64..6, 0u32..6);
    prop_oneof![
        3 => (0u32..6, any::<bool>(), any::<bool>(), 0u8..5)
            .prop_map(|(count, items, open, spec)| Step::Submit { count, items, open, spec }),
        2 => (job.clone(), any::<bool>()).prop_map(|(job, items)| Step::Append { job, items }),
        1 => job.clone().prop_map(|job| Step::Close { job }),
        2 => (job.clone(), proptest::option::of(index.clone()), any::<(bool, bool, bool)>()).prop_map(
            |(job, index, (kill, force, queued_only))| Step::Cancel { job, index, kill, force, queued_only }
        ),
        12 => (job.clone(), index.clone(), 0usize..13, 1u32..9, any::<bool>())
            .prop_map(|(job, index, kind, n, repeat)| Step::Outcome { job, index, kind, n, repeat }),
        1 => (job.clone(), index).prop_map(|(job, index)| Step::Return { job, index }),
        1 => (0u32..6).prop_map(|holds| Step::Reconnect { holds }),
        1 => job.clone().prop_map(|job| Step::Forget { job }),
        1 => job.prop_map(|job| Step::Retry { job }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Restart),
    ]
}

fn spec(which: u8, last_job: u64) -> JobSpec {
    let retry = Retry { failure: true, ..Retry::default() };
    match which {
        0 => JobSpec { max_attempts: 3, retry, ..command() },
        1 => JobSpec { on_lost: OnLost::Fail, max_running: Some(2), ..command() },
        2 => JobSpec { max_fails: Some(1), priority: 3, ..command() },
        3 if last_job > 0 => JobSpec { after: vec![After { job: JobId(last_job), ok: true }], ..command() },
        _ => command(),
    }
}

fn play(w: &mut World, conn: &mut u64, step: Step, snapshots: &mut Vec<(u64, Vec<u8>)>) {
    let tasks = |count: u32, items: bool| {
        let texts: Vec<String> = (0..count).map(|i| "i".repeat(i as usize)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        if items { World::items(&texts) } else { Tasks { count, ..Tasks::default() } }
    };
    match step {
        Step::Submit { count, items, open, spec: which } => {
            let last = w.broker.state.last_job;
            let _ = w.try_submit(spec(which, last), tasks(count, items), open);
        }
        Step::Append { job, items } => {
            let job = JobId(job);
            let first = w.broker.state.jobs.get(&job).map_or(0, |j| j.total);
            let _ = w.ask(Request::Append { job, first, tasks: tasks(2, items) });
        }
        Step::Close { job } => drop(w.ask(Request::Close { job: JobId(job) })),
        Step::Cancel { job, index, kill, force, queued_only } => {
            let tasks = index.map(|index| set(&[index, index + 1]));
            let how = CancelRequest { tasks, kill, force, queued_only };
            let _ = w.ask(Request::Cancel { job: JobId(job), how });
        }
        Step::Outcome { job, index, kind, n, repeat } => {
            let attempt = AttemptId { epoch: Epoch(1), n };
            let one = Outcome { attempt, ..outcome(JobId(job), index, OutcomeKind::ALL[kind]) };
            let outcomes = if repeat { vec![one.clone(), one] } else { vec![one] };
            w.report_values(*conn, outcomes.into_iter().map(|o| (o, &b"val"[..])).collect());
        }
        Step::Return { job, index } => w.say(*conn, Return { jobs: vec![(JobId(job), set(&[index]))] }),
        Step::Reconnect { holds } => {
            w.feed(Input::ConnClosed { conn: *conn });
            *conn = w.dial(7, false, None);
            w.say(
                *conn,
                Holding {
                    jobs: vec![(JobId(1), Ranges::from_range(0, holds))],
                    last: true,
                    rest: Rest::NotStarted,
                },
            );
            w.say(*conn, message::Credit { tasks_upto: 9, bytes_upto: 1 << 20 });
        }
        Step::Forget { job } => drop(w.ask(Request::Forget { job: JobId(job) })),
        Step::Retry { job } => {
            drop(w.ask(Request::Retry { job: JobId(job), key: JobKey([job as u8; 16]) }));
        }
        Step::Snapshot => snapshots.push(w.broker.snapshot().unwrap()),
        Step::Restart => {
            w.restart();
            *conn = w.relay();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn replay_is_the_state(steps in proptest::collection::vec(step(), 0..60)) {
        let mut w = World::new();
        let mut conn = w.relay();
        let mut snapshots = Vec::new();
        for step in steps {
            w.now += 1_000;
            play(&mut w, &mut conn, step, &mut snapshots);
            let live = w.broker.jobs.values().map(|live| live.assigned).sum::<u64>();
            prop_assert!(live <= 1_000);
        }
        let whole = recovered(&w, None);
        prop_assert_eq!(&whole.state, &w.broker.state);
        for (position, bytes) in &snapshots {
            let half = recovered(&w, Some((*position, bytes)));
            prop_assert_eq!(&half.state, &w.broker.state);
        }
    }
}

#[test]
fn what_a_crash_left_between_two_records_is_ended_at_the_next_start() {
    let mut w = World::new();
    let conn = w.relay();
    let first = w.submit(command(), 1);
    let second = w.submit(JobSpec { after: vec![After { job: first, ok: true }], ..command() }, 1);
    w.report(conn, vec![outcome(first, 0, OutcomeKind::Exit)]);
    // The cancel of the second job was not synced.
    w.disk.records.pop();
    w.restart();
    assert!(w.summary(second).ended_ms.is_none(), "it may be at the relay as far as the log can tell");
    let conn = w.dial(7, false, None);
    w.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
    assert_eq!(w.summary(second).state, pf_protocol::api::JobState::Cancelled);
}

#[test]
fn a_log_of_another_kind_is_refused_by_name() {
    let head = |position, kind, critical| RecordHead { position, kind, version: 1, critical };
    let mut recovery = Recovery::new();
    recovery.record(head(1, 999, false), b"").unwrap();
    let unknown = recovery.record(head(2, 999, true), b"").unwrap_err();
    let source = std::error::Error::source(&unknown).unwrap().to_string();
    assert_eq!(
        source,
        "record kind 999 version 1 is not known to this version of the broker, and it matters"
    );
    let hole = recovery.record(head(3, 999, false), b"").unwrap_err();
    assert_eq!(hole.to_string(), "record 3 came where 2 was expected");
    assert!(recovery.record(head(2, 1, true), b"\xc1").is_err());
    assert!(Recovery::new().snapshot(b"nonsense").is_err());
}

#[test]
fn a_record_that_contradicts_the_log_is_refused() {
    let mut w = World::new();
    let conn = w.relay();
    let job = w.submit(command(), 1);
    w.report(conn, vec![outcome(job, 0, OutcomeKind::Value)]);
    let (head, bytes) = w.disk.records.last().unwrap().clone();
    let mut recovery = Recovery::new();
    for (head, bytes) in &w.disk.records {
        recovery.record(*head, bytes).unwrap();
    }
    let twice = recovery.record(RecordHead { position: head.position + 1, ..head }, &bytes).unwrap_err();
    let source = std::error::Error::source(&twice).unwrap().to_string();
    assert_eq!(
        source,
        "TasksEnded record of j1 contradicts what came before: a task has ended before, or is not there"
    );
}
