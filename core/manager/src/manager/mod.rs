//! The manager: what it holds, and the one way in.

use crate::shape::NodeShape;
use crate::{Effect, Input};
use pf_link::Timing;
use pf_protocol::{Epoch, ManagerId, Micros};

/// What a manager is born with.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Its id; the incarnation is random for each process.
    pub manager: ManagerId,
    /// Its node, for people.
    pub node: String,
    /// This process, for people.
    pub pid: u32,
    /// This host's wall clock, Unix milliseconds, for people.
    pub clock_ms: u64,
    /// What it carves.
    pub shape: NodeShape,
    /// When the block's walltime is over, on this host's clock.
    pub walltime_end: Micros,
    /// The ticket's epoch: a relay of a lower one is not listened to.
    pub epoch_seen: Epoch,
    /// Intervals until the relay says others.
    pub timing: Timing,
}

/// See the module.
#[derive(Debug)]
pub struct ManagerCore {
    config: ManagerConfig,
}

impl ManagerCore {
    /// A manager that has not begun; [`Input::Start`] begins it.
    #[must_use]
    pub fn new(config: ManagerConfig) -> Self {
        ManagerCore { config }
    }

    /// The only way in.
    pub fn handle(&mut self, now: Micros, input: Input, out: &mut Vec<Effect>) {
        let _ = (now, input, out, &self.config);
    }

    /// What must always hold; panics by name.
    pub fn check(&self) {}
}
