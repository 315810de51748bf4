//! Gives held attempts to free slots, and short tasks to the pipes of busy workers.

use super::ManagerCore;
use super::attempts::State;
use super::workers::Phase;
use crate::limits::{IDLE_WORKERS_PER_CORE, WORKER_START_US_MAX};
use crate::shape::NodeShape;
use crate::slots::Claim;
use crate::{Effect, StartCommand, StartWorker, WorkerTask};
use pf_protocol::message::Refused;
use pf_protocol::outcome::{ErrorDetail, OutcomeKind};
use pf_protocol::{AttemptId, Micros};
use std::collections::BTreeMap;

/// Tasks gathered for workers in one pass, so that each worker gets one frame.
type Gathered = BTreeMap<u32, Vec<WorkerTask>>;

impl ManagerCore {
    /// Starts what can be started.
    pub(super) fn fill(&mut self, now: Micros, out: &mut Vec<Effect>) {
        if !std::mem::take(&mut self.dirty) || !self.may_start(now) {
            return;
        }
        let mut gathered = Gathered::new();
        for class in self.attempts.classes_by_age() {
            match self.attempts.classes.get(&class).and_then(|c| c.kind) {
                None => self.fill_lanes(now, class, &mut gathered, out),
                Some(kind) => self.fill_workers(now, class, kind, &mut gathered, out),
            }
            self.fill_pipes(now, class, &mut gathered, out);
        }
        out.extend(gathered.into_iter().map(|(worker, tasks)| Effect::WorkerTasks { worker, tasks }));
        let idle_max = IDLE_WORKERS_PER_CORE * self.config.shape.cores.len().max(1);
        while let Some(worker) = self.workers.idle_too_many(idle_max) {
            self.end_worker(worker, out);
        }
    }

    fn may_start(&self, now: Micros) -> bool {
        let cut_off = self.cut_since.is_some_and(|since| now.saturating_sub(since) >= self.lease_us);
        self.drain.is_none() && !cut_off && !self.outgoing.is_full()
    }

    /// The oldest of a class that may start now. Those that need more time than is left are refused on the way.
    fn next_to_start(&mut self, now: Micros, class: u32) -> Option<AttemptId> {
        if self.outgoing.is_full() {
            return None;
        }
        loop {
            let id = self.attempts.first_held(class)?;
            let spec =
                self.attempts.all.get(&id).and_then(|a| self.attempts.jobs.get(&a.job)).map(|j| &j.def.spec);
            let needed_ms = spec.and_then(|spec| spec.time_needed_ms).unwrap_or(0);
            let left_ms =
                self.config.walltime_end.saturating_sub(self.reserve_us).saturating_sub(now) / 1_000;
            if needed_ms <= left_ms {
                return Some(id);
            }
            self.attempts.pop_held(class);
            self.attempts.remove(id);
            let reason =
                format!("it needs {} s, the block has {} s left", needed_ms / 1_000, left_ms / 1_000);
            self.dial.send(now, Refused { attempts: vec![id], reason }.into(), &mut self.links);
        }
    }

    /// One command for each seat that is free.
    fn fill_lanes(&mut self, now: Micros, class: u32, gathered: &mut Gathered, out: &mut Vec<Effect>) {
        while let Some(id) = self.next_to_start(now, class) {
            let wants = self.attempts.classes.get(&class).map_or(&[][..], |c| &c.wants);
            let Some(seat) = wants.iter().find_map(|want| self.slots.claim(want)) else { return };
            self.attempts.pop_held(class);
            let lane = self.workers.add_lane(class, seat);
            self.give(now, id, lane, gathered, out);
        }
    }

    /// The same for Python tasks.
    fn fill_workers(
        &mut self,
        now: Micros,
        class: u32,
        kind: u32,
        gathered: &mut Gathered,
        out: &mut Vec<Effect>,
    ) {
        while let Some(id) = self.next_to_start(now, class) {
            if let Some(error) = self.why_kind_rests(now, kind) {
                self.attempts.pop_held(class);
                self.end_not_started(now, id, OutcomeKind::Refused, error);
                continue;
            }
            let Some(worker) = self.take_seat(now, class, kind, out) else { return };
            self.attempts.pop_held(class);
            self.give(now, id, worker, gathered, out);
        }
    }

    /// A worker for a task of this class: an idle one whose seat is free, else a new one on free cores.
    fn take_seat(&mut self, now: Micros, class: u32, kind: u32, out: &mut Vec<Effect>) -> Option<u32> {
        let wants = &self.attempts.classes.get(&class)?.wants;
        let idle: Vec<u32> =
            self.workers.idle.range((kind, 0)..=(kind, u32::MAX)).map(|(_, id)| *id).collect();
        for id in idle {
            let Some(worker) = self.workers.all.get_mut(&id) else { continue };
            let same = |want: &&_| worker.class == class || seat_fits(want, &worker.seat);
            let seat = wants.iter().filter(same).find_map(|want| self.slots.claim_at(want, &worker.seat));
            if let Some(seat) = seat {
                (worker.seat, worker.seated, worker.class) = (seat, true, class);
                self.workers.idle.remove(&(kind, id));
                return Some(id);
            }
        }
        let seat = wants.iter().find_map(|want| self.slots.claim(want))?;
        let (pus, gpus) = binding(&self.config.shape, &seat);
        let worker = self.workers.add_python(kind, class, seat, now + WORKER_START_US_MAX);
        let kind = self.workers.kinds.get(&kind)?;
        let (python, env) = (kind.python.clone(), kind.env.clone());
        out.push(Effect::StartWorker(Box::new(StartWorker { worker, python, env, pus, gpus })));
        Some(worker)
    }

    /// Short tasks behind those that run, round the workers, while it is little work.
    fn fill_pipes(&mut self, now: Micros, class: u32, gathered: &mut Gathered, out: &mut Vec<Effect>) {
        if self.attempts.first_held(class).is_none() {
            return;
        }
        let is_busy = |w: &super::workers::Worker| w.class == class && w.seated && w.phase == Phase::Up;
        let busy = self.workers.all.iter().filter(|(_, w)| is_busy(w));
        let mut open: Vec<(usize, u32)> = busy.map(|(id, w)| (w.pipe.len(), *id)).collect();
        open.sort_unstable();
        while !open.is_empty() {
            let mut still_open = Vec::with_capacity(open.len());
            for (_, worker) in open {
                let Some(id) = self.next_to_start(now, class) else { return };
                if !self.has_room(now, worker, id) {
                    continue;
                }
                self.attempts.pop_held(class);
                self.give(now, id, worker, gathered, out);
                still_open.push((0, worker));
            }
            open = still_open;
        }
    }

    fn has_room(&self, now: Micros, worker: u32, id: AttemptId) -> bool {
        let attempts = &self.attempts;
        let (Some(worker), Some(attempt)) = (self.workers.all.get(&worker), attempts.all.get(&id)) else {
            return false;
        };
        let estimate_us = attempts.jobs.get(&attempt.job).map_or(0, |j| j.estimate_us);
        let head = worker.pipe.front().and_then(|p| attempts.all.get(&p.attempt));
        worker.has_room(now, head.and_then(|a| a.state.running_since()), estimate_us, attempt.item.len())
    }

    /// Puts a task into a worker's pipe.
    fn give(&mut self, now: Micros, id: AttemptId, to: u32, gathered: &mut Gathered, out: &mut Vec<Effect>) {
        let Some(worker) = self.workers.all.get_mut(&to) else { return };
        let Some(attempt) = self.attempts.all.get_mut(&id) else { return };
        let Some(job) = self.attempts.jobs.get(&attempt.job) else { return };
        attempt.state = State::Piped { worker: to };
        let (index, item, is_large) = (attempt.index, attempt.item.clone(), attempt.is_large);
        let is_first = worker.pipe.is_empty();
        let seq = worker.push(id, job.estimate_us, item.len());
        if worker.kind.is_none() {
            let (pus, gpus) = binding(&self.config.shape, &worker.seat);
            let job = job.def.clone();
            let start = StartCommand { attempt: id, lane: to, job, index, item, is_large, pus, gpus };
            return out.push(Effect::StartCommand(Box::new(start)));
        }
        let known = worker.jobs.len() as u32;
        let slot = *worker.jobs.entry(attempt.job).or_insert_with(|| {
            let large = self.takes_large;
            out.push(Effect::WorkerJob { worker: to, slot: known, job: job.def.clone(), large });
            known
        });
        let up = worker.phase == Phase::Up;
        gathered.entry(to).or_default().push(WorkerTask { seq, attempt: id, slot, index, item, is_large });
        if is_first && up {
            self.begin(now, id, out);
        }
    }

    /// Why no worker of this kind is started for a while.
    fn why_kind_rests(&self, now: Micros, kind: u32) -> Option<ErrorDetail> {
        let (until, error) = self.workers.kinds.get(&kind)?.rest.as_ref()?;
        (now < *until).then(|| error.clone())
    }
}

/// Hardware threads and GPUs of a seat.
fn binding(shape: &NodeShape, seat: &Claim) -> (Vec<u32>, Vec<usize>) {
    let pus = seat.cores.iter().flat_map(|&c| shape.cores[c].pus.iter().copied()).collect();
    (pus, seat.gpus.iter().map(|g| g.0).collect())
}

/// Whether a worker that sits there has just what is wanted, though it was started for another class.
fn seat_fits(want: &pf_protocol::resources::Resources, seat: &Claim) -> bool {
    let gpus: u32 = seat.gpus.iter().map(|g| g.1).sum();
    want.cores as usize == seat.cores.len() && want.gpus_milli == gpus
}
