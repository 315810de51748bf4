//! The JSON of the HTTP API, as broker, `pf` and other clients speak it. `docs/http-api.md` is the reference.

use crate::ids::{FunctionId, JobId};
use crate::job::{FunctionKind, JobSpec};
use crate::ranges::Ranges;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Short word for programs: `unknown_job`, `unknown_endpoint`, `too_large`, `disk_full`, `conflict`, `forbidden`, `bad_request`, ..
    pub code: String,
    /// What failed, on which object, why.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub hint: Option<String>,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
}

/// `PUT /v1/jobs/{key}`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubmitRequest {
    /// The job.
    pub spec: JobSpec,
    /// Tasks to begin with.
    pub count: u32,
    /// One item a task, if they have items; then as many as `count`.
    pub items: Option<Vec<String>>,
    /// Whether more tasks may be appended.
    pub open: bool,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitReply {
    /// The job's number.
    pub job: JobId,
    /// Tasks that it has now.
    pub tasks: u32,
    /// Endpoint that was chosen.
    pub endpoint: String,
    /// Whether the key was known already: nothing new was made.
    pub repeated: bool,
}

/// `POST /v1/jobs/{job}/tasks?first=N`, and `/close`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppendReply {
    /// Tasks that the job has now.
    pub tasks: u32,
}

/// `POST /v1/jobs/{job}/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CancelRequest {
    /// Positions; None: all, and the job takes no more.
    pub tasks: Option<Ranges>,
    /// Kill what runs; else only what has not started is cancelled.
    pub kill: bool,
    /// End them at once even where the endpoint is absent: "cancelled, may still run".
    pub force: bool,
    /// Only what has not left the broker's queue (a `Future.cancel()`).
    pub queued_only: bool,
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    /// Positions that ended as cancelled now.
    pub cancelled: Ranges,
    /// How many more were asked to end and will report themselves.
    pub asked: u64,
}

/// Tasks of a job by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// In the broker's queue.
    pub queued: u64,
    /// At the endpoint, not known to run.
    pub assigned: u64,
    /// Known to run.
    pub running: u64,
    /// Ended with a value.
    pub ok: u64,
    /// Ended otherwise, cancelled ones not counted.
    pub failed: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for other jobs.
    Waiting,
    /// Has tasks that have not ended, or takes more.
    Active,
    /// All tasks ended with a value.
    Ok,
    /// All tasks ended, some not with a value.
    Failed,
    /// Cancelled as a whole.
    Cancelled,
}

/// Failures of a job with the same kind, message, exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorGroup {
    /// Outcome kind.
    pub kind: String,
    /// First line of the message.
    pub message: String,
    /// Exit code.
    pub exit: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// How many.
    pub count: u64,
    /// How many by node.
    pub nodes: BTreeMap<String, u64>,
    /// Labels of the first few.
    pub examples: Vec<u64>,
}

/// Where the time of a job's ended tasks went, microseconds summed over tasks. Each is measured on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Times {
    /// From acceptance to leaving the broker's queue, on the broker's clock.
    pub queued_us: u64,
    /// From leaving the queue to the outcome's arrival, less the two below: both ways, and the relay.
    pub transferred_us: u64,
    /// Held at the manager.
    pub held_us: u64,
    /// Ran.
    pub ran_us: u64,
    /// Tasks in these sums.
    pub tasks: u64,
}

/// `GET /v1/jobs` gives `{"jobs": [..]}`, `GET /v1/jobs/{job}` one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSummary {
    /// The job.
    pub job: JobId,
    /// Its key.
    pub key: String,
    /// Name.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Owner's name.
    pub owner: String,
    /// Endpoint.
    pub endpoint: String,
    /// What it runs, in a few words.
    pub what: String,
    /// Where it stands.
    pub state: JobState,
    /// Why, when that needs a word.
    pub reason: Option<String>,
    /// Whether it takes more tasks.
    pub open: bool,
    /// Tasks by state.
    pub counts: Counts,
    /// When it was accepted, Unix milliseconds.
    pub submitted_ms: u64,
    /// When its last task ended.
    pub ended_ms: Option<u64>,
    /// Where the time went.
    pub times: Times,
    /// Failures, largest group first; only in the answer for one job.
    #[serde(default)]
    pub errors: Vec<ErrorGroup>,
    /// What was asked for, environment values left out; only in the answer for one job.
    #[serde(default)]
    pub spec: Option<JobSpec>,
}

/// `GET /v1/jobs/{job}/tasks` gives `{"tasks": [..]}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// `j12.7`, by label.
    pub task: String,
    /// Position.
    pub index: u32,
    /// Label.
    pub label: u64,
    /// `queued`, `assigned`, `running`, or the outcome's kind.
    pub state: String,
    /// Node of the last attempt that is known.
    pub node: Option<String>,
    /// Attempts that failed or were lost before.
    pub attempts_before: u32,
    /// Ran, microseconds.
    pub ran_us: Option<u64>,
    /// Held at the manager, microseconds.
    pub held_us: Option<u64>,
    /// Exit code.
    pub exit: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// What failed.
    pub message: Option<String>,
    /// Remote traceback.
    pub traceback: Option<String>,
    /// Last lines of standard error.
    pub stderr_tail: Option<String>,
    /// Peak memory, KiB.
    pub max_rss_kib: Option<u64>,
}

/// One line of `GET /v1/outcomes?format=json` (a stream of JSON lines).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeLine {
    /// The task.
    #[serde(flatten)]
    pub row: TaskRow,
    /// The job.
    pub job: JobId,
    /// The value, if it is short UTF-8 text.
    pub value: Option<String>,
    /// Where to go on after this line.
    pub cursor: String,
}

/// A registered function, `GET /v1/functions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRow {
    /// Its id.
    pub function: FunctionId,
    /// How it is encoded.
    pub kind: FunctionKind,
    /// For people.
    pub name: String,
    /// Length in bytes.
    pub size_bytes: u64,
    /// When it was registered, Unix milliseconds.
    pub registered_ms: u64,
}

/// One endpoint, `GET /v1/endpoints` gives `{"endpoints": [..]}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// Name.
    pub name: String,
    /// Owner's name.
    pub owner: String,
    /// `connected`, `absent`, `stopped`, `broken`.
    pub state: String,
    /// Why the broker's host cannot serve it, and what to set in which file; None if it is not `broken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// Tasks in the broker's queue for it.
    pub queued: u64,
    /// Tasks handed to it.
    pub assigned: u64,
    /// The last report of its relay.
    pub report: Option<crate::report::EndpointReport>,
}

/// `GET /v1/limits`: what a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Tasks in one job.
    pub job_tasks_max: u32,
    /// Tasks in one append.
    pub append_tasks_max: u32,
    /// Bytes of one item or result.
    pub payload_bytes_max: usize,
    /// Bytes of an item that may lie in a request; larger ones are put before as payloads of their job.
    pub inline_bytes_max: usize,
    /// Bytes of one request.
    pub request_bytes_max: usize,
}

impl Limits {
    /// This build's.
    pub const HERE: Limits = Limits {
        job_tasks_max: crate::limits::JOB_TASKS_MAX,
        append_tasks_max: crate::limits::APPEND_TASKS_MAX,
        payload_bytes_max: crate::limits::PAYLOAD_BYTES_MAX,
        inline_bytes_max: crate::limits::INLINE_BYTES_MAX,
        request_bytes_max: crate::limits::REQUEST_BYTES_MAX,
    };
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the broker.
    pub version: String,
    /// Lowest and highest API version it speaks.
    pub api: (u16, u16),
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// The log's id.
    pub log_id: u64,
    /// The broker's epoch.
    pub epoch: u32,
    /// Jobs that are not over.
    pub active_jobs: u64,
    /// Tasks queued, assigned, running.
    pub unfinished_tasks: u64,
    /// Why new work is refused; None if it is not.
    pub refusing: Option<String>,
    /// Since when it runs, Unix milliseconds.
    pub started_ms: u64,
}
