//! `submit`, `cancel`, and `job ..`.

use crate::Context;
use crate::args::manage::{JobListArgs, JobShowArgs};
use crate::args::{CancelArgs, JobVerb, WorkArgs};
use crate::client::{Again, Body, Client, escape};
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::limits::ROWS_SHOWN_MAX;
use crate::output::summary::{counts_words, show_lines, state_word};
use crate::output::table::{count, table};
use crate::submit::{Here, resolve, send};
use crate::units::{show_time, show_us};
use hyper::Method;
use pf_protocol::api::{CancelRequest, JobSummary, SubmitReply, TaskRow};
use pf_protocol::job::ArraySpec;
use pf_protocol::{JobId, Ranges};
use serde_json::json;
use std::collections::BTreeMap;

/// `pf submit`.
pub async fn submit(context: &Context, args: &WorkArgs) -> Result<Exit> {
    let here = Here::new(&context.surroundings.env, &context.config.default_endpoint)?;
    // What is wrong with the arguments is said before a broker is started for them.
    let work = resolve(args, &here)?;
    let client = super::daemon::client(context).await?;
    let reply = send(&client, work).await?;
    told_submit(context, &reply)?;
    Ok(Exit::Ok)
}

/// The id is data; what else is to say is talk.
fn told_submit(context: &Context, reply: &SubmitReply) -> Result<()> {
    let output = &context.output;
    if !output.json {
        output.say(format!("{} for endpoint {}", count(u64::from(reply.tasks), "task"), reply.endpoint));
    }
    let id = reply.job.to_string();
    output.answer(reply, std::slice::from_ref(&id), || id.clone())
}

/// `pf cancel`.
pub async fn cancel(context: &Context, args: &CancelArgs) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let mut wanted: BTreeMap<JobId, Option<Vec<u64>>> = BTreeMap::new();
    for task in &args.tasks {
        let of_job = wanted.entry(task.job).or_insert_with(|| Some(Vec::new()));
        match (task.label, of_job.as_mut()) {
            (Some(label), Some(labels)) => labels.push(label),
            (Some(_), None) => {}
            // The whole job includes its tasks.
            (None, _) => *of_job = None,
        }
    }
    for (job, labels) in wanted {
        let tasks = match &labels {
            Some(labels) => Some(positions(&client, job, labels).await?),
            None => None,
        };
        let request =
            CancelRequest { tasks, kill: !args.keep_running, force: args.force, queued_only: false };
        let reply = client.cancel(job, &request).await?;
        let words = format!(
            "{job}: {} cancelled, {} asked to end",
            count(reply.cancelled.len(), "task"),
            reply.asked
        );
        context.output.answer(
            &json!({"job": job, "cancelled": reply.cancelled, "asked": reply.asked}),
            &[],
            || words,
        )?;
    }
    Ok(Exit::Ok)
}

/// Positions of labels: the job says how its array is made.
async fn positions(client: &Client, job: JobId, labels: &[u64]) -> Result<Ranges> {
    let summary = client.job(job).await?;
    let array = summary.spec.map_or_else(ArraySpec::default, |spec| spec.array);
    let position = |label: &u64| {
        let found = array.position(*label).filter(|p| u64::from(*p) < summary.counts.total);
        found.ok_or_else(|| CliError::new(Exit::NotFound, format!("job {job} has no task {label}")))
    };
    labels.iter().map(position).collect()
}

/// `pf job ..`.
pub async fn job(context: &Context, verb: JobVerb) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let output = &context.output;
    match verb {
        JobVerb::List(args) => list(context, &client, &args).await?,
        JobVerb::Show(args) => show(context, &client, &args).await?,
        JobVerb::Explain { job } => {
            let lines = client.explain(job).await?;
            output.answer(&json!({"job": job, "lines": lines}), &[], || lines.join("\n"))?;
        }
        JobVerb::Retry { job, failed: _ } => {
            let path = format!("/v1/jobs/{job}/retry");
            let reply: SubmitReply =
                client.call(Method::POST, &path, Body::json(&json!({}))?, Again::No).await?;
            told_submit(context, &reply)?;
        }
        JobVerb::Forget { jobs } => {
            for job in jobs {
                let path = format!("/v1/jobs/{job}");
                client.call::<serde_json::Value>(Method::DELETE, &path, Body::default(), Again::Yes).await?;
                output.answer(&json!({"forgotten": job}), &[], || format!("{job} forgotten"))?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// Rows of a list of jobs.
pub fn job_table(context: &Context, jobs: &[JobSummary]) -> String {
    let rows = jobs.iter().map(|job| {
        vec![
            job.job.to_string(),
            job.name.clone().unwrap_or_default(),
            state_word(job.state).to_owned(),
            counts_words(&job.counts),
            job.endpoint.clone(),
            show_time(job.submitted_ms),
            job.what.clone(),
        ]
    });
    table(
        &context.output,
        &["JOB", "NAME", "STATE", "TASKS", "ENDPOINT", "SUBMITTED (UTC)", "RUNS"],
        rows.collect(),
    )
}

async fn list(context: &Context, client: &Client, args: &JobListArgs) -> Result<()> {
    let mut query = format!("limit={}", args.limit);
    if let Some(state) = args.state {
        query.push_str(&format!("&state={}", state.word()));
    }
    if let Some(name) = &args.name {
        query.push_str(&format!("&name={}", escape(name)));
    }
    for label in &args.label {
        let pair = format!("{}={}", label.key, label.value.as_deref().unwrap_or_default());
        query.push_str(&format!("&label={}", escape(&pair)));
    }
    let jobs = client.jobs(&query).await?;
    if context.output.json {
        return jobs.iter().try_for_each(|job| context.output.json(job));
    }
    let ids: Vec<String> = jobs.iter().map(|j| j.job.to_string()).collect();
    if jobs.is_empty() {
        context.output.say("no jobs");
        return Ok(());
    }
    context.output.answer(&(), &ids, || job_table(context, &jobs))
}

/// Rows of tasks.
fn task_table(context: &Context, rows: &[TaskRow]) -> String {
    let rows = rows.iter().map(|row| {
        let message = row.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
        vec![
            row.task.clone(),
            row.state.clone(),
            row.node.clone().unwrap_or_default(),
            (row.attempts_before + 1).to_string(),
            row.ran_us.map(show_us).unwrap_or_default(),
            row.exit
                .map(|e| e.to_string())
                .or_else(|| row.signal.map(|s| format!("signal {s}")))
                .unwrap_or_default(),
            message.to_owned(),
        ]
    });
    table(&context.output, &["TASK", "STATE", "NODE", "ATTEMPT", "RAN", "EXIT", "MESSAGE"], rows.collect())
}

async fn show(context: &Context, client: &Client, args: &JobShowArgs) -> Result<()> {
    let summary = client.job(args.job).await?;
    let output = &context.output;
    if !args.tasks {
        return output.answer(&summary, &[args.job.to_string()], || show_lines(&summary).join("\n"));
    }
    let rows = client.tasks(args.job, args.state.as_deref(), 0, ROWS_SHOWN_MAX).await?;
    let ids: Vec<String> = rows.iter().map(|r| r.task.clone()).collect();
    output.answer(&json!({"job": summary, "tasks": rows}), &ids, || {
        let more = if rows.len() == ROWS_SHOWN_MAX {
            format!("\nfirst {ROWS_SHOWN_MAX} tasks; `pf results {}` gives all outcomes", args.job)
        } else {
            String::new()
        };
        format!("{}\n{}{more}", show_lines(&summary).join("\n"), task_table(context, &rows))
    })
}
