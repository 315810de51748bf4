//! Slurm, from 20.02 on: `sbatch --parsable`, one `squeue` for all jobs of the user, `scontrol` and `sacct` for what it does not list (any
//! more), `scancel`. What these say is read in `slurm_says`. Facts: the man pages of 22.05 and transcripts recorded on it
//! (`tests/fixtures/slurm`).

use crate::clock::clock_words;
use crate::script::{BLOCK_LOG, SCRIPT, block_script, one_word, own_options};
use crate::slurm_says as says;
use crate::words::words;
use crate::{Asks, BlockRequest, KnownBlock, Observed, Output, Plan, Provider, ProviderError};

/// See the module.
#[derive(Debug, Clone)]
pub struct Slurm {
    /// Whose jobs they are.
    pub user: String,
}

/// `RestartCnt` and the exit code make this one call enough also for jobs that were requeued or have failed. The name comes last, since it
/// may hold anything. A field without a width is printed whole only when it has a suffix.
const SQUEUE_FIELDS: &str = "JobID:|,State:|,exit_code:|,TimeLeft:|,RestartCnt:|,Reason:|,Name:|";

/// Variables of sbatch that would win over the script's directives, which are always there; and those that make it wait or submit an array.
const SBATCH_VARIABLES: [&str; 12] = [
    "SBATCH_ARRAY_INX",
    "SBATCH_ERROR",
    "SBATCH_INPUT",
    "SBATCH_JOB_NAME",
    "SBATCH_NO_KILL",
    "SBATCH_OPEN_MODE",
    "SBATCH_OUTPUT",
    "SBATCH_SIGNAL",
    "SBATCH_TEST_ONLY",
    "SBATCH_TIMELIMIT",
    "SBATCH_WAIT",
    "SBATCH_WAIT_ALL_NODES",
];

impl Provider for Slurm {
    fn name(&self) -> &'static str {
        "slurm"
    }

    fn dialect(&self) -> &'static str {
        ""
    }

    fn submit_shows_within_ms(&self) -> u64 {
        // sbatch itself retries for two minutes when the queue is full; a controller under load has been seen to take longer.
        900_000
    }

    fn poll_ms(&self) -> u64 {
        15_000
    }

    fn status_is_for_all(&self) -> bool {
        true
    }

    fn submit(&self, request: &BlockRequest) -> Result<Plan, ProviderError> {
        let script = block_script(&directives(request)?, request)?;
        let argv = ["sbatch".into(), "--parsable".into(), format!("{}/{SCRIPT}", request.dir)];
        let mut unset = SBATCH_VARIABLES.to_vec();
        let asks = &request.asks;
        let asked = [
            ("SBATCH_PARTITION", asks.queue.is_some()),
            ("SBATCH_ACCOUNT", asks.account.is_some()),
            ("SBATCH_QOS", asks.qos.is_some()),
            ("SBATCH_RESERVATION", asks.reservation.is_some()),
            ("SBATCH_CONSTRAINT", asks.constraint.is_some()),
            ("SBATCH_GPUS_PER_NODE", asks.gpus_per_node.is_some()),
            ("SBATCH_MEM_PER_NODE", asks.memory_per_node_mib.is_some()),
            ("SBATCH_EXCLUSIVE", asks.exclusive),
        ];
        unset.extend(asked.iter().filter(|(_, set)| *set).map(|(name, _)| *name));
        Ok(Plan { argv: argv.into(), script: Some((SCRIPT.into(), script)), unset, ..Plan::default() })
    }

    fn submitted(&self, output: &Output) -> Result<String, ProviderError> {
        says::submitted(output)
    }

    fn status(&self, _blocks: &[KnownBlock]) -> Plan {
        let argv = ["squeue", "--noheader", "--states=all", "--user", &self.user, "--Format", SQUEUE_FIELDS];
        Plan::command(&argv, &["SQUEUE_*"])
    }

    fn observed(&self, output: &Output) -> Result<Vec<Observed>, ProviderError> {
        says::observed(output)
    }

    fn lookup(&self, block: &KnownBlock) -> Vec<Plan> {
        let plan = |argv: &[&str]| Plan::command(argv, &["SACCT_*"]);
        let sacct = [
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=JobIDRaw,State,ExitCode,JobName",
        ];
        match &block.id {
            Some(id) => vec![
                plan(&["scontrol", "--oneliner", "show", "job", id]),
                plan(&[&sacct[..], &["--jobs", id]].concat()),
            ],
            // Without `--starttime` only what ran since midnight is told.
            None => vec![plan(
                &[&sacct[..], &["--user", &self.user, "--name", &block.name, "--starttime", "now-7days"]]
                    .concat(),
            )],
        }
    }

    fn looked_up(
        &self,
        block: &KnownBlock,
        step: usize,
        output: &Output,
    ) -> Result<Option<Observed>, ProviderError> {
        match (&block.id, step) {
            (Some(id), 0) => says::shown(id, &block.name, output),
            _ => says::accounted(block, output),
        }
    }

    fn cancel(&self, block: &KnownBlock, round: u32) -> Result<Plan, ProviderError> {
        let mut argv = vec!["scancel".to_string()];
        // It says SIGTERM, and SIGKILL after a while that the site sets. What survives that is told again, more plainly.
        if round % 2 == 1 {
            argv.extend(["--full".into(), "--signal=KILL".into()]);
        }
        match &block.id {
            Some(id) => argv.push(id.clone()),
            None => argv.extend([format!("--user={}", self.user), format!("--name={}", block.name)]),
        }
        Ok(Plan { argv, unset: vec!["SCANCEL_*"], ..Plan::default() })
    }

    fn cancelled(&self, output: &Output) -> Result<(), ProviderError> {
        let gone = ["already completing or completed", "Invalid job id specified"];
        if output.exit == Some(0) || gone.iter().any(|g| output.stderr.contains(g)) {
            return Ok(());
        }
        Err(ProviderError::refused(words(output)))
    }
}

/// Options by which a block would not be found again (another name), not be one job (arrays), or sbatch would wait for its end.
const OURS: [&str; 6] = ["-J", "--job-name", "-a", "--array", "-W", "--wait"];

/// The script's directives: what every block has, then what its profile says, then the user's own, which win where sbatch lets the last.
fn directives(request: &BlockRequest) -> Result<Vec<String>, ProviderError> {
    let Asks {
        queue,
        account,
        qos,
        reservation,
        constraint,
        cores_per_node,
        gpus_per_node,
        memory_per_node_mib,
        exclusive,
        options,
        setup: _,
    } = &request.asks;
    let dir = one_word("dir", &request.dir)?;
    let nodes = request.nodes.to_string();
    let mut all = vec![
        format!("--job-name={}", one_word("name", &request.name)?),
        format!("--chdir={dir}"),
        // In the name of a file sbatch replaces what follows a percent sign. A requeued block adds to what is there.
        format!("--output={}/{BLOCK_LOG}", dir.replace('%', "%%")),
        "--open-mode=append".into(),
        format!("--nodes={nodes}"),
        // One manager a node. Some sites want the number of tasks spelled out.
        format!("--ntasks={nodes}"),
        "--ntasks-per-node=1".into(),
        format!("--time={}", clock_words(request.walltime_ms)),
        // The allocation outlives a node that fails: its other managers go on.
        "--no-kill".into(),
        format!("--signal=B:USR1@{}", warn_s(request.walltime_ms)),
    ];
    let words = [
        ("queue", "partition", queue),
        ("account", "account", account),
        ("qos", "qos", qos),
        ("reservation", "reservation", reservation),
        ("constraint", "constraint", constraint),
    ];
    for (key, option, value) in words {
        if let Some(value) = value {
            all.push(format!("--{option}={}", one_word(key, value)?));
        }
    }
    all.extend(cores_per_node.map(|n| format!("--cpus-per-task={n}")));
    all.extend(gpus_per_node.map(|n| format!("--gpus-per-node={n}")));
    all.extend(memory_per_node_mib.map(|n| format!("--mem={n}M")));
    all.extend(exclusive.then(|| "--exclusive".into()));
    if !request.exclude.is_empty() {
        let nodes: Result<Vec<&str>, _> = request.exclude.iter().map(|n| one_word("exclude", n)).collect();
        all.push(format!("--exclude={}", nodes?.join(",")));
    }
    all.extend(own_options(options, &OURS, true)?.iter().cloned());
    Ok(all.into_iter().map(|d| format!("#SBATCH {d}")).collect())
}

/// Seconds before its end at which the pilot is warned. Slurm looks at most every 30 s and warns up to 30 s too early, so that a short block
/// must not ask for much: it would be told to drain as it starts. The pilot's own clock counts as well.
fn warn_s(walltime_ms: u64) -> u64 {
    (walltime_ms / 1_000 / 20).clamp(1, 120)
}
