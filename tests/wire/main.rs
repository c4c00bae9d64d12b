//! Bytes and messages: what is encoded, decoded, fenced and refused, and who may send what.

#[path = "../fuzz/checks/frames.rs"]
mod check_frames;
#[path = "../fuzz/checks/messages.rs"]
mod check_messages;
#[path = "../fuzz/checks/wal.rs"]
mod check_wal;
#[path = "../support/lone_node.rs"]
mod lone_node;
#[path = "../support/node_io.rs"]
mod node_io;

mod authority;
mod frames;
mod fuzz_corpus;
mod messages;

// The fuzz targets are built with one file of checks each, so that file brings the disk.
use check_wal::mem_disk;
