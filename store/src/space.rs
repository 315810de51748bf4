//! Free space: preallocation, the reserve that only outcomes may use, and the word that the disk is nearly full. Used by
//! the sync thread.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

use crate::error::{IoContext, StoreError, is_out_of_space};
use crate::folder;
use crate::limits::{SPACE_CHECK_BYTES, ZERO_AHEAD_BYTES, ZERO_STEP_BYTES};

/// Bytes of the reserve that are written in one step, so that commits can come between.
const STEP_BYTES: usize = 1 << 20;

/// Gives the range `offset..offset + len` of a file its blocks, where the file system can; else writes zeros if
/// `or_write` is set. Existing bytes in the range must be of no meaning when `or_write` is set.
pub(crate) fn allocate(file: &File, offset: u64, len: u64, or_write: bool) -> io::Result<()> {
    let (Ok(start), Ok(size)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(io::Error::from(Errno::EFBIG));
    };
    loop {
        match fallocate(file, FallocateFlags::empty(), start, size) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) if or_write => return write_zeros(file, offset, len),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; STEP_BYTES];
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let piece = usize::try_from(end - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}

/// Writes the blocks ahead of a file's end for the first time, in idle moments, so that what is committed only overwrites:
/// the first write into a preallocated block makes the file system commit its journal with the sync.
#[derive(Debug, Default)]
pub(crate) struct ZeroAhead {
    zeroed: u64,
}

impl ZeroAhead {
    /// Whether an idle moment should go into a `step`, when the meaningful bytes end at `end`.
    pub fn wants(&self, end: u64, allocated: u64) -> bool {
        self.zeroed < (end + ZERO_AHEAD_BYTES - ZERO_STEP_BYTES).min(allocated)
    }

    /// Writes and syncs one step of zeros.
    pub fn step(&mut self, file: &File, end: u64, allocated: u64) -> io::Result<()> {
        let start = self.zeroed.max(end);
        let stop = (start + ZERO_STEP_BYTES).min(allocated);
        if start < stop {
            write_zeros(file, start, stop - start)?;
            file.sync_data()?;
        }
        self.zeroed = stop.max(start);
        Ok(())
    }
}

/// Gives the unused rest of a finished file back. Nothing of meaning depends on it.
pub(crate) fn shorten(file: &File, path: &Path, end: u64) {
    if let Err(error) = file.set_len(end) {
        tracing::warn!(file = %path.display(), %error, "cannot shorten a finished segment");
    }
}

/// Watches the free space of one folder.
pub(crate) struct Space {
    dir: PathBuf,
    reserve_bytes: u64,
    low_water_bytes: u64,
    /// Bytes of the reserve that are on disk.
    reserve_written: u64,
    /// Whether the last look found room for (more of) the reserve.
    room_for_reserve: bool,
    full: bool,
    since_check_bytes: u64,
}

impl Space {
    /// Looks at the folder for the first time.
    pub fn open(dir: PathBuf, reserve_bytes: u64, low_water_bytes: u64) -> Result<Self, StoreError> {
        let written = std::fs::metadata(folder::reserve_path(&dir)).map_or(0, |reserve| reserve.len());
        let mut space = Self {
            dir,
            reserve_bytes,
            low_water_bytes,
            reserve_written: written.min(reserve_bytes),
            room_for_reserve: false,
            full: false,
            since_check_bytes: 0,
        };
        space.check()?;
        Ok(space)
    }

    /// Whether only outcomes are to be accepted.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Counts bytes written and says when it is time for a look.
    pub fn wrote(&mut self, bytes: u64) -> bool {
        self.since_check_bytes += bytes;
        self.since_check_bytes >= SPACE_CHECK_BYTES.min(self.low_water_bytes / 8)
    }

    /// Looks at the free space. Fullness ends only when the reserve is whole again.
    pub fn check(&mut self) -> Result<(), StoreError> {
        self.since_check_bytes = 0;
        let answer = statvfs(&self.dir).on("look up free space of", &self.dir)?;
        let free = (answer.blocks_available() as u64).saturating_mul(answer.fragment_size() as u64);
        let missing = self.reserve_bytes - self.reserve_written;
        self.room_for_reserve = free >= self.low_water_bytes.saturating_add(missing);
        if free < self.low_water_bytes {
            self.full = true;
        } else if self.full && missing == 0 {
            self.full = false;
        }
        Ok(())
    }

    /// Whether `write_reserve` has something to do.
    pub fn wants_reserve(&self) -> bool {
        self.room_for_reserve && self.reserve_written < self.reserve_bytes
    }

    /// Writes one step of the reserve. A disk without room for it makes the folder full, which is no error.
    pub fn write_reserve(&mut self) -> Result<(), StoreError> {
        let path = folder::reserve_path(&self.dir);
        let left = self.reserve_bytes - self.reserve_written;
        let step = usize::try_from(left).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        match write_noise(&path, self.reserve_written, step) {
            Ok(()) => self.reserve_written += step as u64,
            Err(error) if is_out_of_space(&error) => {
                self.out_of_space()?;
            }
            Err(error) => return Err(error).on("write", &path),
        }
        if self.reserve_written == self.reserve_bytes {
            self.check()?;
        }
        Ok(())
    }

    /// A write found no room: frees the reserve. True if that gave any space back, so that trying again is worth it.
    pub fn out_of_space(&mut self) -> Result<bool, StoreError> {
        let given_back = self.reserve_written > 0;
        self.full = true;
        self.room_for_reserve = false;
        self.reserve_written = 0;
        folder::remove(&folder::reserve_path(&self.dir))?;
        Ok(given_back)
    }
}

/// Bytes that no file system can compress away or store as a hole.
fn write_noise(path: &Path, offset: u64, len: usize) -> io::Result<()> {
    let mut state = offset | 1;
    let mut noise = Vec::with_capacity(len + 8);
    while noise.len() < len {
        // xorshift64: only has to look random to a compressor.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all_at(&noise[..len], offset)?;
    file.sync_data()
}
