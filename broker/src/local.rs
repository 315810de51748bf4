//! The local place: a folder that is this user's alone, with the broker's Unix socket. Used at start.

use crate::error::{BrokerError, IoContext};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Name of the socket in the local place.
pub const SOCKET_NAME: &str = "broker.sock";
/// Held (flock) by the broker that serves the socket. The kernel lets go of it when that process ends, however it ends.
const LOCK_NAME: &str = "broker.lock";

/// Makes `dir` (0700) if it is not there, and checks that it is a folder of this user which nobody else can enter.
///
/// # Errors
/// When it cannot be made, is a link or no folder, belongs to somebody else, or is open to others.
pub fn private_dir(dir: &Path) -> Result<(), BrokerError> {
    if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(dir)
        && source.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(BrokerError::Io { action: "make folder", path: dir.to_path_buf(), source });
    }
    let found = fs::symlink_metadata(dir).on("look at folder", dir)?;
    let unsafe_because = |reason: String| Err(BrokerError::Unsafe { path: dir.to_path_buf(), reason });
    let me = nix::unistd::geteuid().as_raw();
    if !found.is_dir() {
        return unsafe_because("is not a folder (a link is not followed)".into());
    }
    if found.uid() != me {
        return unsafe_because(format!("belongs to uid {}, not to us (uid {me})", found.uid()));
    }
    if found.mode() & 0o077 != 0 {
        return unsafe_because(format!("is open to others (mode {:o}, must be 700)", found.mode() & 0o777));
    }
    Ok(())
}

/// The broker's socket; its place is freed when this is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
    _lock: Flock<File>,
}

impl LocalSocket {
    /// Listens on `broker.sock` in `dir`, which is made and checked first. The socket of a dead broker is replaced.
    ///
    /// # Errors
    /// When the folder is not ours alone, another broker serves it, or the socket cannot be made.
    pub fn bind(dir: &Path) -> Result<LocalSocket, BrokerError> {
        private_dir(dir)?;
        let path = dir.join(SOCKET_NAME);
        let lock = lock(&dir.join(LOCK_NAME), &path)?;
        // The lock is ours, so whatever lies here was left by a broker that is gone.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).on("replace socket", &path);
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).on("make socket", &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).on("set the mode of socket", &path)?;
        listener.set_nonblocking(true).on("set up socket", &path)?;
        Ok(LocalSocket { path, listener: Some(listener), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub(crate) fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // A socket that stays is replaced by the next broker; clients find nobody behind it meanwhile.
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(path: &Path, socket: &Path) -> Result<Flock<File>, BrokerError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .on("open", path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).on("write", path)?;
            writeln!(lock, "{}", std::process::id()).on("write", path)?;
            Ok(lock)
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            // Only for the message: a lock that cannot be read names pid 0.
            let _ = file.read_to_string(&mut text);
            Err(BrokerError::Served { path: socket.to_path_buf(), pid: text.trim().parse().unwrap_or(0) })
        }
        Err((_, errno)) => Err(std::io::Error::from(errno)).on("lock", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_socket_is_ours_alone_and_replaces_a_dead_one() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/local");
        let socket = LocalSocket::bind(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(socket.path()).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(socket.path()).unwrap();
        let error = LocalSocket::bind(&dir).unwrap_err();
        assert!(matches!(error, BrokerError::Served { pid, .. } if pid == std::process::id()), "{error}");
        drop(socket);
        // A socket whose broker was killed.
        drop(UnixListener::bind(dir.join(SOCKET_NAME)).unwrap());
        let socket = LocalSocket::bind(&dir).unwrap();
        UnixStream::connect(socket.path()).unwrap();
    }

    #[test]
    fn a_folder_open_to_others_or_behind_a_link_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o750)).unwrap();
        let error = private_dir(&open).unwrap_err();
        assert!(error.to_string().contains("mode 750"), "{error}");
        assert!(error.hint().is_some());
        fs::set_permissions(&open, Permissions::from_mode(0o700)).unwrap();
        private_dir(&open).unwrap();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(private_dir(&link).unwrap_err().to_string().contains("not a folder"));
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(private_dir(&file).is_err());
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("theirs");
        DirBuilder::new().mode(0o700).create(&dir).unwrap();
        nix::unistd::chown(&dir, Some(nix::unistd::Uid::from_raw(4711)), None).unwrap();
        assert!(private_dir(&dir).unwrap_err().to_string().contains("uid 4711"));
    }
}
