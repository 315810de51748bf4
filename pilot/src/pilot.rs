//! The process `pf pilot`: started by the batch script on the first node of a block. It starts the managers, watches them and the clock.

use crate::launch::Managers;
use crate::limits::WARNED_GRACE_MS;
use crate::{process, ticket};
use bytes::Bytes;
use nix::sys::signalfd::SignalFd;
use pf_launcher::limits::NODE_LIST_BYTES_MAX;
use pf_launcher::{LauncherError, Place, launcher, nodelist};
use pf_link::Timing;
use pf_manager_core::{PilotConfig, PilotCore, PilotEffect, PilotInput};
use pf_protocol::Micros;
use pf_transport::{CloseReason, Conn, Node, Outbox, Reactor, now_us};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
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
    let env = process::text_environment();
    let host = process::host();
    let launcher = launcher(&ticket.launcher)?;
    let place = Place { node_file: read_node_file(&env)?, env, host, asked: ticket.nodes };
    let nodes = launcher.nodes(&place)?;

    let incarnation = process::random()?;
    let walltime_end = now_us().saturating_add(ticket.walltime_ms.saturating_mul(1_000));
    let config = PilotConfig {
        block: ticket.block,
        incarnation,
        scheduler_id: ID_VARIABLES.iter().find_map(|name| place.env.get(*name).cloned()),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
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
        managers: Managers::new(launcher, nodes, ticket_path, walltime_end, incarnation)
            .map_err(|source| PilotError::Io { what: "find this program", source })?,
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
pub(crate) fn log(text: &str) {
    // A log that cannot be written must not end the block.
    let _ = writeln!(io::stderr(), "pilot {}: {text}", process::clock_ms());
}

struct PilotNode {
    core: PilotCore,
    ticket_path: PathBuf,
    managers: Managers,
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
            PilotEffect::StartManagers => return self.managers.start(now),
            PilotEffect::DrainManagers { grace_ms } => self.managers.drain(grace_ms),
            PilotEffect::KillManagers { hard } => self.managers.kill(hard),
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

    fn reap(&mut self, now: Micros, out: &mut Outbox) {
        for ended in self.managers.reap() {
            self.give(now, ended, out);
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
