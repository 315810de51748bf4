//! The folder of large payloads, beside the blocks' folders: items that the relay writes, values that workers leave. Used by the thread that
//! carries out the orders of `work`.

use crate::error::RelayError;
use crate::files::private_dir;
use crate::options::RelayOptions;
use bytes::Bytes;
use pf_protocol::limits::PIECE_BYTES;
use pf_protocol::payload::{file_job, file_name};
use pf_protocol::{ContentHash, JobId};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder.
pub(crate) fn dir(options: &RelayOptions) -> PathBuf {
    options.blocks_dir.join("payloads")
}

/// See the module.
pub(crate) struct PayloadFiles {
    dir: PathBuf,
    /// The file that was used last: pieces come in a row.
    open: Option<(PathBuf, File)>,
}

impl PayloadFiles {
    /// Makes the folder if it is not there.
    pub fn new(dir: PathBuf) -> Result<Self, RelayError> {
        private_dir(&dir)?;
        Ok(PayloadFiles { dir, open: None })
    }

    fn draft(&self, job: JobId, hash: ContentHash) -> PathBuf {
        self.dir.join(format!("{}.draft", file_name(job, hash, false)))
    }

    /// The file at `path`, opened with `options` unless it is the one that was used last.
    fn file(&mut self, path: PathBuf, options: &OpenOptions) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(last, _)| *last != path) {
            let file = options.open(&path)?;
            self.open = Some((path, file));
        }
        self.open.as_ref().map(|(_, file)| file).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Writes a piece of an item. With the last one the file gets its name: whoever finds it finds it whole.
    pub fn write(
        &mut self,
        job: JobId,
        hash: ContentHash,
        offset: u64,
        bytes: &[u8],
        last: bool,
    ) -> io::Result<()> {
        let draft = self.draft(job, hash);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(offset == 0).mode(0o600);
        if offset == 0 {
            self.open = None;
        }
        self.file(draft.clone(), &options)?.write_all_at(bytes, offset)?;
        if last {
            // Closed first: other nodes of a network file system see what was closed.
            self.open = None;
            fs::rename(&draft, self.dir.join(file_name(job, hash, false)))?;
        }
        Ok(())
    }

    /// Reads a piece of a value.
    pub fn read(&mut self, job: JobId, hash: ContentHash, offset: u64) -> io::Result<Bytes> {
        let mut options = OpenOptions::new();
        options.read(true);
        let file = self.file(self.dir.join(file_name(job, hash, true)), &options)?;
        let mut bytes = vec![0; PIECE_BYTES];
        let mut have = 0;
        while have < bytes.len() {
            match file.read_at(&mut bytes[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(have);
        Ok(bytes.into())
    }

    /// Deletes one file, and the draft of it.
    pub fn remove(&mut self, job: JobId, hash: ContentHash, value: bool) {
        self.open = None;
        remove(&self.dir.join(file_name(job, hash, value)));
        if !value {
            remove(&self.draft(job, hash));
        }
    }

    /// Deletes the files of those jobs for which `gone` says so. What is not named as ours is left alone.
    pub fn remove_of(&mut self, gone: impl Fn(JobId) -> bool) -> io::Result<()> {
        self.open = None;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().and_then(file_job).is_some_and(&gone) {
                remove(&entry.path());
            }
        }
        Ok(())
    }

    /// Deletes the files of all jobs but these.
    pub fn keep(&mut self, jobs: &BTreeSet<JobId>) -> io::Result<()> {
        self.remove_of(|job| !jobs.contains(&job))
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a payload's file stays");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: ContentHash = ContentHash([3; 32]);

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("list")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_item_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let mut files = PayloadFiles::new(folder.path().join("p")).expect("open");
        let (first, second) = (vec![1; PIECE_BYTES], vec![2; 10]);
        files.write(JobId(7), HASH, 0, &first, false).expect("write");
        assert_eq!(names(&files.dir), [format!("{}.draft", file_name(JobId(7), HASH, false))]);
        files.write(JobId(7), HASH, PIECE_BYTES as u64, &second, true).expect("write");
        let name = file_name(JobId(7), HASH, false);
        assert_eq!(names(&files.dir), std::slice::from_ref(&name));
        assert_eq!(fs::read(files.dir.join(name)).expect("read"), [first, second].concat());
    }

    #[test]
    fn values_are_read_in_pieces_and_files_die_with_their_jobs() {
        let folder = tempfile::tempdir().expect("folder");
        let mut files = PayloadFiles::new(folder.path().join("p")).expect("open");
        assert!(files.read(JobId(7), HASH, 0).is_err());
        let value: Vec<u8> = (0..PIECE_BYTES + 5).map(|i| i as u8).collect();
        fs::write(files.dir.join(file_name(JobId(7), HASH, true)), &value).expect("write");
        fs::write(files.dir.join("README"), b"").expect("write");
        let pieces: Vec<u8> = [0, PIECE_BYTES as u64]
            .into_iter()
            .flat_map(|at| files.read(JobId(7), HASH, at).expect("read").to_vec())
            .collect();
        assert_eq!(pieces, value);
        assert!(files.read(JobId(7), HASH, 4 << 20).expect("read").is_empty());
        files.keep(&[JobId(7)].into()).expect("keep");
        assert_eq!(names(&files.dir).len(), 2);
        files.remove_of(|job| job == JobId(7)).expect("remove");
        assert_eq!(names(&files.dir), ["README"]);
        files.remove(JobId(7), HASH, true);
    }
}
