//! Reads the layers of configuration and lays them over each other. Unknown keys are refused, with file, line and the
//! nearest key that exists. Pure but for the files it is told to read: the environment comes as an argument.

use super::bounds::Bounds;
use super::profiles::{self, Found};
use super::register::{self, ENDPOINT_SECTION, KEYS, Key, SECTIONS};
use super::value::{Origin, Value};
use crate::error::{CliError, Result, io_error};
use crate::limits::CONFIG_BYTES_MAX;
use pf_protocol::limits::NAME_CHARS_MAX;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// The endpoint that exists without being named.
pub const DEFAULT_ENDPOINT: &str = "local";

/// Environment variables that begin like settings and are none; each is documented in `docs/config.md`.
pub const OTHER_VARIABLES: &[&str] = &[
    "PILOTFISH_DIR",
    "PILOTFISH_CONFIG",
    "PILOTFISH_ETC",
    "PILOTFISH_LOG",
    "PILOTFISH_PF",
    "PILOTFISH_TOKEN",
];

/// A variable that is this many letters from a setting's is taken for a typing error.
const TYPING_ERRORS: usize = 3;

/// Values by full name (`places.local`, `endpoints.local.cores`), each with where it came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The values that hold.
    pub values: BTreeMap<String, (Value, Origin)>,
    /// The site profile of each endpoint.
    pub profiles: BTreeMap<String, Found>,
    /// What the admins' files set under `[limits]`.
    bounds: Bounds,
}

/// Where layers are read from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The admins' files that exist, lowest first.
    pub admin: Vec<PathBuf>,
    /// The user's file; refused if it was named and is not there.
    pub user: Option<PathBuf>,
    /// The user's file with the text that it is about to get, in place of `user`: to see whether it would be good.
    pub edited: Option<(PathBuf, String)>,
    /// Folders with site profiles; the first that has a name wins.
    pub profiles: Vec<PathBuf>,
    /// Environment variables that begin with `PILOTFISH_`.
    pub env: Vec<(String, String)>,
    /// Settings by flags: full name, value, flag.
    pub flags: Vec<(String, String, &'static str)>,
}

impl Settings {
    /// All layers, lowest first.
    pub fn load(sources: &Sources) -> Result<Settings> {
        let mut upper = Settings::default();
        for path in &sources.admin {
            upper.add_file(path, true)?;
        }
        match (&sources.edited, &sources.user) {
            (Some((path, text)), _) => upper.add_text(text, path, false)?,
            (None, Some(path)) => upper.add_file(path, false)?,
            (None, None) => {}
        }
        sources.env.iter().try_for_each(|(name, value)| upper.add_env(name, value))?;
        for (name, value, flag) in &sources.flags {
            let key = key_of(name).ok_or_else(|| CliError::internal(format!("{name} is no setting")))?;
            let value = Value::from_text(value, key.kind)
                .map_err(|why| CliError::usage(format!("flag {flag} {why}")))?;
            upper.values.insert(name.clone(), (value, Origin::Flag(flag)));
        }
        let mut all = upper.lower_layers(&sources.profiles)?;
        all.values.extend(upper.values);
        all.bounds = upper.bounds;
        all.bounds.hold(&mut all.values)?;
        Ok(all)
    }

    /// Built-in values and site profiles of each endpoint that the upper layers name, and of the default one.
    fn lower_layers(&self, folders: &[PathBuf]) -> Result<Settings> {
        let mut lower = Settings::default();
        for key in KEYS.iter().filter(|k| k.section() != ENDPOINT_SECTION) {
            lower.values.insert(key.name.into(), (key.built_in(), Origin::BuiltIn));
        }
        for endpoint in self.endpoint_names() {
            for key in KEYS.iter().filter(|k| k.section() == ENDPOINT_SECTION) {
                let name = format!("endpoints.{endpoint}.{}", key.short());
                lower.values.insert(name, (key.built_in(), Origin::BuiltIn));
            }
            lower.add_profile(
                &endpoint,
                self.values.get(&format!("endpoints.{endpoint}.profile")),
                folders,
            )?;
        }
        // Places belong to the host: where several profiles have them, the one of the default endpoint wins.
        let default = match self.values.get("client.endpoint") {
            Some((Value::Text(name), _)) => name.clone(),
            _ => DEFAULT_ENDPOINT.to_owned(),
        };
        let mut order: Vec<String> = lower.profiles.keys().filter(|e| **e != default).cloned().collect();
        order.push(default);
        for endpoint in order {
            lower.add_places(&endpoint)?;
        }
        Ok(lower)
    }

    /// Names of the endpoints in these layers; the default one is always there.
    #[must_use]
    pub fn endpoint_names(&self) -> Vec<String> {
        let named = self.values.keys().filter_map(|k| k.strip_prefix("endpoints.")?.split('.').next());
        let mut names: Vec<String> = named.chain([DEFAULT_ENDPOINT]).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    fn add_profile(
        &mut self,
        endpoint: &str,
        chosen: Option<&(Value, Origin)>,
        folders: &[PathBuf],
    ) -> Result<()> {
        let (name, origin) = match chosen {
            Some((Value::Text(name), origin)) => (name.as_str(), origin.clone()),
            _ => (DEFAULT_ENDPOINT, Origin::BuiltIn),
        };
        let Some(found) = profiles::find(folders, name)? else {
            let known = profiles::names(folders);
            let error = CliError::usage(format!(
                "{origin}: endpoint {endpoint} wants site profile {name:?}, which pf does not have"
            ));
            return Err(error.hint(nearest_hint(name, known.iter().map(String::as_str), "profile")));
        };
        let at = |start| Origin::Profile {
            name: found.name.clone(),
            path: found.path.clone(),
            line: line_of(&found.text, start),
        };
        each_entry(&found, "endpoint", |key, value, origin| match key {
            "shapes" => self.add_shapes(endpoint, value, &at, &origin),
            _ => self.add_endpoint_value(endpoint, key, value, origin),
        })?;
        self.profiles.insert(endpoint.into(), found);
        Ok(())
    }

    fn add_places(&mut self, endpoint: &str) -> Result<()> {
        let Some(found) = self.profiles.get(endpoint).cloned() else { return Ok(()) };
        each_entry(&found, "places", |key, value, origin| {
            let full = format!("places.{key}");
            self.add_value(&full, &full, value, origin)
        })
    }

    fn add_file(&mut self, path: &Path, admin: bool) -> Result<()> {
        let shown = path.display();
        let size =
            std::fs::metadata(path).map_err(|e| io_error(format!("read configuration {shown}"), e))?.len();
        if size > CONFIG_BYTES_MAX {
            return Err(CliError::usage(format!(
                "{shown} has {size} bytes, a configuration has at most {CONFIG_BYTES_MAX}"
            )));
        }
        let text =
            std::fs::read_to_string(path).map_err(|e| io_error(format!("read configuration {shown}"), e))?;
        self.add_text(&text, path, admin)
    }

    /// One file's text as the next layer.
    fn add_text(&mut self, text: &str, path: &Path, admin: bool) -> Result<()> {
        let table = DeTable::parse(text).map_err(|e| toml_error(&path.display().to_string(), text, &e))?;
        for (section, value) in table.get_ref() {
            let at = |start| Origin::File { path: path.into(), line: line_of(text, start) };
            let origin = at(section.span().start);
            let name = section.get_ref().as_ref();
            let Some(inner) = value.get_ref().as_table() else {
                return Err(unknown_section(name, &origin));
            };
            match name {
                "endpoints" => {
                    for (endpoint, value) in inner {
                        let origin = at(endpoint.span().start);
                        check_name(endpoint.get_ref(), "an endpoint", &origin)?;
                        let Some(keys) = value.get_ref().as_table() else {
                            return Err(CliError::usage(format!(
                                "{origin}: endpoints.{} must be a table",
                                endpoint.get_ref()
                            ))
                            .hint("write [endpoints.NAME], and its settings below"));
                        };
                        for (key, value) in keys {
                            if key.get_ref() == "shapes" {
                                let origin = at(key.span().start);
                                self.add_shapes(endpoint.get_ref(), value.get_ref(), &at, &origin)?;
                                continue;
                            }
                            self.add_endpoint_value(
                                endpoint.get_ref(),
                                key.get_ref(),
                                value.get_ref(),
                                at(key.span().start),
                            )?;
                        }
                    }
                }
                "limits" if admin => {
                    for (key, value) in inner {
                        self.bounds.add(key.get_ref(), value.get_ref(), at(key.span().start))?;
                    }
                }
                "limits" => {
                    return Err(CliError::usage(format!(
                        "{origin}: [limits] holds only in the admin's file"
                    ))
                    .hint("write it to /etc/pilotfish/config.toml"));
                }
                _ if SECTIONS.iter().any(|s| s.0 == name && name != ENDPOINT_SECTION) => {
                    for (key, value) in inner {
                        let full = format!("{name}.{}", key.get_ref());
                        self.add_value(&full, &full, value.get_ref(), at(key.span().start))?;
                    }
                }
                _ => return Err(unknown_section(name, &origin)),
            }
        }
        Ok(())
    }

    fn add_endpoint_value(
        &mut self,
        endpoint: &str,
        key: &str,
        value: &DeValue<'_>,
        origin: Origin,
    ) -> Result<()> {
        let registered = format!("{ENDPOINT_SECTION}.{key}");
        self.add_value(&registered, &format!("endpoints.{endpoint}.{key}"), value, origin)
    }

    pub(super) fn add_value(
        &mut self,
        registered: &str,
        full: &str,
        value: &DeValue<'_>,
        origin: Origin,
    ) -> Result<()> {
        let Some(key) = register::find(registered) else {
            let (section, short) = registered.split_once('.').unwrap_or(("", registered));
            let known = KEYS.iter().filter(|k| k.section() == section).map(Key::short);
            let error =
                CliError::usage(format!("{origin}: unknown key {short:?} in {}", shown_section(full)));
            return Err(error.hint(nearest_hint(short, known, "key")));
        };
        let value = Value::from_toml(value, key.kind)
            .map_err(|why| CliError::usage(format!("{origin}: {full} {why}")))?;
        self.values.insert(full.into(), (value, origin));
        Ok(())
    }

    fn add_env(&mut self, name: &str, text: &str) -> Result<()> {
        if OTHER_VARIABLES.contains(&name) {
            return Ok(());
        }
        let variable = |key: &Key| format!("PILOTFISH_{}", key.name.replace('.', "_").to_uppercase());
        let plain = || KEYS.iter().filter(|k| k.section() != ENDPOINT_SECTION);
        let Some(key) = plain().find(|k| variable(k) == name) else {
            // What is nearly a setting is a typing error; other programs may have variables of this kind too.
            let near = plain().map(|k| (strsim::damerau_levenshtein(name, &variable(k)), variable(k))).min();
            return match near {
                Some((distance, near)) if distance <= TYPING_ERRORS => {
                    Err(CliError::usage(format!("unknown environment variable {name}"))
                        .hint(format!("the nearest variable is {near}")))
                }
                _ => Ok(()),
            };
        };
        let value = Value::from_text(text, key.kind)
            .map_err(|why| CliError::usage(format!("environment variable {name} {why}")))?;
        self.values.insert(key.name.into(), (value, Origin::Env(name.into())));
        Ok(())
    }
}

/// Every entry of one table of a profile, with its line.
fn each_entry(
    found: &Found,
    section: &str,
    mut each: impl FnMut(&str, &DeValue<'_>, Origin) -> Result<()>,
) -> Result<()> {
    let table = DeTable::parse(&found.text).map_err(|e| toml_error(&found.name, &found.text, &e))?;
    let inner = table.get_ref().iter().find(|(key, _)| key.get_ref() == section);
    for (key, value) in inner.and_then(|(_, value)| value.get_ref().as_table()).into_iter().flatten() {
        let line = line_of(&found.text, key.span().start);
        let origin = Origin::Profile { name: found.name.clone(), path: found.path.clone(), line };
        each(key.get_ref(), value.get_ref(), origin)?;
    }
    Ok(())
}

/// The register's entry for a full name.
fn key_of(full: &str) -> Option<&'static Key> {
    match full.strip_prefix("endpoints.") {
        Some(rest) => register::find(&format!("{ENDPOINT_SECTION}.{}", rest.split_once('.')?.1)),
        None => register::find(full),
    }
}

fn shown_section(full: &str) -> String {
    format!("[{}]", full.rsplit_once('.').map_or(full, |(section, _)| section))
}

fn unknown_section(name: &str, origin: &Origin) -> CliError {
    let known = SECTIONS.iter().map(|s| if s.0 == ENDPOINT_SECTION { "endpoints" } else { s.0 });
    if SECTIONS.iter().any(|s| s.0 == name && name != ENDPOINT_SECTION) || name == "endpoints" {
        return CliError::usage(format!("{origin}: {name} is a section"))
            .hint(format!("write [{name}], and its settings below"));
    }
    let error = CliError::usage(format!("{origin}: unknown section [{name}]"));
    error.hint(nearest_hint(name, known, "section"))
}

/// Refuses what cannot be the name of an endpoint, or of a shape.
pub fn check_name(name: &str, of: &str, origin: &impl std::fmt::Display) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= NAME_CHARS_MAX && name.chars().all(good) {
        return Ok(());
    }
    Err(CliError::usage(format!("{origin}: {name:?} cannot be the name of {of}"))
        .hint("use letters, digits, - and _"))
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count()
}

fn toml_error(shown: &str, text: &str, error: &toml::de::Error) -> CliError {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    CliError::usage(format!("{shown}:{line}: {}", error.message().trim_end()))
}

/// "the nearest key is .." if one is near, else all of them.
pub fn nearest_hint<'a>(given: &str, known: impl Iterator<Item = &'a str>, what: &str) -> String {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(given, k), *k)).min();
    match near {
        Some((distance, name)) if distance <= 1 + name.len() / 3 => format!("the nearest {what} is {name}"),
        _ if known.len() == 1 => format!("the only {what} is {}", known[0]),
        _ => format!("known: {}", known.join(", ")),
    }
}
