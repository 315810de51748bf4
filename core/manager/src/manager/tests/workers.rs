//! Python workers: kept warm, piped to, lost.

use super::rig::{Rig, SECOND, exit, killed, python};
use crate::limits::{GATHER_US, PIPE_HEAD_US_MAX};
use crate::{Input, WorkerAnswer, WorkerEnd};
use bytes::Bytes;
use pf_protocol::job::JobSpec;
use pf_protocol::message::{CancelAttempts, Message, Recall};
use pf_protocol::outcome::{ErrorDetail, OutcomeKind, Ran};
use pf_protocol::{AttemptId, Epoch};
use std::collections::VecDeque;

#[test]
fn workers_stay_warm_and_short_tasks_are_piped() {
    let mut rig = Rig::new(2);
    rig.define(1, python());
    rig.dispatch(1, 100);
    assert_eq!(rig.workers.len(), 2);
    let piped = |rig: &Rig| rig.workers.values().map(VecDeque::len).collect::<Vec<_>>();
    assert_eq!(piped(&rig), [1, 1], "nothing is piped before it is known how long a task takes");
    rig.give(Input::WorkerUp { worker: 1 });
    rig.give(Input::WorkerUp { worker: 2 });
    rig.answer(1, 1, 90);
    assert_eq!(piped(&rig), [50, 49], "5 ms of 100 µs");
    rig.answer(1, 50, 90);
    rig.answer(2, 49, 90);
    assert_eq!(rig.core.counts(), (0, 0));
    rig.turn_end();
    assert_eq!(rig.outcomes().len(), 100);
    rig.dispatch(1, 1);
    assert_eq!(rig.workers.len(), 2, "a warm worker takes it");
}

#[test]
fn what_is_in_a_pipe_is_not_called_back() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    let ids = rig.dispatch(1, 100);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 90);
    let piped: Vec<AttemptId> = rig.workers[&1].iter().map(|t| t.attempt).collect();
    assert_eq!(piped, ids[1..51]);
    // 5 ms of work: it would be over before the worker had answered what it gives back.
    rig.say(Recall { id: 5, epoch: Epoch(1), attempts: Some(ids.clone()) });
    let Some(Message::Recalled(recalled)) = rig.messages.last() else { panic!("no answer") };
    assert_eq!((recalled.id, &recalled.attempts[..]), (5, &ids[51..]));
    rig.answer(1, 50, 90);
    rig.turn_end();
    rig.wait_until(rig.now + GATHER_US);
    assert_eq!((rig.outcomes().len(), rig.core.counts()), (51, (0, 0)), "each is told of once");
}

#[test]
fn nothing_waits_behind_a_task_that_turns_out_long() {
    let mut rig = Rig::new(2);
    rig.define(1, python());
    let ids = rig.dispatch(1, 40);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.give(Input::WorkerUp { worker: 2 });
    rig.answer(1, 1, 990);
    rig.answer(2, 1, 990);
    let piped = |rig: &Rig, worker| rig.workers[&worker].iter().map(|t| t.attempt).collect::<Vec<_>>();
    let (first, second) = (piped(&rig, 1), piped(&rig, 2));
    assert_eq!((first.len(), second.len()), (5, 5), "5 ms of 1 ms");
    rig.wait_until(rig.now + PIPE_HEAD_US_MAX / 2);
    rig.answer(2, 4, 990);
    rig.wait_until(rig.now + PIPE_HEAD_US_MAX / 2);
    assert_eq!(piped(&rig, 1), first[..1], "it runs for long, and the others are taken back");
    assert_eq!(rig.core.counts(), (ids.len() - 8, 2));
    let before = rig.workers[&2].len();
    rig.answer(2, before, 990);
    assert_eq!(piped(&rig, 2)[..4], first[1..], "they are the first that are given to another");
}

#[test]
fn what_is_in_a_pipe_is_cancelled_at_once() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    let ids = rig.dispatch(1, 4);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 990);
    // One that runs and one that does not; who only wants what has not started cancelled gets the one.
    rig.say(CancelAttempts { epoch: Epoch(1), attempts: ids[1..3].to_vec(), kill: false });
    rig.turn_end();
    rig.wait_until(rig.now + GATHER_US);
    let ends: Vec<_> = rig.outcomes().iter().map(|o| (o.attempt, o.kind, o.ran)).collect();
    assert_eq!(ends[1..], [(ids[2], OutcomeKind::Cancelled, Ran::No)]);
    assert_eq!(rig.workers[&1].iter().map(|t| t.attempt).collect::<Vec<_>>(), [ids[1], ids[3]]);
    assert!(rig.worker_signals.is_empty());
    rig.answer(1, 2, 990);
    rig.turn_end();
    let values = rig.outcomes().iter().filter(|o| o.kind == OutcomeKind::Value).count();
    assert_eq!((values, rig.core.counts()), (3, (0, 0)));
}

#[test]
fn long_python_tasks_are_not_piped() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 4);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 20_000);
    assert_eq!(rig.workers[&1].len(), 1);
    assert_eq!(rig.core.counts(), (2, 1));
}

#[test]
fn a_dead_worker_loses_one_task_and_gives_back_the_others() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    let ids = rig.dispatch(1, 10);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 10);
    // Tasks 2 to 10 are in its pipe. Two ended, their answers were not flushed; the third was running.
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::Ended { end: killed(11), marked: 3 } });
    rig.turn_end();
    rig.wait_until(rig.now + GATHER_US);
    let lost: Vec<_> = rig.outcomes().into_iter().filter(|o| o.kind == OutcomeKind::WorkerLost).collect();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].attempt, ids[3]);
    let error = lost[0].error.as_ref().unwrap();
    assert_eq!(error.message, "the worker process was killed by signal 11 (SIGSEGV) while it ran this task");
    assert_eq!(rig.core.counts(), (8, 0));
    rig.give(Input::WorkerUp { worker: 2 });
    let order: Vec<AttemptId> = rig.workers[&2].iter().map(|t| t.attempt).collect();
    assert_eq!(order, [&ids[1..3], &ids[4..]].concat(), "in the order in which they came");
}

#[test]
fn a_python_that_is_missing_refuses_its_tasks_and_only_for_a_while() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 5);
    let error = ErrorDetail { message: "no such interpreter".into(), ..ErrorDetail::default() };
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::NotStarted(error) });
    rig.turn_end();
    assert!(rig.outcomes().iter().all(|o| o.kind == OutcomeKind::Refused && o.ran == Ran::No));
    assert_eq!(rig.outcomes().len(), 5);
    rig.wait_until(rig.now + 11 * SECOND);
    rig.workers.clear();
    rig.dispatch(1, 1);
    assert_eq!(rig.workers.len(), 1, "it is tried again");
}

#[test]
fn a_worker_that_dies_at_its_start_is_tried_three_times() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 1);
    for worker in 1..=3 {
        assert!(rig.workers.contains_key(&worker));
        rig.give(Input::WorkerGone { worker, end: WorkerEnd::Ended { end: exit(1), marked: 0 } });
    }
    rig.turn_end();
    assert_eq!(rig.outcomes()[0].kind, OutcomeKind::Refused);
    assert_eq!(rig.core.counts(), (0, 0));
}

#[test]
fn a_python_task_over_its_limit_takes_its_worker_with_it() {
    let mut rig = Rig::new(1);
    rig.define(1, JobSpec { time_limit_ms: Some(1_000), ..python() });
    let id = rig.dispatch(1, 1)[0];
    rig.wait_until(rig.now + 2 * SECOND);
    assert!(rig.worker_signals.is_empty(), "the start of the worker is not the task's time");
    rig.give(Input::WorkerUp { worker: 1 });
    rig.wait_until(rig.now + 1_100_000);
    assert_eq!(rig.worker_signals, [(1, 15)]);
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::Ended { end: killed(15), marked: 0 } });
    rig.turn_end();
    assert_eq!((rig.outcomes()[0].attempt, rig.outcomes()[0].kind), (id, OutcomeKind::TimeLimit));
}

#[test]
fn a_worker_that_answers_what_was_not_asked_is_killed() {
    let mut rig = Rig::new(1);
    rig.define(1, python());
    rig.dispatch(1, 1);
    rig.give(Input::WorkerUp { worker: 1 });
    let answer = WorkerAnswer {
        seq: 99,
        kind: OutcomeKind::Value,
        ran_us: 1,
        value: Bytes::new(),
        is_large: false,
        error: None,
    };
    rig.give(Input::WorkerAnswers { worker: 1, answers: vec![answer] });
    assert_eq!(rig.worker_signals, [(1, 9)]);
}

#[test]
fn what_ended_without_an_answer_is_not_run_again_if_nothing_may_run_twice() {
    let mut rig = Rig::new(1);
    rig.define(1, JobSpec { on_lost: pf_protocol::job::OnLost::Fail, ..python() });
    let ids = rig.dispatch(1, 5);
    rig.give(Input::WorkerUp { worker: 1 });
    rig.answer(1, 1, 10);
    // As above: the second and third ended unheard, the fourth was running, the fifth had not started.
    rig.give(Input::WorkerGone { worker: 1, end: WorkerEnd::Ended { end: killed(11), marked: 3 } });
    rig.turn_end();
    let ends: Vec<_> = rig.outcomes().into_iter().map(|o| (o.attempt, o.kind, o.ran)).collect();
    let lost = |n: usize| (ids[n], OutcomeKind::Lost, Ran::Yes);
    assert_eq!(ends[1..], [lost(1), lost(2), (ids[3], OutcomeKind::WorkerLost, Ran::Yes)]);
    rig.give(Input::WorkerUp { worker: 2 });
    assert_eq!(rig.workers[&2].iter().map(|t| t.attempt).collect::<Vec<_>>(), [ids[4]]);
}
