//! The bytes of the log: segment header, commit frame, record. Used by the writer and by everything that scans.
//!
//! All numbers are little-endian. A segment is one header block, then frames, each padded to a multiple of the block.
//!
//! The chain: every header holds the first 8 bytes of the BLAKE2b-256 of the header before it, and every frame header
//! holds the CRC of its payload. So 64 bits tie the whole history together at the price of hashing 64 bytes a commit,
//! not the payload. The CRCs find damage; the chain finds frames that are sound but of another history: a spliced file,
//! a stale block, a writer that was fenced off.
//!
//! A frame's payload is records, then what it carries: small pieces of payload segments that its records refer to. So
//! one sync makes both durable; the segments themselves are written too, but synced only before the log is cut.

use blake2::{Blake2b, Digest, digest::consts::U32};

use crate::folder::SegmentId;

/// The format of the log that this program writes. Version 1 had frames that carry nothing.
pub(crate) const FORMAT_VERSION: u32 = 2;
/// The oldest format of the log that it reads.
const FORMAT_VERSION_MIN: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"PFSTLOG\n";
const FRAME_MAGIC: [u8; 4] = *b"PFcf";

/// Bytes of a segment header that have a meaning.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 128;
/// Bytes of a frame header.
pub(crate) const FRAME_HEADER_BYTES: usize = 64;
/// Bytes before each record.
pub(crate) const RECORD_HEADER_BYTES: usize = 8;
/// Bytes before each carried piece.
pub(crate) const PIECE_HEADER_BYTES: usize = 12;

const RECORD_CRITICAL: u8 = 1;

/// A link of the chain.
pub(crate) type Link = [u8; 8];

/// First 8 bytes of the BLAKE2b-256 of a header.
pub(crate) fn link(header: &[u8]) -> Link {
    let digest = Blake2b::<U32>::digest(header);
    let mut out = Link::default();
    out.copy_from_slice(&digest[..8]);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

fn link_at(bytes: &[u8], at: usize) -> Link {
    u64_at(bytes, at).to_le_bytes()
}

/// Where the segment before ends. In the first segment of an epoch this is the seal of the epoch before: bytes past
/// it are of no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    pub id: SegmentId,
    pub end: u64,
    pub link: Link,
}

/// Header of a log segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub version: u32,
    pub block_bytes: u32,
    pub log_id: u64,
    pub id: SegmentId,
    pub first_seq: u64,
    pub before: Option<Before>,
}

/// Why bytes are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// Torn, damaged or never written.
    Bad,
    /// Of a format that this program does not know.
    Version(u32),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[0..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        out[24..32].copy_from_slice(&self.id.epoch.to_le_bytes());
        out[32..40].copy_from_slice(&self.id.index.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_seq.to_le_bytes());
        if let Some(before) = self.before {
            out[48..56].copy_from_slice(&before.id.epoch.to_le_bytes());
            out[56..64].copy_from_slice(&before.id.index.to_le_bytes());
            out[64..72].copy_from_slice(&before.end.to_le_bytes());
            out[72..80].copy_from_slice(&before.link);
        }
        let crc = crc32fast::hash(&out[..124]);
        out[124..128].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, NoHeader> {
        if bytes[0..8] != SEGMENT_MAGIC {
            return Err(NoHeader::Bad);
        }
        let version = u32_at(bytes, 8);
        if !(FORMAT_VERSION_MIN..=FORMAT_VERSION).contains(&version) {
            return Err(NoHeader::Version(version));
        }
        let block_bytes = u32_at(bytes, 12);
        if u32_at(bytes, 124) != crc32fast::hash(&bytes[..124]) || !is_block_size(block_bytes) {
            return Err(NoHeader::Bad);
        }
        // Epochs begin at 1, so 0 says that nothing is before.
        let before = (u64_at(bytes, 48) != 0).then(|| Before {
            id: SegmentId { epoch: u64_at(bytes, 48), index: u64_at(bytes, 56) },
            end: u64_at(bytes, 64),
            link: link_at(bytes, 72),
        });
        Ok(Self {
            version,
            block_bytes,
            log_id: u64_at(bytes, 16),
            id: SegmentId { epoch: u64_at(bytes, 24), index: u64_at(bytes, 32) },
            first_seq: u64_at(bytes, 40),
            before,
        })
    }
}

/// Whether frames can be aligned to it.
pub(crate) fn is_block_size(bytes: u32) -> bool {
    bytes.is_power_of_two()
        && (crate::limits::BLOCK_BYTES_MIN..=crate::limits::BLOCK_BYTES_MAX).contains(&bytes)
}

/// `bytes` rounded up to whole blocks.
pub(crate) fn padded(bytes: u64, block_bytes: u32) -> u64 {
    bytes.next_multiple_of(u64::from(block_bytes))
}

/// Header of a commit frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub epoch: u64,
    /// Position of its first record.
    pub first_seq: u64,
    /// Position that was known to be synced when this frame was written.
    pub synced: u64,
    /// Link to the header before.
    pub before: Link,
    pub record_count: u32,
    pub payload_len: u32,
    pub payload_crc: u32,
    /// Bytes at the end of the payload that are carried pieces, not records.
    pub carried_len: u32,
}

impl FrameHeader {
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_seq.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced.to_le_bytes());
        out[32..40].copy_from_slice(&self.before);
        out[40..44].copy_from_slice(&self.record_count.to_le_bytes());
        out[44..48].copy_from_slice(&self.payload_len.to_le_bytes());
        out[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.carried_len.to_le_bytes());
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` if these bytes are no sound frame header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        if bytes[0..4] != FRAME_MAGIC || u32_at(bytes, 4) != crc32fast::hash(&bytes[8..]) {
            return None;
        }
        Some(Self {
            epoch: u64_at(bytes, 8),
            first_seq: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
            before: link_at(bytes, 32),
            record_count: u32_at(bytes, 40),
            payload_len: u32_at(bytes, 44),
            payload_crc: u32_at(bytes, 48),
            carried_len: u32_at(bytes, 52),
        })
    }
}

/// What the caller says of a record beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordType {
    /// Which record: the caller's own numbering.
    pub kind: u16,
    /// Version of that record's layout.
    pub version: u8,
    /// Whether a reader that does not know `kind` must refuse the log (true) or may go on (false).
    pub critical: bool,
}

/// One record of the log, as replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its position: records are counted from 1.
    pub position: crate::Position,
    /// Its type.
    pub record_type: RecordType,
    /// The caller's bytes.
    pub bytes: &'a [u8],
}

/// Appends one record to a frame's payload. The caller has checked the length.
pub(crate) fn push_record(payload: &mut Vec<u8>, record_type: RecordType, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let flags = if record_type.critical { RECORD_CRITICAL } else { 0 };
    let [kind_low, kind_high] = record_type.kind.to_le_bytes();
    payload.extend_from_slice(&len.to_le_bytes());
    payload.extend_from_slice(&[kind_low, kind_high, record_type.version, flags]);
    payload.extend_from_slice(bytes);
}

/// The records of a frame's payload. An item is `Err` where the payload contradicts itself.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
    position: u64,
    left: u32,
}

impl<'a> Records<'a> {
    pub fn new(header: &FrameHeader, payload: &'a [u8]) -> Self {
        // A longer carried part than there are bytes leaves no record: the first one is then missed by name.
        let records = payload.len().saturating_sub(header.carried_len as usize);
        Self { rest: &payload[..records], position: header.first_seq, left: header.record_count }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let rest = std::mem::take(&mut self.rest);
            return (!rest.is_empty()).then_some(Err("bytes after the last record of a frame"));
        }
        self.left -= 1;
        let Some((head, rest)) = self.rest.split_at_checked(RECORD_HEADER_BYTES) else {
            self.left = 0;
            self.rest = &[];
            return Some(Err("a frame ends within a record"));
        };
        let len = usize::try_from(u32_at(head, 0)).unwrap_or(usize::MAX);
        let Some((bytes, rest)) = rest.split_at_checked(len) else {
            self.left = 0;
            self.rest = &[];
            return Some(Err("a frame ends within a record"));
        };
        self.rest = rest;
        let record_type = RecordType {
            kind: u16::from_le_bytes([head[4], head[5]]),
            version: head[6],
            critical: head[7] & RECORD_CRITICAL != 0,
        };
        let position = crate::Position(self.position);
        self.position += 1;
        Some(Ok(Record { position, record_type, bytes }))
    }
}

/// A piece of a payload segment that a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub segment: u32,
    /// Where it belongs in that segment, in bytes.
    pub offset: u32,
    pub bytes: &'a [u8],
}

/// Appends one piece behind the records of a frame's payload; the caller counts `carried_len`.
pub(crate) fn push_piece(payload: &mut Vec<u8>, piece: Piece<'_>) {
    let len = u32::try_from(piece.bytes.len()).unwrap_or(u32::MAX);
    for number in [piece.segment, piece.offset, len] {
        payload.extend_from_slice(&number.to_le_bytes());
    }
    payload.extend_from_slice(piece.bytes);
}

/// The pieces that a frame carries. An item is `Err` where the payload contradicts itself.
pub(crate) struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    pub fn new(header: &FrameHeader, payload: &'a [u8]) -> Self {
        Self { rest: &payload[payload.len().saturating_sub(header.carried_len as usize)..] }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parts = self.rest.split_at_checked(PIECE_HEADER_BYTES).and_then(|(head, rest)| {
            let len = usize::try_from(u32_at(head, 8)).ok()?;
            Some((head, rest.split_at_checked(len)?))
        });
        let Some((head, (bytes, rest))) = parts else {
            self.rest = &[];
            return Some(Err("a frame ends within a carried piece"));
        };
        self.rest = rest;
        Some(Ok(Piece { segment: u32_at(head, 0), offset: u32_at(head, 4), bytes }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            version: FORMAT_VERSION,
            block_bytes: 4096,
            log_id: 7,
            id: SegmentId { epoch: 2, index: 3 },
            first_seq: 11,
            before: Some(Before { id: SegmentId { epoch: 1, index: 2 }, end: 8192, link: [9; 8] }),
        }
    }

    #[test]
    fn a_header_is_read_back_and_any_flip_is_seen() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[at / 8] ^= 1 << (at % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {at}");
        }
    }

    #[test]
    fn an_unknown_version_is_named() {
        let mut bytes = header().encode();
        bytes[8] = 9;
        assert_eq!(SegmentHeader::decode(&bytes), Err(NoHeader::Version(9)));
    }

    proptest! {
        #[test]
        fn frame_headers_are_read_back(epoch: u64, first_seq: u64, synced: u64, before: [u8; 8], record_count: u32, payload_len: u32, payload_crc: u32, carried_len: u32) {
            let header = FrameHeader { epoch, first_seq, synced, before, record_count, payload_len, payload_crc, carried_len };
            prop_assert_eq!(FrameHeader::decode(&header.encode()), Some(header));
        }

        #[test]
        fn any_payload_is_read_without_panic(payload: Vec<u8>, record_count in 0u32..20, carried_len in 0u32..200) {
            let header = FrameHeader { epoch: 1, first_seq: 1, synced: 0, before: [0; 8], record_count, payload_len: 0, payload_crc: 0, carried_len };
            prop_assert!(Pieces::new(&header, &payload).count() <= payload.len() / PIECE_HEADER_BYTES + 1);
            prop_assert!(Records::new(&header, &payload).count() <= record_count as usize + 1);
        }

        #[test]
        fn records_and_pieces_are_read_back(records: Vec<(u16, u8, bool, Vec<u8>)>, pieces: Vec<(u32, u32, Vec<u8>)>) {
            let mut payload = Vec::new();
            for (kind, version, critical, bytes) in &records {
                push_record(&mut payload, RecordType { kind: *kind, version: *version, critical: *critical }, bytes);
            }
            let records_len = payload.len();
            for (segment, offset, bytes) in &pieces {
                push_piece(&mut payload, Piece { segment: *segment, offset: *offset, bytes });
            }
            let carried_len = (payload.len() - records_len) as u32;
            let header = FrameHeader { epoch: 1, first_seq: 5, synced: 0, before: [0; 8], record_count: records.len() as u32, payload_len: 0, payload_crc: 0, carried_len };
            let read: Vec<_> = Pieces::new(&header, &payload).map(|piece| piece.unwrap()).collect();
            prop_assert_eq!(read.len(), pieces.len());
            for (piece, (segment, offset, bytes)) in read.iter().zip(&pieces) {
                prop_assert_eq!((piece.segment, piece.offset, piece.bytes), (*segment, *offset, &bytes[..]));
            }
            let read: Vec<_> = Records::new(&header, &payload).map(|record| record.unwrap()).collect();
            prop_assert_eq!(read.len(), records.len());
            for (index, (record, (kind, version, critical, bytes))) in read.iter().zip(&records).enumerate() {
                prop_assert_eq!(record.position.0, 5 + index as u64);
                prop_assert_eq!(record.record_type, RecordType { kind: *kind, version: *version, critical: *critical });
                prop_assert_eq!(record.bytes, &bytes[..]);
            }
        }
    }
}
