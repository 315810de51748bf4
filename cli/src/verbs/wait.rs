//! `wait`: until jobs are over, with a bar, then what became of them.

use crate::Context;
use crate::args::WaitArgs;
use crate::client::Client;
use crate::client::api::is_over;
use crate::error::Result;
use crate::exit::Exit;
use crate::limits::{NOTE_EVERY, PROGRESS_EVERY};
use crate::output::progress::Progress;
use crate::output::summary::end_lines;
use pf_protocol::JobId;
use pf_protocol::api::{JobState, JobSummary};
use std::time::{Duration, Instant};

/// `pf wait`.
pub async fn wait(context: &Context, args: &WaitArgs) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let deadline = args.timeout.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let mut exit = Exit::Ok;
    for job in &args.jobs {
        let summary = tokio::select! {
            summary = wait_with_bar(context, &client, *job, deadline) => summary?,
            _ = tokio::signal::ctrl_c() => {
                context.output.say(format!("{job} goes on; `pf wait {job}` waits again, `pf cancel {job}` ends it"));
                return Ok(Exit::Interrupted);
            }
        };
        if !context.output.quiet && !context.output.json {
            end_lines(&summary).iter().for_each(|line| context.output.say(line));
        }
        if context.output.json {
            context.output.json(&summary)?;
        }
        exit = match (is_over(&summary), summary.state) {
            (false, _) => return Ok(Exit::TimedOut),
            (true, JobState::Ok) => exit,
            (true, _) => Exit::TasksFailed,
        };
    }
    Ok(exit)
}

/// Waits for one job; draws a bar where somebody sees it, and says when the job cannot go on.
async fn wait_with_bar(
    context: &Context,
    client: &Client,
    job: JobId,
    deadline: Option<Instant>,
) -> Result<JobSummary> {
    // Also the first answer to an unknown job.
    let mut summary = client.job(job).await?;
    let progress = Progress::new(&context.output, summary.counts.total);
    let every = if progress.is_shown() { PROGRESS_EVERY } else { NOTE_EVERY };
    let mut said = None;
    while !is_over(&summary) && deadline.is_none_or(|d| Instant::now() < d) {
        if summary.reason != said {
            let say = |reason: &String| context.output.say(format!("{job} waits: {reason}"));
            progress.aside(|| summary.reason.iter().for_each(say));
            said.clone_from(&summary.reason);
        }
        progress.set(&summary.counts);
        let next_look = Instant::now() + every;
        summary = client.wait(job, Some(deadline.map_or(next_look, |d| d.min(next_look)))).await?;
    }
    progress.clear();
    Ok(summary)
}
