//! Whole nodes without sockets and files: one alone whose peers the test plays, or a few that hear each other.

#[path = "../support/archive_kit.rs"]
mod archive_kit;
#[path = "../support/frame_text.rs"]
mod frame_text;
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
#[path = "../support/reach.rs"]
mod reach;
#[path = "../support/snapshot_kit.rs"]
mod snapshot_kit;

mod archive_node;
mod backup_node;
mod flush_beside;
mod inspect_start;
mod read_replica;
mod sessions_elected;
mod sessions_leader;
mod snapshot_cut;
mod snapshot_node;
mod snapshot_retention;
mod snapshot_session;
mod snapshot_transfer_node;
mod state_checks;
