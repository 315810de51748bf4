//! The session machine at both ends of every link (broker ↔ relay, relay ↔ manager, relay ↔ pilot). Pure: time and frames come in, events and
//! frames come out. Cores contain their ends; shells and the simulation carry the frames.
//!
//! A session begins with HELLO (from the side that dialled) and WELCOME or REFUSE. Every later frame carries the session and a sequence
//! number. A gap, a frame that cannot be read, or silence ends the session, on both sides in the end; the dialling side then says HELLO again. What was
//! sent and may be lost is reconciled by the cores (inventories), never by the link: it neither repeats nor reorders.

mod acceptor;
mod dialer;
mod session;

pub use acceptor::Acceptor;
pub use dialer::Dialer;

use bytes::Bytes;
use pf_protocol::message::{Hello, Message, Refuse, Welcome};

/// Intervals of a link, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A frame is sent at least this often.
    pub heartbeat_ms: u64,
    /// Without any frame for this long the peer is taken for gone.
    pub silent_ms: u64,
    /// A HELLO that is not answered for this long is said again.
    pub hello_timeout_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        let heartbeat_ms = pf_protocol::limits::HEARTBEAT_MS_MIN;
        Timing {
            heartbeat_ms,
            silent_ms: heartbeat_ms * pf_protocol::limits::SILENT_INTERVALS,
            hello_timeout_ms: 5_000,
        }
    }
}

/// What the core learns from its end.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Accepting side: somebody calls. Answer with [`Acceptor::welcome`] or [`Acceptor::refuse`], now or later.
    Hello {
        /// Connection.
        conn: u64,
        /// What was said.
        hello: Hello,
    },
    /// Dialling side: the session is up.
    Up {
        /// Connection that won.
        conn: u64,
        /// What was answered.
        welcome: Welcome,
    },
    /// Dialling side: refused. With `retry` the link goes on trying by itself.
    Refused {
        /// Connection.
        conn: u64,
        /// What was answered.
        refuse: Refuse,
    },
    /// A message of the session.
    Message {
        /// Connection.
        conn: u64,
        /// The message. Never one of the session's own kinds.
        message: Message,
    },
    /// The session is over.
    Down {
        /// Connection.
        conn: u64,
        /// Why.
        reason: String,
        /// Whether the peer said that it ends for good.
        done: bool,
    },
}

/// What the shell must do for the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// Send these bytes.
    Frame {
        /// Connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// Close the connection.
    Close {
        /// Connection.
        conn: u64,
    },
}
