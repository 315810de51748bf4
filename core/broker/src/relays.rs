//! Relays: who may serve an endpoint, in which epoch, and what their messages mean. Reconciliation after WELCOME is in [`crate::reconcile`].

use crate::broker::{Broker, Then, Turn};
use crate::io::Effect;
use crate::live::Run;
use crate::payloads::{Pull, Wanted};
use crate::ready::Ready;
use crate::record::{EpochGranted, RelayEnded};
use pf_link::{Event, Out};
use pf_protocol::message::{
    Confirm, Credit, Hello, Message, Refuse, Release, Started, VERSION_MAX, Welcome, Who,
};
use pf_protocol::report::EndpointReport;
use pf_protocol::{EndpointId, Epoch, JobId, Micros, Ranges};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A connection that was accepted.
#[derive(Debug)]
pub(crate) struct Conn {
    /// Proven public key; None: this very process.
    pub peer: Option<[u8; 32]>,
    /// The endpoint that it serves, once it said HELLO and was not refused.
    pub endpoint: Option<EndpointId>,
}

/// How far a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its epoch is being synced; WELCOME follows.
    Granting,
    /// It was told what is unfinished, and tells what it holds.
    Reconciling,
    /// It may be given tasks.
    Up,
}

/// A relay that is there.
#[derive(Debug)]
pub(crate) struct Link {
    pub conn: u64,
    pub incarnation: u64,
    pub host: String,
    pub pid: u32,
    pub phase: Phase,
    /// Protocol version of its session.
    pub version: u16,
    pub credit: Credit,
    pub sent_tasks: u64,
    pub sent_bytes: u64,
    /// Jobs that it was told of in this session.
    pub defined: BTreeSet<JobId>,
    /// Pages of what it holds, so far.
    pub holding: BTreeMap<JobId, Ranges>,
    /// Pieces of items that it wants and does not have, in order.
    pub wants: VecDeque<Wanted>,
    /// Pieces of values that it is to send and has not sent.
    pub pieces_due: usize,
    /// Outcomes whose values are pulled from it before they are recorded, in the order in which they came.
    pub pulls: VecDeque<Pull>,
    /// Number of the last message of outcomes that was taken, and that was confirmed or will be when it is synced.
    pub taken_upto: u64,
    pub confirmed_upto: u64,
}

/// A relay that was there a moment ago.
#[derive(Debug)]
pub(crate) struct Gone {
    pub incarnation: u64,
    pub host: String,
    pub pid: u32,
    pub at: Micros,
}

/// What the broker knows of an endpoint beside the log.
#[derive(Debug, Default)]
pub(crate) struct LiveEndpoint {
    /// Its jobs that are not over.
    pub jobs: BTreeSet<JobId>,
    pub ready: Ready,
    pub link: Option<Link>,
    /// The relay whose session broke; None if it ended on purpose.
    pub gone: Option<Gone>,
    /// The last report.
    pub report: Option<EndpointReport>,
}

fn refuse(code: &str, message: String, retry: bool) -> Refuse {
    Refuse { code: code.into(), message, retry }
}

impl Broker {
    pub(crate) fn frame(&mut self, conn: u64, bytes: &[u8], turn: &mut Turn<'_>) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.acceptor.on_frame(turn.now, conn, bytes, &mut events, &mut outs);
        self.carry(outs, turn);
        self.link_events(events, turn);
    }

    pub(crate) fn conn_closed(&mut self, conn: u64, turn: &mut Turn<'_>) {
        let mut events = Vec::new();
        self.acceptor.on_closed(conn, &mut events);
        self.link_events(events, turn);
        // A connection may go before its session is up.
        self.link_down(conn, false, turn);
        self.conns.remove(&conn);
    }

    pub(crate) fn link_timer(&mut self, turn: &mut Turn<'_>) {
        let (mut events, mut outs) = (Vec::new(), Vec::new());
        self.acceptor.on_timer(turn.now, &mut events, &mut outs);
        self.carry(outs, turn);
        self.link_events(events, turn);
    }

    fn carry(&mut self, outs: Vec<Out>, turn: &mut Turn<'_>) {
        turn.out.extend(outs.into_iter().map(|out| match out {
            Out::Frame { conn, bytes } => Effect::Frame { conn, bytes },
            Out::Close { conn } => Effect::CloseConn { conn },
        }));
    }

    /// Sends in the session of a connection, if there is one.
    pub(crate) fn send(&mut self, conn: u64, message: Message, turn: &mut Turn<'_>) {
        let mut outs = Vec::new();
        let sent = self.acceptor.send(turn.now, conn, message, &mut outs);
        self.carry(outs, turn);
        if !sent {
            self.link_down(conn, false, turn);
        }
    }

    /// Refuses a HELLO, or ends a session with a reason.
    pub(crate) fn refuse_link(&mut self, conn: u64, why: Refuse, turn: &mut Turn<'_>) {
        let mut outs = Vec::new();
        self.acceptor.refuse(conn, why, &mut outs);
        self.carry(outs, turn);
        self.link_down(conn, false, turn);
    }

    fn link_events(&mut self, events: Vec<Event>, turn: &mut Turn<'_>) {
        for event in events {
            match event {
                Event::Hello { conn, hello } => self.hello(conn, hello, turn),
                Event::Message { conn, message } => self.message(conn, message, turn),
                Event::Down { conn, done, .. } => self.link_down(conn, done, turn),
                Event::Up { .. } | Event::Refused { .. } => {}
            }
        }
    }

    fn hello(&mut self, conn: u64, hello: Hello, turn: &mut Turn<'_>) {
        let granted = self.judge_hello(conn, &hello, turn);
        let (endpoint, epoch) = match granted {
            Ok(granted) => granted,
            Err(why) => return self.refuse_link(conn, why, turn),
        };
        if let Some(at) = self.conns.get_mut(&conn) {
            at.endpoint = Some(endpoint);
        }
        let Some(live) = self.endpoints.get_mut(&endpoint) else { return };
        if live.link.as_ref().is_some_and(|link| link.conn == conn && link.phase == Phase::Granting) {
            return;
        }
        let Hello { incarnation, host, pid, version_max, .. } = hello;
        live.gone = None;
        live.link = Some(Link {
            conn,
            incarnation,
            host: host.clone(),
            pid,
            phase: Phase::Granting,
            version: version_max.min(VERSION_MAX),
            credit: Credit::default(),
            sent_tasks: 0,
            sent_bytes: 0,
            defined: BTreeSet::new(),
            holding: BTreeMap::new(),
            wants: VecDeque::new(),
            pieces_due: 0,
            pulls: VecDeque::new(),
            taken_upto: 0,
            confirmed_upto: 0,
        });
        if let Some(epoch) = epoch {
            let granted = EpochGranted { at_us: turn.at_us, endpoint, epoch, incarnation, host, pid };
            if let Err(why) = self.log(granted, turn) {
                return self.refuse_link(conn, refuse("not_ready", why.message, true), turn);
            }
        }
        self.after_sync(Then::Welcome { conn, endpoint }, turn);
    }

    /// Whether this relay may serve the endpoint; if so, the epoch to grant (None: it has it already). Drops the connection that it replaces.
    fn judge_hello(
        &mut self,
        conn: u64,
        hello: &Hello,
        turn: &mut Turn<'_>,
    ) -> Result<(EndpointId, Option<Epoch>), Refuse> {
        let Who::Relay { endpoint: name, takeover } = &hello.who else {
            return Err(refuse("not_allowed", "only relays connect to a broker".into(), false));
        };
        let Some((id, endpoint)) = self.state.endpoint_named(name) else {
            let message = format!(
                "endpoint {name:?} is not known to this broker; `pf endpoint add {name}` makes it known"
            );
            return Err(refuse("unknown_endpoint", message, false));
        };
        let peer = self.conns.get(&conn).and_then(|c| c.peer);
        if peer.is_some() && peer != endpoint.relay_key.map(|key| key.0) {
            let message = format!("this relay's key is not the one of endpoint {name}");
            return Err(refuse("not_allowed", message, false));
        }
        if endpoint.fenced.contains(&hello.incarnation) {
            let message = format!("another relay has taken endpoint {name}, in epoch {}", endpoint.epoch.0);
            return Err(refuse("fenced", message, false));
        }
        let same = endpoint.incarnation == hello.incarnation && endpoint.epoch.0 > 0 && !endpoint.ended;
        let next = Epoch(endpoint.epoch.0.max(hello.epoch_seen.0) + 1);
        let live = self.endpoints.entry(id).or_default();
        let replaced = match (&live.link, &live.gone) {
            (Some(link), _) if link.incarnation == hello.incarnation => {
                (link.conn != conn).then_some(link.conn)
            }
            (Some(link), _) if *takeover => Some(link.conn),
            (Some(link), _) => {
                let message = format!(
                    "endpoint {name} is served by another relay: process {} on {}; stop it, or take over",
                    link.pid, link.host
                );
                return Err(refuse("claimed", message, false));
            }
            (None, Some(gone)) if gone.incarnation != hello.incarnation && !takeover => {
                let free_at = gone.at + self.config.timing.silent_ms * 1_000;
                if turn.now < free_at {
                    let message = format!(
                        "endpoint {name} was served by process {} on {} a moment ago; it is free in {} s",
                        gone.pid,
                        gone.host,
                        (free_at - turn.now).div_ceil(1_000_000)
                    );
                    return Err(refuse("claimed", message, true));
                }
                None
            }
            (None, _) => None,
        };
        if let Some(old) = replaced {
            if same {
                self.conn_closed(old, turn);
            } else {
                let message = format!("another relay has taken endpoint {name}");
                self.refuse_link(old, refuse("fenced", message, false), turn);
            }
            turn.out.push(Effect::CloseConn { conn: old });
        }
        Ok((id, (!same).then_some(next)))
    }

    /// The epoch is on disk: the relay may begin.
    pub(crate) fn welcome(&mut self, conn: u64, endpoint: EndpointId, turn: &mut Turn<'_>) {
        // Confirmations that still wait for the disk name messages of an earlier session on this connection: in this one their numbers mean others.
        // What was to be assigned in that session is not held by the relay, and comes back.
        self.waiting.retain(|(_, then)| {
            !matches!(then, Then::Confirm { conn: at, .. } | Then::Assign { conn: at, .. } if *at == conn)
        });
        let Some(epoch) = self.state.endpoints.get(&endpoint).map(|e| e.epoch) else { return };
        let link = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut());
        let Some(link) = link.filter(|link| link.conn == conn && link.phase == Phase::Granting) else {
            return;
        };
        link.phase = Phase::Reconciling;
        let timing = self.config.timing;
        let welcome = Welcome {
            session: 0,
            version: 0,
            epoch,
            endpoint,
            heartbeat_ms: timing.heartbeat_ms,
            silent_ms: timing.silent_ms,
            lease_ms: pf_protocol::limits::LEASE_MS,
            redial_ms_max: pf_protocol::limits::REDIAL_MS_MAX.1,
        };
        let mut outs = Vec::new();
        let up = self.acceptor.welcome(turn.now, conn, welcome, &mut outs);
        self.carry(outs, turn);
        if up {
            self.send_unfinished(conn, endpoint, turn);
        } else {
            self.link_down(conn, false, turn);
        }
    }

    /// The session of a connection is over, if it had one. What was handed out stays so until a relay says what it holds.
    pub(crate) fn link_down(&mut self, conn: u64, done: bool, turn: &mut Turn<'_>) {
        let Some(endpoint) = self.conns.get_mut(&conn).and_then(|c| c.endpoint.take()) else { return };
        let Some(live) = self.endpoints.get_mut(&endpoint) else { return };
        let Some(link) = live.link.take_if(|link| link.conn == conn) else { return };
        let Link { incarnation, host, pid, .. } = link;
        live.gone = (!done).then_some(Gone { incarnation, host, pid, at: turn.now });
        self.asks_of_gone(conn, turn);
        if done && let Some(epoch) = self.state.endpoints.get(&endpoint).map(|e| e.epoch) {
            let ended = RelayEnded { at_us: turn.at_us, endpoint, epoch };
            if self.log(ended, turn).is_ok() {
                self.give_back_all(endpoint, turn);
            }
        }
    }

    fn message(&mut self, conn: u64, message: Message, turn: &mut Turn<'_>) {
        let Some(endpoint) = self.conns.get(&conn).and_then(|c| c.endpoint) else { return };
        let Some(link) = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut()) else { return };
        match message {
            Message::Credit(credit) => {
                link.credit.tasks_upto = link.credit.tasks_upto.max(credit.tasks_upto);
                link.credit.bytes_upto = link.credit.bytes_upto.max(credit.bytes_upto);
                self.to_pump.insert(endpoint);
            }
            Message::Outcomes(outcomes) => self.on_outcomes(conn, endpoint, outcomes, turn),
            Message::Holding(page) => self.on_holding(endpoint, page, turn),
            Message::Return(returned) => self.on_return(endpoint, returned, turn),
            Message::Started(started) => self.on_started(endpoint, started),
            Message::Report(report) => {
                if let Some(live) = self.endpoints.get_mut(&endpoint) {
                    live.report = Some(report.report);
                }
            }
            Message::Answer(answer) => self.on_answer(conn, answer, turn),
            Message::Want(want) => self.on_want(conn, endpoint, want, turn),
            Message::Piece(piece) => self.on_piece(conn, endpoint, piece, turn),
            other => {
                let message = format!("a relay does not send {}", other.name());
                self.refuse_link(conn, refuse("unexpected", message, true), turn);
            }
        }
    }

    fn on_started(&mut self, endpoint: EndpointId, started: Started) {
        for at in started.tasks {
            let ended = match self.state.jobs.get(&at.task.job) {
                Some(job) if job.endpoint == endpoint && at.task.index < job.total => {
                    job.ended.contains(at.task.index)
                }
                _ => continue,
            };
            let Some(live) = self.jobs.get_mut(&at.task.job) else { continue };
            let newer = live.running.get(&at.task.index).is_none_or(|run| run.attempt < at.attempt);
            if !ended && newer && live.is_assigned(at.task.index) {
                let run = Run { attempt: at.attempt, node: started.node.clone() };
                live.running.insert(at.task.index, run);
            }
        }
    }

    pub(crate) fn confirm(&mut self, conn: u64, upto: u64, turn: &mut Turn<'_>) {
        if self.acceptor.is_up(conn) {
            self.send(conn, Confirm { upto }.into(), turn);
        }
    }

    /// No task of this job will come any more.
    pub(crate) fn release(&mut self, endpoint: EndpointId, job: JobId, turn: &mut Turn<'_>) {
        let link = self.endpoints.get_mut(&endpoint).and_then(|e| e.link.as_mut());
        if let Some(link) = link
            && link.defined.remove(&job)
        {
            let conn = link.conn;
            self.send(conn, Release { jobs: vec![job] }.into(), turn);
        }
    }

    /// Its name, or its number if it is gone.
    pub(crate) fn endpoint_name(&self, endpoint: EndpointId) -> String {
        self.state.endpoints.get(&endpoint).map_or_else(|| endpoint.to_string(), |e| e.name.clone())
    }
}
