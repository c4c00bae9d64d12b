//! Numbered writes across an election (C5): what the next leader has in its log and not yet in its state counts, so
//! that a number is executed once, whoever leads when it is asked for again. Whole nodes together, with virtual time.

use kvstore::ids::SessionId;
use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::{Request, WriteOp};

use crate::logs;
use crate::mini_cluster::MiniCluster;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn start(cluster: &mut MiniCluster, name: &str) {
    let peers: Vec<&str> = NAMES.into_iter().filter(|other| *other != name).collect();
    cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
}

fn leader(cluster: &MiniCluster) -> Option<&'static str> {
    NAMES.into_iter().find(|name| cluster.is_up(name) && cluster.node(name).observe().leads)
}

/// A cluster that has elected, with a session that every node has applied: the leader, and the two others.
fn with_session() -> (MiniCluster, &'static str, [&'static str; 2], SessionId) {
    logs::capture();
    let mut cluster = MiniCluster::new();
    NAMES.into_iter().for_each(|name| start(&mut cluster, name));
    cluster.wait(1_500, true);
    let old = leader(&cluster).expect("one of three leads");
    let session = open(&mut cluster, old);
    cluster.wait(200, true);
    let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != old).collect();
    (cluster, old, [others[0], others[1]], session)
}

/// What the node answers at once: status, LSN, term.
fn ask(cluster: &mut MiniCluster, name: &str, request: &Request<'_>) -> Option<String> {
    cluster.take_trace();
    cluster.send(name, request);
    cluster.run();
    answer(cluster, name)
}

fn answer(cluster: &mut MiniCluster, name: &str) -> Option<String> {
    let start = format!("{name} -> client REPLY ");
    cluster.take_trace().iter().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
}

fn open(cluster: &mut MiniCluster, name: &str) -> SessionId {
    let reply = ask(cluster, name, &Request::OpenSession).expect("a session");
    let session = cluster.node(name).keyspace().sessions().iter().last().expect("one was opened").id();
    assert!(reply.starts_with(&format!("Ok, lsn {}, ", session.lsn)), "{reply}");
    session
}

/// Each number removes what the one before put, or puts it again: executed twice, it would be told something else.
fn write(session: SessionId, number: u64) -> Request<'static> {
    let write = match number % 2 {
        0 => WriteOp::Delete { key: b"k" },
        _ => WriteOp::Put { key: b"k", value: b"v" },
    };
    Request::Numbered { session, number, write }
}

fn last(cluster: &MiniCluster, name: &str) -> u64 {
    cluster.node(name).positions().0.0
}

/// `name` is elected, and at that moment `other`, which has voted for it, falls silent: nothing of the new term is
/// committed.
fn elect_and_hold(cluster: &mut MiniCluster, name: &str, other: &str) {
    for _ in 0..3_000 {
        cluster.step();
        if leader(cluster) == Some(name) {
            cluster.freeze(other, true);
            let (last, _, applied) = cluster.node(name).positions();
            assert!(applied < last, "{name} has applied all it has");
            return;
        }
    }
    panic!("{name} is not elected");
}

fn expect_equal_states(cluster: &MiniCluster) {
    let of = |name: &str| {
        let node = cluster.node(name);
        node.keyspace().invariants();
        (node.positions().2, node.keyspace().state_hash())
    };
    assert!(NAMES.iter().all(|name| of(name) == of("a")), "{:?}", NAMES.map(of));
}

#[test]
fn a_number_that_the_next_leader_holds_and_has_not_applied_is_under_way_and_not_executed_again() {
    let (mut cluster, old, [next, other], session) = with_session();
    ask(&mut cluster, old, &write(session, 1)).expect("an answer");
    cluster.wait(200, true);
    // Number 2 reaches one follower, whose ACK is lost.
    cluster.block(old, other);
    cluster.mute(next, old, true);
    assert_eq!(ask(&mut cluster, old, &write(session, 2)), None);
    let lsn = last(&cluster, old);
    let term = cluster.node(old).term();
    assert_eq!((last(&cluster, next), last(&cluster, other)), (lsn, lsn - 1));
    cluster.kill(old, false);
    cluster.mute(next, old, false);
    elect_and_hold(&mut cluster, next, other);
    let begun = last(&cluster, next);

    assert_eq!(ask(&mut cluster, next, &write(session, 2)), None, "it may not be committed yet");
    assert_eq!(last(&cluster, next), begun, "it was executed again");
    cluster.freeze(other, false);
    cluster.wait(100, true);
    let told = answer(&mut cluster, next).expect("it is committed");
    assert!(told.starts_with(&format!("Ok, lsn {lsn}, term {term}")), "that of then: {told}");
    assert_eq!(ask(&mut cluster, next, &write(session, 2)).as_deref(), Some(told.as_str()));
    let refused = ask(&mut cluster, next, &write(session, 4)).expect("a refusal");
    assert!(refused.starts_with("NumberSkips, "), "{refused}");
    let third = ask(&mut cluster, next, &write(session, 3)).expect("the session goes on");
    assert!(third.starts_with(&format!("Ok, lsn {}, ", begun + 1)), "{third}");

    start(&mut cluster, old);
    cluster.unblock(old, other);
    cluster.wait(3_000, true);
    expect_equal_states(&cluster);
}

#[test]
fn a_session_that_the_next_leader_holds_and_has_not_applied_is_known_to_it() {
    let (mut cluster, old, [next, other], _) = with_session();
    cluster.block(old, other);
    let session = open(&mut cluster, old);
    assert!(
        cluster.node(next).keyspace().sessions().get(session).is_none(),
        "it has not heard of the commit"
    );
    cluster.kill(old, false);
    elect_and_hold(&mut cluster, next, other);
    let begun = last(&cluster, next);
    assert_eq!(ask(&mut cluster, next, &write(session, 1)), None);
    assert_eq!(last(&cluster, next), begun + 1, "it is executed, and waits for a majority");
    assert_eq!(ask(&mut cluster, next, &write(session, 1)), None);
    assert_eq!(last(&cluster, next), begun + 1, "and once");
    cluster.freeze(other, false);
    cluster.wait(100, true);
    let told = answer(&mut cluster, next).expect("it is committed");
    assert!(told.starts_with(&format!("Ok, lsn {}, ", begun + 1)), "{told}");
}

#[test]
fn a_number_that_only_a_leader_without_a_majority_took_is_executed_by_the_next_one_and_by_nobody_else() {
    let (mut cluster, old, [one, other], session) = with_session();
    ask(&mut cluster, old, &write(session, 1)).expect("an answer");
    cluster.wait(200, true);
    [one, other].into_iter().for_each(|name| cluster.block(old, name));
    assert_eq!(ask(&mut cluster, old, &write(session, 2)), None);
    cluster.wait(2_000, true);
    let unknown = answer(&mut cluster, old).expect("it stops leading");
    assert!(unknown.starts_with("OutcomeUnknown, "), "{unknown}");
    let next = leader(&cluster).expect("the others elect");
    let told = ask(&mut cluster, next, &write(session, 2)).expect("an answer");
    assert!(told.starts_with("Ok, lsn "), "it was there, and was removed by this: {told}");
    [one, other].into_iter().for_each(|name| cluster.unblock(old, name));
    cluster.wait(3_000, true);
    assert_eq!(cluster.node(old).counters.cuts, 1);
    assert_eq!(ask(&mut cluster, next, &write(session, 2)).as_deref(), Some(told.as_str()));
    expect_equal_states(&cluster);
}
