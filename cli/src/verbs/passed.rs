//! `pilot` and `manager`: processes of a block, whose code is in their own crate.

use crate::exit::Exit;
use std::ffi::OsString;

/// `pf pilot`.
pub fn pilot(_args: &[OsString]) -> Exit {
    Exit::Internal
}
/// `pf manager`.
pub fn manager(_args: &[OsString]) -> Exit {
    Exit::Internal
}
