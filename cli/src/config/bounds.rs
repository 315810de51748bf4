//! `[limits]` of the admins' files: what no later layer may pass. Values of layers below (built-in, site profile) are cut to the limit;
//! a user's value beyond it is refused, with the file and the key that say so.

use super::layers::nearest_hint;
use super::register::Kind;
use super::value::{Origin, Value};
use crate::error::{CliError, Result};
use crate::units::duration_ms;
use pf_providers::ProviderConfig;
use std::collections::BTreeMap;
use toml::de::DeValue;

/// How a limit bounds a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// At most this number, or this duration.
    Most,
    /// At least this duration: the time between two polls, submits, launches.
    Least,
    /// One of these texts.
    OneOf,
}

/// A limit: its name, the setting of an endpoint that it bounds, how, and of which kind its value is.
type Limit = (&'static str, &'static str, How, Kind);

const COUNT: Kind = Kind::Int { min: 1, max: u32::MAX as i64 };

/// All limits.
const LIMITS: &[Limit] = &[
    ("blocks_max", "blocks_max", How::Most, COUNT),
    ("nodes_per_block_max", "nodes_per_block", How::Most, COUNT),
    ("cores_max", "cores", How::Most, COUNT),
    ("walltime_max", "walltime", How::Most, Kind::Duration),
    ("poll_min", "poll", How::Least, Kind::Duration),
    ("submit_every_min", "submit_every", How::Least, Kind::Duration),
    ("queues", "queue", How::OneOf, Kind::Texts),
    ("qos", "qos", How::OneOf, Kind::Texts),
    ("accounts", "account", How::OneOf, Kind::Texts),
    ("accounts", "accounts", How::OneOf, Kind::Texts),
];

/// Directives by which `options` could say what a limit bounds: provider, beginning of the directive, setting. Long options of Slurm may be cut
/// short, so their beginnings are compared both ways.
const DIRECTIVES: &[(&str, &str, &str)] = &[
    ("slurm", "-p", "queue"),
    ("slurm", "--partition", "queue"),
    ("slurm", "-q", "qos"),
    ("slurm", "--qos", "qos"),
    ("slurm", "-A", "account"),
    ("slurm", "--account", "account"),
    ("slurm", "-t", "walltime"),
    ("slurm", "--time", "walltime"),
    ("slurm", "-N", "nodes_per_block"),
    ("slurm", "--nodes", "nodes_per_block"),
    ("pbs", "-q", "queue"),
    ("pbs", "-A", "account"),
    ("pbs", "walltime=", "walltime"),
    ("pbs", "select=", "nodes_per_block"),
    ("pbs", "nodes=", "nodes_per_block"),
    ("lsf", "-q", "queue"),
    ("lsf", "-P", "account"),
    ("lsf", "-G", "account"),
    ("lsf", "-W", "walltime"),
    ("lsf", "-nnodes", "nodes_per_block"),
    ("cobalt", "-q", "queue"),
    ("cobalt", "-A", "account"),
    ("cobalt", "-t", "walltime"),
    ("cobalt", "-n", "nodes_per_block"),
];

/// The setting that a directive among the user's own lines says.
fn said_by<'a>(provider: &str, line: &'a str) -> impl Iterator<Item = (&'a str, &'static str)> {
    let directives: Vec<_> = DIRECTIVES.iter().filter(|d| d.0 == provider).collect();
    let slurm = provider == "slurm";
    let words = line.split([' ', '\t', ',', '"', '\'']).filter(|word| !word.is_empty());
    words.filter_map(move |word| {
        let name = word.split('=').next().unwrap_or(word);
        let says = |start: &str| match (start.starts_with("--"), start.ends_with('=')) {
            (true, _) => name == start || (slurm && name.len() > 3 && start.starts_with(name)),
            (false, true) => word.to_ascii_lowercase().starts_with(start),
            // `-q debug` and `-qdebug`; but `-notify` of LSF is no `-n`.
            (false, false) => word == start || (slurm && word.starts_with(start) && !word.starts_with("--")),
        };
        directives.iter().find(|d| says(d.1)).map(|d| (word, d.2))
    })
}

/// The limits that hold, by name. Several files may each set one: the tighter holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    held: BTreeMap<&'static str, (Value, Origin)>,
}

impl Bounds {
    /// Adds one entry of `[limits]`.
    ///
    /// # Errors
    /// When there is no such limit, or the value is of another kind.
    pub fn add(&mut self, key: &str, value: &DeValue<'_>, origin: Origin) -> Result<()> {
        let Some(&(name, _, how, kind)) = LIMITS.iter().find(|l| l.0 == key) else {
            let error = CliError::usage(format!("{origin}: unknown key {key:?} in [limits]"));
            return Err(error.hint(nearest_hint(key, LIMITS.iter().map(|l| l.0), "key")));
        };
        let new = Value::from_toml(value, kind)
            .map_err(|why| CliError::usage(format!("{origin}: limits.{key} {why}")))?;
        let tighter = match (self.held.get(name), &new) {
            (None, _) => Some(new),
            (Some((Value::Texts(old), _)), Value::Texts(new)) => {
                Some(Value::Texts(old.iter().filter(|o| new.contains(o)).cloned().collect()))
            }
            (Some((old, _)), _) => passes(old, &new, how).is_none().then_some(new),
        };
        if let Some(value) = tighter {
            self.held.insert(name, (value, origin));
        }
        Ok(())
    }

    /// Holds every value of an endpoint against the limits.
    ///
    /// # Errors
    /// When one of the admin's, the user's, the environment or a flag is beyond its limit.
    pub fn hold(&self, values: &mut BTreeMap<String, (Value, Origin)>) -> Result<()> {
        let provider =
            |(full, (value, _)): (&String, &(Value, Origin))| match (full.strip_suffix(".provider"), value) {
                (Some(endpoint), Value::Text(name)) => Some((endpoint.to_owned(), name.clone())),
                _ => None,
            };
        let providers: BTreeMap<String, String> = values.iter().filter_map(provider).collect();
        for (full, slot) in values.iter_mut() {
            // Of the endpoint, or of one of its shapes: endpoints.NAME.KEY, endpoints.NAME.shapes.SHAPE.KEY.
            let Some(rest) = full.strip_prefix("endpoints.") else { continue };
            let (name, key) =
                (rest.split('.').next().unwrap_or(rest), rest.rsplit('.').next().unwrap_or(rest));
            let provider = providers.get(&format!("endpoints.{name}")).map_or("", |p| p);
            if key == "options" {
                self.hold_options(full, slot, provider)?;
            }
            self.hold_one(full, key, slot, provider)?;
        }
        Ok(())
    }

    fn hold_one(&self, full: &str, key: &str, slot: &mut (Value, Origin), provider: &str) -> Result<()> {
        // This machine alone has neither queues nor accounts.
        let bounding = LIMITS.iter().filter(|l| l.1 == key && (l.2 != How::OneOf || provider != "local"));
        for (name, _, how, _) in bounding.copied() {
            let Some((limit, by)) = self.held.get(name) else { continue };
            if how == How::Least && slot.0 == Value::Text(String::new()) {
                let usual = usual_ms(provider, key);
                if usual.is_some_and(|usual| passes(limit, &millis(usual), how).is_some()) {
                    *slot = (limit.clone(), by.clone());
                }
                continue;
            }
            let Some(words) = passes(limit, &slot.0, how) else { continue };
            let below = matches!(slot.1, Origin::BuiltIn | Origin::Profile { .. });
            if below && how != How::OneOf {
                *slot = (limit.clone(), by.clone());
                continue;
            }
            let (value, origin) = (&slot.0, &slot.1);
            return Err(CliError::usage(format!(
                "{origin}: {full} = {value} is {words} of {limit} (limits.{name}, {by})"
            ))
            .hint(hint(limit, how, full)));
        }
        Ok(())
    }

    /// Refuses lines of `options` that say what a limit bounds: they would win over the setting.
    fn hold_options(&self, full: &str, slot: &(Value, Origin), provider: &str) -> Result<()> {
        let (Value::Texts(lines), origin) = slot else { return Ok(()) };
        for (word, key) in lines.iter().flat_map(|line| said_by(provider, line)) {
            let limits = LIMITS.iter().filter(|l| l.1 == key);
            if let Some((name, (_, by))) = limits.filter_map(|l| self.held.get_key_value(l.0)).next() {
                return Err(CliError::usage(format!(
                    "{origin}: {full} says {word}, which the admin limits (limits.{name}, {by})"
                ))
                .hint(format!("say it by the setting {key}")));
            }
        }
        Ok(())
    }
}

/// What suits the scheduler where nothing is said, milliseconds.
fn usual_ms(provider: &str, key: &str) -> Option<u64> {
    let config = ProviderConfig { name: provider.into(), ..ProviderConfig::default() };
    let provider = pf_providers::provider(&config).ok()?;
    Some(if key == "poll" { provider.poll_ms() } else { provider.submit_ms() })
}

fn millis(ms: u64) -> Value {
    Value::Text(format!("{ms}ms"))
}

/// How `value` passes `limit`, in words; None if it does not.
fn passes(limit: &Value, value: &Value, how: How) -> Option<&'static str> {
    let size = |v: &Value| match v {
        Value::Int(n) => u64::try_from(*n).ok(),
        Value::Text(text) => duration_ms(text).ok(),
        _ => None,
    };
    match how {
        How::Most => (size(value)? > size(limit)?).then_some("over the admin's limit"),
        How::Least => (size(value)? < size(limit)?).then_some("below the admin's limit"),
        How::OneOf => match (limit, value) {
            // What is left empty is the scheduler's own choice.
            (Value::Texts(allowed), Value::Text(one)) => {
                (!one.is_empty() && !allowed.contains(one)).then_some("none of the admin's choice")
            }
            (Value::Texts(allowed), Value::Texts(all)) => {
                all.iter().any(|one| !allowed.contains(one)).then_some("beyond the admin's choice")
            }
            _ => None,
        },
    }
}

fn hint(limit: &Value, how: How, full: &str) -> String {
    match (how, limit) {
        (How::OneOf, Value::Texts(allowed)) => format!("set {full} to one of {}", allowed.join(", ")),
        (How::Least, _) => format!("set it to {limit} or more"),
        _ => format!("set it to {limit} or less"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::register::{self, ENDPOINT_SECTION};

    #[test]
    fn directives_that_say_what_a_limit_bounds_are_seen() {
        for (provider, line, key) in [
            ("slurm", "--mail-type=END -pdebug", Some("queue")),
            ("slurm", "--part=debug", Some("queue")),
            ("slurm", "--time 10:00", Some("walltime")),
            ("slurm", "--mem=0", None),
            ("slurm", "--nodelist=n1", None),
            ("pbs", "-l select=4:ncpus=2,walltime=1:00:00", Some("nodes_per_block")),
            ("pbs", "-l place=scatter,walltime=9", Some("walltime")),
            ("pbs", "-l filesystems=home", None),
            ("lsf", "-notify exit", None),
            ("lsf", "-W 10", Some("walltime")),
            ("cobalt", "-t 10", Some("walltime")),
        ] {
            assert_eq!(said_by(provider, line).next().map(|s| s.1), key, "{provider} {line}");
        }
    }

    #[test]
    fn choices_hold_where_there_is_a_scheduler() {
        let mut bounds = Bounds::default();
        let limit = DeValue::parse("['debug', 'batch']").expect("toml");
        bounds.add("queues", limit.get_ref(), Origin::Env("admin".into())).expect("add");
        let hold = |provider: &str, queue: &str, options: &[&str]| {
            let user = |value| (value, Origin::Env("user".into()));
            let options = Value::Texts(options.iter().map(|o| (*o).to_owned()).collect());
            let mut values = BTreeMap::from([
                ("endpoints.x.provider".to_owned(), user(Value::Text(provider.into()))),
                ("endpoints.x.queue".to_owned(), user(Value::Text(queue.into()))),
                ("endpoints.x.options".to_owned(), user(options)),
            ]);
            bounds.hold(&mut values).map_err(|e| e.lines().join("\n"))
        };
        assert_eq!(hold("slurm", "debug", &["--mem=0"]), Ok(()));
        assert_eq!(hold("local", "", &[]), Ok(()));
        assert_eq!(hold("slurm", "", &[]), Ok(()), "the scheduler chooses");
        let refused =
            [hold("slurm", "long", &[]), hold("slurm", "debug", &["-p long"])].map(|held| held.unwrap_err());
        insta::assert_snapshot!(refused.join("\n"), @r#"
        error: $user: endpoints.x.queue = "long" is none of the admin's choice of ["debug", "batch"] (limits.queues, $admin)
        hint: set endpoints.x.queue to one of debug, batch
        error: $user: endpoints.x.options says -p, which the admin limits (limits.queues, $admin)
        hint: say it by the setting queue
        "#);
    }

    #[test]
    fn what_is_asked_too_often_by_itself_is_asked_less() {
        let mut bounds = Bounds::default();
        let limit = DeValue::parse("'5s'").expect("toml");
        bounds.add("poll_min", limit.get_ref(), Origin::Env("admin".into())).expect("add");
        let poll = |provider: &str, value: &str| {
            let text = |t: &str, origin| (Value::Text(t.into()), origin);
            let mut values = BTreeMap::from([
                ("endpoints.x.provider".to_owned(), text(provider, Origin::BuiltIn)),
                ("endpoints.x.poll".to_owned(), text(value, Origin::Env("user".into()))),
            ]);
            bounds
                .hold(&mut values)
                .map(|()| values["endpoints.x.poll"].0.to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(poll("local", ""), Ok("\"5s\"".into()));
        assert_eq!(poll("slurm", ""), Ok("\"\"".into()), "fifteen seconds are its own");
        assert_eq!(poll("slurm", "6s"), Ok("\"6s\"".into()));
        assert!(poll("slurm", "4s").is_err_and(|e| {
            e.contains("poll = \"4s\" is below the admin's limit of \"5s\" (limits.poll_min, $admin)")
        }));
    }

    #[test]
    fn every_limit_bounds_a_setting_of_its_kind() {
        for (name, key, how, kind) in LIMITS {
            let setting = register::find(&format!("{ENDPOINT_SECTION}.{key}")).expect(name);
            let fits = match how {
                How::OneOf => [Kind::Text, Kind::Texts].contains(&setting.kind) && *kind == Kind::Texts,
                How::Least => setting.kind == Kind::DurationOrEmpty && *kind == Kind::Duration,
                How::Most => std::mem::discriminant(&setting.kind) == std::mem::discriminant(kind),
            };
            assert!(fits, "{name} bounds {key}");
        }
    }
}
