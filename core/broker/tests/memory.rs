//! What a million tasks cost in memory, counted by the allocator. A binary of its own, since the allocator counts all threads.

use bytes::Bytes;
use pf_broker_core::{
    Blobs, Broker, Caller, Class, Config, Effect, Input, PutError, Recovery, Reply, Request, Tasks,
};
use pf_link::{Dialer, Event, Out, Timing};
use pf_protocol::job::{Body, Command, JobSpec};
use pf_protocol::message::{Credit, Hello, Holding, Message, Outcomes, VERSION_MAX, VERSION_MIN, Who};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::{AttemptId, BlobRef, ContentHash, Epoch, JobId, JobKey, OwnerId};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const TASKS: u32 = 1_000_000;

struct Counting;
static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls go on to the system's allocator as they are; only their sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A disk that keeps nothing but, on demand, the last bytes: what is on disk is not in memory.
#[derive(Default)]
struct Disk {
    blobs: Vec<Bytes>,
    keep: bool,
}

impl Blobs for Disk {
    fn put(&mut self, _: JobId, _: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
        if self.keep {
            self.blobs.push(Bytes::copy_from_slice(bytes));
        }
        Ok(BlobRef { segment: 1, offset: self.blobs.len() as u32, len: bytes.len() as u32 })
    }

    fn keep(&mut self, _: JobId, _: BlobRef) {}
}

struct World {
    broker: Broker,
    disk: Disk,
    dialer: Dialer,
    position: u64,
    synced: u64,
    assigned: u64,
    sent: u64,
}

impl World {
    fn new() -> World {
        let config =
            Config { seed: 1, timing: Timing::default(), owner_name: "me".into(), now: 0, wall_us: 1 << 50 };
        let hello = Hello {
            who: Who::Relay { endpoint: "local".into(), takeover: false },
            incarnation: 1,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: "h".into(),
            pid: 1,
            clock_ms: 0,
        };
        let dialer = Dialer::new(hello, Timing::default());
        let broker = Recovery::new().finish(config);
        let mut world =
            World { broker, disk: Disk::default(), dialer, position: 0, synced: 0, assigned: 0, sent: 0 };
        world.ask(Request::PutEndpoint { name: "local".into(), relay_key: None });
        world
    }

    fn feed(&mut self, input: Input) -> Option<Reply> {
        let mut reply = None;
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut out = Vec::new();
            self.broker.handle(0, input, &mut self.disk, &mut out);
            for effect in out {
                match effect {
                    Effect::Append { .. } => self.position += 1,
                    Effect::Reply { reply: answer, .. } => reply = Some(answer.expect("an answer")),
                    Effect::Frame { conn, bytes } => {
                        let (mut events, mut outs) = (Vec::new(), Vec::new());
                        self.dialer.on_frame(0, conn, &bytes, &mut events, &mut outs);
                        for event in events {
                            if let Event::Message { message: Message::Assign(assign), .. } = event {
                                self.assigned += assign.batches.iter().map(|b| b.tasks.len()).sum::<u64>();
                            }
                        }
                    }
                    Effect::Load { token, blobs } => {
                        let read = |blob: &BlobRef| self.disk.blobs[blob.offset as usize - 1].clone();
                        inputs.push(Input::Loaded { token, result: Ok(blobs.iter().map(read).collect()) });
                    }
                    Effect::SetTimer { at: 0 } => inputs.push(Input::Timer),
                    _ => {}
                }
            }
            if inputs.is_empty() && self.synced < self.position {
                self.synced = self.position;
                inputs.push(Input::Synced { position: self.position });
            }
        }
        reply
    }

    fn ask(&mut self, request: Request) -> Option<Reply> {
        let caller = Caller { owner: OwnerId(1), is_broker_owner: true };
        self.feed(Input::Request { ticket: 1, caller, request })
    }

    fn submit(&mut self, tasks: Tasks) -> JobId {
        let argv = vec!["true".into()];
        let spec =
            JobSpec { body: Body::Command(Command { argv, ..Command::default() }), ..JobSpec::default() };
        let key = JobKey([self.position as u8; 16]);
        let hash = ContentHash::default();
        match self.ask(Request::Submit { key, hash, spec: Box::new(spec), tasks, open: false }) {
            Some(Reply::Submitted(reply)) => reply.job,
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, message: Message) {
        let mut outs = Vec::new();
        self.dialer.send(0, message, &mut outs);
        self.carry(outs);
    }

    fn carry(&mut self, outs: Vec<Out>) {
        for out in outs {
            if let Out::Frame { conn, bytes } = out {
                self.feed(Input::Frame { conn, bytes });
            }
        }
    }

    fn connect(&mut self) {
        self.feed(Input::Accepted { conn: 1, peer: None });
        let mut outs = Vec::new();
        self.dialer.on_connected(0, 1, &mut outs);
        self.carry(outs);
        self.say(
            Holding { jobs: Vec::new(), last: true, rest: pf_protocol::message::Rest::NotStarted }.into(),
        );
    }

    /// Every task ends with a value of its own, out of order as from many managers.
    fn end_all(&mut self, job: JobId) {
        for first in (0..TASKS).step_by(1_000) {
            let index = |i: u32| (first + i * 7 % 1_000) % TASKS;
            let outcomes: Vec<Outcome> = (0..1_000)
                .map(|i| Outcome {
                    job,
                    index: index(i),
                    attempt: AttemptId { epoch: Epoch(1), n: 1 + first + i },
                    value_len: 8,
                    ..Outcome::default()
                })
                .collect();
            self.sent += 1;
            let blob = Bytes::from(vec![7; 8_000]);
            let batch =
                OutcomeBatch { node: "n".into(), seq: self.sent, outcomes, blob, ..OutcomeBatch::default() };
            self.say(Outcomes { number: self.sent, batches: vec![batch] }.into());
        }
    }
}

#[test]
fn a_million_tasks_fit() {
    let start = HELD.load(Relaxed);
    let mib = |from: usize| (HELD.load(Relaxed).saturating_sub(from)) as f64 / f64::from(1 << 20);

    let mut w = World::new();
    w.submit(Tasks { count: TASKS, ..Tasks::default() });
    let array = mib(start);
    assert!(array < 20.0, "an array of a million tasks is held in {array:.1} MiB");
    drop(w);

    let start = HELD.load(Relaxed);
    let mut w = World::new();
    let job = {
        let blob = Bytes::from(vec![1; TASKS as usize * 100]);
        w.submit(Tasks { count: TASKS, lens: vec![100; TASKS as usize], blob })
    };
    let queued = mib(start);
    assert!(queued < 200.0, "a million tasks with items are held in {queued:.1} MiB");
    w.connect();
    w.end_all(job);
    let ended = mib(start);
    assert!(ended < 200.0, "a million ended tasks with items are held in {ended:.1} MiB");
    println!("array {array:.1} MiB, with items {queued:.1} MiB, ended {ended:.1} MiB");
    w.broker.check();
    drop(w);
    all_items_arrive();
}

/// Behind the other in one test, since the allocator counts both.
fn all_items_arrive() {
    let mut w = World::new();
    w.disk.keep = true;
    let blob = Bytes::from(vec![1; TASKS as usize * 100]);
    w.submit(Tasks { count: TASKS, lens: vec![100; TASKS as usize], blob });
    w.connect();
    w.say(Credit { tasks_upto: 2_000_000, bytes_upto: 1 << 40 }.into());
    assert_eq!(w.assigned, u64::from(TASKS));
    w.broker.check();
}
