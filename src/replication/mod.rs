//! Replication as pure state: no sockets, files, clocks, threads or randomness except as arguments.

pub mod history;
