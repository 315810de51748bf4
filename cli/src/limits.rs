//! Every named maximum of the command line, with its reason.

use std::time::Duration;

/// Separate ranges in a list of labels: what a cold control message may carry.
pub const LABEL_PAIRS_MAX: usize = pf_protocol::limits::LIST_ITEMS_MAX;

/// Items that go along with the submit itself. More are appended, so that one request stays small in memory.
pub const ITEMS_INLINE_MAX: usize = 10_000;

/// Bytes of items that go along with the submit itself, or in one append.
pub const ITEM_BYTES_A_REQUEST: usize = 16 << 20;

/// Bytes of a configuration file; a larger one is not a configuration.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// How long a broker that was started may take until it answers: it replays its log first.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a starting or a stopping daemon is looked at.
pub const POLL_EVERY: Duration = Duration::from_millis(10);

/// How long `broker stop` waits for the daemon's end before it says so.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Seconds of one `?wait=` request; it is asked again until the job is over. Below the broker's own maximum.
pub const WAIT_SECONDS: u64 = 60;

/// How often a log that is followed is asked for more, and an endpoint that stops whether it has.
pub const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// Tries of a request that a broker did not answer, and of one that it called retryable.
pub const RETRIES_MAX: u32 = 5;

/// First pause between two tries; it doubles.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of one answer that is not a stream: the largest value.
pub const ANSWER_BYTES_MAX: usize = pf_protocol::limits::PAYLOAD_BYTES_MAX;

/// Bytes of one line of a stream: the largest inline value, escaped, and the row around it.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Rows of failed tasks that `job show` prints; the groups tell the rest.
pub const ROWS_SHOWN_MAX: usize = 1_000;

/// Lines of the daemon's log that are shown when it does not start.
pub const LOG_TAIL_LINES: usize = 12;

/// Bytes of a Unix socket's path that Linux takes, less the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Progress is drawn at most this often.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Where no bar is drawn, `wait` looks this often whether the job cannot go on.
pub const NOTE_EVERY: Duration = Duration::from_secs(5);

/// A scheduler's read-only command may take this long in `pf site`; a busy one may need half a minute.
pub const SITE_COMMAND_TIME: Duration = Duration::from_secs(30);

/// Walltime of a probe: it needs seconds, but modules and slow file systems do not.
pub const PROBE_WALLTIME_MS: u64 = 10 * 60_000;

/// How often the probe's folder is looked at.
pub const PROBE_LOOK: Duration = Duration::from_millis(200);

/// How long a probe that has looked around waits to be heard: as long as a slow scheduler's status and a slow shared file system take.
pub const PROBE_LINGER: Duration = Duration::from_secs(60);

/// How long the word of a probe that has ended may take to be seen here: what a shared file system keeps in its cache.
pub const PROBE_WORD: Duration = Duration::from_secs(3);

/// How long a probe that was heard may take to be over, as the scheduler sees it, before it is cancelled.
pub const PROBE_END: Duration = Duration::from_secs(15);

/// How often the scheduler is asked meanwhile.
pub const PROBE_END_LOOK: Duration = Duration::from_secs(1);

/// How long a probe tries to reach one address: a firewall that drops packets says nothing.
pub const PROBE_CONNECT_TIME: Duration = Duration::from_secs(5);

/// Bytes of a probe's files that are read.
pub const PROBE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of its log that an error shows.
pub const PROBE_TAIL_BYTES: u64 = 2 << 10;

/// How long `run` and `serve` wait for their blocks to end. Killed tasks end at once; this is for a machine under load.
pub const PRIVATE_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Part of an allocation's time kept for the end of broker and relay: a tenth of what is left, within these bounds. Milliseconds. The relay reads
/// spools from a shared file system and the broker syncs before they go.
pub const ALLOCATION_RESERVE_MS: (u64, u64) = (4_000, 10_000);

/// Before the end of their time managers start nothing new, and tasks that run are warned, for a tenth of it within these bounds
/// (`pf_manager_core::limits::WALLTIME_RESERVE_US`). Milliseconds.
pub const WALLTIME_RESERVE_MS: (u64, u64) = (1_000, 30_000);

/// Managers that have not ended this long after their time are killed.
pub const OVERDUE: Duration = Duration::from_secs(1);

/// How often `run` looks whether its endpoint has given up.
pub const GIVEN_UP_LOOK: Duration = Duration::from_secs(1);
