//! Makes ZMQ sockets with the options that the contract asks for, and reads whole messages from them.

use std::cell::Cell;
use std::os::fd::RawFd;

use bytes::Bytes;

use crate::conns::{Dialled, retry};
use crate::error::TransportError;
use crate::keys::Z85_CHARS;
use crate::limits;
use crate::node::{CloseReason, DialSpec, ListenSpec};

/// How often another port is tried when a free one was taken on a second interface.
const ANY_PORT_TRIES: usize = 16;

/// A socket that the reactor sleeps on by its descriptor.
///
/// That descriptor tells of news, not of input: any use of the socket may take the news off and leave input behind. So who
/// used it asks once before the next sleep; one that nobody used costs no system call.
pub(crate) struct Wired {
    socket: zmq::Socket,
    used: Cell<bool>,
}

impl Wired {
    pub fn new(socket: zmq::Socket) -> Self {
        Self { socket, used: Cell::new(true) }
    }

    /// To send or receive.
    pub fn get(&self) -> &zmq::Socket {
        self.used.set(true);
        &self.socket
    }

    /// A receive just found nothing: that took all news off and left nothing behind.
    pub fn found_empty(&self) {
        self.used.set(false);
    }

    /// Whether there may be input of which the descriptor does not tell.
    pub fn may_have_input(&self) -> bool {
        if self.used.get() {
            self.used.set(self.socket.get_events().is_ok_and(|events| events.contains(zmq::POLLIN)));
        }
        self.used.get()
    }

    /// Readable when there are news.
    pub fn fd(&self) -> zmq::Result<RawFd> {
        self.socket.get_fd()
    }
}

/// What a ROUTER gave: who, whose key, what.
pub(crate) struct Inbound {
    /// The routing id, empty when it was longer than any of ours.
    pub id: Vec<u8>,
    pub key_text: Option<[u8; Z85_CHARS]>,
    /// None when the message had another shape than ours.
    pub frame: Option<Bytes>,
}

/// Options of every socket that leaves the host.
fn common_options(socket: &zmq::Socket, hwm_frames: i32) -> zmq::Result<()> {
    socket.set_linger(limits::LINGER_MS)?;
    socket.set_sndhwm(hwm_frames)?;
    socket.set_rcvhwm(hwm_frames)?;
    socket.set_maxmsgsize((limits::FRAME_BYTES_MAX + limits::FRAME_OVERHEAD_BYTES) as i64)?;
    socket.set_handshake_ivl(limits::HANDSHAKE_MS)?;
    socket.set_heartbeat_ivl(limits::ZMTP_HEARTBEAT_MS)?;
    socket.set_heartbeat_timeout(limits::ZMTP_TIMEOUT_MS)?;
    socket.set_heartbeat_ttl(limits::ZMTP_TIMEOUT_MS)?;
    socket.set_tcp_keepalive(1)?;
    socket.set_tcp_keepalive_idle(limits::KEEPALIVE_IDLE_S)?;
    socket.set_tcp_keepalive_intvl(limits::KEEPALIVE_INTERVAL_S)?;
    socket.set_tcp_keepalive_cnt(limits::KEEPALIVE_COUNT)
}

/// A ROUTER for `spec` on the first port that is free on all its interfaces, and its addresses as `host:port`.
pub(crate) fn listen(
    context: &zmq::Context,
    spec: &ListenSpec,
    zap_domain: &str,
    hwm_frames: i32,
) -> Result<(zmq::Socket, Vec<String>), TransportError> {
    let first_host = spec.hosts.first().ok_or(TransportError::NoInterface)?;
    let candidates: Vec<u16> = match spec.ports.first {
        0 => vec![0; ANY_PORT_TRIES],
        first => (first..=spec.ports.last.max(first)).collect(),
    };
    let mut failed = zmq::Error::EADDRINUSE;
    for port in candidates {
        let socket =
            router(context, spec, zap_domain, hwm_frames).map_err(TransportError::zmq("make a ROUTER"))?;
        match bind_all(&socket, &spec.hosts, port) {
            Ok(addresses) => return Ok((socket, addresses)),
            Err(zmq::Error::EADDRINUSE) => {}
            Err(error) => {
                failed = error;
                break;
            }
        }
    }
    let (first, last) = (spec.ports.first, spec.ports.last);
    Err(TransportError::Listen { host: first_host.clone(), first, last, source: failed })
}

fn router(context: &zmq::Context, spec: &ListenSpec, zap_domain: &str, hwm: i32) -> zmq::Result<zmq::Socket> {
    let socket = context.socket(zmq::ROUTER)?;
    common_options(&socket, hwm)?;
    socket.set_router_mandatory(true)?;
    socket.set_backlog(limits::ACCEPT_BACKLOG)?;
    socket.set_ipv6(spec.hosts.iter().any(|host| host.contains(':')))?;
    socket.set_curve_server(true)?;
    socket.set_curve_publickey(&spec.keys.public.0)?;
    socket.set_curve_secretkey(spec.keys.secret_bytes())?;
    socket.set_zap_domain(zap_domain)?;
    Ok(socket)
}

/// Binds all interfaces to one port; 0 lets the system choose it.
fn bind_all(socket: &zmq::Socket, hosts: &[String], port: u16) -> zmq::Result<Vec<String>> {
    let mut port = port;
    let mut addresses = Vec::with_capacity(hosts.len());
    for host in hosts {
        let host = bracketed(host);
        socket.bind(&match port {
            0 => format!("tcp://{host}:*"),
            port => format!("tcp://{host}:{port}"),
        })?;
        if port == 0 {
            port = last_port(socket)?;
        }
        addresses.push(format!("{host}:{port}"));
    }
    Ok(addresses)
}

/// IPv6 addresses stand in brackets before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() }
}

fn last_port(socket: &zmq::Socket) -> zmq::Result<u16> {
    let endpoint = socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)?;
    let port = endpoint.trim_end_matches('\0').rsplit(':').next().and_then(|port| port.parse().ok());
    port.ok_or(zmq::Error::EINVAL)
}

/// A DEALER that connects once, and its monitor. `name` must be unique in the context.
pub(crate) fn dial(context: &zmq::Context, spec: &DialSpec, name: &str, hwm: i32) -> zmq::Result<Dialled> {
    let socket = context.socket(zmq::DEALER)?;
    common_options(&socket, hwm)?;
    // One connection only: what comes back is a new Conn, so that a session never spans two.
    socket.set_reconnect_ivl(-1)?;
    socket.set_connect_timeout(limits::CONNECT_TIMEOUT_MS)?;
    socket.set_ipv6(needs_ipv6(&spec.address))?;
    socket.set_curve_serverkey(&spec.server_key.0)?;
    socket.set_curve_publickey(&spec.keys.public.0)?;
    socket.set_curve_secretkey(spec.keys.secret_bytes())?;
    let endpoint = format!("inproc://monitor-{name}");
    socket.monitor(&endpoint, i32::from(zmq::SocketEvent::ALL.to_raw()))?;
    let monitor = context.socket(zmq::PAIR)?;
    monitor.set_linger(0)?;
    monitor.connect(&endpoint)?;
    socket.connect(&format!("tcp://{}", spec.address))?;
    let (socket, monitor) = (Wired::new(socket), Wired::new(monitor));
    Ok(Dialled { socket, monitor, reports: endpoint, address: spec.address.clone(), ending: None })
}

/// Everything but a plain IPv4 address may turn out to be IPv6; libzmq falls back where the kernel has none.
fn needs_ipv6(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.parse::<std::net::Ipv4Addr>().is_err()
}

/// What a monitor reported, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Connected,
    Over(CloseReason),
    Other,
}

/// The next report of a dialled socket's monitor, if there is one.
pub(crate) fn next_report(dialled: &Dialled) -> Option<Report> {
    let parts = retry(|| dialled.monitor.get().recv_multipart(zmq::DONTWAIT)).ok()?;
    let event = parts.first().and_then(|part| part.get(..2)).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
    let address = || dialled.address.clone();
    // Compared as numbers: `SocketEvent::from_raw` panics on what it does not know.
    let is = |known: zmq::SocketEvent| event == known.to_raw();
    Some(if is(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) {
        Report::Connected
    } else if is(zmq::SocketEvent::HANDSHAKE_FAILED_AUTH) {
        Report::Over(CloseReason::Refused { address: address() })
    } else if is(zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL)
        || is(zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL)
    {
        Report::Over(CloseReason::HandshakeFailed { address: address() })
    } else if is(zmq::SocketEvent::CLOSED) {
        // The connecter closes its descriptor only when the connection was not made.
        Report::Over(CloseReason::ConnectFailed { address: address() })
    } else if is(zmq::SocketEvent::DISCONNECTED) {
        Report::Over(CloseReason::PeerGone)
    } else {
        Report::Other
    })
}

/// The next frame of a DEALER: `Some(None)` is a message of another shape than ours.
pub(crate) fn receive(socket: &zmq::Socket) -> Option<Option<Bytes>> {
    let message = retry(|| socket.recv_msg(zmq::DONTWAIT)).ok()?;
    Some(single(socket, &message))
}

/// The next message of a ROUTER.
pub(crate) fn receive_routed(socket: &zmq::Socket) -> Option<Inbound> {
    let id = retry(|| socket.recv_msg(zmq::DONTWAIT)).ok()?;
    if !id.get_more() {
        return Some(Inbound { id: id.to_vec(), key_text: None, frame: None });
    }
    let mut message = retry(|| socket.recv_msg(zmq::DONTWAIT)).ok()?;
    let frame = single(socket, &message);
    let key_text = message.gets("User-Id").and_then(|text| text.as_bytes().try_into().ok());
    Some(Inbound { id: id.to_vec(), key_text, frame })
}

/// The content of a message of one part. Further parts are read and thrown away.
fn single(socket: &zmq::Socket, message: &zmq::Message) -> Option<Bytes> {
    if !message.get_more() {
        return Some(Bytes::copy_from_slice(message));
    }
    while retry(|| socket.recv_msg(zmq::DONTWAIT)).is_ok_and(|part| part.get_more()) {}
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ipv4_addresses_do_without_ipv6() {
        assert!(!needs_ipv6("10.1.2.3:80"));
        assert!(needs_ipv6("login1.site:80") && needs_ipv6("[::1]:80") && needs_ipv6("nonsense"));
        assert_eq!(
            (bracketed("::1"), bracketed("[::1]"), bracketed("ib0")),
            ("[::1]".into(), "[::1]".into(), "ib0".into())
        );
    }
}
