//! What a crash may take: nothing that had a token, and nothing that a restart has told.

use kvstore::ids::Lsn;
use kvstore::wal::{MARK_SIZE, OpenError, ReserveError, Wal, WalError};

use crate::mem_disk::{EIO, Keep, MemDisk, OpKind, SECTOR_SIZE};
use crate::wal_kit::*;

/// Appends, rotations, a cut within a segment, one over segments, and one of everything.
fn run(promises: &mut Promises, disk: &MemDisk) -> Result<(), WalError> {
    let mut wal = match open(disk) {
        Ok(opened) => opened.wal,
        Err(OpenError::Io(error)) => return Err(error),
        Err(other) => panic!("an empty directory opens: {other}"),
    };
    for size in [100, 900, 30] {
        promises.append(&mut wal, disk, 1, size)?;
        promises.append(&mut wal, disk, 1, size)?;
        promises.flush(&mut wal, disk)?;
    }
    promises.append(&mut wal, disk, 1, 200)?;
    write(&mut wal, disk)?;
    promises.cut(&mut wal, disk, 4)?;
    for _ in 0..3 {
        promises.append(&mut wal, disk, 2, 1500)?;
        promises.append(&mut wal, disk, 2, 900)?;
        promises.flush(&mut wal, disk)?;
    }
    promises.cut(&mut wal, disk, 5)?;
    promises.append(&mut wal, disk, 3, 700)?;
    promises.flush(&mut wal, disk)?;
    promises.cut(&mut wal, disk, 0)?;
    promises.append(&mut wal, disk, 4, 50)?;
    promises.flush(&mut wal, disk)?;
    match wal.write_mark(&mut disk.clone(), Lsn::ZERO) {
        Err(ReserveError::Failed(error)) => Err(error),
        _ => Ok(()),
    }
}

fn crashed_at(op: u64) -> (MemDisk, Promises) {
    let (disk, mut promises) = (MemDisk::new(), Promises::default());
    disk.crash_before(op);
    // The error is the crash; the run of no crash ends well.
    let _ = run(&mut promises, &disk);
    (disk, promises)
}

fn ops_of_run() -> u64 {
    let (disk, _) = crashed_at(u64::MAX);
    assert!(!disk.has_crashed());
    disk.op_count()
}

fn keeps() -> impl Iterator<Item = Keep> {
    [Keep::None, Keep::All].into_iter().chain((0..10).map(Keep::Random))
}

#[test]
fn a_power_loss_before_any_operation_takes_nothing_that_had_a_token() {
    for op in 0..=ops_of_run() {
        let (disk, promises) = crashed_at(op);
        for sectors in keeps() {
            for names in [Keep::None, Keep::All, Keep::Random(op)] {
                let disk = disk.fork();
                disk.crash_with(sectors, names);
                promises.check(&disk, &format!("op {op}, sectors {sectors:?}, names {names:?}"));
            }
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    for op in 0..=ops_of_run() {
        let (disk, promises) = crashed_at(op);
        disk.kill_process();
        promises.check(&disk, &format!("op {op}"));
    }
}

#[test]
fn what_an_open_has_told_survives_a_power_loss_right_after_it() {
    for op in 0..=ops_of_run() {
        let (disk, promises) = crashed_at(op);
        disk.kill_process();
        let told = promises.check(&disk, &format!("op {op}"));
        for keep in [Keep::None, Keep::Random(op), Keep::Random(op + 1000)] {
            let disk = disk.fork();
            disk.crash(keep);
            assert_eq!(promises.check(&disk, &format!("op {op}, {keep:?}")), told);
        }
    }
}

#[test]
fn what_is_appended_after_an_open_does_not_rest_on_names_that_a_power_loss_takes() {
    for op in 0..=ops_of_run() {
        let (disk, mut promises) = crashed_at(op);
        disk.kill_process();
        let (generation, cut_lsn) = promises.meta;
        let mut wal = open_at(&disk, generation, cut_lsn, SEGMENT_BYTES).unwrap().wal;
        promises.appended.truncate(wal.last_lsn().0 as usize);
        promises.append(&mut wal, &disk, 9, 60).unwrap();
        promises.flush(&mut wal, &disk).unwrap();
        for keep in [Keep::None, Keep::Random(op)] {
            let disk = disk.fork();
            disk.crash(keep);
            promises.check(&disk, &format!("op {op}, {keep:?}"));
        }
    }
}

#[test]
fn a_power_loss_during_an_open_is_no_worse_than_before_it() {
    for op in (0..=ops_of_run()).step_by(2) {
        let (disk, promises) = crashed_at(op);
        for first_keep in [Keep::All, Keep::Random(op)] {
            let disk = disk.fork();
            disk.crash(first_keep);
            let (mut step, mut ended) = (0, false);
            while !ended {
                let disk = disk.fork();
                disk.crash_before(disk.op_count() + step);
                let (generation, cut_lsn) = promises.meta;
                ended = open_at(&disk, generation, cut_lsn, SEGMENT_BYTES).is_ok() && !disk.has_crashed();
                for second_keep in [Keep::None, Keep::Random(step), Keep::Random(step + 99)] {
                    let disk = disk.fork();
                    disk.crash(second_keep);
                    promises.check(&disk, &format!("op {op}, {first_keep:?}, step {step}, {second_keep:?}"));
                }
                step += 1;
            }
        }
    }
}

/// Two flushed batches and a third that is only written; the byte where the third begins.
fn with_unsynced_batch(sizes: &[usize]) -> (MemDisk, Promises, usize) {
    let (disk, mut promises) = (MemDisk::new(), Promises::default());
    let mut wal = opened(&disk).wal;
    for size in [40, 200] {
        promises.append(&mut wal, &disk, 1, size).unwrap();
        promises.flush(&mut wal, &disk).unwrap();
    }
    let begin = disk.op_log().iter().rev().find(|op| op.kind == OpKind::Write).unwrap().clone();
    for &size in sizes {
        promises.append(&mut wal, &disk, 1, size).unwrap();
    }
    write(&mut wal, &disk).unwrap();
    (disk, promises, (begin.offset + begin.size) as usize)
}

#[test]
fn every_torn_length_of_the_last_batch_keeps_the_whole_records_before_the_tear() {
    let sizes = [10, 70, 33];
    let (disk, promises, begin) = with_unsynced_batch(&sizes);
    disk.kill_process();
    let raw = disk.raw(FIRST_SEGMENT).unwrap();
    let ends: Vec<usize> = promises.appended[2..]
        .iter()
        .scan(begin + MARK_SIZE, |end, bytes| {
            *end += 8 + bytes.len();
            Some(*end)
        })
        .collect();
    let end = *ends.last().unwrap();
    assert!(raw[end - 1] != 0 && raw[end..].iter().all(|&byte| byte == 0));
    for torn in begin..=end {
        let mut bytes = raw.clone();
        bytes[torn..].fill(0);
        let disk = MemDisk::new();
        disk.put_raw(FIRST_SEGMENT, &bytes);
        let whole = ends.iter().filter(|&&end| end <= torn).count();
        let report = opened(&disk).report;
        assert_eq!(report.last_lsn, Lsn(2 + whole as u64), "torn at {torn}");
        let kept_end = if torn < begin + MARK_SIZE {
            begin
        } else {
            ends[..whole].last().copied().unwrap_or(begin + MARK_SIZE)
        };
        let torn_bytes =
            bytes[kept_end..torn].iter().rposition(|&byte| byte != 0).map(|last| last as u64 + 1);
        let tail = report.cut_tail.map(|tail| (tail.offset, tail.bytes));
        assert_eq!(tail, torn_bytes.map(|bytes| (kept_end as u64, bytes)), "torn at {torn}");
    }
}

#[test]
fn every_lost_subset_of_the_last_batchs_sectors_is_a_tail_whatever_survived_behind() {
    let (disk, promises, begin) = with_unsynced_batch(&[300, 5, 600, 41, 700, 800, 900]);
    let sectors = disk.unsynced_sectors().len();
    assert!((7..=10).contains(&sectors), "{sectors} sectors");
    let (mut shortest, mut longest) = (usize::MAX, 0);
    for mask in 0..1u64 << sectors {
        let disk = disk.fork();
        disk.crash(Keep::Mask(mask));
        let found = promises.check(&disk, &format!("mask {mask:b}"));
        (shortest, longest) = (shortest.min(found), longest.max(found));
        if mask & 1 == 0 {
            assert_eq!(found, 2, "the mark's sector is lost, so the batch is, mask {mask:b}");
            assert!(begin / SECTOR_SIZE == (begin + MARK_SIZE - 1) / SECTOR_SIZE);
        }
        // Nothing of what survived behind the tear is left.
        let raw = disk.raw(FIRST_SEGMENT).unwrap();
        disk.kill_process();
        assert_eq!(open(&disk).unwrap().report.cut_tail, None, "mask {mask:b}");
        assert_eq!(disk.raw(FIRST_SEGMENT).unwrap(), raw);
    }
    assert_eq!((shortest, longest), (2, 9));
}

#[test]
fn every_lost_subset_of_two_unsynced_batches_is_a_tail() {
    let (disk, mut promises, _) = with_unsynced_batch(&[500, 600]);
    // The flush of the first batch is under way when the second is written: neither is claimed.
    let mut wal = open_again(&disk);
    promises.append(&mut wal, &disk, 1, 900).unwrap();
    write(&mut wal, &disk).unwrap();
    promises.append(&mut wal, &disk, 1, 800).unwrap();
    write(&mut wal, &disk).unwrap();
    let sectors = disk.unsynced_sectors().len();
    assert!((3..=10).contains(&sectors), "{sectors} sectors");
    for mask in 0..1u64 << sectors {
        let disk = disk.fork();
        disk.crash(Keep::Mask(mask));
        promises.check(&disk, &format!("mask {mask:b}"));
    }
}

fn open_again(disk: &MemDisk) -> Wal {
    disk.kill_process();
    opened(disk).wal
}

#[test]
fn after_a_failed_sync_the_restart_makes_durable_what_it_reads_from_the_page_cache() {
    let (disk, mut promises) = (MemDisk::new(), Promises::default());
    let mut wal = opened(&disk).wal;
    promises.append(&mut wal, &disk, 1, 100).unwrap();
    promises.flush(&mut wal, &disk).unwrap();
    promises.append(&mut wal, &disk, 1, 3000).unwrap();
    disk.fail(OpKind::Sync, 0, EIO);
    assert!(promises.flush(&mut wal, &disk).is_err());
    assert_eq!(promises.durable, 1);

    let lost = disk.fork();
    lost.crash(Keep::All);
    assert_eq!(promises.check(&lost, "power lost at once"), 1, "the sync lost it for good");

    disk.kill_process();
    let report = opened(&disk).report;
    assert_eq!(report.last_lsn, Lsn(2), "the page cache still shows it");
    assert!(report.rewritten_bytes > 3000);
    disk.crash(Keep::None);
    assert_eq!(promises.check(&disk, "power lost after the restart"), 2);
}

#[test]
fn a_mark_that_stands_in_the_page_cache_alone_carries_nothing() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    append_many(&mut wal, &disk, 3, 120);
    write(&mut wal, &disk).unwrap();
    drop(wal);
    disk.kill_process();
    // An open rewrites the batch, then says so in a mark, whose sync fails. The mark lies across two sectors.
    disk.fail(OpKind::Sync, 1, EIO);
    assert!(matches!(open(&disk), Err(OpenError::Io(_))));
    disk.kill_process();
    // The next one reads that mark, and appends behind it.
    let mut wal = opened(&disk).wal;
    let durable = batch(&mut wal, &disk, 2, 700);
    drop(wal);
    disk.crash(Keep::None);
    assert_eq!(opened(&disk).wal.last_lsn(), durable.lsn());
}

#[test]
fn an_open_whose_sync_fails_tells_nothing() {
    let (disk, promises, _) = with_unsynced_batch(&[100, 100]);
    disk.kill_process();
    for syncs_before in 0..2 {
        let disk = disk.fork();
        disk.fail(OpKind::Sync, syncs_before, EIO);
        let error = open(&disk).unwrap_err();
        assert!(error.to_string().contains("cannot sync"), "{error}");
        disk.crash(Keep::None);
        promises.check(&disk, "after the failed open");
    }
}

#[test]
fn the_cut_tail_is_reported_with_file_byte_and_size() {
    let (disk, _, begin) = with_unsynced_batch(&[300, 400]);
    let sectors = disk.unsynced_sectors().len();
    disk.crash(Keep::Mask((1 << sectors) - 2));
    let tail = opened(&disk).report.cut_tail.expect("later sectors survived the first");
    assert_eq!((tail.file.as_str(), tail.offset, tail.behind), (FIRST_SEGMENT, begin as u64, Lsn(2)));
    assert!(tail.bytes > 300);
}
