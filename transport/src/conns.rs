//! The state of one connection, and how a frame leaves on it. Used by the outbox only.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::keys::Z85_CHARS;
use crate::limits;
use crate::node::{CloseReason, Conn, Peer};
use crate::sockets::Wired;

/// What a ROUTER calls a peer that named itself nothing: a zero byte and a number. Other names are refused.
pub(crate) type RoutingId = [u8; 5];

/// One connection as the outbox keeps it.
pub(crate) struct ConnState {
    pub node: usize,
    pub carrier: Carrier,
    pub backlog: Backlog,
}

/// What carries the frames of a connection.
pub(crate) enum Carrier {
    /// A peer of a listener.
    Accepted { listener: usize, id: RoutingId, peer: Peer, key_text: [u8; Z85_CHARS] },
    /// A socket of its own, with the monitor that tells how it fares.
    Dialled(Box<Dialled>),
    /// The other end is in this process.
    Local { other: Conn },
}

/// A dialled connection.
pub(crate) struct Dialled {
    pub socket: Wired,
    pub monitor: Wired,
    /// Where the monitor hears: a name within this process.
    pub reports: String,
    pub address: String,
    /// Set when the monitor said that it is over; frames that arrived before are still delivered.
    pub ending: Option<CloseReason>,
}

impl Drop for Dialled {
    /// Ends the reports before the monitor goes. The socket itself lingers on, and libzmq's I/O thread, which serves all connections of this
    /// process, would wait for ever to report something of it (the end of a handshake) to a monitor that nobody holds.
    fn drop(&mut self) {
        // A new monitor takes the place of the old one, and is told nothing.
        let _ = self.socket.get().monitor(&format!("{}-over", self.reports), 0);
    }
}

/// Frames that ZMQ had no room for.
#[derive(Default)]
pub(crate) struct Backlog {
    frames: VecDeque<Bytes>,
    bytes: usize,
    pub since_us: u64,
}

/// How an attempt to send ended, when it did not fail.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    Yes,
    /// The peer's pipe is full.
    Full,
}

impl Backlog {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn first(&self) -> Option<&Bytes> {
        self.frames.front()
    }

    /// Keeps `frame` for later; false when there is no room for it.
    pub(crate) fn push(&mut self, frame: Bytes, now: u64) -> bool {
        if self.frames.len() >= limits::BACKLOG_FRAMES_MAX
            || self.bytes.saturating_add(frame.len()) > limits::BACKLOG_BYTES_MAX
        {
            return false;
        }
        if self.frames.is_empty() {
            self.since_us = now;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
        true
    }

    /// Forgets the first frame, which was sent at `now`.
    pub(crate) fn pop(&mut self, now: u64) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.len();
            self.since_us = now;
        }
    }
}

/// Hands `frame` to ZMQ without waiting.
pub(crate) fn send_on(
    socket: &zmq::Socket,
    id: Option<&RoutingId>,
    frame: &[u8],
) -> Result<Sent, CloseReason> {
    if let Some(id) = id {
        match retry(|| socket.send(&id[..], zmq::DONTWAIT | zmq::SNDMORE)) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => return Ok(Sent::Full),
            Err(_) => return Err(CloseReason::PeerGone),
        }
    }
    match retry(|| socket.send(frame, zmq::DONTWAIT)) {
        Ok(()) => Ok(Sent::Yes),
        Err(zmq::Error::EAGAIN) => Ok(Sent::Full),
        Err(_) => Err(CloseReason::PeerGone),
    }
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> zmq::Result<T>) -> zmq::Result<T> {
    loop {
        match call() {
            Err(zmq::Error::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_bounded_in_frames_and_bytes() {
        let mut backlog = Backlog::default();
        for _ in 0..limits::BACKLOG_FRAMES_MAX {
            assert!(backlog.push(Bytes::from_static(b"x"), 5));
        }
        assert!(!backlog.push(Bytes::from_static(b"x"), 6));
        assert_eq!(backlog.since_us, 5);
        backlog.pop(9);
        assert_eq!((backlog.len(), backlog.since_us), (limits::BACKLOG_FRAMES_MAX - 1, 9));

        let mut backlog = Backlog::default();
        let big = Bytes::from(vec![0u8; limits::FRAME_BYTES_MAX]);
        assert!(backlog.push(big.clone(), 0) && backlog.push(big.clone(), 0) && !backlog.push(big, 0));
    }
}
