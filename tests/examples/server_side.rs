//! CPU time a task of the server side alone: the real broker and the real relay in one process, every task synced, and managers that only answer,
//! in a process of their own, over real sockets with CURVE. Tasks are handed in through the broker's handle (no HTTP), 1,000 with 100 bytes each at a time.
//!
//! `server_side [--reps N]` prints JSON lines. The program is its own scheduler (`local ..`) and its own managers (`managers ..`).

use bytes::Bytes;
use pf_broker::{BROKER_OWNER, BrokerConfig, BrokerHandle, BrokerNode, Reply, Request};
use pf_link::{Dialer, Event, Out, Timing};
use pf_protocol::job::{Body, Command, JobSpec, content_hash};
use pf_protocol::message::{Dispatch, Hello, Inventory, Message, Outcomes, VERSION_MAX, VERSION_MIN, Who};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::ticket::{SlotPlan, Ticket};
use pf_protocol::{AttemptId, Epoch, JobId, JobKey, ManagerId};
use pf_relay::{BrokerLink, RelayNode, RelayOptions, Scaling, Shape};
use pf_transport::{Conn, DialSpec, KeyPair, Node, Outbox, PublicKey, Reactor};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MANAGERS: u16 = 16;
const TASKS: u32 = 200_000;
const BATCH: u32 = 1_000;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["local", verb, rest @ ..] => scheduler(verb, rest),
        ["managers", ticket] => managers(Path::new(ticket)),
        ["--reps", reps] => measure(reps.parse()?),
        _ => measure(5),
    }
}

/// A scheduler that starts nothing and says that all runs.
fn scheduler(verb: &str, rest: &[&str]) -> Result<(), Error> {
    let after = |flag: &str| {
        rest.iter().position(|w| *w == flag).and_then(|at| rest.get(at + 1)).copied().unwrap_or("")
    };
    match verb {
        "submit" => {
            std::fs::write(Path::new(after("--dir")).join("name"), after("--name"))?;
            println!("1-1");
        }
        "status" => {
            for dir in rest {
                println!("1-1|{}|RUNNING|3600000|", std::fs::read_to_string(Path::new(dir).join("name"))?);
            }
        }
        _ => {}
    }
    Ok(())
}

/// A manager that answers every task at once.
struct Answering {
    dial: DialSpec,
    dialer: Dialer,
    manager: ManagerId,
    seq: u64,
}

impl Answering {
    fn new(ticket: &Ticket, node: u16) -> Result<Answering, Error> {
        let keys = KeyPair::from_z85(&ticket.block_key.0, &ticket.block_key.1)?;
        let dial = DialSpec {
            address: ticket.relays[0].clone(),
            server_key: PublicKey::from_z85(&ticket.relay_key)?,
            keys,
        };
        let incarnation = u64::from(node) + 1;
        let manager = ManagerId { block: ticket.block, node, incarnation };
        let capacity = NodeCapacity { cores: 64, ..NodeCapacity::default() };
        let hello = Hello {
            who: Who::Manager { manager, node: format!("n{node}"), capacity, walltime_left_ms: 3_600_000 },
            incarnation,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: "sim".into(),
            pid: std::process::id(),
            clock_ms: 0,
        };
        Ok(Answering { dial, dialer: Dialer::new(hello, Timing::default()), manager, seq: 0 })
    }

    fn carry(&mut self, now: u64, events: Vec<Event>, mut outs: Vec<Out>, out: &mut Outbox) {
        for event in events {
            match event {
                Event::Up { .. } => {
                    self.dialer.send(now, Inventory { last: true, ..Inventory::default() }.into(), &mut outs);
                }
                Event::Message { message: Message::Dispatch(dispatch), .. } => {
                    let outcomes = self.answer(&dispatch);
                    self.dialer.send(now, outcomes.into(), &mut outs);
                }
                _ => {}
            }
        }
        for o in outs {
            match o {
                Out::Frame { conn, bytes } => out.send(Conn(conn), bytes),
                Out::Close { conn } => out.close(Conn(conn)),
            }
        }
        if let Some(at) = self.dialer.next_deadline() {
            out.set_timer(at);
        }
    }

    fn answer(&mut self, dispatch: &Dispatch) -> Outcomes {
        let mut outcomes = Vec::new();
        for batch in &dispatch.batches {
            for (n, index) in batch.tasks.iter().enumerate() {
                let attempt = AttemptId { epoch: batch.first.epoch, n: batch.first.n + n as u32 };
                outcomes.push(Outcome { job: batch.job, index, attempt, ran_us: 1, ..Outcome::default() });
            }
        }
        self.seq += 1;
        let batch = OutcomeBatch {
            manager: self.manager,
            node: "sim".into(),
            seq: self.seq,
            outcomes,
            blob: Bytes::new(),
        };
        Outcomes { number: self.seq, batches: vec![batch] }
    }
}

impl Node for Answering {
    fn on_start(&mut self, _now: u64, out: &mut Outbox) {
        out.dial(&self.dial);
    }

    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        let mut outs = Vec::new();
        self.dialer.on_connected(now, conn.0, &mut outs);
        self.carry(now, Vec::new(), outs, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.dialer.on_frame(now, conn.0, &frame, &mut events, &mut outs);
        self.carry(now, events, outs, out);
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.dialer.on_timer(now, &mut events, &mut outs);
        self.carry(now, events, outs, out);
    }
}

fn managers(ticket: &Path) -> Result<(), Error> {
    let ticket: Ticket = serde_json::from_slice(&std::fs::read(ticket)?)?;
    let mut reactor = Reactor::new()?;
    for node in 0..MANAGERS {
        reactor.add(Box::new(Answering::new(&ticket, node)?));
    }
    Ok(reactor.run()?)
}

fn relay_options(root: &Path) -> Result<RelayOptions, Error> {
    let dir = |name: &str| -> Result<PathBuf, Error> {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    };
    Ok(RelayOptions {
        endpoint: "local".into(),
        broker: BrokerLink::Paired,
        scaling: Scaling {
            min_blocks: 1,
            shapes: vec![Shape { nodes: u32::from(MANAGERS), ..Shape::default() }],
            ..Scaling::default()
        },
        provider: "local".into(),
        dialect: None,
        asks: std::collections::BTreeMap::new(),
        poll_ms: None,
        submit_ms: None,
        rates_dir: dir("rates")?,
        launcher: "local".into(),
        program: std::env::current_exe()?,
        state_dir: dir("state")?,
        blocks_dir: dir("blocks")?,
        output_dir: dir("output")?,
        work_dir: dir("work")?,
        local_dir: None,
        python: "python3".into(),
        slots: SlotPlan::default(),
        listen: vec!["127.0.0.1".into()],
        ports: None,
        user: "bench".into(),
        host: "bench".into(),
        takeover: false,
        alone: false,
        blocks_end_with: None,
    })
}

/// The ticket of the first block, once it is written.
fn find_ticket(folder: &Path) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.file_name().is_some_and(|n| n == "ticket.json") {
            return Some(path);
        }
        if path.is_dir()
            && let Some(found) = find_ticket(&path)
        {
            return Some(found);
        }
    }
    None
}

fn ask(handle: &BrokerHandle, request: Request) -> Result<Reply, Error> {
    handle.request_blocking(BROKER_OWNER, request).map_err(|refused| refused.body.message.into())
}

fn run_job(handle: &BrokerHandle, n: u64) -> Result<(), Error> {
    let spec = JobSpec {
        endpoints: vec!["local".into()],
        body: Body::Command(Command { argv: vec!["true".into()], ..Command::default() }),
        ..JobSpec::default()
    };
    let mut key = [0u8; 16];
    key[..8].copy_from_slice(&n.to_le_bytes());
    let submit = Request::Submit {
        key: JobKey(key),
        hash: content_hash(&key),
        spec: Box::new(spec),
        tasks: Default::default(),
        open: true,
    };
    let Reply::Submitted(reply) = ask(handle, submit)? else { return Err("no job".into()) };
    let job: JobId = reply.job;
    for first in (0..TASKS).step_by(BATCH as usize) {
        let mut append = Request::Append { job, first, tasks: Default::default() };
        if let Request::Append { tasks, .. } = &mut append {
            tasks.count = BATCH;
            tasks.lens = vec![100; BATCH as usize];
            tasks.blob = Bytes::from(vec![7u8; 100 * BATCH as usize]);
        }
        ask(handle, append)?;
    }
    ask(handle, Request::Close { job })?;
    let wait = Request::Job { job, wait_until: Some(pf_transport::now_us() + 120_000_000) };
    let Reply::Job(summary) = ask(handle, wait)? else { return Err("no job".into()) };
    if summary.counts.ok != u64::from(TASKS) {
        return Err(format!("not all tasks ended well: {:?}", summary.counts).into());
    }
    Ok(())
}

/// User and system time of this process, microseconds.
fn cpu_us() -> Result<f64, Error> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let us = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 * 1e6 + t.tv_usec() as f64;
    Ok(us(usage.user_time()) + us(usage.system_time()))
}

fn print(metric: &str, unit: &str, values: &mut [f64]) {
    values.sort_by(f64::total_cmp);
    let (n, median) = (values.len(), values[values.len() / 2]);
    let (min, max) = (values[0], values[n - 1]);
    println!(
        "{{\"metric\":\"{metric}\",\"value\":{median:.3},\"unit\":\"{unit}\",\"n\":{n},\"min\":{min:.3},\"max\":{max:.3},\"tasks\":{TASKS}}}"
    );
}

fn measure(reps: u64) -> Result<(), Error> {
    let root = tempfile::tempdir()?;
    let mut config = BrokerConfig::new(root.path().join("log"), "bench", "bench");
    config.local_endpoints = vec!["local".into()];
    let (broker, handle) = BrokerNode::open(&config)?;
    let (relay, relay_handle) = RelayNode::open(relay_options(root.path())?)?;
    let mut reactor = Reactor::new()?;
    let (broker, relay) = (reactor.add(Box::new(broker)), reactor.add(Box::new(relay)));
    reactor.pair(broker, relay);
    let thread = std::thread::spawn(move || reactor.run());
    let began = Instant::now();
    let ticket = loop {
        if let Some(ticket) = find_ticket(&root.path().join("blocks")) {
            break ticket;
        }
        if began.elapsed() > Duration::from_secs(30) {
            return Err("the relay asks for no block".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut managers =
        std::process::Command::new(std::env::current_exe()?).arg("managers").arg(ticket).spawn()?;
    let measured = (|| {
        run_job(&handle, 0)?;
        let (mut cpu, mut rate) = (Vec::new(), Vec::new());
        for rep in 1..=reps {
            let (before, began) = (cpu_us()?, Instant::now());
            run_job(&handle, rep)?;
            cpu.push((cpu_us()? - before) / f64::from(TASKS));
            rate.push(f64::from(TASKS) / began.elapsed().as_secs_f64());
        }
        Ok::<_, Error>((cpu, rate))
    })();
    managers.kill()?;
    managers.wait()?;
    drop(relay_handle);
    handle.stop();
    thread.join().map_err(|_| "the reactor panicked")??;
    let (mut cpu, mut rate) = measured?;
    print("server_side_cpu", "us/task", &mut cpu);
    print("server_side_rate", "tasks/s", &mut rate);
    Ok(())
}
