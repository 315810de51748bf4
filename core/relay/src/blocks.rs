//! Blocks: what is known of each, how its intent gets to disk and to the scheduler, how it comes up, how it is told to end.

use crate::io::{BlockRecord, Effect, Roster, SubmitResult};
use crate::limits::{CANCEL_AGAIN_US, DRAIN_MS, LATER_US};
use crate::relay::Relay;
use crate::scaling::Scaling;
use pf_protocol::message::Drain;
use pf_protocol::report::{BlockEnd, BlockState};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::{BlockId, Micros};
use std::collections::{BTreeMap, BTreeSet};

/// One block, as it is now. What must survive is in `record`.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub record: BlockRecord,
    pub managers: BTreeSet<u32>,
    /// Incarnation of the pilot that claimed it.
    pub pilot: Option<u64>,
    pub pilot_conn: Option<u64>,
    /// Whether its state is known since this relay began.
    pub fresh: bool,
    /// Whether an earlier relay left it, not over: its managers may have had tasks of that one.
    pub inherited: bool,
    /// Whether an earlier relay left it and its job was started again since: what that one had sent may have run, and is over.
    pub restarted: bool,
    pub spools_read: bool,
    pub spools_asked: bool,
    /// Whether the reading under way began after the block's end: it is the last.
    pub reading_the_end: bool,
    /// The roster's version that holds its intent; submitted when that is on disk.
    pub submit_after: Option<u64>,
    pub submitted_at: Micros,
    pub ends_at: Option<Micros>,
    /// Whether it was asked for in this relay's life.
    pub asked_here: bool,
    /// When the first manager of this relay's life connected.
    pub heard_at: Option<Micros>,
    /// Since when nothing needs it.
    pub idle_since: Option<Micros>,
    /// Since when few of its nodes have a task.
    pub few_since: Option<Micros>,
    /// Whether it is in its tail.
    pub tail: bool,
    /// Told to drain: since when, why.
    pub drain: Option<(Micros, String)>,
    pub cancel_asked: bool,
    /// How often it was cancelled, and when last: a cancel that was taken is no end.
    pub cancels: u32,
    pub cancel_at: Micros,
    pub log_tail: Option<String>,
    /// Managers to be buried once the spools are read, and why.
    pub to_bury: Vec<(u32, String)>,
    /// Those among them that ended before the reading under way began.
    pub burying: Vec<(u32, String)>,
}

impl Block {
    pub fn is_over(&self) -> bool {
        matches!(self.record.state, BlockState::Ended(_))
    }

    /// Whether its job is known to have begun, and not to be over.
    pub fn has_nodes(&self) -> bool {
        matches!(self.record.state, BlockState::Running | BlockState::Suspended(_) | BlockState::Ending)
    }
}

/// Whether the block has no nodes yet, or none any more.
pub(crate) fn has_no_nodes(state: &BlockState) -> bool {
    matches!(state, BlockState::Intended | BlockState::Queued(_) | BlockState::Held(_) | BlockState::Starting)
}

/// All blocks, and what is remembered of failures.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub all: BTreeMap<BlockId, Block>,
    pub roster: Roster,
    saved: u64,
    roster_dirty: bool,
    /// No block is asked for before this: the roster cannot be written.
    pub not_before: Micros,
    /// When scaling was thought over last.
    pub scaled_at: Micros,
    /// The next first task may have it thought over at once from then on.
    pub soon_after: Micros,
    /// When the counts of node-hours were last written down.
    pub time_saved_at: Micros,
    /// For each shape why there is, or is not, another block.
    pub shape_words: Vec<(String, String)>,
    pub poll_at: Micros,
    pub polling_since: Option<Micros>,
    pub poll_again: bool,
    /// Why the scheduler did not say where blocks are when it was asked last.
    pub poll_failed: Option<String>,
}

impl Blocks {
    pub fn new(mut roster: Roster) -> Blocks {
        let blocks = std::mem::take(&mut roster.blocks);
        let all = blocks.into_iter().map(|record| {
            let over = matches!(record.state, BlockState::Ended(_));
            // Of those that were over, everything was read before they were written down as over.
            let block =
                Block { fresh: over, inherited: !over, spools_read: over, record, ..Block::default() };
            (block.record.block, block)
        });
        let all = all.collect();
        let saved = roster.version;
        Blocks { all, saved, roster, ..Blocks::default() }
    }

    /// The relay begins: submits of an earlier life that nobody lists get some time from now.
    pub fn begin(&mut self, now: Micros) {
        for block in self.all.values_mut().filter(|b| !b.is_over()) {
            block.submitted_at = now.max(1);
        }
    }

    pub fn is_live(&self, block: BlockId) -> bool {
        self.all.get(&block).is_some_and(|b| !b.is_over())
    }

    pub fn record(&self, block: BlockId) -> Option<BlockRecord> {
        self.all.get(&block).map(|b| b.record.clone())
    }

    pub fn live_records(&self) -> Vec<BlockRecord> {
        self.live().map(|b| b.record.clone()).collect()
    }

    pub fn live(&self) -> impl Iterator<Item = &Block> {
        self.all.values().filter(|b| !b.is_over())
    }

    /// The shape of a node of this kind of block: as the profile says, else the largest that was seen.
    pub fn node<'a>(&'a self, scaling: &'a Scaling, shape: &str) -> Option<&'a NodeCapacity> {
        let configured = scaling.shape(shape).and_then(|s| s.node.as_ref());
        configured.or_else(|| self.roster.shapes.get(shape)?.node.as_ref())
    }

    /// The largest node of all shapes; None while one of them is not known.
    pub fn largest_node(&self, scaling: &Scaling) -> Option<NodeCapacity> {
        let nodes: Option<Vec<&NodeCapacity>> =
            scaling.shapes.iter().map(|s| self.node(scaling, &s.name)).collect();
        nodes?.into_iter().cloned().reduce(|a, b| larger(&a, &b))
    }

    /// Cores that this endpoint could have.
    pub fn cores_possible(&self, scaling: &Scaling) -> u64 {
        let of_shape = |shape: &crate::scaling::Shape| {
            let cores = self.node(scaling, &shape.name).map_or(0, |n| u64::from(n.cores));
            cores * u64::from(shape.max_blocks.min(scaling.max_blocks)) * u64::from(shape.nodes)
        };
        scaling.shapes.iter().map(of_shape).sum()
    }
}

impl Relay {
    // ---- The roster.

    pub(crate) fn roster_changed(&mut self) {
        self.blocks.roster_dirty = true;
        self.report_dirty = true;
    }

    /// Hands the roster to the shell if it changed; its version.
    pub(crate) fn save_roster(&mut self) -> u64 {
        if std::mem::take(&mut self.blocks.roster_dirty) {
            self.blocks.roster.version += 1;
            let blocks = self.blocks.all.values().map(|b| {
                let mut record = b.record.clone();
                if b.is_over() && !b.spools_read {
                    // Written down as over only once everything of it was read.
                    record.state = BlockState::Ending;
                }
                record
            });
            let blocks = blocks.collect();
            let roster = Roster { blocks, ..self.blocks.roster.clone() };
            self.effects.push(Effect::SaveRoster { roster });
        }
        self.blocks.roster.version
    }

    pub(crate) fn on_roster_saved(&mut self, version: u64) {
        self.blocks.saved = self.blocks.saved.max(version);
        let saved = self.blocks.saved;
        for block in self.blocks.all.values_mut() {
            if block.submit_after.is_some_and(|v| v <= saved) {
                block.submit_after = None;
                block.submitted_at = self.now.max(1);
                if !block.is_over() {
                    self.effects.push(Effect::Submit { record: block.record.clone() });
                }
            }
        }
    }

    pub(crate) fn on_roster_failed(&mut self, error: &str) {
        // Without a durable intent nothing is submitted. It is written again with the next thought about scaling.
        self.blocks.roster_dirty = true;
        self.blocks.not_before = self.now + LATER_US / 60;
        self.decide(format!("no block is asked for: the roster cannot be written: {error}"));
    }

    // ---- Coming up.

    pub(crate) fn on_submitted(&mut self, id: BlockId, result: SubmitResult) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.is_over()) else { return };
        match result {
            SubmitResult::Accepted(scheduler_id) => {
                block.record.scheduler_id = Some(scheduler_id);
                if block.record.state == BlockState::Intended {
                    block.record.state = BlockState::Queued(String::new());
                }
            }
            SubmitResult::Later(words) => {
                block.cancel_asked = true;
                self.decide(format!("{id} is asked for later: {words}"));
                self.wait_with(id, LATER_US / 1_000, format!("the scheduler says: {words}"));
                self.block_over(id, BlockEnd::Cancelled);
            }
            SubmitResult::Refused(words) => {
                self.leave_out_no_more(id, &words);
                self.block_over(id, BlockEnd::SubmitFailed(words));
            }
            SubmitResult::Unclear(words) => {
                self.decide(format!(
                    "it is not clear whether {id} was submitted: {words}; the scheduler will tell"
                ));
            }
        }
        self.roster_changed();
        self.poll_blocks_now();
    }

    /// A manager (or, without one, the pilot) of the block is here.
    pub(crate) fn block_heard(&mut self, id: BlockId, manager: Option<u32>) {
        let connected = manager.and_then(|h| self.managers.get(&h));
        let found = connected.map(|m| (m.capacity.clone(), m.ends_at.saturating_sub(self.now) / 1_000));
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if !block.has_nodes() {
            block.record.state = BlockState::Running;
        }
        block.managers.extend(manager);
        let drain = block.drain.clone();
        if let Some((capacity, left_ms)) = found {
            let first = block.heard_at.is_none() && block.asked_here;
            block.heard_at.get_or_insert(self.now);
            let (shape, walltime_ms) = (block.record.shape.clone(), block.record.walltime_ms);
            let book = self.blocks.roster.shapes.entry(shape).or_default();
            let largest = book.node.get_or_insert_with(NodeCapacity::default);
            *largest = larger(largest, &capacity);
            if first {
                book.start_ms = walltime_ms.saturating_sub(left_ms);
            }
            // The broker refuses by this what no node can run: it is told at once.
            (self.report_at, self.report_dirty) = (self.now, true);
        }
        self.roster_changed();
        if let Some((_, reason)) = drain {
            self.send_drain(id, &reason, DRAIN_MS);
        }
    }

    /// Tells pilot and managers of a block to end.
    pub(crate) fn drain_block(&mut self, id: BlockId, reason: &str, grace_ms: u64) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.is_over()) else { return };
        block.drain = Some((self.now, reason.into()));
        self.decide(format!("give {id} back: {reason}"));
        self.send_drain(id, reason, grace_ms);
    }

    fn send_drain(&mut self, id: BlockId, reason: &str, grace_ms: u64) {
        let Some(block) = self.blocks.all.get(&id) else { return };
        let pilot = block.pilot_conn;
        let handles: Vec<u32> = block.managers.iter().copied().collect();
        let mut conns = Vec::new();
        for handle in handles {
            if let Some(manager) = self.managers.get_mut(&handle) {
                manager.draining = true;
                conns.extend(manager.conn);
            }
            self.refresh_room(handle);
        }
        conns.extend(pilot);
        for conn in conns {
            self.tell_peer(conn, Drain { epoch: self.epoch, reason: reason.into(), grace_ms });
        }
    }

    /// Blocks that were told to end and have not, or that never got a pilot that could be told, are cancelled at the scheduler.
    pub(crate) fn end_what_drains(&mut self) {
        let mut late = Vec::new();
        let killing = self.stopping.as_ref().is_some_and(|s| s.kill);
        for (id, block) in &self.blocks.all {
            let Some((since, _)) = &block.drain else { continue };
            let busy = block.managers.iter().filter_map(|h| self.managers.get(h)).any(|m| m.placed > 0);
            let deaf = block.pilot_conn.is_none();
            let late_already = self.now >= since + DRAIN_MS * 1_000;
            let ripe = if busy { killing && late_already } else { deaf || late_already };
            if !block.is_over() && !block.cancel_asked && ripe {
                late.push(*id);
            }
        }
        for id in late {
            self.cancel_at_scheduler(id);
        }
        self.cancel_again();
    }

    /// A block that a cancel did not end is cancelled again, and people are told.
    fn cancel_again(&mut self) {
        let now = self.now;
        let patience = |b: &Block| CANCEL_AGAIN_US << b.cancels.saturating_sub(1).min(6);
        let still = self.blocks.live().filter(|b| b.cancel_asked && now >= b.cancel_at + patience(b));
        let still: Vec<_> =
            still.map(|b| (b.record.block, b.cancels, (now - b.cancel_at) / 1_000_000)).collect();
        for (id, cancels, seconds) in still {
            self.decide(format!(
                "{id} is still there {seconds} s after cancel {cancels}: it is cancelled again"
            ));
            self.cancel_at_scheduler(id);
        }
    }

    fn cancel_at_scheduler(&mut self, id: BlockId) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.is_over()) else { return };
        block.cancel_asked = true;
        if block.submit_after.is_some() {
            // Its intent is not even on disk: nothing was submitted.
            return self.block_over(id, BlockEnd::Cancelled);
        }
        let round = block.cancels;
        block.cancels += 1;
        block.cancel_at = self.now;
        self.effects.push(Effect::CancelBlock { record: block.record.clone(), round });
    }

    /// Ends one block now; false if there is no such block.
    pub(crate) fn cancel_block(&mut self, id: BlockId, reason: &str) -> bool {
        if !self.blocks.is_live(id) {
            return false;
        }
        self.decide(format!("cancel {id}: {reason}"));
        if let Some(block) = self.blocks.all.get_mut(&id) {
            block.drain.get_or_insert((self.now, reason.into()));
        }
        self.send_drain(id, reason, 0);
        self.cancel_at_scheduler(id);
        true
    }

    pub(crate) fn on_block_cancelled(&mut self, id: BlockId, result: Result<(), String>) {
        if let Err(words) = result {
            self.decide(format!("{id} could not be cancelled: {words}"));
            if let Some(block) = self.blocks.all.get_mut(&id) {
                // Tried again after another grace.
                block.cancel_asked = false;
                block.drain = Some((self.now, "a cancel failed".into()));
            }
        }
        self.poll_blocks_now();
    }
}

/// The larger of each.
fn larger(a: &NodeCapacity, b: &NodeCapacity) -> NodeCapacity {
    let mut amounts = a.amounts.clone();
    for (name, n) in &b.amounts {
        let most = amounts.entry(name.clone()).or_default();
        *most = (*most).max(*n);
    }
    NodeCapacity {
        cores: a.cores.max(b.cores),
        gpus_milli: a.gpus_milli.max(b.gpus_milli),
        memory_bytes: a.memory_bytes.max(b.memory_bytes),
        amounts,
        features: a.features.union(&b.features).cloned().collect(),
    }
}
