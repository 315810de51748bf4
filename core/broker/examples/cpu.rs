//! CPU of the broker's core a task, as JSON lines: submit, hand out, take outcomes, confirm, in batches of 1,000.
//! Run with `cargo run --release -p pf-broker-core --example cpu`. Disk and relay are played; their share is in the figure.

use bytes::Bytes;
use pf_broker_core::{Blobs, Caller, Class, Config, Effect, Input, PutError, Recovery, Request, Tasks};
use pf_link::Timing;
use pf_protocol::frame::Frame;
use pf_protocol::job::{Body, Command, JobSpec};
use pf_protocol::message::{Credit, Hello, Holding, Message, Outcomes, VERSION_MAX, VERSION_MIN, Who};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::{AttemptId, BlobRef, ContentHash, Epoch, JobId, JobKey, OwnerId};
use std::time::Instant;

const TASKS: u32 = 1_000_000;
const BATCH: u32 = 1_000;
const ROUNDS: usize = 5;

#[derive(Default)]
struct Disk(u32);

impl Blobs for Disk {
    fn put(&mut self, _: JobId, _: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
        self.0 += 1;
        Ok(BlobRef { segment: 1, offset: self.0, len: bytes.len() as u32 })
    }

    fn keep(&mut self, _: JobId, _: BlobRef) {}
}

/// One run: microseconds a task to accept, to hand out, to take the outcome.
fn run(items: bool) -> [f64; 3] {
    let config =
        Config { seed: 1, timing: Timing::default(), owner_name: "me".into(), now: 0, wall_us: 1 << 50 };
    let mut broker = Recovery::new().finish(config);
    let (mut disk, mut out, mut position) = (Disk::default(), Vec::new(), 0u64);
    let mut feed = |input: Input| -> Vec<Effect> {
        let mut all = Vec::new();
        let mut next = vec![input];
        while let Some(input) = next.pop() {
            broker.handle(0, input, &mut disk, &mut out);
            let before = position;
            for effect in out.drain(..) {
                match effect {
                    Effect::Append { .. } => position += 1,
                    Effect::SetTimer { at: 0 } => next.push(Input::Timer),
                    Effect::Load { token, blobs } => {
                        let piece = |blob: BlobRef| {
                            let count = blob.len as usize / 104;
                            let mut bytes: Vec<u8> = 100u32.to_le_bytes().repeat(count);
                            bytes.resize(blob.len as usize, 1);
                            Bytes::from(bytes)
                        };
                        let result = Ok(blobs.into_iter().map(piece).collect());
                        next.push(Input::Loaded { token, result });
                    }
                    effect => all.push(effect),
                }
            }
            if position > before {
                next.push(Input::Synced { position });
            }
        }
        all
    };
    let caller = Caller { owner: OwnerId(1), is_broker_owner: true };
    let request = Request::PutEndpoint { name: "local".into(), relay_key: None };
    feed(Input::Request { ticket: 1, caller, request });
    feed(Input::Accepted { conn: 1, peer: None });
    let frame = |session, seq, message: Message| Frame { session, seq, message }.encode().unwrap_or_default();
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
    let answers = feed(Input::Frame { conn: 1, bytes: frame(0, 0, hello.into()) });
    let session = answers.iter().find_map(|effect| match effect {
        Effect::Frame { bytes, .. } => Frame::decode(bytes).ok().map(|frame| frame.session),
        _ => None,
    });
    let session = session.unwrap_or_default();
    let mut seq = 0;
    let mut say = |message: Message| {
        seq += 1;
        Input::Frame { conn: 1, bytes: frame(session, seq, message) }
    };
    feed(say(Holding { jobs: Vec::new(), last: true, rest: pf_protocol::message::Rest::NotStarted }.into()));

    let tasks = if items {
        let blob = Bytes::from(vec![1; TASKS as usize * 100]);
        Tasks { count: TASKS, lens: vec![100; TASKS as usize], blob }
    } else {
        Tasks { count: TASKS, ..Tasks::default() }
    };
    let body = Body::Command(Command { argv: vec!["true".into()], ..Command::default() });
    let spec = Box::new(JobSpec { body, ..JobSpec::default() });
    let (key, hash) = (JobKey([1; 16]), ContentHash::default());
    let request = Request::Submit { key, hash, spec, tasks, open: false };
    let per_task = |from: Instant| from.elapsed().as_secs_f64() * 1e6 / f64::from(TASKS);
    let start = Instant::now();
    feed(Input::Request { ticket: 2, caller, request });
    let accepted = per_task(start);

    let start = Instant::now();
    feed(say(Credit { tasks_upto: u64::from(TASKS), bytes_upto: 1 << 40 }.into()));
    let handed_out = per_task(start);

    let reports: Vec<Input> = (0..TASKS / BATCH)
        .map(|nth| {
            let outcome = |i| Outcome {
                job: JobId(1),
                index: nth * BATCH + i,
                attempt: AttemptId { epoch: Epoch(1), n: 1 + nth * BATCH + i },
                value_len: 8,
                ..Outcome::default()
            };
            let outcomes = (0..BATCH).map(outcome).collect();
            let blob = Bytes::from(vec![7; 8 * BATCH as usize]);
            let number = u64::from(nth) + 1;
            let batch =
                OutcomeBatch { node: "n".into(), seq: number, outcomes, blob, ..OutcomeBatch::default() };
            say(Outcomes { number, batches: vec![batch] }.into())
        })
        .collect();
    let start = Instant::now();
    reports.into_iter().for_each(|report| drop(feed(report)));
    [accepted, handed_out, per_task(start)]
}

fn main() {
    for (kind, items) in [("array", false), ("items_100b", true)] {
        let runs: Vec<[f64; 3]> = (0..ROUNDS).map(|_| run(items)).collect();
        for (at, step) in ["accept", "hand_out", "outcome"].into_iter().enumerate() {
            let mut values: Vec<f64> = runs.iter().map(|run| run[at]).collect();
            values.sort_by(f64::total_cmp);
            let (min, median, max) = (values[0], values[ROUNDS / 2], values[ROUNDS - 1]);
            println!(
                "{{\"metric\":\"broker_core_{step}_{kind}\",\"value\":{median:.3},\"unit\":\"us/task\",\"n\":{ROUNDS},\"min\":{min:.3},\"max\":{max:.3}}}"
            );
        }
    }
}
