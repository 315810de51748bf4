//! What an endpoint's owner says about blocks: how many, of which shape, on whose account. The shell fills it from the endpoint's
//! configuration; [`crate::plan`] decides by it.

use crate::limits::{START_MARGIN_MS, START_MARGIN_SHARE};
use pf_protocol::resources::{NodeCapacity, Resources};

/// Node-milliseconds in a thousandth of a node-hour.
pub const NODE_MS_A_MILLI_HOUR: u64 = 3_600;

/// When to ask for blocks, and how large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaling {
    /// Blocks to ask for at once when the endpoint is used for the first time, whatever the demand.
    pub init_blocks: u32,
    /// Blocks to keep, whatever the demand.
    pub min_blocks: u32,
    /// Blocks at the most, of all shapes together.
    pub max_blocks: u32,
    /// For which part of the tasks that are here slots are asked for at once, in thousandths: 1000 for all, 500 for every other one.
    pub parallelism_milli: u32,
    /// A block that nothing needed for this long is given back, or taken out of the queue. Milliseconds.
    pub idle_ms: u64,
    /// Node-milliseconds that all blocks together may use, counted from the first one: a hard brake. None: no limit.
    pub node_ms_max: Option<u64>,
    /// Shapes of blocks, in order: the first one that may take a task gets it. Never empty.
    pub shapes: Vec<Shape>,
    /// Blocks of one shape that die young in a row after which that shape is asked for no more.
    pub failures_max: u32,
    /// Pause after the first failure, milliseconds; doubles with each.
    pub backoff_ms: u64,
    /// A submit that was not answered and that no status lists for this long has failed, milliseconds. A scheduler under load can
    /// take minutes.
    pub unclear_ms: u64,
    /// The scheduler is asked this often while a block waits or is about to end, milliseconds.
    pub poll_ms: u64,
}

/// One shape of blocks. The scheduler's own words for it (queue, constraints, ..) are the shell's business, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Its name, unique at the endpoint.
    pub name: String,
    /// Blocks of it at the most.
    pub max_blocks: u32,
    /// Nodes of a block.
    pub nodes: u32,
    /// Walltime of a block, milliseconds.
    pub walltime_ms: u64,
    /// Who pays.
    pub accounts: Accounts,
    /// What a node offers, where the profile says so: else the first manager of the shape tells.
    pub node: Option<NodeCapacity>,
}

/// Which accounts blocks of a shape may be charged to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accounts {
    /// The scheduler knows none: what jobs say of accounts means nothing.
    Unused,
    /// Any that a job names; for jobs that name none this one, or the scheduler's own default.
    Any(Option<String>),
    /// These only. Jobs that name none are charged to the first.
    Only(Vec<String>),
}

impl Accounts {
    /// The account that pays for a job which names `asked`; None if the job may not run here. `Some(None)` leaves it to the scheduler.
    #[must_use]
    pub fn charged<'a>(&'a self, asked: Option<&'a str>) -> Option<Option<&'a str>> {
        match (self, asked) {
            (Accounts::Unused, _) => Some(None),
            (Accounts::Any(default), _) => Some(asked.or(default.as_deref())),
            (Accounts::Only(list), None) => Some(list.first().map(String::as_str)),
            (Accounts::Only(list), Some(account)) => list.iter().any(|a| a == account).then_some(asked),
        }
    }
}

impl Shape {
    /// Why such tasks can never run in blocks of this shape, by what is configured: a fragment for people; None if they may.
    #[must_use]
    pub fn never(&self, resources: &Resources, account: Option<&str>, time_needed_ms: u64) -> Option<String> {
        if self.accounts.charged(account).is_none() {
            let account = account.unwrap_or_default();
            return Some(format!("account {account} is none of those that may be charged"));
        }
        if let Some(why) = self.node.as_ref().and_then(|node| resources.why_not_on(node)) {
            return Some(format!("its nodes are too small: {why}"));
        }
        let margin_ms = start_margin_ms(self.walltime_ms);
        (time_needed_ms > 0 && self.walltime_ms < time_needed_ms.saturating_add(margin_ms))
            .then(|| self.too_short(time_needed_ms, margin_ms))
    }

    /// The words for a walltime that does not suffice.
    pub(crate) fn too_short(&self, needed_ms: u64, start_ms: u64) -> String {
        let [walltime, needed, start] = [self.walltime_ms, needed_ms, start_ms].map(span);
        format!(
            "its walltime of {walltime} is too short for tasks that need {needed}: {start} go to its start and its end"
        )
    }
}

/// Walltime that a block of this one is believed to lose to its start and its end, until it was measured. Milliseconds.
pub(crate) fn start_margin_ms(walltime_ms: u64) -> u64 {
    START_MARGIN_MS.min(walltime_ms / START_MARGIN_SHARE)
}

/// A time in words, rounded up.
pub(crate) fn span(ms: u64) -> String {
    if ms < 120_000 { format!("{} s", ms.div_ceil(1_000)) } else { format!("{} min", ms.div_ceil(60_000)) }
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            name: "default".into(),
            max_blocks: u32::MAX,
            nodes: 1,
            walltime_ms: 24 * 3_600_000,
            accounts: Accounts::Unused,
            node: None,
        }
    }
}

impl Default for Scaling {
    fn default() -> Self {
        Scaling {
            init_blocks: 0,
            min_blocks: 0,
            max_blocks: 1,
            parallelism_milli: 1_000,
            idle_ms: 120_000,
            node_ms_max: None,
            shapes: vec![Shape::default()],
            failures_max: 10,
            backoff_ms: 1_000,
            unclear_ms: 900_000,
            poll_ms: 1_000,
        }
    }
}

impl Scaling {
    /// The shape of this name.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&Shape> {
        self.shapes.iter().find(|s| s.name == name)
    }
}
