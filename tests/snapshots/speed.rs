//! What a snapshot of five million keys costs: the time to write and to load it, and memory by key.
//!
//! `cargo test --release --test snapshots speed:: -- --ignored --nocapture` prints it. The directory is the one that
//! `TMPDIR` names; only on a real disk the numbers mean something.

use std::time::{Duration, Instant};

use kvstore::disk::{Disk, RealDisk};
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId};
use kvstore::keyspace::Keyspace;
use kvstore::replication::history::TermHistory;
use kvstore::replication::members::Membership;
use kvstore::snapshot::{SnapshotReader, SnapshotWriter, Start};
use kvstore::wire::{Effect, Record};

fn record(effect: Effect<'_>) -> Record<'_> {
    Record { lsn: Lsn(1), effect }
}

const KEYS: u64 = 5_000_000;
const VALUE: [u8; 64] = [7; 64];

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages");
    pages * 4096
}

fn start() -> Start {
    let (cluster_id, maker) = (ClusterId([1; 16]), NodeId([2; 16]));
    let (history, peers) = (TermHistory::default(), Vec::new());
    Start { cluster_id, maker, s: Lsn(KEYS), chain: Chain(3), history, peers, members: Membership::default() }
}

fn since(what: &str, begun: Instant) -> Duration {
    let taken = begun.elapsed();
    println!("{what}: {:.2} s", taken.as_secs_f64());
    taken
}

fn filled() -> Keyspace {
    let resident_before = resident_bytes();
    let mut keyspace = Keyspace::new([1, 2]);
    let begun = Instant::now();
    for number in 0..KEYS {
        let key = format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let _ = keyspace.apply(&record(Effect::Put { key: key.as_bytes(), value: &VALUE }));
    }
    since("filled by single puts", begun);
    memory("after single puts", &keyspace, resident_before);
    keyspace
}

fn memory(when: &str, keyspace: &Keyspace, resident_before: u64) {
    let resident = (resident_bytes() - resident_before) / keyspace.len();
    println!(
        "{when}: {resident} bytes resident per key, {} counted",
        keyspace.memory_bytes() / keyspace.len()
    );
}

fn write(keyspace: &Keyspace, disk: &mut dyn Disk) -> String {
    let begun = Instant::now();
    let (mut longest_write, mut added) = (Duration::ZERO, Duration::ZERO);
    let estimate = keyspace.data_bytes() + keyspace.len() * 8;
    let mut writer = SnapshotWriter::begin(disk, estimate, start()).expect("there is room");
    let mut slice = Instant::now();
    for slot in 0..keyspace.slot_count() {
        let Some((key, value)) = keyspace.entry(slot) else { continue };
        writer.add(key, value);
        if writer.is_full() {
            added += slice.elapsed();
            let write_begun = Instant::now();
            writer.write_some(disk).expect("there is room");
            longest_write = longest_write.max(write_begun.elapsed());
            slice = Instant::now();
        }
    }
    let scanned = begun.elapsed();
    let finished = writer.finish(disk, Lsn(KEYS)).expect("the disk is sound");
    let info = finished.publish(disk).expect("the disk is sound");
    let taken = since("written and durable", begun);
    println!(
        "  {} MB; scan and checksums {:.2} s, longest write {:.1} ms, footer, header, sync and publish {:.2} s",
        info.bytes / 1_000_000,
        added.as_secs_f64(),
        longest_write.as_secs_f64() * 1e3,
        (taken - scanned).as_secs_f64()
    );
    info.name
}

fn load(disk: &mut dyn Disk, name: &str) -> Keyspace {
    let resident_before = resident_bytes();
    let begun = Instant::now();
    let mut reader = SnapshotReader::open(disk, name, None).expect("it was written");
    let mut keyspace = Keyspace::new([3, 4]);
    keyspace.reserve(reader.info().entries, reader.info().bytes);
    while let Some(block) = reader.next_block(disk).expect("it is whole") {
        keyspace.load(block.entries());
    }
    reader.close(disk);
    since("read and loaded, with its state hash", begun);
    memory("after the load", &keyspace, resident_before);
    keyspace
}

#[test]
#[ignore = "a measurement: wants a release build, two gigabytes and a real disk"]
fn measure_five_million_keys() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut disk = RealDisk::open(directory.path()).expect("it can be used");
    let keyspace = filled();
    let name = write(&keyspace, &mut disk);
    let hash = keyspace.state_hash();
    let begun = Instant::now();
    let mut reader = SnapshotReader::open(&mut disk, &name, None).expect("it was written");
    reader.verify(&mut disk).expect("it is whole");
    reader.close(&mut disk);
    since("read and verified alone", begun);
    let loaded = load(&mut disk, &name);
    assert_eq!(loaded.state_hash(), hash);
}
