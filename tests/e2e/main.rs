//! Real nodes as processes on the loopback, driven as their users drive them. What counts a node's system calls, or
//! changes the limits of the process that starts it, is a program of its own: `syscalls*.rs`, `faults_process.rs`.

#[path = "../support/cluster.rs"]
mod cluster;
#[path = "../support/elected.rs"]
mod elected;
#[path = "../support/listing.rs"]
mod listing;
#[path = "../support/numbered.rs"]
mod numbered;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/strace.rs"]
mod strace;
#[path = "../support/writers.rs"]
mod writers;

mod archive;
mod backup;
mod backup_kills;
mod clients;
mod crash;
mod disk;
mod divergence;
mod elections;
mod endpoints;
mod followers;
mod handover;
mod inspect;
mod members;
mod memory;
mod peers;
mod process;
mod progress;
mod promotion;
mod replication;
mod sessions;
mod snapshot;
mod strangers;
mod transfer;
mod until;
