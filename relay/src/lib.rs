//! The relay's shell: carries frames, runs the scheduler's commands, keeps roster, keys and tickets on disk, reads spools and logs.
//! What it decides is in `pf-relay-core`.
//!
//! `pf` adds a [`RelayNode`] to its reactor, paired with the broker's node or dialling it; [`RelayHandle`] stops it and tells of its end.
//! [`local_scheduler`] is the batch scheduler of the provider `local`, which `pf local ..` exposes.

pub mod addresses;
mod blockdir;
pub mod command;
mod error;
mod files;
pub mod limits;
pub mod local_scheduler;
mod log_index;
mod logs;
mod node;
mod options;
mod payload_files;
mod proc;
mod program;
pub mod rates;
mod scheduler;
mod work;

pub use error::RelayError;
pub use node::{Ended, News, RelayHandle, RelayNode};
pub use options::{BrokerLink, RelayOptions};
pub use pf_relay_core::scaling::NODE_MS_A_MILLI_HOUR;
pub use pf_relay_core::{Accounts, Scaling, Shape};

use std::path::{Path, PathBuf};

/// The relay's CURVE public key (Z85), made and kept in `state_dir` if it is not there yet: what a broker elsewhere must be told.
///
/// # Errors
/// When the key can neither be read nor made.
pub fn public_key(state_dir: &Path) -> Result<String, RelayError> {
    Ok(pf_transport::KeyPair::load_or_generate(&key_path(state_dir))?.public.to_z85())
}

pub(crate) fn key_path(state_dir: &Path) -> PathBuf {
    state_dir.join("relay.key")
}
