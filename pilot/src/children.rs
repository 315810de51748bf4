//! How processes of a manager end, and that none of theirs stays behind.
//!
//! Ends are learnt by waiting for each, not from pidfds, which old kernels lack. The manager is a subreaper: what a task leaves behind outside of its
//! process group becomes the manager's child, and is found here.

use crate::lanes::{Known, Who};
use crate::limits::{ORPHAN_ROUND, ORPHAN_ROUNDS_MAX};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use pf_manager_core::ProcessStatus;
use pf_protocol::outcome::Usage;
use std::collections::{BTreeMap, BTreeSet};

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub status: ProcessStatus,
    pub usage: Usage,
    /// How long it was there, microseconds.
    pub ran_us: u64,
}

/// What tasks that are over left behind.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    /// Those that have ended and wait to be reaped, with the spawns that were under way when they were first seen: each of these may be the one that
    /// made it, whose end its own thread wants to know.
    ended: BTreeMap<i32, BTreeSet<u64>>,
}

impl Strays {
    /// Kills strays, and reaps those that have ended. `lives` says who is not over; `known` is asked after the children are listed. Answers whether some are left.
    pub fn sweep(&mut self, lives: impl Fn(Who) -> bool, known: impl FnOnce() -> Known) -> bool {
        let children = own_children();
        let Known { pids, spawning } = known();
        let mut left = BTreeMap::new();
        let mut killed = false;
        for pid in children.into_iter().filter(|pid| !pids.contains(pid)) {
            if has_ended(pid) {
                let makers = self.ended.remove(&pid).unwrap_or_else(|| spawning.clone());
                if makers.is_disjoint(&spawning) {
                    reap(pid);
                } else {
                    left.insert(pid, makers);
                }
            } else if owner(pid).is_some_and(|who| !lives(who)) {
                // Unreadable, else: a program with rights of its own, or one that is being spawned.
                killed |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        self.ended = left;
        killed || !self.ended.is_empty()
    }
}

/// Ends every child of this process that is not kept, and what they leave behind, until none is left.
pub(crate) fn end_children_but(kept: impl Fn(i32) -> bool) {
    // Each round ends one generation. A process that cannot be killed (in a system call that never returns) must not hold this one for ever.
    for _ in 0..ORPHAN_ROUNDS_MAX {
        let orphans: Vec<i32> = own_children().into_iter().filter(|pid| !kept(*pid)).collect();
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
        std::thread::sleep(ORPHAN_ROUND);
    }
}

/// Sends a signal to a process group; nobody there is no error.
pub(crate) fn signal_group(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: kill(2) takes two numbers and touches no memory. nix's kill cannot name real-time signals.
        unsafe { libc::kill(-pid, signal) };
    }
}

/// Waits until a child has ended; it is not reaped, so that its number stays its own.
pub(crate) fn wait_for_end(pid: i32) {
    // Nobody else waits for it, so that the only error is that of a signal.
    while peek(pid, 0) == Err(Errno::EINTR) {}
}

/// Whether a child has ended, and was not reaped.
fn has_ended(pid: i32) -> bool {
    peek(pid, libc::WNOHANG) == Ok(true)
}

fn peek(pid: i32, flags: i32) -> Result<bool, Errno> {
    // SAFETY: an all-zero siginfo_t is valid; the kernel fills it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | flags;
    // SAFETY: `info` outlives the call.
    let result = unsafe { libc::waitid(libc::P_PID, pid.unsigned_abs(), &raw mut info, flags) };
    Errno::result(result)?;
    // SAFETY: after waitid this field is set, to 0 when it has not ended.
    Ok(unsafe { info.si_pid() } == pid)
}

/// Takes the end of a child that has ended.
pub(crate) fn reap(pid: i32) -> (ProcessStatus, Usage) {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; the kernel fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let taken = loop {
        // SAFETY: both outlive the call.
        let taken = Errno::result(unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) });
        if taken != Err(Errno::EINTR) {
            break taken;
        }
    };
    let status = if let Err(error) = taken {
        // Nobody else takes it. Should it be so all the same: nothing is called a success that was not seen.
        tracing::error!(pid, %error, "the end of a process is not known, and is taken for a kill");
        ProcessStatus::Signal(libc::SIGKILL)
    } else if libc::WIFSIGNALED(status) {
        ProcessStatus::Signal(libc::WTERMSIG(status))
    } else {
        ProcessStatus::Exit(libc::WEXITSTATUS(status))
    };
    let us = |time: libc::timeval| time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs();
    let usage = Usage {
        user_us: us(usage.ru_utime),
        system_us: us(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss.unsigned_abs(),
    };
    (status, usage)
}

/// Children of this process, whichever thread they came to.
fn own_children() -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut found = Vec::new();
    for task in tasks.flatten() {
        match std::fs::read_to_string(task.path().join("children")) {
            Ok(text) => found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // A kernel without this file: ask everybody who their parent is.
            Err(_) => return children_by_parent(),
        }
    }
    found
}

fn children_by_parent() -> Vec<i32> {
    let own = std::process::id().to_string();
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: &i32| -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        // The name in parentheses may hold anything; state and parent follow it.
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.split_ascii_whitespace().nth(1) == Some(own.as_str()))
    };
    pids.filter(parent).collect()
}

/// Whose process this is, by the variables that Pilotfish gave it.
fn owner(pid: i32) -> Option<Who> {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = |name: &str| {
        let found = environ.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(name.as_bytes()))?;
        std::str::from_utf8(found).ok()
    };
    if let Some(attempt) = value("PF_ATTEMPT=") {
        let (epoch, n) = attempt.split_once('.')?;
        let (epoch, n) = (pf_protocol::Epoch(epoch.parse().ok()?), n.parse().ok()?);
        return Some(Who::Attempt(pf_protocol::AttemptId { epoch, n }));
    }
    value("PF_WORKER=")?.parse().ok().map(Who::Worker)
}
