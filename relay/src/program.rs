//! The copy of this program that blocks run. It lies in the shared folder under its hash: whatever is installed meanwhile, a block runs one version
//! from its script to its last manager. `scheduler` asks for it before each submit, `work` deletes those that no block runs any more.

use crate::error::RelayError;
use crate::files::private_dir;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file that the kernel runs in this process, also when another one has its name by now.
pub(crate) const OWN: &str = "/proc/self/exe";

/// Name of a copy in the folder of its hash: it is also what `ps` shows.
const NAME: &str = "pf";

/// Bytes that are read at once.
const PIECE_BYTES: usize = 1 << 20;

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    size: u64,
    hash: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Program {
    own: PathBuf,
    bin: PathBuf,
    /// The copy that was checked, and its size.
    checked: Mutex<Option<(PathBuf, u64)>>,
}

impl Program {
    /// Copies of `own` below `bin`; nothing is written yet.
    pub fn new(own: &Path, bin: PathBuf) -> Program {
        Program { own: own.into(), bin, checked: Mutex::default() }
    }

    /// The copy. It is made if it is not there, and read to its end once in the life of a relay.
    pub fn copy(&self) -> Result<PathBuf, RelayError> {
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, size)) = &*checked
            && fs::metadata(path).is_ok_and(|m| m.len() == *size)
        {
            return Ok(path.clone());
        }
        let content = content(&self.own).map_err(RelayError::file("read", &self.own))?;
        let path = self.bin.join(&content.hash).join(NAME);
        if self::content(&path).ok().as_ref() != Some(&content) {
            self.make(&path, &content)?;
        }
        *checked = Some((path.clone(), content.size));
        Ok(path)
    }

    fn make(&self, path: &Path, content: &Content) -> Result<(), RelayError> {
        let folder = self.bin.join(&content.hash);
        private_dir(&folder)?;
        let draft = folder.join(format!(".{NAME}.{}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut to =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o700).open(&draft)?;
            io::copy(&mut File::open(&self.own)?, &mut to)?;
            to.flush()?;
            // Whatever the umask: others may not enter the folder anyway.
            to.set_permissions(fs::Permissions::from_mode(0o755))?;
            to.sync_all()?;
            drop(to);
            if self::content(&draft)? != *content {
                return Err(io::Error::other("the copy reads otherwise than the program"));
            }
            fs::rename(&draft, path)?;
            File::open(&folder)?.sync_all()?;
            File::open(&self.bin)?.sync_all()
        };
        let written = write();
        if written.is_err() {
            // As a rule there is no room: what was written of it is of no use.
            let _ = fs::remove_file(&draft);
        }
        written.map_err(RelayError::file("copy this program to", path))
    }

    /// Deletes the copies that are neither in `used` nor this program's own. As long as that one has not been asked for nothing is deleted.
    pub fn tidy(&self, used: &BTreeSet<PathBuf>) -> Result<(), RelayError> {
        let checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((own, _)) = &*checked else { return Ok(()) };
        for entry in fs::read_dir(&self.bin).map_err(RelayError::file("list", &self.bin))? {
            let folder = entry.map_err(RelayError::file("list", &self.bin))?.path();
            let copy = folder.join(NAME);
            if copy != *own && !used.contains(&copy) {
                fs::remove_dir_all(&folder).map_err(RelayError::file("delete", &folder))?;
            }
        }
        Ok(())
    }
}

/// Size and BLAKE2b-256 of a file.
fn content(path: &Path) -> io::Result<Content> {
    let mut file = File::open(path)?;
    let mut hasher = Blake2b::<U32>::new();
    let (mut piece, mut size) = (vec![0; PIECE_BYTES], 0);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            let hash = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok(Content { size, hash });
        }
        hasher.update(&piece[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            Place { folder: tempfile::tempdir().unwrap() }
        }

        fn bin(&self) -> PathBuf {
            self.folder.path().join("bin")
        }

        /// A program with this content, as a relay that is started now has it.
        fn installed(&self, content: &str) -> Program {
            let own = self.folder.path().join(format!("installed-{}", content.len()));
            fs::write(&own, content).unwrap();
            Program::new(&own, self.bin())
        }

        fn copies(&self) -> BTreeSet<PathBuf> {
            fs::read_dir(self.bin()).unwrap().map(|e| e.unwrap().path().join(NAME)).collect()
        }
    }

    #[test]
    fn a_copy_is_made_once_under_its_hash() {
        let place = Place::new();
        let copy = place.installed("one").copy().unwrap();
        // hashlib.blake2b(b"one", digest_size=32).hexdigest()
        let hash = "d01c06cb09606bc4b2cedf4266a3a20e1e636b467cb77a9dbed595094e02ea46";
        assert_eq!(copy.parent().unwrap().file_name().unwrap().to_str().unwrap(), hash);
        assert_eq!(fs::read(&copy).unwrap(), b"one");
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(copy.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1, "no draft is left");
        let made = fs::metadata(&copy).unwrap().modified().unwrap();
        assert_eq!(place.installed("one").copy().unwrap(), copy);
        assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), made, "another relay finds it");
    }

    #[test]
    fn what_is_not_the_program_is_made_anew() {
        let place = Place::new();
        let program = place.installed("three");
        let copy = program.copy().unwrap();
        fs::remove_file(&copy).unwrap();
        assert_eq!(fs::read(program.copy().unwrap()).unwrap(), b"three", "somebody deleted it");
        // Of the right size, which only its hash shows.
        fs::write(&copy, "thrEe").unwrap();
        assert_eq!(fs::read(place.installed("three").copy().unwrap()).unwrap(), b"three");
    }

    #[test]
    fn an_upgrade_leaves_the_copies_that_run() {
        let place = Place::new();
        let [old, older, new] = ["old", "older", "newest"].map(|c| place.installed(c));
        let [old, older] = [old, older].map(|p| p.copy().unwrap());
        new.tidy(&BTreeSet::new()).unwrap();
        assert_eq!(place.copies().len(), 2, "before its first block a relay deletes nothing");
        let own = new.copy().unwrap();
        new.tidy(&[older.clone()].into()).unwrap();
        assert_eq!(place.copies(), [older, own.clone()].into(), "nobody runs {}", old.display());
        new.tidy(&BTreeSet::new()).unwrap();
        assert_eq!(place.copies(), [own].into());
    }

    #[test]
    fn where_it_cannot_be_written_its_path_is_told() {
        let place = Place::new();
        let program = place.installed("one");
        fs::write(place.bin(), "no folder").unwrap();
        assert!(program.copy().unwrap_err().to_string().contains("/bin/"));
    }
}
