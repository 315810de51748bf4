//! Why a broker cannot start or go on, for the person who starts it. Returned by the start-up calls of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the shell itself; what clients are told is [`crate::api_error::ApiError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
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
    /// A folder or file that must be ours alone is not.
    #[error("{} {reason}", path.display())]
    Unsafe {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another broker serves this local place.
    #[error("another broker (pid {pid}) serves {}", path.display())]
    Served {
        /// The socket.
        path: PathBuf,
        /// The other's process id, 0 if it is not known.
        pid: u32,
    },
    /// The address to listen on cannot be used.
    #[error("listen on {address}")]
    Listen {
        /// The address as given.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The TLS certificate or its key cannot be made or read.
    #[error("{action} the TLS certificate in {}", path.display())]
    Certificate {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store.
    #[error("open the broker's log")]
    Store(#[from] pf_store::StoreError),
    /// The transport.
    #[error("set up the broker's links")]
    Transport(#[from] pf_transport::TransportError),
    /// No random numbers, no runtime.
    #[error("{action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BrokerError {
    /// What the person can do about it, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            BrokerError::Unsafe { path, .. } => Some(format!(
                "remove {} or choose another folder (`places.local` in the config)",
                path.display()
            )),
            BrokerError::Served { .. } => {
                Some("use that broker, or give this one places of its own (PILOTFISH_DIR)".into())
            }
            BrokerError::Certificate { path, .. } => Some(format!(
                "remove {} for a new certificate; clients must then pin that one",
                path.display()
            )),
            BrokerError::Store(source) => source.hint().map(str::to_owned),
            _ => None,
        }
    }
}

/// Adds what was tried and on what to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// Names the action (a verb that reads well before a path) and the path.
    fn on(self, action: &'static str, path: &Path) -> Result<T, BrokerError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, BrokerError> {
        self.map_err(|source| BrokerError::Io { action, path: path.to_path_buf(), source })
    }
}
