//! One command as the manager's shell sees it: its output, which is read here from the moment on when it is watched. Before, its thread has it.

use crate::capture::{Drained, Kept, drain};
use crate::lanes::Pipes;
use crate::outputs::Outputs;
use crate::polls::stream_of;
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, TaskId};
use std::os::fd::OwnedFd;

/// One output stream.
#[derive(Default)]
struct Output {
    /// What is read, with what names it among those that are watched; None: it is not watched, or closed.
    pipe: Option<(OwnedFd, u64)>,
    kept: Kept,
}

/// See the module.
pub(crate) struct RunningCommand {
    task: TaskId,
    attempt: AttemptId,
    /// Standard output and error.
    outputs: [Output; 2],
}

impl RunningCommand {
    /// A command that was asked for.
    pub fn new(task: TaskId, attempt: AttemptId) -> Self {
        RunningCommand { task, attempt, outputs: Default::default() }
    }

    /// From now on its output is watched.
    pub fn watch(&mut self, pipes: Pipes, watched: &mut Outputs) {
        for (n, pipe) in pipes.into_iter().enumerate() {
            self.outputs[n].pipe = pipe.map(|fd| {
                let token = watched.watch(&fd, self.attempt, n);
                (fd, token)
            });
        }
    }

    /// Reads what is there of the `n`th stream.
    pub fn read(&mut self, n: usize, watched: &mut Outputs, buffer: &mut Vec<u8>, log: &mut Vec<u8>) {
        let Output { pipe, kept } = &mut self.outputs[n];
        let Some((fd, token)) = pipe else { return };
        let (task, attempt) = (self.task, self.attempt);
        let drained = drain(fd, buffer, |bytes| kept.take(log, task, attempt, stream_of(n), bytes));
        if drained == Drained::Closed {
            watched.forget(*token);
            *pipe = None;
        }
    }

    /// It has ended, and this is what its thread has read. Answers whether it wrote anything, and the end of its standard error.
    pub fn end(
        mut self,
        read: [Vec<u8>; 2],
        watched: &mut Outputs,
        buffer: &mut Vec<u8>,
        log: &mut Vec<u8>,
    ) -> (bool, String) {
        for (n, bytes) in read.into_iter().enumerate() {
            self.read(n, watched, buffer, log);
            let Output { pipe, kept } = &mut self.outputs[n];
            if let Some((_, token)) = pipe {
                watched.forget(*token);
            }
            if !bytes.is_empty() {
                kept.take(log, self.task, self.attempt, stream_of(n), &bytes);
            }
        }
        let wrote = self.outputs.iter().any(|output| output.kept.any());
        if wrote {
            outlog::append(log, self.task, self.attempt, Stream::End, b"");
        }
        (wrote, self.outputs[1].kept.tail())
    }
}
