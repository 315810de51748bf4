//! From what the hardware is to what the manager carves: reserved cores, overrides, more slots than cores.

use crate::cgroup::CgroupLimits;
use crate::gpus::{GpuEnv, VisibleGpus};
use crate::topology::{self, GpuVendor};
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use pf_manager_core::{Core, Gpu, NodeShape};
use pf_protocol::resources::NodeCapacity;
use pf_protocol::ticket::{SlotPlan, Ticket};

/// This machine as the ticket wants it used.
pub(crate) fn local(ticket: &Ticket) -> (NodeShape, GpuEnv) {
    let found = topology::read_local().unwrap_or_else(|error| {
        tracing::warn!(%error, "the hardware cannot be asked; CPUs are taken from the affinity mask");
        from_affinity()
    });
    // Several "nodes" on one machine would be bound to the same cores.
    let shared = ticket.launcher == "local" && ticket.nodes > 1;
    shape(&found, &ticket.slots, &VisibleGpus::own(), CgroupLimits::own(), !shared)
}

/// What a manager on this machine will offer: so that a local endpoint can refuse what it can never run before it has a manager.
#[must_use]
pub fn local_capacity(plan: &SlotPlan) -> NodeCapacity {
    let found = topology::read_local().unwrap_or_else(|_| from_affinity());
    shape(&found, plan, &VisibleGpus::own(), CgroupLimits::own(), true).0.capacity()
}

/// What is carved. `pin` is false where others use the same cores.
fn shape(
    found: &topology::NodeShape,
    plan: &SlotPlan,
    visible: &VisibleGpus,
    limits: CgroupLimits,
    pin: bool,
) -> (NodeShape, GpuEnv) {
    let reserved = |core: &&topology::Core| !core.pus.iter().any(|pu| plan.reserved_cores.contains(pu));
    let usable: Vec<&topology::Core> = found.cores.iter().filter(reserved).collect();
    // A container or a login node may be given a share of CPU time in place of CPUs: as many cores are offered as it keeps busy, and they are bound to
    // none, since others are on the same ones.
    let share = limits.cpus_milli.filter(|milli| {
        let cpus: usize = usable.iter().map(|core| core.pus.len()).sum();
        *milli < cpus as u64 * 1_000
    });
    let most = share.map_or(usable.len(), |milli| usable.len().min(milli.div_ceil(1_000) as usize));
    let count = plan.cores_override.map_or(most, |n| n as usize).max(1);
    let pinned = pin && share.is_none() && count <= usable.len();
    let cores = (0..count)
        .map(|n| Core { pus: if pinned { usable[n].pus.clone() } else { Vec::new() } })
        .collect::<Vec<_>>();
    let mut gpus: Vec<Gpu> = Vec::new();
    let mut env = GpuEnv::default();
    let pretended = plan.gpus_override.map(|count| (0..count).map(pretended_gpu).collect::<Vec<_>>());
    for (vendor, name, gpu) in visible.of(pretended.as_ref().unwrap_or(&found.gpus)) {
        let near = |gpu: &topology::Gpu| {
            (0..cores.len()).filter(|&n| cores[n].pus.iter().any(|pu| gpu.pus.contains(pu))).collect()
        };
        let model = gpu.map_or_else(|| format!("gpu {name}"), |gpu| gpu.model.clone());
        gpus.push(Gpu { name: model, near: gpu.map(near).unwrap_or_default() });
        env.0.push((vendor, name));
    }
    let memory_bytes = limits.memory_bytes.map_or(found.memory_bytes, |limit| limit.min(found.memory_bytes));
    (NodeShape { cores, gpus, memory_bytes, ..NodeShape::default() }, env)
}

/// For tests and odd machines: taken for NVIDIA's, near to no core.
fn pretended_gpu(index: u32) -> topology::Gpu {
    topology::Gpu {
        index,
        vendor: GpuVendor::Nvidia,
        model: format!("gpu{index}"),
        pci: String::new(),
        numa: None,
        pus: Vec::new(),
        memory_bytes: None,
    }
}

/// Every CPU of the affinity mask as a core of its own.
fn from_affinity() -> topology::NodeShape {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let cpus = (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    let core = |(index, cpu): (usize, usize)| topology::Core {
        index: index as u32,
        os_index: cpu as u32,
        package: 0,
        numa: None,
        l3: None,
        efficiency: 0,
        pus: vec![cpu as u32],
    };
    topology::NodeShape {
        packages: 1,
        cores: cpus.enumerate().map(core).collect(),
        ..topology::NodeShape::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: CgroupLimits = CgroupLimits { cpus_milli: None, memory_bytes: None };

    fn machine() -> topology::NodeShape {
        let core = |n: u32| topology::Core {
            index: n,
            os_index: n,
            package: 0,
            numa: None,
            l3: None,
            efficiency: 0,
            pus: vec![n, n + 64],
        };
        let gpu = |index: u32, pus: Vec<u32>| topology::Gpu {
            index,
            vendor: GpuVendor::Amd,
            model: "MI250X".into(),
            pci: String::new(),
            numa: None,
            pus,
            memory_bytes: None,
        };
        topology::NodeShape {
            packages: 1,
            memory_bytes: 9,
            numa: Vec::new(),
            cores: (0..4).map(core).collect(),
            gpus: vec![gpu(0, vec![2, 3]), gpu(1, vec![0, 1])],
        }
    }

    #[test]
    fn reserved_cores_are_left_out_and_gpus_know_their_cores() {
        let plan = SlotPlan { reserved_cores: vec![0], ..SlotPlan::default() };
        let (shape, env) = shape(&machine(), &plan, &VisibleGpus::default(), NONE, true);
        assert_eq!(shape.cores.iter().map(|c| c.pus[0]).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((&shape.gpus[0].near[..], &shape.gpus[1].near[..]), (&[1, 2][..], &[0][..]));
        assert_eq!(env.variables(&[1]), [("ROCR_VISIBLE_DEVICES", "1".to_string())]);
    }

    #[test]
    fn gpus_that_the_batch_system_did_not_give_are_not_offered() {
        let visible = VisibleGpus::read(|_| Some("1".into()));
        let (own, env) = shape(&machine(), &SlotPlan::default(), &visible, NONE, true);
        assert_eq!((own.gpus.len(), &own.gpus[0].near[..]), (1, &[0, 1][..]));
        assert_eq!(env.variables(&[0]), [("ROCR_VISIBLE_DEVICES", "1".to_string())]);
        // Also of those that are pretended.
        let plan = SlotPlan { gpus_override: Some(4), ..SlotPlan::default() };
        assert_eq!(shape(&machine(), &plan, &visible, NONE, true).0.gpus.len(), 1);
        assert_eq!(shape(&machine(), &plan, &VisibleGpus::default(), NONE, true).0.gpus.len(), 4);
    }

    #[test]
    fn more_slots_than_cores_are_not_bound() {
        let plan = |n| SlotPlan { cores_override: Some(n), ..SlotPlan::default() };
        assert!(
            shape(&machine(), &plan(5), &VisibleGpus::default(), NONE, true)
                .0
                .cores
                .iter()
                .all(|c| c.pus.is_empty())
        );
        assert!(
            shape(&machine(), &plan(4), &VisibleGpus::default(), NONE, true)
                .0
                .cores
                .iter()
                .all(|c| !c.pus.is_empty())
        );
        assert!(
            shape(&machine(), &plan(2), &VisibleGpus::default(), NONE, false)
                .0
                .cores
                .iter()
                .all(|c| c.pus.is_empty())
        );
        assert_eq!(shape(&machine(), &plan(0), &VisibleGpus::default(), NONE, true).0.cores.len(), 1);
    }

    #[test]
    fn a_share_of_the_machine_is_all_that_is_offered() {
        let within = |cpus_milli, memory_bytes, plan: &SlotPlan| {
            let limits = CgroupLimits { cpus_milli, memory_bytes };
            let (shape, _) = shape(&machine(), plan, &VisibleGpus::default(), limits, true);
            (shape.cores.len(), shape.cores.iter().all(|c| c.pus.is_empty()), shape.memory_bytes)
        };
        let any = SlotPlan::default();
        assert_eq!(within(Some(1_500), Some(5), &any), (2, true, 5));
        assert_eq!(within(Some(100), Some(50), &any), (1, true, 9));
        assert_eq!(within(Some(5_000), None, &any), (4, true, 9), "less than its eight hardware threads");
        assert_eq!(within(Some(8_000), None, &any), (4, false, 9), "all that there is");
        let three = SlotPlan { cores_override: Some(3), ..SlotPlan::default() };
        assert_eq!(within(Some(1_000), None, &three), (3, true, 9), "who says how many has the last word");
    }

    #[test]
    fn the_affinity_mask_is_enough_where_the_hardware_cannot_be_asked() {
        assert!(!from_affinity().cores.is_empty());
    }
}
