//! The bytes on disk are the published ones, and are found wherever they stand.

use kvstore::ids::{Chain, Lsn};
use kvstore::wal::{ENTRY_HEADER_SIZE, HEADER_SIZE, MARK_SIZE, OpenError};
use kvstore::wire::Reader;

use crate::mem_disk::MemDisk;
use crate::wal_kit::*;

const FIRST_BATCH: usize = HEADER_SIZE as usize;

#[test]
fn a_header_has_the_published_layout() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    append(&mut wal, &disk, &term_bytes(1, 8)).unwrap();
    batch(&mut wal, &disk, 1, 3500);
    batch(&mut wal, &disk, 1, 3500);
    let records = contents(&mut wal, &disk);
    let raw = disk.raw(&segment_of(3)).expect("LSN 3 begins a segment");
    let mut reader = Reader::new(&raw[..FIRST_BATCH]);
    assert_eq!(reader.bytes("magic", 8).unwrap(), b"KVSTOWAL");
    assert_eq!(reader.u32("version").unwrap(), 1);
    assert_eq!(reader.u32("prefix crc").unwrap(), crc32fast::hash(&raw[..12]));
    assert_eq!(reader.bytes("cluster", 16).unwrap(), CLUSTER.0);
    assert_eq!(reader.u64("first LSN").unwrap(), 3);
    assert_eq!(Chain(reader.u32("chain").unwrap()), chain_of(&records[..2]));
    assert_eq!((reader.u32("zero").unwrap(), reader.u64("generation").unwrap()), (0, 0));
    assert_ne!(reader.u64("salt").unwrap(), 0);
    assert_eq!((reader.u64("term").unwrap(), reader.bytes("leader", 16).unwrap()), (8, &[7; 16][..]));
    assert_eq!(reader.u64("first LSN of term").unwrap(), 1);
    assert_eq!(Chain(reader.u32("chain at term").unwrap()), chain_of(&records[..1]));
    assert_eq!(reader.u64("previous segment").unwrap(), 1);
    assert!(raw[108..FIRST_BATCH - 4].iter().all(|&byte| byte == 0));
    assert_eq!(raw[FIRST_BATCH - 4..FIRST_BATCH], crc32fast::hash(&raw[..FIRST_BATCH - 4]).to_be_bytes());
}

#[test]
fn a_batch_has_the_published_layout() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 30);
    let second_at = disk.raw(FIRST_SEGMENT).unwrap().iter().rposition(|&byte| byte != 0).unwrap() + 1;
    append_many(&mut wal, &disk, 2, 40);
    wal.write(&mut disk.clone(), Lsn(1)).unwrap();
    let raw = disk.raw(FIRST_SEGMENT).unwrap();
    let salt = u64::from_be_bytes(raw[56..64].try_into().unwrap());
    let mut seeded = crc32fast::Hasher::new();
    for word in [salt, 1, second_at as u64] {
        seeded.update(&word.to_be_bytes());
    }
    seeded.update(&raw[second_at + 4..second_at + MARK_SIZE]);

    let mut reader = Reader::new(&raw[second_at..]);
    assert_eq!(reader.u32("crc").unwrap(), seeded.finalize());
    assert_eq!(reader.u32("length").unwrap(), 0x8000_0000 | 40);
    assert_eq!((reader.u64("durable").unwrap(), reader.u64("commit").unwrap()), (1, 1));
    assert_eq!((reader.u64("generation").unwrap(), reader.u64("next LSN").unwrap()), (0, 2));
    let mut chain = chain_of(&[put_bytes(1, 0, 30)]);
    assert_eq!(reader.u32("chain").unwrap(), chain.0);
    let entry_bytes = reader.u32("entry bytes").unwrap() as usize;
    assert_eq!(entry_bytes, 2 * (ENTRY_HEADER_SIZE + put_bytes(2, 0, 40).len()));
    for lsn in [2, 3] {
        let record = put_bytes(lsn, 0, 40);
        chain = chain.extend(&record);
        assert_eq!(reader.u32("chain at the record").unwrap(), chain.0);
        assert_eq!(reader.bytes32("record", 1 << 20).unwrap(), record);
    }
    assert!(raw[second_at + reader.position()..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_mark_behind_damage_is_found_across_the_boundaries_of_what_is_read_at_once() {
    const READ_AT_ONCE: usize = 1 << 20;
    let overhead = put_bytes(1, 0, 0).len() + ENTRY_HEADER_SIZE;
    let size = MARK_SIZE as i64;
    for before_boundary in [-1, 0, 1, 4, 8, size - 1, size, size + 1] {
        let disk = MemDisk::new();
        let mut wal = open_at(&disk, 0, 0, 2 << 20).unwrap().wal;
        // The search begins at the entry of LSN 1; the second mark follows it.
        let size = (READ_AT_ONCE - overhead) as i64 - before_boundary;
        batch(&mut wal, &disk, 1, size as usize);
        batch(&mut wal, &disk, 1, 10);
        disk.kill_process();
        disk.corrupt(FIRST_SEGMENT, HEADER_SIZE + 1000, 0);
        let found = open_at(&disk, 0, 0, 2 << 20);
        let Err(OpenError::Damaged(damage)) = found else {
            panic!("{before_boundary} bytes before: {found:?}")
        };
        assert_eq!((damage.lsn, damage.durable_lsn), (Lsn(1), Lsn(1)), "{before_boundary} bytes before");
    }
}

#[test]
fn records_across_the_boundaries_of_what_is_read_at_once_read_back() {
    let disk = MemDisk::new();
    let mut wal = open_at(&disk, 0, 0, 8 << 20).unwrap().wal;
    for size in [700_000, 400_000, 1_100_000, 3, 2_500_000, 20] {
        batch(&mut wal, &disk, 1, size);
    }
    let records = contents(&mut wal, &disk);
    disk.kill_process();
    let mut wal = open_at(&disk, 0, 0, 8 << 20).unwrap().wal;
    assert_eq!(wal.last_lsn(), Lsn(6));
    assert!(contents(&mut wal, &disk) == records && read_all(&mut wal, &disk, 500_000) == records.concat());
}
