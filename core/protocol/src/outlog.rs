//! The output log of a manager: what its tasks wrote, in one append-only file. Pure over bytes: the manager writes records, the relay reads
//! them for `pf logs`, also while they are written.
//!
//! ```text
//! 0..4 magic "PFo1"   4..12 job   12..16 index   16..20 attempt's epoch   20..24 attempt's n   24 stream   25..29 length   29.. bytes
//! ```
//! Little endian. A record that is not whole yet is the end for now; after damage the next magic is looked for.

use crate::ids::{AttemptId, Epoch, JobId, ManagerId, TaskId};

/// Bytes of a record before what was written.
pub const HEADER_BYTES: usize = 29;

/// Longest piece in one record: readers allocate this much at most. Writers cut longer output into several records.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"PFo1";

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// Nothing: the attempt is over, no record of it follows.
    End = 0,
    /// Standard output.
    Stdout = 1,
    /// Standard error, and notes of the manager ("output was cut").
    Stderr = 2,
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whose output.
    pub task: TaskId,
    /// Which run of it.
    pub attempt: AttemptId,
    /// What of it.
    pub stream: Stream,
    /// How many bytes follow.
    pub len: u32,
}

impl Header {
    /// Reads the head at the start of `bytes`; None when it is not whole, or not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let b: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let stream = match b[24] {
            0 => Stream::End,
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let len = u32_at(25);
        if b[..4] != MAGIC || len as usize > RECORD_BYTES_MAX {
            return None;
        }
        let job = JobId(u64::from(u32_at(4)) | u64::from(u32_at(8)) << 32);
        let attempt = AttemptId { epoch: Epoch(u32_at(16)), n: u32_at(20) };
        Some(Header { task: TaskId { job, index: u32_at(12) }, attempt, stream, len })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.task.job.0.to_le_bytes());
        out.extend_from_slice(&self.task.index.to_le_bytes());
        out.extend_from_slice(&self.attempt.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.attempt.n.to_le_bytes());
        out.push(self.stream as u8);
        out.extend_from_slice(&self.len.to_le_bytes());
    }
}

/// Name of a manager's log in the output folder.
#[must_use]
pub fn file_name(manager: ManagerId) -> String {
    format!("{}-{}-{:016x}.log", manager.block, manager.node, manager.incarnation)
}

/// Appends `bytes` as one record, or several when they are long. Nothing for no bytes, except for [`Stream::End`].
pub fn append(out: &mut Vec<u8>, task: TaskId, attempt: AttemptId, stream: Stream, bytes: &[u8]) {
    if stream == Stream::End {
        Header { task, attempt, stream, len: 0 }.encode(out);
        return;
    }
    for piece in bytes.chunks(RECORD_BYTES_MAX) {
        Header { task, attempt, stream, len: piece.len() as u32 }.encode(out);
        out.extend_from_slice(piece);
    }
}

/// Walks over the whole records of a piece of a log.
#[derive(Debug)]
pub struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// Over `bytes`, which should begin at a record.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Scan { bytes, at: 0 }
    }

    /// Where the next record begins, or will begin: scan from here when the file has grown.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.bytes.get(self.at..)?;
            if rest.len() < HEADER_BYTES {
                return None;
            }
            if let Some(header) = Header::decode(rest) {
                let end = HEADER_BYTES + header.len as usize;
                let piece = rest.get(HEADER_BYTES..end)?;
                self.at += end;
                return Some((header, piece));
            }
            // Damage: on to the next magic, but not past a magic that may be cut at the end.
            let next = rest[1..].windows(MAGIC.len()).position(|window| window == MAGIC);
            self.at += next.map_or(rest.len() - (MAGIC.len() - 1), |n| n + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn task(index: u32) -> TaskId {
        TaskId { job: JobId(u64::MAX - 3), index }
    }

    fn attempt(n: u32) -> AttemptId {
        AttemptId { epoch: Epoch(9), n }
    }

    #[test]
    fn the_layout_is_pinned() {
        let mut log = Vec::new();
        append(
            &mut log,
            TaskId { job: JobId(1), index: 2 },
            AttemptId { epoch: Epoch(3), n: 4 },
            Stream::Stderr,
            b"hi",
        );
        let expected = b"PFo1\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x02\x02\0\0\0hi";
        assert_eq!(log, expected);
        let manager = ManagerId { block: crate::BlockId(7), node: 0, incarnation: 0xab };
        assert_eq!(file_name(manager), "b7-0-00000000000000ab.log");
    }

    #[test]
    fn a_log_is_read_while_it_grows() {
        let mut log = Vec::new();
        append(&mut log, task(1), attempt(1), Stream::Stdout, b"one");
        let first = log.len();
        append(&mut log, task(2), attempt(2), Stream::Stdout, b"two");
        append(&mut log, task(1), attempt(1), Stream::End, b"");
        for cut in 0..log.len() {
            let mut scan = Scan::new(&log[..cut]);
            let seen = scan.by_ref().count();
            let mut rest = Scan::new(&log[scan.offset()..]);
            assert_eq!(seen + rest.by_ref().count(), 3, "cut at {cut}");
            assert_eq!(seen > 0, cut >= first);
        }
    }

    #[test]
    fn damage_costs_only_what_it_hit() {
        let mut log = Vec::new();
        append(&mut log, task(1), attempt(1), Stream::Stdout, b"one");
        let first = log.len();
        append(&mut log, task(2), attempt(2), Stream::Stdout, b"two");
        log[24] = 77;
        let found: Vec<_> = Scan::new(&log).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, b"two");
        assert!(first > HEADER_BYTES);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(pieces in proptest::collection::vec((0u32..5, 1u8..3, proptest::collection::vec(any::<u8>(), 1..200)), 0..30)) {
            let mut log = Vec::new();
            for (n, stream, bytes) in &pieces {
                let stream = if *stream == 1 { Stream::Stdout } else { Stream::Stderr };
                append(&mut log, task(*n), attempt(*n), stream, bytes);
            }
            let read: Vec<_> = Scan::new(&log).map(|(h, b)| (h.task.index, h.stream as u8, b.to_vec())).collect();
            prop_assert_eq!(read, pieces);
        }

        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            if at + 4 <= bytes.len() { bytes[at..at + 4].copy_from_slice(&MAGIC); }
            let mut scan = Scan::new(&bytes);
            while scan.next().is_some() {}
            prop_assert!(scan.offset() <= bytes.len());
        }
    }
}
