//! Accepts connections, on the Unix socket and on TLS, and gives their requests to the gate. Bounded in number and time.

use super::gate::Gate;
use crate::error::BrokerError;
use crate::limits;
use crate::tls::Identity;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::TcpListener as StdTcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// How long the accept loop rests when the system has no descriptors left, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a connection came from; who calls on it is decided by [`Gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The Unix socket, and the kernel says that the peer has our uid.
    Local,
    /// TLS: only its token says who it is.
    Remote,
}

/// A TLS listener that is bound but not served yet.
#[derive(Debug)]
pub(crate) struct TlsListener {
    pub listener: StdTcpListener,
    pub config: Arc<rustls::ServerConfig>,
}

impl TlsListener {
    pub fn bind(address: &str, identity: &Identity) -> Result<TlsListener, BrokerError> {
        let fail = |source| BrokerError::Listen { address: address.to_owned(), source };
        let listener = StdTcpListener::bind(address).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(TlsListener { listener, config: identity.server_config()? })
    }
}

/// Serves the Unix socket until `stop`.
pub(crate) async fn serve_local(listener: UnixListener, gate: Gate, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok((stream, _)) if is_ours(&stream) => {
                let served = serve_connection(stream, gate.clone(), Origin::Local, stop.clone());
                tokio::spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
            // Another user: no word, as if nobody were here.
            Ok(_) => tracing::warn!("refused a connection of another user on the local socket"),
            Err(error) => pause_accepting("local socket", &error).await,
        }
    }
}

/// Serves a TLS listener until `stop`.
pub(crate) async fn serve_tls(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    gate: Gate,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let acceptor = TlsAcceptor::from(config);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_accepting("TLS listener", &error).await;
                continue;
            }
        };
        // Answers are written whole; a small one must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        let (acceptor, gate, stop) = (acceptor.clone(), gate.clone(), stop.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(limits::TLS_HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(stream, gate, Origin::Remote, stop).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
            }
            drop(slot);
        });
    }
}

/// The kernel's word on who connected. Root is nobody special: on a cluster, root is an administrator who can become us.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw())
}

async fn pause_accepting(what: &str, error: &std::io::Error) {
    tracing::warn!(%error, "the {what} cannot accept a connection");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Comes when the other end is still not `known` after this long, else never.
async fn stranger(known: &AtomicBool, most: Duration) {
    tokio::time::sleep(most).await;
    if known.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Serves one connection to its end, or until `stop` and the grace that follows.
async fn serve_connection<S>(stream: S, gate: Gate, origin: Origin, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let known = Arc::new(AtomicBool::new(origin == Origin::Local));
    let theirs = known.clone();
    let service =
        hyper::service::service_fn(move |request| gate.clone().answer(origin, theirs.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_headers(limits::HEADERS_MAX)
        .max_buf_size(limits::READ_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stop.wait_for(|stopped| *stopped) => None,
        () = stranger(&known, limits::STRANGER_TIMEOUT) => {
            tracing::debug!("a connection is cut whose client did not say who it is");
            return;
        }
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
        ended = tokio::time::timeout(limits::STOP_GRACE, connection).await.ok();
    }
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_has_said_who_it_is_may_stay() {
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(50));
        stranger(&AtomicBool::new(false), short).await;
        let known = AtomicBool::new(false);
        let stays = stranger(&known, short);
        known.store(true, Ordering::Relaxed);
        assert!(tokio::time::timeout(long, stays).await.is_err());
    }
}
