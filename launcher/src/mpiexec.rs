//! The launchers of MPI implementations: one shape, `mpiexec -n N -ppn M -hosts A,B program`, in five dialects.

use crate::{Launch, LaunchPlan, Launcher, LauncherError, RankPlan, Stop};
use std::collections::BTreeMap;

/// Whose `mpiexec` it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mpiexec {
    /// Open MPI 4 and before (ORTE). Seen with 4.1.4.
    OpenMpi4,
    /// Open MPI 5 (PRRTE), after its documentation.
    OpenMpi5,
    /// MPICH. Seen with 4.0.2.
    Hydra,
    /// Intel MPI, whose launcher is a Hydra with settings of its own.
    Intel,
    /// HPE Cray PALS, after the options in HPE's own client for it.
    Pals,
}

/// What is started, for all dialects.
struct Shape<'a> {
    hosts: Vec<&'a str>,
    per_node: usize,
    env: &'a BTreeMap<String, String>,
    /// Whether the end of one process leaves the others alone, as far as the launcher can be told so.
    lenient: bool,
}

impl Mpiexec {
    fn family(self) -> &'static str {
        match self {
            Mpiexec::OpenMpi4 | Mpiexec::OpenMpi5 => "openmpi",
            Mpiexec::Hydra | Mpiexec::Intel => "hydra",
            Mpiexec::Pals => "pals",
        }
    }

    /// Variable with the rank, which is the node's number where one process runs on each.
    fn rank_variable(self) -> &'static str {
        match self {
            Mpiexec::OpenMpi4 | Mpiexec::OpenMpi5 => "OMPI_COMM_WORLD_RANK",
            Mpiexec::Hydra | Mpiexec::Intel => "PMI_RANK",
            Mpiexec::Pals => "PALS_RANKID",
        }
    }

    fn command(self, shape: &Shape<'_>, program: Vec<String>) -> Launch {
        // By the name that is least likely to be another's: a host may have several.
        let name = match self {
            Mpiexec::OpenMpi4 | Mpiexec::OpenMpi5 => "mpirun",
            Mpiexec::Hydra | Mpiexec::Intel => "mpiexec.hydra",
            Mpiexec::Pals => "mpiexec",
        };
        let mut argv = vec![name.to_string(), "-n".into(), (shape.hosts.len() * shape.per_node).to_string()];
        argv.extend(match self {
            Mpiexec::OpenMpi4 | Mpiexec::OpenMpi5 => self.open_mpi(shape),
            Mpiexec::Hydra | Mpiexec::Intel => hydra(self, shape),
            Mpiexec::Pals => pals(shape),
        });
        argv.extend(program);
        let mut env = shape.env.clone();
        // Inside a Slurm job these launchers start their own daemons by srun, which must neither wait for the managers' step nor bind them.
        env.insert("SLURM_OVERLAP".into(), "1".into());
        env.insert("SLURM_CPU_BIND".into(), "none".into());
        if self == Mpiexec::Intel {
            // Else the scheduler's own idea of processes a node beats -ppn, and every process is pinned.
            env.insert("I_MPI_JOB_RESPECT_PROCESS_PLACEMENT".into(), "0".into());
            env.insert("I_MPI_PIN".into(), "0".into());
        }
        Launch { argv, env, ..Launch::default() }
    }

    /// `--bind-to none`: else even one process is bound, to the first core. Slots of the hosts are given, and oversubscription is allowed, since the
    /// scheduler counts slots for the whole job. Variables are named, their values come from the environment.
    fn open_mpi(self, shape: &Shape<'_>) -> Vec<String> {
        let hosts: Vec<String> =
            shape.hosts.iter().map(|host| format!("{host}:{}", shape.per_node)).collect();
        let mut argv = vec!["--host".to_string(), hosts.join(","), "--map-by".into()];
        argv.push(format!("ppr:{}:node:OVERSUBSCRIBE", shape.per_node));
        argv.extend(["--bind-to", "none"].map(String::from));
        let lenient: &[&str] = match self {
            Mpiexec::OpenMpi5 => &["--runtime-options", "error-nonzero-status=0,continuous"],
            _ => &["--mca", "orte_abort_on_non_zero_status", "0", "--enable-recovery"],
        };
        argv.extend(lenient.iter().filter(|_| shape.lenient).map(|arg| (*arg).to_string()));
        argv.extend(shape.env.keys().flat_map(|name| ["-x".to_string(), name.clone()]));
        argv
    }
}

fn hydra(dialect: Mpiexec, shape: &Shape<'_>) -> Vec<String> {
    let mut argv = vec![
        "-ppn".to_string(),
        shape.per_node.to_string(),
        "-hosts".into(),
        shape.hosts.join(","),
        "-genvall".into(),
    ];
    if dialect == Mpiexec::Hydra {
        argv.extend(["-bind-to", "none"].map(String::from));
        argv.extend(shape.lenient.then(|| "-disable-auto-cleanup".to_string()));
    }
    argv
}

fn pals(shape: &Shape<'_>) -> Vec<String> {
    let mut argv =
        vec!["--ppn".to_string(), shape.per_node.to_string(), "--hosts".into(), shape.hosts.join(",")];
    argv.extend(["--cpu-bind", "none", "--envall"].map(String::from));
    argv.extend(shape.lenient.then(|| "--no-abort-on-failure".to_string()));
    argv.push("--".into());
    argv
}

impl Launcher for Mpiexec {
    fn name(&self) -> &'static str {
        match self {
            Mpiexec::OpenMpi4 => "openmpi",
            Mpiexec::OpenMpi5 => "openmpi5",
            Mpiexec::Hydra => "hydra",
            Mpiexec::Intel => "intelmpi",
            Mpiexec::Pals => "pals",
        }
    }

    /// All of them run a daemon on each node, and end when one is gone.
    fn coexists(&self) -> bool {
        true
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let hosts = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        let shape = Shape { hosts, per_node: 1, env: &plan.env, lenient: true };
        let launch = self.command(&shape, plan.argv_for(self.rank_variable()));
        Ok(vec![Launch { nodes: plan.numbers(self.name())?, ..launch }])
    }

    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError> {
        let hosts = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        let shape = Shape { hosts, per_node: plan.per_node()?, env: &plan.env, lenient: false };
        Ok(self.command(&shape, plan.shimmed(self.family())?))
    }

    /// Hydra passes SIGUSR1 on, and dies of SIGUSR2 (seen).
    fn stop(&self) -> Stop {
        match self {
            Mpiexec::Hydra | Mpiexec::Intel => Stop { warn: Some(Stop::USR1), ..Stop::PASSES_USER_SIGNALS },
            _ => Stop::PASSES_USER_SIGNALS,
        }
    }
}
