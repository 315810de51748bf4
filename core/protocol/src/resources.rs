//! What a task needs from a node.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Resources of one task. Two tasks with equal resources are of the same *class*.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Whole cores, bound for the task alone. 1 if not said.
    pub cores: u32,
    /// GPUs in thousandths: 1000 is a whole GPU, 250 a quarter of one.
    pub gpus_milli: u32,
    /// Bytes of memory; 0 is "not said".
    pub memory_bytes: u64,
    /// Nodes; more than 1 is a gang (one MPI program).
    pub nodes: u32,
    /// Ranks on each node; 0 is "no MPI".
    pub ranks_per_node: u32,
    /// Named amounts that a node or an endpoint has: licences, local disk.
    pub amounts: BTreeMap<String, u64>,
    /// Features that the node must have, like `hbm80g`.
    pub features: BTreeSet<String>,
    /// Other resources with which the task would run as well.
    pub alternatives: Vec<Resources>,
}

impl Default for Resources {
    fn default() -> Self {
        Resources {
            cores: 1,
            gpus_milli: 0,
            memory_bytes: 0,
            nodes: 1,
            ranks_per_node: 0,
            amounts: BTreeMap::new(),
            features: BTreeSet::new(),
            alternatives: Vec::new(),
        }
    }
}

/// What one node of an endpoint offers to tasks, as its manager found it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeCapacity {
    /// Cores that tasks may use.
    pub cores: u32,
    /// GPUs in thousandths.
    pub gpus_milli: u32,
    /// Bytes of memory that tasks may use; 0 is "not known".
    pub memory_bytes: u64,
    /// Named amounts.
    pub amounts: BTreeMap<String, u64>,
    /// Features.
    pub features: BTreeSet<String>,
}

impl Resources {
    /// Why a node with `node` can never run this, as a fragment for people (`"it asks for 4 cores, the node has 2"`); None if it can.
    #[must_use]
    pub fn why_not_on(&self, node: &NodeCapacity) -> Option<String> {
        if self.cores > node.cores {
            return Some(format!("it asks for {} cores, the node has {}", self.cores, node.cores));
        }
        if self.gpus_milli > node.gpus_milli {
            let (want, has) = (f64::from(self.gpus_milli) / 1e3, f64::from(node.gpus_milli) / 1e3);
            return Some(format!("it asks for {want} GPUs, the node has {has}"));
        }
        if node.memory_bytes > 0 && self.memory_bytes > node.memory_bytes {
            let (want, has) = (self.memory_bytes >> 20, node.memory_bytes >> 20);
            return Some(format!("it asks for {want} MiB of memory, the node has {has} MiB"));
        }
        for (name, &want) in &self.amounts {
            let has = node.amounts.get(name).copied().unwrap_or(0);
            if want > has {
                return Some(format!("it asks for {want} of {name}, the node has {has}"));
            }
        }
        let missing = self.features.difference(&node.features).next()?;
        Some(format!("it asks for feature {missing}, which the node does not have"))
    }

    /// How many tasks of this class fit on an empty node.
    #[must_use]
    pub fn fit_count(&self, node: &NodeCapacity) -> u32 {
        if self.why_not_on(node).is_some() {
            return 0;
        }
        let by_cores = node.cores.checked_div(self.cores).unwrap_or(u32::MAX);
        let by_gpus = node.gpus_milli.checked_div(self.gpus_milli).unwrap_or(u32::MAX);
        let by_memory = match node.memory_bytes {
            0 => u32::MAX,
            has => {
                has.checked_div(self.memory_bytes).map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX))
            }
        };
        let by_amounts = self.amounts.iter().filter(|(_, want)| **want > 0).map(|(name, want)| {
            let has = node.amounts.get(name).copied().unwrap_or(0);
            u32::try_from(has / want).unwrap_or(u32::MAX)
        });
        by_cores.min(by_gpus).min(by_memory).min(by_amounts.min().unwrap_or(u32::MAX))
    }
}
