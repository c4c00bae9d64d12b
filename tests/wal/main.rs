//! The log over a disk in memory: what it writes, what a crash or damage leaves of it, and where it may be cut.

#[path = "../support/log_start.rs"]
mod log_start;
#[path = "../support/mem_disk.rs"]
mod mem_disk;
#[path = "../support/wal_kit.rs"]
mod wal_kit;

mod append;
mod crash;
mod cut;
mod damage;
mod format;
mod install;
mod model;
mod one_call;
mod remove;
mod start;
mod zeros;
