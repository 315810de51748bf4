//! Finds a task's output in the managers' logs, and a block's own words. Reads only; called from the files' thread.

use crate::files::tail;
use crate::limits::{BLOCK_LOG_BYTES_MAX, LOG_ANSWER_BYTES_MAX, LOG_READ_BYTES};
use crate::log_index::{LogIndex, read_at};
use bytes::Bytes;
use pf_protocol::TaskId;
use pf_protocol::message::AnswerWhat;
use pf_protocol::outlog::{Scan, Stream};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A place to go on is the log's number in the list, and the offset in it.
const OFFSET_BITS: u32 = 40;

/// The managers' logs in the order in which they were first seen: a place to go on holds while new ones come.
#[derive(Debug)]
pub(crate) struct Logs {
    known: Vec<(PathBuf, LogIndex)>,
    buffer: Vec<u8>,
}

impl Default for Logs {
    fn default() -> Self {
        Logs { known: Vec::new(), buffer: vec![0; LOG_READ_BYTES] }
    }
}

impl Logs {
    /// Pieces of a task's output from `from` on. `live`: more may still be written.
    pub(crate) fn read_task(&mut self, output_dir: &Path, task: TaskId, from: u64, live: bool) -> AnswerWhat {
        match list(output_dir) {
            Ok(logs) => {
                let known: BTreeSet<PathBuf> = self.known.iter().map(|(path, _)| path.clone()).collect();
                let new = logs.into_iter().filter(|log| !known.contains(log));
                self.known.extend(new.map(|path| (path, LogIndex::default())));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return AnswerWhat::Failed(format!("list {}: {e}", output_dir.display())),
        }
        let mut found = Found { pieces: Vec::new(), bytes: 0, next: from, full: false };
        let (first, offset) = ((from >> OFFSET_BITS) as usize, from & ((1 << OFFSET_BITS) - 1));
        for (number, (path, index)) in self.known.iter_mut().enumerate().skip(first) {
            let start = if number == first { offset } else { 0 };
            match read_one(path, index, &mut self.buffer, (number as u64, start), task, &mut found) {
                // An old one may have been tidied away.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return AnswerWhat::Failed(format!("read {}: {e}", path.display())),
                Ok(()) => {}
            }
            if found.full {
                break;
            }
        }
        AnswerWhat::Log { end: !live && !found.full, pieces: found.pieces, next: found.next }
    }
}

struct Found {
    pieces: Vec<(u8, Bytes)>,
    bytes: usize,
    next: u64,
    full: bool,
}

/// What `task` wrote to the log of this number, from `start` on.
fn read_one(
    path: &Path,
    index: &mut LogIndex,
    buffer: &mut [u8],
    (number, start): (u64, u64),
    task: TaskId,
    found: &mut Found,
) -> io::Result<()> {
    let file = File::open(path)?;
    index.bring_up(&file, buffer)?;
    for part in index.parts(task, start) {
        let length = usize::try_from(part.end - part.start).unwrap_or(LOG_READ_BYTES).min(LOG_READ_BYTES);
        let length = read_at(&file, &mut buffer[..length], part.start)?;
        let mut scan = Scan::new(&buffer[..length]);
        while let Some((header, piece)) = scan.next() {
            if header.task != task {
                continue;
            }
            if header.stream != Stream::End {
                found.bytes += piece.len();
                found.pieces.push((header.stream as u8, Bytes::copy_from_slice(piece)));
            }
            found.next = number << OFFSET_BITS | (part.start + scan.offset() as u64);
            if found.bytes >= LOG_ANSWER_BYTES_MAX {
                found.full = true;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The managers' logs, by block, node, and age.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs: Vec<((u64, u16, SystemTime), PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(stem) = name.strip_prefix('b').and_then(|n| n.strip_suffix(".log")) else { continue };
        let mut parts = stem.split('-');
        let (Some(block), Some(node)) = (parts.next(), parts.next()) else { continue };
        let (Ok(block), Ok(node)) = (block.parse(), node.parse()) else { continue };
        let meta = entry.metadata()?;
        let age = meta.created().or_else(|_| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        logs.push(((block, node, age), entry.path()));
    }
    logs.sort();
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}

/// The words of a block: its own log, its pilot's, its managers'; each with its name.
pub(crate) fn read_block(dir: &Path) -> AnswerWhat {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return AnswerWhat::Failed(format!("list {}: {e}", dir.display())),
    };
    let mut names: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    names.retain(|p| p.extension().is_some_and(|e| e == "log"));
    names.sort();
    let mut lines = Vec::new();
    for path in names {
        lines.push(format!("== {}", path.display()));
        lines.extend(tail(&path, BLOCK_LOG_BYTES_MAX).lines().map(String::from));
    }
    AnswerWhat::Text(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::outlog::{append, file_name};
    use pf_protocol::{AttemptId, BlockId, Epoch, JobId, ManagerId};
    use std::io::Write;

    fn text(what: &AnswerWhat) -> (String, u64, bool) {
        let AnswerWhat::Log { pieces, next, end } = what else { panic!("{what:?}") };
        (pieces.iter().map(|(_, b)| String::from_utf8_lossy(b)).collect(), *next, *end)
    }

    #[test]
    fn output_is_found_over_logs_and_followed() {
        let folder = tempfile::tempdir().unwrap();
        let task = |index| TaskId { job: JobId(1), index };
        let attempt = AttemptId { epoch: Epoch(1), n: 1 };
        let log = |block, records: &[(u32, &str)]| {
            let manager = ManagerId { block: BlockId(block), node: 0, incarnation: block };
            let path = folder.path().join(file_name(manager));
            let mut bytes = Vec::new();
            for (index, text) in records {
                append(&mut bytes, task(*index), attempt, Stream::Stdout, text.as_bytes());
            }
            fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(&bytes).unwrap();
        };
        let mut logs = Logs::default();
        log(10, &[(5, "ten ")]);
        log(9, &[(5, "one "), (6, "other "), (5, "two ")]);
        let (said, next, end) = text(&logs.read_task(folder.path(), task(5), 0, true));
        assert_eq!((said.as_str(), end), ("one two ten ", false));
        log(10, &[(6, "x"), (5, "more")]);
        let (said, next, _) = text(&logs.read_task(folder.path(), task(5), next, true));
        assert_eq!(said, "more");
        // Another manager begins, whose log comes first in the folder.
        log(8, &[(6, "y"), (5, "late")]);
        let (said, next, _) = text(&logs.read_task(folder.path(), task(5), next, true));
        assert_eq!(said, "late", "and nothing a second time");
        let (said, _, end) = text(&logs.read_task(folder.path(), task(5), next, false));
        assert_eq!((said.as_str(), end), ("", true));
        let mut none = Logs::default();
        let (said, _, end) = text(&none.read_task(&folder.path().join("none"), task(5), 0, false));
        assert_eq!((said.as_str(), end), ("", true));
    }

    #[test]
    fn a_long_output_comes_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId { job: JobId(1), index: 0 };
        let mut bytes = Vec::new();
        for n in 0..40u8 {
            let piece = vec![b'a' + n % 26; 100_000];
            append(&mut bytes, task, AttemptId::default(), Stream::Stderr, &piece);
        }
        fs::write(folder.path().join(file_name(ManagerId::default())), bytes).unwrap();
        let (mut all, mut from, mut rounds) = (String::new(), 0, 0);
        let mut logs = Logs::default();
        loop {
            let (said, next, end) = text(&logs.read_task(folder.path(), task, from, false));
            all.push_str(&said);
            (from, rounds) = (next, rounds + 1);
            if end {
                break;
            }
        }
        assert_eq!((all.len(), rounds > 4), (4_000_000, true));
    }
}
