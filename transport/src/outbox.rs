//! What a node may do, and the sockets it does it on. The reactor hands it to every call of a node.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;

use bytes::Bytes;

use crate::conns::{Backlog, Carrier, ConnState, RoutingId, Sent, send_on};
use crate::error::TransportError;
use crate::files::{nearly_out_of_files, raise_file_limit};
use crate::keys::{PublicKey, Z85_CHARS};
use crate::limits;
use crate::node::{CloseReason, Conn, DialSpec, ListenSpec, NodeId, Peer};
use crate::sockets::{self, Inbound, Report, Wired};
use crate::waker::{Bell, Waker};
use crate::zap::{self, Verdict};

/// The effects of a node: sends, dials, timers. Acts at once; what comes of it is told by later calls of the node.
pub struct Outbox {
    pub(crate) current: usize,
    pub(crate) now: u64,
    pub(crate) stopping: bool,
    pub(crate) timers: Vec<Option<u64>>,
    pub(crate) wakers: Vec<Waker>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) hwm_frames: i32,
    conns: HashMap<Conn, ConnState>,
    /// Dialled connections, in order of age, to be polled.
    dialled: Vec<Conn>,
    /// Connections with a backlog, and nothing else.
    stalled: Vec<Conn>,
    last_conn: u64,
    pub(crate) listeners: Vec<Listener>,
    // After the sockets that ask it, so that it goes last.
    pub(crate) zap: Wired,
    context: zmq::Context,
    files_max: u64,
    refusals_logged_until_us: u64,
}

/// A ROUTER and whose it is.
pub(crate) struct Listener {
    pub node: usize,
    pub socket: Wired,
    spec: ListenSpec,
    seen_version: u64,
    ids: HashMap<RoutingId, Conn>,
}

/// A file descriptor that a node watches.
pub(crate) struct Watch {
    pub node: usize,
    pub fd: RawFd,
    pub token: u64,
}

/// What a node is still to be told.
pub(crate) enum Event {
    Connected(Conn),
    /// A frame of an in-process pair.
    Frame(Conn, Bytes),
    /// The other end of an in-process pair closed.
    Hangup(Conn),
    /// The connection is gone already.
    Closed {
        node: usize,
        conn: Conn,
        reason: CloseReason,
    },
}

/// A frame from a socket, for `node`.
pub(crate) struct Delivery {
    pub node: usize,
    pub conn: Conn,
    /// Set with the first frame of a peer.
    pub accepted: Option<Peer>,
    pub frame: Bytes,
}

/// What one look at a socket gave.
pub(crate) enum Received {
    Frame(Delivery),
    /// Something was there, and was thrown away.
    Dropped,
    Empty,
}

impl Outbox {
    pub(crate) fn new(now: u64) -> Result<Self, TransportError> {
        let context = zmq::Context::new();
        Ok(Self {
            current: 0,
            now,
            stopping: false,
            timers: Vec::new(),
            wakers: Vec::new(),
            bell: Arc::new(Bell::new()?),
            watches: Vec::new(),
            events: VecDeque::new(),
            hwm_frames: limits::HWM_FRAMES,
            conns: HashMap::new(),
            dialled: Vec::new(),
            stalled: Vec::new(),
            last_conn: 0,
            listeners: Vec::new(),
            zap: Wired::new(zap::zap_socket(&context)?),
            context,
            files_max: raise_file_limit()?,
            refusals_logged_until_us: 0,
        })
    }

    /// Sends a frame, in order within `conn`, without waiting. Nothing happens when `conn` is over.
    ///
    /// A frame is never dropped silently while its connection lives: if the peer does not take it, `conn` closes.
    pub fn send(&mut self, conn: Conn, frame: Bytes) {
        let now = self.now;
        if frame.len() > limits::FRAME_BYTES_MAX {
            return self.fail(conn, CloseReason::FrameTooLarge { bytes: frame.len() });
        }
        let Some(state) = self.conns.get_mut(&conn) else { return };
        let sent = match &state.carrier {
            Carrier::Local { other } => {
                let other = *other;
                return self.send_local(conn, other, frame);
            }
            _ if !state.backlog.is_empty() => Ok(Sent::Full),
            Carrier::Accepted { listener, id, .. } => {
                send_on(self.listeners[*listener].socket.get(), Some(id), &frame)
            }
            Carrier::Dialled(dialled) => send_on(dialled.socket.get(), None, &frame),
        };
        match sent {
            Ok(Sent::Yes) => {}
            Ok(Sent::Full) => {
                if state.backlog.is_empty() {
                    self.stalled.push(conn);
                }
                if !state.backlog.push(frame, now) {
                    let frames = state.backlog.len() + 1;
                    self.fail(conn, CloseReason::Stalled { frames });
                }
            }
            Err(reason) => self.fail(conn, reason),
        }
    }

    fn send_local(&mut self, conn: Conn, other: Conn, frame: Bytes) {
        let frames = self.events.len();
        if frames >= limits::LOCAL_FRAMES_MAX {
            self.fail(other, CloseReason::Stalled { frames });
            self.fail(conn, CloseReason::Stalled { frames });
        } else {
            self.events.push_back(Event::Frame(other, frame));
        }
    }

    /// Ends a connection. What was sent before is still given a second to leave, unless the peer does not read; nothing
    /// more comes from it.
    ///
    /// ZeroMQ cannot cut a single accepted peer: if it speaks again, and is still allowed, it is a new connection.
    pub fn close(&mut self, conn: Conn) {
        if let Some(ConnState { carrier: Carrier::Local { other }, .. }) = self.remove(conn) {
            self.events.push_back(Event::Hangup(other));
        }
    }

    /// Dials. Frames may be sent at once; `on_connected` or `on_closed` tells how it went. The node needs a deadline of
    /// its own for the first answer: a listener with another key, or one that hangs, may never say a word.
    pub fn dial(&mut self, spec: &DialSpec) -> Conn {
        let conn = self.mint();
        match sockets::dial(&self.context, spec, &conn.0.to_string(), self.hwm_frames) {
            Ok(dialled) => {
                let (node, carrier) = (self.current, Carrier::Dialled(Box::new(dialled)));
                self.conns.insert(conn, ConnState { node, carrier, backlog: Backlog::default() });
                self.dialled.push(conn);
            }
            Err(error) => {
                let reason =
                    CloseReason::CannotDial { address: spec.address.clone(), why: error.to_string() };
                self.events.push_back(Event::Closed { node: self.current, conn, reason });
            }
        }
        conn
    }

    /// Listens for the calling node; answers the addresses as `host:port`, in the order of the hosts.
    pub fn listen(&mut self, spec: ListenSpec) -> Result<Vec<String>, TransportError> {
        let domain = format!("pf{}", self.listeners.len());
        let (socket, addresses) = sockets::listen(&self.context, &spec, &domain, self.hwm_frames)?;
        let seen_version = spec.allow.version();
        let socket = Wired::new(socket);
        self.listeners.push(Listener { node: self.current, socket, spec, seen_version, ids: HashMap::new() });
        Ok(addresses)
    }

    /// Sets the node's one deadline, µs of [`crate::now_us`]; replaces the one before. Fires within a millisecond.
    pub fn set_timer(&mut self, at_us: u64) {
        self.timers[self.current] = Some(at_us);
    }

    /// Forgets the node's deadline.
    pub fn clear_timer(&mut self) {
        self.timers[self.current] = None;
    }

    /// Calls `on_readable` with `token` when `fd` is readable or in error. The node keeps `fd` open until `unwatch`.
    pub fn watch(&mut self, fd: RawFd, token: u64) {
        self.watches.push(Watch { node: self.current, fd, token });
    }

    /// Ends the node's watch with this token. To be called before the descriptor is closed.
    pub fn unwatch(&mut self, token: u64) {
        let node = self.current;
        self.watches.retain(|watch| (watch.node, watch.token) != (node, token));
    }

    /// Who is at the other end of an accepted connection; None for dialled, in-process and closed ones.
    pub fn peer(&self, conn: Conn) -> Option<Peer> {
        match &self.conns.get(&conn)?.carrier {
            Carrier::Accepted { peer, .. } => Some(*peer),
            _ => None,
        }
    }

    /// Whether `conn` is not over.
    pub fn is_open(&self, conn: Conn) -> bool {
        self.conns.contains_key(&conn)
    }

    /// A waker for the calling node.
    pub fn waker(&self) -> Waker {
        self.wakers[self.current].clone()
    }

    /// Ends [`crate::Reactor::run`] after this turn. What was sent gets a second to leave.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    fn mint(&mut self) -> Conn {
        self.last_conn += 1;
        Conn(self.last_conn)
    }

    /// Links two nodes; the first answer is the end of `a`.
    pub(crate) fn pair(&mut self, a: NodeId, b: NodeId) -> (Conn, Conn) {
        let (end_a, end_b) = (self.mint(), self.mint());
        for (node, conn, other) in [(a, end_a, end_b), (b, end_b, end_a)] {
            let carrier = Carrier::Local { other };
            self.conns.insert(conn, ConnState { node: node.0, carrier, backlog: Backlog::default() });
            self.events.push_back(Event::Connected(conn));
        }
        (end_a, end_b)
    }

    /// The node of a living connection.
    pub(crate) fn node_of(&self, conn: Conn) -> Option<usize> {
        self.conns.get(&conn).map(|state| state.node)
    }

    /// Ends a connection against the node's will and queues the news.
    pub(crate) fn fail(&mut self, conn: Conn, reason: CloseReason) {
        let Some(state) = self.remove(conn) else { return };
        if let (Carrier::Local { other }, CloseReason::FrameTooLarge { .. }) = (&state.carrier, &reason) {
            self.events.push_back(Event::Hangup(*other));
        }
        self.events.push_back(Event::Closed { node: state.node, conn, reason });
    }

    fn remove(&mut self, conn: Conn) -> Option<ConnState> {
        let state = self.conns.remove(&conn)?;
        match &state.carrier {
            Carrier::Accepted { listener, id, .. } => {
                self.listeners[*listener].ids.remove(id);
            }
            Carrier::Dialled(_) => self.dialled.retain(|known| *known != conn),
            Carrier::Local { .. } => {}
        }
        if !state.backlog.is_empty() {
            self.stalled.retain(|known| *known != conn);
        }
        Some(state)
    }

    /// Tries full pipes again and gives up those that stayed full for too long.
    pub(crate) fn retry_stalled(&mut self) {
        for conn in std::mem::take(&mut self.stalled) {
            let Some(state) = self.conns.get_mut(&conn) else { continue };
            let outcome = loop {
                let Some(frame) = state.backlog.first() else { break Ok(Sent::Yes) };
                let sent = match &state.carrier {
                    Carrier::Accepted { listener, id, .. } => {
                        send_on(self.listeners[*listener].socket.get(), Some(id), frame)
                    }
                    Carrier::Dialled(dialled) => send_on(dialled.socket.get(), None, frame),
                    Carrier::Local { .. } => Ok(Sent::Yes),
                };
                match sent {
                    Ok(Sent::Yes) => state.backlog.pop(self.now),
                    other => break other,
                }
            };
            let (frames, waited_us) = (state.backlog.len(), self.now.saturating_sub(state.backlog.since_us));
            match outcome {
                Ok(Sent::Yes) => {}
                Ok(Sent::Full) if waited_us < limits::STALL_US_MAX => self.stalled.push(conn),
                Ok(Sent::Full) => self.fail(conn, CloseReason::Stalled { frames }),
                Err(reason) => self.fail(conn, reason),
            }
        }
    }

    /// Whether a full pipe is to be tried again soon.
    pub(crate) fn has_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Moves the patience with full pipes by a gap in our own clock.
    pub(crate) fn forgive(&mut self, gap_us: u64) {
        for conn in &self.stalled {
            if let Some(state) = self.conns.get_mut(conn) {
                state.backlog.since_us += gap_us;
            }
        }
    }

    /// Cuts the connections of keys that were removed from their allow list.
    pub(crate) fn cut_removed_keys(&mut self) {
        let mut cut = Vec::new();
        for listener in &mut self.listeners {
            let version = listener.spec.allow.version();
            if version == listener.seen_version {
                continue;
            }
            listener.seen_version = version;
            let allow = &listener.spec.allow;
            cut.extend(listener.ids.values().copied().filter(|conn| match self.conns.get(conn) {
                Some(ConnState { carrier: Carrier::Accepted { peer, .. }, .. }) => !allow.contains(&peer.key),
                _ => false,
            }));
        }
        cut.sort_unstable();
        for conn in cut {
            self.fail(conn, CloseReason::KeyRemoved);
        }
    }

    /// Answers libzmq's questions about keys; false when there is none left.
    pub(crate) fn answer_zap(&mut self) -> bool {
        let full = nearly_out_of_files(self.bell.fd(), self.files_max);
        let answered = zap::answer_one(self.zap.get(), full, |domain| {
            let index: usize = domain.strip_prefix("pf")?.parse().ok()?;
            self.listeners.get(index).map(|listener| &listener.spec.allow)
        });
        let Some((verdict, address)) = answered else { return false };
        if self.now < self.refusals_logged_until_us {
            return true;
        }
        match verdict {
            Verdict::Allowed(_) => return true,
            Verdict::Refused => tracing::warn!(address, "refused a client whose key is not allowed"),
            Verdict::Later => tracing::error!(
                address,
                limit = self.files_max,
                "put off a client: nearly out of file descriptors; raise the hard limit (ulimit -Hn)"
            ),
        }
        // One line a second, whoever knocks.
        self.refusals_logged_until_us = self.now + 1_000_000;
        true
    }

    /// The next frame of a listener.
    pub(crate) fn receive_accepted(&mut self, listener: usize) -> Received {
        let socket = &self.listeners[listener].socket;
        let Some(Inbound { id, key_text, frame }) = sockets::receive_routed(socket.get()) else {
            socket.found_empty();
            return Received::Empty;
        };
        let node = self.listeners[listener].node;
        let automatic = RoutingId::try_from(id.as_slice()).ok().filter(|id| id[0] == 0);
        let (Some(id), Some(key_text), Some(frame)) = (automatic, key_text, frame) else {
            tracing::debug!("dropped a message that is not one of ours");
            return Received::Dropped;
        };
        if let Some(conn) = self.listeners[listener].ids.get(&id).copied() {
            let known = self.conns.get(&conn).is_some_and(|state| state.carrier.has_key(&key_text));
            if known {
                return Received::Frame(Delivery { node, conn, accepted: None, frame });
            }
            // Somebody else took the routing id of a peer that left.
            self.fail(conn, CloseReason::PeerGone);
        }
        let Some((conn, peer)) = self.accept(listener, id, key_text) else { return Received::Dropped };
        Received::Frame(Delivery { node, conn, accepted: Some(peer), frame })
    }

    fn accept(&mut self, listener: usize, id: RoutingId, key_text: [u8; Z85_CHARS]) -> Option<(Conn, Peer)> {
        if self.conns.len() >= limits::CONNS_MAX {
            tracing::error!(limit = limits::CONNS_MAX, "dropped a frame of a new peer: too many connections");
            return None;
        }
        let key = std::str::from_utf8(&key_text).ok().and_then(|text| PublicKey::from_z85(text).ok())?;
        let at = &self.listeners[listener];
        let peer = Peer { key, tag: at.spec.allow.get(&key)? };
        let node = at.node;
        let conn = self.mint();
        let carrier = Carrier::Accepted { listener, id, peer, key_text };
        self.conns.insert(conn, ConnState { node, carrier, backlog: Backlog::default() });
        self.listeners[listener].ids.insert(id, conn);
        Some((conn, peer))
    }

    /// Dialled connections and their two sockets, to be polled.
    pub(crate) fn dialled_sockets(&self) -> impl Iterator<Item = (Conn, &Wired, &Wired)> {
        self.dialled.iter().filter_map(|conn| match &self.conns.get(conn)?.carrier {
            Carrier::Dialled(dialled) => Some((*conn, &dialled.socket, &dialled.monitor)),
            _ => None,
        })
    }

    /// The next frame of a dialled connection. When there is none and its monitor reported the end, it ends now.
    pub(crate) fn receive_dialled(&mut self, conn: Conn) -> Received {
        let Some(ConnState { node, carrier: Carrier::Dialled(dialled), .. }) = self.conns.get(&conn) else {
            return Received::Empty;
        };
        match sockets::receive(dialled.socket.get()) {
            Some(Some(frame)) => Received::Frame(Delivery { node: *node, conn, accepted: None, frame }),
            Some(None) => Received::Dropped,
            None => {
                dialled.socket.found_empty();
                if let Some(reason) = dialled.ending.clone() {
                    self.fail(conn, reason);
                }
                Received::Empty
            }
        }
    }

    /// Reads what the monitor of a dialled connection reported.
    pub(crate) fn read_reports(&mut self, conn: Conn) {
        let Some(ConnState { carrier: Carrier::Dialled(dialled), .. }) = self.conns.get_mut(&conn) else {
            return;
        };
        while let Some(report) = sockets::next_report(dialled) {
            match report {
                Report::Connected => self.events.push_back(Event::Connected(conn)),
                // The first reason says most: a refused key is followed by a plain disconnect.
                Report::Over(reason) => _ = dialled.ending.get_or_insert(reason),
                Report::Other => {}
            }
        }
    }
}

impl Carrier {
    fn has_key(&self, text: &[u8; Z85_CHARS]) -> bool {
        matches!(self, Carrier::Accepted { key_text, .. } if key_text == text)
    }
}
