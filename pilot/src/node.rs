//! The manager's shell: turns frames, processes, pipes and files into the core's inputs, and carries out its effects.

use crate::children::{End, Strays};
use crate::lanes::{Lanes, News, Request, Who, WorkerEnds};
use crate::limits::{LAST_FILES, NEWS_LOOK_US, PARENT_US, STOP_GRACE_MS, SWEEP_SELDOM_US, SWEEP_US};
use crate::memory::MemoryWatch;
use crate::oom::OomWatch;
use crate::output::OutputLog;
use crate::outputs::Outputs;
use crate::polls::{poll, worker_flags};
use crate::running::RunningCommand;
use crate::ticket;
use crate::wire::Said;
use crate::worker::WorkerProcess;
use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signalfd::SignalFd;
use pf_manager_core::{Effect, Input, ManagerCore, OutOfMemory, ProcessEnd, ProcessStatus, WorkerEnd};
use pf_protocol::outcome::ErrorDetail;
use pf_protocol::{AttemptId, TaskId};
use pf_transport::{CloseReason, Conn, Node, Outbox};
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const SIGNALS: u64 = 1;
const WORKERS: u64 = 2;
const OUTPUTS: u64 = 3;

/// What the node is made of.
pub(crate) struct Parts {
    pub core: ManagerCore,
    pub ticket_path: PathBuf,
    /// Folder of large payloads, if the relay knows of one.
    pub payloads_dir: Option<PathBuf>,
    pub lanes: Lanes,
    pub output: OutputLog,
    pub signals: SignalFd,
}

/// See the module.
pub(crate) struct ManagerNode {
    parts: Parts,
    strays: Strays,
    oom: OomWatch,
    memory: MemoryWatch,
    commands: HashMap<AttemptId, RunningCommand>,
    workers: HashMap<u32, WorkerProcess>,
    worker_polls: Epoll,
    outputs: Outputs,
    outputs_watched: bool,
    buffer: Vec<u8>,
    core_timer: Option<u64>,
    sweep_at: Option<u64>,
    /// When it is looked for news of the lanes.
    news_at: Option<u64>,
    parent_at: u64,
    parent: u32,
    worker_output_at: Option<u64>,
    stopping: bool,
}

impl ManagerNode {
    pub fn new(parts: Parts) -> nix::Result<Self> {
        let flags = nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC;
        Ok(ManagerNode {
            parts,
            strays: Strays::default(),
            oom: OomWatch::new(),
            memory: MemoryWatch::default(),
            commands: HashMap::new(),
            workers: HashMap::new(),
            worker_polls: Epoll::new(flags)?,
            outputs: Outputs::new()?,
            outputs_watched: true,
            buffer: Vec::new(),
            core_timer: None,
            sweep_at: None,
            news_at: None,
            parent_at: 0,
            parent: std::os::unix::process::parent_id(),
            worker_output_at: None,
            stopping: false,
        })
    }

    fn give(&mut self, now: u64, input: Input, out: &mut Outbox) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            self.parts.core.handle(now, input, &mut effects);
            for effect in effects {
                if let Some(answer) = self.carry_out(now, effect, out) {
                    inputs.push_back(answer);
                }
            }
        }
    }

    fn carry_out(&mut self, now: u64, effect: Effect, out: &mut Outbox) -> Option<Input> {
        match effect {
            Effect::Dial => {
                return Some(Input::Dialled { conns: ticket::dial_all(&self.parts.ticket_path, out) });
            }
            Effect::Frame { conn, bytes } => out.send(Conn(conn), bytes),
            Effect::CloseConn { conn } => out.close(Conn(conn)),
            Effect::SetTimer { at } => self.core_timer = at,
            Effect::StartCommand(start) => {
                let task = TaskId { job: start.job.job, index: start.index };
                self.commands.insert(start.attempt, RunningCommand::new(task, start.attempt));
                self.memory.allow(Who::Attempt(start.attempt), start.job.spec.resources.memory_bytes);
                self.parts.lanes.ask(Request::Command(start));
                self.news_at.get_or_insert(now + NEWS_LOOK_US);
            }
            Effect::SignalCommand { attempt, signal } => {
                self.parts.lanes.signal(Who::Attempt(attempt), signal)
            }
            Effect::StartWorker(start) => {
                self.workers.insert(start.worker, WorkerProcess::new());
                self.parts.lanes.ask(Request::Worker(start));
            }
            Effect::TakeBack { worker } => return Some(self.take_back(worker)),
            Effect::WorkerJob { worker, slot, job, large } => {
                self.memory.allow(Who::Worker(worker), job.spec.resources.memory_bytes);
                let dir = self.parts.payloads_dir.clone().filter(|_| large);
                self.with_worker(worker, |w| w.tell_job(slot, &job, dir));
            }
            Effect::WorkerTasks { worker, tasks } => {
                self.with_worker(worker, |w| w.tell_tasks(&tasks));
                self.write_to(worker);
            }
            Effect::SignalWorker { worker, signal } => self.parts.lanes.signal(Who::Worker(worker), signal),
            Effect::EndWorker { worker } => {
                self.with_worker(worker, WorkerProcess::tell_end);
                self.write_to(worker);
            }
            Effect::Spool { upto, batches } => self.parts.output.spool(upto, batches),
            Effect::Exit { reason } => {
                tracing::info!(reason, "the manager ends");
                self.stopping = true;
                self.parts.lanes.kill_all();
                out.stop();
            }
        }
        None
    }

    fn with_worker(&mut self, worker: u32, tell: impl FnOnce(&mut WorkerProcess)) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            tell(worker);
        }
    }

    /// Takes from a worker or a lane what has not started.
    fn take_back(&mut self, worker: u32) -> Input {
        let attempts = match self.workers.get_mut(&worker) {
            Some(worker) => worker.take_back(),
            None => self.parts.lanes.take_back(worker),
        };
        for attempt in &attempts {
            if self.commands.remove(attempt).is_some() {
                self.memory.ended(Who::Attempt(*attempt));
            }
        }
        Input::TakenBack { worker, attempts }
    }

    /// Sends to a worker, and asks to be told when it takes more if it does not take all.
    fn write_to(&mut self, id: u32) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let left = worker.write();
        if std::mem::replace(&mut worker.write_watched, left) == left {
            return;
        }
        let Some(data) = worker.data() else { return };
        // Only fails for descriptors that are not watched: then its end is on its way.
        let _ = self.worker_polls.modify(data, &mut EpollEvent::new(worker_flags(left), u64::from(id)));
    }

    fn on_news(&mut self, now: u64, out: &mut Outbox) {
        for news in self.parts.lanes.take_news() {
            match news {
                News::Started { who: Who::Attempt(attempt), pid, .. } => {
                    self.sweep_at.get_or_insert(now + SWEEP_SELDOM_US);
                    self.memory.began(now, Who::Attempt(attempt), pid);
                    self.outputs.begin(now, attempt);
                    self.give(now, Input::CommandStarted { attempt }, out);
                }
                News::Started { who: Who::Worker(worker), pid, worker: ends } => {
                    self.sweep_at.get_or_insert(now + SWEEP_SELDOM_US);
                    self.memory.began(now, Who::Worker(worker), pid);
                    if let Some(ends) = ends {
                        self.begin_worker(worker, *ends);
                    }
                }
                News::NotStarted { who, error } => {
                    self.memory.ended(who);
                    let told = self.not_started(who, error);
                    self.give(now, told, out);
                }
                News::Ended { who, end, output } => self.on_ended(now, who, end, output, out),
            }
        }
    }

    fn not_started(&mut self, who: Who, error: ErrorDetail) -> Input {
        match who {
            Who::Attempt(attempt) => {
                self.commands.remove(&attempt);
                Input::CommandNotStarted { attempt, error }
            }
            Who::Worker(worker) => {
                self.workers.remove(&worker);
                Input::WorkerGone { worker, end: WorkerEnd::NotStarted(error) }
            }
        }
    }

    /// Watches the pipes of tasks that have grown old enough.
    fn watch_outputs(&mut self, now: u64) {
        let Self { outputs, commands, parts, .. } = self;
        while let Some(attempt) = outputs.next_grown(now, |attempt| commands.contains_key(&attempt)) {
            if let Some((command, pipes)) = commands.get_mut(&attempt).zip(parts.lanes.take_pipes(attempt)) {
                command.watch(pipes, outputs);
            }
        }
    }

    fn begin_worker(&mut self, id: u32, ends: WorkerEnds) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.begin(ends);
        if let Some(data) = worker.data() {
            let event = EpollEvent::new(worker_flags(worker.write_watched), u64::from(id));
            if let Err(error) = self.worker_polls.add(data, event) {
                tracing::error!(%error, "a worker cannot be watched");
            }
        }
    }

    fn on_ended(&mut self, now: u64, who: Who, end: End, output: [Vec<u8>; 2], out: &mut Outbox) {
        self.sweep_at = Some(self.sweep_at.map_or(now + SWEEP_US, |at| at.min(now + SWEEP_US)));
        let over = self.memory.ended(who);
        let End { status, usage, ran_us } = end;
        let killed = status == ProcessStatus::Signal(libc::SIGKILL);
        let out_of_memory = over.or_else(|| (killed && self.oom.fired()).then_some(OutOfMemory::Kernel));
        let end = ProcessEnd { status, ran_us, usage, out_of_memory, stderr_tail: String::new() };
        let told = match who {
            Who::Attempt(attempt) => self.end_command(attempt, output, end),
            Who::Worker(worker) => {
                self.read_worker(now, worker, out);
                self.end_worker(worker, end)
            }
        };
        if let Some(input) = told {
            self.give(now, input, out);
        }
        if self.stopping && self.commands.is_empty() && self.workers.is_empty() {
            out.stop();
        }
    }

    /// The last output of a command, and its end.
    fn end_command(&mut self, attempt: AttemptId, read: [Vec<u8>; 2], mut end: ProcessEnd) -> Option<Input> {
        let command = self.commands.remove(&attempt)?;
        let log = &mut self.parts.output.buffer;
        let wrote;
        (wrote, end.stderr_tail) = command.end(read, &mut self.outputs, &mut self.buffer, log);
        self.parts.output.after_output(Who::Attempt(attempt), wrote, Input::CommandEnded { attempt, end })
    }

    fn end_worker(&mut self, id: u32, mut end: ProcessEnd) -> Option<Input> {
        let mut worker = self.workers.remove(&id)?;
        worker.read_outputs(&mut self.buffer, &mut self.parts.output.buffer);
        end.stderr_tail = worker.stderr_tail();
        let (wrote, marked) = (worker.any_output(), worker.marked());
        worker.answered(u64::MAX, &mut self.parts.output.buffer);
        let gone = Input::WorkerGone { worker: id, end: WorkerEnd::Ended { end, marked } };
        self.parts.output.after_output(Who::Worker(id), wrote, gone)
    }

    /// What a worker says, and its output before that.
    fn read_worker(&mut self, now: u64, id: u32, out: &mut Outbox) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let said = match worker.read() {
            Ok(said) => said,
            Err(error) => {
                tracing::error!(worker = id, %error, "a Python worker is not understood, and is killed");
                self.parts.lanes.signal(Who::Worker(id), libc::SIGKILL);
                return;
            }
        };
        for one in said {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let input = match one {
                Said::Hello { python, .. } => {
                    tracing::debug!(worker = id, python, "a Python worker is up");
                    Some(Input::WorkerUp { worker: id })
                }
                Said::Answers(answers) => {
                    let log = &mut self.parts.output.buffer;
                    worker.read_outputs(&mut self.buffer, log);
                    let wrote = answers.last().is_some_and(|last| worker.answered(last.seq, log));
                    self.parts.output.after_output(
                        Who::Worker(id),
                        wrote,
                        Input::WorkerAnswers { worker: id, answers },
                    )
                }
            };
            if let Some(input) = input {
                self.give(now, input, out);
            }
        }
    }

    fn on_worker_events(&mut self, now: u64, out: &mut Outbox) {
        for (id, flags) in poll(&self.worker_polls) {
            let id = id as u32;
            if flags.contains(EpollFlags::EPOLLOUT) {
                self.write_to(id);
            }
            if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                self.read_worker(now, id, out);
            }
        }
    }

    fn on_output_events(&mut self) {
        for (attempt, n) in self.outputs.ready() {
            if let Some(command) = self.commands.get_mut(&attempt) {
                command.read(n, &mut self.outputs, &mut self.buffer, &mut self.parts.output.buffer);
            }
        }
    }

    fn on_signals(&mut self, now: u64, out: &mut Outbox) {
        if let Some((signal, grace_ms)) = crate::process::asked_to_end(&self.parts.signals, STOP_GRACE_MS) {
            let reason = format!("the manager got {signal}");
            self.give(now, Input::Stop { reason, grace_ms }, out);
        }
    }

    /// The node's own clocks.
    fn on_own_time(&mut self, now: u64, out: &mut Outbox) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            let (commands, workers, lanes) = (&self.commands, &self.workers, &self.parts.lanes);
            let lives = |who| match who {
                Who::Attempt(attempt) => commands.contains_key(&attempt),
                Who::Worker(worker) => workers.contains_key(&worker),
            };
            let left = self.strays.sweep(lives, || lanes.known());
            let any = !(commands.is_empty() && workers.is_empty());
            // What is killed may have had children: they come to us next.
            self.sweep_at = if left { Some(now + SWEEP_US) } else { any.then_some(now + SWEEP_SELDOM_US) };
        }
        if self.news_at.is_some_and(|at| at <= now) {
            // Asked first: what is told after it is owed, or comes with a call.
            self.news_at = self.parts.lanes.owes_news().then_some(now + NEWS_LOOK_US);
            self.on_news(now, out);
        }
        if self.worker_output_at.is_some_and(|at| at <= now) {
            self.worker_output_at = None;
            for worker in self.workers.values_mut().filter(|w| w.is_busy()) {
                worker.read_outputs(&mut self.buffer, &mut self.parts.output.buffer);
            }
        }
        self.memory.look(now).into_iter().for_each(|who| self.parts.lanes.signal(who, libc::SIGKILL));
        if self.parent_at <= now {
            self.parent_at = now + PARENT_US;
            if self.parent > 1 && std::os::unix::process::parent_id() != self.parent {
                self.parent = 0;
                let reason = "the process that started the manager is gone".into();
                self.give(now, Input::Stop { reason, grace_ms: STOP_GRACE_MS }, out);
            }
        }
    }

    /// Flushes what is due, and sets the one timer.
    fn settle(&mut self, now: u64, out: &mut Outbox) {
        self.parts.output.flush(now);
        self.watch_outputs(now);
        if self.outputs_watched == self.parts.output.full {
            self.outputs_watched = !self.parts.output.full;
            if self.outputs_watched {
                out.watch(self.outputs.fd(), OUTPUTS);
            } else {
                out.unwatch(OUTPUTS);
            }
        }
        if self.worker_output_at.is_none() && self.workers.values().any(WorkerProcess::is_busy) {
            self.worker_output_at = Some(now + SWEEP_US);
        }
        let own = [self.sweep_at, self.news_at, self.worker_output_at, Some(self.parent_at)];
        let of_parts = [self.parts.output.next_flush(), self.outputs.next_at(), self.memory.next_at()];
        let own = own.into_iter().chain(of_parts);
        let next = own.chain([self.core_timer]).flatten().min();
        if let Some(at) = next {
            out.set_timer(at);
        }
    }
}

impl Drop for ManagerNode {
    /// Ends what is left, when the reactor has stopped.
    fn drop(&mut self) {
        self.parts.lanes.kill_all();
        self.parts.output.finish(LAST_FILES);
    }
}

impl Node for ManagerNode {
    fn on_start(&mut self, now: u64, out: &mut Outbox) {
        out.watch(self.parts.signals.as_raw_fd(), SIGNALS);
        out.watch(self.worker_polls.0.as_raw_fd(), WORKERS);
        out.watch(self.outputs.fd(), OUTPUTS);
        self.give(now, Input::Start, out);
        self.settle(now, out);
    }

    fn on_connected(&mut self, now: u64, conn: Conn, out: &mut Outbox) {
        self.give(now, Input::Connected { conn: conn.0 }, out);
    }

    fn on_frame(&mut self, now: u64, conn: Conn, frame: Bytes, out: &mut Outbox) {
        self.give(now, Input::Frame { conn: conn.0, bytes: frame }, out);
    }

    fn on_closed(&mut self, now: u64, conn: Conn, reason: CloseReason, out: &mut Outbox) {
        tracing::info!(%reason, "a connection to the relay is over");
        self.give(now, Input::ConnClosed { conn: conn.0 }, out);
    }

    fn on_wake(&mut self, now: u64, out: &mut Outbox) {
        self.on_news(now, out);
        for input in self.parts.output.take_ready() {
            self.give(now, input, out);
        }
    }

    fn on_readable(&mut self, now: u64, token: u64, out: &mut Outbox) {
        match token {
            SIGNALS => self.on_signals(now, out),
            WORKERS => self.on_worker_events(now, out),
            _ => self.on_output_events(),
        }
    }

    fn on_timer(&mut self, now: u64, out: &mut Outbox) {
        if self.core_timer.is_some_and(|at| at <= now) {
            self.core_timer = None;
            self.give(now, Input::Timer, out);
        }
        self.on_own_time(now, out);
        self.settle(now, out);
    }

    fn on_turn_end(&mut self, now: u64, out: &mut Outbox) {
        self.give(now, Input::TurnEnd, out);
        self.settle(now, out);
    }

    fn on_clock_gap(&mut self, now: u64, gap_us: u64, out: &mut Outbox) {
        self.give(now, Input::ClockGap { gap_us }, out);
    }
}
