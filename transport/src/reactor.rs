//! The loop that owns a process's sockets and runs its nodes, all on the thread that calls [`Reactor::run`].

use crate::clock::{GapWatch, now_us};
use crate::error::TransportError;
use crate::limits;
use crate::node::{Conn, ListenSpec, Node, NodeId};
use crate::outbox::{Delivery, Event, Outbox, Received};
use crate::sockets::Wired;
use crate::waker::Waker;
use nix::errno::Errno;
use std::os::fd::RawFd;

/// Runs nodes on one thread. Build it, add nodes, then move it to the thread that calls [`Reactor::run`].
pub struct Reactor {
    nodes: Vec<Box<dyn Node>>,
    out: Outbox,
    clock: Box<dyn Fn() -> u64 + Send>,
    gaps: GapWatch,
    /// Something happened in this turn, so that nodes may have batches to flush.
    busy: bool,
}

/// What a poll found ready.
#[derive(Clone, Copy)]
enum Source {
    Bell,
    Zap,
    Listener(usize),
    Frames(Conn),
    Reports(Conn),
    Watch { node: usize, token: u64 },
}

impl Reactor {
    /// A reactor without nodes. Raises the process's limit of open files to what the system allows.
    pub fn new() -> Result<Self, TransportError> {
        Self::with_clock(Box::new(now_us))
    }

    fn with_clock(clock: Box<dyn Fn() -> u64 + Send>) -> Result<Self, TransportError> {
        let now = clock();
        let gaps = GapWatch::new(now, limits::CLOCK_GAP_US);
        Ok(Self { nodes: Vec::new(), out: Outbox::new(now)?, clock, gaps, busy: true })
    }

    /// Adds a node.
    pub fn add(&mut self, node: Box<dyn Node>) -> NodeId {
        self.nodes.push(node);
        self.out.timers.push(None);
        self.out.wakers.push(Waker::new(self.out.bell.clone()));
        NodeId(self.nodes.len() - 1)
    }

    /// Listens for a node; answers the addresses as `host:port`, in the order of the hosts.
    pub fn listen(&mut self, node: NodeId, spec: ListenSpec) -> Result<Vec<String>, TransportError> {
        self.out.current = node.0;
        self.out.listen(spec)
    }

    /// Links two nodes in this process: frames move without being copied or encrypted. Both get `on_connected`.
    pub fn pair(&mut self, a: NodeId, b: NodeId) -> (Conn, Conn) {
        self.out.pair(a, b)
    }

    /// A handle by which other threads call the node's `on_wake`.
    pub fn waker(&self, node: NodeId) -> Waker {
        self.out.wakers[node.0].clone()
    }

    /// Runs until a node calls [`Outbox::stop`]. Sockets close when the reactor is dropped; what was sent gets a second.
    pub fn run(&mut self) -> Result<(), TransportError> {
        self.gaps = GapWatch::new((self.clock)(), limits::CLOCK_GAP_US);
        self.refresh(0);
        self.for_all(|node, now, out| node.on_start(now, out));
        self.busy = true;
        while !self.out.stopping {
            self.turn()?;
        }
        Ok(())
    }

    /// One round: sleep until something is there, then give everybody their part.
    fn turn(&mut self) -> Result<(), TransportError> {
        let timeout_ms = self.timeout_ms();
        let ready = self.poll(timeout_ms)?;
        self.refresh(u64::try_from(timeout_ms).unwrap_or(0) * 1_000);
        self.out.cut_removed_keys();
        self.deliver_wakes();
        for source in ready {
            self.serve(source);
        }
        self.refresh(0);
        if self.out.has_stalled() {
            self.out.retry_stalled();
        }
        self.deliver_events();
        self.deliver_timers();
        if std::mem::take(&mut self.busy) {
            self.for_all(|node, now, out| node.on_turn_end(now, out));
        }
        Ok(())
    }

    /// Reads the clock; tells everybody when the process was away.
    fn refresh(&mut self, slept_us: u64) {
        let now = (self.clock)();
        self.out.now = now;
        if let Some(gap_us) = self.gaps.see(now, slept_us) {
            tracing::warn!(gap_us, "this process did not run for a while; deadlines are extended");
            self.out.forgive(gap_us);
            self.for_all(|node, now, out| node.on_clock_gap(now, gap_us, out));
            self.busy = true;
        }
    }

    /// How long the next poll may sleep, ms, rounded up so that timers are not asked for too early.
    fn timeout_ms(&self) -> i64 {
        if !self.out.events.is_empty() {
            return 0;
        }
        let now = (self.clock)();
        let until_timer =
            self.out.timers.iter().flatten().min().map_or(i64::MAX, |at| {
                i64::try_from(at.saturating_sub(now).div_ceil(1_000)).unwrap_or(i64::MAX)
            });
        let most = if self.out.has_stalled() { limits::BACKLOG_RETRY_MS } else { limits::TICK_MS };
        until_timer.min(most)
    }

    fn poll(&mut self, timeout_ms: i64) -> Result<Vec<Source>, TransportError> {
        let out = &self.out;
        let mut sleep = Sleep::default();
        sleep.on(Source::Bell, raw(out.bell.fd()));
        sleep.on_socket(Source::Zap, &out.zap)?;
        for (index, listener) in out.listeners.iter().enumerate() {
            sleep.on_socket(Source::Listener(index), &listener.socket)?;
        }
        for (conn, socket, monitor) in out.dialled_sockets() {
            // Reports first: what the monitor says is acted on when the frames before it are read.
            sleep.on_socket(Source::Reports(conn), monitor)?;
            sleep.on_socket(Source::Frames(conn), socket)?;
        }
        for watch in &out.watches {
            sleep.on(Source::Watch { node: watch.node, token: watch.token }, watch.fd);
        }
        out.bell.going_to_sleep();
        let at_once = sleep.has_ready() || out.wakers.iter().any(Waker::is_called);
        let polled = sleep.poll(if at_once { 0 } else { timeout_ms });
        out.bell.awake(polled.is_ok() && sleep.is_ready(0));
        match polled {
            Ok(()) => Ok(sleep.ready()),
            // The sleep was short: the next turn looks again.
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(TransportError::system("poll")(error)),
        }
    }

    fn serve(&mut self, source: Source) {
        match source {
            // Emptied by the poll; the flags of the wakers say the rest.
            Source::Bell => {}
            Source::Zap => while self.out.answer_zap() {},
            Source::Listener(index) => self.drain(|out| out.receive_accepted(index)),
            Source::Reports(conn) => {
                self.out.read_reports(conn);
                self.deliver_events();
                self.drain(|out| out.receive_dialled(conn));
            }
            Source::Frames(conn) => self.drain(|out| out.receive_dialled(conn)),
            Source::Watch { node, token } => {
                self.refresh(0);
                self.call(node, |node, now, out| node.on_readable(now, token, out));
            }
        }
    }

    /// Delivers the frames of one socket, up to the share of a turn.
    fn drain(&mut self, mut receive: impl FnMut(&mut Outbox) -> Received) {
        self.refresh(0);
        for _ in 0..limits::FRAMES_A_TURN {
            match receive(&mut self.out) {
                Received::Frame(Delivery { node, conn, accepted, frame }) => {
                    if let Some(peer) = accepted {
                        self.call(node, |node, now, out| node.on_accepted(now, conn, peer, out));
                    }
                    self.call(node, |node, now, out| node.on_frame(now, conn, frame, out));
                }
                Received::Dropped => {}
                Received::Empty => break,
            }
        }
    }

    /// In-process frames and news of connections, those that come up meanwhile included, up to the share of a turn.
    fn deliver_events(&mut self) {
        for _ in 0..limits::EVENTS_A_TURN {
            let Some(event) = self.out.events.pop_front() else { break };
            match event {
                Event::Connected(conn) => {
                    if let Some(node) = self.out.node_of(conn) {
                        self.call(node, |node, now, out| node.on_connected(now, conn, out));
                    }
                }
                Event::Frame(conn, frame) => {
                    if let Some(node) = self.out.node_of(conn) {
                        self.call(node, |node, now, out| node.on_frame(now, conn, frame, out));
                    }
                }
                Event::Hangup(conn) => self.out.fail(conn, crate::node::CloseReason::PeerGone),
                Event::Closed { node, conn, reason } => {
                    self.call(node, |node, now, out| node.on_closed(now, conn, reason, out));
                }
            }
        }
    }

    fn deliver_wakes(&mut self) {
        for index in 0..self.nodes.len() {
            if self.out.wakers[index].take() {
                self.call(index, |node, now, out| node.on_wake(now, out));
            }
        }
    }

    fn deliver_timers(&mut self) {
        self.refresh(0);
        for index in 0..self.nodes.len() {
            if self.out.timers[index].is_some_and(|at| at <= self.out.now) {
                self.out.timers[index] = None;
                self.call(index, |node, now, out| node.on_timer(now, out));
            }
        }
    }

    fn call(&mut self, index: usize, call: impl FnOnce(&mut dyn Node, u64, &mut Outbox)) {
        self.busy = true;
        self.out.current = index;
        let now = self.out.now;
        call(self.nodes[index].as_mut(), now, &mut self.out);
    }

    fn for_all(&mut self, mut call: impl FnMut(&mut dyn Node, u64, &mut Outbox)) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            self.out.current = index;
            let now = self.out.now;
            call(node.as_mut(), now, &mut self.out);
        }
    }
}

/// What one poll waits for.
#[derive(Default)]
struct Sleep {
    sources: Vec<Source>,
    fds: Vec<libc::pollfd>,
    /// Has input already, of which its descriptor may not tell.
    known: Vec<bool>,
}

impl Sleep {
    fn on(&mut self, source: Source, fd: RawFd) {
        self.add(source, fd, false);
    }

    fn on_socket(&mut self, source: Source, socket: &Wired) -> Result<(), TransportError> {
        let fd = socket.fd().map_err(TransportError::zmq("ask for a descriptor"))?;
        self.add(source, fd, socket.may_have_input());
        Ok(())
    }

    fn add(&mut self, source: Source, fd: RawFd, known: bool) {
        self.sources.push(source);
        self.fds.push(libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        self.known.push(known);
    }

    fn has_ready(&self) -> bool {
        self.known.contains(&true)
    }

    fn poll(&mut self, timeout_ms: i64) -> Result<(), Errno> {
        let timeout_ms = libc::c_int::try_from(timeout_ms).unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer and the count are those of one vector, which nobody else touches during the call.
        let count = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, timeout_ms) };
        Errno::result(count).map(drop)
    }

    fn is_ready(&self, n: usize) -> bool {
        self.known[n] || self.fds[n].revents != 0
    }

    fn ready(self) -> Vec<Source> {
        (0..self.sources.len()).filter(|n| self.is_ready(*n)).map(|n| self.sources[n]).collect()
    }
}

fn raw(fd: std::os::fd::BorrowedFd<'_>) -> RawFd {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::allow::AllowList;
    use crate::keys::KeyPair;
    use crate::node::{CloseReason, Ports};

    /// Sends in which order things reach it.
    struct Diary(Sender<String>);

    impl Node for Diary {
        fn on_frame(&mut self, _: u64, _: Conn, _: Bytes, _: &mut Outbox) {}

        fn on_start(&mut self, _: u64, out: &mut Outbox) {
            out.set_timer(1_000);
        }

        fn on_timer(&mut self, now: u64, out: &mut Outbox) {
            self.0.send(format!("timer at {now}")).unwrap();
            out.stop();
        }

        fn on_clock_gap(&mut self, now: u64, gap_us: u64, _: &mut Outbox) {
            self.0.send(format!("gap of {gap_us} at {now}")).unwrap();
        }

        fn on_turn_end(&mut self, _: u64, _: &mut Outbox) {
            self.0.send("end".to_string()).unwrap();
        }
    }

    #[test]
    fn a_gap_is_told_before_the_timers_that_waited() {
        // The clock stands at 0 until the node was started and has its timer, then a minute is gone.
        let reads = Arc::new(AtomicU64::new(0));
        let clock = move || if reads.fetch_add(1, Ordering::SeqCst) < 4 { 0 } else { 60_000_000 };
        let mut reactor = Reactor::with_clock(Box::new(clock)).unwrap();
        let (send, diary) = channel();
        reactor.add(Box::new(Diary(send)));
        reactor.run().unwrap();
        let told: Vec<String> = diary.try_iter().collect();
        assert_eq!(told, ["gap of 59999000 at 60000000", "timer at 60000000", "end"]);
    }

    /// Floods whoever connects.
    struct Flood(Sender<CloseReason>);

    impl Node for Flood {
        fn on_frame(&mut self, _: u64, conn: Conn, _: Bytes, out: &mut Outbox) {
            let frame = Bytes::from(vec![0u8; 64 << 10]);
            for _ in 0..2_000 {
                out.send(conn, frame.clone());
            }
        }

        fn on_closed(&mut self, _: u64, _: Conn, reason: CloseReason, out: &mut Outbox) {
            self.0.send(reason).unwrap();
            out.stop();
        }
    }

    #[test]
    fn a_peer_that_never_reads_is_closed_with_the_reason() {
        let (keys, mine, allow) =
            (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), AllowList::new());
        allow.insert(mine.public, 0);
        let mut reactor = Reactor::new().unwrap();
        reactor.out.hwm_frames = 10;
        let (send, closed) = channel();
        let node = reactor.add(Box::new(Flood(send)));
        let spec =
            ListenSpec { hosts: vec!["127.0.0.1".into()], ports: Ports::any(), keys: keys.clone(), allow };
        let address = reactor.listen(node, spec).unwrap().remove(0);
        let running = std::thread::spawn(move || reactor.run());

        let context = zmq::Context::new();
        let deaf = context.socket(zmq::DEALER).unwrap();
        deaf.set_linger(0).unwrap();
        deaf.set_rcvhwm(10).unwrap();
        deaf.set_curve_serverkey(&keys.public.0).unwrap();
        deaf.set_curve_publickey(&mine.public.0).unwrap();
        deaf.set_curve_secretkey(mine.secret_bytes()).unwrap();
        deaf.connect(&format!("tcp://{address}")).unwrap();
        deaf.send("flood me", 0).unwrap();
        let reason = closed.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(reason, CloseReason::Stalled { frames: 2.. }), "{reason}");
        running.join().unwrap().unwrap();
    }
}
