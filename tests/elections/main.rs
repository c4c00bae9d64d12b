//! Clusters that elect their leader: the rules alone against a model, and what a node makes of them. With the feature
//! `sabotage` each rule is broken as well, and must be caught.

#[path = "../support/election/mod.rs"]
mod election;
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

mod apply_committed;
mod handover;
mod leader;
mod members;
mod model;
mod node;
mod properties;
mod reads;
