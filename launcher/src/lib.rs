//! How to start processes across the nodes of a block. Pure: node lists and argv, no process is started here. The pilot calls it.
//!
//! Each way (`local` now; srun, mpiexec, .. later) is one implementation of [`Launcher`]; the ticket names which one.

mod local;

pub use local::Local;

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
        has: u32,
        /// What is asked.
        wants: u32,
    },
}

/// What is to run on each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchPlan {
    /// Program and arguments, `{node}` is replaced by the node's number where the launcher starts one command a node.
    pub argv: Vec<String>,
    /// The nodes, as [`Launcher::nodes`] named them.
    pub nodes: Vec<String>,
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

/// One way to start processes across nodes.
pub trait Launcher: Send + Sync {
    /// Its name in tickets and profiles.
    fn name(&self) -> &'static str;

    /// Whether the other nodes go on when one fails.
    fn survives_node_loss(&self) -> bool;

    /// Whether a second launch (an MPI program) can run beside the managers.
    fn coexists(&self) -> bool;

    /// Names of the block's nodes, from the pilot's environment and host name. Number `n` of the result is node `n` everywhere.
    ///
    /// # Errors
    /// When the environment does not say, or says something that is not understood.
    fn nodes(
        &self,
        env: &BTreeMap<String, String>,
        host: &str,
        asked: u32,
    ) -> Result<Vec<String>, LauncherError>;

    /// The processes to start so that `plan.argv` runs once on each node.
    ///
    /// # Errors
    /// When the launcher cannot reach that many nodes.
    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError>;

    /// Variable in which a started process finds its node's number, if `{node}` in the argv is not replaced by the launcher.
    fn node_variable(&self) -> Option<&'static str>;
}

/// The launcher of this name, as a ticket has it.
///
/// # Errors
/// When there is none.
pub fn launcher(name: &str) -> Result<Box<dyn Launcher>, LauncherError> {
    match name {
        "local" => Ok(Box::new(Local)),
        _ => Err(LauncherError::Unknown { name: name.into(), known: "local".into() }),
    }
}
