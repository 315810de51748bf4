//! The relay's core between a broker, managers and a scheduler that are none.

mod payloads;
mod placement;
mod plan;
mod quarantine;
mod random;
mod recovery;
mod scaling;
mod world;
