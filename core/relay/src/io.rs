//! What comes into the relay's core and what it wants done. The shell (`pf-relay`) and the simulation carry these.

use crate::plan::ShapeBook;
use crate::scaling::Scaling;
use bytes::Bytes;
use pf_protocol::message::AnswerWhat;
use pf_protocol::outcome::OutcomeBatch;
use pf_protocol::report::BlockState;
use pf_protocol::{BlockId, ContentHash, Epoch, JobId, TaskId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// All that the core must be told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the endpoint.
    pub endpoint: String,
    /// Host on which the relay runs, for people.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// Random for each process: names the incarnation, seeds sessions and jitter.
    pub incarnation: u64,
    /// Take the endpoint from a relay that is still heard.
    pub takeover: bool,
    /// Unix milliseconds at `now == 0` of the shell's clock, for the times that people read.
    pub clock_offset_ms: u64,
    /// How long managers of blocks that run are waited for after a restart before their tasks are given up, milliseconds.
    /// At least twice the lease, or a task may run twice at once.
    pub grace_ms: u64,
    /// Folder of the blocks' folders (`b7`, ..), for people.
    pub blocks_dir: String,
    /// When to ask for blocks.
    pub scaling: Scaling,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            endpoint: "local".into(),
            host: String::new(),
            pid: 0,
            incarnation: 1,
            takeover: false,
            clock_offset_ms: 0,
            grace_ms: 2 * pf_protocol::limits::LEASE_MS + crate::limits::LEASE_MARGIN_MS,
            blocks_dir: String::new(),
            scaling: Scaling::default(),
        }
    }
}

/// What survives a restart of the relay. Written whole, atomically, by the shell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Roster {
    /// Counts writes.
    pub version: u64,
    /// The next block's number.
    pub next_block: u64,
    /// What is remembered of each shape of blocks, failures above all.
    pub shapes: BTreeMap<String, ShapeBook>,
    /// Why the endpoint pauses itself, or who paused it.
    pub paused: Option<String>,
    /// Node-milliseconds that blocks which are over have used.
    pub used_node_ms: u64,
    /// Those of them in which no task was on the node.
    pub idle_node_ms: u64,
    /// Node-milliseconds that jobs with a limit have used, for as long as the relay knows the job.
    pub jobs_node_ms: BTreeMap<JobId, u64>,
    /// Nodes that get no tasks, by name.
    pub quarantine: BTreeMap<String, Quarantine>,
    /// Blocks that are not over, and the last few that are.
    pub blocks: Vec<BlockRecord>,
}

/// Why a node gets no tasks, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Quarantine {
    /// Why, in words.
    pub reason: String,
    /// Until when, Unix milliseconds.
    pub until_ms: u64,
    /// Shapes of which the scheduler has no block without it: it is not left out of these, and gets no tasks all the same.
    pub needed_by: BTreeSet<String>,
}

/// One block, as the roster keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockRecord {
    /// Its number.
    pub block: BlockId,
    /// How often it was requeued.
    pub incarnation: u32,
    /// The unique name under which it is submitted.
    pub name: String,
    /// The scheduler's id, once known.
    pub scheduler_id: Option<String>,
    /// Nodes.
    pub nodes: u32,
    /// Walltime asked for, milliseconds.
    pub walltime_ms: u64,
    /// Name of its shape: what else is asked for with it, the shell knows by this.
    pub shape: String,
    /// Account to charge; None leaves it to the shell's shape or the scheduler.
    pub account: Option<String>,
    /// The job with a limit of node-hours for which alone it was asked for.
    pub job: Option<JobId>,
    /// Asked for ahead of any demand: it may wait in the queue for as long as it likes.
    pub ahead: bool,
    /// Nodes that it must not get.
    pub exclude: Vec<String>,
    /// When it was seen to run first, Unix milliseconds.
    pub started_ms: Option<u64>,
    /// Node-milliseconds in which no task was on a node that was there.
    pub idle_node_ms: u64,
    /// Node-milliseconds that it used, in all if it is over, else before it was requeued.
    pub used_node_ms: u64,
    /// Whether a manager of it delivered an outcome, or stayed for a while: what ends before is a failure.
    pub came_up: bool,
    /// Last known state.
    pub state: BlockState,
}

impl BlockRecord {
    /// Node-milliseconds that it may use from its start to its walltime, with what it used before it was requeued.
    #[must_use]
    pub fn intended_node_ms(&self) -> u64 {
        u64::from(self.nodes).saturating_mul(self.walltime_ms).saturating_add(self.used_node_ms)
    }

    /// Its job is back in the queue: what it used counts, and its walltime begins anew.
    pub fn end_this_run(&mut self, unix_ms: u64) {
        self.used_node_ms += self.part_node_ms(unix_ms);
        self.started_ms = None;
    }

    /// Node-milliseconds since it began to run, for the last time.
    #[must_use]
    pub fn part_node_ms(&self, unix_ms: u64) -> u64 {
        let ran_ms = self.started_ms.map_or(0, |at| unix_ms.saturating_sub(at));
        u64::from(self.nodes).saturating_mul(ran_ms.min(self.walltime_ms))
    }
}

/// What a status query said of one block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The scheduler's id. Empty: not known to who saw it.
    pub scheduler_id: String,
    /// The unique name.
    pub name: String,
    /// State.
    pub state: BlockState,
    /// Walltime left, milliseconds.
    pub walltime_left_ms: Option<u64>,
    /// How often the scheduler has started it again under the same id, where it says so.
    pub restarts: Option<u32>,
}

/// How a submit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubmitResult {
    /// The scheduler's id.
    Accepted(String),
    /// The scheduler refuses for now: wait, no failure.
    Later(String),
    /// Refused, with the scheduler's words.
    Refused(String),
    /// Timeout or the like: it may have been taken. Status will tell, by name.
    Unclear(String),
}

/// What happens to the relay.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The process begins. First input.
    Start,
    /// A connection to the broker is there.
    BrokerConnected {
        /// Connection.
        conn: u64,
    },
    /// A manager or pilot connected with the key of `block`.
    Accepted {
        /// Connection.
        conn: u64,
        /// Whose key it proved to have.
        block: BlockId,
    },
    /// Bytes from a connection.
    Frame {
        /// Connection.
        conn: u64,
        /// One frame.
        bytes: Bytes,
    },
    /// A connection is gone.
    ConnClosed {
        /// Connection.
        conn: u64,
    },
    /// The time of [`Effect::SetTimer`] has come.
    Timer,
    /// The end of a turn of the shell: what was gathered is sent. Without it the core asks for a timer at once.
    TurnEnd,
    /// The process stood still for this long: silence is not held against anybody.
    ClockGap {
        /// Microseconds.
        gap_us: u64,
    },
    /// The roster of this version, or a later one, is on disk.
    RosterSaved {
        /// Version.
        version: u64,
    },
    /// The roster cannot be written.
    RosterFailed {
        /// Why.
        error: String,
    },
    /// Answer to [`Effect::Submit`].
    Submitted {
        /// The block.
        block: BlockId,
        /// How it went.
        result: SubmitResult,
    },
    /// Answer to [`Effect::QueryBlocks`].
    Blocks {
        /// What the scheduler lists; or why nothing is known.
        seen: Result<Vec<Seen>, String>,
    },
    /// Answer to [`Effect::CancelBlock`].
    BlockCancelled {
        /// The block.
        block: BlockId,
        /// Or why not.
        result: Result<(), String>,
    },
    /// Answer to [`Effect::ReadSpools`].
    SpoolsRead {
        /// The block.
        block: BlockId,
        /// Outcomes found in its folder.
        result: Result<Vec<OutcomeBatch>, String>,
    },
    /// Tail of a block's log, read along with the spools of a block that ended.
    BlockLog {
        /// The block.
        block: BlockId,
        /// Text.
        tail: String,
    },
    /// Answer to [`Effect::ReadLog`] and [`Effect::ReadBlockLog`].
    LogRead {
        /// The question's number.
        ask: u64,
        /// What goes back to the asker.
        what: AnswerWhat,
    },
    /// Answer to [`Effect::PayloadWrite`].
    PayloadWritten {
        /// The job.
        job: JobId,
        /// The payload.
        hash: ContentHash,
        /// Where the piece begins.
        offset: u64,
        /// Or why not.
        result: Result<(), String>,
    },
    /// Answer to [`Effect::PayloadRead`].
    PayloadRead {
        /// The job.
        job: JobId,
        /// The payload.
        hash: ContentHash,
        /// Where the piece begins.
        offset: u64,
        /// The piece; or why not.
        result: Result<Bytes, String>,
    },
    /// Give back what has not started, end all blocks, exit. (`pf endpoint stop`, the end of `pf run`.)
    Stop {
        /// Do not wait for running tasks.
        kill: bool,
    },
}

/// What the relay wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send these bytes.
    Frame {
        /// Connection.
        conn: u64,
        /// One frame.
        bytes: Bytes,
    },
    /// Close the connection.
    CloseConn {
        /// Connection.
        conn: u64,
    },
    /// Call with [`Input::Timer`] at this time; replaces the one before.
    SetTimer {
        /// When.
        at: u64,
    },
    /// Write the roster, then say [`Input::RosterSaved`].
    SaveRoster {
        /// All of it.
        roster: Roster,
    },
    /// The relay has a (new) epoch: tickets of blocks that are not over are written anew with it and with the relay's addresses.
    RefreshTickets {
        /// The epoch.
        epoch: Epoch,
        /// The endpoint's number.
        endpoint: pf_protocol::EndpointId,
        /// The blocks.
        blocks: Vec<BlockRecord>,
    },
    /// Make the block's folder, key and ticket, and submit it. Its intent is on disk.
    Submit {
        /// The block.
        record: BlockRecord,
    },
    /// Ask the scheduler for the state of these.
    QueryBlocks {
        /// The blocks.
        blocks: Vec<BlockRecord>,
    },
    /// End this block.
    CancelBlock {
        /// The block.
        record: BlockRecord,
        /// Cancels of it that were taken before and did not end it.
        round: u32,
    },
    /// The block is over: its key is worth nothing from now on.
    BlockOver {
        /// The block.
        record: BlockRecord,
    },
    /// Read what managers spooled into the block's folder, and the tail of its log.
    ReadSpools {
        /// The block.
        record: BlockRecord,
    },
    /// Folders of blocks with a number up to this one are deleted, but for these: everything of theirs was read.
    TidyBlocks {
        /// Blocks that are kept.
        keep: Vec<BlockId>,
        /// Those among them that are not over: nothing that they run is deleted.
        live: Vec<BlockId>,
        /// Highest number that was ever given.
        upto: BlockId,
    },
    /// Read a task's output.
    ReadLog {
        /// Names the question.
        ask: u64,
        /// The task.
        task: TaskId,
        /// Where to begin.
        from: u64,
        /// Whether the task may still write.
        live: bool,
    },
    /// Read a block's log.
    ReadBlockLog {
        /// Names the question.
        ask: u64,
        /// The block.
        record: BlockRecord,
    },
    /// The broker refuses this relay for now; it is asked again.
    NotYet {
        /// Why, for people.
        reason: String,
    },
    /// Write a piece of an item into its file in the payloads' folder. The file gets its name with the last piece.
    PayloadWrite {
        /// The job.
        job: JobId,
        /// The payload.
        hash: ContentHash,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: Bytes,
        /// Whether it is the last one.
        last: bool,
    },
    /// Read a piece of a value from its file.
    PayloadRead {
        /// The job.
        job: JobId,
        /// The payload.
        hash: ContentHash,
        /// Where it begins. At most [`pf_protocol::limits::PIECE_BYTES`] are read.
        offset: u64,
    },
    /// Delete the file of an item or a value.
    PayloadDrop {
        /// The job.
        job: JobId,
        /// The payload.
        hash: ContentHash,
        /// A value, not an item.
        value: bool,
    },
    /// Delete all payload files of these jobs.
    PayloadsDrop {
        /// The jobs.
        jobs: Vec<JobId>,
    },
    /// Delete all payload files but those of these jobs: nobody waits for the others.
    PayloadsKeep {
        /// The jobs.
        jobs: BTreeSet<JobId>,
    },
    /// The relay's work is over: end the process (or this node of it).
    Exit {
        /// Why, for people.
        reason: String,
        /// Whether that is what was asked for.
        ok: bool,
    },
}
