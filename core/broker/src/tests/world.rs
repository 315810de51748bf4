//! The world around the broker in tests: a disk, a relay at the other end of a real link, a client.

use crate::record::Record;
use crate::*;
use bytes::Bytes;
use pf_link::{Dialer, Event, Out, Timing};
use pf_protocol::api::{CancelReply, CancelRequest, Counts, JobSummary};
use pf_protocol::frame::Frame;
use pf_protocol::job::{Body, Command, JobSpec};
use pf_protocol::message::*;
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::*;
use std::collections::BTreeMap;

pub const ME: Caller = Caller { owner: OwnerId(1), is_broker_owner: true };
pub const WALL_US: u64 = 1_700_000_000_000_000;

/// Records and blobs, all of which survive a restart.
#[derive(Default)]
pub struct Disk {
    pub records: Vec<(RecordHead, Bytes)>,
    pub blobs: Vec<(JobId, Bytes)>,
    pub full: bool,
    /// What was kept for another job, too.
    pub kept: Vec<(JobId, BlobRef)>,
}

impl Blobs for Disk {
    fn put(&mut self, job: JobId, _: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
        if self.full {
            return Err(PutError::Full("no space left".into()));
        }
        self.blobs.push((job, Bytes::copy_from_slice(bytes)));
        // Blobs lie 1,000 apart, so that an offset into one is told from another one.
        Ok(BlobRef { segment: self.blobs.len() as u32, offset: 1_000, len: bytes.len() as u32 })
    }

    fn keep(&mut self, job: JobId, blob: BlobRef) {
        self.kept.push((job, blob));
    }
}

impl Disk {
    pub fn read(&self, blob: BlobRef) -> Bytes {
        if blob.len == 0 {
            return Bytes::new();
        }
        let from = (blob.offset - 1_000) as usize;
        self.blobs[blob.segment as usize - 1].1.slice(from..from + blob.len as usize)
    }
}

/// A relay: keeps the link, remembers what came.
pub struct Relay {
    pub dialer: Dialer,
    pub got: Vec<Message>,
    pub welcome: Option<Welcome>,
    pub refused: Option<Refuse>,
    pub sent: u64,
}

impl Relay {
    /// Tasks assigned so far, in order.
    pub fn assigned(&self) -> Vec<TaskBatch> {
        let assigns = self.got.iter().filter_map(|m| match m {
            Message::Assign(assign) => Some(assign.batches.clone()),
            _ => None,
        });
        assigns.flatten().collect()
    }

    pub fn assigned_count(&self) -> u64 {
        self.assigned().iter().map(|b| b.tasks.len()).sum()
    }

    pub fn last<T>(&self, pick: impl Fn(&Message) -> Option<T>) -> Option<T> {
        self.got.iter().rev().find_map(pick)
    }

    pub fn confirmed(&self) -> Option<u64> {
        self.last(|m| match m {
            Message::Confirm(confirm) => Some(confirm.upto),
            _ => None,
        })
    }
}

pub struct World {
    pub broker: Broker,
    pub disk: Disk,
    pub now: Micros,
    pub replies: BTreeMap<u64, Result<Reply, Refusal>>,
    pub streams: Vec<(u64, StreamBatch)>,
    pub dropped: Vec<JobId>,
    pub relays: BTreeMap<u64, Relay>,
    pub closed: Vec<u64>,
    pub loads: u64,
    pub load_fails: bool,
    /// Loads are not answered.
    pub load_waits: bool,
    /// What relays speak at the most.
    pub version_max: u16,
    /// Whether appended records are synced at once.
    pub auto_sync: bool,
    ticket: u64,
    conn: u64,
}

pub fn config(now: Micros) -> Config {
    Config { seed: 1_000, timing: Timing::default(), owner_name: "me".into(), now, wall_us: WALL_US + now }
}

pub fn command() -> JobSpec {
    let argv = vec!["true".into(), "{index}".into()];
    JobSpec { body: Body::Command(Command { argv, ..Command::default() }), ..JobSpec::default() }
}

pub fn outcome(job: JobId, index: u32, kind: OutcomeKind) -> Outcome {
    let attempt = AttemptId { epoch: Epoch(1), n: index + 1 };
    let error = (!kind.is_ok()).then(|| {
        Box::new(ErrorDetail { message: format!("{kind} happened\nmore"), ..ErrorDetail::default() })
    });
    Outcome { job, index, attempt, kind, ran: Ran::Yes, held_us: 5, ran_us: 10, error, ..Outcome::default() }
}

impl World {
    /// A broker with endpoint `local`.
    pub fn new() -> World {
        let broker = Recovery::new().finish(config(1_000_000));
        let mut world = World {
            broker,
            disk: Disk::default(),
            now: 1_000_000,
            replies: BTreeMap::new(),
            streams: Vec::new(),
            dropped: Vec::new(),
            relays: BTreeMap::new(),
            closed: Vec::new(),
            loads: 0,
            load_fails: false,
            load_waits: false,
            version_max: VERSION_MAX,
            auto_sync: true,
            ticket: 0,
            conn: 0,
        };
        world.ask(Request::PutEndpoint { name: "local".into(), relay_key: None }).unwrap();
        world
    }

    /// The broker's process ends and starts again.
    pub fn restart(&mut self) {
        let mut recovery = Recovery::new();
        for (head, bytes) in &self.disk.records {
            recovery.record(*head, bytes).unwrap();
        }
        self.broker = recovery.finish(config(self.now));
        self.relays.clear();
        self.feed(Input::Timer);
    }

    pub fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while !inputs.is_empty() {
            for input in std::mem::take(&mut inputs) {
                let mut out = Vec::new();
                self.broker.handle(self.now, input, &mut self.disk, &mut out);
                self.broker.check();
                for effect in out {
                    self.effect(effect, &mut inputs);
                }
            }
            let position = self.disk.records.len() as u64;
            if inputs.is_empty() && self.auto_sync && self.broker.synced < position {
                inputs.push(Input::Synced { position });
            }
        }
    }

    fn effect(&mut self, effect: Effect, inputs: &mut Vec<Input>) {
        match effect {
            Effect::Append { kind, version, critical, bytes, .. } => {
                let position = self.disk.records.len() as u64 + 1;
                Record::decode(kind, version, critical, &bytes).unwrap().unwrap();
                self.disk.records.push((RecordHead { position, kind, version, critical }, bytes));
            }
            Effect::Reply { ticket, reply } => {
                assert!(self.replies.insert(ticket, reply).is_none(), "ticket {ticket} is answered once");
            }
            Effect::Stream { subscription, batch } => self.streams.push((subscription, batch)),
            Effect::Frame { conn, bytes } => self.relay_gets(conn, &bytes, inputs),
            Effect::CloseConn { conn } => self.closed.push(conn),
            Effect::SetTimer { at } if at <= self.now => inputs.push(Input::Timer),
            Effect::SetTimer { .. } => {}
            Effect::Load { .. } if self.load_waits => {}
            Effect::Load { token, blobs } => {
                self.loads += 1;
                let read = blobs.into_iter().map(|blob| self.disk.read(blob)).collect();
                let result = if self.load_fails { Err("I/O error".into()) } else { Ok(read) };
                inputs.push(Input::Loaded { token, result });
            }
            Effect::DropJob { job } => self.dropped.push(job),
        }
    }

    fn relay_gets(&mut self, conn: u64, bytes: &Bytes, inputs: &mut Vec<Input>) {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(&conn) else { return };
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        // The dialler shows a refusal in the middle of a session only as its end.
        if let Message::Refuse(refuse) = Frame::decode(bytes).unwrap().message {
            relay.refused = Some(refuse);
        }
        relay.dialer.on_frame(now, conn, bytes, &mut events, &mut outs);
        for event in events {
            match event {
                Event::Up { welcome, .. } => relay.welcome = Some(welcome),
                Event::Message { message, .. } => relay.got.push(message),
                Event::Hello { .. } | Event::Refused { .. } | Event::Down { .. } => {}
            }
        }
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                inputs.push(Input::Frame { conn, bytes });
            }
        }
    }

    /// Dials as a relay process and says HELLO. The answer is in `relays`.
    pub fn dial(&mut self, incarnation: u64, takeover: bool, peer: Option<[u8; 32]>) -> u64 {
        self.conn += 1;
        let conn = self.conn;
        let hello = Hello {
            who: Who::Relay { endpoint: "local".into(), takeover },
            incarnation,
            version_min: VERSION_MIN,
            version_max: self.version_max,
            epoch_seen: Epoch(0),
            host: "login1".into(),
            pid: incarnation as u32,
            clock_ms: 0,
        };
        let mut dialer = Dialer::new(hello, Timing::default());
        let mut outs = Vec::new();
        dialer.on_connected(self.now, conn, &mut outs);
        let relay = Relay { dialer, got: Vec::new(), welcome: None, refused: None, sent: 0 };
        self.relays.insert(conn, relay);
        self.feed(Input::Accepted { conn, peer });
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                self.feed(Input::Frame { conn, bytes });
            }
        }
        conn
    }

    /// A relay with credit that holds nothing.
    pub fn relay(&mut self) -> u64 {
        let conn = self.dial(7, false, None);
        self.say(conn, Holding { jobs: Vec::new(), last: true, rest: Rest::NotStarted });
        self.say(conn, Credit { tasks_upto: 100_000, bytes_upto: 1 << 30 });
        conn
    }

    pub fn say(&mut self, conn: u64, message: impl Into<Message>) {
        let mut outs = Vec::new();
        let relay = self.relays.get_mut(&conn).unwrap();
        relay.dialer.send(self.now, message.into(), &mut outs);
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                self.feed(Input::Frame { conn, bytes });
            }
        }
    }

    pub fn got(&self, conn: u64) -> &Relay {
        &self.relays[&conn]
    }

    /// The relay reports outcomes, each with an empty value unless one is given.
    pub fn report(&mut self, conn: u64, outcomes: Vec<Outcome>) {
        let batch = OutcomeBatch { node: "n1".into(), seq: 1, outcomes, ..OutcomeBatch::default() };
        self.report_batch(conn, batch);
    }

    pub fn report_values(&mut self, conn: u64, outcomes: Vec<(Outcome, &[u8])>) {
        let blob: Vec<u8> = outcomes.iter().flat_map(|(_, value)| value.to_vec()).collect();
        let outcomes =
            outcomes.into_iter().map(|(o, v)| Outcome { value_len: v.len() as u32, ..o }).collect();
        let blob = Bytes::from(blob);
        self.report_batch(
            conn,
            OutcomeBatch { node: "n1".into(), seq: 1, outcomes, blob, ..OutcomeBatch::default() },
        );
    }

    pub fn report_batch(&mut self, conn: u64, batch: OutcomeBatch) {
        let relay = self.relays.get_mut(&conn).unwrap();
        relay.sent += 1;
        let number = relay.sent;
        self.say(conn, Outcomes { number, batches: vec![batch] });
    }

    /// Asks as the broker's owner.
    pub fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.ask_as(ME, request)
    }

    pub fn ask_as(&mut self, caller: Caller, request: Request) -> Result<Reply, Refusal> {
        let ticket = self.ask_later(caller, request);
        self.replies.remove(&ticket).expect("an answer")
    }

    /// Asks without waiting: the answer will be in `replies`.
    pub fn ask_later(&mut self, caller: Caller, request: Request) -> u64 {
        self.ticket += 1;
        let ticket = self.ticket;
        self.feed(Input::Request { ticket, caller, request });
        ticket
    }

    pub fn submit_request(&mut self, spec: JobSpec, tasks: Tasks, open: bool) -> Request {
        let mut key = [0u8; 16];
        key[..8].copy_from_slice(&self.ticket.to_le_bytes());
        let hash = pf_protocol::job::content_hash(format!("{spec:?}{tasks:?}{open}").as_bytes());
        Request::Submit { key: JobKey(key), hash, spec: Box::new(spec), tasks, open }
    }

    pub fn submit(&mut self, spec: JobSpec, count: u32) -> JobId {
        self.try_submit(spec, Tasks { count, ..Tasks::default() }, false).unwrap()
    }

    pub fn try_submit(&mut self, spec: JobSpec, tasks: Tasks, open: bool) -> Result<JobId, Refusal> {
        let request = self.submit_request(spec, tasks, open);
        match self.ask(request)? {
            Reply::Submitted(reply) => Ok(reply.job),
            other => panic!("{other:?}"),
        }
    }

    pub fn items(items: &[&str]) -> Tasks {
        let lens = items.iter().map(|item| item.len() as u32).collect();
        Tasks { count: items.len() as u32, lens, blob: Bytes::from(items.concat()) }
    }

    pub fn summary(&mut self, job: JobId) -> JobSummary {
        match self.ask(Request::Job { job, wait_until: None }).unwrap() {
            Reply::Job(summary) => *summary,
            other => panic!("{other:?}"),
        }
    }

    pub fn counts(&mut self, job: JobId) -> Counts {
        self.summary(job).counts
    }

    pub fn cancel(&mut self, job: JobId, how: CancelRequest) -> CancelReply {
        match self.ask(Request::Cancel { job, how }).unwrap() {
            Reply::Cancelled(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub fn task(&mut self, job: JobId, label: u64) -> TaskView {
        match self.ask(Request::Task { job, label }).unwrap() {
            Reply::Tasks(mut views) => {
                let mut view = views.remove(0);
                if let Some((blob, _)) = view.detail {
                    view.complete(&decode_details(&self.disk.read(blob)).unwrap());
                }
                view
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A set from positions.
pub fn set(positions: &[u32]) -> Ranges {
    positions.iter().copied().collect()
}
