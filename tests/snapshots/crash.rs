//! After a crash at any step there is no snapshot or a whole one; what cannot be written is given up, alone.

use kvstore::disk::Disk;
use kvstore::limits::SNAPSHOT_CHUNK_SIZE_MAX;
use kvstore::snapshot::{
    Listed, NEW_NAME, Offer, RECEIVED_NAME, ReceiveError, ReceivedFile, SnapshotError, SnapshotInfo, list,
    remove_leftovers,
};

use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};
use crate::snapshot_kit::*;

const OLD: (u64, u64) = (12, 20);
const NEW: (u64, u64) = (30, 44);

/// Enough for two writes of blocks before the end.
fn many() -> Entries {
    entries(200, 4000)
}

/// An older snapshot there, durably.
fn disk_with_old() -> MemDisk {
    let disk = MemDisk::new();
    published(&disk, &entries(3, 10), OLD);
    disk
}

fn make(disk: &MemDisk) -> Result<SnapshotInfo, SnapshotError> {
    let mut disk = disk.clone();
    write(&mut disk, &many(), 300_000, NEW)?.publish(&mut disk)
}

/// The same by a transfer.
fn receive(disk: &MemDisk, info: &SnapshotInfo, raw: &[u8]) -> Result<SnapshotInfo, ReceiveError> {
    let mut disk = disk.clone();
    let offer = Offer { id: info.id, bytes: info.bytes, crc: info.crc };
    let begun = ReceivedFile::begin(&mut disk, CLUSTER, offer);
    let mut received = begun.map_err(ReceiveError::Write)?;
    for chunk in raw.chunks(200_000) {
        let offset = received.offset();
        if let Err(error) = received.receive(&mut disk, offset, chunk) {
            received.abandon(&mut disk);
            return Err(error);
        }
        let mut rest = chunk;
        while received.next_block(&disk, &mut rest)?.is_some() {}
    }
    received.finish(&mut disk)?.publish(&mut disk).map_err(ReceiveError::Write)
}

/// The old snapshot is whole; the new one is whole or not there. Returns whether it is there.
fn check(disk: &MemDisk, when: &str) -> bool {
    let mut disk = disk.clone();
    remove_leftovers(&mut disk).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(disk.names().iter().all(|name| !name.ends_with(".tmp")), "{when}: {:?}", disk.names());
    let listed = list(&mut disk, Some(CLUSTER)).expect("the directory can be listed");
    for one in &listed {
        let Listed::Snapshot(info) = one else { panic!("{when}: {one:?}") };
        let found = read(&mut disk, &info.name).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(found == if info.id == id(OLD.0, OLD.1) { entries(3, 10) } else { many() }, "{when}");
    }
    let ids: Vec<_> = listed.iter().map(Listed::id).collect();
    let (old, new) = (id(OLD.0, OLD.1), id(NEW.0, NEW.1));
    assert!(ids == [old] || ids == [new, old], "{when}: {ids:?}");
    ids.len() == 2
}

/// Crashes before every operation of `run`, in many ways; `run` says whether it got to its end.
fn crash_everywhere(run: impl Fn(&MemDisk) -> bool) {
    let start = disk_with_old();
    let whole = start.fork();
    assert!(run(&whole), "without a crash it goes well");
    let mut outcomes = [0, 0];
    for op in start.op_count()..=whole.op_count() {
        let disk = start.fork();
        disk.crash_before(op);
        let told = run(&disk);
        let unsynced = disk.unsynced_sectors().len();
        let prefixes = [1, unsynced / 2, unsynced.saturating_sub(1)].map(Keep::Prefix);
        let random = (0..12).map(Keep::Random);
        for sectors in [Keep::None, Keep::All].into_iter().chain(prefixes).chain(random) {
            for names in [Keep::None, Keep::All, Keep::Prefix(1), Keep::Random(op)] {
                let disk = disk.fork();
                disk.crash_with(sectors, names);
                let is_there = check(&disk, &format!("op {op}, sectors {sectors:?}, names {names:?}"));
                assert!(is_there || !told, "op {op}: it was told to be durable");
                outcomes[usize::from(is_there)] += 1;
            }
        }
        disk.kill_process();
        assert!(check(&disk, &format!("killed before op {op}")) || !told);
    }
    assert!(outcomes.iter().all(|&count| count > 0), "both outcomes were seen: {outcomes:?}");
}

#[test]
fn after_a_crash_at_any_step_there_is_no_new_snapshot_or_a_whole_one() {
    crash_everywhere(|disk| make(disk).is_ok());
}

#[test]
fn after_a_crash_at_any_step_of_a_transfer_there_is_no_new_snapshot_or_a_whole_one() {
    let source = MemDisk::new();
    let info = make(&source).unwrap();
    let raw = source.raw(&info.name).unwrap()[..info.bytes as usize].to_vec();
    assert!(raw.len() < SNAPSHOT_CHUNK_SIZE_MAX);
    crash_everywhere(|disk| receive(disk, &info, &raw).is_ok());
}

#[test]
fn every_subset_of_the_unsynced_sectors_of_a_small_file_leaves_none_or_a_whole_one() {
    let small = entries(3, 10);
    let run = |disk: &MemDisk| {
        let mut disk = disk.clone();
        write(&mut disk, &small, 0, OLD).and_then(|finished| finished.publish(&mut disk)).is_ok()
    };
    let whole = MemDisk::new();
    assert!(run(&whole));
    let mut cases = 0;
    for op in 0..=whole.op_count() {
        let disk = MemDisk::new();
        disk.crash_before(op);
        let told = run(&disk);
        let unsynced = disk.unsynced_sectors().len();
        assert!(unsynced <= 9, "a header and a block with its footer: {unsynced} sectors");
        for (mask, names) in (0..1u64 << unsynced)
            .flat_map(|mask| [Keep::None, Keep::All, Keep::Mask(2)].map(|names| (mask, names)))
        {
            let disk = disk.fork();
            disk.crash_with(Keep::Mask(mask), names);
            remove_leftovers(&mut disk.clone()).expect("leftovers can be removed");
            let names = disk.names();
            assert!(
                names.is_empty() && !told || read(&mut disk.clone(), &names[0]).unwrap() == small,
                "op {op}"
            );
            cases += 1;
        }
    }
    assert!(cases > 3 * 512, "the moment before the sync was among them: {cases} cases");
}

#[test]
fn a_snapshot_written_over_a_leftover_is_whole() {
    let disk = disk_with_old();
    let _ = write(&mut disk.clone(), &entries(500, 3000), 0, (25, 26)).unwrap();
    disk.kill_process();
    make(&disk).unwrap();
    disk.crash(Keep::None);
    assert!(check(&disk, "over a leftover"));
}

#[test]
fn a_full_disk_at_any_point_costs_the_snapshot_and_nothing_else() {
    let start = disk_with_old();
    let whole = start.fork();
    make(&whole).unwrap();
    let (from, to) = (start.used(), whole.used());
    let mut refused = 0;
    for capacity in (from..to + 20_000).step_by(9_973) {
        let disk = start.fork();
        disk.set_capacity(Some(capacity));
        match make(&disk) {
            Err(error @ SnapshotError::NoRoom { .. }) => {
                assert!(!error.is_fatal());
                assert_eq!(disk.used(), from, "what it took is given back");
                assert_eq!(disk.names(), start.names());
                refused += 1;
            }
            Ok(_) => assert!(capacity >= to),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(check(&disk, "after ENOSPC"), capacity >= to);
        disk.set_capacity(None);
        make(&disk).expect("with room there is one");
    }
    assert!(refused > 50, "{refused} refusals");
}

#[test]
fn a_failed_sync_is_never_published_even_if_the_pages_look_good() {
    for keep in [Keep::None, Keep::All, Keep::Random(5)] {
        let disk = disk_with_old();
        disk.fail_sync_keeping(0, EIO, keep);
        let error = write(&mut disk.clone(), &many(), 0, NEW).unwrap_err();
        assert!(matches!(error, SnapshotError::Failed { op: "sync", .. }) && !error.is_fatal(), "{error}");
        assert!(!disk.names().iter().any(|name| name == NEW_NAME), "the file is gone");
        disk.crash(Keep::All);
        assert!(!check(&disk, "after a failed sync"));
    }
}

#[test]
fn a_failed_sync_of_what_came_from_a_peer_is_never_published() {
    let source = MemDisk::new();
    let info = make(&source).unwrap();
    let raw = source.raw(&info.name).unwrap()[..info.bytes as usize].to_vec();
    let disk = disk_with_old();
    disk.fail(OpKind::Sync, 0, EIO);
    let error = receive(&disk, &info, &raw).unwrap_err();
    assert!(matches!(error, ReceiveError::Write(SnapshotError::Failed { op: "sync", .. })), "{error}");
    assert!(!disk.names().iter().any(|name| name == RECEIVED_NAME));
    assert!(!check(&disk, "after a failed sync"));
}

#[test]
fn any_failed_operation_but_the_sync_of_the_directory_costs_the_snapshot_alone() {
    for kind in [OpKind::Create, OpKind::Write, OpKind::Sync, OpKind::Rename, OpKind::Remove] {
        for after in 0..5 {
            let disk = disk_with_old();
            disk.fail(kind, after, EIO);
            if let Err(error) = make(&disk) {
                assert!(!error.is_fatal(), "{kind:?} {after}: {error}");
                assert!(!check(&disk, "after an error"));
            }
            disk.heal();
            make(&disk).expect("the failure is over");
        }
    }
    let disk = disk_with_old();
    disk.fail(OpKind::SyncDir, 0, EIO);
    let error = make(&disk).unwrap_err();
    assert!(error.is_fatal(), "{error}");
    for keep in [Keep::None, Keep::All] {
        let disk = disk.fork();
        disk.crash(keep);
        assert_eq!(check(&disk, "after a failed sync of the directory"), keep == Keep::All);
    }
}

#[test]
fn no_handle_stays_open() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut disk = kvstore::disk::RealDisk::open(directory.path()).expect("it can be used");
    write(&mut disk, &many(), 0, NEW).unwrap().abandon(&mut disk);
    let info = write(&mut disk, &many(), 0, NEW).unwrap().publish(&mut disk).unwrap();
    list(&mut disk, Some(CLUSTER)).unwrap();
    list(&mut disk, None).unwrap();
    let offer = Offer { id: info.id, bytes: info.bytes, crc: info.crc };
    ReceivedFile::begin(&mut disk, CLUSTER, offer).unwrap().abandon(&mut disk);
    assert_eq!(disk.list().unwrap(), [info.name]);
    // Handles are numbered from the lowest free one: after all of them were closed it is that of the first file.
    let file = disk.create("first", 0).unwrap();
    assert_eq!(file.0, 0);
}
