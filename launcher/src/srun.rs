//! Slurm's own launcher. Seen working on Slurm 22.05; options after its man page.

use crate::{Launch, LaunchPlan, Launcher, LauncherError, Stop, node_numbers};

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Srun;

/// Variables that srun takes as options (its man page, INPUT ENVIRONMENT VARIABLES; the names are in the program). A batch script's own are set from its
/// `#SBATCH` lines, and would ask for another shape than ours: SLURM_NTASKS beats --ntasks-per-node, SLURM_GPUS_PER_NODE beats --gpus,
/// two of the three SLURM_MEM_PER_ are an error. Those that find the job (SLURM_JOB_ID, SLURM_CONF, SLURM_CLUSTERS ..) and the
/// fabric (SLURM_NETWORK) stay.
const REMOVED: [&str; 59] = [
    "SLURM_ARBITRARY_NODELIST",
    "SLURM_BCAST",
    "SLURM_CONTAINER",
    "SLURM_CORE_SPEC",
    "SLURM_CPUS_PER_GPU",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_VERBOSE",
    "SLURM_DEPENDENCY",
    "SLURM_DISTRIBUTION",
    "SLURM_DIST_PLANESIZE",
    "SLURM_EXACT",
    "SLURM_EXCLUSIVE",
    "SLURM_EXPORT_ENV",
    "SLURM_GPUS",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPU_BIND",
    "SLURM_GRES",
    "SLURM_GRES_FLAGS",
    "SLURM_HINT",
    "SLURM_HOSTFILE",
    "SLURM_KILL_BAD_EXIT",
    "SLURM_LABELIO",
    "SLURM_MEM_BIND",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_GPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_MPI_TYPE",
    "SLURM_NCORES_PER_SOCKET",
    "SLURM_NNODES",
    "SLURM_NO_KILL",
    "SLURM_NPROCS",
    "SLURM_NSOCKETS_PER_NODE",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_NTASKS_PER_TRES",
    "SLURM_OVERCOMMIT",
    "SLURM_OVERLAP",
    "SLURM_REMOTE_CWD",
    "SLURM_SRUN_MULTI",
    "SLURM_STDERRMODE",
    "SLURM_STDINMODE",
    "SLURM_STDOUTMODE",
    "SLURM_STEPID",
    "SLURM_STEP_GRES",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_THREADS_PER_CORE",
    "SLURM_TIMELIMIT",
    "SLURM_WAIT",
];

/// What each step of ours has in common. `--overlap` shares CPUs, memory and GPUs with other steps: a program of many ranks can run
/// beside the managers. Without `--exact` (and `-c`, which implies it) and with `--mem=0` a step may use all that the job has on its nodes;
/// without an option for GPUs it sees all of the job's. `--wait=0` and `--kill-on-bad-exit=0`: when one task ends the others go on; `--no-kill`:
/// also when a node fails.
const SHARED: [&str; 9] = [
    "--overlap",
    "--mem=0",
    "--wait=0",
    "--no-kill",
    "--cpu-bind=none",
    "--mem-bind=none",
    "--export=ALL",
    "--input=none",
    "--distribution=block",
];

impl Launcher for Srun {
    fn name(&self) -> &'static str {
        "srun"
    }

    fn survives_node_loss(&self) -> bool {
        true
    }

    fn coexists(&self) -> bool {
        true
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let count = plan.nodes.len();
        let mut argv = vec!["srun".to_string(), format!("--nodes={count}"), format!("--ntasks={count}")];
        argv.extend(SHARED.map(String::from));
        argv.extend(
            ["--ntasks-per-node=1", "--kill-on-bad-exit=0", "--mpi=none", "--label"].map(String::from),
        );
        argv.extend(plan.argv.iter().map(|arg| arg.replace("{node}", "SLURM_NODEID")));
        let env_remove = REMOVED.map(String::from).to_vec();
        Ok(vec![Launch {
            argv,
            env: plan.env.clone(),
            env_remove,
            nodes: node_numbers("srun", &plan.nodes)?,
        }])
    }

    /// SIGTERM makes srun kill its tasks at once, SIGUSR1 it passes on (both seen).
    fn stop(&self) -> Stop {
        Stop { drain: Stop::USR1, kill: Stop::TERM }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn one_command_starts_one_manager_a_node() {
        let plan = LaunchPlan {
            argv: ["/s/bin/pf", "manager", "--ticket", "/s/b7/ticket.json", "--node", "{node}"]
                .map(String::from)
                .to_vec(),
            nodes: ["n1", "n2", "n3"].map(String::from).to_vec(),
            env: BTreeMap::from([("PF_WALLTIME_LEFT_MS".into(), "1000".into())]),
        };
        let launches = Srun.launch(&plan).unwrap();
        assert_eq!(launches.len(), 1);
        assert_eq!(launches[0].nodes, [0, 1, 2]);
        assert_eq!(launches[0].env, plan.env);
        insta::assert_snapshot!(launches[0].argv.join("\n"));
    }

    #[test]
    fn what_finds_the_job_is_left_and_what_shapes_a_step_is_taken_away() {
        for kept in [
            "SLURM_JOB_ID",
            "SLURM_JOBID",
            "SLURM_JOB_NODELIST",
            "SLURM_CONF",
            "SLURM_CLUSTERS",
            "SLURM_NETWORK",
        ] {
            assert!(!REMOVED.contains(&kept), "{kept}");
        }
        let mut sorted = REMOVED;
        sorted.sort_unstable();
        assert_eq!(sorted, REMOVED);
    }
}
