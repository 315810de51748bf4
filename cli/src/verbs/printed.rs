//! What the tasks of a `pf run` print: read once from the managers' logs as these grow, and given out task by task. `run` serves itself, so the
//! logs are at hand; a broker that is asked for each task looks for it through all of them.

use crate::error::{Result, io_error};
use pf_protocol::JobId;
use pf_protocol::outlog::{HEADER_BYTES, RECORD_BYTES_MAX, Scan, Stream};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A piece of output: 1 stdout, 2 stderr, and the bytes.
pub type Piece = (u8, Vec<u8>);

/// See the module.
pub struct Printed {
    folder: PathBuf,
    job: JobId,
    /// How far each log was read.
    read: BTreeMap<PathBuf, u64>,
    /// What was not taken yet, by position of the task.
    held: BTreeMap<u32, Vec<Piece>>,
    buffer: Vec<u8>,
}

impl Printed {
    /// What tasks of `job` print to the logs in `folder`.
    pub fn new(folder: &Path, job: JobId) -> Printed {
        // Holds the longest record, so that each read gets on.
        let buffer = vec![0; HEADER_BYTES + RECORD_BYTES_MAX];
        Printed { folder: folder.to_path_buf(), job, read: BTreeMap::new(), held: BTreeMap::new(), buffer }
    }

    /// Reads what is new. What a task has printed is in its log before its outcome is told.
    pub fn look(&mut self) -> Result<()> {
        let list = |e| io_error(format!("list {}", self.folder.display()), e);
        let entries = match std::fs::read_dir(&self.folder) {
            // No task has printed anything.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(list)?,
        };
        let logs: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .filter(|path| !path.as_ref().is_ok_and(|path| path.extension().is_none_or(|e| e != "log")))
            .collect::<std::io::Result<_>>()
            .map_err(list)?;
        logs.iter()
            .try_for_each(|log| self.read_on(log).map_err(|e| io_error(format!("read {}", log.display()), e)))
    }

    fn read_on(&mut self, log: &Path) -> std::io::Result<()> {
        let file = File::open(log)?;
        let mut at = self.read.get(log).copied().unwrap_or(0);
        loop {
            let length = match file.read_at(&mut self.buffer, at) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            let mut scan = Scan::new(&self.buffer[..length]);
            for (header, piece) in scan.by_ref() {
                if header.task.job == self.job && header.stream != Stream::End {
                    let held = self.held.entry(header.task.index).or_default();
                    held.push((header.stream as u8, piece.to_vec()));
                }
            }
            // What is left is a record that is not whole yet.
            if scan.offset() == 0 {
                self.read.insert(log.to_path_buf(), at);
                return Ok(());
            }
            at += scan.offset() as u64;
        }
    }

    /// What the task at this position has printed since it was last asked for.
    pub fn take(&mut self, index: u32) -> Vec<Piece> {
        self.held.remove(&index).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::outlog::append;
    use pf_protocol::{AttemptId, TaskId};
    use std::io::Write;

    #[test]
    fn each_task_has_its_own_output_however_the_logs_grow() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut printed = Printed::new(folder.path(), JobId(1));
        let grow = |log: &str, bytes: &[u8]| {
            let path = folder.path().join(log);
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("open");
            file.write_all(bytes).expect("write");
        };
        let record = |job, index, stream, text: &[u8]| {
            let mut bytes = Vec::new();
            append(&mut bytes, TaskId { job: JobId(job), index }, AttemptId::default(), stream, text);
            bytes
        };
        printed.look().expect("nothing yet");
        let long = vec![b'x'; RECORD_BYTES_MAX + 10];
        grow("b1-0-0.log", &record(1, 0, Stream::Stdout, b"a\xff"));
        grow("b1-0-0.log", &record(2, 0, Stream::Stdout, b"of another job"));
        grow("b1-1-0.log", &record(1, 1, Stream::Stdout, &long));
        grow("b1-1-0.log", &record(1, 1, Stream::End, b""));
        let cut = record(1, 0, Stream::Stderr, b"later");
        grow("b1-0-0.log", &cut[..cut.len() - 2]);
        grow("notes.txt", b"no log");
        printed.look().expect("look");
        assert_eq!(printed.take(0), [(1, b"a\xff".to_vec())]);
        assert_eq!(printed.take(1).iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), long.len());
        grow("b1-0-0.log", &cut[cut.len() - 2..]);
        printed.look().expect("look again");
        assert_eq!(printed.take(0), [(2, b"later".to_vec())]);
        assert!(printed.take(0).is_empty() && printed.take(1).is_empty());
    }
}
