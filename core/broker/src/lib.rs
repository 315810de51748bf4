//! What the broker decides. Pure: called by the shell in `broker/`, which owns log, sockets and HTTP, and by the simulation.
//!
//! A command of a client or a message of a relay is checked, becomes a record, the record is applied to the state by the very same
//! function as in replay, and appended; answers, confirmations and assignments wait until the shell says that it is synced.
//!
//! Two halves: what the log says (`state`, `job`, `ended`: changed by `State::apply` alone) and what is lost in a restart (`live`, links, streams), which
//! is found again by asking relays and clients.

mod asks;
mod assign;
mod broker;
mod check;
mod commands;
mod ended;
mod explain;
mod io;
mod items;
mod job;
mod lifecycle;
pub mod limits;
mod live;
mod load;
mod outcomes;
mod payloads;
mod policy;
mod queries;
mod ready;
mod reconcile;
mod record;
mod recover;
mod relays;
mod requests;
mod state;
mod stream;
mod streams;
mod validate;
mod waiters;

#[cfg(test)]
mod tests;

pub use broker::{Broker, Config};
pub use ended::Row;
pub use io::{Blobs, Class, Effect, Input, PutError};
pub use record::RecordError;
pub use recover::{RecordHead, RecoverError, Recovery};
pub use requests::{
    Caller, Code, JobsFilter, Refusal, Reply, Request, StreamOf, TaskView, Tasks, TokenRow, Verb,
};
pub use state::ApplyError;
pub use stream::{Detail, StreamBatch, StreamPart, StreamRow, decode_details};
