//! The one clock of a process, and the search for holes in it. Used by the reactor and by shells that share its time.

use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};

/// µs since the first call in this process. Counts on while the machine is suspended, so that a sleep shows as a gap.
pub fn now_us() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    let now = boot_us();
    now.saturating_sub(*START.get_or_init(|| now))
}

/// µs since boot. The call cannot fail on Linux; 0 would only make timers late.
fn boot_us() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |t| t.tv_sec().unsigned_abs() * 1_000_000 + t.tv_nsec().unsigned_abs() / 1_000)
}

/// Notices that the process was not running when it should have been: SIGSTOP, a suspended machine, a frozen cgroup.
pub(crate) struct GapWatch {
    last_us: u64,
    gap_us: u64,
}

impl GapWatch {
    /// Starts at `now`; holes longer than `gap_us` count.
    pub(crate) fn new(now: u64, gap_us: u64) -> Self {
        Self { last_us: now, gap_us }
    }

    /// To be called with each reading of the clock; `allowed_us` is how long the loop meant to sleep since the last one.
    /// Answers how much too late it is, when that is a gap.
    pub(crate) fn see(&mut self, now: u64, allowed_us: u64) -> Option<u64> {
        let late = now.saturating_sub(self.last_us).saturating_sub(allowed_us);
        self.last_us = self.last_us.max(now);
        (late > self.gap_us).then_some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unplanned_time_is_a_gap() {
        let mut watch = GapWatch::new(0, 2_000_000);
        assert_eq!(watch.see(500_000, 500_000), None);
        assert_eq!(watch.see(2_400_000, 0), None);
        assert_eq!(watch.see(12_400_000, 500_000), Some(9_500_000));
        assert_eq!(watch.see(12_400_001, 0), None);
    }

    #[test]
    fn the_clock_does_not_go_back() {
        let first = now_us();
        assert!(now_us() >= first);
    }
}
