//! File descriptors: as many as the system gives, and a guess how near the end is. Used at start, and on each accept.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::error::TransportError;
use crate::limits;

/// Raises the soft limit of open files to the hard one, or to [`limits::FILES_WANTED`] if that is less; answers what it is
/// now. Tasks inherit it: whoever starts them gives them the old one back, since `select` breaks above 1,024.
pub fn raise_file_limit() -> Result<u64, TransportError> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).map_err(TransportError::system("read RLIMIT_NOFILE"))?;
    let wanted = hard.min(limits::FILES_WANTED).max(soft);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
            .map_err(TransportError::system("raise RLIMIT_NOFILE"))?;
    }
    Ok(wanted)
}

/// Whether so few descriptors are left that nobody else should be let in. Asks for the lowest free number, which is
/// what the next connection would get.
pub(crate) fn nearly_out_of_files(any: BorrowedFd<'_>, limit: u64) -> bool {
    let Ok(copy) = any.try_clone_to_owned() else { return true };
    let lowest_free = u64::try_from(copy.as_raw_fd()).unwrap_or(0);
    lowest_free.saturating_add(limits::FDS_RESERVED) >= limit
}

/// An eventfd that closes on exec.
pub(crate) fn new_eventfd() -> Result<OwnedFd, TransportError> {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(TransportError::system("make an eventfd"))?;
    event
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| TransportError::System { operation: "copy an eventfd", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_raised_and_nearness_is_seen() {
        let limit = raise_file_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, limit);
        let event = new_eventfd().unwrap();
        assert!(nearly_out_of_files(event.as_fd(), limits::FDS_RESERVED));
        assert!(!nearly_out_of_files(event.as_fd(), u64::MAX));
    }
}
