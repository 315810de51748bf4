//! The manager's shell: turns frames, processes, pipes and files into the core's inputs, and carries out its effects.

use crate::capture::{Drained, Kept, drain};
use crate::children::{Children, End, signal_group};
use crate::limits::{LAST_FILES, PARENT_US, STOP_GRACE_MS, SWEEP_US};
use crate::memory::MemoryWatch;
use crate::oom::OomWatch;
use crate::output::OutputLog;
use crate::outputs::Outputs;
use crate::polls::{poll, stream_of, worker_flags};
use crate::spawn::{Process, Request, Spawned, Spawners, Who};
use crate::ticket;
use crate::wire::Said;
use crate::worker::WorkerProcess;
use bytes::Bytes;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signalfd::SignalFd;
use pf_manager_core::{Effect, Input, ManagerCore, OutOfMemory, ProcessEnd, ProcessStatus, WorkerEnd};
use pf_protocol::outlog::{self, Stream};
use pf_protocol::{AttemptId, TaskId};
use pf_transport::{CloseReason, Conn, Node, Outbox};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

const SIGNALS: u64 = 1;
const WORKERS: u64 = 2;
const OUTPUTS: u64 = 3;

/// One output stream of a command.
struct Pipe {
    fd: OwnedFd,
    /// Set once it is watched.
    token: Option<u64>,
    kept: Kept,
}

/// A command task that was asked for, or runs.
struct CommandProcess {
    task: TaskId,
    pid: Option<i32>,
    /// Standard output and error.
    pipes: [Option<Pipe>; 2],
    /// What they kept, of streams that are closed.
    closed: [Kept; 2],
}

/// What the node is made of.
pub(crate) struct Parts {
    pub core: ManagerCore,
    pub ticket_path: PathBuf,
    /// Folder of large payloads, if the relay knows of one.
    pub payloads_dir: Option<PathBuf>,
    pub spawners: Spawners,
    pub output: OutputLog,
    pub signals: SignalFd,
}

/// See the module.
pub(crate) struct ManagerNode {
    parts: Parts,
    children: Children,
    oom: OomWatch,
    memory: MemoryWatch,
    /// Requests to the spawners that are not answered.
    asked: BTreeSet<u64>,
    commands: HashMap<AttemptId, CommandProcess>,
    workers: HashMap<u32, WorkerProcess>,
    worker_polls: Epoll,
    outputs: Outputs,
    outputs_watched: bool,
    buffer: Vec<u8>,
    core_timer: Option<u64>,
    sweep_at: Option<u64>,
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
            children: Children::default(),
            oom: OomWatch::new(),
            memory: MemoryWatch::default(),
            asked: BTreeSet::new(),
            commands: HashMap::new(),
            workers: HashMap::new(),
            worker_polls: Epoll::new(flags)?,
            outputs: Outputs::new()?,
            outputs_watched: true,
            buffer: Vec::new(),
            core_timer: None,
            sweep_at: None,
            parent_at: 0,
            parent: std::os::unix::process::parent_id(),
            worker_output_at: None,
            stopping: false,
        })
    }

    fn give(&mut self, now: u64, input: Input, out: &mut Outbox) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.parts.core.handle(now, input, &mut effects);
            for effect in effects {
                if let Some(answer) = self.carry_out(effect, out) {
                    inputs.push(answer);
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, out: &mut Outbox) -> Option<Input> {
        match effect {
            Effect::Dial => {
                return Some(Input::Dialled { conns: ticket::dial_all(&self.parts.ticket_path, out) });
            }
            Effect::Frame { conn, bytes } => out.send(Conn(conn), bytes),
            Effect::CloseConn { conn } => out.close(Conn(conn)),
            Effect::SetTimer { at } => self.core_timer = at,
            Effect::StartCommand(start) => {
                let task = TaskId { job: start.job.job, index: start.index };
                let command =
                    CommandProcess { task, pid: None, pipes: [None, None], closed: Default::default() };
                self.commands.insert(start.attempt, command);
                self.memory.allow(Who::Attempt(start.attempt), start.job.spec.resources.memory_bytes);
                self.asked.insert(self.parts.spawners.ask(Request::Command(start)));
            }
            Effect::SignalCommand { attempt, signal } => {
                if let Some(pid) = self.commands.get(&attempt).and_then(|c| c.pid) {
                    signal_group(pid, signal);
                }
            }
            Effect::StartWorker(start) => {
                self.workers.insert(start.worker, WorkerProcess::new());
                self.asked.insert(self.parts.spawners.ask(Request::Worker(start)));
            }
            Effect::WorkerJob { worker, slot, job, large } => {
                self.memory.allow(Who::Worker(worker), job.spec.resources.memory_bytes);
                let dir = self.parts.payloads_dir.clone().filter(|_| large);
                self.with_worker(worker, |w| w.tell_job(slot, &job, dir));
            }
            Effect::WorkerTasks { worker, tasks } => {
                self.with_worker(worker, |w| w.tell_tasks(&tasks));
                self.write_to(worker);
            }
            Effect::WorkerSkip { worker, seqs } => {
                self.with_worker(worker, |w| w.tell_skip(&seqs));
                self.write_to(worker);
            }
            Effect::SignalWorker { worker, signal } => {
                if let Some(pid) = self.workers.get(&worker).and_then(|w| w.pid) {
                    signal_group(pid, signal);
                }
            }
            Effect::EndWorker { worker } => {
                self.with_worker(worker, WorkerProcess::tell_end);
                self.write_to(worker);
            }
            Effect::Spool { upto, batches } => self.parts.output.spool(upto, batches),
            Effect::Exit { reason } => {
                tracing::info!(reason, "the manager ends");
                self.stopping = true;
                self.children.kill_all();
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

    fn on_spawned(&mut self, now: u64, spawned: Spawned, out: &mut Outbox) {
        self.asked.remove(&spawned.seq);
        match &spawned.process {
            Ok(process) => self.memory.began(now, spawned.who, process.pid),
            Err(_) => drop(self.memory.ended(spawned.who)),
        }
        let answered = self.asked.first().map_or(u64::MAX, |first| first - 1);
        match (spawned.who, spawned.process) {
            (Who::Attempt(attempt), Ok(process)) => {
                let early = self.children.add(process.pid, spawned.who, spawned.seq);
                self.begin_command(now, attempt, process);
                self.give(now, Input::CommandStarted { attempt }, out);
                if let Some(end) = early {
                    self.on_ended(now, spawned.who, end, out);
                }
            }
            (Who::Attempt(attempt), Err(error)) => {
                self.commands.remove(&attempt);
                self.give(now, Input::CommandNotStarted { attempt, error }, out);
            }
            (Who::Worker(worker), Ok(process)) => {
                let early = self.children.add(process.pid, spawned.who, spawned.seq);
                self.begin_worker(worker, process);
                if let Some(end) = early {
                    self.on_ended(now, spawned.who, end, out);
                }
            }
            (Who::Worker(worker), Err(error)) => {
                self.workers.remove(&worker);
                self.give(now, Input::WorkerGone { worker, end: WorkerEnd::NotStarted(error) }, out);
            }
        }
        self.children.forget_early(answered);
    }

    fn begin_command(&mut self, now: u64, attempt: AttemptId, process: Process) {
        let Some(command) = self.commands.get_mut(&attempt) else { return };
        command.pid = Some(process.pid);
        for (n, fd) in [process.stdout, process.stderr].into_iter().enumerate() {
            command.pipes[n] = fd.map(|fd| Pipe { fd, token: None, kept: Kept::default() });
        }
        self.outputs.begin(now, attempt);
    }

    /// Watches the pipes of tasks that have grown old enough.
    fn watch_outputs(&mut self, now: u64) {
        let Self { outputs, commands, .. } = self;
        while let Some(attempt) = outputs.next_grown(now, |attempt| commands.contains_key(&attempt)) {
            let pipes = commands.get_mut(&attempt).map(|command| command.pipes.iter_mut().enumerate());
            for (n, pipe) in pipes.into_iter().flatten() {
                if let Some(pipe) = pipe {
                    pipe.token = Some(outputs.watch(&pipe.fd, attempt, n));
                }
            }
        }
    }

    fn begin_worker(&mut self, id: u32, process: Process) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.begin(process);
        if let Some(data) = worker.data() {
            let event = EpollEvent::new(worker_flags(worker.write_watched), u64::from(id));
            if let Err(error) = self.worker_polls.add(data, event) {
                tracing::error!(%error, "a worker cannot be watched");
            }
        }
    }

    /// Takes the ends of processes.
    fn reap(&mut self, now: u64, out: &mut Outbox) {
        for (who, end) in self.children.reap(self.parts.spawners.last_seq()) {
            self.on_ended(now, who, end, out);
        }
        if self.stopping && self.children.is_empty() {
            out.stop();
        }
    }

    fn on_ended(&mut self, now: u64, who: Who, (status, usage): End, out: &mut Outbox) {
        self.sweep_at.get_or_insert(now + SWEEP_US);
        let over = self.memory.ended(who);
        let killed = status == ProcessStatus::Signal(libc::SIGKILL);
        let out_of_memory = over.or_else(|| (killed && self.oom.fired()).then_some(OutOfMemory::Kernel));
        let end = ProcessEnd { status, usage, out_of_memory, stderr_tail: String::new() };
        let told = match who {
            Who::Attempt(attempt) => self.end_command(attempt, end),
            Who::Worker(worker) => {
                self.read_worker(now, worker, out);
                self.end_worker(worker, end)
            }
        };
        if let Some(input) = told {
            self.give(now, input, out);
        }
    }

    /// The last output of a command, and its end.
    fn end_command(&mut self, attempt: AttemptId, mut end: ProcessEnd) -> Option<Input> {
        let mut command = self.commands.remove(&attempt)?;
        let mut wrote = false;
        for n in 0..2 {
            if let Some(mut pipe) = command.pipes[n].take() {
                let log = &mut self.parts.output.buffer;
                let (task, stream) = (command.task, stream_of(n));
                drain(&pipe.fd, &mut self.buffer, |bytes| pipe.kept.take(log, task, attempt, stream, bytes));
                if let Some(token) = pipe.token {
                    self.outputs.forget(token);
                }
                command.closed[n] = pipe.kept;
            }
            wrote |= command.closed[n].any();
        }
        end.stderr_tail = command.closed[1].tail();
        if wrote {
            outlog::append(&mut self.parts.output.buffer, command.task, attempt, Stream::End, b"");
        }
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
                if let Some(pid) = worker.pid {
                    signal_group(pid, libc::SIGKILL);
                }
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
        for (token, attempt, n) in self.outputs.ready() {
            let Some(command) = self.commands.get_mut(&attempt) else { continue };
            let Some(pipe) = &mut command.pipes[n] else { continue };
            let log = &mut self.parts.output.buffer;
            let (task, kept) = (command.task, &mut pipe.kept);
            let drained =
                drain(&pipe.fd, &mut self.buffer, |bytes| kept.take(log, task, attempt, stream_of(n), bytes));
            if drained == Drained::Closed {
                self.outputs.forget(token);
                if let Some(pipe) = command.pipes[n].take() {
                    command.closed[n] = pipe.kept;
                }
            }
        }
    }

    fn on_signals(&mut self, now: u64, out: &mut Outbox) {
        if let Some((signal, grace_ms)) = crate::process::asked_to_end(&self.parts.signals, STOP_GRACE_MS) {
            let reason = format!("the manager got {signal}");
            self.give(now, Input::Stop { reason, grace_ms }, out);
        }
        self.reap(now, out);
    }

    /// The node's own clocks.
    fn on_own_time(&mut self, now: u64, out: &mut Outbox) {
        if self.sweep_at.is_some_and(|at| at <= now) {
            let (commands, workers) = (&self.commands, &self.workers);
            let killed = self.children.sweep(|who| match who {
                Who::Attempt(attempt) => commands.contains_key(&attempt),
                Who::Worker(worker) => workers.contains_key(&worker),
            });
            // What is killed may have had children: they come to us next.
            self.sweep_at = killed.then_some(now + SWEEP_US);
        }
        if self.worker_output_at.is_some_and(|at| at <= now) {
            self.worker_output_at = None;
            for worker in self.workers.values_mut().filter(|w| w.is_busy()) {
                worker.read_outputs(&mut self.buffer, &mut self.parts.output.buffer);
            }
        }
        self.memory.look(now).into_iter().for_each(|pid| signal_group(pid, libc::SIGKILL));
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
        let own =
            [self.sweep_at, self.worker_output_at, Some(self.parent_at), self.parts.output.next_flush()];
        let own = own.into_iter().chain([self.outputs.next_at(), self.memory.next_at()]);
        let next = own.chain([self.core_timer]).flatten().min();
        if let Some(at) = next {
            out.set_timer(at);
        }
    }
}

impl Drop for ManagerNode {
    /// Ends what is left, when the reactor has stopped.
    fn drop(&mut self) {
        self.children.kill_all();
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
        for spawned in self.parts.spawners.take_done() {
            self.on_spawned(now, spawned, out);
        }
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
