//! The parent of a manager that a launcher started on its node: passes signals on, and when the manager has ended, however it did, ends what it left running.
//! So the launcher's word that the process has ended is proof that nothing of it runs. (The pilot does the same for managers that are its own children.)

use crate::{children, process};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::process::Command;

/// Exit code when the manager did not end by itself.
const EXIT_KILLED: u8 = 1;

/// Runs this program with `args` to its end. Exit code: the manager's own, or 1 when it was killed.
pub(crate) fn watch_over(args: &[OsString]) -> io::Result<u8> {
    let signals = process::take_signals(&process::TO_END_AND_OF_CHILDREN)?;
    process::be_subreaper();
    let mut command = Command::new(std::env::current_exe()?);
    let manager = Pid::from_raw(process::spawn_open(command.args(args))?.id() as i32);
    let code = loop {
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) | Err(_) => {}
                // It may have ended meanwhile, which is seen below.
                Ok(signal) => drop(kill(manager, signal)),
            }
        }
        if let Some(code) = ended(manager) {
            break code;
        }
    };
    children::end_children_but(|_| false);
    Ok(code)
}

/// Takes the ends of all children that have ended; the manager's exit code, if it is among them.
fn ended(manager: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, exit)) if pid == manager => {
                code = Some(u8::try_from(exit).unwrap_or(EXIT_KILLED));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == manager => {
                tracing::warn!(%signal, "the manager was killed");
                code = Some(EXIT_KILLED);
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}
