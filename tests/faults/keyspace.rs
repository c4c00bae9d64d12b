//! Keys chosen to collide: they do, for whoever knows the seed of the hash, and are keys like any others for
//! everybody else.

use kvstore::ids::Lsn;
use kvstore::keyspace::{Growth, Keyspace};
use kvstore::wire::{Effect, Record};
use siphasher::sip::SipHasher13;

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

/// Enough to overflow a table of 2048 places, which holds 1536, several times.
const FLOOD: usize = 12_000;

/// Keys whose hashes begin with the same five bits under this seed: all of them belong into one table.
fn keys_colliding_under(seed: [u64; 2]) -> Vec<[u8; 8]> {
    let hasher = SipHasher13::new_with_keys(seed[0], seed[1]);
    let keys = (0_u64..).map(u64::to_be_bytes);
    keys.filter(|key| hasher.hash(key) >> 59 == 0).take(FLOOD).collect()
}

fn growth_with(seed: [u64; 2], keys: &[[u8; 8]]) -> Growth {
    let mut keyspace = Keyspace::new(seed);
    for key in keys {
        assert!(!keyspace.apply(&record(Effect::Put { key, value: b"" })).existed);
    }
    assert!(keys.iter().all(|key| keyspace.get(key).is_some()), "found all the same");
    assert_eq!(keyspace.len(), keys.len() as u64);
    keyspace.growth()
}

#[test]
fn keys_that_collide_under_a_known_seed_are_spread_evenly_under_a_secret_one() {
    // Whether a program has no seed or one that everybody knows is the same.
    let known = [0, 0];
    let keys = keys_colliding_under(known);
    let hurt = growth_with(known, &keys);
    assert!(
        hurt.tables_grown > 0 && hurt.table_places_max > 2_048,
        "the attack works where it can: {hurt:?}"
    );
    for secret in [[1, 0], [0, 1], [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]] {
        let spared = growth_with(secret, &keys);
        assert_eq!((spared.tables_grown, spared.table_places_max), (0, 2_048), "{spared:?}");
        // 12,000 keys in tables of at most 1,536: eight tables, or up to sixteen after uneven splits.
        assert!((8..=32).contains(&spared.tables), "{spared:?}");
        assert!(spared.moved_max <= 1_536, "no step of growth is longer for it: {spared:?}");
    }
}

#[test]
fn a_flood_of_keys_with_one_hash_is_slow_growth_and_never_a_lost_key() {
    // What is left to somebody who did learn the seed: the directory stays bounded, and every key is found.
    let seed = [7, 9];
    let growth = growth_with(seed, &keys_colliding_under(seed));
    assert!(growth.directory_size <= 64, "no doubling for what doubling cannot part: {growth:?}");
}
