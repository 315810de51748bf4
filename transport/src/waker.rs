//! How other threads call a node: a flag for each node, one eventfd for the reactor, written only if its thread sleeps.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::TransportError;
use crate::files::new_eventfd;

/// Calls a node's [`crate::Node::on_wake`] from any thread. Many calls before the node looks are one.
#[derive(Clone, Debug)]
pub struct Waker {
    called: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

/// What a reactor sleeps on.
#[derive(Debug)]
pub(crate) struct Bell {
    sleeping: AtomicBool,
    event: OwnedFd,
}

impl Waker {
    pub(crate) fn new(bell: Arc<Bell>) -> Self {
        Self { called: Arc::new(AtomicBool::new(false)), bell }
    }

    /// Makes the node's `on_wake` run soon. Costs two atomic operations when the reactor is awake or was called already.
    pub fn wake(&self) {
        if !self.called.swap(true, Ordering::SeqCst) {
            self.bell.ring();
        }
    }

    /// Takes the call, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.called.load(Ordering::Relaxed) && self.called.swap(false, Ordering::SeqCst)
    }

    /// Whether there is a call, for the last look before sleep.
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::SeqCst)
    }
}

impl Bell {
    pub(crate) fn new() -> Result<Self, TransportError> {
        Ok(Self { sleeping: AtomicBool::new(false), event: new_eventfd()? })
    }

    fn ring(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A full counter means that the bell rings already; nothing else can go wrong with an eventfd.
            let _ = nix::unistd::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// To be called before the last look at the flags: whoever calls after it rings.
    pub(crate) fn going_to_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    /// To be called after sleep, with what the poll said of the eventfd; empties it if it was rung.
    pub(crate) fn awake(&self, rung: bool) {
        let called = !self.sleeping.swap(false, Ordering::SeqCst);
        if rung || called {
            let mut count = [0u8; 8];
            // Empty (EAGAIN) when the ring is still on its way: it ends one more sleep, at once and harmlessly.
            let _ = nix::unistd::read(&self.event, &mut count);
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_ringing(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(bell.fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn the_bell_rings_for_sleepers_only_and_once() {
        let bell = Arc::new(Bell::new().unwrap());
        let waker = Waker::new(bell.clone());
        waker.wake();
        assert!(!is_ringing(&bell) && waker.is_called() && waker.take() && !waker.take());
        bell.going_to_sleep();
        waker.wake();
        waker.clone().wake();
        assert!(is_ringing(&bell));
        bell.awake(true);
        assert!(!is_ringing(&bell));
    }

    #[test]
    fn a_ring_that_comes_late_is_taken_off_after_the_next_sleep() {
        let bell = Bell::new().unwrap();
        bell.going_to_sleep();
        // A caller took the flag, and is held up before it writes.
        bell.sleeping.store(false, Ordering::SeqCst);
        bell.awake(false);
        nix::unistd::write(&bell.event, &1u64.to_ne_bytes()).unwrap();
        bell.going_to_sleep();
        assert!(is_ringing(&bell), "the sleep ends at once");
        bell.awake(true);
        assert!(!is_ringing(&bell), "the one after it does not");
    }
}
