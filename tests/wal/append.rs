//! What the running log guarantees: room before LSNs, one write per batch, tokens, rotation, reading back.

use kvstore::ids::{Lsn, Term};
use kvstore::wal::{
    Base, Cursor, Durability, HEADER_SIZE, Identity, MARK_SIZE, Opened, ReadError, ReserveError, SPARE_NAME,
    Wal, WalConfig,
};

use crate::mem_disk::{self, EIO, ENOSPC, MemDisk, OpKind};
use crate::wal_kit::*;

fn writes(disk: &MemDisk) -> usize {
    disk.op_log().iter().filter(|op| op.kind == OpKind::Write).count()
}

#[test]
fn an_empty_log_creates_nothing_and_takes_its_cluster_later() {
    let mut disk = MemDisk::new();
    let opened =
        Wal::open(&mut disk, Identity::default(), &Base::default(), 1, config(SEGMENT_BYTES)).unwrap();
    assert!(disk.names().is_empty());
    let mut wal = opened.wal;
    assert_eq!((wal.first_lsn(), wal.last_lsn(), wal.durable_lsn()), (Lsn(1), Lsn::ZERO, Lsn::ZERO));
    assert_eq!(wal.write(&mut disk, Lsn::ZERO).map(|()| writes(&disk)).unwrap(), 0);
    wal.set_cluster(CLUSTER);
    batch(&mut wal, &disk, 1, 10);
    assert_eq!(segments(&disk), [FIRST_SEGMENT]);
}

#[test]
fn what_was_appended_reads_back_after_a_restart_with_chain_and_terms() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    append(&mut wal, &disk, &term_bytes(1, 1)).unwrap();
    append_many(&mut wal, &disk, 5, 20);
    write(&mut wal, &disk).unwrap();
    append(&mut wal, &disk, &term_bytes(7, 2)).unwrap();
    batch(&mut wal, &disk, 200, 50);
    let records = contents(&mut wal, &disk);
    assert_eq!((records.len(), wal.last_chain()), (207, chain_of(&records)));
    drop(wal);
    disk.kill_process();
    let Opened { mut wal, report } = opened(&disk);
    assert_eq!(contents(&mut wal, &disk), records);
    assert_eq!((report.first_lsn, report.last_lsn, wal.last_chain()), (Lsn(1), Lsn(207), chain_of(&records)));
    assert!(report.segments > 3 && report.segments == segments(&disk).len());
    assert_eq!(wal.last_term(), Term { promotion: 0, start: 2 });
    assert_eq!(wal.history().starts().iter().map(|start| start.first_lsn.0).collect::<Vec<_>>(), [1, 7]);
    assert_eq!(wal.history().starts()[1].chain, chain_of(&records[..7]));
}

#[test]
fn a_batch_is_one_write_and_one_sync() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 10);
    let before = disk.op_log().len();
    batch(&mut wal, &disk, 20, 10);
    let kinds: Vec<OpKind> = disk.op_log()[before..].iter().map(|op| op.kind).collect();
    assert_eq!(kinds, [OpKind::Write, OpKind::Sync]);
}

#[test]
fn a_prepared_spare_leaves_no_allocation_to_a_rotation() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 3500);
    wal.prepare_spare(&mut disk.clone()).unwrap();
    wal.prepare_spare(&mut disk.clone()).unwrap();
    assert!(disk.names().contains(&SPARE_NAME.to_owned()));
    let before = disk.op_log().len();
    batch(&mut wal, &disk, 1, 3500);
    let kinds: Vec<OpKind> = disk.op_log()[before..].iter().map(|op| op.kind).collect();
    let rotation = [OpKind::Sync, OpKind::Write, OpKind::Sync, OpKind::Rename, OpKind::SyncDir];
    assert_eq!(kinds, [&rotation[..], &[OpKind::Write, OpKind::Sync]].concat());
    assert!(!disk.names().contains(&SPARE_NAME.to_owned()));
}

#[test]
fn a_record_larger_than_a_segment_gets_a_file_of_its_own_size() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 2, 100);
    wal.prepare_spare(&mut disk.clone()).unwrap();
    batch(&mut wal, &disk, 1, 3 << 20);
    batch(&mut wal, &disk, 2, 100);
    let records = contents(&mut wal, &disk);
    disk.kill_process();
    let mut wal = opened(&disk).wal;
    assert_eq!(contents(&mut wal, &disk), records);
    assert_eq!(segments(&disk), [segment_of(1), segment_of(3), segment_of(4)]);
    assert_eq!(read_all(&mut wal, &disk, 1000), records.concat());
}

#[test]
fn a_full_disk_is_no_room_uses_no_lsn_and_ends_when_space_returns() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 3000);
    append_many(&mut wal, &disk, 1, 500);
    disk.set_capacity(Some(disk.used() + 100));
    for _ in 0..3 {
        let refused = append(&mut wal, &disk, &put_bytes(3, 0, 3000)).unwrap_err();
        assert!(matches!(&refused, ReserveError::NoRoom(error) if error.raw_os_error() == Some(ENOSPC)));
        assert!(refused.to_string().contains("until space is freed"), "{refused}");
    }
    assert_eq!(wal.last_lsn(), Lsn(2), "the refused record has no LSN");
    assert!(matches!(wal.prepare_spare(&mut disk.clone()), Err(ReserveError::NoRoom(_))));
    write(&mut wal, &disk).unwrap();
    assert_eq!(flush(&mut wal, &disk).unwrap().lsn(), Lsn(2), "what had its room is written all the same");
    disk.set_capacity(None);
    assert_eq!(batch(&mut wal, &disk, 1, 3000).lsn(), Lsn(3));
    disk.kill_process();
    assert_eq!(opened(&disk).wal.last_lsn(), Lsn(3));
}

#[test]
fn a_failed_allocation_that_is_no_lack_of_space_is_a_failure() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    disk.fail(OpKind::Create, 0, EIO);
    let failed = append(&mut wal, &disk, &put_bytes(1, 0, 10)).unwrap_err();
    assert!(matches!(failed, ReserveError::Failed(error) if error.file.ends_with(SPARE_NAME)));
}

#[test]
fn short_writes_go_on_where_they_stopped() {
    let disk = MemDisk::new();
    disk.set_write_size_max(Some(7));
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 3, 100);
    batch(&mut wal, &disk, 40, 100);
    let records = contents(&mut wal, &disk);
    disk.kill_process();
    let mut wal = opened(&disk).wal;
    assert_eq!((records.len(), contents(&mut wal, &disk)), (43, records));
}

#[test]
fn a_failed_write_or_sync_names_file_and_byte_and_says_what_to_do() {
    for kind in [OpKind::Write, OpKind::Sync] {
        let disk = MemDisk::new();
        let mut wal = opened(&disk).wal;
        batch(&mut wal, &disk, 1, 10);
        append_many(&mut wal, &disk, 1, 10);
        disk.fail(kind, 0, EIO);
        let error = write(&mut wal, &disk).and_then(|()| flush(&mut wal, &disk)).unwrap_err();
        assert!(error.file.ends_with(FIRST_SEGMENT) && error.offset > 4096);
        let text = error.to_string();
        assert!(text.contains(FIRST_SEGMENT) && text.contains("the process ends"), "{text}");
        assert_eq!(wal.durable_lsn(), Lsn(1));
    }
}

#[test]
fn a_pending_flush_gives_its_token_later_and_only_for_what_was_written_before() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 10);
    disk.hold_flushes(true);
    append_many(&mut wal, &disk, 1, 10);
    write(&mut wal, &disk).unwrap();
    assert!(wal.needs_flush());
    assert_eq!(wal.flush_begin(&mut disk.clone()).unwrap(), None);
    assert!(!wal.needs_flush() && wal.flush_poll(&mut disk.clone()).is_none());
    append_many(&mut wal, &disk, 1, 10);
    write(&mut wal, &disk).unwrap();
    disk.complete_flush();
    let token = wal.flush_poll(&mut disk.clone()).unwrap().unwrap();
    assert_eq!((token.lsn(), token.generation(), wal.durable_lsn()), (Lsn(2), 0, Lsn(2)));
    assert!(wal.needs_flush(), "LSN 3 was written after that flush began");
}

#[test]
fn a_rotation_and_a_clean_end_wait_for_the_flush_under_way() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 1, 3000);
    append_many(&mut wal, &disk, 1, 10);
    write(&mut wal, &disk).unwrap();
    disk.hold_flushes(true);
    assert_eq!(wal.flush_begin(&mut disk.clone()).unwrap(), None);
    append_many(&mut wal, &disk, 1, 20);
    let large = put_bytes(4, 0, 3000);
    assert!(matches!(append(&mut wal, &disk, &large), Err(ReserveError::FlushPending)));
    assert!(matches!(wal.write_mark(&mut disk.clone(), Lsn::ZERO), Err(ReserveError::FlushPending)));
    assert_eq!((wal.last_lsn(), segments(&disk).len()), (Lsn(3), 1));
    disk.complete_flush();
    assert_eq!(wal.flush_poll(&mut disk.clone()).unwrap().unwrap().lsn(), Lsn(2));
    append(&mut wal, &disk, &large).unwrap();
    assert_eq!((wal.durable_lsn(), segments(&disk).len()), (Lsn(3), 2));
}

#[test]
fn what_a_rotation_synced_still_gets_its_token() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    append_many(&mut wal, &disk, 2, 3000);
    assert_eq!((wal.written_lsn(), wal.durable_lsn()), (Lsn(1), Lsn(1)));
    assert!(wal.needs_flush());
    assert_eq!(flush(&mut wal, &disk).unwrap().lsn(), Lsn(1));
    assert!(!wal.needs_flush());
}

#[test]
fn without_fsync_a_token_costs_no_sync_and_the_log_survives_the_process() {
    let mut disk = MemDisk::new();
    let config = WalConfig { segment_bytes: SEGMENT_BYTES, durability: Durability::Os };
    let mut wal = Wal::open(&mut disk, identity(0, 0), &Base::default(), 1, config).unwrap().wal;
    batch(&mut wal, &disk, 1, 10);
    let before = disk.op_log().len();
    assert_eq!(batch(&mut wal, &disk, 1, 10).lsn(), Lsn(2));
    assert_eq!(wal.durable_lsn(), Lsn(2));
    assert!(disk.op_log()[before..].iter().all(|op| op.kind == OpKind::Write));
    disk.kill_process();
    assert_eq!(opened(&disk).wal.last_lsn(), Lsn(2));
}

#[test]
fn a_clean_end_leaves_nothing_to_write_again_and_tells_the_commit_lsn() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    append_many(&mut wal, &disk, 3, 10);
    wal.write_mark(&mut disk.clone(), Lsn(2)).unwrap();
    disk.crash(mem_disk::Keep::None);
    let report = opened(&disk).report;
    assert_eq!((report.last_lsn, report.commit_lsn), (Lsn(3), Lsn(2)));
    assert_eq!(report.rewritten_bytes, MARK_SIZE as u64, "the mark itself");
    assert_eq!(report.cut_tail, None);
}

#[test]
fn repeated_restarts_converge() {
    let disk = MemDisk::new();
    batch(&mut opened(&disk).wal, &disk, 3, 10);
    disk.kill_process();
    assert!(opened(&disk).report.rewritten_bytes > MARK_SIZE as u64);
    disk.kill_process();
    let before = disk.raw(FIRST_SEGMENT).unwrap();
    for _ in 0..50 {
        assert_eq!(opened(&disk).report.rewritten_bytes, MARK_SIZE as u64);
        disk.kill_process();
    }
    assert_eq!(disk.raw(FIRST_SEGMENT).unwrap(), before);
}

#[test]
fn reads_give_the_written_bytes_in_ranges_that_fit_and_at_least_one_record() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    for _ in 0..30 {
        batch(&mut wal, &disk, 4, 90);
    }
    append_many(&mut wal, &disk, 1, 5);
    let records = contents(&mut wal, &disk);
    assert_eq!(records.len(), 120, "what is not written is not read");
    for max_bytes in [1, 300, 5000, 1 << 20] {
        assert_eq!(read_all(&mut wal, &disk, max_bytes), records.concat());
    }
    let (mut cursor, mut out) = (Cursor::default(), Vec::new());
    for from in [77, 3, 120, 1, 50] {
        out.clear();
        let range = wal.read(&mut disk.clone(), &mut cursor, Lsn(from), 300, &mut out).unwrap();
        let at = from as usize - 1;
        assert_eq!(out, records[at..at + range.count as usize].concat());
        assert_eq!(range.chain, chain_of(&records[..at + range.count as usize]));
    }
    let beyond = wal.read(&mut disk.clone(), &mut cursor, Lsn(121), 300, &mut out);
    assert!(matches!(beyond, Err(ReadError::NotHeld { lsn: Lsn(121), first: Lsn(1), last: Lsn(120) })));
}

#[test]
fn the_chain_is_known_at_every_lsn_held_and_at_no_other() {
    let disk = MemDisk::new();
    let mut wal = wal_with_big_segments(&disk);
    for _ in 0..10 {
        batch(&mut wal, &disk, 40, 900);
    }
    let records = contents(&mut wal, &disk);
    for lsn in (0..=400).step_by(13).chain([1, 399, 400]) {
        let chain = wal.chain_at(&mut disk.clone(), Lsn(lsn)).unwrap();
        assert_eq!(chain, Some(chain_of(&records[..lsn as usize])), "LSN {lsn}");
    }
    assert_eq!(wal.chain_at(&mut disk.clone(), Lsn(401)).unwrap(), None);
}

fn wal_with_big_segments(disk: &MemDisk) -> Wal {
    open_at(disk, 0, 0, 200 << 10).unwrap().wal
}

#[test]
fn damage_found_by_a_reader_is_named_and_not_handed_out() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 3, 100);
    disk.corrupt(FIRST_SEGMENT, HEADER_SIZE + MARK_SIZE as u64 + 8 + 120 + 60, 3);
    let mut out = Vec::new();
    let error = wal.read(&mut disk.clone(), &mut Cursor::default(), Lsn(1), 1 << 20, &mut out).unwrap_err();
    assert!(matches!(&error, ReadError::Damaged { lsn: Lsn(2), .. }), "{error}");
    assert!(error.to_string().contains(FIRST_SEGMENT));
}

#[test]
fn a_log_of_many_segments_needs_few_open_files() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    for _ in 0..40 {
        batch(&mut wal, &disk, 1, 3500);
    }
    let records = contents(&mut wal, &disk);
    assert_eq!((segments(&disk).len(), read_all(&mut wal, &disk, 4000)), (40, records.concat()));
}
