//! Every named maximum and interval of the shells, with its reason. What the cores decide has its limits there.

use std::time::Duration;

/// Output of one task that is kept, for each of its two streams. The rest is read and thrown away, with a note.
pub(crate) const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// The end of standard error that travels with a failure: below the protocol's limit for texts, enough for a message.
pub(crate) const STDERR_TAIL_BYTES: usize = 4 << 10;

/// Output that is gathered before it goes to the log: one write of this size is cheap on any file system.
pub(crate) const LOG_BUFFER_BYTES: usize = 256 << 10;

/// Output reaches the log at least this often, µs, so that `pf logs -f` is alive.
pub(crate) const LOG_FLUSH_US: u64 = 150_000;

/// Buffers that may wait for the file system before output is no longer read: tasks then block on their pipes, memory does not grow.
pub(crate) const LOG_BUFFERS_WAITING_MAX: usize = 64;

/// One read of a pipe.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// Reads of one pipe in one go, so that a task that writes without end does not hold up the others.
pub(crate) const READS_A_TURN: usize = 16;

/// What a worker's output pipes hold between two looks at them.
pub(crate) const WORKER_PIPE_BYTES: i32 = 1 << 20;

/// Threads that run processes, one each: as many as there can be CPUs. What comes beyond waits for one of them.
pub(crate) const LANES_MAX: usize = CPUS_MAX as usize;

/// Stack of such a thread, which calls nothing deep.
pub(crate) const LANE_STACK_BYTES: usize = 256 << 10;

/// How often it is looked for news of lanes that is no reason to wake the reactor, µs: that a command has started, or has ended while others wait behind it. As long as
/// outcomes may gather (`GATHER_US`).
pub(crate) const NEWS_LOOK_US: u64 = 5_000;

/// With fewer commands than this behind it, the end of a command is told at once, so that more can come before the lane runs dry.
pub(crate) const ROW_SHORT: usize = 2;

/// How often it is looked what memory tasks have that said how much they need, µs: seldom enough to cost nothing, and in half a second few
/// programs fill a node.
pub(crate) const MEMORY_LOOK_US: u64 = 500_000;

/// How long the place of a program in PATH is believed without a new search: on a shared file system a search for each task would be its
/// heaviest load.
pub(crate) const PROGRAM_KNOWN: Duration = Duration::from_secs(2);

/// Programs whose place is remembered.
pub(crate) const PROGRAMS_MAX: usize = 1_024;

/// A task's output pipes are watched from this age on, µs: until then they hold what it writes, or it waits this long once.
pub(crate) const WATCH_AFTER_US: u64 = 10_000;

/// How often left-over processes of tasks are looked for after a task has ended, µs.
pub(crate) const SWEEP_US: u64 = 100_000;

/// The same while something runs: what it leaves behind and has ended waits so long to be reaped.
pub(crate) const SWEEP_SELDOM_US: u64 = 1_000_000;

/// How often it is looked whether the pilot still lives, µs.
pub(crate) const PARENT_US: u64 = 1_000_000;

/// Events taken from epoll in one go.
pub(crate) const EVENTS_A_TURN: usize = 64;

/// Grace of running tasks when the manager is told to end by a signal, ms: batch systems kill 30 s after SIGTERM, some sooner.
pub(crate) const STOP_GRACE_MS: u64 = 5_000;

/// Grace of running tasks when the batch system warns of its own end with SIGUSR1 or SIGUSR2, ms: sites give a minute or more, but who is preempted may have
/// thirty seconds.
pub(crate) const WARNED_GRACE_MS: u64 = 20_000;

/// The managers' walltime ends this long before the pilot's, ms, so that the pilot can still report.
pub(crate) const MANAGER_BEFORE_PILOT_MS: u64 = 1_000;

/// How long a manager waits for its own last frames and files when it ends.
pub(crate) const LAST_FILES: Duration = Duration::from_secs(5);

/// Largest ticket file.
pub(crate) const TICKET_BYTES_MAX: u64 = 64 << 10;

/// Longest line of a launcher that is read as one: a list of 65,535 tasks without ranges is longer, but Slurm writes ranges.
pub(crate) const WORDS_LINE_BYTES: usize = 64 << 10;

/// Environment that a pilot leaves for its managers: as much as Linux lets a process have.
pub(crate) const ENVIRONMENT_BYTES_MAX: u64 = 6 << 20;

/// Highest CPU number that can be bound to: the size of a fixed `cpu_set_t`.
pub(crate) const CPUS_MAX: u32 = 1_024;

/// Rounds in which a pilot ends what a dead manager left running: two seconds in all, then its end is told all the same.
pub(crate) const ORPHAN_ROUNDS_MAX: u32 = 1_000;

/// Pause between them: about what the kernel takes to end a process.
pub(crate) const ORPHAN_ROUND: Duration = Duration::from_millis(2);
