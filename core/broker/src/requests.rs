//! What clients may ask, and what they are answered. Made by the HTTP handlers from JSON and columns, already parsed; checked in [`crate::validate`].

use bytes::Bytes;
use pf_protocol::api::{
    AppendReply, CancelReply, CancelRequest, EndpointRow, ErrorBody, FunctionRow, JobState, JobSummary,
    SubmitReply, TaskRow,
};
use pf_protocol::job::{Function, JobSpec};
use pf_protocol::message::{AnswerWhat, AskWhat};
use pf_protocol::payload::PayloadRef;
use pf_protocol::{BlobRef, BlockId, ContentHash, FunctionId, JobId, JobKey, Micros, OwnerId};
use serde::{Deserialize, Serialize};

/// Who asks, as the shell has proven it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Whose objects these are.
    pub owner: OwnerId,
    /// Whether it is the user who runs the broker.
    pub is_broker_owner: bool,
}

/// Tasks of a submit or an append.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tasks {
    /// How many.
    pub count: u32,
    /// Length of each item, marked where it is only named; empty when no task has one.
    pub lens: Vec<u32>,
    /// The items, one after another.
    pub blob: Bytes,
}

/// What may be asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A new job → [`Reply::Submitted`].
    Submit {
        /// The client's key.
        key: JobKey,
        /// Hash of the whole request, so that a repetition is told from a conflict. Made by the shell, off the core's thread.
        hash: ContentHash,
        /// What to run.
        spec: Box<JobSpec>,
        /// Its first tasks.
        tasks: Tasks,
        /// Whether more may be appended.
        open: bool,
    },
    /// More tasks → [`Reply::Appended`].
    Append {
        /// The job.
        job: JobId,
        /// Position of the first of them.
        first: u32,
        /// The tasks.
        tasks: Tasks,
    },
    /// The next piece of a payload that is too large for a batch → [`Reply::PieceTaken`]. With its last piece it may be named by tasks.
    PutPiece {
        /// The job that will name it.
        job: JobId,
        /// The payload.
        payload: PayloadRef,
        /// Where the piece begins; 0 begins anew.
        offset: u64,
        /// [`pf_protocol::limits::PIECE_BYTES`] of it, fewer at the end.
        bytes: Bytes,
    },
    /// Where a large payload of a job lies → [`Reply::Payload`].
    Payload {
        /// The job.
        job: JobId,
        /// Its hash.
        hash: ContentHash,
    },
    /// No more tasks → [`Reply::Appended`].
    Close {
        /// The job.
        job: JobId,
    },
    /// → [`Reply::Cancelled`].
    Cancel {
        /// The job.
        job: JobId,
        /// How.
        how: CancelRequest,
    },
    /// A new job of the tasks that did not succeed, with their items and labels → [`Reply::Submitted`].
    Retry {
        /// The ended job.
        job: JobId,
        /// Key of the new job.
        key: JobKey,
    },
    /// Drop an ended job → [`Reply::Done`].
    Forget {
        /// The job.
        job: JobId,
    },
    /// The client of a group is gone: jobs that end with their client are cancelled → [`Reply::Done`].
    ClientGone {
        /// The group.
        group: u64,
    },
    /// → [`Reply::Job`], at once or when the job is over.
    Job {
        /// The job.
        job: JobId,
        /// If given: answer when the job is over, at the latest at this time.
        wait_until: Option<Micros>,
    },
    /// → [`Reply::Jobs`], newest first.
    Jobs(JobsFilter),
    /// → [`Reply::Tasks`].
    Tasks {
        /// The job.
        job: JobId,
        /// Only tasks in this state (a word of [`TaskRow::state`], or `failed`, `ended`).
        state: Option<String>,
        /// From this position.
        from: u32,
        /// At most so many.
        limit: u32,
    },
    /// One task, by its label → [`Reply::Tasks`] of one.
    Task {
        /// The job.
        job: JobId,
        /// The label.
        label: u64,
    },
    /// Why tasks are where they are → [`Reply::Lines`].
    Explain {
        /// The job.
        job: JobId,
    },
    /// Output of a task, by its label → [`Reply::Answer`].
    Log {
        /// The job.
        job: JobId,
        /// The label.
        label: u64,
        /// Where to go on.
        from: u64,
    },
    /// → [`Reply::Subscribed`]; then one [`crate::Effect::Stream`] for each [`crate::Input::Pull`].
    Subscribe {
        /// Chosen by the shell, unique while it is open.
        subscription: u64,
        /// Which outcomes.
        of: StreamOf,
        /// Only outcomes after this one (0: all).
        after: u64,
        /// Whether to wait for more at the end.
        follow: bool,
    },
    /// → [`Reply::Function`] row.
    PutFunction {
        /// The id that the client computed; must be right.
        id: FunctionId,
        /// The function.
        function: Function,
    },
    /// → [`Reply::Functions`].
    Functions,
    /// One with its bytes → [`Reply::FunctionBytes`].
    Function {
        /// Its id.
        id: FunctionId,
    },
    /// Make an endpoint known, or change the key of its relay → [`Reply::Endpoint`].
    PutEndpoint {
        /// Its name.
        name: String,
        /// Public key of the relay that may serve it; None: only the broker's own process.
        relay_key: Option<[u8; 32]>,
    },
    /// → [`Reply::Done`]; only without unfinished tasks.
    RemoveEndpoint {
        /// Its name.
        name: String,
    },
    /// → [`Reply::Endpoints`].
    Endpoints,
    /// → [`Reply::Endpoint`].
    Endpoint {
        /// Its name.
        name: String,
    },
    /// Something of an endpoint's relay → [`Reply::Answer`].
    Verb {
        /// The endpoint.
        name: String,
        /// What.
        verb: Verb,
    },
    /// The shell made a token; keep its hash → [`Reply::Done`].
    AddToken {
        /// Name, for people.
        name: String,
        /// Hash of the token.
        hash: ContentHash,
    },
    /// → [`Reply::Done`].
    RevokeToken {
        /// Its name.
        name: String,
    },
    /// → [`Reply::Tokens`].
    Tokens,
    /// → [`Reply::Totals`].
    Totals,
}

/// What the owner of an endpoint may want of its relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Ask for no new blocks.
    Pause,
    /// Ask for blocks again.
    Resume,
    /// End the relay.
    Stop {
        /// Do not wait for running tasks.
        kill: bool,
    },
    /// End a block.
    CancelBlock(BlockId),
    /// A block's log.
    BlockLog(BlockId),
}

impl From<Verb> for AskWhat {
    fn from(verb: Verb) -> AskWhat {
        match verb {
            Verb::Pause => AskWhat::Pause,
            Verb::Resume => AskWhat::Resume,
            Verb::Stop { kill } => AskWhat::Stop { kill },
            Verb::CancelBlock(block) => AskWhat::CancelBlock { block },
            Verb::BlockLog(block) => AskWhat::ReadBlockLog { block },
        }
    }
}

/// Which jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobsFilter {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only with this name.
    pub name: Option<String>,
    /// Only with all of these labels and values.
    pub labels: Vec<(String, String)>,
    /// At most so many; 0: the limit.
    pub limit: u32,
}

/// Which outcomes a subscriber wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StreamOf {
    /// Of all jobs of a client group of the caller.
    Group(u64),
    /// Of one job.
    Job(JobId),
}

/// Answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// A job is accepted.
    Submitted(SubmitReply),
    /// Tasks are appended, or the job is closed.
    Appended(AppendReply),
    /// A piece is taken; whether the payload is whole.
    PieceTaken {
        /// The next piece begins there; the payload's length if it is whole.
        upto: u64,
    },
    /// A large payload: its length, and its pieces one after another.
    Payload {
        /// Bytes.
        len: u64,
        /// Where they lie.
        blobs: Vec<BlobRef>,
    },
    /// See the fields.
    Cancelled(CancelReply),
    /// One job with everything.
    Job(Box<JobSummary>),
    /// Jobs.
    Jobs(Vec<JobSummary>),
    /// Tasks; the shell completes the rows with [`TaskView::complete`].
    Tasks(Vec<TaskView>),
    /// Lines for people.
    Lines(Vec<String>),
    /// What the relay answered.
    Answer(AnswerWhat),
    /// The stream is open; pull.
    Subscribed {
        /// As asked.
        subscription: u64,
        /// Outcomes recorded so far in all: the cursor of "now".
        seq: u64,
    },
    /// A registered function.
    Function(FunctionRow),
    /// The caller's functions.
    Functions(Vec<FunctionRow>),
    /// One with its bytes.
    FunctionBytes(Function),
    /// An endpoint.
    Endpoint(Box<EndpointRow>),
    /// Endpoints.
    Endpoints(Vec<EndpointRow>),
    /// Tokens.
    Tokens(Vec<TokenRow>),
    /// For `GET /v1/status`.
    Totals {
        /// Jobs that are not over.
        active_jobs: u64,
        /// Tasks that have not ended.
        unfinished_tasks: u64,
        /// Why new work is refused.
        refusing: Option<String>,
    },
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// When it was made, Unix milliseconds.
    pub made_ms: u64,
}

/// A task as the core knows it; what only its payload knows is added from there by whoever reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    /// The row; `exit`, `signal`, `message`, `traceback`, `stderr_tail`, `max_rss_kib` still empty.
    pub row: TaskRow,
    /// Where its value lies (with `len` 0: it is empty); None if it has not ended.
    pub value: Option<BlobRef>,
    /// Whether what lies there only names the value: [`Request::Payload`] finds it.
    pub is_large: bool,
    /// Where the details of its chunk lie and its number among them; None if there are none.
    pub detail: Option<(BlobRef, u32)>,
}

/// Why a request is refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Malformed or contradictory.
    BadRequest,
    /// Not the caller's.
    Forbidden,
    /// No such job.
    UnknownJob,
    /// No such task.
    UnknownTask,
    /// No such function.
    UnknownFunction,
    /// No such endpoint.
    UnknownEndpoint,
    /// A task names a payload that was not put.
    UnknownPayload,
    /// No such token.
    UnknownToken,
    /// Against what is there already.
    Conflict,
    /// An item, a function, a job is over its limit.
    TooLarge,
    /// No node of the endpoint can ever run it.
    NeverRuns,
    /// Asked for something that is not there yet.
    NotSupported,
    /// A count of objects is at its limit.
    TooMany,
    /// The endpoint's relay is not there, or does not answer.
    NotConnected,
    /// The store cannot take it now.
    Busy,
    /// The disk is full.
    DiskFull,
    /// What should be on disk could not be read.
    Unreadable,
    /// A bug of the broker.
    Internal,
}

impl Code {
    /// The word of [`ErrorBody::code`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::Forbidden => "forbidden",
            Code::UnknownJob => "unknown_job",
            Code::UnknownTask => "unknown_task",
            Code::UnknownFunction => "unknown_function",
            Code::UnknownEndpoint => "unknown_endpoint",
            Code::UnknownPayload => "unknown_payload",
            Code::UnknownToken => "unknown_token",
            Code::Conflict => "conflict",
            Code::TooLarge => "too_large",
            Code::NeverRuns => "never_runs",
            Code::NotSupported => "not_supported",
            Code::TooMany => "too_many",
            Code::NotConnected => "not_connected",
            Code::Busy => "busy",
            Code::DiskFull => "disk_full",
            Code::Unreadable => "unreadable",
            Code::Internal => "internal",
        }
    }

    /// The HTTP status that belongs to it (`docs/http-api.md`).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Code::BadRequest => 400,
            Code::Forbidden => 403,
            Code::UnknownJob
            | Code::UnknownTask
            | Code::UnknownFunction
            | Code::UnknownEndpoint
            | Code::UnknownPayload
            | Code::UnknownToken => 404,
            Code::Conflict => 409,
            Code::TooLarge => 413,
            Code::NeverRuns | Code::NotSupported => 422,
            Code::TooMany => 429,
            Code::NotConnected | Code::Busy => 503,
            Code::DiskFull => 507,
            Code::Unreadable | Code::Internal => 500,
        }
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Code::NotConnected | Code::Busy | Code::DiskFull)
    }
}

/// A refused request, for the person who must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// What failed, on which object, why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Refusal {
    /// Without a hint.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), hint: None }
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As it is sent to the client.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.name().into(),
            message: self.message.clone(),
            hint: self.hint.clone(),
            retryable: self.code.is_retryable(),
        }
    }
}
