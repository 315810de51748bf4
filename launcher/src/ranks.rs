//! What a process started by a launcher finds in its environment: its rank, the number of ranks, its number on the node. The rank shim
//! (`pf rank`) reads it, and managers leave such variables out of what their tasks see.

use std::collections::BTreeMap;

/// The variables of one family of launchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// Its name, as the shim is told it.
    pub name: &'static str,
    /// Rank in the program.
    pub rank: &'static str,
    /// Number of ranks in the program, where it is told.
    pub size: Option<&'static str>,
    /// Number of the rank on its node, where it is told.
    pub local_rank: Option<&'static str>,
    /// Where this is written, or was seen.
    pub source: &'static str,
}

/// All families.
pub const FAMILIES: [Family; 7] = [
    Family {
        name: "slurm",
        rank: "SLURM_PROCID",
        size: Some("SLURM_STEP_NUM_TASKS"),
        local_rank: Some("SLURM_LOCALID"),
        source: "srun(1), OUTPUT ENVIRONMENT VARIABLES; seen on Slurm 22.05",
    },
    Family {
        name: "openmpi",
        rank: "OMPI_COMM_WORLD_RANK",
        size: Some("OMPI_COMM_WORLD_SIZE"),
        local_rank: Some("OMPI_COMM_WORLD_LOCAL_RANK"),
        source: "Open MPI 5.0 documentation, Environment variables set for MPI applications; seen on Open MPI 4.1.4",
    },
    Family {
        name: "hydra",
        rank: "PMI_RANK",
        size: Some("PMI_SIZE"),
        local_rank: Some("MPI_LOCALRANKID"),
        source: "seen on MPICH 4.0.2; Intel MPI Developer Reference, Environment variables for process management, has the same",
    },
    Family {
        name: "pals",
        rank: "PALS_RANKID",
        // Its PMI says the number; nothing in PALS itself does.
        size: Some("PMI_SIZE"),
        local_rank: Some("PALS_LOCAL_RANKID"),
        source: "flux-shell-cray-pals(1), ENVIRONMENT; ALCF's affinity scripts for Aurora",
    },
    Family {
        name: "jsm",
        rank: "JSM_NAMESPACE_RANK",
        size: Some("JSM_NAMESPACE_SIZE"),
        local_rank: Some("JSM_NAMESPACE_LOCAL_RANK"),
        source: "OLCF Summit user guide, jsrun (from memory of it)",
    },
    Family {
        name: "alps",
        rank: "ALPS_APP_PE",
        size: None,
        local_rank: None,
        source: "aprun(1): the number is unique among the application's processes",
    },
    Family {
        name: "mvapich",
        rank: "MV2_COMM_WORLD_RANK",
        size: Some("MV2_COMM_WORLD_SIZE"),
        local_rank: Some("MV2_COMM_WORLD_LOCAL_RANK"),
        source: "MVAPICH2 user guide, run-time environment variables",
    },
];

/// A process's place in its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPlace {
    /// Rank in the program.
    pub rank: usize,
    /// Number on its node.
    pub local: usize,
    /// Position of its node among the program's nodes.
    pub node: usize,
}

/// Reads a process's place. Ranks are placed in blocks: the first `per_node` on the first node, and so on, `size` in all.
///
/// # Errors
/// A text that names the variable which is missing, is no number, or says something else than what was asked of the launcher.
pub fn place(
    family: &str,
    env: &BTreeMap<String, String>,
    per_node: usize,
    size: usize,
) -> Result<RankPlace, String> {
    let family = FAMILIES
        .iter()
        .find(|known| known.name == family)
        .ok_or_else(|| format!("{family:?} is no family of launchers"))?;
    let number = |name: &str| -> Result<usize, String> {
        let text = env.get(name).ok_or_else(|| format!("{name} is not set"))?;
        text.parse().map_err(|_| format!("{name} is {text:?}, no number"))
    };
    let rank = number(family.rank)?;
    if let Some(name) = family.size.filter(|name| env.contains_key(*name)) {
        let told = number(name)?;
        if told != size {
            return Err(format!("{name} is {told}, but {size} ranks were to be started"));
        }
    }
    let local = match family.local_rank {
        Some(name) => number(name)?,
        None => rank % per_node.max(1),
    };
    if local >= per_node || rank >= size {
        return Err(format!(
            "rank {rank} is number {local} on its node: {per_node} a node were to be started, {size} in all"
        ));
    }
    Ok(RankPlace { rank, local, node: rank / per_node })
}

/// Starts of the names by which a launcher tells a process of its program. A task that were to inherit those of its manager would take itself for a
/// rank of the managers' program: MPI_Init then hangs or fails.
const OF_A_PROGRAM: [&str; 22] = [
    "ALPS_APP_",
    "HYDI_",
    "HYDRA_",
    "JSM_",
    "MPI_LOCALNRANKS",
    "MPI_LOCALRANKID",
    "MPIR_CVAR_CH3_INTERFACE_HOSTNAME",
    "MV2_COMM_WORLD_",
    "OMPI_APP_CTX_",
    "OMPI_ARGV",
    "OMPI_COMMAND",
    "OMPI_COMM_WORLD_",
    "OMPI_FILE_LOCATION",
    "OMPI_FIRST_RANKS",
    "OMPI_MCA_ess_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_pmix",
    "OMPI_UNIVERSE_SIZE",
    "PALS_",
    "PMIX_",
    "PMI_",
    "PRTE_",
];

/// The same of Slurm's steps, whole names: what says where the job is must stay.
const OF_A_STEP: [&str; 19] = [
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_VERBOSE",
    "SLURM_DISTRIBUTION",
    "SLURM_GTIDS",
    "SLURM_LAUNCH_NODE_IPADDR",
    "SLURM_LOCALID",
    "SLURM_MPI_TYPE",
    "SLURM_PROCID",
    "SLURM_SRUN_COMM_HOST",
    "SLURM_SRUN_COMM_PORT",
    "SLURM_STEPID",
    "SLURM_STEP_ID",
    "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_TASK_PID",
];

/// Whether a variable speaks of the program to which a process belongs, and must not reach one that does not.
#[must_use]
pub fn is_of_a_program(name: &str) -> bool {
    OF_A_STEP.contains(&name) || OF_A_PROGRAM.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn a_rank_knows_its_place() {
        let hydra = env(&[("PMI_RANK", "5"), ("MPI_LOCALRANKID", "1"), ("PMI_SIZE", "8")]);
        assert_eq!(place("hydra", &hydra, 4, 8), Ok(RankPlace { rank: 5, local: 1, node: 1 }));
        // aprun tells the rank alone.
        assert_eq!(
            place("alps", &env(&[("ALPS_APP_PE", "7")]), 4, 8),
            Ok(RankPlace { rank: 7, local: 3, node: 1 })
        );
    }

    #[test]
    fn a_rank_that_is_not_as_planned_says_so() {
        let hydra = |rank: &str, local: &str, size: &str| {
            let env = env(&[("PMI_RANK", rank), ("MPI_LOCALRANKID", local), ("PMI_SIZE", size)]);
            place("hydra", &env, 2, 4).unwrap_err()
        };
        assert_eq!(hydra("0", "0", "1"), "PMI_SIZE is 1, but 4 ranks were to be started");
        assert!(hydra("3", "3", "4").contains("rank 3 is number 3 on its node"));
        assert!(hydra("4", "0", "4").contains("rank 4"));
        assert_eq!(hydra("x", "0", "4"), "PMI_RANK is \"x\", no number");
        assert_eq!(place("slurm", &env(&[]), 1, 1), Err("SLURM_PROCID is not set".into()));
        assert!(
            place("mpd", &env(&[]), 1, 1).is_err()
                && place("alps", &env(&[("ALPS_APP_PE", "0")]), 0, 0).is_err()
        );
    }

    #[test]
    fn what_tells_of_a_program_is_known_and_what_tells_of_the_job_is_not_touched() {
        for family in FAMILIES {
            for name in [Some(family.rank), family.size, family.local_rank].into_iter().flatten() {
                assert!(is_of_a_program(name), "{name}");
            }
        }
        for kept in [
            "SLURM_JOB_ID",
            "SLURM_NODEID",
            "OMPI_MCA_btl",
            "OMPI_ALLOW_RUN_AS_ROOT",
            "I_MPI_FABRICS",
            "PBS_NODEFILE",
            "PATH",
        ] {
            assert!(!is_of_a_program(kept), "{kept}");
        }
    }
}
