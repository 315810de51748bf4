//! The simulation: clients, broker with a simulated disk, relay, scheduler, managers, all on the real cores, in one thread, from one seed.
//!
//! Faults: frames lost and repeated, connections cut, broker, relay and managers killed, syncs that take their time, a crash that loses what was not
//! synced. What must hold is in [`World::check_end`] and [`truth`]: each task has one outcome, no task runs twice at once, none runs
//! more often than its job and the table of faults allow, what was acknowledged is never lost, and the same seed gives the same log.

mod disk;
mod net;
mod rng;
mod truth;
mod world;

pub use rng::Rng;
pub use truth::Truth;
pub use world::{Faults, Plan, Scheduler, World};
