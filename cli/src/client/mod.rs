//! Speaks the HTTP API to a broker: over its Unix socket on this host, over TLS with its pinned certificate elsewhere.
//! One connection a request: `pf` makes few. Used by every verb that talks to a broker.

pub mod api;
mod stream;
mod tls;

pub use stream::Lines;

use crate::config::{BrokerConfig, Config};
use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::limits::{ANSWER_BYTES_MAX, RETRIES_MAX, RETRY_PAUSE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pf_protocol::api::ErrorBody;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// API version that this client speaks.
const API_VERSION: &str = "1";

/// Where the broker is.
#[derive(Debug)]
enum Target {
    /// This host's.
    Socket(PathBuf),
    /// Another host's.
    Tls(tls::Remote),
}

/// A client of one broker.
#[derive(Debug)]
pub struct Client {
    target: Target,
}

/// What is sent along.
#[derive(Debug, Clone, Default)]
pub struct Body {
    /// Media type.
    pub media_type: &'static str,
    /// Content.
    pub bytes: Bytes,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Body {
    /// JSON of `value`.
    pub fn json(value: &impl Serialize) -> Result<Body> {
        let bytes =
            serde_json::to_vec(value).map_err(|e| CliError::internal("encode a request").because(e))?;
        Ok(Body { media_type: "application/json", bytes: bytes.into(), headers: Vec::new() })
    }
}

/// Whether a request that got no answer may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Twice is the same as once.
    Yes,
    /// It makes something new each time.
    No,
}

/// Why a request failed, before it is told to anybody.
enum Failure {
    /// Nobody there; nothing was sent.
    NoBroker(CliError),
    /// The connection broke; the request may have been done.
    Broken(CliError),
    /// The broker said no.
    Answer(CliError, bool),
    /// This side cannot ask.
    Here(CliError),
}

impl Client {
    /// A client of the broker behind this socket.
    #[must_use]
    pub fn socket(path: &Path) -> Client {
        Client { target: Target::Socket(path.to_path_buf()) }
    }

    /// A client of the broker that is configured.
    pub fn new(config: &Config) -> Result<Client> {
        match &config.broker.address {
            Some(address) => Client::remote(address, &config.broker),
            None => Ok(Client::socket(&config.places.socket())),
        }
    }

    fn remote(address: &str, broker: &BrokerConfig) -> Result<Client> {
        Ok(Client { target: Target::Tls(tls::Remote::new(address, broker)?) })
    }

    /// Whether the broker is on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.target, Target::Socket(_))
    }

    /// `GET`, JSON back.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.call(Method::GET, path, Body::default(), Again::Yes).await
    }

    /// `GET`, bytes back.
    pub async fn get_bytes(&self, path: &str) -> Result<Bytes> {
        let response = self.answer(Method::GET, path, &Body::default(), Again::Yes).await?;
        read_all(response).await
    }

    /// Any request, JSON back.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
        again: Again,
    ) -> Result<T> {
        let bytes = read_all(self.answer(method, path, &body, again).await?).await?;
        // Verbs without an answer give `()` for an empty body.
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        serde_json::from_slice(&bytes).map_err(|e| {
            CliError::internal(format!("read the broker's answer to {path}"))
                .because(e)
                .hint("pf and broker may be of different versions: restart the broker")
        })
    }

    /// A stream of JSON lines.
    pub async fn lines(&self, path: &str) -> Result<Lines> {
        let response = self.answer(Method::GET, path, &Body::default(), Again::Yes).await?;
        Ok(Lines::new(response.into_body()))
    }

    /// Sends until there is a final answer or patience is over.
    async fn answer(
        &self,
        method: Method,
        path: &str,
        body: &Body,
        again: Again,
    ) -> Result<Response<Incoming>> {
        let mut pause = RETRY_PAUSE;
        for _ in 0..RETRIES_MAX {
            match self.once(&method, path, body).await {
                Ok(response) => return Ok(response),
                Err(Failure::Answer(error, false) | Failure::Here(error)) => return Err(error),
                Err(Failure::Broken(error)) if again == Again::No => {
                    return Err(error.hint("it may have been done all the same: look before you ask again"));
                }
                Err(Failure::NoBroker(_) | Failure::Broken(_) | Failure::Answer(..)) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        match self.once(&method, path, body).await {
            Ok(response) => Ok(response),
            Err(Failure::NoBroker(e) | Failure::Broken(e) | Failure::Answer(e, _) | Failure::Here(e)) => {
                Err(e)
            }
        }
    }

    /// Whether a broker answers at all, asked once.
    pub async fn is_there(&self) -> bool {
        self.once(&Method::GET, "/v1/status", &Body::default()).await.is_ok()
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        body: &Body,
    ) -> std::result::Result<Response<Incoming>, Failure> {
        let mut sender = self.connect().await?;
        let mut request =
            Request::builder().method(method.clone()).uri(path).header("X-Pilotfish-Api", API_VERSION);
        match &self.target {
            Target::Socket(_) => request = request.header("Host", "pilotfish"),
            Target::Tls(remote) => {
                request = request
                    .header("Host", remote.authority())
                    .header("Authorization", remote.authorization());
            }
        }
        if !body.media_type.is_empty() {
            request = request.header("Content-Type", body.media_type);
        }
        for (name, value) in &body.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(body.bytes.clone()))
            .map_err(|e| Failure::Here(CliError::usage(format!("ask the broker for {path}")).because(e)))?;
        let response = sender.send_request(request).await.map_err(|e| {
            let error = CliError::new(Exit::Unreachable, format!("the broker at {} broke off", self.shown()));
            Failure::Broken(error.because(e))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = read_all(response).await.map_err(Failure::Broken)?;
        let (error, retryable) = told(status, &bytes);
        Err(Failure::Answer(error, retryable))
    }

    async fn connect(
        &self,
    ) -> std::result::Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>, Failure> {
        match &self.target {
            Target::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| {
                    let error =
                        CliError::new(Exit::Unreachable, format!("no broker answers at {}", path.display()));
                    Failure::NoBroker(error.because(e).hint("start it by `pf broker start`"))
                })?;
                handshake(TokioIo::new(stream)).await
            }
            Target::Tls(remote) => {
                handshake(TokioIo::new(remote.connect().await.map_err(Failure::NoBroker)?)).await
            }
        }
    }

    /// The broker's address, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.target {
            Target::Socket(path) => path.display().to_string(),
            Target::Tls(remote) => format!("https://{}", remote.authority()),
        }
    }
}

async fn handshake<S>(
    io: TokioIo<S>,
) -> std::result::Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let made = hyper::client::conn::http1::handshake(io).await;
    let (sender, connection) = made.map_err(|e| {
        Failure::NoBroker(CliError::new(Exit::Unreachable, "speak HTTP with the broker").because(e))
    })?;
    // Ends with the connection; its error reaches the request that waits on it.
    tokio::spawn(connection);
    Ok(sender)
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|e| CliError::new(Exit::Unreachable, "read the broker's answer").because(e))
}

/// The broker's refusal as an error of ours, and whether it may change its mind.
fn told(status: StatusCode, bytes: &[u8]) -> (CliError, bool) {
    let exit = match status.as_u16() {
        404 => Exit::NotFound,
        500 | 502 | 507 => Exit::Internal,
        503 => Exit::Unreachable,
        _ => Exit::Refused,
    };
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => {
            let mut error = CliError::new(exit, body.message);
            error.code = Some(body.code);
            let error = match body.hint {
                Some(hint) => error.hint(hint),
                None => error,
            };
            (error, body.retryable)
        }
        Err(_) => (CliError::new(exit, format!("the broker answered {status}")), status.as_u16() == 503),
    }
}

/// A part of a path or a query, with everything unusual written as `%XX`.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_exit_codes() {
        let body = br#"{"code":"unknown_job","message":"job j9 is not known","hint":"see pf job list","retryable":false}"#;
        let (error, retryable) = told(StatusCode::NOT_FOUND, body);
        assert_eq!((error.exit, retryable), (Exit::NotFound, false));
        assert_eq!(error.lines(), ["error: job j9 is not known", "hint: see pf job list"]);
        let exits = [400, 401, 403, 409, 410, 413, 422, 426, 429, 500, 503, 507]
            .map(|s| told(StatusCode::from_u16(s).expect("status"), b"").0.exit);
        assert_eq!(exits[..9], [Exit::Refused; 9]);
        assert_eq!(exits[9..], [Exit::Internal, Exit::Unreachable, Exit::Internal]);
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(escape("a b/ü?"), "a%20b%2F%C3%BC%3F");
    }
}
