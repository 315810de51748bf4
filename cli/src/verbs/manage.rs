//! `status` and `config show`.

use super::endpoints::{endpoint_table, stuck_words};
use super::jobs::job_table;
use crate::Context;
use crate::error::Result;
use crate::exit::Exit;
use crate::output::table::{count, table};
use crate::units::show_us;
use pf_protocol::api::Status;
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// Jobs that `status` shows.
const JOBS_SHOWN: u32 = 10;

/// A broker in a line or two.
pub fn broker_words(status: &Status) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let up = show_us(now_ms.saturating_sub(status.started_ms) * 1_000);
    let mut words = format!(
        "broker {} on {} (pid {}), up {up}: {}, {} unfinished",
        status.version,
        status.host,
        status.pid,
        count(status.active_jobs, "active job"),
        count(status.unfinished_tasks, "task"),
    );
    if let Some(why) = &status.refusing {
        words.push_str(&format!("\nit refuses new work: {why}"));
    }
    words
}

/// `pf status`.
pub async fn status(context: &Context) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let status = client.status().await?;
    let endpoints = client.endpoints().await?;
    let jobs = client.jobs(&format!("limit={JOBS_SHOWN}")).await?;
    let ids: Vec<String> = jobs.iter().map(|j| j.job.to_string()).collect();
    let all = json!({"broker": status, "endpoints": endpoints, "jobs": jobs});
    context.output.answer(&all, &ids, || {
        let jobs = if jobs.is_empty() { "no jobs".to_owned() } else { job_table(context, &jobs) };
        let paused: String =
            endpoints.iter().filter_map(stuck_words).map(|line| format!("\n{line}")).collect();
        format!("{}\n\n{}{paused}\n\n{jobs}", broker_words(&status), endpoint_table(context, &endpoints))
    })?;
    Ok(Exit::Ok)
}

/// `pf config show`.
pub fn config_show(context: &Context) -> Result<Exit> {
    let values = &context.config.settings.values;
    let names: Vec<String> = values.keys().cloned().collect();
    let all: serde_json::Map<String, serde_json::Value> = values
        .iter()
        .map(|(name, (value, origin))| {
            (name.clone(), json!({"value": value.to_json(), "from": origin.to_string()}))
        })
        .collect();
    context.output.answer(&all, &names, || {
        let rows = values
            .iter()
            .map(|(name, (value, origin))| vec![name.clone(), value.to_string(), origin.to_string()]);
        table(&context.output, &["SETTING", "VALUE", "FROM"], rows.collect())
    })?;
    Ok(Exit::Ok)
}
