//! The part of hwloc's C interface that the topology reader needs, linked statically; facts from `hwloc.h` of 2.9.
//!
//! Used by `pilot/src/topology/hwloc.rs` only, which is the safe side. Why not a published crate: `docs/decisions/0002-hwloc.md`.
#![expect(missing_docs, reason = "hwloc.h is the documentation")]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_ushort, c_void};

mod absent;

/// The ABI that the structures below are for: 2.x.
pub const ABI_MAJOR: c_uint = 2;

// Types of objects.
pub const HWLOC_OBJ_PACKAGE: c_int = 1;
pub const HWLOC_OBJ_CORE: c_int = 2;
pub const HWLOC_OBJ_PU: c_int = 3;
pub const HWLOC_OBJ_L3CACHE: c_int = 6;

// Virtual depths of objects that are beside the tree of CPUs.
pub const HWLOC_TYPE_DEPTH_NUMANODE: c_int = -3;
pub const HWLOC_TYPE_DEPTH_PCI_DEVICE: c_int = -5;

// Types of I/O objects and how to keep them.
pub const HWLOC_OBJ_PCI_DEVICE: c_int = 15;
pub const HWLOC_OBJ_OS_DEVICE: c_int = 16;
pub const HWLOC_TYPE_FILTER_KEEP_IMPORTANT: c_int = 3;

/// A topology; only hwloc looks inside.
#[repr(C)]
pub struct hwloc_topology {
    opaque: [u8; 0],
}

/// A set of CPUs or NUMA nodes; only hwloc looks inside.
#[repr(C)]
pub struct hwloc_bitmap {
    opaque: [u8; 0],
}

/// A name and a value.
#[repr(C)]
pub struct hwloc_info {
    pub name: *mut c_char,
    pub value: *mut c_char,
}

/// Attributes of a PCI device: the first member of the union of attributes that we read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hwloc_pcidev_attr {
    pub domain: c_ushort,
    pub bus: u8,
    pub dev: u8,
    pub func: u8,
    pub class_id: c_ushort,
    pub vendor_id: c_ushort,
    pub device_id: c_ushort,
    pub subvendor_id: c_ushort,
    pub subdevice_id: c_ushort,
    pub revision: u8,
    pub linkspeed: f32,
}

/// Attributes of a NUMA node.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct hwloc_numanode_attr {
    pub local_memory: u64,
    pub page_types_len: c_uint,
    pub page_types: *mut c_void,
}

/// Attributes by type of object.
#[repr(C)]
pub union hwloc_obj_attr {
    pub numanode: hwloc_numanode_attr,
    pub pcidev: hwloc_pcidev_attr,
}

/// An object of a topology.
#[repr(C)]
pub struct hwloc_obj {
    pub kind: c_int,
    pub subtype: *mut c_char,
    pub os_index: c_uint,
    pub name: *mut c_char,
    pub total_memory: u64,
    pub attr: *mut hwloc_obj_attr,
    pub depth: c_int,
    pub logical_index: c_uint,
    pub next_cousin: *mut hwloc_obj,
    pub prev_cousin: *mut hwloc_obj,
    pub parent: *mut hwloc_obj,
    pub sibling_rank: c_uint,
    pub next_sibling: *mut hwloc_obj,
    pub prev_sibling: *mut hwloc_obj,
    pub arity: c_uint,
    pub children: *mut *mut hwloc_obj,
    pub first_child: *mut hwloc_obj,
    pub last_child: *mut hwloc_obj,
    pub symmetric_subtree: c_int,
    pub memory_arity: c_uint,
    pub memory_first_child: *mut hwloc_obj,
    pub io_arity: c_uint,
    pub io_first_child: *mut hwloc_obj,
    pub misc_arity: c_uint,
    pub misc_first_child: *mut hwloc_obj,
    pub cpuset: *mut hwloc_bitmap,
    pub complete_cpuset: *mut hwloc_bitmap,
    pub nodeset: *mut hwloc_bitmap,
    pub complete_nodeset: *mut hwloc_bitmap,
    pub infos: *mut hwloc_info,
    pub infos_count: c_uint,
    pub userdata: *mut c_void,
    pub gp_index: u64,
}

unsafe extern "C" {
    pub fn hwloc_get_api_version() -> c_uint;

    pub fn hwloc_topology_init(topology: *mut *mut hwloc_topology) -> c_int;
    pub fn hwloc_topology_destroy(topology: *mut hwloc_topology);
    pub fn hwloc_topology_load(topology: *mut hwloc_topology) -> c_int;
    pub fn hwloc_topology_set_xmlbuffer(
        topology: *mut hwloc_topology,
        xml: *const c_char,
        size: c_int,
    ) -> c_int;
    pub fn hwloc_topology_set_synthetic(topology: *mut hwloc_topology, description: *const c_char) -> c_int;
    pub fn hwloc_topology_set_io_types_filter(topology: *mut hwloc_topology, filter: c_int) -> c_int;

    pub fn hwloc_get_type_depth(topology: *mut hwloc_topology, kind: c_int) -> c_int;
    pub fn hwloc_get_nbobjs_by_depth(topology: *mut hwloc_topology, depth: c_int) -> c_uint;
    pub fn hwloc_get_obj_by_depth(
        topology: *mut hwloc_topology,
        depth: c_int,
        index: c_uint,
    ) -> *mut hwloc_obj;

    /// The next member after `previous`; -1 starts and -1 ends.
    pub fn hwloc_bitmap_next(bitmap: *const hwloc_bitmap, previous: c_int) -> c_int;

    /// The kind of core that `cpuset` belongs to, or -1.
    pub fn hwloc_cpukinds_get_by_cpuset(
        topology: *mut hwloc_topology,
        cpuset: *const hwloc_bitmap,
        flags: c_ulong,
    ) -> c_int;
}
