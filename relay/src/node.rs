//! The relay on its reactor: frames in, frames out, orders to the threads beside. Thin: what is decided is in the core.

use crate::blockdir::{self, Address};
use crate::command;
use crate::error::RelayError;
use crate::files::{private_dir, read};
use crate::key_path;
use crate::limits::REDIAL_MS;
use crate::options::{BrokerLink, RelayOptions};
use crate::work::{Desk, Order, Work, chain, load_roster, port_path};
use bytes::Bytes;
use pf_protocol::report::BlockState;
use pf_protocol::{BlockId, EndpointId, Epoch};
use pf_providers::ProviderConfig;
use pf_relay_core::{Config, Effect, Input, Relay};
use pf_transport::{
    Backoff, CloseReason, Conn, DialSpec, KeyPair, ListenSpec, Node, Outbox, Peer, Ports, PublicKey, now_us,
};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why, for people.
    pub reason: String,
    /// Whether that was asked for.
    pub ok: bool,
}

/// Reaches a relay from other threads.
#[derive(Clone)]
pub struct RelayHandle {
    desk: Arc<Desk>,
    ended: watch::Receiver<Option<Ended>>,
    news: watch::Receiver<News>,
}

/// How the link to a broker elsewhere stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum News {
    /// Nothing was heard yet.
    #[default]
    None,
    /// A connection failed or is over.
    Down(CloseReason),
    /// The broker refuses this relay for now.
    NotYet(String),
    /// The broker gave the endpoint to this relay.
    Serves(Epoch),
}

impl RelayHandle {
    /// Gives back what has not started, ends all blocks, and ends. With `kill`, running tasks are not waited for.
    pub fn stop(&self, kill: bool) {
        self.desk.put(Input::Stop { kill });
    }

    /// Waits for the end of the relay. Without [`RelayHandle::stop`] it ends when its broker refuses it for good.
    pub async fn ended(&mut self) -> Ended {
        match self.ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }

    /// Waits until the link to a broker elsewhere stands otherwise than when this was asked last.
    pub async fn news(&mut self) -> News {
        match self.news.changed().await {
            Ok(()) => self.news.borrow_and_update().clone(),
            Err(_) => std::future::pending().await,
        }
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }
}

fn gone() -> Ended {
    Ended { reason: "the relay's thread is gone".into(), ok: false }
}

impl std::fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayHandle").field("ended", &self.has_ended()).finish_non_exhaustive()
    }
}

/// One address of the broker.
struct Line {
    spec: DialSpec,
    conn: Option<Conn>,
    backoff: Backoff,
    dial_at: u64,
}

/// See the module.
pub struct RelayNode {
    options: Arc<RelayOptions>,
    core: Relay,
    desk: Arc<Desk>,
    work: Work,
    keys: KeyPair,
    lines: Vec<Line>,
    address: Address,
    effects: Vec<Effect>,
    timer_at: u64,
    ended: watch::Sender<Option<Ended>>,
    news: watch::Sender<News>,
}

impl std::fmt::Debug for RelayNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayNode").field("endpoint", &self.options.endpoint).finish_non_exhaustive()
    }
}

impl RelayNode {
    /// Reads what an earlier relay left and makes a node for a reactor, with the handle that reaches it.
    ///
    /// # Errors
    /// When folders, keys or roster cannot be used, or the provider is not known.
    pub fn open(mut options: RelayOptions) -> Result<(RelayNode, RelayHandle), RelayError> {
        private_dir(&options.state_dir)?;
        private_dir(&options.blocks_dir)?;
        let provider = pf_providers::provider(&ProviderConfig {
            name: options.provider.clone(),
            dialect: options.dialect.clone().or_else(|| command::dialect(&options.provider).map(Into::into)),
            program: options.program.to_string_lossy().into_owned(),
            user: options.user.clone(),
            ends_with: options.blocks_end_with,
        })?;
        options.scaling.unclear_ms = provider.submit_shows_within_ms();
        options.scaling.poll_ms = options.poll_ms.unwrap_or(provider.poll_ms());
        let keys = KeyPair::load_or_generate(&key_path(&options.state_dir))?;
        let roster = load_roster(&options)?;
        let desk = Arc::new(Desk::default());
        for record in roster.blocks.iter().filter(|b| !matches!(b.state, BlockState::Ended(_))) {
            if let Some(key) = blockdir::key(&options, record.block)? {
                desk.let_in(record.block, key);
            }
        }
        let lines = lines(&options, &keys)?;
        let core = Relay::new(config(&options)?, roster);
        let options = Arc::new(options);
        let work = Work::start(&options, provider, &desk)?;
        let (sender, ended) = watch::channel(None);
        let (teller, news) = watch::channel(News::None);
        let address = Address {
            epoch: Epoch(0),
            endpoint: EndpointId(0),
            relays: Vec::new(),
            relay_key: keys.public.to_z85(),
        };
        let handle = RelayHandle { desk: desk.clone(), ended, news };
        let node = RelayNode {
            options,
            core,
            desk,
            work,
            keys,
            lines,
            address,
            effects: Vec::new(),
            timer_at: u64::MAX,
            ended: sender,
            news: teller,
        };
        Ok((node, handle))
    }

    fn input(&mut self, now: u64, input: Input, out: &mut Outbox) {
        self.core.handle(now, input, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            self.act(effect, out);
        }
    }

    fn act(&mut self, effect: Effect, out: &mut Outbox) {
        match effect {
            Effect::Frame { conn, bytes } => out.send(Conn(conn), bytes),
            Effect::CloseConn { conn } => {
                out.close(Conn(conn));
                self.line_closed(Conn(conn), now_us());
            }
            Effect::SetTimer { at } => {
                self.timer_at = at;
                self.arm(out);
            }
            Effect::SaveRoster { roster } => self.work.order(Order::SaveRoster { roster: Box::new(roster) }),
            Effect::RefreshTickets { epoch, endpoint, blocks } => {
                (self.address.epoch, self.address.endpoint) = (epoch, endpoint);
                self.tell(News::Serves(epoch));
                let port = self.address.relays.first().and_then(|a| a.rsplit_once(':')).map(|(_, p)| p);
                let port = port.unwrap_or("0").to_string();
                self.work.order(Order::RefreshTickets { blocks, address: self.address.clone(), port });
            }
            Effect::Submit { record } => {
                self.work.order(Order::Submit { record, address: self.address.clone() });
            }
            Effect::QueryBlocks { blocks } => self.work.order(Order::Query { blocks }),
            Effect::CancelBlock { record, round } => self.work.order(Order::Cancel { record, round }),
            Effect::BlockOver { record } => self.desk.shut_out(record.block),
            Effect::ReadSpools { record } => self.work.order(Order::ReadSpools { record }),
            Effect::TidyBlocks { keep, live, upto } => self.work.order(Order::Tidy { keep, live, upto }),
            Effect::ReadLog { ask, task, from, live } => {
                self.work.order(Order::ReadLog { ask, task, from, live });
            }
            Effect::ReadBlockLog { ask, record } => self.work.order(Order::ReadBlockLog { ask, record }),
            Effect::NotYet { reason } => self.tell(News::NotYet(reason)),
            Effect::PayloadWrite { job, hash, offset, bytes, last } => {
                self.work.order(Order::PayloadWrite { job, hash, offset, bytes, last });
            }
            Effect::PayloadRead { job, hash, offset } => {
                self.work.order(Order::PayloadRead { job, hash, offset });
            }
            Effect::PayloadDrop { job, hash, value } => {
                self.work.order(Order::PayloadDrop { job, hash, value });
            }
            Effect::PayloadsDrop { jobs } => self.work.order(Order::PayloadsDrop { jobs }),
            Effect::PayloadsKeep { jobs } => self.work.order(Order::PayloadsKeep { jobs }),
            Effect::Exit { reason, ok } => self.end(reason, ok, out),
        }
    }

    fn end(&mut self, reason: String, ok: bool, out: &mut Outbox) {
        tracing::info!(reason, ok, "the relay ends");
        // Nobody may be interested.
        let _ = self.ended.send(Some(Ended { reason, ok }));
        self.timer_at = u64::MAX;
        self.lines.clear();
        out.clear_timer();
        if self.options.alone {
            out.stop();
        }
    }

    fn tell(&self, news: News) {
        self.news.send_if_modified(|last| {
            let new = *last != news;
            *last = news;
            new
        });
    }

    fn arm(&self, out: &mut Outbox) {
        let dial = self.lines.iter().filter(|l| l.conn.is_none()).map(|l| l.dial_at).min();
        let at = self.timer_at.min(dial.unwrap_or(u64::MAX));
        if at < u64::MAX {
            out.set_timer(at);
        }
    }

    /// Dials the addresses of the broker that have no connection and are due.
    fn dial(&mut self, now: u64, out: &mut Outbox) {
        for line in self.lines.iter_mut().filter(|l| l.conn.is_none() && l.dial_at <= now) {
            line.conn = Some(out.dial(&line.spec));
        }
    }

    fn line_closed(&mut self, conn: Conn, now: u64) {
        if let Some(line) = self.lines.iter_mut().find(|l| l.conn == Some(conn)) {
            line.conn = None;
            line.dial_at = now + line.backoff.next_wait_us();
        }
    }

    /// Listens for managers: on the port that was used last if it is free.
    fn listen(&mut self, out: &mut Outbox) -> Result<(), RelayError> {
        let text = read(&port_path(&self.options), 16)?.unwrap_or_default();
        let last = String::from_utf8_lossy(&text).trim().parse::<u16>().ok().filter(|p| *p > 0);
        let any = self.options.ports.map_or_else(Ports::any, |(first, last)| Ports { first, last });
        let spec = |ports| ListenSpec {
            hosts: self.options.listen.clone(),
            ports,
            keys: self.keys.clone(),
            allow: self.desk.allow.clone(),
        };
        let again = last.and_then(|port| out.listen(spec(Ports::only(port))).ok());
        self.address.relays = match again {
            Some(addresses) => addresses,
            None => out.listen(spec(any))?,
        };
        Ok(())
    }
}

/// The broker's addresses, if it is elsewhere.
fn lines(options: &RelayOptions, keys: &KeyPair) -> Result<Vec<Line>, RelayError> {
    let BrokerLink::Dial { addresses, server_key } = &options.broker else { return Ok(Vec::new()) };
    let server_key = PublicKey::from_z85(server_key)?;
    let seed = u64::from(std::process::id());
    let line = |address: &String| Line {
        spec: DialSpec { address: address.clone(), server_key, keys: keys.clone() },
        conn: None,
        backoff: Backoff::new(REDIAL_MS.0 * 1_000, REDIAL_MS.1 * 1_000, seed),
        dial_at: 0,
    };
    Ok(addresses.iter().map(line).collect())
}

fn config(options: &RelayOptions) -> Result<Config, RelayError> {
    // The keys' own source of random numbers, so that there is one.
    let random = KeyPair::generate()?.public.0;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&random[..8]);
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    Ok(Config {
        endpoint: options.endpoint.clone(),
        host: options.host.clone(),
        pid: std::process::id(),
        incarnation: u64::from_le_bytes(bytes),
        takeover: options.takeover,
        clock_offset_ms: wall_ms.saturating_sub(now_us() / 1_000),
        blocks_dir: Path::new(&options.blocks_dir).to_string_lossy().into_owned(),
        scaling: options.scaling.clone(),
        ..Config::default()
    })
}

impl Node for RelayNode {
    fn on_start(&mut self, now: u64, out: &mut Outbox) {
        // Set once: `on_start` is called once.
        let _ = self.desk.waker.set(out.waker());
        if let Err(error) = self.listen(out) {
            return self.end(format!("listen for managers: {}", chain(&error)), false, out);
        }
        self.input(now, Input::Start, out);
        self.dial(now, out);
        self.on_wake(now, out);
    }

    fn on_accepted(&mut self, now: u64, conn: Conn, peer: Peer, out: &mut Outbox) {
        let block = BlockId(peer.tag);
        self.input(now, Input::Accepted { conn: conn.0, block }, out);
    }

    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        if let Some(line) = self.lines.iter_mut().find(|l| l.conn == Some(conn)) {
            line.backoff.reset();
        }
        self.input(now, Input::BrokerConnected { conn: conn.0 }, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        self.input(now, Input::Frame { conn: conn.0, bytes: frame }, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        tracing::debug!(%conn, %reason, "a connection is over");
        if self.lines.iter().any(|l| l.conn == Some(conn)) {
            self.tell(News::Down(reason));
        }
        self.line_closed(conn, now);
        self.input(now, Input::ConnClosed { conn: conn.0 }, out);
        self.arm(out);
    }

    fn on_wake(&mut self, now: u64, out: &mut Outbox) {
        for input in self.desk.take() {
            self.input(now, input, out);
        }
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        self.dial(now, out);
        if self.timer_at <= now {
            self.timer_at = u64::MAX;
            self.input(now, Input::Timer, out);
        }
        self.arm(out);
    }

    fn on_turn_end(&mut self, now: u64, out: &mut Outbox) {
        self.input(now, Input::TurnEnd, out);
    }

    fn on_clock_gap(&mut self, now: u64, gap_us: u64, out: &mut Outbox) {
        self.input(now, Input::ClockGap { gap_us }, out);
    }
}
