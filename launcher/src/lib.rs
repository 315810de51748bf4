//! How to start processes across the nodes of a block. Pure: node lists and argv, no process is started here. The pilot calls it.
//!
//! Each way (`local`, `srun`, ..) is one implementation of [`Launcher`]; the ticket names which one.

pub mod hostlist;
pub mod limits;
mod local;
pub mod nodelist;
mod srun;

pub use local::Local;
pub use srun::Srun;

use limits::NODES_MAX;
use std::collections::BTreeMap;

/// Why a launcher cannot do what is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LauncherError {
    /// The ticket names a launcher that this build does not have.
    #[error("launcher {name:?} is not known (known: {known})")]
    Unknown {
        /// As given.
        name: String,
        /// Those that are.
        known: String,
    },
    /// The environment of the pilot does not say which nodes the block has.
    #[error("find the nodes of the block: {0}")]
    NoNodes(String),
    /// More nodes were asked for than this launcher can reach.
    #[error("launcher {launcher} starts {has} node(s), the block has {wants}")]
    TooManyNodes {
        /// Its name.
        launcher: &'static str,
        /// What it can.
        has: usize,
        /// What is asked.
        wants: usize,
    },
}

/// Where the pilot finds itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Its host's name.
    pub host: String,
    /// Nodes that the block was asked with.
    pub asked: u32,
    /// Text of the file that [`nodelist::node_file`] names, if it names one.
    pub node_file: Option<String>,
}

/// What is to run once on each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// Program and arguments. `{node}` becomes the node's number, or, where one command starts them all, the name of the variable in which
    /// each process finds it.
    pub argv: Vec<String>,
    /// The nodes, as [`Launcher::nodes`] named them.
    pub nodes: Vec<String>,
    /// Variables that each process must have, beside those that the launcher passes on.
    pub env: BTreeMap<String, String>,
}

/// One process that the pilot starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables to set on top of the pilot's own.
    pub env: BTreeMap<String, String>,
    /// Variables to take away (inherited step variables confuse nested launchers).
    pub env_remove: Vec<String>,
    /// Numbers of the nodes whose managers live below this process: if it ends, they have ended.
    pub nodes: Vec<u16>,
}

/// Signals to a launched process, by which what runs below it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Reaches every process that was started, and asks it to end in its own time.
    pub drain: i32,
    /// Ends them all now. SIGKILL follows if it does not.
    pub kill: i32,
}

impl Stop {
    /// SIGKILL of Linux, on all its architectures.
    pub const KILL: i32 = 9;
    /// SIGUSR1 of Linux where Pilotfish runs: not on MIPS and SPARC.
    pub const USR1: i32 = 10;
    /// SIGTERM of Linux.
    pub const TERM: i32 = 15;
}

/// One way to start processes across nodes.
pub trait Launcher: Send + Sync {
    /// Its name in tickets and profiles.
    fn name(&self) -> &'static str;

    /// Whether the other nodes go on when one fails.
    fn survives_node_loss(&self) -> bool;

    /// Whether a second launch (an MPI program) can run beside the managers.
    fn coexists(&self) -> bool;

    /// Names of the block's nodes. Number `n` of the result is node `n` everywhere.
    ///
    /// # Errors
    /// When the environment does not say, or says something that is not understood.
    fn nodes(&self, place: &Place) -> Result<Vec<String>, LauncherError> {
        nodelist::nodes(place)
    }

    /// The processes to start so that `plan.argv` runs once on each node.
    ///
    /// # Errors
    /// When the launcher cannot reach that many nodes.
    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError>;

    /// How what was launched is ended.
    fn stop(&self) -> Stop;
}

/// Names of all launchers, as tickets and profiles have them.
pub const NAMES: [&str; 2] = ["local", "srun"];

/// The launcher of this name, one of [`NAMES`].
///
/// # Errors
/// When there is none.
pub fn launcher(name: &str) -> Result<Box<dyn Launcher>, LauncherError> {
    match name {
        "local" => Ok(Box::new(Local)),
        "srun" => Ok(Box::new(Srun)),
        _ => Err(LauncherError::Unknown { name: name.into(), known: NAMES.join(", ") }),
    }
}

/// Numbers of all `nodes`.
fn node_numbers(launcher: &'static str, nodes: &[String]) -> Result<Vec<u16>, LauncherError> {
    let too_many = |_| LauncherError::TooManyNodes { launcher, has: NODES_MAX, wants: nodes.len() };
    let count = u16::try_from(nodes.len()).map_err(too_many)?;
    Ok((0..count).collect())
}
