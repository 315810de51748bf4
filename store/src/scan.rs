//! Reads the frames of one log segment in order and says where and why they end. Used by recovery and the tools.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, StoreError};
use crate::folder::SegmentId;
use crate::frame::{
    self, FORMAT_VERSION, FRAME_HEADER_BYTES, FrameHeader, Link, NoHeader, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use crate::limits::{BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, FRAME_BYTES_MAX};

/// Bytes read at once in the search for frames behind a damage.
const SEARCH_BYTES: usize = 1 << 20;

/// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The header of a segment file; `None` when it is torn, damaged, never written or of another segment.
pub(crate) fn read_header(dir: &Path, id: SegmentId) -> Result<Option<SegmentHeader>, StoreError> {
    let path = id.path(dir);
    let file = File::open(&path).on("open", &path)?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    if read_up_to(&file, &mut bytes, 0).on("read", &path)? < bytes.len() {
        return Ok(None);
    }
    match SegmentHeader::decode(&bytes) {
        Ok(header) => Ok((header.id == id).then_some(header)),
        Err(NoHeader::Bad) => Ok(None),
        Err(NoHeader::Version(found)) => {
            Err(StoreError::UnknownFormat { file: path, found, known: FORMAT_VERSION })
        }
    }
}

/// Walks the frames of one segment.
pub(crate) struct SegmentScan {
    file: File,
    path: PathBuf,
    header: SegmentHeader,
    len: u64,
    /// Where the next frame begins.
    offset: u64,
    /// Position that the next frame must begin with.
    next_seq: u64,
    /// Link that the next frame must hold.
    link: Link,
    /// Highest synced position that a frame named.
    synced: u64,
    payload: Vec<u8>,
}

impl SegmentScan {
    pub fn open(dir: &Path, header: SegmentHeader) -> Result<Self, StoreError> {
        let path = header.id.path(dir);
        let file = File::open(&path).on("open", &path)?;
        let len = file.metadata().on("read", &path)?.len();
        Ok(Self {
            file,
            path,
            header,
            len,
            offset: u64::from(header.block_bytes),
            next_seq: header.first_seq,
            link: frame::link(&header.encode()),
            synced: 0,
            payload: Vec::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub fn link(&self) -> Link {
        self.link
    }

    /// Highest synced position that a frame read so far has named.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Payload of the frame that was read last.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Reads the next frame. The inner error says why there is none; then nothing has moved.
    pub fn next_frame(&mut self) -> Result<Result<FrameHeader, &'static str>, StoreError> {
        let mut head = [0; FRAME_HEADER_BYTES];
        if read_up_to(&self.file, &mut head, self.offset).on("read", &self.path)? < head.len() {
            return Ok(Err("the file ends"));
        }
        let frame = match self.fitting(&head) {
            Ok(frame) => frame,
            Err(reason) => return Ok(Err(reason)),
        };
        let payload_len = frame.payload_len as usize;
        self.payload.resize(payload_len, 0);
        let start = self.offset + FRAME_HEADER_BYTES as u64;
        if read_up_to(&self.file, &mut self.payload, start).on("read", &self.path)? < payload_len {
            return Ok(Err("the file ends within a frame"));
        }
        if crc32fast::hash(&self.payload) != frame.payload_crc {
            return Ok(Err("a frame's payload does not match its checksum"));
        }
        self.offset = self.behind(&frame);
        self.next_seq += u64::from(frame.record_count);
        self.link = frame::link(&head);
        self.synced = self.synced.max(frame.synced);
        Ok(Ok(frame))
    }

    /// Decodes a frame header and checks that it continues this history.
    fn fitting(&self, head: &[u8]) -> Result<FrameHeader, &'static str> {
        let Some(frame) = FrameHeader::decode(head) else {
            let blank = head.iter().all(|byte| *byte == 0);
            return Err(if blank { "no frame" } else { "a frame header does not match its checksum" });
        };
        if frame.epoch != self.header.id.epoch {
            return Err("a frame of another epoch");
        }
        if frame.before != self.link {
            return Err("a frame of another history");
        }
        if frame.first_seq != self.next_seq || frame.record_count == 0 {
            return Err("a frame out of sequence");
        }
        if frame.payload_len as usize > FRAME_BYTES_MAX {
            return Err("a frame over the limit");
        }
        Ok(frame)
    }

    fn behind(&self, frame: &FrameHeader) -> u64 {
        let bytes = FRAME_HEADER_BYTES as u64 + u64::from(frame.payload_len);
        self.offset + frame::padded(bytes, self.header.block_bytes)
    }

    /// The highest synced position that sound frames behind the current offset name. When `next_frame` found no frame
    /// here, this tells damage (something later says that these bytes were synced) from a torn end.
    pub fn proof_behind(&self) -> Result<u64, StoreError> {
        let mut head = [0; FRAME_HEADER_BYTES];
        let got = read_up_to(&self.file, &mut head, self.offset).on("read", &self.path)?;
        // The payload of a torn frame is the user's bytes: it may hold anything, also what looks like a frame.
        let start = match self.fitting(&head[..got]) {
            Ok(torn) => self.behind(&torn),
            Err(_) => self.offset,
        };
        let mut proof = 0;
        self.search(start, |frame| proof = proof.max(frame.synced))?;
        Ok(proof)
    }

    fn search(&self, start: u64, mut found: impl FnMut(&FrameHeader)) -> Result<(), StoreError> {
        let step = self.header.block_bytes;
        search_frames(&self.file, &self.path, start, self.len, step, |frame| {
            if frame.epoch == self.header.id.epoch && frame.first_seq >= self.next_seq {
                found(frame);
            }
        })
    }
}

/// Calls `found` for each sound frame header at a multiple of `step` in `start..end`.
fn search_frames(
    file: &File,
    path: &Path,
    start: u64,
    end: u64,
    step: u32,
    mut found: impl FnMut(&FrameHeader),
) -> Result<(), StoreError> {
    let left = usize::try_from(end.saturating_sub(start)).unwrap_or(SEARCH_BYTES);
    // A multiple of every block size.
    let mut buffer = vec![0; left.next_multiple_of(BLOCK_BYTES_MAX as usize).min(SEARCH_BYTES)];
    let mut offset = start;
    while offset < end {
        let got = read_up_to(file, &mut buffer, offset).on("read", path)?;
        if got == 0 {
            break;
        }
        for at in (0..got).step_by(step as usize) {
            if let Some(frame) = FrameHeader::decode(&buffer[at..got]) {
                found(&frame);
            }
        }
        offset += got as u64;
    }
    Ok(())
}

/// Whether a segment whose header is bad holds frames of its epoch. Frames are written only after the header is synced,
/// so one frame proves that the header was damaged later.
pub(crate) fn holds_frames(dir: &Path, id: SegmentId) -> Result<bool, StoreError> {
    let path = id.path(dir);
    let file = File::open(&path).on("open", &path)?;
    let len = file.metadata().on("read", &path)?.len();
    let mut any = false;
    let step = BLOCK_BYTES_MIN;
    search_frames(&file, &path, u64::from(step), len, step, |frame| any |= frame.epoch == id.epoch)?;
    Ok(any)
}
