//! What the loss of a manager means: to its tasks, to its block, and to the books.

use crate::flight::State;
use crate::limits::LEASE_MARGIN_MS;
use crate::relay::{Peer, Relay};
use pf_protocol::job::OnLost;
use pf_protocol::limits::{BATCH_TASKS_MAX, HEARTBEAT_MS_MIN, LEASE_MS, SILENT_INTERVALS};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::report::{BlockEnd, BlockState};

impl Relay {
    /// Managers that have been away for so long that they have killed everything by themselves.
    pub(crate) fn bury_the_silent(&mut self) {
        // Many managers beat more slowly, and notice a cut later.
        let slower_ms = (self.heartbeat_ms() - HEARTBEAT_MS_MIN) * SILENT_INTERVALS;
        let lease_us = (2 * LEASE_MS + LEASE_MARGIN_MS + slower_ms) * 1_000;
        let gone: Vec<u32> = self
            .managers
            .iter()
            .filter(|(_, m)| m.conn.is_none() && self.now >= m.away_since + lease_us && !m.flights.is_empty())
            .map(|(handle, _)| *handle)
            .collect();
        for handle in gone {
            self.bury(handle, "it was not heard for twice its lease", false);
        }
    }

    /// The manager is lost: each of its attempts ends with an outcome. Without proof (its lease is over, no more), tasks whose job says
    /// `wait` stay in the books until there is proof, and so does the manager.
    pub(crate) fn bury(&mut self, handle: u32, why: &str, proof: bool) {
        let Some(manager) = self.managers.get(&handle) else { return };
        let (id, node, lived_us) = (manager.id, manager.node.clone(), self.now - manager.since);
        if self.blocks.all.get(&id.block).is_some_and(|b| b.drain.is_none() && !b.is_over()) {
            self.see_death(&node, lived_us);
        }
        let kind = self.loss_of(handle);
        let mut batch = self.own_batch(id, &node);
        for attempt in self.live_attempts(handle) {
            let Some(flight) = self.find(attempt) else { continue };
            let job = self.jobs.get(&flight.job);
            let policy = job.and_then(|j| j.def.as_ref()).map_or(OnLost::Rerun, |d| d.spec.on_lost);
            if !proof && policy == OnLost::Wait {
                continue;
            }
            let lost_us = self.now - flight.since;
            let Some((task, state)) = self.end_attempt(attempt) else { continue };
            self.count_use(task.job, id, lost_us);
            let cancelled =
                self.jobs.get(&task.job).is_some_and(|j| j.cancel_kill && j.cancelled.contains(task.index));
            batch.outcomes.push(Outcome {
                job: task.job,
                index: task.index,
                attempt,
                kind: if cancelled { OutcomeKind::Cancelled } else { kind },
                ran: if state == State::Started { Ran::Yes } else { Ran::Unknown },
                error: Some(Box::new(ErrorDetail {
                    message: format!("manager {id} on {node} was lost: {why}"),
                    ..ErrorDetail::default()
                })),
                ..Outcome::default()
            });
            self.make_ready(task.job);
            self.retire(task.job);
        }
        let count = batch.outcomes.len();
        batch.outcomes.sort_unstable_by_key(|o| (o.job, o.index));
        if count > 0 {
            self.decide(format!("{count} attempts of manager {id} on {node} are lost: {why}"));
            for page in batch.outcomes.chunks(BATCH_TASKS_MAX) {
                self.outbox.push(OutcomeBatch { outcomes: page.to_vec(), ..self.own_batch(id, &node) });
            }
        }
        if proof {
            self.remove_manager(handle);
        } else {
            self.refresh_room(handle);
        }
    }

    /// What the loss of a manager of this block is to a task: no suspicion falls on it when the scheduler itself took the node away.
    fn loss_of(&self, handle: u32) -> OutcomeKind {
        let manager = self.managers.get(&handle);
        let record = manager.and_then(|m| Some((m, &self.blocks.all.get(&m.id.block)?.record)));
        match record.map(|(_, record)| &record.state) {
            _ if record.is_some_and(|(manager, record)| manager.life < record.incarnation) => {
                OutcomeKind::Lost
            }
            Some(BlockState::Ended(
                BlockEnd::Walltime | BlockEnd::Preempted | BlockEnd::NodeFailed | BlockEnd::Cancelled,
            )) => OutcomeKind::Lost,
            _ => OutcomeKind::NodeLost,
        }
    }

    fn remove_manager(&mut self, handle: u32) {
        let Some(manager) = self.managers.remove(&handle) else { return };
        if let Some(key) = manager.room_key {
            self.room.remove(&(key, handle));
        }
        self.hungry.remove(&handle);
        self.talkative.remove(&handle);
        self.manager_handles.remove(&manager.id);
        if let Some(block) = self.blocks.all.get_mut(&manager.id.block) {
            block.managers.remove(&handle);
        }
        if let Some(conn) = manager.conn {
            self.peers.insert(conn, Peer::Stranger(manager.id.block));
        }
        self.report_dirty = true;
    }
}
