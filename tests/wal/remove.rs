//! Segments go at the front: whole ones, oldest first, and whatever a power loss brings back of them does no harm.

use std::io;

use kvstore::disk::Disk;
use kvstore::ids::Lsn;
use kvstore::wal::{Base, Cursor, OpenError, ReadError, Wal};

use crate::log_start::{self, *};
use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};
use crate::wal_kit::*;

const ALL: usize = usize::MAX;

#[test]
fn whole_segments_at_or_below_an_lsn_go_and_never_the_one_that_is_written() {
    let (disk, _, records) = twenty_records();
    let firsts = firsts(&disk);
    for lsn in 0..=LAST + 5 {
        let disk = disk.fork();
        let mut wal = opened(&disk).wal;
        let expected = firsts.iter().skip(1).take_while(|&&next| next <= lsn + 1).count();
        let removed = wal.remove_before(&mut disk.clone(), Lsn(lsn), ALL).unwrap();
        assert_eq!(removed, firsts[..expected].iter().map(|&first| segment_of(first)).collect::<Vec<_>>());
        check_log(&mut wal, &disk, &records, firsts[expected], &format!("removed up to {lsn}"));
        let asked_again = disk.op_count();
        assert!(wal.remove_before(&mut disk.clone(), Lsn(lsn), ALL).unwrap().is_empty());
        assert_eq!(disk.op_count(), asked_again, "nothing to remove costs nothing");
        disk.crash(Keep::None);
        assert_eq!(log_start::firsts(&disk), firsts[expected..], "removed durably");
    }
}

#[test]
fn no_more_than_asked_for_are_removed_at_once_and_the_names_are_synced_once() {
    let (disk, mut wal, _) = twenty_records();
    let before = disk.op_log().len();
    assert_eq!(wal.remove_before(&mut disk.clone(), Lsn(LAST), 2).unwrap().len(), 2);
    let kinds: Vec<OpKind> = disk.op_log()[before..].iter().map(|op| op.kind).collect();
    assert_eq!(kinds, [OpKind::Remove, OpKind::Remove, OpKind::SyncDir]);
    assert_eq!(wal.remove_before(&mut disk.clone(), Lsn(LAST), 0).unwrap().len(), 0);
}

#[test]
fn cursors_survive_the_removal_of_segments_before_them_and_learn_of_their_own() {
    let (disk, _, records) = twenty_records();
    let firsts = firsts(&disk);
    for stop in 2..LAST {
        for up_to in 0..=LAST {
            let disk = disk.fork();
            let mut wal = opened(&disk).wal;
            let (mut cursor, mut out) = (Cursor::default(), Vec::new());
            let size = records[..stop as usize].concat().len();
            let range = wal.read(&mut disk.clone(), &mut cursor, Lsn(1), size, &mut out).unwrap();
            wal.remove_before(&mut disk.clone(), Lsn(up_to), ALL).unwrap();
            out.clear();
            let next = range.last.next();
            let read = wal.read(&mut disk.clone(), &mut cursor, next, 1 << 20, &mut out);
            if next < wal.first_lsn() {
                assert!(matches!(read, Err(ReadError::NotHeld { lsn, first, .. })
                    if lsn == next && first == wal.first_lsn()));
                assert!(firsts.contains(&wal.first_lsn().0));
            } else {
                assert_eq!(read.unwrap().last, Lsn(LAST), "stop {stop}, up to {up_to}");
                assert_eq!(out, records[next.0 as usize - 1..].concat());
            }
        }
    }
}

#[test]
fn log_bytes_fall_with_the_lsn_and_with_removal_and_rise_with_appends() {
    let (disk, mut wal, records) = twenty_records();
    let bytes: Vec<u64> = (0..=LAST + 1).map(|lsn| wal.log_bytes_from(Lsn(lsn))).collect();
    assert!(bytes.windows(2).all(|pair| pair[0] >= pair[1]) && bytes[0] == bytes[1]);
    let all: u64 = records.iter().map(|record| record.len() as u64).sum();
    assert!((all..all * 2).contains(&bytes[0]), "{} of {all}", bytes[0]);
    wal.remove_before(&mut disk.clone(), Lsn(10), ALL).unwrap();
    let first = wal.first_lsn();
    assert!(first > Lsn(5));
    assert_eq!(wal.log_bytes_from(Lsn(1)), bytes[first.0 as usize]);
    extend(&mut wal, &disk, LAST + 4);
    assert!(wal.log_bytes_from(first) > bytes[first.0 as usize]);
    assert_eq!(opened(&MemDisk::new()).wal.log_bytes_from(Lsn(9)), 0);
}

#[test]
fn a_removal_that_fails_ends_the_log() {
    for kind in [OpKind::Remove, OpKind::SyncDir] {
        let (disk, mut wal, _) = twenty_records();
        disk.fail(kind, 0, EIO);
        wal.remove_before(&mut disk.clone(), Lsn(LAST), ALL).unwrap_err();
        let result =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| append_many(&mut wal, &disk, 1, 10)));
        assert!(result.is_err(), "the process must end");
    }
}

/// A snapshot as far as the log is concerned: a name that is there or not.
fn publish(disk: &MemDisk, lsn: u64) -> io::Result<()> {
    let mut disk = disk.clone();
    let file = disk.create("snap-new.kvsnap.tmp", 512)?;
    disk.sync_data(file)?;
    disk.close(file);
    disk.rename("snap-new.kvsnap.tmp", &snapshot(lsn))?;
    disk.sync_dir()
}

fn snapshot(lsn: u64) -> String {
    format!("snap-{lsn:020}-{lsn:020}.kvsnap")
}

/// The bases that the snapshots in the directory give, and that of none.
fn bases(disk: &MemDisk, records: &[Vec<u8>]) -> Vec<Base> {
    let names = disk.names();
    let lsns = (0..=LAST).filter(|&lsn| lsn == 0 || names.contains(&snapshot(lsn)));
    lsns.map(|lsn| base_at(records, lsn)).collect()
}

type Steps = fn(&mut Wal, &MemDisk) -> Result<(), String>;

/// Runs `steps` with a snapshot of LSN 9 there, ends it before every operation with every subset of the unsynced
/// names, and opens the log behind the newest snapshot (D15: and behind the older one). How often that was refused.
fn refusals_after(steps: Steps) -> usize {
    let (disk, _, records) = twenty_records();
    publish(&disk, 9).unwrap();
    let (mut refused, mut step, mut ended) = (0, 0, false);
    while !ended {
        let disk = disk.fork();
        let mut wal = opened(&disk).wal;
        disk.crash_before(disk.op_count() + step);
        ended = steps(&mut wal, &disk).is_ok();
        for names in 0..1 << disk.unsynced_names() {
            let disk = disk.fork();
            disk.crash_with(Keep::All, Keep::Mask(names));
            for base in bases(&disk, &records).into_iter().filter(|base| base.lsn >= Lsn(9)) {
                let disk = disk.fork();
                match open_behind(&disk, identity(0, 0), &base, SEGMENT_BYTES) {
                    Ok(opened) => {
                        let (mut wal, first) = (opened.wal, opened.report.first_lsn);
                        assert!(first <= base.lsn.next());
                        let context = format!("step {step}, names {names:b}, base {}", base.lsn);
                        check_log(&mut wal, &disk, &records, first.0, &context);
                        disk.crash(Keep::None);
                        assert!(open_behind(&disk, identity(0, 0), &base, SEGMENT_BYTES).is_ok());
                    }
                    Err(OpenError::Damaged(damage)) => {
                        assert!(damage.reason.contains("missing"), "{damage:?}");
                        refused += 1;
                    }
                    Err(other) => panic!("step {step}, names {names:b}: {other}"),
                }
            }
        }
        step += 1;
    }
    assert!(step > 3, "{step} steps");
    refused
}

fn remove(wal: &mut Wal, disk: &MemDisk, lsn: u64) -> Result<(), String> {
    wal.remove_before(&mut disk.clone(), Lsn(lsn), ALL).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn a_crash_between_the_publication_of_a_snapshot_and_the_removal_of_segments_costs_nothing_in_either_order() {
    let publish_first: Steps = |wal, disk| {
        publish(disk, 17).map_err(|error| error.to_string())?;
        remove(wal, disk, 9)
    };
    let remove_first: Steps = |wal, disk| {
        remove(wal, disk, 9)?;
        publish(disk, 17).map_err(|error| error.to_string())
    };
    assert_eq!((refusals_after(publish_first), refusals_after(remove_first)), (0, 0));
}

#[test]
fn segments_removed_before_the_snapshot_that_covers_them_is_durable_are_missed_in_words() {
    let too_early: Steps = |wal, disk| {
        remove(wal, disk, 17)?;
        publish(disk, 17).map_err(|error| error.to_string())
    };
    assert!(refusals_after(too_early) > 0);
}

#[test]
fn without_any_snapshot_what_a_removal_left_is_refused() {
    let (disk, mut wal, records) = twenty_records();
    remove(&mut wal, &disk, 9).unwrap();
    disk.kill_process();
    let text = open(&disk).unwrap_err().to_string();
    assert!(text.contains("no snapshot covers") && text.contains("LSN 1 on"), "{text}");
    assert!(open_behind(&disk, identity(0, 0), &base_at(&records, 9), SEGMENT_BYTES).is_ok());
}

#[test]
fn a_cursor_at_the_end_of_a_segment_goes_on_in_the_next_whatever_went_at_the_front() {
    for end in 8..LAST {
        for gone in 0..4 {
            let disk = MemDisk::new();
            let mut wal = opened(&disk).wal;
            extend(&mut wal, &disk, end);
            let (mut cursor, mut out) = (Cursor::default(), Vec::new());
            wal.read(&mut disk.clone(), &mut cursor, Lsn(1), 1 << 20, &mut out).unwrap();
            extend(&mut wal, &disk, LAST + 4);
            wal.remove_before(&mut disk.clone(), Lsn(end), gone).unwrap();
            let range = wal.read(&mut disk.clone(), &mut cursor, Lsn(end + 1), 1 << 20, &mut out).unwrap();
            assert_eq!(range.last, Lsn(LAST + 4), "read to {end}, {gone} removed");
        }
    }
}
