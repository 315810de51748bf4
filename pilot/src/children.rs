//! The processes of a manager: which there are, how they end, and that none of theirs stays behind.
//!
//! Ends are learnt from SIGCHLD and `wait4`, not from pidfds, which old kernels lack. The manager is a subreaper: what a task leaves
//! behind outside of its process group becomes the manager's child, and is found here.

use crate::limits::{ORPHAN_ROUND, ORPHAN_ROUNDS_MAX};
use crate::spawn::Who;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use pf_manager_core::ProcessStatus;
use pf_protocol::outcome::Usage;
use std::collections::HashMap;

/// How a process ended.
pub(crate) type End = (ProcessStatus, Usage);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Children {
    by_pid: HashMap<i32, Who>,
    /// Processes that ended before their spawner had told their number, with the last request of that time: only requests up to it
    /// can mean them.
    early: HashMap<i32, (u64, End)>,
}

impl Children {
    /// A process was spawned by request `seq`. Answers its end, if it is over already.
    pub fn add(&mut self, pid: i32, who: Who, seq: u64) -> Option<End> {
        if let Some((last, end)) = self.early.remove(&pid)
            && seq <= last
        {
            signal_group(pid, libc::SIGKILL);
            return Some(end);
        }
        self.by_pid.insert(pid, who);
        None
    }

    /// All requests up to this one are answered: who ended before is nobody's.
    pub fn forget_early(&mut self, answered: u64) {
        self.early.retain(|_, (last, _)| *last > answered);
    }

    /// Takes all that ended. The process group of each is killed while its number cannot be reused.
    pub fn reap(&mut self, last_seq: u64) -> Vec<(Who, End)> {
        let mut ended = Vec::new();
        while let Some(pid) = peek_ended() {
            let who = self.by_pid.remove(&pid);
            if who.is_some() {
                signal_group(pid, libc::SIGKILL);
            }
            let Some(end) = wait_for(pid) else { break };
            match who {
                Some(who) => ended.push((who, end)),
                None => drop(self.early.insert(pid, (last_seq, end))),
            }
        }
        ended
    }

    /// Kills every process group.
    pub fn kill_all(&self) {
        self.by_pid.keys().for_each(|&pid| signal_group(pid, libc::SIGKILL));
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }

    /// Kills what tasks and workers that are over left behind. `lives` says who is not over. Answers whether something was killed.
    pub fn sweep(&self, lives: impl Fn(Who) -> bool) -> bool {
        let strays: Vec<i32> =
            own_children().into_iter().filter(|pid| !self.by_pid.contains_key(pid)).collect();
        let mut killed = false;
        for pid in strays {
            // Unreadable: a zombie that will be reaped, or a program with rights of its own.
            let Some(who) = owner(pid) else { continue };
            if !lives(who) {
                killed |= kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
            }
        }
        killed
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

/// A child that has ended and was not waited for.
fn peek_ended() -> Option<i32> {
    loop {
        // SAFETY: an all-zero siginfo_t is valid; the kernel fills it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` outlives the call.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
        if result == 0 {
            // SAFETY: after waitid this field is set, to 0 when nobody has ended.
            let pid = unsafe { info.si_pid() };
            return (pid > 0).then_some(pid);
        }
        if Errno::last() != Errno::EINTR {
            return None;
        }
    }
}

/// Takes the end of a child that has ended.
fn wait_for(pid: i32) -> Option<End> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid; the kernel fills it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both outlive the call.
        let got = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) };
        if got == pid {
            break;
        }
        if got == 0 || Errno::last() != Errno::EINTR {
            return None;
        }
    }
    let status = if libc::WIFSIGNALED(status) {
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
    Some((status, usage))
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
