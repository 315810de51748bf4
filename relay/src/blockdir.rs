//! A block's folder: made before the submit, with the ticket that lets its pilot in; read when the block is adopted or buried.

use crate::error::RelayError;
use crate::files::{private_dir, read, replace, tail};
use crate::limits::{BLOCK_TAIL_BYTES_MAX, SPOOL_BYTES_MAX, SPOOL_FILES_MAX, TICKET_BYTES_MAX};
use crate::local_scheduler::BLOCK_LOG;
use crate::options::RelayOptions;
use crate::payload_files;
use pf_protocol::outcome::OutcomeBatch;
use pf_protocol::spool;
use pf_protocol::ticket::{TICKET_FORMAT, Ticket};
use pf_protocol::{BlockId, EndpointId, Epoch};
use pf_relay_core::BlockRecord;
use pf_transport::{KeyPair, PublicKey};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a ticket says of the relay.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub epoch: Epoch,
    pub endpoint: EndpointId,
    pub relays: Vec<String>,
    pub relay_key: String,
}

/// The folder of a block.
pub(crate) fn path(options: &RelayOptions, block: BlockId) -> PathBuf {
    options.blocks_dir.join(block.to_string())
}

/// Deletes the folders of blocks up to `upto` that are not to be kept.
pub(crate) fn tidy(blocks_dir: &Path, keep: &[BlockId], upto: BlockId) -> Result<(), RelayError> {
    for entry in fs::read_dir(blocks_dir).map_err(RelayError::file("list", blocks_dir))? {
        let entry = entry.map_err(RelayError::file("list", blocks_dir))?;
        let name = entry.file_name();
        // Only what is written like a block: `b7`.
        let block = name.to_str().filter(|n| n.starts_with('b')).and_then(|n| n.parse::<BlockId>().ok());
        if block.is_some_and(|b| b <= upto && !keep.contains(&b)) {
            fs::remove_dir_all(entry.path()).map_err(RelayError::file("delete", entry.path()))?;
        }
    }
    Ok(())
}

/// Makes folder, key and ticket; the key is what the block's processes will prove to have.
pub(crate) fn prepare(
    options: &RelayOptions,
    record: &BlockRecord,
    address: &Address,
    program: &str,
) -> Result<PublicKey, RelayError> {
    let dir = path(options, record.block);
    private_dir(&dir)?;
    private_dir(&options.output_dir)?;
    private_dir(&options.work_dir)?;
    let keys = KeyPair::generate()?;
    let ticket = Ticket { program: program.into(), ..ticket(options, record, address, &keys, &dir) };
    write_ticket(&dir, &ticket)?;
    Ok(keys.public)
}

fn ticket(
    options: &RelayOptions,
    record: &BlockRecord,
    address: &Address,
    keys: &KeyPair,
    dir: &Path,
) -> Ticket {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ticket {
        format: TICKET_FORMAT,
        endpoint_name: options.endpoint.clone(),
        endpoint: address.endpoint,
        block: record.block,
        epoch: address.epoch,
        relays: address.relays.clone(),
        relay_key: address.relay_key.clone(),
        block_key: (keys.public.to_z85(), keys.secret_z85()),
        nodes: record.nodes,
        walltime_ms: record.walltime_ms,
        dir: text(dir),
        program: String::new(),
        output_dir: text(&options.output_dir),
        local_dir: options.local_dir.as_deref().map(text),
        payloads_dir: Some(text(&payload_files::dir(options))),
        work_dir: text(&options.work_dir),
        python: options.python.clone(),
        slots: options.slots.clone(),
        launcher: options.launcher.clone(),
    }
}

fn write_ticket(dir: &Path, ticket: &Ticket) -> Result<(), RelayError> {
    let path = dir.join("ticket.json");
    let bytes = serde_json::to_vec_pretty(ticket);
    replace(&path, &bytes.map_err(|source| RelayError::Damaged { path: path.clone(), source })?)
}

fn read_ticket(dir: &Path) -> Result<Option<Ticket>, RelayError> {
    let path = dir.join("ticket.json");
    let Some(bytes) = read(&path, TICKET_BYTES_MAX)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| RelayError::Damaged { path, source })
}

/// The key of a block that an earlier relay made. None if it never came to that.
pub(crate) fn key(options: &RelayOptions, block: BlockId) -> Result<Option<PublicKey>, RelayError> {
    let ticket = read_ticket(&path(options, block))?;
    ticket.map(|t| PublicKey::from_z85(&t.block_key.0).map_err(RelayError::from)).transpose()
}

/// The programs that these blocks run.
pub(crate) fn programs(options: &RelayOptions, blocks: &[BlockId]) -> Result<BTreeSet<PathBuf>, RelayError> {
    let program = |block: &BlockId| {
        let ticket = read_ticket(&path(options, *block)).transpose()?;
        Some(ticket.map(|t| PathBuf::from(t.program)))
    };
    blocks.iter().filter_map(program).collect()
}

/// The relay has moved or has a new epoch: the ticket says so. Blocks without a ticket were never submitted.
pub(crate) fn refresh(options: &RelayOptions, block: BlockId, address: &Address) -> Result<(), RelayError> {
    let dir = path(options, block);
    let Some(mut ticket) = read_ticket(&dir)? else { return Ok(()) };
    if ticket.epoch > address.epoch {
        // A later relay has it: this one is about to learn that.
        return Ok(());
    }
    ticket.epoch = address.epoch;
    ticket.endpoint = address.endpoint;
    ticket.relays.clone_from(&address.relays);
    ticket.relay_key.clone_from(&address.relay_key);
    ticket.payloads_dir = Some(payload_files::dir(options).to_string_lossy().into_owned());
    write_ticket(&dir, &ticket)
}

/// All outcomes that lie in a block's folder. What is damaged is told of, what can be read is taken.
pub(crate) fn spools(dir: &Path) -> Result<Vec<OutcomeBatch>, RelayError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(RelayError::file("list", dir))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(spool::PREFIX) && name.ends_with(spool::SUFFIX)
    });
    paths.sort();
    let mut batches = Vec::new();
    for path in paths.iter().take(SPOOL_FILES_MAX) {
        let Some(bytes) = read(path, SPOOL_BYTES_MAX)? else { continue };
        let (found, rest) = spool::decode(&bytes);
        batches.extend(found);
        if let Some(error) = rest {
            tracing::warn!(path = %path.display(), %error, "a spool cannot be read to its end");
        }
    }
    Ok(batches)
}

/// The last words of a block.
pub(crate) fn last_words(dir: &Path) -> String {
    tail(&dir.join(BLOCK_LOG), BLOCK_TAIL_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_old_blocks_are_deleted() {
        let folder = tempfile::tempdir().expect("temporary folder");
        for name in ["b1", "b2", "b10", "b11", "bin", "b2.old", "x1"] {
            fs::create_dir_all(folder.path().join(name).join("inside")).expect("make");
        }
        tidy(folder.path(), &[BlockId(2)], BlockId(10)).expect("tidy");
        let mut left: Vec<String> = fs::read_dir(folder.path())
            .expect("list")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["b11", "b2", "b2.old", "bin", "x1"]);
    }
}
