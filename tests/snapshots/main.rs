//! Snapshot and backup files: their bytes, what damage and a crash make of them, what a scan may miss, how they travel.

#[path = "../support/backup_kit.rs"]
mod backup_kit;
#[path = "../support/listing.rs"]
mod listing;
#[path = "../support/mem_disk.rs"]
mod mem_disk;
#[path = "../support/snapshot_kit.rs"]
mod snapshot_kit;

mod backup_archive;
mod backup_format;
mod backup_restore;
mod crash;
mod damage;
mod format;
mod scan;
mod speed;
mod transfer;
