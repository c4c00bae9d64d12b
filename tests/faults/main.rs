//! Faults of the catalogue (`tests/FAULTS.md`) that need no process: disks, links and clients are the test's.

#[path = "../support/frame_text.rs"]
mod frame_text;
#[path = "../support/leader_log.rs"]
mod leader_log;
#[path = "../support/logs.rs"]
mod logs;
#[path = "../support/lone_node.rs"]
mod lone_node;
#[path = "../support/mem_disk.rs"]
mod mem_disk;
#[path = "../support/mini_cluster.rs"]
mod mini_cluster;
#[path = "../support/node_io.rs"]
mod node_io;

mod clients;
mod cluster;
mod disk;
mod keyspace;
mod peers;
mod promises;
mod repair;
mod sessions;
mod snapshots;
