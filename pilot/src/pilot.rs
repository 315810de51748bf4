//! The process `pf pilot`: started by the batch script on the first node of a block. It starts the managers, watches them and the clock.

use crate::limits::{MANAGER_BEFORE_PILOT_MS, STOP_GRACE_MS, WARNED_GRACE_MS};
use crate::manager::{NODE_NAME_VARIABLE, WALLTIME_VARIABLE};
use crate::{process, ticket};
use bytes::Bytes;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pf_launcher::limits::NODE_LIST_BYTES_MAX;
use pf_launcher::{Launch, LaunchPlan, Launcher, LauncherError, Place, launcher, nodelist};
use pf_link::Timing;
use pf_manager_core::{PilotConfig, PilotCore, PilotEffect, PilotInput};
use pf_protocol::Micros;
use pf_transport::{CloseReason, Conn, Node, Outbox, Reactor, now_us};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

const SIGNALS: u64 = 1;

/// Variables in which batch systems say the id of the job.
const ID_VARIABLES: [&str; 5] = ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "COBALT_JOBID", "PF_LOCAL_JOB_ID"];

/// Why a pilot cannot begin.
#[derive(Debug, thiserror::Error)]
enum PilotError {
    #[error(transparent)]
    Ticket(#[from] ticket::TicketError),
    #[error(transparent)]
    Launcher(#[from] LauncherError),
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    #[error("read the scheduler's list of nodes {path}")]
    NodeFile { path: PathBuf, source: io::Error },
    #[error("start the pilot's network")]
    Transport(#[from] pf_transport::TransportError),
}

/// Runs a pilot until its managers have ended. Exit code 0: all is well. 1: it could not begin, or managers failed. 2: the relay did not want
/// this pilot (its block is claimed or over). 3: no relay was reached before the walltime was over.
pub fn pilot_main(ticket: &Path) -> ExitCode {
    match run(ticket) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => process::exit_code("pilot", Err(error)),
    }
}

fn run(ticket_path: &Path) -> Result<i32, PilotError> {
    let signals =
        process::take_signals().map_err(|e| PilotError::Io { what: "block signals", source: e.into() })?;
    process::be_subreaper();
    let ticket = ticket::read(ticket_path)?;
    ticket::dial_specs(ticket_path, &ticket)?;
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let host = process::host();
    let launcher = launcher(&ticket.launcher)?;
    let place = Place { node_file: read_node_file(&env)?, env, host, asked: ticket.nodes };
    let nodes = launcher.nodes(&place)?;
    let exe =
        std::env::current_exe().map_err(|source| PilotError::Io { what: "find this program", source })?;
    let argv = ["manager", "--ticket", &ticket_path.to_string_lossy(), "--node", "{node}"];
    let argv = std::iter::once(exe.to_string_lossy().into_owned()).chain(argv.map(String::from)).collect();

    let walltime_end = now_us().saturating_add(ticket.walltime_ms.saturating_mul(1_000));
    let config = PilotConfig {
        block: ticket.block,
        incarnation: process::random()?,
        scheduler_id: ID_VARIABLES.iter().find_map(|name| place.env.get(*name).cloned()),
        nodes: nodes.clone(),
        walltime_end,
        host: place.host,
        pid: std::process::id(),
        clock_ms: process::clock_ms(),
        epoch_seen: ticket.epoch,
        timing: Timing::default(),
    };
    let exit: Arc<Mutex<i32>> = Arc::default();
    let node = PilotNode {
        core: PilotCore::new(config),
        ticket_path: ticket_path.into(),
        launcher,
        plan: LaunchPlan { argv, nodes, env: BTreeMap::new() },
        walltime_end,
        running: BTreeMap::new(),
        signals,
        exit: exit.clone(),
    };
    let mut reactor = Reactor::new()?;
    reactor.add(Box::new(node));
    reactor.run()?;
    drop(reactor);
    let code = *exit.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(code)
}

/// The text of the scheduler's list of nodes, where it is a file.
fn read_node_file(env: &BTreeMap<String, String>) -> Result<Option<String>, PilotError> {
    let Some(path) = nodelist::node_file(env) else { return Ok(None) };
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(NODE_LIST_BYTES_MAX as u64 + 1).read_to_string(&mut text));
    read.map_err(|source| PilotError::NodeFile { path: path.into(), source })?;
    Ok(Some(text))
}

/// A line for people. The batch script's output is a file in the block's folder, so standard error is the pilot's log.
fn log(text: &str) {
    // A log that cannot be written must not end the block.
    let _ = writeln!(io::stderr(), "pilot {}: {text}", process::clock_ms());
}

struct PilotNode {
    core: PilotCore,
    ticket_path: PathBuf,
    launcher: Box<dyn Launcher>,
    /// How a manager is started.
    plan: LaunchPlan,
    walltime_end: Micros,
    /// Processes that were launched, with the nodes whose managers live below each.
    running: BTreeMap<i32, Vec<u16>>,
    signals: SignalFd,
    exit: Arc<Mutex<i32>>,
}

impl PilotNode {
    fn give(&mut self, now: Micros, input: PilotInput, out: &mut Outbox) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.core.handle(now, input, &mut effects);
            for effect in effects {
                inputs.extend(self.carry_out(now, effect, out));
            }
        }
    }

    fn carry_out(&mut self, now: Micros, effect: PilotEffect, out: &mut Outbox) -> Vec<PilotInput> {
        match effect {
            PilotEffect::Dial => return vec![PilotInput::Dialled { conns: self.dial(out) }],
            PilotEffect::Frame { conn, bytes } => out.send(Conn(conn), bytes),
            PilotEffect::CloseConn { conn } => out.close(Conn(conn)),
            PilotEffect::SetTimer { at: Some(at) } => out.set_timer(at),
            PilotEffect::SetTimer { at: None } => out.clear_timer(),
            PilotEffect::StartManagers => return self.start_managers(now),
            PilotEffect::DrainManagers { grace_ms } => {
                let slow = grace_ms > STOP_GRACE_MS;
                self.signal(if slow { libc::SIGUSR2 } else { self.launcher.stop().drain });
            }
            PilotEffect::KillManagers { hard } => {
                self.signal(if hard { libc::SIGKILL } else { self.launcher.stop().kill });
            }
            PilotEffect::Log { text } => log(&text),
            PilotEffect::Exit { code, reason } => {
                log(&format!("exit {code}: {reason}"));
                *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = code;
                out.stop();
            }
        }
        Vec::new()
    }

    fn dial(&mut self, out: &mut Outbox) -> Vec<u64> {
        let specs =
            ticket::read(&self.ticket_path).and_then(|ticket| ticket::dial_specs(&self.ticket_path, &ticket));
        match specs {
            Ok(specs) => specs.iter().map(|spec| out.dial(spec).0).collect(),
            Err(error) => {
                log(&format!("the ticket cannot be used now: {error}"));
                Vec::new()
            }
        }
    }

    /// Starts what the launcher wants; what cannot be started has ended.
    fn start_managers(&mut self, now: Micros) -> Vec<PilotInput> {
        let left_ms = (self.walltime_end.saturating_sub(now) / 1_000).saturating_sub(MANAGER_BEFORE_PILOT_MS);
        self.plan.env.insert(WALLTIME_VARIABLE.into(), left_ms.to_string());
        let ended = |nodes: Vec<u16>, how: String| {
            nodes.into_iter().map(move |node| PilotInput::ManagerEnded { node, how: how.clone(), ok: false })
        };
        let launches = match self.launcher.launch(&self.plan) {
            Ok(launches) => launches,
            Err(error) => {
                let all = (0..=u16::MAX).take(self.plan.nodes.len()).collect();
                return ended(all, format!("could not be started: {error}")).collect();
            }
        };
        let mut failed = Vec::new();
        for launch in launches {
            log(&format!("starts {}", launch.argv.join(" ")));
            if let Err(error) = self.spawn(&launch) {
                let how = format!("could not be started: {}: {error}", launch.argv[0]);
                failed.extend(ended(launch.nodes, how));
            }
        }
        failed
    }

    fn spawn(&mut self, launch: &Launch) -> io::Result<()> {
        let (program, args) = launch.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).envs(&launch.env).stdin(Stdio::null()).process_group(0);
        for name in &launch.env_remove {
            command.env_remove(name);
        }
        if let ([node], true) = (&launch.nodes[..], self.plan.nodes.len() > 1)
            && let Some(name) = self.plan.nodes.get(usize::from(*node))
        {
            command.env(NODE_NAME_VARIABLE, name);
        }
        let child = process::spawn_open(&mut command)?;
        self.running.insert(child.id() as i32, launch.nodes.clone());
        Ok(())
    }

    /// To everything that was launched and runs.
    fn signal(&self, signal: i32) {
        for pid in self.running.keys() {
            crate::children::signal_group(*pid, signal);
        }
    }

    /// Takes the ends of what was launched.
    fn reap(&mut self, now: Micros, out: &mut Outbox) {
        let pids: Vec<i32> = self.running.keys().copied().collect();
        for pid in pids {
            let (how, ok) = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => (format!("exit {code}"), code == 0),
                Ok(WaitStatus::Signaled(_, signal, _)) => (format!("signal {}", signal as i32), false),
                Ok(_) => continue,
                Err(error) => (error.to_string(), false),
            };
            let nodes = self.running.remove(&pid).unwrap_or_default();
            // Its end is the proof on which its tasks are run elsewhere: what it left running must have ended before it is told.
            crate::children::end_children_but(|child| self.running.contains_key(&child));
            for node in nodes {
                self.give(now, PilotInput::ManagerEnded { node, how: how.clone(), ok }, out);
            }
        }
    }
}

impl Node for PilotNode {
    fn on_start(&mut self, now: u64, out: &mut Outbox) {
        out.watch(self.signals.as_raw_fd(), SIGNALS);
        self.give(now, PilotInput::Start, out);
    }

    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        self.give(now, PilotInput::Connected { conn: conn.0 }, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        self.give(now, PilotInput::Frame { conn: conn.0, bytes: frame }, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        log(&format!("a connection to the relay is over: {reason}"));
        self.give(now, PilotInput::ConnClosed { conn: conn.0 }, out);
    }

    fn on_readable(&mut self, now: u64, _token: u64, out: &mut Outbox) {
        if let Some((signal, grace_ms)) = process::asked_to_end(&self.signals, WARNED_GRACE_MS) {
            let reason = format!("the pilot got {signal}");
            self.give(now, PilotInput::Stop { reason, grace_ms }, out);
        }
        self.reap(now, out);
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        self.give(now, PilotInput::Timer, out);
    }

    fn on_clock_gap(&mut self, now: u64, gap_us: u64, out: &mut Outbox) {
        self.give(now, PilotInput::ClockGap { gap_us }, out);
    }
}
