//! What comes over the link to the relay, and what is reported over it.

use super::ManagerCore;
use super::attempts::{Attempt, Ending, Job, State};
use crate::Effect;
use crate::limits::{ATTEMPTS_MAX, INVENTORY_PAGE, LOAD_EVERY_US};
use pf_link::Event;
use pf_protocol::job::{Body, JobDef};
use pf_protocol::limits::STARTED_AFTER_MS;
use pf_protocol::message::{
    AttemptBatch, CancelAttempts, Inventory, Load, Message, Recall, Recalled, Refused, Started, StartedTask,
    VERSION_LARGE, Welcome,
};
use pf_protocol::outcome::{ErrorDetail, OutcomeKind};
use pf_protocol::payload::{held, is_large, refs};
use pf_protocol::report::ManagerReport;
use pf_protocol::{AttemptId, Epoch, JobId, Micros};
use std::collections::BTreeSet;
use std::sync::Arc;

impl ManagerCore {
    pub(super) fn on_link_event(&mut self, now: Micros, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Up { welcome, .. } => self.on_up(now, &welcome),
            Event::Message { message, .. } => self.on_message(now, message, out),
            Event::Refused { refuse, .. } if !refuse.retry && refuse.code == "ended" => {
                self.begin_drain(now, format!("the relay says: {}", refuse.message), 0, out);
            }
            Event::Hello { .. } | Event::Refused { .. } | Event::Down { .. } => {}
        }
    }

    /// Notices that the link went up or down.
    pub(super) fn see_link(&mut self, now: Micros) {
        let up = self.dial.is_up();
        if up == self.link_up {
            return;
        }
        self.link_up = up;
        self.cut_since = (!up).then_some(now);
        self.lease_killed = false;
        self.dirty = true;
    }

    fn on_up(&mut self, now: Micros, welcome: &Welcome) {
        self.epoch = welcome.epoch;
        self.lease_us = welcome.lease_ms * 1_000;
        self.takes_large = welcome.version >= VERSION_LARGE;
        self.load_sent = None;
        self.forget_unused_jobs();
        for page in self.inventory() {
            self.dial.send(now, page.into(), &mut self.links);
        }
        self.outgoing.send_all_again();
        self.flush(now);
    }

    fn on_message(&mut self, now: Micros, message: Message, out: &mut Vec<Effect>) {
        match message {
            Message::Define(define) => define.jobs.into_iter().for_each(|job| self.define(job)),
            Message::Dispatch(dispatch) => {
                for batch in dispatch.batches {
                    self.on_attempts(now, dispatch.epoch, &batch);
                }
            }
            Message::Confirm(confirm) => {
                let was_full = self.outgoing.is_full();
                self.outgoing.confirm(confirm.upto);
                self.dirty |= was_full;
            }
            Message::Recall(recall) => self.on_recall(now, recall),
            Message::CancelAttempts(cancel) => self.on_cancel(now, cancel, out),
            Message::Verdict(verdict) => {
                verdict.drop.into_iter().for_each(|id| self.drop_attempt(now, id, out))
            }
            Message::Drain(drain) if drain.epoch >= self.epoch => {
                self.begin_drain(now, drain.reason, drain.grace_ms * 1_000, out);
            }
            Message::Release(release) => {
                for job in release.jobs {
                    if self.attempts.jobs.get(&job).is_some_and(|j| j.live == 0) {
                        self.attempts.jobs.remove(&job);
                    }
                }
                self.attempts.forget_unused_classes();
                self.workers.forget_unused_kinds(&self.attempts);
            }
            _ => {}
        }
    }

    fn define(&mut self, def: JobDef) {
        let kind = match &def.spec.body {
            Body::Command(_) => None,
            Body::Python(python) => Some(self.workers.kind_of(python.python.as_ref(), &def.spec.env)),
        };
        let capacity = self.config.shape.capacity();
        let resources = &def.spec.resources;
        let wants = std::iter::once(resources)
            .chain(&resources.alternatives)
            .filter(|r| r.nodes <= 1 && r.ranks_per_node == 0 && r.why_not_on(&capacity).is_none())
            .cloned()
            .collect();
        let class = self.attempts.class_of(wants, kind);
        let id = def.job;
        match self.attempts.jobs.get_mut(&id) {
            // Said again in a new session: the same job. Its attempts stay where they are.
            Some(job) => job.def = Arc::new(def),
            None => {
                let job = Job { def: Arc::new(def), class, kind, live: 0, estimate_us: 0 };
                self.attempts.jobs.insert(id, job);
            }
        }
    }

    /// A new session defines what it needs again; jobs without attempts here are not kept for it.
    fn forget_unused_jobs(&mut self) {
        self.attempts.jobs.retain(|_, job| job.live > 0);
        self.attempts.forget_unused_classes();
        self.workers.forget_unused_kinds(&self.attempts);
    }

    fn on_attempts(&mut self, now: Micros, epoch: Epoch, batch: &AttemptBatch) {
        let count = batch.tasks.len() as usize;
        let id_at =
            |n: usize| AttemptId { epoch: batch.first.epoch, n: batch.first.n.wrapping_add(n as u32) };
        let fits = batch.lens.is_empty() || batch.lens.len() == count;
        let fits = fits && refs(&batch.lens, &batch.blob).is_some();
        let reason = if epoch < self.epoch {
            format!("epoch {} of the relay is over, it is {} now", epoch.0, self.epoch.0)
        } else if !fits {
            "lengths and items do not agree".into()
        } else if self.attempts.all.len() + count > ATTEMPTS_MAX {
            format!("the manager holds {} attempts already", self.attempts.all.len())
        } else if let Some(why) = self.why_not_here(batch.job) {
            why
        } else {
            let mut at = 0usize;
            for (n, index) in batch.tasks.iter().enumerate() {
                let len = batch.lens.get(n).copied().unwrap_or(0);
                let item = batch.blob.slice(at..at + held(len));
                at += held(len);
                let (job, id) = (batch.job, id_at(n));
                if !self.attempts.all.contains_key(&id) {
                    let arrived = now;
                    let attempt = Attempt {
                        job,
                        index,
                        item,
                        is_large: is_large(len),
                        arrived,
                        requeues: 0,
                        state: State::Held,
                        ending: None,
                        due: None,
                    };
                    self.attempts.hold(id, attempt);
                }
            }
            self.dirty = true;
            return;
        };
        let attempts = (0..count).map(id_at).collect();
        self.dial.send(now, Refused { attempts, reason }.into(), &mut self.links);
    }

    /// Why tasks of this job cannot be mapped here.
    fn why_not_here(&self, job: JobId) -> Option<String> {
        let Some(job) = self.attempts.jobs.get(&job) else { return Some(format!("{job} was not defined")) };
        if self.attempts.classes.get(&job.class).is_some_and(|class| !class.wants.is_empty()) {
            return None;
        }
        let resources = &job.def.spec.resources;
        if resources.nodes > 1 || resources.ranks_per_node > 0 {
            return Some("programs over several nodes or ranks are not run by this version".into());
        }
        Some(resources.why_not_on(&self.config.shape.capacity()).unwrap_or_else(|| "it does not fit".into()))
    }

    fn on_recall(&mut self, now: Micros, recall: Recall) {
        if recall.epoch < self.epoch {
            return;
        }
        let asked = recall.attempts.unwrap_or_else(|| self.attempts.held());
        let is_held =
            |id: &AttemptId| self.attempts.all.get(id).is_some_and(|a| matches!(a.state, State::Held));
        let attempts: Vec<AttemptId> = asked.into_iter().filter(is_held).collect();
        for id in &attempts {
            self.attempts.remove(*id);
        }
        self.dial.send(now, Recalled { id: recall.id, attempts }.into(), &mut self.links);
    }

    fn on_cancel(&mut self, now: Micros, cancel: CancelAttempts, out: &mut Vec<Effect>) {
        if cancel.epoch < self.epoch {
            return;
        }
        let mut pipes = BTreeSet::new();
        for id in cancel.attempts {
            match self.attempts.all.get_mut(&id).map(|a| &a.state) {
                None => {}
                Some(State::Held) => {
                    let error = ErrorDetail {
                        message: "cancelled before it started".into(),
                        ..ErrorDetail::default()
                    };
                    self.end_not_started(now, id, OutcomeKind::Cancelled, error);
                }
                Some(&State::Piped { worker }) => {
                    let ending = if cancel.kill { Ending::Cancelled } else { Ending::Unwanted };
                    if let Some(attempt) = self.attempts.all.get_mut(&id)
                        && matches!(attempt.ending, None | Some(Ending::Unwanted))
                    {
                        attempt.ending = Some(ending);
                    }
                    pipes.insert(worker);
                }
                Some(_) if cancel.kill => self.terminate(now, id, Ending::Cancelled, out),
                Some(_) => {}
            }
        }
        out.extend(pipes.into_iter().map(|worker| Effect::TakeBack { worker }));
    }

    /// The relay does not want this attempt any more, nor its outcome.
    fn drop_attempt(&mut self, now: Micros, id: AttemptId, out: &mut Vec<Effect>) {
        match self.attempts.all.get_mut(&id).map(|a| &a.state) {
            None => self.outgoing.drop_attempt(id),
            Some(State::Held) => drop(self.attempts.remove(id)),
            Some(&State::Piped { worker }) => {
                out.push(Effect::TakeBack { worker });
                self.attempts.all.entry(id).and_modify(|a| a.ending = Some(Ending::Dropped));
            }
            Some(_) => self.terminate(now, id, Ending::Dropped, out),
        }
    }

    fn inventory(&self) -> Vec<Inventory> {
        enum Part {
            Held,
            Running,
            Ended,
        }
        let live = self.attempts.all.iter().map(|(id, a)| {
            let part = if self.may_run(*id, a) { Part::Running } else { Part::Held };
            (part, (a.task(), *id))
        });
        let all = live.chain(self.outgoing.ended().map(|entry| (Part::Ended, entry)));
        let mut pages = vec![Inventory::default()];
        for (n, (part, entry)) in all.enumerate() {
            if n > 0 && n % INVENTORY_PAGE == 0 {
                pages.push(Inventory::default());
            }
            if let Some(page) = pages.last_mut() {
                match part {
                    Part::Held => page.held.push(entry),
                    Part::Running => page.running.push(entry),
                    Part::Ended => page.ended.push(entry),
                }
            }
        }
        if let Some(page) = pages.last_mut() {
            page.last = true;
        }
        pages
    }

    /// Reports what has run for a while by now.
    pub(super) fn report_started(&mut self, now: Micros) {
        let mut tasks = Vec::new();
        while let Some(&(since, attempt)) = self.young.front() {
            if now < since + STARTED_AFTER_MS * 1_000 {
                break;
            }
            self.young.pop_front();
            let Some(found) = self.attempts.all.get(&attempt) else { continue };
            if found.state.running_since() == Some(since) {
                tasks.push(StartedTask { task: found.task(), attempt, ran_us: now - since });
            }
        }
        if !tasks.is_empty() {
            let started = Started { manager: self.config.manager, node: self.config.node.clone(), tasks };
            self.dial.send(now, started.into(), &mut self.links);
        }
    }

    /// When the load is looked at next.
    pub(super) fn next_load(&self) -> Option<Micros> {
        self.link_up.then(|| self.load_sent.as_ref().map_or(0, |(at, _)| at + LOAD_EVERY_US))
    }

    pub(super) fn report_load(&mut self, now: Micros) {
        if self.next_load().is_none_or(|at| now < at) {
            return;
        }
        let (held, running) = self.counts();
        let load = ManagerReport {
            manager: self.config.manager.to_string(),
            node: self.config.node.clone(),
            capacity: self.config.shape.capacity(),
            cores_busy: self.slots.cores_busy() as u32,
            running: running as u32,
            held: held as u32,
            pid: self.config.pid,
        };
        let news = self.load_sent.as_ref().is_none_or(|(_, last)| *last != load);
        if news {
            self.dial.send(now, Load { load: load.clone() }.into(), &mut self.links);
        }
        self.load_sent = Some((now, load));
    }
}
