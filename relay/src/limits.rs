//! Every named maximum of the relay's shell, with its reason.

use std::time::Duration;

/// A scheduler's command may take this long. Busy schedulers answer within half a minute or not at all.
pub const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// What a scheduler's command printed is waited for so long after its end: a site's wrapper may leave something behind that keeps the pipes.
pub const PIPES_AFTER_END_MAX: Duration = Duration::from_secs(1);

/// How often a command that has not closed its pipes is looked at. It costs one system call.
pub const COMMAND_LOOK: Duration = Duration::from_millis(50);

/// The command that tells the make of a scheduler may take this long: it asks no server, and the relay waits for it.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

/// A submit may take this long: sbatch alone tries for two minutes when the queue is full, and one that was killed may have been taken.
pub const SUBMIT_TIME_MAX: Duration = Duration::from_secs(180);

/// Blocks that are looked up one by one after a status that does not list them.
pub const LOOKUPS_A_POLL_MAX: usize = 20;

/// Longest pause between two lookups of one block; it doubles up to this.
pub const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(600);

/// A block that is not known to any source in so many lookups, and for so long, is over. One listing may lack it by chance.
pub const GONE_LOOKUPS: u32 = 3;

/// See [`GONE_LOOKUPS`]. A scheduler that begins anew may answer without its jobs for some seconds.
pub const GONE_AFTER: Duration = Duration::from_secs(30);

/// Bytes of the supervisor's file that are read: it is one short line.
pub const END_BYTES_MAX: u64 = 256;

/// Bytes of a kept status: both streams of the command, each byte escaped at the worst.
pub const STATUS_BYTES_MAX: u64 = 64 << 20;

/// Bytes of each of a command's streams that are kept: a status of thousands of blocks fits.
pub const COMMAND_OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Bytes of the roster that are read: thousands of blocks fit.
pub const ROSTER_BYTES_MAX: u64 = 16 << 20;

/// Bytes of a ticket that are read.
pub const TICKET_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one spool file: what a manager may hold unconfirmed, and headers.
pub const SPOOL_BYTES_MAX: u64 = 1 << 30;

/// Spool files of one block.
pub const SPOOL_FILES_MAX: usize = 100_000;

/// Bytes of a block's log that are shown.
pub const BLOCK_LOG_BYTES_MAX: u64 = 64 << 10;

/// Bytes of a block's log that a report carries when it died young.
pub const BLOCK_TAIL_BYTES_MAX: u64 = 2 << 10;

/// Bytes of output in one answer: more is asked for with `next`. Far below the frame limit.
pub const LOG_ANSWER_BYTES_MAX: usize = 512 << 10;

/// Bytes of a log that are read at once: at least one whole record.
pub const LOG_READ_BYTES: usize = 4 << 20;

/// Bytes of a log that one entry of its index stands for: read in a tenth of a millisecond.
pub const LOG_PAGE_BYTES: u64 = 256 << 10;

/// Jobs that such an entry tells apart: as many as run at a time on one node, as a rule.
pub const LOG_PAGE_JOBS_MAX: usize = 16;

/// A pilot that was asked to end gets this long before it is killed: it spools and leaves.
pub const PILOT_END_MAX: Duration = Duration::from_secs(20);

/// How often the supervisor of a block looks whether the process is there with which the block ends. It costs one small file.
pub const MASTER_LOOK: Duration = Duration::from_secs(1);

/// What a pilot leaves behind gets this long to end by itself.
pub const ORPHANS_END_MAX: Duration = Duration::from_secs(5);

/// Between looks at orphans that were killed: they vanish within this as a rule.
pub const ORPHANS_LOOK: Duration = Duration::from_millis(20);

/// A local submit waits this long for its supervisor's first word.
pub const SUPERVISOR_START_MAX: Duration = Duration::from_secs(20);

/// First and longest pause before the broker is dialled again, milliseconds.
pub const REDIAL_MS: (u64, u64) = (100, 10_000);
