//! `logs` and `results`: what tasks printed, and how they ended, also while they run.

use crate::Context;
use crate::args::{LogsArgs, ResultsArgs};
use crate::client::Client;
use crate::error::Result;
use crate::exit::Exit;
use crate::limits::FOLLOW_EVERY;
use crate::output::Output;
use crate::units::show_us;
use pf_protocol::JobId;
use pf_protocol::api::OutcomeLine;
use std::io::Write;

/// Numbers of the streams in a log's pieces.
const STDOUT: u8 = 1;
/// See [`STDOUT`].
const STDERR: u8 = 2;

/// `pf logs`.
pub async fn logs(context: &Context, args: &LogsArgs) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let label = client.one_label(args.task).await?;
    let wanted = |stream: u8| !(args.stdout && stream != STDOUT || args.stderr && stream != STDERR);
    let mut from = 0;
    loop {
        let log = client.log(args.task.job, label, from).await?;
        let moved = log.next != from;
        from = log.next;
        for (stream, text) in log.pieces.iter().filter(|p| wanted(p.0)) {
            print_piece(&context.output, *stream, text.as_bytes(), args.stderr)?;
        }
        if !moved && (log.end || !args.follow) {
            return Ok(Exit::Ok);
        }
        if !moved {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

/// A piece where it belongs: the task's stderr to ours, unless it was asked for as the data.
pub fn print_piece(output: &Output, stream: u8, bytes: &[u8], stderr_is_data: bool) -> Result<()> {
    if output.json {
        let text = String::from_utf8_lossy(bytes);
        return output.json(
            &serde_json::json!({"stream": if stream == STDERR { "stderr" } else { "stdout" }, "text": text}),
        );
    }
    if stream == STDERR && !stderr_is_data {
        // Nobody is left to be told that stderr is closed.
        let _ = std::io::stderr().write_all(bytes);
        return Ok(());
    }
    output.bytes(bytes)
}

/// Everything that a task printed, from where it was left: stdout to stdout, stderr to stderr. Used by `run`.
pub async fn print_log(
    output: &Output,
    client: &Client,
    job: JobId,
    label: u64,
    from: &mut u64,
) -> Result<bool> {
    loop {
        let log = client.log(job, label, *from).await?;
        for (stream, text) in &log.pieces {
            print_piece(output, *stream, text.as_bytes(), false)?;
        }
        if log.next == *from {
            return Ok(log.end);
        }
        *from = log.next;
    }
}

/// `pf results`.
pub async fn results(context: &Context, args: &ResultsArgs) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let job = args.task.job;
    if let Some(label) = args.task.label {
        let value = client.get_bytes(&format!("/v1/jobs/{job}/tasks/{label}/value")).await?;
        context.output.content("task", &format!("{job}.{label}"), &value)?;
        return Ok(Exit::Ok);
    }
    let after =
        args.after.as_ref().map(|c| format!("&after={}", crate::client::escape(c))).unwrap_or_default();
    let follow = u8::from(args.follow);
    let mut lines =
        client.lines(&format!("/v1/outcomes?job={job}&follow={follow}&format=json{after}")).await?;
    while let Some(line) = lines.next::<OutcomeLine>().await? {
        let id = line.row.task.clone();
        context.output.answer(&line, &[id], || outcome_words(&line))?;
    }
    Ok(Exit::Ok)
}

/// One outcome on a line: tab-separated, so that `cut` and `awk` take it.
fn outcome_words(line: &OutcomeLine) -> String {
    let row = &line.row;
    let ran = row.ran_us.map(show_us).unwrap_or_default();
    let node = row.node.as_deref().unwrap_or("-");
    let what = line.value.as_deref().or(row.message.as_deref()).unwrap_or_default();
    let what = what.lines().next().unwrap_or_default();
    format!("{}\t{}\t{node}\t{ran}\t{what}", row.task, row.state).trim_end().to_owned()
}
