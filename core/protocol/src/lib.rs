//! What travels and what is stored: ids, records, messages, their encodings and their limits.
//!
//! Every other crate speaks in these types. Nothing here decides anything, and nothing here touches a clock, a file or a socket.
//! `docs/decisions/` and the golden files in `tests/` pin every format: a change of bytes is a decision, not an accident.

pub mod api;
pub mod frame;
pub mod ids;
pub mod job;
pub mod limits;
pub mod message;
pub mod outcome;
pub mod outlog;
pub mod payload;
pub mod ranges;
pub mod report;
pub mod resources;
mod session;
pub mod spool;
pub mod ticket;

pub use ids::{
    AttemptId, BlobRef, BlockId, ContentHash, EndpointId, Epoch, FunctionId, JobId, JobKey, ManagerId,
    OwnerId, TaskId,
};
pub use ranges::Ranges;

/// Microseconds on one host's monotonic clock. Cores see time only as this; it is never compared between hosts.
pub type Micros = u64;

/// Milliseconds since 1970, UTC. Only for people to read; no decision depends on it.
pub type UnixMillis = u64;
