//! What processes write: read from their pipes, cut at a limit, given to the log; the end of standard error is kept for the outcome.

use crate::limits::{OUTPUT_BYTES_MAX, READ_BYTES, READS_A_TURN, STDERR_TAIL_BYTES};
use nix::errno::Errno;
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, TaskId};
use std::os::fd::OwnedFd;

/// How much of one stream of one task was kept, and its end.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    bytes: usize,
    cut: bool,
    tail: Vec<u8>,
}

impl Kept {
    /// Appends to the log what the limit allows.
    pub fn take(
        &mut self,
        log: &mut Vec<u8>,
        task: TaskId,
        attempt: AttemptId,
        stream: Stream,
        bytes: &[u8],
    ) {
        if stream == Stream::Stderr {
            let from = bytes.len().saturating_sub(STDERR_TAIL_BYTES);
            self.tail.extend_from_slice(&bytes[from..]);
            let over = self.tail.len().saturating_sub(STDERR_TAIL_BYTES);
            self.tail.drain(..over);
        }
        let room = OUTPUT_BYTES_MAX.saturating_sub(self.bytes);
        let fits = &bytes[..bytes.len().min(room)];
        self.bytes += fits.len();
        outlog::append(log, task, attempt, stream, fits);
        if fits.len() < bytes.len() && !self.cut {
            self.cut = true;
            let name = if stream == Stream::Stderr { "standard error" } else { "standard output" };
            let note = format!("\n[pilotfish: {name} is cut here, the limit is {OUTPUT_BYTES_MAX} bytes]\n");
            outlog::append(log, task, attempt, Stream::Stderr, note.as_bytes());
        }
    }

    /// Whether anything was written.
    pub fn any(&self) -> bool {
        self.bytes > 0
    }

    /// The end of it, as text.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

/// How reading a pipe went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Nothing more for now.
    Empty,
    /// There may be more.
    More,
    /// Nothing more ever.
    Closed,
}

/// Reads what is there, up to a bound, and gives it to `sink`.
pub(crate) fn drain(fd: &OwnedFd, buffer: &mut Vec<u8>, mut sink: impl FnMut(&[u8])) -> Drained {
    buffer.resize(READ_BYTES, 0);
    for _ in 0..READS_A_TURN {
        match nix::unistd::read(fd, buffer) {
            Ok(0) => return Drained::Closed,
            Ok(n) => {
                sink(&buffer[..n]);
                // A short read has emptied the pipe; whoever writes later wakes us again.
                if n < READ_BYTES {
                    return Drained::Empty;
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Drained::Empty,
            Err(_) => return Drained::Closed,
        }
    }
    Drained::More
}

/// The output of a worker's tasks, told apart by the markers behind each.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    pending: Vec<u8>,
    /// The last task whose marker was seen.
    pub marked: u64,
}

/// Bytes of a marker: 16 random ones and the task's number.
const MARKER_BYTES: usize = 24;

impl Splitter {
    /// Takes bytes; `sink(seq, text)` gets what belongs to task `seq`, which for text without a marker yet is the one after the last marked.
    pub fn take(&mut self, marker: &[u8; 16], bytes: &[u8], mut sink: impl FnMut(u64, &[u8])) {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(found) = find(&self.pending[at..], marker) {
            let begin = at + found;
            let Some(number) = self.pending.get(begin + 16..begin + MARKER_BYTES) else { break };
            let mut seq = [0; 8];
            seq.copy_from_slice(number);
            let seq = u64::from_le_bytes(seq);
            if begin > at {
                sink(seq, &self.pending[at..begin]);
            }
            self.marked = self.marked.max(seq);
            at = begin + MARKER_BYTES;
        }
        // What cannot be the beginning of a marker need not wait for more.
        let rest = &self.pending[at..];
        let whole = find(rest, marker).unwrap_or_else(|| {
            let suffix = (1..16.min(rest.len() + 1)).rev().find(|&n| rest.ends_with(&marker[..n]));
            rest.len() - suffix.unwrap_or(0)
        });
        if whole > 0 {
            sink(self.marked + 1, &rest[..whole]);
        }
        self.pending.drain(..at + whole);
    }
}

fn find(bytes: &[u8], marker: &[u8; 16]) -> Option<usize> {
    bytes.windows(16).position(|window| window == marker)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn output_over_the_limit_is_cut_with_one_note() {
        let (mut kept, mut log) = (Kept::default(), Vec::new());
        let (task, attempt) = (TaskId::default(), AttemptId::default());
        let piece = vec![b'x'; OUTPUT_BYTES_MAX / 2 + 1];
        for _ in 0..4 {
            kept.take(&mut log, task, attempt, Stream::Stdout, &piece);
        }
        let of = |stream| -> Vec<u8> {
            outlog::Scan::new(&log)
                .filter(|(h, _)| h.stream == stream)
                .flat_map(|(_, b)| b.to_vec())
                .collect()
        };
        assert_eq!(of(Stream::Stdout).len(), OUTPUT_BYTES_MAX);
        assert_eq!(String::from_utf8(of(Stream::Stderr)).unwrap().matches("is cut here").count(), 1);
    }

    #[test]
    fn the_tail_is_the_end_and_need_not_be_text() {
        let (mut kept, mut log) = (Kept::default(), Vec::new());
        for n in 0..2_000 {
            let line = format!("line {n}\n");
            kept.take(&mut log, TaskId::default(), AttemptId::default(), Stream::Stderr, line.as_bytes());
        }
        kept.take(&mut log, TaskId::default(), AttemptId::default(), Stream::Stderr, b"\xff!");
        let tail = kept.tail();
        assert!(tail.ends_with("line 1999\n\u{fffd}!") && tail.len() <= STDERR_TAIL_BYTES + 2);
    }

    const MARKER: [u8; 16] = [7, 7, 7, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    proptest! {
        /// However the stream is cut into pieces, each task gets its bytes, even such that look like beginnings of a marker.
        #[test]
        fn markers_tell_tasks_apart(
            texts in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(7u8), 1u8..5, any::<u8>()], 0..40), 1..8),
            cuts in proptest::collection::vec(1usize..30, 1..60),
        ) {
            let mut stream = Vec::new();
            for (n, text) in texts.iter().enumerate() {
                stream.extend_from_slice(text);
                stream.extend_from_slice(&MARKER);
                stream.extend_from_slice(&(n as u64 + 1).to_le_bytes());
            }
            let mut splitter = Splitter::default();
            let mut got: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
            let (mut rest, mut cuts) = (&stream[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let n = cuts.next().unwrap().min(rest.len());
                splitter.take(&MARKER, &rest[..n], |seq, text| got.entry(seq).or_default().extend_from_slice(text));
                rest = &rest[n..];
            }
            prop_assert_eq!(splitter.marked, texts.len() as u64);
            prop_assert!(splitter.pending.is_empty());
            for (n, text) in texts.iter().enumerate() {
                prop_assert_eq!(&got.remove(&(n as u64 + 1)).unwrap_or_default(), text);
            }
            prop_assert!(got.is_empty());
        }
    }
}
