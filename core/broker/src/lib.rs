//! What the broker decides. Pure: called by the shell in `broker/`, which owns log, sockets and HTTP, and by the simulation.
//!
//! A command of a client or a message of a relay is checked, becomes a record, the record is applied to the state by the very same
//! function as in replay, and appended; answers, confirmations and assignments wait until the shell says that it is synced.

mod broker;
mod io;
mod recover;
mod requests;
mod stream;

pub use broker::{Broker, Config};
pub use io::{Blobs, Class, Effect, Input, PutError};
pub use recover::{RecordHead, RecoverError, Recovery};
pub use requests::{
    Caller, Code, JobsFilter, Refusal, Reply, Request, StreamOf, TaskView, Tasks, TokenRow, Verb,
};
pub use stream::{Detail, StreamBatch, StreamPart, StreamRow, decode_details};
