//! The broker's log and payload store: append, group commit, sync, fence, read, snapshot; and `check`, `dump`, `backup`
//! for people. Called by the broker's shell; knows nothing of what the records mean.
//!
//! One thread calls [`Store`] and never waits for a disk; one sync thread inside writes and syncs. How a caller uses it:
//!
//! 1. [`Store::open`] with a replay function (state is rebuilt by the function that also runs live) and a callback that
//!    wakes the loop. Then [`Store::blob_live`] for each payload that the state still refers to, and
//!    [`Store::blob_sweep`].
//! 2. In each turn of the loop: [`Store::admit`] before new work is accepted, [`Store::blob_put`] and [`Store::append`]
//!    for what was decided, one [`Store::flush`] at the end. Nothing is told to anyone yet.
//! 3. When [`SyncEvent::Synced`] comes, give the position to the core: only now may what it covers be acknowledged or
//!    acted upon. On [`SyncEvent::Failed`] exit without another word; a restart replays.
//! 4. When [`Pressure::log_bytes`] outgrows the state, [`Store::snapshot`].
//!
//! The files are described in `folder`, their bytes in `frame`, `payload` and `snapshot`; `tests/golden.rs` pins them.
mod chunk;
mod error;
mod folder;
mod frame;
mod lease;
pub mod limits;
mod log;
pub mod memory;
mod options;
mod owner;
mod payload;
mod queue;
mod recover;
mod redo;
mod scan;
mod snapshot;
mod space;
mod store;
mod sync;
pub mod tools;

pub use error::{ReplayError, StoreError};
pub use frame::{Record, RecordType};
pub use options::Options;
pub use payload::BlobReader;
pub use pf_protocol::BlobRef;
pub use recover::{Replay, ReplayFn};
pub use store::{Class, Opened, Pressure, Store};
pub use sync::{OnSync, SyncEvent};

/// A place in the log: the number of records ever appended, which is also the position of the last of them. Records are
/// counted from 1, over all restarts and snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);
