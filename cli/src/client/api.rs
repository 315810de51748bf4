//! The calls of `docs/http-api.md` that more than one verb makes.

use super::{Again, Body, Client, escape};
use crate::error::{CliError, Result};
use crate::limits::WAIT_SECONDS;
use hyper::Method;
use pf_protocol::JobId;
use pf_protocol::api::{CancelReply, CancelRequest, EndpointRow, JobState, JobSummary, Status, TaskRow};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobSummary>,
}

#[derive(Deserialize)]
struct Tasks {
    tasks: Vec<TaskRow>,
}

#[derive(Deserialize)]
struct Endpoints {
    endpoints: Vec<EndpointRow>,
}

#[derive(Deserialize)]
struct TextLines {
    lines: Vec<String>,
}

/// What `GET ../log` gives.
#[derive(Debug, Clone, Deserialize)]
pub struct LogPieces {
    /// Stream (1 stdout, 2 stderr) and text.
    pub pieces: Vec<(u8, String)>,
    /// Where to go on.
    pub next: u64,
    /// Whether the task is over and nothing more comes.
    pub end: bool,
}

/// Whether a job is over.
#[must_use]
pub fn is_over(job: &JobSummary) -> bool {
    !matches!(job.state, JobState::Waiting | JobState::Active)
}

impl Client {
    /// Who the broker is.
    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    /// One job.
    pub async fn job(&self, job: JobId) -> Result<JobSummary> {
        self.get(&format!("/v1/jobs/{job}")).await
    }

    /// Jobs, newest first; `query` is what follows the `?`.
    pub async fn jobs(&self, query: &str) -> Result<Vec<JobSummary>> {
        Ok(self.get::<Jobs>(&format!("/v1/jobs?{query}")).await?.jobs)
    }

    /// Rows of a job's tasks.
    pub async fn tasks(
        &self,
        job: JobId,
        state: Option<&str>,
        from: u64,
        limit: usize,
    ) -> Result<Vec<TaskRow>> {
        let state = state.map(|s| format!("&state={}", escape(s))).unwrap_or_default();
        Ok(self.get::<Tasks>(&format!("/v1/jobs/{job}/tasks?from={from}&limit={limit}{state}")).await?.tasks)
    }

    /// One task, by label.
    pub async fn task(&self, job: JobId, label: u64) -> Result<TaskRow> {
        self.get(&format!("/v1/jobs/{job}/tasks/{label}")).await
    }

    /// What a task printed, from a position.
    pub async fn log(&self, job: JobId, label: u64, from: u64) -> Result<LogPieces> {
        self.get(&format!("/v1/jobs/{job}/tasks/{label}/log?from={from}")).await
    }

    /// Endpoints.
    pub async fn endpoints(&self) -> Result<Vec<EndpointRow>> {
        Ok(self.get::<Endpoints>("/v1/endpoints").await?.endpoints)
    }

    /// One endpoint.
    pub async fn endpoint(&self, name: &str) -> Result<EndpointRow> {
        self.get(&format!("/v1/endpoints/{}", escape(name))).await
    }

    /// A verb for an endpoint; its lines, if it gives any.
    pub async fn endpoint_verb(&self, name: &str, verb: &str, body: &impl Serialize) -> Result<Vec<String>> {
        let path = format!("/v1/endpoints/{}/{verb}", escape(name));
        let answer: serde_json::Value = self.call(Method::POST, &path, Body::json(body)?, Again::Yes).await?;
        Ok(serde_json::from_value::<TextLines>(answer).map(|t| t.lines).unwrap_or_default())
    }

    /// Why a job's tasks are where they are.
    pub async fn explain(&self, job: JobId) -> Result<Vec<String>> {
        Ok(self.get::<TextLines>(&format!("/v1/jobs/{job}/explain")).await?.lines)
    }

    /// Cancels.
    pub async fn cancel(&self, job: JobId, request: &CancelRequest) -> Result<CancelReply> {
        self.call(Method::POST, &format!("/v1/jobs/{job}/cancel"), Body::json(request)?, Again::Yes).await
    }

    /// Waits until a job is over or the deadline has come; whichever was first, where it stands.
    pub async fn wait(&self, job: JobId, deadline: Option<Instant>) -> Result<JobSummary> {
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let seconds = left.map_or(WAIT_SECONDS, |l| l.as_secs().clamp(1, WAIT_SECONDS));
            let path = format!("/v1/jobs/{job}?wait={seconds}");
            let answer = self.get::<JobSummary>(&path);
            // A deadline of less than a second is kept too.
            let summary = match left {
                Some(left) => match tokio::time::timeout(left, answer).await {
                    Ok(summary) => summary?,
                    Err(_) => self.job(job).await?,
                },
                None => answer.await?,
            };
            if is_over(&summary) || deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(summary);
            }
        }
    }

    /// The label of a task, or the only one of a job of one task.
    pub async fn one_label(&self, task: crate::args::TaskRef) -> Result<u64> {
        if let Some(label) = task.label {
            return Ok(label);
        }
        let rows = self.tasks(task.job, None, 0, 2).await?;
        match rows.as_slice() {
            [row] => Ok(row.label),
            [] => Err(CliError::new(crate::exit::Exit::NotFound, format!("job {} has no tasks", task.job))),
            [first, ..] => Err(CliError::usage(format!("job {} has more than one task", task.job))
                .hint(format!("name one: {}", first.task))),
        }
    }

    /// Asks the broker to end, and waits until nobody answers.
    pub async fn shutdown(&self, timeout: Duration) -> Result<()> {
        self.call::<serde_json::Value>(
            Method::POST,
            "/v1/shutdown",
            Body::json(&serde_json::json!({}))?,
            Again::Yes,
        )
        .await?;
        let give_up = Instant::now() + timeout;
        while self.is_there().await {
            if Instant::now() > give_up {
                return Err(CliError::internal(format!(
                    "the broker still answers after {} s",
                    timeout.as_secs()
                ))
                .hint("see its log; its process id is in `pf broker status`"));
            }
            tokio::time::sleep(crate::limits::POLL_EVERY).await;
        }
        Ok(())
    }
}
