//! A relay that runs nothing: it speaks the link's protocol and answers every task with its own position as the value.

use bytes::Bytes;
use pf_link::{Dialer, Event, Out, Timing};
use pf_protocol::ids::{AttemptId, Epoch};
use pf_protocol::message::{
    Credit, Hello, Holding, Message, Outcomes, TaskBatch, VERSION_MAX, VERSION_MIN, Who,
};
use pf_protocol::outcome::{Outcome, OutcomeBatch};
use pf_transport::{CloseReason, Conn, DialSpec, Node, Outbox};

/// Tasks that it takes beyond those it has answered.
const CREDIT_TASKS: u64 = 50_000;

pub struct FakeRelay {
    /// A broker in another process, or None: the one that it is paired with.
    dial: Option<DialSpec>,
    dialer: Dialer,
    works: bool,
    epoch: Epoch,
    taken: u64,
    credit: u64,
    number: u64,
    attempts: u32,
}

impl FakeRelay {
    pub fn new(endpoint: &str, works: bool) -> FakeRelay {
        let hello = Hello {
            who: Who::Relay { endpoint: endpoint.into(), takeover: false },
            incarnation: 77,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: "testhost".into(),
            pid: std::process::id(),
            clock_ms: 0,
        };
        let dialer = Dialer::new(hello, Timing::default());
        FakeRelay { dial: None, dialer, works, epoch: Epoch(0), taken: 0, credit: 0, number: 0, attempts: 0 }
    }

    pub fn dialling(endpoint: &str, dial: DialSpec) -> FakeRelay {
        FakeRelay { dial: Some(dial), ..FakeRelay::new(endpoint, true) }
    }

    fn take(&mut self, now: u64, events: Vec<Event>, outs: &mut Vec<Out>) {
        for event in events {
            match event {
                Event::Up { welcome, .. } => {
                    self.epoch = welcome.epoch;
                    (self.taken, self.credit, self.number) = (0, 0, 0);
                    self.give_credit(now, outs);
                }
                Event::Message { message: Message::Unfinished(page), .. } if page.last => {
                    let holding = Holding {
                        jobs: Vec::new(),
                        last: true,
                        rest: pf_protocol::message::Rest::NotStarted,
                    };
                    self.dialer.send(now, holding.into(), outs);
                }
                Event::Message { message: Message::Assign(assign), .. } => {
                    let count: u64 = assign.batches.iter().map(|b| b.tasks.len()).sum();
                    self.taken += count;
                    if self.works {
                        self.number += 1;
                        let batches = assign.batches.iter().map(|batch| self.answer(batch)).collect();
                        let outcomes = Outcomes { number: self.number, batches };
                        self.dialer.send(now, outcomes.into(), outs);
                        self.give_credit(now, outs);
                    }
                }
                _ => {}
            }
        }
    }

    fn give_credit(&mut self, now: u64, outs: &mut Vec<Out>) {
        if self.taken + CREDIT_TASKS / 2 >= self.credit {
            self.credit = self.taken + CREDIT_TASKS;
            let credit = Credit { tasks_upto: self.credit, bytes_upto: u64::MAX };
            self.dialer.send(now, credit.into(), outs);
        }
    }

    fn answer(&mut self, batch: &TaskBatch) -> OutcomeBatch {
        let mut blob = Vec::new();
        let mut outcomes = Vec::new();
        for index in batch.tasks.iter() {
            let value = index.to_string();
            blob.extend_from_slice(value.as_bytes());
            self.attempts += 1;
            outcomes.push(Outcome {
                job: batch.job,
                index,
                attempt: AttemptId { epoch: self.epoch, n: self.attempts },
                held_us: 1,
                ran_us: 2,
                value_len: value.len() as u32,
                ..Outcome::default()
            });
        }
        OutcomeBatch {
            node: "node0".into(),
            seq: 1,
            outcomes,
            blob: Bytes::from(blob),
            ..OutcomeBatch::default()
        }
    }

    fn carry(&mut self, now: u64, events: Vec<Event>, mut outs: Vec<Out>, out: &mut Outbox) {
        self.take(now, events, &mut outs);
        for effect in outs {
            match effect {
                Out::Frame { conn, bytes } => out.send(Conn(conn), bytes),
                Out::Close { conn } => out.close(Conn(conn)),
            }
        }
        if let Some(at) = self.dialer.next_deadline() {
            out.set_timer(at);
        }
    }
}

impl Node for FakeRelay {
    fn on_start(&mut self, _now: u64, out: &mut Outbox) {
        if let Some(dial) = &self.dial {
            out.dial(dial);
        }
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

    fn on_closed(&mut self, now: u64, conn: Conn, _reason: CloseReason, out: &mut Outbox) {
        if let Some(dial) = &self.dial {
            out.dial(dial);
        }
        let mut events = Vec::new();
        self.dialer.on_closed(conn.0, &mut events);
        self.carry(now, events, Vec::new(), out);
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.dialer.on_timer(now, &mut events, &mut outs);
        self.carry(now, events, outs, out);
    }
}
