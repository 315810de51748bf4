//! A store in memory with the same verbs, for simulations: what was appended is durable only once `sync` was called, and
//! `crash` loses the rest. Deterministic; no thread, no clock, no file.

use std::collections::{BTreeMap, BTreeSet};

use pf_protocol::BlobRef;

use crate::Position;
use crate::error::{ReplayError, StoreError};
use crate::frame::{Record, RecordType};
use crate::recover::Replay;
use crate::store::Class;

#[derive(Clone, Debug)]
struct Entry {
    record_type: RecordType,
    bytes: Vec<u8>,
}

/// Blobs of the simulation all lie in segments of one blob each.
#[derive(Clone, Debug)]
struct Blob {
    job: u64,
    bytes: Vec<u8>,
    synced: bool,
}

/// The simulated store.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    epoch: u64,
    snapshot: Option<(u64, Vec<u8>)>,
    /// Position of the record before the first of `records`.
    base: u64,
    records: Vec<Entry>,
    /// How much may be synced by the next `sync`: what was flushed.
    flushed: u64,
    synced: u64,
    blobs: BTreeMap<u32, Blob>,
    next_segment: u32,
    dropped: BTreeSet<u64>,
    full: bool,
}

impl MemoryStore {
    /// An empty store. The first `open` gives epoch 1.
    pub fn new() -> Self {
        Self { next_segment: 1, ..Self::default() }
    }

    /// Begins a new epoch and replays what is durable; returns the epoch.
    ///
    /// # Errors
    /// The error of `replay`.
    pub fn open(
        &mut self,
        replay: &mut dyn FnMut(Replay<'_>) -> Result<(), ReplayError>,
    ) -> Result<u64, ReplayError> {
        self.epoch += 1;
        if let Some((position, bytes)) = &self.snapshot {
            let mut reader = &bytes[..];
            replay(Replay::Snapshot {
                position: Position(*position),
                len: bytes.len() as u64,
                reader: &mut reader,
            })?;
        }
        for (index, entry) in self.records.iter().enumerate() {
            let position = Position(self.base + 1 + index as u64);
            replay(Replay::Record(Record { position, record_type: entry.record_type, bytes: &entry.bytes }))?;
        }
        Ok(self.epoch)
    }

    /// As [`Store::append`](crate::Store::append).
    ///
    /// # Errors
    /// `Full` for ordinary records while [`set_full`](Self::set_full) says so.
    pub fn append(
        &mut self,
        record_type: RecordType,
        class: Class,
        bytes: &[u8],
    ) -> Result<Position, StoreError> {
        self.admit(class)?;
        self.records.push(Entry { record_type, bytes: bytes.to_vec() });
        Ok(self.appended())
    }

    /// As [`Store::blob_put`](crate::Store::blob_put).
    ///
    /// # Errors
    /// `Full`, as `append`.
    pub fn blob_put(&mut self, job: u64, class: Class, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        self.admit(class)?;
        let segment = self.next_segment;
        self.next_segment += 1;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.blobs.insert(segment, Blob { job, bytes: bytes.to_vec(), synced: false });
        Ok(BlobRef { segment, offset: 0, len })
    }

    fn admit(&self, class: Class) -> Result<(), StoreError> {
        match class {
            Class::Ordinary if self.full => Err(StoreError::Full { dir: "memory".into() }),
            _ => Ok(()),
        }
    }

    /// The bytes of a blob or of a part of one; `None` when it is not there.
    pub fn blob_read(&self, blob: BlobRef) -> Option<&[u8]> {
        let start = blob.offset as usize;
        self.blobs.get(&blob.segment)?.bytes.get(start..start.checked_add(blob.len as usize)?)
    }

    /// As [`Store::blob_drop`](crate::Store::blob_drop).
    pub fn blob_drop(&mut self, job: u64) {
        self.dropped.insert(job);
    }

    /// Lets the next `sync` take everything appended so far.
    pub fn flush(&mut self) {
        self.flushed = self.appended().0;
    }

    /// The disk has done its work: everything flushed is durable. Returns the synced position, which the simulation gives
    /// to the broker as an input.
    pub fn sync(&mut self) -> Position {
        self.synced = self.flushed;
        for blob in self.blobs.values_mut() {
            blob.synced = true;
        }
        if self.synced == self.appended().0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.blobs.retain(|_, blob| !dropped.contains(&blob.job));
        }
        Position(self.synced)
    }

    /// Power is cut: what was not synced is gone. Open it again.
    pub fn crash(&mut self) {
        let keep = usize::try_from(self.synced.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.records.truncate(keep);
        self.flushed = self.synced;
        self.blobs.retain(|_, blob| blob.synced);
        self.dropped.clear();
    }

    /// Replaces the synced log by the caller's state at the synced position, at once.
    ///
    /// # Errors
    /// `SnapshotRunning` when something appended is not synced yet: the state would be ahead of the log.
    pub fn snapshot(&mut self, bytes: Vec<u8>) -> Result<Position, StoreError> {
        if self.synced != self.appended().0 {
            return Err(StoreError::SnapshotRunning);
        }
        self.base = self.synced;
        self.records.clear();
        self.snapshot = Some((self.base, bytes));
        Ok(Position(self.base))
    }

    /// Makes the simulated disk full for ordinary work, or not.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// Position of the last record appended.
    pub fn appended(&self) -> Position {
        Position(self.base + self.records.len() as u64)
    }

    /// Position up to which everything is durable.
    pub fn synced(&self) -> Position {
        Position(self.synced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: RecordType = RecordType { kind: 1, version: 1, critical: true };

    fn replayed(store: &mut MemoryStore) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let mut take = |replay: Replay<'_>| -> Result<(), ReplayError> {
            match replay {
                Replay::Snapshot { position, reader, .. } => {
                    let mut bytes = Vec::new();
                    reader.read_to_end(&mut bytes)?;
                    out.push((position.0, bytes));
                }
                Replay::Record(record) => out.push((record.position.0, record.bytes.to_vec())),
            }
            Ok(())
        };
        store.open(&mut take).unwrap();
        out
    }

    #[test]
    fn a_crash_loses_what_was_not_synced_and_nothing_else() {
        let mut store = MemoryStore::new();
        store.append(KIND, Class::Ordinary, b"a").unwrap();
        let kept = store.blob_put(1, Class::Ordinary, b"payload").unwrap();
        store.flush();
        store.append(KIND, Class::Ordinary, b"b").unwrap();
        assert_eq!(store.sync(), Position(1));
        let lost = store.blob_put(1, Class::Ordinary, b"more").unwrap();
        store.flush();
        store.crash();
        assert_eq!(replayed(&mut store), [(1, b"a".to_vec())]);
        assert_eq!(store.blob_read(kept), Some(&b"payload"[..]));
        assert_eq!(store.blob_read(lost), None);

        store.snapshot(b"state".to_vec()).unwrap();
        assert_eq!(store.append(KIND, Class::Outcome, b"c").unwrap(), Position(2));
        store.blob_drop(1);
        store.flush();
        store.sync();
        assert_eq!(store.blob_read(kept), None);
        assert_eq!(replayed(&mut store), [(1, b"state".to_vec()), (2, b"c".to_vec())]);
    }

    #[test]
    fn a_full_disk_takes_outcomes_only() {
        let mut store = MemoryStore::new();
        store.set_full(true);
        assert!(matches!(store.append(KIND, Class::Ordinary, b"a"), Err(StoreError::Full { .. })));
        store.append(KIND, Class::Outcome, b"a").unwrap();
    }
}
