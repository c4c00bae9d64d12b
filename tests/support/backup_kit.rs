//! A backup as a node would send it, made by hand: a snapshot S 20, E 25, and records up to LSN 30.

#![allow(dead_code)]

use kvstore::backup::{TailHeader, TailWriter};
use kvstore::disk::Disk;
use kvstore::ids::{Chain, Lsn};
use kvstore::snapshot::SnapshotInfo;
use kvstore::wire::{Effect, Record};

use super::mem_disk::MemDisk;
use super::snapshot_kit::{CLUSTER, entries, published};

pub const S: u64 = 20;
pub const E: u64 = 25;
pub const LAST: u64 = 30;
/// Entries of the snapshot.
pub const ENTRIES: usize = 40;

/// The snapshot's bytes, and what it says of itself.
pub fn snapshot() -> (Vec<u8>, SnapshotInfo) {
    let mut disk = MemDisk::new();
    let info = published(&disk, &entries(ENTRIES, 30), (S, E));
    let file = disk.open(&info.name).unwrap();
    let mut bytes = vec![0; info.bytes as usize];
    disk.read_exact_at(file, 0, &mut bytes).unwrap();
    (bytes, info)
}

/// The key that the record with this LSN sets, and its value.
pub fn pair(lsn: u64) -> (Vec<u8>, Vec<u8>) {
    (format!("record{}", lsn % 3).into_bytes(), lsn.to_string().into_bytes())
}

/// The tail up to `last`.
pub fn tail(info: &SnapshotInfo, last: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let header = TailHeader {
        cluster_id: CLUSTER,
        s: info.id.s,
        chain: info.chain,
        last: Lsn(last),
        snapshot_crc: info.crc,
    };
    let mut writer = TailWriter::begin(header, &mut out);
    while let Some(lsn) = writer.next() {
        let (key, value) = pair(lsn.0);
        writer.add(&Record { lsn, effect: Effect::Put { key: &key, value: &value } }, &mut out);
    }
    writer.finish(&mut out);
    out
}

/// The whole file, and where its tail begins.
pub fn backup() -> (Vec<u8>, usize) {
    let (mut bytes, info) = snapshot();
    let at = bytes.len();
    bytes.extend_from_slice(&tail(&info, LAST));
    (bytes, at)
}

/// The chain checksum behind the record `last`.
pub fn chain_at(info: &SnapshotInfo, last: u64) -> Chain {
    (info.id.s.0 + 1..=last).fold(info.chain, |chain, lsn| {
        let (key, value) = pair(lsn);
        let mut bytes = Vec::new();
        Record { lsn: Lsn(lsn), effect: Effect::Put { key: &key, value: &value } }.encode(&mut bytes);
        chain.extend(&bytes)
    })
}
