//! How to talk to batch schedulers. Pure: argv and script out, parsed text in; the relay's shell runs the commands, in one place.
//!
//! Each scheduler is one implementation of [`Provider`], made by [`provider()`]. What is not understood becomes
//! [`BlockState::Unknown`] with its text, never a guess and never a panic.

mod clock;
mod cobalt;
pub mod limits;
mod local;
mod lsf;
mod pbs;
pub mod script;
mod slurm;
mod slurm_says;
pub mod supervisor;
mod words;

pub use cobalt::Cobalt;
pub use local::Local;
pub use lsf::Lsf;
pub use pbs::Pbs;
pub use slurm::Slurm;

use pf_protocol::report::BlockState;
use serde::{Deserialize, Serialize};

/// What the profile, or the shape of a block, says for every block of it. A provider renders what its scheduler can be told;
/// anything else that is set is [`ProviderError::CannotSay`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Asks {
    /// Queue or partition.
    pub queue: Option<String>,
    /// Account (project) to charge.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Reservation to run in.
    pub reservation: Option<String>,
    /// Features that the nodes must have, in the scheduler's own syntax.
    pub constraint: Option<String>,
    /// Cores to ask for on each node; None: what the queue gives.
    pub cores_per_node: Option<u32>,
    /// GPUs to ask for on each node; None: what the queue gives.
    pub gpus_per_node: Option<u32>,
    /// Memory to ask for on each node, MiB; None: what the queue gives.
    pub memory_per_node_mib: Option<u64>,
    /// Whole nodes, shared with nobody.
    pub exclusive: bool,
    /// Directives of the user's own, without the scheduler's prefix: `--mail-type=END`, `-l filesystems=home`.
    pub options: Vec<String>,
    /// Shell lines that run on the first node before the pilot: `module load python`.
    pub setup: Vec<String>,
}

/// What a block is asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRequest {
    /// Unique over all time: endpoint, block, and something random. A submit that surfaces late is recognised by it.
    pub name: String,
    /// The block's folder, where the script lies and the ticket. Absolute.
    pub dir: String,
    /// The copy of `pf` that the block runs. Absolute.
    pub program: String,
    /// Nodes.
    pub nodes: u32,
    /// Walltime, milliseconds.
    pub walltime_ms: u64,
    /// Nodes that it must not get.
    pub exclude: Vec<String>,
    /// The rest, by profile.
    pub asks: Asks,
}

/// A block that exists, for status, lookup and cancel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownBlock {
    /// Its unique name.
    pub name: String,
    /// The scheduler's id, unless the submit's answer never came.
    pub id: Option<String>,
    /// The block's folder.
    pub dir: String,
}

/// A command for the relay to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A file to write before: name below the block's folder, and text. Mode 0700: some schedulers want it executable.
    pub script: Option<(String, String)>,
    /// Whether the command reads that file on its standard input (`bsub < block.sh`).
    pub script_on_stdin: bool,
    /// Variables that the command must not see, since its own options come from them too and would win over the script's.
    /// A trailing `*` stands for any rest.
    pub unset: Vec<&'static str>,
}

impl Plan {
    /// A command that reads nothing and writes no file.
    pub(crate) fn command(argv: &[&str], unset: &[&'static str]) -> Plan {
        let argv = argv.iter().map(|a| (*a).to_string()).collect();
        Plan { argv, unset: unset.to_vec(), ..Plan::default() }
    }
}

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// Exit code; None if it was ended by a signal.
    pub exit: Option<i32>,
    /// Standard output, possibly cut.
    pub stdout: String,
    /// Standard error, possibly cut.
    pub stderr: String,
}

/// What the scheduler says of one block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The scheduler's id.
    pub id: String,
    /// The unique name under which it was submitted.
    pub name: String,
    /// Its state.
    pub state: BlockState,
    /// Walltime left, milliseconds, if it runs and the scheduler says so.
    pub walltime_left_ms: Option<u64>,
    /// How often the scheduler has started it again under the same id, where it says so.
    pub restarts: Option<u32>,
}

/// Why a scheduler command did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The scheduler refuses for now (a limit on jobs of a user): wait, this is no failure.
    #[error("the scheduler wants to be asked later: {0}")]
    Later(String),
    /// The scheduler refuses, in its own words.
    #[error("the scheduler refuses: {words}{}", hint.map(|h| format!(" (hint: {h})")).unwrap_or_default())]
    Refused {
        /// The scheduler's.
        words: String,
        /// What may help, ours.
        hint: Option<&'static str>,
    },
    /// What it said is not understood.
    #[error("the scheduler's answer is not understood: {0}")]
    NotUnderstood(String),
    /// The profile asks for what this scheduler cannot be told.
    #[error("{provider} cannot be told {key}; leave it out, or say it in options")]
    CannotSay {
        /// The provider.
        provider: &'static str,
        /// The key of [`Asks`], or `exclude`.
        key: &'static str,
    },
    /// What is asked for would break out of the script: a line break, or a word that the scheduler would read as another option.
    #[error("{key} cannot be {value:?}")]
    BadValue {
        /// The key of [`Asks`].
        key: &'static str,
        /// As given.
        value: String,
    },
    /// The block's id is not known yet, and this scheduler needs it.
    #[error("the scheduler has not told the id of {0} yet")]
    NoId(String),
    /// The profile names a provider that this build does not have.
    #[error("provider {name:?} is not known (known: {known})")]
    Unknown {
        /// As given.
        name: String,
        /// Those that are.
        known: String,
    },
    /// The profile names a dialect that the provider does not speak.
    #[error("{provider} has no dialect {dialect:?} (it has: {known})")]
    UnknownDialect {
        /// The provider.
        provider: &'static str,
        /// As given.
        dialect: String,
        /// Those that it has.
        known: String,
    },
}

impl ProviderError {
    /// A refusal without a hint.
    #[must_use]
    pub fn refused(words: String) -> ProviderError {
        ProviderError::Refused { words, hint: None }
    }
}

/// One batch scheduler.
pub trait Provider: Send + Sync {
    /// Its name in profiles.
    fn name(&self) -> &'static str;

    /// Which of the scheduler's versions or makes it speaks to; empty where there is but one.
    fn dialect(&self) -> &'static str;

    /// A submit whose answer was lost shows in the status within this, or was never taken. Milliseconds.
    fn submit_shows_within_ms(&self) -> u64 {
        // A server that hangs drops what was asked of it meanwhile, or takes it when it is back: one that is slow takes a few minutes.
        300_000
    }

    /// How often it may be asked while something is expected of it, if the profile does not say. Milliseconds.
    fn poll_ms(&self) -> u64 {
        30_000
    }

    /// Least time between two submits, if the profile does not say. Milliseconds.
    fn submit_ms(&self) -> u64 {
        1_000
    }

    /// Whether one answer to [`Provider::status`] is good for every relay of this user: it lists all of the user's jobs, whatever
    /// blocks were named.
    fn status_is_for_all(&self) -> bool {
        false
    }

    /// Whether blocks are processes of the relay's own host, and live no longer than it: they run the relay's program itself. Others run a copy of it.
    fn runs_here(&self) -> bool {
        false
    }

    /// Whether it can be told which nodes a block must not get. If not, blocks are asked for without: no task is placed on such nodes anyway.
    fn can_exclude(&self) -> bool {
        true
    }

    /// The command that submits a block.
    ///
    /// # Errors
    /// When something is asked for that this scheduler cannot be told.
    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError>;

    /// The scheduler's id, from the submit's output.
    ///
    /// # Errors
    /// When it refused, or no id is in its words.
    fn submitted(&self, output: &Output) -> Result<String, ProviderError>;

    /// One command that says where all of `blocks` are.
    fn status(&self, blocks: &[KnownBlock]) -> Plan;

    /// What it said, of these blocks and of others. Blocks that are missing are not listed: they are looked up, not assumed.
    ///
    /// # Errors
    /// When the command as a whole failed; then nothing is known of any block.
    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError>;

    /// Commands that look up one block that the status does not list (any more), in the order in which they are asked until one knows it.
    fn lookup(&self, block: &KnownBlock) -> Vec<Plan>;

    /// What step `step` of [`Provider::lookup`] said; None if that source does not know the block.
    ///
    /// # Errors
    /// When the command failed, which says nothing of the block.
    fn looked_up(
        &self,
        block: &KnownBlock,
        step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError>;

    /// The command that ends one block; `round` counts earlier ones that did not help, from 0: later rounds are harsher.
    /// Its output is read by [`Provider::cancelled`].
    ///
    /// # Errors
    /// [`ProviderError::NoId`].
    fn cancel(&self, block: &KnownBlock, round: u32) -> Result<Plan, ProviderError>;

    /// Whether the cancel was taken. A block that is gone already is not an error. Only the status says that it is gone.
    ///
    /// # Errors
    /// When it was not.
    fn cancelled(&self, output: &Output) -> Result<(), ProviderError>;
}

/// What a provider is made with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProviderConfig {
    /// As profiles have it.
    pub name: String,
    /// The dialect, as the profile says or as [`dialect`] found; None: the provider's usual one.
    pub dialect: Option<String>,
    /// This `pf`, which is also the local scheduler's tool.
    pub program: String,
    /// The user's name, whose blocks they are.
    pub user: String,
    /// Blocks of this machine end with this process: it is all that they are for. Schedulers of clusters know nothing like it.
    pub ends_with: Option<u32>,
}

/// Refuses the first of these keys that is set.
pub(crate) fn cannot_say(provider: &'static str, keys: &[(&'static str, bool)]) -> Result<(), ProviderError> {
    match keys.iter().find(|(_, set)| *set) {
        Some((key, _)) => Err(ProviderError::CannotSay { provider, key }),
        None => Ok(()),
    }
}

/// Names of all providers.
pub const NAMES: [&str; 5] = ["local", "slurm", "pbs", "lsf", "cobalt"];

/// The dialects of a provider, the usual one first; None if there is no such provider.
#[must_use]
pub fn dialects(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "local" | "slurm" | "cobalt" => Some(&[""]),
        "pbs" => Some(&pbs::DIALECTS),
        "lsf" => Some(&lsf::DIALECTS),
        _ => None,
    }
}

/// The provider that `config` names.
///
/// # Errors
/// When there is none, or it does not speak the dialect.
pub fn provider(config: &ProviderConfig) -> Result<Box<dyn Provider>, ProviderError> {
    let unknown = || ProviderError::Unknown { name: config.name.clone(), known: NAMES.join(", ") };
    let dialects = dialects(&config.name).ok_or_else(unknown)?;
    let asked = config.dialect.as_deref().unwrap_or(dialects[0]);
    let made: Box<dyn Provider> = match config.name.as_str() {
        "slurm" => Box::new(Slurm { user: config.user.clone() }),
        "pbs" => Box::new(Pbs::new(asked)),
        "lsf" => Box::new(Lsf::new(asked)),
        "cobalt" => Box::new(Cobalt { user: config.user.clone() }),
        _ => Box::new(Local { program: config.program.clone(), ends_with: config.ends_with }),
    };
    if made.dialect() == asked {
        return Ok(made);
    }
    Err(ProviderError::UnknownDialect {
        provider: made.name(),
        dialect: asked.into(),
        known: dialects.join(", "),
    })
}

/// The command that tells the dialect of a scheduler; None for those that have but one.
#[must_use]
pub fn probe(name: &str) -> Option<Plan> {
    match name {
        "pbs" => Some(pbs::probe()),
        "lsf" => Some(lsf::probe()),
        _ => None,
    }
}

/// What the command of [`probe`] told; None if it did not.
#[must_use]
pub fn dialect(name: &str, output: &Output) -> Option<&'static str> {
    match name {
        "pbs" => pbs::dialect(output),
        "lsf" => lsf::dialect(output),
        _ => None,
    }
}
