//! What comes into the broker's core and what goes out of it. Used by the shell (`broker/`) and by the simulation, which both
//! carry frames, append records, sync, load blobs and answer people on the core's behalf.

use crate::requests::{Caller, Refusal, Reply, Request};
use crate::stream::StreamBatch;
use bytes::Bytes;
use pf_protocol::{BlobRef, JobId, Micros};

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Somebody wants something. Answered by [`Effect::Reply`] with the same ticket, exactly once.
    Request {
        /// Chosen by the shell, unique while it is open.
        ticket: u64,
        /// Who asks, as the shell has proven it.
        caller: Caller,
        /// What is asked.
        request: Request,
    },
    /// A relay connected. `peer` is its proven public key; None is "this very process", which is trusted.
    Accepted {
        /// Names the connection; never used twice.
        conn: u64,
        /// CURVE public key.
        peer: Option<[u8; 32]>,
    },
    /// A frame came.
    Frame {
        /// Its connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// The connection is gone.
    ConnClosed {
        /// Which.
        conn: u64,
    },
    /// Every record up to this position is on disk.
    Synced {
        /// Position: the number of records ever appended.
        position: u64,
    },
    /// The answer to [`Effect::Load`]: the blobs in the order asked, or why not.
    Loaded {
        /// As in the question.
        token: u64,
        /// What was read.
        result: Result<Vec<Bytes>, String>,
    },
    /// The subscriber can take one more batch.
    Pull {
        /// As given to [`Request::Subscribe`].
        subscription: u64,
    },
    /// The subscriber is gone.
    Unsubscribe {
        /// As given to [`Request::Subscribe`].
        subscription: u64,
    },
    /// Why new work must be refused, or None when that is over. Outcomes are taken all the same.
    Pressure(Option<PutError>),
    /// This process stood still for a while: no silence is held against anybody.
    ClockGap,
    /// The time asked for by [`Effect::SetTimer`] has come.
    Timer,
}

/// Which space of the store a record or a blob may use when the disk is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Refused when the disk is full.
    Ordinary,
    /// May use the reserve: outcomes, and what ends or removes things.
    Outcome,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Append this record to the log, in this order. The core counts positions itself: this is the next one.
    Append {
        /// Which record.
        kind: u16,
        /// Version of its layout.
        version: u8,
        /// Whether a reader that does not know it must refuse the log.
        critical: bool,
        /// Which space it may use.
        class: Class,
        /// The record.
        bytes: Bytes,
    },
    /// Answer a request. Everything that it says is on disk.
    Reply {
        /// Whose.
        ticket: u64,
        /// The answer.
        reply: Result<Reply, Refusal>,
    },
    /// Outcomes for a subscriber, all of them on disk. One for each [`Input::Pull`].
    Stream {
        /// Whose.
        subscription: u64,
        /// The outcomes.
        batch: StreamBatch,
    },
    /// Send this frame.
    Frame {
        /// On this connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// Close the connection, after what was sent on it.
    CloseConn {
        /// Which.
        conn: u64,
    },
    /// Call with [`Input::Timer`] at this time. Replaces the time set before.
    SetTimer {
        /// When.
        at: Micros,
    },
    /// Read these blobs and come back with [`Input::Loaded`].
    Load {
        /// Names the question.
        token: u64,
        /// Which, in order.
        blobs: Vec<BlobRef>,
    },
    /// The job is forgotten, on disk: drop its payloads.
    DropJob {
        /// Which.
        job: JobId,
    },
}

/// Where payloads are put, given to `handle` as an argument.
///
/// It is the one verb that the core calls instead of emitting: a record holds the place of its payload, so the place must be known
/// before the record is made, and a round trip through the shell would split every submit and every batch of outcomes into two
/// half-done states that recovery would have to know. Putting is appending to a buffer: it does not wait for a disk. It stays deterministic:
/// the simulation's implementation counts.
pub trait Blobs {
    /// Keeps `bytes` for as long as `job` is not dropped; durable once a record appended later is synced.
    ///
    /// # Errors
    /// When the store cannot take it now.
    fn put(&mut self, job: JobId, class: Class, bytes: &[u8]) -> Result<BlobRef, PutError>;

    /// Keeps what was put for another job for as long as `job` is not dropped, too.
    fn keep(&mut self, job: JobId, blob: BlobRef);
}

/// Why a blob was not put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The disk is full.
    #[error("the disk is full: {0}")]
    Full(String),
    /// Too much waits for the disk already.
    #[error("too much waits for the disk: {0}")]
    Busy(String),
}
