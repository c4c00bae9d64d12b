//! The disk in memory is itself tested: a test disk that forgets to lose data proves every guarantee.

use kvstore::disk::{Disk, Flush};

use crate::mem_disk::{EBADF, EIO, ENOSPC, Keep, MemDisk, OpKind, SECTOR_SIZE, is_simulated_crash};

fn with_file(size: u64) -> (MemDisk, kvstore::disk::FileId) {
    let mut disk = MemDisk::new();
    let file = disk.create("f", size).unwrap();
    disk.sync_dir().unwrap();
    (disk, file)
}

fn first_bytes(disk: &MemDisk, sectors: usize) -> Vec<u8> {
    let raw = disk.raw("f").unwrap();
    (0..sectors).map(|sector| raw[sector * SECTOR_SIZE]).collect()
}

#[test]
fn a_crash_keeps_what_was_synced_and_exactly_the_chosen_rest() {
    let (mut disk, file) = with_file(4 * 512);
    disk.write_all_at(file, 0, &[1; 4 * 512]).unwrap();
    disk.sync_data(file).unwrap();
    disk.write_all_at(file, 0, &[2; 3 * 512]).unwrap();
    assert_eq!(disk.unsynced_sectors().len(), 3);
    for mask in 0..8u64 {
        let copy = disk.fork();
        copy.crash(Keep::Mask(mask));
        let expected: Vec<u8> = (0..4).map(|sector| 1 + (mask >> sector & 1) as u8).collect();
        assert_eq!(first_bytes(&copy, 4), expected);
        assert_eq!(copy.unsynced_sectors(), []);
    }
    assert_eq!(first_bytes(&disk, 4), [2, 2, 2, 1], "a fork leaves the first disk alone");
}

#[test]
fn a_random_crash_may_leave_an_earlier_version_of_a_sector() {
    let (mut disk, file) = with_file(512);
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    disk.write_all_at(file, 0, &[2; 512]).unwrap();
    let left = |seed| {
        let copy = disk.fork();
        copy.crash(Keep::Random(seed));
        first_bytes(&copy, 1)[0]
    };
    let seen: std::collections::BTreeSet<u8> = (0..100).map(left).collect();
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(left(7), left(7), "a seed is a replay");
}

#[test]
fn a_name_is_durable_only_after_sync_dir() {
    let (mut disk, file) = with_file(512);
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    disk.sync_data(file).unwrap();
    disk.create("g", 0).unwrap();
    disk.rename("f", "h").unwrap();
    disk.remove("g").unwrap();
    let left = |keep| {
        let copy = disk.fork();
        copy.crash_with(Keep::All, keep);
        copy.names()
    };
    assert_eq!(disk.names(), ["h"]);
    assert_eq!(left(Keep::None), ["f"]);
    assert_eq!(left(Keep::Prefix(1)), ["f", "g"]);
    assert_eq!(left(Keep::Mask(0b011)), ["g", "h"]);
    assert_eq!(left(Keep::Mask(0b100)), ["f"], "the file that is removed was never there");
    assert_eq!(left(Keep::All), ["h"]);
    disk.sync_dir().unwrap();
    disk.crash(Keep::None);
    assert_eq!(disk.names(), ["h"]);
    assert_eq!(disk.raw("h").unwrap(), vec![1; 512]);
}

#[test]
fn a_failed_sync_shows_data_that_no_later_sync_saves() {
    let (mut disk, file) = with_file(512);
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    disk.fail(OpKind::Sync, 0, EIO);
    assert_eq!(disk.sync_data(file).unwrap_err().raw_os_error(), Some(EIO));
    disk.sync_data(file).unwrap();
    disk.kill_process();
    assert_eq!(first_bytes(&disk, 1), [1]);
    disk.crash(Keep::All);
    assert_eq!(first_bytes(&disk, 1), [0]);
}

#[test]
fn a_failed_sync_may_have_written_some_sectors() {
    let (mut disk, file) = with_file(1024);
    disk.write_all_at(file, 0, &[1; 1024]).unwrap();
    disk.fail_sync_keeping(0, EIO, Keep::Mask(0b10));
    disk.sync_data(file).unwrap_err();
    disk.crash(Keep::All);
    assert_eq!(first_bytes(&disk, 2), [0, 1]);
}

#[test]
fn from_the_crash_point_on_nothing_works_and_nothing_changes() {
    let (mut disk, file) = with_file(512);
    disk.crash_before(disk.op_count() + 1);
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    assert!(is_simulated_crash(&disk.sync_data(file).unwrap_err()));
    assert!(is_simulated_crash(&disk.write_at(file, 0, &[2]).unwrap_err()));
    assert!(is_simulated_crash(&disk.list().unwrap_err()));
    disk.kill_process();
    assert_eq!(disk.write_at(file, 0, &[2]).unwrap_err().raw_os_error(), Some(EBADF));
    assert_eq!(first_bytes(&disk, 1), [1]);
    disk.crash(Keep::None);
    assert_eq!(first_bytes(&disk, 1), [0]);
}

#[test]
fn a_full_disk_takes_what_fits_and_space_comes_back() {
    let (mut disk, file) = with_file(512);
    disk.set_capacity(Some(600));
    assert_eq!(disk.write_at(file, 512, &[1; 512]).unwrap(), 88);
    assert_eq!(disk.write_at(file, 600, &[1]).unwrap_err().raw_os_error(), Some(ENOSPC));
    assert_eq!(disk.create("g", 1).unwrap_err().raw_os_error(), Some(ENOSPC));
    disk.write_all_at(file, 0, &[1; 600]).unwrap();
    disk.remove("f").unwrap();
    assert!(disk.create("g", 1).is_err(), "the open handle still holds the space");
    disk.close(file);
    disk.create("g", 600).unwrap();
}

#[test]
fn short_writes_are_completed_by_write_all_at() {
    let (mut disk, file) = with_file(512);
    disk.set_write_size_max(Some(100));
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    assert_eq!(disk.raw("f").unwrap(), [1; 512]);
    assert_eq!(disk.op_log().iter().filter(|op| op.kind == OpKind::Write).count(), 6);
    assert_eq!(disk.op_log().last().unwrap().to_string(), "write f 500+12");
}

#[test]
fn a_pending_flush_covers_what_was_written_before_it_began() {
    let (mut disk, file) = with_file(1024);
    disk.hold_flushes(true);
    disk.write_all_at(file, 0, &[1; 512]).unwrap();
    assert_eq!(disk.flush_begin(file).unwrap(), Flush::Pending);
    disk.write_all_at(file, 0, &[2; 1024]).unwrap();
    assert!(disk.flush_poll().is_none());
    disk.complete_flush();
    disk.flush_poll().unwrap().unwrap();
    assert!(disk.flush_poll().is_none());
    disk.crash(Keep::None);
    assert_eq!(first_bytes(&disk, 2), [1, 0]);
}
