//! A node that copies its closed segments into an archive: what goes when, what a crash at any operation of either disk
//! leaves, and an archive that is full, gone, or somebody else's.

use kvstore::backup::{COPY_NAME, NOTE_NAME, read_note};
use kvstore::wire::client::Request;

use crate::archive_kit::*;
use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};

fn disks() -> (MemDisk, MemDisk) {
    (MemDisk::new(), MemDisk::new())
}

/// How many copies were begun.
fn copies_begun(archive: &MemDisk) -> usize {
    archive.op_log().iter().filter(|op| op.kind == OpKind::Create && op.name == COPY_NAME).count()
}

fn noted(archive: &MemDisk) -> u64 {
    read_note(&mut archive.clone()).expect("an archive has its note").lsn.0
}

#[test]
fn what_leaves_the_log_is_in_the_archive_and_both_together_hold_everything() {
    let (disk, archive) = disks();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.story().unwrap();
    assert!(rig.first_lsn() > 1, "the snapshots let segments go");
    let status = rig.status();
    assert!(status["state"] == "idle" && status["segments_waiting"] == 0, "{status}");
    assert_eq!(status["lsn"], noted(&archive));
    let copied = segments(&archive);
    assert_eq!(status["copied"], copied.len());
    assert_eq!(reach_all(&[&archive]), noted(&archive), "the archive alone, record by record");
    assert!(noted(&archive) >= rig.first_lsn() - 1);
    assert_eq!(reach_all(&[&archive, &disk]), rig.acked);
    assert_eq!(archive.open_files(), 0, "nothing is held between copies");
}

#[test]
fn a_copy_has_its_name_only_when_it_is_synced_and_the_note_follows() {
    let (disk, archive) = disks();
    Rig::start(&disk, &archive, UNBOUNDED).unwrap().puts(1..80).unwrap();
    let log = archive.op_log();
    let is_name = |name: &str| name.starts_with("wal-") && name.ends_with(".seg");
    let named: Vec<usize> =
        (0..log.len()).filter(|at| log[*at].kind == OpKind::Rename && is_name(&log[*at].name)).collect();
    assert!(named.len() >= 2, "{log:?}");
    for at in named {
        assert_eq!((log[at - 1].kind, log[at - 1].name.as_str()), (OpKind::Sync, COPY_NAME));
        let behind: Vec<OpKind> = log[at + 1..at + 7].iter().map(|op| op.kind).collect();
        let wanted =
            [OpKind::SyncDir, OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::Rename, OpKind::SyncDir];
        assert_eq!(behind, wanted);
        assert_eq!(log[at + 5].name, NOTE_NAME);
    }
}

/// What must be so after any crash: nothing acknowledged is on neither disk, and the note tells the truth.
fn check_crashed(disk: &MemDisk, archive: &MemDisk, acked: u64, when: &str) {
    if archive.names().iter().any(|name| name == NOTE_NAME) {
        assert!(reach_all(&[archive]) >= noted(archive), "{when}: the note claims what is not there");
    }
    let mut rig = Rig::start(disk, archive, UNBOUNDED).unwrap_or_else(|error| panic!("{when}: {error}"));
    let (last, ..) = rig.lone.node.positions();
    let held = reach_all(&[archive, disk]);
    assert!(
        held >= acked,
        "{when}: records up to {acked} were acknowledged, and both hold them up to {held}"
    );
    // And it goes on: all that is closed gets there, with nothing left over.
    rig.puts(400..450).unwrap();
    rig.pass(2_000).unwrap();
    assert_eq!(rig.status()["segments_waiting"], 0, "{when}");
    assert!(noted(archive) > last.0, "{when}");
    assert_eq!(reach_all(&[archive]), noted(archive), "{when}");
    assert!(archive.names().iter().all(|name| !name.ends_with(".tmp") && !name.ends_with(".new")), "{when}");
}

/// Crashes both disks at once, before the operation `at` of the one or the other.
fn crash_at(at: u64, is_archive: bool) {
    let (disk, archive) = disks();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    if is_archive {
        archive.crash_before(at)
    } else {
        disk.crash_before(at)
    }
    // The archive's crash ends no process: what happens behind it is part of what is tested.
    let result = rig.story();
    assert!(is_archive || result.is_err(), "operation {at} of the log's disk is in the story");
    let acked = rig.acked;
    drop(rig);
    for keep in [Keep::None, Keep::All, Keep::Random(at), Keep::Random(!at)] {
        let (disk, archive) = (disk.fork(), archive.fork());
        disk.crash(keep);
        archive.crash(keep);
        check_crashed(&disk, &archive, acked, &format!("op {at}, {keep:?}"));
    }
    disk.kill_process();
    archive.kill_process();
    check_crashed(&disk, &archive, acked, &format!("killed at op {at}"));
}

#[test]
fn a_crash_before_any_operation_of_the_archive_loses_nothing() {
    let (disk, archive) = disks();
    Rig::start(&disk, &archive, UNBOUNDED).unwrap().story().unwrap();
    for at in 0..archive.op_count() {
        crash_at(at, true);
    }
}

#[test]
fn a_crash_before_any_removal_rename_or_directory_sync_of_the_log_loses_nothing() {
    let (disk, archive) = disks();
    Rig::start(&disk, &archive, UNBOUNDED).unwrap().story().unwrap();
    let changes = [OpKind::Remove, OpKind::Rename, OpKind::SyncDir];
    let begin = operations_of_a_start();
    for (at, op) in disk.op_log().iter().enumerate().skip(begin) {
        if changes.contains(&op.kind) {
            crash_at(at as u64, false);
        }
    }
}

/// Operations of the log's disk before the story begins.
fn operations_of_a_start() -> usize {
    let (disk, archive) = disks();
    Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    disk.op_count() as usize
}

#[test]
fn after_a_restart_nothing_is_copied_twice_also_if_copies_were_moved_elsewhere() {
    let (disk, archive) = disks();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.puts(1..120).unwrap();
    rig.pass(500).unwrap();
    let copied = segments(&archive);
    assert!(copied.len() >= 3 && copies_begun(&archive) == copied.len());
    drop(rig);
    disk.kill_process();
    archive.kill_process();
    copied.iter().for_each(|name| archive.remove_raw(name));
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.puts(200..300).unwrap();
    rig.pass(500).unwrap();
    let more = segments(&archive);
    assert!(!more.is_empty() && more.iter().all(|name| !copied.contains(name)), "{more:?}");
    assert_eq!(copies_begun(&archive), copied.len() + more.len());
}

#[test]
fn a_full_archive_stops_nobody_and_gets_what_it_missed() {
    let (disk, archive) = disks();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.puts(1..40).unwrap();
    archive.set_capacity(Some(archive.used()));
    rig.story().unwrap();
    let status = rig.status();
    assert!(status["state"] == "failing" && status["segments_waiting"].as_u64().unwrap() > 2, "{status}");
    assert!(status["last_error"].as_str().unwrap().contains("cannot allocate"), "{status}");
    assert_eq!(rig.first_lsn() - 1, noted(&archive), "what has no copy stays in the log");
    archive.set_capacity(None);
    rig.pass(40_000).unwrap();
    let status = rig.status();
    assert!(status["state"] == "idle" && status["segments_waiting"] == 0, "{status}");
    assert!(status["missed"] == 0 && status["last_error"].is_null(), "{status}");
    rig.snapshot().unwrap();
    assert_eq!(reach_all(&[&archive]), noted(&archive));
    assert!(rig.first_lsn() > 100, "and then the log goes: {}", rig.first_lsn());
}

#[test]
fn at_the_bound_the_oldest_goes_without_a_copy_and_later_ones_are_copied_again() {
    let (disk, archive) = disks();
    let mut rig = Rig::unmounted(&disk, &archive, 150_000);
    rig.story().unwrap();
    let status = rig.status();
    let missed = status["missed"].as_u64().unwrap();
    assert!(missed >= 2 && status["last_error"] == "it is not mounted", "{status}");
    assert!(rig.first_lsn() > 1, "two segments may wait, and more are there");
    assert!(status["bytes_waiting"].as_u64().unwrap() <= 150_000 + (64 << 10), "{status}");
    let begins = rig.first_lsn();
    rig.there.set(true);
    rig.pass(40_000).unwrap();
    let status = rig.status();
    assert!(status["state"] == "idle" && status["segments_waiting"] == 0, "{status}");
    assert_eq!(segments(&archive)[0], kvstore::wal::segment_name(kvstore::ids::Lsn(begins)));
    assert_eq!(status["missed"], missed, "a new archive begins where the log does");
}

#[test]
fn a_copy_whose_sync_failed_is_made_anew() {
    for after in 0..12 {
        let (disk, archive) = disks();
        let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
        archive.fail(OpKind::Sync, after, EIO);
        rig.story().unwrap();
        rig.pass(5_000).unwrap();
        archive.crash(Keep::None);
        assert_eq!(reach_all(&[&archive]), noted(&archive), "sync {after}");
        disk.crash(Keep::None);
        assert_eq!(reach_all(&[&archive, &disk]), rig.acked, "sync {after}");
    }
}

#[test]
fn a_segment_that_rots_before_it_is_copied_does_not_pass_for_a_copy() {
    let (disk, archive) = disks();
    let mut rig = Rig::unmounted(&disk, &archive, UNBOUNDED);
    rig.puts(1..120).unwrap();
    let second = segments(&disk)[1].clone();
    disk.corrupt(&second, 30_000, 2);
    rig.there.set(true);
    rig.pass(40_000).unwrap();
    let status = rig.status();
    let why = status["last_error"].as_str().unwrap();
    assert!(why.contains(&second) && why.contains("is damaged at byte"), "{status}");
    assert_eq!(segments(&archive).len(), 1, "the one before it");
    assert_eq!(rig.ask(&Request::Get { key: b"key-1" }).unwrap().0, kvstore::wire::client::Status::Ok);
}

#[test]
fn a_directory_that_is_not_this_nodes_archive_is_refused_in_words() {
    let refusal = |archive: &MemDisk| {
        let mut rig = Rig::start(&MemDisk::new(), archive, UNBOUNDED).unwrap();
        let before = archive.names();
        rig.puts(1..80).unwrap();
        assert_eq!(archive.names(), before, "nothing in it was changed");
        rig.status()["last_error"].as_str().expect("it was refused").to_owned()
    };
    let data_dir = MemDisk::new();
    Rig::start(&data_dir, &MemDisk::new(), UNBOUNDED).unwrap();
    data_dir.kill_process();
    assert!(refusal(&data_dir).contains("it is a data directory"));
    // A node has its id from a seed that is the same for all of these: another one comes from another log.
    let (disk, archive) = disks();
    Rig::start(&disk, &archive, UNBOUNDED).unwrap().puts(1..80).unwrap();
    archive.kill_process();
    let mut raw = archive.raw(NOTE_NAME).unwrap();
    raw[40] ^= 1;
    let crc = crc32fast::hash(&raw[..60]);
    raw[60..].copy_from_slice(&crc.to_be_bytes());
    archive.put_raw(NOTE_NAME, &raw);
    assert!(refusal(&archive).contains("is the archive of node"));
    raw[50] ^= 1;
    archive.put_raw(NOTE_NAME, &raw);
    assert!(refusal(&archive).contains("is damaged: its checksum does not hold"));
    archive.remove_raw(NOTE_NAME);
    assert!(refusal(&archive).contains("no file ARCHIVE that says whose it is"));
}

#[test]
fn a_log_that_went_another_way_puts_the_old_copies_aside_and_is_copied_again() {
    let (disk, archive) = disks();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.puts(1..60).unwrap();
    rig.lone.node.close_log().unwrap();
    disk.kill_process();
    let older = disk.fork();
    drop(rig);
    archive.kill_process();
    let mut rig = Rig::start(&disk, &archive, UNBOUNDED).unwrap();
    rig.puts(100..200).unwrap();
    rig.pass(500).unwrap();
    drop(rig);
    archive.kill_process();
    let first_history = segments(&archive);
    // Somebody puts the older copy of the data directory back. Its log lacks what the archive has, and then differs.
    let mut rig = Rig::start(&older, &archive, UNBOUNDED).unwrap();
    rig.puts(500..520).unwrap();
    rig.pass(500).unwrap();
    assert_eq!(segments(&archive), first_history, "as long as that is not known nothing is touched");
    rig.puts(520..700).unwrap();
    rig.pass(2_000).unwrap();
    assert_eq!(rig.status()["segments_waiting"], 0);
    let names = archive.names();
    let aside = names.iter().filter(|name| name.starts_with("replaced-g1-wal-")).count();
    assert_eq!(aside, first_history.len(), "{names:?}");
    assert_eq!(reach_all(&[&archive]), noted(&archive));
    assert_eq!(reach_all(&[&archive, &older]), rig.acked);
}
