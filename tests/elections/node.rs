//! Nodes whose leader is elected, together, with virtual time: how a cluster is formed, who may lead, and when one
//! that leads stops.

use kvstore::ids::ClusterId;
use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mem_disk::Keep;
use crate::mini_cluster::{MemDisk, MiniCluster};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Milliseconds in which a cluster of three elects: a timeout, half of one at random, and a second try.
const ELECTION_MS: u64 = 1_500;

fn start(cluster: &mut MiniCluster, name: &str) {
    let peers: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
    cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
}

fn started() -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    NAMES.into_iter().for_each(|name| start(&mut cluster, name));
    cluster
}

/// A cluster that has elected, and its leader's name.
fn elected() -> (MiniCluster, &'static str) {
    let mut cluster = started();
    cluster.wait(ELECTION_MS, true);
    let leader = leader(&cluster);
    cluster.take_trace();
    (cluster, leader)
}

/// The only one who leads.
#[track_caller]
fn leader(cluster: &MiniCluster) -> &'static str {
    let leads = |name: &&str| cluster.is_up(name) && cluster.node(name).observe().leads;
    let leaders: Vec<&str> = NAMES.into_iter().filter(leads).collect();
    assert_eq!(leaders.len(), 1, "who leads: {leaders:?}");
    leaders[0]
}

fn others(name: &str) -> [&'static str; 2] {
    let others: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
    [others[0], others[1]]
}

fn answers(cluster: &mut MiniCluster, name: &str) -> Vec<String> {
    let told = cluster.take_trace();
    told.into_iter().filter(|line| line.starts_with(&format!("{name} -> client"))).collect()
}

fn put(cluster: &mut MiniCluster, name: &str, key: &str) -> Vec<String> {
    cluster.take_trace();
    cluster.send(name, &Request::Put { key: key.as_bytes(), value: b"value" });
    cluster.run();
    answers(cluster, name)
}

fn has(trace: &[String], parts: &[&str]) -> bool {
    trace.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// All are members of one cluster with the same list, and one of them leads.
#[track_caller]
fn expect_one_cluster(cluster: &MiniCluster) -> ClusterId {
    let (id, members) = cluster.node("a").cluster();
    assert!(!id.is_none() && members.len() == 3, "{id} {members:?}");
    for name in NAMES {
        assert_eq!(cluster.node(name).cluster(), (id, members), "{name}");
    }
    leader(cluster);
    id
}

#[test]
fn three_nodes_form_one_cluster_and_elect_one_leader_who_takes_writes() {
    let (mut cluster, leader) = elected();
    expect_one_cluster(&cluster);
    assert!(has(&put(&mut cluster, leader, "key"), &["Ok"]));
    cluster.wait(200, true);
    for name in NAMES {
        assert_eq!(cluster.node(name).keyspace().get(b"key"), Some(&b"value"[..]), "{name}");
    }
    let follower = others(leader)[0];
    let refused = put(&mut cluster, follower, "other");
    assert!(has(&refused, &["NotLeader", &format!("{leader}:1")]), "{refused:?}");
}

#[test]
fn a_node_alone_is_a_cluster_and_leads_after_every_start() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("a", RoleFlag::Auto, &[], AckPolicy::Majority);
    for term in 1..=3 {
        cluster.wait(ELECTION_MS, true);
        assert_eq!((leader(&cluster), cluster.node("a").term().promotion), ("a", term));
        assert!(has(&put(&mut cluster, "a", "key"), &["Ok"]));
        cluster.kill("a", true);
        cluster.start("a", RoleFlag::Auto, &[], AckPolicy::Majority);
    }
}

/// Forms a cluster in which `name` crashes before one operation of its disk, loses what was not synced, and comes
/// back. False: it was formed, and led, before that operation.
fn form_with_crash(name: &str, op: u64) -> bool {
    logs::capture();
    let mut cluster = MiniCluster::new();
    NAMES.into_iter().filter(|other| *other != name).for_each(|other| start(&mut cluster, other));
    start(&mut cluster, name);
    cluster.kill(name, true);
    let disk = MemDisk::new();
    cluster.replace_disk(name, disk.clone());
    disk.crash_before(op);
    start(&mut cluster, name);
    cluster.wait(ELECTION_MS, true);
    let crashed = disk.has_crashed();
    if crashed {
        assert!(!cluster.is_up(name));
        // Where the others have formed without it, they elect without it.
        cluster.wait(ELECTION_MS, true);
        disk.crash(Keep::None);
        start(&mut cluster, name);
        cluster.wait(3 * ELECTION_MS, true);
    }
    expect_one_cluster(&cluster);
    crashed
}

#[test]
fn forming_survives_a_crash_of_the_founder_at_every_operation_of_its_disk() {
    let points = (0..).take_while(|op| form_with_crash("a", *op)).count();
    assert!(points > 10, "{points} operations");
}

#[test]
fn forming_survives_a_crash_of_another_at_every_operation_of_its_disk() {
    let points = (0..).take_while(|op| form_with_crash("c", *op)).count();
    assert!(points > 10, "{points} operations");
}

#[test]
fn nothing_is_formed_before_all_are_there() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    start(&mut cluster, "a");
    start(&mut cluster, "b");
    cluster.wait(5_000, true);
    assert!(["a", "b"].iter().all(|name| cluster.node(name).cluster().0.is_none()));
    assert!(has(&put(&mut cluster, "a", "key"), &["NotLeader"]));
    start(&mut cluster, "c");
    cluster.wait(3_000, true);
    expect_one_cluster(&cluster);
}

#[test]
fn an_answer_that_never_comes_holds_the_forming_up_and_does_not_end_it() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    ["a", "b"].into_iter().for_each(|name| start(&mut cluster, name));
    cluster.wait(500, true);
    cluster.mute("b", "a", true);
    start(&mut cluster, "c");
    cluster.wait(1_000, true);
    assert!(cluster.node("a").cluster().0.is_none(), "all must have agreed");
    cluster.mute("b", "a", false);
    cluster.wait(10_000, true);
    expect_one_cluster(&cluster);
}

#[test]
fn lists_that_differ_form_nothing_and_each_side_is_told() {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("a", RoleFlag::Auto, &["b", "c"], AckPolicy::Majority);
    cluster.start("b", RoleFlag::Auto, &["c"], AckPolicy::Majority);
    cluster.start("c", RoleFlag::Auto, &["a", "b"], AckPolicy::Majority);
    cluster.wait(5_000, true);
    let trace = cluster.take_trace();
    for name in NAMES {
        assert!(cluster.node(name).cluster().0.is_none(), "{name} is in a cluster");
    }
    for name in ["a", "b", "c"] {
        assert!(has(&trace, &[&format!("{name} warns"), "the lists of nodes differ"]), "{name}: {trace:#?}");
    }
}

#[test]
fn two_wiped_nodes_of_three_found_no_cluster_beside_the_one_there_was() {
    let (mut cluster, _) = elected();
    let id = expect_one_cluster(&cluster);
    // The founder is one of them.
    for name in ["a", "b"] {
        cluster.kill(name, true);
        cluster.replace_disk(name, MemDisk::new());
    }
    cluster.take_trace();
    start(&mut cluster, "a");
    start(&mut cluster, "b");
    cluster.wait(10_000, true);
    let trace = cluster.take_trace();
    assert!(["a", "b"].iter().all(|name| cluster.node(name).cluster().0.is_none()));
    assert!(!cluster.node("c").observe().leads, "one of three elects nobody");
    assert!(has(&trace, &["a warns", "belongs to cluster", "wiped"]), "{trace:#?}");
    assert!(has(&trace, &["c warns", &id.to_string()]), "{trace:#?}");
}

#[test]
fn d17_a_wiped_node_has_no_vote_and_both_sides_say_what_to_do() {
    let (mut cluster, leader) = elected();
    let [wiped, left] = others(leader);
    cluster.kill(wiped, true);
    cluster.replace_disk(wiped, MemDisk::new());
    start(&mut cluster, wiped);
    cluster.wait(2_000, true);
    let trace = cluster.take_trace();
    for name in [leader, wiped] {
        assert!(has(&trace, &[&format!("{name} warns"), "wiped", "does not vote"]), "{name}: {trace:#?}");
    }
    assert!(cluster.node(wiped).cluster().0.is_none(), "no session gave it the cluster's id");
    cluster.kill(leader, true);
    cluster.wait(10_000, true);
    assert!(!cluster.node(left).observe().leads && !cluster.node(wiped).observe().leads);
    start(&mut cluster, leader);
    cluster.wait(2 * ELECTION_MS, true);
    let again = [leader, left].into_iter().filter(|name| cluster.node(name).observe().leads).count();
    assert_eq!(again, 1, "two of three that are whole elect");
}

#[test]
fn a_leader_that_is_cut_off_steps_down_and_the_others_elect_one_in_a_higher_term() {
    let (mut cluster, old) = elected();
    assert!(has(&put(&mut cluster, old, "before"), &["Ok"]));
    let term = cluster.node(old).term();
    others(old).into_iter().for_each(|other| cluster.block(old, other));
    cluster.send(old, &Request::Put { key: b"alone", value: b"1" });
    cluster.run();
    cluster.wait(ELECTION_MS, true);
    let answered = answers(&mut cluster, old);
    assert!(
        has(&answered, &["OutcomeUnknown"]),
        "a write that was taken is not called refused: {answered:?}"
    );
    let new = leader(&cluster);
    assert!(new != old && cluster.node(new).term() > term);
    assert!(has(&put(&mut cluster, old, "refused"), &["NotLeader"]));
    assert!(has(&put(&mut cluster, new, "after"), &["Ok"]));
    let term = cluster.node(new).term();
    cluster.wait(5_000, true);
    others(old).into_iter().for_each(|other| cluster.unblock(old, other));
    cluster.wait(2_000, true);
    assert_eq!((leader(&cluster), cluster.node(old).term()), (new, term), "who comes back deposes nobody");
    assert_eq!(cluster.node(old).keyspace().get(b"after"), Some(&b"value"[..]));
    assert_eq!(cluster.node(old).keyspace().get(b"alone"), None, "it was cut");
}

#[test]
fn a_follower_that_is_cut_off_raises_no_term_and_deposes_nobody() {
    let (mut cluster, leader_name) = elected();
    let term = cluster.node(leader_name).term();
    let [cut, other] = others(leader_name);
    cluster.block(cut, leader_name);
    cluster.wait(5_000, true);
    assert_eq!(
        (leader(&cluster), cluster.node(cut).term()),
        (leader_name, term),
        "the leader alone is not reached"
    );
    cluster.block(cut, other);
    cluster.wait(5_000, true);
    cluster.unblock(cut, other);
    cluster.unblock(cut, leader_name);
    cluster.wait(2_000, true);
    assert_eq!((leader(&cluster), cluster.node(cut).term()), (leader_name, term));
    assert!(has(&put(&mut cluster, leader_name, "key"), &["Ok"]));
}

#[test]
fn the_first_thing_after_a_stall_is_the_clock() {
    let (mut cluster, old) = elected();
    assert!(has(&put(&mut cluster, old, "key"), &["Ok"]));
    cluster.freeze(old, true);
    cluster.send(old, &Request::Put { key: b"late", value: b"1" });
    cluster.send(old, &Request::Get { key: b"key" });
    cluster.wait(ELECTION_MS, true);
    cluster.take_trace();
    cluster.freeze(old, false);
    cluster.turn(old, None);
    let trace = cluster.take_trace();
    let answers: Vec<_> = trace.iter().filter(|line| line.starts_with(&format!("{old} -> client"))).collect();
    assert!(has(&trace, &[old, "stopped leading", "no majority"]), "{trace:#?}");
    assert!(answers.iter().all(|line| !line.contains("OutcomeUnknown")), "nothing was taken: {answers:?}");
    assert!(answers[0].contains("NotLeader"), "{answers:?}");
    cluster.wait(500, true);
    assert_ne!(leader(&cluster), old);
}

#[test]
fn a_vote_is_durable_before_it_is_told_and_the_term_with_it() {
    let mut cluster = started();
    cluster.wait(ELECTION_MS, true);
    let trace = cluster.take_trace();
    let voted = trace
        .iter()
        .position(|line| line.contains("VOTE_REPLY") && line.contains("Real") && !line.contains("refused"))
        .expect("somebody votes");
    let voter = trace[voted].split(' ').next().expect("a name");
    let candidate = trace[voted].split(' ').nth(2).expect("a name");
    let is_durable = |line: &String, name: &str| {
        line.starts_with(&format!("{name} disk:")) && line.contains("second copy of identity")
    };
    let asked = trace
        .iter()
        .position(|line| line.starts_with(&format!("{candidate} -> {voter} VOTE")) && line.contains("Real"));
    let asked = asked.expect("it was asked");
    let durable_behind =
        |from: usize, to: usize, name| trace[from..to].iter().any(|line| is_durable(line, name));
    assert!(durable_behind(asked, voted, voter), "{trace:#?}");
    let would = trace[..asked].iter().rposition(|line| line.contains("VOTE_REPLY") && line.contains("Pre"));
    assert!(durable_behind(would.expect("pre-votes come first"), asked, candidate), "{trace:#?}");
}

#[test]
fn nobody_votes_right_after_a_start() {
    let (mut cluster, old) = elected();
    let [first, second] = others(old);
    // All start at one moment: whom they heard before is not known, so none may vote for a timeout.
    for name in NAMES {
        cluster.kill(name, true);
    }
    start(&mut cluster, first);
    cluster.wait(400, true);
    start(&mut cluster, second);
    cluster.take_trace();
    cluster.wait(490, true);
    assert!(NAMES.into_iter().all(|name| !cluster.is_up(name) || !cluster.node(name).observe().leads));
    cluster.wait(2 * ELECTION_MS, true);
    leader(&cluster);
}

#[test]
fn promote_and_follow_are_refused_in_words() {
    let (mut cluster, leader) = elected();
    for request in [Request::Promote { force: true }, Request::Follow { address: "c:1", discard: false }] {
        for name in NAMES {
            cluster.take_trace();
            cluster.send(name, &request);
            cluster.run();
            let answered = answers(&mut cluster, name);
            assert!(has(&answered, &["Refused", "elected", "transfer"]), "{answered:?}");
        }
    }
    assert!(has(&put(&mut cluster, leader, "key"), &["Ok"]));
}
