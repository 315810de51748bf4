//! What happens to the processes of command tasks.

use super::attempts::{Ending, State};
use super::{AttemptEnd, ManagerCore};
use crate::{Effect, OutOfMemory, ProcessEnd, ProcessStatus};
use pf_protocol::outcome::{ErrorDetail, OutcomeKind};
use pf_protocol::{AttemptId, Micros};

impl ManagerCore {
    pub(super) fn on_command_started(&mut self, now: Micros, id: AttemptId, out: &mut Vec<Effect>) {
        self.begin(now, id, out);
    }

    /// An attempt in a pipe runs from now on, as far as can be known.
    pub(super) fn begin(&mut self, now: Micros, id: AttemptId, out: &mut Vec<Effect>) {
        let Some(attempt) = self.attempts.all.get_mut(&id) else { return };
        // Told twice, or of another life: nothing changes.
        let State::Piped { worker } = attempt.state else { return };
        attempt.state = State::Running { worker, since: now };
        self.begun.push_back((now, id));
        match attempt.ending.take() {
            None | Some(Ending::Unwanted) => self.watch_limit(now, id),
            // It was to end before it had begun.
            Some(ending) => self.terminate(now, id, ending, out),
        }
    }

    pub(super) fn on_command_not_started(&mut self, now: Micros, id: AttemptId, error: ErrorDetail) {
        let Some(attempt) = self.attempts.all.get(&id) else { return };
        if let State::Piped { worker } = attempt.state {
            self.leave_lane(worker, id);
            self.end_not_started(now, id, OutcomeKind::Refused, error);
        }
    }

    pub(super) fn on_command_ended(&mut self, now: Micros, id: AttemptId, end: ProcessEnd) {
        let Some(attempt) = self.attempts.all.get(&id) else { return };
        let State::Running { worker, .. } = attempt.state else { return };
        let ending = self.ending_of(attempt.ending.as_ref(), &end);
        if let Some(job) = self.attempts.jobs.get_mut(&attempt.job) {
            job.learn(end.ran_us);
        }
        self.leave_lane(worker, id);
        let limit_ms = self.time_limit_ms(id);
        let (kind, error) = judge(&end, ending.as_ref(), limit_ms);
        let outcome = AttemptEnd {
            error: error.map(|e| Box::new(with_tail(e, &end))),
            usage: Some(end.usage),
            ..AttemptEnd::new(kind, now.saturating_sub(end.ran_us), end.ran_us)
        };
        self.end_attempt(id, outcome, b"");
    }

    /// A command is over; so is its lane, if no other waits in it.
    pub(super) fn leave_lane(&mut self, lane: u32, id: AttemptId) {
        let Some(worker) = self.workers.all.get_mut(&lane) else { return };
        worker.remove(id);
        self.dirty = true;
        if worker.pipe.is_empty()
            && let Some(lane) = self.workers.remove(lane)
        {
            self.free(&lane.seat);
        }
    }

    pub(super) fn time_limit_ms(&self, id: AttemptId) -> Option<u64> {
        let attempt = self.attempts.all.get(&id)?;
        self.attempts.jobs.get(&attempt.job)?.def.spec.time_limit_ms
    }
}

/// What the end of a process means, given why this manager may have ended it.
pub(super) fn judge(
    end: &ProcessEnd,
    ending: Option<&Ending>,
    limit_ms: Option<u64>,
) -> (OutcomeKind, Option<ErrorDetail>) {
    let success = end.status == ProcessStatus::Exit(0);
    let (kind, message) = match (ending, end.status) {
        (Some(Ending::TimeLimit), _) => {
            let limit = limit_ms.unwrap_or(0) as f64 / 1e3;
            (OutcomeKind::TimeLimit, format!("killed at its time limit of {limit} s"))
        }
        // It ended well before the order to end reached it.
        (_, ProcessStatus::Exit(0)) => (OutcomeKind::Value, String::new()),
        (Some(Ending::Cancelled | Ending::Unwanted | Ending::Dropped), _) => {
            (OutcomeKind::Cancelled, "cancelled while it ran, and killed".into())
        }
        // `Lost`, not `NodeLost`: the manager itself tells it, so the task is no suspect.
        (Some(Ending::GivenUp(why)), _) => (OutcomeKind::Lost, format!("killed: {why}")),
        (None, _) if end.out_of_memory.is_some() => (OutcomeKind::OutOfMemory, want_of_memory(end)),
        (None, ProcessStatus::Exit(code)) => (OutcomeKind::Exit, format!("exit code {code}")),
        (None, ProcessStatus::Signal(signal)) => {
            (OutcomeKind::Signal, format!("killed by {}", signal_name(signal)))
        }
    };
    if success && kind == OutcomeKind::Value {
        return (kind, None);
    }
    let mut error = ErrorDetail { message, ..ErrorDetail::default() };
    match end.status {
        ProcessStatus::Exit(code) => error.exit = Some(code),
        ProcessStatus::Signal(signal) => error.signal = Some(signal),
    }
    (kind, Some(error))
}

fn want_of_memory(end: &ProcessEnd) -> String {
    match end.out_of_memory {
        Some(OutOfMemory::Limit { used_bytes, limit_bytes }) => {
            let (used, limit) = (used_bytes >> 20, limit_bytes >> 20);
            format!("killed at its memory limit: it may have {limit} MiB and had {used} MiB")
        }
        _ => {
            let peak = end.usage.max_rss_kib >> 10;
            format!("killed by the kernel for want of memory; its largest process had {peak} MiB")
        }
    }
}

/// Adds the end of the standard error.
pub(super) fn with_tail(mut error: ErrorDetail, end: &ProcessEnd) -> ErrorDetail {
    if !end.stderr_tail.is_empty() {
        error.stderr_tail = Some(end.stderr_tail.clone());
    }
    error
}

/// `signal 9 (SIGKILL)`.
pub(super) fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}
