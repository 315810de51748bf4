//! The store as the node uses it: open and replay, blobs for the core, records, pressure, snapshots.

use crate::error::BrokerError;
use crate::limits;
use crate::node::{BrokerConfig, Inbox, Outside};
use pf_broker_core::{Blobs, Broker, Class, Config, PutError, RecordHead, Recovery};
use pf_protocol::{BlobRef, JobId};
use pf_store::{BlobReader, Opened, RecordType, Replay, Store, StoreError, SyncEvent};
use std::sync::Arc;

/// What the sync thread reports, as far as the node must know.
#[derive(Debug)]
pub(crate) enum StorageEvent {
    /// On disk up to here.
    Synced(u64),
    /// Whether new work is taken may have changed.
    Pressure,
    /// A snapshot is written, or given up: the log is measured anew.
    SnapshotEnded,
    /// Nothing will be synced any more.
    Failed(String),
}

pub(crate) struct Storage {
    store: Store,
    /// Bytes of the newest snapshot: the next one is due when the log has outgrown it.
    snapshot_bytes: u64,
    snapshot_due_at: u64,
}

impl Storage {
    pub fn open(
        config: &BrokerConfig,
        core_config: Config,
        inbox: &Arc<Inbox>,
    ) -> Result<(Storage, Broker, Opened), BrokerError> {
        let mut recovery = Recovery::new();
        let mut snapshot_bytes = 0;
        let mut replay = |replayed: Replay<'_>| -> Result<(), pf_store::ReplayError> {
            match replayed {
                Replay::Snapshot { len, reader, .. } => {
                    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
                    reader.read_to_end(&mut bytes)?;
                    snapshot_bytes = len;
                    recovery.snapshot(&bytes)?;
                }
                Replay::Record(record) => {
                    let RecordType { kind, version, critical } = record.record_type;
                    let head = RecordHead { position: record.position.0, kind, version, critical };
                    recovery.record(head, record.bytes)?;
                }
            }
            Ok(())
        };
        let (mut store, opened) =
            Store::open(&config.log_dir, config.store.clone(), &mut replay, on_sync(inbox))?;
        let core = recovery.finish(core_config);
        for (job, segment) in core.live_payloads() {
            store.blob_live(job.0, segment);
        }
        let removed = store.blob_sweep();
        tracing::info!(position = opened.position.0, epoch = opened.epoch, removed, "log replayed");
        let mut storage = Storage { store, snapshot_bytes, snapshot_due_at: 0 };
        storage.snapshot_due_at =
            limits::SNAPSHOT_LOG_BYTES_MIN.max(snapshot_bytes * limits::SNAPSHOT_LOG_RATIO);
        Ok((storage, core, opened))
    }

    pub fn reader(&self) -> BlobReader {
        self.store.blob_reader()
    }

    /// Appends what the core has already decided and applied, so it must not fail for want of patience: new work was admitted
    /// before the core saw it, and a record that slipped through may use the reserve or wait for the disk.
    pub fn append(&mut self, record: RecordType, class: Class, bytes: &[u8]) -> Result<(), StoreError> {
        let class = store_class(class);
        match self.store.append(record, class, bytes) {
            Err(StoreError::Full { .. } | StoreError::Busy { .. }) => {}
            other => return other.map(drop),
        }
        match self.store.append(record, pf_store::Class::Outcome, bytes) {
            Err(StoreError::Busy { .. }) => {
                self.store.sync()?;
                self.store.append(record, pf_store::Class::Outcome, bytes).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Why new work is refused now.
    pub fn refusing(&self) -> Option<PutError> {
        match self.store.admit() {
            Ok(()) => None,
            // Its figure would change with every call.
            Err(StoreError::Busy { .. }) => Some(PutError::Busy("the disk is behind".into())),
            Err(error) => Some(put_error(&error)),
        }
    }

    pub fn drop_job(&mut self, job: JobId) {
        self.store.blob_drop(job.0);
    }

    pub fn flush(&mut self) {
        self.store.flush();
    }

    /// Everything on disk, at the end.
    pub fn sync(&mut self) -> Result<u64, StoreError> {
        self.store.sync().map(|position| position.0)
    }

    /// Begins a snapshot when the log that a restart would read has outgrown the last one.
    pub fn snapshot_if_due(&mut self, core: &Broker) -> Result<(), StoreError> {
        if self.store.pressure().log_bytes < self.snapshot_due_at {
            return Ok(());
        }
        let unwritable =
            |error| StoreError::Failed { reason: format!("the state cannot be written: {error}") };
        let (position, bytes) = core.snapshot().map_err(unwritable)?;
        if position != self.store.appended().0 {
            let reason = format!("the core counts {position} records, the log {}", self.store.appended().0);
            return Err(StoreError::Failed { reason });
        }
        self.snapshot_bytes = bytes.len() as u64;
        // Measured anew when it is written.
        self.snapshot_due_at = u64::MAX;
        match self.store.snapshot(bytes) {
            Ok(_) | Err(StoreError::SnapshotRunning) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// From now on the next snapshot is due when the log behind the last one has outgrown it.
    pub fn set_snapshot_due(&mut self) {
        let after = limits::SNAPSHOT_LOG_BYTES_MIN.max(self.snapshot_bytes * limits::SNAPSHOT_LOG_RATIO);
        self.snapshot_due_at = self.store.pressure().log_bytes + after;
    }
}

impl Blobs for Storage {
    fn put(&mut self, job: JobId, class: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
        self.store.blob_put(job.0, store_class(class), bytes).map_err(|error| put_error(&error))
    }

    fn keep(&mut self, job: JobId, blob: BlobRef) {
        self.store.blob_live(job.0, blob.segment);
    }
}

fn put_error(error: &StoreError) -> PutError {
    match error {
        StoreError::Full { .. } => PutError::Full(error.to_string()),
        // A store that has failed says so by itself; this request is simply not taken.
        _ => PutError::Busy(error.to_string()),
    }
}

fn store_class(class: Class) -> pf_store::Class {
    match class {
        Class::Ordinary => pf_store::Class::Ordinary,
        Class::Outcome => pf_store::Class::Outcome,
    }
}

fn on_sync(inbox: &Arc<Inbox>) -> pf_store::OnSync {
    let inbox = inbox.clone();
    Box::new(move |event| {
        let event = match event {
            SyncEvent::Synced(position) => StorageEvent::Synced(position.0),
            SyncEvent::Full(_) => StorageEvent::Pressure,
            SyncEvent::Failed { reason } => StorageEvent::Failed(reason),
            SyncEvent::SnapshotSynced(position) => {
                tracing::info!(position = position.0, "snapshot written");
                StorageEvent::SnapshotEnded
            }
            SyncEvent::SnapshotFailed { position, reason } => {
                tracing::warn!(position = position.0, reason, "snapshot not written; the log goes on");
                StorageEvent::SnapshotEnded
            }
        };
        inbox.put(Outside::Storage(event));
    })
}
