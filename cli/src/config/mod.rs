//! Configuration: layers of TOML, environment and flags become one typed [`Config`]; each value knows where it came from.
//!
//! Called once by `main` before any verb. `pf config show` prints [`Config::settings`].

pub mod bounds;
pub mod layers;
pub mod places;
pub mod profiles;
pub mod register;
mod shapes;
pub mod typed;
pub mod value;

pub use layers::{Settings, Sources};
pub use places::Places;
pub use typed::{BrokerConfig, Config, EndpointConfig, ShapeConfig};

use crate::error::{CliError, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The admin's folder: `config.toml`, and `site-profiles/`. No variable takes its place: what it limits is limited.
pub const ADMIN_DIR: &str = "/etc/pilotfish";

/// What configuration reads of the process: its environment and who it is. A value, so that tests can say it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The user's number.
    pub uid: u32,
}

impl Surroundings {
    /// This process's.
    #[must_use]
    pub fn here() -> Self {
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Surroundings { env: env.collect(), uid: nix::unistd::getuid().as_raw() }
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    fn home(&self) -> Result<PathBuf> {
        let home = self.var("HOME").map(PathBuf::from).filter(|h| h.is_absolute());
        home.ok_or_else(|| {
            CliError::usage("HOME is not set to a folder")
                .hint("set HOME, or PILOTFISH_DIR to a folder for all that pf keeps")
        })
    }

    /// The user's file: `--config`, PILOTFISH_CONFIG, `$PILOTFISH_DIR/config.toml`, `~/.config/pilotfish/config.toml`.
    /// The first two must exist.
    fn user_file(&self, flag: Option<&Path>) -> Result<Option<PathBuf>> {
        if let Some(named) =
            flag.map(Path::to_path_buf).or_else(|| self.var("PILOTFISH_CONFIG").map(PathBuf::from))
        {
            return Ok(Some(named));
        }
        let Ok(usual) = self.usual_user_file() else { return Ok(None) };
        Ok(usual.exists().then_some(usual))
    }

    /// The user's file, whether it is there or not.
    pub fn user_file_to_write(&self, flag: Option<&Path>) -> Result<PathBuf> {
        if let Some(file) = self.user_file(flag)? {
            return Ok(file);
        }
        self.usual_user_file()
    }

    fn usual_user_file(&self) -> Result<PathBuf> {
        Ok(self.user_dir()?.join("config.toml"))
    }

    /// The user's folder: `$PILOTFISH_DIR`, else `~/.config/pilotfish`.
    pub fn user_dir(&self) -> Result<PathBuf> {
        match (self.var("PILOTFISH_DIR"), self.var("XDG_CONFIG_HOME")) {
            (Some(root), _) => Ok(PathBuf::from(root)),
            (None, Some(xdg)) => Ok(PathBuf::from(xdg).join("pilotfish")),
            (None, None) => Ok(self.home()?.join(".config/pilotfish")),
        }
    }

    /// The admins' folders, lowest first: `/etc/pilotfish` always, and `$PILOTFISH_ETC` for software that a module brings along.
    fn admin_dirs(&self) -> Vec<PathBuf> {
        std::iter::once(PathBuf::from(ADMIN_DIR))
            .chain(self.var("PILOTFISH_ETC").map(PathBuf::from))
            .collect()
    }

    /// The layers to read.
    pub fn sources(&self, config_flag: Option<&Path>) -> Result<Sources> {
        let admin = self.admin_dirs();
        let env = self.env.iter().filter(|(name, value)| name.starts_with("PILOTFISH_") && !value.is_empty());
        // Without a home there are no profiles of the user's own, and that is all.
        let dirs = self.user_dir().ok().into_iter().chain(admin.iter().rev().cloned());
        Ok(Sources {
            admin: admin.iter().map(|dir| dir.join("config.toml")).filter(|file| file.exists()).collect(),
            user: self.user_file(config_flag)?,
            edited: None,
            profiles: dirs.map(|dir| dir.join("site-profiles")).collect(),
            env: env.map(|(name, value)| (name.clone(), value.clone())).collect(),
            flags: Vec::new(),
        })
    }

    /// A path as configured, with `~` at its beginning, and `$VAR` and `${VAR}` anywhere, replaced.
    pub fn expand(&self, text: &str) -> Result<PathBuf> {
        if text == "~" || text.starts_with("~/") {
            return Ok(self.home()?.join(self.fill(&text[1..])?.trim_start_matches('/')));
        }
        Ok(PathBuf::from(self.fill(text)?))
    }

    fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            filled.push_str(before);
            let end = |s: &str| s.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(s.len());
            let (name, left) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
                Some(braced) => braced,
                None => after.split_at(end(after)),
            };
            let value = self.var(name);
            filled.push_str(value.ok_or_else(|| CliError::usage(format!("{text:?}: {name} is not set")))?);
            rest = left;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

#[cfg(test)]
mod tests;
