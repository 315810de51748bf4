//! How to start processes across the nodes of a block. Pure.
