//! What an elected cluster reads: real nodes together, with virtual time. A leader answers while its lease holds or
//! after a round; a follower says who leads, or answers from what it has and says how old that may be.

use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::{ReadMode, Request};

use crate::logs;
use crate::mini_cluster::MiniCluster;

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Milliseconds in which a cluster of three elects.
const ELECTION_MS: u64 = 1_500;
/// The lease with the default timeout of 500 ms, and the heartbeats.
const LEASE_MS: u64 = 450;
const HEARTBEAT_MS: u64 = 100;

fn started() -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    for name in NAMES {
        let peers: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
        cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
    }
    cluster
}

fn leads(cluster: &MiniCluster) -> Option<&'static str> {
    NAMES.into_iter().find(|name| cluster.is_up(name) && cluster.node(name).observe().leads)
}

/// A cluster with a leader who has put `key`, and whom everybody has just heard; and its followers.
fn elected() -> (MiniCluster, &'static str, [&'static str; 2]) {
    let mut cluster = started();
    cluster.wait(ELECTION_MS, true);
    let leader = leads(&cluster).expect("somebody leads");
    let followers: Vec<&str> = NAMES.into_iter().filter(|name| *name != leader).collect();
    cluster.send(leader, &Request::Put { key: b"key", value: b"old" });
    cluster.run();
    cluster.wait(2 * HEARTBEAT_MS, true);
    cluster.take_trace();
    (cluster, leader, [followers[0], followers[1]])
}

fn freeze(cluster: &mut MiniCluster, names: [&str; 2], frozen: bool) {
    names.into_iter().for_each(|name| cluster.freeze(name, frozen));
}

/// Requests for the node's next turn.
fn ask(cluster: &mut MiniCluster, name: &str, reads: ReadMode, count: usize) {
    (0..count).for_each(|_| cluster.send(name, &Request::GetWith { key: b"key", reads }));
}

/// What the node has said to its client since the trace was taken last.
fn answers(trace: &[String], name: &str) -> Vec<String> {
    let from = format!("{name} -> client ");
    trace.iter().filter_map(|line| line.strip_prefix(&from)).map(str::to_owned).collect()
}

/// Asks, and runs all until nobody has anything to do at this moment.
fn read(cluster: &mut MiniCluster, name: &str, reads: ReadMode) -> Vec<String> {
    cluster.take_trace();
    // A frame that was sent in this very moment would prove it too.
    cluster.pass(1);
    ask(cluster, name, reads, 1);
    cluster.run();
    answers(&cluster.take_trace(), name)
}

#[track_caller]
fn expect(answers: &[String], parts: &[&str]) {
    let fits = |answer: &String| parts.iter().all(|part| answer.contains(part));
    assert!(answers.len() == 1 && fits(&answers[0]), "expected {parts:?} in {answers:?}");
}

#[test]
fn a_lease_answers_at_once_and_asks_nobody() {
    let (mut cluster, leader, _) = elected();
    cluster.send(leader, &Request::Get { key: b"key" });
    cluster.turn(leader, None);
    let trace = cluster.take_trace();
    expect(&answers(&trace, leader), &["Ok", "old"]);
    assert!(!trace.iter().any(|line| line.contains("APPEND_ENTRIES")), "{trace:#?}");
}

#[test]
fn without_a_lease_a_read_waits_for_a_round() {
    let (mut cluster, leader, followers) = elected();
    freeze(&mut cluster, followers, true);
    let mut held_ms = 0;
    loop {
        let said = read(&mut cluster, leader, ReadMode::Lease);
        if said.is_empty() {
            break;
        }
        expect(&said, &["Ok", "old"]);
        cluster.wait(9, true);
        held_ms += 10;
    }
    let runs_from_an_echo = LEASE_MS - HEARTBEAT_MS - 10..=LEASE_MS;
    assert!(runs_from_an_echo.contains(&held_ms), "a lease of {held_ms} ms");
    freeze(&mut cluster, followers, false);
    cluster.run();
    expect(&answers(&cluster.take_trace(), leader), &["Ok", "old"]);
}

#[test]
fn one_round_serves_many_reads() {
    const READS: usize = 100;
    let (mut cluster, leader, _) = elected();
    cluster.pass(1);
    ask(&mut cluster, leader, ReadMode::Quorum, READS);
    cluster.run();
    let trace = cluster.take_trace();
    let sent = format!("{leader} -> ");
    let rounds =
        trace.iter().filter(|line| line.starts_with(&sent) && line.contains("APPEND_ENTRIES ")).count();
    assert_eq!((answers(&trace, leader).len(), rounds), (READS, 2), "one frame to each follower: {trace:#?}");
}

#[test]
fn a_read_that_comes_during_a_round_waits_for_the_next() {
    let (mut cluster, leader, followers) = elected();
    cluster.pass(1);
    ask(&mut cluster, leader, ReadMode::Quorum, 1);
    // Its round leaves, and is not answered yet.
    cluster.turn(leader, None);
    cluster.pass(5);
    ask(&mut cluster, leader, ReadMode::Quorum, 1);
    cluster.turn(leader, None);
    cluster.take_trace();
    cluster.turn(followers[0], None);
    cluster.turn(leader, None);
    let trace = cluster.take_trace();
    expect(&answers(&trace, leader), &["Ok", "old"]);
    let next = format!("{leader} -> {} APPEND_ENTRIES", followers[0]);
    assert!(trace.iter().any(|line| line.starts_with(&next)), "the next round: {trace:#?}");
    cluster.run();
    expect(&answers(&cluster.take_trace(), leader), &["Ok", "old"]);
}

#[test]
fn a_read_behind_a_write_sees_it() {
    let (mut cluster, leader, _) = elected();
    for reads in ReadMode::ALL {
        cluster.send(leader, &Request::Put { key: b"key", value: reads.name().as_bytes() });
        ask(&mut cluster, leader, reads, 1);
        cluster.run();
        let answers = answers(&cluster.take_trace(), leader);
        assert!(answers.len() == 2 && answers[1].ends_with(reads.name()), "{answers:?}");
    }
}

/// The leader stands still within a turn, longer than its lease, between what a follower sent and what its client sent.
fn a_stall_before_a_request() {
    let (mut cluster, leader, followers) = elected();
    freeze(&mut cluster, followers, true);
    cluster.pause_before_client_ms = Some(2_000);
    ask(&mut cluster, leader, ReadMode::Lease, 1);
    cluster.turn(leader, None);
    let trace = cluster.take_trace();
    assert_eq!(
        answers(&trace, leader).iter().filter(|answer| answer.contains("Ok")).count(),
        0,
        "{trace:#?}"
    );
}

/// As [`a_stall_before_a_request`], with the leader having looked at its clock in that turn before it stalled.
fn a_stall_behind_a_look_at_the_clock() {
    let (mut cluster, leader, followers) = elected();
    // An echo of a heartbeat waits to be read in the same turn, in front of the request.
    cluster.pass(HEARTBEAT_MS);
    cluster.turn(leader, None);
    cluster.turn(followers[0], None);
    freeze(&mut cluster, followers, true);
    cluster.pause_before_client_ms = Some(2_000);
    ask(&mut cluster, leader, ReadMode::Lease, 1);
    cluster.take_trace();
    cluster.turn(leader, None);
    let trace = cluster.take_trace();
    assert!(trace.iter().any(|line| line.contains(&format!("{leader} takes"))), "{trace:#?}");
    assert_eq!(
        answers(&trace, leader).iter().filter(|answer| answer.contains("Ok")).count(),
        0,
        "{trace:#?}"
    );
}

#[test]
fn after_a_stall_nothing_is_answered_by_the_lease_of_before() {
    a_stall_before_a_request();
    a_stall_behind_a_look_at_the_clock();
}

#[cfg(feature = "sabotage")]
#[test]
fn a_lease_that_is_judged_by_the_time_of_the_turn_is_caught() {
    use kvstore::sabotage::{Variant, set};
    set(Some(Variant::StaleReadAfterPause));
    let ended = std::panic::catch_unwind(a_stall_behind_a_look_at_the_clock);
    set(None);
    assert!(ended.is_err(), "{} escaped", Variant::StaleReadAfterPause.name());
}

/// A leader that was elected a moment ago, and whose followers have not heard it yet.
fn just_elected() -> (MiniCluster, &'static str, [&'static str; 2]) {
    let mut cluster = started();
    let leader = (0..100_000)
        .find_map(|_| {
            cluster.step();
            leads(&cluster)
        })
        .expect("somebody is elected");
    let followers: Vec<&str> = NAMES.into_iter().filter(|name| *name != leader).collect();
    let followers = [followers[0], followers[1]];
    freeze(&mut cluster, followers, true);
    (cluster, leader, followers)
}

#[test]
fn nothing_is_read_before_the_leaders_own_term_record_is_applied() {
    for reads in [ReadMode::Lease, ReadMode::Quorum] {
        let (mut cluster, leader, followers) = just_elected();
        let (last, commit, _) = cluster.node(leader).positions();
        assert!(commit < last, "the TERM record is not committed");
        assert_eq!(read(&mut cluster, leader, reads), [""; 0]);
        freeze(&mut cluster, followers, false);
        cluster.run();
        expect(&answers(&cluster.take_trace(), leader), &["NotFound", &format!("lsn {last}")]);
    }
    let (mut cluster, leader, _) = just_elected();
    expect(&read(&mut cluster, leader, ReadMode::Local), &["NotFound", "lsn 0"]);
}

#[test]
fn a_follower_says_who_leads_or_answers_and_says_how_old_that_may_be() {
    let (mut cluster, leader, [follower, _]) = elected();
    for reads in [ReadMode::Lease, ReadMode::Quorum] {
        expect(&read(&mut cluster, follower, reads), &["NotLeader", &format!("{leader}:1")]);
    }
    cluster.send(follower, &Request::Get { key: b"key" });
    cluster.run();
    expect(&answers(&cluster.take_trace(), follower), &["NotLeader", &format!("{leader}:1")]);

    let lsn = format!("lsn {}", cluster.node(follower).positions().2);
    cluster.freeze(leader, true);
    let age = |answers: &[String]| {
        expect(answers, &["Ok", "old", &lsn]);
        let (_, rest) = answers[0].split_once("age ").expect("it has an age");
        rest.split(' ').next().expect("a number").parse::<u64>().expect("a number")
    };
    let before = age(&read(&mut cluster, follower, ReadMode::Local));
    assert!(before <= HEARTBEAT_MS, "{before} ms");
    cluster.wait(200, true);
    assert_eq!(age(&read(&mut cluster, follower, ReadMode::Local)), before + 201);
}

#[test]
fn a_leader_that_steps_down_answers_no_read_that_waited() {
    let (mut cluster, leader, followers) = elected();
    freeze(&mut cluster, followers, true);
    assert_eq!(read(&mut cluster, leader, ReadMode::Quorum), [""; 0]);
    cluster.wait(600, true);
    expect(&answers(&cluster.take_trace(), leader), &["NotLeader"]);
    assert_eq!(leads(&cluster), None);
    expect(&read(&mut cluster, leader, ReadMode::Lease), &["NotLeader"]);
}

#[test]
fn a_node_alone_reads_in_every_mode() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("a", RoleFlag::Auto, &[], AckPolicy::Majority);
    cluster.wait(ELECTION_MS, true);
    for reads in ReadMode::ALL {
        expect(&read(&mut cluster, "a", reads), &["NotFound"]);
    }
}

#[test]
fn fixed_roles_have_no_leases() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("a", RoleFlag::Leader, &[], AckPolicy::InSync);
    cluster.run();
    for reads in [ReadMode::Lease, ReadMode::Quorum] {
        expect(&read(&mut cluster, "a", reads), &["BadRequest", reads.name(), "fixed"]);
    }
    expect(&read(&mut cluster, "a", ReadMode::Local), &["NotFound", "age 0 ms"]);
}
