//! What every request passes before any handler sees it: the version, and who calls.

use super::App;
use super::listen::Origin;
use crate::api_error::ApiError;
use crate::handle::BROKER_OWNER;
use crate::limits;
use crate::token;
use axum::Router;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::service::Service;
use hyper::{Request, StatusCode};
use hyper_util::service::TowerToHyperService;
use pf_broker_core::Caller;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Version of the API that this broker speaks, lowest and highest.
pub(crate) const API_VERSIONS: (u16, u16) = (1, 1);
const VERSION_HEADER: &str = "x-pilotfish-api";

/// The router behind the checks. Handlers find the [`Caller`] in the request's extensions.
#[derive(Clone)]
pub(crate) struct Gate {
    app: App,
    router: TowerToHyperService<Router>,
}

impl Gate {
    pub fn new(app: App, router: Router) -> Gate {
        Gate { app, router: TowerToHyperService::new(router) }
    }

    /// Answers a request. `known` becomes true when its sender has said who it is.
    pub async fn answer(
        self,
        origin: Origin,
        known: Arc<AtomicBool>,
        mut request: Request<Incoming>,
    ) -> Result<Response, Infallible> {
        match self.caller(origin, &request).await {
            Ok(caller) => {
                known.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(caller);
                Ok(as_documented(self.router.call(request).await?).await)
            }
            Err(error) => Ok(error.into_response()),
        }
    }

    async fn caller(&self, origin: Origin, request: &Request<Incoming>) -> Result<Caller, ApiError> {
        check_version(request)?;
        if origin == Origin::Local {
            return Ok(BROKER_OWNER);
        }
        let hash =
            request.headers().get(AUTHORIZATION).and_then(|value| token::hash_of_header(value.as_bytes()));
        let caller = match hash {
            Some(hash) => self.app.handle.identify(hash).await?,
            None => None,
        };
        caller.ok_or_else(|| {
            ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", "no token, or a token that is not known")
                .hint("make one on the broker's host: pf broker token add NAME")
        })
    }
}

/// What the framework refuses by itself (a query or a path that cannot be read) comes as plain text: it gets the form of every other error.
async fn as_documented(response: Response) -> Response {
    let status = response.status();
    let is_text =
        response.headers().get(CONTENT_TYPE).is_some_and(|of| of.as_bytes().starts_with(b"text/plain"));
    if status.is_success() || !is_text {
        return response;
    }
    let words =
        axum::body::to_bytes(response.into_body(), limits::REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let code = if status.is_client_error() { "bad_request" } else { "bug" };
    ApiError::new(status, code, String::from_utf8_lossy(&words)).into_response()
}

/// A client that names no version is taken for one that speaks ours (curl).
fn check_version(request: &Request<Incoming>) -> Result<(), ApiError> {
    let Some(asked) = request.headers().get(VERSION_HEADER) else { return Ok(()) };
    let (lowest, highest) = API_VERSIONS;
    let version = asked.to_str().ok().and_then(|text| text.trim().parse::<u16>().ok());
    if version.is_some_and(|version| (lowest..=highest).contains(&version)) {
        return Ok(());
    }
    let message =
        format!("the client speaks API version {asked:?}, this broker speaks {lowest} to {highest}");
    Err(ApiError::new(StatusCode::UPGRADE_REQUIRED, "version", message)
        .hint("install the same version of pilotfish for client and broker"))
}
