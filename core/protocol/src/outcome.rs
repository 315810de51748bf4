//! Outcomes: how tasks and attempts end.

use crate::ids::{AttemptId, JobId, ManagerId, TaskId};
use crate::payload;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a task ended. Closed, with one door for what is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum OutcomeKind {
    /// It returned, or exited with 0.
    #[default]
    Value = 0,
    /// A Python exception.
    Exception = 1,
    /// Another exit code than 0.
    Exit = 2,
    /// Ended by a signal.
    Signal = 3,
    /// Killed at its own time limit.
    TimeLimit = 4,
    /// Killed for want of memory.
    OutOfMemory = 5,
    /// Its worker process ended under it.
    WorkerLost = 6,
    /// Its node or manager was lost.
    NodeLost = 7,
    /// Lost, and the job says not to run it again.
    Lost = 8,
    /// Cancelled.
    Cancelled = 9,
    /// It could not be started: command not found, directory missing, Python missing, a pickle of another version.
    Refused = 10,
    /// Its result is over the limit.
    TooLarge = 11,
    /// Something else; the message says what.
    Other = 12,
}

impl OutcomeKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [OutcomeKind; 13] = [
        OutcomeKind::Value,
        OutcomeKind::Exception,
        OutcomeKind::Exit,
        OutcomeKind::Signal,
        OutcomeKind::TimeLimit,
        OutcomeKind::OutOfMemory,
        OutcomeKind::WorkerLost,
        OutcomeKind::NodeLost,
        OutcomeKind::Lost,
        OutcomeKind::Cancelled,
        OutcomeKind::Refused,
        OutcomeKind::TooLarge,
        OutcomeKind::Other,
    ];

    /// Whether it is success.
    #[must_use]
    pub fn is_ok(self) -> bool {
        self == OutcomeKind::Value
    }

    /// The word for people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            OutcomeKind::Value => "value",
            OutcomeKind::Exception => "exception",
            OutcomeKind::Exit => "exit",
            OutcomeKind::Signal => "signal",
            OutcomeKind::TimeLimit => "time_limit",
            OutcomeKind::OutOfMemory => "out_of_memory",
            OutcomeKind::WorkerLost => "worker_lost",
            OutcomeKind::NodeLost => "node_lost",
            OutcomeKind::Lost => "lost",
            OutcomeKind::Cancelled => "cancelled",
            OutcomeKind::Refused => "refused",
            OutcomeKind::TooLarge => "too_large",
            OutcomeKind::Other => "other",
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the task possibly ran in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Ran {
    /// It ran.
    #[default]
    Yes = 0,
    /// It provably did not start.
    No = 1,
    /// Nobody can tell.
    Unknown = 2,
}

impl Ran {
    /// All, in the order of their numbers.
    pub const ALL: [Ran; 3] = [Ran::Yes, Ran::No, Ran::Unknown];

    /// The word for people and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Ran::Yes => "yes",
            Ran::No => "no",
            Ran::Unknown => "unknown",
        }
    }
}

/// Numbers in binary encodings, words where people read.
macro_rules! number_or_word {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.serialize_str(self.name()) } else { s.serialize_u8(*self as u8) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let found = if d.is_human_readable() {
                    let word = String::deserialize(d)?;
                    $name::ALL.into_iter().find(|known| known.name() == word)
                } else {
                    let number = u8::deserialize(d)?;
                    $name::ALL.get(usize::from(number)).copied()
                };
                found.ok_or_else(|| serde::de::Error::custom(concat!("unknown ", stringify!($name))))
            }
        }
    };
}
number_or_word!(OutcomeKind);
number_or_word!(Ran);

/// What a failure says. Absent for success.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorDetail {
    /// What failed and why, one line or a few.
    pub message: String,
    /// Exit code.
    pub exit: Option<i32>,
    /// Signal number.
    pub signal: Option<i32>,
    /// The remote traceback.
    pub traceback: Option<String>,
    /// The last lines of standard error.
    pub stderr_tail: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
}

/// What a process used, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub system_us: u64,
    /// Largest resident size, KiB.
    pub max_rss_kib: u64,
}

/// The end of one attempt. A small header; its value lies in the batch's blob.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The job.
    pub job: JobId,
    /// The position in the job.
    pub index: u32,
    /// The attempt.
    pub attempt: AttemptId,
    /// How it ended.
    pub kind: OutcomeKind,
    /// Whether it possibly ran.
    pub ran: Ran,
    /// From arrival at the manager to start, microseconds, on the manager's clock.
    pub held_us: u64,
    /// From start to end, microseconds, on the manager's clock.
    pub ran_us: u64,
    /// Length of its value in the batch's blob, or with [`LARGE`](crate::payload::LARGE) of what names it there. A Python `None` and a command's
    /// success have an empty value.
    pub value_len: u32,
    /// What failed; None for success. Boxed since nearly all outcomes have none.
    pub error: Option<Box<ErrorDetail>>,
    /// What its process used; None for tasks of warm workers.
    pub usage: Option<Usage>,
}

impl Outcome {
    /// What it takes of a batch or of memory: its value, its texts, and what it costs beside them.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        const OUTCOME_BYTES: usize = 96;
        let texts = self.error.as_ref().map_or(0, |e| {
            let long = [&e.traceback, &e.stderr_tail, &e.hint].into_iter().flatten().map(String::len);
            e.message.len() + long.sum::<usize>()
        });
        OUTCOME_BYTES + payload::held(self.value_len) + texts
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> TaskId {
        TaskId { job: self.job, index: self.index }
    }
}

/// Outcomes of one manager, as it numbered them. Broker and relay pass them on as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OutcomeBatch {
    /// Which manager.
    pub manager: ManagerId,
    /// Its node's name, for people.
    pub node: String,
    /// The manager's number of this batch, counted from 1 within its incarnation. 0: made by the relay itself (a lost manager, a cancelled task).
    pub seq: u64,
    /// The outcomes.
    pub outcomes: Vec<Outcome>,
    /// The values, one after another, in the order of `outcomes`.
    pub blob: Bytes,
}

impl OutcomeBatch {
    /// Each outcome with its value; None when lengths and blob do not agree (a malformed batch).
    #[must_use]
    pub fn with_values(&self) -> Option<Vec<(&Outcome, Bytes)>> {
        let mut at = 0usize;
        let mut out = Vec::with_capacity(self.outcomes.len());
        for outcome in &self.outcomes {
            let end = at.checked_add(payload::held(outcome.value_len))?;
            if end > self.blob.len() {
                return None;
            }
            out.push((outcome, self.blob.slice(at..end)));
            at = end;
        }
        (at == self.blob.len()).then_some(out)
    }
}
