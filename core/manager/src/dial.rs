//! Rounds of dialling around the link's dialler: all addresses of the ticket at once, again with a fresh ticket when a round failed. Used by
//! both cores of this crate.

use crate::limits::{DIAL_PAUSE_US_MAX, DIAL_PAUSE_US_MIN, DIAL_ROUND_US};
use bytes::Bytes;
use pf_link::{Dialer, Event, Out, Timing};
use pf_protocol::message::{Hello, Message};
use pf_protocol::{Epoch, Micros};
use std::collections::BTreeSet;

/// What the shell must do for it.
#[derive(Debug)]
pub(crate) enum DialEffect {
    Dial,
    Frame { conn: u64, bytes: Bytes },
    Close { conn: u64 },
}

#[derive(Debug)]
pub(crate) struct Dial {
    dialer: Dialer,
    /// Connections that are tried or up.
    open: BTreeSet<u64>,
    up: Option<u64>,
    /// While not up: when the next round begins.
    next_round: Option<Micros>,
    failed_rounds: u32,
    jitter: u64,
    scratch: Vec<Out>,
}

impl Dial {
    pub fn new(hello: Hello, timing: Timing) -> Self {
        let jitter = hello.incarnation | 1;
        Dial {
            dialer: Dialer::new(hello, timing),
            open: BTreeSet::new(),
            up: None,
            next_round: None,
            failed_rounds: 0,
            jitter,
            scratch: Vec::new(),
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.is_some() && self.dialer.is_up()
    }

    pub fn hello_mut(&mut self) -> &mut Hello {
        self.dialer.hello_mut()
    }

    /// Begins the first round.
    pub fn start(&mut self, now: Micros, out: &mut Vec<DialEffect>) {
        self.next_round = Some(now + DIAL_ROUND_US);
        out.push(DialEffect::Dial);
    }

    pub fn on_dialled(&mut self, now: Micros, conns: &[u64]) {
        self.open.extend(conns);
        self.rest_if_nothing_is_open(now);
    }

    pub fn on_connected(&mut self, now: Micros, conn: u64, out: &mut Vec<DialEffect>) {
        self.open.insert(conn);
        self.dialer.on_connected(now, conn, &mut self.scratch);
        self.pass_on(out);
    }

    pub fn on_closed(&mut self, now: Micros, conn: u64, events: &mut Vec<Event>) {
        self.open.remove(&conn);
        self.dialer.on_closed(conn, events);
        if self.up == Some(conn) {
            self.up = None;
        }
        self.rest_if_nothing_is_open(now);
    }

    pub fn on_frame(
        &mut self,
        now: Micros,
        conn: u64,
        bytes: &[u8],
        events: &mut Vec<Event>,
        out: &mut Vec<DialEffect>,
    ) {
        let before = events.len();
        self.dialer.on_frame(now, conn, bytes, events, &mut self.scratch);
        self.pass_on(out);
        self.see(now, events, before, out);
    }

    pub fn on_timer(&mut self, now: Micros, events: &mut Vec<Event>, out: &mut Vec<DialEffect>) {
        let before = events.len();
        self.dialer.on_timer(now, events, &mut self.scratch);
        self.pass_on(out);
        self.see(now, events, before, out);
        if !self.is_up() && self.next_round.is_some_and(|at| at <= now) {
            for conn in std::mem::take(&mut self.open) {
                self.dialer.on_closed(conn, &mut Vec::new());
                out.push(DialEffect::Close { conn });
            }
            self.failed_rounds += 1;
            self.start(now, out);
        }
    }

    pub fn on_clock_gap(&mut self, now: Micros, gap_us: u64) {
        self.dialer.on_clock_gap(now);
        self.next_round = self.next_round.map(|at| at + gap_us);
    }

    /// Sends in the session; nothing happens when none is up: the next inventory makes up for it.
    pub fn send(&mut self, now: Micros, message: Message, out: &mut Vec<DialEffect>) -> bool {
        let sent = self.dialer.send(now, message, &mut self.scratch);
        self.pass_on(out);
        if !sent && self.up.take().is_some() {
            self.next_round = Some(now + DIAL_ROUND_US);
        }
        sent
    }

    pub fn bye(&mut self, now: Micros, reason: &str, out: &mut Vec<DialEffect>) {
        self.dialer.bye(now, reason, true, &mut self.scratch);
        self.pass_on(out);
        self.up = None;
    }

    pub fn next_deadline(&self) -> Option<Micros> {
        let round = if self.is_up() { None } else { self.next_round };
        [self.dialer.next_deadline(), round].into_iter().flatten().min()
    }

    fn see(&mut self, now: Micros, events: &mut Vec<Event>, from: usize, out: &mut Vec<DialEffect>) {
        let mut stale = None;
        for event in &events[from..] {
            match event {
                Event::Up { conn, welcome } if welcome.epoch < self.dialer_epoch() => stale = Some(*conn),
                Event::Up { conn, welcome } => {
                    self.up = Some(*conn);
                    self.next_round = None;
                    self.failed_rounds = 0;
                    self.dialer.hello_mut().epoch_seen = welcome.epoch;
                    let losers: Vec<u64> = self.open.iter().copied().filter(|c| c != conn).collect();
                    for conn in losers {
                        self.open.remove(&conn);
                        out.push(DialEffect::Close { conn });
                    }
                }
                Event::Down { .. } => {
                    self.up = None;
                    self.next_round = Some(now + DIAL_ROUND_US);
                }
                Event::Refused { conn, refuse } if !refuse.retry => {
                    self.open.remove(conn);
                    self.dialer.on_closed(*conn, &mut Vec::new());
                    out.push(DialEffect::Close { conn: *conn });
                }
                _ => {}
            }
        }
        if let Some(conn) = stale {
            // A relay of a lower epoch than one already seen: fenced, it only does not know it yet.
            events.truncate(from);
            self.dialer.on_closed(conn, &mut Vec::new());
            self.open.remove(&conn);
            out.push(DialEffect::Close { conn });
        }
        self.rest_if_nothing_is_open(now);
    }

    fn dialer_epoch(&mut self) -> Epoch {
        self.dialer.hello_mut().epoch_seen
    }

    fn rest_if_nothing_is_open(&mut self, now: Micros) {
        if self.open.is_empty() && self.up.is_none() {
            let base = (DIAL_PAUSE_US_MIN << self.failed_rounds.min(10)).min(DIAL_PAUSE_US_MAX);
            self.jitter ^= self.jitter << 13;
            self.jitter ^= self.jitter >> 7;
            self.jitter ^= self.jitter << 17;
            let at = now + base / 2 + self.jitter % base;
            self.next_round = Some(self.next_round.map_or(at, |due| due.min(at)));
        }
    }

    fn pass_on(&mut self, out: &mut Vec<DialEffect>) {
        for effect in self.scratch.drain(..) {
            match effect {
                Out::Frame { conn, bytes } => out.push(DialEffect::Frame { conn, bytes }),
                Out::Close { conn } => {
                    self.open.remove(&conn);
                    out.push(DialEffect::Close { conn });
                }
            }
        }
    }
}
