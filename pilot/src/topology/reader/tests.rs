//! The reader on shapes of real machines. Their files are not part of the project: PF_TOPOLOGIES names their folder.

use std::collections::BTreeSet;

use super::*;
use crate::topology::{CarveRequest, carve, format_cpu_list};

/// The machine of `file`, or None, said aloud, when there is no folder of topologies.
fn machine(file: &str) -> Option<NodeShape> {
    let Some(folder) = std::env::var_os("PF_TOPOLOGIES") else {
        eprintln!("SKIPPED: PF_TOPOLOGIES is not set, {file} was not read");
        return None;
    };
    let shape = read_xml_file(&PathBuf::from(folder).join(file)).unwrap();
    assert_consistent(&shape);
    Some(shape)
}

fn synthetic(description: &str) -> NodeShape {
    let shape = describe(&Topology::load(Source::Synthetic(description)).unwrap());
    assert_consistent(&shape);
    shape
}

/// What holds for every machine.
fn assert_consistent(shape: &NodeShape) {
    let all: BTreeSet<u32> = shape.cores.iter().flat_map(|core| core.pus.iter().copied()).collect();
    assert_eq!(all.len(), shape.threads(), "no thread belongs to two cores");
    assert!(shape.cores.iter().enumerate().all(|(position, core)| core.index as usize == position));
    assert!(shape.cores.iter().any(|core| core.numa.is_some()));
    assert!(shape.gpus.iter().all(|gpu| gpu.numa.is_some() && gpu.pus.iter().all(|pu| all.contains(pu))));
    let whole = CarveRequest { cores_per_slot: 1, gpus_per_slot: 0, reserved_cores: 0, slots_max: None };
    assert_eq!(carve(shape, whole).unwrap().slots.len(), shape.cores.len());
}

/// (packages, cores, threads, NUMA nodes, GPUs)
fn counts(shape: &NodeShape) -> (u32, usize, usize, usize, usize) {
    (shape.packages, shape.cores.len(), shape.threads(), shape.numa.len(), shape.gpus.len())
}

fn homes(shape: &NodeShape) -> Vec<u32> {
    shape.gpus.iter().filter_map(|gpu| gpu.numa).collect()
}

fn list(pus: &[u32]) -> String {
    format_cpu_list(&pus.iter().copied().collect())
}

#[test]
fn this_machine_is_read_inside_the_affinity_mask() {
    let shape = read_local().unwrap();
    let allowed = affinity().unwrap();
    assert!(!shape.cores.is_empty() && shape.memory_bytes > 0);
    assert!(shape.cores.iter().all(|core| core.pus.iter().all(|pu| allowed.contains(pu))));
}

#[test]
fn shapes_without_an_export_are_read_too() {
    // A Perlmutter GPU node, and a node of Theta, which has no last-level cache.
    let shape = synthetic("pack:1 numa:4 l3:2 core:8 pu:2");
    assert_eq!(counts(&shape), (1, 64, 128, 4, 0));
    assert_eq!((shape.cores[8].l3, shape.cores[63].numa), (Some(1), Some(3)));
    assert_eq!(counts(&synthetic("pack:1 core:64 pu:4")), (1, 64, 256, 1, 0));
    assert_eq!(synthetic("pack:1 core:64 pu:4").cores[0].l3, None);
    // A machine that shows no cores.
    assert_eq!(counts(&synthetic("pu:4")).1, 4);
}

#[test]
fn a_frontier_class_node_gives_each_gpu_the_cores_of_its_own_cache() {
    let Some(shape) = machine("tioga-ex235a-epyc7a53-8gcd.xml") else { return };
    assert_eq!(counts(&shape), (1, 64, 128, 4, 8));
    assert_eq!(homes(&shape), [3, 3, 1, 1, 0, 0, 2, 2]);
    assert_eq!(
        (shape.gpus[0].vendor, list(&shape.gpus[0].pus)),
        (GpuVendor::Amd, "48-55,112-119".to_string())
    );
    assert_eq!(shape.cores[1].pus, [1, 65]);
    // The site reserves the first core of each cache.
    let ask = CarveRequest { cores_per_slot: 7, gpus_per_slot: 1, reserved_cores: 8, slots_max: None };
    let carving = carve(&shape, ask).unwrap();
    assert_eq!(carving.reserved, [0, 8, 16, 24, 32, 40, 48, 56]);
    let slots: Vec<(u32, String)> =
        carving.slots.iter().map(|slot| (slot.gpus[0], list(&slot.pus))).collect();
    assert_eq!(slots[0], (0, "49-55,113-119".to_string()));
    assert_eq!(slots[4], (4, "1-7,65-71".to_string()));
    assert_eq!(slots[7], (7, "41-47,105-111".to_string()));
}

#[test]
fn a_power9_node_has_holes_in_its_numbers() {
    let Some(shape) = machine("lassen-power9-4v100.xml") else { return };
    assert_eq!(counts(&shape), (2, 40, 160, 2, 4));
    assert_eq!((shape.numa[0].os_index, shape.numa[1].os_index), (0, 8));
    assert_eq!(
        (shape.cores[0].pus.clone(), list(&shape.numa[1].pus)),
        (vec![8, 9, 10, 11], "96-175".to_string())
    );
    assert_eq!(homes(&shape), [0, 0, 8, 8]);
    assert_eq!(shape.gpus[0].model, "Tesla V100-SXM2-16GB");
}

#[test]
fn memory_of_gpus_is_no_memory_of_the_node() {
    let Some(shape) = machine("sierra-power9-4v100-gpunuma-v1.xml") else { return };
    assert_eq!(counts(&shape), (2, 44, 176, 6, 4));
    assert_eq!(shape.memory_bytes >> 30, 255);
    let Some(shape) = machine("power9-v100numa-sysfs-export.xml") else { return };
    assert_eq!((shape.numa.len(), shape.memory_bytes >> 30), (8, 251));
}

#[test]
fn gpus_are_found_by_pci_class_where_no_runtime_told_of_them() {
    let Some(shape) = machine("coral-ea-power8-4p100-v1.xml") else { return };
    assert_eq!(counts(&shape), (2, 20, 160, 2, 4));
    assert_eq!((shape.gpus[0].model.as_str(), shape.gpus[3].pci.as_str()), ("10de:15f9", "0007:01:00.0"));
    let Some(shape) = machine("tuolumne-mi300a-spx.xml") else { return };
    assert_eq!((counts(&shape), homes(&shape)), ((4, 96, 192, 4, 4), vec![0, 1, 2, 3]));
}

#[test]
fn gpu_order_is_not_numa_order() {
    let Some(shape) = machine("ipa-spr8480-4h100-snc4.xml") else { return };
    assert_eq!((counts(&shape), homes(&shape)), ((2, 112, 224, 8, 4), vec![3, 1, 7, 5]));
    let ask = CarveRequest { cores_per_slot: 28, gpus_per_slot: 1, reserved_cores: 0, slots_max: None };
    for (slot, gpu) in carve(&shape, ask).unwrap().slots.iter().zip(&shape.gpus) {
        // All of its own NUMA node, and the rest from the same package.
        assert!(gpu.pus.iter().all(|pu| slot.pus.contains(pu)), "{}", gpu.pci);
        let packages: BTreeSet<u32> =
            slot.cores.iter().map(|core| shape.cores[*core as usize].package).collect();
        assert_eq!(packages.len(), 1);
    }
}

#[test]
fn many_gpus_few_cores_and_gpus_of_two_makers() {
    let Some(shape) = machine("dgx2-16v100.xml") else { return };
    assert_eq!(counts(&shape), (2, 4, 4, 2, 16));
    let Some(shape) = machine("aws-g4dn-metal-8t4.xml") else { return };
    assert_eq!((counts(&shape), homes(&shape)), ((2, 48, 96, 2, 8), vec![0, 0, 0, 0, 1, 1, 1, 1]));
    let Some(shape) = machine("threadripper-nvidia+amd-v1.xml") else { return };
    let gpus: Vec<(GpuVendor, u32)> = shape.gpus.iter().map(|gpu| (gpu.vendor, gpu.index)).collect();
    assert_eq!(gpus, [(GpuVendor::Nvidia, 0), (GpuVendor::Amd, 0)]);
    let homeless = shape.cores.iter().filter(|core| core.numa.is_none()).count();
    assert_eq!(homeless, 16, "two of its dies have no memory of their own");
}

#[test]
fn consoles_are_no_gpus_and_fast_memory_is_no_home() {
    let Some(shape) = machine("knl7250-quad-cache-v1.xml") else { return };
    assert_eq!(counts(&shape), (1, 68, 272, 1, 0));
    assert_eq!(shape.cores[0].pus, [0, 68, 136, 204]);
    let Some(shape) = machine("knl7250-snc4-flat-v1.xml") else { return };
    assert_eq!((counts(&shape), shape.numa[4].kind.as_str()), ((1, 68, 272, 8, 0), "MCDRAM"));
    assert!(shape.cores.iter().all(|core| core.numa < Some(4)));
}

#[test]
fn hybrid_cores_are_ranked_and_other_memories_read() {
    let Some(shape) = machine("dgx-spark-gb10-export.xml") else { return };
    let ranks: BTreeSet<u32> = shape.cores.iter().map(|core| core.efficiency).collect();
    assert_eq!((counts(&shape), ranks.len()), ((1, 20, 20, 1, 0), 5));
    let Some(shape) = machine("fake-hetero-dram-hbm-nvm-export.xml") else { return };
    assert_eq!(counts(&shape), (1, 6, 6, 7, 0));
    let Some(shape) = machine("cascadelake-snc2-memcache-2lm.xml") else { return };
    assert_eq!(counts(&shape), (2, 40, 80, 4, 0));
}

#[test]
fn what_is_no_topology_is_an_error_that_says_so() {
    assert!(matches!(read_xml_text(""), Err(TopologyError::XmlEmpty)));
    assert!(matches!(read_xml_text("<html/>"), Err(TopologyError::XmlEmpty)));
    let error = read_xml_text(r#"<?xml version="1.0"?><topology version="3.0"></topology>"#).unwrap_err();
    assert!(error.to_string().starts_with("topology XML has format 3.0"), "{error}");
    assert!(matches!(read_xml_text("<topology"), Err(TopologyError::Hwloc(_))));
    let error = read_xml_file(Path::new("/nowhere/node.xml")).unwrap_err();
    assert!(error.to_string().starts_with("read /nowhere/node.xml"), "{error}");
}

#[test]
fn an_export_cut_anywhere_is_read_or_refused() {
    let Some(folder) = std::env::var_os("PF_TOPOLOGIES") else { return };
    let text = std::fs::read_to_string(PathBuf::from(folder).join("tuolumne-mi300a-spx.xml")).unwrap();
    for end in (0..text.len()).step_by(text.len() / 64) {
        let _ = read_xml_text(text.get(..end).unwrap_or(""));
    }
}
