//! A follower that must cut its log below the end of a snapshot: the snapshot goes first, and the state is made anew
//! from what is left. With nothing left it begins anew.

use kvstore::ids::Lsn;
use kvstore::node::{RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::snapshot::{SnapshotId, parse_snapshot_name};
use kvstore::wire::client::Request;

use crate::logs;
use crate::mini_cluster::MiniCluster;

struct Story {
    cluster: MiniCluster,
    number: u64,
}

impl Story {
    /// A leader `a` that waits for nobody, and its follower `b`.
    fn begin() -> Story {
        logs::capture();
        let mut cluster = MiniCluster::new();
        cluster.snapshot =
            SnapshotConfig { log_bytes: Some(u64::MAX), settle_ms: 1, ..SnapshotConfig::default() };
        cluster.start("b", RoleFlag::Follower, &[], AckPolicy::Leader);
        cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Leader);
        cluster.run();
        Story { cluster, number: 0 }
    }

    fn write(&mut self, to: &str, count: u64) {
        for _ in 0..count {
            self.number += 1;
            let key = format!("key-{}", self.number % 50);
            let mut value = vec![self.number as u8; 2_000];
            value[..8].copy_from_slice(&self.number.to_be_bytes());
            self.cluster.send(to, &Request::Put { key: key.as_bytes(), value: &value });
            self.cluster.run();
        }
    }

    fn snapshot(&mut self, of: &str) {
        let made = self.cluster.node(of).counters.snapshots;
        self.cluster.send(of, &Request::Snapshot { wait: false });
        for _ in 0..50 {
            self.cluster.wait(25, true);
        }
        assert_eq!(self.cluster.node(of).counters.snapshots, made + 1, "{of} made one");
    }

    /// `b` leads now with records of its own, and `a` is told to follow it whatever that costs.
    fn b_takes_over(&mut self) {
        self.cluster.send("b", &Request::Promote { force: true });
        self.cluster.wait(4_000, true);
        assert_eq!(self.cluster.node("b").role_name(), "leader");
        self.write("b", 30);
        self.cluster.unblock("a", "b");
        self.cluster.send("a", &Request::Follow { address: "b:1", discard: true });
        self.cluster.wait(3_000, true);
    }

    fn ids(&self, of: &str) -> Vec<SnapshotId> {
        self.cluster.disk(of).names().iter().filter_map(|name| parse_snapshot_name(name)).collect()
    }

    /// `a` is what `b` is, also after a restart.
    fn expect_equal(&mut self) {
        for round in 0..2 {
            let (a, b) = (self.cluster.node("a"), self.cluster.node("b"));
            assert_eq!(a.positions().0, b.positions().0, "round {round}: {:?}", self.cluster.take_trace());
            let (a, b) = (self.cluster.node("a"), self.cluster.node("b"));
            assert_eq!(a.keyspace().state_hash(), b.keyspace().state_hash(), "round {round}");
            a.keyspace().invariants();
            self.cluster.kill("a", true);
            self.cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Leader);
            self.cluster.wait(3_000, true);
        }
    }
}

#[test]
fn a_snapshot_that_ends_behind_the_cut_goes_and_the_log_has_the_state() {
    let mut story = Story::begin();
    story.write("a", 40);
    story.cluster.block("a", "b");
    story.write("a", 20);
    story.snapshot("a");
    assert_eq!(story.ids("a").len(), 1);
    story.b_takes_over();
    assert!(story.ids("a").is_empty(), "it held records that were cut");
    story.expect_equal();
}

#[test]
fn an_older_snapshot_before_the_cut_gives_the_state() {
    let mut story = Story::begin();
    story.write("a", 100);
    story.snapshot("a");
    story.write("a", 60);
    story.snapshot("a");
    story.write("a", 10);
    assert!(story.cluster.node("a").counters.segments_removed > 0, "the log does not begin at 1 any more");
    let before = story.ids("a");
    story.cluster.block("a", "b");
    story.write("a", 20);
    story.b_takes_over();
    assert_eq!(story.ids("a"), before, "both end before the cut");
    story.expect_equal();
}

#[test]
fn with_no_state_before_the_cut_the_follower_begins_anew() {
    let mut story = Story::begin();
    story.write("a", 20);
    story.cluster.block("a", "b");
    let shared = story.cluster.node("b").positions().0;
    for _ in 0..2 {
        story.write("a", 80);
        story.snapshot("a");
    }
    assert!(story.cluster.node("a").counters.segments_removed > 0);
    assert!(story.ids("a").iter().all(|id| id.s > shared) && shared > Lsn::ZERO);
    story.b_takes_over();
    assert!(story.ids("a").is_empty());
    story.expect_equal();
}
