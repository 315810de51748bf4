//! What both mains do with their own process: signals, host, clock, the last word.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// SIGCHLD, SIGTERM, SIGINT and SIGHUP come to a descriptor from now on, in this and every later thread. std unblocks them in children.
pub(crate) fn take_signals() -> nix::Result<SignalFd> {
    let set: SigSet =
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
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
