//! The relay, and the batch scheduler that it asks for blocks.

use super::*;

impl World {
    pub(super) fn start_relay(&mut self) {
        if self.relay.is_some() {
            return;
        }
        self.relay_life += 1;
        let scaling = relay::Scaling {
            max_blocks: self.plan.blocks,
            nodes_per_block: self.plan.nodes,
            walltime_ms: self.plan.walltime_ms,
            ..relay::Scaling::default()
        };
        let config = relay::Config {
            host: "login1".into(),
            incarnation: self.rng.any(),
            clock_offset_ms: 1_700_000_000_000,
            scaling,
            ..relay::Config::default()
        };
        self.relay = Some(relay::Relay::new(config, self.roster.clone()));
        self.tell_relay(relay::Input::Start);
        self.relay_dials();
    }

    pub(super) fn relay_dials(&mut self) {
        let connected = self.net.conns(Party::Broker).len();
        if self.relay.is_none() || self.broker.is_none() || connected > 0 {
            return;
        }
        let (at_relay, at_broker) = self.net.connect(Party::Relay, Party::Broker);
        self.tell_broker(broker::Input::Accepted { conn: at_broker, peer: None });
        self.tell_relay(relay::Input::BrokerConnected { conn: at_relay });
    }

    pub(super) fn tell_relay(&mut self, input: relay::Input) {
        let Some(mut core) = self.relay.take() else { return };
        if input != relay::Input::TurnEnd {
            self.dirty.insert(Party::Relay);
        }
        let mut out = Vec::new();
        core.handle(self.now, input, &mut out);
        self.relay = Some(core);
        for effect in out {
            self.relay_effect(effect);
        }
    }

    pub(super) fn relay_hears(&mut self, delay: Micros, input: relay::Input) {
        let at = self.now + delay;
        self.at(at, Event::ToRelay { life: self.relay_life, input: Box::new(input) });
    }

    pub(super) fn relay_effect(&mut self, effect: relay::Effect) {
        match effect {
            relay::Effect::Frame { conn, bytes } => self.send(Party::Relay, conn, bytes),
            relay::Effect::CloseConn { conn } => self.close(Party::Relay, conn),
            relay::Effect::SetTimer { at } => {
                self.relay_armed = Some(at.max(self.now));
                self.at(at, Event::Timer { party: Party::Relay, at: at.max(self.now) });
            }
            relay::Effect::SaveRoster { roster } => {
                let version = roster.version;
                // The write is atomic: a crash before its end would leave the old one, which here never happens in between.
                self.roster = roster;
                self.relay_hears(2 * MS, relay::Input::RosterSaved { version });
            }
            relay::Effect::RefreshTickets { .. } | relay::Effect::BlockOver { .. } => {}
            relay::Effect::Submit { record } => self.submit(&record),
            relay::Effect::QueryBlocks { blocks } => {
                let seen = blocks.iter().filter_map(|b| self.seen(b.block)).collect();
                self.relay_hears(50 * MS, relay::Input::Blocks { seen: Ok(seen) });
            }
            relay::Effect::CancelBlock { record } => {
                self.at(
                    self.now + 100 * MS,
                    Event::BlockIsKilled { block: record.block, how: BlockEnd::Cancelled },
                );
                self.relay_hears(
                    50 * MS,
                    relay::Input::BlockCancelled { block: record.block, result: Ok(()) },
                );
            }
            relay::Effect::ReadSpools { record } => {
                let spools = self.batches.get(&record.block).map(|b| b.spools.clone()).unwrap_or_default();
                let input = relay::Input::SpoolsRead { block: record.block, result: Ok(spools) };
                self.relay_hears(20 * MS, input);
                self.relay_hears(
                    20 * MS,
                    relay::Input::BlockLog { block: record.block, tail: String::new() },
                );
            }
            relay::Effect::ReadLog { .. } | relay::Effect::ReadBlockLog { .. } => {}
            relay::Effect::Exit { reason, .. } => panic!("the relay gave up: {reason}"),
        }
    }

    pub(super) fn submit(&mut self, record: &relay::BlockRecord) {
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
        };
        assert!(self.batches.insert(record.block, batch).is_none(), "{} was submitted twice", record.block);
        let input =
            relay::Input::Submitted { block: record.block, result: relay::SubmitResult::Accepted(id) };
        self.relay_hears(200 * MS, input);
        let at = self.now + self.rng.between(500 * MS, 20 * S);
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
        let ends = self.now + batch.walltime_ms * MS;
        batch.ends = ends;
        let size = batch.size;
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
            self.nodes.push(Node { core, block, alive: true, cut_off: false, running, armed: None });
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
