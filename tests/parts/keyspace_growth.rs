//! The index grows in small steps: the structural bound, checked, and the time it takes, measured.
//!
//! `cargo test --release --test parts keyspace_growth:: -- --ignored --nocapture measure_wall_clock` prints one
//! measurement. Each wants a process of its own: memory that an earlier one gave back is no fresh memory.

use std::time::{Duration, Instant};

use kvstore::ids::Lsn;
use kvstore::keyspace::{Growth, Keyspace};
use kvstore::wire::{Effect, Record};
use rustix::time::{ClockId, clock_gettime};

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

const VALUE: [u8; 16] = [7; 16];

fn put(keyspace: &mut Keyspace, number: u64) {
    let _ = keyspace.apply(&record(Effect::Put { key: &number.to_be_bytes(), value: &VALUE }));
}

#[test]
fn a_step_of_growth_moves_no_more_at_a_million_keys_than_at_a_few_thousand() {
    let mut keyspace = Keyspace::new([1, 2]);
    let mut before = keyspace.growth();
    for number in 0..1_000_000 {
        put(&mut keyspace, number);
        let growth = keyspace.growth();
        let steps = growth.splits - before.splits + growth.tables_grown - before.tables_grown;
        assert!(steps <= 1, "{steps} steps in one insertion: {growth:?}");
        before = growth;
    }
    keyspace.invariants();
    let growth = keyspace.growth();
    assert_eq!((growth.tables_grown, growth.moved_max, growth.table_places_max), (0, 1536, 2048));
    assert_eq!(growth.tables as u64, growth.splits + 1);
    // All tables fill at nearly the same time, so that the directory is never far ahead of them.
    assert!(growth.directory_size <= 2 * growth.tables, "{growth:?}");
    // 2 + 8 + 16 bytes in a piece of 32, 8 for the slot, 11 to 22 in the index.
    let bytes_per_key = keyspace.memory_bytes() / keyspace.len();
    assert!((32 + 8 + 11..=32 + 8 + 23).contains(&bytes_per_key), "{bytes_per_key} bytes per key");
}

/// Which step of growth an insertion took.
const CLASSES: [&str; 3] = ["no growth", "split", "split and directory doubling"];

fn class(before: &Growth, after: &Growth) -> usize {
    usize::from(after.splits > before.splits) + usize::from(after.doublings > before.doublings)
}

/// What the thread itself did: without the time in which others had the core, with page faults.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn wall_time() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn measure(name: &str, keys: u64, clock: fn() -> Duration) -> Keyspace {
    let mut keyspace = Keyspace::new([1, 2]);
    let mut nanos: [Vec<u32>; 3] = Default::default();
    nanos.iter_mut().for_each(|class| class.reserve(keys as usize));
    let mut largest: Vec<(u32, u64, usize)> = Vec::new();
    for number in 0..keys {
        let before = keyspace.growth();
        let begun = clock();
        put(&mut keyspace, number);
        let taken = clock().saturating_sub(begun).as_nanos() as u32;
        let class = class(&before, &keyspace.growth());
        nanos[class].push(taken);
        if taken > 50_000 {
            largest.push((taken, number, class));
        }
    }
    println!("\n{name}, {keys} keys            count     p50     p99   p99.9     max (ns)");
    for (class, nanos) in CLASSES.iter().zip(&mut nanos) {
        nanos.sort_unstable();
        let at = |fraction: f64| nanos[((nanos.len() - 1) as f64 * fraction) as usize];
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(at);
        println!("{class:30} {:>9} {p50:>7} {p99:>7} {p999:>7} {max:>7}", nanos.len());
    }
    largest.sort_unstable_by(|one, other| other.cmp(one));
    println!("above 50 us: {}; largest:", largest.len());
    for (taken, number, class) in largest.iter().take(10) {
        println!("  {:>6} us at key {number}: {}", taken / 1000, CLASSES[*class]);
    }
    keyspace
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages");
    pages * 4096
}

fn per_operation(name: &str, keys: u64, mut operation: impl FnMut(u64)) {
    let begun = Instant::now();
    (0..keys).for_each(|number| operation(number.wrapping_mul(7_368_787) % keys));
    println!("{name}: {} ns", begun.elapsed().as_nanos() / u128::from(keys));
}

const KEYS: u64 = 10_000_000;

#[test]
#[ignore = "a measurement: wants a release build, two gigabytes and a process of its own"]
fn measure_wall_clock() {
    drop(measure("wall clock", KEYS, wall_time));
}

#[test]
#[ignore = "a measurement: wants a release build, two gigabytes and a process of its own"]
fn measure_thread_time() {
    drop(measure("thread time", KEYS, thread_time));
}

#[test]
#[ignore = "a measurement: wants a release build, two gigabytes and a process of its own"]
fn measure_averages() {
    let resident_before = resident_bytes();
    let mut keyspace = Keyspace::new([1, 2]);
    per_operation("put of a new key", KEYS, |number| put(&mut keyspace, number));
    let resident = (resident_bytes() - resident_before) / KEYS;
    println!("{} bytes per key by memory_bytes(), {resident} resident", keyspace.memory_bytes() / KEYS);
    per_operation("get, present", KEYS, |number| assert!(keyspace.get(&number.to_be_bytes()).is_some()));
    per_operation("get, absent", KEYS, |number| {
        assert!(keyspace.get(&(number + KEYS).to_be_bytes()).is_none())
    });
    per_operation("put again, same size", KEYS, |number| put(&mut keyspace, number));
    per_operation("delete", KEYS, |number| {
        assert!(keyspace.apply(&record(Effect::Delete { key: &number.to_be_bytes() })).existed);
    });
    println!("{:?}", keyspace.growth());
}

/// Deletes go to the allocator, and glibc may put off its own work: it keeps freed pieces of up to 128 bytes
/// apart and joins them all at the next request of a kilobyte or more.
#[test]
#[ignore = "a measurement: wants a release build, two gigabytes and a process of its own"]
fn measure_first_large_put_after_deletes() {
    let mut keyspace = Keyspace::new([1, 2]);
    (0..KEYS).for_each(|number| put(&mut keyspace, number));
    for deleted in [0u64, 100_000, 1_000_000] {
        for number in deleted..2 * deleted {
            let _ = keyspace.apply(&record(Effect::Delete { key: &number.to_be_bytes() }));
        }
        let begun = thread_time();
        let _ = keyspace
            .apply(&record(Effect::Put { key: b"large", value: &vec![7; 2000 + deleted as usize / 1000] }));
        println!("one large put after {deleted} deletes: {} us", (thread_time() - begun).as_micros());
    }
}
