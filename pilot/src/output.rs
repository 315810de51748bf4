//! The manager's output log on its way to the disk, and what must not be told before it is there.

use crate::files::{Files, Written};
use crate::lanes::Who;
use crate::limits::{LOG_BUFFER_BYTES, LOG_FLUSH_US};
use pf_manager_core::Input;
use pf_protocol::outcome::OutcomeBatch;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// See the module.
pub(crate) struct OutputLog {
    files: Files,
    /// Records that were not given to the file thread yet.
    pub buffer: Vec<u8>,
    since: Option<u64>,
    /// Number of the last buffer that is written.
    written: u64,
    /// Inputs that wait until a buffer is written, with its number.
    waiting: VecDeque<(u64, Who, Input)>,
    waiting_of: HashMap<Who, usize>,
    /// The file thread is far behind: outputs are not read.
    pub full: bool,
}

impl OutputLog {
    pub fn new(files: Files) -> Self {
        OutputLog {
            files,
            buffer: Vec::new(),
            since: None,
            written: 0,
            waiting: VecDeque::new(),
            waiting_of: HashMap::new(),
            full: false,
        }
    }

    /// Holds `input` back until what is in the log now is written, if `wrote`, or if something of the same process waits already.
    pub fn after_output(&mut self, who: Who, wrote: bool, input: Input) -> Option<Input> {
        let clean = self.buffer.is_empty() && self.written + 1 >= self.files.next_log();
        if (!wrote || clean) && !self.waiting_of.contains_key(&who) {
            return Some(input);
        }
        // What is in the buffer now goes with the next number; an empty buffer means the last one given.
        let number = if self.buffer.is_empty() { self.files.next_log() - 1 } else { self.files.next_log() };
        self.waiting.push_back((number, who, input));
        *self.waiting_of.entry(who).or_default() += 1;
        None
    }

    /// Gives the buffer to the file thread when it is due: something waits for it, it is large, or old.
    pub fn flush(&mut self, now: u64) {
        if self.buffer.is_empty() {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        let awaited = self.waiting.back().is_some_and(|(number, ..)| *number >= self.files.next_log());
        if !awaited && self.buffer.len() < LOG_BUFFER_BYTES && now < since + LOG_FLUSH_US {
            return;
        }
        match self.files.log(std::mem::take(&mut self.buffer)) {
            Ok(_) => (self.since, self.full) = (None, false),
            Err(bytes) => (self.buffer, self.full) = (bytes, true),
        }
    }

    /// When the buffer must go at the latest.
    pub fn next_flush(&self) -> Option<u64> {
        self.since.map(|since| since + LOG_FLUSH_US)
    }

    /// What may be told now.
    pub fn take_ready(&mut self) -> Vec<Input> {
        let mut ready = Vec::new();
        for written in self.files.take_done() {
            match written {
                Written::Log { number } => self.written = number,
                Written::Spool { upto, ok } => ready.push(Input::Spooled { upto, ok }),
            }
        }
        while self.waiting.front().is_some_and(|(number, ..)| *number <= self.written) {
            let Some((_, who, input)) = self.waiting.pop_front() else { break };
            if let Some(count) = self.waiting_of.get_mut(&who) {
                *count -= 1;
                if *count == 0 {
                    self.waiting_of.remove(&who);
                }
            }
            ready.push(input);
        }
        ready
    }

    pub fn spool(&mut self, upto: u64, batches: Vec<OutcomeBatch>) {
        self.files.spool(upto, batches);
    }

    /// Writes what is left.
    pub fn finish(&mut self, at_most: Duration) {
        if !self.buffer.is_empty() && self.files.log(std::mem::take(&mut self.buffer)).is_err() {
            tracing::warn!("the file system is far behind: the last output is not written");
        }
        self.files.finish(at_most);
    }
}
