//! What people do with a store's folder from outside: `check` it, `dump` it, make a `backup`. Nothing here takes the
//! folder or writes to it, so all may run beside a living broker. Called by `pf broker`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Position;
use crate::error::{IoContext, StoreError};
use crate::folder;
use crate::limits::BACKUP_TRIES_MAX;
use crate::payload;
use crate::recover::{self, End, History, Replay, ReplayFn};

const COPY_BYTES: usize = 1 << 20;

/// A damage that `check` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Offset in bytes.
    pub offset: u64,
    /// What was found there.
    pub reason: String,
}

/// What `check` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The log's identity.
    pub log_id: u64,
    /// Position of the snapshot, if there is one.
    pub snapshot: Option<Position>,
    /// Position of the last sound record.
    pub position: Position,
    /// Log segments that recovery needs.
    pub log_segments: usize,
    /// Bytes of log that recovery reads.
    pub log_bytes: u64,
    /// Payload segments.
    pub payload_segments: usize,
    /// Sound blobs in them.
    pub blobs: u64,
    /// Payload segments whose end is not sound. After a crash that is normal for the last one of each epoch: what lies
    /// behind a torn blob was never acknowledged, or the log carries it and the next start writes it again.
    pub torn_payload: Vec<Damage>,
}

fn history(dir: &Path) -> Result<History, StoreError> {
    History::find(dir)?.ok_or_else(|| StoreError::Empty { dir: dir.to_path_buf() })
}

/// Reads everything in the folder and checks it.
///
/// # Errors
/// `Empty`; `Damaged` and `Missing` when the log itself cannot be recovered; `UnknownFormat`, `Io`.
pub fn check(dir: &Path) -> Result<Report, StoreError> {
    let history = history(dir)?;
    let end = history.replay(dir, &mut |_| Ok(()), &mut recover::leave)?;
    let mut report = Report {
        log_id: history.log_id,
        snapshot: history.snapshot.map(|snapshot| Position(snapshot.position)),
        position: Position(end.position),
        log_segments: history.chain.len(),
        log_bytes: end.log_bytes,
        payload_segments: 0,
        blobs: 0,
        torn_payload: Vec::new(),
    };
    for segment in folder::list(dir)?.payloads {
        let (blobs, damage) = payload::check_segment(dir, history.log_id, segment)?;
        report.payload_segments += 1;
        report.blobs += blobs;
        if let Some((offset, reason)) = damage {
            let file = folder::payload_path(dir, segment);
            report.torn_payload.push(Damage { file, offset, reason: reason.to_string() });
        }
    }
    Ok(report)
}

/// Gives the snapshot and every record behind it to `visit`, as a recovery would; returns the last position.
///
/// # Errors
/// As [`check`], and `Replay` with the error of `visit`.
pub fn dump(dir: &Path, visit: &mut ReplayFn<'_>) -> Result<Position, StoreError> {
    Ok(Position(history(dir)?.replay(dir, visit, &mut recover::leave)?.position))
}

/// Copies a store that may be in use into the new folder `dest`, which can then be opened as a store with the same log
/// id. It holds at least everything that was synced when the backup began. Returns its last position.
///
/// # Errors
/// As [`check`]; `Io` when `dest` exists or cannot be written.
pub fn backup(dir: &Path, dest: &Path) -> Result<Position, StoreError> {
    DirBuilder::new().mode(0o700).create(dest).on("create folder", dest)?;
    let mut tries = 1;
    loop {
        match copy_all(dir, dest) {
            Ok(position) => return Ok(position),
            // A snapshot was taken meanwhile and the log before it removed: begin again with the new one.
            Err(error) if vanished(&error) && tries < BACKUP_TRIES_MAX => {
                tries += 1;
                for entry in fs::read_dir(dest).on("read folder", dest)? {
                    folder::remove(&entry.on("read folder", dest)?.path())?;
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn vanished(error: &StoreError) -> bool {
    match error {
        StoreError::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
        StoreError::Missing { .. } => true,
        _ => false,
    }
}

fn copy_all(dir: &Path, dest: &Path) -> Result<Position, StoreError> {
    // Files held open now cannot vanish: payload dropped while the log is copied is still referred to by that log.
    let mut payloads = open_payloads(dir, &[])?;
    let history = history(dir)?;
    let end = history.replay(dir, &mut |_: Replay<'_>| Ok(()), &mut recover::leave)?;
    if let Some(snapshot) = history.snapshot {
        let from = snapshot.path(dir);
        copy(&File::open(&from).on("open", &from)?, &from, &snapshot.path(dest), u64::MAX)?;
    }
    copy_log(dir, dest, &history, &end)?;
    // Payload is on disk before the record that refers to it: what was created up to here is complete for this log.
    let known: Vec<u32> = payloads.iter().map(|(segment, _)| *segment).collect();
    payloads.extend(open_payloads(dir, &known)?);
    for (segment, file) in &payloads {
        let path = folder::payload_path(dir, *segment);
        copy(file, &path, &folder::payload_path(dest, *segment), u64::MAX)?;
    }
    folder::sync_dir(dest)?;
    Ok(Position(end.position))
}

/// Copies the segments of the chain, each up to where the history leaves it.
fn copy_log(dir: &Path, dest: &Path, history: &History, end: &End) -> Result<(), StoreError> {
    for (index, header) in history.chain.iter().enumerate() {
        let next = history.chain.get(index + 1).and_then(|next| next.before);
        let len = next.map_or(end.before.end, |before| before.end);
        let from = header.id.path(dir);
        copy(&File::open(&from).on("open", &from)?, &from, &header.id.path(dest), len)?;
    }
    Ok(())
}

fn open_payloads(dir: &Path, known: &[u32]) -> Result<Vec<(u32, File)>, StoreError> {
    let mut opened = Vec::new();
    for segment in folder::list(dir)?.payloads {
        if known.contains(&segment) {
            continue;
        }
        let path = folder::payload_path(dir, segment);
        match File::open(&path) {
            Ok(file) => opened.push((segment, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).on("open", &path),
        }
    }
    Ok(opened)
}

fn copy(from: &File, from_path: &Path, to: &Path, len: u64) -> Result<(), StoreError> {
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).on("create", to)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let got = from.read_at(&mut buffer[..want], at).on("read", from_path)?;
        if got == 0 {
            break;
        }
        out.write_all_at(&buffer[..got], at).on("write", to)?;
        at += got as u64;
    }
    out.sync_all().on("sync", to)
}
