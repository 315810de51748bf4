//! What the commands of PBS say. Called by the provider alone.

use super::Make;
use crate::clock::clock_ms;
use crate::limits::STATUS_LINES_MAX;
use crate::supervisor::end_of_code;
use crate::words::{cut, words};
use crate::{KnownBlock, Observed, Output, ProviderError};
use pf_protocol::report::{BlockEnd, BlockState};
use std::collections::BTreeMap;

/// `seq.server` alone on a line: sites print banners around it. `max_job_sequence_id` lets numbers have twelve digits (`pbs_messages.c`). The
/// server is a host, and those of containers begin with digits; one that is nothing but digits would be any number.
fn is_id(text: &str) -> bool {
    let Some((number, server)) = text.split_once('.') else { return false };
    let number_fine = (1..=12).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let server_fine = server.starts_with(|c: char| c.is_ascii_alphanumeric())
        && server.contains(|c: char| c.is_ascii_alphabetic())
        && server.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    number_fine && server_fine
}

/// `seq[].server`, or `seq[index].server`: somebody's array, or a job of it.
fn is_id_of_array(text: &str) -> bool {
    let parts = text.split_once('[').and_then(|(number, rest)| Some((number, rest.split_once(']')?)));
    parts.is_some_and(|(number, (index, server))| {
        index.bytes().all(|b| b.is_ascii_digit()) && is_id(&format!("{number}{server}"))
    })
}

/// Words of the commands that mean "not now": the server is away, or the user has as many jobs as may be (`pbs_messages.c`).
const LATER: [&str; 11] = [
    "cannot connect to server",
    "Couldn't connect to cluster",
    "Connection refused",
    "would exceed",
    // Already in a queue, or in the complex; for a user, a group or a project; in any state or in Q.
    "Maximum number of jobs",
    "Server shutting down",
    "Server is shutting down",
    "Resource temporarily unavailable",
    "No free connections",
    "Server connection table full",
    "Floating License unavailable",
];

/// Words after which nobody knows whether the job was taken: the connection ended in the middle.
const UNCLEAR: [&str; 3] = ["Connection reset", "End of File", "Batch protocol error"];

/// Words of qsub and what may help.
const HINTS: [(&str, &str); 15] = [
    ("Unknown queue", "set queue; `qstat -q` lists them"),
    ("Queue is not enabled", "it takes no jobs now: set another queue; `qstat -q` lists them"),
    ("Unauthorized Request", "the queue, or the account, is not open to you: set queue or account"),
    (
        "violates queue and/or server resource limits",
        "`qstat -Qf QUEUE` shows least and most of nodes and walltime",
    ),
    ("Unknown resource", "see constraint and options: a word that this server does not know"),
    ("Illegal attribute or resource value", "see constraint and options"),
    ("Cannot be used with select", "options must not say nodes= or ncpus= beside what the profile says"),
    ("node(s) specification error", "is this Torque? then set dialect to \"torque\""),
    ("No default queue specified", "set queue; `qstat -q` lists them"),
    ("Access to queue is denied", "set queue; `qstat -q` lists them"),
    (
        "Job rejected by all possible destinations",
        "no queue behind this one takes such a block: see nodes_per_block and walltime; `qstat -Qf` shows the limits",
    ),
    ("Invalid Account", "set account"),
    ("Bad UID", "root may not submit jobs"),
    ("illegal -", "see options"),
    ("invalid option", "see options, and dialect"),
];

/// From qsub. An id counts whatever the exit code is: the job exists.
pub(super) fn submitted(output: &Output) -> Result<String, ProviderError> {
    if let Some(id) = output.stdout.lines().rev().map(str::trim).find(|line| is_id(line)) {
        return Ok(id.into());
    }
    let said = words(output);
    // A crash, or an answer without an id: the job may be there all the same.
    let crashed = output.exit.is_none_or(|code| code == 0 || code > 255 || code == 128 + 11);
    if crashed || UNCLEAR.iter().any(|w| said.contains(w)) {
        return Err(ProviderError::NotUnderstood(said));
    }
    if LATER.iter().any(|w| said.contains(w)) {
        return Err(ProviderError::Later(said));
    }
    let hint = HINTS.iter().find(|(w, _)| said.contains(w)).map(|(_, hint)| *hint);
    Err(ProviderError::Refused { words: said, hint })
}

/// A record of `qstat -f`.
struct Job {
    id: String,
    fields: BTreeMap<String, String>,
}

impl Job {
    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |v| v.trim())
    }

    fn number(&self, name: &str) -> Option<i32> {
        self.get(name).parse().ok()
    }
}

/// All records that are whole: an empty line ends one. A line that begins with a tab goes on with the one before, also in mid-word.
fn jobs(text: &str) -> Vec<Job> {
    let mut whole = Vec::new();
    let mut current: Option<Job> = None;
    let mut last: Option<String> = None;
    for line in text.split_inclusive('\n').take(STATUS_LINES_MAX) {
        // What has no end was cut off.
        let Some(line) = line.strip_suffix('\n') else { break };
        if let Some(id) = line.strip_prefix("Job Id: ") {
            // What is no id would stand on the command line of the next question all the same.
            current = Some(id.trim())
                .filter(|id| is_id(id) || is_id_of_array(id))
                .map(|id| Job { id: id.into(), fields: BTreeMap::new() });
            last = None;
            continue;
        }
        let Some(job) = &mut current else { continue };
        if let Some(more) = line.strip_prefix('\t') {
            if let Some(value) = last.as_ref().and_then(|name| job.fields.get_mut(name)) {
                value.push_str(more);
            }
        } else if line.trim().is_empty() {
            whole.extend(current.take());
        } else if let Some((name, value)) = line.trim_start().split_once(" = ") {
            job.fields.insert(name.into(), value.into());
            last = Some(name.into());
        }
    }
    whole
}

/// The complaint of qstat, without those lines that only say of an id that the server does not have it (any more).
fn complaint(output: &Output) -> Option<String> {
    let gone = ["Unknown Job Id", "Job has finished"];
    let other = output.stderr.lines().filter(|l| !l.trim().is_empty() && !gone.iter().any(|g| l.contains(g)));
    let other: Vec<&str> = other.collect();
    if other.is_empty() { None } else { Some(cut(&other.join("\n")).into()) }
}

/// From `qstat -f ID...`. Records count whatever the exit code is, which is that of the last error.
pub(super) fn observed(make: Make, output: &Output) -> Result<Vec<Observed>, ProviderError> {
    let found: Vec<Observed> = jobs(&output.stdout).iter().map(|job| observed_job(make, job)).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let failed = output.exit != Some(0) && output.stderr.trim().is_empty();
    match complaint(output) {
        Some(said) => Err(ProviderError::NotUnderstood(said)),
        None if failed => Err(ProviderError::NotUnderstood(words(output))),
        None => Ok(found),
    }
}

/// From `qstat [-x] -f ID`. That nothing at all is said is no answer.
pub(super) fn shown(
    make: Make,
    block: &KnownBlock,
    output: &Output,
) -> Result<Option<Observed>, ProviderError> {
    // A number is used again after ten million jobs. A server may have more than one name.
    let number = |id: &str| id.split('.').next().map(String::from);
    let asked = block.id.as_deref().and_then(number);
    let found = jobs(&output.stdout)
        .into_iter()
        .find(|job| number(&job.id) == asked && job.get("Job_Name") == block.name);
    if let Some(job) = found {
        // What history keeps of a job that went to another server says nothing of its end. The live queue, which was asked before, follows it
        // there (`qstat.c`, `locate_job`).
        let moved = job.get("job_state") == "M";
        return Ok((!moved).then(|| observed_job(make, &job)));
    }
    let no_history = output.stderr.contains("not configured to maintain job history");
    if no_history || (complaint(output).is_none() && !output.stderr.trim().is_empty()) {
        return Ok(None);
    }
    Err(ProviderError::NotUnderstood(words(output)))
}

/// From `qselect -N NAME`: an id a line. What state it is in the next status tells.
pub(super) fn selected(block: &KnownBlock, output: &Output) -> Result<Option<Observed>, ProviderError> {
    let id = output.stdout.lines().map(str::trim).rfind(|line| is_id(line));
    if let Some(id) = id {
        return Ok(Some(Observed {
            id: id.into(),
            name: block.name.clone(),
            state: BlockState::Unknown("found by its name".into()),
            walltime_left_ms: None,
            restarts: None,
        }));
    }
    let no_history = output.stderr.contains("not configured to maintain job history");
    match (output.exit, no_history || output.stderr.trim().is_empty()) {
        (Some(0), true) => Ok(None),
        (_, true) if no_history => Ok(None),
        _ => Err(ProviderError::NotUnderstood(words(output))),
    }
}

fn observed_job(make: Make, job: &Job) -> Observed {
    let state = state(make, job);
    let clock = |name| clock_ms(job.get(name));
    // Nothing is used until the node has first told of the job.
    let used = clock("resources_used.walltime").unwrap_or(0);
    let left = clock("Resource_List.walltime").filter(|_| state == BlockState::Running);
    let left = left.map(|all| all.saturating_sub(used));
    // It counts runs. In the queue all of them are over.
    let again = job.number("run_count").and_then(|n| u32::try_from(n).ok());
    let started = !matches!(job.get("job_state"), "Q" | "H" | "W" | "T");
    let restarts = again.map(|n| n.saturating_sub(u32::from(started)));
    Observed { id: job.id.clone(), name: job.get("Job_Name").into(), state, walltime_left_ms: left, restarts }
}

/// States: qstat(1B), and `JOB_STATE_LTR_*` in the source.
fn state(make: Make, job: &Job) -> BlockState {
    let comment = cut(job.get("comment"));
    match job.get("job_state") {
        "Q" if comment.starts_with("Can Never Run") => BlockState::Impossible(format!(
            "{comment} (hint: no nodes of this queue have what is asked for: see nodes_per_block, cores_per_node, gpus_per_node)"
        )),
        "Q" => BlockState::Queued(comment.into()),
        "H" => held(job),
        "W" if job.number("substate") == Some(37) => {
            BlockState::Queued("its files could not be staged in; tried again later".into())
        }
        "W" => BlockState::Queued(format!("not before {}", job.get("Execution_Time"))),
        "T" => BlockState::Queued("on its way to another queue".into()),
        "M" => BlockState::Unknown("moved to another server".into()),
        "R" if job.number("substate") == Some(41) => BlockState::Starting,
        "R" => BlockState::Running,
        "S" => BlockState::Suspended(String::new()),
        "U" => BlockState::Suspended("somebody uses the workstation".into()),
        "E" => BlockState::Ending,
        "F" | "C" | "X" => BlockState::Ended(end(make, job)),
        other => BlockState::Unknown(format!("job_state {}", cut(other))),
    }
}

fn held(job: &Job) -> BlockState {
    let (types, comment) = (job.get("Hold_Types"), cut(job.get("comment")));
    // After 21 starts that failed the server holds it, and only an administrator can let it go (ALCF, "Job and queue scheduling").
    if comment.contains("too many failed attempts to run") {
        let failed = "nodes fail to start it: `qstat -xf` of others there tells whether it is the machine";
        return BlockState::Impossible(format!("{comment} (hint: {failed})"));
    }
    if types.contains('u') {
        let id = &job.id;
        return BlockState::Held(format!("by its user; `qrls {id}` lets it go"));
    }
    let depends = if job.get("depend").is_empty() { "" } else { ", waits for another job" };
    let why = if comment.is_empty() { String::new() } else { format!(": {comment}") };
    BlockState::Held(format!("Hold_Types {}{depends}{why}", cut(types)))
}

/// Values of `Exit_status` beside exit codes: `JOB_EXEC_*` in OpenPBS's `job.h`, and in Torque's.
fn end(make: Make, job: &Job) -> BlockEnd {
    let comment = job.get("comment");
    let deleted = job.number("substate") == Some(91) || comment.contains("and terminated");
    let status = job.number("Exit_status").or(job.number("exit_status"));
    let Some(status) = status else {
        return match (deleted, job.get("depend").is_empty()) {
            (true, _) => BlockEnd::Cancelled,
            _ if job.number("substate").is_none() || !job.get("stime").is_empty() => {
                BlockEnd::Unknown("ended, without an Exit_status".into())
            }
            (_, false) => BlockEnd::LaunchFailed("never started: a job that it depends on failed".into()),
            (_, true) => BlockEnd::LaunchFailed("never started".into()),
        };
    };
    if let Some((_, resource)) = comment.split_once("and exceeded resource ") {
        return over_limit(resource.trim());
    }
    match (make, status) {
        (Make::Open, -29) | (Make::Torque, -11) => BlockEnd::Walltime,
        (Make::Open, -26 | -27) | (Make::Torque, -10) => BlockEnd::OutOfMemory,
        (Make::Open, -28 | -25 | -24) | (Make::Torque, -12) => over_limit("cput"),
        // The first node began anew, a sister was lost, or the first was (PBS Reference Guide, "Job Exit Codes").
        (Make::Open, -4 | -14 | -20) => BlockEnd::NodeFailed,
        (_, ..0) => BlockEnd::LaunchFailed(format!("Exit_status {status}: {}", cut(comment))),
        // Deleted for another job, in the name of who asked for it (`req_preemptjob.c`; not seen).
        _ if comment.contains("and terminated by Scheduler@") => BlockEnd::Preempted,
        _ if deleted => BlockEnd::Cancelled,
        (_, 257..=320) => BlockEnd::Signal(status - 256),
        _ => end_of_code(status),
    }
}

fn over_limit(resource: &str) -> BlockEnd {
    match resource {
        "walltime" => BlockEnd::Walltime,
        "mem" | "vmem" | "pmem" | "pvmem" => BlockEnd::OutOfMemory,
        other => BlockEnd::Unknown(format!("killed: it used more {} than it had", cut(other))),
    }
}

/// From qdel, or qsig. A job that is gone, or on its way, was cancelled well.
pub(super) fn cancelled(output: &Output) -> Result<(), ProviderError> {
    let gone = [
        "Unknown Job Id",
        "Job has finished",
        "invalid state for job - EXITING",
        "Request invalid for state",
        "Delete already in progress",
    ];
    if output.exit == Some(0) || gone.iter().any(|g| output.stderr.contains(g)) {
        return Ok(());
    }
    let said = words(output);
    let hint = said
        .contains("could not connect to MOM")
        .then_some("its first node cannot be reached; it is forced out in the next round");
    if LATER.iter().any(|w| said.contains(w)) {
        return Err(ProviderError::Later(said));
    }
    Err(ProviderError::Refused { words: said, hint })
}
