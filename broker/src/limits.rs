//! Every named maximum of the broker's shell, with its reason. What travels has its limits in `pf_protocol::limits`.

use std::time::Duration;

/// Threads that serve HTTP. The core runs on the reactor's thread; two keep one long answer from holding up the others.
pub const HTTP_THREADS: usize = 2;

/// Connections that are open at once on one listener; more wait in the kernel. Each costs a task and two buffers.
pub const CONNECTIONS_MAX: usize = 1_024;

/// A client that has not sent its whole request head by then is cut. Also ends idle keep-alive connections that a
/// client has forgotten, so it is long beside a think time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// A TLS handshake must end within this: frees what silent strangers hold.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A client from elsewhere must have sent a request with a token that is known by then: strangers cannot hold all connections.
pub const STRANGER_TIMEOUT: Duration = Duration::from_secs(15);

/// A body that makes no progress for this long is given up.
pub const BODY_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes that are read ahead on one connection, and so the longest request head. A head has a path, a token and a dozen headers; a long
/// body is read in pieces of this size.
pub const READ_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Header lines of a request.
pub const HEADERS_MAX: usize = 64;

/// Bytes of a JSON body that carries no tasks: names, positions to cancel.
pub const SMALL_BODY_BYTES_MAX: usize = 4 << 20;

/// Bytes of a refusal in the framework's words: a sentence that may quote a part of the query.
pub const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Pause before a piece of a payload is given to a store that is behind once more: it writes a few meanwhile.
pub const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of request bodies in memory at once, over all connections: two of the largest. Others wait for room.
pub const BODIES_BYTES_MAX: usize = 2 * pf_protocol::limits::REQUEST_BYTES_MAX;

/// Requests that wait for the core. It takes microseconds for each, so a longer queue only hides a stall.
pub const REQUESTS_WAITING_MAX: usize = 1_024;

/// Requests that the core takes in one turn of the reactor, so that links and timers are not held up.
pub const REQUESTS_A_TURN: usize = 64;

/// Pages that may lie ready for one subscriber that does not read; the next is asked for when one is taken.
pub const PAGES_AHEAD_MAX: usize = 2;

/// Longest `wait=`: the client asks again. Below the idle cut of common proxies.
pub const WAIT_MAX: Duration = Duration::from_secs(300);

/// A stream of outcomes with nothing to say sends a sign of life this often.
pub const STREAM_HEARTBEAT: Duration = Duration::from_secs(15);

/// An answer from a relay (logs, explain) must come within this; it reads files of a shared file system.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An open stream or request gets this long to end when the broker stops.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

/// Bytes of a value that `format=json` shows inline, if they are UTF-8. Longer ones have a call of their own.
pub const INLINE_TEXT_BYTES_MAX: usize = 64 << 10;

/// Bytes of log below which no snapshot is worth its writing: replayed in well under a second.
pub const SNAPSHOT_LOG_BYTES_MIN: u64 = 64 << 20;

/// A snapshot is due when the log behind the last one is this many times as long as it: writing it stays a small part of all writing.
pub const SNAPSHOT_LOG_RATIO: u64 = 2;

/// Task rows in one answer, unless the client asks for fewer or more.
pub const TASK_ROWS_DEFAULT: u32 = 1_000;

/// Task rows in one answer at the most: a few megabytes of JSON. The client asks again with `from=`.
pub const TASK_ROWS_MAX: u32 = 10_000;

/// Jobs that end with their client are cancelled when nobody has read the group's stream for this long: a client whose connection broke has
/// come back by then.
pub const CLIENT_GRACE: Duration = Duration::from_secs(30);
