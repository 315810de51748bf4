//! Whether the kernel killed for want of memory: the counter of this process's cgroup (version 2).

use std::path::PathBuf;

/// Watches `oom_kill` of the cgroup.
#[derive(Debug)]
pub(crate) struct OomWatch {
    events: Option<PathBuf>,
    seen: u64,
}

impl OomWatch {
    /// For the cgroup of this process; where there is none to read, nothing ever is for want of memory.
    pub fn new() -> Self {
        let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        let events = own.map(|path| PathBuf::from(format!("/sys/fs/cgroup{path}/memory.events")));
        let mut watch = OomWatch { events, seen: 0 };
        watch.seen = watch.count();
        watch
    }

    /// Whether somebody was killed for want of memory since the last call.
    pub fn fired(&mut self) -> bool {
        let count = self.count();
        let fired = count > self.seen;
        self.seen = count;
        fired
    }

    fn count(&self) -> u64 {
        let text =
            self.events.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        parse(&text)
    }
}

fn parse(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found() {
        assert_eq!(parse("low 0\nhigh 0\nmax 3\noom 2\noom_kill 7\noom_group_kill 0\n"), 7);
        assert_eq!(parse(""), 0);
        assert_eq!(parse("oom_kill many"), 0);
        assert!(!OomWatch::new().fired());
    }
}
