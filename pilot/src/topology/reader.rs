//! From hwloc's objects to a [`NodeShape`]. Called by the manager at its start, and on XML files by tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use pf_hwloc_sys as sys;

use super::hwloc::{HwlocError, Object, Source, Topology};
use super::shape::{Core, Gpu, GpuVendor, NodeShape, NumaNode, parse_cpu_list};

/// Why the hardware is not known.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// hwloc refused.
    #[error("read the topology: {0}")]
    Hwloc(String),
    /// An XML export of a format that the hwloc in this program does not read.
    #[error(
        "topology XML has format {found}, this program reads 1 and 2; export it again with lstopo --export-xml-flags v2"
    )]
    XmlFormat {
        /// The version that the file names.
        found: String,
    },
    /// No topology at all: hwloc would fall back to this machine without a word.
    #[error("topology XML is empty")]
    XmlEmpty,
    /// A file could not be read.
    #[error("read {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel's word on the allowed CPUs was not understood.
    #[error("no list of allowed CPUs in /proc/self/status")]
    Affinity,
    /// Nothing to run on.
    #[error("no usable core: the topology and the affinity mask of this process have no CPU in common")]
    NoCores,
}

impl From<HwlocError> for TopologyError {
    fn from(error: HwlocError) -> Self {
        Self::Hwloc(error.to_string())
    }
}

/// This machine, inside the cgroup and the affinity mask of this process.
pub fn read_local() -> Result<NodeShape, TopologyError> {
    let mut shape = describe(&Topology::load(Source::Local)?).restricted_to(&affinity()?);
    for gpu in &mut shape.gpus {
        if let Some(model) = driver_model(gpu) {
            gpu.model = model;
        }
    }
    if shape.cores.is_empty() { Err(TopologyError::NoCores) } else { Ok(shape) }
}

/// A machine from its XML export.
pub fn read_xml_file(path: &Path) -> Result<NodeShape, TopologyError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TopologyError::File { path: path.to_path_buf(), source })?;
    read_xml_text(&text)
}

/// A machine from the text of its XML export.
pub fn read_xml_text(text: &str) -> Result<NodeShape, TopologyError> {
    if !text.contains("<topology") {
        return Err(TopologyError::XmlEmpty);
    }
    let found = xml_format(text);
    if !matches!(found.split('.').next(), Some("1" | "2")) {
        return Err(TopologyError::XmlFormat { found });
    }
    let shape = describe(&Topology::load(Source::Xml(text))?);
    if shape.cores.is_empty() { Err(TopologyError::NoCores) } else { Ok(shape) }
}

/// The version in `<topology version="2.0">`; version 1 did not write one.
fn xml_format(text: &str) -> String {
    let tag =
        text.split_once("<topology").and_then(|(_, rest)| rest.split_once('>')).map_or("", |(tag, _)| tag);
    let version =
        tag.split_once("version=\"").and_then(|(_, rest)| rest.split_once('"')).map(|(version, _)| version);
    version.unwrap_or("1").to_string()
}

/// CPUs that the kernel lets this process use. Read as text, since the C call has a fixed size of mask.
fn affinity() -> Result<BTreeSet<u32>, TopologyError> {
    let path = Path::new("/proc/self/status");
    let status = std::fs::read_to_string(path)
        .map_err(|source| TopologyError::File { path: path.to_path_buf(), source })?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(parse_cpu_list).filter(|cpus| !cpus.is_empty()).ok_or(TopologyError::Affinity)
}

/// The name that NVIDIA's driver gives a GPU; hwloc knows it only where its NVML plugin runs.
fn driver_model(gpu: &Gpu) -> Option<String> {
    if gpu.vendor != GpuVendor::Nvidia {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/driver/nvidia/gpus/{}/information", gpu.pci)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Model:")).map(|model| model.trim().to_string())
}

fn describe(topology: &Topology) -> NodeShape {
    let numa = numa_nodes(topology);
    let cores = cores(topology, &numa);
    let packages: BTreeSet<u32> = cores.iter().map(|core| core.package).collect();
    let memory_bytes = numa
        .iter()
        .filter(|node| !is_gpu_memory(node) && node.kind != "NVM")
        .map(|node| node.memory_bytes)
        .sum();
    let gpus = gpus(topology, &numa);
    NodeShape { packages: packages.len() as u32, memory_bytes, numa, cores, gpus }
}

fn numa_nodes(topology: &Topology) -> Vec<NumaNode> {
    let mut nodes: Vec<NumaNode> = topology
        .at_depth(sys::HWLOC_TYPE_DEPTH_NUMANODE)
        .map(|object| NumaNode {
            os_index: object.os_index(),
            kind: object.subtype().unwrap_or("").to_string(),
            memory_bytes: object.local_memory(),
            pus: object.pus(),
        })
        .collect();
    nodes.sort_by_key(|node| node.os_index);
    nodes
}

/// Memory of a GPU that the kernel shows as a NUMA node, as on POWER9: named so, or near to no CPU.
fn is_gpu_memory(node: &NumaNode) -> bool {
    node.kind == "GPUMemory" || (node.kind.is_empty() && node.pus.is_empty())
}

/// The nearest plain memory of `pus`: of all nodes that are near to all of them, the one near to the fewest others.
fn nearest_numa(numa: &[NumaNode], pus: &[u32]) -> Option<u32> {
    let near = numa.iter().filter(|node| pus.iter().all(|pu| node.pus.binary_search(pu).is_ok()));
    near.min_by_key(|node| (!node.kind.is_empty() && node.kind != "DRAM", node.pus.len(), node.os_index))
        .map(|node| node.os_index)
}

fn cores(topology: &Topology, numa: &[NumaNode]) -> Vec<Core> {
    let describe = |(index, object): (usize, Object<'_>)| {
        let pus = object.pus();
        Core {
            index: index as u32,
            os_index: object.os_index(),
            package: object.inside(sys::HWLOC_OBJ_PACKAGE).map_or(0, |package| package.logical_index()),
            numa: nearest_numa(numa, &pus),
            l3: object.inside(sys::HWLOC_OBJ_L3CACHE).map(|cache| cache.logical_index()),
            efficiency: topology.efficiency(object),
            pus,
        }
    };
    let cores: Vec<Core> = topology.of_type(sys::HWLOC_OBJ_CORE).enumerate().map(describe).collect();
    if !cores.is_empty() {
        return cores;
    }
    // Some virtual machines show no cores; then each CPU is one.
    topology.of_type(sys::HWLOC_OBJ_PU).enumerate().map(describe).collect()
}

fn gpus(topology: &Topology, numa: &[NumaNode]) -> Vec<Gpu> {
    // By PCI address: one GPU shows as several OS devices (cuda, nvml, opencl, card, renderD).
    let mut found: BTreeMap<(u16, u8, u8, u8), Gpu> = BTreeMap::new();
    for object in topology.at_depth(sys::HWLOC_TYPE_DEPTH_PCI_DEVICE) {
        let Some(pci) = object.pci() else { continue };
        let devices: Vec<Object<'_>> =
            object.io_children().filter(|child| child.is(sys::HWLOC_OBJ_OS_DEVICE)).collect();
        let Some(vendor) = gpu_vendor(&pci, &devices) else { continue };
        let pus = object.ancestor_with_cpus().map(|near| near.pus()).unwrap_or_default();
        let gpu = Gpu {
            index: 0,
            vendor,
            model: gpu_model(&pci, object, &devices),
            pci: format!("{:04x}:{:02x}:{:02x}.{:x}", pci.domain, pci.bus, pci.dev, pci.func),
            numa: nearest_numa(numa, &pus),
            pus,
            memory_bytes: devices.iter().find_map(gpu_memory),
        };
        found.insert((pci.domain, pci.bus, pci.dev, pci.func), gpu);
    }
    let mut next: BTreeMap<GpuVendor, u32> = BTreeMap::new();
    found
        .into_values()
        .map(|mut gpu| {
            let index = next.entry(gpu.vendor).or_default();
            gpu.index = *index;
            *index += 1;
            gpu
        })
        .collect()
}

/// Whether a PCI device computes, and who made it. Management consoles (ASPEED, Matrox) and the small graphics inside
/// Intel's processors do not.
fn gpu_vendor(pci: &sys::hwloc_pcidev_attr, devices: &[Object<'_>]) -> Option<GpuVendor> {
    let vendor = match pci.vendor_id {
        0x10de => GpuVendor::Nvidia,
        0x1002 => GpuVendor::Amd,
        0x8086 => GpuVendor::Intel,
        _ => return None,
    };
    // VGA, 3D, other display, processing accelerator.
    let by_class = match pci.class_id {
        0x0300 => vendor != GpuVendor::Intel,
        0x0302 | 0x0380 | 0x1200 => true,
        _ => false,
    };
    let by_runtime = devices.iter().any(|device| {
        let name = device.name().unwrap_or("");
        ["cuda", "nvml", "rsmi", "ze"].iter().any(|runtime| name.starts_with(runtime))
    });
    (by_class || by_runtime).then_some(vendor)
}

fn gpu_model(pci: &sys::hwloc_pcidev_attr, object: Object<'_>, devices: &[Object<'_>]) -> String {
    let from_runtime = devices.iter().find_map(|device| device.info("GPUModel"));
    let named = from_runtime.or_else(|| object.info("PCIDevice")).or_else(|| object.name());
    let named = named.map(str::trim).filter(|name| !name.is_empty());
    named.map_or_else(|| format!("{:04x}:{:04x}", pci.vendor_id, pci.device_id), str::to_string)
}

/// Memory that a runtime reported, in KiB by CUDA's and ROCm's names.
fn gpu_memory(device: &Object<'_>) -> Option<u64> {
    let kib = ["CUDAGlobalMemorySize", "RSMIVRAMSize", "LevelZeroHBMSize"]
        .iter()
        .find_map(|name| device.info(name))?;
    kib.trim_end_matches(" KiB").trim().parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests;
