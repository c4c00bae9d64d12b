//! How far the records reach that several directories hold together, each proved by the chain checksum.

#![allow(dead_code)]

use kvstore::disk::Disk;
use kvstore::ids::{Chain, ClusterId, Lsn};
use kvstore::wal::{archived_segments, read_archived, segment_name};

/// The last record, from the first one on without a gap.
pub fn reach(disks: &mut [&mut dyn Disk]) -> u64 {
    let (mut at, mut chain) = (Lsn::ZERO, Chain::ZERO);
    loop {
        let before = at;
        for disk in disks.iter_mut() {
            let firsts = archived_segments(*disk).expect("it can be listed");
            let Some(&first) = firsts.iter().rev().find(|first| **first <= at.next()) else { continue };
            let (name, known) = (segment_name(first), (at, chain));
            let cluster_id = cluster_of(*disk, &name);
            let to = Lsn(u64::MAX);
            // Where a log is still written, or was torn, it ends: how far it came is all that counts.
            let _end = read_archived(*disk, &name, cluster_id, known, to, &mut |record, _, here| {
                (at, chain) = (record.lsn, here);
                true
            });
        }
        if at == before {
            return at.0;
        }
    }
}

fn cluster_of(disk: &mut dyn Disk, name: &str) -> ClusterId {
    let file = disk.open(name).expect("it was listed");
    let mut id = [0; 16];
    disk.read_exact_at(file, 16, &mut id).expect("a segment has a header");
    disk.close(file);
    ClusterId(id)
}
