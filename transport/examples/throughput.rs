//! Measures frames between two processes over CURVE: `cargo run --release --example throughput -p pf-transport`.
//! Prints JSON lines {metric, value, unit, n}. The process starts itself a second time as the sink.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use bytes::Bytes;
use pf_transport::{
    AllowList, Conn, DialSpec, KeyPair, ListenSpec, Node, Outbox, Ports, PublicKey, Reactor, now_us,
};

type Failure = Box<dyn std::error::Error>;

/// Frames of one measured run; sizes of a header-only batch, a small one, and a large one.
const RUNS: [(usize, u32); 3] = [(64, 400_000), (1 << 10, 200_000), (64 << 10, 8_000)];

/// Frames that end with one to be answered, and how many such windows may be under way: a link's credit in small, far below
/// ZMQ's marks.
const WINDOW: u32 = 2_000;
const WINDOWS: u32 = 8;

/// Answers each frame whose first byte is 1, and stops at 2.
struct Sink;

impl Node for Sink {
    fn on_frame(&mut self, _: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        match frame.first() {
            Some(1) => out.send(conn, frame),
            Some(2) => out.stop(),
            _ => {}
        }
    }
}

/// Sends runs of frames; at the last answer a whole run has arrived.
struct Source {
    spec: DialSpec,
    conn: Option<Conn>,
    run: usize,
    windows_sent: u32,
    windows_answered: u32,
    started_us: u64,
    started_cpu_us: u64,
}

impl Source {
    fn start_run(&mut self, now: u64, out: &mut Outbox) {
        let Some(conn) = self.conn else { return };
        (self.windows_sent, self.windows_answered) = (0, 0);
        (self.started_us, self.started_cpu_us) = (now, cpu_us());
        if self.run == RUNS.len() {
            out.send(conn, Bytes::from_static(&[2]));
            return out.stop();
        }
        for _ in 0..WINDOWS {
            self.send_window(conn, out);
        }
    }

    fn send_window(&mut self, conn: Conn, out: &mut Outbox) {
        let (size, count) = RUNS[self.run];
        if self.windows_sent * WINDOW >= count {
            return;
        }
        self.windows_sent += 1;
        let frame = Bytes::from(vec![0u8; size]);
        for _ in 1..WINDOW {
            out.send(conn, frame.clone());
        }
        let mut last = vec![0u8; size];
        last[0] = 1;
        out.send(conn, Bytes::from(last));
    }
}

impl Node for Source {
    fn on_start(&mut self, _: u64, out: &mut Outbox) {
        let conn = out.dial(&self.spec);
        out.send(conn, Bytes::from_static(&[1]));
        self.conn = Some(conn);
    }

    fn on_frame(&mut self, _: u64, conn: Conn, _: Bytes, out: &mut Outbox) {
        let now = now_us();
        if self.started_us == 0 {
            return self.start_run(now, out);
        }
        let (size, count) = RUNS[self.run];
        self.windows_answered += 1;
        self.send_window(conn, out);
        if self.windows_answered * WINDOW >= count {
            let per_s = f64::from(count) * 1e6 / (now - self.started_us) as f64;
            let cpu = (cpu_us() - self.started_cpu_us) as f64 / f64::from(count);
            println!(r#"{{"metric":"frames_{size}B","value":{per_s:.0},"unit":"1/s","n":{count}}}"#);
            println!(r#"{{"metric":"sender_cpu_{size}B","value":{cpu:.2},"unit":"us","n":{count}}}"#);
            self.run += 1;
            self.start_run(now, out);
        }
    }

    fn on_closed(&mut self, _: u64, _: Conn, reason: pf_transport::CloseReason, out: &mut Outbox) {
        eprintln!("closed: {reason}");
        out.stop();
    }
}

/// CPU time of this process so far, µs.
fn cpu_us() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0, |usage| (usage.user_time() + usage.system_time()).num_microseconds().unsigned_abs())
}

fn sink(client: &str) -> Result<(), Failure> {
    let (keys, allow) = (KeyPair::generate()?, AllowList::new());
    allow.insert(PublicKey::from_z85(client)?, 0);
    let mut reactor = Reactor::new()?;
    let node = reactor.add(Box::new(Sink));
    let hosts = vec!["127.0.0.1".to_string()];
    let spec = ListenSpec { hosts, ports: Ports::any(), keys: keys.clone(), allow };
    println!("{} {}", reactor.listen(node, spec)?[0], keys.public);
    Ok(reactor.run()?)
}

fn main() -> Result<(), Failure> {
    if let Some(client) = std::env::args().nth(1) {
        return sink(&client);
    }
    let keys = KeyPair::generate()?;
    let mut child =
        Command::new(std::env::current_exe()?).arg(keys.public.to_string()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no stdout of the sink")?).read_line(&mut line)?;
    let (address, key) = line.trim().split_once(' ').ok_or("the sink did not say where it listens")?;
    let spec = DialSpec { address: address.to_string(), server_key: PublicKey::from_z85(key)?, keys };
    let mut reactor = Reactor::new()?;
    reactor.add(Box::new(Source {
        spec,
        conn: None,
        run: 0,
        windows_sent: 0,
        windows_answered: 0,
        started_us: 0,
        started_cpu_us: 0,
    }));
    reactor.run()?;
    // Dropped before the wait, so that the last frame, which ends the sink, leaves.
    drop(reactor);
    child.wait()?;
    Ok(())
}
