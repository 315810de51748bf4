//! What manager and pilot decide. Pure.
