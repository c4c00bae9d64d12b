//! Leadership is handed over, with virtual time: the lease is gone before anybody else may lead, a follower that is
//! lost on the way costs an election and nothing else, and one that does not catch up leaves the leader in office.

use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mini_cluster::MiniCluster;

const NAMES: [&str; 3] = ["a", "b", "c"];
const ELECTION_MS: u64 = 1_500;

fn elected() -> (MiniCluster, &'static str) {
    logs::capture();
    let mut cluster = MiniCluster::new();
    for name in NAMES {
        let peers: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
        cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
    }
    cluster.wait(ELECTION_MS, true);
    let leader = leaders(&cluster)[0];
    cluster.take_trace();
    (cluster, leader)
}

fn leaders(cluster: &MiniCluster) -> Vec<&'static str> {
    NAMES.into_iter().filter(|name| cluster.is_up(name) && cluster.node(name).observe().leads).collect()
}

fn others(name: &str) -> Vec<&'static str> {
    NAMES.into_iter().filter(|other| *other != name).collect()
}

fn answers(trace: &[String], name: &str) -> Vec<String> {
    trace.iter().filter(|line| line.starts_with(&format!("{name} -> client"))).cloned().collect()
}

fn has(trace: &[String], parts: &[&str]) -> bool {
    trace.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn leadership_moves_at_once_and_no_time_passes() {
    let (mut cluster, old) = elected();
    let to = others(old)[1];
    let term = cluster.node(old).term();
    cluster.send(old, &Request::Transfer { address: &format!("{to}:1") });
    cluster.run();
    let trace = cluster.take_trace();
    assert_eq!(leaders(&cluster), [to]);
    assert_eq!(cluster.node(to).term(), term.promoted().unwrap());
    assert!(has(&answers(&trace, old), &["Ok", &format!("{to}:1")]), "{trace:#?}");
    // The order: it stops leading in the turn in which the message leaves, before the message is taken.
    let is_warned =
        |line: &String| line.starts_with(&format!("{old} warns")) && line.contains("stopped leading");
    let stopped = trace.iter().position(is_warned).expect("it is told");
    let taken = trace.iter().position(|line| line.starts_with(&format!("{to} takes HAND_OVER"))).unwrap();
    assert!(stopped < taken, "{trace:#?}");
    assert!(has(&trace, &["VOTE", "HandOver"]) && !has(&trace, &["VOTE", "Pre of"]), "{trace:#?}");
}

#[test]
fn writes_that_were_taken_are_answered_first_and_later_ones_are_not_taken() {
    let (mut cluster, old) = elected();
    let to = others(old)[0];
    // Nobody answers the leader for a while.
    others(old).into_iter().for_each(|other| cluster.mute(other, old, true));
    cluster.send(old, &Request::Put { key: b"taken", value: b"1" });
    cluster.run();
    cluster.send(old, &Request::Transfer { address: &format!("{to}:1") });
    cluster.send(old, &Request::Put { key: b"late", value: b"1" });
    cluster.run();
    assert!(answers(&cluster.take_trace(), old).is_empty(), "each waits for the one before");
    assert_eq!(leaders(&cluster), [old]);
    others(old).into_iter().for_each(|other| cluster.mute(other, old, false));
    cluster.wait(300, false);
    let told = answers(&cluster.take_trace(), old);
    assert!(told[0].contains("Ok") && told[1].contains("Ok") && told[2].contains("NotLeader"), "{told:?}");
    assert_eq!(leaders(&cluster), [to]);
    assert_eq!(cluster.node(to).keyspace().get(b"taken"), Some(&b"1"[..]));
}

#[test]
fn a_follower_that_does_not_catch_up_leaves_the_leader_in_office() {
    let (mut cluster, old) = elected();
    let [to, other] = others(old)[..] else { panic!("three nodes") };
    cluster.mute(to, old, true);
    cluster.send(old, &Request::Put { key: b"key", value: b"1" });
    cluster.run();
    cluster.take_trace();
    cluster.send(old, &Request::Transfer { address: &format!("{to}:1") });
    cluster.wait(1_600, true);
    let trace = cluster.take_trace();
    assert!(has(&answers(&trace, old), &["Refused", "leads on"]), "{trace:#?}");
    assert_eq!(leaders(&cluster), [old], "{other} alone is a majority with it");
    cluster.send(old, &Request::Put { key: b"again", value: b"1" });
    cluster.run();
    assert!(has(&answers(&cluster.take_trace(), old), &["Ok"]));
}

#[test]
fn a_follower_that_is_lost_on_the_way_costs_an_election_and_nothing_else() {
    let (mut cluster, old) = elected();
    let [to, other] = others(old)[..] else { panic!("three nodes") };
    cluster.send(old, &Request::Put { key: b"key", value: b"1" });
    cluster.run();
    cluster.send(old, &Request::Transfer { address: &format!("{to}:1") });
    cluster.turn(old, None);
    cluster.kill(to, true);
    assert!(leaders(&cluster).is_empty(), "its lease is given up, and its office with it");
    cluster.wait(2 * ELECTION_MS, true);
    let leaders = leaders(&cluster);
    assert!(leaders == [old] || leaders == [other], "{leaders:?}");
    assert_eq!(cluster.node(leaders[0]).keyspace().get(b"key"), Some(&b"1"[..]));
    let trace = cluster.take_trace();
    assert!(!answers(&trace, old).iter().any(|line| line.contains("Refused")), "{trace:#?}");
}

#[test]
fn a_leader_that_ends_hands_over_before_it_does() {
    let (mut cluster, old) = elected();
    cluster.end(old);
    cluster.run();
    assert_eq!(leaders(&cluster).len(), 1);
    assert!(leaders(&cluster) != [old] && cluster.node(old).may_end());
}
