//! The messages of links. Hot ones are encoded as arrays, their layout fixed by the negotiated version; cold ones as named maps.
//!
//! Directions: broker ↔ relay, relay ↔ manager, relay ↔ pilot. Clients speak HTTP ([`crate::api`]), not this.

use crate::ids::{AttemptId, BlockId, ContentHash, Epoch, JobId, ManagerId, TaskId};
use crate::job::JobDef;
use crate::outcome::OutcomeBatch;
use crate::ranges::Ranges;
use crate::report::{EndpointReport, ManagerReport};
pub use crate::session::{Bye, Heartbeat, Hello, Refuse, Welcome, Who};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Lowest protocol version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Highest protocol version that this build speaks.
pub const VERSION_MAX: u16 = 2;
/// From this version on a batch may name large payloads in place of their bytes ([`crate::payload`]), and [`Want`] and [`Piece`] are known.
pub const VERSION_LARGE: u16 = 2;

/// Jobs, before their first task in this session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Define {
    /// Their definitions.
    pub jobs: Vec<JobDef>,
}

/// A run of tasks of one job, with their items.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskBatch {
    /// The job.
    pub job: JobId,
    /// Positions, in the order of `lens`.
    pub tasks: Ranges,
    /// How often each of them lost its manager under it before (suspects travel in batches of their own).
    pub lost: u32,
    /// Length of each item, with [`LARGE`](crate::payload::LARGE) where it is only named; empty when the job's tasks have none.
    pub lens: Vec<u32>,
    /// The items, one after another.
    pub blob: Bytes,
}

/// Broker → relay: run these. Within the relay's credit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// The tasks.
    pub batches: Vec<TaskBatch>,
}

/// Relay → broker: how much may be assigned in this session, counted from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Credit {
    /// Up to this many tasks in all.
    pub tasks_upto: u64,
    /// Up to this many item bytes in all.
    pub bytes_upto: u64,
}

/// Outcomes; manager → relay and relay → broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// Number of this message, counted from 1 in this session.
    pub number: u64,
    /// The batches, as their managers made them.
    pub batches: Vec<OutcomeBatch>,
}

/// The other way: every [`Outcomes`] of this session up to `upto` is on the broker's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confirm {
    /// Number of the last message.
    pub upto: u64,
}

/// Broker → relay: these must not run. The relay answers with an outcome `cancelled` for each, unless another outcome is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The job.
    pub job: JobId,
    /// Positions.
    pub tasks: Ranges,
    /// Whether what runs is killed; else only what has not started is cancelled.
    pub kill: bool,
}

/// No task of these jobs will come any more; their definitions may be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The jobs.
    pub jobs: Vec<JobId>,
}

/// Broker → relay, after WELCOME, in pages: what the broker has handed to this endpoint and has no outcome of.
/// What the relay holds beyond this is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unfinished {
    /// Positions by job.
    pub jobs: Vec<UnfinishedJob>,
    /// Whether this is the last page.
    pub last: bool,
}

/// One job of [`Unfinished`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnfinishedJob {
    /// The job.
    pub job: JobId,
    /// Positions without an outcome that may be at the endpoint.
    pub tasks: Ranges,
    /// Those of them that are to be cancelled.
    pub cancel: Ranges,
    /// Whether the cancelled ones are killed if they run.
    pub kill: bool,
}

/// What is known of tasks that were handed to an endpoint and that its relay does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// Every manager that may have had some has told what it has: none of them has started.
    NotStarted,
    /// Some may have run on a node or in a block that is over, and are over with it.
    Over,
    /// Some may have started where nobody answers, and nothing proves that they are over.
    #[default]
    Unknown,
}

/// Relay → broker, in pages, once its recovery barrier is passed: what it holds or has running. What the broker does with the rest depends on
/// `rest` and on each job's `on_lost`. Sent again later when more is known of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holding {
    /// Positions by job.
    pub jobs: Vec<(JobId, Ranges)>,
    /// Whether this is the last page.
    pub last: bool,
    /// What is known of the others; that of the last page counts.
    #[serde(default)]
    pub rest: Rest,
}

/// Relay → broker: these have not started and come back (the relay drains).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Return {
    /// Positions by job.
    pub jobs: Vec<(JobId, Ranges)>,
}

/// A task that has run for a while. Manager → relay → broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedTask {
    /// The task.
    pub task: TaskId,
    /// The attempt.
    pub attempt: AttemptId,
    /// How long it has run, microseconds.
    pub ran_us: u64,
}

/// Tasks that have run longer than [`crate::limits::STARTED_AFTER_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The manager on which they run.
    pub manager: ManagerId,
    /// Its node.
    pub node: String,
    /// The tasks.
    pub tasks: Vec<StartedTask>,
}

/// Relay → broker, now and then: the endpoint for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The snapshot.
    pub report: EndpointReport,
}

/// Broker → relay: a question or an order of a person. Answered by [`Answer`] with the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Names the question in this session.
    pub id: u64,
    /// What is asked.
    pub what: AskWhat,
}

/// What a person may want of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AskWhat {
    /// Output of a task.
    ReadLog {
        /// The task.
        task: TaskId,
        /// Where to go on: 0 first, then [`AnswerWhat::Log`]'s `next`.
        from: u64,
    },
    /// The log of a block's pilot: what it tried, and how it ended.
    ReadBlockLog {
        /// The block.
        block: BlockId,
    },
    /// Why the tasks of a job are where they are.
    ExplainJob {
        /// The job.
        job: JobId,
    },
    /// Ask for no new blocks until resumed.
    Pause,
    /// Ask for blocks again, and forget failures.
    Resume,
    /// End one block.
    CancelBlock {
        /// The block.
        block: BlockId,
    },
    /// Give back what has not started, cancel all blocks, end. With `kill`, running tasks are not waited for.
    Stop {
        /// Do not wait for running tasks.
        kill: bool,
    },
}

/// Relay → broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's id.
    pub id: u64,
    /// The answer.
    pub what: AnswerWhat,
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerWhat {
    /// Done.
    Done,
    /// Lines for people.
    Text(Vec<String>),
    /// A piece of a task's output.
    Log {
        /// Pieces in order: 1 is stdout, 2 is stderr.
        pieces: Vec<(u8, Bytes)>,
        /// Where to go on.
        next: u64,
        /// Whether nothing more will come.
        end: bool,
    },
    /// Not possible, and why.
    Failed(String),
}

/// Relay → manager: a run of attempts of one job. Attempt numbers count up from `first` in the order of `tasks`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AttemptBatch {
    /// The job.
    pub job: JobId,
    /// Attempt of the first task.
    pub first: AttemptId,
    /// Positions.
    pub tasks: Ranges,
    /// Length of each item, with [`LARGE`](crate::payload::LARGE) where it is only named; empty when the job's tasks have none.
    pub lens: Vec<u32>,
    /// The items.
    pub blob: Bytes,
}

/// Relay → manager: run these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch {
    /// The relay's epoch; a lower one than was seen is refused.
    pub epoch: Epoch,
    /// The attempts.
    pub batches: Vec<AttemptBatch>,
}

/// Relay → manager: give back what has not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Names the request.
    pub id: u64,
    /// The relay's epoch.
    pub epoch: Epoch,
    /// Which; None: all.
    pub attempts: Option<Vec<AttemptId>>,
}

/// Manager → relay: these did not start and never will here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    /// The request's id.
    pub id: u64,
    /// The attempts that are given back.
    pub attempts: Vec<AttemptId>,
}

/// Manager → relay: these cannot be mapped here. No attempt was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The attempts.
    pub attempts: Vec<AttemptId>,
    /// Why.
    pub reason: String,
}

/// Relay → manager: cancel these. Each ends in an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelAttempts {
    /// The relay's epoch.
    pub epoch: Epoch,
    /// The attempts.
    pub attempts: Vec<AttemptId>,
    /// Whether what runs is killed.
    pub kill: bool,
}

/// Manager → relay, after WELCOME, in pages: all it has. Outcomes not confirmed yet follow as [`Outcomes`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// Held, not started.
    pub held: Vec<(TaskId, AttemptId)>,
    /// Running.
    pub running: Vec<(TaskId, AttemptId)>,
    /// Ended, outcome not confirmed.
    pub ended: Vec<(TaskId, AttemptId)>,
    /// Whether this is the last page.
    pub last: bool,
}

/// Relay → manager: the verdict on the inventory; what is not named is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Attempts to drop: killed if running, outcome thrown away.
    pub drop: Vec<AttemptId>,
}

/// Relay → manager or pilot: start nothing new, give back what has not started, end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The relay's epoch.
    pub epoch: Epoch,
    /// Why, for people.
    pub reason: String,
    /// Running tasks are killed after this long, milliseconds.
    pub grace_ms: u64,
}

/// Manager → relay, now and then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The snapshot.
    pub load: ManagerReport,
}

/// Pilot → relay: what became of the block's managers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PilotReport {
    /// Walltime left, milliseconds.
    pub walltime_left_ms: u64,
    /// Managers that ended: node and how ("exit 1", "signal 9").
    pub ended: Vec<(u16, String)>,
}

/// Send me a piece of a large payload. Relay → broker for an item of a task, broker → relay for the value of one. Answered by [`Piece`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The job whose payload it is.
    pub job: JobId,
    /// Its hash.
    pub hash: ContentHash,
    /// Where the piece begins, bytes; a multiple of [`crate::limits::PIECE_BYTES`].
    pub offset: u64,
}

/// A piece of a large payload, as it was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The job whose payload it is.
    pub job: JobId,
    /// Its hash.
    pub hash: ContentHash,
    /// Where the piece begins, bytes.
    pub offset: u64,
    /// The bytes: [`crate::limits::PIECE_BYTES`] of them, fewer at the end.
    pub bytes: Bytes,
    /// Why there are none, for people; empty if there are some.
    pub fault: String,
}

macro_rules! messages {
    ($($(#[$meta:meta])* $number:literal $name:ident $form:ident,)*) => {
        /// Any message of a link.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Message {
            $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)*
        }

        impl Message {
            /// The number of its kind on the wire.
            #[must_use]
            pub fn kind(&self) -> u8 {
                match self { $(Message::$name(_) => $number,)* }
            }

            /// The name of its kind, for people.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Message::$name(_) => stringify!($name),)* }
            }

            pub(crate) fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), rmp_serde::encode::Error> {
                match self { $(Message::$name(body) => messages!(@encode $form body out),)* }
            }

            pub(crate) fn decode_body(kind: u8, body: &[u8]) -> Option<Result<Message, rmp_serde::decode::Error>> {
                Some(match kind {
                    $($number => rmp_serde::from_slice::<$name>(body).map(Message::$name),)*
                    _ => return None,
                })
            }
        }

        $(impl From<$name> for Message {
            fn from(body: $name) -> Message { Message::$name(body) }
        })*
    };
    (@encode hot $body:ident $out:ident) => { rmp_serde::encode::write($out, $body) };
    (@encode cold $body:ident $out:ident) => { rmp_serde::encode::write_named($out, $body) };
}

messages! {
    1 Hello cold,
    2 Welcome cold,
    3 Refuse cold,
    4 Heartbeat hot,
    5 Bye cold,
    10 Define cold,
    11 Assign hot,
    12 Credit hot,
    13 Outcomes hot,
    14 Confirm hot,
    15 Cancel cold,
    16 Release cold,
    17 Unfinished cold,
    18 Holding cold,
    19 Return cold,
    20 Started hot,
    21 Report cold,
    22 Ask cold,
    23 Answer cold,
    30 Dispatch hot,
    31 Recall cold,
    32 Recalled cold,
    33 Refused cold,
    34 CancelAttempts cold,
    35 Inventory cold,
    36 Verdict cold,
    37 Drain cold,
    38 Load cold,
    39 PilotReport cold,
    40 Want hot,
    41 Piece hot,
}
