//! The record of identity, term and vote through crashes: whatever is lost, the old or the new record comes
//! back, and the new one once `update` has returned.

use kvstore::disk::Disk;
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::meta::{Meta, MetaError, MetaStore, Repair, StoredRole};
use kvstore::replication::members::Membership;

use crate::mem_disk::{EIO, Keep, MemDisk, SECTOR_SIZE};

/// A record of nearly the largest size, which differs between terms in every sector that it fills.
fn meta(promotion: u32) -> Meta {
    let address = |index: u32| format!("{promotion}-{index}-").repeat(40);
    Meta {
        cluster_id: ClusterId([7; 16]),
        node_id: NodeId([1; 16]),
        term: Term { promotion, start: 0 },
        vote: NodeId([promotion as u8; 16]),
        role: StoredRole::FollowerByCommand,
        leader_id: NodeId([3; 16]),
        leader_address: "host:1".to_owned(),
        peers: (10..25).map(address).collect(),
        members: Membership::default(),
        follows_elected: true,
        own_address: "[::1]:9001".to_owned(),
        in_sync: true,
        log_generation: promotion.into(),
        cut_lsn: Lsn(99),
        base_lsn: Lsn(90 + u64::from(promotion)),
        base_chain: Chain(promotion),
        discard_allowed: false,
        repair: Repair {
            until: Lsn(u64::from(promotion) << 40),
            term: Term { promotion, start: 7 },
            commit_lsn: Lsn(98),
            files_pending: true,
        },
    }
}

fn with_record() -> (MemDisk, MetaStore) {
    let mut disk = MemDisk::new();
    let store = MetaStore::create(&mut disk, meta(4)).unwrap();
    (disk, store)
}

fn update(disk: &MemDisk, store: &mut MetaStore) -> Result<(), MetaError> {
    store
        .update(&mut disk.clone(), |record| *record = meta(5))
        .map(|durable| assert_eq!(durable.version(), 2))
}

/// Ends the process without a power loss and reads the record again; its promotion number.
fn restart(disk: &MemDisk) -> u32 {
    disk.kill_process();
    let store = MetaStore::load(&mut disk.clone()).unwrap().expect("there is a record");
    let promotion = store.get().term.promotion;
    assert_eq!(*store.get(), meta(promotion), "a record is whole");
    assert_eq!(store.version(), if promotion == 4 { 1 } else { 2 });
    promotion
}

fn restart_after_power_loss(disk: &MemDisk, keep: Keep) -> u32 {
    disk.crash(keep);
    restart(disk)
}

/// All masks of unsynced sectors, varied in those alone whose bytes a crash can change.
fn masks_that_matter(disk: &MemDisk) -> Vec<u64> {
    let changed = |(name, sector): &(String, u64)| {
        let range = *sector as usize * SECTOR_SIZE..(*sector as usize + 1) * SECTOR_SIZE;
        disk.raw(name).unwrap()[range.clone()] != disk.raw_durable(name).unwrap()[range]
    };
    let sectors = disk.unsynced_sectors();
    let bits: Vec<usize> = (0..sectors.len()).filter(|&index| changed(&sectors[index])).collect();
    let spread = |subset: u64| bits.iter().enumerate().map(|(i, bit)| (subset >> i & 1) << bit).sum();
    (0..1 << bits.len()).map(spread).collect()
}

#[test]
fn a_crash_during_an_update_leaves_the_old_or_the_new_record() {
    let (disk, _) = with_record();
    let mut subsets = 0;
    for op in 0..4 {
        let disk = disk.fork();
        let mut store = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
        disk.crash_before(disk.op_count() + op);
        update(&disk, &mut store).unwrap_err();
        assert!(disk.has_crashed());
        for mask in masks_that_matter(&disk) {
            let promotion = restart_after_power_loss(&disk.fork(), Keep::Mask(mask));
            // The first copy is whole and new from the second sync on, and old before the first write.
            let possible: &[u32] = [&[4][..], &[4, 5], &[5], &[5]][op as usize];
            assert!(possible.contains(&promotion), "{promotion} after a crash before operation {op}");
            subsets += 1;
        }
    }
    assert!(subsets > 500, "the records differ in too few sectors: {subsets} subsets");
}

#[test]
fn once_update_has_returned_nothing_takes_the_new_record_away() {
    let (disk, mut store) = with_record();
    update(&disk, &mut store).unwrap();
    assert_eq!(disk.unsynced_sectors(), []);
    assert_eq!(restart_after_power_loss(&disk.fork(), Keep::None), 5);
    for name in ["META.a", "META.b"] {
        let copy = disk.fork();
        copy.corrupt(name, 60, 3);
        assert_eq!(restart_after_power_loss(&copy, Keep::None), 5, "either copy alone is enough");
    }
}

#[test]
fn copies_are_written_and_synced_one_after_the_other() {
    let (disk, mut store) = with_record();
    let before = disk.op_log().len();
    update(&disk, &mut store).unwrap();
    let log: Vec<String> = disk.op_log()[before..].iter().map(ToString::to_string).collect();
    assert_eq!(log, ["write META.a 0+8192", "sync META.a", "write META.b 0+8192", "sync META.b"]);
}

#[test]
fn what_a_restart_has_shown_survives_a_power_loss_right_after_it() {
    let (disk, _) = with_record();
    for op in 0..4 {
        let disk = disk.fork();
        let mut store = MetaStore::load(&mut disk.clone()).unwrap().unwrap();
        disk.crash_before(disk.op_count() + op);
        update(&disk, &mut store).unwrap_err();
        let shown = restart(&disk);
        for name in ["META.a", "META.b"] {
            let copy = disk.fork();
            copy.crash(Keep::None);
            copy.corrupt(name, 60, 3);
            assert_eq!(restart(&copy), shown, "both copies hold what was shown");
        }
    }
}

#[test]
fn a_failed_sync_is_an_error_and_its_data_is_written_again_by_the_restart() {
    for failing in 0..2 {
        for seed in 0..30 {
            let (disk, mut store) = with_record();
            disk.fail_sync_keeping(failing, EIO, Keep::Random(seed));
            let error = update(&disk, &mut store).unwrap_err().to_string();
            let file = ["META.a", "META.b"][failing as usize];
            assert!(error.contains(&format!("syncing memory/{file}")), "{error}");
            assert_eq!(disk.unsynced_sectors(), [], "no later sync will write them");
            assert_eq!(restart_after_power_loss(&disk.fork(), Keep::None), [4, 5][failing as usize]);
            a_restart_survives_power_losses(&disk, seed);
        }
    }
}

/// The page cache shows the new record; the restart that believes it must make it true, and a power loss in
/// the middle of that must leave a record.
fn a_restart_survives_power_losses(disk: &MemDisk, seed: u64) {
    for op in 0..5 {
        let disk = disk.fork();
        disk.kill_process();
        disk.crash_before(disk.op_count() + op);
        MetaStore::load(&mut disk.clone()).unwrap_err();
        restart_after_power_loss(&disk, Keep::Random(seed));
    }
    assert_eq!(restart(disk), 5);
    assert_eq!(restart_after_power_loss(disk, Keep::None), 5);
}

#[test]
fn a_crash_during_creation_leaves_a_fresh_directory_or_the_record() {
    let (finished, _) = with_record();
    let (mut fresh, mut complete) = (0, 0);
    for op in 0..finished.op_count() {
        let disk = MemDisk::new();
        disk.crash_before(op);
        MetaStore::create(&mut disk.clone(), meta(4)).unwrap_err();
        for names in 0..1 << disk.unsynced_names() {
            for sectors in [Keep::None, Keep::All, Keep::Random(op), Keep::Random(names)] {
                let disk = disk.fork();
                disk.crash_with(sectors, Keep::Mask(names));
                match MetaStore::load(&mut disk.clone()).unwrap() {
                    None => {
                        fresh += 1;
                        MetaStore::create(&mut disk.clone(), meta(4)).unwrap();
                    }
                    Some(_) => complete += 1,
                }
                assert_eq!(restart_after_power_loss(&disk, Keep::None), 4);
                assert_eq!(disk.names(), ["META.a", "META.b"], "nothing unfinished stays");
            }
        }
    }
    assert!(fresh > 0 && complete > 0);
}

#[test]
fn a_creation_seen_through_the_page_cache_is_made_durable() {
    let (finished, _) = with_record();
    let disk = MemDisk::new();
    disk.crash_before(finished.op_count() - 1);
    MetaStore::create(&mut disk.clone(), meta(4)).unwrap_err();
    assert_eq!(disk.op_log().last().unwrap().to_string(), "rename META.b");
    assert_eq!(restart(&disk), 4);
    assert_eq!(restart_after_power_loss(&disk, Keep::None), 4);
}

#[test]
fn a_crash_during_a_repair_leaves_the_record() {
    let (whole, _) = with_record();
    for name in ["META.a", "META.b"] {
        for missing in [false, true] {
            let damaged = whole.fork();
            if missing {
                damaged.remove_raw(name)
            } else {
                damaged.corrupt(name, 0, 0)
            }
            let probe = damaged.fork();
            assert_eq!(restart(&probe), 4);
            for op in 0..probe.op_count() - damaged.op_count() {
                for seed in 0..50 {
                    let disk = damaged.fork();
                    disk.kill_process();
                    disk.crash_before(disk.op_count() + op);
                    MetaStore::load(&mut disk.clone()).unwrap_err();
                    assert_eq!(restart_after_power_loss(&disk, Keep::Random(seed)), 4);
                }
            }
        }
    }
}

#[test]
fn terms_and_votes_fit_on_a_full_disk() {
    let (mut disk, mut store) = with_record();
    disk.set_capacity(Some(disk.used()));
    disk.set_write_size_max(Some(1000));
    disk.create("other", 1).unwrap_err();
    update(&disk, &mut store).unwrap();
    assert_eq!(restart_after_power_loss(&disk, Keep::None), 5);
}
