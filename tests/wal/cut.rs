//! What a cut guarantees: what it takes back is kept in a file and never read again as the log.

use kvstore::ids::Lsn;
use kvstore::wal::{Cursor, HEADER_SIZE, OpenError, Wal};
use kvstore::wire::Reader;

use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};
use crate::wal_kit::*;

/// Ten records in five batches and three segments: 1-4, 5-8, 9-10.
fn ten_records() -> (MemDisk, Wal, Vec<Vec<u8>>) {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    for _ in 0..5 {
        batch(&mut wal, &disk, 2, 900);
    }
    let records = contents(&mut wal, &disk);
    assert_eq!(segments(&disk), [segment_of(1), segment_of(5), segment_of(9)]);
    (disk, wal, records)
}

/// The records in a file of kept ones, read by its published format, with the first LSN it names.
fn kept_records(disk: &MemDisk, name: &str) -> (u64, Vec<Vec<u8>>) {
    let raw = disk.raw(name).expect("the file of kept records is there");
    let mut reader = Reader::new(&raw);
    assert_eq!(reader.bytes("magic", 8).unwrap(), b"KVSTOCUT");
    assert_eq!(reader.u32("version").unwrap(), 1);
    reader.u64("generation").unwrap();
    assert_eq!(reader.bytes("cluster", 16).unwrap(), CLUSTER.0);
    let (first, last) = (reader.u64("first").unwrap(), reader.u64("last").unwrap());
    let mut chain = kvstore::ids::Chain(reader.u32("chain").unwrap());
    assert_eq!(reader.u32("crc").unwrap(), crc32fast::hash(&raw[..56]));
    let mut records = Vec::new();
    while reader.left() > 0 {
        let crc = reader.u32("crc").unwrap();
        let bytes = reader.bytes32("record", 1 << 20).unwrap().to_vec();
        chain = chain.extend(&bytes);
        assert_eq!(chain.0, crc);
        records.push(bytes);
    }
    assert_eq!(last, first + records.len() as u64 - 1);
    (first, records)
}

#[test]
fn every_cut_point_keeps_the_rest_aside_and_the_log_goes_on_from_there() {
    for keep in 0..10 {
        let (disk, mut wal, records) = ten_records();
        let kept = wal.cut(&mut disk.clone(), Lsn(keep), 1).unwrap().expect("something was cut");
        assert_eq!(kept.file, format!("cut-g1-{}-10.kvcut", keep + 1));
        assert_eq!((kept.first, kept.last), (Lsn(keep + 1), Lsn(10)));
        assert_eq!(kept.bytes, disk.raw(&kept.file).unwrap().len() as u64);
        assert_eq!(kept_records(&disk, &kept.file), (keep + 1, records[keep as usize..].to_vec()));

        let mut expected = records[..keep as usize].to_vec();
        assert_eq!((wal.last_lsn(), wal.last_chain()), (Lsn(keep), chain_of(&expected)));
        assert_eq!((wal.generation(), wal.durable_lsn()), (1, Lsn(keep)));
        for _ in 0..8 {
            expected.push(put_bytes(wal.last_lsn().0 + 1, 77, 500));
            append(&mut wal, &disk, expected.last().unwrap()).unwrap();
        }
        write(&mut wal, &disk).unwrap();
        assert_eq!(flush(&mut wal, &disk).unwrap().generation(), 1);
        assert_eq!(contents(&mut wal, &disk), expected);
        disk.crash(Keep::None);
        let opened = open_at(&disk, 1, keep, SEGMENT_BYTES).unwrap();
        let mut wal = opened.wal;
        assert_eq!(contents(&mut wal, &disk), expected, "cut behind {keep}");
        assert_eq!((opened.report.cut_tail, opened.report.completed_cut), (None, None));
    }
}

#[test]
fn a_cut_of_nothing_begins_a_generation_and_leaves_the_log_alone() {
    let (disk, mut wal, records) = ten_records();
    assert_eq!(wal.cut(&mut disk.clone(), Lsn(10), 1).unwrap(), None);
    assert_eq!((wal.generation(), contents(&mut wal, &disk)), (1, records));
    assert!(!disk.names().iter().any(|name| name.contains("kvcut")));
}

#[test]
fn a_cut_takes_back_what_was_not_written_yet_and_forgets_its_terms() {
    let (disk, mut wal, records) = ten_records();
    append(&mut wal, &disk, &term_bytes(11, 5)).unwrap();
    assert_eq!(wal.history().starts().len(), 1);
    let kept = wal.cut(&mut disk.clone(), Lsn(9), 3).unwrap().unwrap();
    assert_eq!(kept_records(&disk, &kept.file).1, [records[9].clone(), term_bytes(11, 5)]);
    assert!(wal.history().starts().is_empty());
    append(&mut wal, &disk, &term_bytes(10, 4)).unwrap();
    assert_eq!(wal.last_term().start, 4);
}

#[test]
fn a_cut_that_a_crash_interrupted_is_completed_and_keeps_every_record_at_any_point() {
    for keep in [0, 2, 3, 4, 7] {
        let mut step = 0;
        loop {
            let (disk, mut wal, records) = ten_records();
            disk.crash_before(disk.op_count() + step);
            let ended = wal.cut(&mut disk.clone(), Lsn(keep), 1).is_ok();
            for sectors in [Keep::None, Keep::All, Keep::Random(step), Keep::Random(step + 50)] {
                for names in [Keep::None, Keep::All, Keep::Random(step), Keep::Random(step + 70)] {
                    let disk = disk.fork();
                    disk.crash_with(sectors, names);
                    let context = format!("keep {keep}, step {step}, {sectors:?}, {names:?}");
                    let opened =
                        open_at(&disk, 1, keep, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{context}: {e}"));
                    let (mut wal, report) = (opened.wal, opened.report);
                    assert_eq!(contents(&mut wal, &disk), records[..keep as usize], "{context}");
                    let name = format!("cut-g1-{}-10.kvcut", keep + 1);
                    assert_eq!(
                        kept_records(&disk, &name),
                        (keep + 1, records[keep as usize..].to_vec()),
                        "{context}"
                    );
                    if let Some(completed) = report.completed_cut {
                        assert_eq!(
                            (completed.file.as_str(), completed.last),
                            (name.as_str(), Lsn(10)),
                            "{context}"
                        );
                    }
                    assert!(!disk.names().iter().any(|name| name.ends_with(".tmp")), "{context}");
                }
            }
            if ended {
                assert!(step > 8, "a cut has more steps than {step}");
                break;
            }
            step += 1;
        }
    }
}

#[test]
fn a_cut_that_was_decided_and_not_begun_is_completed_and_reported() {
    let (disk, _, records) = ten_records();
    disk.kill_process();
    let opened = open_at(&disk, 1, 3, SEGMENT_BYTES).unwrap();
    let completed = opened.report.completed_cut.expect("records were taken back");
    assert_eq!((completed.first, completed.last), (Lsn(4), Lsn(10)));
    assert_eq!(kept_records(&disk, &completed.file).1, records[3..]);
    assert_eq!((opened.report.last_lsn, opened.report.cut_tail), (Lsn(3), None));
    assert_eq!(segments(&disk), [FIRST_SEGMENT]);
    disk.kill_process();
    assert_eq!(open_at(&disk, 1, 3, SEGMENT_BYTES).unwrap().report.completed_cut, None);
}

#[test]
fn records_of_an_older_generation_behind_the_log_are_never_read_again() {
    let (disk, mut wal, records) = ten_records();
    let before = disk.raw(FIRST_SEGMENT).unwrap();
    wal.cut(&mut disk.clone(), Lsn(2), 1).unwrap();
    // The same sizes, so that the old entries and marks stand exactly where the next ones would.
    let replacement = put_bytes(3, 99, 900);
    assert_eq!(replacement.len(), records[2].len());
    append(&mut wal, &disk, &replacement).unwrap();
    write(&mut wal, &disk).unwrap();
    let token = flush(&mut wal, &disk).unwrap();
    let mut raw = disk.raw(FIRST_SEGMENT).unwrap();
    let end = raw.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    assert!(before[end..].iter().any(|&byte| byte != 0));
    raw[end..].copy_from_slice(&before[end..]);
    disk.kill_process();
    disk.put_raw(FIRST_SEGMENT, &raw);
    let opened = open_at(&disk, 1, 2, SEGMENT_BYTES).unwrap();
    let mut wal = opened.wal;
    let expected = [&records[..2], &[replacement]].concat();
    assert_eq!((contents(&mut wal, &disk), token.lsn()), (expected, Lsn(3)));
    assert_eq!(opened.report.cut_tail.unwrap().offset as usize, end);
}

#[test]
fn the_same_record_again_does_not_bring_back_what_followed_it() {
    // The leader sends record 3 again, byte for byte: the chain of the old record 4 would fit.
    let (disk, mut wal, records) = ten_records();
    let before = disk.raw(FIRST_SEGMENT).unwrap();
    wal.cut(&mut disk.clone(), Lsn(2), 1).unwrap();
    append(&mut wal, &disk, &records[2]).unwrap();
    write(&mut wal, &disk).unwrap();
    flush(&mut wal, &disk).unwrap();
    let mut raw = disk.raw(FIRST_SEGMENT).unwrap();
    let end = raw.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let old_end = before.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    raw[end..old_end].copy_from_slice(&before[end..old_end]);
    disk.kill_process();
    disk.put_raw(FIRST_SEGMENT, &raw);
    let mut wal = open_at(&disk, 1, 2, SEGMENT_BYTES).unwrap().wal;
    assert_eq!(contents(&mut wal, &disk), records[..3]);
}

#[test]
fn a_sync_that_fails_in_a_cut_does_not_let_old_records_come_back_after_later_ones() {
    for (keep, syncs_before) in [(1, 0), (1, 1), (1, 2), (5, 0), (5, 1), (5, 2)] {
        let (disk, mut wal, records) = ten_records();
        disk.fail(OpKind::Sync, syncs_before, EIO);
        assert!(wal.cut(&mut disk.clone(), Lsn(keep), 1).is_err());
        disk.kill_process();
        // The page cache shows what the disk may not hold. The next process reads it, and ends with another cut
        // decided, of a record that it never wrote.
        let mut wal = open_at(&disk, 1, keep, SEGMENT_BYTES).unwrap().wal;
        assert_eq!(contents(&mut wal, &disk), records[..keep as usize]);
        append_many(&mut wal, &disk, 2, 10);
        disk.kill_process();
        for restart in 0..2 {
            let mut wal = open_at(&disk, 2, keep + 1, SEGMENT_BYTES)
                .unwrap_or_else(|error| {
                    panic!("keep {keep}, {syncs_before} syncs, restart {restart}: {error}")
                })
                .wal;
            assert_eq!(contents(&mut wal, &disk), records[..keep as usize]);
            disk.crash(Keep::None);
        }
    }
}

#[test]
fn a_torn_batch_after_a_cut_is_a_tail_although_the_older_generation_knew_its_lsns_durable() {
    let (disk, mut wal, records) = ten_records();
    wal.cut(&mut disk.clone(), Lsn(4), 1).unwrap();
    append_many(&mut wal, &disk, 2, 1200);
    write(&mut wal, &disk).unwrap();
    disk.crash(Keep::None);
    let opened = open_at(&disk, 1, 4, SEGMENT_BYTES).unwrap();
    let mut wal = opened.wal;
    assert_eq!(contents(&mut wal, &disk), records[..4]);
}

#[test]
fn damage_at_or_below_the_cut_is_damage_even_while_the_cut_is_under_way() {
    let (disk, _, _) = ten_records();
    disk.kill_process();
    disk.corrupt(FIRST_SEGMENT, HEADER_SIZE + 500, 0);
    let error = open_at(&disk, 1, 3, SEGMENT_BYTES).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged(damage) if damage.lsn == Lsn(1)), "{error}");
    assert_eq!(segments(&disk).len(), 3, "a refusal removes nothing");
}

#[test]
fn a_log_that_is_newer_than_the_nodes_own_record_is_refused() {
    let (disk, mut wal, _) = ten_records();
    wal.cut(&mut disk.clone(), Lsn(3), 2).unwrap();
    batch(&mut wal, &disk, 1, 10);
    disk.kill_process();
    let error = open_at(&disk, 1, 5, SEGMENT_BYTES).unwrap_err();
    assert!(matches!(error, OpenError::LaterGeneration { found: 2, expected: 1, .. }), "{error}");
    assert!(error.to_string().contains("older than the log"), "{error}");
}

#[test]
fn a_cursor_from_before_a_cut_is_not_believed() {
    let (disk, mut wal, mut records) = ten_records();
    let (mut cursor, mut out) = (Cursor::default(), Vec::new());
    wal.read(&mut disk.clone(), &mut cursor, Lsn(1), 4000, &mut out).unwrap();
    wal.cut(&mut disk.clone(), Lsn(2), 1).unwrap();
    records.truncate(2);
    for _ in 0..6 {
        records.push(put_bytes(wal.last_lsn().0 + 1, 31, 333));
        append(&mut wal, &disk, records.last().unwrap()).unwrap();
        write(&mut wal, &disk).unwrap();
    }
    out.clear();
    wal.read(&mut disk.clone(), &mut cursor, Lsn(5), 1 << 20, &mut out).unwrap();
    assert_eq!(out, records[4..].concat());
}

#[test]
fn the_chain_is_right_at_every_lsn_after_a_cut() {
    let (disk, mut wal, mut records) = ten_records();
    wal.cut(&mut disk.clone(), Lsn(6), 1).unwrap();
    records.truncate(6);
    for _ in 0..10 {
        records.push(put_bytes(wal.last_lsn().0 + 1, 5, 700));
        append(&mut wal, &disk, records.last().unwrap()).unwrap();
        write(&mut wal, &disk).unwrap();
    }
    for lsn in 0..=records.len() {
        let chain = wal.chain_at(&mut disk.clone(), Lsn(lsn as u64)).unwrap();
        assert_eq!(chain, Some(chain_of(&records[..lsn])), "LSN {lsn}");
    }
}

#[test]
#[should_panic(expected = "a cut waits for the flush under way")]
fn a_cut_during_a_flush_is_a_bug() {
    let (disk, mut wal, _) = ten_records();
    append_many(&mut wal, &disk, 1, 10);
    write(&mut wal, &disk).unwrap();
    disk.hold_flushes(true);
    assert_eq!(wal.flush_begin(&mut disk.clone()).unwrap(), None);
    let _ = wal.cut(&mut disk.clone(), Lsn(3), 1);
}
