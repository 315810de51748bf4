//! What is on its way into a payload segment: between the thread that puts blobs and the one that writes and syncs.

use crate::frame::Piece;
use pf_protocol::BlobRef;

/// Bytes of one payload segment that are not on disk yet.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub segment: u32,
    pub offset: u32,
    pub bytes: Vec<u8>,
}

impl Chunk {
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.bytes.len() as u64
    }

    /// What a frame carries of it: all.
    pub fn as_piece(&self) -> Piece<'_> {
        Piece { segment: self.segment, offset: self.offset, bytes: &self.bytes }
    }

    pub fn slice(&self, blob: BlobRef) -> Option<&[u8]> {
        let start = blob.offset.checked_sub(self.offset)? as usize;
        if blob.segment != self.segment {
            return None;
        }
        self.bytes.get(start..start.checked_add(blob.len as usize)?)
    }
}
