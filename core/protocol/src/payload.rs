//! Payloads that are too large for a batch: how they are named where their bytes would be, and what their files are called.
//!
//! Items and values lie one after another, their lengths beside them. A length with [`LARGE`] set says that in place of the bytes there are
//! [`REF_BYTES`] which name the payload. Used by everybody who makes, cuts or reads batches (`docs/decisions/0007-large-payloads.md`).

use crate::ids::{ContentHash, JobId};
use crate::limits::{INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX};
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};

/// The bit of a length that says: the payload is named, not here.
pub const LARGE: u32 = 1 << 31;

/// Bytes of a [`PayloadRef`] in a batch.
pub const REF_BYTES: usize = 40;

/// Names a payload: what it is and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PayloadRef {
    /// BLAKE2b-256 of its bytes.
    pub hash: ContentHash,
    /// Its length, bytes.
    pub len: u64,
}

impl PayloadRef {
    /// As it stands in a batch: hash, then length, little endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REF_BYTES] {
        let mut out = [0; REF_BYTES];
        out[..32].copy_from_slice(&self.hash.0);
        out[32..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads one. None when it is not one that may be: of another size, small enough to lie in the batch, or over the limit.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<PayloadRef> {
        let (hash, len) = bytes.split_first_chunk::<32>()?;
        let len = u64::from_le_bytes(len.try_into().ok()?);
        let named = INLINE_BYTES_MAX as u64 + 1..=PAYLOAD_BYTES_MAX as u64;
        named.contains(&len).then_some(PayloadRef { hash: ContentHash(*hash), len })
    }
}

/// Whether this is the length of a payload that is only named.
#[must_use]
pub fn is_large(len: u32) -> bool {
    len & LARGE != 0
}

/// Bytes that stand in the batch for an item or value of this length.
#[must_use]
pub fn held(len: u32) -> usize {
    (len & !LARGE) as usize
}

/// Bytes that a batch with these lengths must have.
#[must_use]
pub fn held_sum(lens: &[u32]) -> u64 {
    lens.iter().map(|len| held(*len) as u64).sum()
}

/// The payloads that are named in a batch, in order. None when lengths and bytes do not agree, or something is no name.
#[must_use]
pub fn refs(lens: &[u32], blob: &[u8]) -> Option<Vec<PayloadRef>> {
    let mut rest = blob;
    let mut out = Vec::new();
    for len in lens {
        let (bytes, after) = rest.split_at_checked(held(*len))?;
        rest = after;
        if is_large(*len) {
            out.push(PayloadRef::read(bytes)?);
        }
    }
    rest.is_empty().then_some(out)
}

/// What the names of all files of a job's payloads begin with.
#[must_use]
pub fn file_prefix(job: JobId) -> String {
    format!("{job}-")
}

/// The file of a payload in the endpoint's folder: an item for a task, or a value of one.
#[must_use]
pub fn file_name(job: JobId, hash: ContentHash, value: bool) -> String {
    format!("{}{hash}.{}", file_prefix(job), if value { "value" } else { "item" })
}

/// The job whose payload a file of this name is, if it is one of ours.
#[must_use]
pub fn file_job(name: &str) -> Option<JobId> {
    name.split_once('-')?.0.parse().ok()
}

/// The hash of a payload that comes in pieces.
#[derive(Clone, Default)]
pub struct PayloadHash(Blake2b<U32>);

impl std::fmt::Debug for PayloadHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PayloadHash")
    }
}

impl PayloadHash {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all that came.
    #[must_use]
    pub fn finish(self) -> ContentHash {
        ContentHash(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::content_hash;
    use proptest::prelude::*;

    fn named(len: u64) -> PayloadRef {
        PayloadRef { hash: ContentHash([7; 32]), len }
    }

    #[test]
    fn a_name_reads_what_it_writes_and_nothing_else() {
        let name = named(300_000);
        let bytes = name.to_bytes();
        assert_eq!(PayloadRef::read(&bytes), Some(name));
        assert_eq!(PayloadRef::read(&bytes[1..]), None);
        assert_eq!(
            PayloadRef::read(&named(INLINE_BYTES_MAX as u64).to_bytes()),
            None,
            "it belongs in the batch"
        );
        assert_eq!(PayloadRef::read(&named(PAYLOAD_BYTES_MAX as u64 + 1).to_bytes()), None);
    }

    #[test]
    fn the_names_in_a_batch_are_found_between_other_items() {
        let name = named(1 << 20);
        let mut blob = b"abc".to_vec();
        blob.extend_from_slice(&name.to_bytes());
        blob.push(b'd');
        let lens = [3, LARGE | REF_BYTES as u32, 0, 1];
        assert_eq!(held_sum(&lens), blob.len() as u64);
        assert_eq!(refs(&lens, &blob), Some(vec![name]));
        assert_eq!(refs(&lens, &blob[..43]), None);
        assert_eq!(refs(&[LARGE | 4], b"abcd"), None);
    }

    #[test]
    fn files_are_named_by_job_and_hash() {
        let name = file_name(JobId(12), ContentHash([0xab; 32]), false);
        assert_eq!(name, format!("j12-{}.item", "ab".repeat(32)));
        assert_eq!(file_job(&name), Some(JobId(12)));
        assert_eq!(file_job("roster.json"), None);
        assert_eq!(file_job("j12-x.draft"), Some(JobId(12)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(lens in proptest::collection::vec(any::<u32>(), 0..8), blob in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = refs(&lens, &blob);
            let _ = PayloadRef::read(&blob);
        }

        #[test]
        fn the_hash_of_pieces_is_that_of_the_whole(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..6)) {
            let mut hash = PayloadHash::default();
            parts.iter().for_each(|part| hash.update(part));
            prop_assert_eq!(hash.finish(), content_hash(&parts.concat()));
        }
    }
}
