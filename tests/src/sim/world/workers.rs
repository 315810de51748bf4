//! Python workers of the simulation: tasks in their pipes run one after another, and some values are large.

use super::*;
use pf_protocol::outcome::ErrorDetail;
use pf_protocol::payload::{PayloadRef, file_name};

/// A worker at a manager.
#[derive(Debug, Default)]
pub(super) struct Worker {
    up: bool,
    /// Number of each job that it was told of, by slot.
    jobs: BTreeMap<u32, (JobId, u64)>,
    pipe: VecDeque<manager::WorkerTask>,
    running: Option<manager::WorkerTask>,
    /// The last that ended.
    marked: u64,
}

impl World {
    pub(super) fn worker_effect(&mut self, place: usize, effect: manager::Effect) {
        match effect {
            manager::Effect::StartWorker(start) => {
                self.workers.insert((place, start.worker), Worker::default());
                let at = self.now + 20 * MS;
                self.at(at, Event::WorkerUp { manager: place, worker: start.worker });
            }
            manager::Effect::WorkerJob { worker, slot, job, large } => {
                assert!(large, "both ends of this world speak the version of large payloads");
                let number = number_of(&job.spec);
                if let Some(worker) = self.workers.get_mut(&(place, worker)) {
                    worker.jobs.insert(slot, (job.job, number));
                }
            }
            manager::Effect::WorkerTasks { worker, tasks } => {
                if let Some(worker) = self.workers.get_mut(&(place, worker)) {
                    worker.pipe.extend(tasks);
                }
                self.worker_goes_on(place, worker);
            }
            manager::Effect::TakeBack { worker } => {
                let attempts = match self.workers.get_mut(&(place, worker)) {
                    Some(worker) => worker.pipe.drain(..).map(|task| task.attempt).collect(),
                    None => self.take_from_lane(place, worker),
                };
                self.tell_manager(place, manager::Input::TakenBack { worker, attempts });
            }
            manager::Effect::SignalWorker { worker, signal } => {
                let status = manager::ProcessStatus::Signal(signal);
                self.at(self.now + MS, Event::WorkerEnds { manager: place, worker, status });
            }
            manager::Effect::EndWorker { worker } => {
                let status = manager::ProcessStatus::Exit(0);
                self.at(self.now + MS, Event::WorkerEnds { manager: place, worker, status });
            }
            other => panic!("this is no effect for a worker: {other:?}"),
        }
    }

    pub(super) fn worker_up(&mut self, place: usize, id: u32) {
        if let Some(worker) = self.workers.get_mut(&(place, id)) {
            worker.up = true;
            self.tell_manager(place, manager::Input::WorkerUp { worker: id });
            self.worker_goes_on(place, id);
        }
    }

    fn worker_goes_on(&mut self, place: usize, id: u32) {
        let Some(worker) = self.workers.get_mut(&(place, id)) else { return };
        if !worker.up || worker.running.is_some() {
            return;
        }
        let Some(task) = worker.pipe.pop_front() else { return };
        let (job, number) = worker.jobs[&task.slot];
        worker.running = Some(task.clone());
        let named = TaskId { job, index: task.index };
        self.truth.started(named, place, task.attempt);
        self.check_item(named, number, &task.item, task.is_large);
        let at = self.now + self.rng.between(MS, self.plan.task_ms_max * MS);
        self.at(at, Event::WorkerTaskEnds { manager: place, worker: id, seq: task.seq });
    }

    pub(super) fn worker_task_ends(&mut self, place: usize, id: u32, seq: u64) {
        let Some(worker) = self.workers.get_mut(&(place, id)) else { return };
        let Some(task) = worker.running.take_if(|task| task.seq == seq) else { return };
        worker.marked = seq;
        let (job, number) = worker.jobs[&task.slot];
        let named = TaskId { job, index: task.index };
        self.truth.ended(named);
        let kind = self.expected(named);
        let failed = ErrorDetail { message: "exit 1".into(), exit: Some(1), ..Default::default() };
        let value = if kind.is_ok() { self.value_of(number, task.index) } else { Vec::new() };
        let is_large = value.len() > pf_protocol::limits::INLINE_BYTES_MAX;
        let value = if is_large {
            let name = PayloadRef { hash: content_hash(&value), len: value.len() as u64 };
            self.shared.insert(file_name(job, name.hash, true), value);
            Bytes::copy_from_slice(&name.to_bytes())
        } else {
            Bytes::from(value)
        };
        let error = (!kind.is_ok()).then(|| Box::new(failed));
        let answer = manager::WorkerAnswer { seq, kind, ran_us: 1_000, value, is_large, error };
        self.tell_manager(place, manager::Input::WorkerAnswers { worker: id, answers: vec![answer] });
        self.worker_goes_on(place, id);
    }

    pub(super) fn worker_ends(&mut self, place: usize, id: u32, status: manager::ProcessStatus) {
        let Some(marked) = self.worker_is_gone(place, id) else { return };
        let end = manager::ProcessEnd {
            status,
            ran_us: 1_000,
            usage: Usage::default(),
            out_of_memory: None,
            stderr_tail: String::new(),
        };
        let end = manager::WorkerEnd::Ended { end, marked };
        self.tell_manager(place, manager::Input::WorkerGone { worker: id, end });
    }

    /// It is gone, and what it ran with it; answers the last task that had ended.
    fn worker_is_gone(&mut self, place: usize, id: u32) -> Option<u64> {
        let worker = self.workers.remove(&(place, id))?;
        if let Some(task) = worker.running {
            self.truth.ended(TaskId { job: worker.jobs[&task.slot].0, index: task.index });
        }
        Some(worker.marked)
    }

    /// A node dies with its workers.
    pub(super) fn workers_die(&mut self, place: usize) {
        let all: Vec<u32> =
            self.workers.range((place, 0)..=(place, u32::MAX)).map(|(key, _)| key.1).collect();
        for id in all {
            self.worker_is_gone(place, id);
        }
    }
}
