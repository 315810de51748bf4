//! What can go wrong before frames move: keys, listening, descriptors. Printed by the shells.

use std::io;
use std::path::PathBuf;

/// An error of setting up the transport. Errors of a running connection are a [`crate::CloseReason`].
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// libzmq refused a call.
    #[error("{operation}: {source}")]
    Zmq {
        /// What was asked of libzmq.
        operation: &'static str,
        /// Its answer.
        source: zmq::Error,
    },
    /// No port of the range was free on all interfaces.
    #[error("listen on {host} ports {first}-{last}: {source}")]
    Listen {
        /// Interface asked for.
        host: String,
        /// First port tried; 0 is any.
        first: u16,
        /// Last port tried.
        last: u16,
        /// Why the last one failed.
        source: zmq::Error,
    },
    /// A listen without an interface.
    #[error("listen: no interface named")]
    NoInterface,
    /// The operating system refused a call.
    #[error("{operation}: {source}")]
    System {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// A key file could not be read or written.
    #[error("{operation} key file {}: {source}", path.display())]
    KeyFile {
        /// `read`, `write`, ...
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A key file that others can read is no secret any more.
    #[error("key file {} is open to others (mode {mode:03o}); make a new key, or chmod 600 it if you trust it", path.display())]
    KeyFileOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Text that is no key.
    #[error("{what} is not a key of 40 z85 characters")]
    BadKey {
        /// Which key.
        what: &'static str,
    },
}

impl TransportError {
    /// Turns libzmq's answer to `operation` into an error.
    pub(crate) fn zmq(operation: &'static str) -> impl FnOnce(zmq::Error) -> Self {
        move |source| Self::Zmq { operation, source }
    }

    /// Turns the system's answer to `operation` into an error.
    pub(crate) fn system(operation: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::System { operation, source: errno.into() }
    }
}
