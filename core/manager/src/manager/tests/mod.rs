//! The manager against a relay, processes and workers that are played.

mod any_order;
mod commands;
mod drain;
mod link;
mod rig;
mod workers;
