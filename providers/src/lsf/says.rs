//! What the commands of LSF say. Called by the provider alone.

use super::Make;
use crate::limits::STATUS_LINES_MAX;
use crate::supervisor::end_of_code;
use crate::words::{cut, words};
use crate::{KnownBlock, Observed, Output, ProviderError};
use pf_protocol::report::{BlockEnd, BlockState};

/// A number from 1 on.
pub(super) fn is_id(text: &str) -> bool {
    (1..=10).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit())
        && text.bytes().any(|b| b != b'0')
}

/// Words of bsub and what may help.
const HINTS: [(&str, &str); 16] = [
    ("No such queue", "set queue; `bqueues` lists them"),
    ("User cannot use the queue", "set queue; `bqueues -u $USER` lists yours"),
    ("Queue has been closed", "it takes no jobs now: set another queue; `bqueues` lists them"),
    ("Queue only accepts interactive jobs", "set another queue; `bqueues -l QUEUE`"),
    ("Queue does not accept EXCLUSIVE jobs", "set exclusive = false, or another queue"),
    ("Too few processors requested", "raise nodes_per_block or cores_per_node, or set another queue"),
    (
        "does not have enough",
        "lower nodes_per_block or cores_per_node, or set another queue; `bqueues -l QUEUE`",
    ),
    ("Bad resource name", "see constraint; `lsinfo` lists what nodes have"),
    ("Root job submission is disabled", "root may not submit jobs"),
    ("Cannot exceed queue's hard limit", "lower walltime, or set a queue that allows it; `bqueues -l QUEUE`"),
    ("Too many processors requested", "lower nodes_per_block or cores_per_node, or set another queue"),
    ("Bad resource requirement syntax", "see constraint; `lsinfo` lists what nodes have"),
    ("Bad RUNLIMIT", "see walltime and options"),
    ("must be a positive integer", "an option is not known here: see options, and dialect"),
    ("User permission denied", "root may not submit jobs"),
    ("aborted by esub", "the site refuses it, in the words before: see account and options"),
];

/// Words that mean "not now": the daemons are away or overloaded, or as many jobs are there as may be (`lsb.err.c`).
const LATER: [&str; 8] = [
    "threshold reached",
    "limit reached",
    "has reached its job limit",
    "No job Id can be used now",
    "Batch daemon cannot fork",
    "Connection refused by server",
    "Timeout on connect call to server",
    "LSF is down",
];

/// Words after which nobody knows whether the job was taken: the daemon was asked, and did not answer so that it could be understood.
const UNCLEAR: [&str; 7] = [
    "Failed in an LSF library call",
    "Failed in sending/receiving",
    "Communication timeout",
    "Batch protocol error",
    "XDR encode/decode error",
    "End of file",
    "Master batch daemon internal error",
];

/// From bsub: `Job <102> is submitted to queue <normal>.` on any line. Some sites' wrappers refuse with exit code 0, or print all on
/// standard error.
pub(super) fn submitted(output: &Output) -> Result<String, ProviderError> {
    let id = output.stdout.lines().chain(output.stderr.lines()).find_map(|line| {
        let (id, rest) = line.trim().strip_prefix("Job <")?.split_once('>')?;
        (is_id(id) && rest.starts_with(" is submitted to ")).then(|| id.to_string())
    });
    if let Some(id) = id {
        return Ok(id);
    }
    let said = words(output);
    let both = format!("{}\n{}", output.stdout, output.stderr);
    if UNCLEAR.iter().any(|w| both.contains(w)) || !both.contains("Job not submitted") {
        return Err(ProviderError::NotUnderstood(said));
    }
    if LATER.iter().any(|w| both.contains(w)) {
        return Err(ProviderError::Later(said));
    }
    let hint = HINTS.iter().find(|(w, _)| both.contains(w)).map(|(_, hint)| *hint);
    Err(ProviderError::Refused { words: said, hint })
}

/// From `bjobs` of several ids. Lines count whatever the exit code is: one forgotten id makes it 255.
pub(super) fn observed(make: Make, output: &Output) -> Result<Vec<Observed>, ProviderError> {
    let (lines, any) = lines(make, output);
    match any || says_only_gone(output) || (output.exit == Some(0) && words_free(output)) {
        true => Ok(lines),
        false => Err(ProviderError::NotUnderstood(words(output))),
    }
}

/// From `bjobs` of one block. That nothing at all is said is no answer.
pub(super) fn listed(
    make: Make,
    block: &KnownBlock,
    output: &Output,
) -> Result<Option<Observed>, ProviderError> {
    let (lines, any) = lines(make, output);
    let ours = |o: &Observed| {
        let id_fits = block.id.as_deref().is_none_or(|id| id == o.id);
        id_fits && (o.name == block.name || (block.id.is_some() && o.name.is_empty()))
    };
    if let Some(found) = lines.into_iter().rfind(ours) {
        return Ok(Some(found));
    }
    if any || says_only_gone(output) { Ok(None) } else { Err(ProviderError::NotUnderstood(words(output))) }
}

/// What a listing says, and whether it has lines at all: one whose end it does not know is left out, so that it is looked up.
fn lines(make: Make, output: &Output) -> (Vec<Observed>, bool) {
    let mut any = false;
    let mut found = Vec::new();
    for line in output.stdout.split_inclusive('\n').take(STATUS_LINES_MAX) {
        // What has no end was cut off.
        let Some(line) = line.strip_suffix('\n') else { break };
        let read = match make {
            Make::Ibm | Make::Csm => line_with_marks(line),
            Make::OpenLava => line_with_blanks(line),
        };
        if let Some(read) = read {
            any = true;
            found.extend(read);
        }
    }
    (found, any)
}

/// The line of a job; Some(None) where it has ended and the line does not tell how.
fn line_with_marks(line: &str) -> Option<Option<Observed>> {
    let fields: Vec<&str> = line.splitn(9, '|').map(str::trim).collect();
    let [id, stat, code, host, ran, limit, reason, name, pending] = fields[..] else { return None };
    if !is_id(id) {
        return None;
    }
    let set = |text: &str| text != "-" && !text.is_empty();
    let state = match stat {
        "EXIT" if set(reason) || set(code) => {
            BlockState::Ended(end(code.parse().ok(), if set(reason) { reason } else { "" }))
        }
        // Killed before it had a host.
        "EXIT" if !set(host) => BlockState::Ended(BlockEnd::Cancelled),
        "EXIT" => return Some(None),
        _ => state(stat, if set(pending) { pending } else { "" }, id),
    };
    // "16038 second(s)" of "1440.0" minutes.
    let ran: Option<u64> = ran.split(' ').next().and_then(|s| s.parse().ok());
    let limit = limit.split_once('.').map_or(limit, |(minutes, _)| minutes).parse::<u64>().ok();
    let left = limit.zip(ran).filter(|_| state == BlockState::Running);
    let left = left.map(|(minutes, s)| minutes.saturating_mul(60).saturating_sub(s).saturating_mul(1_000));
    Some(Some(Observed {
        id: id.into(),
        name: if set(name) { name.into() } else { String::new() },
        state,
        walltime_left_ms: left,
        restarts: None,
    }))
}

/// `ID USER STAT QUEUE FROM_HOST EXEC_HOST JOB_NAME MON DAY TIME`. A name may hold blanks; ours do not.
fn line_with_blanks(line: &str) -> Option<Option<Observed>> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [id, _user, stat, ..] = fields[..] else { return None };
    let known = ["PEND", "PSUSP", "RUN", "USUSP", "SSUSP", "DONE", "EXIT", "UNKWN", "ZOMBI", "WAIT", "PROV"];
    // A banner may begin with a number too: a line has all its fields, or is cut off.
    if !is_id(id) || (fields.len() < 10 && !known.contains(&stat)) || fields.len() < 4 {
        return None;
    }
    if stat == "EXIT" {
        return Some(None);
    }
    let name = if fields.len() == 10 { fields[6] } else { "" };
    Some(Some(Observed {
        id: id.into(),
        name: name.into(),
        state: state(stat, "", id),
        walltime_left_ms: None,
        restarts: None,
    }))
}

/// States: bjobs(1), "STAT".
fn state(stat: &str, pending: &str, id: &str) -> BlockState {
    match stat {
        "PEND" => BlockState::Queued(cut(pending).into()),
        // `lsb.reason.c`: "suspended by LSF admin or root while pending"; LSF itself stops a pending job too.
        "PSUSP" if pending.contains("admin") || pending.contains("internally") => {
            BlockState::Held(format!("PSUSP: {}", cut(pending)))
        }
        "PSUSP" => BlockState::Held(format!("by its user (PSUSP); `bresume {id}` lets it go")),
        "WAIT" => BlockState::Queued("WAIT: it waits in a chunk of jobs".into()),
        "PROV" => BlockState::Starting,
        "RUN" => BlockState::Running,
        "USUSP" => BlockState::Suspended("USUSP: stopped by its user or an administrator".into()),
        "SSUSP" => {
            BlockState::Suspended("SSUSP: stopped by LSF for load, a closed window or another job".into())
        }
        "UNKWN" => BlockState::Unknown("UNKWN: its host cannot be reached".into()),
        "ZOMBI" => BlockState::Ending,
        "DONE" => BlockState::Ended(BlockEnd::Completed),
        other => BlockState::Unknown(cut(other).into()),
    }
}

/// Reasons: "Termination reasons" of IBM's documentation. 140 is 128 + SIGUSR2, which LSF sends at the run limit and nobody else does.
fn end(code: Option<i32>, reason: &str) -> BlockEnd {
    let word = reason.split([':', ' ', ',']).next().unwrap_or_default();
    match word {
        "TERM_RUNLIMIT" | "TERM_DEADLINE" => return BlockEnd::Walltime,
        "TERM_OWNER" | "TERM_FORCE_OWNER" | "TERM_ADMIN" | "TERM_FORCE_ADMIN" | "TERM_BUCKET_KILL" => {
            return BlockEnd::Cancelled;
        }
        "TERM_MEMLIMIT" | "TERM_SWAP" => return BlockEnd::OutOfMemory,
        // For a job, a host's own load, hours in which the queue may not run, or who lent the host.
        "TERM_PREEMPT" | "TERM_LOAD" | "TERM_WINDOW" | "TERM_RC_RECLAIM" => return BlockEnd::Preempted,
        "TERM_CWD_NOTEXIST" | "TERM_CSM_ALLOC" | "TERM_RMS" => {
            return BlockEnd::LaunchFailed(cut(reason).into());
        }
        "TERM_ZOMBIE" | "TERM_REMOVE_HUNG_JOB" => return BlockEnd::NodeFailed,
        word if word.starts_with("TERM_") && word != "TERM_UNKNOWN" && word != "TERM_EXTERNAL_SIGNAL" => {
            return BlockEnd::Unknown(cut(reason).into());
        }
        _ => {}
    }
    match code {
        Some(140) => BlockEnd::Walltime,
        Some(code) => end_of_code(code),
        None if reason.is_empty() => BlockEnd::Unknown("EXIT without an exit code".into()),
        None => BlockEnd::Unknown(cut(reason).into()),
    }
}

/// Whether all that was said is that the ids are not known (any more).
fn says_only_gone(output: &Output) -> bool {
    let gone = ["is not found", "No unfinished job found", "No job found", "No matching job found"];
    let mut said =
        output.stderr.lines().chain(output.stdout.lines()).filter(|l| !l.trim().is_empty()).peekable();
    said.peek().is_some() && said.all(|line| gone.iter().any(|g| line.contains(g)))
}

fn words_free(output: &Output) -> bool {
    output.stdout.trim().is_empty() && output.stderr.trim().is_empty()
}

/// From `bhist -l ID` or `bjobs -l ID`: the last event tells. Lines are wrapped in mid-word, their rest after 21 blanks; a blank at the
/// margin is lost, so that words are compared without any.
pub(super) fn history(block: &KnownBlock, output: &Output) -> Result<Option<Observed>, ProviderError> {
    let id = block.id.as_deref().unwrap_or_default();
    let mut seen = Seen::default();
    let (mut any, mut ours) = (false, false);
    for line in unwrapped(&output.stdout) {
        let bare: String = line.chars().filter(|c| !c.is_whitespace()).collect();
        let heading = bare.strip_prefix("JobId<").or(bare.strip_prefix("Job<"));
        if let Some((found, rest)) = heading.and_then(|h| h.split_once(">,")) {
            any = true;
            let name = rest.strip_prefix("JobName<").and_then(|n| n.split_once(">,")).map(|(name, _)| name);
            // An id is used again, as a rule after a million jobs.
            ours = found == id && name.is_none_or(|n| n == block.name);
        } else if ours && line.len() > 20 && line.as_bytes()[19] == b':' {
            seen.event(&bare);
        }
    }
    if let Some(state) = seen.state() {
        return Ok(Some(Observed {
            id: id.into(),
            name: block.name.clone(),
            state,
            walltime_left_ms: None,
            restarts: None,
        }));
    }
    // Its files are not everywhere where its commands are, nor for everybody: then this source knows of nothing.
    let no_files = output.stderr.contains("lsb.events")
        && ["Permission denied", "No such file"].iter().any(|w| output.stderr.contains(w));
    if any || no_files || says_only_gone(output) {
        Ok(None)
    } else {
        Err(ProviderError::NotUnderstood(words(output)))
    }
}

/// Lines as they were before they were wrapped.
fn unwrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().take(STATUS_LINES_MAX) {
        match (line.strip_prefix("                     "), lines.last_mut()) {
            (Some(more), Some(last)) if !last.is_empty() => last.push_str(more),
            _ => lines.push(line.into()),
        }
    }
    lines
}

/// Events after which a job is over since its host is, without blanks (OpenLava's `bhist.c`; both are states of EXIT).
const LOST: [&str; 2] = ["Executionhostunavailable;jobiskilled", "sbatchdstartup;killZOMBIEjob"];

/// The small number behind a word.
fn number_after(text: &str, word: &str) -> Option<i32> {
    let digits = text.split_once(word)?.1.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|n| *n < 1_000)
}

/// What the events of one job came to.
#[derive(Default)]
struct Seen {
    submitted: bool,
    started: bool,
    kill_asked: bool,
    over: Option<BlockEnd>,
    code: Option<i32>,
}

impl Seen {
    /// An event, without blanks: `MonNov2302:58:51:Exitedwithexitcode7.TheCPU..`.
    fn event(&mut self, bare: &str) {
        // Its clock is `DayMonDDHH:MM:SS:`, of 16 or 15 characters.
        let Some(text) = bare.splitn(4, ':').nth(3) else { return };
        if text.starts_with("Submittedfrom") || text.starts_with("Pending:") || text.contains("requeued") {
            *self = Seen { submitted: true, ..Seen::default() };
        } else if text.starts_with("Dispatched")
            || text.starts_with("Started")
            || text.starts_with("Starting")
        {
            *self = Seen { submitted: true, started: true, kill_asked: self.kill_asked, ..Seen::default() };
        } else if text.starts_with("Signal<KILL>requested") || text.starts_with("Terminationrequest") {
            self.kill_asked = true;
        } else if text.starts_with("Donesuccessfully") {
            self.over = Some(BlockEnd::Completed);
        } else if let Some(rest) = text.strip_prefix("Exited") {
            self.kill_asked |= rest.starts_with(";jobhasbeenforcedtoexit");
            self.code = number_after(rest, "exitcode").or(number_after(rest, "bysignal").map(|n| 128 + n));
            self.over = Some(self.ended(""));
        } else if LOST.iter().any(|words| text.starts_with(words)) {
            self.over = Some(if self.kill_asked { BlockEnd::Cancelled } else { BlockEnd::NodeFailed });
        } else if let Some((_, reason)) = text.split_once(";TERM_") {
            let word = reason.split(':').next().unwrap_or_default();
            self.over = Some(self.ended(&format!("TERM_{word}")));
        }
    }

    fn ended(&self, reason: &str) -> BlockEnd {
        let asked = reason.is_empty() && (self.kill_asked || (!self.started && self.code.is_none()));
        if asked { BlockEnd::Cancelled } else { end(self.code, reason) }
    }

    fn state(self) -> Option<BlockState> {
        match (self.over, self.started, self.submitted) {
            (Some(end), ..) => Some(BlockState::Ended(end)),
            (None, true, _) => Some(BlockState::Running),
            (None, false, true) => Some(BlockState::Queued(String::new())),
            (None, false, false) => None,
        }
    }
}

/// From bkill. A job that is gone, or is being killed, was cancelled well.
pub(super) fn cancelled(output: &Output) -> Result<(), ProviderError> {
    let both = format!("{}\n{}", output.stdout, output.stderr);
    let well =
        ["is being terminated", "already finished", "No matching job found", "Operation is in progress"];
    if output.exit == Some(0) || well.iter().any(|w| both.contains(w)) {
        return Ok(());
    }
    let said = words(output);
    if both.contains("not responding")
        || both.contains("LSF is down")
        || both.contains("Cannot connect to LSF")
    {
        return Err(ProviderError::Later(said));
    }
    Err(ProviderError::refused(said))
}
