//! The broker's log and payload segments.
