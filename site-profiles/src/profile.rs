//! The schema of a site profile: one TOML file of facts about one machine. `site-profiles/schema.json` is made from these
//! types, with these words. The configuration lays `[endpoint]` and `[places]` below the admin's file; `pf site` shows, checks
//! and writes the rest.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Facts about one supercomputer, or defaults for one kind of scheduler.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What people call the machine.
    pub title: String,
    /// Who runs it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub centre: String,
    /// Whether the machine is in service.
    pub status: Status,
    /// What else its users should know, in a sentence or two.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Settings of the endpoint that the user must give, since the machine refuses jobs without: `account`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Names of values in `[endpoint]`, `[places]` and `[detect]` that nobody has checked, as `endpoint.interfaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
    /// How a login node of the machine is recognised.
    #[serde(default, skip_serializing_if = "Detect::is_empty")]
    pub detect: Detect,
    /// Values for the settings of an endpoint that uses this profile, with the names of `configs/default.toml`; the admin's and the
    /// user's files lie above them.
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "BTreeMap<String, serde_json::Value>"))]
    pub endpoint: BTreeMap<String, toml::Value>,
    /// Values for the four places.
    #[serde(default, skip_serializing_if = "Places::is_empty")]
    pub places: Places,
    /// Which setting of the endpoint the names of `[[queues]]` are for.
    #[serde(default, skip_serializing_if = "QueuesAre::is_queue")]
    pub queues_are: QueuesAre,
    /// Queues. Where limits depend on the number of nodes, a queue has a row for each range of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Queue>,
    /// Kinds of compute nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// How compute nodes reach the world.
    #[serde(default, skip_serializing_if = "Network::is_unknown")]
    pub network: Network,
    /// What login nodes allow.
    #[serde(default, skip_serializing_if = "Login::is_unknown")]
    pub login: Login,
}

/// Whether a machine is in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In service.
    #[default]
    Active,
    /// Switched off; the profile is kept as an example for its kind.
    Retired,
    /// A test system.
    Test,
    /// No machine: defaults for a kind of scheduler.
    Generic,
}

impl Status {
    /// The word of the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Status::Active => "active",
            Status::Retired => "retired",
            Status::Test => "test",
            Status::Generic => "generic",
        }
    }
}

/// How a login node is recognised: by any of these.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Detect {
    /// Environment variables and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Host names with domain, `*` standing for anything: `*.frontier.olcf.ornl.gov`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

impl Detect {
    fn is_empty(&self) -> bool {
        self.env.is_empty() && self.hosts.is_empty()
    }
}

/// The four places, as paths in which `~` and a leading `$VAR` are replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// The broker's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durable: Option<String>,
    /// Folders of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// Sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// What tasks print.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl Places {
    fn is_empty(&self) -> bool {
        *self == Places::default()
    }
}

/// Which setting the names of queues are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum QueuesAre {
    /// `endpoint.queue`: queue or partition.
    #[default]
    Queue,
    /// `endpoint.qos`: the site's users choose a quality of service, and the partition follows.
    Qos,
}

impl QueuesAre {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if gives a reference")]
    fn is_queue(&self) -> bool {
        *self == QueuesAre::Queue
    }

    /// The setting's name.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            QueuesAre::Queue => "queue",
            QueuesAre::Qos => "qos",
        }
    }
}

/// A queue, or what holds in it for one range of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Fewest nodes of a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_min: Option<u32>,
    /// Most nodes of a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes_max: Option<u32>,
    /// Longest walltime, minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walltime_max_minutes: Option<u32>,
    /// Shortest walltime, minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walltime_min_minutes: Option<u32>,
    /// Jobs of one user that may run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_max: Option<u32>,
    /// Jobs of one user that may be there at once, waiting ones included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jobs_max: Option<u32>,
    /// The constraint for which this row holds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub constraint: String,
    /// The quality of service that goes with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub qos: String,
    /// Its jobs can be preempted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preemptable: bool,
    /// Jobs get whole nodes, whatever they ask for.
    #[serde(default, skip_serializing_if = "is_false")]
    pub whole_nodes: bool,
    /// It must be asked for at the centre.
    #[serde(default, skip_serializing_if = "is_false")]
    pub on_request: bool,
    /// Names of the values above that nobody has checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
}

/// Who made a GPU: decides which variable shows it to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Vendor {
    /// CUDA_VISIBLE_DEVICES.
    Nvidia,
    /// ROCR_VISIBLE_DEVICES.
    Amd,
    /// ZE_AFFINITY_MASK.
    Intel,
}

/// A kind of compute nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// A name for it.
    pub name: String,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Model of the processors.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpu: String,
    /// Sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<u32>,
    /// Cores in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u32>,
    /// Hardware threads of a core that Linux sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads_per_core: Option<u32>,
    /// NUMA nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<u32>,
    /// Memory, GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_gib: Option<u32>,
    /// What the centre keeps for the system: cores or processing units, in its words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reserved: String,
    /// GPUs, as a task counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Their model.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gpu: String,
    /// Who made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_vendor: Option<Vendor>,
    /// For each GPU by number, the processing units beside it; the order is seldom the order of the cores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu_cpus: Vec<String>,
    /// What tasks may ask of a node: `hbm80g`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Names of the values above that nobody has checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
}

/// Whether compute nodes reach hosts outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Internet {
    /// Not known.
    #[default]
    Unknown,
    /// They do.
    Yes,
    /// They do not.
    No,
    /// Web only, by a proxy.
    Proxy,
}

/// How compute nodes reach the world. The interfaces on which a relay listens are settings of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Whether they reach hosts outside.
    #[serde(default)]
    pub internet: Internet,
    /// The proxy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proxy: String,
    /// Names of the values above that nobody has checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
}

impl Network {
    fn is_unknown(&self) -> bool {
        *self == Network::default()
    }
}

/// What login nodes do with processes that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Daemons {
    /// Not known: `pf site check` looks at the rules of the node it runs on.
    #[default]
    Unknown,
    /// They may stay.
    Allowed,
    /// They may stay within limits, or for a while.
    Limited,
    /// They are ended: let the relay live elsewhere.
    Killed,
}

impl Daemons {
    /// The word of the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Daemons::Unknown => "unknown",
            Daemons::Allowed => "allowed",
            Daemons::Limited => "limited",
            Daemons::Killed => "killed",
        }
    }
}

/// What login nodes allow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// What they do with processes that stay.
    #[serde(default)]
    pub daemons: Daemons,
    /// Where a relay can live instead, and other rules.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Names of the values above that nobody has checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
}

impl Login {
    fn is_unknown(&self) -> bool {
        *self == Login::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl Profile {
    /// A text of `[endpoint]`.
    #[must_use]
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.endpoint.get(key).and_then(toml::Value::as_str)
    }

    /// The scheduler: what `[endpoint]` names as provider.
    #[must_use]
    pub fn scheduler(&self) -> &str {
        self.setting("provider").unwrap_or("")
    }

    /// The rows of a queue that hold for so many nodes and this constraint.
    pub fn queue_rows(&self, name: &str, nodes: u32, constraint: &str) -> impl Iterator<Item = &Queue> {
        self.queues.iter().filter(move |q| {
            q.name == name
                && q.nodes_min.is_none_or(|least| nodes >= least)
                && q.nodes_max.is_none_or(|most| nodes <= most)
                && (q.constraint.is_empty() || constraint.is_empty() || q.constraint == constraint)
        })
    }
}

impl Queue {
    /// What holds beside nodes and walltime, in words.
    #[must_use]
    pub fn notes(&self) -> String {
        let mut notes = Vec::new();
        let mut say = |there: bool, words: String| {
            if there {
                notes.push(words);
            }
        };
        say(!self.about.is_empty(), self.about.clone());
        say(!self.constraint.is_empty(), format!("constraint {}", self.constraint));
        say(!self.qos.is_empty(), format!("QOS {}", self.qos));
        say(
            self.walltime_min_minutes.is_some(),
            format!("at least {} minutes", self.walltime_min_minutes.unwrap_or(0)),
        );
        say(self.running_max.is_some(), format!("{} running a user", self.running_max.unwrap_or(0)));
        say(self.jobs_max.is_some(), format!("{} jobs a user", self.jobs_max.unwrap_or(0)));
        say(self.preemptable, "preemptable".into());
        say(self.whole_nodes, "whole nodes".into());
        say(self.on_request, "on request".into());
        say(self.unverified.iter().any(|u| u == "name"), "not verified".into());
        notes.join("; ")
    }
}
