//! Every named maximum and interval of manager and pilot, with its reason. What travels has its limits in `pf-protocol`.

use pf_protocol::Micros;

const SECOND: Micros = 1_000_000;

/// A round of dialling is given up after this where many dial: TCP and CURVE have 15 s each at the worst, HELLO is repeated every 5 s.
pub const DIAL_ROUND_US_MAX: Micros = 20 * SECOND;

/// A round of dialling is given up after so many of the longest pauses: where few dial, an address that does not answer within seconds is that of a host that
/// is gone, and the ticket may name another one by now.
pub const DIAL_ROUND_PAUSES: Micros = 4;

/// First pause between rounds; doubles up to the longest, which a relay tells, spread by ±50 %.
pub const DIAL_PAUSE_US_MIN: Micros = SECOND / 5;

/// Longest pause between rounds until a relay has told another.
pub const DIAL_PAUSE_US_MAX: Micros = 10 * SECOND;

/// From SIGTERM to SIGKILL of a task: enough to write a checkpoint note, short beside any time limit.
pub const KILL_GRACE_US: Micros = 5 * SECOND;

/// The warn signal comes this long before the time limit, as the job's documentation promises.
pub const WARN_BEFORE_US: Micros = 10 * SECOND;

/// Estimated work that may wait in front of one worker: covers the way to the manager and back, and is nothing to a person.
pub const PIPE_US_MAX: Micros = 5_000;

/// A task that runs for longer than this keeps none waiting behind it: they were put there since those before it were short.
pub const PIPE_HEAD_US_MAX: Micros = 2 * PIPE_US_MAX;

/// Tasks that may wait in front of one worker: bounds what a dead worker gives back.
pub const PIPE_TASKS_MAX: usize = 256;

/// Bytes that may wait in front of one worker, so that socket buffers and memory stay small.
pub const PIPE_BYTES_MAX: usize = 1 << 20;

/// Starts of a worker of one kind that may fail in a row; then its tasks are refused without a try for [`WORKER_REST_US`].
pub const WORKER_START_FAILURES_MAX: u32 = 3;

/// How long a kind of worker that does not start is left alone: long enough not to storm the file system, short enough that
/// an environment that was mended is found again.
pub const WORKER_REST_US: Micros = 10 * SECOND;

/// A worker that has not said HELLO by then is killed: importing Python from a cold parallel file system takes a minute at the worst.
pub const WORKER_START_US_MAX: Micros = 180 * SECOND;

/// Idle workers for each core that are kept warm; the longest idle ones end first.
pub const IDLE_WORKERS_PER_CORE: usize = 2;

/// Times that a task is given to another worker because the one before died without having told its end.
pub const WORKER_REQUEUES_MAX: u8 = 3;

/// While tasks wait here for a slot, outcomes gather for this long before they are sent: each frame, and each sync of the broker's log, is then for several.
/// A quarter of what the relay sends ahead (`PREFETCH_WORK_US`), so that no slot runs dry for it; when nothing waits, nothing gathers.
pub const GATHER_US: Micros = 5_000;

/// Load reports are for people: one in this time, if something changed.
pub const LOAD_EVERY_US: Micros = 2 * SECOND;

/// Outcomes that wait for a confirmation this long while the relay is silent are spooled.
pub const SPOOL_AFTER_US: Micros = 30 * SECOND;

/// A manager that has heard no relay for this long ends, and a pilot that none has claimed: all tasks were killed long ago, outcomes are spooled, and a node that is held for
/// nothing is charged all the same. Long enough for a relay that is moved to another login node by hand.
pub const ABANDONED_AFTER_US: Micros = 600 * SECOND;

/// At the end, confirmations are waited for this long before what is left is spooled.
pub const CONFIRM_WAIT_US: Micros = 3 * SECOND;

/// Part of the walltime kept for the end (start nothing, warn, kill, spool): a tenth, within these bounds.
pub const WALLTIME_RESERVE_US: (Micros, Micros) = (SECOND, 30 * SECOND);

/// Attempts in one page of an inventory: about 30 bytes each, far below the frame limit.
pub const INVENTORY_PAGE: usize = 50_000;

/// Attempts that a manager holds at all. A relay keeps far below this; beyond it, it is broken and is refused.
pub const ATTEMPTS_MAX: usize = 500_000;

/// Managers are told to end this long before their pilot's batch job does: they need it to kill and to spool.
pub const PILOT_RESERVE_US: Micros = SECOND / 2;

/// Managers that were told to end get this long beyond their grace before the pilot kills them.
pub const MANAGER_END_US: Micros = 15 * SECOND;

/// A launcher that was told to kill what it started gets this long before it is killed itself: srun, which waits for its tasks' ends, takes about a second.
pub const LAUNCHER_END_US: Micros = 5 * SECOND;

/// A task that died of a signal to end which nobody here sent is not told of for this long: if the manager gets one too, both were meant. Schedulers signal
/// the processes of a block within milliseconds of each other.
pub const HOST_SIGNAL_US: Micros = SECOND / 2;
