//! The accepting end: many peers, each on its own connection.

use crate::session::{Session, Verdict};
use crate::{Event, Out, Timing};
use pf_protocol::Micros;
use pf_protocol::frame::{Frame, FrameError};
use pf_protocol::message::{Bye, Message, Refuse, VERSION_MAX, VERSION_MIN, Welcome};
use std::collections::BTreeMap;

/// Connections that have said HELLO and have no answer yet. Above this, new ones are told to come back: each costs memory before it has proven anything.
const WAITING_HELLOS_MAX: usize = 65_536;

#[derive(Debug)]
enum Peer {
    /// HELLO was given to the core; version that both speak.
    Waiting {
        version: u16,
    },
    Up(Session),
}

/// See the module.
#[derive(Debug)]
pub struct Acceptor {
    timing: Timing,
    seed: u64,
    /// Highest version that is agreed to.
    version_max: u16,
    sessions: u64,
    peers: BTreeMap<u64, Peer>,
    /// `(deadline, conn)` of sessions that are up, coarse: a deadline that moved later is found when it fires.
    deadlines: std::collections::BTreeSet<(Micros, u64)>,
}

impl Acceptor {
    /// An acceptor whose session numbers begin at `seed`, which must be random for each process, so that a frame for an
    /// earlier life is never taken for one of this.
    #[must_use]
    pub fn new(timing: Timing, seed: u64) -> Self {
        Acceptor {
            timing,
            seed,
            version_max: VERSION_MAX,
            sessions: 0,
            peers: BTreeMap::new(),
            deadlines: std::collections::BTreeSet::new(),
        }
    }

    /// Agrees to no higher version than this from now on, in sessions that begin.
    pub fn limit_version(&mut self, most: u16) {
        self.version_max = most.clamp(VERSION_MIN, VERSION_MAX);
    }

    /// The highest version that is agreed to.
    #[must_use]
    pub fn version_max(&self) -> u16 {
        self.version_max
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
            Err(error) => return self.unreadable(conn, &error, events, out),
        };
        if let Message::Hello(hello) = frame.message {
            if let Some(Peer::Up(_)) = self.peers.remove(&conn) {
                events.push(Event::Down { conn, reason: "the peer began anew".into(), done: false });
            }
            let version = hello.version_max.min(self.version_max);
            if version < hello.version_min.max(VERSION_MIN) {
                let message = format!(
                    "it speaks protocol {} to {}, this side {VERSION_MIN} to {VERSION_MAX}",
                    hello.version_min, hello.version_max
                );
                return self.refuse(conn, Refuse { code: "version".into(), message, retry: false }, out);
            }
            if self.peers.len() >= WAITING_HELLOS_MAX {
                let message = "too many peers at once".into();
                return self.refuse(conn, Refuse { code: "not_ready".into(), message, retry: true }, out);
            }
            self.peers.insert(conn, Peer::Waiting { version });
            events.push(Event::Hello { conn, hello });
            return;
        }
        let Some(Peer::Up(session)) = self.peers.get_mut(&conn) else {
            // A frame of a session that this side has ended or never had: the peer is told to begin anew.
            if !self.peers.contains_key(&conn) {
                let message = "no session on this connection".into();
                self.refuse(conn, Refuse { code: "no_session".into(), message, retry: true }, out);
            }
            return;
        };
        if frame.session != session.id {
            return;
        }
        match session.receive(now, frame) {
            Verdict::Message(message) => events.push(Event::Message { conn, message }),
            Verdict::Nothing => {}
            Verdict::Over(reason, done) => {
                self.peers.remove(&conn);
                if !done {
                    // Tells the peer, which may not have noticed, to begin anew.
                    let message = reason.clone();
                    self.refuse(conn, Refuse { code: "no_session".into(), message, retry: true }, out);
                }
                events.push(Event::Down { conn, reason, done });
            }
        }
    }

    fn unreadable(&mut self, conn: u64, error: &FrameError, events: &mut Vec<Event>, out: &mut Vec<Out>) {
        if let Some(Peer::Up(_)) = self.peers.remove(&conn) {
            events.push(Event::Down { conn, reason: error.to_string(), done: false });
        }
        let refuse = Refuse { code: "unreadable".into(), message: error.to_string(), retry: true };
        self.refuse(conn, refuse, out);
    }

    /// The connection is gone.
    pub fn on_closed(&mut self, conn: u64, events: &mut Vec<Event>) {
        if let Some(Peer::Up(_)) = self.peers.remove(&conn) {
            events.push(Event::Down { conn, reason: "the connection was closed".into(), done: false });
        }
    }

    /// Heartbeats and silence. Call when [`Acceptor::next_deadline`] has come.
    pub fn on_timer(&mut self, now: Micros, events: &mut Vec<Event>, out: &mut Vec<Out>) {
        while let Some(&(at, conn)) = self.deadlines.first() {
            if at > now {
                break;
            }
            self.deadlines.pop_first();
            let Some(Peer::Up(session)) = self.peers.get_mut(&conn) else { continue };
            match session.on_timer(now, conn, out) {
                Ok(()) => {
                    self.deadlines.insert((session.next_deadline(), conn));
                }
                Err(reason) => {
                    self.peers.remove(&conn);
                    out.push(Out::Close { conn });
                    events.push(Event::Down { conn, reason, done: false });
                }
            }
        }
    }

    /// When [`Acceptor::on_timer`] should be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Micros> {
        self.deadlines.first().map(|d| d.0)
    }

    /// Answers a HELLO. `session` and `version` of `welcome` are filled in. False if the connection is gone meanwhile.
    pub fn welcome(&mut self, now: Micros, conn: u64, mut welcome: Welcome, out: &mut Vec<Out>) -> bool {
        let Some(Peer::Waiting { version }) = self.peers.get(&conn) else { return false };
        welcome.version = *version;
        welcome.session = self.seed.wrapping_add(self.sessions).max(1);
        self.sessions += 1;
        let timing =
            Timing { heartbeat_ms: welcome.heartbeat_ms, silent_ms: welcome.silent_ms, ..self.timing };
        let mut session = Session::new(welcome.session, timing, now);
        if session.send(now, conn, welcome.into(), out).is_err() {
            return false;
        }
        self.deadlines.insert((session.next_deadline(), conn));
        self.peers.insert(conn, Peer::Up(session));
        true
    }

    /// Answers a HELLO with no, or ends a session with a reason. The caller closes the connection if it wants.
    pub fn refuse(&mut self, conn: u64, refuse: Refuse, out: &mut Vec<Out>) {
        self.peers.remove(&conn);
        if let Ok(bytes) = (Frame { session: 0, seq: 0, message: refuse.into() }).encode() {
            out.push(Out::Frame { conn, bytes });
        }
    }

    /// Sends in the session of `conn`. False when there is none (any more).
    pub fn send(&mut self, now: Micros, conn: u64, message: Message, out: &mut Vec<Out>) -> bool {
        let Some(Peer::Up(session)) = self.peers.get_mut(&conn) else { return false };
        match session.send(now, conn, message, out) {
            Ok(()) => true,
            Err(message) => {
                self.refuse(conn, Refuse { code: "too_long".into(), message, retry: true }, out);
                false
            }
        }
    }

    /// Ends the session on purpose. No [`Event::Down`] follows.
    pub fn bye(&mut self, now: Micros, conn: u64, reason: &str, out: &mut Vec<Out>) {
        self.send(now, conn, Bye { reason: reason.into(), done: true }.into(), out);
        self.peers.remove(&conn);
    }

    /// Whether a session is up on this connection.
    #[must_use]
    pub fn is_up(&self, conn: u64) -> bool {
        matches!(self.peers.get(&conn), Some(Peer::Up(_)))
    }

    /// The intervals that new sessions get unless the WELCOME says otherwise.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// This process stood still for a while (suspended, swapped): nobody's silence is held against them.
    pub fn on_clock_gap(&mut self, now: Micros) {
        for peer in self.peers.values_mut() {
            if let Peer::Up(session) = peer {
                session.forgive(now);
            }
        }
    }
}
