//! What the relay decides: placement, scaling, recovery. Pure.
//!
//! [`Relay`] is one state machine, `handle(now, input, &mut effects)`: the shell (`pf-relay`) and the simulation feed it. It holds copies only: the
//! broker's log is the truth, the managers have the running tasks, and what must survive its own end is the [`Roster`].

mod block_life;
mod blocks;
mod brake;
mod broker_side;
mod check;
mod classes;
mod failures;
mod flight;
pub mod io;
pub mod limits;
mod loss;
mod manager;
mod manager_side;
mod outbox;
mod payloads;
mod place;
pub mod plan;
mod quarantine;
mod queue;
mod recover;
mod relay;
mod report;
mod scale;
pub mod scaling;
mod snapshot;
mod stop;

pub use io::{BlockRecord, Config, Effect, Input, Quarantine, Roster, Seen, SubmitResult};
pub use relay::Relay;
pub use scaling::{Accounts, Scaling, Shape};
