//! What a node has, in plain numbers: packages, NUMA nodes, cores with their hardware threads, GPUs. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// CPU numbers above this are nonsense: Linux' own limit is 8,192.
const CPU_MAX: u32 = 65_535;

/// The hardware of one node, as far as this process may use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeShape {
    /// Processor packages (sockets) with at least one usable core.
    pub packages: u32,
    /// Memory of the CPUs, bytes; memory that belongs to GPUs and slow persistent memory are not in it.
    pub memory_bytes: u64,
    /// By `os_index`, which need not start at 0 nor be dense.
    pub numa: Vec<NumaNode>,
    /// In hwloc's logical order: neighbours share caches.
    pub cores: Vec<Core>,
    /// By PCI address. That is the order of CUDA_DEVICE_ORDER=PCI_BUS_ID, and is not the order of NUMA nodes.
    pub gpus: Vec<Gpu>,
}

/// Memory that some CPUs are near to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// The kernel's number of it.
    pub os_index: u32,
    /// Empty for plain memory, else hwloc's word: `HBM`, `MCDRAM`, `GPUMemory`, `NVM`.
    pub kind: String,
    /// Its size, bytes.
    pub memory_bytes: u64,
    /// CPU numbers near it; empty for memory that no CPU is near to, as that of some GPUs.
    pub pus: Vec<u32>,
}

/// A core: what tasks are bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Position in [`NodeShape::cores`] of the whole node; kept when the shape is restricted.
    pub index: u32,
    /// The kernel's number of the core, unique in its package only.
    pub os_index: u32,
    /// Position of its package.
    pub package: u32,
    /// `os_index` of the nearest plain NUMA node; None on a die without memory of its own.
    pub numa: Option<u32>,
    /// Position of the last-level cache that it shares, where there is one.
    pub l3: Option<u32>,
    /// Rank of its kind on hybrid processors: higher is faster. 0 where all are alike.
    pub efficiency: u32,
    /// Its hardware threads: the CPU numbers of the kernel, which have holes.
    pub pus: Vec<u32>,
}

/// Who made a GPU, hence which environment variable shows it to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuVendor {
    /// CUDA_VISIBLE_DEVICES.
    Nvidia,
    /// ROCR_VISIBLE_DEVICES.
    Amd,
    /// ZE_AFFINITY_MASK.
    Intel,
}

/// A GPU, or the part of one that shows itself as a device of its own (a GCD of an MI250X).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// Position among the GPUs of the same vendor by PCI address.
    pub index: u32,
    /// Who made it.
    pub vendor: GpuVendor,
    /// Its name if the system tells, else the PCI numbers (`10de:20b0`).
    pub model: String,
    /// PCI address, `0000:c1:00.0`.
    pub pci: String,
    /// Nearest plain NUMA node.
    pub numa: Option<u32>,
    /// CPU numbers near it.
    pub pus: Vec<u32>,
    /// Its own memory, bytes, if the system tells.
    pub memory_bytes: Option<u64>,
}

impl NodeShape {
    /// The shape without the CPUs outside `allowed`: what an affinity mask or a cgroup leaves. Cores keep their index.
    pub fn restricted_to(&self, allowed: &BTreeSet<u32>) -> Self {
        let keep = |pus: &[u32]| pus.iter().copied().filter(|pu| allowed.contains(pu)).collect::<Vec<u32>>();
        let cores: Vec<Core> = self
            .cores
            .iter()
            .map(|core| Core { pus: keep(&core.pus), ..core.clone() })
            .filter(|core| !core.pus.is_empty())
            .collect();
        let packages: BTreeSet<u32> = cores.iter().map(|core| core.package).collect();
        Self {
            packages: packages.len() as u32,
            memory_bytes: self.memory_bytes,
            numa: self.numa.iter().map(|node| NumaNode { pus: keep(&node.pus), ..node.clone() }).collect(),
            cores,
            gpus: self.gpus.iter().map(|gpu| Gpu { pus: keep(&gpu.pus), ..gpu.clone() }).collect(),
        }
    }

    /// Hardware threads of all cores.
    pub fn threads(&self) -> usize {
        self.cores.iter().map(|core| core.pus.len()).sum()
    }
}

/// Reads the kernel's list format, `0-3,8,10-11`. None for anything else.
pub fn parse_cpu_list(text: &str) -> Option<BTreeSet<u32>> {
    let text = text.trim();
    let mut cpus = BTreeSet::new();
    if text.is_empty() {
        return Some(cpus);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > CPU_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Writes the kernel's list format.
pub fn format_cpu_list(cpus: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let texts: Vec<String> =
        ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cpu_lists_survive_text(cpus in proptest::collection::btree_set(0u32..CPU_MAX, 0..200)) {
            prop_assert_eq!(parse_cpu_list(&format_cpu_list(&cpus)), Some(cpus));
        }

        #[test]
        fn any_text_is_a_list_or_none(text in "[0-9,-]{0,20}|\\PC{0,20}") {
            let _ = parse_cpu_list(&text);
        }
    }

    #[test]
    fn lists_are_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-2,8\n"), Some(BTreeSet::from([0, 1, 2, 8])));
        assert_eq!(format_cpu_list(&BTreeSet::from([8, 0, 2, 1, 9])), "0-2,8-9");
        assert_eq!((parse_cpu_list("3-1"), parse_cpu_list("0-99999999")), (None, None));
    }

    #[test]
    fn a_restricted_shape_loses_cores_but_not_their_index() {
        let core = |index, package, pus: &[u32]| Core {
            index,
            os_index: index,
            package,
            numa: Some(0),
            l3: None,
            efficiency: 0,
            pus: pus.to_vec(),
        };
        let shape = NodeShape {
            packages: 2,
            cores: vec![core(0, 0, &[0, 4]), core(1, 0, &[1, 5]), core(2, 1, &[2, 6])],
            ..NodeShape::default()
        };
        let left = shape.restricted_to(&BTreeSet::from([5, 2, 6]));
        assert_eq!((left.packages, left.threads()), (2, 3));
        assert_eq!(left.cores, [core(1, 0, &[5]), core(2, 1, &[2, 6])]);
    }
}
