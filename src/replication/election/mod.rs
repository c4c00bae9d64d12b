//! Electing a leader.

pub mod ballot;
