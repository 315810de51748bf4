//! What manager and pilot decide. Pure: a shell (`pilot/`) or the simulation turns sockets, timers and processes into [`Input`]s, and carries
//! out the [`Effect`]s.
//!
//! [`ManagerCore`] holds the attempts that the relay dispatched, binds them to cores and GPUs, keeps Python workers warm, and holds every
//! outcome until the broker's confirmation has come back. [`PilotCore`] starts one manager on each node of its block and watches the clock.

mod dial;
pub mod effect;
pub mod limits;
mod manager;
mod pilot;
mod shape;
mod slots;

pub use effect::{
    Effect, Input, OutOfMemory, ProcessEnd, ProcessStatus, StartCommand, StartWorker, WorkerAnswer,
    WorkerEnd, WorkerTask,
};
pub use manager::{ManagerConfig, ManagerCore};
pub use pilot::{PilotConfig, PilotCore, PilotEffect, PilotInput};
pub use shape::{Core, Gpu, NodeShape};
