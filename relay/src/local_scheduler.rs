//! A batch scheduler for one machine, with the manners of the large ones: `pf local submit|status|cancel`, and `supervise`, which is
//! what a submitted block runs under. It has no daemon: each block's folder is its record.
//!
//! The supervisor leads a session of its own, starts the block's program, ends it at its walltime (SIGTERM, later SIGKILL), passes signals on,
//! ends what the program leaves behind, and writes how it all ended to `ended.json`.

use crate::error::RelayError;
use crate::files::{read, replace};
use crate::limits::{
    MASTER_LOOK, ORPHANS_END_MAX, ORPHANS_LOOK, PILOT_END_MAX, SUPERVISOR_START_MAX, TICKET_BYTES_MAX,
};
use crate::proc::{Life, children};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const RECORD: &str = "scheduler.json";
const END: &str = "ended.json";
/// What supervisor and program write to their standard error and output, in the block's folder.
pub const BLOCK_LOG: &str = "block.log";

/// A submitted block.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    name: String,
    supervisor: Life,
    /// The block's program, once it runs.
    program: Option<Life>,
    started_ms: u64,
    walltime_ms: u64,
}

impl Record {
    fn id(&self) -> String {
        format!("{}-{}", self.supervisor.pid, self.supervisor.start)
    }

    fn runs(&self) -> bool {
        self.supervisor.runs() || self.program.is_some_and(Life::runs)
    }
}

/// How a block ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct End {
    code: Option<i32>,
    signal: Option<i32>,
    walltime: bool,
    cancelled: bool,
}

/// Why a local scheduler command failed.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error(
        "usage: pf local submit --name NAME --dir DIR --walltime-s S [--ends-with PID] -- PROGRAM ARGS.. | status DIR.. | cancel DIR"
    )]
    Usage,
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error("block folder {} has had a block already", .0.display())]
    Used(PathBuf),
    #[error("the supervisor did not begin")]
    NoSupervisor,
    #[error("{action}")]
    System { action: &'static str, source: std::io::Error },
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> LocalError {
    move |errno| LocalError::System { action, source: errno.into() }
}

/// `pf local ARGS..`.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let args: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let result = match args.split_first() {
        Some((verb, rest)) if verb == "submit" => submit(rest),
        Some((verb, rest)) if verb == "status" => status(rest),
        Some((verb, rest)) if verb == "cancel" => cancel(rest),
        Some((verb, rest)) if verb == "supervise" => supervise(rest),
        _ => Err(LocalError::Usage),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    let cause = std::error::Error::source(&error).map(|c| format!(": {c}")).unwrap_or_default();
    // The last word; when standard error is closed there is nobody to hear it.
    let _ = writeln!(std::io::stderr(), "pf local: {error}{cause}");
    ExitCode::FAILURE
}

/// What `submit` and `supervise` are told.
struct Order {
    name: String,
    dir: PathBuf,
    walltime: Duration,
    /// The block ends with this process.
    ends_with: Option<i32>,
    argv: Vec<String>,
}

fn order(args: &[String]) -> Result<Order, LocalError> {
    let split = args.iter().position(|a| a == "--").ok_or(LocalError::Usage)?;
    let (flags, argv) = (&args[..split], args[split + 1..].to_vec());
    let flag = |name: &str| {
        let at = flags.iter().position(|f| f == name)?;
        flags.get(at + 1).cloned()
    };
    let (Some(name), Some(dir), Some(seconds)) = (flag("--name"), flag("--dir"), flag("--walltime-s")) else {
        return Err(LocalError::Usage);
    };
    let seconds = seconds.parse().map_err(|_| LocalError::Usage)?;
    let ends_with = flag("--ends-with").map(|pid| pid.parse().map_err(|_| LocalError::Usage)).transpose()?;
    if argv.is_empty() {
        return Err(LocalError::Usage);
    }
    Ok(Order { name, dir: dir.into(), walltime: Duration::from_secs(seconds), ends_with, argv })
}

/// Starts a supervisor and prints the block's id when it has begun.
fn submit(args: &[String]) -> Result<(), LocalError> {
    let order = order(args)?;
    if read(&order.dir.join(RECORD), TICKET_BYTES_MAX)?.is_some() {
        return Err(LocalError::Used(order.dir));
    }
    let path = order.dir.join(BLOCK_LOG);
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let log = log.map_err(RelayError::file("open", &path))?;
    let own = std::env::current_exe()
        .map_err(|source| LocalError::System { action: "find this program", source })?;
    let mut supervisor = Command::new(own)
        .args(["local", "supervise"])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|source| LocalError::System { action: "start the supervisor", source })?;
    let stdout = supervisor.stdout.take().ok_or(LocalError::NoSupervisor)?;
    // A supervisor that says nothing is not waited for longer than the relay would wait for this command.
    let fd = stdout.as_fd();
    let wait = PollTimeout::try_from(SUPERVISOR_START_MAX).unwrap_or(PollTimeout::MAX);
    let ready =
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], wait).map_err(system("wait for the supervisor"))?;
    let mut id = String::new();
    if ready > 0 {
        let read = BufReader::new(stdout).read_line(&mut id);
        read.map_err(|source| LocalError::System { action: "hear the supervisor", source })?;
    }
    if id.trim().is_empty() {
        return Err(LocalError::NoSupervisor);
    }
    say(id.trim())
}

fn say(line: &str) -> Result<(), LocalError> {
    let written = writeln!(std::io::stdout(), "{line}");
    written.map_err(|source| LocalError::System { action: "write to standard output", source })
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, RelayError> {
    let Some(bytes) = read(path, TICKET_BYTES_MAX)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| RelayError::Damaged { path: path.into(), source })
}

fn save<T: Serialize>(path: &Path, value: &T) -> Result<(), RelayError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| RelayError::Damaged { path: path.into(), source })?;
    replace(path, &bytes)
}

/// A line `ID|NAME|STATE|LEFT_MS|DETAIL` for each folder in which a block was submitted.
fn status(dirs: &[String]) -> Result<(), LocalError> {
    for dir in dirs {
        let dir = Path::new(dir);
        let Some(record) = load::<Record>(&dir.join(RECORD))? else { continue };
        // First whether it runs, then how it ended: the other way round an end between the two would be missed.
        let runs = record.runs();
        let end = load::<End>(&dir.join(END))?;
        let (id, name) = (record.id(), &record.name);
        match end {
            Some(end) => say(&format!("{id}|{name}|{}", end_fields(&end)))?,
            None if runs => {
                let left = record.walltime_ms.saturating_sub(now_ms().saturating_sub(record.started_ms));
                say(&format!("{id}|{name}|RUNNING|{left}|"))?;
            }
            None => say(&format!("{id}|{name}|VANISHED||supervisor and pilot are gone without a word"))?,
        }
    }
    Ok(())
}

fn end_fields(end: &End) -> String {
    match end {
        End { walltime: true, .. } => "TIMEOUT||".into(),
        End { cancelled: true, .. } => "CANCELLED||".into(),
        End { code: Some(0), .. } => "COMPLETED||0".into(),
        End { code: Some(code), .. } => format!("FAILED||{code}"),
        End { signal: Some(signal), .. } => format!("SIGNAL||{signal}"),
        _ => "VANISHED||its end could not be read".into(),
    }
}

/// Asks the blocks in these folders to end. What is over already is left alone.
fn cancel(dirs: &[String]) -> Result<(), LocalError> {
    for dir in dirs {
        let Some(record) = load::<Record>(&Path::new(dir).join(RECORD))? else { continue };
        let whom = [Some(record.supervisor), record.program].into_iter().flatten().find(|life| life.runs());
        if let Some(life) = whom {
            match kill(Pid::from_raw(life.pid), Signal::SIGTERM) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(system("send SIGTERM")(errno)),
            }
        }
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The body of a block: runs the program to its end, whatever that is.
fn supervise(args: &[String]) -> Result<(), LocalError> {
    let order = order(args)?;
    // Fails only if this process leads a group already, as when a person starts it from a shell: then it has its own anyway.
    let _ = nix::unistd::setsid();
    nix::sys::prctl::set_child_subreaper(true).map_err(system("become the parent of orphans"))?;
    let set: SigSet =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    set.thread_block().map_err(system("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&set, flags).map_err(system("receive signals"))?;
    let own = i32::try_from(std::process::id()).ok().and_then(Life::of).ok_or(LocalError::NoSupervisor)?;
    let walltime_ms = order.walltime.as_millis() as u64;
    // Looked up now: its number may be another's later.
    let master = order.ends_with.map(Life::of);
    let mut record =
        Record { name: order.name, supervisor: own, program: None, started_ms: now_ms(), walltime_ms };
    save(&order.dir.join(RECORD), &record)?;
    let program = start_program(&order.dir, &order.argv);
    if let Ok(pid) = &program {
        record.program = Life::of(*pid);
        save(&order.dir.join(RECORD), &record)?;
    }
    say(&record.id())?;
    // Nobody reads what comes after, and the submitter must see the end of its pipe.
    let null = OpenOptions::new().write(true).open("/dev/null");
    if let Ok(null) = null {
        nix::unistd::dup2_stdout(null).map_err(system("close standard output"))?;
    }
    let end = match program {
        Ok(pid) => watch(&signals, pid, Instant::now() + order.walltime, master)?,
        Err(error) => {
            // Goes to the block's log.
            let _ = writeln!(std::io::stderr(), "start {}: {error}", order.argv[0]);
            End { code: Some(127), ..End::default() }
        }
    };
    end_orphans()?;
    Ok(save(&order.dir.join(END), &end)?)
}

/// The program in a process group of its own; its output goes to the block's log.
fn start_program(dir: &Path, argv: &[String]) -> std::io::Result<i32> {
    use std::os::unix::process::CommandExt;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(BLOCK_LOG))?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).current_dir(dir).stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log).process_group(0);
    // The signals that are blocked here would stay blocked there. Unblocking them in this process instead would open a moment in which
    // a SIGTERM ends the supervisor. This process is small: a fork costs nothing.
    // SAFETY: sigprocmask is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(std::io::Error::from));
    }
    let child = command.spawn()?;
    // Reaped by `watch`, with everything else that ends below this process.
    i32::try_from(child.id()).map_err(std::io::Error::other)
}

/// Waits for the program's end; ends it at its walltime, when asked to, or when nobody is left whom it is for.
fn watch(
    signals: &SignalFd,
    program: i32,
    walltime_at: Instant,
    master: Option<Option<Life>>,
) -> Result<End, LocalError> {
    let is_orphan = || master.is_some_and(|life| !life.is_some_and(Life::runs));
    let look = if master.is_some() { MASTER_LOOK } else { Duration::from_secs(3_600) };
    let mut end = End::default();
    let mut kill_at: Option<Instant> = None;
    loop {
        if reap(program, &mut end)? {
            return Ok(end);
        }
        let now = Instant::now();
        if kill_at.is_none() && now >= walltime_at {
            end.walltime = true;
            kill_at = Some(now + PILOT_END_MAX);
            pass_on(program, Signal::SIGTERM);
        }
        if kill_at.is_none() && is_orphan() {
            end.cancelled = true;
            kill_at = Some(now + PILOT_END_MAX);
            pass_on(program, Signal::SIGTERM);
        }
        if kill_at.is_some_and(|at| now >= at) {
            pass_on(program, Signal::SIGKILL);
            kill_at = Some(now + Duration::from_secs(1));
        }
        let next = kill_at.unwrap_or(walltime_at);
        let wait = next.saturating_duration_since(now) + Duration::from_millis(1);
        let wait = PollTimeout::try_from(wait.min(look)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for signals")(errno)),
        }
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|s| Signal::try_from(s).ok());
            if let Some(signal) = signal.filter(|s| *s != Signal::SIGCHLD) {
                end.cancelled = true;
                kill_at.get_or_insert(Instant::now() + PILOT_END_MAX);
                pass_on(program, signal);
            }
        }
    }
}

/// To the program alone: it knows what to do with its own.
fn pass_on(program: i32, signal: Signal) {
    // It is our child and not reaped yet: the number is still its. It may be a zombie, which takes no harm.
    let _ = kill(Pid::from_raw(program), signal);
}

/// Takes in all that ended; whether the program is among them.
fn reap(program: i32, end: &mut End) -> Result<bool, LocalError> {
    let mut over = false;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == program => {
                (end.code, over) = (Some(code), true);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == program => {
                (end.signal, over) = (Some(signal as i32), true);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(over),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for processes")(errno)),
        }
    }
}

/// Ends whatever the program left behind: managers whose pilot was killed, tasks whose manager was. First with a word, then without.
fn end_orphans() -> Result<(), LocalError> {
    let began = Instant::now();
    let mut asked = false;
    loop {
        reap(0, &mut End::default())?;
        let left = children();
        if left.is_empty() {
            return Ok(());
        }
        let signal = if began.elapsed() >= ORPHANS_END_MAX {
            Some(Signal::SIGKILL)
        } else {
            (!std::mem::replace(&mut asked, true)).then_some(Signal::SIGTERM)
        };
        if let Some(signal) = signal {
            for pid in left {
                // A child of ours that is not reaped: the number is its.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        std::thread::sleep(ORPHANS_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_bad_ones_refused() {
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let good = order(&words("--name n --dir /d --walltime-s 9 -- pf pilot --name x")).unwrap();
        assert_eq!((good.name.as_str(), good.walltime.as_secs(), good.argv.len()), ("n", 9, 4));
        for bad in [
            "--name n --dir /d --walltime-s 9 --",
            "--name n --dir /d -- pf",
            "--walltime-s x --name n --dir /d -- a",
            "a",
        ] {
            assert!(order(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn ends_have_their_words() {
        let end = |code, signal, walltime, cancelled| end_fields(&End { code, signal, walltime, cancelled });
        assert_eq!(end(Some(0), None, false, false), "COMPLETED||0");
        assert_eq!(end(Some(3), None, false, false), "FAILED||3");
        assert_eq!(end(None, Some(9), false, false), "SIGNAL||9");
        assert_eq!(end(None, Some(9), true, false), "TIMEOUT||");
        assert_eq!(end(Some(0), None, false, true), "CANCELLED||");
    }
}
