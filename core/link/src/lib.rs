//! The session machine at both ends of every link. Pure.
