//! An allocation of a batch scheduler in which this process runs: `run` and `serve` take all its nodes as their one block.
//!
//! What is known comes from the environment alone: no scheduler command is run. Pure; the environment and the clock come as arguments.

use crate::error::{CliError, Result};
use crate::limits::ALLOCATION_RESERVE_MS;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// The scheduler's id of the batch job.
    pub id: String,
    /// Name of the launcher that reaches its nodes, if the user names none.
    pub launcher: &'static str,
    /// Its nodes.
    pub nodes: u32,
    /// Time left until its end, milliseconds, if that is known.
    pub left_ms: Option<u64>,
    /// Folder from which the batch job was submitted.
    pub submit_dir: Option<PathBuf>,
}

type Env = BTreeMap<String, String>;

/// One scheduler: what it leaves in the environment of a batch job.
struct Kind {
    /// Variable with the job's id; that it is set says that there is an allocation.
    id: &'static str,
    /// The launcher that reaches its nodes without anything but the scheduler, given how many nodes there are.
    launcher: fn(&Env, usize) -> &'static str,
    submit_dir: Option<&'static str>,
}

/// After the manual page of sbatch (OUTPUT ENVIRONMENT VARIABLES), qsub(1B) of OpenPBS and of Torque, IBM's "Environment variables set for
/// job execution", and what Cobalt 1.0 set. Some sites set variables of PBS in jobs of Slurm too, for old scripts.
const KINDS: [Kind; 4] = [
    Kind { id: "SLURM_JOB_ID", launcher: |_, _| "srun", submit_dir: Some("SLURM_SUBMIT_DIR") },
    Kind { id: "PBS_JOBID", launcher: of_pbs, submit_dir: Some("PBS_O_WORKDIR") },
    Kind { id: "LSB_JOBID", launcher: of_lsf, submit_dir: Some("LS_SUBCWD") },
    Kind { id: "COBALT_JOBID", launcher: of_cobalt, submit_dir: None },
];

/// Torque alone counts nodes for its jobs, and has no `pbs_tmrsh`.
fn of_pbs(env: &Env, nodes: usize) -> &'static str {
    match (nodes, env.contains_key("PBS_NUM_NODES")) {
        (1, _) => "local",
        (_, false) => "pbs_tmrsh",
        (_, true) => "pbsdsh",
    }
}

/// On CORAL machines the script runs on a launch node, which is the first of the list. OpenLava has no `blaunch`, and no file of hosts.
fn of_lsf(env: &Env, nodes: usize) -> &'static str {
    let first = env.get("LSB_MCPU_HOSTS").or(env.get("LSB_HOSTS")).map_or("", String::as_str);
    if first.starts_with("batch") || first.starts_with("login") {
        return "jsrun";
    }
    match (nodes, env.contains_key("LSB_DJOB_HOSTFILE")) {
        (1, _) => "local",
        (_, true) => "blaunch",
        (_, false) => "ssh",
    }
}

/// On Crays there is no file of nodes, and the script runs on a launch node.
fn of_cobalt(env: &Env, nodes: usize) -> &'static str {
    match (nodes, env.contains_key("COBALT_NODEFILE")) {
        (_, false) => "aprun",
        (1, true) => "local",
        (_, true) => "ssh",
    }
}

/// Variables in which launchers tell how many processes they started (`launcher/src/ranks.rs`).
const PROCESSES: [&str; 3] = ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

impl Allocation {
    /// The allocation of a process with this environment at `now_ms` (Unix milliseconds). `left_ms` is what its user says of the time left,
    /// `read` gives the text of a file.
    ///
    /// None also for what runs as a task of Pilotfish: the nodes around it are not its own.
    ///
    /// # Errors
    /// When the environment says that there is an allocation, but not which nodes it has; or when this is one of several processes in it.
    pub fn find(
        env: &BTreeMap<String, String>,
        now_ms: u64,
        left_ms: Option<u64>,
        read: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Allocation>> {
        let var = |name: &str| env.get(name).map(String::as_str).filter(|v| !v.is_empty());
        let Some(kind) = KINDS.iter().find(|k| var(k.id).is_some()) else { return Ok(None) };
        if var("PF_TASK").is_some() {
            return Ok(None);
        }
        let id = var(kind.id).unwrap_or_default().to_owned();
        if PROCESSES.iter().any(|name| var(name).is_some_and(|n| n != "1")) {
            let error = CliError::usage(format!("pf was started on several nodes of job {id} at once"));
            let once = "start it once, without srun or mpirun: it starts what it needs on the other nodes";
            return Err(error.hint(once));
        }
        let node_file = pf_launcher::nodelist::node_file(env).and_then(read);
        let place = pf_launcher::Place { env: env.clone(), node_file, ..pf_launcher::Place::default() };
        let nodes = pf_launcher::nodelist::nodes(&place).map_err(|e| {
            CliError::usage(format!("find the nodes of job {id}"))
                .because(e)
                .hint("--local uses this machine alone")
        })?;
        Ok(Some(Allocation {
            id,
            launcher: (kind.launcher)(env, nodes.len()),
            nodes: nodes.len() as u32,
            left_ms: left_ms.or_else(|| pf_launcher::job::left_ms(env, now_ms)),
            submit_dir: kind.submit_dir.and_then(var).map(PathBuf::from),
        }))
    }

    /// How long work may run in it, milliseconds: what is left, less what the end of broker and relay needs.
    #[must_use]
    pub fn usable_ms(&self) -> Option<u64> {
        let (least, most) = ALLOCATION_RESERVE_MS;
        self.left_ms.map(|left| left.saturating_sub((left / 10).clamp(least, most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    const JOB: [(&str, &str); 3] =
        [("SLURM_JOB_ID", "7"), ("SLURM_JOB_NODELIST", "n[1-3]"), ("SLURM_SUBMIT_DIR", "/home/ann")];

    #[test]
    fn the_nodes_are_counted_and_the_time_is_what_is_known() {
        let found = Allocation::find(&env(&JOB), 0, None, |_| None).expect("find").expect("allocation");
        assert_eq!((found.id.as_str(), found.nodes, found.left_ms), ("7", 3, None));
        assert_eq!(found.submit_dir, Some(PathBuf::from("/home/ann")));
        let mut later = env(&JOB);
        later.insert("SLURM_JOB_END_TIME".into(), "1000".into());
        let find =
            |left| Allocation::find(&later, 400_000, left, |_| None).expect("find").expect("allocation");
        assert_eq!(find(None).left_ms, Some(600_000));
        assert_eq!(find(None).usable_ms(), Some(590_000));
        // Who says it himself knows better.
        assert_eq!(find(Some(60_000)).usable_ms(), Some(54_000));
    }

    #[test]
    fn each_scheduler_is_known_by_its_job() {
        let found = |pairs: &[(&str, &str)], file: &str| {
            let read = |_: &str| Some(file.to_owned());
            let found = Allocation::find(&env(pairs), 0, None, read).expect("find").expect("allocation");
            (found.id, found.launcher, found.nodes)
        };
        let pbs = ("PBS_NODEFILE", "/var/spool/pbs/aux/1.pbshead");
        let job = ("PBS_JOBID", "217[0].pbshead");
        assert_eq!(found(&[job, pbs], "n1\nn2\n"), ("217[0].pbshead".into(), "pbs_tmrsh", 2));
        assert_eq!(found(&[job, pbs], "n1\nn1\n").1, "local");
        assert_eq!(found(&[job, pbs, ("PBS_NUM_NODES", "2")], "n1\nn1\nn2\n").1, "pbsdsh");
        let lava = [("LSB_JOBID", "7"), ("LSB_MCPU_HOSTS", "h2 2 h1 2 ")];
        assert_eq!(found(&lava, ""), ("7".into(), "ssh", 2));
        let ibm = [("LSB_JOBID", "7"), ("LSB_HOSTS", "h2 h1"), ("LSB_DJOB_HOSTFILE", "/f")];
        assert_eq!(found(&ibm, "h2\nh1\n").1, "blaunch");
        let coral = [("LSB_JOBID", "7"), ("LSB_MCPU_HOSTS", "batch3 1 h41n08 42 ")];
        assert_eq!(found(&coral, ""), ("7".into(), "jsrun", 1));
        let cluster = [("COBALT_JOBID", "5"), ("COBALT_NODEFILE", "/var/tmp/cobalt.5")];
        assert_eq!(found(&cluster, "cc001\ncc002\n"), ("5".into(), "ssh", 2));
        let cray = [("COBALT_JOBID", "5"), ("COBALT_PARTNAME", "3808-3811")];
        assert_eq!(found(&cray, ""), ("5".into(), "aprun", 4));
        // Some sites set both.
        assert_eq!(found(&[JOB[0], JOB[1], job, pbs], "n9\n"), ("7".into(), "srun", 3));
    }

    #[test]
    fn a_task_of_pilotfish_has_no_allocation_and_a_parallel_step_is_refused() {
        assert_eq!(Allocation::find(&env(&[]), 0, None, |_| None).expect("find"), None);
        let mut task = env(&JOB);
        task.insert("PF_TASK".into(), "j1.2".into());
        assert_eq!(Allocation::find(&task, 0, None, |_| None).expect("find"), None);
        let mut step = env(&JOB);
        step.insert("SLURM_STEP_NUM_TASKS".into(), "4".into());
        assert!(
            Allocation::find(&step, 0, None, |_| None)
                .unwrap_err()
                .to_string()
                .contains("several nodes of job 7")
        );
        assert!(Allocation::find(&env(&[("SLURM_JOB_ID", "7")]), 0, None, |_| None).is_err());
    }
}
