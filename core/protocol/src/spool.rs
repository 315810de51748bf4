//! The spool: outcomes that a manager wrote to the block's folder because nobody confirmed them in time. Pure over bytes: managers write whole
//! files, the relay reads them when it adopts or buries a block. What was confirmed meanwhile is dropped by the broker as any repeat is.
//!
//! ```text
//! "PFspool1", then records: length u32, CRC-32 of the body u32, body: one OutcomeBatch as a named MessagePack map
//! ```

use crate::ids::ManagerId;
use crate::limits::FRAME_BYTES_MAX;
use crate::outcome::OutcomeBatch;

const MAGIC: [u8; 8] = *b"PFspool1";
const HEADER_BYTES: usize = 8;

/// Beginning of the names of spool files in a block's folder; they end in [`SUFFIX`]. Drafts do not end so and are not read.
pub const PREFIX: &str = "spool-";
/// End of the names of spool files.
pub const SUFFIX: &str = ".pf";

/// Why a spool, or its rest, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Not a spool at all.
    #[error("not a spool file")]
    NotASpool,
    /// It ends inside a record.
    #[error("spool is cut at byte {0}")]
    Cut(usize),
    /// A record is not what was written.
    #[error("spool is damaged at byte {0}")]
    Damaged(usize),
    /// A batch cannot be encoded.
    #[error("outcomes cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// Name of the `number`th spool of a manager.
#[must_use]
pub fn file_name(manager: ManagerId, number: u32) -> String {
    format!("{PREFIX}{}-{:016x}-{number}{SUFFIX}", manager.node, manager.incarnation)
}

/// A whole spool file.
///
/// # Errors
/// When a batch cannot be encoded, which the types do not allow.
pub fn encode(batches: &[OutcomeBatch]) -> Result<Vec<u8>, SpoolError> {
    let mut out = MAGIC.to_vec();
    for batch in batches {
        let at = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        rmp_serde::encode::write_named(&mut out, batch)?;
        let body = &out[at + HEADER_BYTES..];
        let (len, crc) = (body.len() as u32, crc32fast::hash(body));
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
        out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
    Ok(out)
}

/// What can be read of a spool file, and why the rest cannot.
#[must_use]
pub fn decode(bytes: &[u8]) -> (Vec<OutcomeBatch>, Option<SpoolError>) {
    let mut batches = Vec::new();
    if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
        return (batches, Some(SpoolError::NotASpool));
    }
    let mut at = MAGIC.len();
    while at < bytes.len() {
        let number = |from: usize| -> Option<u32> {
            Some(u32::from_le_bytes(bytes.get(from..from + 4)?.try_into().ok()?))
        };
        let (Some(len), Some(crc)) = (number(at), number(at + 4)) else {
            return (batches, Some(SpoolError::Cut(at)));
        };
        if len as usize > FRAME_BYTES_MAX {
            return (batches, Some(SpoolError::Damaged(at)));
        }
        let begin = at + HEADER_BYTES;
        let Some(body) = bytes.get(begin..begin + len as usize) else {
            return (batches, Some(SpoolError::Cut(at)));
        };
        let batch = (crc32fast::hash(body) == crc)
            .then(|| rmp_serde::from_slice::<OutcomeBatch>(body).ok())
            .flatten();
        match batch {
            Some(batch) => batches.push(batch),
            None => return (batches, Some(SpoolError::Damaged(at))),
        }
        at = begin + len as usize;
    }
    (batches, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{ErrorDetail, Outcome, OutcomeKind};
    use crate::{BlockId, JobId};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn batch(seq: u64) -> OutcomeBatch {
        let error = ErrorDetail { message: "exit code 3".into(), exit: Some(3), ..ErrorDetail::default() };
        let failed = Outcome { kind: OutcomeKind::Exit, error: Some(Box::new(error)), ..Outcome::default() };
        let good = Outcome { job: JobId(5), index: 7, value_len: 3, ..Outcome::default() };
        let manager = ManagerId { block: BlockId(1), node: 2, incarnation: 3 };
        OutcomeBatch {
            manager,
            node: "n2".into(),
            seq,
            outcomes: vec![failed, good],
            blob: Bytes::from_static(b"abc"),
        }
    }

    #[test]
    fn reads_what_it_writes_and_says_where_it_is_cut() {
        let batches = vec![batch(1), batch(2)];
        let bytes = encode(&batches).unwrap();
        let (read, error) = decode(&bytes);
        assert!(error.is_none());
        assert_eq!(read, batches);
        let one = encode(&batches[..1]).unwrap().len();
        for cut in 0..bytes.len() {
            let (read, error) = decode(&bytes[..cut]);
            assert_eq!(read.len(), usize::from(cut >= one), "cut at {cut}");
            assert_eq!(error.is_some(), cut != MAGIC.len() && cut != one, "cut at {cut}");
        }
    }

    #[test]
    fn names_are_pinned() {
        let manager = ManagerId { block: BlockId(1), node: 2, incarnation: 0x3f };
        assert_eq!(file_name(manager, 4), "spool-2-000000000000003f-4.pf");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_makes_another_outcome(at in 0usize..400, bit in 0u8..8) {
            let batches = vec![batch(1), batch(2)];
            let mut bytes = encode(&batches).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let (read, error) = decode(&bytes);
            prop_assert!(error.is_some());
            prop_assert!(read.iter().zip(&batches).all(|(a, b)| a == b));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = decode(&[&MAGIC[..], &bytes].concat());
        }
    }
}
