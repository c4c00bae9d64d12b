//! A log of twenty records in several segments and terms, and what a snapshot of any of its LSNs would say of it.

#![allow(dead_code)]

use kvstore::ids::{Chain, Lsn};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::wal::{Base, Identity, Wal};
use kvstore::wire::Effect;

use super::mem_disk::MemDisk;
use super::wal_kit::*;

pub const LAST: u64 = 20;

/// Terms begin at LSN 1, 8 and 15; four to five records to a segment.
pub fn twenty_records() -> (MemDisk, Wal, Vec<Vec<u8>>) {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    extend(&mut wal, &disk, LAST);
    let records = contents(&mut wal, &disk);
    assert!(segments(&disk).len() >= 5);
    (disk, wal, records)
}

/// Appends up to `last`, two records to a batch.
pub fn extend(wal: &mut Wal, disk: &MemDisk, last: u64) {
    while wal.last_lsn().0 < last {
        let lsn = wal.last_lsn().0 + 1;
        let bytes = match lsn {
            1 | 8 | 15 => term_bytes(lsn, lsn as u32),
            _ => put_bytes(lsn, 0, 900),
        };
        append(wal, disk, &bytes).unwrap();
        if lsn.is_multiple_of(2) || lsn == last {
            write(wal, disk).unwrap();
            flush(wal, disk).unwrap();
        }
    }
}

pub fn history_of(records: &[Vec<u8>]) -> TermHistory {
    let (mut history, mut chain) = (TermHistory::default(), Chain::ZERO);
    for bytes in records {
        chain = chain.extend(bytes);
        let record = decode(bytes);
        if let Effect::Term { term, leader } = record.effect {
            history.push(TermStart { term, leader, first_lsn: record.lsn, chain });
        }
    }
    history
}

/// As a snapshot of that LSN says.
pub fn base_at(records: &[Vec<u8>], lsn: u64) -> Base {
    let below = &records[..lsn as usize];
    Base { lsn: Lsn(lsn), chain: chain_of(below), history: history_of(below), durable_lsn: Lsn(lsn) }
}

/// The node's own record once a snapshot is installed in the place of the log.
pub fn installed(base: &Base, generation: u64) -> Identity {
    Identity { base_lsn: base.lsn, base_chain: base.chain, ..identity(generation, 0) }
}

/// The first LSNs of the segments.
pub fn firsts(disk: &MemDisk) -> Vec<u64> {
    segments(disk).iter().map(|name| kvstore::wal::parse_segment_name(name).expect("a segment").0).collect()
}

/// The log is exactly these records from `first` on: read at once, in pieces, and by chain.
pub fn check_log(wal: &mut Wal, disk: &MemDisk, records: &[Vec<u8>], first: u64, context: &str) {
    let held = &records[first as usize - 1..];
    assert_eq!((wal.first_lsn(), wal.last_lsn()), (Lsn(first), Lsn(records.len() as u64)), "{context}");
    assert_eq!(wal.last_chain(), chain_of(records), "{context}");
    assert_eq!(wal.durable_lsn(), wal.last_lsn(), "{context}");
    assert_eq!(wal.history(), &history_of(records), "{context}");
    if !held.is_empty() {
        assert_eq!(contents(wal, disk), held, "{context}");
        assert_eq!(read_all(wal, disk, 1500), held.concat(), "{context}");
    }
    for lsn in 0..=records.len() as u64 + 1 {
        let known = (first - 1..=records.len() as u64).contains(&lsn);
        let expected = known.then(|| chain_of(&records[..lsn as usize]));
        assert_eq!(wal.chain_at(&mut disk.clone(), Lsn(lsn)).unwrap(), expected, "{context}: chain at {lsn}");
    }
}
