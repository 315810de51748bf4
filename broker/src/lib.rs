//! The broker's shell: store, HTTP API, links.
