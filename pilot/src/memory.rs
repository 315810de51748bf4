//! Holds tasks to the memory that they asked for, by looking at what their processes have. Used by the manager's node.
//!
//! By looking, since few sites let a job make cgroups of its own. What a task takes between two looks is not held back: where the node itself runs
//! out of memory before, the kernel ends something.

use crate::lanes::Who;
use crate::limits::MEMORY_LOOK_US;
use pf_manager_core::OutOfMemory;
use std::collections::HashMap;

/// Processes of one task or worker.
#[derive(Debug, Default)]
struct Held {
    /// The first of them, once it is there.
    pid: Option<i32>,
    /// Bytes; 0: no limit.
    limit_bytes: u64,
    /// Killed for it.
    over: Option<OutOfMemory>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct MemoryWatch {
    held: HashMap<Who, Held>,
    look_at: Option<u64>,
}

impl MemoryWatch {
    /// `who` is for tasks that may have this much; 0: any. A worker for tasks of several kinds may have what the largest may have.
    pub fn allow(&mut self, who: Who, bytes: u64) {
        match self.held.get_mut(&who) {
            Some(held) if bytes == 0 || held.limit_bytes == 0 => held.limit_bytes = 0,
            Some(held) => held.limit_bytes = held.limit_bytes.max(bytes),
            None => _ = self.held.insert(who, Held { limit_bytes: bytes, ..Held::default() }),
        }
    }

    /// Its process is there.
    pub fn began(&mut self, now: u64, who: Who, pid: i32) {
        if let Some(held) = self.held.get_mut(&who) {
            held.pid = Some(pid);
            if held.limit_bytes > 0 {
                self.look_at.get_or_insert(now + MEMORY_LOOK_US);
            }
        }
    }

    /// It is over; whether for want of memory.
    pub fn ended(&mut self, who: Who) -> Option<OutOfMemory> {
        self.held.remove(&who)?.over
    }

    /// When the next look is due.
    pub fn next_at(&self) -> Option<u64> {
        self.look_at
    }

    /// Looks if it is time; answers who is to be killed.
    pub fn look(&mut self, now: u64) -> Vec<Who> {
        if self.look_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let mut doomed = Vec::new();
        let mut any = false;
        for (who, held) in self.held.iter_mut().filter(|(_, held)| held.limit_bytes > 0) {
            any = true;
            let Some(pid) = held.pid else { continue };
            let family = family_of(pid);
            // What each has for itself and shares is counted for each: a cheap bound. The dear and right sum only above it.
            let limit_bytes = held.limit_bytes;
            if family.iter().map(|pid| kib_of(*pid, "status", "VmRSS:")).sum::<u64>() << 10 <= limit_bytes {
                continue;
            }
            let used_bytes = family.iter().map(|pid| kib_of(*pid, "smaps_rollup", "Pss:")).sum::<u64>() << 10;
            if used_bytes > limit_bytes {
                held.over.get_or_insert(OutOfMemory::Limit { used_bytes, limit_bytes });
                doomed.push(*who);
            }
        }
        self.look_at = any.then_some(now + MEMORY_LOOK_US);
        doomed
    }
}

/// A process and its descendants.
fn family_of(pid: i32) -> Vec<i32> {
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(&pid) = family.get(at) {
        at += 1;
        // Each thread has the children that it started.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
    }
    family
}

/// A line of one of its files in /proc, KiB; 0 when it is gone.
fn kib_of(pid: i32, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_and_its_children_have_is_seen() {
        let own = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(family_of(own).contains(&(child.id() as i32)), "whichever thread started it");
        // Its first moment after the exec is nearly empty.
        while kib_of(child.id() as i32, "smaps_rollup", "Pss:") <= 8 {
            std::thread::yield_now();
        }
        assert!(kib_of(own, "status", "VmRSS:") > 100 && kib_of(own, "smaps_rollup", "Pss:") > 100);

        let mut watch = MemoryWatch::default();
        let (large, small) = (Who::Worker(1), Who::Worker(2));
        watch.allow(large, 1 << 50);
        watch.allow(small, 4096);
        watch.began(0, large, own);
        watch.began(0, small, child.id() as i32);
        assert!(watch.look(1).is_empty(), "not yet");
        assert_eq!(watch.look(MEMORY_LOOK_US), [small]);
        assert!(matches!(watch.ended(small), Some(OutOfMemory::Limit { limit_bytes: 4096, .. })));
        assert_eq!(watch.ended(large), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watch.look(2 * MEMORY_LOOK_US).is_empty());
        assert_eq!(watch.next_at(), None, "nobody is left to be looked at");
    }

    #[test]
    fn a_worker_may_have_what_its_largest_task_may_have() {
        let mut watch = MemoryWatch::default();
        let who = Who::Worker(1);
        watch.allow(who, 5);
        watch.allow(who, 9);
        watch.allow(who, 7);
        assert_eq!(watch.held[&who].limit_bytes, 9);
        watch.allow(who, 0);
        watch.allow(who, 7);
        assert_eq!(watch.held[&who].limit_bytes, 0);
    }
}
