//! What a snapshot covers stays in the log while a connected follower has yet to get it, as far as `--retain-log-bytes`
//! goes.

use kvstore::ids::Lsn;
use kvstore::node::{FeedLimits, RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::wal::parse_segment_name;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mem_disk::MemDisk;
use crate::mini_cluster::MiniCluster;

fn puts(cluster: &mut MiniCluster, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let key = format!("key-{}", number % 40).into_bytes();
        cluster.send("a", &Request::Put { key: &key, value: &[number as u8; 1_000] });
        cluster.run();
    }
}

fn snapshot(cluster: &mut MiniCluster) {
    let made = cluster.node("a").counters.snapshots;
    cluster.send("a", &Request::Snapshot { wait: false });
    cluster.wait(400, true);
    let trace = cluster.take_trace();
    assert_eq!(cluster.node("a").counters.snapshots, made + 1, "{trace:#?}");
}

fn first_lsn(disk: &MemDisk) -> Lsn {
    disk.names().iter().find_map(|name| parse_segment_name(name)).expect("there is a segment")
}

/// `a` leads and makes two snapshots while `b` stands still, connected. Returns where the log of `a` begins then, and
/// the last record that `b` has.
fn with_a_follower_that_stands_still(retain_log_bytes: u64) -> (MiniCluster, Lsn, Lsn) {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.feed = FeedLimits { frame_bytes: 6_000, high_water: 12_000, low_water: 5_000 };
    cluster.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        settle_ms: 1,
        slice_bytes: 64 << 10,
        retain_log_bytes,
        ..SnapshotConfig::default()
    };
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::Leader);
    cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Leader);
    cluster.wait(200, true);
    puts(&mut cluster, 0..10);
    cluster.wait(200, true);
    let held = cluster.node("b").positions().0;
    cluster.freeze("b", true);
    for round in 0..2 {
        puts(&mut cluster, 10 + round * 150..160 + round * 150);
        snapshot(&mut cluster);
    }
    // The one that goes is the first: all that the older snapshot covers, one in 20 ms.
    cluster.wait(300, true);
    let first = first_lsn(cluster.disk("a"));
    (cluster, first, held)
}

#[test]
fn what_a_connected_follower_has_yet_to_get_stays_although_two_snapshots_cover_it() {
    let (mut cluster, first, held) = with_a_follower_that_stands_still(1 << 30);
    assert!(first <= held.next(), "the log begins at {first}, the follower has {held}");
    cluster.freeze("b", false);
    cluster.wait(3_000, true);
    assert_eq!(cluster.node("a").positions().0, cluster.node("b").positions().0);
    puts(&mut cluster, 400..402);
    cluster.wait(1_000, true);
    assert!(first_lsn(cluster.disk("a")) > held.next(), "and then it goes");
}

#[test]
fn a_follower_further_behind_than_the_flag_allows_keeps_nothing() {
    let (_cluster, first, held) = with_a_follower_that_stands_still(20_000);
    assert!(first > held.next(), "the log begins at {first}, the follower has {held}");
}
