//! Jobs: what a person asked for. A job's tasks share body, resources, environment and policy.

use crate::ids::{ContentHash, FunctionId, JobId, JobKey, OwnerId};
use crate::ranges::Ranges;
use crate::resources::Resources;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// A command, spawned directly, without a shell.
    Command(Command),
    /// A call, or a chunk of calls, of a Python function.
    Python(Python),
}

/// A command. `{index}` and `{item}` are replaced in `argv`, `env`, `cwd`, `stdout`, `stderr`; `{job}`, `{attempt}` as well.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Command {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// Directory in which it runs: the submitter's unless told otherwise.
    pub cwd: Option<String>,
    /// A fresh directory for each attempt, below the endpoint's work folder; its path is in `PF_WORK_DIR` and it is the cwd if `cwd` is None.
    pub work_dir: bool,
    /// File for standard output instead of the manager's log.
    pub stdout: Option<String>,
    /// File for standard error instead of the manager's log.
    pub stderr: Option<String>,
    /// Whether the task's item is fed to standard input rather than put into `{item}`.
    pub item_on_stdin: bool,
}

/// A Python function. The task's item is one opaque blob of arguments that only client and worker read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Python {
    /// The function.
    pub function: FunctionId,
    /// Interpreter to run it with; None: the endpoint's.
    pub python: Option<String>,
    /// The submitter's Python as `major.minor`, to compare before a pickle is read.
    pub client_python: Option<String>,
    /// Whether an item is a chunk of many calls.
    pub chunked: bool,
}

/// How a function's bytes are to be read. The number is part of the function's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FunctionKind {
    /// `module:qualname`, imported by the worker.
    Reference = 1,
    /// A pickle made by cloudpickle.
    Cloudpickle = 2,
    /// JSON `{"name": .., "source": ..}`: the worker executes the source and takes the name.
    Source = 3,
}

/// A registered function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// How `bytes` is to be read.
    pub kind: FunctionKind,
    /// Opaque to everybody but client and worker.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
    /// For people: usually `module.qualname`.
    pub name: String,
}

impl Function {
    /// BLAKE2b-256 over format version (1), kind (one byte each), and the bytes. The name is not part of it.
    #[must_use]
    pub fn id(&self) -> FunctionId {
        let mut hash = Blake2b::<U32>::new();
        hash.update([1u8, self.kind as u8]);
        hash.update(&self.bytes);
        FunctionId(hash.finalize().into())
    }
}

/// BLAKE2b-256 of `bytes`.
#[must_use]
pub fn content_hash(bytes: &[u8]) -> ContentHash {
    ContentHash(Blake2b::<U32>::digest(bytes).into())
}

/// Environment variables of the tasks. Treated as secret: stored once by hash, never shown by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// Variables set for each task, on top of the manager's own.
    pub vars: BTreeMap<String, String>,
    /// Whether the manager's own variables are left out (the submitter's were captured whole).
    pub clear: bool,
}

/// What happens to a task that was possibly running when its manager was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// Run it again, after proof that the old attempt ended or its lease is over.
    #[default]
    Rerun,
    /// It ends as `lost`; what provably did not start is sent again.
    Fail,
    /// Wait for proof however long that takes, then run it again.
    Wait,
}

/// Which failures are tried again, while attempts are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Exit codes other than 0, signals, exceptions.
    pub failure: bool,
    /// Killed for want of memory.
    pub out_of_memory: bool,
    /// The task's own time limit.
    pub time_limit: bool,
}

/// The array of a job: its labels are `first, first + step, ..`, or a set of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArraySpec {
    /// Label of the task at position 0.
    pub first: u32,
    /// Distance between labels; never 0.
    pub step: u32,
    /// If not empty: the labels, in order, in place of `first` and `step` (a retry of what failed).
    pub labels: Ranges,
}

impl Default for ArraySpec {
    fn default() -> Self {
        ArraySpec { first: 0, step: 1, labels: Ranges::new() }
    }
}

impl ArraySpec {
    /// What people see of the task at `position`, and what `{index}` is.
    #[must_use]
    pub fn label(&self, position: u32) -> u64 {
        let mut left = position;
        for &(first, count) in self.labels.pairs() {
            if left < count {
                return u64::from(first) + u64::from(left);
            }
            left -= count;
        }
        u64::from(self.first) + u64::from(self.step) * u64::from(position)
    }

    /// The position that has this label.
    #[must_use]
    pub fn position(&self, label: u64) -> Option<u32> {
        if !self.labels.is_empty() {
            let label = u32::try_from(label).ok().filter(|l| self.labels.contains(*l))?;
            let before = self.labels.pairs().iter().take_while(|p| p.0 <= label);
            return Some(before.map(|p| p.1.min(label - p.0)).sum());
        }
        let above = label.checked_sub(u64::from(self.first))?;
        let step = u64::from(self.step.max(1));
        (above % step == 0).then(|| u32::try_from(above / step).ok()).flatten()
    }
}

/// On which other job this one waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The job to wait for.
    pub job: JobId,
    /// Whether each of its tasks must have succeeded; if one does not, this job is cancelled with that reason.
    pub ok: bool,
}

/// Everything that is said once for a job. `#[serde(default)]` makes each field optional in the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSpec {
    /// For people.
    pub name: Option<String>,
    /// For people and for filters.
    pub labels: BTreeMap<String, String>,
    /// The client group whose outcome stream carries this job.
    pub group: u64,
    /// Names of the endpoints that may run it; empty: the default one. One for now.
    pub endpoints: Vec<String>,
    /// Account to charge, where the scheduler has accounts.
    pub account: Option<String>,
    /// What each task runs.
    pub body: Body,
    /// Environment variables.
    pub env: Environment,
    /// What each task needs.
    pub resources: Resources,
    /// A task that runs longer is killed, with all its processes. Milliseconds.
    pub time_limit_ms: Option<u64>,
    /// A task starts only where at least this much walltime is left. Milliseconds.
    pub time_needed_ms: Option<u64>,
    /// Higher first. 0 if not said.
    pub priority: i32,
    /// How many of its tasks may run at once.
    pub max_running: Option<u32>,
    /// Attempts a task may have, the first counted; lost attempts have a bound of their own.
    pub max_attempts: u32,
    /// Which failures are tried again.
    pub retry: Retry,
    /// What happens to a task whose manager is lost.
    pub on_lost: OnLost,
    /// Signal sent 10 s before the time limit or the end of the block; None: SIGTERM at the end only.
    pub warn_signal: Option<i32>,
    /// Hard brake, in thousandths of node-hours.
    pub max_node_hours_milli: Option<u64>,
    /// Jobs to wait for.
    pub after: Vec<After>,
    /// When this many tasks have failed, the others are cancelled.
    pub max_fails: Option<u32>,
    /// How long outcomes are kept after the end; None: until `forget`. Seconds.
    pub retention_s: Option<u64>,
    /// Whether the job is cancelled when its client is gone.
    pub end_with_client: bool,
    /// Labels of the tasks.
    pub array: ArraySpec,
}

impl Default for JobSpec {
    fn default() -> Self {
        JobSpec {
            name: None,
            labels: BTreeMap::new(),
            group: 0,
            endpoints: Vec::new(),
            account: None,
            body: Body::Command(Command::default()),
            env: Environment::default(),
            resources: Resources::default(),
            time_limit_ms: None,
            time_needed_ms: None,
            priority: 0,
            max_running: None,
            max_attempts: 1,
            retry: Retry::default(),
            on_lost: OnLost::default(),
            warn_signal: None,
            max_node_hours_milli: None,
            after: Vec::new(),
            max_fails: None,
            retention_s: None,
            end_with_client: false,
            array: ArraySpec::default(),
        }
    }
}

/// A job as relays and managers know it: sent once for each session, before its first task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobDef {
    /// The job.
    pub job: JobId,
    /// Its key, for idempotency.
    pub key: JobKey,
    /// Whose it is.
    pub owner: OwnerId,
    /// What was asked for.
    pub spec: JobSpec,
    /// The function of a Python body, with its bytes.
    pub function: Option<Function>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_positions_are_inverse() {
        let array = ArraySpec { first: 1, step: 3, ..ArraySpec::default() };
        assert_eq!(array.label(2), 7);
        assert_eq!(array.position(7), Some(2));
        assert_eq!(array.position(8), None);
        assert_eq!(array.position(0), None);
        let set = ArraySpec { labels: [2, 3, 9].into_iter().collect(), ..ArraySpec::default() };
        assert_eq!([0, 1, 2].map(|p| set.label(p)), [2, 3, 9]);
        assert_eq!([2, 3, 9, 4].map(|l| set.position(l)), [Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn a_function_is_named_by_kind_and_content() {
        let f = Function { kind: FunctionKind::Reference, bytes: b"m:f".to_vec(), name: "f".into() };
        let other = Function { kind: FunctionKind::Source, ..f.clone() };
        assert_ne!(f.id(), other.id());
        // hashlib.blake2b(b"\x01\x01m:f", digest_size=32).hexdigest()
        assert_eq!(f.id().to_string(), "5f36c82691a31878679695fb8f0595b140875bd42c17138af2d3a38a3662915b");
    }
}
