//! CPU of the relay's core for each task, frames decoded and encoded: a broker assigns batches, 64 managers answer at once.
//! `cargo run --release -p pf-relay-core --example cost`

use bytes::Bytes;
use pf_link::{Acceptor, Dialer, Event, Out, Timing};
use pf_protocol::job::{JobDef, JobSpec};
use pf_protocol::message::*;
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_protocol::report::BlockState;
use pf_protocol::resources::NodeCapacity;
use pf_protocol::{AttemptId, BlockId, EndpointId, Epoch, JobId, JobKey, ManagerId, OwnerId, Ranges};
use pf_relay_core::{BlockRecord, Config, Effect, Input, Relay, Roster, Scaling, Seen};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const MANAGERS: u64 = 64;
const TASKS: u32 = 1_000_000;

struct Manager {
    id: ManagerId,
    link: Dialer,
    seq: u64,
}

#[derive(Default)]
struct Meter {
    spent: Duration,
    calls: u64,
}

fn main() {
    let record = BlockRecord {
        block: BlockId(1),
        nodes: MANAGERS as u32,
        came_up: true,
        state: BlockState::Running,
        ..BlockRecord::default()
    };
    let roster = Roster { version: 1, next_block: 1, blocks: vec![record], ..Roster::default() };
    let mut relay = Relay::new(Config { scaling: Scaling::default(), ..Config::default() }, roster);
    let mut broker = Acceptor::new(Timing::default(), 9);
    let mut managers: BTreeMap<u64, Manager> = BTreeMap::new();
    let mut inputs: VecDeque<Input> = [Input::Start, Input::BrokerConnected { conn: 1 }].into();
    let (mut meter, mut now, mut given, mut taken, mut ended) = (Meter::default(), 1u64, 0u32, 0u64, 0u64);
    let mut joined = false;
    while ended < u64::from(TASKS) {
        let mut effects = Vec::new();
        let began = Instant::now();
        while let Some(input) = inputs.pop_front() {
            relay.handle(now, input, &mut effects);
        }
        relay.handle(now, Input::TurnEnd, &mut effects);
        meter.spent += began.elapsed();
        meter.calls += 1;
        now += 200;
        let (mut events, mut out) = (Vec::new(), Vec::new());
        let mut answers: Vec<(u64, Vec<AttemptBatch>)> = Vec::new();
        for effect in effects {
            match effect {
                Effect::Frame { conn: 1, bytes } => broker.on_frame(now, 1, &bytes, &mut events, &mut out),
                Effect::Frame { conn, bytes } => {
                    hear(now, conn, &bytes, &mut managers, &mut answers, &mut out)
                }
                Effect::QueryBlocks { blocks } => {
                    let seen = blocks.iter().map(|b| Seen {
                        name: b.name.clone(),
                        state: BlockState::Running,
                        ..Seen::default()
                    });
                    inputs.push_back(Input::Blocks { seen: Ok(seen.collect()) });
                }
                _ => {}
            }
        }
        for event in events {
            match event {
                Event::Hello { conn, .. } => {
                    let welcome = Welcome {
                        session: 0,
                        version: 0,
                        epoch: Epoch(1),
                        endpoint: EndpointId(1),
                        heartbeat_ms: 1_000_000,
                        silent_ms: 10_000_000,
                        lease_ms: 60_000,
                        redial_ms_max: 2_000,
                    };
                    broker.welcome(now, conn, welcome, &mut out);
                    broker.send(now, conn, Unfinished { jobs: vec![], last: true }.into(), &mut out);
                    let job = JobDef {
                        job: JobId(1),
                        key: JobKey::default(),
                        owner: OwnerId(1),
                        spec: JobSpec::default(),
                        function: None,
                    };
                    broker.send(now, conn, Define { jobs: vec![job] }.into(), &mut out);
                }
                Event::Message { message: Message::Credit(credit), .. } => taken = credit.tasks_upto,
                Event::Message { message: Message::Outcomes(outcomes), .. } => {
                    ended += outcomes.batches.iter().map(|b| b.outcomes.len() as u64).sum::<u64>();
                    broker.send(now, 1, Confirm { upto: outcomes.number }.into(), &mut out);
                }
                _ => {}
            }
        }
        while u64::from(given) < taken && given < TASKS {
            let count = (taken as u32 - given).min(TASKS - given).min(1_024);
            let tasks = Ranges::from_range(given, count);
            let batch = TaskBatch {
                job: JobId(1),
                tasks,
                lost: 0,
                lens: vec![16; count as usize],
                blob: vec![7; 16 * count as usize].into(),
            };
            broker.send(now, 1, Assign { batches: vec![batch] }.into(), &mut out);
            given += count;
        }
        for (conn, batches) in answers {
            answer(now, conn, &batches, &mut managers, &mut out);
        }
        inputs.extend(out.into_iter().filter_map(|o| match o {
            Out::Frame { conn, bytes } => Some(Input::Frame { conn, bytes }),
            Out::Close { .. } => None,
        }));
        if relay.epoch() == Epoch(1) && !std::mem::replace(&mut joined, true) {
            join(now, &mut managers, &mut inputs);
        }
    }
    let each = meter.spent.as_secs_f64() * 1e6 / f64::from(TASKS);
    println!(
        "{{\"metric\":\"relay_core_us_a_task\",\"value\":{each:.3},\"unit\":\"us\",\"n\":{TASKS},\"turns\":{}}}",
        meter.calls
    );
}

fn join(now: u64, managers: &mut BTreeMap<u64, Manager>, inputs: &mut VecDeque<Input>) {
    for n in 0..MANAGERS {
        let id = ManagerId { block: BlockId(1), node: n as u16, incarnation: n + 1 };
        let capacity = NodeCapacity { cores: 16, ..NodeCapacity::default() };
        let who = Who::Manager { manager: id, node: format!("n{n}"), capacity, walltime_left_ms: 36_000_000 };
        let hello = Hello {
            who,
            incarnation: n + 1,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: String::new(),
            pid: 1,
            clock_ms: 0,
        };
        let mut manager = Manager { id, link: Dialer::new(hello, Timing::default()), seq: 0 };
        let (conn, mut out) = (100 + n, Vec::new());
        manager.link.on_connected(now, conn, &mut out);
        managers.insert(conn, manager);
        inputs.push_back(Input::Accepted { conn, block: BlockId(1) });
        inputs.extend(out.into_iter().filter_map(|o| match o {
            Out::Frame { conn, bytes } => Some(Input::Frame { conn, bytes }),
            Out::Close { .. } => None,
        }));
    }
}

fn hear(
    now: u64,
    conn: u64,
    bytes: &[u8],
    managers: &mut BTreeMap<u64, Manager>,
    answers: &mut Vec<(u64, Vec<AttemptBatch>)>,
    out: &mut Vec<Out>,
) {
    let Some(manager) = managers.get_mut(&conn) else { return };
    let mut events = Vec::new();
    manager.link.on_frame(now, conn, bytes, &mut events, out);
    for event in events {
        match event {
            Event::Up { .. } => {
                manager.link.send(now, Inventory { last: true, ..Inventory::default() }.into(), out);
            }
            Event::Message { message: Message::Dispatch(dispatch), .. } => {
                answers.push((conn, dispatch.batches))
            }
            _ => {}
        }
    }
}

fn answer(
    now: u64,
    conn: u64,
    batches: &[AttemptBatch],
    managers: &mut BTreeMap<u64, Manager>,
    out: &mut Vec<Out>,
) {
    let Some(manager) = managers.get_mut(&conn) else { return };
    let mut outcomes = Vec::new();
    for batch in batches {
        for (index, n) in batch.tasks.iter().zip(batch.first.n..) {
            let attempt = AttemptId { n, ..batch.first };
            outcomes.push(Outcome { job: batch.job, index, attempt, ran_us: 50, ..Outcome::default() });
        }
    }
    manager.seq += 1;
    let batch = OutcomeBatch {
        manager: manager.id,
        node: "n".into(),
        seq: manager.seq,
        outcomes,
        blob: Bytes::new(),
    };
    manager.link.send(now, Outcomes { number: manager.seq, batches: vec![batch] }.into(), out);
}
