//! Files that must survive: written aside, synced, renamed. And bounded reads.

use crate::error::RelayError;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Replaces `path` with `bytes`, mode 0600: a reader sees the old or the new, also after a crash.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), RelayError> {
    replace_with(path, bytes, 0o600)
}

/// As [`replace`], mode 0700.
pub(crate) fn write_script(path: &Path, text: &str) -> Result<(), RelayError> {
    replace_with(path, text.as_bytes(), 0o700)
}

fn replace_with(path: &Path, bytes: &[u8], mode: u32) -> Result<(), RelayError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(RelayError::file("write", path))
}

/// The whole file, if it is not longer than `most`. None if there is none.
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, RelayError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(RelayError::file("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(RelayError::file("read", path))?;
    if bytes.len() as u64 > most {
        return Err(RelayError::file("read", path)(io::Error::other(format!(
            "it is longer than {most} bytes"
        ))));
    }
    Ok(Some(bytes))
}

/// The last `most` bytes of a file as text; nothing if it cannot be read.
pub(crate) fn tail(path: &Path, most: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Makes a folder of mode 0700, with its parents.
pub(crate) fn private_dir(path: &Path) -> Result<(), RelayError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(RelayError::file("make", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn files_are_replaced_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/roster.json");
        private_dir(path.parent().unwrap()).unwrap();
        assert_eq!(read(&path, 9).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"three").unwrap();
        assert_eq!(read(&path, 9).unwrap().unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&path, 2).unwrap_err().to_string().contains("roster.json"));
        assert_eq!(tail(&path, 3), "ree");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
