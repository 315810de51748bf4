//! How often the scheduler is asked, for the user as a whole: files in one folder for all relays of the user, on all hosts that see it, over
//! their restarts. An answer to the status is kept there, so that one command an interval is enough for everybody. Called by `scheduler`, from
//! threads that may wait.

use crate::error::RelayError;
use crate::files::{private_dir, read, replace};
use crate::limits::STATUS_BYTES_MAX;
use nix::fcntl::{Flock, FlockArg};
use pf_providers::Output;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// See the module.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Where the files are.
    pub dir: PathBuf,
    /// Least time between two status commands, milliseconds.
    pub poll_ms: u64,
    /// Least time between two submits, milliseconds.
    pub submit_ms: u64,
}

/// What a status command said, or why it said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Kept {
    /// When it was started, Unix milliseconds.
    at_ms: u64,
    exit: Option<i32>,
    stdout: String,
    stderr: String,
    failure: Option<String>,
}

impl Rates {
    /// What `run`, the status command, says: as somebody was told within the last interval, if that was not before `since_ms` (Unix
    /// milliseconds), else as it says now. Waits for the next interval if it must.
    ///
    /// # Errors
    /// In words: when the command gave no answer, or the files cannot be used.
    pub fn status(
        &self,
        since_ms: u64,
        run: impl FnOnce() -> Result<Output, String>,
    ) -> Result<Output, String> {
        let words = |e: RelayError| crate::work::chain(&e);
        let path = self.dir.join("status.json");
        loop {
            let _lock = self.lock("status.lock").map_err(words)?;
            let text = read(&path, STATUS_BYTES_MAX).unwrap_or_default().unwrap_or_default();
            // What cannot be read is asked again. So is what comes from the future: a clock was set.
            let kept = serde_json::from_slice::<Kept>(&text).ok();
            let now = unix_ms();
            let young = kept.filter(|k| k.at_ms <= now && now - k.at_ms < self.poll_ms);
            let Some(kept) = young else {
                let keep = |kept: &Kept| {
                    let bytes = serde_json::to_vec(kept).map_err(|e| e.to_string())?;
                    replace(&path, &bytes).map_err(words)
                };
                // First that it is asked: should this relay die over it, the next one must not ask again at once.
                let unanswered = "the relay that asked last ended before the answer came".to_string();
                keep(&Kept { at_ms: now, failure: Some(unanswered), ..Kept::default() })?;
                let said = run();
                let (output, failure) = match said.clone() {
                    Ok(output) => (output, None),
                    Err(words) => (Output::default(), Some(words)),
                };
                let Output { exit, stdout, stderr } = output;
                keep(&Kept { at_ms: now, exit, stdout, stderr, failure })?;
                return said;
            };
            if kept.at_ms >= since_ms {
                return match kept.failure {
                    Some(words) => Err(words),
                    None => Ok(Output { exit: kept.exit, stdout: kept.stdout, stderr: kept.stderr }),
                };
            }
            drop(_lock);
            std::thread::sleep(Duration::from_millis(self.poll_ms - (now - kept.at_ms)));
        }
    }

    /// Waits until the user may submit again.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn submit_turn(&self) -> Result<(), RelayError> {
        if self.submit_ms == 0 {
            return Ok(());
        }
        let path = self.dir.join("submit.at");
        // Kept while waiting: those that come later wait behind.
        let _lock = self.lock("submit.lock")?;
        let text = read(&path, 32)?.unwrap_or_default();
        let last = String::from_utf8_lossy(&text).trim().parse::<u64>().ok();
        let now = unix_ms();
        if let Some(ago) = last.and_then(|last| now.checked_sub(last)).filter(|ago| *ago < self.submit_ms) {
            std::thread::sleep(Duration::from_millis(self.submit_ms - ago));
        }
        replace(&path, unix_ms().to_string().as_bytes())
    }

    fn lock(&self, name: &str) -> Result<Flock<File>, RelayError> {
        private_dir(&self.dir)?;
        let path = self.dir.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(RelayError::file("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| RelayError::file("lock", &path)(errno.into()))
    }
}

/// Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    fn rates(dir: &std::path::Path, poll_ms: u64) -> Rates {
        Rates { dir: dir.join("slurm"), poll_ms, submit_ms: 50 }
    }

    fn said(text: &str) -> Result<Output, String> {
        Ok(Output { exit: Some(0), stdout: text.into(), stderr: String::new() })
    }

    #[test]
    fn one_command_an_interval_is_enough_for_all_relays() {
        let folder = tempfile::tempdir().unwrap();
        let count = AtomicU32::new(0);
        let began = Instant::now();
        // Each thread is another relay, and each wants to know how it is now, not how it was.
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let run = || {
                            count.fetch_add(1, Ordering::SeqCst);
                            said("x")
                        };
                        rates(folder.path(), 100).status(unix_ms(), run).unwrap();
                    }
                });
            }
        });
        let intervals = began.elapsed().as_millis() as u32 / 100 + 1;
        let count = count.load(Ordering::SeqCst);
        assert!(count >= 2 && count <= intervals, "{count} commands in {intervals} intervals");
    }

    #[test]
    fn an_answer_is_shared_unless_it_is_older_than_what_is_asked_about() {
        let folder = tempfile::tempdir().unwrap();
        let hour = rates(folder.path(), 3_600_000);
        assert_eq!(hour.status(0, || said("first")).unwrap().stdout, "first");
        assert_eq!(hour.status(0, || panic!("it is known")).unwrap().stdout, "first");
        // A relay that was started again finds it too; one with a shorter interval asks when that is over.
        let short = rates(folder.path(), 1);
        assert_eq!(short.status(unix_ms(), || said("second")).unwrap().stdout, "second");
        assert_eq!(hour.status(0, || panic!("it is known")).unwrap().stdout, "second");
    }

    #[test]
    fn a_failure_is_not_repeated_by_everybody_and_rubbish_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let hour = rates(folder.path(), 3_600_000);
        assert_eq!(hour.status(0, || Err("no controller".into())).unwrap_err(), "no controller");
        assert_eq!(hour.status(0, || panic!("it is known")).unwrap_err(), "no controller");
        std::fs::write(hour.dir.join("status.json"), "{").unwrap();
        assert_eq!(hour.status(0, || said("x")).unwrap().stdout, "x");
        let future =
            Kept { at_ms: u64::MAX, exit: None, stdout: String::new(), stderr: String::new(), failure: None };
        std::fs::write(hour.dir.join("status.json"), serde_json::to_vec(&future).unwrap()).unwrap();
        assert_eq!(hour.status(0, || said("y")).unwrap().stdout, "y");
    }

    #[test]
    fn a_relay_that_died_over_its_question_has_asked() {
        let folder = tempfile::tempdir().unwrap();
        let hour = rates(folder.path(), 3_600_000);
        let dies = std::panic::AssertUnwindSafe(|| hour.status(0, || panic!("it dies")));
        assert!(std::panic::catch_unwind(dies).is_err());
        let next = hour.status(0, || panic!("it was asked within the hour"));
        assert!(next.unwrap_err().contains("before the answer came"));
    }

    #[test]
    fn submits_keep_their_distance() {
        let folder = tempfile::tempdir().unwrap();
        let began = Instant::now();
        (0..3).for_each(|_| rates(folder.path(), 1).submit_turn().unwrap());
        assert!(began.elapsed() >= Duration::from_millis(100));
    }
}
