//! The process `pf manager`: one a node, started by the pilot's launcher.

use crate::command::Context;
use crate::files::{Files, Places};
use crate::gpus::GpuEnv;
use crate::lanes::Lanes;
use crate::limits::MANAGER_BEFORE_PILOT_MS;
use crate::node::{ManagerNode, Parts};
use crate::output::OutputLog;
use crate::programs::Programs;
use crate::{environment, guard, node_shape, process, ticket};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pf_launcher::NODE_NAME_VARIABLE;
use pf_link::Timing;
use pf_manager_core::{ManagerConfig, ManagerCore};
use pf_protocol::ManagerId;
use pf_protocol::ticket::Ticket;
use pf_transport::{Reactor, Waker, now_us};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

/// The worker, which runs under the user's Python.
const WORKER_PY: &str = include_str!("../../python/pilotfish/worker.py");

/// Walltime that is left for a manager, milliseconds; set by the pilot.
pub(crate) const WALLTIME_VARIABLE: &str = "PF_WALLTIME_LEFT_MS";

/// A word on the standard input of a tethered manager: it is to end, and its tasks have as long as when a batch system warns.
pub(crate) const TETHER_WARNED: u8 = b'w';

/// Why a manager cannot begin.
#[derive(Debug, thiserror::Error)]
enum ManagerError {
    #[error(transparent)]
    Ticket(#[from] ticket::TicketError),
    #[error("--node takes a number or a variable that holds one, not {given:?}")]
    Node { given: String },
    #[error("{what}")]
    Io { what: String, source: io::Error },
    #[error("start the manager's network")]
    Transport(#[from] pf_transport::TransportError),
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ManagerError {
    let what = what.into();
    move |source| ManagerError::Io { what, source }
}

/// What `pf manager` is called with.
#[derive(Debug, Clone, Default)]
pub struct ManagerArgs {
    /// The ticket file.
    pub ticket: PathBuf,
    /// The node's number, or the variable in which the launcher says it.
    pub node: String,
    /// File with the pilot's environment, where the launcher does not pass it.
    pub environment: Option<PathBuf>,
    /// Whether this process only watches over the manager, which is its child.
    pub guard: bool,
    /// Whether words on standard input, and its end, are orders to end.
    pub tether: bool,
}

impl ManagerArgs {
    /// The arguments of the next process: the environment is taken once, and then a guard watches over a manager without one.
    fn next(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["manager".into(), "--ticket".into(), self.ticket.clone().into()];
        args.extend(["--node".into(), self.node.clone().into()]);
        args.extend((self.guard && self.environment.is_some()).then(|| "--guard".into()));
        args.extend(self.tether.then(|| "--tether".into()));
        args
    }
}

/// Runs a manager until its relay, its pilot or the walltime ends it. Exit code 0: all outcomes are confirmed or spooled. 1: it could not
/// begin, and stderr says why.
pub fn manager_main(args: &ManagerArgs) -> ExitCode {
    if let Some(path) = &args.environment {
        let source = environment::take(path, &args.next());
        let what = format!("take the pilot's environment from {}", path.display());
        return process::exit_code("manager", Err(ManagerError::Io { what, source }));
    }
    if args.guard {
        return match guard::watch_over(&args.next()) {
            Ok(code) => code.into(),
            Err(error) => process::exit_code("manager", Err(io_error("watch over the manager")(error))),
        };
    }
    process::exit_code("manager", run(args))
}

/// The node's number.
fn node_number(given: &str) -> Result<u16, ManagerError> {
    let number = given.parse().ok().or_else(|| std::env::var(given).ok()?.parse().ok());
    number.ok_or_else(|| ManagerError::Node { given: given.into() })
}

/// Ends this process in order when its standard input says so or ends: its launcher is gone, or was told to let go. A signal to itself reaches nobody else.
fn tie_to_stdin() -> io::Result<()> {
    let tell = |signal| {
        // Its own process can always be signalled.
        let _ = kill(Pid::this(), signal);
    };
    let watch = move || {
        let words = io::stdin().lock().bytes().map_while(Result::ok);
        words.filter(|word| *word == TETHER_WARNED).for_each(|_| tell(Signal::SIGUSR2));
        tell(Signal::SIGTERM);
    };
    std::thread::Builder::new().name("tether".into()).spawn(watch).map(drop)
}

fn run(args: &ManagerArgs) -> Result<(), ManagerError> {
    let (ticket_path, node) = (args.ticket.as_path(), node_number(&args.node)?);
    // Before any thread is there, so that all of them leave these signals to the descriptor.
    let signals = process::take_signals(&process::TO_END).map_err(|e| io_error("block signals")(e.into()))?;
    process::be_subreaper();
    if args.tether {
        tie_to_stdin().map_err(io_error("start a thread"))?;
    }
    let ticket = ticket::read(ticket_path)?;
    ticket::dial_specs(ticket_path, &ticket)?;
    let incarnation = process::random()?;
    let manager = ManagerId { block: ticket.block, node, incarnation };
    let (shape, gpus) = node_shape::local(&ticket);
    let scratch = Scratch::make(&ticket, incarnation)?;
    let context = context(&ticket, &scratch, gpus);
    let now = now_us();
    let left_ms = std::env::var(WALLTIME_VARIABLE).ok().and_then(|text| text.parse().ok());
    let left_ms: u64 = left_ms.unwrap_or_else(|| ticket.walltime_ms.saturating_sub(MANAGER_BEFORE_PILOT_MS));
    let slots = shape.cores.len();
    let config = ManagerConfig {
        manager,
        node: node_name(),
        pid: std::process::id(),
        clock_ms: process::clock_ms(),
        shape,
        walltime_end: now.saturating_add(left_ms.saturating_mul(1_000)),
        epoch_seen: ticket.epoch,
        timing: Timing::default(),
    };
    tracing::info!(%manager, node = config.node, slots, "manager starts");

    let waker: Arc<OnceLock<Waker>> = Arc::default();
    let wake = || {
        let waker = waker.clone();
        move || {
            if let Some(waker) = waker.get() {
                waker.wake();
            }
        }
    };
    let places =
        Places { output: PathBuf::from(&ticket.output_dir), block: PathBuf::from(&ticket.dir), manager };
    let files = Files::start(places, Box::new(wake())).map_err(io_error("start the file thread"))?;
    let lanes = Lanes::new(context, Box::new(wake())).map_err(io_error("open /dev/null"))?;
    let parts = Parts {
        core: ManagerCore::new(config, now),
        ticket_path: ticket_path.into(),
        payloads_dir: ticket.payloads_dir.map(PathBuf::from),
        lanes,
        output: OutputLog::new(files),
        signals,
    };
    let mut reactor = Reactor::new()?;
    let shell = ManagerNode::new(parts).map_err(|e| io_error("make epoll descriptors")(e.into()))?;
    let id = reactor.add(Box::new(shell));
    // The only set; nobody calls before the node runs.
    let _ = waker.set(reactor.waker(id));
    reactor.run()?;
    drop(reactor);
    drop(scratch);
    Ok(())
}

fn context(ticket: &Ticket, scratch: &Scratch, gpus: GpuEnv) -> Context {
    Context {
        common: Context::common(),
        // Should it be gone: the one folder that is everywhere.
        home: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        work_dir: PathBuf::from(&ticket.work_dir),
        payloads_dir: ticket.payloads_dir.as_ref().map(PathBuf::from),
        python: ticket.python.clone(),
        worker_py: scratch.worker_py.clone(),
        programs: Programs::default(),
        gpus,
    }
}

/// The node's name: the scheduler's own word for it, by which it can be left out of the next block, else this host's.
fn node_name() -> String {
    [NODE_NAME_VARIABLE, "SLURMD_NODENAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(process::host)
}

/// The manager's own folder on the node, gone when it ends.
struct Scratch {
    dir: PathBuf,
    worker_py: PathBuf,
}

impl Scratch {
    /// In the ticket's local folder if that can be used, else in the system's temporary one.
    fn make(ticket: &Ticket, incarnation: u64) -> Result<Self, ManagerError> {
        let name = format!("pf-{}-{incarnation:016x}", nix::unistd::geteuid());
        let wanted = ticket.local_dir.iter().map(PathBuf::from);
        let mut last = None;
        for parent in wanted.chain([std::env::temp_dir()]) {
            match Self::make_in(parent.join(&name)) {
                Ok(scratch) => return Ok(scratch),
                Err(error) => {
                    tracing::warn!(dir = %parent.display(), %error, "a local folder cannot be used");
                    last = Some((parent, error));
                }
            }
        }
        let (parent, error) = last.unwrap_or_else(|| (PathBuf::new(), io::ErrorKind::NotFound.into()));
        Err(io_error(format!("make a local folder in {}", parent.display()))(error))
    }

    fn make_in(dir: PathBuf) -> io::Result<Self> {
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let scratch = Scratch { worker_py: dir.join("worker.py"), dir };
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch.worker_py)?;
        file.write_all(WORKER_PY.as_bytes())?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a file in the node's temporary folder, which the node cleans up by itself.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
