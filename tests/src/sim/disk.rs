//! The broker's disk: records and payloads, of which a crash loses what was not synced.

use bytes::Bytes;
use pf_broker_core::{Blobs, Class, PutError, RecordHead};
use pf_protocol::{BlobRef, JobId};

/// See the module.
#[derive(Debug, Default)]
pub struct Disk {
    records: Vec<(RecordHead, Bytes)>,
    synced: usize,
    payload: Vec<u8>,
    /// Length of the payload when each record was appended: what a synced record points at is synced.
    payload_at: Vec<usize>,
}

impl Disk {
    /// Appends a record.
    pub fn append(&mut self, kind: u16, version: u8, critical: bool, bytes: Bytes) {
        let position = self.records.len() as u64 + 1;
        self.records.push((RecordHead { position, kind, version, critical }, bytes));
        self.payload_at.push(self.payload.len());
    }

    /// Records appended so far.
    #[must_use]
    pub fn appended(&self) -> usize {
        self.records.len()
    }

    /// Records on disk.
    #[must_use]
    pub fn synced(&self) -> usize {
        self.synced
    }

    /// All records up to `position` are on disk now.
    pub fn sync(&mut self, position: usize) {
        self.synced = self.synced.max(position);
    }

    /// Power fails: what was not synced may be there or not; here, `kept` more records are.
    pub fn crash(&mut self, kept: usize) {
        let keep = (self.synced + kept).min(self.records.len());
        self.records.truncate(keep);
        self.payload_at.truncate(keep);
        self.payload.truncate(self.payload_at.last().copied().unwrap_or(0));
        self.synced = keep;
    }

    /// The records, for recovery.
    #[must_use]
    pub fn records(&self) -> &[(RecordHead, Bytes)] {
        &self.records
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is not there: a record that was synced points at what was not.
    pub fn read(&self, blob: BlobRef) -> Result<Bytes, String> {
        let (from, len) = (blob.offset as usize, blob.len as usize);
        let bytes =
            self.payload.get(from..from + len).ok_or_else(|| format!("{blob:?} is beyond the disk"))?;
        Ok(Bytes::copy_from_slice(bytes))
    }
}

impl Blobs for Disk {
    fn put(&mut self, _job: JobId, _class: Class, bytes: &[u8]) -> Result<BlobRef, PutError> {
        let offset = self.payload.len() as u32;
        self.payload.extend_from_slice(bytes);
        Ok(BlobRef { segment: 1, offset, len: bytes.len() as u32 })
    }

    fn keep(&mut self, _job: JobId, _blob: BlobRef) {}
}
