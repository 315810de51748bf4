//! What a plan is made from and what it is: plain values, so that tests can make them and people can print them.

use crate::scaling::Scaling;
use pf_protocol::resources::{NodeCapacity, Resources};
use pf_protocol::{BlockId, JobId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a node that are counted: millionths.
pub const NODE_PARTS: u64 = 1_000_000;

/// What is remembered of a shape; part of the roster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ShapeBook {
    /// Blocks that died young, in a row.
    pub failures: u32,
    /// No block of it is asked for before this, Unix milliseconds.
    pub not_before_ms: u64,
    /// What to wait for until then.
    pub not_before_why: String,
    /// The last of them, until its log was read.
    pub last_failed: Option<BlockId>,
    /// Why no block of it is asked for until somebody resumes the endpoint.
    pub stopped: Option<String>,
    /// Whether a block of it ever came up.
    pub proven: bool,
    /// Largest node of it that was seen.
    pub node: Option<NodeCapacity>,
    /// Walltime that was over when the first manager of the last block connected, milliseconds.
    pub start_ms: u64,
}

/// Tasks with equal needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// What each needs.
    pub resources: Resources,
    /// The account that its job names.
    pub account: Option<String>,
    /// Least walltime left, milliseconds; 0 is "unknown".
    pub time_needed_ms: u64,
    /// Tasks that could be placed and are not.
    pub waiting: u64,
    /// Tasks at managers.
    pub placed: u64,
    /// How many of them find a free slot now, by block.
    pub room: BTreeMap<BlockId, u64>,
    /// Its job has a limit of node-hours.
    pub brake: Option<Brake>,
}

/// What a job with a limit of node-hours may still use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brake {
    /// The job.
    pub job: JobId,
    /// Node-milliseconds that neither were used nor are intended in a block of its own.
    pub left_node_ms: u64,
}

/// Where a block is, as far as the plan cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// Asked for or about to be.
    #[default]
    Queued,
    /// Its nodes are there.
    Running,
    /// Told to end, or ending.
    Leaving,
}

/// One block that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockView {
    /// The block.
    pub block: BlockId,
    /// Name of its shape.
    pub shape: String,
    /// Who pays.
    pub account: Option<String>,
    /// Where it is.
    pub standing: Standing,
    /// Whether a manager of it ever connected.
    pub came_up: bool,
    /// Nodes.
    pub nodes: u32,
    /// Walltime left, milliseconds: the whole of it while it is queued; None if nobody knows.
    pub left_ms: Option<u64>,
    /// Nodes whose manager is still to come.
    pub absent_nodes: u32,
    /// What is free on the nodes that are there, in [`NODE_PARTS`].
    pub free_parts: u64,
    /// Nodes with a task.
    pub busy_nodes: u32,
    /// For how long nothing needed it, milliseconds.
    pub idle_for_ms: u64,
    /// For how long few of its nodes had a task, milliseconds.
    pub few_for_ms: u64,
    /// Whether it is in its tail.
    pub tail: bool,
    /// Asked for ahead of any demand: it stays in the queue.
    pub ahead: bool,
    /// Node-milliseconds that it may use, from its start to its walltime.
    pub intended_node_ms: u64,
}

/// All that is looked at.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// What the owner says.
    pub scaling: &'a Scaling,
    /// What is remembered of the shapes.
    pub books: &'a BTreeMap<String, ShapeBook>,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// Why no block at all may be asked for now.
    pub barred: Option<String>,
    /// Blocks that were ever asked for.
    pub blocks_ever: u64,
    /// Node-milliseconds that blocks which are over have used.
    pub used_node_ms: u64,
    /// What is wanted.
    pub demands: Vec<Demand>,
    /// What is there.
    pub blocks: Vec<BlockView>,
}

/// A block to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    /// Name of the shape.
    pub shape: String,
    /// Nodes.
    pub nodes: u32,
    /// Walltime, milliseconds: the shape's, or less where a limit of node-hours leaves no more.
    pub walltime_ms: u64,
    /// Who pays; None leaves it to the scheduler.
    pub account: Option<String>,
    /// The job with a limit of node-hours for which alone it is.
    pub job: Option<JobId>,
    /// Asked for ahead of any demand.
    pub ahead: bool,
    /// Why, in words.
    pub why: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Blocks to ask for.
    pub submit: Vec<Ask>,
    /// Blocks to give back, and why.
    pub give_back: Vec<(BlockId, String)>,
    /// Blocks to take out of the queue, and why.
    pub cancel: Vec<(BlockId, String)>,
    /// Blocks that nothing needs: for how long is counted.
    pub idle: BTreeSet<BlockId>,
    /// Blocks of which few nodes have a task, and nothing needs the others: for how long is counted.
    pub few: BTreeSet<BlockId>,
    /// Blocks in their tail: they get new tasks last, and are given back with the end of the last task.
    pub tail: BTreeSet<BlockId>,
    /// For each shape why there is, or is not, another block.
    pub shapes: Vec<(String, String)>,
}

impl Plan {
    /// Whether it changes anything at the scheduler.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.submit.is_empty() && self.give_back.is_empty() && self.cancel.is_empty()
    }
}
