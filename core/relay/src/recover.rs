//! The recovery barrier. After WELCOME the broker sends what it believes to be here (`Unfinished`); the relay answers with what it holds (`Holding`)
//! once it can know: after a restart, when every manager of every running block has told its inventory, or the block's end is proven, or grace
//! is over. Before that nothing is dispatched.

use crate::blocks::Block;
use crate::limits::WINDOW_US;
use crate::relay::Relay;
use pf_protocol::limits::LIST_ITEMS_MAX;
use pf_protocol::message::{Credit, Holding, Rest, Unfinished, UnfinishedJob, Verdict};
use pf_protocol::report::BlockState;
use pf_protocol::{AttemptId, JobId, Micros, Ranges, TaskId};
use std::collections::BTreeMap;

/// Where this session with the broker is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Down,
    /// Pages of `Unfinished` are coming.
    Listening,
    /// All pages are here; the barrier is not passed.
    Waiting,
    /// `Holding` was sent.
    Ready,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    phase: Phase,
    /// Whether the barrier was passed in this process's life.
    pub settled: bool,
    pub unfinished: BTreeMap<JobId, UnfinishedJob>,
    pub give_up_at: Micros,
    /// What is known of tasks of an earlier relay that nobody here holds.
    rest: Rest,
}

impl Recovery {
    /// The broker has acted on the list of what is held: from now on what is not held was lost on its way here.
    pub fn list_was_taken(&mut self) {
        if self.rest == Rest::Over {
            self.rest = Rest::NotStarted;
        }
    }

    /// Whether work may flow.
    pub fn ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether the broker's list is complete, so that inventories can be judged.
    pub fn list_complete(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Ready)
    }
}

impl Relay {
    /// A session with the broker began.
    pub(crate) fn recovery_begins(&mut self) {
        self.recovery.phase = Phase::Listening;
        self.recovery.unfinished.clear();
        self.credit = Default::default();
        self.outbox.restart();
        self.pulls_begin_anew();
    }

    pub(crate) fn recovery_ends(&mut self) {
        self.recovery.phase = Phase::Down;
    }

    pub(crate) fn on_unfinished(&mut self, page: Unfinished) {
        if self.recovery.phase != Phase::Listening {
            return;
        }
        for job in page.jobs {
            let known = self.recovery.unfinished.entry(job.job).or_default();
            known.job = job.job;
            known.tasks.union_with(&job.tasks);
            known.cancel.union_with(&job.cancel);
            known.kill |= job.kill;
        }
        if page.last {
            self.recovery.phase = Phase::Waiting;
            self.drop_what_is_finished();
            self.keep_payloads_of(self.recovery.unfinished.keys().copied().collect());
            self.judge_all();
            self.check_barrier();
        }
    }

    fn is_unfinished(&self, task: TaskId) -> bool {
        self.recovery.unfinished.get(&task.job).is_some_and(|u| u.tasks.contains(task.index))
    }

    /// What is held beyond the broker's list is dropped: it has an outcome already, or was given up.
    fn drop_what_is_finished(&mut self) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            let mut beyond: Ranges = self.sorted_waiting(job);
            if let Some(listed) = self.recovery.unfinished.get(&job) {
                beyond.subtract(&listed.tasks);
            }
            self.forget_waiting(job, &beyond);
        }
        let mut doomed = Vec::new();
        for flight in self.flights.values() {
            for place in flight.live_places() {
                if !self.is_unfinished(TaskId { job: flight.job, index: flight.index(place) }) {
                    doomed.push((flight.manager, flight.attempt(place)));
                }
            }
        }
        let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
        for (handle, attempt) in doomed {
            if let Some((task, _)) = self.end_attempt(attempt) {
                self.make_ready(task.job);
            }
            verdicts.entry(handle).or_default().drop.push(attempt);
        }
        for (handle, verdict) in verdicts {
            let judged = self.managers.get(&handle).filter(|m| m.judged).and_then(|m| m.conn);
            if let Some(conn) = judged {
                self.tell_peer(conn, verdict);
            }
        }
    }

    fn sorted_waiting(&self, job: JobId) -> Ranges {
        let mut waiting: Vec<u32> =
            self.jobs.get(&job).map(|j| j.waiting_tasks().collect()).unwrap_or_default();
        waiting.sort_unstable();
        waiting.into_iter().collect()
    }

    /// Judges the inventories that came before the list.
    fn judge_all(&mut self) {
        let waiting: Vec<u32> = self
            .managers
            .iter()
            .filter(|(_, m)| m.inventory_complete && !m.judged && m.conn.is_some())
            .map(|(h, _)| *h)
            .collect();
        for handle in waiting {
            self.judge(handle);
        }
    }

    /// The verdict on a manager's inventory: what is known or unclaimed is kept, the rest dropped; what it never got waits again.
    pub(crate) fn judge(&mut self, handle: u32) {
        let settled = self.recovery.settled;
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        let Some(conn) = manager.conn else { return };
        manager.judged = true;
        let inventory = std::mem::take(&mut manager.inventory);
        let mut claimed: Vec<AttemptId> = Vec::new();
        let mut verdict = Verdict::default();
        let parts =
            [(inventory.held, false, false), (inventory.running, true, false), (inventory.ended, true, true)];
        for (list, started, ended) in parts {
            for (task, attempt) in list {
                if self.find(attempt).is_some_and(|f| f.manager == handle) {
                    claimed.push(attempt);
                } else if !settled && self.is_unfinished(task) {
                    self.adopt(handle, task, attempt);
                    claimed.push(attempt);
                } else if !ended {
                    verdict.drop.push(attempt);
                    continue;
                }
                if started {
                    self.mark_started(attempt);
                }
            }
        }
        claimed.sort_unstable();
        if !verdict.drop.is_empty() {
            let count = verdict.drop.len();
            self.decide(format!(
                "drop {count} attempts of manager {}: they are not wanted any more",
                self.name(handle)
            ));
            self.tell_peer(conn, verdict);
        }
        self.requeue_unclaimed(handle, &claimed);
        self.repeat_cancels(handle);
        self.refresh_room(handle);
    }

    /// What the books say is at this manager and its inventory does not name never arrived there.
    fn requeue_unclaimed(&mut self, handle: u32, claimed: &[AttemptId]) {
        for attempt in self.live_attempts(handle) {
            if claimed.binary_search(&attempt).is_err() {
                self.wait_again(attempt);
            }
        }
    }

    /// Passes the barrier if it can be passed.
    pub(crate) fn check_barrier(&mut self) {
        if self.recovery.phase == Phase::Ready && self.recovery.rest == Rest::Unknown {
            // What nobody answered for may be proven over meanwhile.
            self.recovery.rest = self.what_of_the_rest();
            if self.recovery.rest != Rest::Unknown {
                self.send_holding();
            }
        }
        if self.recovery.phase != Phase::Waiting {
            return;
        }
        if !self.recovery.settled {
            let missing = self.barrier_misses();
            let given_up = self.now >= self.recovery.give_up_at;
            if missing.is_some() && !given_up {
                return;
            }
            if let Some(what) = missing {
                self.decide(format!("go on without waiting any longer: {what}"));
            }
            self.recovery.settled = true;
            self.recovery.rest = self.what_of_the_rest();
        }
        self.apply_listed_cancels();
        self.send_holding();
        self.recovery.phase = Phase::Ready;
        self.recovery.unfinished.clear();
        self.report_dirty = true;
        self.scale();
    }

    /// What is known of the tasks that an earlier relay placed and that nobody told of.
    fn what_of_the_rest(&self) -> Rest {
        let of_block = |block: &Block| match &block.record.state {
            _ if self.block_misses(block).is_some() => Rest::Unknown,
            BlockState::Ended(_) => Rest::Over,
            _ if block.restarted => Rest::Over,
            _ => Rest::NotStarted,
        };
        let inherited = self.blocks.all.values().filter(|block| block.inherited);
        inherited.map(of_block).max().unwrap_or(Rest::NotStarted)
    }

    /// What the barrier still waits for, in words.
    fn barrier_misses(&self) -> Option<String> {
        self.blocks.all.values().find_map(|block| self.block_misses(block))
    }

    fn block_misses(&self, block: &Block) -> Option<String> {
        let name = block.record.block;
        match &block.record.state {
            _ if !block.fresh => {
                Some(format!("neither the scheduler nor its pilot has said where {name} is"))
            }
            BlockState::Queued(_) | BlockState::Held(_) | BlockState::Intended => None,
            BlockState::Ended(_) => {
                (!block.spools_read).then(|| format!("the spools of {name} are not read"))
            }
            _ => {
                let told = block.managers.iter().filter_map(|h| self.managers.get(h)).filter(|m| m.judged);
                let told = told.count() as u32;
                (told < block.record.nodes).then(|| {
                    format!("{told} of {} managers of {name} have told what they hold", block.record.nodes)
                })
            }
        }
    }

    fn apply_listed_cancels(&mut self) {
        let cancels: Vec<(JobId, Ranges, bool)> = self
            .recovery
            .unfinished
            .values()
            .filter(|u| !u.cancel.is_empty())
            .map(|u| (u.job, u.cancel.clone(), u.kill))
            .collect();
        for (job, tasks, kill) in cancels {
            self.cancel(job, &tasks, kill);
        }
    }

    /// All that is here, in pages: waiting, placed, and ended without a confirmation.
    fn send_holding(&mut self) {
        let mut all: Vec<(JobId, u32)> = self.outbox.tasks().collect();
        for (job, state) in &self.jobs {
            all.extend(state.waiting_tasks().map(|i| (*job, i)));
        }
        for flight in self.flights.values() {
            all.extend(flight.live_places().map(|p| (flight.job, flight.index(p))));
        }
        all.sort_unstable();
        all.dedup();
        let mut page = Holding::default();
        let mut pairs = 0;
        for (job, index) in all {
            if pairs >= LIST_ITEMS_MAX / 2 {
                self.tell_broker(std::mem::take(&mut page));
                pairs = 0;
            }
            match page.jobs.last_mut().filter(|(last, _)| *last == job) {
                Some((_, ranges)) => ranges.insert(index),
                None => page.jobs.push((job, Ranges::from_range(index, 1))),
            }
            pairs += 1;
        }
        (page.last, page.rest) = (true, self.recovery.rest);
        self.tell_broker(page);
    }

    /// Says how much more the broker may assign, when that changed enough to be worth a frame.
    pub(crate) fn grant_credit(&mut self) {
        if !self.recovery.ready() || self.stopping.is_some() {
            return;
        }
        if self.now >= self.credit.window_until {
            self.credit.window_until = self.now + WINDOW_US;
            self.credit.window = self.credit_window();
        }
        let window = self.credit.window;
        let tasks_free = window.saturating_sub(self.tasks_held());
        let bytes_held = self.waiting_bytes + self.placed_bytes + self.outbox.byte_count();
        let bytes_free = pf_protocol::limits::RELAY_BYTES_MAX.saturating_sub(bytes_held);
        // Credit is never taken back.
        let tasks_upto = (self.credit.tasks_taken + tasks_free).max(self.credit.tasks_upto);
        let bytes_upto = (self.credit.bytes_taken + bytes_free).max(self.credit.bytes_upto);
        let left = self.credit.tasks_upto.saturating_sub(self.credit.tasks_taken);
        let more = tasks_upto - self.credit.tasks_upto;
        let bytes_left = self.credit.bytes_upto.saturating_sub(self.credit.bytes_taken);
        let more_bytes = bytes_upto - self.credit.bytes_upto;
        let worth = (more > 0 && (more >= window / 8 || left < window / 4))
            || (more_bytes > 0 && bytes_left < pf_protocol::limits::RELAY_BYTES_MAX / 4);
        if worth {
            self.credit.tasks_upto = tasks_upto;
            self.credit.bytes_upto = bytes_upto;
            self.tell_broker(Credit { tasks_upto, bytes_upto });
        }
    }
}
