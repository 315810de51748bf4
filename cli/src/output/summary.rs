//! A job in words: tasks by state, failures in groups, where the time went. Used by `wait`, `run`, `job show`.

use super::table::count;
use crate::units::{show_time, show_us};
use pf_protocol::api::{Counts, ErrorGroup, JobState, JobSummary, Times};

/// The word of a state, as in the API.
#[must_use]
pub fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Waiting => "waiting",
        JobState::Active => "active",
        JobState::Ok => "ok",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// `90 ok, 8 failed, 2 running`: what is not zero.
#[must_use]
pub fn counts_words(counts: &Counts) -> String {
    let parts = [
        (counts.ok, "ok"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
        (counts.running, "running"),
        (counts.assigned, "assigned"),
        (counts.queued, "queued"),
    ];
    let words: Vec<String> =
        parts.iter().filter(|p| p.0 > 0).map(|(n, word)| format!("{n} {word}")).collect();
    if words.is_empty() { "no tasks".into() } else { words.join(", ") }
}

/// `queued 1.2 s, transferred 3.0 ms, held 0, ran 4.5 s (means of 100 tasks)`.
#[must_use]
pub fn times_words(times: &Times) -> Option<String> {
    let mean = |sum: u64| sum.checked_div(times.tasks).map(show_us);
    let (queued, transferred) = (mean(times.queued_us)?, mean(times.transferred_us)?);
    let (held, ran) = (mean(times.held_us)?, mean(times.ran_us)?);
    let of = if times.tasks == 1 { "of its task".into() } else { format!("means of {} tasks", times.tasks) };
    Some(format!("queued {queued}, transferred {transferred}, held {held}, ran {ran} ({of})"))
}

/// One group of failures: head line and where.
#[must_use]
pub fn error_lines(group: &ErrorGroup) -> Vec<String> {
    // Of a task that was ended from outside the kind says more than how its process took that.
    let code = match (group.kind.as_str(), group.exit, group.signal) {
        ("exit", Some(exit), _) => format!("exit code {exit}"),
        ("signal", _, Some(signal)) => format!("signal {signal}"),
        _ => group.kind.replace('_', " "),
    };
    // The message often is the code in words already.
    let what = match group.message.as_str() {
        "" => code,
        message if message.contains(&code) => message.to_owned(),
        message => format!("{code}: {message}"),
    };
    let mut lines = vec![format!("{}: {what}", count(group.count, "task"))];
    let mut nodes: Vec<(&String, &u64)> = group.nodes.iter().collect();
    nodes.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), *name));
    let shown: Vec<String> = nodes.iter().take(5).map(|(name, n)| format!("{name} {n}")).collect();
    let more = nodes.len().saturating_sub(5);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    let examples: Vec<String> = group.examples.iter().take(5).map(u64::to_string).collect();
    let mut place = Vec::new();
    if !shown.is_empty() {
        place.push(format!("on {}{more}", shown.join(", ")));
    }
    if !examples.is_empty() {
        place.push(format!("for instance task {}", examples.join(", ")));
    }
    if !place.is_empty() {
        lines.push(format!("  {}", place.join("; ")));
    }
    lines
}

/// A job that is over (or not), in a few lines of talk.
#[must_use]
pub fn end_lines(job: &JobSummary) -> Vec<String> {
    let mut lines = vec![format!(
        "{}{} {}: {}",
        job.job,
        name_part(job),
        state_word(job.state),
        counts_words(&job.counts)
    )];
    lines.extend(job.reason.iter().map(|reason| format!("  {reason}")));
    for group in &job.errors {
        lines.extend(error_lines(group).into_iter().map(|line| format!("  {line}")));
    }
    lines.extend(times_words(&job.times).map(|words| format!("  {words}")));
    lines
}

fn name_part(job: &JobSummary) -> String {
    job.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default()
}

/// Everything about one job, for `job show`.
#[must_use]
pub fn show_lines(job: &JobSummary) -> Vec<String> {
    let mut lines = end_lines(job);
    let mut field = |name: &str, value: String| lines.push(format!("  {name:12}{value}"));
    field("runs", job.what.clone());
    field("endpoint", job.endpoint.clone());
    field("owner", job.owner.clone());
    field("submitted", format!("{} UTC", show_time(job.submitted_ms)));
    if let Some(ended) = job.ended_ms {
        field(
            "ended",
            format!(
                "{} UTC, after {}",
                show_time(ended),
                show_us(ended.saturating_sub(job.submitted_ms) * 1_000)
            ),
        );
    }
    if !job.labels.is_empty() {
        let labels: Vec<String> = job.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        field("labels", labels.join(" "));
    }
    if job.open {
        field("open", "takes more tasks".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn job() -> JobSummary {
        JobSummary {
            job: pf_protocol::JobId(12),
            key: "00".repeat(16),
            name: Some("sweep".into()),
            labels: BTreeMap::from([("project".into(), "ising".into())]),
            owner: "ann".into(),
            endpoint: "local".into(),
            what: "./simulate --seed {index}".into(),
            state: JobState::Failed,
            reason: None,
            open: false,
            counts: Counts { total: 100, ok: 90, failed: 8, cancelled: 2, ..Counts::default() },
            submitted_ms: 1_795_501_805_000,
            ended_ms: Some(1_795_501_815_500),
            times: Times {
                queued_us: 5_000_000,
                transferred_us: 200_000,
                held_us: 0,
                ran_us: 240_000_000,
                tasks: 98,
            },
            errors: vec![ErrorGroup {
                kind: "exit".into(),
                message: "exit code 3".into(),
                exit: Some(3),
                signal: None,
                count: 8,
                nodes: BTreeMap::from([("n1".into(), 2), ("n2".into(), 6)]),
                examples: vec![4, 7, 9],
            }],
            spec: None,
        }
    }

    #[test]
    fn a_job_is_told_in_groups_and_times() {
        insta::assert_snapshot!(show_lines(&job()).join("\n"), @r"
        j12 sweep failed: 90 ok, 8 failed, 2 cancelled
          8 tasks: exit code 3
            on n2 6, n1 2; for instance task 4, 7, 9
          queued 51 ms, transferred 2.0 ms, held 0, ran 2.4 s (means of 98 tasks)
          runs        ./simulate --seed {index}
          endpoint    local
          owner       ann
          submitted   2026-11-24 06:30:05 UTC
          ended       2026-11-24 06:30:15 UTC, after 10.5 s
          labels      project=ising
        ");
    }
}
