//! Where site profiles come from: the user's folder, the admin's, `pf` itself; the first that has the name. Read by the layers of
//! the configuration for the endpoints that name one, and by `pf site`.

use crate::error::{CliError, Result, io_error};
use pf_site_profiles::limits::{PROFILE_BYTES_MAX, PROFILES_MAX};
use pf_site_profiles::{EMBEDDED, Profile};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A profile as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name: the file's, without `.toml`.
    pub name: String,
    /// Its file; None if it is part of `pf`.
    pub path: Option<PathBuf>,
    /// Its text, for the lines of values.
    pub text: String,
    /// What it says.
    pub profile: Profile,
}

impl Found {
    /// Where it is from, for people.
    #[must_use]
    pub fn from(&self) -> String {
        self.path.as_ref().map_or("pf".into(), |p| p.display().to_string())
    }

    /// The profile, unchecked.
    fn read(name: &str, path: Option<PathBuf>, text: String) -> Result<Found> {
        let profile = pf_site_profiles::parse(&text).map_err(|error| {
            let shown = path.as_ref().map_or(format!("profile {name}"), |p| p.display().to_string());
            CliError::usage(format!("{shown}:{}: {}", error.line, error.message))
        })?;
        Ok(Found { name: name.into(), path, text, profile })
    }
}

/// The profile of this name, from the first of `folders` that has it, else from `pf`.
///
/// # Errors
/// When its file cannot be read, or is no profile.
pub fn find(folders: &[PathBuf], name: &str) -> Result<Option<Found>> {
    // A name is no path: it must not lead out of the folders.
    let file = if name.contains('/') || name.starts_with('.') { None } else { Some(format!("{name}.toml")) };
    for folder in folders {
        let Some(path) = file.as_ref().map(|f| folder.join(f)).filter(|p| p.exists()) else { continue };
        let text = read_text(&path)?;
        return Found::read(name, Some(path), text).map(Some);
    }
    let embedded = EMBEDDED.iter().find(|e| e.0 == name);
    embedded.map(|(name, text)| Found::read(name, None, (*text).into())).transpose()
}

/// All profiles, by name. One that cannot be read is an error of its own, beside the others.
#[must_use]
pub fn list(folders: &[PathBuf]) -> BTreeMap<String, Result<Found>> {
    names(folders)
        .into_iter()
        .filter_map(|name| Some((name.clone(), find(folders, &name).transpose()?)))
        .collect()
}

/// Their names, in order.
#[must_use]
pub fn names(folders: &[PathBuf]) -> Vec<String> {
    let in_folder = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().take(PROFILES_MAX);
        entries
            .filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let mut names: Vec<String> = folders.iter().flat_map(in_folder).collect();
    names.extend(EMBEDDED.iter().map(|e| e.0.to_owned()));
    names.sort();
    names.dedup();
    names
}

fn read_text(path: &Path) -> Result<String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|e| io_error(format!("read site profile {shown}"), e))?.len();
    if size > PROFILE_BYTES_MAX {
        return Err(CliError::usage(format!(
            "{shown} has {size} bytes, a site profile has at most {PROFILE_BYTES_MAX}"
        )));
    }
    std::fs::read_to_string(path).map_err(|e| io_error(format!("read site profile {shown}"), e))
}
