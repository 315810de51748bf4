//! Where a `pf run` runs, and keeps what it has: a temporary folder; in an allocation a folder that all nodes see, kept as long as work is left to go on with.

use crate::Context;
use crate::allocation::Allocation;
use crate::args::RunArgs;
use crate::config::Places;
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Says that the folder was made by `pf run` itself, and goes when nothing is left to do.
const OURS: &str = ".remove-when-done";

/// Folders of one name that are tried before another place is: as many runs of one allocation may each have left work.
const NAMES_MAX: u32 = 1_000;

/// See the module.
pub struct RunPlace {
    root: PathBuf,
    /// Whether the root goes when all is done.
    ours: bool,
    /// Whether what is left can be gone on with.
    resumable: bool,
    /// Sockets: on this host, with a short path, never on a shared file system.
    sockets: tempfile::TempDir,
}

impl RunPlace {
    /// The place of this run; made if need be.
    pub fn new(context: &Context, args: &RunArgs, allocation: Option<&Allocation>) -> Result<RunPlace> {
        let sockets = tempfile::Builder::new().prefix("pf-run-").tempdir();
        let sockets = sockets.map_err(|e| io_error("make a temporary folder", e))?;
        let temporary = sockets.path().to_path_buf();
        let place = |root, ours, resumable| RunPlace { root, ours, resumable, sockets };
        if let Some(dir) = &args.resume {
            let found = dir.canonicalize().ok().filter(|dir| Places::below(dir).durable.is_dir());
            let root = found.ok_or_else(|| {
                CliError::new(Exit::NotFound, format!("{} is no folder of a run", dir.display()))
                    .hint("give the folder that the run named when it ended, or that it was given by --keep")
            })?;
            let ours = root.join(OURS).exists();
            return Ok(place(root, ours, true));
        }
        if let Some(dir) = &args.keep {
            std::fs::create_dir_all(dir).map_err(|e| io_error(format!("make {}", dir.display()), e))?;
            let root = dir.canonicalize().map_err(|e| io_error(format!("find {}", dir.display()), e))?;
            return Ok(place(root, false, true));
        }
        let Some(allocation) = allocation else {
            return Ok(place(temporary, true, false));
        };
        let root = below_a_shared_folder(context, allocation)?;
        Ok(place(root, true, true))
    }

    /// The four places.
    pub fn places(&self) -> Places {
        Places { local: self.sockets.path().join("local"), ..Places::below(&self.root) }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How to go on, if that is possible.
    pub fn how_to_go_on(&self) -> Option<String> {
        self.resumable.then(|| format!("pf run --resume {}", self.root.display()))
    }

    /// The end: removes what nobody needs any more. `done` says that nothing is left to go on with.
    pub fn close(self, done: bool) -> Result<()> {
        let remove = |path: PathBuf, removed: std::io::Result<()>| {
            removed.map_err(|e| io_error(format!("remove {}", path.display()), e))
        };
        if self.ours && done && self.root != self.sockets.path() {
            remove(self.root.clone(), std::fs::remove_dir_all(&self.root))?;
        }
        remove(self.sockets.path().to_path_buf(), self.sockets.close())
    }
}

/// The allocation in which this process runs, if it does and there is time left in it.
pub fn allocation(context: &Context, time_left: Option<u64>) -> Result<Option<Allocation>> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let found = Allocation::find(&context.surroundings.env, now_ms, time_left, read)?;
    if found.as_ref().and_then(Allocation::usable_ms) == Some(0) {
        return Err(CliError::new(Exit::Unfinished, "too little time is left in this allocation to begin"));
    }
    Ok(found)
}

/// `pf-run-ID` in the folder from which the job was submitted, else where we are, else at home: these are what nodes share.
pub fn below_a_shared_folder(context: &Context, allocation: &Allocation) -> Result<PathBuf> {
    let home = context.surroundings.var("HOME").map(PathBuf::from);
    let folders = [allocation.submit_dir.clone(), std::env::current_dir().ok(), home];
    let mut last = None;
    for folder in folders.into_iter().flatten() {
        match make_new(&folder, &allocation.id) {
            Ok(root) => return Ok(root),
            Err(error) => last = Some(io_error(format!("make a folder in {}", folder.display()), error)),
        }
    }
    let error = last.unwrap_or_else(|| CliError::usage("there is no folder for this run"));
    Err(error.hint("give --keep DIR, a folder that all nodes see"))
}

fn make_new(folder: &Path, id: &str) -> std::io::Result<PathBuf> {
    // `217[0].pbshead`: what follows is to be typed again, in a shell.
    let id: String =
        id.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' }).collect();
    let name = |n: u32| if n == 1 { format!("pf-run-{id}") } else { format!("pf-run-{id}-{n}") };
    for n in 1..=NAMES_MAX {
        let root = folder.join(name(n));
        match std::fs::create_dir(&root) {
            Ok(()) => {
                std::fs::File::create(root.join(OURS))?;
                return root.canonicalize();
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_of_an_allocation_has_a_folder_of_its_own() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = make_new(folder.path(), "7").expect("make");
        let second = make_new(folder.path(), "7").expect("make");
        assert!(first.ends_with("pf-run-7") && second.ends_with("pf-run-7-2"));
        assert!(first.join(OURS).exists());
        assert!(make_new(folder.path(), "217[0].pbshead").expect("make").ends_with("pf-run-217-0-.pbshead"));
    }
}
