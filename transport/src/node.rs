//! What a shell implements to be run by the reactor, and the words that both share.

use std::fmt;

use bytes::Bytes;

use crate::allow::AllowList;
use crate::keys::{KeyPair, PublicKey};
use crate::outbox::Outbox;

/// One connection: one TCP connection behind ZeroMQ, or one end of an in-process pair. Never reused, never
/// reconnected behind the node's back: what reconnects is a new `Conn`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Conn(pub u64);

impl fmt::Display for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conn {}", self.0)
    }
}

/// A node of one reactor, in the order of [`crate::Reactor::add`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(pub(crate) usize);

/// Who is at the other end of an accepted connection, as CURVE proved it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// The client's key. A frame's claimed identity is to be checked against it.
    pub key: PublicKey,
    /// The tag that the allow list gave to the key when the connection came up.
    pub tag: u64,
}

/// Why a connection is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The other end closed, died, or broke off.
    #[error("the peer is gone")]
    PeerGone,
    /// The other end did not read for so long that what waits for it reached its bound.
    #[error("the peer does not read: {frames} frames wait for it")]
    Stalled {
        /// Frames that were waiting, and are dropped.
        frames: usize,
    },
    /// A frame above [`crate::limits::FRAME_BYTES_MAX`] was given to `send`.
    #[error("a frame of {bytes} bytes is over the limit")]
    FrameTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The allow list does not hold the peer's key any more.
    #[error("the peer's key was removed from the allow list")]
    KeyRemoved,
    /// Dialling: nobody listens there, or the network does not reach it.
    #[error("connect to {address} failed")]
    ConnectFailed {
        /// Where to.
        address: String,
    },
    /// Dialling: the listener does not know our key.
    #[error("{address} refused our key")]
    Refused {
        /// Where to.
        address: String,
    },
    /// Dialling: the other end is no listener of ours, or holds another key than the one expected.
    #[error("no CURVE handshake with {address}")]
    HandshakeFailed {
        /// Where to.
        address: String,
    },
    /// Dialling: the address cannot be used at all, or the process is out of sockets.
    #[error("dial {address}: {why}")]
    CannotDial {
        /// Where to.
        address: String,
        /// libzmq's words.
        why: String,
    },
}

/// Ports to try in order, for sites that open only some between nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The first; 0 means any free port.
    pub first: u16,
    /// The last, included.
    pub last: u16,
}

impl Ports {
    /// Any free port.
    pub fn any() -> Self {
        Self { first: 0, last: 0 }
    }

    /// Exactly this port, as a relay that comes back needs it.
    pub fn only(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

/// Where to listen, and for whom.
#[derive(Clone, Debug)]
pub struct ListenSpec {
    /// Interfaces by address or by name (`10.0.0.3`, `fe80::1%eth0`, `ib0`). All get the same port.
    pub hosts: Vec<String>,
    /// Ports to try.
    pub ports: Ports,
    /// The key that dialling peers expect.
    pub keys: KeyPair,
    /// Whose keys are let in.
    pub allow: AllowList,
}

/// Whom to dial.
#[derive(Clone, Debug)]
pub struct DialSpec {
    /// `host:port`, with IPv6 addresses in brackets. Better a number than a name: libzmq asks the resolver on the thread
    /// that serves all sockets of the process.
    pub address: String,
    /// The only key that the listener may have.
    pub server_key: PublicKey,
    /// Our own key, on the listener's allow list.
    pub keys: KeyPair,
}

/// A shell around a core. All calls come from the reactor's thread, one at a time; `now` is [`crate::now_us`].
///
/// A call should return within about a millisecond: every link of the process waits for it.
pub trait Node: Send {
    /// The reactor begins to run.
    fn on_start(&mut self, now: u64, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// A peer whose key is on the allow list sent its first frame, which follows at once.
    fn on_accepted(&mut self, now: u64, conn: Conn, peer: Peer, out: &mut Outbox) {
        let _ = (now, conn, peer, out);
    }

    /// A dialled connection has done its handshake, or an in-process pair is there. Frames may be sent before.
    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        let _ = (now, conn, out);
    }

    /// A frame, whole and in order within its connection. Its content is not checked by anybody yet.
    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox);

    /// A connection is over, without the node having closed it. Called once; nothing comes for `conn` afterwards.
    ///
    /// An accepted peer that falls silent is seen only when something is sent to it; sessions have heartbeats for that.
    fn on_closed(&mut self, now: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        let _ = (now, conn, reason, out);
    }

    /// Somebody called the node's [`crate::Waker`]: look into your queues.
    fn on_wake(&mut self, now: u64, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// A watched file descriptor is readable, or in error. Level-triggered: called again until it is drained.
    fn on_readable(&mut self, now: u64, token: u64, out: &mut Outbox) {
        let _ = (now, token, out);
    }

    /// The deadline of [`Outbox::set_timer`] has come; it is cleared before the call.
    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// The end of a turn in which something happened: the moment to flush what was batched. The next turn may sleep.
    fn on_turn_end(&mut self, now: u64, out: &mut Outbox) {
        let _ = (now, out);
    }

    /// This process did not run for `gap_us` when it wanted to: extend every deadline before judging anybody. Called
    /// before the frames and timers that waited meanwhile.
    fn on_clock_gap(&mut self, now: u64, gap_us: u64, out: &mut Outbox) {
        let _ = (now, gap_us, out);
    }
}
