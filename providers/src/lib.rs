//! How to talk to batch schedulers. Pure.
