//! The thread that writes files: the output log and the spool. The reactor never waits for a file system.

use crate::limits::LOG_BUFFERS_WAITING_MAX;
use pf_protocol::outcome::OutcomeBatch;
use pf_protocol::{ManagerId, outlog, spool};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

enum Job {
    Log { number: u64, bytes: Vec<u8> },
    Spool { upto: u64, batches: Vec<OutcomeBatch> },
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// This buffer of the log.
    Log { number: u64 },
    /// A spool; whether it is safe on disk.
    Spool { upto: u64, ok: bool },
}

/// Where the files go.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Folder of the output log.
    pub output: PathBuf,
    /// The block's folder.
    pub block: PathBuf,
    /// Whose files they are.
    pub manager: ManagerId,
}

/// The thread. It ends, with everything written, when this is finished.
pub(crate) struct Files {
    jobs: Option<SyncSender<Job>>,
    done: Arc<Mutex<Vec<Written>>>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    last_log: u64,
}

impl Files {
    /// Starts the thread; `wake` is called when something was written.
    pub fn start(places: Places, wake: Box<dyn Fn() + Send>) -> io::Result<Self> {
        // One place is kept for a spool.
        let (jobs, queue) = sync_channel(LOG_BUFFERS_WAITING_MAX + 1);
        let (end, ended) = sync_channel(1);
        let done = Arc::new(Mutex::new(Vec::new()));
        let theirs = done.clone();
        let work = move || {
            let mut writer = Writer { places, log: None, log_failed: false, spools: 0 };
            while let Ok(job) = queue.recv() {
                let written = writer.write(job);
                theirs.lock().unwrap_or_else(PoisonError::into_inner).push(written);
                wake();
            }
            // Nobody waits any more, perhaps.
            let _ = end.send(());
        };
        let thread = std::thread::Builder::new().name("pf-files".into()).spawn(work)?;
        Ok(Files { jobs: Some(jobs), done, thread: Some(thread), ended, last_log: 0 })
    }

    /// Gives a buffer to the log; answers its number. When too many wait, the buffer comes back.
    pub fn log(&mut self, bytes: Vec<u8>) -> Result<u64, Vec<u8>> {
        let number = self.last_log + 1;
        let Some(jobs) = &self.jobs else { return Err(bytes) };
        match jobs.try_send(Job::Log { number, bytes }) {
            Ok(()) => {
                self.last_log = number;
                Ok(number)
            }
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => match job {
                Job::Log { bytes, .. } => Err(bytes),
                Job::Spool { .. } => Err(Vec::new()),
            },
        }
    }

    /// Number of the buffer that will be given next.
    pub fn next_log(&self) -> u64 {
        self.last_log + 1
    }

    /// Gives outcomes to the spool. Waits if the file system is far behind: without a spool there is nothing else to do.
    pub fn spool(&mut self, upto: u64, batches: Vec<OutcomeBatch>) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only with this sender.
            let _ = jobs.send(Job::Spool { upto, batches });
        }
    }

    /// What was written since the last look.
    pub fn take_done(&self) -> Vec<Written> {
        std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the thread write what it has and end, but waits no longer than `at_most` for a file system that hangs.
    pub fn finish(&mut self, at_most: Duration) {
        self.jobs = None;
        match self.ended.recv_timeout(at_most) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                if let Some(thread) = self.thread.take() {
                    // A writer that panicked has said so already.
                    let _ = thread.join();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("the file system hangs: the last output is not written")
            }
        }
    }
}

struct Writer {
    places: Places,
    log: Option<File>,
    log_failed: bool,
    spools: u32,
}

impl Writer {
    fn write(&mut self, job: Job) -> Written {
        match job {
            Job::Log { number, bytes } => {
                let result = self.append(&bytes);
                if let Err(error) = &result {
                    // Output is lost, outcomes are not: said once, not for each buffer.
                    if !self.log_failed {
                        tracing::error!(dir = %self.places.output.display(), %error, "task output cannot be written");
                    }
                }
                self.log_failed = result.is_err();
                Written::Log { number }
            }
            Job::Spool { upto, batches } => {
                let name = spool::file_name(self.places.manager, self.spools);
                self.spools += 1;
                let result = write_spool(&self.places.block, &name, &batches);
                if let Err(error) = &result {
                    tracing::error!(dir = %self.places.block.display(), name, %error, "outcomes cannot be spooled");
                }
                Written::Spool { upto, ok: result.is_ok() }
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let log = match &mut self.log {
            Some(log) => log,
            None => {
                std::fs::create_dir_all(&self.places.output)?;
                let path = self.places.output.join(outlog::file_name(self.places.manager));
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                self.log.insert(file)
            }
        };
        log.write_all(bytes)
    }
}

/// A spool file: whole and synced before it has its name.
pub(crate) fn write_spool(dir: &Path, name: &str, batches: &[OutcomeBatch]) -> io::Result<()> {
    let bytes = spool::encode(batches).map_err(io::Error::other)?;
    let draft = dir.join(format!("{name}.draft"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pf_protocol::outlog::Stream;
    use pf_protocol::{AttemptId, JobId, TaskId};

    #[test]
    fn logs_and_spools_are_there_when_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let manager = ManagerId { incarnation: 5, ..ManagerId::default() };
        let places = Places { output: dir.path().join("out"), block: dir.path().into(), manager };
        let mut files = Files::start(places, Box::new(|| {})).unwrap();
        let mut log = Vec::new();
        outlog::append(
            &mut log,
            TaskId { job: JobId(1), index: 0 },
            AttemptId::default(),
            Stream::Stdout,
            b"hello",
        );
        assert_eq!(files.log(log), Ok(1));
        files.spool(3, vec![OutcomeBatch { seq: 3, ..OutcomeBatch::default() }]);
        files.finish(Duration::from_secs(20));
        assert_eq!(files.take_done(), [Written::Log { number: 1 }, Written::Spool { upto: 3, ok: true }]);
        let bytes = std::fs::read(dir.path().join("out").join(outlog::file_name(manager))).unwrap();
        assert_eq!(outlog::Scan::new(&bytes).map(|(_, b)| b.to_vec()).collect::<Vec<_>>(), [b"hello"]);
        let (batches, error) =
            spool::decode(&std::fs::read(dir.path().join(spool::file_name(manager, 0))).unwrap());
        assert_eq!((batches[0].seq, error.is_none()), (3, true));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_end_of_the_world() {
        let places =
            Places { output: "/proc/none".into(), block: "/proc/none".into(), manager: ManagerId::default() };
        let mut files = Files::start(places, Box::new(|| {})).unwrap();
        files.log(vec![1]).unwrap();
        files.spool(1, Vec::new());
        files.finish(Duration::from_secs(20));
        assert_eq!(files.take_done()[1], Written::Spool { upto: 1, ok: false });
    }
}
