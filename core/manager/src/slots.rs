//! Which cores and GPUs of the node are taken. Used by the manager core when something starts or ends.

use crate::shape::NodeShape;
use pf_protocol::resources::Resources;
use std::collections::BTreeMap;

/// What one running thing holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Claim {
    /// Positions in the shape's cores.
    pub cores: Vec<usize>,
    /// Positions in the shape's GPUs, with thousandths.
    pub gpus: Vec<(usize, u32)>,
    memory_bytes: u64,
    amounts: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(crate) struct Slots {
    core_free: Vec<bool>,
    cores_free: usize,
    gpu_free: Vec<u32>,
    near: Vec<Vec<usize>>,
    memory_total: u64,
    memory_used: u64,
    amounts: BTreeMap<String, u64>,
}

impl Slots {
    pub fn new(shape: &NodeShape) -> Self {
        Slots {
            core_free: vec![true; shape.cores.len()],
            cores_free: shape.cores.len(),
            gpu_free: vec![1_000; shape.gpus.len()],
            near: shape.gpus.iter().map(|g| g.near.clone()).collect(),
            memory_total: shape.memory_bytes,
            memory_used: 0,
            amounts: shape.amounts.clone(),
        }
    }

    pub fn cores_busy(&self) -> usize {
        self.core_free.len() - self.cores_free
    }

    /// Takes what `want` needs, if it is free.
    pub fn claim(&mut self, want: &Resources) -> Option<Claim> {
        if want.cores as usize > self.cores_free || !self.rest_fits(want) {
            return None;
        }
        let gpus = self.pick_gpus(want.gpus_milli)?;
        let cores = self.pick_cores(want.cores as usize, &gpus);
        Some(self.take(want, cores, gpus))
    }

    /// Takes what `want` needs at exactly these places (those of a warm worker), if they are free.
    pub fn claim_at(&mut self, want: &Resources, at: &Claim) -> Option<Claim> {
        let cores_free = at.cores.iter().all(|&c| self.core_free[c]);
        let gpus_free = at.gpus.iter().all(|&(g, milli)| self.gpu_free[g] >= milli);
        if !cores_free || !gpus_free || !self.rest_fits(want) {
            return None;
        }
        Some(self.take(want, at.cores.clone(), at.gpus.clone()))
    }

    pub fn free(&mut self, claim: &Claim) {
        for &core in &claim.cores {
            self.core_free[core] = true;
        }
        self.cores_free += claim.cores.len();
        for &(gpu, milli) in &claim.gpus {
            self.gpu_free[gpu] += milli;
        }
        self.memory_used -= claim.memory_bytes;
        for (name, amount) in &claim.amounts {
            if let Some(has) = self.amounts.get_mut(name) {
                *has += amount;
            }
        }
    }

    fn rest_fits(&self, want: &Resources) -> bool {
        let memory = self.memory_total == 0 || self.memory_used + want.memory_bytes <= self.memory_total;
        memory && want.amounts.iter().all(|(name, n)| self.amounts.get(name).copied().unwrap_or(0) >= *n)
    }

    fn take(&mut self, want: &Resources, cores: Vec<usize>, gpus: Vec<(usize, u32)>) -> Claim {
        for &core in &cores {
            self.core_free[core] = false;
        }
        self.cores_free -= cores.len();
        for &(gpu, milli) in &gpus {
            self.gpu_free[gpu] -= milli;
        }
        self.memory_used += want.memory_bytes;
        for (name, amount) in &want.amounts {
            if let Some(has) = self.amounts.get_mut(name) {
                *has -= amount;
            }
        }
        Claim { cores, gpus, memory_bytes: want.memory_bytes, amounts: want.amounts.clone() }
    }

    /// Whole GPUs that nobody uses; for the rest of a GPU the fullest one that has it.
    fn pick_gpus(&self, milli: u32) -> Option<Vec<(usize, u32)>> {
        let (whole, part) = ((milli / 1_000) as usize, milli % 1_000);
        let mut picked: Vec<(usize, u32)> = Vec::with_capacity(whole + 1);
        if part > 0 {
            let fits = (0..self.gpu_free.len()).filter(|&g| self.gpu_free[g] >= part);
            picked.push((fits.min_by_key(|&g| self.gpu_free[g])?, part));
        }
        for gpu in 0..self.gpu_free.len() {
            if picked.len() == whole + usize::from(part > 0) {
                break;
            }
            if self.gpu_free[gpu] == 1_000 && !picked.iter().any(|p| p.0 == gpu) {
                picked.push((gpu, 1_000));
            }
        }
        picked.sort_unstable();
        (picked.len() == whole + usize::from(part > 0)).then_some(picked)
    }

    /// `count` free cores, those near to the GPUs first. There are that many.
    fn pick_cores(&self, count: usize, gpus: &[(usize, u32)]) -> Vec<usize> {
        let near = gpus.iter().flat_map(|&(g, _)| self.near[g].iter().copied());
        let mut picked: Vec<usize> = Vec::with_capacity(count);
        for core in near.chain(0..self.core_free.len()) {
            if picked.len() == count {
                break;
            }
            if self.core_free.get(core) == Some(&true) && !picked.contains(&core) {
                picked.push(core);
            }
        }
        picked.sort_unstable();
        picked
    }

    /// That `claims` are exactly what is taken, and no core is in two of them.
    pub fn check<'a>(&self, claims: impl Iterator<Item = &'a Claim>) {
        let mut cores = vec![false; self.core_free.len()];
        let mut gpus = vec![0u32; self.gpu_free.len()];
        for claim in claims {
            for &core in &claim.cores {
                assert!(!std::mem::replace(&mut cores[core], true), "core {core} is in two slots");
            }
            for &(gpu, milli) in &claim.gpus {
                gpus[gpu] += milli;
                assert!(gpus[gpu] <= 1_000, "gpu {gpu} is given away twice");
            }
        }
        assert!(cores.iter().zip(&self.core_free).all(|(taken, free)| taken != free), "cores leak");
        assert!(gpus.iter().zip(&self.gpu_free).all(|(taken, free)| taken + free == 1_000), "gpus leak");
        assert_eq!(self.cores_free, self.core_free.iter().filter(|f| **f).count(), "count of free cores");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Core, Gpu};
    use proptest::prelude::*;

    fn node() -> NodeShape {
        let gpu = |name: &str, near: Vec<usize>| Gpu { name: name.into(), near };
        NodeShape {
            cores: (0..8).map(|n| Core { pus: vec![n] }).collect(),
            // GPU order is not NUMA order.
            gpus: vec![gpu("a", vec![4, 5, 6, 7]), gpu("b", vec![0, 1, 2, 3])],
            memory_bytes: 100,
            ..NodeShape::default()
        }
    }

    #[test]
    fn a_gpu_task_sits_near_its_gpu() {
        let mut slots = Slots::new(&node());
        let want = Resources { cores: 2, gpus_milli: 1_000, ..Resources::default() };
        let first = slots.claim(&want).unwrap();
        assert_eq!((first.cores, first.gpus), (vec![4, 5], vec![(0, 1_000)]));
        assert_eq!(slots.claim(&want).unwrap().cores, vec![0, 1]);
        assert!(slots.claim(&want).is_none());
    }

    #[test]
    fn parts_of_gpus_share_one() {
        let mut slots = Slots::new(&node());
        let part = Resources { cores: 1, gpus_milli: 500, ..Resources::default() };
        let (a, b) = (slots.claim(&part).unwrap(), slots.claim(&part).unwrap());
        assert_eq!(a.gpus, b.gpus);
        assert_eq!(slots.claim(&Resources { gpus_milli: 1_500, ..part.clone() }), None);
        assert_eq!(slots.claim(&Resources { gpus_milli: 1_000, ..part }).unwrap().gpus, vec![(1, 1_000)]);
    }

    proptest! {
        #[test]
        fn no_core_is_given_twice(ops in proptest::collection::vec((0u32..4, 0u32..2_500, 0u64..60, any::<bool>()), 0..60)) {
            let mut slots = Slots::new(&node());
            let mut held: Vec<Claim> = Vec::new();
            for (cores, gpus_milli, memory_bytes, free) in ops {
                if free && !held.is_empty() {
                    let claim = held.remove(cores as usize % held.len());
                    slots.free(&claim);
                    // What was freed can be had again at the same place.
                    let want = Resources { cores: 0, ..Resources::default() };
                    if let Some(again) = slots.claim_at(&want, &claim) { slots.free(&again); }
                } else if let Some(claim) = slots.claim(&Resources { cores, gpus_milli, memory_bytes, ..Resources::default() }) {
                    prop_assert_eq!(claim.cores.len(), cores as usize);
                    prop_assert_eq!(claim.gpus.iter().map(|g| g.1).sum::<u32>(), gpus_milli);
                    held.push(claim);
                }
                slots.check(held.iter());
                prop_assert!(held.iter().map(|c| c.memory_bytes).sum::<u64>() <= 100);
            }
        }
    }
}
