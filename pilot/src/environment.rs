//! The pilot's environment, for managers whose launcher does not pass it: left in a file of the block's folder, taken by a manager that then runs itself
//! again with it. What the site's modules and the user's set-up lines did on the first node so holds on all.

use crate::limits::ENVIRONMENT_BYTES_MAX;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Names, and starts of names, that belong to a node or to one process: a manager keeps its own, and does not take the pilot's.
const OF_A_NODE: [&str; 18] = [
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HOSTNAME",
    "LS_JOBPID",
    "OLDPWD",
    "PBS_JOBCOOKIE",
    "PBS_MOMPORT",
    "PBS_NODENUM",
    "PBS_TASKNUM",
    "PF_",
    "PWD",
    "ROCR_VISIBLE_DEVICES",
    "SHLVL",
    "SSH_",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "ZE_AFFINITY_MASK",
];

fn is_of_a_node(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name == b"_" || OF_A_NODE.iter().any(|start| name.starts_with(start.as_bytes()))
}

/// Writes this process's environment. Only its owner can read it: it may hold secrets.
pub(crate) fn leave(path: &Path) -> io::Result<()> {
    let mut text = Vec::new();
    for (name, value) in std::env::vars_os() {
        text.extend([name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat());
    }
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(&text)
}

/// Runs this program again with the environment in the file, and without the arguments that named it. Comes back only with an error.
pub(crate) fn take(path: &Path, args: &[OsString]) -> io::Error {
    let again = || -> io::Result<Command> {
        let mut text = Vec::new();
        std::fs::File::open(path)?.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut text)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).env_clear().envs(merged(std::env::vars_os(), &text));
        Ok(command)
    };
    match again() {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

/// The pilot's variables over this process's own, but for those of the node.
fn merged(own: impl Iterator<Item = (OsString, OsString)>, pilots: &[u8]) -> BTreeMap<OsString, OsString> {
    let mut all: BTreeMap<OsString, OsString> = own.collect();
    for entry in pilots.split(|b| *b == 0) {
        let Some(at) = entry.iter().position(|b| *b == b'=').filter(|at| *at > 0) else { continue };
        let name = OsString::from_vec(entry[..at].to_vec());
        if !is_of_a_node(&name) {
            all.insert(name, OsString::from_vec(entry[at + 1..].to_vec()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pilots_set_up_holds_and_the_node_keeps_its_own() {
        let own = [("PATH", "/bin"), ("TMPDIR", "/var/tmp/pbs.7"), ("PBS_NODENUM", "1"), ("HOME", "/h")];
        let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
        let pilots =
            b"PATH=/sw/bin:/bin\0TMPDIR=/tmp\0PBS_NODENUM=0\0CUDA_VISIBLE_DEVICES=0\0BAD\0A=x=y\nz\0=\0";
        let merged = merged(own, pilots);
        let shown: Vec<String> =
            merged.iter().map(|(n, v)| format!("{}={}", n.to_string_lossy(), v.to_string_lossy())).collect();
        assert_eq!(
            shown,
            ["A=x=y\nz", "HOME=/h", "PATH=/sw/bin:/bin", "PBS_NODENUM=1", "TMPDIR=/var/tmp/pbs.7"]
        );
    }

    #[test]
    fn what_is_left_can_be_read_by_its_owner_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("environment");
        leave(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let text = std::fs::read(&path).unwrap();
        assert!(text.split(|b| *b == 0).any(|entry| entry.starts_with(b"PATH=")));
        assert!(leave(&path).is_err(), "another's file is not written over");
    }
}
