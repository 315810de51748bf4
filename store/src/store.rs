//! The store as its caller sees it. Called by the thread that runs the broker's core; nothing here waits for the disk
//! but `open`, `sync` and `close`.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pf_protocol::BlobRef;

use crate::Position;
use crate::error::{IoContext, StoreError};
use crate::folder;
use crate::frame::{self, Piece, RECORD_HEADER_BYTES, RecordType};
use crate::lease::Lease;
use crate::limits::{FRAME_BYTES_MAX, RECORD_BYTES_MAX};
use crate::log::{Log, LogSetup, OldSegment};
use crate::options::Options;
use crate::payload::{BlobReader, PayloadFiles, PayloadWriter};
use crate::queue::{Batch, Item, Shared};
use crate::recover::{End, History, ReplayFn};
use crate::redo::{self, Redo};
use crate::space::{self, Space};
use crate::sync::{OnSync, SyncThread};

/// What a record or blob is for: decides whether it may use the last space on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// New work: refused when the disk is nearly full or far behind.
    Ordinary,
    /// Outcomes, and whatever is needed to record them or to free space: accepted from the reserve.
    Outcome,
}

/// What `open` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Random identity of this log, for cursors; made at creation.
    pub log_id: u64,
    /// Epoch of this holder: higher than all before, never used twice.
    pub epoch: u64,
    /// Position of the last record that was replayed; the next one appended has the position behind it.
    pub position: Position,
    /// Bytes of log that were read for it; a reason for a snapshot when large.
    pub log_bytes: u64,
    /// Whether the log is new.
    pub created: bool,
}

/// How the store is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes that wait to be written.
    pub waiting_bytes: usize,
    /// Bytes of log that a recovery would read, beside the snapshot: take a snapshot when they outgrow the state.
    pub log_bytes: u64,
    /// Only outcomes are accepted, for want of space.
    pub full: bool,
}

/// The broker's log and payload, held by this process.
pub struct Store {
    dir: PathBuf,
    options: Options,
    shared: Arc<Shared>,
    payload: PayloadWriter,
    batch: Batch,
    next_seq: u64,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Takes the folder (made if it is not there), replays what it holds to `replay`, seals it, and opens it for
    /// writing. Blocks for the replay, and up to a lease if the folder's last holder is on another host and did not give
    /// it back.
    ///
    /// After the replay the caller says which payload is still used, see [`blob_live`](Self::blob_live).
    ///
    /// # Errors
    /// `Held`, `Damaged`, `Missing`, `UnknownFormat`, `Replay`, `Option`, `Io`.
    pub fn open(
        dir: &Path,
        options: Options,
        replay: &mut ReplayFn<'_>,
        on_sync: OnSync,
    ) -> Result<(Store, Opened), StoreError> {
        options.check()?;
        DirBuilder::new().recursive(true).mode(0o700).create(dir).on("create folder", dir)?;
        let mut lease = Lease::acquire(dir, options.lease)?;
        let prepared = match prepare(dir, &options, replay, &mut lease) {
            Ok(prepared) => prepared,
            Err(error) => {
                // The next one need not wait. If this fails too, it has to; the first error is the one that matters.
                let _ = lease.release(0);
                return Err(error);
            }
        };
        let Prepared { log, space, opened, payloads, named } = prepared;
        let payload = PayloadWriter::new(dir.to_path_buf(), options.payload_segment_bytes, &payloads, named);
        let position = opened.position.0;
        let shared = Arc::new(Shared::default());
        shared.set_synced(position);
        shared.set_full(space.is_full());
        shared.set_log_bytes(log.bytes());
        let worker = SyncThread {
            dir: dir.to_path_buf(),
            log_id: opened.log_id,
            renew_every: options.renew_every,
            shared: Arc::clone(&shared),
            log,
            payload: PayloadFiles::new(payload.shared(), opened.log_id),
            lease,
            space,
            on_sync,
            renew_at: Instant::now() + options.renew_every,
            written: position,
            snapshot_thread: None,
            light: true,
            last_work: Instant::now(),
        };
        let spawned = thread::Builder::new().name("store-sync".into()).spawn(move || worker.run());
        let thread = Some(spawned.on("start the sync thread for", dir)?);
        let batch = Batch::new(position + 1, Vec::new());
        let store =
            Store { dir: dir.to_path_buf(), options, shared, payload, batch, next_seq: position + 1, thread };
        Ok((store, opened))
    }

    /// Whether a piece of new work may come in: ask before deciding to take it.
    ///
    /// # Errors
    /// `Full`, `Busy` (both retryable), `Failed`.
    pub fn admit(&self) -> Result<(), StoreError> {
        self.admit_class(Class::Ordinary)
    }

    fn admit_class(&self, class: Class) -> Result<(), StoreError> {
        if let Some(reason) = self.shared.failed() {
            return Err(StoreError::Failed { reason: reason.to_string() });
        }
        let waiting_bytes = self.waiting_bytes();
        let (full, most) = match class {
            Class::Ordinary => (self.shared.is_full(), self.options.queue_bytes_max),
            Class::Outcome => (false, self.options.queue_bytes_max.saturating_mul(2)),
        };
        if full {
            return Err(StoreError::Full { dir: self.dir.clone() });
        }
        if waiting_bytes > most {
            return Err(StoreError::Busy { dir: self.dir.clone(), waiting_bytes });
        }
        Ok(())
    }

    /// Appends a record to the open batch and returns its position. It is on its way to the disk with the next
    /// [`flush`](Self::flush), and durable when that position is synced. Records of one batch (up to
    /// [`FRAME_BYTES_MAX`] bytes) are recovered all or none.
    ///
    /// # Errors
    /// `Full`, `Busy`, `TooLarge`, `Failed`; then nothing was appended.
    pub fn append(
        &mut self,
        record_type: RecordType,
        class: Class,
        bytes: &[u8],
    ) -> Result<Position, StoreError> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(StoreError::TooLarge { what: "record", len: bytes.len(), max: RECORD_BYTES_MAX });
        }
        self.admit_class(class)?;
        if self.batch.payload().len() + RECORD_HEADER_BYTES + bytes.len() > FRAME_BYTES_MAX {
            self.flush();
        }
        frame::push_record(&mut self.batch.bytes, record_type, bytes);
        self.batch.record_count += 1;
        let position = Position(self.next_seq);
        self.next_seq += 1;
        Ok(position)
    }

    /// Stores payload for `job` and returns where. It is durable before the records of the same or a later flush are, and
    /// readable at once.
    ///
    /// # Errors
    /// `Full`, `Busy`, `TooLarge`, `Failed`; then nothing was put.
    pub fn blob_put(&mut self, job: u64, class: Class, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        self.admit_class(class)?;
        self.payload.put(job, bytes)
    }

    /// A reader of blobs for other threads.
    pub fn blob_reader(&self) -> BlobReader {
        self.payload.reader()
    }

    /// Says that no record needs the blobs of `job` any more. Call it after appending the record that drops the job: a
    /// segment in which no other job has blobs is removed when that record is synced.
    pub fn blob_drop(&mut self, job: u64) {
        self.payload.drop_job(job);
    }

    /// Says after a replay that `job` has blobs in payload segment `segment` ([`BlobRef::segment`]). Once for each pair
    /// is enough.
    pub fn blob_live(&mut self, job: u64, segment: u32) {
        self.payload.live(job, segment);
    }

    /// Ends the calls of [`blob_live`](Self::blob_live): segments that no job was named for are removed. Returns how many.
    pub fn blob_sweep(&mut self) -> usize {
        self.payload.sweep()
    }

    /// Hands everything appended and put to the sync thread. Call it once for each turn of the loop; costs nothing when
    /// there is nothing.
    pub fn flush(&mut self) {
        let chunks = self.payload.take_ready();
        let dead = self.payload.take_dead();
        let batch = (!self.batch.is_empty())
            .then(|| std::mem::replace(&mut self.batch, Batch::new(self.next_seq, Vec::new())));
        if chunks.is_empty() && dead.is_empty() && batch.is_none() {
            return;
        }
        let with_batch = batch.is_some();
        let buffer = self.shared.push(chunks, batch, dead);
        if with_batch {
            self.batch = Batch::new(self.next_seq, buffer);
        }
    }

    /// Position of the last record appended.
    pub fn appended(&self) -> Position {
        Position(self.next_seq - 1)
    }

    /// Position up to which everything is durable and may be acknowledged.
    pub fn synced(&self) -> Position {
        Position(self.shared.synced())
    }

    /// Flushes and waits until everything appended is durable. For start-up and tools; the loop listens to events.
    ///
    /// # Errors
    /// `Failed`.
    pub fn sync(&mut self) -> Result<Position, StoreError> {
        self.flush();
        self.shared.wait_synced(self.appended().0);
        match self.shared.failed() {
            Some(reason) => Err(StoreError::Failed { reason: reason.to_string() }),
            None => Ok(self.appended()),
        }
    }

    /// Stores `bytes`, the caller's whole state after the last record appended: recovery will begin with them. They are
    /// written beside the log while commits go on; then `SnapshotSynced` comes and the log before is removed.
    ///
    /// # Errors
    /// `SnapshotRunning`, `Failed`.
    pub fn snapshot(&mut self, bytes: Vec<u8>) -> Result<Position, StoreError> {
        if let Some(reason) = self.shared.failed() {
            return Err(StoreError::Failed { reason: reason.to_string() });
        }
        if !self.shared.begin_snapshot() {
            return Err(StoreError::SnapshotRunning);
        }
        self.flush();
        let position = self.appended();
        self.shared.push_item(Item::Snapshot { position: position.0, bytes });
        Ok(position)
    }

    /// How the store is doing.
    pub fn pressure(&self) -> Pressure {
        Pressure {
            waiting_bytes: self.waiting_bytes(),
            log_bytes: self.shared.log_bytes(),
            full: self.shared.is_full(),
        }
    }

    fn waiting_bytes(&self) -> usize {
        self.shared.waiting_bytes() + self.batch.payload().len() + self.payload.unflushed_bytes()
    }

    /// Makes everything durable, gives the folder back and ends the sync thread. Dropping the store does the same, but
    /// cannot say how it went.
    ///
    /// # Errors
    /// `Failed`.
    pub fn close(mut self) -> Result<Position, StoreError> {
        self.stop();
        match self.shared.failed() {
            Some(reason) => Err(StoreError::Failed { reason: reason.to_string() }),
            None => Ok(self.synced()),
        }
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.flush();
            self.shared.stop();
            // A panic has been noted by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What `open` makes before the sync thread starts.
struct Prepared {
    log: Log,
    space: Space,
    opened: Opened,
    /// Payload segments on disk.
    payloads: Vec<u32>,
    /// The highest payload segment that the log names.
    named: u32,
}

/// Replays the history and begins the epoch that `lease` holds.
fn prepare(
    dir: &Path,
    options: &Options,
    replay: &mut ReplayFn<'_>,
    lease: &mut Lease,
) -> Result<Prepared, StoreError> {
    let history = History::find(dir)?;
    let mut space = Space::open(dir.to_path_buf(), options.reserve_bytes, options.low_water_bytes)?;
    let mut redo = Redo::new(dir);
    let mut carried = |piece: Piece<'_>| redo.write(piece, &mut space);
    let end = history.as_ref().map(|history| history.replay(dir, replay, &mut carried)).transpose()?;
    let named = redo.finish()?;
    let position = end.map_or(0, |end| end.position);
    let log_id = match &history {
        Some(history) => history.log_id,
        None => random_id(dir)?,
    };
    let old = history.as_ref().map_or(Ok(Vec::new()), |history| seal(dir, history, end))?;
    let setup = LogSetup {
        dir: dir.to_path_buf(),
        block_bytes: options.block_bytes,
        segment_bytes: options.log_segment_bytes,
        log_id,
        epoch: lease.epoch(),
    };
    let log = Log::begin(setup, position + 1, end.map(|end| end.before), old, &mut space)?;
    lease.renew(position)?;
    let payloads = clean(dir, lease.epoch(), history.as_ref(), end)?;
    let opened = Opened {
        log_id,
        epoch: lease.epoch(),
        position: Position(position),
        log_bytes: end.map_or(0, |end| end.log_bytes),
        created: history.is_none(),
    };
    Ok(Prepared { log, space, opened, payloads, named })
}

fn random_id(dir: &Path) -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| std::io::Error::other(error.to_string()))
        .on("make an id for", dir)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Makes the end of the history durable before a header says that it is: a holder that was killed may have left it in
/// the page cache. Returns the segments that the new one continues.
fn seal(dir: &Path, history: &History, end: Option<End>) -> Result<Vec<OldSegment>, StoreError> {
    let mut old = Vec::new();
    for header in &history.chain {
        let bytes = end.filter(|end| end.before.id == header.id).map(|end| end.before.end);
        let path = header.id.path(dir);
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => std::fs::metadata(&path).on("read", &path)?.len(),
        };
        old.push(OldSegment { id: header.id, first_seq: header.first_seq, bytes });
    }
    if let Some(end) = end.filter(|end| !history.proves(*end)) {
        redo::rewrite(&end.before.id.path(dir), end.before.end)?;
    }
    Ok(old)
}

/// Removes what the new epoch's durable first segment has made meaningless. Returns the payload segments.
fn clean(
    dir: &Path,
    epoch: u64,
    history: Option<&History>,
    end: Option<End>,
) -> Result<Vec<u32>, StoreError> {
    if let Some(end) = end {
        let path = end.before.id.path(dir);
        let head = OpenOptions::new().write(true).open(&path).on("open", &path)?;
        space::shorten(&head, &path, end.before.end);
    }
    let listing = folder::list(dir)?;
    for path in &listing.temporary {
        folder::remove(path)?;
    }
    for old in listing.epochs.iter().filter(|old| **old < epoch) {
        folder::remove(&folder::epoch_path(dir, *old))?;
    }
    let chain = history.map_or(&[][..], |history| &history.chain);
    let needed = |id| chain.iter().any(|header| header.id == id);
    for id in listing.segments.iter().filter(|id| id.epoch < epoch && !needed(**id)) {
        folder::remove(&id.path(dir))?;
    }
    let snapshot = history.and_then(|history| history.snapshot);
    for id in listing.snapshots.iter().filter(|id| id.epoch < epoch && Some(**id) != snapshot) {
        folder::remove(&id.path(dir))?;
    }
    Ok(listing.payloads)
}
