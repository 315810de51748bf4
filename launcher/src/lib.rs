//! How to start processes across the nodes of a block. Pure: node lists and argv, no process is started here. The pilot calls it.
//!
//! Each way (`local`, `srun`, ..) is one implementation of [`Launcher`]; the ticket names which one.

mod each;
pub mod hostlist;
pub mod job;
pub mod limits;
mod local;
mod mpiexec;
pub mod nodelist;
mod plan;
pub mod ranks;
mod srun;
mod vendor;

pub use each::Each;
pub use local::Local;
pub use mpiexec::Mpiexec;
pub use plan::{BlockNode, Launch, LaunchPlan, RankNode, RankPlan, RankShare, decode_share, shares};
pub use srun::Srun;
pub use vendor::{Aprun, Ibrun, Jsrun};

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
    /// Several ranks need a launcher of MPI programs.
    #[error(
        "launcher {0} starts one process a node; a program of several ranks needs the launcher of an MPI (srun, openmpi, hydra, ..)"
    )]
    NoRanks(&'static str),
    /// Launchers place by one number of ranks a node.
    #[error("each node of a program needs the same number of ranks, at least 1")]
    UnevenRanks,
    /// The nodes of a program cannot be named to this launcher.
    #[error("launcher {launcher} cannot start a program there: {why}")]
    Nodes {
        /// Its name.
        launcher: &'static str,
        /// What is wrong with them.
        why: String,
    },
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
    /// Text of the file that [`nodelist::node_file`] names, if it names one and it can be read.
    pub node_file: Option<String>,
}

/// Signals to a launched process, by which what runs below it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Reaches every process that was started, nothing that these started, and asks it to end in its own time. None: no signal does; managers are then reached
    /// by their standard input ([`Launcher::tethers`]), or by their relay alone.
    pub drain: Option<i32>,
    /// The same for one that has more time, where the launcher passes on a second signal; else as `drain`.
    pub warn: Option<i32>,
    /// Ends them all now. SIGKILL follows if it does not.
    pub kill: i32,
}

impl Stop {
    /// SIGKILL of Linux, on all its architectures.
    pub const KILL: i32 = 9;
    /// SIGUSR1 of Linux where Pilotfish runs: not on MIPS and SPARC.
    pub const USR1: i32 = 10;
    /// SIGUSR2, likewise.
    pub const USR2: i32 = 12;
    /// SIGTERM of Linux.
    pub const TERM: i32 = 15;

    /// What most launchers do: SIGTERM makes them kill, SIGUSR1 and SIGUSR2 are passed on.
    const PASSES_USER_SIGNALS: Stop =
        Stop { drain: Some(Stop::USR1), warn: Some(Stop::USR2), kill: Stop::TERM };
}

/// One way to start processes across nodes.
pub trait Launcher: Send + Sync {
    /// Its name in tickets and profiles.
    fn name(&self) -> &'static str;

    /// Whether the other nodes go on when one fails.
    fn survives_node_loss(&self) -> bool {
        false
    }

    /// Whether a second launch (an MPI program) can run beside the managers.
    fn coexists(&self) -> bool;

    /// Whether the pilot starts the processes themselves. Else a launcher stands between, whose own end proves nothing when something ended it.
    fn is_direct(&self) -> bool {
        false
    }

    /// Reads a line of what the launcher writes on standard error, where one command starts all: which nodes' processes have ended by themselves
    /// (with 0 or 1). None: it does not tell, and nobody listens.
    fn ends_in_words(&self) -> Option<fn(&str) -> Vec<u16>> {
        None
    }

    /// Whether processes get the pilot's environment. Where they do not, the pilot leaves it in a file for the managers.
    fn passes_environment(&self) -> bool {
        true
    }

    /// Whether the processes' standard input comes from the launcher's: the pilot then holds the other end, says by it that they are to end soon, and lets it
    /// go when they are to end.
    fn tethers(&self) -> bool {
        false
    }

    /// The block's nodes. Number `n` of the result is node `n` everywhere.
    ///
    /// # Errors
    /// When the environment does not say, or says something that is not understood.
    fn nodes(&self, place: &Place) -> Result<Vec<BlockNode>, LauncherError> {
        nodelist::nodes(place)
    }

    /// The processes to start so that `plan.argv` runs once on each node.
    ///
    /// # Errors
    /// When the launcher cannot reach that many nodes.
    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError>;

    /// The process that runs a program of several ranks. It ends with the exit code of a rank that failed, if one did: the highest or the
    /// first, as the launcher has it.
    ///
    /// # Errors
    /// When this launcher cannot, or not on these nodes.
    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError>;

    /// How what was launched is ended.
    fn stop(&self) -> Stop;
}

/// Variable in which a process that was started for one node finds the scheduler's name of it. Processes that one command started on all nodes do not have it.
pub const NODE_NAME_VARIABLE: &str = "PF_NODE_NAME";

/// Names of all launchers, as tickets and profiles have them.
pub const NAMES: [&str; 14] = [
    "local",
    "srun",
    "openmpi",
    "openmpi5",
    "hydra",
    "intelmpi",
    "pals",
    "jsrun",
    "aprun",
    "ibrun",
    "pbsdsh",
    "pbs_tmrsh",
    "blaunch",
    "ssh",
];

/// The launcher of this name, one of [`NAMES`].
///
/// # Errors
/// When there is none.
pub fn launcher(name: &str) -> Result<Box<dyn Launcher>, LauncherError> {
    Ok(match name {
        "local" => Box::new(Local),
        "srun" => Box::new(Srun),
        "openmpi" => Box::new(Mpiexec::OpenMpi4),
        "openmpi5" => Box::new(Mpiexec::OpenMpi5),
        "hydra" => Box::new(Mpiexec::Hydra),
        "intelmpi" => Box::new(Mpiexec::Intel),
        "pals" => Box::new(Mpiexec::Pals),
        "jsrun" => Box::new(Jsrun),
        "aprun" => Box::new(Aprun),
        "ibrun" => Box::new(Ibrun),
        "pbsdsh" => Box::new(Each::Pbsdsh),
        "pbs_tmrsh" => Box::new(Each::Tmrsh),
        "blaunch" => Box::new(Each::Blaunch),
        "ssh" => Box::new(Each::Ssh),
        _ => return Err(LauncherError::Unknown { name: name.into(), known: NAMES.join(", ") }),
    })
}

#[cfg(test)]
mod tests;
