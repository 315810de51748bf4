//! The broker's shell over real sockets, with a relay that runs nothing.
#![expect(clippy::unwrap_used, reason = "an unwrap that fails is a failed test")]

mod common;
mod jobs;
mod security;
