//! Frames: a fixed header of 24 bytes (little endian) and a MessagePack body.
//!
//! ```text
//! 0  magic 0xF1    1  header format 1    2  kind    3  0    4..8  body length
//! 8..16  session   16..24  sequence number in the session, from 1 in each direction
//! ```

use crate::limits::FRAME_BYTES_MAX;
use crate::message::Message;
use bytes::Bytes;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;
const MAGIC: u8 = 0xF1;
const FORMAT: u8 = 1;

/// One frame. HELLO and REFUSE have session 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The session it belongs to.
    pub session: u64,
    /// Its place in the session.
    pub seq: u64,
    /// What it says.
    pub message: Message,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// Not ours, or cut.
    #[error("frame is truncated or garbage ({0} bytes)")]
    Malformed(usize),
    /// Another header format.
    #[error("frame has header format {0}, this version reads {FORMAT}")]
    Format(u8),
    /// A kind that this version does not know.
    #[error("frame is of unknown kind {0}")]
    UnknownKind(u8),
    /// The body is not what its kind says.
    #[error("frame of kind {kind} cannot be decoded")]
    Body {
        /// The kind.
        kind: u8,
        /// What the decoder said.
        source: rmp_serde::decode::Error,
    },
    /// The message cannot be encoded.
    #[error("message cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl Frame {
    /// The frame as bytes.
    ///
    /// # Errors
    /// When it is over [`FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&[MAGIC, FORMAT, self.message.kind(), 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.session.to_le_bytes());
        out.extend_from_slice(&self.seq.to_le_bytes());
        self.message.encode_body(&mut out)?;
        if out.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(out.len()));
        }
        let body_len = (out.len() - HEADER_BYTES) as u32;
        out[4..8].copy_from_slice(&body_len.to_le_bytes());
        Ok(Bytes::from(out))
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// When the bytes are not a whole frame of a known kind.
    pub fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(bytes.len()));
        }
        let malformed = || FrameError::Malformed(bytes.len());
        let number =
            |at: usize| -> Option<u64> { Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
        if bytes.first() != Some(&MAGIC) || bytes.len() < HEADER_BYTES {
            return Err(malformed());
        }
        if bytes[1] != FORMAT {
            return Err(FrameError::Format(bytes[1]));
        }
        let body_len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let body = &bytes[HEADER_BYTES..];
        if body.len() != body_len {
            return Err(malformed());
        }
        let (session, seq) = (number(8).ok_or_else(malformed)?, number(16).ok_or_else(malformed)?);
        let kind = bytes[2];
        match Message::decode_body(kind, body) {
            None => Err(FrameError::UnknownKind(kind)),
            Some(Err(source)) => Err(FrameError::Body { kind, source }),
            Some(Ok(message)) => Ok(Frame { session, seq, message }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Confirm;
    use proptest::prelude::*;

    fn frame() -> Frame {
        Frame { session: 7, seq: 3, message: Confirm { upto: 300 }.into() }
    }

    #[test]
    fn reads_what_it_writes() {
        let bytes = frame().encode().unwrap();
        assert_eq!(Frame::decode(&bytes).unwrap(), frame());
        for cut in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn unknown_kinds_and_formats_are_named() {
        let mut bytes = frame().encode().unwrap().to_vec();
        bytes[2] = 250;
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::UnknownKind(250))));
        bytes[1] = 9;
        assert!(matches!(Frame::decode(&bytes), Err(FrameError::Format(9))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..45) {
            let _ = Frame::decode(&bytes);
            if bytes.len() >= HEADER_BYTES {
                bytes[..4].copy_from_slice(&[MAGIC, FORMAT, kind, 0]);
                let len = (bytes.len() - HEADER_BYTES) as u32;
                bytes[4..8].copy_from_slice(&len.to_le_bytes());
                let _ = Frame::decode(&bytes);
            }
        }
    }
}
