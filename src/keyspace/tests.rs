//! Random operations against a `BTreeMap`, on tables so small that every step of growth is taken.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{Lsn, NodeId, Term};
use crate::wire::Record;

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

#[derive(Clone, Debug)]
enum Operation {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Get(Vec<u8>),
    Term,
    Clear,
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Few keys, so that most operations meet one that is there; with 0x00 and 0xff, prefixes of each other.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let number = (0..200u16).prop_map(|number| number.to_be_bytes().to_vec());
    prop_oneof![8 => number, 1 => proptest::collection::vec(any::<u8>(), 1..4)]
}

fn operation() -> impl Strategy<Value = Operation> {
    let value = proptest::collection::vec(any::<u8>(), 0..5);
    prop_oneof![
        400 => (key(), value).prop_map(|(key, value)| Operation::Put(key, value)),
        250 => key().prop_map(Operation::Delete),
        100 => key().prop_map(Operation::Get),
        10 => Just(Operation::Term),
        1 => Just(Operation::Clear),
    ]
}

fn step(keyspace: &mut Keyspace, model: &mut Model, operation: &Operation) {
    match operation {
        Operation::Put(key, value) => {
            let applied = keyspace.apply(&record(Effect::Put { key, value }));
            assert_eq!(applied.existed, model.insert(key.clone(), value.clone()).is_some());
        }
        Operation::Delete(key) => {
            let applied = keyspace.apply(&record(Effect::Delete { key }));
            assert_eq!(applied.existed, model.remove(key).is_some());
        }
        Operation::Get(key) => {
            assert_eq!(keyspace.get(key), model.get(key).map(Vec::as_slice));
        }
        Operation::Term => {
            let effect = Effect::Term { term: Term { promotion: 1, start: 2 }, leader: NodeId([3; 16]) };
            assert!(!keyspace.apply(&record(effect)).existed);
        }
        Operation::Clear => {
            keyspace.clear();
            model.clear();
        }
    }
}

fn assert_equal(keyspace: &Keyspace, model: &Model) {
    keyspace.invariants();
    assert_eq!(keyspace.len(), model.len() as u64);
    assert_eq!(keyspace.is_empty(), model.is_empty());
    assert_eq!(
        keyspace.data_bytes(),
        model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() as u64
    );
    let scanned: Model = (0..keyspace.slot_count())
        .filter_map(|slot| keyspace.entry(slot))
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect();
    assert_eq!(&scanned, model);
    for (key, value) in model {
        assert_eq!(keyspace.get(key), Some(value.as_slice()));
    }
}

/// The same entries, put in another order under another seed.
fn rebuilt(model: &Model) -> Keyspace {
    let mut keyspace = Keyspace::new([77, 78]);
    for (key, value) in model.iter().rev() {
        assert!(!keyspace.apply(&record(Effect::Put { key, value })).existed);
    }
    keyspace
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map(
        seed: [u64; 2],
        table_places in prop_oneof![Just(8), Just(16), Just(64)],
        operations in proptest::collection::vec(operation(), 1..800),
    ) {
        let mut keyspace = Keyspace::with_table_places(seed, table_places);
        let mut model = Model::new();
        for (count, operation) in operations.iter().enumerate() {
            step(&mut keyspace, &mut model, operation);
            if count % 50 == 0 {
                keyspace.invariants();
            }
        }
        assert_equal(&keyspace, &model);
        prop_assert_eq!(keyspace.state_hash(), rebuilt(&model).state_hash());
        prop_assert_eq!(keyspace.recompute_hash(), keyspace.state_hash());
    }

    #[test]
    fn records_looked_ahead_for_do_what_each_does_alone(
        table_places in prop_oneof![Just(8), Just(64)],
        operations in proptest::collection::vec(operation(), 1..800),
        group_size in 1..=AHEAD_MAX,
    ) {
        let records: Vec<Record<'_>> = operations.iter().filter_map(effect).zip(1..)
            .map(|(effect, lsn)| Record { lsn: Lsn(lsn), effect })
            .collect();
        let mut alone = Keyspace::with_table_places([5, 6], table_places);
        let mut grouped = Keyspace::with_table_places([5, 6], table_places);
        for group in records.chunks(group_size) {
            let ahead = grouped.look_ahead(group);
            for (index, record) in group.iter().enumerate() {
                prop_assert_eq!(grouped.apply_ahead(&ahead, index), alone.apply(record));
            }
        }
        grouped.invariants();
        prop_assert_eq!(grouped.state_hash(), alone.state_hash());
    }
}

fn effect(operation: &Operation) -> Option<Effect<'_>> {
    match operation {
        Operation::Put(key, value) => Some(Effect::Put { key, value }),
        Operation::Delete(key) => Some(Effect::Delete { key }),
        Operation::Term => {
            Some(Effect::Term { term: Term { promotion: 1, start: 2 }, leader: NodeId([3; 16]) })
        }
        Operation::Get(_) | Operation::Clear => None,
    }
}

#[test]
fn small_tables_go_through_every_step_of_growth() {
    let mut keyspace = Keyspace::with_table_places([1, 2], 8);
    for number in 0..2_000u32 {
        let _ = keyspace.apply(&record(Effect::Put { key: &number.to_be_bytes(), value: b"" }));
    }
    let growth = keyspace.growth();
    assert!(growth.splits > 0 && growth.doublings > 0 && growth.tables_grown > 0, "{growth:?}");
    keyspace.invariants();
}

#[test]
fn a_load_puts_like_single_puts_whatever_was_reserved() {
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..3_000u32)
        .map(|number| ((number % 2_500).to_be_bytes().to_vec(), vec![number as u8; number as usize % 90]))
        .collect();
    let entries = || pairs.iter().map(|(key, value)| (&key[..], &value[..]));
    let mut one_by_one = Keyspace::new([1, 2]);
    entries().for_each(|(key, value)| _ = one_by_one.apply(&record(Effect::Put { key, value })));
    for (reserved, table_places) in [(0, 8), (100, 8), (2_500, 64), (2_500, 2048), (1_000_000, 64)] {
        let mut loaded = Keyspace::with_table_places([3, 4], table_places);
        loaded.reserve(reserved, 20 * reserved);
        loaded.load(entries().take(1_000));
        loaded.reserve(1, 1); // Not empty any more: nothing happens.
        loaded.load(entries().skip(1_000));
        loaded.invariants();
        assert_eq!((loaded.len(), loaded.state_hash()), (one_by_one.len(), one_by_one.state_hash()));
    }
}

#[test]
fn an_index_with_room_does_not_grow() {
    let mut keyspace = Keyspace::new([1, 2]);
    keyspace.reserve(200_000, 0);
    let before = keyspace.growth();
    assert_eq!((before.tables, before.directory_size), (256, 256));
    for number in 0..200_000u32 {
        let _ = keyspace.apply(&record(Effect::Put { key: &number.to_be_bytes(), value: b"" }));
    }
    assert_eq!(Growth { moved_max: 0, ..keyspace.growth() }, before);
    keyspace.invariants();
}

/// Numbers without order, the same in every run (Knuth's MMIX constants).
pub(super) fn numbers() -> impl FnMut(usize) -> usize {
    let mut state = 1u64;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}
