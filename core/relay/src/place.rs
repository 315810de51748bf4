//! Which task goes to which manager. Tasks are taken in runs, managers by their free cores: the cost is per run and per manager that has room,
//! not per task. The manager owns which cores; here are counts only.

use crate::flight::{Flight, State};
use crate::limits::{
    IDLE_ASKED_MAX, PREFETCH_MEAN_US_MAX, PREFETCH_TASKS_A_MANAGER_MAX, PREFETCH_TASKS_A_SLOT_MAX,
    PREFETCH_WORK_US, RECALL_WORK_US_MIN,
};
use crate::queue::Chunk;
use crate::relay::{ReadyKey, Relay};
use pf_protocol::limits::{BATCH_BYTES_MAX, BATCH_TASKS_MAX};
use pf_protocol::message::{AttemptBatch, Define, Dispatch, Recall, VERSION_LARGE};
use pf_protocol::{AttemptId, JobId};

/// Tasks that a manager may hold in front of `slots` slots, for a job of this mean run time.
pub(crate) fn ahead_most(mean_us: Option<u64>, slots: u32) -> u32 {
    match mean_us {
        // Nothing is known: one, to learn more soon.
        None => 1,
        Some(mean) if mean > PREFETCH_MEAN_US_MAX => 0,
        Some(mean) => {
            let each = (PREFETCH_WORK_US / mean.max(1)).clamp(1, u64::from(PREFETCH_TASKS_A_SLOT_MAX)) as u32;
            each.saturating_mul(slots).min(PREFETCH_TASKS_A_MANAGER_MAX)
        }
    }
}

impl Relay {
    /// Places what can be placed.
    pub(crate) fn place(&mut self) {
        if !self.recovery.ready() || self.stopping.is_some() {
            return;
        }
        self.look_at_touched();
        self.ready.retain(|_, queue| !queue.is_empty());
        let keys: Vec<ReadyKey> = self.ready.keys().copied().collect();
        for key in &keys {
            self.fill_slots(*key);
        }
        for key in &keys {
            self.work_ahead(*key);
        }
        if self.ready.values().all(|queue| queue.is_empty()) {
            self.recall_for_the_idle();
        }
    }

    /// Free slots first, from the manager with most of them.
    fn fill_slots(&mut self, key: ReadyKey) {
        let class = &self.classes.all[key.1];
        let (resources, account) = (class.resources.clone(), class.account.clone());
        if resources.nodes > 1 {
            return;
        }
        let least = i64::from(resources.cores);
        let candidates: Vec<u32> =
            self.room.iter().rev().take_while(|(free, _)| *free >= least).map(|(_, h)| *h).collect();
        // Blocks in their tail come last, so that they end.
        for last_choice in [false, true] {
            for handle in &candidates {
                if self.queue_is_empty(key) {
                    return;
                }
                let Some(manager) = self.managers.get(handle) else { continue };
                if manager.last_choice != last_choice || !manager.pays_for(account.as_deref()) {
                    continue;
                }
                let room = manager.room(&resources);
                if room > 0 {
                    self.give(key, *handle, u64::from(room), false);
                }
            }
        }
    }

    /// Then work ahead of the slots, for managers where only this class runs.
    fn work_ahead(&mut self, key: ReadyKey) {
        for handle in self.hungry.clone() {
            if self.queue_is_empty(key) {
                return;
            }
            let Some(manager) = self.managers.get(&handle).filter(|m| m.usable()) else {
                self.hungry.remove(&handle);
                continue;
            };
            let class = &self.classes.all[key.1];
            let slots = class.resources.fit_count(&manager.capacity);
            if manager.placed == 0 || slots == 0 || !manager.pays_for(class.account.as_deref()) {
                continue;
            }
            match manager.ahead(key.1, slots) {
                Some(ahead) => self.give(key, handle, u64::from(ahead), true),
                // Other classes run there; it is looked at again when one of their tasks ends.
                None => {
                    self.hungry.remove(&handle);
                }
            }
        }
    }

    fn queue_is_empty(&self, key: ReadyKey) -> bool {
        self.ready.get(&key).is_none_or(|queue| queue.is_empty())
    }

    /// Gives a manager tasks of the jobs in this queue, in turn: into free slots (`number` of them), or ahead of them (`number` are there already).
    fn give(&mut self, key: ReadyKey, handle: u32, number: u64, ahead: bool) {
        let slots = match (ahead, self.managers.get(&handle)) {
            (true, Some(manager)) => self.classes.all[key.1].resources.fit_count(&manager.capacity),
            _ => 0,
        };
        let mut given = 0u64;
        let mut sated = false;
        // Each job gets one turn, two if it has suspects.
        let mut turns = 2 * self.ready.get(&key).map_or(0, |q| q.len());
        while turns > 0 {
            turns -= 1;
            let Some(id) = self.ready.get_mut(&key).and_then(|q| q.pop_front()) else { break };
            let most = match (ahead, self.jobs.get(&id)) {
                (false, _) => number - given,
                (true, job) => {
                    // A job with a limit of node-hours gets what runs, no more: it is charged for what it has.
                    let limited = job.and_then(|j| j.def.as_ref()?.spec.max_node_hours_milli).is_some();
                    let mean = job.and_then(|j| j.mean_us);
                    let target = if limited { 0 } else { u64::from(ahead_most(mean, slots)) };
                    let there = number + given;
                    // Refilled when half is gone, so that batches stay worth a frame.
                    if given == 0 && there > target / 2 { 0 } else { target.saturating_sub(there) }
                }
            };
            let taken = if most == 0 { 0 } else { self.give_of(id, key, handle, most, ahead) };
            given += taken;
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.available() == 0 {
                job.ready = false;
            } else if let Some(queue) = self.ready.get_mut(&key) {
                queue.push_back(id);
            }
            if ahead && most == 0 {
                sated = true;
            }
            if !ahead && given >= number {
                break;
            }
        }
        if ahead && sated {
            self.hungry.remove(&handle);
        }
        if given > 0 {
            self.refresh_room(handle);
            if !ahead {
                self.hungry.insert(handle);
            }
        }
    }

    /// Gives up to `most` tasks of one job; how many it were.
    fn give_of(&mut self, id: JobId, key: ReadyKey, handle: u32, most: u64, ahead: bool) -> u64 {
        let (Some(job), Some(manager)) = (self.jobs.get_mut(&id), self.managers.get_mut(&handle)) else {
            return 0;
        };
        let too_old = job.names_payloads && manager.version < VERSION_LARGE;
        if too_old || manager.ends_at < self.now.saturating_add(job.time_needed_us()) {
            return 0;
        }
        let most = most.min(job.available());
        let suspect = !ahead && manager.suspect.is_none() && !job.suspects.is_empty();
        let most = if suspect { 1 } else { most.min(BATCH_TASKS_MAX as u64) };
        let mut total = 0;
        while total < most {
            let Some(chunk) = self.jobs.get_mut(&id).and_then(|j| j.take(most - total, suspect)) else {
                break;
            };
            total += chunk.len();
            self.launch(id, key.1, handle, chunk, suspect);
        }
        total
    }

    /// A run of tasks leaves the queue and becomes attempts at a manager.
    fn launch(&mut self, id: JobId, class: usize, handle: u32, chunk: Chunk, suspect: bool) {
        let count = chunk.len();
        let first = self.mint(count as u32);
        self.classes.all[class].waiting -= count;
        self.waiting_bytes -= chunk.blob.len() as u64;
        self.placed_bytes += chunk.blob.len() as u64;
        if let Some(job) = self.jobs.get_mut(&id) {
            job.placed += count;
        }
        self.book(handle, Flight::new(id, handle, first, class, &chunk, self.now));
        if let Some(manager) = self.managers.get_mut(&handle) {
            if suspect {
                manager.suspect = Some(first);
            }
            let lens = chunk.lens().to_vec();
            manager.out.push(AttemptBatch { job: id, first, tasks: chunk.tasks, lens, blob: chunk.blob });
            self.talkative.insert(handle);
        }
    }

    /// Puts a manager where its free cores belong.
    pub(crate) fn refresh_room(&mut self, handle: u32) {
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        let place = manager.usable().then(|| manager.free_cores());
        if manager.room_key == place {
            return;
        }
        if let Some(old) = std::mem::replace(&mut manager.room_key, place) {
            self.room.remove(&(old, handle));
        }
        if let Some(new) = place {
            self.room.insert((new, handle));
            self.hungry.insert(handle);
        }
    }

    /// Managers whose counts changed are looked at anew.
    pub(crate) fn touch(&mut self, handle: u32) {
        self.report_dirty = true;
        if let Some(manager) = self.managers.get_mut(&handle).filter(|m| !m.touched) {
            manager.touched = true;
            self.touched.push(handle);
        }
    }

    pub(crate) fn look_at_touched(&mut self) {
        for handle in std::mem::take(&mut self.touched) {
            let Some(manager) = self.managers.get_mut(&handle) else { continue };
            manager.touched = false;
            self.hungry.insert(handle);
            self.refresh_room(handle);
        }
    }

    /// Sends what was placed in this turn.
    pub(crate) fn send_to_managers(&mut self) {
        for handle in std::mem::take(&mut self.talkative) {
            self.send_dispatches(handle);
        }
    }

    /// Definitions that the manager does not have, then the attempts, in frames of bounded size.
    pub(crate) fn send_dispatches(&mut self, handle: u32) {
        let Some(manager) = self.managers.get_mut(&handle) else { return };
        let Some(conn) = manager.conn.filter(|_| !manager.out.is_empty()) else { return };
        let batches = std::mem::take(&mut manager.out);
        let mut jobs = Vec::new();
        for batch in &batches {
            let def = self.jobs.get(&batch.job).and_then(|j| j.def.as_ref());
            if let Some(def) = def.filter(|_| manager.defined.insert(batch.job)) {
                jobs.push(def.as_ref().clone());
            }
        }
        for def in jobs {
            // One a frame: a definition may carry a large function.
            self.tell_peer(conn, Define { jobs: vec![def] });
        }
        let epoch = self.epoch;
        let (mut page, mut tasks, mut bytes) = (Vec::new(), 0, 0);
        for batch in batches {
            let (more_tasks, more_bytes) = (batch.tasks.len() as usize, batch.blob.len());
            let full = tasks + more_tasks > BATCH_TASKS_MAX || bytes + more_bytes > BATCH_BYTES_MAX;
            if full && !page.is_empty() {
                self.tell_peer(conn, Dispatch { epoch, batches: std::mem::take(&mut page) });
                (tasks, bytes) = (0, 0);
            }
            tasks += more_tasks;
            bytes += more_bytes;
            page.push(batch);
        }
        self.tell_peer(conn, Dispatch { epoch, batches: page });
    }

    /// Whether a task of this class would find a free slot now; few managers are asked.
    fn finds_room(&self, class: usize) -> bool {
        let class = &self.classes.all[class];
        self.room
            .iter()
            .rev()
            .take(IDLE_ASKED_MAX)
            .filter_map(|(_, h)| self.managers.get(h))
            .any(|m| m.room(&class.resources) > 0 && m.pays_for(class.account.as_deref()))
    }

    /// Nothing waits, some managers have free slots, and others have work ahead that takes a while: some of that is called back.
    fn recall_for_the_idle(&mut self) {
        let free = self.room.last().map_or(0, |(cores, _)| *cores);
        if free <= 0 || self.now < self.recall_at {
            return;
        }
        self.recall_at = self.now + RECALL_WORK_US_MIN;
        let victims: Vec<(u32, usize, u32)> = self
            .managers
            .iter()
            .filter(|(_, m)| m.usable() && m.recall.is_none() && m.counts.len() == 1 && m.free_cores() < 0)
            .filter_map(|(handle, m)| {
                let class = *m.counts.keys().next()?;
                let slots = self.classes.all[class].resources.fit_count(&m.capacity).max(1);
                let ahead = m.ahead(class, slots).filter(|a| *a > 0)?;
                let mean = m
                    .flights
                    .iter()
                    .next_back()
                    .and_then(|f| self.flights.get(f))
                    .and_then(|f| self.jobs.get(&f.job).and_then(|j| j.mean_us));
                // Of unknown length: long, for all one knows.
                let work = mean.map_or(u64::MAX, |mean| u64::from(ahead) * mean / u64::from(slots));
                (work >= RECALL_WORK_US_MIN && self.finds_room(class)).then_some((*handle, class, ahead))
            })
            .collect();
        let mut idle = i64::from(u32::MAX).min(self.room.iter().rev().map(|(free, _)| (*free).max(0)).sum());
        for (handle, class, ahead) in victims {
            if idle <= 0 {
                return;
            }
            let cores = i64::from(self.classes.all[class].resources.cores.max(1));
            let most = u64::from(ahead.div_ceil(2)).min((idle / cores).max(0) as u64);
            let attempts = self.newest_not_started(handle, most as usize);
            if attempts.is_empty() {
                continue;
            }
            idle -= attempts.len() as i64 * cores;
            self.recall(handle, Some(attempts));
        }
    }

    fn newest_not_started(&self, handle: u32, most: usize) -> Vec<AttemptId> {
        let Some(manager) = self.managers.get(&handle) else { return Vec::new() };
        let flights = manager.flights.iter().rev().filter_map(|f| self.flights.get(f));
        let attempts = flights.flat_map(|f| {
            f.live_places().rev().filter(|p| f.state(*p) == State::Placed).map(|p| f.attempt(p))
        });
        attempts.take(most.min(BATCH_TASKS_MAX)).collect()
    }

    pub(crate) fn recall(&mut self, handle: u32, attempts: Option<Vec<AttemptId>>) {
        self.send_dispatches(handle);
        let Some(conn) = self.managers.get(&handle).and_then(|m| m.conn) else { return };
        self.last_recall += 1;
        let (id, epoch) = (self.last_recall, self.epoch);
        if let (Some(manager), Some(list)) = (self.managers.get_mut(&handle), &attempts) {
            manager.recall = Some(id);
            let text = format!(
                "call {} tasks back from manager {}: other managers are idle",
                list.len(),
                self.name(handle)
            );
            self.decide(text);
        }
        self.tell_peer(conn, Recall { id, epoch, attempts });
    }
}
