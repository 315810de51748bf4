//! What `run` and `submit` take, and how jobs and tasks are written.

use crate::array::Array;
use clap::{Args, ValueEnum};
use pf_protocol::JobId;
use pf_protocol::ids::ParseIdError;
use std::path::PathBuf;
use std::str::FromStr;

/// A job as written: `j12` or `12`.
pub type JobRef = JobId;

/// A job, or one of its tasks by label: `j12`, `j12.7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskRef {
    /// The job.
    pub job: JobId,
    /// The task's label.
    pub label: Option<u64>,
}

/// Why a text names no task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskRefError {
    /// The job is none.
    #[error(transparent)]
    Job(#[from] ParseIdError),
    /// What follows the dot is no label.
    #[error("{0:?} is not a task, which is written like j123.45")]
    Label(String),
}

impl FromStr for TaskRef {
    type Err = TaskRefError;
    fn from_str(text: &str) -> Result<Self, TaskRefError> {
        let Some((job, label)) = text.split_once('.') else {
            return Ok(TaskRef { job: text.parse()?, label: None });
        };
        let digits = Some(label).filter(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_digit()));
        let label = digits.and_then(|l| l.parse().ok()).ok_or_else(|| TaskRefError::Label(text.into()))?;
        Ok(TaskRef { job: job.parse()?, label: Some(label) })
    }
}

/// `--after JOB[:any]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterArg {
    /// The job to wait for.
    pub job: JobId,
    /// However it ended.
    pub any: bool,
}

impl FromStr for AfterArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (job, any) = match text.split_once(':') {
            Some((job, "any")) => (job, true),
            Some((job, "ok")) => (job, false),
            Some((_, other)) => return Err(format!("{other:?} is neither ok nor any")),
            None => (text, false),
        };
        Ok(AfterArg { job: job.parse().map_err(|e: ParseIdError| e.to_string())?, any })
    }
}

/// `K=V`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Before the first `=`.
    pub key: String,
    /// After it; None if there was none.
    pub value: Option<String>,
}

/// A label: needs a value.
pub fn label(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok(Pair { key: key.into(), value: Some(value.into()) }),
        _ => Err("a label is written KEY=VALUE".into()),
    }
}

/// An environment variable: `K=V`, or `K` for the value that it has here.
pub fn variable(text: &str) -> Result<Pair, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() || key.contains('\0') || value.as_ref().is_some_and(|v| v.contains('\0')) {
        return Err("a variable is written KEY=VALUE, or KEY for the value that it has here".into());
    }
    Ok(Pair { key: key.into(), value })
}

/// Causes that `--retry-on` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RetryOn {
    /// Exit codes other than 0, signals, exceptions
    Failure,
    /// Killed for want of memory
    Oom,
    /// The task's own time limit
    TimeLimit,
}

/// What `--on-lost` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnLostArg {
    /// Run it again, after proof that the lost attempt ended or its lease is over
    Rerun,
    /// It ends as lost
    Fail,
    /// Wait for proof however long that takes, then run it again
    Wait,
}

/// What to run, how often, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub struct WorkArgs {
    /// One task for each label: 1-1000, 1-1000:3 (every third), 1,5,9-12; %50 for 50 at once
    #[arg(long, short, value_name = "LIST", conflicts_with = "each_line")]
    pub array: Option<Array>,
    /// One task for each line of FILE (- for standard input); the line is {item}
    #[arg(long, value_name = "FILE")]
    pub each_line: Option<PathBuf>,
    /// Feed the item to the task's standard input instead of {item}
    #[arg(long, requires = "each_line")]
    pub stdin_item: bool,
    /// How many tasks may run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_running: Option<u32>,
    /// Cancel the rest when this many tasks have failed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_fails: Option<u32>,
    /// Try a task that failed up to N times more
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub retries: u32,
    /// What is tried again, with --retries
    #[arg(
        long,
        value_name = "CAUSE",
        value_delimiter = ',',
        default_value = "failure",
        requires = "retries"
    )]
    pub retry_on: Vec<RetryOn>,
    /// What happens to a task whose node is lost while it may run
    #[arg(long, value_name = "WHAT", default_value = "rerun")]
    pub on_lost: OnLostArg,

    /// Cores of each task, bound for it alone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Resources")]
    pub cores: u32,
    /// Nodes of each task. Hidden while the broker refuses more than one, in words that say so; a wrong guess of clap's would not.
    #[arg(long, hide = true, value_name = "N", default_value_t = 1)]
    pub nodes: u32,
    /// Ranks on each node. Hidden likewise.
    #[arg(long, hide = true, value_name = "N", default_value_t = 0)]
    pub ranks_per_node: u32,
    /// GPUs of each task; 0.25 for a quarter of one
    #[arg(long, value_name = "N", value_parser = crate::units::gpus_milli, help_heading = "Resources")]
    pub gpus: Option<u32>,
    /// Memory of each task: 512M, 4G
    #[arg(long, value_name = "SIZE", value_parser = crate::units::memory_bytes, help_heading = "Resources")]
    pub mem: Option<u64>,
    /// Kill a task that runs longer
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration_ms, help_heading = "Resources")]
    pub time_limit: Option<u64>,
    /// Send this signal 10 s before the time limit or the end of the block: USR1, 10
    #[arg(long, value_name = "SIGNAL", value_parser = crate::units::signal, help_heading = "Resources")]
    pub warn_signal: Option<i32>,
    /// Start a task only where so much walltime is left
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration_ms, help_heading = "Resources")]
    pub time_needed: Option<u64>,

    /// Name of the job
    #[arg(long, short, help_heading = "Job")]
    pub name: Option<String>,
    /// Label of the job, to find it again
    #[arg(long, short, value_name = "K=V", value_parser = label, help_heading = "Job")]
    pub label: Vec<Pair>,
    /// Start when JOB is over, if all its tasks succeeded; JOB:any for however it ended
    #[arg(long, value_name = "JOB[:any]", help_heading = "Job")]
    pub after: Vec<AfterArg>,
    /// Higher goes first
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true, help_heading = "Job")]
    pub priority: i32,
    /// Forget the job and its outcomes this long after its end; else `pf job forget` does
    #[arg(long, value_name = "TIME", value_parser = crate::units::duration_ms, help_heading = "Job")]
    pub keep_for: Option<u64>,
    /// Where it runs
    #[arg(long, short, value_name = "NAME", help_heading = "Job")]
    pub endpoint: Option<String>,
    /// Account to charge, where the scheduler has accounts
    #[arg(long, value_name = "NAME", help_heading = "Job")]
    pub account: Option<String>,
    /// Node-hours that the job may use; at the limit its tasks end
    #[arg(long, value_name = "N", value_parser = crate::units::node_hours_milli, help_heading = "Job")]
    pub max_node_hours: Option<u64>,

    /// Environment variable of the tasks; K alone takes the value that it has here
    #[arg(long, value_name = "K=V", value_parser = variable, help_heading = "Process")]
    pub env: Vec<Pair>,
    /// Give the tasks all environment variables that are set here
    #[arg(long, help_heading = "Process")]
    pub env_all: bool,
    /// Directory to run in, in place of this one
    #[arg(long, value_name = "DIR", help_heading = "Process")]
    pub cwd: Option<String>,
    /// Run each attempt in a fresh directory of its own, named in PF_WORK_DIR
    #[arg(long, conflicts_with = "cwd", help_heading = "Process")]
    pub work_dir: bool,
    /// File for standard output: out/{index}.txt
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub stdout: Option<String>,
    /// File for standard error
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub stderr: Option<String>,

    /// Program and arguments; {index}, {item}, {job}, {attempt} are replaced. No shell: write sh -c '..' for one
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_as_people_write_them() {
        assert_eq!("j12.7".parse(), Ok(TaskRef { job: JobId(12), label: Some(7) }));
        assert_eq!("12".parse(), Ok(TaskRef { job: JobId(12), label: None }));
        for bad in ["", "j", ".7", "j12.", "j1.j2", "j1.2.3", "x"] {
            assert!(bad.parse::<TaskRef>().is_err(), "{bad}");
        }
        assert_eq!("j3:any".parse(), Ok(AfterArg { job: JobId(3), any: true }));
        assert!("j3:some".parse::<AfterArg>().is_err());
    }
}
