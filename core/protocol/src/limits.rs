//! Every named maximum of what travels, with its reason. The crates have a file of this name for what is only theirs.

/// Largest frame. Batches stop well below it; a larger frame is an error of the peer. Equals ZMQ_MAXMSGSIZE. Protocol 1 puts values of up to
/// 8 MiB into a frame; when it is spoken no more, this can fall to a batch and its headers.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Largest item or value that lies in a batch. What is larger is named there and pulled in pieces.
pub const INLINE_BYTES_MAX: usize = 256 << 10;

/// Bytes of an item that a command does not read from standard input: Linux' MAX_ARG_STRLEN, execve(2), less its end.
pub const ARGUMENT_BYTES_MAX: usize = (128 << 10) - 1;

/// Bytes of a piece of a large payload; only the last one is shorter. On a link of 1 Gbit/s a heartbeat waits 2 ms behind it.
pub const PIECE_BYTES: usize = 256 << 10;

/// Largest single item or result that is taken at all: what a client and a worker hold in memory at once. Files are the way for more.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// Pieces that a relay may want and not have at a time, over all payloads; the same for a broker: hides the round trip and a disk, and is
/// what either holds in memory of all that moves.
pub const WANTS_MAX: usize = 16;

/// Tasks in one message: keeps a core call near a millisecond at 100 ns a task.
pub const BATCH_TASKS_MAX: usize = 4_096;

/// Payload bytes that a batch may collect before it is closed, so that a frame stays far below [`FRAME_BYTES_MAX`].
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Tasks in one job: what a `u32` position holds, less a margin so that labels and counts never wrap.
pub const JOB_TASKS_MAX: u32 = 100_000_000;

/// Tasks in one append by the API: bounds the memory that one request can claim.
pub const APPEND_TASKS_MAX: u32 = 1_000_000;

/// Bytes in one HTTP request body.
pub const REQUEST_BYTES_MAX: usize = 256 << 20;

/// Tasks that a relay may hold unconfirmed from its broker: enough to keep 100,000 workers busy for a second of 1 s tasks.
pub const RELAY_TASKS_MAX: u64 = 200_000;

/// Payload bytes that a relay may hold.
pub const RELAY_BYTES_MAX: u64 = 256 << 20;

/// Outcomes that a manager may hold unconfirmed. At the bound it starts nothing new.
pub const MANAGER_OUTCOMES_MAX: usize = 50_000;

/// Bytes of outcomes that a manager may hold unconfirmed.
pub const MANAGER_OUTCOME_BYTES_MAX: usize = 256 << 20;

/// Characters of a name, a label or an account.
pub const NAME_CHARS_MAX: usize = 200;

/// Bytes of argv and environment of a job together: below Linux' ARG_MAX of 2 MiB.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Bytes of an error message or a stderr tail that travel with an outcome.
pub const ERROR_TEXT_BYTES_MAX: usize = 8 << 10;

/// Bytes of a traceback that travel with an outcome.
pub const TRACEBACK_BYTES_MAX: usize = 32 << 10;

/// Times that a task's manager may be lost under it before the task itself is convicted.
pub const LOST_ATTEMPTS_MAX: u32 = 4;

/// Items in any list of a cold control message.
pub const LIST_ITEMS_MAX: usize = 100_000;

/// Shortest heartbeat interval, milliseconds.
pub const HEARTBEAT_MS_MIN: u64 = 1_000;

/// Managers whose heartbeats a relay can take for each second: interval = max(1 s, managers / this).
pub const HEARTBEATS_PER_S_MAX: u64 = 2_000;

/// Least and most that the longest pause between two rounds of dialling may be, milliseconds: a few managers come back at once, and however many there
/// are, a relay that has moved is found before anybody's lease is over.
pub const REDIAL_MS_MAX: (u64, u64) = (1_000, 10_000);

/// Managers that may dial in a second: each round reads the ticket on the shared file system, and a handshake costs the relay about a millisecond.
pub const REDIALS_PER_S_MAX: u64 = 200;

/// Heartbeat intervals without any frame after which a peer is taken for silent.
pub const SILENT_INTERVALS: u64 = 10;

/// A manager cut off for this long starts nothing; past twice this it kills what runs. Milliseconds. "L" of the design.
pub const LEASE_MS: u64 = 60_000;

/// Tasks that have run this long are reported as started. Milliseconds. Shorter ones end before the report would help.
pub const STARTED_AFTER_MS: u64 = 50;

/// Highest number of a signal on Linux (SIGRTMAX, signal(7)).
pub const SIGNAL_MAX: i32 = 64;
