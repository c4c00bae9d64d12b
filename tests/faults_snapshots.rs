//! A follower whose snapshots are damaged: the older one and more log give the same state (D15), and with none left it
//! fetches its state again from its leader instead of ending (D2). A leader, and a node that has none, refuse in words.

use kvstore::ids::Lsn;
use kvstore::node::{FeedLimits, RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::snapshot::parse_snapshot_name;
use kvstore::wire::client::Request;

#[path = "support/logs.rs"]
mod logs;
#[path = "support/mini_cluster.rs"]
mod mini_cluster;
use mini_cluster::MiniCluster;

/// How a snapshot is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// In the header: it is seen when the directory is looked at.
    Head,
    /// In a block: it is seen when that is loaded.
    Block,
    /// The file is gone.
    Missing,
}

const DAMAGES: [Damage; 3] = [Damage::Head, Damage::Block, Damage::Missing];

/// Where the snapshots of the follower come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Own,
    Leader,
}

fn put(cluster: &mut MiniCluster, number: u64) {
    let key = format!("key-{}", number % 40).into_bytes();
    let mut value = vec![number as u8; 1_000];
    value[..8].copy_from_slice(&number.to_be_bytes());
    cluster.send("a", &Request::Put { key: &key, value: &value });
    cluster.run();
}

fn puts(cluster: &mut MiniCluster, numbers: std::ops::Range<u64>) {
    numbers.into_iter().for_each(|number| put(cluster, number));
}

fn snapshot(cluster: &mut MiniCluster, name: &str) {
    let made = cluster.node(name).counters.snapshots;
    cluster.send(name, &Request::Snapshot { wait: false });
    for number in 0..6 {
        put(cluster, 7 * number);
        cluster.wait(1, true);
    }
    cluster.wait(400, true);
    let trace = cluster.take_trace();
    assert_eq!(cluster.node(name).counters.snapshots, made + 1, "{trace:#?}");
}

fn two_snapshots(cluster: &mut MiniCluster, names: &[&str]) {
    for round in 0..2 {
        puts(cluster, 10 + round * 150..160 + round * 150);
        cluster.wait(300, true);
        names.iter().for_each(|name| snapshot(cluster, name));
    }
    puts(cluster, 310..320);
    cluster.wait(300, true);
}

/// `a` leads, `b` follows; neither log begins at LSN 1, and `b` is down. In slices: its state is loaded turn by turn.
fn down(origin: Origin, in_slices: bool, ack: AckPolicy) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.feed = FeedLimits { frame_bytes: 6_000, high_water: 12_000, low_water: 5_000 };
    cluster.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        settle_ms: 1,
        slice_bytes: 8_000,
        load_at_once_bytes: if in_slices { 0 } else { 1 << 20 },
        ..SnapshotConfig::default()
    };
    cluster.start("b", RoleFlag::Follower, &[], ack);
    cluster.start("a", RoleFlag::Leader, &["b"], ack);
    cluster.wait(200, true);
    puts(&mut cluster, 0..10);
    cluster.wait(200, true);
    match origin {
        Origin::Own => two_snapshots(&mut cluster, &["a", "b"]),
        Origin::Leader => {
            cluster.kill("b", false);
            cluster.wait(1_000, true);
            two_snapshots(&mut cluster, &["a"]);
            cluster.start("b", RoleFlag::Follower, &[], ack);
            catch_up(&mut cluster, "the first time");
        }
    }
    cluster.kill("b", false);
    cluster.take_trace();
    cluster
}

fn snapshots_of(cluster: &MiniCluster, name: &str) -> Vec<String> {
    let names = cluster.disk(name).names().into_iter();
    names.filter(|name| parse_snapshot_name(name).is_some()).collect()
}

fn damage(cluster: &MiniCluster, file: &str, how: Damage) {
    match how {
        Damage::Head => cluster.disk("b").corrupt(file, 10, 3),
        Damage::Block => cluster.disk("b").corrupt(file, 20_000, 3),
        Damage::Missing => cluster.disk("b").remove_raw(file),
    }
}

fn start_b(cluster: &mut MiniCluster) {
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::Leader);
}

/// Time passes until both hold the same.
fn catch_up(cluster: &mut MiniCluster, when: &str) {
    for _ in 0..100 {
        cluster.wait(100, true);
        assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
        if cluster.node("a").positions() == cluster.node("b").positions() {
            break;
        }
    }
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_eq!(a.positions(), b.positions(), "{when}");
    assert_eq!(a.keyspace().recompute_hash(), b.keyspace().recompute_hash(), "{when}");
    assert_eq!(a.keyspace().state_hash(), b.keyspace().state_hash(), "{when}");
}

/// What `b` answers to a read.
fn read_b(cluster: &mut MiniCluster) -> String {
    cluster.take_trace();
    cluster.send("b", &Request::Get { key: b"key-1" });
    cluster.run();
    let trace = cluster.take_trace();
    let reply = trace.iter().find(|line| line.contains("REPLY"));
    reply.unwrap_or_else(|| panic!("no reply in {trace:#?}")).clone()
}

#[test]
fn a_follower_whose_snapshots_are_all_damaged_fetches_its_state_again() {
    for (origin, in_slices, how) in every_case() {
        let when = format!("{origin:?}, in slices {in_slices}, {how:?}");
        let mut cluster = down(origin, in_slices, AckPolicy::Leader);
        let held = cluster.node("a").positions().0;
        for file in snapshots_of(&cluster, "b") {
            damage(&cluster, &file, how);
        }
        start_b(&mut cluster);
        assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
        // Nothing of what it has left is a state, and nobody may take it for one.
        for _ in 0..200 {
            if !cluster.node("b").is_loading() {
                break;
            }
            cluster.pass(1);
            cluster.turn("b", None);
        }
        let seen = cluster.node("b").observe();
        assert_eq!((seen.last, seen.repair_until), (Lsn::ZERO, held), "{when}");
        let reply = read_b(&mut cluster);
        assert!(reply.contains("Repairing"), "{when}: {reply}");
        catch_up(&mut cluster, &when);
        let b = cluster.node("b");
        assert_eq!((b.counters.snapshots_installed, b.observe().repair_until), (1, Lsn::ZERO), "{when}");
        let reply = read_b(&mut cluster);
        assert!(reply.contains("REPLY Ok"), "{when}: {reply}");
        // What it holds now is what a restart finds, and what it had is kept for a person to look at.
        cluster.kill("b", true);
        start_b(&mut cluster);
        catch_up(&mut cluster, &format!("{when}, after a restart"));
        assert_eq!(cluster.node("b").counters.snapshots_installed, 0, "{when}");
        let names = cluster.disk("b").names();
        assert!(names.iter().any(|name| name.starts_with("damaged-g")), "{when}: {names:?}");
    }
}

fn every_case() -> impl Iterator<Item = (Origin, bool, Damage)> {
    [Origin::Own, Origin::Leader].into_iter().flat_map(|origin| {
        [false, true].into_iter().flat_map(move |slices| DAMAGES.map(|how| (origin, slices, how)))
    })
}
