//! The four places: durable (the log), shared (blocks), local (sockets), output (what tasks print). Each is made and
//! probed where it is used, so that a wrong one is an error that names it, not a failure much later.

use super::Surroundings;
use super::layers::Settings;
use super::value::{Origin, Value};
use crate::error::{CliError, Result, io_error};
use crate::limits::SOCKET_PATH_BYTES_MAX;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The four folders.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// The broker's log.
    pub durable: PathBuf,
    /// Blocks' folders.
    pub shared: PathBuf,
    /// Sockets.
    pub local: PathBuf,
    /// What tasks print.
    pub output: PathBuf,
}

const NAMES: [&str; 4] = ["durable", "shared", "local", "output"];

impl Places {
    /// All four below one folder.
    #[must_use]
    pub fn below(root: &Path) -> Places {
        let [durable, shared, local, output] = NAMES.map(|name| root.join(name));
        Places { durable, shared, local, output }
    }

    /// The places of `settings`. Writes back what PILOTFISH_DIR and a missing XDG_RUNTIME_DIR made of the built-in
    /// values, so that `pf config show` shows what holds.
    pub fn resolve(surroundings: &Surroundings, settings: &mut Settings) -> Result<Places> {
        if let Some(root) = surroundings.var("PILOTFISH_DIR") {
            for name in NAMES {
                let value = Value::Text(format!("{}/{name}", root.trim_end_matches('/')));
                let slot = settings
                    .values
                    .entry(format!("places.{name}"))
                    .or_insert_with(|| (value.clone(), Origin::BuiltIn));
                // A more exact variable or a flag wins over the root; files do not.
                if slot.1 < Origin::Env(String::new()) {
                    *slot = (value, Origin::Env("PILOTFISH_DIR".into()));
                }
            }
        }
        let local = settings.values.get_mut("places.local");
        if let Some((value, Origin::BuiltIn)) = local
            && surroundings.var("XDG_RUNTIME_DIR").is_none_or(|dir| !Path::new(dir).is_dir())
        {
            *value = Value::Text(format!("/tmp/pilotfish-{}", surroundings.uid));
        }
        let [durable, shared, local, output] = NAMES.map(|name| place(surroundings, settings, name));
        Ok(Places { durable: durable?, shared: shared?, local: local?, output: output? })
    }

    /// The broker's Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.local.join("broker.sock")
    }

    /// Log of the daemon, beside the broker's log.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.durable.join("daemon.log")
    }

    /// Makes and probes all four.
    pub fn prepare(&self) -> Result<()> {
        for (name, path) in [("durable", &self.durable), ("shared", &self.shared), ("output", &self.output)] {
            make_private(name, path)?;
            probe_writable(name, path)?;
        }
        self.prepare_local()
    }

    /// Makes and probes the place for sockets: it must be ours alone, since its mode is what guards them.
    pub fn prepare_local(&self) -> Result<()> {
        let path = &self.local;
        make_private("local", path)?;
        let there = std::fs::symlink_metadata(path)
            .map_err(|e| io_error(format!("look at places.local {}", path.display()), e))?;
        let me = nix::unistd::geteuid().as_raw();
        let wrong = |why: String| {
            let error = CliError::usage(format!("places.local {} {why}", path.display()));
            Err(error.hint("remove it if it is yours, or set places.local to another folder"))
        };
        if !there.is_dir() {
            return wrong("is not a folder".into());
        }
        if there.uid() != me {
            return wrong(format!("belongs to user {}, not to you ({me})", there.uid()));
        }
        if there.mode() & 0o077 != 0 {
            return wrong(format!("has mode {:04o}: others could reach its sockets", there.mode() & 0o7777));
        }
        let length = self.socket().as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            let error = CliError::usage(format!(
                "socket path {} has {length} bytes, Linux takes {SOCKET_PATH_BYTES_MAX}",
                self.socket().display()
            ));
            return Err(error.hint("set places.local to a shorter path"));
        }
        probe_writable("local", path)
    }
}

fn place(surroundings: &Surroundings, settings: &Settings, name: &str) -> Result<PathBuf> {
    let full = format!("places.{name}");
    let Some((Value::Text(text), origin)) = settings.values.get(&full) else {
        return Err(CliError::internal(format!("setting {full} has no value")));
    };
    let path = surroundings.expand(text).map_err(|e| {
        CliError::usage(format!("{origin}: {full}")).because(e).hint(format!("set {full} to another folder"))
    })?;
    if !path.is_absolute() {
        return Err(CliError::usage(format!("{origin}: {full} = {text:?} is not an absolute path")));
    }
    Ok(path)
}

fn make_private(name: &str, path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| {
        io_error(format!("make places.{name} {}", path.display()), e)
            .hint(format!("set places.{name} to a folder that you can write to"))
    })
}

fn probe_writable(name: &str, path: &Path) -> Result<()> {
    let probe = path.join(format!(".probe-{}", std::process::id()));
    let written = std::fs::File::create(&probe)
        .and_then(|mut f| f.write_all(b"probe"))
        .and_then(|()| std::fs::remove_file(&probe));
    written.map_err(|e| {
        // An empty file can be made where its content has no room.
        let _ = std::fs::remove_file(&probe);
        io_error(format!("write to places.{name} {}", path.display()), e)
            .hint(format!("make room there, or set places.{name} to another folder"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn places_are_made_private_and_work() {
        let root = tempfile::tempdir().expect("temporary folder");
        let places = Places::below(root.path());
        places.prepare().expect("prepare");
        assert_eq!(std::fs::metadata(&places.local).expect("local").mode() & 0o7777, 0o700);
    }

    #[test]
    fn an_open_or_false_place_for_sockets_is_refused() {
        let root = tempfile::tempdir().expect("temporary folder");
        let places = Places::below(root.path());
        places.prepare().expect("prepare");
        std::fs::set_permissions(&places.local, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(places.prepare_local().unwrap_err().to_string().contains("has mode 0755"));
        std::fs::remove_dir(&places.local).expect("remove");
        std::os::unix::fs::symlink(&places.output, &places.local).expect("link");
        assert!(places.prepare_local().unwrap_err().to_string().contains("is not a folder"));
        let long = Places::below(&root.path().join("x".repeat(120)));
        assert!(long.prepare_local().unwrap_err().to_string().contains("Linux takes 107"));
    }
}
