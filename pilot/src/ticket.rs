//! Reads the ticket. Called by both mains, and again before each round of dialling.

use crate::limits::TICKET_BYTES_MAX;
use pf_protocol::ticket::{TICKET_FORMAT, Ticket};
use pf_transport::{DialSpec, KeyPair, Outbox, PublicKey};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a ticket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// Not there, or not readable.
    #[error("read ticket {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds a secret key, and others could have read or changed it.
    #[error(
        "ticket {path} is open to others (mode {mode:o}, owner {owner}): it must be of mode 600 and yours"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// Not a ticket.
    #[error("ticket {path} is not a ticket")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Of another version.
    #[error("ticket {path} has format {format}, this version reads {TICKET_FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// Its keys are not keys.
    #[error("ticket {path} has keys that are none")]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pf_transport::TransportError,
    },
}

/// Reads the ticket again and dials all its addresses. None of them if it cannot be used now.
pub(crate) fn dial_all(path: &Path, out: &mut Outbox) -> Vec<u64> {
    match read(path).and_then(|ticket| dial_specs(path, &ticket)) {
        Ok(specs) => specs.iter().map(|spec| out.dial(spec).0).collect(),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the ticket cannot be used now");
            Vec::new()
        }
    }
}

/// Reads and checks a ticket.
pub(crate) fn read(path: &Path) -> Result<Ticket, TicketError> {
    let io = |source| TicketError::Read { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let (mode, owner) = (meta.mode() & 0o777, meta.uid());
    if mode & 0o077 != 0 || owner != nix::unistd::geteuid().as_raw() {
        return Err(TicketError::Open { path: path.into(), mode, owner });
    }
    let mut text = String::new();
    file.take(TICKET_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
    let ticket: Ticket =
        serde_json::from_str(&text).map_err(|source| TicketError::Parse { path: path.into(), source })?;
    if ticket.format != TICKET_FORMAT {
        return Err(TicketError::Format { path: path.into(), format: ticket.format });
    }
    Ok(ticket)
}

/// Whom a ticket says to dial.
pub(crate) fn dial_specs(path: &Path, ticket: &Ticket) -> Result<Vec<DialSpec>, TicketError> {
    let keys = |source| TicketError::Keys { path: path.into(), source };
    let server_key = PublicKey::from_z85(&ticket.relay_key).map_err(keys)?;
    let own = KeyPair::from_z85(&ticket.block_key.0, &ticket.block_key.1).map_err(keys)?;
    let spec = |address: &String| DialSpec { address: address.clone(), server_key, keys: own.clone() };
    Ok(ticket.relays.iter().map(spec).collect())
}
