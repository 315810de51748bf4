//! The binary pf.
