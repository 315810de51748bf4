//! Blocks: when one is asked for, what becomes of it, when it is given back; and when the endpoint pauses itself.

use crate::io::{BlockRecord, Effect, Roster, Scaling, SubmitResult};
use crate::limits::{DRAIN_MS, LATER_US, LIVE_BLOCKS_MAX};
use crate::relay::Relay;
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
    pub spools_read: bool,
    pub spools_asked: bool,
    /// Whether the reading under way began after the block's end: it is the last.
    pub reading_the_end: bool,
    /// The roster's version that holds its intent; submitted when that is on disk.
    pub submit_after: Option<u64>,
    pub submitted_at: Micros,
    pub ends_at: Option<Micros>,
    pub idle_since: Option<Micros>,
    /// Told to drain: since when, why.
    pub drain: Option<(Micros, String)>,
    pub cancel_asked: bool,
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
}

/// All blocks, and what is remembered of failures.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub all: BTreeMap<BlockId, Block>,
    pub roster: Roster,
    saved: u64,
    roster_dirty: bool,
    pub not_before: Micros,
    pub poll_at: Micros,
    pub polling_since: Option<Micros>,
    pub poll_again: bool,
}

impl Blocks {
    pub fn new(mut roster: Roster) -> Blocks {
        let blocks = std::mem::take(&mut roster.blocks);
        let all = blocks.into_iter().map(|record| {
            let over = matches!(record.state, BlockState::Ended(_));
            // Of those that were over, everything was read before they were written down as over.
            let block = Block { fresh: over, spools_read: over, record, ..Block::default() };
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

    /// The shape of a node: as the profile says, else the largest that was seen.
    pub fn node<'a>(&'a self, scaling: &'a Scaling) -> Option<&'a NodeCapacity> {
        scaling.node.as_ref().or(self.roster.largest_node.as_ref())
    }

    /// Cores that this endpoint could have.
    pub fn cores_possible(&self, scaling: &Scaling) -> u64 {
        let cores = self.node(scaling).map_or(0, |n| u64::from(n.cores));
        cores * u64::from(scaling.max_blocks) * u64::from(scaling.nodes_per_block)
    }
}

impl Relay {
    // ---- The roster.

    pub(crate) fn roster_changed(&mut self) {
        self.blocks.roster_dirty = true;
        self.report_dirty = true;
    }

    /// Hands the roster to the shell if it changed; its version.
    fn save_roster(&mut self) -> u64 {
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

    // ---- Scaling.

    /// Whether tasks wait and nothing was done about it yet: the first task does not wait for the next tick.
    pub(crate) fn scale_soon(&self) -> bool {
        self.recovery.ready()
            && self.stopping.is_none()
            && self.blocks.roster.paused.is_none()
            && self.now >= self.blocks.not_before
            && self.config.scaling.max_blocks > 0
            && self.classes.all.iter().any(|c| c.waiting > 0)
            && self.blocks.live().next().is_none()
    }

    /// Thinks about blocks: asks for new ones, gives idle ones back, asks the scheduler where they are.
    pub(crate) fn scale(&mut self) {
        if !self.exited {
            if self.recovery.settled || self.stopping.is_some() {
                self.end_what_drains();
            }
            if self.recovery.settled && self.stopping.is_none() {
                self.give_back_idle();
                self.ask_for_blocks();
            }
            self.save_roster();
            self.poll_blocks();
        }
    }

    /// Nodes that the tasks here would fill.
    fn nodes_wanted(&self) -> (u64, u64) {
        let node = self.blocks.node(&self.config.scaling);
        let (mut nodes, mut tasks) = (0u64, 0u64);
        for class in self.classes.all.iter().filter(|c| c.waiting + c.placed > 0) {
            let count = class.waiting + class.placed;
            let fit = node.map_or(u64::MAX, |n| u64::from(class.resources.fit_count(n)));
            if fit > 0 && class.resources.nodes == 1 {
                tasks += count;
                nodes += count.div_ceil(fit);
            }
        }
        (nodes, tasks)
    }

    fn ask_for_blocks(&mut self) {
        let scaling = self.config.scaling.clone();
        if self.blocks.roster.paused.is_some() || self.now < self.blocks.not_before || !self.recovery.ready()
        {
            return;
        }
        let (nodes, tasks) = self.nodes_wanted();
        let by_demand = nodes.div_ceil(u64::from(scaling.nodes_per_block.max(1)));
        let init = if self.blocks.roster.next_block < u64::from(scaling.init_blocks) {
            scaling.init_blocks
        } else {
            0
        };
        let floor = scaling.min_blocks.max(init);
        let most = scaling.max_blocks.min(LIVE_BLOCKS_MAX);
        let wanted = u32::try_from(by_demand).unwrap_or(u32::MAX).max(floor).min(most);
        let live = self.blocks.live().filter(|b| b.drain.is_none()).count() as u32;
        let all = self.blocks.live().count() as u32;
        // After a failure one block at a time shows whether it is mended.
        let one = u32::from(self.blocks.roster.failures > 0);
        let more = wanted.saturating_sub(live).min(most.saturating_sub(all));
        let more =
            if one > 0 { more.min(u32::from(self.blocks.live().all(|b| b.record.came_up))) } else { more };
        for _ in 0..more {
            let why = if wanted <= floor {
                format!("at least {floor} are to be there")
            } else {
                format!("{tasks} tasks fill {nodes} node{}", if nodes == 1 { "" } else { "s" })
            };
            self.intend_block(
                &scaling,
                &format!("{why}; {live} of {wanted} wanted blocks are there, {most} at the most"),
            );
        }
    }

    fn intend_block(&mut self, scaling: &Scaling, why: &str) {
        self.blocks.roster.next_block += 1;
        let id = BlockId(self.blocks.roster.next_block);
        let name = format!("pf-{}-{id}-{:08x}", self.config.endpoint, self.config.incarnation as u32);
        self.decide(format!("submit {id} of {} node(s): {why}", scaling.nodes_per_block));
        let record = BlockRecord {
            block: id,
            name,
            nodes: scaling.nodes_per_block,
            walltime_ms: scaling.walltime_ms,
            account: scaling.account.clone(),
            ..BlockRecord::default()
        };
        self.roster_changed();
        let block = Block { record, fresh: true, submit_after: Some(u64::MAX), ..Block::default() };
        self.blocks.all.insert(id, block);
        let version = self.save_roster();
        if let Some(block) = self.blocks.all.get_mut(&id) {
            block.submit_after = Some(version);
        }
    }

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
                self.blocks.not_before = self.now + LATER_US;
                self.decide(format!("{id} is asked for later: {words}"));
                self.block_over(id, BlockEnd::Cancelled);
            }
            SubmitResult::Refused(words) => self.block_over(id, BlockEnd::SubmitFailed(words)),
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
        let capacity = manager.and_then(|h| self.managers.get(&h)).map(|m| m.capacity.clone());
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if !matches!(block.record.state, BlockState::Running | BlockState::Ending) {
            block.record.state = BlockState::Running;
        }
        block.managers.extend(manager);
        let drain = block.drain.clone();
        if let Some(capacity) = capacity {
            block.record.came_up = true;
            self.blocks.roster.failures = 0;
            let largest = self.blocks.roster.largest_node.get_or_insert_with(NodeCapacity::default);
            *largest = larger(largest, &capacity);
            // The broker refuses by this what no node can run: it is told at once.
            (self.report_at, self.report_dirty) = (self.now, true);
        }
        self.roster_changed();
        if let Some((_, reason)) = drain {
            self.send_drain(id, &reason, DRAIN_MS);
        }
    }

    fn give_back_idle(&mut self) {
        let waiting = self.classes.all.iter().any(|c| c.waiting > 0);
        let mut spare = self.blocks.live().filter(|b| b.drain.is_none()).count() as u32;
        let keep = self.config.scaling.min_blocks;
        let idle_us = self.config.scaling.idle_ms.saturating_mul(1_000);
        let mut give_back = Vec::new();
        for (id, block) in self.blocks.all.iter_mut().filter(|(_, b)| !b.is_over() && b.drain.is_none()) {
            let busy = block.managers.iter().filter_map(|h| self.managers.get(h)).any(|m| m.placed > 0);
            if busy || waiting {
                block.idle_since = None;
                continue;
            }
            let since = *block.idle_since.get_or_insert(self.now);
            if self.now >= since + idle_us && spare > keep {
                spare -= 1;
                give_back.push(*id);
            }
        }
        for id in give_back {
            let seconds = self.config.scaling.idle_ms / 1_000;
            self.drain_block(id, &format!("idle for {seconds} s"), DRAIN_MS);
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
    fn end_what_drains(&mut self) {
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
    }

    fn cancel_at_scheduler(&mut self, id: BlockId) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.is_over()) else { return };
        block.cancel_asked = true;
        if block.submit_after.is_some() {
            // Its intent is not even on disk: nothing was submitted.
            return self.block_over(id, BlockEnd::Cancelled);
        }
        self.effects.push(Effect::CancelBlock { record: block.record.clone() });
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
