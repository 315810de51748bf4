//! The ticket: what a pilot and its managers need to find and to prove themselves to their relay. A 0600 file in the block's folder.

use crate::ids::{BlockId, EndpointId, Epoch};
use serde::{Deserialize, Serialize};

/// Format of [`Ticket`] that this version writes.
pub const TICKET_FORMAT: u32 = 1;

/// Contents of `ticket.json` in a block's folder. Re-read after each failed round of connecting: that is how a relay moves.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// [`TICKET_FORMAT`].
    pub format: u32,
    /// Name of the endpoint.
    pub endpoint_name: String,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The block.
    pub block: BlockId,
    /// The relay's epoch when it was written; the higher one wins.
    pub epoch: Epoch,
    /// Where the relay listens, `host:port` each; all are tried at once.
    pub relays: Vec<String>,
    /// The relay's CURVE public key, Z85.
    pub relay_key: String,
    /// The block's CURVE key pair, Z85: public, secret.
    pub block_key: (String, String),
    /// Nodes of the block.
    pub nodes: u32,
    /// Walltime asked for, milliseconds; the pilot's own clock counts it down.
    pub walltime_ms: u64,
    /// The block's folder on the shared place.
    pub dir: String,
    /// The `pf` that its script starts; kept until the block is over.
    #[serde(default)]
    pub program: String,
    /// Folder for task logs.
    pub output_dir: String,
    /// Node-local folder for sockets and scratch; probed, else the system's temporary folder.
    pub local_dir: Option<String>,
    /// Folder of large payloads on the shared place; None from a relay that knows of none.
    #[serde(default)]
    pub payloads_dir: Option<String>,
    /// Folder below which attempts get work directories.
    pub work_dir: String,
    /// The Python interpreter of the endpoint.
    pub python: String,
    /// How managers carve their node.
    pub slots: SlotPlan,
    /// How processes are started across the nodes: `local`, `srun`, ..
    pub launcher: String,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("block", &self.block)
            .field("relays", &self.relays)
            .finish_non_exhaustive()
    }
}

/// How a manager makes slots of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotPlan {
    /// Cores kept back from tasks (by OS index), as a profile says.
    pub reserved_cores: Vec<u32>,
    /// Use this many slots of one core instead of what the hardware has. More slots than cores are not pinned.
    pub cores_override: Option<u32>,
    /// Pretend this many GPUs instead of those found (tests, odd machines).
    pub gpus_override: Option<u32>,
}
