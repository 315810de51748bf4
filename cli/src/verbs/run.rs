//! `run`: broker, relay and workers for as long as the work takes, in a folder of their own. In an allocation its nodes are the one block, and what
//! is not done when its time is over can be gone on with in another.

use super::chain::{Chain, Kind};
use super::follow::print_log;
use super::printed::{Piece, Printed};
use super::run_place::{self, RunPlace};
use crate::Context;
use crate::allocation::Allocation;
use crate::args::RunArgs;
use crate::client::Client;
use crate::config::layers::DEFAULT_ENDPOINT;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{
    FOLLOW_EVERY, GIVEN_UP_LOOK, OVERDUE, POLL_EVERY, PRIVATE_STOP_TIMEOUT, PROGRESS_EVERY,
    WALLTIME_RESERVE_MS,
};
use crate::output::progress::Progress;
use crate::output::summary::{counts_words, end_lines};
use crate::output::table::count;
use crate::submit::{Here, Work, resolve, send};
use crate::units::show_us;
use pf_protocol::JobId;
use pf_protocol::api::{CancelRequest, JobState, JobSummary, OutcomeLine};
use std::cell::Cell;
use std::io::IsTerminal;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How a run came to its end.
enum Ended {
    /// The job is over; the code is the one task's own, if it is one.
    Over(JobSummary, Exit),
    /// By Ctrl-C; the job is cancelled.
    Interrupted(JobSummary),
    /// Before that, and why; what runs may go on for `grace`.
    Early { why: String, grace: Duration },
}

/// `pf run`.
pub async fn run(context: &Context, args: &RunArgs) -> Result<Exit> {
    check(context, args)?;
    let here_alone = args.local || args.workers.is_some();
    let allocation = if here_alone { None } else { run_place::allocation(context, args.time_left)? };
    let work = match &args.resume {
        None => Some(resolve(&args.work, &Here::new(&context.surroundings.env, DEFAULT_ENDPOINT)?)?),
        Some(_) => None,
    };
    let place = RunPlace::new(context, args, allocation.as_ref())?;
    let config = context.config.private(place.places(), args.workers, allocation.as_ref());
    let usable = allocation.as_ref().and_then(Allocation::usable_ms).map(Duration::from_millis);
    if let Some(allocation) = &allocation {
        announce(context, allocation, &place);
    }
    config.places.prepare()?;
    let mut chain = Chain::start(&config, Kind::Private)?;
    let client = Client::socket(&config.places.socket());
    let seen = Cell::new(0);
    // Without a terminal it is the scheduler that interrupts (`bkill` begins so), and there will be another allocation.
    let in_batch = allocation.is_some() && !std::io::stdin().is_terminal();
    let result = {
        let outputs = config.places.output.join(DEFAULT_ENDPOINT);
        let mut working = pin!(work_to_the_end(context, args, &client, work, &seen, &outputs));
        let ended = tokio::select! {
            result = &mut working => result,
            result = interrupted(context, &client), if !in_batch => result.map(Ended::Interrupted),
            result = must_end(&client, usable, in_batch) => result,
        };
        match ended {
            // What ends meanwhile is still shown.
            Ok(Ended::Early { why, grace }) => tokio::select! {
                result = &mut working => result,
                result = end_early(&mut chain, &client, why, grace, &seen) => result,
            },
            other => other,
        }
    };
    let job = match &result {
        Ok(Ended::Early { .. }) => client.jobs("limit=1").await.ok().and_then(|jobs| jobs.into_iter().next()),
        _ => None,
    };
    // What runs is ended, and its folder goes, also after an error; but not while there is work to go on with.
    let stopped = chain.stop().await;
    let how = place.how_to_go_on();
    place.close(matches!(result, Ok(Ended::Over(..) | Ended::Interrupted(_))) || how.is_none())?;
    let exit = tell(context, result?, job, how)?;
    stopped?;
    Ok(exit)
}

/// What became of it all, in words and as a code.
fn tell(
    context: &Context,
    ended: Ended,
    unfinished: Option<JobSummary>,
    how: Option<String>,
) -> Result<Exit> {
    let output = &context.output;
    match ended {
        Ended::Over(job, exit) => {
            if output.json {
                output.json(&job)?;
            }
            Ok(if job.state == JobState::Ok { Exit::Ok } else { exit })
        }
        Ended::Interrupted(job) => {
            if output.json {
                output.json(&job)?;
            }
            end_lines(&job).iter().for_each(|line| output.say(line));
            Ok(Exit::Interrupted)
        }
        Ended::Early { why, .. } => {
            let job = unfinished.ok_or_else(|| {
                CliError::new(Exit::Unfinished, format!("{why}, before the job was accepted"))
            })?;
            if output.json {
                output.json(&job)?;
            }
            let left = job.counts.total.saturating_sub(over(&job));
            output.say(format!(
                "{}: {}; {} not done: {why}",
                job.job,
                counts_words(&job.counts),
                count(left, "task")
            ));
            how.iter().for_each(|how| output.say(format!("hint: go on with {how}")));
            Ok(Exit::Unfinished)
        }
    }
}

/// Tasks that have ended.
fn over(job: &JobSummary) -> u64 {
    let counts = &job.counts;
    counts.ok + counts.failed + counts.cancelled
}

fn check(context: &Context, args: &RunArgs) -> Result<()> {
    let wants =
        |what: &str| CliError::usage(format!("pf run has no {what}: it serves itself")).hint("use pf submit");
    if args.work.endpoint.as_deref().is_some_and(|e| e != DEFAULT_ENDPOINT) {
        return Err(wants("endpoints"));
    }
    if !args.work.after.is_empty() {
        return Err(wants("other jobs to wait for"));
    }
    if context.config.broker.address.is_some() {
        context.output.say("pf run serves itself; the configured broker is not used");
    }
    Ok(())
}

fn announce(context: &Context, allocation: &Allocation, place: &RunPlace) {
    let left = match allocation.left_ms {
        Some(ms) => format!("{} left", show_us(ms * 1_000)),
        None => "its end is not known here, --time-left TIME would tell".into(),
    };
    context.output.say(format!(
        "job {}: {}, {left}; log and results are in {} until all is done",
        allocation.id,
        count(u64::from(allocation.nodes), "node"),
        place.root().display(),
    ));
}

/// Comes when the run must end before its work has: its time is over, it is told to by a signal, or there is no way to go on. LSF sends SIGUSR2 at
/// the run limit; others send what `--signal` says.
async fn must_end(client: &Client, usable: Option<Duration>, in_batch: bool) -> Result<Ended> {
    let began = Instant::now();
    let (least, most) = WALLTIME_RESERVE_MS;
    let reserve = usable.map_or(0, |usable| (usable.as_millis() as u64 / 10).clamp(least, most));
    let time_is_over = async {
        match usable {
            Some(usable) => tokio::time::sleep(usable.saturating_sub(Duration::from_millis(reserve))).await,
            None => std::future::pending().await,
        }
    };
    let watch = |kind, name: &str| signal(kind).map_err(|e| io_error(format!("watch for {name}"), e));
    let mut terminated = watch(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupted = watch(SignalKind::interrupt(), "SIGINT")?;
    let mut warned = watch(SignalKind::user_defined1(), "SIGUSR1")?;
    let mut limited = watch(SignalKind::user_defined2(), "SIGUSR2")?;
    let early = |why: &str, grace| Ended::Early { why: why.into(), grace };
    tokio::select! {
        () = time_is_over => {
            let grace = usable.unwrap_or_default().saturating_sub(began.elapsed()) + OVERDUE;
            Ok(early("the time of the allocation is over", grace))
        }
        _ = terminated.recv() => Ok(early("told to end by SIGTERM", Duration::ZERO)),
        _ = interrupted.recv(), if in_batch => Ok(early("told to end by SIGINT", Duration::ZERO)),
        _ = warned.recv() => Ok(early("told to end by SIGUSR1", Duration::ZERO)),
        _ = limited.recv() => Ok(early("told to end by SIGUSR2", Duration::ZERO)),
        why = given_up(client) => Ok(early(&why, Duration::ZERO)),
    }
}

/// Comes when the endpoint has paused itself, since its blocks end before they have begun.
async fn given_up(client: &Client) -> String {
    loop {
        tokio::time::sleep(GIVEN_UP_LOOK).await;
        // While broker and relay begin there is nothing to see; a broker that is gone is told of by who waits for the work.
        let row = client.endpoint(DEFAULT_ENDPOINT).await.ok();
        if let Some(why) = row.and_then(|row| row.report).and_then(|report| report.paused) {
            return why;
        }
    }
}

/// Ends relay and block, and waits until what has ended by then is shown.
async fn end_early(
    chain: &mut Chain,
    client: &Client,
    why: String,
    grace: Duration,
    seen: &Cell<u64>,
) -> Result<Ended> {
    chain.end_relays(grace).await;
    let all = client.jobs("limit=1").await?.first().map_or(0, over);
    let give_up = Instant::now() + PRIVATE_STOP_TIMEOUT;
    while seen.get() < all && Instant::now() < give_up {
        tokio::time::sleep(POLL_EVERY).await;
    }
    Ok(Ended::Early { why, grace })
}

/// Submits, or finds what was submitted; shows what comes, and waits. `seen` counts the outcomes that were shown.
async fn work_to_the_end(
    context: &Context,
    args: &RunArgs,
    client: &Client,
    work: Option<Work>,
    seen: &Cell<u64>,
    outputs: &Path,
) -> Result<Ended> {
    let (job, tasks, shown_before) = match work {
        Some(work) => {
            let reply = send(client, work).await?;
            (reply.job, u64::from(reply.tasks), 0)
        }
        None => {
            let jobs = client.jobs("limit=1").await?;
            let none = || CliError::new(Exit::NotFound, "the run that is to go on had no job");
            let job = jobs.first().ok_or_else(none)?;
            (job.job, job.counts.total, over(job))
        }
    };
    let printing = !args.no_output && !context.output.json;
    if tasks == 1 {
        let label = client.one_label(crate::args::TaskRef { job, label: None }).await?;
        let summary = single_to_the_end(context, client, job, label, printing).await?;
        seen.set(1);
        let row = client.task(job, label).await?;
        let code = match (row.exit, row.signal) {
            (Some(exit), _) => Exit::Task((exit & 0xff) as u8),
            (None, Some(signal)) => Exit::Task(128u8.wrapping_add(signal as u8)),
            (None, None) => Exit::TasksFailed,
        };
        return Ok(Ended::Over(summary, code));
    }
    let printed = printing.then(|| Printed::new(outputs, job));
    let many = Many { context, client, job, tasks, shown_before };
    Ok(Ended::Over(many.to_the_end(seen, printed).await?, Exit::TasksFailed))
}

/// One task: its output as it comes.
async fn single_to_the_end(
    context: &Context,
    client: &Client,
    job: JobId,
    label: u64,
    printing: bool,
) -> Result<JobSummary> {
    let mut from = 0;
    if printing {
        while !print_log(&context.output, client, job, label, &mut from).await? {
            // Wakes as soon as the job is over, so that a short command does not wait for the next look.
            let summary = client.wait(job, Some(Instant::now() + FOLLOW_EVERY)).await?;
            if crate::client::api::is_over(&summary) {
                print_log(&context.output, client, job, label, &mut from).await?;
                break;
            }
        }
    }
    let summary = client.wait(job, None).await?;
    if summary.state != JobState::Ok && !context.output.json {
        end_lines(&summary).iter().for_each(|line| context.output.say(line));
    }
    Ok(summary)
}

/// Many tasks: the output of each when it has ended, a bar meanwhile, and what became of them.
struct Many<'a> {
    context: &'a Context,
    client: &'a Client,
    job: JobId,
    tasks: u64,
    /// Outcomes of an earlier run, which showed them.
    shown_before: u64,
}

impl Many<'_> {
    async fn to_the_end(&self, seen: &Cell<u64>, mut printed: Option<Printed>) -> Result<JobSummary> {
        let Many { context, client, job, .. } = *self;
        let progress = Progress::new(&context.output, self.tasks);
        let mut lines = client.lines(&format!("/v1/outcomes?job={job}&follow=1&format=json")).await?;
        let mut next_look = Instant::now();
        while seen.get() < self.tasks {
            let mut next = lines.next::<OutcomeLine>().await?;
            if next.is_none() {
                break;
            }
            let mut ended = Vec::new();
            while let Some(line) = next {
                ended.push(line.row.index);
                next = lines.ready()?;
            }
            // Once for all that have ended meanwhile.
            printed.as_mut().map_or(Ok(()), Printed::look)?;
            for index in ended {
                let pieces = printed.as_mut().map(|printed| printed.take(index)).unwrap_or_default();
                if seen.get() >= self.shown_before {
                    progress.aside(|| print_all(context, &pieces))?;
                }
                seen.set(seen.get() + 1);
            }
            if progress.is_shown() && Instant::now() >= next_look {
                progress.set(&client.job(job).await?.counts);
                next_look = Instant::now() + PROGRESS_EVERY;
            }
        }
        let summary = client.wait(job, None).await?;
        progress.clear();
        if !context.output.json {
            end_lines(&summary).iter().for_each(|line| context.output.say(line));
        }
        Ok(summary)
    }
}

fn print_all(context: &Context, pieces: &[Piece]) -> Result<()> {
    pieces
        .iter()
        .try_for_each(|(stream, bytes)| super::follow::print_piece(&context.output, *stream, bytes, false))
}

/// Ctrl-C: everything is cancelled and cleaned up. A second one kills.
async fn interrupted(context: &Context, client: &Client) -> Result<JobSummary> {
    tokio::signal::ctrl_c().await.map_err(|e| io_error("watch for Ctrl-C", e))?;
    context.output.say("\ncancelling; Ctrl-C again kills");
    let cancelling = async {
        let jobs = client.jobs("limit=1").await?;
        let job = jobs
            .first()
            .map(|j| j.job)
            .ok_or_else(|| CliError::new(Exit::Interrupted, "interrupted before the job was accepted"))?;
        client.cancel(job, &CancelRequest { kill: true, ..CancelRequest::default() }).await?;
        client.wait(job, None).await
    };
    tokio::select! {
        job = cancelling => job,
        second = tokio::signal::ctrl_c() => {
            second.map_err(|e| io_error("watch for Ctrl-C", e))?;
            Err(CliError::new(Exit::Interrupted, "killed"))
        }
    }
}
