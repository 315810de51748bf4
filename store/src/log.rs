//! The log's segments as they are written: creation, frames, rotation, trim. Used by `Store::open` for the first segment
//! of an epoch and by the sync thread.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use crate::chunk::Chunk;
use crate::error::{IoContext, StoreError};
use crate::folder::{self, SegmentId};
use crate::frame::{
    self, Before, FRAME_HEADER_BYTES, FrameHeader, Link, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::queue::Batch;
use crate::space::{self, Space, ZeroAhead};

/// On a full disk new segments have this part of their normal size.
const FULL_DISK_PART: u64 = 8;

/// A segment that the current one continues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OldSegment {
    pub id: SegmentId,
    pub first_seq: u64,
    pub bytes: u64,
}

/// The log, open for writing.
pub(crate) struct Log {
    dir: PathBuf,
    block_bytes: u32,
    segment_bytes: u64,
    header: SegmentHeader,
    file: File,
    path: PathBuf,
    /// Size of the file, all of it allocated.
    allocated: u64,
    ahead: ZeroAhead,
    /// Where the next frame goes.
    offset: u64,
    link: Link,
    /// Written, not synced.
    dirty: bool,
    /// Older segments that recovery still needs, oldest first.
    old: Vec<OldSegment>,
}

/// What does not change between the segments of one epoch.
pub(crate) struct LogSetup {
    pub dir: PathBuf,
    pub block_bytes: u32,
    pub segment_bytes: u64,
    pub log_id: u64,
    pub epoch: u64,
}

impl Log {
    /// Begins an epoch: its first segment, durable. It seals the history at `before`.
    pub fn begin(
        setup: LogSetup,
        first_seq: u64,
        before: Option<Before>,
        old: Vec<OldSegment>,
        space: &mut Space,
    ) -> Result<Self, StoreError> {
        let LogSetup { dir, block_bytes, segment_bytes, log_id, epoch } = setup;
        let index = before.map_or(1, |before| before.id.index + 1);
        let version = frame::FORMAT_VERSION;
        let header =
            SegmentHeader { version, block_bytes, log_id, id: SegmentId { epoch, index }, first_seq, before };
        let path = header.id.path(&dir);
        let (file, allocated) = create(&dir, &path, &header, segment_bytes, 0, space)?;
        Ok(Self {
            dir,
            block_bytes,
            segment_bytes,
            header,
            file,
            path,
            allocated,
            ahead: ZeroAhead::default(),
            offset: u64::from(block_bytes),
            link: frame::link(&header.encode()),
            dirty: false,
            old,
        })
    }

    /// Bytes of log that recovery would read, without the snapshot.
    pub fn bytes(&self) -> u64 {
        self.offset + self.old.iter().map(|old| old.bytes).sum::<u64>()
    }

    /// Writes one frame, which carries `pieces`; returns its size on disk. Begins a new segment when it does not fit.
    pub fn write(
        &mut self,
        batch: &mut Batch,
        pieces: &[Arc<Chunk>],
        synced: u64,
        space: &mut Space,
    ) -> Result<u64, StoreError> {
        let records_end = batch.bytes.len();
        for chunk in pieces {
            frame::push_piece(&mut batch.bytes, chunk.as_piece());
        }
        let carried = batch.bytes.len() - records_end;
        let size = frame::padded(batch.bytes.len() as u64, self.block_bytes);
        if self.offset + size > self.allocated {
            self.rotate(batch.first_seq, size, space)?;
        }
        let payload = batch.payload();
        let header = FrameHeader {
            epoch: self.header.id.epoch,
            first_seq: batch.first_seq,
            synced,
            before: self.link,
            record_count: batch.record_count,
            payload_len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            payload_crc: crc32fast::hash(payload),
            carried_len: u32::try_from(carried).unwrap_or(u32::MAX),
        }
        .encode();
        batch.bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header);
        batch.bytes.resize(usize::try_from(size).unwrap_or(usize::MAX), 0);
        self.dirty = true;
        loop {
            match self.file.write_all_at(&batch.bytes, self.offset).on("write", &self.path) {
                // Can only be where preallocation promises nothing. The frame was not synced: writing it again is safe.
                Err(error) if error.is_out_of_space() && space.out_of_space()? => {}
                other => break other?,
            }
        }
        self.offset += size;
        self.link = frame::link(&header);
        Ok(size)
    }

    /// Whether an idle moment should go into `write_zeros`.
    pub fn wants_zeros(&self) -> bool {
        self.ahead.wants(self.offset, self.allocated)
    }

    /// Prepares blocks for the next frames.
    pub fn write_zeros(&mut self) -> Result<(), StoreError> {
        self.ahead.step(&self.file, self.offset, self.allocated).on("write", &self.path)
    }

    /// Gives the unused rest of the current segment back, at the end.
    pub fn shorten(&self) {
        space::shorten(&self.file, &self.path, self.offset);
    }

    /// Makes all frames durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if self.dirty {
            self.file.sync_data().on("sync", &self.path)?;
            self.dirty = false;
        }
        Ok(())
    }

    /// Begins a new segment, with room for a frame of `frame_bytes` at least. What was written is synced first: a header
    /// proves that the segment before it is whole.
    pub fn rotate(&mut self, first_seq: u64, frame_bytes: u64, space: &mut Space) -> Result<(), StoreError> {
        self.sync()?;
        let before = Before { id: self.header.id, end: self.offset, link: self.link };
        let id = SegmentId { index: before.id.index + 1, ..before.id };
        let header = SegmentHeader { id, first_seq, before: Some(before), ..self.header };
        let path = id.path(&self.dir);
        let (file, allocated) = create(&self.dir, &path, &header, self.segment_bytes, frame_bytes, space)?;
        let old = std::mem::replace(&mut self.file, file);
        space::shorten(&old, &self.path, self.offset);
        self.old.push(OldSegment { id: before.id, first_seq: self.header.first_seq, bytes: self.offset });
        self.header = header;
        self.path = path;
        self.allocated = allocated;
        self.ahead = ZeroAhead::default();
        self.offset = u64::from(self.block_bytes);
        self.link = frame::link(&header.encode());
        Ok(())
    }

    /// Removes the segments whose records are all in the snapshot of `position`.
    pub fn trim(&mut self, position: u64) -> Result<(), StoreError> {
        let starts = self.old.iter().map(|old| old.first_seq).skip(1).chain([self.header.first_seq]);
        let count = starts.take_while(|first_seq| *first_seq <= position + 1).count();
        for old in self.old.drain(..count) {
            folder::remove(&old.id.path(&self.dir))?;
        }
        Ok(())
    }
}

/// Creates a preallocated segment, durable with its header. When the disk is full it frees the reserve, then makes do
/// with less than a whole segment.
fn create(
    dir: &std::path::Path,
    path: &std::path::Path,
    header: &SegmentHeader,
    segment_bytes: u64,
    frame_bytes: u64,
    space: &mut Space,
) -> Result<(File, u64), StoreError> {
    let least = u64::from(header.block_bytes) + frame_bytes.max(u64::from(header.block_bytes));
    // On a full disk the reserve is for payload too.
    let wanted = if space.is_full() { segment_bytes / FULL_DISK_PART } else { segment_bytes };
    let mut size = frame::padded(wanted.max(least), header.block_bytes);
    loop {
        match create_file(path, header, size) {
            Ok(file) => {
                folder::sync_dir(dir)?;
                return Ok((file, size));
            }
            Err(error) if error.is_out_of_space() => {
                folder::remove(path)?;
                if !space.out_of_space()? {
                    if size == least {
                        return Err(error);
                    }
                    size = frame::padded((size / 2).max(least), header.block_bytes);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

fn create_file(path: &std::path::Path, header: &SegmentHeader, size: u64) -> Result<File, StoreError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).on("create", path)?;
    space::allocate(&file, 0, size, true).on("allocate", path)?;
    let bytes: [u8; SEGMENT_HEADER_BYTES] = header.encode();
    file.write_all_at(&bytes, 0).on("write", path)?;
    file.sync_all().on("sync", path)?;
    Ok(file)
}
