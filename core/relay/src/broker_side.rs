//! What the broker says, and what it is told: definitions, tasks, cancels, confirmations, credit.

use crate::io::Effect;
use crate::limits::{CREDIT_TASKS_MIN, CREDIT_WORK_US};
use crate::outbox::Confirmed;
use crate::queue::{Chunk, Job};
use crate::relay::Relay;
use pf_protocol::limits::{LIST_ITEMS_MAX, RELAY_TASKS_MAX};
use pf_protocol::message::{
    Answer, AnswerWhat, Ask, AskWhat, Assign, CancelAttempts, Confirm, Message, Outcomes, Refuse, Release,
    Return, Welcome,
};
use pf_protocol::outcome::{ErrorDetail, Outcome, OutcomeBatch, OutcomeKind, Ran};
use pf_protocol::{AttemptId, JobId, ManagerId, Ranges};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Relay {
    pub(crate) fn on_broker_up(&mut self, welcome: &Welcome) {
        let changed = self.epoch != welcome.epoch;
        self.epoch = welcome.epoch;
        self.endpoint = welcome.endpoint;
        self.broker.hello_mut().epoch_seen = welcome.epoch;
        // What a broker of an older version would not understand must not come from managers either.
        self.managers_link.limit_version(welcome.version);
        if changed {
            let blocks = self.blocks.live_records();
            self.effects.push(Effect::RefreshTickets {
                epoch: welcome.epoch,
                endpoint: welcome.endpoint,
                blocks,
            });
        }
        self.recovery_begins();
        self.report_dirty = true;
    }

    pub(crate) fn on_broker_down(&mut self, _reason: &str) {
        self.recovery_ends();
    }

    /// A final refusal (fenced, unknown endpoint, not allowed) ends the relay; its blocks are left alone.
    pub(crate) fn on_broker_refused(&mut self, refuse: &Refuse) {
        let reason = format!("the broker refuses this relay: {} ({})", refuse.message, refuse.code);
        if refuse.retry {
            self.effects.push(Effect::NotYet { reason });
        } else if !self.exited {
            self.exited = true;
            self.effects.push(Effect::Exit { reason, ok: false });
        }
    }

    pub(crate) fn on_broker_message(&mut self, message: Message) {
        match message {
            Message::Define(define) => {
                for def in define.jobs {
                    self.define(Arc::new(def));
                }
            }
            Message::Assign(assign) => self.on_assign(assign),
            Message::Confirm(Confirm { upto }) => {
                let Confirmed { managers, values } = self.outbox.confirm(upto);
                self.confirms.extend(managers);
                values.into_iter().for_each(|key| self.value_confirmed(key));
            }
            Message::Piece(piece) => self.on_item_piece(piece),
            Message::Want(want) => self.on_value_want(want),
            Message::Cancel(cancel) => self.cancel(cancel.job, &cancel.tasks, cancel.kill),
            Message::Release(release) => self.on_release(&release),
            Message::Unfinished(page) => self.on_unfinished(page),
            Message::Ask(ask) => self.on_ask(ask),
            // Nothing else is said by a broker; what is, is of a later version and was negotiated away.
            _ => {}
        }
    }

    fn define(&mut self, def: Arc<pf_protocol::job::JobDef>) {
        let id = def.job;
        let class = self.classes.number(&def.spec.resources, def.spec.account.as_deref());
        let job = self.jobs.entry(id).or_insert_with(Job::new);
        if std::mem::take(&mut job.ready) {
            // It stands in the queue of its old class and priority.
            let key = (Reverse(job.priority), job.class);
            if let Some(queue) = self.ready.get_mut(&key) {
                queue.retain(|other| *other != id);
            }
        }
        self.classes.all[job.class].waiting -= job.waiting_count;
        self.classes.all[class].waiting += job.waiting_count;
        (job.class, job.priority, job.released) = (class, def.spec.priority, false);
        job.def = Some(def);
        if job.placed > 0 {
            self.count_anew(id, class);
        }
        self.make_ready(id);
    }

    /// Attempts that were adopted before their job was defined are counted with its resources from now on.
    fn count_anew(&mut self, id: JobId, class: usize) {
        for flight in self.flights.values_mut().filter(|f| f.job == id && f.class != class) {
            let old = std::mem::replace(&mut flight.class, class);
            let live = flight.live();
            self.classes.all[old].placed -= u64::from(live);
            self.classes.all[class].placed += u64::from(live);
            if let Some(manager) = self.managers.get_mut(&flight.manager) {
                manager.count(old, &self.classes.all[old].resources, -i64::from(live));
                manager.count(class, &self.classes.all[class].resources, i64::from(live));
                if !std::mem::replace(&mut manager.touched, true) {
                    self.touched.push(flight.manager);
                }
            }
        }
    }

    fn on_assign(&mut self, assign: Assign) {
        self.recovery.list_was_taken();
        for batch in assign.batches {
            let id = batch.job;
            self.credit.tasks_taken += batch.tasks.len();
            self.credit.bytes_taken += batch.blob.len() as u64;
            let Some(chunk) = Chunk::new(batch) else {
                self.decide(format!("a batch of {id} is malformed and was dropped"));
                continue;
            };
            self.enqueue(id, chunk, false);
        }
    }

    /// Puts tasks into the queue of their job, or aside until the payloads that their items name are here.
    pub(crate) fn enqueue(&mut self, id: JobId, chunk: Chunk, front: bool) {
        self.report_dirty = true;
        for part in chunk.split_named() {
            let named = part.names().first().copied();
            let is_here = named.is_none_or(|name| self.stage(id, name));
            let job = self.jobs.entry(id).or_insert_with(Job::new);
            job.names_payloads |= named.is_some();
            self.waiting_bytes += part.blob.len() as u64;
            self.classes.all[job.class].waiting += part.len();
            if is_here { job.push(part, front) } else { job.fetch(part) }
        }
        self.make_ready(id);
    }

    /// Puts a job into the ready queue of its class, if it has something to place.
    pub(crate) fn make_ready(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if !job.ready && job.available() > 0 {
            job.ready = true;
            self.ready.entry((Reverse(job.priority), job.class)).or_default().push_back(id);
        }
    }

    /// Forgets tasks that wait; nobody is told.
    pub(crate) fn forget_waiting(&mut self, id: JobId, tasks: &Ranges) -> Ranges {
        let Some(job) = self.jobs.get_mut(&id).filter(|_| !tasks.is_empty()) else { return Ranges::new() };
        let (gone, bytes) = job.remove_waiting(tasks);
        self.classes.all[job.class].waiting -= gone.len();
        self.waiting_bytes -= bytes;
        gone
    }

    pub(crate) fn cancel(&mut self, id: JobId, tasks: &Ranges, kill: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.cancelled.union_with(tasks);
        job.cancel_kill |= kill;
        let gone = self.forget_waiting(id, tasks);
        self.made_cancelled(id, &gone);
        let mut asked: BTreeMap<u32, Vec<AttemptId>> = BTreeMap::new();
        for flight in self.flights.values().filter(|f| f.job == id) {
            for place in flight.live_places().filter(|p| tasks.contains(flight.index(*p))) {
                asked.entry(flight.manager).or_default().push(flight.attempt(place));
            }
        }
        for (handle, attempts) in asked {
            self.cancel_at(handle, attempts, kill);
        }
    }

    /// Tells a manager to cancel; one that is away is told when it is back.
    pub(crate) fn cancel_at(&mut self, handle: u32, attempts: Vec<AttemptId>, kill: bool) {
        // What is on its way to the manager goes before.
        self.send_dispatches(handle);
        let conn = self.managers.get(&handle).filter(|m| m.judged).and_then(|m| m.conn);
        if let Some(conn) = conn {
            for page in attempts.chunks(LIST_ITEMS_MAX) {
                self.tell_peer(conn, CancelAttempts { epoch: self.epoch, attempts: page.to_vec(), kill });
            }
        }
    }

    /// Outcomes of tasks that were cancelled before they left the relay.
    pub(crate) fn made_cancelled(&mut self, id: JobId, tasks: &Ranges) {
        self.end_waiting(id, tasks, OutcomeKind::Cancelled, "cancelled before it started");
    }

    /// Outcomes of tasks that never left the relay.
    pub(crate) fn end_waiting(&mut self, id: JobId, tasks: &Ranges, kind: OutcomeKind, why: &str) {
        let mut rest = tasks.clone();
        while !rest.is_empty() {
            let page = rest.take_first(pf_protocol::limits::BATCH_TASKS_MAX as u64);
            let first = self.mint(page.len() as u32);
            let outcomes = page.iter().zip(first.n..).map(|(index, n)| Outcome {
                job: id,
                index,
                attempt: AttemptId { epoch: first.epoch, n },
                kind,
                ran: Ran::No,
                error: Some(Box::new(ErrorDetail { message: why.into(), ..ErrorDetail::default() })),
                ..Outcome::default()
            });
            let outcomes = outcomes.collect();
            self.outbox.push(OutcomeBatch { outcomes, ..self.own_batch(ManagerId::default(), "") });
        }
    }

    /// A batch that the relay makes itself.
    pub(crate) fn own_batch(&self, manager: ManagerId, node: &str) -> OutcomeBatch {
        OutcomeBatch { manager, node: node.into(), seq: 0, ..OutcomeBatch::default() }
    }

    fn on_release(&mut self, release: &Release) {
        for id in &release.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.released = true;
                self.retire(*id);
            }
        }
        self.drop_payloads_of(&release.jobs);
        let told: Vec<(u64, Vec<JobId>)> = self
            .managers
            .values_mut()
            .filter_map(|m| {
                let known: Vec<JobId> =
                    release.jobs.iter().copied().filter(|j| m.defined.remove(j)).collect();
                m.conn.filter(|_| !known.is_empty()).map(|conn| (conn, known))
            })
            .collect();
        for (conn, jobs) in told {
            self.tell_peer(conn, Release { jobs });
        }
    }

    /// Forgets a released job once nothing of it is left.
    pub(crate) fn retire(&mut self, id: JobId) {
        let over = self.jobs.get(&id).is_some_and(|j| j.released && j.placed == 0 && j.waiting_count == 0);
        let Some(job) = self.jobs.get(&id).filter(|_| over) else { return };
        if let Some(queue) = self.ready.get_mut(&(Reverse(job.priority), job.class)).filter(|_| job.ready) {
            queue.retain(|other| *other != id);
        }
        self.jobs.remove(&id);
        self.blocks.roster.jobs_node_ms.remove(&id);
    }

    /// Gives everything that waits back to the broker.
    pub(crate) fn return_waiting(&mut self) {
        let mut jobs: Vec<(JobId, Ranges)> = Vec::new();
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            let all = Ranges::from_range(0, u32::MAX);
            let gone = self.forget_waiting(id, &all);
            if !gone.is_empty() {
                jobs.push((id, gone));
            }
        }
        if !jobs.is_empty() {
            let count: u64 = jobs.iter().map(|(_, tasks)| tasks.len()).sum();
            self.decide(format!("give {count} tasks back to the broker: the relay stops"));
            self.tell_broker(Return { jobs });
        }
    }

    /// Outcomes, then confirmations to managers, then credit.
    pub(crate) fn send_to_broker(&mut self) {
        while self.recovery.ready() && self.outbox.has_unsent() {
            let Some((number, batches)) = self.outbox.next() else { break };
            self.tell_broker(Outcomes { number, batches });
        }
        for (manager, seq) in std::mem::take(&mut self.confirms) {
            let Some(manager) = self.manager_handles.get(&manager).and_then(|h| self.managers.get_mut(h))
            else {
                continue;
            };
            manager.confirmed_seq = manager.confirmed_seq.max(seq);
            if let Some(conn) = manager.conn {
                self.tell_peer(conn, Confirm { upto: seq });
            }
        }
        self.grant_credit();
    }

    /// Tasks that may be here at once: some for each slot, and as many as are done in [`CREDIT_WORK_US`] by what was measured.
    pub(crate) fn credit_window(&self) -> u64 {
        let cores: u64 =
            self.managers.values().filter(|m| m.usable()).map(|m| u64::from(m.capacity.cores)).sum();
        let shortest =
            self.jobs.values().filter(|j| j.waiting_count + j.placed > 0).filter_map(|j| j.mean_us).min();
        let by_work = shortest.map_or(0, |mean| cores * CREDIT_WORK_US / mean.max(1));
        let possible = self.blocks.cores_possible(&self.config.scaling);
        (by_work + 2 * cores.max(possible) + CREDIT_TASKS_MIN).min(RELAY_TASKS_MAX)
    }

    pub(crate) fn on_ask(&mut self, ask: Ask) {
        let id = ask.id;
        match ask.what {
            AskWhat::ReadLog { task, from } => {
                let live = self.holds(task);
                self.effects.push(Effect::ReadLog { ask: id, task, from, live });
            }
            AskWhat::ReadBlockLog { block } => match self.blocks.record(block) {
                Some(record) => self.effects.push(Effect::ReadBlockLog { ask: id, record }),
                None => self.answer(id, AnswerWhat::Failed(format!("block {block} is not known"))),
            },
            AskWhat::ExplainJob { job } => {
                let lines = self.explain(job);
                self.answer(id, AnswerWhat::Text(lines));
            }
            AskWhat::Pause => {
                self.pause("paused by its owner".into());
                self.answer(id, AnswerWhat::Done);
            }
            AskWhat::Resume => {
                self.resume();
                self.answer(id, AnswerWhat::Done);
            }
            AskWhat::CancelBlock { block } => {
                let answer = match self.cancel_block(block, "cancelled by its owner") {
                    true => AnswerWhat::Done,
                    false => AnswerWhat::Failed(format!("block {block} is not known or over")),
                };
                self.answer(id, answer);
            }
            AskWhat::Stop { kill } => {
                // It may take as long as its tasks: who asked sees the end by the end of the link.
                self.answer(id, AnswerWhat::Done);
                self.begin_stop(kill);
            }
        }
    }

    pub(crate) fn answer(&mut self, id: u64, what: AnswerWhat) {
        self.tell_broker(Answer { id, what });
    }

    /// Whether the task is here and not over.
    fn holds(&self, task: pf_protocol::TaskId) -> bool {
        let Some(job) = self.jobs.get(&task.job) else { return false };
        let waits = job.chunks().any(|c| c.tasks.contains(task.index));
        waits
            || self
                .flights
                .values()
                .any(|f| f.job == task.job && f.live_places().any(|p| f.index(p) == task.index))
    }
}
