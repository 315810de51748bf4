//! The broker's core as a whole.

use crate::io::{Blobs, Effect, Input};
use pf_link::Timing;
use pf_protocol::{ContentHash, Epoch, JobId, Micros, OwnerId};

/// What the shell tells the core once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Random for each process: numbers of sessions begin there.
    pub seed: u64,
    /// Intervals of the links to relays.
    pub timing: Timing,
    /// Name of the user who runs the broker, owner 1.
    pub owner_name: String,
    /// The monotonic clock now.
    pub now: Micros,
    /// The wall clock now, Unix microseconds. Records are dated from it and the monotonic clock.
    pub wall_us: u64,
}

/// See the crate.
#[derive(Debug)]
pub struct Broker {
    config: Config,
}

impl Broker {
    pub(crate) fn new(config: Config) -> Self {
        Broker { config }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Micros, input: Input, blobs: &mut dyn Blobs, out: &mut Vec<Effect>) {
        let _ = (now, input, blobs, out, &self.config);
    }

    /// The state as bytes for the store, with the position of the last record in it.
    #[must_use]
    pub fn snapshot(&self) -> (u64, Vec<u8>) {
        (0, Vec::new())
    }

    /// Every (job, payload segment) that must be kept: told to the store after a restart.
    #[must_use]
    pub fn live_payloads(&self) -> Vec<(JobId, u32)> {
        Vec::new()
    }

    /// The owner of the token with this hash.
    #[must_use]
    pub fn token_owner(&self, hash: &ContentHash) -> Option<OwnerId> {
        let _ = hash;
        None
    }

    /// Public keys of the relays that may connect.
    #[must_use]
    pub fn relay_keys(&self) -> Vec<[u8; 32]> {
        Vec::new()
    }

    /// Checks what must always hold.
    ///
    /// # Panics
    /// When it does not, with the invariant's name.
    pub fn check(&self) {
        let _ = Epoch(0);
    }
}
