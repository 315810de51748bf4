//! The threads that spawn: nothing is forked, and the reactor never waits for a process to come up.
//!
//! A spawner binds itself to the slot's CPUs, spawns (the child inherits the binding), and takes its own back.

use crate::command::{Context, bind_env, environment, find_program, prepare, refused};
use crate::limits::{CPUS_MAX, SPAWNERS_MAX, WORKER_PIPE_BYTES};
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
    bell: Condvar,
    done: Mutex<Vec<Spawned>>,
    /// Held for writing while descriptors without CLOEXEC are open: nobody else spawns then.
    leaky: RwLock<()>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<(u64, Request)>,
    closed: bool,
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
        let shared = Arc::new(Shared {
            context,
            queue: Mutex::default(),
            bell: Condvar::new(),
            done: Mutex::default(),
            leaky: RwLock::new(()),
            wake,
        });
        let mut threads = Vec::new();
        for n in 0..slots.clamp(1, SPAWNERS_MAX) {
            let shared = shared.clone();
            threads
                .push(std::thread::Builder::new().name(format!("pf-spawn-{n}")).spawn(move || shared.run())?);
        }
        Ok(Spawners { shared, threads, last_seq: 0 })
    }

    /// Asks for a process; answers the request's number.
    pub fn ask(&mut self, request: Request) -> u64 {
        self.last_seq += 1;
        lock(&self.shared.queue).requests.push_back((self.last_seq, request));
        self.shared.bell.notify_one();
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
        self.shared.bell.notify_all();
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
    fn run(&self) {
        let own = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        loop {
            let mut queue = lock(&self.queue);
            let (seq, request) = loop {
                if queue.closed {
                    return;
                }
                if let Some(next) = queue.requests.pop_front() {
                    break next;
                }
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let spawned = match request {
                Request::Command(start) => Spawned {
                    seq,
                    who: Who::Attempt(start.attempt),
                    process: self.spawn_command(&start, &own),
                },
                Request::Worker(start) => {
                    Spawned { seq, who: Who::Worker(start.worker), process: self.spawn_worker(&start, &own) }
                }
            };
            lock(&self.done).push(spawned);
            (self.wake)();
        }
    }

    fn spawn_command(&self, start: &StartCommand, own: &CpuSet) -> Result<Process, ErrorDetail> {
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
        let pid = spawn_bound(&mut prepared.command, &start.pus, own)?;
        drop(guard);
        Ok(Process { pid, stdout, stderr, sockets: None })
    }

    fn spawn_worker(&self, start: &StartWorker, own: &CpuSet) -> Result<Process, ErrorDetail> {
        let mut env = environment(&self.context, &start.env, |value| value.into());
        bind_env(&mut env, &start.pus, &start.gpus, &self.context);
        env.insert("PF_WORKER".into(), start.worker.to_string().into());
        let python = start.python.as_deref().unwrap_or(&self.context.python);
        let path =
            find_program(OsStr::new(python), env.get(OsStr::new("PATH")).map(OsString::as_os_str), None)
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
        let pid = spawn_bound(&mut command, &start.pus, own);
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

/// Spawns with the calling thread bound to `pus`, which the child inherits.
fn spawn_bound(command: &mut Command, pus: &[u32], own: &CpuSet) -> Result<i32, ErrorDetail> {
    let own_thread = Pid::from_raw(0);
    let bound = cpu_set(pus);
    if let Some(set) = &bound {
        sched_setaffinity(own_thread, set).map_err(|e| {
            refused(
                format!("bind the task to CPUs {pus:?}: {e}"),
                "did the CPUs of this job change under it?",
            )
        })?;
    }
    let child = spawn_open(command);
    if bound.is_some() {
        // Cannot fail: it is what the thread had before.
        let _ = sched_setaffinity(own_thread, own);
    }
    match child {
        Ok(child) => Ok(child.id() as i32),
        Err(e) => Err(spawn_error(command, &e)),
    }
}

/// The set of these CPUs; None if there are none.
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
