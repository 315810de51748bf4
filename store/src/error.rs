//! What can go wrong in the store, for the person who must act. Returned by every call of this crate.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Any error of a caller's replay function.
pub type ReplayError = Box<dyn Error + Send + Sync>;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused an operation.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A living process holds the folder.
    #[error("another broker ({host}, pid {pid}) holds {}", dir.display())]
    Held {
        /// Host of the holder.
        host: String,
        /// Its process id there.
        pid: u32,
        /// The folder.
        dir: PathBuf,
    },
    /// Acknowledged bytes are damaged; nothing was changed on disk.
    #[error("{} is damaged at offset {offset}: {reason}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Offset in bytes of the first bad frame.
        offset: u64,
        /// What was found there.
        reason: String,
    },
    /// A file that the log needs is not there.
    #[error("{} is missing, {} continues it", file.display(), needed_by.display())]
    Missing {
        /// The missing file.
        file: PathBuf,
        /// The file that names it.
        needed_by: PathBuf,
    },
    /// A file was written in a format that this program does not know.
    #[error("{} has store format {found}, this program knows {known}", file.display())]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// The format that it names.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The disk is (nearly) full: only outcomes are accepted.
    #[error("no space for new work in {}", dir.display())]
    Full {
        /// The folder.
        dir: PathBuf,
    },
    /// Too much waits for the disk. Retry after the next synced position.
    #[error("the disk of {} is behind: {waiting_bytes} bytes wait", dir.display())]
    Busy {
        /// The folder.
        dir: PathBuf,
        /// Bytes that wait to be written.
        waiting_bytes: usize,
    },
    /// A record, a blob or a snapshot is over its limit.
    #[error("{what} of {len} bytes is over the limit of {max}")]
    TooLarge {
        /// `record`, `blob`.
        what: &'static str,
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The caller's replay function refused a record.
    #[error("cannot replay record {position} at offset {offset} of {}", file.display())]
    Replay {
        /// The file.
        file: PathBuf,
        /// Offset of the record's frame in bytes.
        offset: u64,
        /// The record's position.
        position: u64,
        /// The caller's reason.
        source: ReplayError,
    },
    /// An earlier write or sync failed, or the folder was taken: this store accepts nothing more.
    #[error("the store has failed: {reason}")]
    Failed {
        /// The first failure, with its causes.
        reason: String,
    },
    /// A snapshot is still being written.
    #[error("a snapshot is still being written")]
    SnapshotRunning,
    /// A blob cannot be there: its segment is gone or shorter, or its bytes do not match their checksum.
    #[error("blob at {offset} of payload segment {segment}: {reason}")]
    Blob {
        /// Payload segment.
        segment: u32,
        /// Offset in bytes.
        offset: u32,
        /// What was found.
        reason: String,
    },
    /// An option has a value that cannot work.
    #[error("option {name}: {reason}")]
    Option {
        /// Name in [`Options`](crate::Options).
        name: &'static str,
        /// Why not.
        reason: String,
    },
    /// The folder holds no log.
    #[error("{} holds no log", dir.display())]
    Empty {
        /// The folder.
        dir: PathBuf,
    },
}

impl StoreError {
    /// What the person can do about it, if that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            StoreError::Held { .. } => Some("stop that broker first, or give this one a folder of its own"),
            StoreError::Damaged { .. } => {
                Some("nothing was changed: restore the file or open a backup; `check` lists every damage")
            }
            StoreError::Missing { .. } => Some("restore the file from a backup"),
            StoreError::UnknownFormat { .. } => Some("use the version of pf that wrote it, or a newer one"),
            StoreError::Full { .. } => {
                Some("free space or raise the quota, or forget finished jobs; results are still recorded")
            }
            StoreError::Busy { .. } => Some("retry in a moment"),
            StoreError::Failed { .. } => Some("start the broker again: it replays what was acknowledged"),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without a restart.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::Full { .. } | StoreError::Busy { .. } | StoreError::SnapshotRunning)
    }

    /// The error and its causes in one line, for places that can hold only text.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// True when the system said that space or quota is used up.
    pub(crate) fn is_out_of_space(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if is_out_of_space(source))
    }
}

/// True when the system said that space or quota is used up.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(code) if code == nix::errno::Errno::ENOSPC as i32 || code == nix::errno::Errno::EDQUOT as i32)
}

/// Adds what was tried and on what to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// Names the action (a verb phrase that reads well before a path) and the path.
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_path_buf(), source })
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(io::Error::from).on(action, path)
    }
}
