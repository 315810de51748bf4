//! A node as plain data: what the shell found on it, less what is kept back from tasks.

use pf_protocol::resources::NodeCapacity;
use std::collections::{BTreeMap, BTreeSet};

/// One core that tasks may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// OS indices of its hardware threads; a task is bound to all of them. Empty in a shape that is not pinned.
    pub pus: Vec<u32>,
}

/// One GPU that tasks may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// For people.
    pub name: String,
    /// Positions in [`NodeShape::cores`] of the cores that are near to it; empty: not known.
    pub near: Vec<usize>,
}

/// What a manager carves into slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeShape {
    /// Cores, in the order in which they are handed out.
    pub cores: Vec<Core>,
    /// GPUs.
    pub gpus: Vec<Gpu>,
    /// Bytes of memory for tasks; 0: not known.
    pub memory_bytes: u64,
    /// Named amounts.
    pub amounts: BTreeMap<String, u64>,
    /// Features.
    pub features: BTreeSet<String>,
}

impl NodeShape {
    /// A node of `cores` slots that are bound to nothing.
    #[must_use]
    pub fn unpinned(cores: usize) -> Self {
        NodeShape { cores: vec![Core { pus: Vec::new() }; cores], ..NodeShape::default() }
    }

    /// What the relay is told of it.
    #[must_use]
    pub fn capacity(&self) -> NodeCapacity {
        NodeCapacity {
            cores: u32::try_from(self.cores.len()).unwrap_or(u32::MAX),
            gpus_milli: u32::try_from(self.gpus.len()).unwrap_or(u32::MAX).saturating_mul(1_000),
            memory_bytes: self.memory_bytes,
            amounts: self.amounts.clone(),
            features: self.features.clone(),
        }
    }
}
