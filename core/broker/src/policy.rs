//! What the end of an attempt means for its task. Pure functions, called by [`crate::outcomes`].

use crate::job::History;
use crate::limits::INNOCENT_LOSSES_MAX;
use crate::record::CountAs;
use pf_protocol::job::{JobSpec, OnLost};
use pf_protocol::limits::LOST_ATTEMPTS_MAX;
use pf_protocol::outcome::{Outcome, OutcomeKind, Ran};

/// The verdict on one attempt's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The task ends so.
    End(OutcomeKind),
    /// It runs again, and this is counted.
    Again(CountAs),
    /// It did not run: it goes back to the queue, nothing is counted.
    NotRun,
    /// An older attempt than one that is known: history.
    Stale,
}

/// What the broker knows beside the outcome.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// The task is to be cancelled.
    pub cancelled: bool,
    /// A newer attempt is known, or must exist by now.
    pub older: bool,
}

/// Judges the end of an attempt of a task that has not ended.
///
/// Relays say [`OutcomeKind::NodeLost`] for a loss of which the task is a suspect, and [`OutcomeKind::Lost`] or an unasked [`OutcomeKind::Cancelled`]
/// for one that is not held against it (walltime, preemption, a drain).
#[must_use]
pub fn judge(spec: &JobSpec, history: History, outcome: &Outcome, about: Circumstances) -> Verdict {
    if outcome.kind.is_ok() {
        return Verdict::End(OutcomeKind::Value);
    }
    let is_loss = matches!(outcome.kind, OutcomeKind::NodeLost | OutcomeKind::Lost | OutcomeKind::Cancelled);
    if about.cancelled && is_loss {
        return Verdict::End(OutcomeKind::Cancelled);
    }
    let known = outcome.attempt.epoch.0 > 0 && outcome.attempt <= history.last;
    if known || about.older {
        return Verdict::Stale;
    }
    if about.cancelled {
        return Verdict::End(outcome.kind);
    }
    if is_loss {
        return judge_loss(spec, history, outcome);
    }
    let retried = match outcome.kind {
        OutcomeKind::Exit | OutcomeKind::Signal | OutcomeKind::Exception | OutcomeKind::WorkerLost => {
            spec.retry.failure
        }
        OutcomeKind::OutOfMemory => spec.retry.out_of_memory,
        OutcomeKind::TimeLimit => spec.retry.time_limit,
        _ => false,
    };
    if retried && history.failures + 1 < spec.max_attempts {
        Verdict::Again(CountAs::Failure)
    } else {
        Verdict::End(outcome.kind)
    }
}

fn judge_loss(spec: &JobSpec, history: History, outcome: &Outcome) -> Verdict {
    if outcome.ran == Ran::No {
        return Verdict::NotRun;
    }
    if spec.on_lost == OnLost::Fail {
        return Verdict::End(OutcomeKind::Lost);
    }
    if outcome.kind == OutcomeKind::NodeLost {
        let convicted = history.losses + 1 >= LOST_ATTEMPTS_MAX;
        return if convicted { Verdict::End(OutcomeKind::NodeLost) } else { Verdict::Again(CountAs::Loss) };
    }
    let given_up = history.innocent + 1 >= INNOCENT_LOSSES_MAX;
    if given_up { Verdict::End(OutcomeKind::Lost) } else { Verdict::Again(CountAs::Innocent) }
}

/// The first line of a message, cut, by which errors are grouped.
#[must_use]
pub fn first_line(message: &str) -> String {
    let line = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
    line.chars().take(crate::limits::ERROR_LINE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::job::Retry;
    use pf_protocol::{AttemptId, Epoch};

    const CALM: Circumstances = Circumstances { cancelled: false, older: false };

    fn outcome(kind: OutcomeKind, n: u32) -> Outcome {
        Outcome { kind, attempt: AttemptId { epoch: Epoch(1), n }, ..Outcome::default() }
    }

    fn spec() -> JobSpec {
        let retry = Retry { failure: true, out_of_memory: false, time_limit: true };
        JobSpec { max_attempts: 3, retry, ..JobSpec::default() }
    }

    #[test]
    fn failures_are_tried_again_by_cause_until_attempts_are_used_up() {
        let again = Verdict::Again(CountAs::Failure);
        let at = |failures| History { failures, ..History::default() };
        assert_eq!(judge(&spec(), at(0), &outcome(OutcomeKind::Exit, 1), CALM), again);
        assert_eq!(judge(&spec(), at(1), &outcome(OutcomeKind::TimeLimit, 1), CALM), again);
        let end = Verdict::End(OutcomeKind::Exit);
        assert_eq!(judge(&spec(), at(2), &outcome(OutcomeKind::Exit, 1), CALM), end);
        for kind in [OutcomeKind::OutOfMemory, OutcomeKind::Refused, OutcomeKind::TooLarge] {
            assert_eq!(judge(&spec(), at(0), &outcome(kind, 1), CALM), Verdict::End(kind));
        }
    }

    #[test]
    fn success_counts_whatever_its_attempt_and_failure_only_from_the_newest() {
        let last = AttemptId { epoch: Epoch(1), n: 5 };
        let history = History { last, ..History::default() };
        assert_eq!(judge(&spec(), history, &outcome(OutcomeKind::Exit, 5), CALM), Verdict::Stale);
        let value = outcome(OutcomeKind::Value, 2);
        assert_eq!(judge(&spec(), history, &value, CALM), Verdict::End(OutcomeKind::Value));
        let older = Circumstances { older: true, ..CALM };
        assert_eq!(judge(&spec(), history, &outcome(OutcomeKind::Exit, 6), older), Verdict::Stale);
    }

    #[test]
    fn a_suspect_is_convicted_after_its_last_loss() {
        let at = |losses| History { losses, ..History::default() };
        let lost = outcome(OutcomeKind::NodeLost, 9);
        assert_eq!(judge(&spec(), at(0), &lost, CALM), Verdict::Again(CountAs::Loss));
        let convicted = judge(&spec(), at(LOST_ATTEMPTS_MAX - 1), &lost, CALM);
        assert_eq!(convicted, Verdict::End(OutcomeKind::NodeLost));
    }

    #[test]
    fn on_lost_fail_ends_what_may_have_run_and_sends_again_what_did_not() {
        let spec = JobSpec { on_lost: OnLost::Fail, ..spec() };
        let lost = outcome(OutcomeKind::NodeLost, 1);
        assert_eq!(judge(&spec, History::default(), &lost, CALM), Verdict::End(OutcomeKind::Lost));
        let held = Outcome { ran: Ran::No, ..lost };
        assert_eq!(judge(&spec, History::default(), &held, CALM), Verdict::NotRun);
    }

    #[test]
    fn walltime_is_not_held_against_a_task_but_has_an_end() {
        let at = |innocent| History { innocent, losses: 3, ..History::default() };
        let lost = outcome(OutcomeKind::Lost, 1);
        assert_eq!(judge(&spec(), at(0), &lost, CALM), Verdict::Again(CountAs::Innocent));
        assert_eq!(judge(&spec(), at(19), &lost, CALM), Verdict::End(OutcomeKind::Lost));
    }

    #[test]
    fn a_cancelled_task_is_not_tried_again() {
        let cancelled = Circumstances { cancelled: true, older: false };
        let judge = |kind| judge(&spec(), History::default(), &outcome(kind, 1), cancelled);
        assert_eq!(judge(OutcomeKind::NodeLost), Verdict::End(OutcomeKind::Cancelled));
        assert_eq!(judge(OutcomeKind::Cancelled), Verdict::End(OutcomeKind::Cancelled));
        assert_eq!(judge(OutcomeKind::Exit), Verdict::End(OutcomeKind::Exit));
    }

    #[test]
    fn lines_that_group_are_short() {
        assert_eq!(first_line("\n  ValueError: x \nmore"), "ValueError: x");
        assert_eq!(first_line(&"é".repeat(500)).chars().count(), 200);
        assert_eq!(first_line(""), "");
    }
}
