//! Archives as cuts leave them: a copy of a segment may hold records that its node has cut off since.

use std::fs;
use std::path::Path;

use kvstore::backup::{Plan, restore};
use kvstore::disk::{RealDisk, ViewedDisk};
use kvstore::ids::{Chain, Lsn};
use kvstore::wal::{Base, Durability, Identity, Wal, WalConfig, look_at_segments, segment_name};
use kvstore::wire::{Effect, Record};

use crate::backup_kit::*;
use crate::snapshot_kit::CLUSTER;

const SEGMENT_BYTES: u64 = 64 << 10;
/// From here on the two logs differ.
const PARTS_AT: u64 = 31;

/// A log behind the snapshot, up to `last`, the values from [`PARTS_AT`] on being these. Returns its last chain
/// checksum.
fn log(dir: &Path, last: u64, value: &[u8]) -> Chain {
    let (_, info) = snapshot();
    let mut disk = RealDisk::open(dir).unwrap();
    let (s, chain) = (info.id.s, info.chain);
    let identity =
        Identity { cluster_id: CLUSTER, generation: 1, cut_lsn: Lsn::ZERO, base_lsn: s, base_chain: chain };
    let base = Base { lsn: s, chain, history: info.history, durable_lsn: s };
    let config = WalConfig { segment_bytes: SEGMENT_BYTES, durability: Durability::Fsync };
    let mut wal = Wal::open(&mut disk, identity, &base, 5, config).unwrap().wal;
    for lsn in s.0 + 1..=last {
        let (key, small) = pair(lsn);
        let value = if lsn < PARTS_AT { &small[..] } else { value };
        let record = Record { lsn: Lsn(lsn), effect: Effect::Put { key: &key, value } };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        wal.reserve(&mut disk, bytes.len()).unwrap();
        wal.append(&bytes, &record);
    }
    wal.write_mark(&mut disk, Lsn(last)).unwrap();
    wal.last_chain()
}

#[test]
fn where_the_next_segment_begins_a_copy_that_goes_on_behind_it_counts_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // One segment with all of it; and, of the log after the cut, a second segment, because its value needs the room.
    let cut_off = log(&at("before"), 40, b"cut off since");
    let counts = log(&at("after"), PARTS_AT, &vec![1; SEGMENT_BYTES as usize]);
    let (first, second) = (segment_name(Lsn(S + 1)), segment_name(Lsn(PARTS_AT)));
    fs::create_dir(at("archive")).unwrap();
    fs::copy(at("before").join(&first), at("archive").join(&first)).unwrap();
    fs::copy(at("after").join(&second), at("archive").join(&second)).unwrap();
    // The backup ends before the logs part: from there on the archive decides.
    let (bytes, info) = snapshot();
    fs::write(at("backup"), [&bytes[..], &tail(&info, E)].concat()).unwrap();
    let plan = Plan {
        file: at("backup"),
        data_dir: at("data"),
        until: Some(Lsn(PARTS_AT)),
        archives: vec![at("archive")],
        seed: 3,
    };
    restore(&plan).unwrap();
    let mut disk = ViewedDisk::open(&at("data")).unwrap();
    let looks = look_at_segments(&mut disk, std::slice::from_ref(&first), None).unwrap();
    let content = looks[0].content.as_ref().expect("it reads");
    assert_eq!((content.last_lsn, content.chain), (Lsn(PARTS_AT), counts));
    // Without the second one there is nothing that says so.
    fs::remove_file(at("archive").join(&second)).unwrap();
    restore(&Plan { data_dir: at("data2"), until: Some(Lsn(40)), ..plan }).unwrap();
    let mut disk = ViewedDisk::open(&at("data2")).unwrap();
    let looks = look_at_segments(&mut disk, &[first], None).unwrap();
    assert_eq!(looks[0].content.as_ref().map(|content| content.chain), Some(cut_off));
}
