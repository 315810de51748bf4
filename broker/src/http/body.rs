//! Request bodies and queries: bounded in size, in time and in sum; then parsed.

use super::App;
use crate::api_error::ApiError;
use crate::limits;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::str::FromStr;
use tokio::sync::OwnedSemaphorePermit;

/// The unit in which room for bodies is counted.
pub(crate) const UNIT_BYTES: usize = 1 << 10;

/// A body in memory, and the room that it takes until it is dropped.
pub(crate) struct ReadBody {
    pub bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Reads a whole body of at most `max` bytes. Waits for room when many large ones come at once.
pub(crate) async fn read(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    max: usize,
) -> Result<ReadBody, ApiError> {
    let told = told_length(headers);
    if told.is_some_and(|told| told > max) {
        return Err(too_large(max));
    }
    // A body that does not tell its length gets room for the longest.
    let room = room(app, told.unwrap_or(max)).await?;
    let bytes = collect(body, told, max).await?;
    Ok(ReadBody { bytes, _room: room })
}

/// The length that a request tells of its body.
pub(crate) fn told_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok())
}

/// Waits for room for so many bytes in memory.
pub(crate) async fn room(app: &App, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let units = bytes.div_ceil(UNIT_BYTES);
    app.bodies.clone().acquire_many_owned(units as u32).await.map_err(|_| ApiError::stopping())
}

/// The next data of a body, which must make progress. None at its end.
async fn next_data(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(limits::BODY_STALL_TIMEOUT, body.frame()).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request's body did not come")
                .retryable()
        })?;
        let Some(frame) = frame else { return Ok(None) };
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("the request's body broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// A body that is read in pieces.
pub(crate) struct BodyReader {
    body: Body,
    ahead: Bytes,
    read: usize,
}

impl BodyReader {
    pub fn new(body: Body) -> BodyReader {
        BodyReader { body, ahead: Bytes::new(), read: 0 }
    }

    /// The next `size` bytes.
    pub async fn exactly(&mut self, size: usize) -> Result<Bytes, ApiError> {
        let mut piece = BytesMut::with_capacity(size);
        while piece.len() < size {
            if self.ahead.is_empty() {
                let Some(data) = next_data(&mut self.body).await? else {
                    return Err(ApiError::bad_request("the request's body is shorter than it was told"));
                };
                self.read += data.len();
                self.ahead = data;
            }
            let take = self.ahead.len().min(size - piece.len());
            piece.extend_from_slice(&self.ahead.split_to(take));
        }
        Ok(piece.freeze())
    }

    /// Reads what is left of a body of `size` bytes, and throws it away.
    pub async fn drain(&mut self, size: usize) -> Result<(), ApiError> {
        while self.read < size {
            let Some(data) = next_data(&mut self.body).await? else { break };
            self.read += data.len();
        }
        Ok(())
    }
}

async fn collect(mut body: Body, told: Option<usize>, max: usize) -> Result<Bytes, ApiError> {
    let mut collected: Option<BytesMut> = None;
    let mut first = Bytes::new();
    while let Some(data) = next_data(&mut body).await? {
        let have = collected.as_ref().map_or(first.len(), BytesMut::len);
        if have + data.len() > max {
            return Err(too_large(max));
        }
        match &mut collected {
            Some(all) => all.extend_from_slice(&data),
            // A small body comes in one piece and is not copied.
            None if first.is_empty() => first = data,
            None => {
                let mut all = BytesMut::with_capacity(told.unwrap_or(0).max(have + data.len()));
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                collected = Some(all);
            }
        }
    }
    Ok(collected.map_or(first, BytesMut::freeze))
}

fn too_large(max: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("the request's body is over the limit of {max} bytes"),
    )
    .hint("send it in several requests; GET /v1/limits names all limits")
}

/// Parses JSON, naming the place of an error.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("{what}: {error}")))
}

/// Reads a body of JSON; an empty one is `{}`.
pub(crate) async fn read_json<T: DeserializeOwned>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    what: &str,
) -> Result<T, ApiError> {
    let body = read(app, headers, body, limits::SMALL_BODY_BYTES_MAX).await?;
    parse_json(if body.bytes.is_empty() { b"{}" } else { &body.bytes }, what)
}

/// An answer of JSON. Leaner than axum's: one buffer, one header.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<Response, ApiError> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "bug",
            format!("the answer cannot be written: {error}"),
        )
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// A part of the path as the id it should be.
pub(crate) fn id<T: FromStr>(text: &str) -> Result<T, ApiError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| ApiError::bad_request(error.to_string()))
}

/// The label in `j12.LABEL`.
pub(crate) fn label(text: &str) -> Result<u64, ApiError> {
    text.parse()
        .map_err(|_| ApiError::bad_request(format!("{text:?} is not the label of a task, which is a number")))
}

/// The core answered something that does not belong to the question: a bug, and told as one.
pub(crate) fn unexpected(call: &str) -> ApiError {
    tracing::error!(call, "the core gave an answer of another kind");
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "bug",
        format!("{call}: unexpected answer inside the broker"),
    )
    .hint("please report this")
}
