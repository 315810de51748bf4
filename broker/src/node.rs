//! The broker on its reactor: carries requests, frames, records and blobs between the core and the world. One call of the core for each
//! input, its effects carried out in order, one flush of the store at the end of a turn.

use crate::error::BrokerError;
use crate::handle::{BROKER_OWNER, BrokerHandle, Command, Facts, Pages, Signal};
use crate::limits;
use crate::loader::Loader;
use crate::storage::{Storage, StorageEvent};
use bytes::Bytes;
use pf_broker_core::{Broker, Caller, Config, Effect, Input, PutError, Refusal, Reply, Request, StreamBatch};
use pf_protocol::ids::OwnerId;
use pf_store::Options;
use pf_transport::{AllowList, CloseReason, Conn, Node, Outbox, Peer, PublicKey, Waker, now_us};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Folder of the log, in the durable place.
    pub log_dir: PathBuf,
    /// Sizes and times of the store.
    pub store: Options,
    /// Intervals of the links to relays.
    pub timing: pf_link::Timing,
    /// Name of the user who runs the broker.
    pub owner_name: String,
    /// Name of this host, for people.
    pub host: String,
    /// Endpoints of relays in this very process: made known before those relays say their first word.
    pub local_endpoints: Vec<String>,
}

impl BrokerConfig {
    /// The usual broker on the log in `log_dir`.
    #[must_use]
    pub fn new(log_dir: PathBuf, owner_name: &str, host: &str) -> BrokerConfig {
        BrokerConfig {
            log_dir,
            store: Options::default(),
            timing: pf_link::Timing::default(),
            owner_name: owner_name.into(),
            host: host.into(),
            local_endpoints: Vec::new(),
        }
    }
}

/// What other threads leave for the node, beside the queue of commands.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    waker: OnceLock<Waker>,
    events: Mutex<Vec<Outside>>,
    failure: OnceLock<String>,
}

/// Something that another thread of this process has done for the node.
#[derive(Debug)]
pub(crate) enum Outside {
    Storage(StorageEvent),
    Loaded { token: u64, result: Result<Vec<Bytes>, String> },
}

impl Inbox {
    pub fn wake(&self) {
        // Before the reactor runs nobody sleeps: `on_start` looks into everything.
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    pub fn put(&self, event: Outside) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        self.wake();
    }

    fn take(&self) -> Vec<Outside> {
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }
}

/// The broker as a node of a reactor.
pub struct BrokerNode {
    core: Broker,
    storage: Storage,
    loader: Loader,
    inbox: Arc<Inbox>,
    commands: mpsc::Receiver<Command>,
    signals: mpsc::UnboundedReceiver<Signal>,
    replies: BTreeMap<u64, oneshot::Sender<Result<Reply, Refusal>>>,
    streams: BTreeMap<u64, mpsc::UnboundedSender<StreamBatch>>,
    next_ticket: u64,
    effects: Vec<Effect>,
    allow: AllowList,
    allowed: BTreeSet<[u8; 32]>,
    /// What the core was told of the store's state last.
    refusing: Option<PutError>,
    stopping: bool,
    local_endpoints: Vec<String>,
}

impl std::fmt::Debug for BrokerNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerNode").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

impl BrokerNode {
    /// Takes the log, replays it, and makes a broker ready to be added to a reactor, with the handle that reaches it.
    ///
    /// # Errors
    /// When another broker holds the log, or it cannot be read.
    pub fn open(config: &BrokerConfig) -> Result<(BrokerNode, BrokerHandle), BrokerError> {
        let inbox = Arc::new(Inbox::default());
        let mut seed = [0u8; 8];
        getrandom::fill(&mut seed).map_err(|source| BrokerError::System {
            action: "get random numbers",
            source: source.to_string().into(),
        })?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let core_config = Config {
            seed: u64::from_le_bytes(seed),
            timing: config.timing,
            owner_name: config.owner_name.clone(),
            now: now_us(),
            wall_us: since_epoch.as_micros() as u64,
        };
        let (storage, core, opened) = Storage::open(config, core_config, &inbox)?;
        let (commands_in, commands) = mpsc::channel(limits::REQUESTS_WAITING_MAX);
        let (signals_in, signals) = mpsc::unbounded_channel();
        let loader = Loader::start(storage.reader(), inbox.clone())?;
        let handle = BrokerHandle {
            commands: commands_in,
            signals: signals_in,
            inbox: inbox.clone(),
            blobs: storage.reader(),
            facts: Arc::new(Facts {
                log_id: opened.log_id,
                epoch: u32::try_from(opened.epoch).unwrap_or(u32::MAX),
                host: config.host.clone(),
                started_ms: since_epoch.as_millis() as u64,
            }),
            subscriptions: Arc::new(AtomicU64::new(1)),
            shutdown: Arc::new(watch::channel(false).0),
        };
        let mut node = BrokerNode {
            core,
            storage,
            loader,
            inbox,
            commands,
            signals,
            replies: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_ticket: 1,
            effects: Vec::new(),
            allow: AllowList::new(),
            allowed: BTreeSet::new(),
            refusing: None,
            stopping: false,
            local_endpoints: config.local_endpoints.clone(),
        };
        node.sync_allowed();
        Ok((node, handle))
    }

    /// Says of one of [`BrokerConfig::local_endpoints`] that it has no relay, and why: for those who ask.
    pub fn cannot_serve(&mut self, endpoint: &str, why: String) {
        self.core.cannot_serve(endpoint, why);
    }

    /// Keys of the relays that may connect, kept up to date by the node: for the listener of relays.
    #[must_use]
    pub fn allow_list(&self) -> AllowList {
        self.allow.clone()
    }

    fn sync_allowed(&mut self) {
        let wanted: BTreeSet<[u8; 32]> = self.core.relay_keys().into_iter().collect();
        if wanted == self.allowed {
            return;
        }
        for key in wanted.difference(&self.allowed) {
            self.allow.insert(PublicKey(*key), 0);
        }
        for key in self.allowed.difference(&wanted) {
            self.allow.remove(&PublicKey(*key));
        }
        self.allowed = wanted;
    }

    /// One input, and its effects.
    fn feed(&mut self, now: u64, input: Input, out: &mut Outbox) {
        if self.inbox.failure.get().is_some() {
            return;
        }
        let mut effects = std::mem::take(&mut self.effects);
        self.core.handle(now, input, &mut self.storage, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect, out);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect, out: &mut Outbox) {
        match effect {
            Effect::Append { kind, version, critical, class, bytes } => {
                let record = pf_store::RecordType { kind, version, critical };
                if let Err(error) = self.storage.append(record, class, &bytes) {
                    self.fail(&format!("a record cannot be appended: {error}"), out);
                }
            }
            Effect::Reply { ticket, reply } => {
                // A client that did not wait for its answer is nobody's error.
                let _ = self.replies.remove(&ticket).map(|waiting| waiting.send(reply));
            }
            Effect::Stream { subscription, batch } => {
                let ended = batch.end;
                if let Some(pages) = self.streams.get(&subscription) {
                    let _ = pages.send(batch);
                }
                if ended {
                    self.streams.remove(&subscription);
                }
            }
            Effect::Frame { conn, bytes } => out.send(Conn(conn), bytes),
            Effect::CloseConn { conn } => out.close(Conn(conn)),
            Effect::SetTimer { at } => out.set_timer(at),
            Effect::Load { token, blobs } => self.loader.load(token, blobs),
            Effect::DropJob { job } => self.storage.drop_job(job),
        }
    }

    /// The end without a word: nothing that is not on disk may be acknowledged.
    fn fail(&mut self, reason: &str, out: &mut Outbox) {
        tracing::error!(reason, "the broker gives up; the next start replays what was acknowledged");
        let _ = self.inbox.failure.set(reason.to_owned());
        self.replies.clear();
        self.streams.clear();
        self.commands.close();
        out.stop();
    }

    fn take_outside(&mut self, now: u64, out: &mut Outbox) {
        for event in self.inbox.take() {
            match event {
                Outside::Storage(StorageEvent::Synced(position)) => {
                    self.feed(now, Input::Synced { position }, out)
                }
                Outside::Storage(StorageEvent::Failed(reason)) => self.fail(&reason, out),
                Outside::Storage(StorageEvent::SnapshotEnded) => self.storage.set_snapshot_due(),
                Outside::Storage(StorageEvent::Pressure) => self.tell_pressure(now, out),
                Outside::Loaded { token, result } => self.feed(now, Input::Loaded { token, result }, out),
            }
        }
    }

    /// Tells the core whether the store takes new work, if that has changed.
    fn tell_pressure(&mut self, now: u64, out: &mut Outbox) {
        let refusing = self.storage.refusing();
        if refusing != self.refusing {
            if let Some(why) = &refusing {
                tracing::warn!(%why, "new work is refused");
            }
            self.refusing.clone_from(&refusing);
            self.feed(now, Input::Pressure(refusing), out);
        }
    }

    fn take_commands(&mut self, now: u64, out: &mut Outbox) {
        while let Ok(signal) = self.signals.try_recv() {
            match signal {
                Signal::Pull(subscription) => self.feed(now, Input::Pull { subscription }, out),
                Signal::Unsubscribe(subscription) => {
                    self.streams.remove(&subscription);
                    self.feed(now, Input::Unsubscribe { subscription }, out);
                }
            }
        }
        for _ in 0..limits::REQUESTS_A_TURN {
            match self.commands.try_recv() {
                Ok(command) => self.take_command(now, command, out),
                Err(_) => return,
            }
        }
        // There may be more; let the links have their turn first.
        self.inbox.wake();
    }

    fn take_command(&mut self, now: u64, command: Command, out: &mut Outbox) {
        match command {
            Command::Request { caller, request, reply } => self.ask(now, caller, request, reply, out),
            Command::Subscribe { caller, subscription, of, after, follow, pages } => {
                let Pages { opened, pages } = pages;
                self.streams.insert(subscription, pages);
                let request = Request::Subscribe { subscription, of, after, follow };
                self.ask(now, caller, request, opened, out);
            }
            Command::Identify { token, reply } => {
                let owner = self.core.token_owner(&token);
                let _ = reply.send(owner.map(|owner| Caller { owner, is_broker_owner: false }));
            }
            Command::Stop => self.stop(now, out),
        }
    }

    fn ask(
        &mut self,
        now: u64,
        caller: Caller,
        request: Request,
        reply: oneshot::Sender<Result<Reply, Refusal>>,
        out: &mut Outbox,
    ) {
        self.tell_pressure(now, out);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.replies.insert(ticket, reply);
        let changes_keys = matches!(request, Request::PutEndpoint { .. } | Request::RemoveEndpoint { .. });
        self.feed(now, Input::Request { ticket, caller, request }, out);
        if changes_keys {
            self.sync_allowed();
        }
    }

    /// The end in order: everything that was accepted is synced and answered.
    fn stop(&mut self, now: u64, out: &mut Outbox) {
        self.stopping = true;
        self.commands.close();
        match self.storage.sync() {
            Ok(position) => self.feed(now, Input::Synced { position }, out),
            Err(error) => self.fail(&error.to_string(), out),
        }
        // Frames that the last confirmation caused are given to the sockets before the reactor looks at this.
        out.stop();
    }
}

impl Node for BrokerNode {
    fn on_start(&mut self, now: u64, out: &mut Outbox) {
        let _ = self.inbox.waker.set(out.waker());
        for name in std::mem::take(&mut self.local_endpoints) {
            let (reply, _) = oneshot::channel();
            self.ask(now, BROKER_OWNER, Request::PutEndpoint { name, relay_key: None }, reply, out);
        }
        self.feed(now, Input::Timer, out);
        self.on_wake(now, out);
    }

    fn on_accepted(&mut self, now: u64, conn: Conn, peer: Peer, out: &mut Outbox) {
        self.feed(now, Input::Accepted { conn: conn.0, peer: Some(peer.key.0) }, out);
    }

    /// The broker never dials: this is the relay in the same process.
    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        self.feed(now, Input::Accepted { conn: conn.0, peer: None }, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        self.feed(now, Input::Frame { conn: conn.0, bytes: frame }, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, _reason: CloseReason, out: &mut Outbox) {
        self.feed(now, Input::ConnClosed { conn: conn.0 }, out);
    }

    fn on_wake(&mut self, now: u64, out: &mut Outbox) {
        self.take_outside(now, out);
        self.take_commands(now, out);
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        self.tell_pressure(now, out);
        self.feed(now, Input::Timer, out);
    }

    fn on_turn_end(&mut self, _now: u64, out: &mut Outbox) {
        if self.stopping || self.inbox.failure.get().is_some() {
            return;
        }
        self.storage.flush();
        if let Err(error) = self.storage.snapshot_if_due(&self.core) {
            self.fail(&error.to_string(), out);
        }
    }

    fn on_clock_gap(&mut self, now: u64, _gap_us: u64, out: &mut Outbox) {
        self.feed(now, Input::ClockGap, out);
    }
}

const _: () = assert!(BROKER_OWNER.owner.0 == OwnerId(1).0);
