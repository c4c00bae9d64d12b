//! A scan with changes in between, and those changes again, give the state at its end.

use kvstore::ids::Lsn;
use kvstore::keyspace::Keyspace;
use kvstore::snapshot::{SnapshotReader, SnapshotWriter};
use kvstore::wire::{Effect, Record};
use proptest::prelude::*;

use crate::mem_disk::MemDisk;
use crate::snapshot_kit::*;

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

/// A PUT, or a DELETE without a value.
type Change = (Vec<u8>, Option<Vec<u8>>);

fn apply(keyspace: &mut Keyspace, (key, value): &Change) {
    let _ = keyspace.apply(&record(match value {
        Some(value) => Effect::Put { key, value },
        None => Effect::Delete { key },
    }));
}

fn change() -> impl Strategy<Value = Change> {
    // Few keys: most changes meet an entry, and many keys are deleted and come back in another slot.
    let key = (0..120u8).prop_map(|number| vec![b'k', number]);
    let value = prop_oneof![8 => 0..60usize, 1 => 900..5000usize].prop_map(|size| vec![size as u8; size]);
    (key, prop_oneof![3 => value.prop_map(Some), 2 => Just(None)])
}

/// Scans as a node does: so many slots, then so many changes, again and again.
fn scan(keyspace: &mut Keyspace, changes: &[Change], slice: u32, disk: &mut MemDisk) -> (String, usize) {
    let mut writer = SnapshotWriter::begin(disk, 0, start_at(10)).unwrap();
    let (mut slot, mut changes, mut applied) = (0, changes.iter(), 0);
    while slot < keyspace.slot_count() {
        for slot in slot..keyspace.slot_count().min(slot + slice) {
            if let Some((key, value)) = keyspace.entry(slot) {
                writer.add(key, value);
            }
        }
        slot += slice;
        writer.write_some(disk).unwrap();
        for change in changes.by_ref().take(3) {
            apply(keyspace, change);
            applied += 1;
        }
    }
    let finished = writer.finish(disk, Lsn(10 + applied as u64)).unwrap();
    (finished.publish(disk).unwrap().name, applied)
}

fn load(disk: &mut MemDisk, name: &str) -> Keyspace {
    let mut reader = SnapshotReader::open(disk, name, Some(CLUSTER)).unwrap();
    let mut keyspace = Keyspace::new([3, 4]);
    keyspace.reserve(reader.info().entries, reader.info().bytes);
    while let Some(block) = reader.next_block(disk).unwrap() {
        keyspace.load(block.entries());
    }
    reader.close(disk);
    keyspace
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_loaded_is_exact_at_e_whatever_happened_during_the_scan(
        before in proptest::collection::vec(change(), 0..300),
        during in proptest::collection::vec(change(), 0..300),
        slice in 1..200u32,
    ) {
        let mut keyspace = Keyspace::new([1, 2]);
        before.iter().for_each(|change| apply(&mut keyspace, change));
        let mut disk = MemDisk::new();
        let (name, applied) = scan(&mut keyspace, &during, slice, &mut disk);
        let mut loaded = load(&mut disk, &name);
        loaded.invariants();
        during[..applied].iter().for_each(|change| apply(&mut loaded, change));
        loaded.invariants();
        prop_assert_eq!((loaded.len(), loaded.state_hash()), (keyspace.len(), keyspace.state_hash()));
    }
}

#[test]
fn a_key_that_moved_to_a_later_slot_is_in_the_file_twice_and_loaded_once() {
    let mut keyspace = Keyspace::new([1, 2]);
    for number in 0..2000u16 {
        apply(&mut keyspace, &(number.to_be_bytes().to_vec(), Some(b"old".to_vec())));
    }
    let mut disk = MemDisk::new();
    let mut writer = SnapshotWriter::begin(&mut disk, 0, start_at(10)).unwrap();
    let moved = 0u16.to_be_bytes().to_vec();
    for slot in 0..keyspace.slot_count() {
        let Some((key, value)) = keyspace.entry(slot) else { continue };
        writer.add(key, value);
        if slot == 100 {
            // The slot freed last is used first, so the key comes back in the last one.
            apply(&mut keyspace, &(moved.clone(), None));
            apply(&mut keyspace, &(1999u16.to_be_bytes().to_vec(), None));
            apply(&mut keyspace, &(moved.clone(), Some(b"new".to_vec())));
        }
        writer.write_some(&mut disk).unwrap();
    }
    let info = writer.finish(&mut disk, Lsn(13)).unwrap().publish(&mut disk).unwrap();
    assert_eq!(info.entries, 2000);
    let loaded = load(&mut disk, &info.name);
    assert_eq!((loaded.len(), loaded.get(&moved)), (1999, Some(&b"new"[..])));
    assert_eq!(loaded.state_hash(), keyspace.state_hash());
}
