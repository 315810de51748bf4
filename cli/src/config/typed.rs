//! The typed view of the settings: what the rest of `pf` sees.

use super::layers::{DEFAULT_ENDPOINT, Settings};
use super::places::Places;
use super::value::{Origin, Value};
use super::{Sources, Surroundings};
use crate::allocation::Allocation;
use crate::error::{CliError, Result};
use crate::units::{duration_ms, memory_bytes};
use pf_providers::Asks;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything that is configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// Endpoint of jobs that do not name one.
    pub default_endpoint: String,
    /// The broker.
    pub broker: BrokerConfig,
    /// The four places.
    pub places: Places,
    /// Endpoints with a profile on this host, by name. The default one is always there.
    pub endpoints: BTreeMap<String, EndpointConfig>,
    /// All values with where each came from.
    pub settings: Settings,
}

/// Where the broker is and listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `https://host:port` of a broker elsewhere; None: this host's own.
    pub address: Option<String>,
    /// Its pinned certificate.
    pub certificate: PathBuf,
    /// File with the token for it.
    pub token_file: PathBuf,
    /// The token itself, from PILOTFISH_TOKEN, in place of the file.
    pub token: Option<String>,
    /// Where this host's broker serves TLS.
    pub listen: Option<String>,
    /// Where it lets relays in.
    pub listen_relays: Vec<String>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Its name.
    pub name: String,
    /// Name of the provider.
    pub provider: String,
    /// Its dialect; None: it is found out.
    pub dialect: Option<String>,
    /// Time between two polls, milliseconds; None: the provider's own.
    pub poll_ms: Option<u64>,
    /// Time between two submits, milliseconds; None: the provider's own.
    pub submit_ms: Option<u64>,
    /// Interfaces or addresses at which nodes reach the relay; none: all private ones.
    pub interfaces: Vec<String>,
    /// Ports for that; None: any.
    pub ports: Option<(u16, u16)>,
    /// Name of the launcher.
    pub launcher: String,
    /// Blocks to keep.
    pub blocks_min: u32,
    /// Blocks at the most.
    pub blocks_max: u32,
    /// Blocks to ask for at first.
    pub blocks_init: u32,
    /// Part of the tasks that is to have slots at once, in thousandths.
    pub parallelism_milli: u32,
    /// Thousandths of node-hours that all blocks may use; None: no limit.
    pub node_hours_max_milli: Option<u64>,
    /// Blocks that die young in a row after which no more are asked for.
    pub failures: u32,
    /// Pause after the first of them, milliseconds.
    pub backoff_ms: u64,
    /// Shapes of blocks, in the order in which they are tried; one at least.
    pub shapes: Vec<ShapeConfig>,
    /// Idle time after which a block is given back, milliseconds.
    pub idle_ms: u64,
    /// Cores of a node; None: what the hardware has.
    pub cores: Option<u32>,
    /// GPUs of a node; None: what the hardware has.
    pub gpus: Option<u32>,
    /// Cores kept back.
    pub reserved_cores: Vec<u32>,
    /// Python interpreter.
    pub python: String,
}

/// One shape of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeConfig {
    /// Its name: `default` if the endpoint names none.
    pub name: String,
    /// Blocks of it at the most.
    pub blocks_max: u32,
    /// Nodes of each block.
    pub nodes_per_block: u32,
    /// Walltime of a block, milliseconds.
    pub walltime_ms: u64,
    /// Accounts that may be charged; empty: any.
    pub accounts: Vec<String>,
    /// What the scheduler is asked for with each block.
    pub asks: Asks,
}

/// The first of these settings of an endpoint that is empty.
#[must_use]
pub fn first_missing(settings: &Settings, endpoint: &str, required: &[String]) -> Option<String> {
    let prefix = format!("endpoints.{endpoint}.");
    // The endpoint says it, or a shape of its blocks; accounts may be several.
    let says = |key: &str| {
        let own = settings.values.iter().filter(|(full, _)| full.starts_with(&prefix));
        let mut values =
            own.filter(|(full, _)| full.rsplit('.').next() == Some(key)).map(|(_, (value, _))| value);
        values.any(|v| *v != Value::Text(String::new()) && *v != Value::Texts(Vec::new()))
    };
    required.iter().find(|key| !(says(key) || *key == "account" && says("accounts"))).cloned()
}

/// Reads values by name; the register has checked their kinds.
struct Reader<'a> {
    settings: &'a Settings,
}

impl Reader<'_> {
    fn get(&self, name: &str) -> Result<&Value> {
        let found = self.settings.values.get(name).map(|v| &v.0);
        found.ok_or_else(|| CliError::internal(format!("setting {name} has no value")))
    }

    fn text(&self, name: &str) -> Result<String> {
        match self.get(name)? {
            Value::Text(text) => Ok(text.clone()),
            other => Err(CliError::internal(format!("setting {name} is {other}, no text"))),
        }
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        match self.get(name)? {
            Value::Texts(list) => Ok(list.clone()),
            other => Err(CliError::internal(format!("setting {name} is {other}, no list of texts"))),
        }
    }

    fn int(&self, name: &str) -> Result<i64> {
        match self.get(name)? {
            Value::Int(n) => Ok(*n),
            other => Err(CliError::internal(format!("setting {name} is {other}, no number"))),
        }
    }

    fn count(&self, name: &str) -> Result<u32> {
        u32::try_from(self.int(name)?).map_err(|e| CliError::internal(format!("setting {name}")).because(e))
    }

    fn ints(&self, name: &str) -> Result<Vec<u32>> {
        match self.get(name)? {
            Value::Ints(list) => Ok(list.clone()),
            other => Err(CliError::internal(format!("setting {name} is {other}, no list of numbers"))),
        }
    }

    fn duration(&self, name: &str) -> Result<u64> {
        duration_ms(&self.text(name)?).map_err(|e| CliError::usage(format!("setting {name}")).because(e))
    }

    fn some_duration(&self, name: &str) -> Result<Option<u64>> {
        self.some_text(name)?.map(|_| self.duration(name)).transpose()
    }

    /// A text that is not empty.
    fn some_text(&self, name: &str) -> Result<Option<String>> {
        Ok(Some(self.text(name)?).filter(|text| !text.is_empty()))
    }

    fn bool(&self, name: &str) -> Result<bool> {
        match self.get(name)? {
            Value::Bool(yes) => Ok(*yes),
            other => Err(CliError::internal(format!("setting {name} is {other}, neither true nor false"))),
        }
    }

    /// `9000-9100`, or one port.
    fn ports(&self, name: &str, text: &str) -> Result<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
        port(first).zip(port(last)).filter(|(first, last)| first <= last).ok_or_else(|| {
            let origin = self.settings.values.get(name).map_or(Origin::BuiltIn, |v| v.1.clone());
            CliError::usage(format!("{origin}: {name} = {text:?} is no range of ports"))
                .hint("write it like \"9000-9100\"")
        })
    }

    /// What the scheduler is asked for; `of` gives the full name of a setting.
    fn asks(&self, of: &dyn Fn(&str) -> String) -> Result<Asks> {
        let memory = self.some_text(&of("memory_per_node"))?;
        let memory = memory.map(|text| memory_bytes(&text)).transpose();
        let memory =
            memory.map_err(|e| CliError::usage(format!("setting {}", of("memory_per_node"))).because(e))?;
        Ok(Asks {
            queue: self.some_text(&of("queue"))?,
            account: self.some_text(&of("account"))?,
            qos: self.some_text(&of("qos"))?,
            reservation: self.some_text(&of("reservation"))?,
            constraint: self.some_text(&of("constraint"))?,
            cores_per_node: Some(self.count(&of("cores_per_node"))?).filter(|n| *n > 0),
            gpus_per_node: Some(self.count(&of("gpus_per_node"))?).filter(|n| *n > 0),
            memory_per_node_mib: memory.map(|bytes| bytes.div_ceil(1 << 20)),
            exclusive: self.bool(&of("exclusive"))?,
            options: self.texts(&of("options"))?,
            setup: self.texts(&of("setup"))?,
        })
    }

    fn milli(&self, name: &str) -> Result<u64> {
        match self.get(name)? {
            Value::Milli(n) => {
                u64::try_from(*n).map_err(|e| CliError::internal(format!("setting {name}")).because(e))
            }
            other => Err(CliError::internal(format!("setting {name} is {other}, no number"))),
        }
    }

    /// The shapes of an endpoint: what a shape does not say, the endpoint says.
    fn shapes(&self, endpoint: &str) -> Result<Vec<ShapeConfig>> {
        let mut names = self.settings.shape_names(endpoint);
        if names.is_empty() {
            names.push("default".into());
        }
        let shape = |name: String| {
            let of = |key: &str| {
                let own = format!("endpoints.{endpoint}.shapes.{name}.{key}");
                if self.settings.values.contains_key(&own) {
                    own
                } else {
                    format!("endpoints.{endpoint}.{key}")
                }
            };
            Ok(ShapeConfig {
                blocks_max: self.count(&of("blocks_max"))?,
                nodes_per_block: self.count(&of("nodes_per_block"))?,
                walltime_ms: self.duration(&of("walltime"))?,
                accounts: self.texts(&of("accounts"))?,
                asks: self.asks(&of)?,
                name,
            })
        };
        names.into_iter().map(shape).collect()
    }

    fn endpoint(&self, name: &str) -> Result<EndpointConfig> {
        let of = |key: &str| format!("endpoints.{name}.{key}");
        let config = EndpointConfig {
            name: name.into(),
            provider: self.text(&of("provider"))?,
            dialect: self.some_text(&of("dialect"))?,
            poll_ms: self.some_duration(&of("poll"))?,
            submit_ms: self.some_duration(&of("submit_every"))?,
            interfaces: self.texts(&of("interfaces"))?,
            ports: self.some_text(&of("ports"))?.map(|text| self.ports(&of("ports"), &text)).transpose()?,
            launcher: self.text(&of("launcher"))?,
            blocks_min: self.count(&of("blocks_min"))?,
            blocks_max: self.count(&of("blocks_max"))?,
            blocks_init: self.count(&of("blocks_init"))?,
            parallelism_milli: u32::try_from(self.milli(&of("parallelism"))?).unwrap_or(1_000),
            node_hours_max_milli: Some(self.milli(&of("node_hours_max"))?).filter(|n| *n > 0),
            failures: self.count(&of("failures"))?,
            backoff_ms: self.duration(&of("backoff"))?,
            shapes: self.shapes(name)?,
            idle_ms: self.duration(&of("idle"))?,
            cores: Some(self.count(&of("cores"))?).filter(|c| *c > 0),
            gpus: u32::try_from(self.int(&of("gpus"))?).ok(),
            reserved_cores: self.ints(&of("reserved_cores"))?,
            python: self.text(&of("python"))?,
        };
        if config.blocks_min > config.blocks_max {
            let origin = self.settings.values.get(&of("blocks_min")).map_or(Origin::BuiltIn, |v| v.1.clone());
            let (min, max) = (config.blocks_min, config.blocks_max);
            return Err(CliError::usage(format!(
                "{origin}: endpoint {name} wants at least {min} blocks and at most {max}"
            ))
            .hint("raise blocks_max or lower blocks_min"));
        }
        Ok(config)
    }
}

impl Config {
    /// Loads all layers.
    pub fn load(surroundings: &Surroundings, sources: &Sources) -> Result<Config> {
        Config::from_settings(surroundings, Settings::load(sources)?)
    }

    /// The typed view of `settings`.
    pub fn from_settings(surroundings: &Surroundings, mut settings: Settings) -> Result<Config> {
        let places = Places::resolve(surroundings, &mut settings)?;
        if let Some(root) = surroundings.var("PILOTFISH_DIR") {
            for (key, file) in [("broker.certificate", "broker.crt"), ("broker.token_file", "token")] {
                if let Some(slot) = settings.values.get_mut(key).filter(|v| v.1 == Origin::BuiltIn) {
                    *slot = (Value::Text(format!("{root}/{file}")), Origin::Env("PILOTFISH_DIR".into()));
                }
            }
        }
        let reader = Reader { settings: &settings };
        let broker = BrokerConfig {
            address: Some(reader.text("broker.address")?).filter(|a| !a.is_empty()),
            certificate: surroundings.expand(&reader.text("broker.certificate")?)?,
            token_file: surroundings.expand(&reader.text("broker.token_file")?)?,
            token: surroundings.var("PILOTFISH_TOKEN").map(str::to_owned),
            listen: Some(reader.text("broker.listen")?).filter(|a| !a.is_empty()),
            listen_relays: reader.texts("broker.listen_relays")?,
        };
        let names = settings.endpoint_names();
        let endpoints = names.iter().map(|name| Ok((name.clone(), reader.endpoint(name)?)));
        let endpoints = endpoints.collect::<Result<BTreeMap<_, _>>>()?;
        let default_endpoint = reader.text("client.endpoint")?;
        Ok(Config { default_endpoint, broker, places, endpoints, settings })
    }

    /// The same configuration with everything at `places` and only the default endpoint, with so many cores: for `pf run` and the Python client,
    /// which use nothing and leave nothing of the user's own chain. In an allocation its nodes are the one block.
    pub fn private(&self, places: Places, cores: Option<u32>, allocation: Option<&Allocation>) -> Config {
        let mut config = self.clone();
        config.places = places;
        config.broker = BrokerConfig::default();
        let mut local = self.endpoints.get(DEFAULT_ENDPOINT).cloned();
        if let Some(local) = &mut local {
            local.cores = cores.or(local.cores);
            if let Some(allocation) = allocation {
                // What the user says of the machine is better known than what its scheduler leaves to guess.
                if local.launcher == "local" {
                    local.launcher = allocation.launcher.into();
                }
                // The allocation is the one block.
                local.shapes.truncate(1);
                if let Some(shape) = local.shapes.first_mut() {
                    shape.nodes_per_block = allocation.nodes;
                    shape.walltime_ms = allocation.usable_ms().unwrap_or(shape.walltime_ms);
                }
            }
        }
        config.endpoints = local.map(|l| (DEFAULT_ENDPOINT.to_owned(), l)).into_iter().collect();
        config.default_endpoint = DEFAULT_ENDPOINT.into();
        config
    }
}
