//! The bytes of a snapshot are the published ones, and what was written is what is read.

use kvstore::disk::{Disk, RealDisk};
use kvstore::ids::ClusterId;
use kvstore::limits::{KEY_SIZE_MAX, SNAPSHOT_BLOCK_SIZE, VALUE_SIZE_MAX};
use kvstore::snapshot::{
    BLOCK_HEADER_SIZE, FOOTER_SIZE, Listed, ReadError, SnapshotReader, list, parse_snapshot_name, remove,
    remove_leftovers,
};
use kvstore::wire::{Reader, Writer};
use proptest::prelude::*;

use crate::mem_disk::{self, MemDisk};
use crate::snapshot_kit::*;

const HEADER: usize = 4096;

/// Three small entries.
fn small() -> (MemDisk, Vec<u8>, u64) {
    let disk = MemDisk::new();
    let entries = vec![
        (b"a".to_vec(), b"1".to_vec()),
        (b"bb".to_vec(), Vec::new()),
        (b"a".to_vec(), b"twice".to_vec()),
    ];
    let info = published(&disk, &entries, (12, 20));
    let raw = disk.raw("snap-00000000000000000012-00000000000000000020.kvsnap").expect("it is published");
    (disk, raw, info.bytes)
}

#[test]
fn a_header_has_the_published_layout() {
    let (_, raw, bytes) = small();
    let mut reader = Reader::new(&raw[..HEADER]);
    assert_eq!(reader.bytes("magic", 8).unwrap(), b"KVSTSNAP");
    assert_eq!(reader.u32("version").unwrap(), 1);
    assert_eq!(reader.u32("prefix crc").unwrap(), crc32fast::hash(&raw[..12]));
    assert_eq!(reader.bytes("cluster", 16).unwrap(), CLUSTER.0);
    assert_eq!(reader.bytes("maker", 16).unwrap(), MAKER.0);
    assert_eq!((reader.u64("S").unwrap(), reader.u64("E").unwrap()), (12, 20));
    assert_eq!(reader.u32("chain").unwrap(), 0xdead_beef);
    assert_eq!((reader.u32("header").unwrap(), reader.u64("file").unwrap()), (HEADER as u32, bytes));
    assert_eq!((reader.u32("peers").unwrap(), reader.u32("terms").unwrap()), (2, 2));
    assert_eq!(reader.text16("peer", 255).unwrap(), "127.0.0.1:9002");
    assert_eq!(reader.text16("peer", 255).unwrap(), "[::1]:9003");
    for start in history().starts() {
        assert_eq!(reader.u64("term").unwrap(), start.term.as_u64());
        assert_eq!(reader.bytes("leader", 16).unwrap(), start.leader.0);
        assert_eq!(reader.u64("first LSN").unwrap(), start.first_lsn.0);
        assert_eq!(reader.u32("chain").unwrap(), start.chain.0);
    }
    assert!(raw[reader.position()..HEADER - 4].iter().all(|&byte| byte == 0));
    assert_eq!(raw[HEADER - 4..HEADER], crc32fast::hash(&raw[..HEADER - 4]).to_be_bytes());
}

#[test]
fn a_block_and_the_footer_have_the_published_layout() {
    let (_, raw, bytes) = small();
    let mut identity = [CLUSTER.0, MAKER.0].concat();
    identity.put_u64(12);
    identity.put_u32(0xdead_beef);
    let payload = b"\0\x01a\0\0\0\x011\0\x02bb\0\0\0\0\0\x01a\0\0\0\x05twice";
    let block = &raw[HEADER..HEADER + BLOCK_HEADER_SIZE + payload.len()];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&identity);
    crc.update(&(HEADER as u64).to_be_bytes());
    crc.update(&block[4..]);
    let mut reader = Reader::new(block);
    assert_eq!(reader.u32("crc").unwrap(), crc.finalize());
    assert_eq!(reader.u32("bytes").unwrap() as usize, payload.len());
    assert_eq!(reader.u32("entries").unwrap(), 3);
    assert_eq!(reader.bytes("entries", payload.len()).unwrap(), payload);

    let footer_at = HEADER + block.len();
    assert_eq!(bytes as usize, footer_at + FOOTER_SIZE);
    let footer = &raw[footer_at..bytes as usize];
    let mut reader = Reader::new(footer);
    assert_eq!(reader.bytes("magic", 8).unwrap(), b"KVSTSEND");
    assert_eq!((reader.u64("blocks").unwrap(), reader.u64("entries").unwrap()), (1, 3));
    assert_eq!(reader.u64("data bytes").unwrap(), 2 + 2 + 6);
    assert_eq!(reader.u32("body crc").unwrap(), crc32fast::hash(block));
    assert_eq!(reader.bytes("header crc", 4).unwrap(), &raw[HEADER - 4..HEADER]);
    assert_eq!(reader.u32("crc").unwrap(), crc32fast::hash(&footer[..40]));
    assert!(raw[bytes as usize..].iter().all(|&byte| byte == 0), "the preallocation stays zeros");
}

#[test]
fn both_ends_tell_what_the_writer_was_told() {
    let (disk, _, bytes) = small();
    let listed = list(&mut disk.clone(), Some(CLUSTER)).unwrap();
    let [Listed::Snapshot(info)] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((info.id, info.bytes, info.entries, info.data_bytes), (id(12, 20), bytes, 3, 10));
    let start = start_at(12);
    assert_eq!((&info.history, &info.peers, info.chain), (&start.history, &start.peers, start.chain));
    assert_eq!((info.cluster_id, info.maker, info.name.as_str()), (CLUSTER, MAKER, &*id(12, 20).file_name()));
}

#[test]
fn another_cluster_and_another_version_are_told_from_damage() {
    let (disk, mut raw, _) = small();
    let name = id(12, 20).file_name();
    let other = ClusterId([1; 16]);
    let error = SnapshotReader::open(&mut disk.clone(), &name, Some(other)).unwrap_err();
    assert!(matches!(error, ReadError::OtherCluster { found: CLUSTER, expected, .. } if expected == other));
    SnapshotReader::open(&mut disk.clone(), &name, None).unwrap().close(&mut disk.clone());
    raw[8..12].copy_from_slice(&7u32.to_be_bytes());
    let crc = crc32fast::hash(&raw[..12]);
    raw[12..16].copy_from_slice(&crc.to_be_bytes());
    disk.put_raw(&name, &raw);
    let error = SnapshotReader::open(&mut disk.clone(), &name, Some(CLUSTER)).unwrap_err();
    assert!(matches!(error, ReadError::Version { found: 7, .. }), "{error}");
}

#[test]
fn the_newest_is_listed_first_and_a_leftover_is_no_snapshot() {
    let disk = MemDisk::new();
    for lsns in [(12, 20), (30, 31), (12, 25)] {
        published(&disk, &entries(3, 10), lsns);
    }
    let _ = write(&mut disk.clone(), &entries(3, 10), 0, (40, 41)).unwrap();
    disk.put_raw("snap-in.kvsnap.tmp", b"half of something");
    disk.put_raw(&id(7, 9).file_name(), b"nothing");
    // A name that does not belong to what is in the file.
    let raw = disk.raw(&id(30, 31).file_name()).unwrap();
    disk.put_raw(&id(30, 32).file_name(), &raw);
    let mut disk = disk.clone();
    let listed = list(&mut disk, Some(CLUSTER)).unwrap();
    let ids: Vec<_> = listed.iter().map(Listed::id).collect();
    assert_eq!(ids, [id(30, 32), id(30, 31), id(12, 25), id(12, 20), id(7, 9)]);
    let unreadable = listed.iter().map(|listed| matches!(listed, Listed::Unreadable { .. }));
    assert_eq!(unreadable.collect::<Vec<_>>(), [true, false, false, false, true]);
    remove_leftovers(&mut disk).unwrap();
    remove_leftovers(&mut disk).unwrap();
    remove(&mut disk, id(12, 20)).unwrap();
    disk.crash(mem_disk::Keep::None);
    assert!(disk.names().iter().all(|name| parse_snapshot_name(name).is_some()), "{:?}", disk.names());
    assert_eq!(disk.names().len(), 4);
    assert!(remove(&mut disk, id(12, 20)).is_err(), "what is not there cannot be removed");
}

#[test]
fn names_that_look_like_one_are_none() {
    assert_eq!(parse_snapshot_name(&id(3, u64::MAX).file_name()), Some(id(3, u64::MAX)));
    for other in [
        "snap-new.kvsnap.tmp",
        "snap-3-4.kvsnap",
        "snap-00000000000000000003-+0000000000000000004.kvsnap",
        "snap-00000000000000000003-99999999999999999999.kvsnap",
        "snap-00000000000000000003-00000000000000000004.kvsnap.tmp",
    ] {
        assert_eq!(parse_snapshot_name(other), None, "{other}");
    }
}

#[test]
fn an_empty_state_and_the_largest_entries_come_back() {
    let largest = || (vec![0xff; KEY_SIZE_MAX], vec![7; VALUE_SIZE_MAX]);
    let small = || (b"small".to_vec(), b"one".to_vec());
    for entries in [vec![], vec![largest()], vec![small(), largest(), small(), largest(), small()]] {
        let disk = MemDisk::new();
        let info = published(&disk, &entries, (9, 9));
        assert!(read(&mut disk.clone(), &info.name).unwrap() == entries);
    }
}

#[test]
fn blocks_are_full_and_no_larger_than_said() {
    let disk = MemDisk::new();
    let info = published(&disk, &entries(10_000, 100), (9, 9));
    let mut reader = SnapshotReader::open(&mut disk.clone(), &info.name, Some(CLUSTER)).unwrap();
    let mut sizes = Vec::new();
    while let Some(block) = reader.next_block(&mut disk.clone()).unwrap() {
        sizes.push(block.data_bytes() as usize + 6 * block.entry_count());
    }
    assert_eq!(reader.bytes_checked(), info.bytes);
    let (_, full) = sizes.split_last().expect("there are blocks");
    assert!(
        full.iter().all(|size| (SNAPSHOT_BLOCK_SIZE - 200..=SNAPSHOT_BLOCK_SIZE).contains(size)),
        "{sizes:?}"
    );
}

#[test]
fn a_real_directory_gives_back_what_was_written_over_many_writes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RealDisk::open(directory.path()).expect("it can be used");
    let written = entries(20_000, 300);
    let finished = write(&mut disk, &written, 1 << 20, (50, 60)).unwrap();
    assert_eq!(disk.list().unwrap(), ["snap-new.kvsnap.tmp"]);
    let info = finished.publish(&mut disk).unwrap();
    assert_eq!(disk.list().unwrap(), [info.name.as_str()]);
    assert!(read(&mut disk, &info.name).unwrap() == written);
    let mut reader = SnapshotReader::open(&mut disk, &info.name, Some(CLUSTER)).unwrap();
    reader.verify(&mut disk).unwrap();
    reader.close(&mut disk);
}

fn entry() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let value_size = prop_oneof![8 => 0..200usize, 1 => 0..90_000usize];
    let value = (value_size, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]);
    (proptest::collection::vec(any::<u8>(), 1..40), value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_added_is_read_in_order(
        entries in proptest::collection::vec(entry(), 0..300),
        s in 9..1000u64,
        more in 0..1000u64,
        write_size_max in prop_oneof![Just(None), (1..3000usize).prop_map(Some)],
    ) {
        let disk = MemDisk::new();
        disk.set_write_size_max(write_size_max);
        let info = published(&disk, &entries, (s, s + more));
        prop_assert_eq!(info.entries, entries.len() as u64);
        prop_assert!(read(&mut disk.clone(), &info.name).unwrap() == entries);
    }
}
