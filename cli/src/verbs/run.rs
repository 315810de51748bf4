//! `run`: broker, relay and workers for as long as the work takes, in a folder of their own.

use super::chain::{Chain, Kind};
use super::follow::print_log;
use crate::Context;
use crate::args::RunArgs;
use crate::client::Client;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::limits::{FOLLOW_EVERY, PROGRESS_EVERY};
use crate::output::progress::Progress;
use crate::output::summary::end_lines;
use crate::submit::{Here, Work, resolve, send};
use pf_protocol::JobId;
use pf_protocol::api::{CancelRequest, JobState, JobSummary, OutcomeLine};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The folder of one run: removed at the end, unless it was named by `--keep`.
enum Root {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Root {
    fn new(keep: Option<&Path>) -> Result<Root> {
        match keep {
            Some(dir) => {
                std::fs::create_dir_all(dir).map_err(|e| io_error(format!("make {}", dir.display()), e))?;
                let dir = dir.canonicalize().map_err(|e| io_error(format!("find {}", dir.display()), e))?;
                Ok(Root::Kept(dir))
            }
            None => {
                let dir = tempfile::Builder::new().prefix("pf-run-").tempdir();
                Ok(Root::Temporary(dir.map_err(|e| io_error("make a temporary folder", e))?))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Root::Kept(path) => path,
            Root::Temporary(dir) => dir.path(),
        }
    }
}

/// `pf run`.
pub async fn run(context: &Context, args: &RunArgs) -> Result<Exit> {
    check(context, args)?;
    let here = Here::new(&context.surroundings.env, crate::config::layers::DEFAULT_ENDPOINT)?;
    let work = resolve(&args.work, &here)?;
    let root = Root::new(args.keep.as_deref())?;
    let config = context.config.private(root.path(), args.workers)?;
    config.places.prepare()?;
    let chain = Chain::start(&config, Kind::Private)?;
    let client = Client::socket(&config.places.socket());
    let single = work.count == 1;
    let result = tokio::select! {
        result = work_to_the_end(context, args, &client, work) => result,
        result = interrupted(context, &client) => result,
    };
    // What runs is ended, and its folder goes, also after an error.
    let stopped = chain.stop().await;
    if let Root::Temporary(dir) = root {
        let path = dir.path().to_path_buf();
        dir.close().map_err(|e| io_error(format!("remove {}", path.display()), e))?;
    }
    let (job, exit) = result?;
    stopped?;
    if context.output.json {
        context.output.json(&job)?;
    }
    let Some(exit) = exit else {
        end_lines(&job).iter().for_each(|line| context.output.say(line));
        return Ok(Exit::Interrupted);
    };
    Ok(match (job.state, single) {
        (JobState::Ok, _) => Exit::Ok,
        (_, true) => exit,
        (_, false) => Exit::TasksFailed,
    })
}

fn check(context: &Context, args: &RunArgs) -> Result<()> {
    let wants =
        |what: &str| CliError::usage(format!("pf run has no {what}: it serves itself")).hint("use pf submit");
    if args.work.endpoint.as_deref().is_some_and(|e| e != crate::config::layers::DEFAULT_ENDPOINT) {
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

/// Submits, shows what comes, and waits. The code is the one task's own, if it is one.
async fn work_to_the_end(
    context: &Context,
    args: &RunArgs,
    client: &Client,
    work: Work,
) -> Result<(JobSummary, Option<Exit>)> {
    let single = work.count == 1;
    let reply = send(client, work).await?;
    let printing = !args.no_output && !context.output.json;
    if single {
        let label = client.one_label(crate::args::TaskRef { job: reply.job, label: None }).await?;
        let job = single_to_the_end(context, client, reply.job, label, printing).await?;
        let row = client.task(reply.job, label).await?;
        let code = match (row.exit, row.signal) {
            (Some(exit), _) => Exit::Task((exit & 0xff) as u8),
            (None, Some(signal)) => Exit::Task(128u8.wrapping_add(signal as u8)),
            (None, None) => Exit::TasksFailed,
        };
        return Ok((job, Some(code)));
    }
    let job = many_to_the_end(context, client, reply.job, u64::from(reply.tasks), printing).await?;
    Ok((job, Some(Exit::TasksFailed)))
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
async fn many_to_the_end(
    context: &Context,
    client: &Client,
    job: JobId,
    total: u64,
    printing: bool,
) -> Result<JobSummary> {
    let progress = Progress::new(&context.output, total);
    let mut lines = client.lines(&format!("/v1/outcomes?job={job}&follow=1&format=json")).await?;
    let (mut seen, mut next_look) = (0, Instant::now());
    while seen < total {
        let Some(line) = lines.next::<OutcomeLine>().await? else { break };
        seen += 1;
        if printing {
            let mut log = Vec::new();
            collect_log(client, job, line.row.label, &mut log).await?;
            progress.aside(|| print_all(context, &log))?;
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

async fn collect_log(client: &Client, job: JobId, label: u64, into: &mut Vec<(u8, String)>) -> Result<()> {
    let mut from = 0;
    loop {
        let log = client.log(job, label, from).await?;
        into.extend(log.pieces);
        if log.next == from {
            return Ok(());
        }
        from = log.next;
    }
}

fn print_all(context: &Context, log: &[(u8, String)]) -> Result<()> {
    log.iter()
        .try_for_each(|(stream, text)| super::follow::print_piece(&context.output, *stream, text, false))
}

/// Ctrl-C: everything is cancelled and cleaned up. A second one kills.
async fn interrupted(context: &Context, client: &Client) -> Result<(JobSummary, Option<Exit>)> {
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
        job = cancelling => Ok((job?, None)),
        second = tokio::signal::ctrl_c() => {
            second.map_err(|e| io_error("watch for Ctrl-C", e))?;
            Err(CliError::new(Exit::Interrupted, "killed"))
        }
    }
}
