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

/// Managers with free slots that are asked, before work ahead elsewhere is called back, whether it would run there.
pub const IDLE_ASKED_MAX: usize = 64;

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

/// A status that was not answered for this long beyond two poll intervals is asked again, microseconds: above the shell's own timeouts for
/// it and for the lookups that follow.
pub const POLL_LOST_US: u64 = 600_000_000;

/// Walltime that a block which has not begun is believed to lose to its start and its end, milliseconds, unless more was measured: a task that
/// needs all of a block's walltime would never start, and blocks would come and go for it for ever.
pub const START_MARGIN_MS: u64 = 60_000;

/// Of a short block it is this part of the walltime: managers keep a tenth for the end, and a few seconds go by at the start.
pub const START_MARGIN_SHARE: u64 = 4;

/// A limit of node-hours may shorten a block's walltime down to this, milliseconds: below, start and end are most of it.
pub const WALLTIME_MS_MIN: u64 = 600_000;

/// A block of which at most one node in so many (and one, in a small block) has a task, and no other is needed, is in its tail.
pub const TAIL_NODES_SHARE: u32 = 10;

/// Managers of a block are waited for this long after the first one, microseconds: later the node is not counted on.
pub const ABSENT_US: u64 = 120_000_000;

/// The first task does not wait for the next thought about scaling, but such thoughts keep this distance, microseconds.
pub const SCALE_SOON_US: u64 = 20_000;

/// A block whose managers have been here for this long has come up, even if no task has ended in it. Microseconds.
pub const SETTLED_US: u64 = 60_000_000;

/// While blocks run, their node-hours are written down this often, microseconds: a relay that is killed forgets no more.
pub const TIME_SAVED_US: u64 = 60_000_000;

/// Jobs whose node-hours are remembered; the oldest is forgotten.
pub const BRAKED_JOBS_MAX: usize = 10_000;

/// A task that fails before this has failed quickly, microseconds.
pub const QUICK_US: u64 = 10_000_000;

/// Distinct tasks that fail quickly in a row on a node before it is compared with others.
pub const STREAK_MIN: usize = 8;

/// Tasks of a row that are counted.
pub const STREAK_TASKS_MAX: usize = 256;

/// A row is no chance when its likelihood, by how often the job's tasks fail elsewhere, is below e to this: one in ten thousand.
pub const CHANCE_LN: f64 = -9.21;

/// A node that fails everything gets no task for this long while the first tasks elsewhere still run, microseconds: a node that fails within
/// milliseconds would eat the whole job in the meantime.
pub const WATCH_US: u64 = QUICK_US;

/// Managers in a row that die on a node soon after they connected.
pub const DEATHS_MAX: u32 = 3;

/// A quarantine ends after this, milliseconds: nodes are mended.
pub const QUARANTINE_MS: u64 = 3_600_000;

/// Longest back-off after blocks that died young, milliseconds.
pub const BACKOFF_MS_MAX: u64 = 3_600_000;

/// A scheduler that said "later" is asked again after this, microseconds.
pub const LATER_US: u64 = 60_000_000;

/// A block that was told to drain and has not ended after this is cancelled at the scheduler, milliseconds.
pub const DRAIN_MS: u64 = 10_000;

/// A block that is still there this long after its cancel was taken is cancelled again, microseconds; doubles with each. Schedulers say SIGTERM
/// first and give half a minute, as a rule.
pub const CANCEL_AGAIN_US: u64 = 90_000_000;

/// After a stop, the broker gets this long to confirm the last outcomes, microseconds.
pub const STOP_CONFIRM_US: u64 = 30_000_000;

/// Bytes of large items that are staged in the endpoint's folder at a time; one is always taken, however large. Quotas of home folders begin at some
/// ten GB.
pub const STAGED_BYTES_MAX: u64 = 4 << 30;

/// Items that are pulled at a time: enough to fill the pieces under way with the smallest of them.
pub const PULLS_ASIDE_MAX: usize = pf_protocol::limits::WANTS_MAX;

/// Tasks whose reasons are listed one by one in an explanation.
pub const EXPLAIN_LINES_MAX: usize = 50;

/// Blocks of which a reason tells one by one what they are doing.
pub const EXPLAIN_BLOCKS_MAX: usize = 3;

/// Connections that were accepted and have not said HELLO.
pub const STRANGERS_MAX: usize = 65_536;

/// How much the broker may send is thought over this often, microseconds: the count goes over all managers.
pub const WINDOW_US: u64 = 20_000;
