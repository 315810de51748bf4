//! The safe side of hwloc's C interface: loads a topology and walks its objects. Used by the reader only.

use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::ptr::NonNull;

use pf_hwloc_sys as sys;

/// Members of one set of CPUs that are read at most; more is a broken topology.
const SET_MEMBERS_MAX: usize = 65_536;

/// Why hwloc gave no topology, in the words of the step that failed.
#[derive(Debug, thiserror::Error)]
#[error("hwloc could not {0}")]
pub(super) struct HwlocError(pub(super) &'static str);

/// Where a topology comes from.
pub(super) enum Source<'a> {
    /// This machine.
    Local,
    /// An XML export.
    Xml(&'a str),
    /// hwloc's description language, for shapes without an export.
    #[cfg(test)]
    Synthetic(&'a str),
}

/// A loaded topology. Objects borrow from it.
pub(super) struct Topology(NonNull<sys::hwloc_topology>);

/// An object of a topology.
#[derive(Clone, Copy)]
pub(super) struct Object<'a>(&'a sys::hwloc_obj);

impl Drop for Topology {
    fn drop(&mut self) {
        // SAFETY: made by hwloc_topology_init, destroyed once; objects cannot outlive the borrow of self.
        unsafe { sys::hwloc_topology_destroy(self.0.as_ptr()) }
    }
}

impl Topology {
    /// Loads with PCI and OS devices.
    pub(super) fn load(source: Source<'_>) -> Result<Self, HwlocError> {
        // SAFETY: a plain question.
        if unsafe { sys::hwloc_get_api_version() } >> 16 != sys::ABI_MAJOR {
            return Err(HwlocError("be used: it is not version 2"));
        }
        let mut raw = std::ptr::null_mut();
        // SAFETY: hwloc writes one pointer to where it is told.
        let made = unsafe { sys::hwloc_topology_init(&raw mut raw) };
        let topology = NonNull::new(raw).filter(|_| made == 0).map(Self).ok_or(HwlocError("start"))?;
        let handle = topology.0.as_ptr();
        topology.choose(source)?;
        // SAFETY: the handle is initialised and not loaded yet.
        if unsafe { sys::hwloc_topology_set_io_types_filter(handle, sys::HWLOC_TYPE_FILTER_KEEP_IMPORTANT) }
            != 0
        {
            return Err(HwlocError("be asked for devices"));
        }
        // SAFETY: as before; loaded once.
        if unsafe { sys::hwloc_topology_load(handle) } != 0 {
            return Err(HwlocError("load the topology"));
        }
        Ok(topology)
    }

    fn choose(&self, source: Source<'_>) -> Result<(), HwlocError> {
        match source {
            Source::Local => Ok(()),
            Source::Xml(xml) => {
                let xml = CString::new(xml).map_err(|_| HwlocError("read XML with a zero byte"))?;
                let bytes = xml.as_bytes_with_nul().len();
                let size = c_int::try_from(bytes).map_err(|_| HwlocError("read XML of that size"))?;
                // SAFETY: hwloc copies `size` bytes, the last of which is the zero.
                match unsafe { sys::hwloc_topology_set_xmlbuffer(self.0.as_ptr(), xml.as_ptr(), size) } {
                    0 => Ok(()),
                    _ => Err(HwlocError("read the XML")),
                }
            }
            #[cfg(test)]
            Source::Synthetic(text) => {
                let text = CString::new(text).map_err(|_| HwlocError("read the description"))?;
                // SAFETY: hwloc parses the string during the call.
                match unsafe { sys::hwloc_topology_set_synthetic(self.0.as_ptr(), text.as_ptr()) } {
                    0 => Ok(()),
                    _ => Err(HwlocError("read the description")),
                }
            }
        }
    }

    /// Objects of a level, normal or virtual, in logical order.
    pub(super) fn at_depth(&self, depth: c_int) -> impl Iterator<Item = Object<'_>> {
        // SAFETY: loaded; an unknown depth has no objects.
        let count = unsafe { sys::hwloc_get_nbobjs_by_depth(self.0.as_ptr(), depth) };
        (0..count).filter_map(move |index| {
            // SAFETY: the object lives as long as the topology, which nobody changes.
            unsafe { sys::hwloc_get_obj_by_depth(self.0.as_ptr(), depth, index).as_ref() }.map(Object)
        })
    }

    /// Objects of a type that has one level. hwloc's own order.
    pub(super) fn of_type(&self, kind: c_int) -> impl Iterator<Item = Object<'_>> {
        // SAFETY: a plain question; a negative answer that is no virtual depth yields no objects.
        let depth = unsafe { sys::hwloc_get_type_depth(self.0.as_ptr(), kind) };
        self.at_depth(depth)
    }

    /// Rank of the kind of core that `object` is, 0 where all are alike.
    pub(super) fn efficiency(&self, object: Object<'_>) -> u32 {
        // SAFETY: the set belongs to an object of this topology.
        let kind = unsafe { sys::hwloc_cpukinds_get_by_cpuset(self.0.as_ptr(), object.0.cpuset, 0) };
        u32::try_from(kind).unwrap_or(0)
    }
}

impl<'a> Object<'a> {
    pub(super) fn is(&self, kind: c_int) -> bool {
        self.0.kind == kind
    }

    pub(super) fn os_index(&self) -> u32 {
        self.0.os_index
    }

    pub(super) fn logical_index(&self) -> u32 {
        self.0.logical_index
    }

    pub(super) fn name(&self) -> Option<&'a str> {
        text(self.0.name)
    }

    pub(super) fn subtype(&self) -> Option<&'a str> {
        text(self.0.subtype)
    }

    /// The value of the information `name`.
    pub(super) fn info(&self, name: &str) -> Option<&'a str> {
        (0..self.0.infos_count as usize).find_map(|index| {
            // SAFETY: hwloc keeps `infos_count` entries at `infos`.
            let info = unsafe { self.0.infos.add(index).as_ref() }?;
            (text(info.name) == Some(name)).then(|| text(info.value)).flatten()
        })
    }

    /// Memory of a NUMA node itself, bytes; 0 for other objects.
    pub(super) fn local_memory(&self) -> u64 {
        if self.0.depth != sys::HWLOC_TYPE_DEPTH_NUMANODE {
            return 0;
        }
        // SAFETY: the attribute of an object at this depth is that of a NUMA node.
        unsafe { self.0.attr.as_ref().map_or(0, |attr| attr.numanode.local_memory) }
    }

    /// Attributes of a PCI device; None for other objects.
    pub(super) fn pci(&self) -> Option<sys::hwloc_pcidev_attr> {
        if !self.is(sys::HWLOC_OBJ_PCI_DEVICE) {
            return None;
        }
        // SAFETY: the attribute of an object of this type is that of a PCI device.
        unsafe { self.0.attr.as_ref().map(|attr| attr.pcidev) }
    }

    /// I/O objects right below.
    pub(super) fn io_children(&self) -> impl Iterator<Item = Object<'a>> + use<'a> {
        // SAFETY: siblings form a list that ends in null and live as long as the topology.
        std::iter::successors(unsafe { self.0.io_first_child.as_ref() }, |child| unsafe {
            child.next_sibling.as_ref()
        })
        .map(Object)
    }

    /// The nearest object above that has CPUs.
    pub(super) fn ancestor_with_cpus(&self) -> Option<Object<'a>> {
        // SAFETY: parents form a chain that ends in null and live as long as the topology.
        std::iter::successors(unsafe { self.0.parent.as_ref() }, |parent| unsafe { parent.parent.as_ref() })
            .find(|parent| !parent.cpuset.is_null())
            .map(Object)
    }

    /// The object of type `kind` that this one is in, if it is in one.
    pub(super) fn inside(&self, kind: c_int) -> Option<Object<'a>> {
        // SAFETY: as above.
        std::iter::successors(Some(self.0), |object| unsafe { object.parent.as_ref() })
            .find(|object| object.kind == kind)
            .map(Object)
    }

    /// CPU numbers of the object, ascending.
    pub(super) fn pus(&self) -> Vec<u32> {
        if self.0.cpuset.is_null() {
            return Vec::new();
        }
        let mut last: c_int = -1;
        std::iter::from_fn(|| {
            // SAFETY: the set lives as long as the object; hwloc answers -1 past the last member.
            last = unsafe { sys::hwloc_bitmap_next(self.0.cpuset, last) };
            c_uint::try_from(last).ok()
        })
        .take(SET_MEMBERS_MAX)
        .collect()
    }
}

/// A string of hwloc's, if there is one and it is UTF-8.
fn text<'a>(raw: *const c_char) -> Option<&'a str> {
    if raw.is_null() {
        return None;
    }
    // SAFETY: hwloc's strings end in a zero and live as long as the topology that the caller's objects borrow from.
    unsafe { CStr::from_ptr(raw) }.to_str().ok()
}
