//! Why a relay cannot begin or go on. For `pf`, which prints the chain.

use std::io;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A file or folder cannot be used.
    #[error("{action} {}", path.display())]
    File {
        /// "read", "write", ..
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// Keys, sockets.
    #[error(transparent)]
    Transport(#[from] pf_transport::TransportError),
    /// The profile names something that this build does not have.
    #[error(transparent)]
    Provider(#[from] pf_providers::ProviderError),
    /// A thread cannot be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

impl RelayError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> RelayError {
        let path = path.into();
        move |source| RelayError::File { action, path, source }
    }
}
