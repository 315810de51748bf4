//! What a relay is started with. `pf` fills it from the endpoint's profile.

use pf_protocol::ticket::SlotPlan;
use pf_providers::Asks;
use pf_relay_core::Scaling;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How the relay reaches its broker.
#[derive(Debug, Clone)]
pub enum BrokerLink {
    /// The broker is a node of the same reactor: `reactor.pair(broker, relay)`.
    Paired,
    /// The broker is elsewhere.
    Dial {
        /// `host:port`, all tried.
        addresses: Vec<String>,
        /// Its CURVE public key, Z85.
        server_key: String,
    },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Name of the endpoint.
    pub endpoint: String,
    /// How its broker is reached.
    pub broker: BrokerLink,
    /// When to ask for blocks. `blocks_dir` and the like are set from the fields here.
    pub scaling: Scaling,
    /// Name of the provider.
    pub provider: String,
    /// The scheduler's dialect; None: the provider's usual one.
    pub dialect: Option<String>,
    /// What the scheduler is asked for with each shape of block, by its name.
    pub asks: BTreeMap<String, Asks>,
    /// Time between two status commands, milliseconds; None: the provider's own.
    pub poll_ms: Option<u64>,
    /// Time between two submits, milliseconds; None: the provider's own.
    pub submit_ms: Option<u64>,
    /// Durable: when the scheduler was asked last, and what it said. One folder for each provider, for all endpoints of the user.
    pub rates_dir: PathBuf,
    /// Name of the launcher.
    pub launcher: String,
    /// The `pf` of this host: for `local` it is the scheduler, and what blocks run. Other blocks run a copy of this process's own program.
    pub program: PathBuf,
    /// Durable: roster, key, port. One folder for each endpoint.
    pub state_dir: PathBuf,
    /// Shared with the blocks: their folders, and below `bin` copies of `pf` by their hash.
    pub blocks_dir: PathBuf,
    /// Task logs.
    pub output_dir: PathBuf,
    /// Work directories of attempts.
    pub work_dir: PathBuf,
    /// Scratch on the nodes; None: the system's.
    pub local_dir: Option<PathBuf>,
    /// The endpoint's Python.
    pub python: String,
    /// How managers carve their node.
    pub slots: SlotPlan,
    /// Interfaces to listen on, by address or name. For `local`: 127.0.0.1.
    pub listen: Vec<String>,
    /// Ports that may be used; None: any.
    pub ports: Option<(u16, u16)>,
    /// Name of the user, whose blocks they are.
    pub user: String,
    /// Name of this host.
    pub host: String,
    /// Take the endpoint from a relay that is still heard.
    pub takeover: bool,
    /// Whether the reactor ends with the relay (a relay of its own process).
    pub alone: bool,
    /// Blocks of this machine end with this process; None: they outlive it, and the next relay finds them.
    pub blocks_end_with: Option<u32>,
}
