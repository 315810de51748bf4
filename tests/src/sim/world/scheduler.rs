//! The batch scheduler that the relay asks for blocks: a queue, a limit for each user, walltimes, preemption; or a set-up in which every block
//! dies young.

use super::*;

impl World {
    pub(super) fn submit(&mut self, record: &relay::BlockRecord) {
        self.submits.push((self.now, record.shape.clone(), record.account.clone()));
        let there = self.batches.values().filter(|b| !matches!(b.state, BlockState::Ended(_))).count();
        if self.plan.scheduler.jobs_max.is_some_and(|most| there >= most as usize) {
            self.later += 1;
            let result = relay::SubmitResult::Later("QOSMaxSubmitJobPerUserLimit".into());
            return self.relay_hears(200 * MS, relay::Input::Submitted { block: record.block, result });
        }
        let id = format!("{}", 1000 + record.block.0);
        let batch = Batch {
            name: record.name.clone(),
            id: id.clone(),
            state: BlockState::Queued("Priority".into()),
            nodes: Vec::new(),
            size: record.nodes,
            walltime_ms: record.walltime_ms,
            ends: 0,
            spools: Vec::new(),
            account: record.account.clone(),
        };
        assert!(self.batches.insert(record.block, batch).is_none(), "{} was submitted twice", record.block);
        let input =
            relay::Input::Submitted { block: record.block, result: relay::SubmitResult::Accepted(id) };
        self.relay_hears(200 * MS, input);
        let (least, most) = self.plan.scheduler.wait;
        let at = self.now + self.rng.between(least, most);
        self.at(at, Event::BlockStarts { block: record.block });
    }

    pub(super) fn seen(&self, block: BlockId) -> Option<relay::Seen> {
        let batch = self.batches.get(&block)?;
        let left =
            matches!(batch.state, BlockState::Running).then(|| batch.ends.saturating_sub(self.now) / MS);
        Some(relay::Seen {
            scheduler_id: batch.id.clone(),
            name: batch.name.clone(),
            state: batch.state.clone(),
            walltime_left_ms: left,
            restarts: None,
        })
    }

    pub(super) fn block_starts(&mut self, block: BlockId) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        if !matches!(batch.state, BlockState::Queued(_)) {
            return;
        }
        batch.state = BlockState::Running;
        if self.plan.scheduler.broken {
            let at = self.now + self.rng.between(S, 5 * S);
            return self.at(at, Event::BlockIsKilled { block, how: BlockEnd::Failed(127) });
        }
        let ends = self.now + batch.walltime_ms * MS;
        batch.ends = ends;
        let size = batch.size;
        if self.rng.chance(self.plan.scheduler.preempt_ppm) {
            let at = self.now + self.rng.between(S, 300 * S);
            self.at(at, Event::BlockIsKilled { block, how: BlockEnd::Preempted });
        }
        self.at(ends, Event::BlockIsKilled { block, how: BlockEnd::Walltime });
        for node in 0..size {
            let place = self.nodes.len();
            let config = manager::ManagerConfig {
                manager: ManagerId { block, node: node as u16, incarnation: self.rng.any() },
                node: format!("n{place}"),
                pid: place as u32,
                clock_ms: 0,
                shape: manager::NodeShape::unpinned(self.plan.cores),
                walltime_end: ends,
                epoch_seen: Default::default(),
                timing: Timing::default(),
            };
            let core = manager::ManagerCore::new(config, self.now);
            let running = BTreeMap::new();
            self.nodes.push(Node {
                core,
                block,
                alive: true,
                cut_off: false,
                running,
                lanes: BTreeMap::new(),
                armed: None,
            });
            if let Some(batch) = self.batches.get_mut(&block) {
                batch.nodes.push(place);
            }
            self.tell_manager(place, manager::Input::Start);
        }
    }

    pub(super) fn block_is_killed(&mut self, block: BlockId, how: BlockEnd) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        if matches!(batch.state, BlockState::Ended(_)) {
            return;
        }
        batch.state = BlockState::Ended(how);
        for place in batch.nodes.clone() {
            self.node_dies(place);
        }
    }

    /// A block whose managers have all ended by themselves is over.
    pub(super) fn end_if_empty(&mut self, block: BlockId) {
        let Some(batch) = self.batches.get_mut(&block) else { return };
        let over = batch.nodes.iter().all(|place| !self.nodes[*place].alive);
        if over && !matches!(batch.state, BlockState::Ended(_)) {
            batch.state = BlockState::Ended(BlockEnd::Completed);
        }
    }
}
