//! `GET /v1/outcomes`: pages of the core, their payloads read here, to a client at the client's own pace.
//!
//! A page is asked for only when there is room for it, so that a slow client costs [`limits::PAGES_AHEAD_MAX`] pages and no more: what it has
//! not read yet stays on disk, found again by its cursor.

use super::App;
use super::body::id;
use crate::api_error::ApiError;
use crate::columns::{self, OutcomeColumns, OutcomeRecord};
use crate::handle::{BrokerHandle, Subscription, read_blob};
use crate::limits;
use axum::body::Body;
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use hyper::{StatusCode, header};
use pf_broker_core::{Caller, Detail, Request, StreamBatch, StreamOf, StreamPart, StreamRow, decode_details};
use pf_protocol::api::{OutcomeLine, TaskRow};
use pf_protocol::ids::OwnerId;
use pf_protocol::payload::is_large;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

#[derive(Deserialize)]
pub(crate) struct StreamQuery {
    group: Option<u64>,
    job: Option<String>,
    after: Option<String>,
    #[serde(default)]
    follow: u8,
    #[serde(default)]
    format: Format,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Columns,
}

/// `GET /v1/outcomes`.
pub(crate) async fn stream(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<StreamQuery>,
) -> Result<Response, ApiError> {
    let of = match (query.group, &query.job) {
        (Some(group), None) => StreamOf::Group(group),
        (None, Some(job)) => StreamOf::Job(id(job)?),
        _ => return Err(ApiError::bad_request("give either group= or job=")),
    };
    let after = cursor(query.after.as_deref().unwrap_or_default(), app.handle.log_id())?;
    let follow = query.follow != 0;
    let subscription = app.handle.subscribe(caller, of, after, follow).await?;
    let presence = match of {
        StreamOf::Group(group) if follow => Some(app.groups.enter(&app.handle, caller, group)),
        _ => None,
    };
    let (frames, body) = mpsc::channel(limits::PAGES_AHEAD_MAX);
    let writer = Writer { handle: app.handle.clone(), format: query.format, seq: after };
    tokio::spawn(async move {
        if let Err(error) = writer.run(subscription, frames).await {
            // The status is sent already: the stream breaks off, and the client comes back with its cursor.
            tracing::warn!(message = error.body.message, "a stream of outcomes ended early");
        }
        drop(presence);
    });
    let media = match query.format {
        Format::Json => "application/x-ndjson",
        Format::Columns => columns::OUTCOMES_MEDIA_TYPE,
    };
    Ok(([(header::CONTENT_TYPE, media)], Body::new(FrameBody(body))).into_response())
}

/// Reads `LOGID-SEQ`; empty is the beginning.
fn cursor(text: &str, log_id: u64) -> Result<u64, ApiError> {
    if text.is_empty() || text == "0" {
        return Ok(0);
    }
    let parts = text.split_once('-').and_then(|(log, seq)| {
        Some((u64::from_str_radix(log, 16).ok()?, u64::from_str_radix(seq, 16).ok()?))
    });
    match parts {
        None => Err(ApiError::bad_request(format!("{text:?} is not a cursor, which is written LOGID-SEQ"))),
        Some((log, _)) if log != log_id => {
            let message = format!("the cursor {text} belongs to another log than {log_id:x}");
            Err(ApiError::new(StatusCode::GONE, "foreign_cursor", message)
                .hint("the broker was given a new log; begin again without a cursor"))
        }
        Some((_, seq)) => Ok(seq),
    }
}

/// Carries one stream. Ends when the client or the broker does, or at the end of the outcomes.
struct Writer {
    handle: BrokerHandle,
    format: Format,
    seq: u64,
}

impl Writer {
    async fn run(
        mut self,
        mut pages: Subscription,
        frames: mpsc::Sender<Result<Bytes, StreamBroken>>,
    ) -> Result<(), ApiError> {
        loop {
            // Room first: only then is a page asked for.
            let Ok(room) = frames.reserve().await else { return Ok(()) };
            pages.pull();
            let (page, is_fresh) = match self.next_page(&mut pages, &frames, room).await {
                Next::Page { page, is_fresh } => (page, is_fresh),
                Next::Over => return Ok(()),
            };
            self.seq = page.seq;
            let end = page.end;
            if !page.parts.is_empty() {
                let bytes = match self.write(page, is_fresh).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        let _ = frames.send(Err(StreamBroken)).await;
                        return Err(error);
                    }
                };
                if frames.send(Ok(bytes)).await.is_err() {
                    return Ok(());
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Waits for the page that was asked for; meanwhile sends signs of life, if there is room for them.
    async fn next_page(
        &self,
        pages: &mut Subscription,
        frames: &mpsc::Sender<Result<Bytes, StreamBroken>>,
        room: mpsc::Permit<'_, Result<Bytes, StreamBroken>>,
    ) -> Next {
        if let Some(page) = pages.ready() {
            return Next::Page { page, is_fresh: false };
        }
        drop(room);
        loop {
            let page = tokio::select! {
                page = pages.page() => page,
                () = frames.closed() => return Next::Over,
                () = tokio::time::sleep(limits::STREAM_HEARTBEAT) => {
                    // A client that does not read needs no sign of life.
                    let _ = frames.try_send(Ok(self.sign_of_life()));
                    continue;
                }
            };
            return page.map_or(Next::Over, |page| Next::Page { page, is_fresh: true });
        }
    }

    fn sign_of_life(&self) -> Bytes {
        match self.format {
            Format::Json => Bytes::from_static(b"\n"),
            Format::Columns => OutcomeColumns::default().finish(self.handle.log_id(), self.seq),
        }
    }

    /// Reads the payloads of a page and writes it. A page that was waited for has just been written by this process and lies in memory; an
    /// older one may have to be fetched by the disk, on a thread that may wait.
    async fn write(&self, page: StreamBatch, is_fresh: bool) -> Result<Bytes, ApiError> {
        let (handle, format) = (self.handle.clone(), self.format);
        let write = move || write_page(&handle, format, &page);
        if is_fresh {
            return write();
        }
        tokio::task::spawn_blocking(write).await.map_err(|_| ApiError::stopping())?
    }
}

enum Next {
    Page { page: StreamBatch, is_fresh: bool },
    Over,
}

fn write_page(handle: &BrokerHandle, format: Format, page: &StreamBatch) -> Result<Bytes, ApiError> {
    let mut columns = OutcomeColumns::default();
    let mut lines = Vec::new();
    for part in &page.parts {
        let values = Bytes::from(read_blob(&handle.blobs, part.values)?);
        let details = part.details.map(|blob| read_blob(&handle.blobs, blob)).transpose()?;
        let details = details
            .map(|bytes| decode_details(&bytes))
            .transpose()
            .map_err(|e| unreadable(&e.to_string()))?;
        let details: BTreeMap<u32, &Detail> =
            details.iter().flatten().map(|detail| (detail.nth, detail)).collect();
        let rows = part
            .rows_with_values(&values)
            .ok_or_else(|| unreadable("values are shorter than their lengths"))?;
        for (nth, (row, value)) in rows.iter().enumerate() {
            let detail = details.get(&(part.first_detail + nth as u32)).copied();
            match format {
                Format::Columns => push_columns(&mut columns, part, row, value, detail)?,
                Format::Json => {
                    let seq = part.first_seq + nth as u64;
                    let cursor = format!("{:x}-{seq:x}", handle.log_id());
                    serde_json::to_writer(&mut lines, &line(part, row, value, detail, cursor))
                        .map_err(|error| unreadable(&error.to_string()))?;
                    lines.push(b'\n');
                }
            }
        }
    }
    Ok(match format {
        Format::Columns => columns.finish(handle.log_id(), page.seq),
        Format::Json => Bytes::from(lines),
    })
}

fn unreadable(why: &str) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", format!("outcomes cannot be read: {why}"))
}

fn push_columns(
    columns: &mut OutcomeColumns,
    part: &StreamPart,
    row: &StreamRow,
    value: &[u8],
    detail: Option<&Detail>,
) -> Result<(), ApiError> {
    let error = if row.kind.is_ok() { Vec::new() } else { error_json(part, detail)? };
    columns.push(&OutcomeRecord {
        job: part.job.0,
        index: row.index,
        kind: row.kind,
        held_us: row.held_us,
        ran_us: row.ran_us,
        value,
        is_large: is_large(row.value_len),
        error: &error,
    });
    Ok(())
}

/// `ErrorDetail` and the node.
fn error_json(part: &StreamPart, detail: Option<&Detail>) -> Result<Vec<u8>, ApiError> {
    let error = detail.and_then(|detail| detail.error.as_deref().cloned()).unwrap_or_default();
    let mut json = serde_json::to_value(error).map_err(|error| unreadable(&error.to_string()))?;
    if let Some(fields) = json.as_object_mut() {
        fields.insert("node".into(), part.node.clone().into());
    }
    serde_json::to_vec(&json).map_err(|error| unreadable(&error.to_string()))
}

fn line(
    part: &StreamPart,
    row: &StreamRow,
    value: &[u8],
    detail: Option<&Detail>,
    cursor: String,
) -> OutcomeLine {
    let error = detail.and_then(|detail| detail.error.as_deref());
    OutcomeLine {
        row: TaskRow {
            task: format!("{}.{}", part.job, row.label),
            index: row.index,
            label: row.label,
            state: row.kind.name().into(),
            node: Some(part.node.clone()).filter(|node| !node.is_empty()),
            attempts_before: row.attempts_before,
            ran_us: Some(row.ran_us.into()),
            held_us: Some(row.held_us.into()),
            exit: error.and_then(|error| error.exit),
            signal: error.and_then(|error| error.signal),
            message: error.map(|error| error.message.clone()),
            traceback: error.and_then(|error| error.traceback.clone()),
            stderr_tail: error.and_then(|error| error.stderr_tail.clone()),
            max_rss_kib: detail.and_then(|detail| detail.usage).map(|usage| usage.max_rss_kib),
        },
        job: part.job,
        value: (!is_large(row.value_len) && value.len() <= limits::INLINE_TEXT_BYTES_MAX)
            .then(|| std::str::from_utf8(value).ok().map(str::to_owned))
            .flatten(),
        cursor,
    }
}

/// Ends a chunked body without its last chunk, so that no client takes it for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke off")]
pub(crate) struct StreamBroken;

/// The frames of one stream as a response body.
pub(crate) struct FrameBody(pub mpsc::Receiver<Result<Bytes, StreamBroken>>);

impl hyper::body::Body for FrameBody {
    type Data = Bytes;
    type Error = StreamBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamBroken>>> {
        self.0.poll_recv(cx).map(|frame| frame.map(|frame| frame.map(Frame::data)))
    }
}

/// Which client groups have somebody who reads their stream. When the last reader is gone for [`limits::CLIENT_GRACE`], jobs that end with
/// their client end.
#[derive(Clone, Default)]
pub(crate) struct Groups {
    readers: Arc<Mutex<BTreeMap<(OwnerId, u64), Readers>>>,
}

#[derive(Default)]
struct Readers {
    open: u32,
    /// Counts arrivals, so that a timer can tell whether somebody came and went meanwhile.
    arrivals: u64,
}

/// One reader of a group.
struct Presence {
    groups: Groups,
    handle: BrokerHandle,
    caller: Caller,
    group: u64,
}

impl Groups {
    fn enter(&self, handle: &BrokerHandle, caller: Caller, group: u64) -> Presence {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = readers.entry((caller.owner, group)).or_default();
        entry.open += 1;
        entry.arrivals += 1;
        Presence { groups: self.clone(), handle: handle.clone(), caller, group }
    }

    /// Somebody left; answers the arrivals so far if nobody is there any more.
    fn leave(&self, key: (OwnerId, u64)) -> Option<u64> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = readers.get_mut(&key)?;
        entry.open = entry.open.saturating_sub(1);
        (entry.open == 0).then_some(entry.arrivals)
    }

    /// Forgets the group and answers true if nobody has come since `arrivals`.
    fn is_gone(&self, key: (OwnerId, u64), arrivals: u64) -> bool {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = readers.get(&key).is_some_and(|entry| entry.open == 0 && entry.arrivals == arrivals);
        if gone {
            readers.remove(&key);
        }
        gone
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let key = (self.caller.owner, self.group);
        let Some(arrivals) = self.groups.leave(key) else { return };
        // At the end of the runtime there is nobody left to wait; the jobs go on.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (groups, handle, caller, group) =
            (self.groups.clone(), self.handle.clone(), self.caller, self.group);
        runtime.spawn(async move {
            tokio::time::sleep(limits::CLIENT_GRACE).await;
            if groups.is_gone(key, arrivals)
                && let Err(error) = handle.request(caller, Request::ClientGone { group }).await
            {
                tracing::warn!(
                    message = error.body.message,
                    group,
                    "jobs that end with their client were not ended"
                );
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_of_other_logs_are_gone() {
        assert_eq!(cursor("", 7), Ok(0));
        assert_eq!(cursor("7-1f", 7), Ok(31));
        assert_eq!(cursor("8-1f", 7).unwrap_err().status, StatusCode::GONE);
        for bad in ["7", "7-", "x-1", "-", "7-1-1"] {
            assert_eq!(cursor(bad, 7).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }

    #[test]
    fn a_group_is_gone_only_if_nobody_came_back() {
        let groups = Groups::default();
        let key = (OwnerId(1), 9);
        groups.readers.lock().unwrap().insert(key, Readers { open: 2, arrivals: 2 });
        assert_eq!(groups.leave(key), None);
        assert_eq!(groups.leave(key), Some(2));
        groups.readers.lock().unwrap().entry(key).and_modify(|r| r.arrivals = 3);
        assert!(!groups.is_gone(key, 2));
        assert!(groups.is_gone(key, 3));
        assert!(!groups.is_gone(key, 3), "told once");
    }
}
