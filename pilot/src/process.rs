//! What both mains do with their own process: signals, host, clock, the last word.

use crate::limits::{STOP_GRACE_MS, WARNED_GRACE_MS};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What asks this process to end.
pub(crate) const TO_END: [Signal; 5] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// The same, and the ends of children.
pub(crate) const TO_END_AND_OF_CHILDREN: [Signal; 6] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Signals that came while a thread was spawning, as bits.
static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(signal: libc::c_int) {
    SEEN.fetch_or(1 << signal, Ordering::SeqCst);
}

fn taken() -> SigSet {
    TO_END_AND_OF_CHILDREN.into_iter().collect()
}

/// These signals come to a descriptor from now on, in this and every later thread.
pub(crate) fn take_signals(signals: &[Signal]) -> nix::Result<SignalFd> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block()?;
    // Whoever was started with SIGCHLD ignored would not learn how its children end.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler runs.
    unsafe { sigaction(Signal::SIGCHLD, &default) }?;
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in signals {
        // SAFETY: `note` only sets bits of an atomic, which is safe at any moment.
        unsafe { sigaction(*signal, &action) }?;
    }
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Takes what has come: the signal that asks this process to end, if one does, and what running tasks may have, milliseconds. `usr1_ms` is what
/// SIGUSR1 leaves them: the batch system warns a pilot with it, launchers pass it on to managers in place of SIGTERM.
pub(crate) fn asked_to_end(signals: &SignalFd, usr1_ms: u64) -> Option<(&'static str, u64)> {
    let mut asked: Option<(&'static str, u64)> = None;
    while let Ok(Some(signal)) = signals.read_signal() {
        let new = match signal.ssi_signo as i32 {
            libc::SIGTERM => ("SIGTERM", STOP_GRACE_MS),
            libc::SIGINT => ("SIGINT", STOP_GRACE_MS),
            libc::SIGUSR1 => ("SIGUSR1", usr1_ms),
            libc::SIGUSR2 => ("SIGUSR2", WARNED_GRACE_MS),
            _ => continue,
        };
        if asked.is_none_or(|(_, grace_ms)| new.1 < grace_ms) {
            asked = Some(new);
        }
    }
    asked
}

/// Spawns with nothing blocked in this thread: a child inherits the mask, and one that starts with SIGTERM blocked cannot be ended
/// but by SIGKILL. What comes to this thread meanwhile is sent again, for the descriptor.
pub(crate) fn spawn_open(command: &mut Command) -> io::Result<Child> {
    taken().thread_unblock()?;
    let child = command.spawn();
    let blocked = taken().thread_block();
    let seen = SEEN.swap(0, Ordering::SeqCst);
    for signal in TO_END_AND_OF_CHILDREN.into_iter().filter(|s| seen & (1 << *s as i32) != 0) {
        // Our own process can always be signalled.
        let _ = kill(Pid::this(), signal);
    }
    blocked?;
    child
}

/// Orphans of this process's descendants become its children.
pub(crate) fn be_subreaper() {
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        tracing::warn!(%error, "processes that leave their task's group cannot be found");
    }
}

/// A number that no other process has.
pub(crate) fn random() -> Result<u64, pf_transport::TransportError> {
    // The keys' own source of random numbers, so that there is one.
    let public = pf_transport::KeyPair::generate()?.public.0;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&public[..8]);
    Ok(u64::from_le_bytes(bytes))
}

/// Those of this process's variables that are text.
pub(crate) fn text_environment() -> BTreeMap<String, String> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text).collect()
}

/// This host's name.
pub(crate) fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".into())
}

/// Unix milliseconds, for people.
pub(crate) fn clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Says why it failed, with its causes.
pub(crate) fn exit_code<E: Error>(who: &str, result: Result<(), E>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let mut text = format!("pf {who}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // The last word; when standard error is closed there is nobody to hear it.
    let _ = io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes());
    ExitCode::FAILURE
}
