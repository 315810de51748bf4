//! How a session of a link begins, lives and ends; the same on every link. Part of [`crate::message`], which names these types.

use crate::ids::{BlockId, EndpointId, Epoch, ManagerId};
use crate::resources::NodeCapacity;
use serde::{Deserialize, Serialize};

/// First frame of the side that dialled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Who calls.
    pub who: Who,
    /// Random for each process.
    pub incarnation: u64,
    /// Lowest version spoken.
    pub version_min: u16,
    /// Highest version spoken.
    pub version_max: u16,
    /// Highest epoch of the other side that was ever seen (0: none): a relay with a lower one is refused.
    pub epoch_seen: Epoch,
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// The host's wall clock, Unix milliseconds, to tell people of skew.
    pub clock_ms: u64,
}

/// Who says [`Hello`], with what the other side must know at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Who {
    /// A relay, for its endpoint.
    Relay {
        /// Name of the endpoint.
        endpoint: String,
        /// Take the endpoint from a relay that is still heard.
        takeover: bool,
    },
    /// A manager.
    Manager {
        /// Its id.
        manager: ManagerId,
        /// Node's name.
        node: String,
        /// What it offers.
        capacity: NodeCapacity,
        /// Walltime left for tasks, milliseconds: without what it keeps for the end.
        walltime_left_ms: u64,
    },
    /// A pilot.
    Pilot {
        /// Its block.
        block: BlockId,
        /// Random for each pilot process: a second pilot of a claimed block is refused.
        incarnation: u64,
        /// The scheduler's id of the batch job, if the environment says it.
        scheduler_id: Option<String>,
        /// How often the scheduler has started the job again under that id.
        #[serde(default)]
        restarts: u32,
        /// Names of the nodes.
        nodes: Vec<String>,
        /// Walltime left, milliseconds.
        walltime_left_ms: u64,
    },
}

/// The accepting side's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Names the session; every later frame carries it.
    pub session: u64,
    /// Version that both speak from now on.
    pub version: u16,
    /// To a relay: the epoch that it is granted. To managers and pilots: the relay's own epoch.
    pub epoch: Epoch,
    /// To a relay: its endpoint.
    pub endpoint: EndpointId,
    /// Interval of heartbeats, milliseconds.
    pub heartbeat_ms: u64,
    /// Silence after which the peer is taken for gone, milliseconds.
    pub silent_ms: u64,
    /// Lease L of a manager, milliseconds.
    pub lease_ms: u64,
    /// Longest pause of a peer that has lost this side before it dials again, milliseconds: it grows with their number.
    #[serde(default)]
    pub redial_ms_max: u64,
}

/// The accepting side does not want this peer. Final unless `retry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Short word: `version`, `claimed`, `fenced`, `unknown_endpoint`, `not_allowed`, `not_ready`, `ended`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether to try again later.
    pub retry: bool,
}

/// Nothing but a sign of life, with the sequence number that shows a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heartbeat {}

/// The peer ends the session on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why.
    pub reason: String,
    /// Whether the peer's process is about to end for good (all its tasks are ended or given back).
    pub done: bool,
}
