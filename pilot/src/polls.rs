//! Small words around epoll, for the manager's node.

use crate::limits::EVENTS_A_TURN;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use pf_protocol::outlog::Stream;

/// Which stream the `n`th pipe of a process is.
pub(crate) fn stream_of(n: usize) -> Stream {
    if n == 0 { Stream::Stdout } else { Stream::Stderr }
}

/// What is waited for on a worker's socket.
pub(crate) fn worker_flags(write: bool) -> EpollFlags {
    if write { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN }
}

/// What is ready, without waiting.
pub(crate) fn poll(epoll: &Epoll) -> Vec<(u64, EpollFlags)> {
    let mut events = [EpollEvent::empty(); EVENTS_A_TURN];
    let count = epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
    events[..count].iter().map(|event| (event.data(), event.events())).collect()
}
