//! Real processes and their snapshots: a log that stays bounded under load, kill -9 at any moment of it, and a restart
//! that has every acknowledged key.

use std::collections::BTreeMap;

use kvstore::wire::client::{Request, Status};

use crate::cluster::{Node, Single};

const FLAGS: &[&str] = &["--segment-bytes=65536", "--snapshot-log-bytes=262144"];
const KEYS: u64 = 400;

/// Writes `count` keys, many at a time, and remembers what was acknowledged.
fn load(node: &Node, from: u64, count: u64, acked: &mut BTreeMap<u64, u64>) {
    let mut client = node.client();
    for first in (from..from + count).step_by(50) {
        let numbers: Vec<u64> = (first..first + 50).collect();
        for number in &numbers {
            let key = format!("key-{}", number % KEYS);
            client.send(&Request::Put { key: key.as_bytes(), value: &value(*number) }).unwrap();
        }
        client.flush().unwrap();
        for number in numbers {
            assert_eq!(client.receive().unwrap().status, Status::Ok);
            acked.insert(number % KEYS, number);
        }
    }
}

fn value(number: u64) -> Vec<u8> {
    let mut value = vec![number as u8; 500];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value
}

fn check(node: &Node, acked: &BTreeMap<u64, u64>) {
    let mut client = node.client();
    for (key, number) in acked {
        let found = client.get(format!("key-{key}").as_bytes()).unwrap().value;
        assert_eq!(found, Some(value(*number)), "key-{key}");
    }
}

fn snapshots_made(status: &serde_json::Value) -> u64 {
    status["counters"]["snapshots"].as_u64().expect("a node counts them")
}

#[test]
fn killed_at_any_moment_of_its_snapshots_a_node_has_every_acknowledged_key() {
    let mut single = Single::start(FLAGS);
    let mut acked = BTreeMap::new();
    let mut next = 0;
    for round in 0..8 {
        // Between a quarter of a snapshot's log and several: each kill meets another moment.
        let count = 200 + round * 350;
        load(&single.node, next, count, &mut acked);
        next += count;
        single.node.kill9();
        single.node.start();
        check(&single.node, &acked);
    }
    load(&single.node, next, 3_000, &mut acked);
    let status = single.node.wait_status("snapshots are made", |status| snapshots_made(status) >= 1);
    assert!(status["snapshot"]["last_error"].is_null(), "{status}");
    single.node.wait_status("old segments go", |status| {
        status["first_lsn"].as_u64() > Some(1) && status["log_bytes"].as_u64() < Some(2 << 20)
    });
    let (segments, snapshots) = (single.node.files(".seg").len(), single.node.files(".kvsnap").len());
    // Some 7 MB were written, and each snapshot comes at a quarter of one, or a few moments later.
    assert!(segments <= 48, "{segments} segments of 64 KiB");
    assert!((1..=2).contains(&snapshots), "{snapshots} snapshots");
    single.node.kill9();
    single.node.start();
    assert_eq!(single.node.status()["counters"]["loaded_from_snapshot"], 1);
    check(&single.node, &acked);
}

#[test]
fn the_command_returns_when_the_snapshot_is_durable() {
    let single = Single::start(&[]);
    let (code, _, refused) = single.node.cli(&["snapshot"]);
    assert_eq!(code, 0, "a leader's log is never empty: {refused}");
    let mut acked = BTreeMap::new();
    load(&single.node, 0, 1_000, &mut acked);
    let (code, out, _) = single.node.cli(&["snapshot"]);
    assert!(code == 0 && out.contains(".kvsnap: durable"), "{code} {out}");
    assert_eq!(single.node.files(".kvsnap").len(), 2);
    let (code, out, _) = single.node.cli(&["snapshot", "--no-wait"]);
    assert!(code == 0 && (out.contains("begun") || out.contains("newest")), "{out}");
    let status = single.node.wait_status("it is done", |status| status["snapshot"]["state"] == "done");
    assert_eq!(status["snapshot"]["progress"], 100);
}
