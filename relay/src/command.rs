//! The one place that runs scheduler commands: with a timeout, a cap on what they say, and errors that name everything. Called from a thread of
//! the relay's own, never from the reactor.

use crate::limits::{
    COMMAND_LOOK, COMMAND_OUTPUT_BYTES_MAX, COMMAND_TIME_MAX, PIPES_AFTER_END_MAX, PROBE_TIME_MAX,
};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pf_providers::{Output, Plan};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("run {argv}")]
    Start {
        /// What was to run.
        argv: String,
        /// The system's words.
        source: io::Error,
    },
    /// There is no such program.
    #[error(
        "{program} is not in PATH (hint: the scheduler's module must be loaded where the daemon is started: `pf broker stop`, then start it from such a shell)"
    )]
    NotThere {
        /// Its name.
        program: String,
    },
    /// It took too long and was killed. Whether it did its work is not known.
    #[error("{argv} did not end within {seconds} s and was killed{said}")]
    Timeout {
        /// What ran.
        argv: String,
        /// The limit.
        seconds: u64,
        /// What it had said on standard error.
        said: String,
    },
}

/// Runs a command to its end, with `stdin` as its standard input.
///
/// # Errors
/// When it cannot be started or does not end in time. An exit code other than 0 is an answer, not an error.
pub fn run(plan: &Plan, stdin: Option<&Path>) -> Result<Output, CommandError> {
    run_within(plan, stdin, COMMAND_TIME_MAX)
}

/// As [`run`], with another limit.
///
/// # Errors
/// As [`run`].
pub fn run_within(plan: &Plan, stdin: Option<&Path>, limit: Duration) -> Result<Output, CommandError> {
    let shown = plan.argv.join(" ");
    let start = |source| CommandError::Start { argv: shown.clone(), source };
    let (program, rest) = plan.argv.split_first().ok_or_else(|| start(io::ErrorKind::InvalidInput.into()))?;
    let stdin = match stdin {
        Some(path) => File::open(path).map_err(&start)?.into(),
        None => Stdio::null(),
    };
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_unset(&plan.unset, &name.to_string_lossy())) {
        command.env_remove(name);
    }
    let child = command
        .args(rest)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !program.contains('/') => {
            CommandError::NotThere { program: program.clone() }
        }
        _ => start(error),
    })?;
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let (sender, ends) = mpsc::channel();
    let stdout = heard(child.stdout.take(), sender.clone());
    let stderr = heard(child.stderr.take(), sender);
    let status = end_of(&mut child, &ends, Instant::now() + limit);
    let text = |kept: &Kept| {
        String::from_utf8_lossy(&kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    };
    let Some(status) = status else {
        // It is our own child and not reaped: the number is still its.
        let _ = killpg(group, Signal::SIGKILL);
        let _ = child.wait();
        let stderr = text(&stderr);
        let said =
            if stderr.is_empty() { String::new() } else { format!("; it had said: {}", stderr.trim()) };
        return Err(CommandError::Timeout { argv: shown, seconds: limit.as_secs(), said });
    };
    Ok(Output { exit: status.code(), stdout: text(&stdout), stderr: text(&stderr) })
}

/// The beginning of a stream, as far as it has been read.
type Kept = Arc<Mutex<Vec<u8>>>;

/// Reads a stream to its end on a thread of its own, which then says so.
fn heard(stream: Option<impl Read + Send + 'static>, end: mpsc::Sender<()>) -> Kept {
    let kept = Kept::default();
    let into = kept.clone();
    std::thread::spawn(move || {
        if let Some(stream) = stream {
            keep(stream, &into);
        }
        // The receiver is gone after a timeout: nobody wants the rest.
        let _ = end.send(());
    });
    kept
}

/// Waits until the process has ended and its two streams have, or these have not for a while after it. None at the deadline.
fn end_of(child: &mut Child, ends: &Receiver<()>, deadline: Instant) -> Option<ExitStatus> {
    let (mut open, mut ended) = (2, None);
    while open > 0 {
        let until = ended.map_or(deadline, |(_, at)| deadline.min(at + PIPES_AFTER_END_MAX));
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return ended.map(|(status, _)| status);
        }
        match ends.recv_timeout(left.min(COMMAND_LOOK)) {
            Ok(()) => open -= 1,
            Err(RecvTimeoutError::Timeout) if ended.is_none() => {
                ended = child.try_wait().ok().flatten().map(|status| (status, Instant::now()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    match ended {
        Some((status, _)) => Some(status),
        None => wait_until(child, deadline),
    }
}

/// Which dialect of a provider's scheduler there is on this host, as one short command tells; None where there is but one, or it does not tell.
#[must_use]
pub fn dialect(provider: &str) -> Option<&'static str> {
    let plan = pf_providers::probe(provider)?;
    let said = run_within(&plan, None, PROBE_TIME_MAX);
    let told = said.as_ref().ok().and_then(|output| pf_providers::dialect(provider, output));
    if told.is_none() {
        tracing::warn!(provider, ?said, "the scheduler does not tell which it is");
    }
    told
}

/// Whether a variable is among those that `unset` names, a trailing `*` standing for any rest.
fn is_unset(unset: &[&str], name: &str) -> bool {
    unset.iter().any(|u| match u.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *u,
    })
}

/// Both pipes are closed: the process ends now, unless it closed them on purpose.
fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            _ => return None,
        }
    }
}

/// Reads to the end, keeps the beginning.
fn keep(mut stream: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut piece = [0u8; 16 << 10];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = COMMAND_OUTPUT_BYTES_MAX - kept.len();
                kept.extend_from_slice(&piece[..n.min(room)]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(argv: &[&str]) -> Plan {
        Plan { argv: argv.iter().map(|a| (*a).to_string()).collect(), ..Plan::default() }
    }

    fn sh(script: &str, limit: Duration) -> Result<Output, CommandError> {
        run_within(&plan(&["sh", "-c", script]), None, limit)
    }

    #[test]
    fn exit_code_and_streams_are_told() {
        let output = sh("echo out; echo err >&2; exit 3", Duration::from_secs(60)).unwrap();
        assert_eq!(output, Output { exit: Some(3), stdout: "out\n".into(), stderr: "err\n".into() });
        let missing = run(&plan(&["/no/such/sbatch", "-x"]), None).unwrap_err();
        assert!(missing.to_string().contains("/no/such/sbatch -x"), "{missing}");
        let missing = run(&plan(&["no-such-sbatch"]), None).unwrap_err();
        assert!(missing.to_string().starts_with("no-such-sbatch is not in PATH (hint: "), "{missing}");
    }

    #[test]
    fn a_script_comes_on_standard_input_and_some_variables_do_not_come() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("block.sh");
        std::fs::write(&script, "echo ${HOME-none} ${PATH:+path}").unwrap();
        let plan = Plan { unset: vec!["HOM*"], ..plan(&["sh"]) };
        let output = run(&plan, Some(&script)).unwrap();
        assert_eq!(output.stdout, "none path\n");
        assert!(is_unset(&["A", "B*"], "A") && !is_unset(&["A", "B*"], "AB") && is_unset(&["A", "B*"], "BC"));
    }

    #[test]
    fn what_a_wrapper_leaves_behind_holds_up_nobody() {
        let began = Instant::now();
        let output = sh("echo 7.head; sleep 20 & exit 0", Duration::from_secs(60)).unwrap();
        assert_eq!((output.exit, output.stdout.as_str()), (Some(0), "7.head\n"));
        assert!(began.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn output_is_capped() {
        let output = sh("head -c 9000000 /dev/zero | tr '\\0' x", Duration::from_secs(60)).unwrap();
        assert_eq!(output.stdout.len(), COMMAND_OUTPUT_BYTES_MAX);
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let error = sh("echo slow >&2; sleep 1000 & sleep 1000", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, CommandError::Timeout { .. }), "{error}");
    }
}
