//! Acquires the folder, renews the hold on it, and tells when acknowledgements must stop. Used by `Store::open` and
//! the sync thread.
//!
//! Each holder has an epoch and a file `epoch-N` that only it writes. Taking is the creation of `epoch-N+1` with
//! O_EXCL, which exactly one can do. A process of the same host and boot is asked for directly; from elsewhere only the
//! absence of renewals counts, over a whole lease of the taker's own clock.
//!
//! A renewal replaces the file by a rename and then lists the folder: a change of ours in the folder makes an NFS client
//! drop what it has cached of it, so a higher epoch is seen if there is one. A holder acknowledges only for part of a
//! lease after the start of its last such look. A taker that has made its epoch looks at the old one's renewals once
//! more and, if they went on, waits another lease before it reads the log: so whatever was acknowledged is in the log
//! before the seal is set.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{IoContext, StoreError};
use crate::folder;
use crate::limits::{ACKNOWLEDGE_PERCENT, WATCH_EVERY};
use crate::owner::{Liveness, Owner, Process};

/// The hold on the folder.
pub(crate) struct Lease {
    dir: PathBuf,
    owner: Owner,
    lease: Duration,
    /// Start of the last renewal after which no higher epoch was seen.
    verified: Instant,
}

/// What the taker must do about the highest epoch that it found.
enum Verdict {
    Free,
    Held { host: String, pid: u32 },
    Watch,
}

fn verdict(owner: Option<&Owner>) -> Verdict {
    let Some(owner) = owner else { return Verdict::Watch };
    if owner.released {
        return Verdict::Free;
    }
    match owner.process.liveness() {
        Liveness::Dead => Verdict::Free,
        Liveness::Alive => Verdict::Held { host: owner.process.host.clone(), pid: owner.process.pid },
        Liveness::Unknown => Verdict::Watch,
    }
}

impl Lease {
    /// Takes the folder. Waits up to a lease when the holder cannot be asked.
    ///
    /// # Errors
    /// `Held` when the holder lives; `Io`.
    pub fn acquire(dir: &Path, lease: Duration) -> Result<Self, StoreError> {
        let mut watching: Option<(u64, String, Instant)> = None;
        loop {
            let listing = folder::list(dir)?;
            let last = listing.epochs.last().copied().unwrap_or(0);
            let path = folder::epoch_path(dir, last);
            let found = if last == 0 { None } else { Owner::read(&path)? };
            let watched = match found {
                None => None,
                Some((text, owner)) => match verdict(owner.as_ref()) {
                    Verdict::Free => None,
                    Verdict::Held { host, pid } => {
                        return Err(StoreError::Held { host, pid, dir: dir.to_path_buf() });
                    }
                    Verdict::Watch => Some((text, owner)),
                },
            };
            if let Some((text, owner)) = &watched {
                match &watching {
                    Some((epoch, seen, since)) if *epoch == last && seen == text => {
                        if since.elapsed() < lease {
                            thread::sleep(WATCH_EVERY.min(lease));
                            continue;
                        }
                    }
                    Some((epoch, _, _)) if *epoch == last && owner.is_some() => {
                        let process = owner.as_ref().map(|owner| &owner.process);
                        let host = process.map(|process| process.host.clone()).unwrap_or_default();
                        let pid = process.map_or(0, |process| process.pid);
                        return Err(StoreError::Held { host, pid, dir: dir.to_path_buf() });
                    }
                    _ => {
                        tracing::warn!(dir = %dir.display(), lease_ms = lease.as_millis() as u64, "cannot ask the last holder of the store: waiting for its lease");
                        watching = Some((last, text.clone(), Instant::now()));
                        continue;
                    }
                }
            }
            let written = listing.segments.last().map_or(0, |segment| segment.epoch);
            let snapshot = listing.snapshots.iter().map(|snapshot| snapshot.epoch).max().unwrap_or(0);
            let epoch = last.max(written).max(snapshot) + 1;
            let Some(taken) = Self::claim(dir, epoch, lease)? else { continue };
            if let Some((text, _)) = watched
                && Owner::read(&path)?.is_some_and(|(now, _)| now != text)
            {
                thread::sleep(lease);
            }
            return Ok(taken);
        }
    }

    /// Makes the epoch file; `None` if another process was first.
    fn claim(dir: &Path, epoch: u64, lease: Duration) -> Result<Option<Self>, StoreError> {
        let path = folder::epoch_path(dir, epoch);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(error).on("create", &path),
        }
        let owner = Owner { process: Process::current(), epoch, renewals: 0, synced: 0, released: false };
        let mut taken = Self { dir: dir.to_path_buf(), owner, lease, verified: Instant::now() };
        if let Err(error) = taken.renew(0) {
            if !error.is_out_of_space() {
                return Err(error);
            }
            // The folder is ours now: so is its reserve, and results must still be recorded.
            folder::remove(&folder::reserve_path(dir))?;
            taken.renew(0)?;
        }
        Ok(Some(taken))
    }

    /// The epoch held.
    pub fn epoch(&self) -> u64 {
        self.owner.epoch
    }

    /// Writes the owner file anew and makes sure that there is no higher epoch.
    ///
    /// # Errors
    /// `Failed` when the folder has been taken; `Io`.
    pub fn renew(&mut self, synced: u64) -> Result<(), StoreError> {
        let start = Instant::now();
        self.owner.renewals += 1;
        self.owner.synced = synced;
        self.write()?;
        let last = folder::list(&self.dir)?.epochs.last().copied().unwrap_or(0);
        if last > self.owner.epoch {
            let taker = Owner::read(&folder::epoch_path(&self.dir, last))?.and_then(|(_, owner)| owner);
            let who = taker.map(|owner| format!(" by {}, pid {}", owner.process.host, owner.process.pid));
            let reason = format!("{} was taken{}", self.dir.display(), who.unwrap_or_default());
            return Err(StoreError::Failed { reason });
        }
        self.verified = start;
        Ok(())
    }

    fn write(&self) -> Result<(), StoreError> {
        let path = folder::epoch_path(&self.dir, self.owner.epoch);
        let temporary = path.with_extension("tmp");
        match self.write_to(&temporary) {
            Ok(()) => fs::rename(&temporary, &path).on("rename to", &path),
            // The file has its block already. A taker that reads it half written only waits longer.
            Err(error) if error.is_out_of_space() => self.write_to(&path),
            Err(error) => Err(error),
        }
    }

    fn write_to(&self, path: &Path) -> Result<(), StoreError> {
        let text = self.owner.to_text();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .on("create", path)?;
        file.write_all_at(text.as_bytes(), 0).on("write", path)?;
        file.set_len(text.len() as u64).on("write", path)?;
        file.sync_data().on("sync", path)
    }

    /// Whether the last verified renewal is young enough to acknowledge.
    pub fn allows_acknowledgement(&self) -> bool {
        self.verified.elapsed() < self.lease * ACKNOWLEDGE_PERCENT / 100
    }

    /// Gives the folder back: the next holder need not wait.
    pub fn release(&mut self, synced: u64) -> Result<(), StoreError> {
        self.owner.released = true;
        self.renew(synced)
    }

    /// The position that the owner of an epoch had synced at its last renewal, 0 if unknown.
    pub fn synced_by(dir: &Path, epoch: u64) -> Result<u64, StoreError> {
        let owner = Owner::read(&folder::epoch_path(dir, epoch))?.and_then(|(_, owner)| owner);
        Ok(owner.map_or(0, |owner| owner.synced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(300);

    fn elsewhere(dir: &Path, epoch: u64, renewals: u64) {
        let mut process = Process::current();
        process.boot = "another".into();
        process.host = "login7".into();
        let owner = Owner { process, epoch, renewals, synced: 0, released: false };
        let temporary = dir.join("other.tmp");
        fs::write(&temporary, owner.to_text()).unwrap();
        fs::rename(temporary, folder::epoch_path(dir, epoch)).unwrap();
    }

    #[test]
    fn a_second_one_is_refused_and_a_released_folder_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Lease::acquire(dir.path(), LEASE).unwrap();
        let error = Lease::acquire(dir.path(), LEASE).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Held { pid, .. } if pid == std::process::id()));
        first.release(0).unwrap();
        assert_eq!(Lease::acquire(dir.path(), LEASE).unwrap().epoch(), first.epoch() + 1);
    }

    #[test]
    fn the_lease_of_a_silent_host_runs_out() {
        let dir = tempfile::tempdir().unwrap();
        elsewhere(dir.path(), 4, 1);
        let start = Instant::now();
        let taken = Lease::acquire(dir.path(), LEASE).unwrap();
        assert_eq!(taken.epoch(), 5);
        assert!(start.elapsed() >= LEASE);
    }

    #[test]
    fn an_empty_epoch_file_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(folder::epoch_path(dir.path(), 2), b"").unwrap();
        assert_eq!(Lease::acquire(dir.path(), LEASE).unwrap().epoch(), 3);
    }

    #[test]
    fn a_host_that_renews_keeps_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        elsewhere(dir.path(), 4, 1);
        let path = dir.path().to_path_buf();
        let taker = thread::spawn(move || Lease::acquire(&path, Duration::from_secs(60)).map(|_| ()));
        let mut renewals = 1;
        while !taker.is_finished() {
            renewals += 1;
            elsewhere(dir.path(), 4, renewals);
            thread::yield_now();
        }
        let error = taker.join().unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Held { host, .. } if host == "login7"));
    }

    #[test]
    fn who_is_overtaken_cannot_renew() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Lease::acquire(dir.path(), LEASE).unwrap();
        elsewhere(dir.path(), first.epoch() + 1, 1);
        let error = first.renew(0).unwrap_err();
        assert!(error.to_string().contains("taken by login7"), "{error}");
    }
}
