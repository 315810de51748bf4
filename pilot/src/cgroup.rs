//! What the control group of this process lets it have of CPU time and memory, where a container or a batch system says less than there is. Versions 1 and 2.
//! Called when the shape of the node is made.

use std::path::{Path, PathBuf};

/// Limits; None: none was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CgroupLimits {
    /// CPU time for each unit of time, thousandths of a CPU.
    pub cpus_milli: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

impl CgroupLimits {
    /// Of this process.
    pub fn own() -> CgroupLimits {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        CgroupLimits::read(&own, |path| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok())
    }

    /// From the text of `/proc/self/cgroup`, and what `file` reads below `/sys/fs/cgroup`. The tightest limit of the group and of those above it holds.
    fn read(own: &str, file: impl Fn(&Path) -> Option<String>) -> CgroupLimits {
        let mut limits = CgroupLimits::default();
        for line in own.lines() {
            // `0::/path` (version 2), `4:cpu,cpuacct:/path` (version 1).
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            for path in upwards(group) {
                let number = |root: &str, name: &str| -> Option<u64> {
                    file(&Path::new(root).join(&path).join(name))?.trim().parse().ok()
                };
                if controllers.is_empty() {
                    let quota = file(&path.join("cpu.max")).and_then(|text| share(&text));
                    limits.cpus_milli = least(limits.cpus_milli, quota);
                    limits.memory_bytes = least(limits.memory_bytes, number("", "memory.max"));
                }
                for controller in controllers.split(',') {
                    match controller {
                        "cpu" => {
                            let quota = number(controllers, "cpu.cfs_quota_us");
                            let period = number(controllers, "cpu.cfs_period_us");
                            limits.cpus_milli = least(limits.cpus_milli, milli(quota, period));
                        }
                        "memory" => {
                            let bytes = number(controllers, "memory.limit_in_bytes");
                            // "No limit" is a number near the largest.
                            limits.memory_bytes = least(limits.memory_bytes, bytes.filter(|n| *n < 1 << 60));
                        }
                        _ => {}
                    }
                }
            }
        }
        limits
    }
}

/// The group's path, relative, and those of the groups above it. In a container the path may be one of the host, which is not there; the container's own
/// limits then are at the root.
fn upwards(group: &str) -> impl Iterator<Item = PathBuf> + '_ {
    Path::new(group.trim_start_matches('/')).ancestors().map(Path::to_path_buf)
}

/// `max 100000` or `200000 100000`.
fn share(text: &str) -> Option<u64> {
    let mut words = text.split_ascii_whitespace().map(|word| word.parse().ok());
    milli(words.next()?, words.next()?)
}

fn milli(quota: Option<u64>, period: Option<u64>) -> Option<u64> {
    quota?.checked_mul(1_000)?.checked_div(period?)
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    [a, b].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(own: &str, files: &[(&str, &str)]) -> (Option<u64>, Option<u64>) {
        let file = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        let found = CgroupLimits::read(own, file);
        (found.cpus_milli, found.memory_bytes)
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_holds() {
        let files = [
            ("a/b/cpu.max", "max 100000\n"),
            ("a/cpu.max", "250000 100000\n"),
            ("cpu.max", "400000 100000\n"),
            ("a/b/memory.max", "2048\n"),
            ("a/memory.max", "max\n"),
        ];
        assert_eq!(limits("0::/a/b\n", &files), (Some(2_500), Some(2_048)));
        // A container whose own group is the root, or looks like one of the host's.
        let files = [("cpu.max", "50000 100000"), ("memory.max", "4096")];
        assert_eq!(limits("0::/\n", &files), (Some(500), Some(4_096)));
        assert_eq!(limits("0::/docker/5f36\n", &files), (Some(500), Some(4_096)));
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller() {
        let own = "5:cpuset:/x\n4:cpu,cpuacct:/j\n3:memory:/j\n0::/init\n";
        let files = [
            ("cpu,cpuacct/j/cpu.cfs_quota_us", "150000\n"),
            ("cpu,cpuacct/j/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("memory/j/memory.limit_in_bytes", "1024\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limits(own, &files), (Some(1_500), Some(1_024)));
    }

    #[test]
    fn where_nothing_is_said_nothing_is_limited() {
        assert_eq!(limits("", &[]), (None, None));
        assert_eq!(limits("garbage\n0::/a\n", &[("a/cpu.max", "x y"), ("a/memory.max", "-3")]), (None, None));
        assert_eq!(limits("0::/a\n", &[("a/cpu.max", "1000 0")]), (None, None));
        CgroupLimits::own();
    }
}
