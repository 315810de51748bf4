//! The process `pf pilot`: started by the batch script on the first node of a block. It starts the managers, watches them and the clock.

use crate::limits::{MANAGER_BEFORE_PILOT_MS, STOP_GRACE_MS};
use crate::manager::{NODE_NAME_VARIABLE, WALLTIME_VARIABLE};
use crate::{process, ticket};
use bytes::Bytes;
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pf_launcher::{Launch, LaunchPlan, LauncherError, launcher};
use pf_link::Timing;
use pf_manager_core::{PilotConfig, PilotCore, PilotEffect, PilotInput};
use pf_protocol::Micros;
use pf_transport::{CloseReason, Conn, Node, Outbox, Reactor, now_us};
use std::collections::BTreeMap;
use std::io::{self, Write};
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
    let launch = launcher(&ticket.launcher)?;
    let nodes = launch.nodes(&env, &host, ticket.nodes)?;
    let exe =
        std::env::current_exe().map_err(|source| PilotError::Io { what: "find this program", source })?;
    let argv = ["manager", "--ticket", &ticket_path.to_string_lossy(), "--node", "{node}"];
    let argv = std::iter::once(exe.to_string_lossy().into_owned()).chain(argv.map(String::from)).collect();
    let launches = launch.launch(&LaunchPlan { argv, nodes: nodes.clone() })?;

    let walltime_end = now_us().saturating_add(ticket.walltime_ms.saturating_mul(1_000));
    let config = PilotConfig {
        block: ticket.block,
        incarnation: process::random()?,
        scheduler_id: ID_VARIABLES.iter().find_map(|name| env.get(*name).cloned()),
        nodes: nodes.clone(),
        walltime_end,
        host,
        pid: std::process::id(),
        clock_ms: process::clock_ms(),
        epoch_seen: ticket.epoch,
        timing: Timing::default(),
    };
    let exit: Arc<Mutex<i32>> = Arc::default();
    let node = PilotNode {
        core: PilotCore::new(config),
        ticket_path: ticket_path.into(),
        launches,
        nodes,
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

/// A line for people. The batch script's output is a file in the block's folder, so standard error is the pilot's log.
fn log(text: &str) {
    // A log that cannot be written must not end the block.
    let _ = writeln!(io::stderr(), "pilot {}: {text}", process::clock_ms());
}

struct PilotNode {
    core: PilotCore,
    ticket_path: PathBuf,
    launches: Vec<Launch>,
    nodes: Vec<String>,
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
            PilotEffect::SignalManagers { signal } => {
                for pid in self.running.keys() {
                    crate::children::signal_group(*pid, signal);
                }
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
        let mut failed = Vec::new();
        for launch in &self.launches {
            let Some((program, args)) = launch.argv.split_first() else { continue };
            let mut command = Command::new(program);
            command.args(args).envs(&launch.env).env(WALLTIME_VARIABLE, left_ms.to_string());
            command.stdin(Stdio::null()).process_group(0);
            for name in &launch.env_remove {
                command.env_remove(name);
            }
            if let ([node], true) = (&launch.nodes[..], self.nodes.len() > 1)
                && let Some(name) = self.nodes.get(usize::from(*node))
            {
                command.env(NODE_NAME_VARIABLE, name);
            }
            match process::spawn_open(&mut command) {
                Ok(child) => drop(self.running.insert(child.id() as i32, launch.nodes.clone())),
                Err(error) => {
                    let how = format!("could not be started: {program}: {error}");
                    let ended = |&node| PilotInput::ManagerEnded { node, how: how.clone(), ok: false };
                    failed.extend(launch.nodes.iter().map(ended));
                }
            }
        }
        failed
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
        let mut stop = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            stop |= matches!(signal.ssi_signo as i32, libc::SIGTERM | libc::SIGINT);
        }
        if stop {
            let reason = "the pilot was told to end by a signal".into();
            self.give(now, PilotInput::Stop { reason, grace_ms: STOP_GRACE_MS }, out);
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
