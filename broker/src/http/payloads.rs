//! Large payloads of jobs: put and got as streams, one piece in memory at a time.

use super::App;
use super::body::{self, BodyReader, id, json, unexpected};
use super::outcomes::{FrameBody, StreamBroken};
use crate::api_error::ApiError;
use crate::limits;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::{HeaderMap, StatusCode, header};
use pf_broker_core::{Caller, Reply, Request};
use pf_protocol::ids::{BlobRef, ContentHash, JobId};
use pf_protocol::limits::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, PIECE_BYTES};
use pf_protocol::payload::PayloadRef;
use serde_json::json as value;
use std::time::Instant;
use tokio::sync::mpsc;

type Answer = Result<Response, ApiError>;

/// `PUT /v1/jobs/{job}/payloads/{hash}`.
pub(crate) async fn put(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((job, hash)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let (job, hash): (JobId, ContentHash) = (id(&job)?, id(&hash)?);
    let Some(len) = body::told_length(&headers) else {
        let message = "a payload tells its length in Content-Length";
        return Err(ApiError::new(StatusCode::LENGTH_REQUIRED, "bad_request", message));
    };
    if len > PAYLOAD_BYTES_MAX {
        let message = format!("the payload has {len} bytes, {PAYLOAD_BYTES_MAX} are the limit");
        let refused = ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
        return Err(refused.hint("write it to a file and pass the path"));
    }
    if len <= INLINE_BYTES_MAX {
        let message =
            format!("the payload has {len} bytes: up to {INLINE_BYTES_MAX} lie in the append itself");
        return Err(ApiError::bad_request(message));
    }
    let _room = body::room(&app, PIECE_BYTES).await?;
    let mut reader = BodyReader::new(body);
    let put = put_pieces(&app, caller, job, PayloadRef { hash, len: len as u64 }, &mut reader).await;
    // A client that is still sending would not read an answer: the rest is read whatever the answer is.
    reader.drain(len).await?;
    put?;
    json(&value!({ "bytes": len }))
}

async fn put_pieces(
    app: &App,
    caller: Caller,
    job: JobId,
    payload: PayloadRef,
    reader: &mut BodyReader,
) -> Result<(), ApiError> {
    let mut offset = 0u64;
    while offset < payload.len {
        let size = (payload.len - offset).min(PIECE_BYTES as u64) as usize;
        let bytes = reader.exactly(size).await?;
        offset = put_piece(app, caller, job, payload, offset, bytes).await?;
    }
    Ok(())
}

/// Puts one piece; waits while the disk is behind.
async fn put_piece(
    app: &App,
    caller: Caller,
    job: JobId,
    payload: PayloadRef,
    offset: u64,
    bytes: Bytes,
) -> Result<u64, ApiError> {
    let began = Instant::now();
    loop {
        let request = Request::PutPiece { job, payload, offset, bytes: bytes.clone() };
        match app.handle.request(caller, request).await {
            Ok(Reply::PieceTaken { upto }) => return Ok(upto),
            Ok(_) => return Err(unexpected("put payload")),
            Err(error) if error.body.code == "busy" && began.elapsed() < limits::BODY_STALL_TIMEOUT => {
                tokio::time::sleep(limits::BUSY_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// `GET /v1/jobs/{job}/payloads/{hash}`.
pub(crate) async fn get(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((job, hash)): Path<(String, String)>,
) -> Answer {
    answer(&app, caller, id(&job)?, id(&hash)?).await
}

/// The payload as a stream.
pub(crate) async fn answer(app: &App, caller: Caller, job: JobId, hash: ContentHash) -> Answer {
    match app.handle.request(caller, Request::Payload { job, hash }).await? {
        Reply::Payload { len, blobs } => Ok(stream(app, len, blobs)),
        _ => Err(unexpected("payload")),
    }
}

fn stream(app: &App, len: u64, blobs: Vec<BlobRef>) -> Response {
    let (pieces, body) = mpsc::channel(limits::PAGES_AHEAD_MAX);
    let handle = app.handle.clone();
    tokio::spawn(async move {
        for blob in blobs {
            let read = handle.read_blobs(vec![blob]).await;
            let piece = match read {
                Ok(mut read) => Ok(Bytes::from(read.pop().unwrap_or_default())),
                // The length was told: a client sees that the rest is missing.
                Err(error) => {
                    tracing::warn!(message = error.body.message, "a payload broke off");
                    Err(StreamBroken)
                }
            };
            let broken = piece.is_err();
            if pieces.send(piece).await.is_err() || broken {
                return;
            }
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, len.to_string()),
    ];
    (headers, Body::new(FrameBody(body))).into_response()
}
