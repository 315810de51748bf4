//! What a broker that was killed may have left in memory only is written again when the log is opened, before anything
//! relies on it: pieces that frames carried, to their places in the payload segments, and the last log segment in place.
//! Used by `Store::open`.
//!
//! Both are written whatever the files seem to hold. After a failed sync the page cache shows bytes that the disk does not
//! have, and takes them for clean: only a new write makes the next sync mean something.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};
use crate::folder;
use crate::frame::Piece;
use crate::scan::read_up_to;
use crate::space::Space;

const COPY_BYTES: usize = 1 << 20;

/// Writes carried pieces.
pub(crate) struct Redo {
    dir: PathBuf,
    /// The segment of the last piece; no file when that segment has died with its jobs.
    open: Option<(u32, Option<File>)>,
    named: u32,
}

impl Redo {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), open: None, named: 0 }
    }

    /// Writes one piece to its place.
    pub fn write(&mut self, piece: Piece<'_>, space: &mut Space) -> Result<(), StoreError> {
        self.named = self.named.max(piece.segment);
        let path = folder::payload_path(&self.dir, piece.segment);
        if self.open.as_ref().is_none_or(|(segment, _)| *segment != piece.segment) {
            self.sync()?;
            // A segment is there, durably, before the first frame names it. So one that is missing has been removed.
            let file = match OpenOptions::new().write(true).open(&path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).on("open", &path),
            };
            self.open = Some((piece.segment, file));
        }
        let Some((_, Some(file))) = &self.open else { return Ok(()) };
        loop {
            match file.write_all_at(piece.bytes, u64::from(piece.offset)).on("write", &path) {
                Err(error) if error.is_out_of_space() && space.out_of_space()? => {}
                other => return other,
            }
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        match self.open.take() {
            Some((segment, Some(file))) => {
                file.sync_data().on("sync", &folder::payload_path(&self.dir, segment))
            }
            _ => Ok(()),
        }
    }

    /// Makes all of it durable. Returns the highest segment that was named: a log may name one that has died, whose number
    /// must not be used again while that log is there.
    pub fn finish(mut self) -> Result<u32, StoreError> {
        self.sync()?;
        Ok(self.named)
    }
}

/// Writes the first `len` bytes of a file again, in place, and makes them durable.
pub(crate) fn rewrite(path: &Path, len: u64) -> Result<(), StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path).on("open", path)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let want = usize::try_from(len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let got = read_up_to(&file, &mut buffer[..want], at).on("read", path)?;
        if got == 0 {
            break;
        }
        file.write_all_at(&buffer[..got], at).on("write", path)?;
        at += got as u64;
    }
    file.sync_all().on("sync", path)
}
