//! The threads that run processes. Each spawns one, waits for its end, and goes on with the next of its lane, which needs no word of the reactor; and the
//! reactor never waits for a process to come up.
//!
//! A lane is a seat on which processes run one after another: commands that the core has put in a row, or one Python worker. A thread has one lane at a time. It
//! stays bound to the lane's CPUs, since binding a thread moves it to another CPU, and the next lane there goes to it, if it is free.

use crate::capture::drain;
use crate::children::{End, reap, signal_group, wait_for_end};
use crate::command::{Context, prepare, prepare_worker, refused};
use crate::limits::{LANE_STACK_BYTES, LANES_MAX, ROW_SHORT, WORKER_PIPE_BYTES};
use crate::spawn::{Gate, Inherits, Place};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use pf_manager_core::{StartCommand, StartWorker};
use pf_protocol::AttemptId;
use pf_protocol::outcome::ErrorDetail;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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

/// Read ends of a process's output and errors; None: they go elsewhere.
pub(crate) type Pipes = [Option<OwnedFd>; 2];

/// What a Python worker's manager holds of it.
pub(crate) struct WorkerEnds {
    pub pipes: Pipes,
    /// Sends frames both ways.
    pub data: UnixStream,
    /// Sends permissions; its other end, to take them back.
    pub control: (UnixStream, UnixStream),
}

/// What has happened.
pub(crate) enum News {
    /// A process is there; with what is held of it, if it is a worker.
    Started {
        who: Who,
        pid: i32,
        worker: Option<Box<WorkerEnds>>,
    },
    NotStarted {
        who: Who,
        error: ErrorDetail,
    },
    /// A process has ended, and its group with it. `output`: what a command wrote, as far as nobody else has taken its pipes.
    Ended {
        who: Who,
        end: End,
        output: [Vec<u8>; 2],
    },
}

/// A process that lives.
struct Running {
    who: Who,
    pid: i32,
    pipes: Option<Pipes>,
}

/// One of the threads.
#[derive(Default)]
struct Hand {
    bell: Arc<Condvar>,
    /// Hardware threads it is bound to; empty: those of the manager.
    bound: Vec<u32>,
    /// What it works on; None: nothing.
    lane: Option<u32>,
    /// What comes next there.
    row: VecDeque<Request>,
    running: Option<Running>,
}

#[derive(Default)]
struct State {
    hands: Vec<Hand>,
    /// Which hand works on a lane.
    by_lane: HashMap<u32, usize>,
    /// Requests for which there is no hand.
    waiting: VecDeque<Request>,
    /// Numbers of spawns that are under way.
    spawning: BTreeSet<u64>,
    last_spawn: u64,
    closed: bool,
}

struct Shared {
    context: Context,
    gate: Gate,
    /// What nobody reads or writes.
    null: File,
    state: Mutex<State>,
    news: Mutex<Vec<News>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// See the module.
pub(crate) struct Lanes {
    shared: Arc<Shared>,
}

/// Which processes are known of at a moment.
pub(crate) struct Known {
    pub pids: BTreeSet<i32>,
    /// Numbers of spawns that are under way: each may have a process that is not known yet.
    pub spawning: BTreeSet<u64>,
}

impl Request {
    fn who(&self) -> Who {
        match self {
            Request::Command(start) => Who::Attempt(start.attempt),
            Request::Worker(start) => Who::Worker(start.worker),
        }
    }

    fn lane(&self) -> u32 {
        match self {
            Request::Command(start) => start.lane,
            Request::Worker(start) => start.worker,
        }
    }

    fn pus(&self) -> &[u32] {
        match self {
            Request::Command(start) => &start.pus,
            Request::Worker(start) => &start.pus,
        }
    }
}

impl State {
    /// A free hand, best one that is bound like this.
    fn free_hand(&self, pus: &[u32]) -> Option<usize> {
        let mut free = self.hands.iter().enumerate().filter(|(_, hand)| hand.lane.is_none());
        free.clone().find(|(_, hand)| hand.bound == pus).or_else(|| free.next()).map(|(n, _)| n)
    }

    /// What a hand does next. With its row its lane is over, and it takes the first that waits.
    fn next(&mut self, n: usize) -> Option<Request> {
        let hand = self.hands.get_mut(n)?;
        if let Some(request) = hand.row.pop_front() {
            return Some(request);
        }
        if let Some(lane) = hand.lane.take() {
            self.by_lane.remove(&lane);
        }
        let lane = self.waiting.front()?.lane();
        let mut row = self.take_waiting(lane);
        let first = row.pop_front();
        if let Some(hand) = self.hands.get_mut(n) {
            (hand.lane, hand.row) = (Some(lane), row);
            self.by_lane.insert(lane, n);
        }
        first
    }

    fn take_waiting(&mut self, lane: u32) -> VecDeque<Request> {
        let (of_lane, others) = std::mem::take(&mut self.waiting).into_iter().partition(|r| r.lane() == lane);
        self.waiting = others;
        of_lane
    }

    fn running(&mut self, who: Who) -> Option<&mut Running> {
        self.hands.iter_mut().filter_map(|hand| hand.running.as_mut()).find(|running| running.who == who)
    }
}

impl Lanes {
    /// `wake` is called when there is news to be taken at once; other news may wait for [`crate::limits::NEWS_LOOK_US`].
    pub fn new(context: Context, wake: Box<dyn Fn() + Send + Sync>) -> io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let home = context.home.clone();
        let (state, news) = (Mutex::default(), Mutex::default());
        Ok(Lanes { shared: Arc::new(Shared { context, gate: Gate::new(home), null, state, news, wake }) })
    }

    /// Asks for a process, behind others of its lane.
    pub fn ask(&self, request: Request) {
        let lane = request.lane();
        let mut state = self.shared.state();
        if let Some(hand) = state.by_lane.get(&lane).copied().and_then(|n| state.hands.get_mut(n)) {
            return hand.row.push_back(request);
        }
        let hand = match state.free_hand(request.pus()) {
            None if state.hands.len() < LANES_MAX => self.hire(&mut state),
            found => Ok(found),
        };
        match hand {
            Ok(Some(n)) => {
                state.by_lane.insert(lane, n);
                if let Some(hand) = state.hands.get_mut(n) {
                    hand.lane = Some(lane);
                    hand.row.push_back(request);
                    hand.bell.notify_one();
                }
            }
            Err(error) if state.hands.is_empty() => {
                let error =
                    refused(format!("start a thread: {error}"), "the node may be out of processes or memory");
                self.shared.tell(state, News::NotStarted { who: request.who(), error }, true);
            }
            Ok(None) | Err(_) => state.waiting.push_back(request),
        }
    }

    /// One more thread.
    fn hire(&self, state: &mut State) -> io::Result<Option<usize>> {
        let (n, shared) = (state.hands.len(), self.shared.clone());
        let thread = std::thread::Builder::new().name(format!("pf-lane-{n}")).stack_size(LANE_STACK_BYTES);
        thread.spawn(move || shared.run(n))?;
        state.hands.push(Hand::default());
        Ok(Some(n))
    }

    /// Takes out of a lane what is not being spawned.
    pub fn take_back(&self, lane: u32) -> Vec<AttemptId> {
        let mut state = self.shared.state();
        let row = state.by_lane.get(&lane).copied().and_then(|n| state.hands.get_mut(n));
        let mut taken: Vec<Request> = row.map(|hand| hand.row.drain(..).collect()).unwrap_or_default();
        taken.extend(state.take_waiting(lane));
        let attempt = |request: &Request| match request.who() {
            Who::Attempt(attempt) => Some(attempt),
            Who::Worker(_) => None,
        };
        taken.iter().filter_map(attempt).collect()
    }

    /// Takes over the pipes of a command that runs: what comes of them is not read here any more.
    pub fn take_pipes(&self, attempt: AttemptId) -> Option<Pipes> {
        self.shared.state().running(Who::Attempt(attempt))?.pipes.take()
    }

    /// Sends a signal to the process group of somebody who runs.
    pub fn signal(&self, who: Who, signal: i32) {
        // While the state is held the process is not reaped, so that its number is nobody else's.
        if let Some(running) = self.shared.state().running(who) {
            signal_group(running.pid, signal);
        }
    }

    /// Kills every process group.
    pub fn kill_all(&self) {
        let state = self.shared.state();
        let running = state.hands.iter().filter_map(|hand| hand.running.as_ref());
        running.for_each(|running| signal_group(running.pid, libc::SIGKILL));
    }

    pub fn known(&self) -> Known {
        let state = self.shared.state();
        let running = state.hands.iter().filter_map(|hand| hand.running.as_ref());
        Known { pids: running.map(|running| running.pid).collect(), spawning: state.spawning.clone() }
    }

    /// Whether news will come without a call: something is being spawned, or waits behind what runs.
    pub fn owes_news(&self) -> bool {
        let state = self.shared.state();
        let rows = || state.hands.iter().any(|hand| !hand.row.is_empty());
        !state.spawning.is_empty() || !state.waiting.is_empty() || rows()
    }

    /// What has happened since the last look.
    pub fn take_news(&self) -> Vec<News> {
        std::mem::take(&mut *self.shared.news.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Lanes {
    /// The threads end with what they run. They are not waited for: a process in a system call that never returns must not hold this one.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.hands.iter().for_each(|hand| hand.bell.notify_one());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// News is told while the state is held: who finds nothing that is owed has all of it.
    fn tell(&self, state: MutexGuard<'_, State>, news: News, soon: bool) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(news);
        drop(state);
        if soon {
            (self.wake)();
        }
    }

    /// The next request of a hand, and the number of its spawn; None when all is over.
    fn next(&self, n: usize, place: &Place) -> Option<(u64, Request)> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(request) = state.next(n) {
                state.last_spawn += 1;
                let number = state.last_spawn;
                state.spawning.insert(number);
                return Some((number, request));
            }
            let hand = state.hands.get_mut(n)?;
            if hand.bound != place.bound() {
                hand.bound = place.bound().to_vec();
            }
            let bell = hand.bell.clone();
            state = bell.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, n: usize) {
        let mut place = Place::here();
        let mut buffer = Vec::new();
        while let Some((number, request)) = self.next(n, &place) {
            self.run_one(n, number, &request, &mut place, &mut buffer);
        }
    }

    /// One process, from its spawn to its end.
    fn run_one(&self, n: usize, number: u64, request: &Request, place: &mut Place, buffer: &mut Vec<u8>) {
        let who = request.who();
        let made = match request {
            Request::Command(start) => self.command(start, place),
            Request::Worker(start) => self.worker(start, place),
        };
        let began = Instant::now();
        let mut state = self.state();
        state.spawning.remove(&number);
        let Made { pid, pipes, worker } = match made {
            Ok(made) => made,
            Err(error) => return self.tell(state, News::NotStarted { who, error }, true),
        };
        if let Some(hand) = state.hands.get_mut(n) {
            hand.running = Some(Running { who, pid, pipes });
        }
        // A command's start is looked for in a while: most are over by then, and what wakes a thread costs as much as the rest of a task.
        let soon = worker.is_some();
        self.tell(state, News::Started { who, pid, worker }, soon);
        wait_for_end(pid);
        let ran_us = began.elapsed().as_micros() as u64;
        let mut state = self.state();
        let running = state.hands.get_mut(n).and_then(|hand| hand.running.take());
        signal_group(pid, libc::SIGKILL);
        // While the state is held: nobody takes it for a stray and reaps it, or signals whoever has its number next.
        let (status, usage) = reap(pid);
        drop(state);
        let end = End { status, usage, ran_us };
        let mut output = [Vec::new(), Vec::new()];
        let pipes = running.and_then(|running| running.pipes).unwrap_or_default();
        for (pipe, output) in pipes.iter().zip(&mut output) {
            if let Some(pipe) = pipe {
                // A pipe holds less than is read in one go, and nobody writes any more.
                drain(pipe, buffer, |bytes| output.extend_from_slice(bytes));
            }
        }
        let state = self.state();
        // While enough is left to do, ends are looked for in a while, too.
        let soon = state.hands.get(n).is_none_or(|hand| hand.row.len() < ROW_SHORT);
        self.tell(state, News::Ended { who, end, output }, soon);
    }

    fn command(&self, start: &StartCommand, place: &mut Place) -> Result<Made, ErrorDetail> {
        let prepared = prepare(start, &self.context)?;
        let (out, out_theirs) = prepared.stdout.is_none().then(output_pipe).transpose()?.unzip();
        let (err, err_theirs) = prepared.stderr.is_none().then(output_pipe).transpose()?.unzip();
        let streams = [
            prepared.stdin.as_ref().map(AsFd::as_fd),
            prepared.stdout.as_ref().map(AsFd::as_fd).or(out_theirs.as_ref().map(AsFd::as_fd)),
            prepared.stderr.as_ref().map(AsFd::as_fd).or(err_theirs.as_ref().map(AsFd::as_fd)),
        ];
        let streams = streams.map(|stream| stream.unwrap_or(self.null.as_fd()));
        let inherits = Inherits { streams, sockets: &[], pus: &start.pus };
        let pid = place.spawn(&self.gate, &prepared, &inherits)?;
        Ok(Made { pid, pipes: Some([out, err]), worker: None })
    }

    fn worker(&self, start: &StartWorker, place: &mut Place) -> Result<Made, ErrorDetail> {
        let failed =
            |e: io::Error| refused(format!("make sockets for a Python worker: {e}"), "too many open files?");
        let (data, data_theirs) = UnixStream::pair().map_err(failed)?;
        let (control, control_theirs) = UnixStream::pair().map_err(failed)?;
        data.set_nonblocking(true).and_then(|()| control.set_nonblocking(true)).map_err(failed)?;
        let back = control_theirs.try_clone().map_err(failed)?;
        let sockets = [data_theirs, control_theirs];
        let prepared = prepare_worker(start, &self.context, sockets.each_ref().map(AsRawFd::as_raw_fd))?;
        let ((out, out_theirs), (err, err_theirs)) = (output_pipe()?, output_pipe()?);
        for pipe in [&out, &err] {
            // A smaller pipe only makes a task that writes much wait for the next look.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WORKER_PIPE_BYTES));
        }
        let streams = [self.null.as_fd(), out_theirs.as_fd(), err_theirs.as_fd()];
        let pid =
            place.spawn(&self.gate, &prepared, &Inherits { streams, sockets: &sockets, pus: &start.pus })?;
        let ends = WorkerEnds { pipes: [Some(out), Some(err)], data, control: (control, back) };
        Ok(Made { pid, pipes: None, worker: Some(Box::new(ends)) })
    }
}

/// A process that was spawned, and what is held of it.
struct Made {
    pid: i32,
    /// Of a command.
    pipes: Option<Pipes>,
    worker: Option<Box<WorkerEnds>>,
}

/// A pipe for an output: the end that is read here, without waiting, and the other.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), ErrorDetail> {
    let failed = |e: nix::Error| refused(format!("make a pipe for the output: {e}"), "too many open files?");
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::children::Strays;
    use crate::gpus::GpuEnv;
    use crate::programs::Programs;
    use crate::variables::Common;
    use pf_manager_core::ProcessStatus;
    use pf_protocol::job::{Body, Command, JobDef, JobSpec};
    use pf_protocol::{Epoch, JobId, JobKey, OwnerId};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    fn lanes() -> (Lanes, Receiver<()>) {
        let context = Context {
            common: Common::of_this_process(|_| true),
            home: "/".into(),
            work_dir: "/".into(),
            payloads_dir: None,
            python: "python3".into(),
            worker_py: "/none".into(),
            gpus: GpuEnv::default(),
            programs: Programs::default(),
        };
        let (call, calls) = channel();
        // When the test is over nobody listens.
        let wake = move || {
            let _ = call.send(());
        };
        (Lanes::new(context, Box::new(wake)).unwrap(), calls)
    }

    fn start(lane: u32, n: u32, argv: &[&str]) -> Request {
        let argv = argv.iter().map(ToString::to_string).collect();
        let spec =
            JobSpec { body: Body::Command(Command { argv, ..Command::default() }), ..JobSpec::default() };
        let job = JobDef { job: JobId(1), key: JobKey::default(), owner: OwnerId(1), spec, function: None };
        Request::Command(Box::new(StartCommand {
            attempt: AttemptId { epoch: Epoch(1), n },
            lane,
            job: Arc::new(job),
            index: 0,
            item: bytes::Bytes::new(),
            is_large: false,
            pus: Vec::new(),
            gpus: Vec::new(),
        }))
    }

    fn told(news: &News) -> (char, Who) {
        match news {
            News::Started { who, .. } => ('s', *who),
            News::NotStarted { who, .. } => ('n', *who),
            News::Ended { who, .. } => ('e', *who),
        }
    }

    fn attempt(n: u32) -> Who {
        Who::Attempt(AttemptId { epoch: Epoch(1), n })
    }

    /// Looks as the reactor does: by a clock as long as news is owed, and when it is called.
    fn look(lanes: &Lanes, calls: &Receiver<()>, until: impl Fn(&[(char, Who)]) -> bool) -> Vec<(char, Who)> {
        let mut seen = Vec::new();
        let mut owed = true;
        while !until(&seen) {
            let patience = if owed { Duration::from_millis(1) } else { Duration::from_secs(30) };
            let called = calls.recv_timeout(patience).is_ok();
            assert!(owed || called, "nothing is owed, nobody calls, and there was only {seen:?}");
            owed = lanes.owes_news();
            seen.extend(lanes.take_news().iter().map(told));
        }
        seen
    }

    #[test]
    fn a_start_is_told_without_a_call_as_long_as_it_is_owed() {
        let (lanes, calls) = lanes();
        for n in 0..50 {
            lanes.ask(start(n, n, &["sleep", "1000"]));
            look(&lanes, &calls, |seen| seen.contains(&('s', attempt(n))));
        }
        lanes.kill_all();
        let ended = |seen: &[(char, Who)]| seen.iter().filter(|(what, _)| *what == 'e').count();
        look(&lanes, &calls, |seen| ended(seen) == 50);
    }

    #[test]
    fn a_lane_is_worked_off_in_order_and_each_end_is_told() {
        let (lanes, calls) = lanes();
        for n in 0..200 {
            let argv = if n % 7 == 3 { &["no-such-program"][..] } else { &["true"] };
            lanes.ask(start(1 + n % 2, n, argv));
        }
        let over = |seen: &[(char, Who)]| seen.iter().filter(|(what, _)| *what != 's').count();
        let seen = look(&lanes, &calls, |seen| over(seen) == 200);
        for lane in 0..2 {
            let of_lane = (0..200).filter(|n| n % 2 == lane);
            let expected: Vec<_> = of_lane
                .flat_map(|n| {
                    if n % 7 == 3 {
                        vec![('n', attempt(n))]
                    } else {
                        vec![('s', attempt(n)), ('e', attempt(n))]
                    }
                })
                .collect();
            let is_of_lane = |who: &Who| matches!(who, Who::Attempt(attempt) if attempt.n % 2 == lane);
            let got: Vec<_> = seen.iter().filter(|(_, who)| is_of_lane(who)).copied().collect();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn whoever_looks_for_strays_takes_no_ends_from_lanes() {
        let (lanes, calls) = lanes();
        for n in 0..400 {
            lanes.ask(start(1 + n % 2, n, &["true"]));
        }
        let mut strays = Strays::default();
        let mut ended = 0;
        while ended < 400 {
            strays.sweep(|_| true, || lanes.known());
            for news in lanes.take_news() {
                if let News::Ended { end, .. } = news {
                    assert_eq!(end.status, ProcessStatus::Exit(0));
                    ended += 1;
                }
            }
        }
        drop(calls);
    }

    #[test]
    fn what_waits_is_taken_back_and_what_runs_is_not() {
        let (lanes, calls) = lanes();
        for n in 0..4 {
            lanes.ask(start(1, n, &["sleep", "1000"]));
        }
        look(&lanes, &calls, |seen| seen.contains(&('s', attempt(0))));
        let taken: Vec<Who> = lanes.take_back(1).into_iter().map(Who::Attempt).collect();
        assert_eq!(taken, [attempt(1), attempt(2), attempt(3)]);
        assert!(lanes.take_back(1).is_empty() && lanes.take_back(2).is_empty());
        assert_eq!(lanes.known().pids.len(), 1);
        lanes.signal(attempt(1), libc::SIGKILL);
        lanes.signal(attempt(0), libc::SIGTERM);
        look(&lanes, &calls, |seen| seen.contains(&('e', attempt(0))));
        assert!(lanes.known().pids.is_empty());
    }
}
