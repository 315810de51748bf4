//! The process `pf pilot`: started by the batch script on the first node of a block. It starts the managers, watches them and the clock.

use crate::claim::{Claim, Claimed};
use crate::launch::Managers;
use crate::limits::WARNED_GRACE_MS;
use crate::{process, ticket};
use bytes::Bytes;
use nix::sys::signalfd::SignalFd;
use pf_launcher::limits::NODE_LIST_BYTES_MAX;
use pf_launcher::{LauncherError, Place, job, launcher, nodelist};
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
const WORDS: u64 = 2;

/// Exit code of a pilot whose block another one has.
const EXIT_CLAIMED: i32 = 2;

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
/// this pilot (its block is claimed or over). 3: no relay was heard for a while.
pub fn pilot_main(ticket: &Path) -> ExitCode {
    match run(ticket) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => process::exit_code("pilot", Err(error)),
    }
}

fn run(ticket_path: &Path) -> Result<i32, PilotError> {
    let signals = process::take_signals(&process::TO_END_AND_OF_CHILDREN)
        .map_err(|e| PilotError::Io { what: "block signals", source: e.into() })?;
    process::be_subreaper();
    let ticket = ticket::read(ticket_path)?;
    ticket::dial_specs(ticket_path, &ticket)?;
    let env = process::text_environment();
    let host = process::host();
    let launcher = launcher(&ticket.launcher)?;
    let incarnation = process::random()?;
    if let Some(other) = claimed_by_another(ticket_path, &env, &host, incarnation) {
        log(&format!("exit {EXIT_CLAIMED}: block {} has a pilot already: {other}", ticket.block));
        return Ok(EXIT_CLAIMED);
    }
    let place = Place { node_file: read_node_file(&env), env, host, asked: ticket.nodes };
    let nodes = launcher.nodes(&place)?;
    // The scheduler knows better than what was asked of it: it rounds, and partitions have limits.
    let left_ms = job::left_ms(&place.env, process::clock_ms()).unwrap_or(ticket.walltime_ms);
    log(&format!("{} node(s) by {}, {} s left", nodes.len(), launcher.name(), left_ms / 1_000));
    let walltime_end = now_us().saturating_add(left_ms.saturating_mul(1_000));
    let config = PilotConfig {
        block: ticket.block,
        incarnation,
        scheduler_id: job::id(&place.env).map(String::from),
        restarts: job::restarts(&place.env),
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
        addresses: Addresses::default(),
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

/// Claims the block; the line of who has it, if another has.
fn claimed_by_another(
    ticket: &Path,
    env: &BTreeMap<String, String>,
    host: &str,
    incarnation: u64,
) -> Option<String> {
    let claim = Claim {
        scheduler_id: job::id(env).unwrap_or_default().into(),
        restarts: job::restarts(env),
        incarnation,
        host: host.into(),
    };
    match claim.make(ticket.parent().unwrap_or(Path::new("."))) {
        Ok(Claimed::Ours) => None,
        Ok(Claimed::Theirs(line)) => Some(line),
        Err(error) => {
            // The relay still refuses a second one, as long as it remembers the first.
            log(&format!("the block cannot be claimed in its folder: {error}"));
            None
        }
    }
}

/// The text of the scheduler's list of nodes, where it is a file. Whether the block can do without is for the launcher to say.
fn read_node_file(env: &BTreeMap<String, String>) -> Option<String> {
    let path = nodelist::node_file(env)?;
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(NODE_LIST_BYTES_MAX as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(_) => Some(text),
        Err(error) => {
            log(&format!("the scheduler's list of nodes cannot be read: {path}: {error}"));
            None
        }
    }
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
    addresses: Addresses,
    signals: SignalFd,
    exit: Arc<Mutex<i32>>,
}

/// What became of each address of the ticket, for people: finding the relay from a compute node is where most set-ups fail.
#[derive(Default)]
struct Addresses {
    tried: BTreeMap<u64, String>,
    /// What was last said of each.
    said: BTreeMap<String, String>,
}

impl Addresses {
    /// Logs what happened to a connection, unless that is what happened to its address before.
    fn say(&mut self, conn: u64, what: &str) {
        let Some(address) = self.tried.get(&conn) else { return };
        if self.said.get(address).is_none_or(|before| before != what) {
            log(&format!("relay at {address}: {what}"));
            self.said.insert(address.clone(), what.into());
        }
    }

    fn closed(&mut self, conn: u64, why: &str) {
        self.say(conn, why);
        self.tried.remove(&conn);
    }
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
            PilotEffect::CloseConn { conn } => {
                self.addresses.closed(conn, "given up: another answered first, or nothing came in time");
                out.close(Conn(conn));
            }
            PilotEffect::SetTimer { at: Some(at) } => out.set_timer(at),
            PilotEffect::SetTimer { at: None } => out.clear_timer(),
            PilotEffect::StartManagers => {
                let failed = self.managers.start(now);
                if let Some(fd) = self.managers.words_fd() {
                    out.watch(fd, WORDS);
                }
                return failed;
            }
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
            Ok(specs) => {
                let conns: Vec<u64> = specs.iter().map(|spec| out.dial(spec).0).collect();
                let addresses = specs.iter().map(|spec| spec.address.clone());
                self.addresses.tried.extend(conns.iter().copied().zip(addresses));
                conns
            }
            Err(error) => {
                log(&format!("the ticket cannot be used now: {error}"));
                Vec::new()
            }
        }
    }

    fn hear(&mut self, now: Micros, out: &mut Outbox) {
        match self.managers.hear() {
            Some(ends) => ends.into_iter().for_each(|ended| self.give(now, ended, out)),
            None => {
                out.unwatch(WORDS);
                self.managers.close_words();
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
        self.addresses.say(conn.0, "connected");
        self.give(now, PilotInput::Connected { conn: conn.0 }, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        self.give(now, PilotInput::Frame { conn: conn.0, bytes: frame }, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        self.addresses.closed(conn.0, &reason.to_string());
        self.give(now, PilotInput::ConnClosed { conn: conn.0 }, out);
    }

    fn on_readable(&mut self, now: u64, token: u64, out: &mut Outbox) {
        if token == WORDS {
            return self.hear(now, out);
        }
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
