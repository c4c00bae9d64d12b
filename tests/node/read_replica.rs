//! A read replica of an elected cluster: a follower by its flags, fed by whoever leads. It has no say in anything.

use kvstore::node::{ElectionConfig, PinConfig, PinOverflow, RoleFlag};
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::{ReadMode, Request};

use crate::logs;
use crate::mini_cluster::MiniCluster;

const MEMBERS: [&str; 3] = ["a", "b", "c"];
const REPLICA: &str = "r";
/// Milliseconds in which a cluster of three elects.
const ELECTION_MS: u64 = 1_500;
/// Milliseconds without progress after which a member is out of sync here.
const INSYNC_TIMEOUT_MS: u64 = 500;

fn leads(cluster: &MiniCluster) -> &'static str {
    let leads = |name: &&str| cluster.is_up(name) && cluster.node(name).observe().leads;
    MEMBERS.into_iter().find(leads).expect("somebody leads")
}

fn others(leader: &str) -> Vec<&'static str> {
    MEMBERS.into_iter().filter(|name| *name != leader).collect()
}

/// Three members with a leader, and their replica.
fn started() -> (MiniCluster, &'static str) {
    started_with(PinConfig::default())
}

fn started_with(pin: PinConfig) -> (MiniCluster, &'static str) {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.pin = pin;
    cluster.election = ElectionConfig { replicas: vec![format!("{REPLICA}:1")], ..ElectionConfig::default() };
    for name in MEMBERS {
        let peers: Vec<&str> = MEMBERS.into_iter().filter(|other| *other != name).collect();
        cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
    }
    cluster.start(REPLICA, RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.wait(ELECTION_MS, true);
    let leader = leads(&cluster);
    cluster.take_trace();
    (cluster, leader)
}

fn asked(cluster: &mut MiniCluster, name: &str, request: &Request<'_>) -> Vec<String> {
    cluster.take_trace();
    cluster.send(name, request);
    cluster.run();
    let from = format!("{name} -> client ");
    cluster.take_trace().iter().filter_map(|line| line.strip_prefix(&from)).map(str::to_owned).collect()
}

fn put(cluster: &mut MiniCluster, name: &str, value: &str) -> Vec<String> {
    asked(cluster, name, &Request::Put { key: b"key", value: value.as_bytes() })
}

fn get(cluster: &mut MiniCluster, name: &str) -> Vec<String> {
    asked(cluster, name, &Request::Get { key: b"key" })
}

#[track_caller]
fn expect(answers: &[String], parts: &[&str]) {
    let fits = |answer: &String| parts.iter().all(|part| answer.contains(part));
    assert!(answers.len() == 1 && fits(&answers[0]), "expected {parts:?} in {answers:?}");
}

#[test]
fn a_replica_shows_what_is_committed_and_says_how_old_it_is() {
    let (mut cluster, leader) = started();
    expect(&put(&mut cluster, leader, "1"), &["Ok"]);
    cluster.wait(200, true);
    expect(&get(&mut cluster, REPLICA), &["Ok", "age", "1"]);
    for name in others(leader) {
        cluster.freeze(name, true);
    }
    assert_eq!(put(&mut cluster, leader, "2"), [""; 0], "only the replica has it too");
    let (last, commit, applied) = cluster.node(REPLICA).positions();
    assert!(last == cluster.node(leader).positions().0 && applied == commit && commit < last);
    expect(&get(&mut cluster, REPLICA), &["Ok", "1"]);
    for name in others(leader) {
        cluster.freeze(name, false);
    }
    cluster.wait(200, true);
    expect(&get(&mut cluster, REPLICA), &["Ok", "2"]);
}

#[test]
fn a_replicas_echoes_are_for_no_lease_and_its_disk_for_no_majority() {
    let (mut cluster, leader) = started();
    for name in others(leader) {
        cluster.freeze(name, true);
    }
    assert_eq!(put(&mut cluster, leader, "1"), [""; 0]);
    cluster.wait(600, true);
    assert!(!cluster.node(leader).observe().leads, "the replica alone keeps nobody in office");
}

#[test]
fn a_replica_follows_whoever_leads() {
    let (mut cluster, leader) = started();
    expect(&put(&mut cluster, leader, "1"), &["Ok"]);
    cluster.kill(leader, false);
    cluster.wait(2 * ELECTION_MS, true);
    let next = leads(&cluster);
    assert_ne!(next, leader);
    expect(&put(&mut cluster, next, "2"), &["Ok"]);
    cluster.wait(200, true);
    expect(&get(&mut cluster, REPLICA), &["Ok", "2"]);
    expect(&put(&mut cluster, REPLICA, "3"), &["NotLeader", &format!("{next}:1")]);
}

#[test]
fn a_replica_serves_what_it_knows_to_be_committed_after_a_restart_and_is_never_promoted() {
    let (mut cluster, leader) = started();
    expect(&put(&mut cluster, leader, "1"), &["Ok"]);
    cluster.wait(200, true);
    expect(&put(&mut cluster, leader, "2"), &["Ok"]);
    cluster.wait(200, true);
    for name in MEMBERS {
        cluster.kill(name, false);
    }
    cluster.kill(REPLICA, true);
    cluster.start(REPLICA, RoleFlag::Follower, &[], AckPolicy::InSync);
    let (_, commit, applied) = cluster.node(REPLICA).positions();
    assert_eq!(applied, commit);
    expect(&get(&mut cluster, REPLICA), &["Ok"]);
    for force in [false, true] {
        expect(&asked(&mut cluster, REPLICA, &Request::Promote { force }), &["Refused", "elected"]);
    }
    let linearizable = Request::GetWith { key: b"key", reads: ReadMode::Quorum };
    expect(&asked(&mut cluster, REPLICA, &linearizable), &["NotLeader"]);
}

#[test]
fn leadership_is_handed_to_a_member_and_never_to_a_replica() {
    let (mut cluster, leader) = started();
    let to_replica = Request::Transfer { address: &format!("{REPLICA}:1") };
    expect(&asked(&mut cluster, leader, &to_replica), &["Refused", "none of the other members"]);
    // The replica alone has the newest record.
    for name in others(leader) {
        cluster.freeze(name, true);
    }
    assert_eq!(put(&mut cluster, leader, "1"), [""; 0]);
    cluster.send(leader, &Request::Transfer { address: "" });
    cluster.run();
    for name in others(leader) {
        cluster.freeze(name, false);
    }
    cluster.wait(ELECTION_MS, true);
    assert!(others(leader).contains(&leads(&cluster)));
}

#[test]
fn a_replica_that_lags_does_not_wake_its_leader_again_and_again() {
    let (mut cluster, leader) = started();
    // With ACKs as fresh as these a member that is out of sync would be about to come back.
    for value in ["1", "2", "3"] {
        expect(&put(&mut cluster, leader, value), &["Ok"]);
    }
    cluster.freeze(REPLICA, true);
    expect(&put(&mut cluster, leader, "4"), &["Ok"]);
    cluster.wait(2 * INSYNC_TIMEOUT_MS, true);
    let deadline = cluster.node(leader).next_deadline().expect("there are heartbeats");
    assert!(deadline > cluster.now(), "a poll that sleeps until {deadline:?} does not sleep at all");
}

#[test]
fn nothing_is_kept_for_a_replica_that_has_caught_up_with_a_snapshot() {
    let (mut cluster, leader) = started_with(PinConfig { log_bytes: 8 << 10, overflow: PinOverflow::Slow });
    cluster.kill(REPLICA, false);
    let big = "v".repeat(4 << 10);
    for _ in 0..2 {
        for _ in 0..40 {
            expect(&put(&mut cluster, leader, &big), &["Ok"]);
        }
        expect(&asked(&mut cluster, leader, &Request::Snapshot { wait: false }), &["Ok"]);
        cluster.wait(2 * INSYNC_TIMEOUT_MS, true);
    }
    cluster.start(REPLICA, RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.wait(2_000, true);
    assert_eq!(cluster.node(REPLICA).counters.snapshots_installed, 1);
    // A replica is never in sync. What was kept for it until it is would be more than that for ever.
    for number in 0..40 {
        let answers = put(&mut cluster, leader, &big);
        expect(&answers, &["Ok"]);
        cluster.wait(20, true);
        assert!(cluster.is_up(leader), "write {number}");
    }
}

#[test]
fn a_member_is_no_replica() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.election = ElectionConfig { replicas: vec!["x:1".to_owned()], ..ElectionConfig::default() };
    cluster.start("a", RoleFlag::Auto, &[], AckPolicy::Majority);
    cluster.start("x", RoleFlag::Auto, &["y"], AckPolicy::Majority);
    cluster.wait(ELECTION_MS, true);
    let trace = cluster.take_trace();
    let warned = |line: &String| line.starts_with("a warns") && line.contains("--role=follower");
    assert!(trace.iter().any(warned), "{trace:#?}");
}
