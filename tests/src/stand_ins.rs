//! Stand-ins for the remote execution of PBS, LSF and ssh: every node is this machine. They pass as little of the environment as the real ones, and
//! note which node they were told to reach.

#![expect(clippy::unwrap_used, reason = "a test ends where its own preparations fail")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Name, and what it does: `host` is the node, the rest of the arguments the program.
const ALL: [(&str, &str); 4] = [
    ("pbs_tmrsh", "host=$1; shift; note; exec env -i HOME=\"$HOME\" PATH=/bin:/usr/bin \"$@\""),
    ("blaunch", "host=$1; shift; note; exec env -i HOME=\"$HOME\" PATH=/bin:/usr/bin \"$@\""),
    // Tasks of one pbsdsh, by the number of a line; its own exit code is always 0.
    (
        "pbsdsh",
        "host=$2; shift 3; note; env -i HOME=\"$HOME\" PATH=/bin:/usr/bin \"$@\" & task=$!\ntrap 'kill $task' TERM\nwait $task; wait $task; exit 0",
    ),
    (
        "ssh",
        "for last; do host=${before-}; before=$last; done; note; exec env -i HOME=\"$HOME\" PATH=/bin:/usr/bin sh -c \"$last\"",
    ),
];

/// Puts them into a folder, which is to be first in PATH.
pub fn install(dir: &Path) {
    for (name, text) in ALL {
        let path = dir.join(name);
        let note = "note() { echo \"$host\" >>\"$(dirname \"$0\")/reached\"; }";
        fs::write(&path, format!("#!/bin/sh\n{note}\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Nodes that were reached by those in this folder.
#[must_use]
pub fn reached(dir: &Path) -> BTreeSet<String> {
    fs::read_to_string(dir.join("reached")).unwrap_or_default().lines().map(String::from).collect()
}
