//! Shells of pilot and manager: processes, workers, topology, output, spool.
//!
//! `pf` calls [`pilot_main`], [`manager_main`] and [`rank_main`]; what they decide is in `pf-manager-core`.

mod capture;
mod cgroup;
mod children;
mod claim;
mod command;
mod environment;
mod files;
mod gpus;
mod guard;
mod lanes;
mod launch;
mod limits;
mod manager;
mod memory;
mod node;
mod node_shape;
mod oom;
mod output;
mod outputs;
mod pilot;
mod polls;
mod process;
mod programs;
mod rank;
mod running;
mod spawn;
mod ticket;
pub mod topology;
mod variables;
mod wire;
mod words;
mod worker;

pub use manager::{ManagerArgs, manager_main};
pub use node_shape::local_capacity;
pub use pilot::pilot_main;
pub use rank::rank_main;
pub use ticket::TicketError;
