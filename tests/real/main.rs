//! Real nodes under what happens to real machines: kills at any system call, links that fail, full file systems, writes
//! that are short, processes that stop.

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/kills.rs"]
mod kills;
#[path = "../support/mounts.rs"]
mod mounts;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/reach.rs"]
mod reach;
#[path = "../support/strace.rs"]
mod strace;
#[path = "../support/writers.rs"]
mod writers;

mod full_disk;
mod kills_anywhere;
mod kills_archive;
mod links;
mod short_writes;
mod stops;
