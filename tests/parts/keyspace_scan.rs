//! What a scan of the slots may rely on while changes go on, and what two nodes may compare.

use std::collections::BTreeMap;

use kvstore::ids::{Lsn, WriteNumber};
use kvstore::keyspace::Keyspace;
use kvstore::limits::{KEY_SIZE_MAX, VALUE_SIZE_MAX};
use kvstore::wire::{Effect, Record};

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn put(keyspace: &mut Keyspace, key: &[u8], value: &[u8]) -> bool {
    keyspace.apply(&record(Effect::Put { key, value })).existed
}

fn delete(keyspace: &mut Keyspace, key: &[u8]) -> bool {
    keyspace.apply(&record(Effect::Delete { key })).existed
}

/// Numbers without order, the same in every run (Knuth's MMIX constants).
fn numbers() -> impl FnMut(u64) -> u64 {
    let mut state = 1u64;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

/// One change, to both; values change their size in two of three cases.
fn change(
    keyspace: &mut Keyspace,
    model: &mut Model,
    log: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>,
    number: u64,
) {
    let key = (number / 7).to_be_bytes().to_vec();
    if number % 7 < 3 {
        assert_eq!(delete(keyspace, &key), model.remove(&key).is_some());
        log.push((key, None));
    } else {
        let value = vec![number as u8; (number % 7) as usize];
        assert_eq!(put(keyspace, &key, &value), model.insert(key.clone(), value.clone()).is_some());
        log.push((key, Some(value)));
    }
}

#[test]
fn a_scan_with_changes_in_between_and_those_changes_again_give_the_state() {
    let mut random = numbers();
    let (mut keyspace, mut model) = (Keyspace::new([1, 2]), Model::new());
    for _ in 0..60_000 {
        change(&mut keyspace, &mut model, &mut Vec::new(), random(140_000));
    }
    keyspace.invariants();
    // What a snapshot does: it scans while effects are applied, and a reader applies them again.
    let (mut copy, mut log, mut slot) = (Keyspace::new([3, 4]), Vec::new(), 0);
    while slot < keyspace.slot_count() {
        if let Some((key, value)) = keyspace.entry(slot) {
            put(&mut copy, key, value);
        }
        slot += 1;
        change(&mut keyspace, &mut model, &mut log, random(280_000));
    }
    for (key, value) in &log {
        match value {
            Some(value) => put(&mut copy, key, value),
            None => delete(&mut copy, key),
        };
    }
    keyspace.invariants();
    copy.invariants();
    assert_eq!((copy.len(), copy.state_hash()), (keyspace.len(), keyspace.state_hash()));
    assert_eq!(keyspace.len(), model.len() as u64);
    assert!(model.iter().all(|(key, value)| copy.get(key) == Some(value)));
}

#[test]
fn equal_states_have_equal_hashes_whatever_their_seed_and_history() {
    let (mut one, mut other) = (Keyspace::new([1, 2]), Keyspace::new([3, 4]));
    assert_eq!(one.state_hash(), 0);
    put(&mut one, b"a", b"1");
    put(&mut one, b"b", b"2");
    put(&mut other, b"gone", b"");
    put(&mut other, b"b", b"another size");
    put(&mut other, b"b", b"2");
    put(&mut other, b"a", b"1");
    assert_ne!(one.state_hash(), other.state_hash());
    delete(&mut other, b"gone");
    assert_eq!(one.state_hash(), other.state_hash());
    assert_eq!(other.recompute_hash(), other.state_hash());
}

#[test]
fn the_largest_key_and_value_are_kept_and_their_memory_given_back() {
    let mut keyspace = Keyspace::new([1, 2]);
    put(&mut keyspace, b"k", b"");
    // The first large entry makes a list of them, which stays.
    put(&mut keyspace, b"large", &[0; 5000]);
    delete(&mut keyspace, b"large");
    let memory_before = keyspace.memory_bytes();
    let (key, value) = (vec![0xff; KEY_SIZE_MAX], vec![1; VALUE_SIZE_MAX]);
    assert!(!put(&mut keyspace, &key, &value));
    assert_eq!(keyspace.get(&key), Some(&value[..]));
    assert_eq!(keyspace.data_bytes(), (1 + KEY_SIZE_MAX + VALUE_SIZE_MAX) as u64);
    assert!(keyspace.memory_bytes() - memory_before >= (KEY_SIZE_MAX + VALUE_SIZE_MAX) as u64);
    assert!(put(&mut keyspace, &key, b""));
    assert_eq!(keyspace.get(&key), Some(&b""[..]));
    assert!(delete(&mut keyspace, &key));
    assert_eq!((keyspace.get(&key), keyspace.memory_bytes()), (None, memory_before));
    keyspace.invariants();
}

#[test]
fn a_cleared_keyspace_is_as_new() {
    let mut keyspace = Keyspace::new([1, 2]);
    let memory_before = keyspace.memory_bytes();
    (0..10_000u64).for_each(|number| _ = put(&mut keyspace, &number.to_be_bytes(), b"value"));
    keyspace.clear();
    keyspace.invariants();
    assert_eq!((keyspace.len(), keyspace.slot_count(), keyspace.state_hash()), (0, 0, 0));
    assert_eq!((keyspace.data_bytes(), keyspace.memory_bytes()), (0, memory_before));
    assert!(!put(&mut keyspace, &7u64.to_be_bytes(), b"again"));
}

#[test]
fn what_numbered_writes_were_answered_is_part_of_the_state_hash() {
    // The same entries in the end, from logs that differ in what they say of sessions.
    let entries = [Effect::Put { key: b"k", value: b"v" }, Effect::Delete { key: b"gone" }];
    let by = WriteNumber { session: Lsn(1), number: 1 };
    let logs: [[Effect<'_>; 3]; 5] = [
        [Effect::Delete { key: b"gone" }, entries[0], entries[1]],
        [Effect::Session { nonce: 1 }, entries[0], entries[1]],
        [Effect::Session { nonce: 2 }, entries[0], entries[1]],
        [Effect::Session { nonce: 1 }, Effect::PutNumbered { key: b"k", value: b"v", by }, entries[1]],
        [Effect::Session { nonce: 1 }, entries[0], Effect::DeleteNumbered { key: b"gone", by }],
    ];
    let states = logs.map(|log| {
        let [one, other] = [[1, 2], [3, 4]].map(|seed| {
            let mut keyspace = Keyspace::new(seed);
            for (effect, lsn) in log.into_iter().zip(1..) {
                let _existed = keyspace.apply(&Record { lsn: Lsn(lsn), effect });
            }
            keyspace.invariants();
            assert_eq!((keyspace.len(), keyspace.recompute_hash()), (1, keyspace.state_hash()));
            keyspace
        });
        assert_eq!(one.state_hash(), other.state_hash());
        one.state_hash()
    });
    for (index, hash) in states.iter().enumerate() {
        assert!(!states[..index].contains(hash), "log {index} leads to the hash of another");
    }
    let mut cleared = Keyspace::new([5, 6]);
    let _existed = cleared.apply(&Record { lsn: Lsn(1), effect: Effect::Session { nonce: 1 } });
    cleared.clear();
    assert_eq!((cleared.state_hash(), cleared.sessions().is_empty()), (0, true));
}

/// The test before this one can fail.
#[cfg(feature = "sabotage")]
#[test]
fn a_state_hash_without_the_sessions_is_caught() {
    use kvstore::sabotage::{Variant, set};
    set(Some(Variant::SessionsNotHashed));
    let ended = std::panic::catch_unwind(what_numbered_writes_were_answered_is_part_of_the_state_hash);
    set(None);
    assert!(ended.is_err(), "{} escaped", Variant::SessionsNotHashed.name());
}
