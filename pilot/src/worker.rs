//! One Python worker process as the manager's shell sees it: its sockets, its output, the tasks that were sent to it.

use crate::capture::{Drained, Kept, Splitter, drain};
use crate::lanes::WorkerEnds;
use crate::limits::READ_BYTES;
use crate::wire::{self, PERMISSION_BYTES, Said, WireError};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use pf_manager_core::WorkerTask;
use pf_protocol::job::JobDef;
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, JobId, TaskId, payload};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
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
    /// Whether it is waited for that its sockets take more.
    pub write_watched: bool,
    data: Option<UnixStream>,
    /// Sends permissions to start tasks; and the other end, which takes back those that the worker has not taken.
    control: Option<(UnixStream, UnixStream)>,
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
    pub fn begin(&mut self, ends: WorkerEnds) {
        for (output, pipe) in self.outputs.iter_mut().zip(ends.pipes) {
            output.pipe = pipe;
        }
        (self.data, self.control) = (Some(ends.data), Some(ends.control));
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
        wire::permit(&mut self.to_control, tasks.iter().map(|task| task.seq));
    }

    /// Takes back the permissions that it has not taken: these tasks have not started, and will not.
    pub fn take_back(&mut self) -> Vec<AttemptId> {
        // One that is half sent is on its way.
        let half = self.to_control.len() % PERMISSION_BYTES;
        let mut back = self.to_control.split_off(half);
        let mut buffer = [0; 64 * PERMISSION_BYTES];
        while let Some((_, theirs)) = self.control.as_ref().filter(|_| half == 0) {
            match recv(theirs.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break,
                Ok(n) => back.extend_from_slice(&buffer[..n]),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        let seqs: BTreeSet<u64> = wire::permitted(&back).into_iter().collect();
        let (taken, left): (VecDeque<Sent>, _) = self.sent.drain(..).partition(|s| seqs.contains(&s.seq));
        self.sent = left;
        taken.into_iter().map(|sent| sent.attempt).collect()
    }

    pub fn tell_end(&mut self) {
        wire::end(&mut self.to_data);
        if let Some((control, _)) = &self.control {
            // It may wait for a permission that was taken back. If it is gone there is nobody to tell.
            let _ = control.shutdown(Shutdown::Write);
        }
    }

    /// Writes what the sockets take; answers whether something is left. A worker that is gone is noticed by its end.
    pub fn write(&mut self) -> bool {
        // The permissions first: a worker that has a task looks for it.
        write_some(self.control.as_mut().map(|(ours, _)| ours), &mut self.to_control);
        write_some(self.data.as_mut(), &mut self.to_data);
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
                    // Those in between were taken back.
                    let at = sent.partition_point(|s| s.seq < seq);
                    // Text that is no task's: a thread that a task left behind.
                    let Some(sent) = sent.get_mut(at) else { return };
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
