//! The words between [`crate::ManagerCore`] and whoever runs it.

use bytes::Bytes;
use pf_protocol::job::{Environment, JobDef};
use pf_protocol::outcome::{ErrorDetail, OutcomeBatch, OutcomeKind, Usage};
use pf_protocol::{AttemptId, Micros};
use std::sync::Arc;

/// What happens to a manager.
#[derive(Debug, Clone)]
pub enum Input {
    /// The process begins to run. Once, first.
    Start,
    /// Answer to [`Effect::Dial`]: these connections are being tried. Empty: there was nothing to try.
    Dialled {
        /// They are followed by [`Input::Connected`] or [`Input::ConnClosed`].
        conns: Vec<u64>,
    },
    /// A connection to the relay is there.
    Connected {
        /// Connection.
        conn: u64,
    },
    /// A frame came.
    Frame {
        /// Connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// A connection is gone, or could not be made.
    ConnClosed {
        /// Connection.
        conn: u64,
    },
    /// The time of the last [`Effect::SetTimer`] has come.
    Timer,
    /// Everything that came together was handed in: outcomes are flushed now. Timers are never used to batch.
    TurnEnd,
    /// The process stood still for this long: deadlines move.
    ClockGap {
        /// How long, microseconds.
        gap_us: u64,
    },
    /// The process of a command runs. In its lane, those before it have ended.
    CommandStarted {
        /// Which.
        attempt: AttemptId,
    },
    /// A command could not be started; nothing of it ran.
    CommandNotStarted {
        /// Which.
        attempt: AttemptId,
        /// Why, and what to do.
        error: ErrorDetail,
    },
    /// The process of a command ended, with all its processes, and its output is written.
    CommandEnded {
        /// Which.
        attempt: AttemptId,
        /// How.
        end: ProcessEnd,
    },
    /// A Python worker said HELLO.
    WorkerUp {
        /// Which.
        worker: u32,
    },
    /// A Python worker answered.
    WorkerAnswers {
        /// Which.
        worker: u32,
        /// In the order in which its tasks were sent.
        answers: Vec<WorkerAnswer>,
    },
    /// A Python worker is gone, or could not be started. After all its answers.
    WorkerGone {
        /// Which.
        worker: u32,
        /// How.
        end: WorkerEnd,
    },
    /// Answer to [`Effect::TakeBack`], before anything else of this worker.
    TakenBack {
        /// Which.
        worker: u32,
        /// They have not started, and will not.
        attempts: Vec<AttemptId>,
    },
    /// Answer to [`Effect::Spool`].
    Spooled {
        /// The same number.
        upto: u64,
        /// Whether the file is written and synced.
        ok: bool,
    },
    /// Drain and exit: the process was told to end by its host (a signal, its pilot is gone).
    Stop {
        /// Why, for people.
        reason: String,
        /// Running tasks are killed after this long, milliseconds.
        grace_ms: u64,
    },
}

/// What a manager wants done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Read the ticket again and dial all its addresses; answer with [`Input::Dialled`].
    Dial,
    /// Send.
    Frame {
        /// Connection.
        conn: u64,
        /// The frame.
        bytes: Bytes,
    },
    /// Close; no [`Input::ConnClosed`] is needed.
    CloseConn {
        /// Connection.
        conn: u64,
    },
    /// Call with [`Input::Timer`] at this time; replaces the last.
    SetTimer {
        /// When; None: not at all.
        at: Option<Micros>,
    },
    /// Start a command, behind those of the same lane that have not ended; answer with [`Input::CommandStarted`] and later [`Input::CommandEnded`],
    /// or with [`Input::CommandNotStarted`].
    StartCommand(Box<StartCommand>),
    /// Send a signal to the process group of a running command.
    SignalCommand {
        /// Which.
        attempt: AttemptId,
        /// Signal number.
        signal: i32,
    },
    /// Start a Python worker; answer with [`Input::WorkerUp`], or with [`Input::WorkerGone`]. Frames may be sent to it at once.
    StartWorker(Box<StartWorker>),
    /// Tell a worker of a job.
    WorkerJob {
        /// Which.
        worker: u32,
        /// The job's name for this worker.
        slot: u32,
        /// The job.
        job: Arc<JobDef>,
        /// Whether it may leave large values in files and only name them.
        large: bool,
    },
    /// Give a worker tasks.
    WorkerTasks {
        /// Which.
        worker: u32,
        /// The tasks, run in this order.
        tasks: Vec<WorkerTask>,
    },
    /// Take from a worker, or from a lane of commands, what has not started; answer with [`Input::TakenBack`].
    TakeBack {
        /// Which.
        worker: u32,
    },
    /// Send a signal to the process group of a worker.
    SignalWorker {
        /// Which.
        worker: u32,
        /// Signal number.
        signal: i32,
    },
    /// Let an idle worker end.
    EndWorker {
        /// Which.
        worker: u32,
    },
    /// Write these to the spool in the block's folder, and sync; answer with [`Input::Spooled`].
    Spool {
        /// Number of the last batch.
        upto: u64,
        /// The batches.
        batches: Vec<OutcomeBatch>,
    },
    /// Nothing is left to do: flush the sockets and end the process.
    Exit {
        /// Why, for people.
        reason: String,
    },
}

/// A command to start.
#[derive(Debug, Clone)]
pub struct StartCommand {
    /// The attempt.
    pub attempt: AttemptId,
    /// Where it runs: commands of one lane are bound to the same hardware, and run one after another. A number of its own among those of workers.
    pub lane: u32,
    /// The job.
    pub job: Arc<JobDef>,
    /// Position in the job.
    pub index: u32,
    /// The task's item; empty if it has none.
    pub item: Bytes,
    /// Whether `item` only names the payload, which is in a file.
    pub is_large: bool,
    /// Hardware threads to be bound to (OS index); empty: not bound.
    pub pus: Vec<u32>,
    /// GPUs, as positions in [`crate::NodeShape::gpus`].
    pub gpus: Vec<usize>,
}

/// A Python worker to start.
#[derive(Debug, Clone)]
pub struct StartWorker {
    /// Its number, never used again.
    pub worker: u32,
    /// Interpreter; None: the endpoint's.
    pub python: Option<String>,
    /// Its variables.
    pub env: Environment,
    /// Hardware threads to be bound to (OS index); empty: not bound.
    pub pus: Vec<u32>,
    /// GPUs, as positions in [`crate::NodeShape::gpus`].
    pub gpus: Vec<usize>,
}

/// A task for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerTask {
    /// Names it for this worker; counts up.
    pub seq: u64,
    /// The attempt, for the output log.
    pub attempt: AttemptId,
    /// The job's name for this worker.
    pub slot: u32,
    /// Position in the job, for the output log.
    pub index: u32,
    /// Arguments, opaque.
    pub item: Bytes,
    /// Whether `item` only names the payload, which is in a file.
    pub is_large: bool,
}

/// An answer of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerAnswer {
    /// The task.
    pub seq: u64,
    /// How it ended.
    pub kind: OutcomeKind,
    /// How long it ran, microseconds.
    pub ran_us: u32,
    /// Its value.
    pub value: Bytes,
    /// Whether `value` only names the payload, which is in a file.
    pub is_large: bool,
    /// What failed.
    pub error: Option<Box<ErrorDetail>>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessStatus {
    /// Exit code.
    Exit(i32),
    /// Signal number.
    Signal(i32),
}

/// Why a process was killed for want of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutOfMemory {
    /// By the kernel: the node or the job had no more.
    Kernel,
    /// By the manager: it had more than its task asked for.
    Limit {
        /// What it had when it was last looked at, bytes.
        used_bytes: u64,
        /// What it may have, bytes.
        limit_bytes: u64,
    },
}

/// The end of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEnd {
    /// How.
    pub status: ProcessStatus,
    /// How long it ran, microseconds.
    pub ran_us: Micros,
    /// What it used.
    pub usage: Usage,
    /// Whether it was killed for want of memory, and how.
    pub out_of_memory: Option<OutOfMemory>,
    /// The last of its standard error; empty if it wrote none.
    pub stderr_tail: String,
}

/// The end of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEnd {
    /// It could not be started at all.
    NotStarted(ErrorDetail),
    /// It ended.
    Ended {
        /// How.
        end: ProcessEnd,
        /// The last task that had ended, as the markers in its output tell; 0: none.
        marked: u64,
    },
}
