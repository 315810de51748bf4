//! What the broker decides. Pure.
