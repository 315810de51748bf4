//! The one register of settings: name, kind, built-in value, meaning. Everything else about configuration reads it:
//! the loader (`layers`), the typed view (`typed`), `pf config show`, and `configs/default.toml`, which a test compares.

use super::value::Value;

/// What a setting may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A folder or file; `~` and `$VAR` at its beginning are replaced.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number within bounds.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// A size of memory as text, `"512M"`, `"4G"`; empty: not said.
    Memory,
    /// A duration as text, `"90s"`, `"24h"`.
    Duration,
    /// A duration as text; empty: not said.
    DurationOrEmpty,
    /// A number with up to three digits after the point, within bounds in thousandths.
    Milli {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A list of texts.
    Texts,
    /// A list of whole numbers from 0.
    Ints,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// `section.key`; `endpoint.key` stands for `endpoints.NAME.key` of each endpoint.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// Built-in value, as TOML.
    pub default: &'static str,
    /// What it is for: the comment in `configs/default.toml`.
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}

/// Section of the settings that each endpoint has.
pub const ENDPOINT_SECTION: &str = "endpoint";

/// Settings of an endpoint that a shape of its blocks may set for itself, in `[endpoints.NAME.shapes.SHAPE]`.
pub const SHAPE_KEYS: &[&str] = &[
    "blocks_max",
    "nodes_per_block",
    "walltime",
    "accounts",
    "queue",
    "account",
    "qos",
    "reservation",
    "constraint",
    "cores_per_node",
    "gpus_per_node",
    "memory_per_node",
    "exclusive",
    "options",
    "setup",
];

/// Sections in the order in which the reference shows them, with what each is for.
pub const SECTIONS: [(&str, &str); 4] = [
    ("client", "What `pf` does when its command line does not say."),
    ("broker", "The broker: where clients find it, and where it listens."),
    (
        "places",
        "The four places. PILOTFISH_DIR=/x puts all of them, and this file (/x/config.toml), below /x.",
    ),
    (
        "endpoint",
        "An endpoint: a place where tasks run. `local` is this machine; it exists without being named.",
    ),
];

/// All settings.
pub const KEYS: &[Key] = &[
    key("client.endpoint", Kind::Text, "\"local\"", "Endpoint of jobs that do not name one."),
    key(
        "broker.address",
        Kind::Text,
        "\"\"",
        "A broker on another host, as \"https://HOST:PORT\". Empty: this host's own, started when it is needed.",
    ),
    key(
        "broker.certificate",
        Kind::Path,
        "\"~/.config/pilotfish/broker.crt\"",
        "That broker's certificate (`pf broker cert` prints it there). No other certificate is believed.",
    ),
    key(
        "broker.token_file",
        Kind::Path,
        "\"~/.config/pilotfish/token\"",
        "File with the token for it (`pf broker token add NAME` prints one there). Must be readable by you only.",
    ),
    key(
        "broker.listen",
        Kind::Text,
        "\"\"",
        "Where this host's broker serves clients of other hosts by TLS: \"ADDRESS:PORT\". Empty: Unix socket only.",
    ),
    key(
        "broker.listen_relays",
        Kind::Texts,
        "[]",
        "Where it lets relays of other hosts in (ZeroMQ with CURVE): \"ADDRESS:PORT\" each, one port for all.",
    ),
    key(
        "places.durable",
        Kind::Path,
        "\"~/.local/share/pilotfish\"",
        "The broker's log: must survive a reboot.",
    ),
    key(
        "places.shared",
        Kind::Path,
        "\"~/.local/share/pilotfish/shared\"",
        "Folders of blocks, with tickets and spools: must be seen by login node and compute nodes.",
    ),
    key(
        "places.local",
        Kind::Path,
        "\"$XDG_RUNTIME_DIR/pilotfish\"",
        "Sockets: on this host only. Without XDG_RUNTIME_DIR: /tmp/pilotfish-UID.",
    ),
    key(
        "places.output",
        Kind::Path,
        "\"~/.local/share/pilotfish/output\"",
        "What tasks print, and their work directories.",
    ),
    key(
        "endpoint.profile",
        Kind::Text,
        "\"local\"",
        "Site profile: facts of the machine, below these settings.",
    ),
    key("endpoint.provider", Kind::Choice(&pf_providers::NAMES), "\"local\"", "Who is asked for nodes."),
    key(
        "endpoint.dialect",
        Kind::Text,
        "\"\"",
        "Which kind of that scheduler it is, where there are several. Empty: it is found out.",
    ),
    key(
        "endpoint.launcher",
        Kind::Choice(&pf_launcher::NAMES),
        "\"local\"",
        "How managers are started on the nodes of a block.",
    ),
    key(
        "endpoint.blocks_min",
        Kind::Int { min: 0, max: 10_000 },
        "0",
        "Blocks to keep even when nothing waits.",
    ),
    key("endpoint.blocks_max", Kind::Int { min: 1, max: 10_000 }, "1", "Blocks at once, at the most."),
    key(
        "endpoint.blocks_init",
        Kind::Int { min: 0, max: 10_000 },
        "0",
        "Blocks to ask for when the endpoint is used for the first time, even when nothing waits.",
    ),
    key(
        "endpoint.parallelism",
        Kind::Milli { min: 0, max: 1_000 },
        "1.0",
        "Part of the tasks that is to have slots at once, from 0 (one block) to 1 (all of them).",
    ),
    key("endpoint.nodes_per_block", Kind::Int { min: 1, max: 100_000 }, "1", "Nodes of each block."),
    key("endpoint.walltime", Kind::Duration, "\"24h\"", "How long a block may run."),
    key(
        "endpoint.idle",
        Kind::Duration,
        "\"2m\"",
        "A block that has had nothing to do for this long is given back.",
    ),
    key(
        "endpoint.accounts",
        Kind::Texts,
        "[]",
        "Accounts that may be charged; jobs that name none go to the first. Empty: any that a job names, else `account`.",
    ),
    key(
        "endpoint.node_hours_max",
        Kind::Milli { min: 0, max: 1_000_000_000_000 },
        "0",
        "Node-hours that all blocks together may use: a hard brake. 0: no limit.",
    ),
    key(
        "endpoint.failures",
        Kind::Int { min: 1, max: 1_000 },
        "10",
        "Blocks that die young in a row after which no more are asked for, until `pf endpoint resume`.",
    ),
    key(
        "endpoint.backoff",
        Kind::Duration,
        "\"30s\"",
        "Pause after the first of them; doubles with each, an hour at the most.",
    ),
    key(
        "endpoint.cores",
        Kind::Int { min: 0, max: 65_536 },
        "0",
        "Cores that each node offers to tasks. 0: what the hardware has. More than it has: tasks are not pinned.",
    ),
    key(
        "endpoint.gpus",
        Kind::Int { min: -1, max: 1_024 },
        "-1",
        "GPUs that each node offers to tasks. -1: what the hardware has.",
    ),
    key(
        "endpoint.reserved_cores",
        Kind::Ints,
        "[]",
        "Cores kept back from tasks, by the number that the kernel gives them.",
    ),
    key(
        "endpoint.queue",
        Kind::Text,
        "\"\"",
        "Queue or partition that blocks are asked for in. Empty: the scheduler's usual one.",
    ),
    key(
        "endpoint.account",
        Kind::Text,
        "\"\"",
        "Account (project) that is charged, where a job does not name one.",
    ),
    key("endpoint.qos", Kind::Text, "\"\"", "Quality of service."),
    key("endpoint.reservation", Kind::Text, "\"\"", "Reservation to run in."),
    key(
        "endpoint.constraint",
        Kind::Text,
        "\"\"",
        "Features that nodes must have, in the scheduler's own words.",
    ),
    key(
        "endpoint.cores_per_node",
        Kind::Int { min: 0, max: 65_536 },
        "0",
        "Cores to ask for on each node. 0: what the queue gives.",
    ),
    key(
        "endpoint.gpus_per_node",
        Kind::Int { min: 0, max: 1_024 },
        "0",
        "GPUs to ask for on each node. 0: what the queue gives.",
    ),
    key(
        "endpoint.memory_per_node",
        Kind::Memory,
        "\"\"",
        "Memory to ask for on each node: \"4G\". Empty: what the queue gives.",
    ),
    key("endpoint.exclusive", Kind::Bool, "false", "Whole nodes, shared with nobody."),
    key(
        "endpoint.options",
        Kind::Texts,
        "[]",
        "More directives for the scheduler, without its prefix: [\"--mail-type=END\"].",
    ),
    key(
        "endpoint.setup",
        Kind::Texts,
        "[]",
        "Shell lines that run on the first node before anything else: [\"module load python\"].",
    ),
    key(
        "endpoint.poll",
        Kind::DurationOrEmpty,
        "\"\"",
        "How often the scheduler is asked where blocks are, at the most, over all your endpoints. Empty: as suits it.",
    ),
    key(
        "endpoint.submit_every",
        Kind::DurationOrEmpty,
        "\"\"",
        "Least time between two submits, over all your endpoints. Empty: as suits the scheduler.",
    ),
    key(
        "endpoint.interfaces",
        Kind::Texts,
        "[]",
        "Interfaces or addresses of this host at which its nodes reach it. Empty: all private ones.",
    ),
    key("endpoint.ports", Kind::Text, "\"\"", "Ports that may be used for that: \"9000-9100\". Empty: any."),
    key(
        "endpoint.python",
        Kind::Text,
        "\"python3\"",
        "Interpreter for Python functions that do not name one.",
    ),
];

/// The setting of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

impl Key {
    /// The section, before the dot.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }

    /// The name within its section.
    #[must_use]
    pub fn short(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, short)| short)
    }

    /// The built-in value.
    #[must_use]
    pub fn built_in(&self) -> Value {
        Value::from_toml_literal(self.default, self.kind).unwrap_or(Value::Text(String::new()))
    }
}

/// The commented reference, which is `configs/default.toml`: each setting with its meaning and its built-in value.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Every setting of Pilotfish with its built-in value. Copy what you want to change to ~/.config/pilotfish/config.toml.\n\
         # Later layers win: built-in, site profile, /etc/pilotfish/config.toml (admin), ~/.config/pilotfish/config.toml, the\n\
         # environment (PILOTFISH_SECTION_KEY, for instance PILOTFISH_PLACES_DURABLE), flags. `pf config show` tells what holds and why.\n",
    );
    for (section, about) in SECTIONS {
        let header = if section == ENDPOINT_SECTION { "endpoints.local" } else { section };
        text.push_str(&format!("\n# {about}\n[{header}]\n"));
        for key in KEYS.iter().filter(|k| k.section() == section) {
            text.push_str(&format!("# {}\n{} = {}\n", key.about, key.short(), key.default));
        }
    }
    text.push_str(&format!(
        "\n# Shapes of blocks, tried in the order in which they are written, each with what is its own of: {}.\n\
         # See configs/two-shapes.toml and docs/scaling.md.\n# [endpoints.local.shapes.NAME]\n",
        SHAPE_KEYS.join(", ")
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_value_is_of_its_kind() {
        for key in KEYS {
            assert!(Value::from_toml_literal(key.default, key.kind).is_ok(), "{}", key.name);
            assert!(SECTIONS.iter().any(|s| s.0 == key.section()), "{}", key.name);
        }
    }

    #[test]
    fn what_a_shape_may_set_is_a_setting_of_the_endpoint() {
        assert!(SHAPE_KEYS.iter().all(|k| find(&format!("{ENDPOINT_SECTION}.{k}")).is_some()));
    }

    #[test]
    fn the_reference_file_is_this_register() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/default.toml");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        if there != reference() && std::env::var_os("PF_BLESS").is_some() {
            std::fs::write(path, reference()).expect("write configs/default.toml");
            return;
        }
        assert_eq!(there, reference(), "configs/default.toml is old: run this test with PF_BLESS=1");
    }
}
