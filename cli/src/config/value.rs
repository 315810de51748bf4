//! One configured value and where it came from.

use super::register::Kind;
use crate::units::{duration_ms, memory_bytes};
use std::fmt;
use std::path::PathBuf;
use toml::de::DeValue;

/// A value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, path, choice, or duration as written.
    Text(String),
    /// A number.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// A number in thousandths.
    Milli(i64),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    Ints(Vec<u32>),
}

/// Where a value came from, later ones winning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    BuiltIn,
    /// A site profile.
    Profile {
        /// Its name.
        name: String,
        /// Its file; None if it is part of `pf`.
        path: Option<PathBuf>,
        /// Line in it.
        line: usize,
    },
    /// A file.
    File {
        /// The file.
        path: PathBuf,
        /// Line in it, from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built in"),
            Origin::Profile { name, path: None, line } => write!(f, "profile {name}:{line}"),
            Origin::Profile { path: Some(path), line, .. } => write!(f, "profile {}:{line}", path.display()),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => write!(f, "${name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Bool(yes) => write!(f, "{yes}"),
            Value::Milli(n) => f.write_str(&milli_words(*n)),
            Value::Texts(list) => write!(f, "{list:?}"),
            Value::Ints(list) => write!(f, "{list:?}"),
        }
    }
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Text | Kind::Path => "a text in quotes".into(),
        Kind::Choice(words) => format!("one of {words:?}"),
        Kind::Int { min, max } => format!("a whole number from {min} to {max}"),
        Kind::Bool => "true or false".into(),
        Kind::Memory => "a size of memory in quotes, like \"512M\" or \"4G\"".into(),
        Kind::Duration | Kind::DurationOrEmpty => "a duration in quotes, like \"90s\" or \"24h\"".into(),
        Kind::Milli { min, max } => {
            format!(
                "a number from {} to {}, with at most three digits after the point",
                min as f64 / 1e3,
                max as f64 / 1e3
            )
        }
        Kind::Texts => "a list of texts, like [\"a\", \"b\"]".into(),
        Kind::Ints => "a list of whole numbers, like [0, 1]".into(),
    }
}

fn as_int(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// `0.25`, `1.0`: as TOML has it.
fn milli_words(n: i64) -> String {
    let text = format!("{}.{:03}", n / 1_000, n % 1_000);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

/// Thousandths of a number like `0.25` or `3`.
fn as_milli(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 3 {
        return None;
    }
    let part: i64 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000)?.checked_add(part)
}

impl Value {
    /// A parsed TOML value as a value of `kind`; the error says what was expected.
    pub fn from_toml(value: &DeValue<'_>, kind: Kind) -> Result<Value, String> {
        let found = match (kind, value) {
            (Kind::Ints, DeValue::Array(items)) => {
                let all = items.iter().map(|v| as_int(v.get_ref()).and_then(|n| u32::try_from(n).ok()));
                all.collect::<Option<Vec<_>>>().map(Value::Ints)
            }
            (Kind::Texts, DeValue::Array(items)) => {
                let all = items.iter().map(|v| v.get_ref().as_str().map(str::to_owned));
                all.collect::<Option<Vec<_>>>().map(Value::Texts)
            }
            (Kind::Int { .. }, DeValue::Integer(_)) => as_int(value).map(Value::Int),
            (Kind::Bool, DeValue::Boolean(yes)) => Some(Value::Bool(*yes)),
            (Kind::Milli { .. }, DeValue::Integer(_)) => {
                as_int(value).and_then(|n| n.checked_mul(1_000)).map(Value::Milli)
            }
            (Kind::Milli { .. }, DeValue::Float(number)) => as_milli(number.as_str()).map(Value::Milli),
            (_, DeValue::String(text)) => Some(Value::Text(text.to_string())),
            _ => None,
        };
        found.filter(|v| v.fits(kind)).ok_or_else(|| format!("must be {}", expected(kind)))
    }

    /// A text, from the environment or a flag, as a value of `kind`. Lists are separated by commas.
    pub fn from_text(text: &str, kind: Kind) -> Result<Value, String> {
        let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let found = match kind {
            Kind::Int { .. } => text.trim().parse().ok().map(Value::Int),
            Kind::Bool => text.trim().parse().ok().map(Value::Bool),
            Kind::Milli { .. } => as_milli(text.trim()).map(Value::Milli),
            Kind::Texts => Some(Value::Texts(parts().map(str::to_owned).collect())),
            Kind::Ints => parts().map(|p| p.parse().ok()).collect::<Option<Vec<u32>>>().map(Value::Ints),
            _ => Some(Value::Text(text.to_owned())),
        };
        found.filter(|v| v.fits(kind)).ok_or_else(|| format!("must be {}", expected(kind)))
    }

    /// A TOML literal of the register.
    pub fn from_toml_literal(literal: &str, kind: Kind) -> Result<Value, String> {
        let value = DeValue::parse(literal).map_err(|e| e.message().to_owned())?;
        Value::from_toml(value.get_ref(), kind)
    }

    fn fits(&self, kind: Kind) -> bool {
        match (kind, self) {
            (Kind::Text | Kind::Path, Value::Text(_)) | (Kind::Texts, Value::Texts(_)) => true,
            (Kind::Ints, Value::Ints(_)) => true,
            (Kind::Choice(words), Value::Text(text)) => words.contains(&text.as_str()),
            (Kind::Int { min, max }, Value::Int(n)) => (min..=max).contains(n),
            (Kind::Bool, Value::Bool(_)) => true,
            (Kind::Memory, Value::Text(text)) => text.is_empty() || memory_bytes(text).is_ok(),
            (Kind::DurationOrEmpty, Value::Text(text)) if text.is_empty() => true,
            (Kind::Duration | Kind::DurationOrEmpty, Value::Text(text)) => {
                duration_ms(text).is_ok_and(|ms| ms > 0)
            }
            (Kind::Milli { min, max }, Value::Milli(n)) => (min..=max).contains(n),
            _ => false,
        }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) => text.as_str().into(),
            Value::Int(n) => (*n).into(),
            Value::Bool(yes) => (*yes).into(),
            Value::Milli(n) => (*n as f64 / 1e3).into(),
            Value::Texts(list) => list.clone().into(),
            Value::Ints(list) => list.clone().into(),
        }
    }
}
