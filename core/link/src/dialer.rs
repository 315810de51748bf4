//! The dialling end: one peer, perhaps at several addresses. HELLO goes to each connection; the first WELCOME wins, the others are closed.

use crate::session::{Session, Verdict};
use crate::{Event, Out, Timing};
use pf_protocol::Micros;
use pf_protocol::frame::Frame;
use pf_protocol::message::{Bye, Hello, Message};
use std::collections::BTreeMap;

/// First pause before HELLO is said again, milliseconds; doubles up to [`REDIAL_MS_MAX`].
const REDIAL_MS_MIN: u64 = 50;
/// Longest pause, milliseconds: a relay that comes back is found within this.
const REDIAL_MS_MAX: u64 = 5_000;

#[derive(Debug)]
struct Calling {
    /// When HELLO is said (again).
    next_hello: Micros,
    refused_for_good: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Dialer {
    hello: Hello,
    timing: Timing,
    calling: BTreeMap<u64, Calling>,
    up: Option<(u64, Session)>,
    rounds: u32,
    jitter: u64,
}

impl Dialer {
    /// A dialler that introduces itself with `hello`, whose `incarnation` also seeds the jitter of repeats.
    #[must_use]
    pub fn new(hello: Hello, timing: Timing) -> Self {
        let jitter = hello.incarnation | 1;
        Dialer { hello, timing, calling: BTreeMap::new(), up: None, rounds: 0, jitter }
    }

    /// What the next HELLO says.
    pub fn hello_mut(&mut self) -> &mut Hello {
        &mut self.hello
    }

    /// A connection is there: says HELLO on it.
    pub fn on_connected(&mut self, now: Micros, conn: u64, out: &mut Vec<Out>) {
        if self.up.is_some() {
            out.push(Out::Close { conn });
            return;
        }
        self.calling.insert(conn, Calling { next_hello: now, refused_for_good: false });
        self.say_hello(now, conn, out);
    }

    fn say_hello(&mut self, now: Micros, conn: u64, out: &mut Vec<Out>) {
        if let Some(calling) = self.calling.get_mut(&conn) {
            calling.next_hello = now + self.timing.hello_timeout_ms * 1_000;
            if let Ok(bytes) = (Frame { session: 0, seq: 0, message: self.hello.clone().into() }).encode() {
                out.push(Out::Frame { conn, bytes });
            }
        }
    }

    /// A pause before the next HELLO: doubling, and spread by ±50 % so that a thousand managers do not come back at once.
    fn pause_us(&mut self) -> Micros {
        let base = (REDIAL_MS_MIN << self.rounds.min(10)).min(REDIAL_MS_MAX) * 1_000;
        self.rounds += 1;
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        base / 2 + self.jitter % base
    }

    fn down(&mut self, now: Micros, reason: String, done: bool, events: &mut Vec<Event>) {
        let Some((conn, _)) = self.up.take() else { return };
        let next_hello = now + self.pause_us();
        self.calling.insert(conn, Calling { next_hello, refused_for_good: false });
        events.push(Event::Down { conn, reason, done });
    }

    /// Takes a frame.
    pub fn on_frame(
        &mut self,
        now: Micros,
        conn: u64,
        bytes: &[u8],
        events: &mut Vec<Event>,
        out: &mut Vec<Out>,
    ) {
        let frame = match Frame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                if self.up.as_ref().is_some_and(|up| up.0 == conn) {
                    self.down(now, error.to_string(), false, events);
                }
                return;
            }
        };
        match (&mut self.up, frame.message) {
            (_, Message::Refuse(refuse)) => {
                if self.up.as_ref().is_some_and(|up| up.0 == conn) {
                    self.down(now, refuse.message, false, events);
                } else if self.calling.contains_key(&conn) {
                    let next_hello = now + self.pause_us();
                    if let Some(calling) = self.calling.get_mut(&conn) {
                        *calling = Calling { next_hello, refused_for_good: !refuse.retry };
                    }
                    events.push(Event::Refused { conn, refuse });
                }
            }
            (None, Message::Welcome(welcome)) if self.calling.contains_key(&conn) => {
                let timing = Timing {
                    heartbeat_ms: welcome.heartbeat_ms,
                    silent_ms: welcome.silent_ms,
                    ..self.timing
                };
                let mut session = Session::new(welcome.session, timing, now);
                // The WELCOME is frame 1 of the session.
                let first = Frame {
                    session: welcome.session,
                    seq: frame.seq,
                    message: Message::Heartbeat(Default::default()),
                };
                if let Verdict::Over(reason, _) = session.receive(now, first) {
                    events.push(Event::Down { conn, reason, done: false });
                    return;
                }
                self.calling.remove(&conn);
                out.extend(self.calling.keys().map(|&conn| Out::Close { conn }));
                self.calling.clear();
                self.rounds = 0;
                self.up = Some((conn, session));
                events.push(Event::Up { conn, welcome });
            }
            (Some((up_conn, session)), message) if *up_conn == conn && session.id == frame.session => {
                match session.receive(now, Frame { session: frame.session, seq: frame.seq, message }) {
                    Verdict::Message(message) => events.push(Event::Message { conn, message }),
                    Verdict::Nothing => {}
                    Verdict::Over(reason, done) => self.down(now, reason, done, events),
                }
            }
            _ => {}
        }
    }

    /// The connection is gone; the shell may dial another.
    pub fn on_closed(&mut self, conn: u64, events: &mut Vec<Event>) {
        self.calling.remove(&conn);
        if self.up.as_ref().is_some_and(|up| up.0 == conn) {
            self.up = None;
            events.push(Event::Down { conn, reason: "the connection was closed".into(), done: false });
        }
    }

    /// Heartbeats, silence, repeated HELLOs. Call when [`Dialer::next_deadline`] has come.
    pub fn on_timer(&mut self, now: Micros, events: &mut Vec<Event>, out: &mut Vec<Out>) {
        if let Some((conn, session)) = &mut self.up {
            if let Err(reason) = session.on_timer(now, *conn, out) {
                self.down(now, reason, false, events);
            }
            return;
        }
        let due: Vec<u64> = self
            .calling
            .iter()
            .filter(|(_, c)| !c.refused_for_good && c.next_hello <= now)
            .map(|(c, _)| *c)
            .collect();
        for conn in due {
            self.say_hello(now, conn, out);
        }
    }

    /// When [`Dialer::on_timer`] should be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        match &self.up {
            Some((_, session)) => Some(session.next_deadline()),
            None => self.calling.values().filter(|c| !c.refused_for_good).map(|c| c.next_hello).min(),
        }
    }

    /// Sends in the session. False when none is up.
    pub fn send(&mut self, now: Micros, message: Message, out: &mut Vec<Out>) -> bool {
        let Some((conn, session)) = &mut self.up else { return false };
        // A message over the frame limit leaves a hole that the peer would not see: the next HELLO reconciles.
        match session.send(now, *conn, message, out) {
            Ok(()) => true,
            Err(_) => {
                let conn = *conn;
                self.up = None;
                self.calling.insert(conn, Calling { next_hello: now, refused_for_good: false });
                false
            }
        }
    }

    /// Ends the session on purpose: `done` says that this process ends for good. No [`Event::Down`] follows.
    pub fn bye(&mut self, now: Micros, reason: &str, done: bool, out: &mut Vec<Out>) {
        self.send(now, Bye { reason: reason.into(), done }.into(), out);
        self.up = None;
    }

    /// Whether a session is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// This process stood still for a while: the peer's silence is not held against it.
    pub fn on_clock_gap(&mut self, now: Micros) {
        if let Some((_, session)) = &mut self.up {
            session.forgive(now);
        }
    }
}
