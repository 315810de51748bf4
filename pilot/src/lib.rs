//! Shells of pilot and manager: workers, topology, output, spool.

pub mod topology;
