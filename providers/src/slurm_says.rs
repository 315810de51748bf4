//! What Slurm's commands say. Called by `slurm` alone.

use crate::clock::clock_ms;
use crate::limits::STATUS_LINES_MAX;
use crate::supervisor::end_of_code;
use crate::words::{cut, words};
use crate::{KnownBlock, Observed, Output, ProviderError};
use pf_protocol::report::{BlockEnd, BlockState};

/// Exit "signal" of a job whose output file could not be opened, or whose batch script could not be run, on the node.
const SIGNAL_NOT_STARTED: i32 = 53;

/// From `sbatch --parsable`: `ID` or `ID;CLUSTER`. Sites print banners around it.
pub(crate) fn submitted(output: &Output) -> Result<String, ProviderError> {
    if output.exit != Some(0) {
        return Err(refusal(output));
    }
    let ids = output.stdout.lines().rev().map(str::trim).filter_map(|line| {
        let line = line.strip_prefix("Submitted batch job ").unwrap_or(line);
        let id = line.split_once(';').map_or(line, |(id, _cluster)| id);
        is_id(id).then(|| id.to_string())
    });
    ids.into_iter().next().ok_or_else(|| ProviderError::NotUnderstood(words(output)))
}

fn is_id(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Words of sbatch after which the block may have been taken all the same: the status will tell.
const UNCLEAR: [&str; 5] = [
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Unexpected message received",
    "Transport endpoint is not connected",
    "Connection reset by peer",
];

/// Words of sbatch that mean "not now": the queue is full, the controller is away.
const LATER: [&str; 5] = [
    "Resource temporarily unavailable",
    "Slurm temporarily unable to accept job",
    "Unable to contact slurm controller",
    "submissions are disabled",
    "Slurm controller is in standby mode",
];

/// Words of sbatch and what may help.
const HINTS: [(&str, &str); 12] = [
    ("Invalid account", "set account; `sacctmgr show associations user=$USER` lists yours"),
    ("nvalid partition", "set queue; `sinfo --summarize` lists the partitions"),
    ("Invalid qos", "set qos; `sacctmgr show associations user=$USER format=account,qos` lists yours"),
    ("time limit is invalid", "lower walltime, or set a queue that allows it"),
    ("Node count specification invalid", "lower nodes_per_block, or set a queue that allows it"),
    ("More processors requested", "lower nodes_per_block or cores_per_node, or set a queue that allows it"),
    (
        "node configuration is not available",
        "no node has what is asked for: see cores_per_node, gpus_per_node, memory_per_node",
    ),
    ("Invalid feature", "set constraint; `sinfo --Format=features` lists what nodes have"),
    ("generic resource", "see gpus_per_node and options; `sinfo --Format=gres` lists what nodes have"),
    ("reservation is invalid", "set reservation; `scontrol show reservation` lists them"),
    ("Invalid node name", "a node that blocks must not get is not known any more"),
    ("nrecognized option", "see options"),
];

fn refusal(output: &Output) -> ProviderError {
    let said = words(output);
    let any = |list: &[&str]| list.iter().any(|w| said.contains(w));
    if output.exit.is_none() || any(&UNCLEAR) {
        return ProviderError::NotUnderstood(said);
    }
    let limit = said.contains("SubmitJob") || said.contains("violates accounting/QOS policy");
    if any(&LATER) || (limit && !is_per_job(&said)) {
        return ProviderError::Later(said);
    }
    let per_job = "it asks for more than one job may have: lower walltime or nodes_per_block, or set another qos or queue";
    let hint = HINTS.iter().find(|(w, _)| said.contains(w)).map(|(_, hint)| *hint);
    ProviderError::Refused { hint: hint.or(limit.then_some(per_job)), words: said }
}

/// Whether a limit is one that this job alone goes beyond, so that waiting does not help: `QOSMaxWallDurationPerJobLimit`,
/// `AssocMaxNodePerJobLimit`, `QOSMinGRES`.
fn is_per_job(reason: &str) -> bool {
    reason.contains("PerJobLimit") || reason.contains("MaxMemPerLimit") || reason.contains("QOSMin")
}

/// Lines of `squeue`: id, state, raw exit status, time left, restarts, reason, name; each with a `|` behind it.
pub(crate) fn observed(output: &Output) -> Result<Vec<Observed>, ProviderError> {
    // An unknown user, for one, is told on standard error with exit code 0.
    if output.exit != Some(0) || output.stderr.contains("error:") {
        return Err(ProviderError::NotUnderstood(words(output)));
    }
    Ok(output.stdout.lines().take(STATUS_LINES_MAX).filter_map(observed_line).collect())
}

fn observed_line(line: &str) -> Option<Observed> {
    let fields: Vec<&str> = line.splitn(7, '|').map(str::trim).collect();
    let [id, state, exit, left, restarts, reason, name] = fields[..] else { return None };
    // A line without its last mark was cut off.
    let name = name.strip_suffix('|')?;
    let raw: i32 = exit.parse().unwrap_or(0);
    let (code, signal) = if raw & 0x7f == 0 { (raw >> 8 & 0xff, 0) } else { (0, raw & 0x7f) };
    is_id(id).then(|| Observed {
        id: id.into(),
        name: name.into(),
        state: state_of(state, reason, code, signal),
        walltime_left_ms: (state == "RUNNING").then(|| clock_ms(left)).flatten(),
        restarts: restarts.parse().ok(),
    })
}

/// One line of `KEY=VALUE` from `scontrol --oneliner show job`. None for an id that the controller does not know, or has given to another.
pub(crate) fn shown(id: &str, name: &str, output: &Output) -> Result<Option<Observed>, ProviderError> {
    if output.exit != Some(0) {
        let unknown = output.stderr.contains("Invalid job id specified");
        return if unknown { Ok(None) } else { Err(ProviderError::NotUnderstood(words(output))) };
    }
    let lines = output.stdout.lines().take(STATUS_LINES_MAX);
    let line = lines.into_iter().find(|l| value(l, "JobId") == Some(id));
    let Some(line) = line else { return Err(ProviderError::NotUnderstood(words(output))) };
    if value(line, "JobName") != Some(name) {
        return Ok(None);
    }
    let state = value(line, "JobState").unwrap_or_default();
    let (code, signal) = exit_pair(value(line, "ExitCode").unwrap_or_default());
    let clock = |key| value(line, key).and_then(clock_ms);
    let left = clock("TimeLimit").zip(clock("RunTime")).map(|(limit, ran)| limit.saturating_sub(ran));
    Ok(Some(Observed {
        id: id.into(),
        name: name.into(),
        state: state_of(state, value(line, "Reason").unwrap_or_default(), code, signal),
        walltime_left_ms: left.filter(|_| state == "RUNNING"),
        restarts: value(line, "Restarts").and_then(|r| r.parse().ok()),
    }))
}

/// The value of the first ` KEY=` of a line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Lines `ID|STATE|CODE:SIGNAL|NAME` from sacct. The accounting lags: of a block that the controller has forgotten only an end is believed.
pub(crate) fn accounted(block: &KnownBlock, output: &Output) -> Result<Option<Observed>, ProviderError> {
    if output.exit != Some(0) {
        let none = output.stderr.contains("accounting storage is disabled");
        return if none { Ok(None) } else { Err(ProviderError::NotUnderstood(words(output))) };
    }
    let found = output.stdout.lines().take(STATUS_LINES_MAX).filter_map(|line| {
        let fields: Vec<&str> = line.splitn(4, '|').collect();
        let [id, state, exit, name] = fields[..] else { return None };
        let ours = name == block.name && is_id(id) && block.id.as_deref().is_none_or(|known| known == id);
        let (code, signal) = exit_pair(exit);
        // "CANCELLED by 1000"
        let word = state.split(' ').next().unwrap_or_default();
        ours.then(|| Observed {
            id: id.into(),
            name: name.into(),
            state: state_of(word, "", code, signal),
            walltime_left_ms: None,
            restarts: None,
        })
    });
    let ended = |o: &Observed| matches!(o.state, BlockState::Ended(_));
    Ok(found.last().filter(|o| block.id.is_none() || ended(o)))
}

/// `CODE:SIGNAL`.
fn exit_pair(text: &str) -> (i32, i32) {
    let (code, signal) = text.split_once(':').unwrap_or((text, "0"));
    (code.parse().unwrap_or(0), signal.parse().unwrap_or(0))
}

/// The meaning of each state of squeue(1), "JOB STATE CODES".
fn state_of(word: &str, reason: &str, code: i32, signal: i32) -> BlockState {
    let words = || cut(if reason.is_empty() || reason == "None" { word } else { reason }).to_string();
    let both = |what: &str| match reason {
        "" | "None" => what.to_string(),
        _ => format!("{what}: {}", cut(reason)),
    };
    let ended = BlockState::Ended;
    match word {
        "PENDING" => pending(reason),
        "REQUEUED" | "REQUEUE_FED" => BlockState::Queued(both("requeued")),
        "REQUEUE_HOLD" => BlockState::Held(both("requeued")),
        "SPECIAL_EXIT" => BlockState::Held(both("requeued in a special state")),
        "RESV_DEL_HOLD" => BlockState::Impossible(both("its reservation was deleted")),
        "CONFIGURING" => BlockState::Starting,
        "RUNNING" if reason == "Prolog" => BlockState::Starting,
        "RUNNING" | "RESIZING" | "SIGNALING" => BlockState::Running,
        "SUSPENDED" => BlockState::Suspended(if reason == "None" { "" } else { cut(reason) }.into()),
        "STOPPED" => BlockState::Suspended(both("by a signal")),
        "COMPLETING" | "STAGE_OUT" => BlockState::Ending,
        "COMPLETED" => ended(BlockEnd::Completed),
        "FAILED" => ended(failed(reason, code, signal)),
        "TIMEOUT" | "DEADLINE" => ended(BlockEnd::Walltime),
        "CANCELLED" => ended(BlockEnd::Cancelled),
        "PREEMPTED" => ended(BlockEnd::Preempted),
        "NODE_FAIL" => ended(BlockEnd::NodeFailed),
        "OUT_OF_MEMORY" => ended(BlockEnd::OutOfMemory),
        "BOOT_FAIL" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => ended(BlockEnd::LaunchFailed(both(word))),
        // Another cluster of the federation has it: this one cannot say how it is.
        "REVOKED" => BlockState::Unknown("REVOKED: another cluster of the federation runs it".into()),
        _ => BlockState::Unknown(format!("{} {}", cut(word), words())),
    }
}

fn failed(reason: &str, code: i32, signal: i32) -> BlockEnd {
    match (code, signal) {
        (_, SIGNAL_NOT_STARTED) => BlockEnd::LaunchFailed(format!(
            "{}; as a rule the node cannot write the block's folder",
            cut(reason)
        )),
        (0, 0) => BlockEnd::Unknown(format!("failed: {}", cut(reason))),
        (_, signal @ 1..) => BlockEnd::Signal(signal),
        (code, _) => end_of_code(code),
    }
}

/// Reasons for which a job never runs: squeue(1), "JOB REASON CODES", and <https://slurm.schedmd.com/resource_limits.html>.
const NEVER: [&str; 13] = [
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "AssociationTimeLimit",
    "QOSTimeLimit",
    "JobHoldMaxRequeue",
    "ReservationDeleted",
    "launch failed requeued held",
];

fn pending(reason: &str) -> BlockState {
    let text = cut(reason).to_string();
    if NEVER.contains(&reason) || is_per_job(reason) {
        return BlockState::Impossible(text);
    }
    match reason {
        "JobHeldAdmin" => BlockState::Held(text),
        "JobHeldUser" => BlockState::Held("by its user; `scontrol release` lets it go".into()),
        "None" => BlockState::Queued(String::new()),
        _ => BlockState::Queued(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_the_manual_has_a_meaning() {
        let all = "BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED \
            RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT";
        for word in all.split_ascii_whitespace() {
            let state = state_of(word, "None", 1, 0);
            assert!(!matches!(state, BlockState::Unknown(_)), "{word}: {state:?}");
        }
        assert_eq!(state_of("POWERED_UP", "x", 0, 0), BlockState::Unknown("POWERED_UP x".into()));
        assert!(matches!(state_of("REVOKED", "", 0, 0), BlockState::Unknown(_)));
    }

    #[test]
    fn a_limit_of_the_user_is_a_wait_and_one_of_the_job_is_not() {
        let say = |text: &str| submitted(&Output { exit: Some(1), stderr: text.into(), ..Output::default() });
        let policy = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ..)";
        assert!(matches!(say(policy), Err(ProviderError::Later(_))));
        let per_job = format!("sbatch: error: QOSMaxWallDurationPerJobLimit\n{policy}");
        assert!(matches!(say(&per_job), Err(ProviderError::Refused { hint: Some(_), .. })));
        let timed_out = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation";
        assert!(matches!(say(timed_out), Err(ProviderError::NotUnderstood(_))));
    }

    #[test]
    fn an_id_that_went_to_another_job_is_not_ours() {
        let said = |stdout: &str| Output { exit: Some(0), stdout: stdout.into(), ..Output::default() };
        let line = "JobId=7 JobName=other JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0\n";
        assert_eq!(shown("7", "pf-x", &said(line)), Ok(None));
        let known = KnownBlock { name: "pf-x".into(), id: Some("7".into()), dir: String::new() };
        assert_eq!(accounted(&known, &said("7|RUNNING|0:0|pf-x\n")), Ok(None), "the accounting lags");
        let unnamed = KnownBlock { id: None, ..known };
        assert_eq!(accounted(&unnamed, &said("7|PENDING|0:0|pf-x\n")).unwrap().unwrap().id, "7");
    }

    #[test]
    fn a_line_that_was_cut_off_is_no_answer() {
        assert_eq!(observed_line("7|RUNNING|0|4:59|0|None|pf-x"), None);
        assert_eq!(observed_line("7|RUNNING|0|4:59|1|None|pf-x|").unwrap().restarts, Some(1));
        assert_eq!(observed_line("7|RUNNING|0|4:59|1|None|a|b|").unwrap().name, "a|b");
    }
}
