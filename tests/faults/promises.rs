//! What an operator gives up is said before it is given up: a node that crashes on the way, at any operation of its
//! disk, has either done nothing yet or has told it.

use kvstore::ids::Lsn;
use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mini_cluster::MiniCluster;

/// Operations of a disk that a promotion or a discard takes, at most.
const OPS_MAX: u64 = 200;

fn put(cluster: &mut MiniCluster, name: &str, key: &str) {
    cluster.send(name, &Request::Put { key: key.as_bytes(), value: b"value" });
    cluster.run();
}

/// `a` leads, `b` follows and is in sync, and neither hears the other any more.
fn parted() -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.start("c", RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.start("a", RoleFlag::Leader, &["b", "c"], AckPolicy::InSync);
    cluster.run();
    put(&mut cluster, "a", "one");
    cluster.wait(200, true);
    cluster.block("a", "b");
    put(&mut cluster, "a", "two");
    cluster.wait(600, true);
    cluster
}

/// The machine under this node dies `ops` operations of its disk from now. Whether it did, and the warnings so far.
fn crashes(
    cluster: &mut MiniCluster,
    name: &str,
    ops: u64,
    act: impl Fn(&mut MiniCluster),
) -> (bool, Vec<String>) {
    let disk = cluster.disk(name).clone();
    logs::take();
    cluster.take_trace();
    disk.crash_before(disk.op_count() + ops);
    act(cluster);
    let mut warnings = logs::take();
    warnings.extend(cluster.take_trace());
    (disk.has_crashed(), warnings)
}

#[test]
fn what_a_forced_promotion_may_lose_is_said_before_the_node_leads() {
    let (mut led, mut ops) = (0, 0);
    loop {
        let mut cluster = parted();
        cluster.kill("c", false);
        let (crashed, lines) = crashes(&mut cluster, "b", ops, |cluster| {
            cluster.send("b", &Request::Promote { force: true });
            cluster.run();
            cluster.wait(6_000, true);
        });
        let told = lines.iter().any(|line| line.contains("forced promotion; what may be lost"));
        if !crashed {
            assert!(told && cluster.node("b").observe().leads, "{lines:#?}");
            break;
        }
        cluster.kill("b", true);
        cluster.start("b", RoleFlag::Follower, &[], AckPolicy::InSync);
        if cluster.node("b").observe().leads {
            led += 1;
            assert!(told, "it leads after a crash before operation {ops}, and had said: {lines:#?}");
        }
        ops += 1;
        assert!(ops < OPS_MAX, "a promotion takes so many operations");
    }
    assert!(led > 0, "some crash comes between the decision and its end");
}

#[test]
fn what_a_discard_gives_up_is_said_before_it_is_gone() {
    let (mut gone, mut ops) = (0, 0);
    loop {
        let mut cluster = parted();
        cluster.send("b", &Request::Promote { force: true });
        cluster.wait(6_000, true);
        put(&mut cluster, "b", "three");
        cluster.unblock("a", "b");
        cluster.wait(1_000, true);
        let held = cluster.node("a").positions().0;
        let (crashed, lines) = crashes(&mut cluster, "a", ops, |cluster| {
            cluster.send("a", &Request::Follow { address: "b:1", discard: true });
            cluster.run();
            cluster.wait(2_500, true);
        });
        let told = lines.iter().any(|line| line.contains("--discard gives up records"));
        if !crashed {
            assert!(told && cluster.node("a").positions().0 > Lsn(2), "{lines:#?}");
            break;
        }
        cluster.kill("b", false);
        cluster.kill("a", true);
        cluster.start("a", RoleFlag::Follower, &[], AckPolicy::InSync);
        if cluster.node("a").positions().0 < held {
            gone += 1;
            assert!(
                told,
                "records are gone after a crash before operation {ops}, and it had said: {lines:#?}"
            );
        }
        ops += 1;
        assert!(ops < OPS_MAX, "a discard takes so many operations");
    }
    assert!(gone > 0, "some crash comes between the decision and its end");
}
