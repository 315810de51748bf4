//! Calls on endpoints, and whatever a relay must answer.

use super::App;
use super::body::{json, read_json, unexpected};
use crate::api_error::ApiError;
use crate::limits;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use hyper::{HeaderMap, StatusCode};
use pf_broker_core::{Caller, Reply, Request, Verb};
use pf_protocol::ids::BlockId;
use pf_protocol::message::AnswerWhat;
use pf_transport::PublicKey;
use serde::Deserialize;
use serde_json::json as value;

type Answer = Result<Response, ApiError>;

/// Asks a relay through the core, and does not wait for ever.
pub(crate) async fn answer_in_time(
    app: &App,
    caller: Caller,
    request: Request,
) -> Result<AnswerWhat, ApiError> {
    let asked = tokio::time::timeout(limits::ANSWER_TIMEOUT, app.handle.request(caller, request));
    let reply = asked.await.map_err(|_| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_connected",
            "the endpoint's relay did not answer in time",
        )
        .retryable()
        .hint("pf endpoint show tells whether it is connected")
    })??;
    match reply {
        Reply::Answer(AnswerWhat::Failed(why)) => {
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_available", why))
        }
        Reply::Answer(answer) => Ok(answer),
        _ => Err(unexpected("question to a relay")),
    }
}

/// `GET /v1/endpoints`.
pub(crate) async fn list(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    match app.handle.request(caller, Request::Endpoints).await? {
        Reply::Endpoints(endpoints) => json(&value!({ "endpoints": endpoints })),
        _ => Err(unexpected("endpoints")),
    }
}

/// `GET /v1/endpoints/{name}`.
pub(crate) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer {
    match app.handle.request(caller, Request::Endpoint { name }).await? {
        Reply::Endpoint(endpoint) => json(&endpoint),
        _ => Err(unexpected("endpoint")),
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct PutBody {
    relay_key: Option<String>,
}

/// `PUT /v1/endpoints/{name}`.
pub(crate) async fn put(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let asked: PutBody = read_json(&app, &headers, body, "endpoint").await?;
    let key = asked.relay_key.as_deref().map(PublicKey::from_z85).transpose();
    let relay_key =
        key.map_err(|error| ApiError::bad_request(format!("relay_key: {error}")))?.map(|key| key.0);
    match app.handle.request(caller, Request::PutEndpoint { name, relay_key }).await? {
        Reply::Endpoint(endpoint) => json(&endpoint),
        _ => Err(unexpected("endpoint")),
    }
}

/// `DELETE /v1/endpoints/{name}`.
pub(crate) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer {
    app.handle.request(caller, Request::RemoveEndpoint { name }).await?;
    json(&value!({}))
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct VerbBody {
    kill: bool,
    block: Option<BlockOf>,
}

/// A block as `7` or `"b7"`.
#[derive(Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct BlockOf(BlockId);

impl TryFrom<serde_json::Value> for BlockOf {
    type Error = String;
    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse().map(BlockOf).map_err(|error: pf_protocol::ids::ParseIdError| error.to_string())
    }
}

/// `POST /v1/endpoints/{name}/{verb}`.
pub(crate) async fn verb(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((name, verb)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let asked: VerbBody = read_json(&app, &headers, body, &verb).await?;
    let block = || {
        let named = asked.block.as_ref().map(|block| block.0);
        named.ok_or_else(|| ApiError::bad_request(format!("{verb} needs {{\"block\": NUMBER}}")))
    };
    let verb = match verb.as_str() {
        "pause" => Verb::Pause,
        "resume" => Verb::Resume,
        "stop" => Verb::Stop { kill: asked.kill },
        "cancel-block" => Verb::CancelBlock(block()?),
        "block-log" => Verb::BlockLog(block()?),
        _ => {
            let message = format!("an endpoint has no verb {verb:?}");
            return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_call", message)
                .hint("verbs: pause, resume, stop, cancel-block, block-log"));
        }
    };
    match answer_in_time(&app, caller, Request::Verb { name, verb }).await? {
        AnswerWhat::Text(lines) => json(&value!({ "lines": lines })),
        _ => json(&value!({ "lines": [] })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_numbers_or_names() {
        for text in [r#"{"block":7}"#, r#"{"block":"b7"}"#, r#"{"block":"7"}"#] {
            let body: VerbBody = serde_json::from_str(text).unwrap();
            assert_eq!(body.block.unwrap().0, BlockId(7), "{text}");
        }
        assert!(serde_json::from_str::<VerbBody>(r#"{"block":-1}"#).is_err());
        assert!(serde_json::from_str::<VerbBody>(r#"{"blok":1}"#).is_err());
    }
}
