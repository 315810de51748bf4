//! Fixed columns for millions of records: tasks from clients, outcomes to them (`docs/http-api.md`, "Columns").
//!
//! Used by the HTTP handlers; `pf` and tests use the other directions. Decoders take any bytes and never panic or
//! allocate more than a small multiple of what they were given.

use bytes::{BufMut, Bytes, BytesMut};
use pf_protocol::limits::{APPEND_TASKS_MAX, INLINE_BYTES_MAX};
use pf_protocol::outcome::OutcomeKind;
use pf_protocol::payload::{LARGE, held, held_sum, is_large};

/// Media type of [`decode_tasks`].
pub const TASKS_MEDIA_TYPE: &str = "application/vnd.pilotfish.tasks";
/// Media type of [`OutcomeFrame`]s.
pub const OUTCOMES_MEDIA_TYPE: &str = "application/vnd.pilotfish.outcomes";

const TASKS_MAGIC: &[u8; 4] = b"PFT1";
const OUTCOMES_MAGIC: &[u8; 4] = b"PFO1";
/// Magic and count.
const TASKS_HEAD_BYTES: usize = 8;
/// Magic and length.
const FRAME_PREFIX_BYTES: usize = 8;
/// Count, log id, seq.
const FRAME_HEAD_BYTES: usize = 20;
/// Job, index, kind, held, ran, value length, error length.
const OUTCOME_BYTES: usize = 8 + 4 + 1 + 4 + 4 + 4 + 4;

/// Why bytes are not columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnsError {
    /// The magic is another.
    #[error("body does not begin with {expected:?}")]
    Magic {
        /// What it should be.
        expected: &'static str,
    },
    /// Lengths and bytes do not agree.
    #[error("body of {have} bytes is not what its columns say ({want} bytes)")]
    Length {
        /// Bytes that came.
        have: usize,
        /// Bytes that the header and the columns ask for.
        want: u64,
    },
    /// Too many tasks in one append.
    #[error("{count} tasks in one append, {APPEND_TASKS_MAX} are the limit")]
    TooMany {
        /// As many.
        count: u32,
    },
    /// An item over the limit.
    #[error(
        "item {at} has {len} bytes, {INLINE_BYTES_MAX} may lie in a request; put it as a payload of the job first"
    )]
    ItemTooLarge {
        /// Its place in the batch.
        at: usize,
        /// Its length.
        len: usize,
    },
    /// An outcome kind that this version does not know.
    #[error("outcome kind {0} is unknown")]
    Kind(u8),
}

/// Tasks of an append, as they came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskColumns {
    /// How many.
    pub count: u32,
    /// Length of each item, marked where it is only named; empty when no task has an item.
    pub lens: Vec<u32>,
    /// The items, one after another; not copied from the body.
    pub blob: Bytes,
}

/// Reads the body of an append.
///
/// # Errors
/// When it is not exactly what its header says, or over a limit.
pub fn decode_tasks(body: &Bytes) -> Result<TaskColumns, ColumnsError> {
    if body.get(..4) != Some(TASKS_MAGIC) {
        return Err(ColumnsError::Magic { expected: "PFT1" });
    }
    let wrong = |want: u64| ColumnsError::Length { have: body.len(), want };
    let count = u32_at(body, 4).ok_or_else(|| wrong(TASKS_HEAD_BYTES as u64))?;
    if count > APPEND_TASKS_MAX {
        return Err(ColumnsError::TooMany { count });
    }
    let blob_at = TASKS_HEAD_BYTES + count as usize * 4;
    let column = body.get(TASKS_HEAD_BYTES..blob_at).ok_or_else(|| wrong(blob_at as u64))?;
    let mut lens: Vec<u32> = u32s(column).collect();
    let total = held_sum(&lens);
    if let Some((at, len)) = lens.iter().enumerate().find(|(_, len)| held(**len) > INLINE_BYTES_MAX) {
        return Err(ColumnsError::ItemTooLarge { at, len: held(*len) });
    }
    if (body.len() - blob_at) as u64 != total {
        return Err(wrong(blob_at as u64 + total));
    }
    if total == 0 {
        lens = Vec::new();
    }
    Ok(TaskColumns { count, lens, blob: body.slice(blob_at..) })
}

/// The other direction, for clients written in Rust. `lens` may be empty: then no task has an item.
#[must_use]
pub fn encode_tasks(count: u32, lens: &[u32], blob: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(TASKS_HEAD_BYTES + count as usize * 4 + blob.len());
    out.put_slice(TASKS_MAGIC);
    out.put_u32_le(count);
    if lens.is_empty() {
        out.put_bytes(0, count as usize * 4);
    } else {
        lens.iter().for_each(|len| out.put_u32_le(*len));
    }
    out.put_slice(blob);
    out.freeze()
}

/// Collects one frame of outcomes, column by column.
#[derive(Debug, Default)]
pub struct OutcomeColumns {
    jobs: Vec<u8>,
    indexes: Vec<u8>,
    kinds: Vec<u8>,
    helds: Vec<u8>,
    rans: Vec<u8>,
    value_lens: Vec<u8>,
    error_lens: Vec<u8>,
    values: Vec<u8>,
    errors: Vec<u8>,
}

/// One outcome on its way into or out of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutcomeRecord<'a> {
    /// The job's number.
    pub job: u64,
    /// Position of the task.
    pub index: u32,
    /// How it ended.
    pub kind: OutcomeKind,
    /// Held at the manager, microseconds, saturated.
    pub held_us: u32,
    /// Ran, microseconds, saturated.
    pub ran_us: u32,
    /// The value's bytes.
    pub value: &'a [u8],
    /// Whether they only name the value, which is a payload of the job.
    pub is_large: bool,
    /// JSON of the error; empty for success.
    pub error: &'a [u8],
}

impl OutcomeColumns {
    /// Adds one. Values and errors are bounded far below 4 GiB by the limits on payloads and pages.
    pub fn push(&mut self, record: &OutcomeRecord<'_>) {
        self.jobs.put_u64_le(record.job);
        self.indexes.put_u32_le(record.index);
        self.kinds.put_u8(record.kind as u8);
        self.helds.put_u32_le(record.held_us);
        self.rans.put_u32_le(record.ran_us);
        let mark = if record.is_large { LARGE } else { 0 };
        self.value_lens.put_u32_le(record.value.len() as u32 | mark);
        self.error_lens.put_u32_le(record.error.len() as u32);
        self.values.put_slice(record.value);
        self.errors.put_slice(record.error);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.kinds.len()
    }

    /// The frame; `seq` is the cursor after it. A frame of 0 records is a sign of life.
    #[must_use]
    pub fn finish(self, log_id: u64, seq: u64) -> Bytes {
        let follows = FRAME_HEAD_BYTES + self.count() * OUTCOME_BYTES + self.values.len() + self.errors.len();
        let mut out = BytesMut::with_capacity(FRAME_PREFIX_BYTES + follows);
        out.put_slice(OUTCOMES_MAGIC);
        out.put_u32_le(follows as u32);
        out.put_u32_le(self.count() as u32);
        out.put_u64_le(log_id);
        out.put_u64_le(seq);
        for column in [
            self.jobs,
            self.indexes,
            self.kinds,
            self.helds,
            self.rans,
            self.value_lens,
            self.error_lens,
            self.values,
            self.errors,
        ] {
            out.put_slice(&column);
        }
        out.freeze()
    }
}

/// A frame of outcomes as a client reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeFrame {
    /// The log that the cursor belongs to.
    pub log_id: u64,
    /// The cursor after this frame.
    pub seq: u64,
    /// How many outcomes.
    pub count: usize,
    columns: Bytes,
}

impl OutcomeFrame {
    /// Reads the frame at the start of `bytes`; answers it and its length, or None while it is not whole.
    ///
    /// # Errors
    /// When the bytes are not a frame.
    pub fn decode(bytes: &Bytes) -> Result<Option<(OutcomeFrame, usize)>, ColumnsError> {
        let magic = &bytes[..bytes.len().min(4)];
        if !OUTCOMES_MAGIC.starts_with(magic) {
            return Err(ColumnsError::Magic { expected: "PFO1" });
        }
        let Some(follows) = u32_at(bytes, 4) else { return Ok(None) };
        let follows = follows as usize;
        if follows < FRAME_HEAD_BYTES {
            return Err(ColumnsError::Length { have: follows, want: FRAME_HEAD_BYTES as u64 });
        }
        let end = FRAME_PREFIX_BYTES + follows;
        if bytes.len() < end {
            return Ok(None);
        }
        let head = |at: usize| u64_at(bytes, at).unwrap_or_default();
        let count = u32_at(bytes, 8).unwrap_or_default() as usize;
        let frame = OutcomeFrame {
            count,
            log_id: head(12),
            seq: head(20),
            columns: bytes.slice(FRAME_PREFIX_BYTES + FRAME_HEAD_BYTES..end),
        };
        let fixed = count as u64 * OUTCOME_BYTES as u64;
        let sum = |at: usize| frame.column(at, 4).map(|c| u32s(c).map(|len| held(len) as u64).sum::<u64>());
        let want = match (sum(21), sum(25)) {
            (Some(values), Some(errors)) => fixed + values + errors,
            _ => fixed,
        };
        if frame.columns.len() as u64 != want {
            return Err(ColumnsError::Length { have: frame.columns.len(), want });
        }
        if let Some(kind) = frame.column(12, 1).and_then(|c| c.iter().find(|k| kind_of(**k).is_none())) {
            return Err(ColumnsError::Kind(*kind));
        }
        Ok(Some((frame, end)))
    }

    /// The outcomes, in order.
    pub fn records(&self) -> impl Iterator<Item = OutcomeRecord<'_>> {
        let values_at = self.count * OUTCOME_BYTES;
        let values: usize = self.lens(21).map(held).sum();
        let mut at = (values_at, values_at + values);
        let rows =
            self.column(0, 8).unwrap_or_default().chunks_exact(8).map(|c| u64_at(c, 0).unwrap_or_default());
        let mut rest = self
            .lens(8)
            .zip(self.column(12, 1).unwrap_or_default())
            .zip(self.lens(13).zip(self.lens(17)))
            .zip(self.lens(21).zip(self.lens(25)));
        rows.map_while(move |job| {
            let (((index, kind), (held_us, ran_us)), (value_len, error_len)) = rest.next()?;
            let (value, error) = (at.0..at.0 + held(value_len), at.1..at.1 + held(error_len));
            at = (value.end, error.end);
            Some(OutcomeRecord {
                job,
                index,
                kind: kind_of(*kind)?,
                held_us,
                ran_us,
                value: self.columns.get(value)?,
                is_large: is_large(value_len),
                error: self.columns.get(error)?,
            })
        })
    }

    /// The column whose fields of `width` bytes begin after `before` bytes of each record.
    fn column(&self, before: usize, width: usize) -> Option<&[u8]> {
        let at = self.count.checked_mul(before)?;
        self.columns.get(at..at.checked_add(self.count.checked_mul(width)?)?)
    }

    fn lens(&self, before: usize) -> impl Iterator<Item = u32> + '_ {
        u32s(self.column(before, 4).unwrap_or_default())
    }
}

fn kind_of(number: u8) -> Option<OutcomeKind> {
    OutcomeKind::ALL.get(usize::from(number)).copied()
}

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record<'a>(index: u32, value: &'a [u8], error: &'a [u8]) -> OutcomeRecord<'a> {
        let kind = if error.is_empty() { OutcomeKind::Value } else { OutcomeKind::Exit };
        OutcomeRecord {
            job: 7,
            index,
            kind,
            held_us: index + 1,
            ran_us: u32::MAX,
            value,
            is_large: index % 3 == 1,
            error,
        }
    }

    #[test]
    fn the_layout_is_what_the_documentation_says() {
        let bytes = encode_tasks(2, &[1, 2], b"abc");
        assert_eq!(&bytes[..], b"PFT1\x02\0\0\0\x01\0\0\0\x02\0\0\0abc");
        let mut columns = OutcomeColumns::default();
        columns.push(&record(3, b"v", b""));
        let frame = columns.finish(9, 5);
        let want = b"PFO1\x32\0\0\0\x01\0\0\0\x09\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
            \x07\0\0\0\0\0\0\0\x03\0\0\0\0\x04\0\0\0\xff\xff\xff\xff\x01\0\0\0\0\0\0\0v";
        assert_eq!(&frame[..], &want[..]);
    }

    #[test]
    fn tasks_over_a_limit_or_of_another_length_are_refused_by_name() {
        assert!(matches!(decode_tasks(&Bytes::from_static(b"PFX1")), Err(ColumnsError::Magic { .. })));
        let many = encode_tasks(APPEND_TASKS_MAX, &[], b"");
        assert_eq!(decode_tasks(&many).unwrap().count, APPEND_TASKS_MAX);
        let mut more = BytesMut::from(&many[..]);
        more[4..8].copy_from_slice(&(APPEND_TASKS_MAX + 1).to_le_bytes());
        assert!(matches!(decode_tasks(&more.freeze()), Err(ColumnsError::TooMany { .. })));
        let bomb = encode_tasks(1, &[u32::MAX], b"");
        assert_eq!(decode_tasks(&bomb), Err(ColumnsError::ItemTooLarge { at: 0, len: held(u32::MAX) }));
        let whole = encode_tasks(3, &[1, 0, 5], b"abcdef");
        for cut in 0..whole.len() {
            assert!(decode_tasks(&whole.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn tasks_read_what_they_write(items in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..20)) {
            let lens: Vec<u32> = items.iter().map(|i| i.len() as u32).collect();
            let blob = items.concat();
            let read = decode_tasks(&encode_tasks(items.len() as u32, &lens, &blob)).unwrap();
            prop_assert_eq!(read.count as usize, items.len());
            prop_assert_eq!(&read.blob[..], &blob[..]);
            prop_assert_eq!(read.lens, if blob.is_empty() { Vec::new() } else { lens });
        }

        #[test]
        fn outcomes_read_what_they_write(items in proptest::collection::vec(
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..9), proptest::collection::vec(any::<u8>(), 0..9)), 0..20),
            log_id: u64, seq: u64) {
            let mut columns = OutcomeColumns::default();
            let items: Vec<_> = items.into_iter().map(|(index, v, e)| (index & 0xff_ffff, v, e)).collect();
            let records: Vec<_> = items.iter().map(|(i, v, e)| record(*i, v, e)).collect();
            records.iter().for_each(|r| columns.push(r));
            let bytes = columns.finish(log_id, seq);
            for cut in 0..bytes.len() {
                prop_assert_eq!(OutcomeFrame::decode(&bytes.slice(..cut)), Ok(None));
            }
            let (frame, len) = OutcomeFrame::decode(&bytes).unwrap().unwrap();
            prop_assert_eq!((frame.log_id, frame.seq, len), (log_id, seq, bytes.len()));
            prop_assert_eq!(frame.records().collect::<Vec<_>>(), records);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0u32..40) {
            let _ = decode_tasks(&Bytes::from(bytes.clone()));
            let _ = OutcomeFrame::decode(&Bytes::from(bytes.clone()));
            if bytes.len() >= 12 {
                bytes[..4].copy_from_slice(TASKS_MAGIC);
                bytes[4..8].copy_from_slice(&count.to_le_bytes());
                let _ = decode_tasks(&Bytes::from(bytes.clone()));
                bytes[..4].copy_from_slice(OUTCOMES_MAGIC);
                let follows = bytes.len() as u32 - 8;
                bytes[4..8].copy_from_slice(&follows.to_le_bytes());
                bytes[8..12].copy_from_slice(&count.to_le_bytes());
                if let Ok(Some((frame, _))) = OutcomeFrame::decode(&Bytes::from(bytes)) {
                    prop_assert_eq!(frame.records().count(), frame.count);
                }
            }
        }
    }
}
