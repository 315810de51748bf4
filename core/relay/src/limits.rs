//! Every named maximum of the relay's core, with its reason.

/// After twice the lease, this much more before a manager that is away is taken for dead. Milliseconds. When only one direction is cut, the
/// manager notices up to a silence of [`SILENT_INTERVALS`](pf_protocol::limits::SILENT_INTERVALS) heartbeats later than the relay: that,
/// and as much again since clocks drift and kills take time.
pub const LEASE_MARGIN_MS: u64 =
    2 * pf_protocol::limits::HEARTBEAT_MS_MIN * pf_protocol::limits::SILENT_INTERVALS;

/// Tasks that are taken from the broker when nothing is known of slots and durations. Small: what waits here cannot be
/// overtaken by a job of higher priority that the broker still holds.
pub const CREDIT_TASKS_MIN: u64 = 256;

/// Work, by measured durations, that is kept here for each slot, microseconds: hides some round trips and log syncs to the broker.
pub const CREDIT_WORK_US: u64 = 250_000;

/// Tasks up to this mean duration get work ahead, microseconds. For longer ones a round trip costs nothing that counts.
pub const PREFETCH_MEAN_US_MAX: u64 = 500_000;

/// Estimated work ahead for each slot, microseconds: hides the round trip and a slow turn of the relay.
pub const PREFETCH_WORK_US: u64 = 20_000;

/// Tasks ahead for each slot, whatever the estimate.
pub const PREFETCH_TASKS_A_SLOT_MAX: u32 = 512;

/// Tasks ahead for each manager: bounds what one lost node makes suspect.
pub const PREFETCH_TASKS_A_MANAGER_MAX: u32 = 4_096;

/// Work ahead below this is not called back for idle managers: it would be over before the answer comes. Microseconds.
pub const RECALL_WORK_US_MIN: u64 = 10_000;

/// Decisions kept for `pf endpoint explain`.
pub const DECISIONS_MAX: usize = 200;

/// Blocks that are over and still shown.
pub const ENDED_BLOCKS_MAX: usize = 20;

/// Blocks of one endpoint that are not over: protects scheduler and roster from a mistake in a configuration.
pub const LIVE_BLOCKS_MAX: u32 = 1_000;

/// Managers shown in a report.
pub const REPORT_MANAGERS_MAX: usize = 2_000;

/// A report is sent this often while something changes, microseconds.
pub const REPORT_US: u64 = 1_000_000;

/// Scaling is thought over this often, microseconds.
pub const SCALE_US: u64 = 250_000;

/// And this often while there is neither block nor manager: an idle daemon on a login node hardly wakes up.
pub const SCALE_QUIET_US: u64 = 1_000_000;

/// While the relay stops, it looks this often whether it can go: a person waits for it.
pub const STOP_LOOK_US: u64 = 20_000;

/// The scheduler is asked this often while all blocks run and are heard, microseconds.
pub const POLL_CALM_US: u64 = 10_000_000;

/// A scheduler command that was not answered for this long is asked again, microseconds: above the shell's own timeout.
pub const POLL_LOST_US: u64 = 120_000_000;

/// Longest back-off after blocks that died young, milliseconds.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

/// A scheduler that said "later" is asked again after this, microseconds.
pub const LATER_US: u64 = 60_000_000;

/// A block that was told to drain and has not ended after this is cancelled at the scheduler, milliseconds.
pub const DRAIN_MS: u64 = 10_000;

/// After a stop, the broker gets this long to confirm the last outcomes, microseconds.
pub const STOP_CONFIRM_US: u64 = 30_000_000;

/// Tasks whose reasons are listed one by one in an explanation.
pub const EXPLAIN_LINES_MAX: usize = 50;

/// Connections that were accepted and have not said HELLO.
pub const STRANGERS_MAX: usize = 65_536;

/// How much the broker may send is thought over this often, microseconds: the count goes over all managers.
pub const WINDOW_US: u64 = 20_000;
