//! What a launcher says on standard error: passed on to the pilot's log line by line, and read.

use crate::limits::{READ_BYTES, WORDS_LINE_BYTES};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ChildStderr;

/// See the module.
pub(crate) struct Words {
    pipe: ChildStderr,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
}

impl Words {
    /// The pipe is read without waiting.
    pub fn new(pipe: ChildStderr) -> io::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Words { pipe, line: Vec::new() })
    }

    pub fn fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// Takes what has come: the lines, and whether it is over. A line that is too long is cut.
    pub fn take(&mut self) -> (Vec<String>, bool) {
        let mut lines = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        // Once a turn: a launcher that talks without end must not keep the pilot from its relay.
        let over = match self.pipe.read(&mut buffer) {
            Ok(0) => true,
            Ok(count) => {
                // The pilot's log is its own standard error; one that cannot be written must not end the block.
                let _ = io::stderr().write_all(&buffer[..count]);
                for &byte in &buffer[..count] {
                    if byte == b'\n' || self.line.len() == WORDS_LINE_BYTES {
                        lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned());
                    }
                    if byte != b'\n' {
                        self.line.push(byte);
                    }
                }
                false
            }
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        };
        (lines, over)
    }
}
