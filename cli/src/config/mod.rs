//! Configuration: layers of TOML, environment and flags become one typed [`Config`]; each value knows where it came from.
//!
//! Called once by `main` before any verb. `pf config show` prints [`Config::settings`].

pub mod layers;
pub mod places;
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

/// The admin's file.
pub const ADMIN_FILE: &str = "/etc/pilotfish/config.toml";

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
        match (self.var("PILOTFISH_DIR"), self.var("XDG_CONFIG_HOME")) {
            (Some(root), _) => Ok(PathBuf::from(root).join("config.toml")),
            (None, Some(xdg)) => Ok(PathBuf::from(xdg).join("pilotfish/config.toml")),
            (None, None) => Ok(self.home()?.join(".config/pilotfish/config.toml")),
        }
    }

    /// The layers to read.
    pub fn sources(&self, config_flag: Option<&Path>) -> Result<Sources> {
        let admin = PathBuf::from(ADMIN_FILE);
        let env = self.env.iter().filter(|(name, value)| name.starts_with("PILOTFISH_") && !value.is_empty());
        Ok(Sources {
            admin: admin.exists().then_some(admin),
            user: self.user_file(config_flag)?,
            env: env.map(|(name, value)| (name.clone(), value.clone())).collect(),
            flags: Vec::new(),
        })
    }

    /// A path as configured, with `~` and a leading `$VAR` replaced.
    pub fn expand(&self, text: &str) -> Result<PathBuf> {
        if text == "~" || text.starts_with("~/") {
            return Ok(self.home()?.join(text.trim_start_matches('~').trim_start_matches('/')));
        }
        let Some(rest) = text.strip_prefix('$') else { return Ok(PathBuf::from(text)) };
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        let name = name.trim_start_matches('{').trim_end_matches('}');
        let value = self.var(name).ok_or_else(|| CliError::usage(format!("{text:?}: {name} is not set")))?;
        Ok(PathBuf::from(value).join(below))
    }
}

#[cfg(test)]
mod tests;
