//! Every named maximum of the transport, with its reason.

/// Largest frame, bytes. Equal to the protocol's largest frame; a peer that sends more is cut by ZMQ_MAXMSGSIZE.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// What CURVE and ZMTP add to a frame on the wire, bytes: nonce, authenticator, flags; generously.
pub(crate) const FRAME_OVERHEAD_BYTES: usize = 1_024;

/// ZMQ's own marks, frames in each direction. Above the largest credit of a link (200,000 tasks, at worst one a
/// frame), so that reaching the mark means a broken peer.
pub const HWM_FRAMES: i32 = 262_144;

/// Frames that wait here for one peer whose ZMQ pipe is full, before it is closed. Past the mark, hope is short.
pub const BACKLOG_FRAMES_MAX: usize = 1_024;

/// Bytes that wait here for one peer whose ZMQ pipe is full. Two of the largest frames.
pub const BACKLOG_BYTES_MAX: usize = 32 << 20;

/// A peer whose pipe stays full for this long is closed, µs. Longer than a suspended node's hiccup, shorter than a lease.
pub const STALL_US_MAX: u64 = 20_000_000;

/// A full pipe is tried again this often, ms: ZMQ tells nobody which peer has room again.
pub(crate) const BACKLOG_RETRY_MS: i64 = 5;

/// Frames taken from one socket in one turn, so that no socket starves the others or the timers.
pub(crate) const FRAMES_A_TURN: usize = 256;

/// In-process frames and events delivered in one turn, so that a chatty pair does not starve the sockets.
pub(crate) const EVENTS_A_TURN: usize = 1_024;

/// Frames waiting in process. Links have credit below this; past it the pair is closed, as a socket would be.
pub const LOCAL_FRAMES_MAX: usize = 262_144;

/// Connections that one reactor tracks. A million workers fit behind 65,536 managers.
pub const CONNS_MAX: usize = 65_536;

/// The loop wakes at least this often, ms: to see gaps in its clock and changes of allow lists.
pub(crate) const TICK_MS: i64 = 500;

/// A hole in the loop's own time longer than this is a gap that nodes are told of, µs.
pub const CLOCK_GAP_US: u64 = 2_000_000;

/// Unsent frames of a closed socket get this long, ms. Exit is never held up longer.
pub(crate) const LINGER_MS: i32 = 1_000;

/// TCP connect must end within this, ms.
pub(crate) const CONNECT_TIMEOUT_MS: i32 = 15_000;

/// The CURVE handshake must end within this, ms. Also frees descriptors held by silent strangers.
pub(crate) const HANDSHAKE_MS: i32 = 15_000;

/// ZMTP pings, ms. They run in ZMQ's I/O thread and prove only that the process lives; links have heartbeats of their own.
pub(crate) const ZMTP_HEARTBEAT_MS: i32 = 15_000;

/// Silence of ZMTP after which the connection is cut, ms. Generous: a stopped process may come back.
pub(crate) const ZMTP_TIMEOUT_MS: i32 = 120_000;

/// Seconds of silence before TCP keepalive probes: below the idle cut of common firewalls (300 s and up).
pub(crate) const KEEPALIVE_IDLE_S: i32 = 60;
/// Seconds between TCP keepalive probes.
pub(crate) const KEEPALIVE_INTERVAL_S: i32 = 15;
/// Unanswered TCP keepalive probes before the connection is cut.
pub(crate) const KEEPALIVE_COUNT: i32 = 4;

/// Connections that the kernel may queue while the loop is busy: thousands of managers start at once.
pub(crate) const ACCEPT_BACKLOG: i32 = 4_096;

/// Open files that a process asks the system for, where the hard limit is higher: four for each connection tracked. Some
/// systems allow a billion, and programs that close every possible descriptor then take minutes to start.
pub const FILES_WANTED: u64 = 262_144;

/// File descriptors kept free for logs, children and ZMQ itself; newcomers are put off when fewer are left. At the
/// limit itself ZMQ's accept spins without an error.
pub(crate) const FDS_RESERVED: u64 = 64;
