//! The threads that spawn: nothing is forked, and the reactor never waits for a process to come up.
//!
//! A spawner binds itself to the slot's CPUs and spawns: the child inherits the binding. It stays bound, since binding a thread moves it to
//! another CPU, and the next task of a slot goes to the spawner that is bound to its CPUs, if that is free.

use crate::command::{Context, bind_env, environment, prepare, refused};
use crate::limits::{BOUND_LOOK_AHEAD, CPUS_MAX, SPAWNERS_MAX, WORKER_PIPE_BYTES};
use crate::process::spawn_open;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, pipe2};
use pf_manager_core::{StartCommand, StartWorker};
use pf_protocol::AttemptId;
use pf_protocol::outcome::ErrorDetail;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

/// Who a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// A command task.
    Attempt(AttemptId),
    /// A Python worker.
    Worker(u32),
}

/// What is to be spawned.
pub(crate) enum Request {
    Command(Box<StartCommand>),
    Worker(Box<StartWorker>),
}

/// A process that is there.
pub(crate) struct Process {
    pub pid: i32,
    /// Read ends of its output.
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// A worker's data and control.
    pub sockets: Option<(UnixStream, UnixStream)>,
}

/// How a request ended.
pub(crate) struct Spawned {
    /// The request's number.
    pub seq: u64,
    pub who: Who,
    pub process: Result<Process, ErrorDetail>,
}

struct Shared {
    context: Context,
    queue: Mutex<Queue>,
    /// One for each thread.
    bells: Vec<Condvar>,
    done: Mutex<Vec<Spawned>>,
    /// Held for writing while descriptors without CLOEXEC are open: nobody else spawns then.
    leaky: RwLock<()>,
    wake: Box<dyn Fn() + Send + Sync>,
}

type Numbered = (u64, Request);

#[derive(Default)]
struct Queue {
    /// Requests that came when nobody was free.
    requests: VecDeque<Numbered>,
    hands: Vec<Hand>,
    closed: bool,
}

/// One of the threads.
#[derive(Default)]
struct Hand {
    /// CPUs it is bound to; empty: to those of the manager.
    bound: Vec<u32>,
    free: bool,
    given: Option<Numbered>,
}

impl Request {
    fn pus(&self) -> &[u32] {
        match self {
            Request::Command(start) => &start.pus,
            Request::Worker(start) => &start.pus,
        }
    }
}

impl Queue {
    /// Gives a request to a free thread, best to one that is bound as it wants; answers which.
    fn give(&mut self, request: Numbered) -> Option<usize> {
        let is_bound = |hand: &Hand| hand.free && hand.bound == request.1.pus();
        let found = self.hands.iter().position(is_bound).or_else(|| self.hands.iter().position(|h| h.free));
        match found.and_then(|n| self.hands.get_mut(n)) {
            Some(hand) => (hand.free, hand.given) = (false, Some(request)),
            None => self.requests.push_back(request),
        }
        found
    }

    /// The next request for a thread: the first, but for one among the next few that wants its binding.
    fn take(&mut self, hand: usize) -> Option<Numbered> {
        let hand = self.hands.get_mut(hand)?;
        if let Some(given) = hand.given.take() {
            return Some(given);
        }
        let near = self.requests.iter().take(BOUND_LOOK_AHEAD).position(|(_, r)| r.pus() == hand.bound);
        let next = self.requests.remove(near.unwrap_or(0));
        hand.free = next.is_none();
        next
    }
}

/// The threads. They end when this is dropped.
pub(crate) struct Spawners {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
    last_seq: u64,
}

impl Spawners {
    /// As many threads as there are slots, within reason. `wake` is called when something is done.
    pub fn start(context: Context, slots: usize, wake: Box<dyn Fn() + Send + Sync>) -> io::Result<Self> {
        let count = slots.clamp(1, SPAWNERS_MAX);
        let queue = Queue { hands: (0..count).map(|_| Hand::default()).collect(), ..Queue::default() };
        let shared = Arc::new(Shared {
            context,
            queue: Mutex::new(queue),
            bells: (0..count).map(|_| Condvar::new()).collect(),
            done: Mutex::default(),
            leaky: RwLock::new(()),
            wake,
        });
        let mut threads = Vec::new();
        for n in 0..count {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("pf-spawn-{n}"));
            threads.push(thread.spawn(move || shared.run(n))?);
        }
        Ok(Spawners { shared, threads, last_seq: 0 })
    }

    /// Asks for a process; answers the request's number.
    pub fn ask(&mut self, request: Request) -> u64 {
        self.last_seq += 1;
        let given = lock(&self.shared.queue).give((self.last_seq, request));
        if let Some(bell) = given.and_then(|n| self.shared.bells.get(n)) {
            bell.notify_one();
        }
        self.last_seq
    }

    /// Number of the last request.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What was done since the last look.
    pub fn take_done(&self) -> Vec<Spawned> {
        std::mem::take(&mut *lock(&self.shared.done))
    }
}

impl Drop for Spawners {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.bells.iter().for_each(Condvar::notify_one);
        for thread in self.threads.drain(..) {
            // A spawner that panicked has said so already.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn run(&self, hand: usize) {
        let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        let mut binding = Binding { own, bound: Vec::new() };
        loop {
            let mut queue = lock(&self.queue);
            let (seq, request) = loop {
                if queue.closed {
                    return;
                }
                if let Some(hand) = queue.hands.get_mut(hand) {
                    hand.bound.clone_from(&binding.bound);
                }
                if let Some(next) = queue.take(hand) {
                    break next;
                }
                queue = self.bells[hand].wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let spawned = match request {
                Request::Command(start) => Spawned {
                    seq,
                    who: Who::Attempt(start.attempt),
                    process: self.spawn_command(&start, &mut binding),
                },
                Request::Worker(start) => {
                    let process = self.spawn_worker(&start, &mut binding);
                    Spawned { seq, who: Who::Worker(start.worker), process }
                }
            };
            lock(&self.done).push(spawned);
            (self.wake)();
        }
    }

    fn spawn_command(&self, start: &StartCommand, binding: &mut Binding) -> Result<Process, ErrorDetail> {
        let mut prepared = prepare(start, &self.context)?;
        let stdout = if prepared.pipe_stdout {
            Some(output_pipe(&mut prepared.command, Command::stdout)?)
        } else {
            None
        };
        let stderr = if prepared.pipe_stderr {
            Some(output_pipe(&mut prepared.command, Command::stderr)?)
        } else {
            None
        };
        let guard = self.leaky.read().unwrap_or_else(PoisonError::into_inner);
        let pid = binding.spawn(&mut prepared.command, &start.pus)?;
        drop(guard);
        Ok(Process { pid, stdout, stderr, sockets: None })
    }

    fn spawn_worker(&self, start: &StartWorker, binding: &mut Binding) -> Result<Process, ErrorDetail> {
        let mut env = environment(&self.context, &start.env, |value| value.into());
        bind_env(&mut env, &start.pus, &start.gpus, &self.context);
        env.insert("PF_WORKER".into(), start.worker.to_string().into());
        let python = start.python.as_deref().unwrap_or(&self.context.python);
        let path = self
            .context
            .programs
            .find(OsStr::new(python), env.get(OsStr::new("PATH")).map(OsString::as_os_str), None)
            .map_err(|e| {
                refused(format!("the Python interpreter cannot be started: {}", e.message), PYTHON_HINT)
            })?;
        let sockets =
            |e: io::Error| refused(format!("make sockets for a Python worker: {e}"), "too many open files?");
        let (data, data_theirs) = UnixStream::pair().map_err(sockets)?;
        let (control, control_theirs) = UnixStream::pair().map_err(sockets)?;
        data.set_nonblocking(true).and_then(|()| control.set_nonblocking(true)).map_err(sockets)?;
        env.insert(
            "PF_WORKER_FDS".into(),
            format!("{},{}", data_theirs.as_raw_fd(), control_theirs.as_raw_fd()).into(),
        );
        let mut command = Command::new(path);
        command
            .arg0(python)
            .arg(&self.context.worker_py)
            .env_clear()
            .envs(&env)
            .process_group(0)
            .stdin(Stdio::null());
        let stdout = output_pipe(&mut command, Command::stdout)?;
        let stderr = output_pipe(&mut command, Command::stderr)?;
        for pipe in [&stdout, &stderr] {
            // A smaller pipe only makes a task that writes much wait for the next look.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WORKER_PIPE_BYTES));
        }
        let guard = self.leaky.write().unwrap_or_else(PoisonError::into_inner);
        for socket in [&data_theirs, &control_theirs] {
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| sockets(e.into()))?;
        }
        let pid = binding.spawn(&mut command, &start.pus);
        drop((data_theirs, control_theirs));
        drop(guard);
        Ok(Process { pid: pid?, stdout: Some(stdout), stderr: Some(stderr), sockets: Some((data, control)) })
    }
}

const PYTHON_HINT: &str =
    "name a Python 3.8 or newer that exists on the nodes, for the endpoint or for the function";

/// A pipe whose write end becomes an output of `command`.
fn output_pipe(
    command: &mut Command,
    set: impl FnOnce(&mut Command, Stdio) -> &mut Command,
) -> Result<OwnedFd, ErrorDetail> {
    let failed = |e: nix::Error| refused(format!("make a pipe for the output: {e}"), "too many open files?");
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    set(command, write.into());
    Ok(read)
}

/// What the calling thread is bound to.
struct Binding {
    /// What it may use when nothing is asked.
    own: CpuSet,
    /// Empty: its own.
    bound: Vec<u32>,
}

impl Binding {
    /// Spawns with the calling thread bound to `pus`, which the child inherits.
    fn spawn(&mut self, command: &mut Command, pus: &[u32]) -> Result<i32, ErrorDetail> {
        if self.bound != pus {
            let set = cpu_set(pus).unwrap_or(self.own);
            sched_setaffinity(Pid::from_raw(0), &set).map_err(|e| {
                refused(
                    format!("bind the task to CPUs {pus:?}: {e}"),
                    "did the CPUs of this job change under it?",
                )
            })?;
            self.bound = pus.to_vec();
        }
        match spawn_open(command) {
            Ok(child) => Ok(child.id() as i32),
            Err(e) => Err(spawn_error(command, &e)),
        }
    }
}

pub(crate) fn cpu_set(pus: &[u32]) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    let mut any = false;
    for &pu in pus.iter().filter(|&&pu| pu < CPUS_MAX) {
        any |= set.set(pu as usize).is_ok();
    }
    any.then_some(set)
}

fn spawn_error(command: &Command, error: &io::Error) -> ErrorDetail {
    let program = command.get_program().to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOENT) => refused(
            format!("{program} cannot be started: {error}"),
            "it is a script whose interpreter (first line) does not exist, or a program for another system",
        ),
        Some(libc::EACCES) => {
            refused(format!("{program} cannot be started: {error}"), "check its x permission")
        }
        Some(libc::ENOEXEC) => refused(
            format!("{program} cannot be started: {error}"),
            "is it a script without a first line `#!/bin/sh`, or a program for another processor?",
        ),
        Some(libc::E2BIG) => {
            refused(format!("{program}: {error}"), "feed long items to standard input, or by a file")
        }
        _ => refused(
            format!("{program} cannot be started: {error}"),
            "the node may be out of processes or memory",
        ),
    }
}
