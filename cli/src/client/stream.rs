//! A stream of JSON lines from the broker: outcomes as they come.

use crate::error::{CliError, Result};
use crate::exit::Exit;
use crate::limits::LINE_BYTES_MAX;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

/// Lines of one answer.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How far the buffer is known to hold no line end.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Incoming) -> Lines {
        Lines { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line as `T`, waited for; None at the end. Empty lines are the stream's heartbeat.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(line) = self.ready()? {
                return Ok(Some(line));
            }
            if self.searched > LINE_BYTES_MAX {
                return Err(CliError::internal(format!(
                    "a line of the broker's stream is over {LINE_BYTES_MAX} bytes"
                )));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]))
                }
                Some(Err(e)) => {
                    return Err(CliError::new(Exit::Unreachable, "the broker's stream broke off").because(e));
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(CliError::new(Exit::Unreachable, "the broker's stream ends within a line"));
                }
            }
        }
    }

    /// The next line that has come already; None if it must be waited for.
    pub fn ready<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        while let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
            let line = self.buffer.split_to(self.searched + at);
            self.buffer.advance(1);
            self.searched = 0;
            if !line.is_empty() {
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| CliError::internal("read a line of the broker's stream").because(e));
            }
        }
        self.searched = self.buffer.len();
        Ok(None)
    }
}
