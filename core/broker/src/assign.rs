//! Handing out: tasks in batches, within the relay's credit, by turns of jobs.

use crate::broker::{Broker, Then, Turn};
use crate::limits::{LOADS_MAX, PUMP_TASKS_MAX, TURN_TASKS};
use crate::load::Load;
use crate::record::TasksHanded;
use crate::relays::{Link, Phase};
use bytes::{Bytes, BytesMut};
use pf_protocol::job::{Body, JobDef, OnLost};
use pf_protocol::limits::{BATCH_BYTES_MAX, BATCH_TASKS_MAX};
use pf_protocol::message::{Assign, Define, TaskBatch, VERSION_LARGE};
use pf_protocol::payload::held;
use pf_protocol::{EndpointId, JobId, Ranges};

/// What may still go into a message.
#[derive(Debug, Clone, Copy)]
struct Room {
    tasks: u64,
    bytes: u64,
    /// Nothing is in it yet: one item may be larger than `bytes`, up to this.
    alone_bytes: u64,
}

/// How a job's turn went.
enum Took {
    /// These tasks.
    Batch(TaskBatch),
    /// Nothing: the item at this position is not in memory.
    NotLoaded(u32),
    /// Nothing: the next item is too large for this message, or for the credit.
    NoRoom,
}

impl Broker {
    /// Hands out what may be handed out to an endpoint.
    pub(crate) fn pump(&mut self, id: EndpointId, turn: &mut Turn<'_>) {
        self.hand_out(id, turn);
        // Jobs that took their place again during this are not a reason to begin anew.
        self.to_pump.remove(&id);
    }

    fn hand_out(&mut self, id: EndpointId, turn: &mut Turn<'_>) {
        let mut left = PUMP_TASKS_MAX;
        loop {
            let batches = self.fill(id, left, turn);
            if batches.is_empty() {
                return;
            }
            let (tasks, bytes) = batches.iter().fold((0, 0), |(tasks, bytes), batch| {
                (tasks + batch.tasks.len(), bytes + batch.blob.len() as u64)
            });
            let Some(link) = self.link_mut(id) else { return };
            link.sent_tasks += tasks;
            link.sent_bytes += bytes;
            let conn = link.conn;
            if self.log_handed(&batches, turn) {
                self.after_sync(Then::Assign { conn, endpoint: id, batches }, turn);
            } else {
                self.assign(conn, id, batches, turn);
            }
            left = left.saturating_sub(tasks);
            if left == 0 {
                self.pump_again = true;
                return;
            }
        }
    }

    /// Writes down that tasks which must not run twice may start from now on; answers whether there are some. If it cannot be written, the
    /// store has failed, and with it this broker.
    fn log_handed(&mut self, batches: &[TaskBatch], turn: &mut Turn<'_>) -> bool {
        let mut any = false;
        for batch in batches {
            let job = self.state.jobs.get(&batch.job);
            if job.is_some_and(|job| job.spec.on_lost != OnLost::Rerun) {
                let tasks = batch.tasks.clone();
                any |= self.log(TasksHanded { at_us: turn.at_us, job: batch.job, tasks }, turn).is_ok();
            }
        }
        any
    }

    /// Sends tasks to a relay, if its session is still the one in which they were taken.
    pub(crate) fn assign(&mut self, conn: u64, id: EndpointId, batches: Vec<TaskBatch>, turn: &mut Turn<'_>) {
        if self.link_mut(id).is_some_and(|link| link.conn == conn) {
            self.define(id, batches.iter().map(|b| b.job), turn);
            self.send(conn, Assign { batches }.into(), turn);
        }
    }

    fn link_mut(&mut self, id: EndpointId) -> Option<&mut Link> {
        let link = self.endpoints.get_mut(&id)?.link.as_mut()?;
        (link.phase == Phase::Up).then_some(link)
    }

    /// The batches of one message.
    fn fill(&mut self, id: EndpointId, most: u64, turn: &mut Turn<'_>) -> Vec<TaskBatch> {
        let mut batches: Vec<TaskBatch> = Vec::new();
        let Some(link) = self.link_mut(id) else { return batches };
        let credit_tasks = link.credit.tasks_upto.saturating_sub(link.sent_tasks);
        let credit_bytes = link.credit.bytes_upto.saturating_sub(link.sent_bytes);
        let mut room = Room {
            tasks: most.min(credit_tasks).min(BATCH_TASKS_MAX as u64),
            bytes: credit_bytes.min(BATCH_BYTES_MAX as u64),
            alone_bytes: credit_bytes,
        };
        while room.tasks > 0 && self.loads.len() < LOADS_MAX {
            let Some(endpoint) = self.endpoints.get_mut(&id) else { break };
            let Some(job) = endpoint.ready.pop() else { break };
            let is_alone = endpoint.ready.is_empty();
            if let Some(live) = self.jobs.get_mut(&job) {
                live.in_ready = false;
            }
            let most = if is_alone { room.tasks } else { room.tasks.min(TURN_TASKS) };
            match self.take_turn(job, Room { tasks: most, ..room }, turn) {
                Some(Took::Batch(batch)) => {
                    room.tasks -= batch.tasks.len();
                    room.bytes = room.bytes.saturating_sub(batch.blob.len() as u64);
                    room.alone_bytes = room.bytes;
                    batches.push(batch);
                    self.refresh(job);
                }
                Some(Took::NotLoaded(position)) => self.load_items(job, position, turn),
                Some(Took::NoRoom) => {
                    self.turn_broken_off(job);
                    break;
                }
                None => {}
            }
        }
        batches
    }

    fn turn_broken_off(&mut self, id: JobId) {
        let (Some(live), Some(job)) = (self.jobs.get_mut(&id), self.state.jobs.get(&id)) else { return };
        if let Some(endpoint) = self.endpoints.get_mut(&job.endpoint) {
            endpoint.ready.push_front(job.spec.priority, job.owner, id);
            live.in_ready = true;
        }
    }

    /// Takes tasks of one job out of its queue. None: it has nothing to hand out.
    fn take_turn(&mut self, id: JobId, room: Room, turn: &mut Turn<'_>) -> Option<Took> {
        let (live, job) = (self.jobs.get_mut(&id)?, self.state.jobs.get(&id)?);
        let link = self.endpoints.get(&job.endpoint).and_then(|e| e.link.as_ref());
        let is_old = link.is_some_and(|link| link.version < VERSION_LARGE);
        if !live.can_hand_out(job.spec.max_running) || (is_old && !job.large.is_empty()) {
            return None;
        }
        let free = u64::from(job.spec.max_running.unwrap_or(u32::MAX)) - live.assigned;
        let room = Room { tasks: room.tasks.min(free), ..room };
        // Suspects first: they are few, and travel in batches of their own.
        let suspect = live.suspects.first();
        let lost = suspect.map_or(0, |index| job.losses(index));
        let chosen: Ranges = if suspect.is_some() {
            let alike = live.suspects.iter().take_while(|index| job.losses(*index) == lost);
            alike.take(room.tasks as usize).collect()
        } else {
            head(&live.queued, room.tasks)
        };
        let (batch, blocked) = self.gather(id, &chosen, room)?;
        if batch.tasks.is_empty() {
            return Some(blocked.unwrap_or(Took::NoRoom));
        }
        let live = self.jobs.get_mut(&id)?;
        let from = if suspect.is_some() { &mut live.suspects } else { &mut live.queued };
        from.subtract(&batch.tasks);
        live.hand_out(&batch.tasks, turn.at_us);
        Some(Took::Batch(TaskBatch { lost, ..batch }))
    }

    /// The chosen tasks with their items, as many as there is room for; with it, what stopped it.
    fn gather(&mut self, id: JobId, chosen: &Ranges, room: Room) -> Option<(TaskBatch, Option<Took>)> {
        let job = self.state.jobs.get(&id)?;
        let mut batch = TaskBatch { job: id, ..TaskBatch::default() };
        if job.pieces.is_empty() {
            batch.tasks = chosen.clone();
            return Some((batch, None));
        }
        let mut parts: Vec<Bytes> = Vec::new();
        let mut bytes = 0u64;
        let mut blocked = None;
        let mut used = Vec::new();
        'all: for &(first, count) in chosen.pairs() {
            let (mut at, end) = (first, first + count);
            while at < end {
                let Some(piece) = job.piece_of(at) else {
                    // Appended without items, among others that have some.
                    let next = job.pieces.partition_point(|p| p.first <= at);
                    let until = job.pieces.get(next).map_or(end, |p| p.first.min(end));
                    batch.lens.extend(std::iter::repeat_n(0, (until - at) as usize));
                    batch.tasks.insert_range(at, until - at);
                    at = until;
                    continue;
                };
                let Some(loaded) = self.cache.get(id, piece.first) else {
                    blocked = Some(Took::NotLoaded(at));
                    break 'all;
                };
                let (nth, most) = (at - piece.first, (piece.first + piece.count).min(end) - at);
                let mut taken = 0;
                while taken < most {
                    let told = loaded.len(nth + taken);
                    let len = held(told) as u64;
                    let alone = batch.tasks.is_empty() && taken == 0 && len <= room.alone_bytes;
                    if bytes + len > room.bytes && !alone {
                        break;
                    }
                    batch.lens.push(told);
                    bytes += len;
                    taken += 1;
                }
                if taken > 0 {
                    parts.push(loaded.items(nth, taken));
                    batch.tasks.insert_range(at, taken);
                }
                if taken < most {
                    blocked = Some(Took::NoRoom);
                    break 'all;
                }
                at += taken;
                if at == piece.first + piece.count {
                    used.push(piece.first);
                }
            }
        }
        batch.blob = concat(parts);
        used.into_iter().for_each(|first| self.cache.remove(id, first));
        Some((batch, blocked))
    }

    /// Tells the relay of jobs that it has not heard of in this session.
    pub(crate) fn define(
        &mut self,
        id: EndpointId,
        jobs: impl IntoIterator<Item = JobId>,
        turn: &mut Turn<'_>,
    ) {
        for job in jobs {
            let Some(link) = self.link_mut(id) else { return };
            if !link.defined.insert(job) {
                continue;
            }
            let conn = link.conn;
            let Some(job) = self.state.jobs.get(&job) else { continue };
            let function = match &job.spec.body {
                Body::Python(python) => self.state.functions.get(&python.function).map(|f| f.function()),
                Body::Command(_) => None,
            };
            let def =
                JobDef { job: job.id, key: job.key, owner: job.owner, spec: job.spec.clone(), function };
            self.send(conn, Define { jobs: vec![def] }.into(), turn);
        }
    }

    /// Whether the load that a job waits for is still open; for the invariants.
    pub(crate) fn is_loading(&self, id: JobId) -> bool {
        self.loads.values().any(|load| matches!(load, Load::Items { job, .. } if *job == id))
    }
}

/// The smallest `most` numbers of a set.
fn head(set: &Ranges, most: u64) -> Ranges {
    let mut left = most;
    let mut out = Ranges::new();
    for &(first, count) in set.pairs() {
        let here = u64::from(count).min(left) as u32;
        out.insert_range(first, here);
        left -= u64::from(here);
        if left == 0 {
            break;
        }
    }
    out
}

fn concat(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() <= 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut out = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.freeze()
}
