//! Tests that cross crates: simulation, end-to-end, house rules. The code that they share is here; the tests are in `tests/tests/`.

pub mod emulated;
pub mod notes;
pub mod ranks;
pub mod sim;
pub mod site;
pub mod slurm;
pub mod stand_ins;

use std::path::PathBuf;

/// The root of the checkout.
#[must_use]
pub fn repo_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
