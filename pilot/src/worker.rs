//! One Python worker process as the manager's shell sees it: its sockets, its output, the tasks that were sent to it.

use crate::capture::{Drained, Kept, Splitter, drain};
use crate::limits::READ_BYTES;
use crate::spawn::Process;
use crate::wire::{self, Said, WireError};
use nix::errno::Errno;
use pf_manager_core::WorkerTask;
use pf_protocol::job::JobDef;
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, JobId, TaskId, payload};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A task that was sent.
#[derive(Debug)]
struct Sent {
    seq: u64,
    task: TaskId,
    attempt: AttemptId,
    stdout: Kept,
    stderr: Kept,
}

/// One of the two output streams.
#[derive(Debug)]
struct Output {
    pipe: Option<OwnedFd>,
    splitter: Splitter,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    /// Set once it is spawned.
    pub pid: Option<i32>,
    /// Whether it is waited for that its sockets take more.
    pub write_watched: bool,
    data: Option<UnixStream>,
    control: Option<UnixStream>,
    to_data: Vec<u8>,
    to_control: Vec<u8>,
    from_data: Vec<u8>,
    marker: Option<[u8; 16]>,
    outputs: [Output; 2],
    /// What it wrote before its HELLO: it tells why it did not start.
    start: Kept,
    jobs: HashMap<u32, JobId>,
    sent: VecDeque<Sent>,
}

impl WorkerProcess {
    /// A worker that was asked for.
    pub fn new() -> Self {
        let output = || Output { pipe: None, splitter: Splitter::default() };
        WorkerProcess {
            pid: None,
            write_watched: false,
            data: None,
            control: None,
            to_data: Vec::new(),
            to_control: Vec::new(),
            from_data: Vec::new(),
            marker: None,
            outputs: [output(), output()],
            start: Kept::default(),
            jobs: HashMap::new(),
            sent: VecDeque::new(),
        }
    }

    /// It is spawned: what was said to it so far goes out.
    pub fn begin(&mut self, process: Process) {
        self.pid = Some(process.pid);
        self.outputs[0].pipe = process.stdout;
        self.outputs[1].pipe = process.stderr;
        if let Some((data, control)) = process.sockets {
            (self.data, self.control) = (Some(data), Some(control));
        }
        self.write_watched = self.write();
    }

    /// Its data socket, once it is there.
    pub fn data(&self) -> Option<&UnixStream> {
        self.data.as_ref()
    }

    /// `payloads`: the folder of large payloads; None if it may leave none.
    pub fn tell_job(&mut self, slot: u32, def: &JobDef, payloads: Option<PathBuf>) {
        self.jobs.insert(slot, def.job);
        let files = payloads.map(|dir| dir.join(payload::file_prefix(def.job))).unwrap_or_default();
        wire::job(&mut self.to_data, slot, def, files.as_os_str().as_bytes());
    }

    pub fn tell_tasks(&mut self, tasks: &[WorkerTask]) {
        for task in tasks {
            let job = self.jobs.get(&task.slot).copied().unwrap_or_default();
            let (seq, attempt) = (task.seq, task.attempt);
            let task = TaskId { job, index: task.index };
            self.sent.push_back(Sent {
                seq,
                task,
                attempt,
                stdout: Kept::default(),
                stderr: Kept::default(),
            });
        }
        wire::tasks(&mut self.to_data, tasks);
    }

    pub fn tell_skip(&mut self, seqs: &[u64]) {
        wire::skip(&mut self.to_control, seqs);
    }

    pub fn tell_end(&mut self) {
        wire::end(&mut self.to_data);
    }

    /// Writes what the sockets take; answers whether something is left. A worker that is gone is noticed by its end.
    pub fn write(&mut self) -> bool {
        write_some(self.data.as_mut(), &mut self.to_data);
        write_some(self.control.as_mut(), &mut self.to_control);
        self.data.is_some() && (!self.to_data.is_empty() || !self.to_control.is_empty())
    }

    /// Reads what it said.
    pub fn read(&mut self) -> Result<Vec<Said>, WireError> {
        let Some(data) = self.data.as_mut() else { return Ok(Vec::new()) };
        let mut open = true;
        loop {
            let at = self.from_data.len();
            self.from_data.resize(at + READ_BYTES, 0);
            let got = data.read(&mut self.from_data[at..]);
            let read = got.as_ref().map_or(0, |n| *n);
            self.from_data.truncate(at + read);
            match got {
                Ok(0) => open = false,
                Ok(n) if n == READ_BYTES => continue,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => open = false,
                Ok(_) | Err(_) => {}
            }
            break;
        }
        let said = wire::read(&mut self.from_data)?;
        if !open {
            self.data = None;
        }
        for one in &said {
            if let Said::Hello { marker, .. } = one {
                self.marker = Some(*marker);
            }
        }
        Ok(said)
    }

    /// Reads its output into the log.
    pub fn read_outputs(&mut self, buffer: &mut Vec<u8>, log: &mut Vec<u8>) {
        for (n, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let Output { pipe, splitter } = &mut self.outputs[n];
            let Some(fd) = pipe.as_ref() else { continue };
            let (marker, sent, start) = (self.marker, &mut self.sent, &mut self.start);
            let drained = drain(fd, buffer, |bytes| match &marker {
                None => start.take(
                    &mut Vec::new(),
                    TaskId::default(),
                    AttemptId::default(),
                    Stream::Stderr,
                    bytes,
                ),
                Some(marker) => splitter.take(marker, bytes, |seq, text| {
                    let first = sent.front().map_or(0, |s| s.seq);
                    let at = seq.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                    // Text that is no task's: a thread that a task left behind.
                    let Some(sent) = at.and_then(|at| sent.get_mut(at)) else { return };
                    let kept = if stream == Stream::Stdout { &mut sent.stdout } else { &mut sent.stderr };
                    kept.take(log, sent.task, sent.attempt, stream, text);
                }),
            });
            if drained == Drained::Closed {
                *pipe = None;
            }
        }
    }

    /// Tasks up to `seq` are answered. Answers whether any of them wrote something.
    pub fn answered(&mut self, seq: u64, log: &mut Vec<u8>) -> bool {
        let mut any = false;
        while self.sent.front().is_some_and(|first| first.seq <= seq) {
            if let Some(sent) = self.sent.pop_front()
                && (sent.stdout.any() || sent.stderr.any())
            {
                outlog::append(log, sent.task, sent.attempt, Stream::End, b"");
                any = true;
            }
        }
        any
    }

    /// Whether it has tasks that are not answered.
    pub fn is_busy(&self) -> bool {
        !self.sent.is_empty()
    }

    /// Last task whose marker was seen on both streams: a worker that dies between the two had not finished the task's output.
    pub fn marked(&self) -> u64 {
        self.outputs[0].splitter.marked.min(self.outputs[1].splitter.marked)
    }

    /// The end of what it wrote to standard error in the task that ran, or before its HELLO.
    pub fn stderr_tail(&self) -> String {
        if self.marker.is_none() {
            return self.start.tail();
        }
        let running = self.sent.iter().find(|s| s.seq > self.marked());
        running.map_or_else(String::new, |s| s.stderr.tail())
    }

    /// Whether any of its unanswered tasks wrote something.
    pub fn any_output(&self) -> bool {
        self.sent.iter().any(|s| s.stdout.any() || s.stderr.any())
    }
}

fn write_some(socket: Option<&mut UnixStream>, bytes: &mut Vec<u8>) {
    let Some(socket) = socket else { return };
    let mut at = 0;
    while at < bytes.len() {
        match socket.write(&bytes[at..]) {
            Ok(n) => at += n,
            Err(e) if e.raw_os_error() == Some(Errno::EINTR as i32) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            // Nobody reads any more: its end is on its way.
            Err(_) => at = bytes.len(),
        }
    }
    bytes.drain(..at);
}
