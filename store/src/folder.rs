//! The names of the files in the store's folder, and its listing. Used by recovery, the writer and the tools.
//!
//! ```text
//! epoch-00000003                  who holds the folder: one file an epoch, made with O_EXCL, renewed by its owner
//! log-00000003-00000012           log segment 12, written in epoch 3
//! snapshot-00000003-000000004711  state up to record 4711, written in epoch 3
//! payload-00000007                payload segment 7
//! reserve                         space that only outcomes may use when the disk is full
//! *.tmp                           being written; of no meaning after a crash
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};

/// Identity of a log segment; the order is the order of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentId {
    pub epoch: u64,
    pub index: u64,
}

impl SegmentId {
    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("log-{:08}-{:08}", self.epoch, self.index))
    }
}

/// Identity of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SnapshotId {
    pub position: u64,
    pub epoch: u64,
}

impl SnapshotId {
    pub fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("snapshot-{:08}-{:012}", self.epoch, self.position))
    }
}

/// Path of an epoch's owner file.
pub(crate) fn epoch_path(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("epoch-{epoch:08}"))
}

/// Path of a payload segment.
pub(crate) fn payload_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("payload-{segment:08}"))
}

/// Path of the reserve.
pub(crate) fn reserve_path(dir: &Path) -> PathBuf {
    dir.join("reserve")
}

/// What the folder holds, each list in ascending order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub epochs: Vec<u64>,
    pub segments: Vec<SegmentId>,
    pub snapshots: Vec<SnapshotId>,
    pub payloads: Vec<u32>,
    pub temporary: Vec<PathBuf>,
}

/// Lists the folder. Names that are not ours are passed over.
pub(crate) fn list(dir: &Path) -> Result<Listing, StoreError> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(dir).on("read folder", dir)? {
        let name = entry.on("read folder", dir)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".tmp") {
            listing.temporary.push(dir.join(name));
        } else if let Some([epoch]) = numbers(name, "epoch-") {
            listing.epochs.push(epoch);
        } else if let Some([epoch, index]) = numbers(name, "log-") {
            listing.segments.push(SegmentId { epoch, index });
        } else if let Some([epoch, position]) = numbers(name, "snapshot-") {
            listing.snapshots.push(SnapshotId { position, epoch });
        } else if let Some([segment]) = numbers(name, "payload-")
            && let Ok(segment) = u32::try_from(segment)
        {
            listing.payloads.push(segment);
        }
    }
    listing.epochs.sort_unstable();
    listing.segments.sort_unstable();
    listing.snapshots.sort_unstable();
    listing.payloads.sort_unstable();
    Ok(listing)
}

/// The `N` numbers behind `prefix`, parted by `-`.
fn numbers<const N: usize>(name: &str, prefix: &str) -> Option<[u64; N]> {
    let mut out = [0; N];
    let mut parts = name.strip_prefix(prefix)?.split('-');
    for slot in &mut out {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

/// Makes names in the folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|folder| folder.sync_all()).on("sync folder", dir)
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let segment = SegmentId { epoch: 3, index: 12 };
        let snapshot = SnapshotId { epoch: 3, position: 4711 };
        for path in [segment.path(dir.path()), snapshot.path(dir.path()), epoch_path(dir.path(), 3)] {
            fs::write(path, b"").unwrap();
        }
        fs::write(payload_path(dir.path(), 7), b"").unwrap();
        for foreign in
            ["log-1", "log-1-2-3", "log-x-1", "payload-99999999999", "payload-+1", "notes", "a.tmp"]
        {
            fs::write(dir.path().join(foreign), b"").unwrap();
        }
        let listing = list(dir.path()).unwrap();
        assert_eq!(listing.segments, [segment]);
        assert_eq!(listing.snapshots, [snapshot]);
        assert_eq!(listing.epochs, [3]);
        assert_eq!(listing.payloads, [7]);
        assert_eq!(listing.temporary.len(), 1);
    }
}
