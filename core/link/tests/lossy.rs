//! Both ends over a network that loses, repeats and delays frames: within a session messages arrive in order and without holes, and when the faults end the link comes up.

use bytes::Bytes;
use pf_link::{Acceptor, Dialer, Event, Out, Timing};
use pf_protocol::message::{Confirm, Hello, Message, VERSION_MAX, VERSION_MIN, Welcome, Who};
use pf_protocol::{Epoch, frame::Frame};
use proptest::prelude::*;
use std::collections::VecDeque;

fn hello() -> Hello {
    Hello {
        who: Who::Relay { endpoint: "local".into(), takeover: false },
        incarnation: 42,
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        epoch_seen: Epoch(0),
        host: "n1".into(),
        pid: 1,
        clock_ms: 0,
    }
}

fn welcome(timing: Timing) -> Welcome {
    Welcome {
        session: 0,
        version: 0,
        epoch: Epoch(1),
        endpoint: Default::default(),
        heartbeat_ms: timing.heartbeat_ms,
        silent_ms: timing.silent_ms,
        lease_ms: 60_000,
        redial_ms_max: 2_000,
    }
}

/// Both ends and the wires between them.
struct Pair {
    now: u64,
    acceptor: Acceptor,
    dialer: Dialer,
    to_acceptor: VecDeque<Bytes>,
    to_dialer: VecDeque<Bytes>,
    /// Number of the last message that each side got in the present session: acceptor, dialler.
    got: [u64; 2],
    sent: [u64; 2],
    delivered: u64,
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair {
            now: 1,
            acceptor: Acceptor::new(Timing::default(), 1000),
            dialer: Dialer::new(hello(), Timing::default()),
            to_acceptor: VecDeque::new(),
            to_dialer: VecDeque::new(),
            got: [0; 2],
            sent: [0; 2],
            delivered: 0,
        };
        let mut out = Vec::new();
        pair.dialer.on_connected(pair.now, 7, &mut out);
        pair.carry(1, vec![], out);
        pair
    }

    fn carry(&mut self, side: usize, events: Vec<Event>, out: Vec<Out>) {
        for o in out {
            if let Out::Frame { bytes, .. } = o {
                if side == 0 { self.to_dialer.push_back(bytes) } else { self.to_acceptor.push_back(bytes) }
            }
        }
        for event in events {
            match event {
                Event::Hello { conn, .. } => {
                    let mut out = Vec::new();
                    assert!(self.acceptor.welcome(self.now, conn, welcome(self.acceptor.timing()), &mut out));
                    (self.got[0], self.sent[0]) = (0, 0);
                    self.carry(0, vec![], out);
                }
                Event::Up { .. } => (self.got[1], self.sent[1]) = (0, 0),
                Event::Message { message: Message::Confirm(c), .. } => {
                    assert_eq!(c.upto, self.got[side] + 1, "a hole or a repetition reached the core");
                    self.got[side] = c.upto;
                    self.delivered += 1;
                }
                _ => {}
            }
        }
    }

    fn deliver(&mut self, side: usize) {
        let (mut events, mut out) = (Vec::new(), Vec::new());
        if side == 0 {
            let Some(bytes) = self.to_acceptor.pop_front() else { return };
            self.acceptor.on_frame(self.now, 7, &bytes, &mut events, &mut out);
        } else {
            let Some(bytes) = self.to_dialer.pop_front() else { return };
            self.dialer.on_frame(self.now, 7, &bytes, &mut events, &mut out);
        }
        self.carry(side, events, out);
    }

    fn send(&mut self, side: usize) {
        let mut out = Vec::new();
        let message: Message = Confirm { upto: self.sent[side] + 1 }.into();
        let sent = if side == 0 {
            self.acceptor.send(self.now, 7, message, &mut out)
        } else {
            self.dialer.send(self.now, message, &mut out)
        };
        self.sent[side] += u64::from(sent);
        self.carry(side, vec![], out);
    }

    fn tick(&mut self, us: u64) {
        self.now += us;
        let (mut events, mut out) = (Vec::new(), Vec::new());
        self.acceptor.on_timer(self.now, &mut events, &mut out);
        self.carry(0, events, out);
        let (mut events, mut out) = (Vec::new(), Vec::new());
        self.dialer.on_timer(self.now, &mut events, &mut out);
        self.carry(1, events, out);
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            while !self.to_acceptor.is_empty() || !self.to_dialer.is_empty() {
                self.deliver(0);
                self.deliver(1);
            }
            self.tick(500_000);
        }
    }
}

proptest! {
    #[test]
    fn no_hole_reaches_a_core_and_the_link_comes_up(ops in proptest::collection::vec((0u8..8, 0usize..2), 0..300)) {
        let mut pair = Pair::new();
        for (op, side) in ops {
            match op {
                0 | 1 => pair.send(side),
                2 | 3 => pair.deliver(side),
                4 => { if side == 0 { pair.to_acceptor.pop_front(); } else { pair.to_dialer.pop_front(); } }
                5 => { let q = if side == 0 { &mut pair.to_acceptor } else { &mut pair.to_dialer };
                       if let Some(first) = q.front().cloned() { q.push_front(first); } }
                6 => pair.tick(3_000_000),
                _ => { let q = if side == 0 { &mut pair.to_acceptor } else { &mut pair.to_dialer };
                       if let Some(first) = q.pop_front() { q.push_front(first.slice(..first.len() / 2)); } }
            }
        }
        pair.settle();
        prop_assert!(pair.dialer.is_up() && pair.acceptor.is_up(7));
        let before = pair.delivered;
        pair.send(0);
        pair.send(1);
        pair.settle();
        prop_assert_eq!(pair.delivered, before + 2);
    }
}

#[test]
fn silence_ends_a_session_on_both_sides() {
    let mut pair = Pair::new();
    pair.settle();
    assert!(pair.dialer.is_up());
    for _ in 0..30 {
        pair.tick(1_000_000);
        pair.to_acceptor.clear();
        pair.to_dialer.clear();
    }
    assert!(!pair.dialer.is_up() && !pair.acceptor.is_up(7));
}

#[test]
fn heartbeats_keep_an_idle_session() {
    let mut pair = Pair::new();
    pair.settle();
    let session = pair.acceptor.is_up(7);
    pair.settle();
    assert!(session && pair.dialer.is_up());
}

#[test]
fn versions_that_do_not_meet_are_refused_with_both_named() {
    let mut acceptor = Acceptor::new(Timing::default(), 1);
    let (mut events, mut out) = (Vec::new(), Vec::new());
    let mut hello = hello();
    (hello.version_min, hello.version_max) = (90, 91);
    let bytes = Frame { session: 0, seq: 0, message: hello.into() }.encode().unwrap();
    acceptor.on_frame(1, 7, &bytes, &mut events, &mut out);
    assert!(events.is_empty());
    let Some(Out::Frame { bytes, .. }) = out.pop() else { panic!("no answer") };
    let Message::Refuse(refuse) = Frame::decode(&bytes).unwrap().message else { panic!("not a refusal") };
    assert_eq!((refuse.code.as_str(), refuse.retry), ("version", false));
    assert!(refuse.message.contains("90 to 91"), "{}", refuse.message);
}

#[test]
fn an_older_version_is_agreed_to_when_one_end_has_no_more() {
    let agreed = |theirs: u16, ours: u16| {
        let mut acceptor = Acceptor::new(Timing::default(), 1);
        acceptor.limit_version(ours);
        let (mut events, mut out) = (Vec::new(), Vec::new());
        let bytes = Frame { session: 0, seq: 0, message: Hello { version_max: theirs, ..hello() }.into() };
        acceptor.on_frame(1, 7, &bytes.encode().unwrap(), &mut events, &mut out);
        assert!(acceptor.welcome(1, 7, welcome(Timing::default()), &mut out));
        let Some(Out::Frame { bytes, .. }) = out.pop() else { panic!("no answer") };
        let Message::Welcome(welcome) = Frame::decode(&bytes).unwrap().message else { panic!("no welcome") };
        welcome.version
    };
    assert_eq!([agreed(2, 2), agreed(1, 2), agreed(2, 1), agreed(9, 9)], [2, 1, 1, 2]);
}

#[test]
fn garbage_ends_the_session_and_a_new_one_begins() {
    let mut pair = Pair::new();
    pair.settle();
    pair.to_acceptor.push_front(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"));
    pair.deliver(0);
    assert!(!pair.acceptor.is_up(7));
    pair.settle();
    assert!(pair.acceptor.is_up(7) && pair.dialer.is_up());
}
