//! When to dial again: doubling waits with jitter. Used by the nodes that dial (relay, pilot, manager).

/// Waits between attempts to connect: doubled from `first_us` to `last_us`, each drawn evenly from its upper half.
///
/// The seed must differ between processes, so that a thousand managers do not return in one instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    first_us: u64,
    last_us: u64,
    next_us: u64,
    state: u64,
}

impl Backoff {
    /// Starts with `first_us` and ends with `last_us`.
    pub fn new(first_us: u64, last_us: u64, seed: u64) -> Self {
        let first_us = first_us.max(2);
        Self { first_us, last_us: last_us.max(first_us), next_us: first_us, state: seed }
    }

    /// How long to wait before the next attempt, µs.
    pub fn next_wait_us(&mut self) -> u64 {
        let half = self.next_us / 2;
        let wait = half + self.random() % (self.next_us - half + 1);
        self.next_us = self.next_us.saturating_mul(2).min(self.last_us);
        wait
    }

    /// To be called when a session stands: the next loss is answered quickly again.
    pub fn reset(&mut self) {
        self.next_us = self.first_us;
    }

    /// SplitMix64: small, and good enough to spread peers in time.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_stay_between_half_the_first_and_the_last(first in 0u64..1_000_000, last in 0u64..100_000_000, seed: u64) {
            let mut backoff = Backoff::new(first, last, seed);
            for _ in 0..64 {
                let wait = backoff.next_wait_us();
                prop_assert!(wait >= first / 2 && wait <= last.max(first.max(2)));
            }
        }
    }

    #[test]
    fn waits_grow_until_reset() {
        let mut backoff = Backoff::new(1_000, 64_000, 1);
        let waits: Vec<u64> = (0..8).map(|_| backoff.next_wait_us()).collect();
        assert!(waits[0] <= 1_000 && waits[7] >= 32_000, "{waits:?}");
        backoff.reset();
        assert!(backoff.next_wait_us() <= 1_000);
    }
}
