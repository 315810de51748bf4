//! The HTTP API (`docs/http-api.md`) on threads of its own: parses at the border, asks the core, writes what it answers.

mod body;
mod endpoints;
mod gate;
mod jobs;
mod listen;
mod outcomes;
mod payloads;
mod registry;

use crate::api_error::ApiError;
use crate::error::BrokerError;
use crate::handle::BrokerHandle;
use crate::limits;
use crate::local::LocalSocket;
use crate::tls::Identity;
use axum::Router;
use axum::routing::{delete, get, post, put};
use hyper::StatusCode;
use listen::TlsListener;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{Semaphore, watch};

/// Where the API is served.
#[derive(Debug, Clone, Default)]
pub struct HttpConfig {
    /// The local place: made 0700 if it is not there, its owner and mode checked; the socket in it is `broker.sock`.
    pub local_dir: PathBuf,
    /// `address:port` to serve TLS on; None: only the Unix socket.
    pub tls_listen: Option<String>,
    /// Names and addresses for the certificate, if one is made.
    pub tls_names: Vec<String>,
    /// Where the certificate and its key are kept: the durable place.
    pub tls_dir: PathBuf,
}

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App {
    pub handle: BrokerHandle,
    /// KiB of request bodies that may still be read into memory.
    pub bodies: Arc<Semaphore>,
    pub groups: outcomes::Groups,
}

/// A served API. It ends when this is stopped or dropped.
#[derive(Debug)]
pub struct HttpServer {
    socket: LocalSocket,
    tls: Option<(SocketAddr, Identity)>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Binds all listeners, then serves them on threads of its own. Requests are answered once the broker's reactor runs.
    ///
    /// # Errors
    /// When the local place is not ours alone or served by another broker, an address is taken, or the certificate cannot be used.
    pub fn start(handle: BrokerHandle, config: &HttpConfig) -> Result<HttpServer, BrokerError> {
        let system = |action| move |source| BrokerError::System { action, source: Box::new(source) };
        let mut socket = LocalSocket::bind(&config.local_dir)?;
        let tls = config.tls_listen.as_deref().map(|address| bind_tls(address, config)).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits::HTTP_THREADS)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(system("start the HTTP threads"))?;
        let (stop, stopped) = watch::channel(false);
        let app = App {
            handle,
            bodies: Arc::new(Semaphore::new(limits::BODIES_BYTES_MAX / body::UNIT_BYTES)),
            groups: outcomes::Groups::default(),
        };
        let local = {
            let _entered = runtime.enter();
            socket.take().map(tokio::net::UnixListener::from_std).transpose()
        };
        let local = local.map_err(system("serve the local socket"))?;
        let mut served_tls = None;
        let mut tls_listener = None;
        if let Some((TlsListener { listener, config }, address, identity)) = tls {
            let _entered = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener).map_err(system("serve TLS"))?;
            tls_listener = Some((listener, config));
            served_tls = Some((address, identity));
        }
        let serve = move || {
            let gate = gate::Gate::new(app.clone(), router(app));
            if let Some((listener, config)) = tls_listener {
                runtime.spawn(listen::serve_tls(listener, config, gate.clone(), stopped.clone()));
            }
            if let Some(listener) = local {
                runtime.block_on(listen::serve_local(listener, gate, stopped));
            }
            // Streams that are open still get their last bytes; whoever does not read is cut.
            runtime.shutdown_timeout(limits::STOP_GRACE);
        };
        let thread = std::thread::Builder::new()
            .name("http-main".into())
            .spawn(serve)
            .map_err(system("start the HTTP threads"))?;
        Ok(HttpServer { socket, tls: served_tls, stop, thread: Some(thread) })
    }

    /// The Unix socket.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    /// Where TLS is served, and the certificate that clients must pin.
    #[must_use]
    pub fn tls(&self) -> Option<(SocketAddr, &Identity)> {
        self.tls.as_ref().map(|(address, identity)| (*address, identity))
    }

    /// Takes no more requests, gives those that are open a moment, and ends. Call it before the broker's reactor is stopped.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn bind_tls(address: &str, config: &HttpConfig) -> Result<(TlsListener, SocketAddr, Identity), BrokerError> {
    let identity = Identity::load_or_generate(&config.tls_dir, &config.tls_names)?;
    let bound = TlsListener::bind(address, &identity)?;
    let at = bound
        .listener
        .local_addr()
        .map_err(|source| BrokerError::Listen { address: address.to_owned(), source })?;
    Ok((bound, at, identity))
}

/// Every call of the API. Nothing gets here that [`gate::Gate`] has not let through.
fn router(app: App) -> Router {
    Router::new()
        .route("/v1/status", get(registry::status))
        .route("/v1/limits", get(registry::limits))
        .route("/v1/shutdown", post(registry::shutdown))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{job}", put(jobs::submit).get(jobs::show).delete(jobs::forget))
        .route("/v1/jobs/{job}/tasks", post(jobs::append).get(jobs::tasks))
        .route("/v1/jobs/{job}/tasks/{label}", get(jobs::task))
        .route("/v1/jobs/{job}/tasks/{label}/value", get(jobs::value))
        .route("/v1/jobs/{job}/tasks/{label}/log", get(jobs::log))
        .route("/v1/jobs/{job}/payloads/{hash}", put(payloads::put).get(payloads::get))
        .route("/v1/jobs/{job}/close", post(jobs::close))
        .route("/v1/jobs/{job}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{job}/retry", post(jobs::retry))
        .route("/v1/jobs/{job}/explain", get(jobs::explain))
        .route("/v1/outcomes", get(outcomes::stream))
        .route("/v1/functions", get(registry::functions))
        .route("/v1/functions/{id}", put(registry::put_function).get(registry::function))
        .route("/v1/endpoints", get(endpoints::list))
        .route("/v1/endpoints/{name}", put(endpoints::put).get(endpoints::show).delete(endpoints::remove))
        .route("/v1/endpoints/{name}/{verb}", post(endpoints::verb))
        .route("/v1/tokens", post(registry::make_token).get(registry::tokens))
        .route("/v1/tokens/{name}", delete(registry::revoke_token))
        .fallback(unknown_call)
        .method_not_allowed_fallback(unknown_call)
        .with_state(app)
}

async fn unknown_call(request: hyper::Request<axum::body::Body>) -> ApiError {
    let call = format!("{} {} is no call of this API", request.method(), request.uri().path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_call", call).hint("docs/http-api.md lists all calls")
}
