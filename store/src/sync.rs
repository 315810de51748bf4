//! The sync thread: takes all work that has come, writes payload, then frames, syncs once, and says what is synced.
//! While a sync is in flight new work gathers; the next cycle takes it all. When idle it renews the hold on the folder,
//! looks at the free space and keeps the reserve. Started by `Store::open`.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Position;
use crate::error::StoreError;
use crate::folder::{self, SnapshotId};
use crate::lease::Lease;
use crate::limits::{LIGHT_COMMIT_BYTES, RESERVE_IDLE};
use crate::log::Log;
use crate::payload::PayloadFiles;
use crate::queue::{Item, Shared, Work};
use crate::snapshot;
use crate::space::Space;

/// What the sync thread reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncEvent {
    /// Everything up to this position is durable and may be acknowledged.
    Synced(Position),
    /// The snapshot of this position is durable, and the log before it has been removed.
    SnapshotSynced(Position),
    /// The snapshot could not be written. The log is whole and goes on; try again later.
    SnapshotFailed {
        /// Its position.
        position: Position,
        /// Why.
        reason: String,
    },
    /// Whether only outcomes are accepted has changed.
    Full(bool),
    /// A write or sync failed, or the folder was taken. Nothing will be synced any more: exit without acknowledging.
    Failed {
        /// Why, with causes.
        reason: String,
    },
}

/// Called by the sync thread for each event. Must not block: it is meant to write to an eventfd or a channel.
pub type OnSync = Box<dyn Fn(SyncEvent) + Send>;

pub(crate) struct SyncThread {
    pub dir: PathBuf,
    pub log_id: u64,
    pub renew_every: Duration,
    pub shared: Arc<Shared>,
    pub log: Log,
    pub payload: PayloadFiles,
    pub lease: Lease,
    pub space: Space,
    pub on_sync: OnSync,
    pub renew_at: Instant,
    /// Position of the last frame written.
    pub written: u64,
    pub snapshot_thread: Option<JoinHandle<()>>,
    /// Whether the last commit was small, so that preparing blocks ahead is worth their second write.
    pub light: bool,
    /// When something was last committed.
    pub last_work: Instant,
}

/// Tells the caller when the sync thread panics, which it would otherwise wait for in vain.
struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set_failed("the sync thread panicked".to_string());
        }
    }
}

impl SyncThread {
    pub fn run(mut self) {
        let _watch = Watch(Arc::clone(&self.shared));
        loop {
            match self.cycle() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let reason = error.chain();
                    tracing::error!(dir = %self.dir.display(), reason, "the store has failed");
                    self.shared.set_failed(reason.clone());
                    (self.on_sync)(SyncEvent::Failed { reason });
                    return;
                }
            }
        }
    }

    /// One round: work, or what is due when there is none. False when the store is closed.
    fn cycle(&mut self) -> Result<bool, StoreError> {
        let zeros = self.light && (self.log.wants_zeros() || self.payload.wants_zeros());
        let deadline = if zeros {
            Instant::now()
        } else if self.space.wants_reserve() {
            self.renew_at.min(self.last_work + RESERVE_IDLE)
        } else {
            self.renew_at
        };
        let work = self.shared.take(deadline);
        let idle = work.is_empty();
        let stop = work.stop;
        self.perform(work)?;
        if stop {
            self.finish()?;
            return Ok(false);
        }
        if Instant::now() >= self.renew_at {
            self.renew()?;
            self.space.check()?;
            // Also under a load that never pauses the reserve grows.
            if self.space.wants_reserve() {
                self.space.write_reserve()?;
            }
        } else if idle && zeros {
            self.write_zeros()?;
        } else if idle && self.space.wants_reserve() {
            self.space.write_reserve()?;
        }
        self.tell_full();
        Ok(true)
    }

    /// Prepares blocks for the next commits.
    fn write_zeros(&mut self) -> Result<(), StoreError> {
        if self.log.wants_zeros() {
            return self.log.write_zeros();
        }
        self.payload.write_zeros()
    }

    fn perform(&mut self, work: Work) -> Result<(), StoreError> {
        let waited = work.bytes();
        let framed = work.items.iter().any(|item| matches!(item, Item::Batch(_)));
        for chunk in &work.chunks {
            self.payload.write(chunk, &mut self.space)?;
            self.wrote(chunk.bytes.len() as u64)?;
            self.shared.wrote(chunk.bytes.len());
        }
        // No replayed record can dangle: the first frame carries the blobs that it or a later one may refer to, or, where
        // writing them twice would be too much, they are durable before any frame is written.
        let mut carried = &work.chunks[..];
        if !(framed && waited < LIGHT_COMMIT_BYTES) {
            self.payload.sync()?;
            carried = &[];
        }
        for item in work.items {
            match item {
                Item::Batch(mut batch) => {
                    let waiting = batch.bytes.len();
                    let last = batch.last_seq();
                    let pieces = std::mem::take(&mut carried);
                    let size = self.log.write(&mut batch, pieces, self.shared.synced(), &mut self.space)?;
                    self.written = last;
                    self.wrote(size)?;
                    self.shared.wrote(waiting);
                    self.shared.recycle(batch.bytes);
                }
                Item::Snapshot { position, bytes } => self.begin_snapshot(position, bytes)?,
                Item::SnapshotEnded { position, result } => self.end_snapshot(position, result)?,
            }
        }
        self.acknowledge()?;
        for segment in work.dead {
            self.payload.remove(segment)?;
        }
        self.shared.set_log_bytes(self.log.bytes());
        if waited > 0 {
            self.last_work = Instant::now();
            self.light = waited < LIGHT_COMMIT_BYTES;
        }
        Ok(())
    }

    /// Syncs the log and reports the position, if the hold on the folder is certain.
    fn acknowledge(&mut self) -> Result<(), StoreError> {
        if self.written == self.shared.synced() {
            return Ok(());
        }
        self.log.sync()?;
        if !self.lease.allows_acknowledgement() {
            self.renew()?;
        }
        self.shared.set_synced(self.written);
        (self.on_sync)(SyncEvent::Synced(Position(self.written)));
        Ok(())
    }

    fn renew(&mut self) -> Result<(), StoreError> {
        self.lease.renew(self.shared.synced())?;
        self.renew_at = Instant::now() + self.renew_every;
        Ok(())
    }

    fn wrote(&mut self, bytes: u64) -> Result<(), StoreError> {
        if self.space.wrote(bytes) {
            self.space.check()?;
            self.tell_full();
        }
        Ok(())
    }

    fn tell_full(&mut self) {
        let full = self.space.is_full();
        if full != self.shared.is_full() {
            self.shared.set_full(full);
            (self.on_sync)(SyncEvent::Full(full));
        }
    }

    fn begin_snapshot(&mut self, position: u64, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.acknowledge()?;
        // With the snapshot in its place nobody reads what the log up to here carries.
        self.payload.sync()?;
        self.log.rotate(position + 1, 0, &mut self.space)?;
        let (dir, log_id, shared) = (self.dir.clone(), self.log_id, Arc::clone(&self.shared));
        let id = SnapshotId { epoch: self.lease.epoch(), position };
        let thread = thread::Builder::new().name("store-snapshot".into()).spawn(move || {
            let result = snapshot::write(&dir, log_id, id, &bytes);
            shared.push_item(Item::SnapshotEnded { position, result });
        });
        match thread {
            Ok(thread) => self.snapshot_thread = Some(thread),
            Err(source) => {
                let failed =
                    StoreError::Io { action: "start a thread for", path: id.path(&self.dir), source };
                self.end_snapshot(position, Err(failed))?;
            }
        }
        Ok(())
    }

    fn end_snapshot(&mut self, position: u64, result: Result<(), StoreError>) -> Result<(), StoreError> {
        let event = match result {
            Ok(()) => {
                self.log.trim(position)?;
                for older in folder::list(&self.dir)?.snapshots {
                    if older.position < position {
                        folder::remove(&older.path(&self.dir))?;
                    }
                }
                self.shared.set_log_bytes(self.log.bytes());
                self.space.check()?;
                SyncEvent::SnapshotSynced(Position(position))
            }
            Err(error) => SyncEvent::SnapshotFailed { position: Position(position), reason: error.chain() },
        };
        self.shared.end_snapshot();
        (self.on_sync)(event);
        Ok(())
    }

    /// Ends in an orderly way: everything is synced, and the folder is given back.
    fn finish(&mut self) -> Result<(), StoreError> {
        if let Some(thread) = self.snapshot_thread.take()
            && thread.join().is_ok()
        {
            let work = self.shared.take(Instant::now());
            self.perform(work)?;
        }
        self.log.shorten();
        self.payload.shorten();
        self.lease.release(self.shared.synced())
    }
}
