//! Every named maximum of the broker's core, with its reason. What travels is bounded in `pf_protocol::limits`.

use pf_protocol::Micros;

/// Jobs that the broker holds, ended ones counted: at about 1 KiB each a quarter of a GiB.
pub const JOBS_MAX: usize = 250_000;

/// Jobs in one answer, and its default: a page that a terminal or a browser can take.
pub const JOBS_PAGE_MAX: usize = 1_000;

/// Task rows in one answer: a core call stays near a millisecond.
pub const TASKS_PAGE_MAX: usize = 10_000;

/// Bytes of one function. It lies in a record of the log and travels with each Define; larger things are arguments or files.
pub const FUNCTION_BYTES_MAX: usize = 1 << 20;

/// Bytes of all functions: they are held in memory, so that no job waits for a disk to be defined.
pub const FUNCTIONS_BYTES_MAX: usize = 256 << 20;

/// Endpoints: each costs a report of up to a MiB.
pub const ENDPOINTS_MAX: usize = 1_000;

/// Tokens: they are searched by hash at each request.
pub const TOKENS_MAX: usize = 10_000;

/// Jobs that one job may wait for.
pub const AFTER_MAX: usize = 1_000;

/// Labels of a job.
pub const LABELS_MAX: usize = 64;

/// Node names that are told apart in outcomes; later ones are shown without a name. Above the largest machine.
pub const NODES_MAX: usize = 100_000;

/// Groups of equal errors that a job keeps apart; further ones are counted in one group of others.
pub const ERROR_GROUPS_MAX: usize = 64;

/// Characters of the first line of an error that tell groups apart.
pub const ERROR_LINE_CHARS_MAX: usize = 200;

/// Example labels in an error group.
pub const ERROR_EXAMPLES_MAX: usize = 5;

/// Times that a task may lose its manager for a reason that is not its own (walltime, preemption) before it is given up: a task
/// longer than any block would otherwise run for ever.
pub const INNOCENT_LOSSES_MAX: u32 = 20;

/// Bytes of items in one stored piece: the unit in which items are loaded and cached.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// Pieces asked for in one load: a few ahead, so that the disk is read while the last ones are sent.
pub const LOAD_PIECES_MAX: usize = 4;

/// Bytes of items kept in memory, so that fresh ones are not read back from disk.
pub const ITEM_CACHE_BYTES_MAX: usize = 48 << 20;

/// What a cached piece costs beside its bytes.
pub const ITEM_CACHE_OVERHEAD_BYTES: usize = 128;

/// Large payloads that clients put at a time; the one that rested longest makes room. Each costs a list of its pieces.
pub const UPLOADS_MAX: usize = 1_000;

/// When the disk is behind, values are not pulled further for this long, microseconds: it writes a few pieces meanwhile.
pub const PULLS_REST: Micros = 20_000;

/// Tasks taken from one job before the next one has its turn, so that a large job does not starve a small one for long.
pub const TURN_TASKS: u64 = 512;

/// Tasks handed out in one call, so that a call stays near a millisecond; the rest follows at once in the next.
pub const PUMP_TASKS_MAX: u64 = 16_384;

/// Outcomes in one batch of a stream.
pub const STREAM_ROWS_MAX: usize = 4_096;

/// Bytes of values in one batch of a stream: what the shell holds for a slow client.
pub const STREAM_BYTES_MAX: usize = 4 << 20;

/// Open streams: each wakes at each sync.
pub const SUBSCRIPTIONS_MAX: usize = 10_000;

/// Questions to one relay that wait for an answer.
pub const ASKS_MAX: usize = 1_000;

/// How long a relay may think about a question, microseconds.
pub const ASK_TIMEOUT: Micros = 30_000_000;

/// Ranges in one page of [`pf_protocol::message::Unfinished`]: 16 bytes each, well below a frame.
pub const PAGE_RANGES_MAX: usize = 100_000;

/// Incarnations of relays that are remembered as fenced, by endpoint: only those that may still be alive matter.
pub const FENCED_MAX: usize = 16;

/// Range entries that are looked at for the time a task was handed out before it is left out of the sums.
pub const HANDED_LOOK_BACK: usize = 8;

/// Loads of items at once: more would only displace each other in the cache.
pub const LOADS_MAX: usize = 8;
