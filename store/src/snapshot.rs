//! The bytes of a snapshot file: written beside the log by a thread of its own, so that commits do not wait for it, and
//! renamed to its name when synced. Used by the writer, recovery and the tools.
//!
//! 64 bytes of header (magic, format version, log id, epoch, position, length, CRC), the caller's bytes, their CRC.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};
use crate::folder::{self, SnapshotId};

const MAGIC: [u8; 8] = *b"PFSTSNP\n";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const COPY_BYTES: usize = 256 << 10;

fn header(log_id: u64, id: SnapshotId, len: u64) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&log_id.to_le_bytes());
    out[24..32].copy_from_slice(&id.epoch.to_le_bytes());
    out[32..40].copy_from_slice(&id.position.to_le_bytes());
    out[40..48].copy_from_slice(&len.to_le_bytes());
    let crc = crc32fast::hash(&out[..60]);
    out[60..64].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Writes a snapshot and makes it durable under its name. On failure nothing of it stays.
pub(crate) fn write(dir: &Path, log_id: u64, id: SnapshotId, bytes: &[u8]) -> Result<(), StoreError> {
    let path = id.path(dir);
    let temporary = path.with_extension("tmp");
    let written = write_to(&temporary, log_id, id, bytes);
    if written.is_err() {
        folder::remove(&temporary)?;
    }
    written?;
    fs::rename(&temporary, &path).on("rename to", &path)?;
    folder::sync_dir(dir)
}

fn write_to(path: &Path, log_id: u64, id: SnapshotId, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .on("create", path)?;
    let parts = [&header(log_id, id, bytes.len() as u64)[..], bytes, &crc32fast::hash(bytes).to_le_bytes()];
    for part in parts {
        file.write_all(part).on("write", path)?;
    }
    file.sync_all().on("sync", path)
}

/// A snapshot whose every byte was checked.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub reader: io::Take<BufReader<File>>,
    pub len: u64,
}

/// Opens a snapshot and checks it whole.
///
/// # Errors
/// `Damaged`, `UnknownFormat`, `Io`.
pub(crate) fn open(dir: &Path, log_id: u64, id: SnapshotId) -> Result<Snapshot, StoreError> {
    let path = id.path(dir);
    let mut file = File::open(&path).on("open", &path)?;
    let size = file.metadata().on("read", &path)?.len();
    let mut head = [0; HEADER_BYTES];
    let whole = read_whole(&mut file, &mut head).on("read", &path)?;
    if whole && head[0..8] == MAGIC {
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found != FORMAT_VERSION {
            return Err(StoreError::UnknownFormat { file: path, found, known: FORMAT_VERSION });
        }
    }
    let len = size.saturating_sub(HEADER_BYTES as u64 + 4);
    if !whole || head != header(log_id, id, len) {
        return Err(damaged(path, 0, "its header does not match its name, its length or this log"));
    }
    let crc = crc_of(&mut file, len).on("read", &path)?;
    let mut trailer = [0; 4];
    file.read_exact(&mut trailer).on("read", &path)?;
    if trailer != crc.to_le_bytes() {
        return Err(damaged(path, HEADER_BYTES as u64, "the snapshot does not match its checksum"));
    }
    file.seek(SeekFrom::Start(HEADER_BYTES as u64)).on("read", &path)?;
    Ok(Snapshot { reader: BufReader::with_capacity(COPY_BYTES, file).take(len), len })
}

fn damaged(file: PathBuf, offset: u64, reason: &str) -> StoreError {
    StoreError::Damaged { file, offset, reason: reason.to_string() }
}

fn read_whole(file: &mut File, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn crc_of(file: &mut File, len: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut left = len;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..piece])?;
        hasher.update(&buffer[..piece]);
        left -= piece as u64;
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: SnapshotId = SnapshotId { epoch: 2, position: 17 };

    #[test]
    fn a_snapshot_is_read_back_and_any_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 5, ID, b"state of the broker").unwrap();
        let mut text = String::new();
        open(dir.path(), 5, ID).unwrap().reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "state of the broker");
        assert!(matches!(open(dir.path(), 6, ID), Err(StoreError::Damaged { .. })));

        let sound = fs::read(ID.path(dir.path())).unwrap();
        for at in 0..sound.len() {
            let mut bad = sound.clone();
            bad[at] ^= 0x10;
            fs::write(ID.path(dir.path()), &bad).unwrap();
            assert!(open(dir.path(), 5, ID).is_err(), "flip at {at}");
            fs::write(ID.path(dir.path()), &sound[..at]).unwrap();
            assert!(open(dir.path(), 5, ID).is_err(), "cut at {at}");
        }
    }
}
