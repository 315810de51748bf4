//! What a relay reports of its endpoint, for status and explain. Snapshots for people; no decision is taken from them.

use crate::ids::{BlockId, Epoch};
use crate::resources::NodeCapacity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a block is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockState {
    /// Intended, synced, not yet submitted.
    #[default]
    Intended,
    /// The scheduler has it; its reason why it does not run.
    Queued(String),
    /// Held by a user or the system, with the scheduler's word.
    Held(String),
    /// Nodes are being made ready.
    Starting,
    /// It runs.
    Running,
    /// On its way out.
    Ending,
    /// Over, and why.
    Ended(BlockEnd),
    /// Not understood, with the scheduler's text.
    Unknown(String),
    /// The scheduler has it and says that it will never run; its words.
    Impossible(String),
    /// It has nodes, but its processes are stopped for now; the scheduler's word.
    Suspended(String),
}

/// Why a block ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockEnd {
    /// By itself, with exit code 0.
    #[default]
    Completed,
    /// With another exit code.
    Failed(i32),
    /// By a signal.
    Signal(i32),
    /// At its walltime.
    Walltime,
    /// By us or by the user.
    Cancelled,
    /// By the scheduler, for somebody else.
    Preempted,
    /// A node failed.
    NodeFailed,
    /// For want of memory.
    OutOfMemory,
    /// The submit itself failed; the scheduler's words.
    SubmitFailed(String),
    /// The scheduler took it and could not start it; its words.
    LaunchFailed(String),
    /// Nobody can tell any more.
    Unknown(String),
}

/// One block.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockReport {
    /// The block.
    pub block: BlockId,
    /// How often it was requeued.
    pub incarnation: u32,
    /// The unique name under which it was submitted.
    pub name: String,
    /// The scheduler's id, once known.
    pub scheduler_id: Option<String>,
    /// State.
    pub state: BlockState,
    /// Nodes.
    pub nodes: u32,
    /// Managers of it that are connected.
    pub managers: u32,
    /// Walltime left, milliseconds, once it runs.
    pub walltime_left_ms: Option<u64>,
    /// The block's folder.
    pub dir: String,
    /// The tail of its log, for a block that died young.
    pub log_tail: Option<String>,
    /// Name of its shape.
    pub shape: String,
    /// Account that is charged, if one was named.
    pub account: Option<String>,
    /// Node-milliseconds used until now.
    pub used_node_ms: u64,
    /// Those of them in which the node had no task.
    pub idle_node_ms: u64,
    /// Whether few of its nodes have a task and nothing needs the others: it gets new tasks last.
    pub tail: bool,
}

/// One shape of blocks: how many there are, and why there is, or is not, another one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShapeReport {
    /// Its name.
    pub shape: String,
    /// Blocks of it that are not over.
    pub blocks: u32,
    /// At the most.
    pub blocks_max: u32,
    /// Nodes of a block.
    pub nodes: u32,
    /// Walltime of a block, milliseconds.
    pub walltime_ms: u64,
    /// Blocks that died young in a row.
    pub failures: u32,
    /// Why there is, or is not, another block, in words.
    pub why: String,
}

/// A node that gets no tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuarantineReport {
    /// Its name.
    pub node: String,
    /// Why, in words.
    pub reason: String,
    /// Until when, Unix milliseconds.
    pub until_ms: u64,
}

/// Node-milliseconds of all blocks, as scheduler and accounting would count them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeHours {
    /// Used until now.
    pub used_node_ms: u64,
    /// Those of them in which the node had no task.
    pub idle_node_ms: u64,
    /// What blocks that are not over may still use, up to their walltime.
    pub intended_node_ms: u64,
    /// The limit, if there is one.
    pub limit_node_ms: Option<u64>,
}

/// One manager.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ManagerReport {
    /// `b7/0`.
    pub manager: String,
    /// Node's name.
    pub node: String,
    /// What it offers.
    pub capacity: NodeCapacity,
    /// Cores in use by running tasks.
    pub cores_busy: u32,
    /// Tasks running.
    pub running: u32,
    /// Tasks held in front of the slots.
    pub held: u32,
    /// Its process id, on its node.
    pub pid: u32,
}

/// An endpoint as its relay sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointReport {
    /// The relay's epoch.
    pub epoch: Epoch,
    /// Host on which the relay lives.
    pub host: String,
    /// Why it pauses itself; None if it does not.
    pub paused: Option<String>,
    /// Tasks at the relay that wait for a slot.
    pub waiting: u64,
    /// Tasks handed to managers.
    pub placed: u64,
    /// Blocks that are not over, and the last few that are.
    pub blocks: Vec<BlockReport>,
    /// Managers that are connected.
    pub managers: Vec<ManagerReport>,
    /// Largest node known (from a manager, or from the profile): what a task may ask for at the most.
    pub largest_node: Option<NodeCapacity>,
    /// The last decisions, newest last: what was decided and why, in words.
    pub decisions: Vec<Decision>,
    /// Why tasks wait, by class, for explain.
    pub waiting_why: BTreeMap<String, String>,
    /// Shapes of blocks, in the order in which they are tried.
    pub shapes: Vec<ShapeReport>,
    /// Nodes that get no tasks.
    pub quarantine: Vec<QuarantineReport>,
    /// What was and may be used.
    pub node_hours: NodeHours,
}

/// One line of the decision log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decision {
    /// When, for people.
    pub at_ms: u64,
    /// What and why, one line: "submit b3: 40 tasks wait, 0 slots are free".
    pub text: String,
}
