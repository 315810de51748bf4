//! From what was made ready to a process. Used by the threads of `lanes`.
//!
//! With posix_spawn, which shares memory with the child until it is another program: a fork would copy the tables of a large process each time. A
//! child inherits what its thread is bound to and the directory it is in, so a thread binds itself and goes there before, and stays.

use crate::command::{Prepared, refused};
use crate::limits::CPUS_MAX;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, chdir};
use pf_protocol::outcome::ErrorDetail;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

/// What a child takes over beside its standard streams and variables.
pub(crate) struct Inherits<'a> {
    /// Standard input, output, error.
    pub streams: [BorrowedFd<'a>; 3],
    /// Open in the child under the same numbers.
    pub sockets: &'a [UnixStream],
    /// Hardware threads; empty: those of the manager.
    pub pus: &'a [u32],
}

/// What all spawning threads share.
pub(crate) struct Gate {
    /// Held for writing while something of the whole process is as one child wants it and no other: nobody else spawns then.
    alone: RwLock<()>,
    /// The working directory of this process.
    home: PathBuf,
}

impl Gate {
    pub fn new(home: PathBuf) -> Self {
        Gate { alone: RwLock::new(()), home }
    }
}

/// Where the calling thread is, and with it the children that it spawns.
pub(crate) struct Place {
    /// CPUs that it may use when nothing is asked.
    own: CpuSet,
    /// Empty: its own.
    bound: Vec<u32>,
    /// Whether it has a working directory apart from that of the process; containers may forbid it.
    apart: bool,
    /// Where it went; None: nowhere yet.
    cwd: Option<PathBuf>,
}

impl Place {
    /// Of the calling thread.
    pub fn here() -> Self {
        Place {
            own: sched_getaffinity(Pid::from_raw(0)).unwrap_or_default(),
            bound: Vec::new(),
            apart: unshare(CloneFlags::CLONE_FS).is_ok(),
            cwd: None,
        }
    }

    /// Hardware threads that it is bound to; empty: those of the manager.
    pub fn bound(&self) -> &[u32] {
        &self.bound
    }

    /// Spawns in a process group of its own, with no signal blocked; answers the process's number.
    pub fn spawn(
        &mut self,
        gate: &Gate,
        prepared: &Prepared<'_>,
        inherits: &Inherits<'_>,
    ) -> Result<i32, ErrorDetail> {
        self.bind(inherits.pus)?;
        let moves = self.cwd.as_ref() != Some(&prepared.cwd);
        let shared = if inherits.sockets.is_empty() && (self.apart || !moves) {
            Some(gate.alone.read().unwrap_or_else(PoisonError::into_inner))
        } else {
            None
        };
        let _alone = match shared {
            Some(_) => None,
            None => Some(gate.alone.write().unwrap_or_else(PoisonError::into_inner)),
        };
        if moves {
            self.go(&prepared.cwd)?;
        }
        let spawned = start(prepared, inherits);
        if moves && !self.apart && self.go(&gate.home).is_err() {
            // Home is gone. Whoever spawns next goes to a directory of its own.
            self.cwd = None;
        }
        spawned.map_err(|e| spawn_error(&prepared.program, e))
    }

    fn bind(&mut self, pus: &[u32]) -> Result<(), ErrorDetail> {
        if self.bound == pus {
            return Ok(());
        }
        let set = cpu_set(pus).unwrap_or(self.own);
        sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| {
            refused(
                format!("bind the task to CPUs {pus:?}: {e}"),
                "did the CPUs of this job change under it?",
            )
        })?;
        self.bound = pus.to_vec();
        Ok(())
    }

    fn go(&mut self, dir: &Path) -> Result<(), ErrorDetail> {
        chdir(dir).map_err(|e| {
            let hint = "the directory must exist on the node where the task runs, and be open to you";
            refused(format!("working directory {}: {}", dir.display(), e.desc()), hint)
        })?;
        self.cwd = Some(dir.to_path_buf());
        Ok(())
    }
}

/// Spawns from the place where the thread is.
fn start(prepared: &Prepared<'_>, inherits: &Inherits<'_>) -> nix::Result<i32> {
    let mut actions = PosixSpawnFileActions::init()?;
    for (number, stream) in inherits.streams.iter().enumerate() {
        actions.add_dup2(stream.as_raw_fd(), number as i32)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Ignored in every Rust program, which a child would inherit.
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    for socket in inherits.sockets {
        fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let path = prepared.program.as_path();
    let pid = posix_spawn(path, &actions, &attributes, &prepared.argv, &prepared.env.entries());
    for socket in inherits.sockets {
        fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(pid?.as_raw())
}

pub(crate) fn cpu_set(pus: &[u32]) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    let mut any = false;
    for &pu in pus.iter().filter(|&&pu| pu < CPUS_MAX) {
        any |= set.set(pu as usize).is_ok();
    }
    any.then_some(set)
}

fn spawn_error(program: &Path, error: Errno) -> ErrorDetail {
    let program = program.display();
    // The system's own words, with the number.
    let why = std::io::Error::from(error);
    match error {
        Errno::ENOENT => refused(
            format!("{program} cannot be started: {why}"),
            "it is a script whose interpreter (first line) does not exist, or a program for another system",
        ),
        Errno::EACCES => refused(format!("{program} cannot be started: {why}"), "check its x permission"),
        Errno::ENOEXEC => refused(
            format!("{program} cannot be started: {why}"),
            "is it a script without a first line `#!/bin/sh`, or a program for another processor?",
        ),
        Errno::E2BIG => {
            refused(format!("{program}: {why}"), "feed long items to standard input, or by a file")
        }
        _ => refused(
            format!("{program} cannot be started: {why}"),
            "the node may be out of processes or memory",
        ),
    }
}
