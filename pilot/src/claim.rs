//! Who has a block, on disk: the first pilot makes a file in the block's folder, a second one finds it and leaves, having started nothing. The relay says the same
//! while it remembers; the file also holds when it was restarted meanwhile.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A pilot that claims a block.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// The scheduler's id of its batch job; empty if it is not known.
    pub scheduler_id: String,
    /// How often the job was requeued: a later life of the same job has a claim of its own.
    pub restarts: u32,
    /// Random for each process.
    pub incarnation: u64,
    /// Where it runs, for people.
    pub host: String,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// The block is this pilot's.
    Ours,
    /// Another has it, in its own words.
    Theirs(String),
}

impl Claim {
    /// Makes the claim in `dir`.
    pub fn make(&self, dir: &Path) -> io::Result<Claimed> {
        if self.restarts > 0
            && let Some(first) = read(&file(dir, 0))?
            && first.split(' ').next() != Some(self.scheduler_id.as_str())
        {
            return Ok(Claimed::Theirs(first));
        }
        let path = file(dir, self.restarts);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                let Claim { scheduler_id, incarnation, host, .. } = self;
                writeln!(file, "{scheduler_id} {incarnation:016x} {host}")?;
                Ok(Claimed::Ours)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Ok(Claimed::Theirs(read(&path)?.unwrap_or_default()))
            }
            Err(error) => Err(error),
        }
    }
}

fn file(dir: &Path, restarts: u32) -> PathBuf {
    dir.join(format!("claim-{restarts}"))
}

/// The line of a claim; None: there is none.
fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(scheduler_id: &str, restarts: u32, incarnation: u64) -> Claim {
        Claim { scheduler_id: scheduler_id.into(), restarts, incarnation, host: "n1".into() }
    }

    #[test]
    fn the_second_pilot_of_a_block_finds_the_first() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(claim("7", 0, 0xa).make(dir.path()).unwrap(), Claimed::Ours);
        let theirs = Claimed::Theirs("7 000000000000000a n1".into());
        // A submit that surfaced late is another job; the same job does not start twice without being requeued.
        assert_eq!(claim("8", 0, 0xb).make(dir.path()).unwrap(), theirs);
        assert_eq!(claim("7", 0, 0xc).make(dir.path()).unwrap(), theirs);
        assert_eq!(claim("8", 1, 0xd).make(dir.path()).unwrap(), theirs);
        // Requeued: the first life is over, as the scheduler says by starting the second.
        assert_eq!(claim("7", 1, 0xe).make(dir.path()).unwrap(), Claimed::Ours);
        assert_eq!(
            claim("7", 1, 0xf).make(dir.path()).unwrap(),
            Claimed::Theirs("7 000000000000000e n1".into())
        );
    }

    #[test]
    fn of_many_at_once_one_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16)
                .map(|n| {
                    scope.spawn({
                        let dir = dir.path();
                        move || claim("", 0, n).make(dir).unwrap()
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).filter(|claimed| *claimed == Claimed::Ours).count()
        });
        assert_eq!(made, 1);
    }
}
