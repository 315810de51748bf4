//! Which output pipes of commands are watched.
//!
//! Only those of tasks that are not young: a pipe holds what most short tasks write, and it is read at their end. Watching costs four system
//! calls and a wakeup for each stream of each task.

use crate::limits::WATCH_AFTER_US;
use crate::polls::poll;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use pf_protocol::AttemptId;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// See the module.
pub(crate) struct Outputs {
    polls: Epoll,
    /// Attempt and number of the stream.
    watched: HashMap<u64, (AttemptId, usize)>,
    last_token: u64,
    /// Tasks whose pipes are not watched yet, with the time when they will be.
    young: VecDeque<(u64, AttemptId)>,
}

impl Outputs {
    pub fn new() -> nix::Result<Self> {
        let polls = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Outputs { polls, watched: HashMap::new(), last_token: 0, young: VecDeque::new() })
    }

    /// Readable when some watched pipe is.
    pub fn fd(&self) -> RawFd {
        self.polls.0.as_raw_fd()
    }

    /// A task has begun at `now`.
    pub fn begin(&mut self, now: u64, attempt: AttemptId) {
        self.young.push_back((now + WATCH_AFTER_US, attempt));
    }

    /// The next task whose pipes are to be watched from now on. Forgets those that are over by the word of `runs`.
    pub fn next_grown(&mut self, now: u64, runs: impl Fn(AttemptId) -> bool) -> Option<AttemptId> {
        while let Some(&(at, attempt)) = self.young.front() {
            let over = !runs(attempt);
            if !over && at > now {
                return None;
            }
            self.young.pop_front();
            if !over {
                return Some(attempt);
            }
        }
        None
    }

    /// When the next one is due.
    pub fn next_at(&self) -> Option<u64> {
        self.young.front().map(|(at, _)| *at)
    }

    /// Watches the `n`th stream; answers what to `forget` at its end.
    pub fn watch(&mut self, fd: &OwnedFd, attempt: AttemptId, n: usize) -> u64 {
        self.last_token += 1;
        // Only fails when the system is out of memory for it: then the pipe is read at the task's end.
        if self.polls.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, self.last_token)).is_ok() {
            self.watched.insert(self.last_token, (attempt, n));
        }
        self.last_token
    }

    /// A pipe is closed, which ends the kernel's part of the watch.
    pub fn forget(&mut self, token: u64) {
        self.watched.remove(&token);
    }

    /// Streams in which there is something.
    pub fn ready(&self) -> Vec<(AttemptId, usize)> {
        poll(&self.polls).into_iter().filter_map(|(token, _)| self.watched.get(&token).copied()).collect()
    }
}
