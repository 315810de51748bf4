//! The broker against a played disk, played clients and a played relay: plain inputs, and what comes of them.

mod cancel;
mod golden;
mod jobs;
mod outcomes;
mod payloads;
mod recovery;
mod relays;
mod streams;
mod world;
