//! Slurm's own launcher. Seen working on Slurm 22.05; options after its man page.

use crate::{Launch, LaunchPlan, Launcher, LauncherError, RankPlan, Stop};

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
/// without an option for GPUs it sees all of the job's. Managers have besides `--wait=0` and `--kill-on-bad-exit=0`: when one ends the others go on;
/// `--no-kill`: also when a node fails; and `--input=all`: srun passes a signal on to every process of its step, tasks included, standard input to
/// managers alone.
const SHARED: [&str; 6] =
    ["--overlap", "--mem=0", "--cpu-bind=none", "--mem-bind=none", "--export=ALL", "--distribution=block"];

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

    fn ends_in_words(&self) -> Option<fn(&str) -> Vec<u16>> {
        Some(ended)
    }

    fn tethers(&self) -> bool {
        true
    }

    fn launch(&self, plan: &LaunchPlan) -> Result<Vec<Launch>, LauncherError> {
        let mut argv = step(plan.nodes.len(), plan.nodes.len());
        let own = [
            "--ntasks-per-node=1",
            "--wait=0",
            "--no-kill",
            "--kill-on-bad-exit=0",
            "--mpi=none",
            "--label",
            "--input=all",
        ];
        argv.extend(own.map(String::from));
        argv.extend(plan.argv_for("SLURM_NODEID"));
        let (env, nodes) = (plan.env.clone(), plan.numbers(self.name())?);
        Ok(vec![Launch { argv, env, env_remove: removed(), nodes, file: None }])
    }

    fn ranks(&self, plan: &RankPlan) -> Result<Launch, LauncherError> {
        let per_node = plan.per_node()?;
        let mut argv = step(plan.nodes.len(), plan.nodes.len() * per_node);
        argv.push(format!("--ntasks-per-node={per_node}"));
        argv.push(format!("--nodelist={}", plan.names()));
        argv.extend(["--kill-on-bad-exit=1", "--input=none"].map(String::from));
        argv.extend(plan.shimmed("slurm")?);
        Ok(Launch { argv, env: plan.env.clone(), env_remove: removed(), ..Launch::default() })
    }

    fn stop(&self) -> Stop {
        Stop { drain: None, warn: None, kill: Stop::TERM }
    }
}

/// `srun: error: n[2-3]: tasks 1-2: Exited with exit code 1`, as Slurm 22.05 wrote it. There is one task a node, in the order of the nodes. Who was killed
/// (`task 3: Killed`) is not among them: that proves nothing of what it had started.
fn ended(line: &str) -> Vec<u16> {
    let Some(rest) = line.strip_prefix("srun: error: ") else { return Vec::new() };
    let Some((rest, "1")) = rest.rsplit_once(": Exited with exit code ") else { return Vec::new() };
    let tasks = rest.rsplit_once(": ").map_or("", |(_, tasks)| tasks);
    let list = tasks.strip_prefix("tasks ").or_else(|| tasks.strip_prefix("task "));
    let numbers = list.and_then(|list| crate::hostlist::expand(&format!("[{list}]")).ok());
    numbers.unwrap_or_default().iter().filter_map(|number| number.parse().ok()).collect()
}

/// The command of a step, as far as all of ours have it in common.
fn step(nodes: usize, tasks: usize) -> Vec<String> {
    let mut argv = vec!["srun".to_string(), format!("--nodes={nodes}"), format!("--ntasks={tasks}")];
    argv.extend(SHARED.map(String::from));
    argv
}

fn removed() -> Vec<String> {
    REMOVED.map(String::from).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_tasks_are_read() {
        for (line, nodes) in [
            ("srun: error: n3: task 2: Exited with exit code 1", &[2][..]),
            ("srun: error: n[2-3]: tasks 1-2: Exited with exit code 1", &[1, 2][..]),
            ("srun: error: n[1-3,7]: tasks 0-1,3,6: Exited with exit code 1", &[0, 1, 3, 6][..]),
            // The launcher's own ends of tasks, and what is no end.
            ("srun: error: n4: task 3: Killed", &[]),
            ("srun: error: n4: task 3: Exited with exit code 137", &[]),
            ("srun: error: n4: task 3: Exited with exit code 11", &[]),
            ("srun: error: n4: task x: Exited with exit code 1", &[]),
            ("srun: error: Exited with exit code 1", &[]),
            ("2: srun: error: n3: task 2: Exited with exit code 1", &[]),
            ("", &[]),
        ] {
            assert_eq!(ended(line), nodes, "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read(line in "\\PC{0,60}", tasks in "[0-9,-]{0,20}") {
            ended(&line);
            ended(&format!("srun: error: n: tasks {tasks}: Exited with exit code 1"));
        }
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
        assert!(REMOVED.is_sorted());
    }
}
