//! Rounds of dialling around the link's dialler: all addresses of the ticket at once, again with a fresh ticket when a round failed. Used by
//! both cores of this crate.

use crate::limits::{DIAL_PAUSE_US_MAX, DIAL_PAUSE_US_MIN, DIAL_ROUND_PAUSES, DIAL_ROUND_US_MAX};
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
    /// Longest pause between rounds, as the relay last told.
    pause_max: Micros,
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
            pause_max: DIAL_PAUSE_US_MAX,
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
        self.next_round = Some(now + self.round_us());
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
        if events[before..].iter().any(|event| matches!(event, Event::Down { .. })) {
            // Silence: the host may be gone, and the ticket name another one by now.
            self.next_round = Some(now + self.random() % self.pause_max);
        }
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
            self.next_round = Some(now + self.round_us());
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
                    let told = welcome.redial_ms_max.saturating_mul(1_000);
                    self.pause_max = if told == 0 { DIAL_PAUSE_US_MAX } else { told };
                    self.dialer.hello_mut().epoch_seen = welcome.epoch;
                    let losers: Vec<u64> = self.open.iter().copied().filter(|c| c != conn).collect();
                    for conn in losers {
                        self.open.remove(&conn);
                        out.push(DialEffect::Close { conn });
                    }
                }
                Event::Down { .. } => {
                    self.up = None;
                    self.next_round = Some(now + self.round_us());
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

    fn round_us(&self) -> Micros {
        self.pause_max.saturating_mul(DIAL_ROUND_PAUSES).min(DIAL_ROUND_US_MAX)
    }

    fn rest_if_nothing_is_open(&mut self, now: Micros) {
        if self.open.is_empty() && self.up.is_none() {
            let base = (DIAL_PAUSE_US_MIN << self.failed_rounds.min(10)).min(self.pause_max);
            let at = now + base / 2 + self.random() % base;
            self.next_round = Some(self.next_round.map_or(at, |due| due.min(at)));
        }
    }

    /// From the incarnation, which is random: so that a thousand managers do not come back at once.
    fn random(&mut self) -> u64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        self.jitter
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

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::frame::Frame;
    use pf_protocol::message::{VERSION_MAX, VERSION_MIN, Welcome, Who};
    use pf_protocol::{BlockId, EndpointId};

    /// Times at which a peer whose relay told `redial_ms_max` and is gone dials anew, where each round fails at once, or the relay's host is silent.
    fn rounds(redial_ms_max: u64, refused: bool) -> Vec<Micros> {
        let who = Who::Pilot {
            block: BlockId(1),
            incarnation: 7,
            scheduler_id: None,
            restarts: 0,
            nodes: Vec::new(),
            walltime_left_ms: 0,
        };
        let hello = Hello {
            who,
            incarnation: 7,
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            epoch_seen: Epoch(0),
            host: "n1".into(),
            pid: 1,
            clock_ms: 0,
        };
        let welcome = Welcome {
            session: 1,
            version: VERSION_MAX,
            epoch: Epoch(1),
            endpoint: EndpointId(1),
            heartbeat_ms: 1_000,
            silent_ms: 10_000,
            lease_ms: 60_000,
            redial_ms_max,
        };
        let mut dial = Dial::new(hello, Timing::default());
        let (mut events, mut out) = (Vec::new(), Vec::new());
        dial.start(0, &mut out);
        dial.on_dialled(0, &[1]);
        dial.on_connected(0, 1, &mut out);
        let frame = Frame { session: 1, seq: 1, message: welcome.into() }.encode().unwrap();
        dial.on_frame(0, 1, &frame, &mut events, &mut out);
        assert!(dial.is_up());
        if refused {
            dial.on_closed(0, 1, &mut events);
        }
        let (mut at, mut rounds) = (0, vec![0]);
        while rounds.len() < 20 {
            at = dial.next_deadline().unwrap().max(at);
            out.clear();
            dial.on_timer(at, &mut events, &mut out);
            if out.iter().any(|effect| matches!(effect, DialEffect::Dial)) {
                let conn = 1 + rounds.len() as u64;
                dial.on_dialled(at, &[conn]);
                if refused {
                    dial.on_closed(at, conn, &mut events);
                }
                rounds.push(at);
            }
        }
        rounds
    }

    fn longest(rounds: &[Micros]) -> Micros {
        rounds.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }

    #[test]
    fn a_few_come_back_at_once_and_many_are_spread() {
        assert!(longest(&rounds(1_000, true)) <= 1_500_000);
        let many = longest(&rounds(10_000, true));
        assert!(many > 5_000_000 && many <= 15_000_000, "{many}");
        // A relay of an earlier version does not tell.
        assert_eq!(rounds(0, true), rounds(10_000, true));
    }

    #[test]
    fn where_few_dial_the_ticket_is_soon_read_again_though_nobody_answers() {
        let silent_us = 10_000_000;
        let few = rounds(1_000, false);
        assert!(few[1] <= silent_us + 1_000_000, "after a silence it is read at once: {few:?}");
        assert!(longest(&few[1..]) <= 4_000_000);
        assert!(longest(&rounds(10_000, false)[1..]) > 15_000_000);
    }
}
