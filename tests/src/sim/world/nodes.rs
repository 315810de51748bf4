//! Managers on their nodes, and the faults that strike everybody.

use super::*;

impl World {
    pub(super) fn plan_faults(&mut self) {
        let faults = self.plan.faults.clone();
        let when = |world: &mut World| world.rng.between(S, faults.until.max(2 * S));
        for _ in 0..faults.broker_kills {
            let at = when(self);
            self.at(at, Event::Kill(Party::Broker));
        }
        for _ in 0..faults.relay_kills {
            let at = when(self);
            self.at(at, Event::Kill(Party::Relay));
        }
        for _ in 0..faults.node_kills {
            let (at, which) = (when(self), self.rng.below(64) as usize);
            self.at(at, Event::Kill(Party::Manager(which)));
        }
        for _ in 0..faults.partitions {
            let (at, which) = (when(self), self.rng.below(64) as usize);
            let length = self.rng.between(S, 400 * S);
            self.at(at, Event::Partition { manager: which, on: true });
            self.at(at + length, Event::Partition { manager: which, on: false });
        }
    }

    pub(super) fn tell_manager(&mut self, place: usize, input: manager::Input) {
        if !self.nodes[place].alive {
            return;
        }
        if !matches!(input, manager::Input::TurnEnd) {
            self.dirty.insert(Party::Manager(place));
        }
        let mut out = Vec::new();
        self.nodes[place].core.handle(self.now, input, &mut out);
        for effect in out {
            self.manager_effect(place, effect);
        }
    }

    pub(super) fn manager_effect(&mut self, place: usize, effect: manager::Effect) {
        let party = Party::Manager(place);
        match effect {
            manager::Effect::Dial => self.manager_dials(place),
            manager::Effect::Frame { conn, bytes } => self.send(party, conn, bytes),
            manager::Effect::CloseConn { conn } => self.close(party, conn),
            manager::Effect::SetTimer { at } => {
                self.nodes[place].armed = at.map(|at| at.max(self.now));
                if let Some(at) = at {
                    self.at(at, Event::Timer { party, at: at.max(self.now) });
                }
            }
            manager::Effect::StartCommand(start) => {
                let lane = self.nodes[place].lanes.entry(start.lane).or_default();
                lane.push_back(*start);
                if let [first] = lane.make_contiguous() {
                    let first = first.clone();
                    self.command_starts(place, &first);
                }
            }
            manager::Effect::SignalCommand { attempt, signal } => {
                let at = self.now + MS;
                let status = manager::ProcessStatus::Signal(signal);
                self.at(at, Event::TaskEnds { manager: place, attempt, status });
            }
            manager::Effect::Spool { upto, batches } => {
                let block = self.nodes[place].block;
                if let Some(batch) = self.batches.get_mut(&block) {
                    batch.spools.extend(batches);
                }
                self.at(self.now + 5 * MS, Event::Spooled { manager: place, upto });
            }
            manager::Effect::Exit { .. } => {
                self.node_dies(place);
                self.end_if_empty(self.nodes[place].block);
            }
            worker => self.worker_effect(place, worker),
        }
    }

    fn command_starts(&mut self, place: usize, start: &manager::StartCommand) {
        let task = TaskId { job: start.job.job, index: start.index };
        self.truth.started(task, place, start.attempt);
        let paid = &self.batches[&self.nodes[place].block].account;
        let named = &start.job.spec.account;
        assert!(named.is_none() || named == paid, "{task} of {named:?} runs on hours of {paid:?}");
        self.check_item(task, number_of(&start.job.spec), &start.item, start.is_large);
        self.nodes[place].running.insert(start.attempt, task);
        let code = i32::from(self.expected(task) == OutcomeKind::Exit);
        let at = self.now + self.rng.between(MS, self.plan.task_ms_max * MS);
        let status = manager::ProcessStatus::Exit(code);
        self.at(at, Event::TaskEnds { manager: place, attempt: start.attempt, status });
        self.tell_manager(place, manager::Input::CommandStarted { attempt: start.attempt });
    }

    /// What waits in a lane behind the command that runs.
    pub(super) fn take_from_lane(&mut self, place: usize, lane: u32) -> Vec<AttemptId> {
        let lane = self.nodes[place].lanes.get_mut(&lane);
        lane.map_or_else(Vec::new, |lane| lane.drain(1..).map(|start| start.attempt).collect())
    }

    pub(super) fn manager_dials(&mut self, place: usize) {
        if self.relay.is_none() || self.nodes[place].cut_off {
            return self.tell_manager(place, manager::Input::Dialled { conns: vec![] });
        }
        let (at_manager, at_relay) = self.net.connect(Party::Manager(place), Party::Relay);
        let block = self.nodes[place].block;
        self.tell_manager(place, manager::Input::Dialled { conns: vec![at_manager] });
        self.tell_relay(relay::Input::Accepted { conn: at_relay, block });
        self.at(self.now + MS, Event::Connected { party: Party::Manager(place), conn: at_manager });
    }

    pub(super) fn task_ends(&mut self, place: usize, attempt: AttemptId, status: manager::ProcessStatus) {
        let Some(task) = self.nodes[place].running.remove(&attempt) else { return };
        self.truth.ended(task);
        let lanes = &mut self.nodes[place].lanes;
        let lane = lanes.iter().find(|(_, lane)| lane.front().is_some_and(|first| first.attempt == attempt));
        let lane = *lane.expect("a command that runs is the first of its lane").0;
        lanes.get_mut(&lane).map(VecDeque::pop_front);
        let next = lanes[&lane].front().cloned();
        if next.is_none() {
            lanes.remove(&lane);
        }
        let end = manager::ProcessEnd {
            status,
            ran_us: 1_000,
            usage: Usage::default(),
            out_of_memory: None,
            stderr_tail: String::new(),
        };
        self.tell_manager(place, manager::Input::CommandEnded { attempt, end });
        // Unless it was taken back, or everything ended, at this word.
        let first = |node: &Node, next: &manager::StartCommand| {
            node.lanes.get(&lane).and_then(VecDeque::front).is_some_and(|first| first.attempt == next.attempt)
        };
        if let Some(next) = next.filter(|next| first(&self.nodes[place], next)) {
            self.command_starts(place, &next);
        }
    }

    pub(super) fn node_dies(&mut self, place: usize) {
        if !std::mem::replace(&mut self.nodes[place].alive, false) {
            return;
        }
        for task in std::mem::take(&mut self.nodes[place].running).into_values() {
            self.truth.ended(task);
        }
        self.nodes[place].lanes.clear();
        self.workers_die(place);
        self.cut_all(Party::Manager(place));
    }

    pub(super) fn kill(&mut self, party: Party) {
        match party {
            Party::Broker => {
                if self.broker.take().is_none() {
                    return;
                }
                self.struck[2] += 1;
                self.cut_all(Party::Broker);
                self.broker_armed = None;
                let pending = (self.disk.appended() - self.disk.synced()) as u64;
                let kept = self.rng.below(pending + 1) as usize;
                self.disk.crash(kept);
                let at = self.now + self.rng.between(100 * MS, 30 * S);
                self.at(at, Event::StartBroker);
            }
            Party::Relay => {
                if self.relay.take().is_none() {
                    return;
                }
                self.struck[3] += 1;
                self.cut_all(Party::Relay);
                self.relay_armed = None;
                self.relay_life += 1;
                let at = self.now + self.rng.between(100 * MS, 60 * S);
                self.at(at, Event::StartRelay);
            }
            Party::Manager(which) => {
                let alive: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].alive).collect();
                if let Some(place) = alive.get(which % alive.len().max(1)).copied() {
                    self.struck[4] += 1;
                    self.node_dies(place);
                    self.end_if_empty(self.nodes[place].block);
                }
            }
        }
    }

    pub(super) fn partition(&mut self, which: usize, on: bool) {
        if self.nodes.is_empty() {
            return;
        }
        let place = which % self.nodes.len();
        if on {
            self.nodes[place].cut_off = true;
        } else {
            // Whichever were cut off are reachable again: `place` may be another one than when it began.
            self.nodes.iter_mut().for_each(|n| n.cut_off = false);
        }
    }

    /// What the relay reports.
    #[must_use]
    pub fn report(&self) -> Option<pf_protocol::report::EndpointReport> {
        self.relay.as_ref().map(relay::Relay::report)
    }

    /// A hash of everything that was ever appended to the log, with its time.
    #[must_use]
    pub fn log_hash(&self) -> String {
        content_hash(&self.log).to_string()
    }

    /// The relay's last decisions, to tell why a run went wrong.
    #[must_use]
    pub fn decisions(&self) -> String {
        let decisions = self.relay.as_ref().map(|r| r.report().decisions).unwrap_or_default();
        decisions.iter().map(|d| format!("\n  {} ms: {}", d.at_ms % 1_000_000_000, d.text)).collect()
    }

    /// Jobs that the client was promised.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobId> {
        self.truth.acknowledged.keys().copied().collect()
    }
}
