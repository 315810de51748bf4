//! Every named maximum of the launchers, with its reason.

/// Nodes of one block: a node's number travels as 16 bits.
pub const NODES_MAX: usize = 65_535;

/// A list of nodes as a scheduler writes it, bytes: 65,535 names of 60 characters, one line for each of 16 slots, would be more; no machine has that.
pub const NODE_LIST_BYTES_MAX: usize = 16 << 20;

/// Digits of a number in a node's name: a count of nodes that needs more cannot be.
pub(crate) const NODE_DIGITS_MAX: usize = 18;
