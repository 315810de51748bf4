//! What a client is told when its request fails. Made by handlers, and from the core's own errors.

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use pf_broker_core::Refusal;
use pf_protocol::api::ErrorBody;

/// An error answer: the status of `docs/http-api.md`, and the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What is sent.
    pub body: ErrorBody,
}

impl ApiError {
    /// An error that stays the same however often the request is sent.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> ApiError {
        let body = ErrorBody { code: code.into(), message: message.into(), hint: None, retryable: false };
        ApiError { status, body }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ApiError {
        self.body.hint = Some(hint.into());
        self
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> ApiError {
        self.body.retryable = true;
        self
    }

    /// 400: the request is not understood.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 503: the broker ends.
    pub fn stopping() -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the broker is stopping").retryable()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.body)).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ApiError { status, body: refusal.body() }
    }
}
