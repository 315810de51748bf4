//! How to talk to batch schedulers. Pure: argv and script out, parsed text in; the relay's shell runs the commands, in one place.
//!
//! Each scheduler (`local` now) is one implementation of [`Provider`]. What is not understood becomes
//! [`BlockState::Unknown`](pf_protocol::report::BlockState) with its text, never a guess and never a panic.

pub mod limits;
mod local;

pub use local::Local;

use pf_protocol::report::BlockState;

/// What a block is asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockRequest {
    /// Unique over all time: endpoint, block, and something random. A submit that surfaces late is recognised by it.
    pub name: String,
    /// The block's folder, where the script lies and the ticket.
    pub dir: String,
    /// The copy of `pf` that the block runs.
    pub program: String,
    /// Nodes.
    pub nodes: u32,
    /// Walltime, milliseconds.
    pub walltime_ms: u64,
    /// Queue or partition.
    pub queue: Option<String>,
    /// Account to charge.
    pub account: Option<String>,
}

/// A block that exists, for status and cancel.
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
    /// A file to write before: name below the block's folder, and text.
    pub script: Option<(String, String)>,
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
}

/// Why a scheduler command did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The scheduler refuses for now (a limit on jobs of a user): wait, this is no failure.
    #[error("the scheduler wants to be asked later: {0}")]
    Later(String),
    /// The scheduler refuses, in its own words.
    #[error("the scheduler refuses: {0}")]
    Refused(String),
    /// What it said is not understood.
    #[error("the scheduler's answer is not understood: {0}")]
    NotUnderstood(String),
    /// The profile names a provider that this build does not have.
    #[error("provider {name:?} is not known (known: {known})")]
    Unknown {
        /// As given.
        name: String,
        /// Those that are.
        known: String,
    },
}

/// One batch scheduler.
pub trait Provider: Send + Sync {
    /// Its name in profiles.
    fn name(&self) -> &'static str;

    /// A submit whose answer was lost shows in the status within this, or was never taken. Milliseconds.
    fn submit_shows_within_ms(&self) -> u64;

    /// How often it may be asked while something is expected of it. Milliseconds.
    fn poll_ms(&self) -> u64;

    /// The command that submits a block.
    fn submit(&self, request: &BlockRequest) -> Plan;

    /// The scheduler's id, from the submit's output.
    ///
    /// # Errors
    /// When it refused, or no id is in its words.
    fn submitted(&self, output: &Output) -> Result<String, ProviderError>;

    /// One command that says where all of `blocks` are.
    fn status(&self, blocks: &[KnownBlock]) -> Plan;

    /// What it said. Blocks that are missing are not listed: they are looked up, not assumed.
    ///
    /// # Errors
    /// When the command as a whole failed; then nothing is known of any block.
    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError>;

    /// The command that looks up one block that the status does not list (any more), if there is one.
    fn lookup(&self, block: &KnownBlock) -> Option<Plan>;

    /// The command that ends one block. Its output is read by [`Provider::cancelled`].
    fn cancel(&self, block: &KnownBlock) -> Plan;

    /// Whether the cancel was taken. A block that is gone already is not an error.
    ///
    /// # Errors
    /// When it was not.
    fn cancelled(&self, output: &Output) -> Result<(), ProviderError>;
}

/// The provider of this name, as profiles have it. `program` is this `pf`, which is also the local scheduler's tool.
///
/// # Errors
/// When there is none.
pub fn provider(name: &str, program: &str) -> Result<Box<dyn Provider>, ProviderError> {
    match name {
        "local" => Ok(Box::new(Local { program: program.into() })),
        _ => Err(ProviderError::Unknown { name: name.into(), known: "local".into() }),
    }
}
