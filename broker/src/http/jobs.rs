//! Calls on jobs and their tasks.

use super::App;
use super::body::{self, id, json, label, read_json, unexpected};
use crate::api_error::ApiError;
use crate::columns;
use crate::limits;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, header};
use pf_broker_core::{Caller, JobsFilter, Reply, Request, TaskView, Tasks, decode_details};
use pf_protocol::api::{CancelRequest, JobState, SubmitRequest};
use pf_protocol::ids::{BlobRef, JobId, JobKey};
use pf_protocol::job::content_hash;
use pf_protocol::limits::REQUEST_BYTES_MAX;
use pf_protocol::message::AnswerWhat;
use pf_protocol::payload::PayloadRef;
use pf_transport::now_us;
use serde::Deserialize;
use serde_json::json as value;
use std::time::Duration;

type Answer = Result<Response, ApiError>;

/// `PUT /v1/jobs/{key}`.
pub(crate) async fn submit(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(key): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let key: JobKey = id(&key)?;
    let body = body::read(&app, &headers, body, REQUEST_BYTES_MAX).await?;
    let asked: SubmitRequest = body::parse_json(&body.bytes, "job")?;
    let tasks = tasks_of(asked.count, asked.items)?;
    let request = Request::Submit {
        key,
        hash: content_hash(&body.bytes),
        spec: Box::new(asked.spec),
        tasks,
        open: asked.open,
    };
    match app.handle.request(caller, request).await? {
        Reply::Submitted(reply) => json(&reply),
        _ => Err(unexpected("submit")),
    }
}

fn tasks_of(count: u32, items: Option<Vec<String>>) -> Result<Tasks, ApiError> {
    let Some(items) = items else { return Ok(Tasks { count, lens: Vec::new(), blob: Bytes::new() }) };
    if items.len() != count as usize {
        let message = format!("{} items for {count} tasks", items.len());
        return Err(ApiError::bad_request(message).hint("`count` and the number of `items` must agree"));
    }
    let lens = items.iter().map(|item| item.len() as u32).collect();
    Ok(Tasks { count, lens, blob: Bytes::from(items.concat()) })
}

#[derive(Deserialize)]
pub(crate) struct First {
    first: u32,
}

/// `POST /v1/jobs/{job}/tasks?first=N`.
pub(crate) async fn append(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    Query(First { first }): Query<First>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let job: JobId = id(&job)?;
    let media = headers.get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
    if media != Some(columns::TASKS_MEDIA_TYPE.as_bytes()) {
        let message = format!("tasks are appended as {}", columns::TASKS_MEDIA_TYPE);
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_request", message));
    }
    let body = body::read(&app, &headers, body, REQUEST_BYTES_MAX).await?;
    let read = columns::decode_tasks(&body.bytes).map_err(columns_error)?;
    let tasks = Tasks { count: read.count, lens: read.lens, blob: read.blob };
    match app.handle.request(caller, Request::Append { job, first, tasks }).await? {
        Reply::Appended(reply) => json(&reply),
        _ => Err(unexpected("append")),
    }
}

fn columns_error(error: columns::ColumnsError) -> ApiError {
    use columns::ColumnsError::{ItemTooLarge, TooMany};
    match error {
        TooMany { .. } | ItemTooLarge { .. } => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error.to_string())
                .hint("GET /v1/limits names all limits")
        }
        _ => ApiError::bad_request(error.to_string()),
    }
}

/// `POST /v1/jobs/{job}/close`.
pub(crate) async fn close(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer {
    match app.handle.request(caller, Request::Close { job: id(&job)? }).await? {
        Reply::Appended(reply) => json(&reply),
        _ => Err(unexpected("close")),
    }
}

/// `POST /v1/jobs/{job}/cancel`.
pub(crate) async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let job: JobId = id(&job)?;
    let how: CancelRequest = read_json(&app, &headers, body, "cancel").await?;
    match app.handle.request(caller, Request::Cancel { job, how }).await? {
        Reply::Cancelled(reply) => json(&reply),
        _ => Err(unexpected("cancel")),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct RetryBody {
    /// Key of the new job, so that a repeated request makes no second one; None: one is made up.
    key: Option<JobKey>,
}

/// `POST /v1/jobs/{job}/retry`.
pub(crate) async fn retry(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let job: JobId = id(&job)?;
    let asked: RetryBody = read_json(&app, &headers, body, "retry").await?;
    let key = match asked.key {
        Some(key) => key,
        None => {
            let mut key = JobKey::default();
            getrandom::fill(&mut key.0).map_err(super::registry::no_random)?;
            key
        }
    };
    match app.handle.request(caller, Request::Retry { job, key }).await? {
        Reply::Submitted(reply) => json(&reply),
        _ => Err(unexpected("retry")),
    }
}

/// `DELETE /v1/jobs/{job}`.
pub(crate) async fn forget(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer {
    app.handle.request(caller, Request::Forget { job: id(&job)? }).await?;
    json(&value!({}))
}

#[derive(Deserialize)]
pub(crate) struct ListQuery {
    state: Option<JobState>,
    name: Option<String>,
    #[serde(default)]
    limit: u32,
}

/// `label=`, which may be there several times.
fn labels(fields: &[(String, String)]) -> Result<Vec<(String, String)>, ApiError> {
    fields
        .iter()
        .filter(|(field, _)| field == "label")
        .map(|(_, label)| match label.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(ApiError::bad_request("label= is written KEY=VALUE")),
        })
        .collect()
}

/// `GET /v1/jobs`.
pub(crate) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListQuery>,
    Query(fields): Query<Vec<(String, String)>>,
) -> Answer {
    let labels = labels(&fields)?;
    let filter = JobsFilter { state: query.state, name: query.name, labels, limit: query.limit };
    match app.handle.request(caller, Request::Jobs(filter)).await? {
        Reply::Jobs(jobs) => json(&value!({ "jobs": jobs })),
        _ => Err(unexpected("jobs")),
    }
}

#[derive(Deserialize)]
pub(crate) struct ShowQuery {
    wait: Option<f64>,
}

/// `GET /v1/jobs/{job}?wait=SECONDS`.
pub(crate) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    Query(query): Query<ShowQuery>,
) -> Answer {
    let job: JobId = id(&job)?;
    let wait = match query.wait {
        None => None,
        Some(seconds) => Some(
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| ApiError::bad_request(format!("wait={seconds} is not a number of seconds")))?,
        ),
    };
    let wait_until = wait.map(|wait| now_us() + wait.min(limits::WAIT_MAX).as_micros() as u64);
    match app.handle.request(caller, Request::Job { job, wait_until }).await? {
        Reply::Job(summary) => json(&summary),
        _ => Err(unexpected("job")),
    }
}

#[derive(Deserialize)]
pub(crate) struct TasksQuery {
    state: Option<String>,
    #[serde(default)]
    from: u32,
    limit: Option<u32>,
}

/// `GET /v1/jobs/{job}/tasks`.
pub(crate) async fn tasks(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
    Query(query): Query<TasksQuery>,
) -> Answer {
    let limit = query.limit.unwrap_or(limits::TASK_ROWS_DEFAULT).min(limits::TASK_ROWS_MAX);
    let request = Request::Tasks { job: id(&job)?, state: query.state, from: query.from, limit };
    let Reply::Tasks(mut views) = app.handle.request(caller, request).await? else {
        return Err(unexpected("tasks"));
    };
    complete(&app, &mut views).await?;
    let rows: Vec<_> = views.into_iter().map(|view| view.row).collect();
    json(&value!({ "tasks": rows }))
}

/// `GET /v1/jobs/{job}/tasks/{label}`.
pub(crate) async fn task(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((job, text)): Path<(String, String)>,
) -> Answer {
    let mut views = vec![one_task(&app, caller, &job, &text).await?];
    complete(&app, &mut views).await?;
    json(&views[0].row)
}

/// `GET /v1/jobs/{job}/tasks/{label}/value`.
pub(crate) async fn value(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((job, text)): Path<(String, String)>,
) -> Answer {
    let view = one_task(&app, caller, &job, &text).await?;
    let Some(blob) = view.value else {
        let message = format!("{} has not ended: it is {}", view.row.task, view.row.state);
        return Err(ApiError::new(StatusCode::CONFLICT, "not_ended", message).retryable());
    };
    let bytes = app.handle.read_blobs(vec![blob]).await?.pop().unwrap_or_default();
    if view.is_large {
        let named = PayloadRef::read(&bytes).ok_or_else(|| unexpected("value"))?;
        return super::payloads::answer(&app, caller, id(&job)?, named.hash).await;
    }
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn one_task(app: &App, caller: Caller, job: &str, text: &str) -> Result<TaskView, ApiError> {
    let request = Request::Task { job: id(job)?, label: label(text)? };
    match app.handle.request(caller, request).await? {
        Reply::Tasks(mut views) => views.pop().ok_or_else(|| unexpected("task")),
        _ => Err(unexpected("task")),
    }
}

/// Adds to each row what only its payload knows.
async fn complete(app: &App, views: &mut [TaskView]) -> Result<(), ApiError> {
    let mut blobs: Vec<BlobRef> = views.iter().filter_map(|view| view.detail.map(|(blob, _)| blob)).collect();
    blobs.sort_unstable();
    blobs.dedup();
    let read = app.handle.read_blobs(blobs.clone()).await?;
    let mut details = std::collections::BTreeMap::new();
    for (blob, bytes) in blobs.into_iter().zip(read) {
        let decoded = decode_details(&bytes).map_err(|error| {
            ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "unreadable",
                format!("details of an outcome: {error}"),
            )
        })?;
        details.insert(blob, decoded);
    }
    for view in views {
        if let Some(known) = view.detail.and_then(|(blob, _)| details.get(&blob)) {
            view.complete(known);
        }
    }
    Ok(())
}

#[derive(Deserialize)]
pub(crate) struct LogQuery {
    #[serde(default)]
    from: u64,
}

/// `GET /v1/jobs/{job}/tasks/{label}/log?from=N`.
pub(crate) async fn log(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((job, text)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
) -> Answer {
    let request = Request::Log { job: id(&job)?, label: label(&text)?, from: query.from };
    match super::endpoints::answer_in_time(&app, caller, request).await? {
        AnswerWhat::Log { pieces, next, end } => {
            let pieces: Vec<(u8, String)> = pieces
                .iter()
                .map(|(stream, bytes)| (*stream, String::from_utf8_lossy(bytes).into_owned()))
                .collect();
            json(&value!({ "pieces": pieces, "next": next, "end": end }))
        }
        _ => Err(unexpected("log")),
    }
}

/// `GET /v1/jobs/{job}/explain`.
pub(crate) async fn explain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(job): Path<String>,
) -> Answer {
    match app.handle.request(caller, Request::Explain { job: id(&job)? }).await? {
        Reply::Lines(lines) => json(&value!({ "lines": lines })),
        _ => Err(unexpected("explain")),
    }
}
