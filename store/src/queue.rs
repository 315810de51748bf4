//! What passes between the store's caller and its sync thread: work in one direction, positions in the other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::chunk::Chunk;
use crate::error::StoreError;
use crate::frame::FRAME_HEADER_BYTES;
use crate::limits::FRAME_JOIN_BYTES;

/// Emptied buffers kept for the next batches.
const SPARE_BUFFERS_MAX: usize = 4;
/// A buffer that grew above this is not kept.
const SPARE_BUFFER_BYTES_MAX: usize = 2 * FRAME_JOIN_BYTES;

/// Records that are to be committed together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub first_seq: u64,
    pub record_count: u32,
    /// Room for the frame header, then the payload.
    pub bytes: Vec<u8>,
}

impl Batch {
    pub fn new(first_seq: u64, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.resize(FRAME_HEADER_BYTES, 0);
        Self { first_seq, record_count: 0, bytes }
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[FRAME_HEADER_BYTES..]
    }

    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Position of the last record.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.record_count) - 1
    }
}

/// Work for the log, in order.
#[derive(Debug)]
pub(crate) enum Item {
    Batch(Batch),
    /// Begin a new segment and write the state up to `position` beside it.
    Snapshot {
        position: u64,
        bytes: Vec<u8>,
    },
    /// The snapshot thread is done.
    SnapshotEnded {
        position: u64,
        result: Result<(), StoreError>,
    },
}

/// All work that has come since the last cycle.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub items: VecDeque<Item>,
    pub chunks: Vec<Arc<Chunk>>,
    /// Payload segments to remove when the items are synced.
    pub dead: Vec<u32>,
    pub stop: bool,
}

impl Work {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.chunks.is_empty() && self.dead.is_empty() && !self.stop
    }

    /// Bytes of records and blobs.
    pub fn bytes(&self) -> usize {
        let batch = |item: &Item| if let Item::Batch(batch) = item { batch.bytes.len() } else { 0 };
        self.items.iter().map(batch).sum::<usize>() + chunk_bytes(&self.chunks)
    }
}

#[derive(Debug, Default)]
struct State {
    work: Work,
    spare: Vec<Vec<u8>>,
}

impl State {
    /// Joins a batch to the last one if that still waits and has room. Returns how many bytes that added, and an empty buffer.
    fn push_batch(&mut self, batch: Batch) -> (usize, Vec<u8>) {
        match self.work.items.back_mut() {
            Some(Item::Batch(last)) if last.bytes.len() + batch.bytes.len() <= FRAME_JOIN_BYTES => {
                last.bytes.extend_from_slice(batch.payload());
                last.record_count += batch.record_count;
                (batch.payload().len(), batch.bytes)
            }
            _ => {
                let added = batch.bytes.len();
                self.work.items.push_back(Item::Batch(batch));
                (added, self.spare.pop().unwrap_or_default())
            }
        }
    }
}

fn chunk_bytes(chunks: &[Arc<Chunk>]) -> usize {
    chunks.iter().map(|chunk| chunk.bytes.len()).sum()
}

/// The queue and the words that come back.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    /// Goes with `state`: the synced position has moved, or the store has failed.
    moved: Condvar,
    synced: AtomicU64,
    waiting_bytes: AtomicUsize,
    log_bytes: AtomicU64,
    full: AtomicBool,
    snapshot_running: AtomicBool,
    failed: OnceLock<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what one turn of the caller has made, all of it at once: blobs come with the records that refer to them.
    /// Returns an empty buffer.
    pub fn push(&self, chunks: Vec<Arc<Chunk>>, batch: Option<Batch>, dead: Vec<u32>) -> Vec<u8> {
        let mut state = self.state();
        let mut bytes = chunk_bytes(&chunks);
        state.work.chunks.extend(chunks);
        state.work.dead.extend(dead);
        let mut left = Vec::new();
        if let Some(batch) = batch {
            let added;
            (added, left) = state.push_batch(batch);
            bytes += added;
        }
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.wake.notify_one();
        left
    }

    pub fn push_item(&self, item: Item) {
        self.state().work.items.push_back(item);
        self.wake.notify_one();
    }

    pub fn stop(&self) {
        self.state().work.stop = true;
        self.wake.notify_one();
    }

    /// Takes all work; waits for some until `deadline`.
    pub fn take(&self, deadline: Instant) -> Work {
        let mut state = self.state();
        loop {
            if !state.work.is_empty() {
                return std::mem::take(&mut state.work);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Work::default();
            }
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives a written batch's buffer back.
    pub fn recycle(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= SPARE_BUFFER_BYTES_MAX {
            let mut state = self.state();
            if state.spare.len() < SPARE_BUFFERS_MAX {
                state.spare.push(buffer);
            }
        }
    }

    pub fn wrote(&self, bytes: usize) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub fn set_synced(&self, position: u64) {
        self.synced.store(position, Ordering::Release);
        drop(self.state());
        self.moved.notify_all();
    }

    pub fn failed(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    pub fn set_failed(&self, reason: String) {
        // Only the first failure counts.
        let _ = self.failed.set(reason);
        drop(self.state());
        self.moved.notify_all();
    }

    /// Waits until `position` is synced or the store has failed.
    pub fn wait_synced(&self, position: u64) {
        let mut state = self.state();
        while self.synced() < position && self.failed().is_none() {
            let waited = self.moved.wait_timeout(state, Duration::from_secs(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    pub fn set_log_bytes(&self, bytes: u64) {
        self.log_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Marks a snapshot as begun; false if one is running already.
    pub fn begin_snapshot(&self) -> bool {
        !self.snapshot_running.swap(true, Ordering::AcqRel)
    }

    pub fn end_snapshot(&self) {
        self.snapshot_running.store(false, Ordering::Release);
    }
}
