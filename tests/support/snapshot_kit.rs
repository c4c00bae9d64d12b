//! What the tests of snapshots share: what one begins with, and ways to write and read one.

#![allow(dead_code)]

use kvstore::disk::Disk;
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::replication::members::Membership;
use kvstore::snapshot::{
    Finished, ReadError, SnapshotError, SnapshotId, SnapshotInfo, SnapshotReader, SnapshotWriter, Start,
};

use super::mem_disk::MemDisk;

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
pub const MAKER: NodeId = NodeId([0xa7; 16]);

pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

pub fn history() -> TermHistory {
    let start = |start: u32, first_lsn: u64| TermStart {
        term: Term { promotion: 1, start },
        leader: NodeId([start as u8; 16]),
        first_lsn: Lsn(first_lsn),
        chain: Chain(first_lsn as u32 * 3),
    };
    TermHistory::from_starts(vec![start(2, 1), start(4, 9)]).expect("they rise")
}

pub fn start_at(s: u64) -> Start {
    let peers = vec!["127.0.0.1:9002".to_owned(), "[::1]:9003".to_owned()];
    let chain = Chain(0xdead_beef);
    Start {
        cluster_id: CLUSTER,
        maker: MAKER,
        s: Lsn(s),
        chain,
        history: history(),
        peers,
        members: Membership::default(),
    }
}

pub fn id(s: u64, e: u64) -> SnapshotId {
    SnapshotId { s: Lsn(s), e: Lsn(e) }
}

/// Entries of `value_size` bytes of value each.
pub fn entries(count: usize, value_size: usize) -> Entries {
    (0..count).map(|number| (format!("key{number}").into_bytes(), vec![number as u8; value_size])).collect()
}

/// Writes a snapshot as the node does; after an error nothing of it is left open.
pub fn write(
    disk: &mut dyn Disk,
    entries: &Entries,
    estimate: u64,
    (s, e): (u64, u64),
) -> Result<Finished, SnapshotError> {
    let mut writer = SnapshotWriter::begin(disk, estimate, start_at(s))?;
    for (key, value) in entries {
        writer.add(key, value);
        if writer.is_full()
            && let Err(error) = writer.write_some(disk)
        {
            writer.abandon(disk);
            return Err(error);
        }
    }
    writer.finish(disk, Lsn(e))
}

pub fn published(disk: &MemDisk, entries: &Entries, lsns: (u64, u64)) -> SnapshotInfo {
    let mut disk = disk.clone();
    let finished = write(&mut disk, entries, 4096, lsns).expect("the disk is sound");
    finished.publish(&mut disk).expect("the disk is sound")
}

pub fn read(disk: &mut dyn Disk, name: &str) -> Result<Entries, ReadError> {
    let mut reader = SnapshotReader::open(disk, name, Some(CLUSTER))?;
    let mut entries = Entries::new();
    let result = loop {
        match reader.next_block(disk) {
            Ok(Some(block)) => {
                let count = block.entries().count();
                assert_eq!(count, block.entry_count());
                entries.extend(block.entries().map(|(key, value)| (key.to_vec(), value.to_vec())));
            }
            Ok(None) => break Ok(entries),
            Err(error) => break Err(error),
        }
    };
    reader.close(disk);
    result
}
