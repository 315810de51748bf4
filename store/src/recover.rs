//! Finds the history in a folder and replays it: snapshot, then the records behind it. Used by `Store::open` and, for
//! reading only, by the tools.
//!
//! The newest segment with a sound header is the head; each header names the segment before and where that one ends, so
//! the chain back from the head is the log, and segments that are not in it (of a writer that was fenced off) do not
//! count. Within the chain everything up to the next header's `before` was synced: any damage there is refused. In the
//! head itself a bad frame is a torn end, unless something proves that it was synced: a later frame, the owner's last
//! renewal, or a snapshot.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use crate::Position;
use crate::error::{ReplayError, StoreError};
use crate::folder::{self, Listing, SnapshotId};
use crate::frame::{Before, Piece, Pieces, Record, Records, SegmentHeader};
use crate::lease::Lease;
use crate::scan::{self, SegmentScan};
use crate::snapshot;

/// What a caller is given in a replay, in this order: at most one snapshot, then records in ascending position.
pub enum Replay<'a> {
    /// The state up to `position`.
    Snapshot {
        /// The records up to here are in the snapshot and are not replayed.
        position: Position,
        /// Length of the snapshot in bytes.
        len: u64,
        /// The bytes that were given to [`Store::snapshot`](crate::Store::snapshot); checked before.
        reader: &'a mut dyn Read,
    },
    /// One record.
    Record(Record<'a>),
}

/// The caller's replay function. An error ends the replay and comes back as [`StoreError::Replay`].
pub type ReplayFn<'f> = dyn FnMut(Replay<'_>) -> Result<(), ReplayError> + 'f;

/// Is given what the frames carry, each frame's pieces before its records.
pub(crate) type CarryFn<'f> = dyn FnMut(Piece<'_>) -> Result<(), StoreError> + 'f;

/// The carry function of those who only look: what frames carry is in its place, or it is not their business.
pub(crate) fn leave(_: Piece<'_>) -> Result<(), StoreError> {
    Ok(())
}

/// Where a replay goes.
struct Visit<'v, 'f, 'c> {
    /// Records up to here are passed over.
    after: u64,
    records: &'v mut ReplayFn<'f>,
    carried: &'v mut CarryFn<'c>,
}

/// The history that a folder holds.
#[derive(Debug)]
pub(crate) struct History {
    pub log_id: u64,
    pub snapshot: Option<SnapshotId>,
    /// Segments that are needed, oldest first; never empty.
    pub chain: Vec<SegmentHeader>,
    /// Position proven synced by something outside of the head segment.
    proof: u64,
}

/// Where a history ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub position: u64,
    /// Where the head segment ends: what the next one names.
    pub before: Before,
    /// Bytes of log that were replayed.
    pub log_bytes: u64,
}

fn damaged(file: std::path::PathBuf, offset: u64, reason: impl Into<String>) -> StoreError {
    StoreError::Damaged { file, offset, reason: reason.into() }
}

impl History {
    /// Finds the history. `None` when the folder holds no log yet.
    pub fn find(dir: &Path) -> Result<Option<Self>, StoreError> {
        // Beside a living broker the order matters: what was proven before the folder is listed lies in a listed segment.
        let proofs = owners_words(dir)?;
        let listing = folder::list(dir)?;
        let Some(head) = find_head(dir, &listing, &proofs)? else {
            return match listing.snapshots.last() {
                Some(orphan) => Err(damaged(orphan.path(dir), 0, "the log behind this snapshot is missing")),
                None => Ok(None),
            };
        };
        let (chain, gap) = walk_back(dir, head)?;
        let snapshot = choose_snapshot(&listing, &chain);
        let position = snapshot.map_or(0, |snapshot| snapshot.position);
        let chain = needed(chain, position);
        if let Some(oldest) = chain.first()
            && oldest.first_seq > position + 1
        {
            let by = oldest.id.path(dir);
            return Err(gap.unwrap_or_else(|| {
                damaged(
                    by,
                    0,
                    format!("it begins with record {}, those before are missing", oldest.first_seq),
                )
            }));
        }
        let proof = proofs.get(&head.id.epoch).copied().unwrap_or(0).max(position);
        Ok(Some(Self { log_id: head.log_id, snapshot, chain, proof }))
    }

    /// Whether everything up to `end` was proven durable by something outside of the head segment.
    pub fn proves(&self, end: End) -> bool {
        self.proof >= end.position
    }

    /// Replays snapshot and records, and finds the end.
    pub fn replay(
        &self,
        dir: &Path,
        visit: &mut ReplayFn<'_>,
        carried: &mut CarryFn<'_>,
    ) -> Result<End, StoreError> {
        let position = self.snapshot.map_or(0, |snapshot| snapshot.position);
        if let Some(id) = self.snapshot {
            let mut opened = snapshot::open(dir, self.log_id, id)?;
            let given = Replay::Snapshot {
                position: Position(position),
                len: opened.len,
                reader: &mut opened.reader,
            };
            visit(given).map_err(|source| StoreError::Replay {
                file: id.path(dir),
                offset: 0,
                position,
                source,
            })?;
        }
        let mut to = Visit { after: position, records: visit, carried };
        let mut proof = self.proof;
        let mut log_bytes = 0;
        let mut end = None;
        for (index, header) in self.chain.iter().enumerate() {
            let before = self.chain.get(index + 1).and_then(|next| next.before);
            let mut scan = SegmentScan::open(dir, *header)?;
            let stopped = replay_segment(&mut scan, before.map(|before| before.end), &mut to)?;
            proof = proof.max(scan.synced());
            match before {
                Some(before) => {
                    check_seal(&scan, &before, stopped)?;
                    log_bytes += scan.offset();
                }
                None => {
                    find_end(&mut scan, stopped, proof, &mut to)?;
                    end = Some(End {
                        position: scan.next_seq() - 1,
                        before: Before { id: header.id, end: scan.offset(), link: scan.link() },
                        log_bytes: log_bytes + scan.offset(),
                    });
                }
            }
        }
        end.ok_or_else(|| StoreError::Empty { dir: dir.to_path_buf() })
    }
}

/// Replays the frames of a segment up to `end` or to the first that is not sound; returns why it stopped there.
fn replay_segment(
    scan: &mut SegmentScan,
    end: Option<u64>,
    to: &mut Visit<'_, '_, '_>,
) -> Result<Option<&'static str>, StoreError> {
    while end != Some(scan.offset()) {
        let offset = scan.offset();
        let frame = match scan.next_frame()? {
            Ok(frame) => frame,
            Err(reason) => return Ok(Some(reason)),
        };
        for piece in Pieces::new(&frame, scan.payload()) {
            let piece = piece.map_err(|reason| damaged(scan.path().to_path_buf(), offset, reason))?;
            (to.carried)(piece)?;
        }
        for record in Records::new(&frame, scan.payload()) {
            let record = record.map_err(|reason| damaged(scan.path().to_path_buf(), offset, reason))?;
            let position = record.position.0;
            if position > to.after {
                (to.records)(Replay::Record(record)).map_err(|source| StoreError::Replay {
                    file: scan.path().to_path_buf(),
                    offset,
                    position,
                    source,
                })?;
            }
        }
    }
    Ok(None)
}

/// Decides whether the head segment ends where its frames stopped. A frame that is being written by a living broker while
/// a tool reads may look torn and then be proven synced: what reads well at a second look is not damaged.
fn find_end(
    scan: &mut SegmentScan,
    mut stopped: Option<&'static str>,
    proof: u64,
    to: &mut Visit<'_, '_, '_>,
) -> Result<(), StoreError> {
    while proof.max(scan.synced()).max(scan.proof_behind()?) >= scan.next_seq() {
        let at = scan.offset();
        let again = replay_segment(scan, None, to)?;
        if scan.offset() == at {
            let reason = stopped.or(again).unwrap_or("no frame");
            let text = format!("{reason}, yet record {} was synced", scan.next_seq());
            return Err(damaged(scan.path().to_path_buf(), at, text));
        }
        stopped = again;
    }
    Ok(())
}

/// A segment that another one continues was synced up to the seal, so it must read well up to there.
fn check_seal(scan: &SegmentScan, before: &Before, stopped: Option<&'static str>) -> Result<(), StoreError> {
    let reason = match stopped {
        Some(reason) => reason,
        None if scan.link() != before.link => "the next segment continues another history",
        None => return Ok(()),
    };
    Err(damaged(
        scan.path().to_path_buf(),
        scan.offset(),
        format!("{reason}, yet the next segment continues it"),
    ))
}

/// The position that each epoch's owner had synced at its last renewal.
fn owners_words(dir: &Path) -> Result<BTreeMap<u64, u64>, StoreError> {
    let epochs = folder::list(dir)?.epochs;
    epochs.into_iter().map(|epoch| Ok((epoch, Lease::synced_by(dir, epoch)?))).collect()
}

/// The newest segment with a sound header. A newer one without is passed over if it never got as far as a frame.
fn find_head(
    dir: &Path,
    listing: &Listing,
    proofs: &BTreeMap<u64, u64>,
) -> Result<Option<SegmentHeader>, StoreError> {
    for id in listing.segments.iter().rev() {
        if let Some(header) = scan::read_header(dir, *id)? {
            return Ok(Some(header));
        }
        let framed = scan::holds_frames(dir, *id)?;
        // A living broker may have been about to write it.
        if let Some(header) = scan::read_header(dir, *id)? {
            return Ok(Some(header));
        }
        if framed {
            return Err(damaged(id.path(dir), 0, "its header is not sound, yet it holds frames"));
        }
        let alone = listing.segments.iter().all(|other| other.epoch != id.epoch || other == id);
        if alone && proofs.get(&id.epoch).is_some_and(|synced| *synced > 0) {
            return Err(damaged(id.path(dir), 0, "its header is not sound, yet its records were synced"));
        }
    }
    Ok(None)
}

/// The segments back from the head, oldest first, and why there are no more.
fn walk_back(
    dir: &Path,
    head: SegmentHeader,
) -> Result<(Vec<SegmentHeader>, Option<StoreError>), StoreError> {
    let mut chain = vec![head];
    let mut at = head;
    let gap = loop {
        let Some(before) = at.before else { break None };
        let path = before.id.path(dir);
        if !path.exists() {
            break Some(StoreError::Missing { file: path, needed_by: at.id.path(dir) });
        }
        match scan::read_header(dir, before.id)? {
            Some(header) if header.log_id == head.log_id && header.id < at.id => {
                chain.push(header);
                at = header;
            }
            Some(_) => break Some(damaged(path, 0, "it belongs to another log")),
            None => break Some(damaged(path, 0, "its header is not sound")),
        }
    };
    chain.reverse();
    Ok((chain, gap))
}

/// The newest snapshot that lies in this history. One of an earlier epoch that reaches beyond the seal of that epoch was
/// written by a broker that had been fenced off.
fn choose_snapshot(listing: &Listing, chain: &[SegmentHeader]) -> Option<SnapshotId> {
    let sealed = |snapshot: &SnapshotId| {
        chain.iter().all(|header| header.id.epoch <= snapshot.epoch || header.first_seq > snapshot.position)
    };
    let head = chain.last().map_or(0, |header| header.id.epoch);
    listing.snapshots.iter().copied().rfind(|snapshot| snapshot.epoch <= head && sealed(snapshot))
}

/// Drops the segments whose records are all in the snapshot.
fn needed(chain: Vec<SegmentHeader>, position: u64) -> Vec<SegmentHeader> {
    let first = chain.iter().rposition(|header| header.first_seq <= position + 1).unwrap_or(0);
    chain[first..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::SegmentId;
    use crate::frame::{FRAME_HEADER_BYTES, FrameHeader, RecordType, link, padded, push_record};

    const BLOCK: u32 = 512;
    const ID: SegmentId = SegmentId { epoch: 1, index: 1 };

    /// A log of frames of one 600-byte record each (two blocks); frame `i` says that `synced[i]` was synced.
    fn segment(synced: &[u64]) -> Vec<u8> {
        let header =
            SegmentHeader { version: 2, block_bytes: BLOCK, log_id: 9, id: ID, first_seq: 1, before: None };
        let mut bytes = header.encode().to_vec();
        let mut before = link(&bytes);
        bytes.resize(BLOCK as usize, 0);
        for (index, synced) in synced.iter().enumerate() {
            let mut payload = Vec::new();
            push_record(
                &mut payload,
                RecordType { kind: 1, version: 1, critical: true },
                &[index as u8 + 1; 600],
            );
            let frame = FrameHeader {
                epoch: 1,
                first_seq: index as u64 + 1,
                synced: *synced,
                before,
                record_count: 1,
                payload_len: payload.len() as u32,
                payload_crc: crc32fast::hash(&payload),
                carried_len: 0,
            }
            .encode();
            before = link(&frame);
            let end = bytes.len() as u64 + padded((FRAME_HEADER_BYTES + payload.len()) as u64, BLOCK);
            bytes.extend_from_slice(&frame);
            bytes.extend_from_slice(&payload);
            bytes.resize(end as usize, 0);
        }
        bytes
    }

    fn recovered(dir: &Path) -> Result<u64, StoreError> {
        let history = History::find(dir)?.ok_or(StoreError::Empty { dir: dir.to_path_buf() })?;
        Ok(history.replay(dir, &mut |_| Ok(()), &mut leave)?.position)
    }

    /// After a power cut any set of the unsynced blocks may be on disk, in any order.
    #[test]
    fn any_set_of_unsynced_blocks_may_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        // Frames 1 and 2 were synced; 3, 4 and 5 were written by one cycle that did not end.
        let sound = segment(&[0, 1, 2, 2, 2]);
        let first_unsynced = (1 + 2 * 2) * BLOCK as usize;
        let blocks = (sound.len() - first_unsynced) / BLOCK as usize;
        assert_eq!(blocks, 6);
        for lost in 0..1u32 << blocks {
            let mut bytes = sound.clone();
            for block in (0..blocks).filter(|block| lost & (1 << block) != 0) {
                let start = first_unsynced + block * BLOCK as usize;
                bytes[start..start + BLOCK as usize].fill(0);
            }
            std::fs::write(ID.path(dir.path()), &bytes).unwrap();
            let whole = (0..3).take_while(|frame| lost & (0b11 << (2 * frame)) == 0).count() as u64;
            assert_eq!(recovered(dir.path()).unwrap(), 2 + whole, "lost {lost:b}");
        }
    }

    #[test]
    fn a_lost_block_that_was_synced_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sound = segment(&[0, 1, 2, 3]);
        for block in 1..=6 {
            let mut bytes = sound.clone();
            let start = block * BLOCK as usize;
            bytes[start..start + BLOCK as usize].fill(0);
            std::fs::write(ID.path(dir.path()), &bytes).unwrap();
            let error = recovered(dir.path()).unwrap_err();
            let expected = (1 + (block as u64 - 1) / 2 * 2) * u64::from(BLOCK);
            assert!(matches!(error, StoreError::Damaged { offset, .. } if offset == expected), "{error}");
        }
    }

    #[test]
    fn a_payload_that_looks_like_a_frame_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = segment(&[0]);
        // The torn second frame's payload holds a sound frame header that claims everything was synced.
        let forged = FrameHeader {
            epoch: 1,
            first_seq: 9,
            synced: 9,
            before: [0; 8],
            record_count: 1,
            payload_len: 0,
            payload_crc: 0,
            carried_len: 0,
        };
        let torn = segment(&[0, 1])[bytes.len()..].to_vec();
        bytes.extend_from_slice(&torn);
        let at = bytes.len() - BLOCK as usize;
        bytes[at..at + FRAME_HEADER_BYTES].copy_from_slice(&forged.encode());
        std::fs::write(ID.path(dir.path()), &bytes).unwrap();
        assert_eq!(recovered(dir.path()).unwrap(), 1);
    }

    #[test]
    fn the_owners_word_proves_a_sync() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(ID.path(dir.path()), segment(&[0, 1])).unwrap();
        let mut lease = Lease::acquire(dir.path(), std::time::Duration::from_secs(15)).unwrap();
        // Epoch 2 now: its word counts for its own segments only.
        lease.renew(7).unwrap();
        assert_eq!(recovered(dir.path()).unwrap(), 2);
        std::fs::rename(dir.path().join("epoch-00000002"), dir.path().join("epoch-00000001")).unwrap();
        assert!(matches!(recovered(dir.path()), Err(StoreError::Damaged { .. })));
    }
}
