//! The hardware of a node: asked from hwloc, as a plain [`NodeShape`], and carved into slots.
//!
//! The manager calls [`read_local`] once at start and [`carve`] on what it got. Only `hwloc.rs` knows hwloc; shape and
//! carving are pure and are tested on shapes of real supercomputers.

mod carve;
mod hwloc;
mod reader;
mod shape;

pub use carve::{CarveError, CarveRequest, Carving, SlotShape, carve};
pub use reader::{TopologyError, read_local, read_xml_file, read_xml_text};
pub use shape::{Core, Gpu, GpuVendor, NodeShape, NumaNode, format_cpu_list, parse_cpu_list};
