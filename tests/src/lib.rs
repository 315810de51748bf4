//! Tests that cross crates: simulation, end-to-end, house rules.
