//! A relay played in the test's process, and a real manager process: this very test binary, run again.

#![expect(clippy::unwrap_used, reason = "test code: what fails here fails the test")]

use bytes::Bytes;
use nix::sys::signal::{SigSet, Signal};
use pf_link::{Acceptor, Event, Out, Timing};
use pf_protocol::job::{Body, Command, Function, JobDef, JobSpec};
use pf_protocol::message::{AttemptBatch, Confirm, Define, Dispatch, Message, Outcomes, Welcome};
use pf_protocol::outcome::Outcome;
use pf_protocol::ticket::{SlotPlan, TICKET_FORMAT, Ticket};
use pf_protocol::{AttemptId, BlockId, EndpointId, Epoch, JobId, JobKey, OwnerId, Ranges};
use pf_transport::{AllowList, CloseReason, Conn, KeyPair, ListenSpec, Node, Outbox, Ports, Reactor, Waker};
use std::ffi::CString;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ExitCode};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Set for the process that is to be a manager.
const TICKET_VARIABLE: &str = "MANAGER_TEST_TICKET";

/// Longest wait for anything: reached only when something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// To be called by the one test (or main) that is run as the manager; returns when this process is none.
pub fn be_manager_if_asked() {
    if let Some(ticket) = std::env::var_os(TICKET_VARIABLE) {
        // A manager blocks its signals before it has threads. A test harness has threads already, so this program begins again with
        // the mask that it needs.
        if !SigSet::thread_get_mask().unwrap().contains(Signal::SIGCHLD) {
            let signals = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
            signals.into_iter().collect::<SigSet>().thread_block().unwrap();
            let args: Vec<CString> = std::env::args().map(|arg| CString::new(arg).unwrap()).collect();
            let Err(error) = nix::unistd::execv(c"/proc/self/exe", &args);
            panic!("this program cannot be begun again: {error}");
        }
        let code = pf_pilot::manager_main(&pf_pilot::ManagerArgs {
            ticket: ticket.into(),
            node: "0".into(),
            ..Default::default()
        });
        std::process::exit(i32::from(code != ExitCode::SUCCESS));
    }
}

struct RelayNode {
    link: Acceptor,
    orders: Receiver<Message>,
    told: Sender<Message>,
    conn: Option<u64>,
}

impl RelayNode {
    fn carry_out(&mut self, now: u64, events: Vec<Event>, mut outs: Vec<Out>, out: &mut Outbox) {
        for event in events {
            match event {
                Event::Hello { conn, .. } => {
                    let welcome = Welcome {
                        session: 0,
                        version: 0,
                        epoch: Epoch(1),
                        endpoint: EndpointId(1),
                        heartbeat_ms: 1_000,
                        silent_ms: 10_000,
                        lease_ms: 60_000,
                        redial_ms_max: 2_000,
                    };
                    self.link.welcome(now, conn, welcome, &mut outs);
                    self.conn = Some(conn);
                }
                Event::Message { conn, message } => {
                    if let Message::Outcomes(Outcomes { number, .. }) = &message {
                        self.link.send(now, conn, Confirm { upto: *number }.into(), &mut outs);
                    }
                    // The test may be over.
                    let _ = self.told.send(message);
                }
                _ => {}
            }
        }
        for effect in outs {
            match effect {
                Out::Frame { conn, bytes } => out.send(Conn(conn), bytes),
                Out::Close { conn } => out.close(Conn(conn)),
            }
        }
        if let Some(at) = self.link.next_deadline() {
            out.set_timer(at);
        }
    }
}

impl Node for RelayNode {
    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.link.on_frame(now, conn.0, &frame, &mut events, &mut outs);
        self.carry_out(now, events, outs, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, _reason: CloseReason, out: &mut Outbox) {
        let mut events = Vec::new();
        self.link.on_closed(conn.0, &mut events);
        self.carry_out(now, events, Vec::new(), out);
    }

    fn on_wake(&mut self, now: u64, out: &mut Outbox) {
        let mut outs = Vec::new();
        while let (Some(conn), Ok(message)) = (self.conn, self.orders.try_recv()) {
            self.link.send(now, conn, message, &mut outs);
        }
        self.carry_out(now, Vec::new(), outs, out);
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.link.on_timer(now, &mut events, &mut outs);
        self.carry_out(now, events, outs, out);
    }
}

/// The rig: relay, manager process, folders.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub manager: Child,
    orders: Sender<Message>,
    told: Receiver<Message>,
    waker: Waker,
    next: u32,
    pub log: Vec<Message>,
}

impl Rig {
    /// A manager with this many slots; `python` is its interpreter. It is up when this returns.
    pub fn start(slots: u32, python: &str, args: &[&str]) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (relay_keys, block_keys) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let allow = AllowList::new();
        allow.insert(block_keys.public, 1);
        let ((orders, their_orders), (their_told, told)) = (channel(), channel());
        let link = Acceptor::new(Timing::default(), 7);
        let mut reactor = Reactor::new().unwrap();
        let id =
            reactor.add(Box::new(RelayNode { link, orders: their_orders, told: their_told, conn: None }));
        let spec = ListenSpec {
            hosts: vec!["127.0.0.1".into()],
            ports: Ports::any(),
            keys: relay_keys.clone(),
            allow,
        };
        let relays = reactor.listen(id, spec).unwrap();
        let waker = reactor.waker(id);
        std::thread::spawn(move || reactor.run());
        let text = |path: &str| dir.path().join(path).to_string_lossy().into_owned();
        let ticket = Ticket {
            format: TICKET_FORMAT,
            endpoint_name: "here".into(),
            endpoint: EndpointId(1),
            block: BlockId(1),
            epoch: Epoch(1),
            relays,
            relay_key: relay_keys.public.to_z85(),
            block_key: (block_keys.public.to_z85(), block_keys.secret_z85()),
            nodes: 1,
            walltime_ms: 3_600_000,
            dir: text(""),
            program: String::new(),
            output_dir: text("out"),
            local_dir: Some(text("")),
            payloads_dir: Some(text("payloads")),
            work_dir: text("work"),
            python: python.into(),
            slots: SlotPlan { cores_override: Some(slots), ..SlotPlan::default() },
            launcher: "local".into(),
        };
        let path = dir.path().join("ticket.json");
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        serde_json::to_writer(file, &ticket).unwrap();
        let exe = std::env::current_exe().unwrap();
        let manager = std::process::Command::new(exe)
            .args(args)
            .env(TICKET_VARIABLE, &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut rig = Rig { dir, manager, orders, told, waker, next: 1, log: Vec::new() };
        rig.wait_for("an inventory", |m| matches!(m, Message::Inventory(_)).then_some(()));
        rig
    }

    pub fn say(&self, message: impl Into<Message>) {
        self.orders.send(message.into()).unwrap();
        self.waker.wake();
    }

    /// Waits for a message of which `pick` makes something, among those that came and that come.
    pub fn wait_for<T>(&mut self, what: &str, pick: impl Fn(&Message) -> Option<T>) -> T {
        let mut seen = 0;
        loop {
            while let Some(message) = self.log.get(seen) {
                if let Some(found) = pick(message) {
                    return found;
                }
                seen += 1;
            }
            match self.told.recv_timeout(PATIENCE) {
                Ok(message) => self.log.push(message),
                Err(_) => panic!("waited in vain for {what}; there was {:?}", self.log),
            }
        }
    }

    pub fn define(&mut self, job: u64, spec: JobSpec, function: Option<Function>) {
        let def = JobDef { job: JobId(job), key: JobKey::default(), owner: OwnerId(1), spec, function };
        self.say(Define { jobs: vec![def] });
    }

    /// Dispatches tasks with these items; answers their attempts.
    pub fn dispatch(&mut self, job: u64, items: &[&[u8]]) -> Vec<AttemptId> {
        let first = AttemptId { epoch: Epoch(1), n: self.next };
        let tasks = Ranges::from_range(self.next - 1, items.len() as u32);
        self.next += items.len() as u32;
        let lens = items.iter().map(|i| i.len() as u32).collect();
        let batch = AttemptBatch { job: JobId(job), first, tasks, lens, blob: items.concat().into() };
        self.say(Dispatch { epoch: Epoch(1), batches: vec![batch] });
        (0..items.len() as u32).map(|n| AttemptId { n: first.n + n, ..first }).collect()
    }

    /// The outcome of an attempt, with its value, once it is there.
    pub fn outcome(&mut self, attempt: AttemptId) -> (Outcome, Bytes) {
        self.wait_for("an outcome", |message| {
            let Message::Outcomes(outcomes) = message else { return None };

            outcomes.batches.iter().find_map(|batch| {
                let values = batch.with_values()?;
                values.into_iter().find(|(o, _)| o.attempt == attempt).map(|(o, v)| (o.clone(), v))
            })
        })
    }

    /// Runs one command; answers its outcome.
    pub fn run(&mut self, job: u64, command: Command) -> Outcome {
        self.run_spec(job, JobSpec { body: Body::Command(command), ..JobSpec::default() })
    }

    pub fn run_spec(&mut self, job: u64, spec: JobSpec) -> Outcome {
        self.define(job, spec, None);
        let attempt = self.dispatch(job, &[b"item"])[0];
        self.outcome(attempt).0
    }

    /// What the output log holds of an attempt: standard output, standard error.
    pub fn output(&self, attempt: AttemptId) -> (Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(self.dir.path().join("out")).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for (header, piece) in
                pf_protocol::outlog::Scan::new(&bytes).filter(|(h, _)| h.attempt == attempt)
            {
                match header.stream {
                    pf_protocol::outlog::Stream::Stdout => stdout.extend_from_slice(piece),
                    pf_protocol::outlog::Stream::Stderr => stderr.extend_from_slice(piece),
                    pf_protocol::outlog::Stream::End => {}
                }
            }
        }
        (stdout, stderr)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.manager.kill();
        let _ = self.manager.wait();
    }
}

/// A command by a shell.
pub fn sh(script: &str) -> Command {
    Command { argv: ["sh", "-c", script].map(String::from).to_vec(), ..Command::default() }
}
