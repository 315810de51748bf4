//! Which parts of a manager's log may hold what a task wrote. Used by [`crate::logs`]: a log of gigabytes is read through once, and then only where it grew.

use crate::limits::{LOG_PAGE_BYTES, LOG_PAGE_JOBS_MAX, LOG_READ_BYTES};
use pf_protocol::outlog::{HEADER_BYTES, Scan};
use pf_protocol::{JobId, TaskId};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Whole records of a log one after another, and whose they are.
#[derive(Debug)]
struct Page {
    start: u64,
    /// For each job the first and the last position. Tasks of a job run in about the order of their positions, so this says nearly all.
    jobs: Vec<(JobId, u32, u32)>,
    /// There are more jobs than are told apart.
    any: bool,
}

impl Page {
    fn add(&mut self, task: TaskId) {
        let told_apart = self.jobs.len();
        match self.jobs.iter_mut().find(|(job, ..)| *job == task.job) {
            Some((_, first, last)) => (*first, *last) = (task.index.min(*first), task.index.max(*last)),
            None if told_apart < LOG_PAGE_JOBS_MAX => self.jobs.push((task.job, task.index, task.index)),
            None => self.any = true,
        }
    }

    fn may_hold(&self, task: TaskId) -> bool {
        let of_task = |(job, first, last): &(JobId, u32, u32)| {
            *job == task.job && (*first..=*last).contains(&task.index)
        };
        self.any || self.jobs.iter().any(of_task)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pages: Vec<Page>,
    /// Bytes that were read through: the end of the last whole record.
    end: u64,
}

impl LogIndex {
    /// Reads what has been written since the last time. `buffer` is of [`LOG_READ_BYTES`].
    pub fn bring_up(&mut self, file: &File, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let length = read_at(file, buffer, self.end)?;
            let mut scan = Scan::new(&buffer[..length]);
            while let Some((header, piece)) = scan.next() {
                let start = self.end + (scan.offset() - HEADER_BYTES - piece.len()) as u64;
                match self.pages.last_mut().filter(|page| start - page.start < LOG_PAGE_BYTES) {
                    Some(page) => page.add(header.task),
                    None => {
                        let mut page = Page { start, jobs: Vec::new(), any: false };
                        page.add(header.task);
                        self.pages.push(page);
                    }
                }
            }
            if scan.offset() == 0 {
                return Ok(());
            }
            self.end += scan.offset() as u64;
        }
    }

    /// Where to look for what `task` wrote from `from` on, in order. Each part is far below [`LOG_READ_BYTES`], and begins at a record, as `from` does.
    pub fn parts(&self, task: TaskId, from: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let ends = self.pages.iter().skip(1).map(|page| page.start).chain([self.end]);
        let of_task = move |(page, end): (&Page, u64)| {
            (end > from && page.may_hold(task)).then(|| page.start.max(from)..end)
        };
        self.pages.iter().zip(ends).filter_map(of_task)
    }
}

/// Reads until the buffer is full, or the file at its end.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], at + length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

// A page ends with the record in which it became full.
const _: () =
    assert!(LOG_PAGE_BYTES as usize + HEADER_BYTES + pf_protocol::outlog::RECORD_BYTES_MAX <= LOG_READ_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::AttemptId;
    use pf_protocol::outlog::{Stream, append};

    #[test]
    fn only_the_parts_near_a_task_are_read() {
        let mut file = tempfile::tempfile().unwrap();
        let task = |job, index| TaskId { job: JobId(job), index };
        let mut bytes = Vec::new();
        for index in 0..20_000 {
            append(&mut bytes, task(1, index), AttemptId::default(), Stream::Stdout, &[b'x'; 100]);
        }
        let damage = bytes.len();
        bytes.extend_from_slice(b"no record");
        for job in 2..2_002 {
            append(&mut bytes, task(job, 7), AttemptId::default(), Stream::Stdout, &[b'y'; 100]);
        }
        let (mut index, mut buffer) = (LogIndex::default(), vec![0; LOG_READ_BYTES]);
        for piece in bytes.chunks(1_000_003) {
            io::Write::write_all(&mut file, piece).unwrap();
            index.bring_up(&file, &mut buffer).unwrap();
        }
        assert_eq!(index.end, bytes.len() as u64);
        let sought = |task, from| -> (usize, u64) {
            let mut found = (0, 0);
            for part in index.parts(task, from) {
                let part = &bytes[part.start as usize..part.end as usize];
                found.0 += Scan::new(part).filter(|(header, _)| header.task == task).count();
                found.1 += part.len() as u64;
            }
            found
        };
        for n in [0, 1, 9_999, 19_999] {
            let (records, read) = sought(task(1, n), 0);
            assert!(records == 1 && read < 4 * LOG_PAGE_BYTES, "task {n}: {records} records in {read} bytes");
        }
        assert_eq!(sought(task(1, 5), (damage / 2) as u64 / 129 * 129).0, 0, "it is before");
        assert_eq!(sought(task(3, 7), 0).0, 1, "also where there are more jobs than are told apart");
        assert_eq!(
            sought(task(1, 30_000), 0),
            (0, index.parts(task(9_999, 0), 0).map(|p| p.end - p.start).sum())
        );
    }
}
