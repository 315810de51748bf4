//! Calls on the broker itself: status, limits, functions, tokens, shutdown.

use super::App;
use super::body::{self, id, json, read_json, unexpected};
use super::gate::API_VERSIONS;
use crate::api_error::ApiError;
use crate::token;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use hyper::{HeaderMap, StatusCode, header};
use pf_broker_core::{Caller, Reply, Request};
use pf_protocol::api::{Limits, Status};
use pf_protocol::ids::FunctionId;
use pf_protocol::job::{Function, FunctionKind};
use serde::Deserialize;
use serde_json::json as value;

type Answer = Result<Response, ApiError>;

const KIND_HEADER: &str = "x-pilotfish-kind";
const NAME_HEADER: &str = "x-pilotfish-name";

/// `GET /v1/status`.
pub(crate) async fn status(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    let Reply::Totals { active_jobs, unfinished_tasks, refusing } =
        app.handle.request(caller, Request::Totals).await?
    else {
        return Err(unexpected("status"));
    };
    let facts = &app.handle.facts;
    json(&Status {
        version: env!("CARGO_PKG_VERSION").into(),
        api: API_VERSIONS,
        host: facts.host.clone(),
        pid: std::process::id(),
        log_id: facts.log_id,
        epoch: facts.epoch,
        active_jobs,
        unfinished_tasks,
        refusing,
        started_ms: facts.started_ms,
    })
}

/// `GET /v1/limits`.
pub(crate) async fn limits() -> Answer {
    json(&Limits::HERE)
}

/// `POST /v1/shutdown`.
pub(crate) async fn shutdown(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    if !caller.is_broker_owner {
        let message = "only the owner of the broker may end it";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    tracing::info!("shutdown asked for by a client");
    app.handle.ask_shutdown();
    json(&value!({}))
}

/// `PUT /v1/functions/{id}`.
pub(crate) async fn put_function(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let function: FunctionId = id(&text)?;
    let header = |name: &str| headers.get(name).and_then(|v| std::str::from_utf8(v.as_bytes()).ok());
    let kind = match header(KIND_HEADER) {
        Some("reference") => FunctionKind::Reference,
        Some("cloudpickle") => FunctionKind::Cloudpickle,
        Some("source") => FunctionKind::Source,
        other => {
            let message = format!("X-Pilotfish-Kind is {:?}", other.unwrap_or_default());
            return Err(ApiError::bad_request(message).hint("one of: reference, cloudpickle, source"));
        }
    };
    let name = header(NAME_HEADER).unwrap_or_default().to_owned();
    let body = body::read(&app, &headers, body, crate::limits::SMALL_BODY_BYTES_MAX).await?;
    let request =
        Request::PutFunction { id: function, function: Function { kind, bytes: body.bytes.to_vec(), name } };
    match app.handle.request(caller, request).await? {
        Reply::Function(row) => json(&row),
        _ => Err(unexpected("function")),
    }
}

/// `GET /v1/functions`.
pub(crate) async fn functions(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    match app.handle.request(caller, Request::Functions).await? {
        Reply::Functions(functions) => json(&value!({ "functions": functions })),
        _ => Err(unexpected("functions")),
    }
}

/// `GET /v1/functions/{id}`: its bytes, kind and name as in the request that made it.
pub(crate) async fn function(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(text): Path<String>,
) -> Answer {
    let Reply::FunctionBytes(function) =
        app.handle.request(caller, Request::Function { id: id(&text)? }).await?
    else {
        return Err(unexpected("function"));
    };
    let kind = match function.kind {
        FunctionKind::Reference => "reference",
        FunctionKind::Cloudpickle => "cloudpickle",
        FunctionKind::Source => "source",
    };
    let mut response = (
        [
            (header::CONTENT_TYPE, "application/octet-stream"),
            (header::HeaderName::from_static(KIND_HEADER), kind),
        ],
        function.bytes,
    )
        .into_response();
    // A name that cannot stand in a header is left out; the list of functions shows it.
    if let Ok(name) = header::HeaderValue::from_str(&function.name) {
        response.headers_mut().insert(NAME_HEADER, name);
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    name: String,
}

/// `POST /v1/tokens`: the only time that the token itself is seen.
pub(crate) async fn make_token(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let TokenBody { name } = read_json(&app, &headers, body, "token").await?;
    let (token, hash) = token::generate().map_err(no_random)?;
    app.handle.request(caller, Request::AddToken { name: name.clone(), hash }).await?;
    json(&value!({ "name": name, "token": token }))
}

/// `GET /v1/tokens`.
pub(crate) async fn tokens(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer {
    match app.handle.request(caller, Request::Tokens).await? {
        Reply::Tokens(tokens) => json(&value!({ "tokens": tokens })),
        _ => Err(unexpected("tokens")),
    }
}

/// `DELETE /v1/tokens/{name}`.
pub(crate) async fn revoke_token(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer {
    app.handle.request(caller, Request::RevokeToken { name }).await?;
    json(&value!({}))
}

pub(crate) fn no_random(error: getrandom::Error) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", format!("no random numbers: {error}"))
}
