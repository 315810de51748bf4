//! Cuts a node into equal slots: disjoint cores near each other and near the slot's GPUs. Pure; called by the manager.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::shape::{Core, NodeShape};

/// What slots should be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarveRequest {
    /// Cores in each slot, at least 1.
    pub cores_per_slot: u32,
    /// GPUs in each slot; 0 for slots without.
    pub gpus_per_slot: u32,
    /// Cores that no slot gets: left to the system and the manager. Taken evenly from NUMA nodes
    /// and in them from last-level caches, first cores first.
    pub reserved_cores: u32,
    /// Slots at most; None for as many as fit.
    pub slots_max: Option<u32>,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotShape {
    /// [`Core::index`] of its cores, ascending.
    pub cores: Vec<u32>,
    /// CPU numbers to bind to: all hardware threads of its cores, ascending.
    pub pus: Vec<u32>,
    /// Positions in [`NodeShape::gpus`], ascending.
    pub gpus: Vec<u32>,
    /// NUMA nodes (`os_index`) of its cores.
    pub numa: Vec<u32>,
}

/// A node cut up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carving {
    /// Equal slots, disjoint.
    pub slots: Vec<SlotShape>,
    /// [`Core::index`] of the reserved cores.
    pub reserved: Vec<u32>,
    /// [`Core::index`] of cores that no slot could use.
    pub unused: Vec<u32>,
}

/// Why there is no slot at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarveError {
    /// A slot without a core.
    #[error("a slot needs at least one core")]
    NoCoresAsked,
    /// The node is too small.
    #[error("no slot fits: {asked} cores a slot, {usable} usable cores ({reserved} reserved)")]
    TooFewCores {
        /// Cores in a slot.
        asked: u32,
        /// Cores left after the reserved ones.
        usable: usize,
        /// Cores reserved.
        reserved: u32,
    },
    /// The node has fewer GPUs than a slot.
    #[error("no slot fits: {asked} GPUs a slot, the node has {found}")]
    TooFewGpus {
        /// GPUs in a slot.
        asked: u32,
        /// GPUs of the node.
        found: usize,
    },
}

/// Cuts `shape` as asked: as many slots as fit, at least one.
pub fn carve(shape: &NodeShape, request: CarveRequest) -> Result<Carving, CarveError> {
    if request.cores_per_slot == 0 {
        return Err(CarveError::NoCoresAsked);
    }
    let reserved = choose_reserved(shape, request.reserved_cores);
    let mut free: Vec<&Core> = shape.cores.iter().filter(|core| !reserved.contains(&core.index)).collect();
    let size = request.cores_per_slot as usize;
    let most = (free.len() / size).min(request.slots_max.map_or(usize::MAX, |max| max as usize));
    if most == 0 {
        let (asked, reserved) = (request.cores_per_slot, request.reserved_cores);
        return Err(CarveError::TooFewCores { asked, usable: free.len(), reserved });
    }
    let picked = if request.gpus_per_slot == 0 {
        (0..most).map(|_| (take_together(&mut free, size), Vec::new())).collect()
    } else {
        let groups = group_gpus(shape, request.gpus_per_slot as usize);
        if groups.is_empty() {
            return Err(CarveError::TooFewGpus { asked: request.gpus_per_slot, found: shape.gpus.len() });
        }
        take_near_gpus(shape, &mut free, size, groups.into_iter().take(most).collect())
    };
    let slots = picked.into_iter().map(|(cores, gpus)| slot(cores, gpus)).collect();
    let reserved = reserved.into_iter().collect();
    Ok(Carving { slots, reserved, unused: free.iter().map(|core| core.index).collect() })
}

fn slot(mut cores: Vec<&Core>, gpus: Vec<u32>) -> SlotShape {
    cores.sort_by_key(|core| core.index);
    let pus: BTreeSet<u32> = cores.iter().flat_map(|core| core.pus.iter().copied()).collect();
    let numa: BTreeSet<u32> = cores.iter().filter_map(|core| core.numa).collect();
    SlotShape {
        cores: cores.iter().map(|core| core.index).collect(),
        pus: pus.into_iter().collect(),
        gpus,
        numa: numa.into_iter().collect(),
    }
}

/// Reserved cores: one from each NUMA node in turn, and in it from each last-level cache in turn, so that slots stay equal.
fn choose_reserved(shape: &NodeShape, count: u32) -> BTreeSet<u32> {
    let mut seen_in_cache: BTreeMap<(Option<u32>, Option<u32>), u32> = BTreeMap::new();
    let mut by_numa: BTreeMap<Option<u32>, BTreeSet<(u32, u32)>> = BTreeMap::new();
    for core in &shape.cores {
        let rank = seen_in_cache.entry((core.numa, core.l3)).or_default();
        by_numa.entry(core.numa).or_default().insert((*rank, core.index));
        *rank += 1;
    }
    let wanted = (count as usize).min(shape.cores.len());
    let mut reserved = BTreeSet::new();
    while reserved.len() < wanted {
        for cores in by_numa.values_mut() {
            if reserved.len() < wanted {
                reserved.extend(cores.pop_first().map(|(_, index)| index));
            }
        }
    }
    reserved
}

/// Takes `size` cores that share as much as they can: a last-level cache, a NUMA node, a package, or just the node.
fn take_together<'a>(free: &mut Vec<&'a Core>, size: usize) -> Vec<&'a Core> {
    let cache = |core: &Core| core.l3.map(|l3| (core.package, core.numa, l3));
    if let Some(home) = first_fit(free, size, cache).filter(Option::is_some) {
        return take(free, size, |core| cache(core) == home);
    }
    let numa = |core: &Core| (core.package, core.numa);
    if let Some(home) = first_fit(free, size, numa) {
        return take(free, size, |core| numa(core) == home);
    }
    match first_fit(free, size, |core| core.package) {
        Some(home) => take(free, size, |core| core.package == home),
        None => take(free, size, |_| true),
    }
}

/// The first place, in the order of cores, that has room for `size`.
fn first_fit<K: Ord + Copy>(free: &[&Core], size: usize, place: impl Fn(&Core) -> K) -> Option<K> {
    let mut counts: BTreeMap<K, usize> = BTreeMap::new();
    for core in free {
        *counts.entry(place(core)).or_default() += 1;
    }
    free.iter().map(|core| place(core)).find(|key| counts[key] >= size)
}

/// Removes up to `size` cores that `fits` says yes to, in order.
fn take<'a>(free: &mut Vec<&'a Core>, size: usize, fits: impl Fn(&Core) -> bool) -> Vec<&'a Core> {
    let mut taken = Vec::with_capacity(size);
    free.retain(|core| {
        let wanted = taken.len() < size && fits(core);
        if wanted {
            taken.push(*core);
        }
        !wanted
    });
    taken
}

/// GPUs in groups of `size`, in order of their first member; those near the same CPUs stay together where they can.
fn group_gpus(shape: &NodeShape, size: usize) -> Vec<Vec<u32>> {
    let mut by_place: BTreeMap<(Option<u32>, &[u32]), Vec<u32>> = BTreeMap::new();
    for (position, gpu) in shape.gpus.iter().enumerate() {
        by_place.entry((gpu.numa, &gpu.pus)).or_default().push(position as u32);
    }
    let mut groups = Vec::new();
    let mut rest = Vec::new();
    for gpus in by_place.values() {
        let whole = gpus.len() / size * size;
        groups.extend(gpus[..whole].chunks(size).map(<[u32]>::to_vec));
        rest.extend_from_slice(&gpus[whole..]);
    }
    rest.sort_unstable();
    groups.extend(rest.chunks_exact(size).map(<[u32]>::to_vec));
    groups.sort();
    groups
}

/// Cores for each group of GPUs. In three passes, so that no slot takes from far what is near to another: first cores near
/// the GPUs, shared evenly, then cores of the same package, then any.
fn take_near_gpus<'a>(
    shape: &NodeShape,
    free: &mut Vec<&'a Core>,
    size: usize,
    groups: Vec<Vec<u32>>,
) -> Vec<(Vec<&'a Core>, Vec<u32>)> {
    let near: Vec<BTreeSet<u32>> = groups
        .iter()
        .map(|group| group.iter().flat_map(|gpu| shape.gpus[*gpu as usize].pus.iter().copied()).collect())
        .collect();
    let is_near = |slot: usize, core: &Core| core.pus.iter().any(|pu| near[slot].contains(pu));
    let packages: Vec<BTreeSet<u32>> = (0..groups.len())
        .map(|slot| shape.cores.iter().filter(|core| is_near(slot, core)).map(|core| core.package).collect())
        .collect();
    let mut taken: Vec<Vec<&Core>> = vec![Vec::new(); groups.len()];
    for slot in 0..groups.len() {
        // What the slots after this one, near the same cores, need too is left to them.
        let rivals = (slot..groups.len()).filter(|other| near[*other] == near[slot]).count().max(1);
        let pool = free.iter().filter(|core| is_near(slot, core)).count();
        taken[slot] = take(free, size.min(pool.div_ceil(rivals)), |core| is_near(slot, core));
    }
    for slot in 0..groups.len() {
        let missing = size - taken[slot].len();
        taken[slot].extend(take(free, missing, |core| packages[slot].contains(&core.package)));
    }
    for cores in &mut taken {
        let missing = size - cores.len();
        cores.extend(take(free, missing, |_| true));
    }
    taken.into_iter().zip(groups).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::shape::{Gpu, GpuVendor, NumaNode};
    use proptest::prelude::*;

    /// A node of `numa` NUMA nodes with `width` cores of two threads each, two NUMA nodes a package, and GPUs near the
    /// NUMA nodes that `gpus` names. Threads are numbered as kernels do: siblings lie half of all apart.
    fn node(numa: u32, width: u32, gpus: &[u32]) -> NodeShape {
        let total = numa * width;
        let pus =
            |n: u32| (n * width..(n + 1) * width).chain(total + n * width..total + (n + 1) * width).collect();
        NodeShape {
            packages: numa.div_ceil(2),
            memory_bytes: 0,
            numa: (0..numa)
                .map(|n| NumaNode { os_index: n, kind: String::new(), memory_bytes: 0, pus: pus(n) })
                .collect(),
            cores: (0..total)
                .map(|c| Core {
                    index: c,
                    os_index: c,
                    package: c / width / 2,
                    numa: Some(c / width),
                    l3: Some(c / width.div_ceil(2)),
                    efficiency: 0,
                    pus: vec![c, total + c],
                })
                .collect(),
            gpus: gpus
                .iter()
                .zip(0..)
                .map(|(n, index)| Gpu {
                    index,
                    vendor: GpuVendor::Amd,
                    model: String::new(),
                    pci: String::new(),
                    numa: Some(*n),
                    pus: pus(*n),
                    memory_bytes: None,
                })
                .collect(),
        }
    }

    fn ask(cores_per_slot: u32, gpus_per_slot: u32, reserved_cores: u32) -> CarveRequest {
        CarveRequest { cores_per_slot, gpus_per_slot, reserved_cores, slots_max: None }
    }

    #[test]
    fn slots_stay_in_a_numa_node_where_they_can() {
        let carving = carve(&node(4, 8, &[]), ask(3, 0, 0)).unwrap();
        assert_eq!(carving.slots.len(), 10);
        assert_eq!(carving.slots[1].cores, [4, 5, 6], "each in a cache of four, while there is one");
        let inside = carving.slots.iter().filter(|slot| slot.numa.len() == 1).count();
        assert_eq!(inside, 8, "two in each of four NUMA nodes");
        assert_eq!(carving.slots[0].pus, [0, 1, 2, 32, 33, 34]);
    }

    #[test]
    fn slots_follow_their_gpus_not_the_order_of_numa_nodes() {
        // As on a Frontier node: GPUs 0 and 1 at NUMA node 3, and so on; one core of each L3 reserved.
        let carving = carve(&node(4, 16, &[3, 3, 1, 1, 0, 0, 2, 2]), ask(7, 1, 8)).unwrap();
        let homes: Vec<_> = carving.slots.iter().map(|slot| (slot.gpus[0], slot.numa.clone())).collect();
        let expected =
            [3, 3, 1, 1, 0, 0, 2, 2].iter().zip(0..).map(|(n, gpu)| (gpu, vec![*n])).collect::<Vec<_>>();
        assert_eq!(homes, expected);
        assert_eq!(carving.reserved, [0, 8, 16, 24, 32, 40, 48, 56]);
        assert!(carving.unused.is_empty());
    }

    #[test]
    fn gpus_of_one_place_stay_together() {
        let carving = carve(&node(2, 4, &[1, 0, 1, 0]), ask(4, 2, 0)).unwrap();
        let slots: Vec<_> = carving.slots.iter().map(|slot| (slot.gpus.clone(), slot.numa.clone())).collect();
        assert_eq!(slots, [(vec![0, 2], vec![1]), (vec![1, 3], vec![0])]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let shape = node(2, 4, &[0]);
        assert_eq!(carve(&shape, ask(0, 0, 0)), Err(CarveError::NoCoresAsked));
        let error = carve(&shape, ask(8, 0, 1)).unwrap_err();
        assert_eq!(error, CarveError::TooFewCores { asked: 8, usable: 7, reserved: 1 });
        let error = carve(&shape, ask(1, 2, 0)).unwrap_err();
        assert_eq!(error.to_string(), "no slot fits: 2 GPUs a slot, the node has 1");
        let few = carve(&shape, CarveRequest { slots_max: Some(2), ..ask(1, 0, 0) }).unwrap();
        assert_eq!((few.slots.len(), few.unused.len()), (2, 6));
    }

    proptest! {
        #[test]
        fn slots_are_equal_and_disjoint(
            numa in 1u32..6,
            width in 1u32..10,
            places in proptest::collection::vec(0u32..6, 0..10),
            cores in 1u32..12,
            gpus in 0u32..4,
            reserved in 0u32..20,
        ) {
            let places: Vec<u32> = places.into_iter().map(|n| n % numa).collect();
            let shape = node(numa, width, &places);
            let Ok(carving) = carve(&shape, ask(cores, gpus, reserved)) else { return Ok(()) };
            let mut seen: Vec<u32> = carving.reserved.iter().chain(&carving.unused).copied().collect();
            let mut seen_gpus: Vec<u32> = Vec::new();
            for slot in &carving.slots {
                prop_assert_eq!(slot.cores.len(), cores as usize);
                prop_assert_eq!(slot.pus.len(), 2 * cores as usize);
                prop_assert_eq!(slot.gpus.len(), gpus as usize);
                seen.extend(&slot.cores);
                seen_gpus.extend(&slot.gpus);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..numa * width).collect::<Vec<_>>(), "each core is in one place");
            let count = seen_gpus.len();
            seen_gpus.sort_unstable();
            seen_gpus.dedup();
            prop_assert_eq!(seen_gpus.len(), count);
            prop_assert!(!carving.slots.is_empty());
        }
    }
}
