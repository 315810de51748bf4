//! How other threads reach the core: a bounded queue of commands, answered one by one. Used by the HTTP handlers, and by `pf` when it
//! runs the broker in its own process.

use crate::api_error::ApiError;
use crate::limits;
use crate::node::Inbox;
use pf_broker_core::{Caller, Refusal, Reply, Request, StreamBatch, StreamOf};
use pf_protocol::ids::OwnerId;
use pf_protocol::{BlobRef, ContentHash};
use pf_store::BlobReader;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot, watch};

/// The user who runs the broker: who comes through the Unix socket, or calls from the same process.
pub const BROKER_OWNER: Caller = Caller { owner: OwnerId(1), is_broker_owner: true };

/// What the node is asked. Bounded by [`limits::REQUESTS_WAITING_MAX`].
pub(crate) enum Command {
    Request { caller: Caller, request: Request, reply: oneshot::Sender<Result<Reply, Refusal>> },
    Subscribe { caller: Caller, subscription: u64, of: StreamOf, after: u64, follow: bool, pages: Pages },
    Identify { token: ContentHash, reply: oneshot::Sender<Option<Caller>> },
    Stop,
}

/// Where a subscription's answer and its pages go. Holds at most one page for each pull, so it needs no bound of its own.
pub(crate) struct Pages {
    pub opened: oneshot::Sender<Result<Reply, Refusal>>,
    pub pages: mpsc::UnboundedSender<StreamBatch>,
}

/// What must never wait: at most one pull and one end for each open subscription, of which there are fewer than connections.
pub(crate) enum Signal {
    Pull(u64),
    Unsubscribe(u64),
}

/// What is fixed while a broker runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub log_id: u64,
    pub epoch: u32,
    pub host: String,
    pub started_ms: u64,
}

/// A way to the broker's core from any thread. Cheap to clone.
#[derive(Clone)]
pub struct BrokerHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) signals: mpsc::UnboundedSender<Signal>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) blobs: BlobReader,
    pub(crate) facts: Arc<Facts>,
    pub(crate) subscriptions: Arc<AtomicU64>,
    pub(crate) shutdown: Arc<watch::Sender<bool>>,
}

impl std::fmt::Debug for BrokerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerHandle").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl BrokerHandle {
    /// Asks the core. What the answer says is on disk.
    ///
    /// # Errors
    /// What the core refuses; 503 when the broker ends.
    pub async fn request(&self, caller: Caller, request: Request) -> Result<Reply, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Request { caller, request, reply }).await?;
        Ok(answer.await.map_err(|_| ApiError::stopping())??)
    }

    /// The same for threads without a runtime. Must not be called from an async task.
    ///
    /// # Errors
    /// As [`BrokerHandle::request`].
    pub fn request_blocking(&self, caller: Caller, request: Request) -> Result<Reply, ApiError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Request { caller, request, reply };
        self.commands.blocking_send(command).map_err(|_| ApiError::stopping())?;
        self.inbox.wake();
        Ok(answer.blocking_recv().map_err(|_| ApiError::stopping())??)
    }

    /// Whose token this is.
    pub(crate) async fn identify(&self, token: ContentHash) -> Result<Option<Caller>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Identify { token, reply }).await?;
        answer.await.map_err(|_| ApiError::stopping())
    }

    /// Opens a stream of outcomes.
    pub(crate) async fn subscribe(
        &self,
        caller: Caller,
        of: StreamOf,
        after: u64,
        follow: bool,
    ) -> Result<Subscription, ApiError> {
        let subscription = self.subscriptions.fetch_add(1, Ordering::Relaxed);
        let (opened, answer) = oneshot::channel();
        let (pages, received) = mpsc::unbounded_channel();
        // From here on the subscription is ended by the drop of `open`, whatever happens.
        let open = Subscription { id: subscription, handle: self.clone(), pages: received };
        let pages = Pages { opened, pages };
        self.send(Command::Subscribe { caller, subscription, of, after, follow, pages }).await?;
        answer.await.map_err(|_| ApiError::stopping())??;
        Ok(open)
    }

    /// Asks the process to end: what [`BrokerHandle::shutdown_asked`] waits for. Nothing ends by this alone.
    pub fn ask_shutdown(&self) {
        self.shutdown.send_replace(true);
    }

    /// Becomes true when somebody has asked the broker to end (`POST /v1/shutdown`).
    #[must_use]
    pub fn shutdown_asked(&self) -> watch::Receiver<bool> {
        self.shutdown.subscribe()
    }

    /// Ends the node in order: what was accepted is synced and answered, then its reactor stops. Returns at once.
    pub fn stop(&self) {
        // A full queue is emptied by the node within a turn; a closed one means that it has ended already.
        let mut command = Command::Stop;
        while let Err(mpsc::error::TrySendError::Full(back)) = self.commands.try_send(command) {
            command = back;
            self.inbox.wake();
            std::thread::yield_now();
        }
        self.inbox.wake();
    }

    /// Why the broker gave up (the disk failed, the folder was taken), after its reactor has stopped. The process must exit with an error:
    /// what was not synced was not acknowledged, and the next start replays what was.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.inbox.failure()
    }

    /// Id of the broker's log, for cursors.
    #[must_use]
    pub fn log_id(&self) -> u64 {
        self.facts.log_id
    }

    /// Reads blobs on a thread that may wait for a disk.
    pub(crate) async fn read_blobs(&self, blobs: Vec<BlobRef>) -> Result<Vec<Vec<u8>>, ApiError> {
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        let reader = self.blobs.clone();
        let read = move || blobs.into_iter().map(|blob| read_blob(&reader, blob)).collect();
        tokio::task::spawn_blocking(read).await.map_err(|_| ApiError::stopping())?
    }

    async fn send(&self, command: Command) -> Result<(), ApiError> {
        self.commands.send(command).await.map_err(|_| ApiError::stopping())?;
        self.inbox.wake();
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        // A node that has ended has no subscriptions either.
        let _ = self.signals.send(signal);
        self.inbox.wake();
    }
}

/// Reads a blob; an empty one is nowhere.
pub(crate) fn read_blob(reader: &BlobReader, blob: BlobRef) -> Result<Vec<u8>, ApiError> {
    if blob.len == 0 {
        return Ok(Vec::new());
    }
    reader.read(blob).map_err(|error| {
        tracing::error!(%error, ?blob, "a payload cannot be read");
        ApiError::new(hyper::StatusCode::INTERNAL_SERVER_ERROR, "unreadable", error.to_string())
            .hint("the broker's log may be damaged: run `pf broker check`")
    })
}

/// An open stream of outcomes; ends when it is dropped.
pub(crate) struct Subscription {
    id: u64,
    handle: BrokerHandle,
    pages: mpsc::UnboundedReceiver<StreamBatch>,
}

impl Subscription {
    /// Asks for one more page.
    pub fn pull(&self) {
        self.handle.signal(Signal::Pull(self.id));
    }

    /// The page, if it lies ready.
    pub fn ready(&mut self) -> Option<StreamBatch> {
        self.pages.try_recv().ok()
    }

    /// The page that was asked for; None when the broker ends.
    pub async fn page(&mut self) -> Option<StreamBatch> {
        self.pages.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.handle.signal(Signal::Unsubscribe(self.id));
    }
}

const _: () = assert!(limits::CONNECTIONS_MAX <= limits::REQUESTS_WAITING_MAX);
