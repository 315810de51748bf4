//! From snapshot and records to a broker: the way it starts, always. Replay uses [`State::apply`], as live does.

use crate::broker::{Broker, Config};
use crate::record::{Record, RecordError};
use crate::state::{ApplyError, State};
use pf_protocol::JobId;
use std::collections::BTreeSet;

/// First bytes of a snapshot: name and version of its form.
const SNAPSHOT_MAGIC: &[u8; 4] = b"PFS\x01";

/// What the store says of a record beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// Its position.
    pub position: u64,
    /// Which record.
    pub kind: u16,
    /// Version of its layout.
    pub version: u8,
    /// Whether a reader that does not know it must refuse the log.
    pub critical: bool,
}

/// Why the log cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The snapshot is of another version.
    #[error("snapshot is not one that this version of the broker can read")]
    SnapshotForm,
    /// The snapshot is damaged.
    #[error("snapshot cannot be read")]
    Snapshot {
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },
    /// Records are missing, or come twice.
    #[error("record {found} came where {expected} was expected")]
    Position {
        /// Position of the record.
        found: u64,
        /// Position behind the last one.
        expected: u64,
    },
    /// See the source.
    #[error("record {position} cannot be read")]
    Record {
        /// Its position.
        position: u64,
        /// Why.
        source: RecordError,
    },
    /// See the source.
    #[error("record {position} cannot be applied")]
    Apply {
        /// Its position.
        position: u64,
        /// Why.
        source: ApplyError,
    },
}

/// A broker that is being recovered.
#[derive(Debug, Default)]
pub struct Recovery {
    state: State,
    position: u64,
}

impl Recovery {
    /// From nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins with a snapshot, as [`Broker::snapshot`] made it. Returns its position: records behind it follow.
    ///
    /// # Errors
    /// When it is not one.
    pub fn snapshot(&mut self, bytes: &[u8]) -> Result<u64, RecoverError> {
        let body = bytes.strip_prefix(SNAPSHOT_MAGIC).ok_or(RecoverError::SnapshotForm)?;
        let (position, body) = body.split_first_chunk::<8>().ok_or(RecoverError::SnapshotForm)?;
        self.state = rmp_serde::from_slice(body).map_err(|source| RecoverError::Snapshot { source })?;
        self.state.rebuild_indexes();
        self.position = u64::from_le_bytes(*position);
        Ok(self.position)
    }

    /// Applies the next record behind the snapshot.
    ///
    /// # Errors
    /// When it is unknown and critical, or contradicts what came before.
    pub fn record(&mut self, head: RecordHead, bytes: &[u8]) -> Result<(), RecoverError> {
        let RecordHead { position, kind, version, critical } = head;
        let expected = self.position + 1;
        if position != expected {
            return Err(RecoverError::Position { found: position, expected });
        }
        let record = Record::decode(kind, version, critical, bytes)
            .map_err(|source| RecoverError::Record { position, source })?;
        if let Some(record) = record {
            self.state.apply(&record).map_err(|source| RecoverError::Apply { position, source })?;
        }
        self.position = position;
        Ok(())
    }

    /// The broker, ready to serve. Its first turn ends what was left between two records, so `handle` should be called soon, with a Timer.
    #[must_use]
    pub fn finish(self, config: Config) -> Broker {
        Broker::from_state(config, self.state, self.position)
    }
}

impl Broker {
    /// The state as bytes, with the position of the last record in it; must not replace the log before that position is synced.
    /// Takes about 20 ms for a million ended tasks: for start, stop, and quiet moments.
    ///
    /// # Errors
    /// Only when memory ends.
    pub fn snapshot(&self) -> Result<(u64, Vec<u8>), rmp_serde::encode::Error> {
        let mut bytes = SNAPSHOT_MAGIC.to_vec();
        bytes.extend_from_slice(&self.position.to_le_bytes());
        rmp_serde::encode::write_named(&mut bytes, &self.state)?;
        Ok((self.position, bytes))
    }

    /// Every (job, payload segment) that must be kept: told to the store after a restart.
    #[must_use]
    pub fn live_payloads(&self) -> Vec<(JobId, u32)> {
        let mut out = BTreeSet::new();
        for job in self.state.jobs.values() {
            out.extend(job.pieces.iter().map(|piece| (job.id, piece.blob.segment)));
            let chunks = job.ended.chunks().iter().filter(|chunk| chunk.blob.len > 0);
            out.extend(chunks.map(|chunk| (job.id, chunk.blob.segment)));
            let pieces = job.large.values().flat_map(|large| &large.blobs);
            out.extend(pieces.map(|blob| (job.id, blob.segment)));
        }
        out.into_iter().collect()
    }
}
