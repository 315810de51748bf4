//! What managers and pilots say: HELLO, inventories, outcomes, what they give back.

use crate::flight::{Flight, State};
use crate::manager::Manager;
use crate::queue::{Chunk, Job};
use crate::relay::{Peer, Relay};
use crate::scaling::Accounts;
use pf_protocol::limits::BATCH_TASKS_MAX;
use pf_protocol::message::{Confirm, Hello, Inventory, Message, PilotReport, Return, Started, Who};
use pf_protocol::outcome::{OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::{AttemptId, BlockId, ManagerId, Ranges, TaskId};

impl Relay {
    pub(crate) fn on_hello(&mut self, conn: u64, hello: Hello) {
        let key_of = match self.peers.get(&conn) {
            Some(Peer::Stranger(block) | Peer::Manager(block, _) | Peer::Pilot(block)) => *block,
            None => return,
        };
        if self.epoch.0 == 0 {
            return self.refuse(conn, "not_ready", "the relay has not reached its broker yet".into(), true);
        }
        if hello.epoch_seen > self.epoch {
            let message =
                format!("a relay of epoch {} was seen, this one is {}", hello.epoch_seen.0, self.epoch.0);
            return self.refuse(conn, "fenced", message, true);
        }
        if !self.blocks.is_live(key_of) {
            return self.refuse(conn, "ended", format!("block {key_of} is over"), false);
        }
        match hello.who {
            Who::Manager { manager, node, capacity, walltime_left_ms } if manager.block == key_of => {
                self.manager_hello(conn, manager, node, capacity, walltime_left_ms);
                if let Some(manager) =
                    self.manager_handles.get(&manager).and_then(|h| self.managers.get_mut(h))
                {
                    manager.version = hello.version_max.min(self.managers_link.version_max());
                }
            }
            Who::Pilot { block, incarnation, scheduler_id, nodes, walltime_left_ms, restarts }
                if block == key_of =>
            {
                self.see_restarts(block, restarts);
                self.pilot_hello(conn, block, incarnation, scheduler_id, nodes.len(), walltime_left_ms);
            }
            _ => self.refuse(conn, "not_allowed", format!("the key is that of block {key_of}"), false),
        }
    }

    fn manager_hello(
        &mut self,
        conn: u64,
        id: ManagerId,
        node: String,
        capacity: NodeCapacity,
        left_ms: u64,
    ) {
        let handle = match self.manager_handles.get(&id) {
            Some(handle) => *handle,
            None => {
                // Another process on the same node of the block: the launcher starts one at a time, so the old one has ended.
                let old = self.manager_handles.iter().find(|(k, _)| (k.block, k.node) == (id.block, id.node));
                if let Some(old) = old.map(|(_, h)| *h) {
                    self.bury(old, "another manager took its place", true);
                }
                let handle = self.new_handle();
                self.manager_handles.insert(id, handle);
                let mut manager = Manager::new(id, node, capacity);
                manager.since = self.now;
                manager.shunned = self.is_shunned(&manager.node);
                if let Some(block) = self.blocks.all.get(&id.block) {
                    let shape = self.config.scaling.shape(&block.record.shape);
                    manager.life = block.record.incarnation;
                    manager.account = block.record.account.clone();
                    // A shape that is configured no more: its blocks serve their own account.
                    manager.accounts = shape.map_or(Accounts::Any(None), |s| s.accounts.clone());
                    manager.last_choice = block.tail;
                }
                self.managers.insert(handle, manager);
                handle
            }
        };
        let ends_at = self.now.saturating_add(left_ms.saturating_mul(1_000));
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        let old_conn = manager.conn.replace(conn).filter(|old| *old != conn);
        manager.ends_at = ends_at;
        manager.away_since = self.now;
        manager.inventory = Inventory::default();
        (manager.inventory_complete, manager.judged) = (false, false);
        (manager.recall, manager.draining) = (None, false);
        manager.defined.clear();
        let unsent = std::mem::take(&mut manager.out);
        if let Some(old) = old_conn {
            self.peers.remove(&old);
            self.effects.push(crate::io::Effect::CloseConn { conn: old });
        }
        // Never sent: the inventory would say the same, this way it is known at once.
        for batch in unsent {
            for n in batch.first.n..batch.first.n + batch.tasks.len() as u32 {
                self.wait_again(AttemptId { n, ..batch.first });
            }
        }
        self.peers.insert(conn, Peer::Manager(id.block, handle));
        if self.welcome(conn) {
            self.block_heard(id.block, Some(handle));
        }
        self.refresh_room(handle);
    }

    fn pilot_hello(
        &mut self,
        conn: u64,
        id: BlockId,
        incarnation: u64,
        scheduler_id: Option<String>,
        nodes: usize,
        left_ms: u64,
    ) {
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        if block.pilot.is_some_and(|claimed| claimed != incarnation) {
            let message = format!("block {id} has a pilot already");
            return self.refuse(conn, "claimed", message, false);
        }
        block.pilot = Some(incarnation);
        // It is proof that the block runs, and in which run of its job: nobody has to wait for the scheduler's word.
        block.fresh = true;
        if block.record.scheduler_id.is_none() {
            // Its submit was never answered, but a job knows its own id.
            block.record.scheduler_id = scheduler_id;
        }
        let old = block.pilot_conn.replace(conn).filter(|old| *old != conn);
        block.ends_at = Some(self.now.saturating_add(left_ms.saturating_mul(1_000)));
        if nodes > 0 {
            block.record.nodes = nodes as u32;
        }
        if let Some(old) = old {
            self.peers.remove(&old);
            self.effects.push(crate::io::Effect::CloseConn { conn: old });
        }
        self.peers.insert(conn, Peer::Pilot(id));
        if self.welcome(conn) {
            self.block_heard(id, None);
        }
    }

    pub(crate) fn on_peer_down(&mut self, conn: u64, reason: &str, done: bool) {
        match self.peers.get(&conn).copied() {
            Some(Peer::Manager(block, handle)) => {
                self.peers.insert(conn, Peer::Stranger(block));
                let Some(manager) = self.managers.get_mut(&handle).filter(|m| m.conn == Some(conn)) else {
                    return;
                };
                manager.conn = None;
                manager.away_since = self.now;
                self.refresh_room(handle);
                if done {
                    self.bury_after_spools(block, handle, "it ended in order");
                } else {
                    self.decide(format!("wait for manager {}: {reason}", self.name(handle)));
                }
                self.poll_blocks_now();
            }
            Some(Peer::Pilot(id)) => {
                self.peers.insert(conn, Peer::Stranger(id));
                if let Some(block) = self.blocks.all.get_mut(&id).filter(|b| b.pilot_conn == Some(conn)) {
                    block.pilot_conn = None;
                }
                self.poll_blocks_now();
            }
            _ => {}
        }
    }

    pub(crate) fn on_manager_message(&mut self, handle: u32, message: Message) {
        match message {
            Message::Outcomes(outcomes) => {
                for batch in outcomes.batches {
                    self.take_outcomes(handle, batch);
                }
            }
            Message::Inventory(page) => self.on_inventory(handle, page),
            Message::Started(started) => self.on_started(handle, started),
            Message::Recalled(recalled) => {
                if let Some(manager) = self.managers.get_mut(&handle) {
                    manager.recall = None;
                }
                // Newest first, each to the front of its queue: the old order is kept.
                let mut attempts = recalled.attempts;
                attempts.sort_unstable();
                self.given_back(handle, &attempts);
            }
            Message::Refused(refused) => {
                let text = format!(
                    "manager {} refused {} tasks: {}",
                    self.name(handle),
                    refused.attempts.len(),
                    refused.reason
                );
                self.decide(text);
                self.given_back(handle, &refused.attempts);
            }
            Message::Load(load) => {
                if let Some(manager) = self.managers.get_mut(&handle) {
                    manager.load = load.load;
                    self.report_dirty = true;
                }
            }
            _ => {}
        }
    }

    fn given_back(&mut self, handle: u32, attempts: &[AttemptId]) {
        for attempt in attempts.iter().rev() {
            if self.find(*attempt).is_some_and(|f| f.manager == handle) {
                self.wait_again(*attempt);
            }
        }
        if self.stopping.is_some() {
            self.return_waiting();
        }
    }

    fn on_inventory(&mut self, handle: u32, page: Inventory) {
        let Some(manager) = self.managers.get_mut(&handle).filter(|m| !m.inventory_complete) else { return };
        manager.inventory.held.extend(page.held);
        manager.inventory.running.extend(page.running);
        manager.inventory.ended.extend(page.ended);
        if !page.last {
            return;
        }
        manager.inventory_complete = true;
        let (conn, seq) = (manager.conn, manager.confirmed_seq);
        if let Some(conn) = conn.filter(|_| seq > 0) {
            self.tell_peer(conn, Confirm { upto: seq });
        }
        if self.recovery.settled || self.recovery.list_complete() {
            self.judge(handle);
        }
        self.check_barrier();
    }

    fn on_started(&mut self, handle: u32, started: Started) {
        for task in &started.tasks {
            if self.find(task.attempt).is_some_and(|f| f.manager == handle) {
                self.mark_started(task.attempt);
            }
        }
        self.tell_broker(started);
    }

    /// Books the ends of attempts and passes the batch on as it is.
    pub(crate) fn take_outcomes(&mut self, handle: u32, batch: OutcomeBatch) {
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        if batch.manager != manager.id || batch.seq == 0 || batch.outcomes.len() > BATCH_TASKS_MAX * 16 {
            return;
        }
        if batch.seq <= manager.received_seq {
            // Sent again after a broken session. If it is confirmed, the manager missed that.
            if batch.seq <= manager.confirmed_seq {
                let seq = manager.confirmed_seq;
                self.confirms.insert(batch.manager, seq);
            }
            return;
        }
        manager.received_seq = batch.seq;
        self.block_works(batch.manager.block);
        self.end_attempts(&batch);
        self.outbox.push(batch);
    }

    /// Books the ends of the attempts of a batch, one job after another.
    pub(crate) fn end_attempts(&mut self, batch: &OutcomeBatch) {
        for run in batch.outcomes.chunk_by(|a, b| a.job == b.job) {
            let (mut sum_us, mut count) = (0, 0);
            for outcome in run {
                self.end_attempt(outcome.attempt);
                if outcome.ran == Ran::Yes && outcome.kind != OutcomeKind::Cancelled {
                    sum_us += outcome.ran_us;
                    count += 1;
                }
            }
            let id = run[0].job;
            if let Some(job) = self.jobs.get_mut(&id) {
                job.measured(sum_us, count);
            }
            self.count_use(id, batch.manager, sum_us);
            self.see_ends(id, &batch.node, run);
            self.make_ready(id);
            self.retire(id);
        }
    }

    /// The flight of an attempt that is not over.
    pub(crate) fn find(&self, attempt: AttemptId) -> Option<&Flight> {
        let (_, flight) = self.flights.range(..=attempt).next_back()?;
        let place = flight.place(attempt)?;
        (flight.state(place) != State::Over).then_some(flight)
    }

    pub(crate) fn mark_started(&mut self, attempt: AttemptId) {
        let flight = self.flights.range_mut(..=attempt).next_back();
        if let Some((flight, place)) = flight.and_then(|(_, f)| f.place(attempt).map(|p| (f, p))) {
            flight.start(place);
        }
    }

    pub(crate) fn live_attempts(&self, handle: u32) -> Vec<AttemptId> {
        let Some(manager) = self.managers.get(&handle) else { return Vec::new() };
        let flights = manager.flights.iter().filter_map(|f| self.flights.get(f));
        flights.flat_map(|f| f.live_places().map(|p| f.attempt(p))).collect()
    }

    /// Takes an attempt out of the books: its slot is free. None if it was not in them.
    pub(crate) fn end_attempt(&mut self, attempt: AttemptId) -> Option<(TaskId, State)> {
        let (_, flight) = self.flights.range_mut(..=attempt).next_back()?;
        let place = flight.place(attempt)?;
        let state = flight.state(place);
        if !flight.end(place) {
            return None;
        }
        let (job_id, handle, class, first) = (flight.job, flight.manager, flight.class, flight.first);
        let task = TaskId { job: job_id, index: flight.index(place) };
        self.placed_bytes -= flight.item_len(place);
        let landed = flight.live() == 0;
        if landed {
            self.flights.remove(&first);
        }
        let class_state = &mut self.classes.all[class];
        class_state.placed -= 1;
        if let Some(manager) = self.managers.get_mut(&handle) {
            manager.count(class, &class_state.resources, -1);
            if manager.suspect == Some(attempt) {
                manager.suspect = None;
            }
            if landed {
                manager.flights.remove(&first);
            }
        }
        self.touch(handle);
        if let Some(job) = self.jobs.get_mut(&job_id) {
            job.placed -= 1;
        }
        Some((task, state))
    }

    /// An attempt that provably did not start: the task waits again, here or at the broker, or ends as cancelled if that was asked.
    pub(crate) fn wait_again(&mut self, attempt: AttemptId) {
        let flight = self.find(attempt).and_then(|f| f.place(attempt).map(|p| (f.chunk(p), f.adopted)));
        let Some((chunk, adopted)) = flight else { return };
        let Some((task, _)) = self.end_attempt(attempt) else { return };
        let cancelled = self.jobs.get(&task.job).is_some_and(|j| j.cancelled.contains(task.index));
        if cancelled {
            self.made_cancelled(task.job, &Ranges::from_range(task.index, 1));
            self.make_ready(task.job);
        } else if adopted {
            // Its item is not here. Without a session the broker learns from the next list of what is held.
            self.tell_broker(Return { jobs: vec![(task.job, Ranges::from_range(task.index, 1))] });
        } else {
            self.enqueue(task.job, chunk, true);
        }
        self.retire(task.job);
    }

    /// Takes an attempt of an earlier relay into the books.
    pub(crate) fn adopt(&mut self, handle: u32, task: TaskId, attempt: AttemptId) {
        if self.flights.range(..=attempt).next_back().is_some_and(|(_, f)| f.place(attempt).is_some()) {
            return;
        }
        let chunk = Chunk::single(task.index, bytes::Bytes::new(), None, 0);
        let job = self.jobs.entry(task.job).or_insert_with(Job::new);
        job.placed += 1;
        let class = job.class;
        let mut flight = Flight::new(task.job, handle, attempt, class, &chunk, self.now);
        flight.adopted = true;
        self.book(handle, flight);
    }

    /// Counts a flight in at its manager. Its job has counted it already.
    pub(crate) fn book(&mut self, handle: u32, flight: Flight) {
        let (class, live) = (flight.class, flight.live());
        let class_state = &mut self.classes.all[class];
        class_state.placed += u64::from(live);
        if let Some(manager) = self.managers.get_mut(&handle) {
            manager.count(class, &class_state.resources, i64::from(live));
            manager.flights.insert(flight.first);
        }
        self.touch(handle);
        self.flights.insert(flight.first, flight);
    }

    /// Cancels that were asked for while the manager was away.
    pub(crate) fn repeat_cancels(&mut self, handle: u32) {
        let mut asked: [Vec<AttemptId>; 2] = [Vec::new(), Vec::new()];
        for attempt in self.live_attempts(handle) {
            let Some(flight) = self.find(attempt) else { continue };
            let Some(job) = self.jobs.get(&flight.job).filter(|j| !j.cancelled.is_empty()) else { continue };
            if flight.place(attempt).is_some_and(|p| job.cancelled.contains(flight.index(p))) {
                asked[usize::from(job.cancel_kill)].push(attempt);
            }
        }
        for (kill, attempts) in [false, true].into_iter().zip(asked) {
            if !attempts.is_empty() {
                self.cancel_at(handle, attempts, kill);
            }
        }
    }

    pub(crate) fn on_pilot_message(&mut self, id: BlockId, message: Message) {
        let Message::PilotReport(PilotReport { walltime_left_ms, ended }) = message else { return };
        let Some(block) = self.blocks.all.get_mut(&id) else { return };
        block.ends_at = Some(self.now.saturating_add(walltime_left_ms.saturating_mul(1_000)));
        let members: Vec<(u16, u32)> =
            block.managers.iter().filter_map(|h| self.managers.get(h).map(|m| (m.id.node, *h))).collect();
        for (node, how) in ended {
            if let Some(&(_, handle)) = members.iter().find(|(n, _)| *n == node) {
                self.bury_after_spools(id, handle, &format!("its process ended: {how}"));
            }
        }
    }

    /// `b7/0`.
    pub(crate) fn name(&self, handle: u32) -> String {
        self.managers.get(&handle).map_or_else(|| "?".into(), |m| m.id.to_string())
    }
}
