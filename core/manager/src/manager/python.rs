//! What happens to Python workers and the tasks in their pipes.

use super::attempts::Ending;
use super::commands::{judge, signal_name, with_tail};
use super::workers::{Phase, Worker};
use super::{AttemptEnd, ManagerCore};
use crate::limits::{WORKER_REQUEUES_MAX, WORKER_REST_US, WORKER_START_FAILURES_MAX};
use crate::{Effect, ProcessEnd, ProcessStatus, WorkerAnswer, WorkerEnd};
use pf_protocol::job::OnLost;
use pf_protocol::limits::INLINE_BYTES_MAX;
use pf_protocol::outcome::{ErrorDetail, OutcomeKind, Ran};
use pf_protocol::payload::PayloadRef;
use pf_protocol::{AttemptId, Micros};

/// What a worker needs for a task beside the function's own time, microseconds: so that an estimate is never 0.
const WORKER_OVERHEAD_US: Micros = 10;

impl ManagerCore {
    pub(super) fn on_worker_up(&mut self, now: Micros, id: u32, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.all.get_mut(&id) else { return };
        if !matches!(worker.phase, Phase::Starting { .. }) {
            return;
        }
        worker.phase = Phase::Up;
        if let Some(kind) = worker.kind.and_then(|kind| self.workers.kinds.get_mut(&kind)) {
            (kind.failures, kind.rest) = (0, None);
        }
        self.dirty = true;
        match worker.pipe.front().map(|first| first.attempt) {
            Some(first) => self.begin(now, first, out),
            None => self.rest_worker(now, id),
        }
    }

    pub(super) fn on_worker_answers(
        &mut self,
        now: Micros,
        id: u32,
        answers: Vec<WorkerAnswer>,
        out: &mut Vec<Effect>,
    ) {
        for answer in answers {
            let Some(worker) = self.workers.all.get_mut(&id) else { return };
            if worker.pipe.front().is_none_or(|first| first.seq != answer.seq) {
                // Not what was asked of it: what it says cannot be trusted any more.
                worker.phase = Phase::Ending;
                out.push(Effect::SignalWorker { worker: id, signal: 9 });
                return;
            }
            let Some(first) = worker.pop() else { return };
            self.on_answer(now, first.attempt, answer);
        }
        let Some(worker) = self.workers.all.get(&id) else { return };
        match worker.pipe.front().map(|first| first.attempt) {
            Some(next) => self.begin(now, next, out),
            None => self.rest_worker(now, id),
        }
        self.dirty = true;
    }

    fn on_answer(&mut self, now: Micros, id: AttemptId, answer: WorkerAnswer) {
        let ran_us = Micros::from(answer.ran_us);
        let started = now.saturating_sub(ran_us);
        let job = self.attempts.all.get(&id).and_then(|a| self.attempts.jobs.get_mut(&a.job));
        if let Some(job) = job {
            job.learn(ran_us + WORKER_OVERHEAD_US);
        }
        let mut end = AttemptEnd { error: answer.error, ..AttemptEnd::new(answer.kind, started, ran_us) };
        if answer.kind == OutcomeKind::Refused {
            end.ran = Ran::No;
        }
        let fits = if answer.is_large {
            PayloadRef::read(&answer.value).is_some()
        } else {
            answer.value.len() <= INLINE_BYTES_MAX
        };
        if !fits {
            let message = format!(
                "the worker told a result that is none: {} bytes, {}",
                answer.value.len(),
                if answer.is_large { "which name no payload" } else { "more than may lie in a frame" }
            );
            let hint =
                Some("the worker's process was tampered with, or this is a bug: please report it".into());
            let error = ErrorDetail { message, hint, ..ErrorDetail::default() };
            let other = AttemptEnd::new(OutcomeKind::Other, started, ran_us).failed(error);
            return self.end_attempt(id, other, b"");
        }
        self.end_attempt_with(id, end, &answer.value, answer.is_large);
    }

    /// A worker's pipe is empty: its seat is free, it stays warm.
    fn rest_worker(&mut self, now: Micros, id: u32) {
        let Some(worker) = self.workers.all.get_mut(&id) else { return };
        worker.idle_since = now;
        if std::mem::take(&mut worker.seated) {
            let seat = worker.seat.clone();
            self.free(&seat);
        }
        let Some(worker) = self.workers.all.get(&id) else { return };
        if let Some(kind) = worker.kind.filter(|_| worker.phase == Phase::Up) {
            self.workers.idle.insert((kind, id));
        }
    }

    pub(super) fn end_worker(&mut self, id: u32, out: &mut Vec<Effect>) {
        if let Some(worker) = self.workers.all.get_mut(&id) {
            worker.phase = Phase::Ending;
            if let Some(kind) = worker.kind {
                self.workers.idle.remove(&(kind, id));
            }
            out.push(Effect::EndWorker { worker: id });
        }
    }

    pub(super) fn on_worker_gone(&mut self, now: Micros, id: u32, end: WorkerEnd) {
        let Some(mut worker) = self.workers.remove(id) else { return };
        if worker.seated {
            self.free(&worker.seat);
        }
        self.dirty = true;
        match end {
            WorkerEnd::NotStarted(error) => {
                self.start_failed(now, worker.kind, WORKER_START_FAILURES_MAX, &error);
                while let Some(first) = worker.pop() {
                    self.end_not_started(now, first.attempt, OutcomeKind::Refused, error.clone());
                }
            }
            WorkerEnd::Ended { end, .. } if matches!(worker.phase, Phase::Starting { .. }) => {
                self.on_failed_start(now, worker, &end);
            }
            WorkerEnd::Ended { end, marked } => self.on_lost_worker(now, worker, &end, marked),
        }
    }

    /// It ended without a HELLO: its tasks did not start, but they will not start next time either, if it goes on like this.
    fn on_failed_start(&mut self, now: Micros, mut worker: Worker, end: &ProcessEnd) {
        let how = match end.status {
            ProcessStatus::Exit(code) => format!("with exit code {code}"),
            ProcessStatus::Signal(signal) => format!("by {}", signal_name(signal)),
        };
        let hint = "the interpreter must be Python 3.8 or newer; run it by hand on a node to see".to_string();
        let message = format!("the Python worker ended {how} before it was ready");
        let error = with_tail(ErrorDetail { message, hint: Some(hint), ..ErrorDetail::default() }, end);
        let failures = self.start_failed(now, worker.kind, 1, &error);
        let mut again = Vec::new();
        while let Some(first) = worker.pop() {
            if failures >= WORKER_START_FAILURES_MAX {
                self.end_not_started(now, first.attempt, OutcomeKind::Refused, error.clone());
            } else {
                again.push(first.attempt);
            }
        }
        self.requeue(now, again);
    }

    /// Counts failed starts of a kind; at the bound it rests.
    fn start_failed(&mut self, now: Micros, kind: Option<u32>, by: u32, error: &ErrorDetail) -> u32 {
        let Some(kind) = kind.and_then(|kind| self.workers.kinds.get_mut(&kind)) else { return by };
        kind.failures += by;
        let failures = kind.failures;
        if failures >= WORKER_START_FAILURES_MAX {
            (kind.failures, kind.rest) = (0, Some((now + WORKER_REST_US, error.clone())));
        }
        failures
    }

    /// It died in the middle. The first task without a marker was running; those before it ended, but nobody knows how.
    fn on_lost_worker(&mut self, now: Micros, mut worker: Worker, end: &ProcessEnd, marked: u64) {
        let mut again = Vec::new();
        let mut running = None;
        while let Some(first) = worker.pop() {
            if first.seq <= marked && self.must_not_run_twice(first.attempt) {
                self.end_without_answer(now, first.attempt, end);
            } else if first.seq <= marked {
                match self.attempts.all.get_mut(&first.attempt) {
                    // Ended on purpose: its end is known whatever it said last.
                    Some(attempt) if attempt.ending.is_some() => running = Some(first.attempt),
                    Some(attempt) => {
                        attempt.requeues += 1;
                        again.push(first.attempt);
                    }
                    None => {}
                }
            } else if running.is_none() {
                running = Some(first.attempt);
            } else {
                again.push(first.attempt);
            }
        }
        if let Some(id) = running {
            self.end_with_worker(now, id, end);
        }
        let (lost, again): (Vec<_>, Vec<_>) = again
            .into_iter()
            .partition(|id| self.attempts.all.get(id).is_some_and(|a| a.requeues > WORKER_REQUEUES_MAX));
        lost.into_iter().for_each(|id| self.end_with_worker(now, id, end));
        self.requeue(now, again);
    }

    /// Whether its job wants no second run, and it is not being ended for a reason of its own.
    fn must_not_run_twice(&self, id: AttemptId) -> bool {
        let attempt = self.attempts.all.get(&id).filter(|attempt| attempt.ending.is_none());
        let job = attempt.and_then(|attempt| self.attempts.jobs.get(&attempt.job));
        job.is_some_and(|job| job.def.spec.on_lost == OnLost::Fail)
    }

    /// It ran to its end, and what it answered went down with the worker.
    fn end_without_answer(&mut self, now: Micros, id: AttemptId, end: &ProcessEnd) {
        let message = "it ran to its end, but its worker process ended before it had told the result".into();
        let hint = "its job says that nothing runs twice; `pf job retry --failed` runs it again".to_string();
        let error = ErrorDetail { message, hint: Some(hint), ..ErrorDetail::default() };
        let lost = AttemptEnd::new(OutcomeKind::Lost, now, 0).failed(with_tail(error, end));
        self.end_attempt(id, lost, b"");
    }

    /// An attempt ends with the worker under it.
    fn end_with_worker(&mut self, now: Micros, id: AttemptId, end: &ProcessEnd) {
        let Some(attempt) = self.attempts.all.get(&id) else { return };
        let since = attempt.state.running_since().unwrap_or(now);
        let ending = self.ending_of(attempt.ending.as_ref(), end);
        let (kind, error) = judge(end, ending.as_ref(), self.time_limit_ms(id));
        let by_us = matches!(kind, OutcomeKind::TimeLimit | OutcomeKind::Cancelled | OutcomeKind::Lost);
        let (kind, mut error) = match error {
            Some(error) if by_us || kind == OutcomeKind::OutOfMemory => (kind, error),
            other => (OutcomeKind::WorkerLost, other.unwrap_or_default()),
        };
        if kind == OutcomeKind::WorkerLost {
            let how = match end.status {
                ProcessStatus::Exit(code) => format!("ended with exit code {code}"),
                ProcessStatus::Signal(signal) => format!("was killed by {}", signal_name(signal)),
            };
            error.message = format!("the worker process {how} while it ran this task");
        }
        let end = AttemptEnd::new(kind, since, now.saturating_sub(since)).failed(with_tail(error, end));
        self.end_attempt(id, end, b"");
    }

    /// What was in a pipe and has not started.
    pub(super) fn on_taken_back(&mut self, now: Micros, id: u32, attempts: Vec<AttemptId>) {
        let Some(worker) = self.workers.all.get_mut(&id) else { return };
        let taken = attempts.into_iter().filter(|attempt| worker.remove(*attempt).is_some()).collect();
        for left in &worker.pipe {
            // It has started: now it is wanted.
            if let Some(attempt) = self.attempts.all.get_mut(&left.attempt)
                && attempt.ending == Some(Ending::Unwanted)
            {
                attempt.ending = None;
            }
        }
        let (lane, empty) = (worker.kind.is_none(), worker.pipe.is_empty());
        if empty && lane {
            if let Some(lane) = self.workers.remove(id) {
                self.free(&lane.seat);
            }
        } else if empty {
            self.rest_worker(now, id);
        }
        self.dirty = true;
        self.requeue(now, taken);
    }

    /// Tasks that did not run to their end go back to the front of the queue, in order; those that were to end, end.
    fn requeue(&mut self, now: Micros, attempts: Vec<AttemptId>) {
        for id in attempts.into_iter().rev() {
            let ending = self.attempts.all.get(&id).and_then(|a| a.ending.clone());
            match ending {
                None => self.attempts.hold_again(id),
                Some(Ending::GivenUp(why)) => {
                    let error = ErrorDetail { message: why, ..ErrorDetail::default() };
                    self.end_not_started(now, id, OutcomeKind::Lost, error);
                }
                Some(_) => {
                    let error = ErrorDetail {
                        message: "cancelled before it started".into(),
                        ..ErrorDetail::default()
                    };
                    self.end_not_started(now, id, OutcomeKind::Cancelled, error);
                }
            }
        }
    }
}
