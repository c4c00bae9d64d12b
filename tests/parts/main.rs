//! What a node is made of, each part by itself: disks, the record of identity and term, histories, the keyspace; and
//! the simulator's search for an order.

#[path = "../support/mem_disk.rs"]
mod mem_disk;
#[path = "../sim/search.rs"]
mod search;

mod disk_mem;
mod disk_real;
mod history_match;
mod keyspace_growth;
mod keyspace_scan;
mod meta_crash;
mod meta_damage;
mod sim_search;
