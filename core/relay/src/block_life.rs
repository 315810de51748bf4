//! What becomes of a block: what the scheduler says of it, its end, and what it left behind.

use crate::blocks::has_no_nodes;
use crate::io::{BlockRecord, Effect, Seen};
use crate::limits::{ENDED_BLOCKS_MAX, POLL_CALM_US, POLL_LOST_US};
use crate::relay::Relay;
use pf_protocol::BlockId;
use pf_protocol::report::{BlockEnd, BlockState};
use std::collections::BTreeMap;

impl Relay {
    pub(crate) fn poll_blocks_now(&mut self) {
        self.blocks.poll_at = self.now;
        if self.blocks.polling_since.is_some() {
            self.blocks.poll_again = true;
        } else {
            self.poll_blocks();
        }
    }

    pub(crate) fn poll_blocks(&mut self) {
        let patience = POLL_LOST_US + 2 * self.config.scaling.poll_ms * 1_000;
        let lost = self.blocks.polling_since.is_some_and(|since| self.now >= since + patience);
        if (self.blocks.polling_since.is_some() && !lost) || self.now < self.blocks.poll_at {
            return;
        }
        let blocks: Vec<BlockRecord> = self
            .blocks
            .live()
            .filter(|b| {
                b.submit_after.is_none()
                    && (b.record.scheduler_id.is_some() || !b.fresh || b.submitted_at > 0)
            })
            .map(|b| b.record.clone())
            .collect();
        if blocks.is_empty() {
            return;
        }
        let poll_us = self.config.scaling.poll_ms * 1_000;
        let calm = self.blocks.live().all(|b| b.pilot_conn.is_some() && b.drain.is_none() && b.fresh);
        self.blocks.poll_at = self.now + if calm { POLL_CALM_US.max(poll_us) } else { poll_us };
        self.blocks.polling_since = Some(self.now);
        self.effects.push(Effect::QueryBlocks { blocks });
    }

    pub(crate) fn on_blocks(&mut self, seen: Result<Vec<Seen>, String>) {
        self.blocks.polling_since = None;
        if std::mem::take(&mut self.blocks.poll_again) {
            self.blocks.poll_at = self.now;
        }
        let seen = match seen {
            Ok(seen) => seen,
            Err(words) => return self.poll_failed(words),
        };
        if self.blocks.poll_failed.take().is_some() {
            self.decide("the scheduler says again where blocks are".into());
        }
        let owners =
            self.blocks.live().filter_map(|b| Some((b.record.scheduler_id.clone()?, b.record.block)));
        let owners: BTreeMap<String, BlockId> = owners.collect();
        for id in self.blocks.live().map(|b| b.record.block).collect::<Vec<_>>() {
            let Some(block) = self.blocks.all.get_mut(&id) else { continue };
            // By its name where it is told: schedulers use ids again. With the id of another block it is two lines in one: a listing that was damaged.
            let found = seen.iter().find(|s| match s.name.as_str() {
                "" => block.record.scheduler_id.as_deref() == Some(&s.scheduler_id),
                name => {
                    name == block.record.name && owners.get(&s.scheduler_id).is_none_or(|owner| *owner == id)
                }
            });
            let Some(found) = found else {
                self.block_not_listed(id);
                continue;
            };
            block.fresh = true;
            let known = block.record.scheduler_id.as_deref().unwrap_or_default();
            let id_is_new = !found.scheduler_id.is_empty() && found.scheduler_id != known;
            if id_is_new {
                block.record.scheduler_id = Some(found.scheduler_id.clone());
            }
            if let Some(left) = found.walltime_left_ms.filter(|_| block.pilot_conn.is_none()) {
                block.ends_at = Some(self.now.saturating_add(left.saturating_mul(1_000)));
            }
            if id_is_new {
                // Also where its state is known already, from its pilot.
                self.roster_changed();
            }
            self.see_restarts(id, found.restarts.unwrap_or(0));
            let Some(block) = self.blocks.all.get_mut(&id) else { continue };
            match &found.state {
                // Its pilot speaks: that nobody else knows the block is no proof of its end.
                BlockState::Ended(BlockEnd::Unknown(_)) if block.pilot_conn.is_some() => {}
                BlockState::Ended(end) => self.block_over(id, end.clone()),
                BlockState::Impossible(words) => {
                    block.record.state = found.state.clone();
                    self.never_runs(id, words);
                }
                // A pilot was heard in this run of the job: the answer is from before that.
                state if has_no_nodes(state) && block.has_nodes() && found.restarts.is_some() => {}
                state if *state != block.record.state => {
                    block.record.state = state.clone();
                    self.roster_changed();
                }
                _ => {}
            }
        }
        self.check_barrier();
    }

    /// Told once, however often it happens: other decisions are worth their place.
    fn poll_failed(&mut self, words: String) {
        let words = format!("the scheduler does not say where blocks are: {words}");
        if self.blocks.poll_failed.as_ref() != Some(&words) {
            self.decide(words.clone());
            self.blocks.poll_failed = Some(words);
        }
    }

    /// A block that the scheduler does not list: not assumed to be over, unless its submit was never answered and long ago.
    fn block_not_listed(&mut self, id: BlockId) {
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if block.submit_after.is_some() || (block.fresh && block.submitted_at == 0) {
            return;
        }
        if !block.fresh && block.submitted_at == 0 && block.record.scheduler_id.is_none() {
            // An earlier relay may have submitted it a moment before its end.
            block.submitted_at = self.now.max(1);
        }
        block.fresh = true;
        if block.record.scheduler_id.is_none()
            && self.now >= block.submitted_at + self.config.scaling.unclear_ms * 1_000
        {
            let words = "the scheduler never listed it".to_string();
            return self.block_over(id, BlockEnd::SubmitFailed(words));
        }
        if block.record.scheduler_id.is_some() && block.pilot_conn.is_none() {
            block.record.state = BlockState::Unknown("the scheduler does not list it".into());
        }
    }

    /// The block is over, by proof: its spools are read, then its managers are buried.
    pub(crate) fn block_over(&mut self, id: BlockId, end: BlockEnd) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.is_over()) else { return };
        let by_us = block.drain.is_some() || block.cancel_asked;
        let end = if by_us && end == BlockEnd::Completed { BlockEnd::Cancelled } else { end };
        block.record.state = BlockState::Ended(end.clone());
        block.fresh = true;
        let record = block.record.clone();
        self.decide(format!("{id} ended: {}", end_words(&end)));
        self.effects.push(Effect::BlockOver { record });
        self.book_node_time(id);
        self.read_spools(id);
        self.judge_end(id, &end, by_us);
        self.roster_changed();
    }

    fn read_spools(&mut self, id: BlockId) {
        let Some(block) = self.blocks.all.get_mut(&id).filter(|b| !b.spools_asked) else { return };
        block.spools_asked = true;
        block.reading_the_end = block.is_over();
        block.burying = std::mem::take(&mut block.to_bury);
        self.effects.push(Effect::ReadSpools { record: block.record.clone() });
    }

    /// The scheduler has started the block's job again, under the same id: what ran in it before has ended, and another pilot may claim it.
    pub(crate) fn see_restarts(&mut self, id: BlockId, restarts: u32) {
        let unix_ms = self.unix_ms();
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if restarts <= block.record.incarnation {
            return;
        }
        block.record.end_this_run(unix_ms);
        block.record.incarnation = restarts;
        block.restarted |= block.inherited;
        block.record.state = BlockState::Queued(String::new());
        (block.pilot, block.heard_at, block.ends_at) = (None, None, None);
        let old = block.pilot_conn.take();
        let managers: Vec<u32> = block.managers.iter().copied().collect();
        if let Some(conn) = old {
            self.peers.remove(&conn);
            self.effects.push(Effect::CloseConn { conn });
        }
        self.decide(format!("{id} was put back into the queue by the scheduler, and is to run again"));
        for handle in managers {
            self.bury_after_spools(id, handle, "its block was put back into the queue");
        }
        self.roster_changed();
    }

    /// A manager's process has ended, as its pilot saw: what it spooled counts before the rest is given up.
    pub(crate) fn bury_after_spools(&mut self, id: BlockId, handle: u32, why: &str) {
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if !block.to_bury.iter().any(|(h, _)| *h == handle) {
            block.to_bury.push((handle, why.into()));
            self.read_spools(id);
        }
    }

    pub(crate) fn on_spools_read(
        &mut self,
        id: BlockId,
        result: Result<Vec<pf_protocol::outcome::OutcomeBatch>, String>,
    ) {
        match result {
            Ok(mut batches) => {
                batches.sort_by_key(|b| (b.manager, b.seq));
                for batch in batches.into_iter().filter(|b| b.manager.block == id && b.seq > 0) {
                    match self.manager_handles.get(&batch.manager).copied() {
                        Some(handle) => self.take_outcomes(handle, batch),
                        None => {
                            self.end_attempts(&batch);
                            self.outbox.push(batch);
                        }
                    }
                }
            }
            Err(words) => self.decide(format!("the spools of {id} cannot be read: {words}")),
        }
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        block.spools_asked = false;
        let mut dead = std::mem::take(&mut block.burying);
        if let (true, BlockState::Ended(end)) = (block.reading_the_end, block.record.state.clone()) {
            let why = format!("block {id} ended: {}", end_words(&end));
            block.spools_read = true;
            dead.append(&mut block.to_bury);
            dead.extend(block.managers.iter().map(|h| (*h, why.clone())));
        }
        for (handle, why) in dead {
            self.bury(handle, &why, true);
        }
        // Others, or the whole block, may have ended while the spools were read.
        if self.blocks.all.get(&id).is_some_and(|b| !b.to_bury.is_empty() || (b.is_over() && !b.spools_read))
        {
            self.read_spools(id);
        }
        if self.blocks.all.get(&id).is_some_and(|b| b.spools_read) {
            self.forget_old_blocks();
        }
        self.roster_changed();
        self.check_barrier();
    }

    pub(crate) fn on_block_log(&mut self, id: BlockId, tail: String) {
        self.hear_last_words(id, &tail);
        if let Some(block) = self.blocks.all.get_mut(&id) {
            block.log_tail = Some(tail).filter(|t| !t.trim().is_empty());
        }
        self.report_dirty = true;
    }

    fn forget_old_blocks(&mut self) {
        let over = self.blocks.all.iter().filter(|(_, b)| b.is_over() && b.spools_read).map(|(id, _)| *id);
        let over: Vec<BlockId> = over.collect();
        let most = over.len().saturating_sub(ENDED_BLOCKS_MAX);
        for id in over.into_iter().take(most) {
            self.blocks.all.remove(&id);
        }
        self.tidy_blocks();
    }

    /// Folders of blocks that nobody asks for any more are deleted, those that an earlier relay left too; and programs that no block runs.
    pub(crate) fn tidy_blocks(&mut self) {
        let keep = self.blocks.all.keys().copied().collect();
        let live = self.blocks.live().map(|b| b.record.block).collect();
        let upto = BlockId(self.blocks.roster.next_block);
        self.effects.push(Effect::TidyBlocks { keep, live, upto });
    }
}

/// Why a block ended, in words.
pub(crate) fn end_words(end: &BlockEnd) -> String {
    match end {
        BlockEnd::Completed => "by itself, exit code 0".into(),
        BlockEnd::Failed(code) => format!("exit code {code}"),
        BlockEnd::Signal(signal) => format!("signal {signal}"),
        BlockEnd::Walltime => "at its walltime".into(),
        BlockEnd::Cancelled => "cancelled".into(),
        BlockEnd::Preempted => "preempted".into(),
        BlockEnd::NodeFailed => "a node failed".into(),
        BlockEnd::OutOfMemory => "out of memory".into(),
        BlockEnd::SubmitFailed(words) => format!("the submit failed: {words}"),
        BlockEnd::LaunchFailed(words) => format!("the scheduler could not start it: {words}"),
        BlockEnd::Unknown(words) => format!("nobody can tell why: {words}"),
    }
}
