//! Scaling as the relay does it: takes the snapshot, has [`crate::plan`] decide, carries the plan out, and counts node-hours.

use crate::blocks::{Block, has_no_nodes};
use crate::io::BlockRecord;
use crate::limits::{ABSENT_US, DRAIN_MS, TIME_SAVED_US};
use crate::plan::{Ask, BlockView, Brake, Demand, Plan, Snapshot, Standing, plan};
use crate::relay::Relay;
use pf_protocol::report::BlockState;
use pf_protocol::{BlockId, JobId};
use std::collections::BTreeMap;

impl Relay {
    /// Whether tasks wait and nothing was done about it yet: the first task does not wait for the next tick.
    pub(crate) fn scale_soon(&self) -> bool {
        self.recovery.ready()
            && self.stopping.is_none()
            && self.blocks.roster.paused.is_none()
            && self.now >= self.blocks.soon_after
            && self.config.scaling.max_blocks > 0
            && self.classes.all.iter().any(|c| c.waiting > 0)
            && self.blocks.live().next().is_none()
    }

    /// Thinks about blocks: asks for new ones, gives back what nothing needs, asks the scheduler where they are.
    pub(crate) fn scale(&mut self) {
        if self.exited {
            return;
        }
        self.count_node_time();
        self.see_what_stays();
        self.look_at_nodes();
        self.brake_jobs();
        if self.recovery.ready() {
            self.refuse_hopeless();
        }
        self.blocks.scaled_at = self.now;
        if self.recovery.settled || self.stopping.is_some() {
            self.end_what_drains();
        }
        if self.recovery.settled && self.stopping.is_none() {
            let plan = plan(&self.snapshot());
            self.carry_out(plan);
        }
        self.save_roster();
        self.poll_blocks();
    }

    /// Everything that a plan is made from.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        let roster = &self.blocks.roster;
        let barred = match &roster.paused {
            Some(_) => Some("the endpoint is paused".into()),
            None if !self.recovery.ready() => Some("the broker is not connected".into()),
            None if self.now < self.blocks.not_before => Some("the roster cannot be written".into()),
            None => None,
        };
        Snapshot {
            scaling: &self.config.scaling,
            books: &roster.shapes,
            now_ms: self.unix_ms(),
            barred,
            blocks_ever: roster.next_block,
            used_node_ms: roster.used_node_ms,
            demands: self.demands(),
            blocks: self.blocks.live().map(|b| self.block_view(b)).collect(),
        }
    }

    /// What the tasks here want, those with equal needs together.
    fn demands(&self) -> Vec<Demand> {
        let mut demands: BTreeMap<(usize, u64, Option<JobId>), Demand> = BTreeMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, j)| j.waiting_count + j.placed > 0) {
            let Some(def) = &job.def else { continue };
            let class = &self.classes.all[job.class];
            if class.resources.nodes > 1 {
                // Not placed yet, so no block is wanted for them.
                continue;
            }
            let limit = def.spec.max_node_hours_milli.map(|_| *id);
            let needed_ms = def.spec.time_needed_ms.unwrap_or(0);
            let demand = demands.entry((job.class, needed_ms, limit)).or_insert_with(|| Demand {
                resources: class.resources.clone(),
                account: class.account.clone(),
                time_needed_ms: needed_ms,
                brake: limit.map(|job| Brake { job, left_node_ms: self.node_ms_left(job) }),
                ..Demand::default()
            });
            demand.waiting += job.available();
            demand.placed += job.placed;
        }
        for demand in demands.values_mut().filter(|d| d.waiting > 0) {
            demand.room = self.room_for(demand);
        }
        demands.into_values().collect()
    }

    /// Free slots for the tasks of a demand, by block; no more than it has tasks.
    fn room_for(&self, demand: &Demand) -> BTreeMap<BlockId, u64> {
        let mut room = BTreeMap::new();
        let mut found = 0;
        for manager in self.managers.values().filter(|m| m.usable() && m.pays_for(demand.account.as_deref()))
        {
            let fits = u64::from(manager.room(&demand.resources));
            if fits > 0 && manager.ends_at >= self.now.saturating_add(demand.time_needed_ms * 1_000) {
                *room.entry(manager.id.block).or_insert(0) += fits;
                found += fits;
            }
            if found >= demand.waiting {
                break;
            }
        }
        room
    }

    fn block_view(&self, block: &Block) -> BlockView {
        let record = &block.record;
        let managers = || block.managers.iter().filter_map(|h| self.managers.get(h));
        let leaving = block.drain.is_some()
            || block.cancel_asked
            || matches!(record.state, BlockState::Ending | BlockState::Impossible(_));
        let runs = !has_no_nodes(&record.state) || !block.managers.is_empty();
        let standing = match (leaving, runs) {
            (true, _) => Standing::Leaving,
            (false, true) => Standing::Running,
            (false, false) => Standing::Queued,
        };
        let late = block.heard_at.is_some_and(|at| self.now >= at + ABSENT_US);
        let absent = if late { 0 } else { record.nodes.saturating_sub(block.managers.len() as u32) };
        let left_ms = match standing {
            Standing::Queued => Some(record.walltime_ms),
            _ => block.ends_at.map(|at| at.saturating_sub(self.now) / 1_000),
        };
        let since = |at: Option<u64>| at.map_or(0, |at| (self.now - at) / 1_000);
        BlockView {
            block: record.block,
            shape: record.shape.clone(),
            account: record.account.clone(),
            standing,
            came_up: record.came_up,
            nodes: record.nodes,
            left_ms,
            absent_nodes: absent,
            free_parts: managers().filter(|m| m.usable()).map(|m| m.free_parts()).sum(),
            busy_nodes: managers().filter(|m| m.placed > 0).count() as u32,
            idle_for_ms: since(block.idle_since),
            few_for_ms: since(block.few_since),
            tail: block.tail,
            ahead: record.ahead,
            intended_node_ms: record.intended_node_ms(),
        }
    }

    fn carry_out(&mut self, plan: Plan) {
        let now = self.now;
        let mut changed = Vec::new();
        for (id, block) in self.blocks.all.iter_mut().filter(|(_, b)| !b.is_over()) {
            let since = |on: bool, at: Option<u64>| on.then(|| at.unwrap_or(now));
            block.idle_since = since(plan.idle.contains(id), block.idle_since);
            block.few_since = since(plan.few.contains(id), block.few_since);
            let tail = plan.tail.contains(id);
            // Its own emptiness does not end a tail: it is given back for it.
            if tail != block.tail && block.drain.is_none() && !(block.tail && plan.idle.contains(id)) {
                block.tail = tail;
                changed.push((*id, tail, block.managers.clone()));
            }
        }
        for (id, tail, managers) in changed {
            self.decide(match tail {
                true => {
                    format!("{id} is in its tail: few of its nodes have a task, and it gets new ones last")
                }
                false => format!("{id} is needed again"),
            });
            for manager in managers {
                if let Some(manager) = self.managers.get_mut(&manager) {
                    manager.last_choice = tail;
                }
            }
        }
        for (id, why) in plan.give_back {
            self.drain_block(id, &why, DRAIN_MS);
        }
        for (id, why) in plan.cancel {
            self.cancel_block(id, &why);
        }
        for ask in plan.submit {
            self.intend_block(ask);
        }
        self.report_dirty |= self.blocks.shape_words != plan.shapes;
        self.blocks.shape_words = plan.shapes;
    }

    fn intend_block(&mut self, ask: Ask) {
        self.blocks.roster.next_block += 1;
        let id = BlockId(self.blocks.roster.next_block);
        let name = format!("pf-{}-{id}-{:08x}", self.config.endpoint, self.config.incarnation as u32);
        let on = ask.account.as_ref().map(|a| format!(" on account {a}")).unwrap_or_default();
        let plural = if ask.nodes == 1 { "" } else { "s" };
        self.decide(format!("submit {id} ({}, {} node{plural}{on}): {}", ask.shape, ask.nodes, ask.why));
        let exclude = self.left_out(&ask.shape);
        let record = BlockRecord {
            block: id,
            name,
            nodes: ask.nodes,
            walltime_ms: ask.walltime_ms,
            shape: ask.shape,
            account: ask.account,
            job: ask.job,
            ahead: ask.ahead,
            exclude,
            ..BlockRecord::default()
        };
        self.roster_changed();
        let submit_after = Some(u64::MAX);
        let block = Block { record, fresh: true, submit_after, asked_here: true, ..Block::default() };
        self.blocks.all.insert(id, block);
        let version = self.save_roster();
        if let Some(block) = self.blocks.all.get_mut(&id) {
            block.submit_after = Some(version);
        }
    }

    // ---- Node-hours.

    /// Unix milliseconds.
    pub(crate) fn unix_ms(&self) -> u64 {
        self.config.clock_offset_ms + self.now / 1_000
    }

    /// Notes when blocks began, and how much of the time no task was on their nodes.
    fn count_node_time(&mut self) {
        let (now, now_ms) = (self.now, self.unix_ms());
        let passed_ms = (now - self.blocks.scaled_at) / 1_000;
        let mut began = false;
        for block in self.blocks.all.values_mut().filter(|b| !b.is_over()) {
            if has_no_nodes(&block.record.state) && block.managers.is_empty() {
                if block.heard_at.take().is_some() {
                    block.record.end_this_run(now_ms);
                }
                continue;
            }
            if block.record.started_ms.is_none() {
                if block.has_nodes() || !block.managers.is_empty() {
                    block.record.started_ms = Some(now_ms);
                    began = true;
                }
                continue;
            }
            let busy = block.managers.iter().filter_map(|h| self.managers.get(h)).filter(|m| m.placed > 0);
            let idle = u64::from(block.record.nodes).saturating_sub(busy.count() as u64);
            if self.blocks.scaled_at > 0 {
                block.record.idle_node_ms += idle * passed_ms;
            }
        }
        let any = self.blocks.live().any(|b| b.record.started_ms.is_some());
        if began || (any && now >= self.blocks.time_saved_at + TIME_SAVED_US) {
            self.blocks.time_saved_at = now;
            self.roster_changed();
        }
    }

    /// A block is over: what it used is used, whatever was intended.
    pub(crate) fn book_node_time(&mut self, id: BlockId) {
        let now_ms = self.unix_ms();
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        let record = &mut block.record;
        record.used_node_ms += record.part_node_ms(now_ms);
        record.idle_node_ms = record.idle_node_ms.min(record.used_node_ms);
        self.blocks.roster.used_node_ms += record.used_node_ms;
        self.blocks.roster.idle_node_ms += record.idle_node_ms;
    }
}
