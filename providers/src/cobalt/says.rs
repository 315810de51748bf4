//! What the commands of Cobalt say, and its log of a job. Called by the provider alone.

use crate::clock::clock_ms;
use crate::limits::STATUS_LINES_MAX;
use crate::supervisor::end_of_code;
use crate::words::words;
use crate::{KnownBlock, Observed, Output, ProviderError};
use pf_protocol::report::{BlockEnd, BlockState};

fn is_id(text: &str) -> bool {
    (1..=10).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// A line of Python's that precedes many messages and says nothing.
const NOISE: &str = "No handlers could be found for logger";

/// The complaint without noise.
fn complaint(output: &Output) -> String {
    let lines = output.stderr.lines().filter(|l| !l.contains(NOISE));
    let stderr = lines.collect::<Vec<_>>().join("\n");
    words(&Output { stderr, ..output.clone() })
}

/// Words of qsub and what may help.
const HINTS: [(&str, &str); 12] = [
    ("non-existent queue", "set queue; `qstat -Q` lists them"),
    ("not allowed to submit", "set another queue; `qstat -Q` lists them"),
    ("queue is draining", "it takes no jobs now: set another queue; `qstat -Q` lists them"),
    ("queue is dead", "it takes no jobs now: set another queue; `qstat -Q` lists them"),
    ("Walltime less than the", "raise walltime, or set another queue; `qstat -Q`"),
    ("Node count out of realistic range", "lower nodes_per_block"),
    ("Walltime greater", "lower walltime, or set a queue that allows it; `qstat -Q`"),
    ("Walltime less than minimum", "walltime must be 5 minutes at least"),
    ("node count out of realistic range", "lower nodes_per_block"),
    ("is not valid for user", "set account"),
    ("Filter", "the site refuses it, in the words before: see account, queue and options"),
    ("no such option", "see options"),
];

/// From qsub: the id is the last line of standard output that begins with a number. Where both streams come as one, messages of the site's
/// stand before it.
pub(super) fn submitted(output: &Output) -> Result<String, ProviderError> {
    let said = complaint(output);
    if output.exit == Some(0) {
        let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_string();
        let alone = output.stdout.lines().rev().map(str::trim).find(|line| is_id(line)).map(String::from);
        let id = alone.or_else(|| output.stdout.lines().rev().map(first).find(|word| is_id(word)));
        return id.ok_or(ProviderError::NotUnderstood(said));
    }
    let Some(_) = output.exit else { return Err(ProviderError::NotUnderstood(said)) };
    if said.contains("Failed to connect") || (said.contains("limit of") && said.contains("been reached")) {
        return Err(ProviderError::Later(said));
    }
    // The queue manager was asked and did not answer: it may have taken the job.
    if said.contains("component error") && !said.contains("<Fault") {
        return Err(ProviderError::NotUnderstood(said));
    }
    let hint = HINTS.iter().find(|(w, _)| said.contains(w)).map(|(_, hint)| *hint);
    Err(ProviderError::Refused { words: said, hint })
}

/// From `qstat -u USER --header ..`.
pub(super) fn observed(output: &Output) -> Result<Vec<Observed>, ProviderError> {
    match table(&output.stdout).filter(|_| output.exit == Some(0)) {
        Some(found) => Ok(found),
        None => Err(ProviderError::NotUnderstood(complaint(output))),
    }
}

/// From `qstat --header .. ID`: exit code 1 without a word says that it is gone, with words that nobody knows.
pub(super) fn shown(block: &KnownBlock, output: &Output) -> Result<Option<Observed>, ProviderError> {
    match (output.exit, table(&output.stdout)) {
        (Some(0), Some(found)) => Ok(found.into_iter().find(|o| Some(&o.id) == block.id.as_ref())),
        (Some(1), None) if output.stdout.trim().is_empty() && output.stderr.trim().is_empty() => Ok(None),
        _ => Err(ProviderError::NotUnderstood(complaint(output))),
    }
}

/// The lines below a header and a line of `=`; ids are padded on the left. None without a header.
fn table(text: &str) -> Option<Vec<Observed>> {
    let mut below = None;
    let mut header = false;
    for line in text.split_inclusive('\n').take(STATUS_LINES_MAX) {
        // What has no end was cut off.
        let Some(line) = line.strip_suffix('\n') else { break };
        let rows: &mut Vec<Observed> = match &mut below {
            Some(rows) => rows,
            None if header && !line.is_empty() && line.bytes().all(|b| b == b'=') => {
                below = Some(Vec::new());
                continue;
            }
            None => {
                header = line.trim_start().starts_with("JobID");
                continue;
            }
        };
        rows.extend(row(line));
    }
    below
}

fn row(line: &str) -> Option<Observed> {
    let mut rest = line;
    let mut word = || {
        let start = rest.trim_start();
        let end = start.find(char::is_whitespace).unwrap_or(start.len());
        let (word, more) = start.split_at(end);
        rest = more;
        word
    };
    let (id, state_word, left, by_admin) = (word(), word(), word(), word());
    if !is_id(id) || state_word.is_empty() {
        return None;
    }
    let state = state(state_word, id, by_admin == "True");
    Some(Observed {
        id: id.into(),
        name: rest.trim().into(),
        walltime_left_ms: clock_ms(left).filter(|_| state == BlockState::Running),
        state,
        restarts: None,
    })
}

/// States: the source, `JobState` of the queue manager.
fn state(word: &str, id: &str, by_admin: bool) -> BlockState {
    match word {
        // ALCF held all jobs so while a file system was down.
        "user_hold" if by_admin => BlockState::Held("user_hold and admin_hold".into()),
        "queued" => BlockState::Queued(String::new()),
        "maxrun_hold" => BlockState::Queued("maxrun_hold: as many run as may".into()),
        "preempted" => BlockState::Queued("preempted".into()),
        "user_hold" => BlockState::Held(format!("by its user (user_hold); `qrls {id}` lets it go")),
        "dep_fail" => BlockState::Impossible(format!(
            "dep_fail: a job that it depends on failed (hint: `qrls --dependencies {id}` would let it go)"
        )),
        "admin_hold" | "dep_hold" => BlockState::Held(word.into()),
        "starting" => BlockState::Starting,
        "running" => BlockState::Running,
        "killing" | "preempting" | "exiting" | "done" => BlockState::Ending,
        other => BlockState::Unknown(other.into()),
    }
}

/// From the log of a job, of which the queue says that it is gone if its id is known. `Jobid: 18` begins the part of each job that had this
/// prefix.
pub(super) fn logged(block: &KnownBlock, output: &Output) -> Result<Option<Observed>, ProviderError> {
    let (mut id, mut end) = (None, None);
    for line in output.stdout.lines().take(STATUS_LINES_MAX) {
        if let Some(found) = line.strip_prefix("Jobid: ").map(str::trim).filter(|i| is_id(i)) {
            id = Some(found.to_string());
            end = None;
        } else if let Some((_, text)) = line.split_once(") Info: ") {
            end = end_of(text).or(end);
        }
    }
    let fits = |id: &String| block.id.as_ref().is_none_or(|known| known == id);
    let Some(id) = id.filter(fits) else { return Ok(None) };
    let state = match (end, &block.id) {
        (Some(end), _) => BlockState::Ended(end),
        (None, None) => BlockState::Unknown("found by its log".into()),
        // The queue has forgotten it, and its log does not tell why.
        (None, Some(_)) => return Ok(None),
    };
    Ok(Some(Observed { id, name: block.name.clone(), state, walltime_left_ms: None, restarts: None }))
}

/// The queue manager's words (`cqm.py`, where it logs with `cobalt_log`). An exit code may be `None`: then the log does not tell.
fn end_of(text: &str) -> Option<BlockEnd> {
    if let Some((_, code)) = text.split_once("with an exit code of ") {
        return code.split([';', ' ']).next()?.parse().ok().map(end_of_code);
    }
    if text.contains("maximum execution time exceeded") {
        return Some(BlockEnd::Walltime);
    }
    // `user delete requested ..`, `user delete with signal ..`, `pending user delete; ..`; but not those that it says to ignore.
    if text.contains("user delete") && !text.contains("ignoring") {
        return Some(BlockEnd::Cancelled);
    }
    text.contains("job successfully preempted").then_some(BlockEnd::Preempted)
}

/// From qdel, which says nothing of jobs that are gone, or are another's.
pub(super) fn cancelled(output: &Output) -> Result<(), ProviderError> {
    match output.exit {
        Some(0) => Ok(()),
        _ => {
            let said = complaint(output);
            let away = said.contains("component error");
            Err(if away { ProviderError::Later(said) } else { ProviderError::refused(said) })
        }
    }
}
