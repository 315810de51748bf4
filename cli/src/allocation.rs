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
    /// Name of the launcher that reaches its nodes.
    pub launcher: &'static str,
    /// Its nodes.
    pub nodes: u32,
    /// Time left until its end, milliseconds, if that is known.
    pub left_ms: Option<u64>,
    /// Folder from which the batch job was submitted.
    pub submit_dir: Option<PathBuf>,
}

/// One scheduler: what it leaves in the environment of a batch job.
struct Kind {
    /// Variable with the job's id; that it is set says that there is an allocation.
    id: &'static str,
    launcher: &'static str,
    submit_dir: &'static str,
}

/// After the manual page of sbatch (OUTPUT ENVIRONMENT VARIABLES).
const KINDS: [Kind; 1] = [Kind { id: "SLURM_JOB_ID", launcher: "srun", submit_dir: "SLURM_SUBMIT_DIR" }];

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
        if var("SLURM_STEP_NUM_TASKS").is_some_and(|n| n != "1") {
            let error = CliError::usage(format!("pf was started on several nodes of job {id} at once"));
            return Err(error.hint("start it once, without srun: it starts what it needs on the other nodes"));
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
            launcher: kind.launcher,
            nodes: nodes.len() as u32,
            left_ms: left_ms.or_else(|| pf_launcher::job::left_ms(env, now_ms)),
            submit_dir: var(kind.submit_dir).map(PathBuf::from),
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
