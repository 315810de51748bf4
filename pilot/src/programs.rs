//! Where the programs of tasks lie. Used by the threads of `lanes`.

use crate::command::refused;
use crate::limits::{PROGRAM_KNOWN, PROGRAMS_MAX};
use pf_protocol::outcome::ErrorDetail;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Where programs are looked for when nothing says so.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What was found in PATH lately, so that the next task costs one look at a file and not one in each folder.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    /// By name and PATH.
    known: Mutex<HashMap<(OsString, OsString), (PathBuf, Instant)>>,
}

impl Programs {
    /// As [`find_program`].
    pub fn find(&self, program: &OsStr, path: Option<&OsStr>, cwd: &Path) -> Result<PathBuf, ErrorDetail> {
        if program.as_bytes().contains(&b'/') {
            return find_program(program, path, cwd);
        }
        let key = (program.to_owned(), path.unwrap_or_default().to_owned());
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&key).filter(|(_, at)| at.elapsed() < PROGRAM_KNOWN).map(|(f, _)| f.clone());
        if let Some(file) = known.filter(|file| is_program(file)) {
            return Ok(file);
        }
        let file = find_program(program, path, cwd)?;
        if std::env::split_paths(&key.1).any(|dir| dir.is_relative()) {
            // It says something else in another directory.
            return Ok(file);
        }
        let mut known = lock();
        if known.len() >= PROGRAMS_MAX {
            known.clear();
        }
        known.insert(key, (file.clone(), Instant::now()));
        Ok(file)
    }
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The file to execute. Looked for here so that spawning never has to fork, and so that the error is for people.
pub(crate) fn find_program(
    program: &OsStr,
    path: Option<&OsStr>,
    cwd: &Path,
) -> Result<PathBuf, ErrorDetail> {
    let name = program.to_string_lossy();
    if program.as_bytes().contains(&b'/') {
        let file = cwd.join(program);
        return match std::fs::metadata(&file) {
            Ok(_) if is_program(&file) => Ok(file),
            Ok(_) => Err(refused(
                format!("{name} cannot be executed"),
                "check that it is a file and has the x permission",
            )),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(refused(
                format!("command not found: {name}"),
                "the file must exist on the node where the task runs",
            )),
            Err(e) => Err(refused(format!("command {name}: {e}"), "check the permissions of its folders")),
        };
    }
    let path = path.unwrap_or_else(|| OsStr::new(DEFAULT_PATH));
    let found =
        std::env::split_paths(path).map(|dir| cwd.join(dir).join(program)).find(|file| is_program(file));
    found.ok_or_else(|| {
        refused(
            format!("command not found: {name}"),
            "it is in no folder of PATH on the node where the task runs; give its whole path, or set PATH for the job",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_the_error_says_where_they_were_looked_for() {
        let root = Path::new("/");
        assert!(find_program(OsStr::new("sh"), None, root).is_ok());
        let error = find_program(OsStr::new("no-such-program"), None, root).unwrap_err();
        assert_eq!(error.message, "command not found: no-such-program");
        assert!(error.hint.unwrap().contains("PATH"));
        let error = find_program(OsStr::new("/etc/passwd"), None, root).unwrap_err();
        assert_eq!(error.message, "/etc/passwd cannot be executed");
        assert!(find_program(OsStr::new("./sh"), None, Path::new("/bin")).is_ok());
    }

    #[test]
    fn folders_of_path_that_are_relative_are_those_of_the_working_directory() {
        let programs = Programs::default();
        let find =
            |cwd: &str| programs.find(OsStr::new("sh"), Some(OsStr::new("bin:/nowhere")), Path::new(cwd));
        assert_eq!(find("/").unwrap(), Path::new("/bin/sh"));
        assert!(find("/etc").is_err());
        assert_eq!(find("/usr").unwrap(), Path::new("/usr/bin/sh"));
    }

    #[test]
    fn what_was_found_is_looked_at_again_and_searched_anew_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let path = std::env::join_paths([&first, &second]).unwrap();
        let put = |folder: &Path| {
            std::fs::create_dir_all(folder).unwrap();
            let file = folder.join("tool");
            std::fs::write(&file, "#!/bin/sh\n").unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
            file
        };
        let (one, two) = (put(&first), put(&second));
        let programs = Programs::default();
        let find = || programs.find(OsStr::new("tool"), Some(&path), Path::new("/"));
        assert_eq!((find().unwrap(), find().unwrap()), (one.clone(), one.clone()));
        std::fs::remove_file(&one).unwrap();
        assert_eq!(find().unwrap(), two);
        std::fs::remove_file(&two).unwrap();
        assert!(find().unwrap_err().message.contains("not found"));
    }
}
