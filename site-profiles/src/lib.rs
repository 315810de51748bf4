//! Facts about supercomputers: the schema of a site profile, the profiles that are part of `pf`, and how a machine is recognised and asked.
//!
//! Pure. The configuration of `pf` reads `[endpoint]` and `[places]` of a profile; `pf site` does the rest.

pub mod detect;
pub mod limits;
mod profile;
pub mod survey;

pub use profile::{
    Daemons, Detect, Internet, Login, Network, Node, Places, Profile, Queue, QueuesAre, Status, Vendor,
};

/// A profile that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ProfileError {
    /// Line of the file, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

/// Reads a profile.
///
/// # Errors
/// When the text is not TOML, or has a key or a value that the schema does not know.
pub fn parse(text: &str) -> Result<Profile, ProfileError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(start).filter(|b| *b == b'\n').count();
        ProfileError { line, message: error.message().trim_end().to_owned() }
    })
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../", $name, ".toml")))),*] };
}

/// The profiles that are part of `pf`: name and TOML.
pub const EMBEDDED: &[(&str, &str)] = embedded![
    "anvil",
    "aurora",
    "bridges2",
    "cori",
    "delta",
    "derecho",
    "expanse",
    "frontera",
    "frontier",
    "generic-cobalt",
    "generic-lsf",
    "generic-openlava",
    "generic-pbs",
    "generic-slurm",
    "generic-torque",
    "juwels",
    "karolina",
    "lassen",
    "leonardo",
    "local",
    "lumi",
    "marenostrum5",
    "midway3",
    "perlmutter",
    "polaris",
    "stampede3",
    "summit",
    "sunspot",
    "theta",
    "thetagpu",
];

#[cfg(test)]
mod tests;
