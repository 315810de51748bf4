//! The relay in its lives.

use super::*;

impl World {
    pub(super) fn start_relay(&mut self) {
        if self.relay.is_some() {
            return;
        }
        self.relay_life += 1;
        let shapes = if self.plan.shapes.is_empty() {
            let (nodes, walltime_ms) = (self.plan.nodes, self.plan.walltime_ms);
            vec![relay::Shape { nodes, walltime_ms, ..relay::Shape::default() }]
        } else {
            self.plan.shapes.clone()
        };
        let scaling = relay::Scaling { max_blocks: self.plan.blocks, shapes, ..relay::Scaling::default() };
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
            relay::Effect::RefreshTickets { .. }
            | relay::Effect::BlockOver { .. }
            | relay::Effect::TidyBlocks { .. } => {}
            relay::Effect::Submit { record } => self.submit(&record),
            relay::Effect::QueryBlocks { blocks } => {
                let seen = blocks.iter().filter_map(|b| self.seen(b.block)).collect();
                self.relay_hears(50 * MS, relay::Input::Blocks { seen: Ok(seen) });
            }
            relay::Effect::CancelBlock { record, .. } => {
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
            relay::Effect::NotYet { .. } => {}
            relay::Effect::PayloadWrite { .. }
            | relay::Effect::PayloadRead { .. }
            | relay::Effect::PayloadDrop { .. }
            | relay::Effect::PayloadsDrop { .. }
            | relay::Effect::PayloadsKeep { .. } => self.payload_effect(effect),
            relay::Effect::Exit { reason, .. } => panic!("the relay gave up: {reason}"),
        }
    }
}
