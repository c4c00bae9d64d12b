//! Numbered writes: a repeat gets the first answer again, wherever it is asked and whatever came between (C5), and a
//! number that cannot be answered is refused and never executed (C6).

use kvstore::ids::{Lsn, SessionId};
use kvstore::limits::CLIENT_SESSION_WINDOW;
use kvstore::node::{RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::{Request, WriteOp};

use crate::logs;
use crate::mini_cluster::MiniCluster;

/// `a` leads these followers; all are in sync.
fn started(others: &[&str]) -> MiniCluster {
    started_with(others, AckPolicy::InSync)
}

fn started_with(others: &[&str], ack: AckPolicy) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        settle_ms: 1,
        slice_bytes: 8_000,
        ..SnapshotConfig::default()
    };
    for name in others {
        cluster.start(name, RoleFlag::Follower, &[], ack);
    }
    cluster.start("a", RoleFlag::Leader, others, ack);
    cluster.wait(300, true);
    cluster
}

/// What the node answers, as text: status, LSN, term.
fn ask(cluster: &mut MiniCluster, name: &str, request: &Request<'_>) -> String {
    cluster.take_trace();
    cluster.send(name, request);
    cluster.run();
    let told = cluster.take_trace();
    let start = format!("{name} -> client REPLY ");
    let reply = told.iter().find_map(|line| line.strip_prefix(&start));
    reply.unwrap_or_else(|| panic!("no reply: {told:#?}")).to_owned()
}

fn put(cluster: &mut MiniCluster, name: &str, number: usize) {
    let key = format!("key {}", number % 20);
    ask(cluster, name, &Request::Put { key: key.as_bytes(), value: &[number as u8; 3_000] });
}

/// Opens a session. Its id is taken from the node's state, where its answer says it is.
fn open(cluster: &mut MiniCluster, name: &str) -> SessionId {
    let reply = ask(cluster, name, &Request::OpenSession);
    let session = cluster.node(name).keyspace().sessions().iter().last().expect("one was opened").id();
    assert!(reply.starts_with(&format!("Ok, lsn {}, ", session.lsn)), "{reply}");
    session
}

/// A write of a session. Its even numbers remove `gone` or a key that never was, the others put.
fn write(session: SessionId, number: u64) -> Request<'static> {
    let write = match number % 4 {
        0 => WriteOp::Delete { key: b"never was" },
        2 => WriteOp::Delete { key: b"gone" },
        _ => WriteOp::Put { key: b"gone", value: b"value" },
    };
    Request::Numbered { session, number, write }
}

/// Executes the first `count` numbers; what was answered.
fn write_all(cluster: &mut MiniCluster, name: &str, session: SessionId, count: u64) -> Vec<String> {
    let answers: Vec<String> =
        (1..=count).map(|number| ask(cluster, name, &write(session, number))).collect();
    for (index, answer) in answers.iter().enumerate() {
        let status = if (index + 1) % 4 == 0 { "NotFound" } else { "Ok" };
        assert!(answer.starts_with(&format!("{status}, lsn ")), "number {}: {answer}", index + 1);
    }
    answers
}

/// Each number again: answered as the first time, and nothing is written.
fn expect_again(cluster: &mut MiniCluster, name: &str, session: SessionId, answers: &[String]) {
    let last = cluster.node(name).positions().0;
    let hash = cluster.node(name).keyspace().state_hash();
    for (number, answer) in (1..).zip(answers) {
        assert_eq!(
            ask(cluster, name, &write(session, number)),
            *answer,
            "number {number}, asked again at {name}"
        );
    }
    assert_eq!(cluster.node(name).positions().0, last, "nothing was written");
    assert_eq!(cluster.node(name).keyspace().state_hash(), hash);
}

fn expect_equal_states(cluster: &MiniCluster, names: &[&str]) {
    let of = |name: &str| {
        let node = cluster.node(name);
        node.keyspace().invariants();
        assert_eq!(node.keyspace().state_hash(), node.keyspace().recompute_hash(), "{name}");
        let sessions: Vec<_> = node.keyspace().sessions().iter().cloned().collect();
        (node.positions().2, node.keyspace().state_hash(), sessions)
    };
    for name in &names[1..] {
        assert_eq!(of(name), of(names[0]), "{name} and {}", names[0]);
    }
}

/// One snapshot, with writes of the session while it is scanned.
fn snapshot(cluster: &mut MiniCluster, name: &str) {
    let made = cluster.node(name).counters.snapshots;
    cluster.send(name, &Request::Snapshot { wait: false });
    cluster.wait(400, true);
    let trace = cluster.take_trace();
    assert_eq!(cluster.node(name).counters.snapshots, made + 1, "{trace:#?}");
}

#[test]
fn a_repeated_number_gets_the_first_answer_on_the_same_node_and_after_its_restart() {
    let mut cluster = started(&["b"]);
    let session = open(&mut cluster, "a");
    let answers = write_all(&mut cluster, "a", session, 8);
    expect_again(&mut cluster, "a", session, &answers);
    assert_eq!(cluster.node("a").counters.repeats, 8);
    for power in [false, true] {
        cluster.kill("a", power);
        cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::InSync);
        cluster.wait(300, true);
        expect_again(&mut cluster, "a", session, &answers);
    }
    expect_equal_states(&cluster, &["a", "b"]);
    let next = ask(&mut cluster, "a", &write(session, 9));
    assert!(next.starts_with("Ok, lsn "), "the session goes on: {next}");
}

#[test]
fn a_repeated_number_gets_the_first_answer_from_the_next_leader() {
    let mut cluster = started(&["b", "c"]);
    let session = open(&mut cluster, "a");
    let mut answers = write_all(&mut cluster, "a", session, 6);
    let refused = ask(&mut cluster, "b", &write(session, 6));
    assert!(
        refused.starts_with("NotLeader, "),
        "a follower knows the answer and does not give it: {refused}"
    );
    cluster.kill("a", true);
    cluster.wait(200, true);
    let told = ask(&mut cluster, "b", &Request::Promote { force: false });
    assert!(told.starts_with("Ok, "), "{told}");
    cluster.wait(600, true);
    expect_again(&mut cluster, "b", session, &answers);
    // The old leader has not been heard since. Who comes must be able to apply sessions; more is not asked.
    answers.push(ask(&mut cluster, "b", &write(session, 7)));
    let other = open(&mut cluster, "b");
    write_all(&mut cluster, "b", other, 3);
    cluster.start("a", RoleFlag::Leader, &["b", "c"], AckPolicy::InSync);
    ask(&mut cluster, "a", &Request::Follow { address: "b:1", discard: false });
    cluster.wait(3_000, true);
    expect_again(&mut cluster, "b", session, &answers);
    expect_equal_states(&cluster, &["a", "b", "c"]);
}

#[test]
fn a_repeated_number_gets_the_first_answer_from_a_state_that_came_from_a_snapshot() {
    let mut cluster = started_with(&["b"], AckPolicy::Leader);
    let session = open(&mut cluster, "a");
    let mut answers = write_all(&mut cluster, "a", session, 5);
    cluster.kill("b", false);
    // While each is scanned a key goes and comes, in a state in which the removal would be judged wrongly.
    let mut number = 6;
    for round in 0..2 {
        (0..150).for_each(|count| put(&mut cluster, "a", round * 150 + count));
        cluster.wait(300, true);
        let begun = ask(&mut cluster, "a", &Request::Snapshot { wait: false });
        assert!(begun.contains("begun"), "{begun}");
        for _ in 0..6 {
            answers.push(ask(&mut cluster, "a", &write(session, number)));
            number += 1;
            cluster.wait(1, true);
        }
        cluster.wait(400, true);
        assert_eq!(cluster.node("a").counters.snapshots, round as u64 + 1);
    }
    (0..50).for_each(|count| put(&mut cluster, "a", count));
    cluster.wait(500, true);
    // A restart from its own snapshot and the log behind it.
    cluster.kill("a", true);
    cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::InSync);
    cluster.wait(800, true);
    assert_eq!(cluster.node("a").counters.loaded_from_snapshot, 1);
    expect_again(&mut cluster, "a", session, &answers);
    // A follower that gets the snapshot, and then leads.
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.wait(3_000, true);
    assert_eq!(cluster.node("b").counters.snapshots_installed, 1);
    expect_equal_states(&cluster, &["a", "b"]);
    cluster.kill("a", true);
    let told = ask(&mut cluster, "b", &Request::Promote { force: true });
    assert!(told.starts_with("Ok, "), "{told}");
    cluster.wait(800, true);
    expect_again(&mut cluster, "b", session, &answers);
}

#[test]
fn what_a_cut_takes_back_is_not_remembered_and_what_stays_is() {
    let mut cluster = started(&["b"]);
    let session = open(&mut cluster, "a");
    let answers = write_all(&mut cluster, "a", session, 4);
    snapshot(&mut cluster, "a");
    // Two more numbers reach the leader's log alone.
    cluster.block("a", "b");
    for number in 5..=6 {
        cluster.send("a", &write(session, number));
        cluster.run();
    }
    cluster.kill("a", false);
    let told = ask(&mut cluster, "b", &Request::Promote { force: true });
    assert!(told.starts_with("Ok, "), "{told}");
    cluster.unblock("a", "b");
    cluster.wait(800, true);
    let mut answers = answers;
    expect_again(&mut cluster, "b", session, &answers);
    // The number whose outcome nobody knew is executed now, at another LSN.
    answers.push(ask(&mut cluster, "b", &write(session, 5)));
    cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::InSync);
    ask(&mut cluster, "a", &Request::Follow { address: "b:1", discard: true });
    cluster.wait(3_000, true);
    assert_eq!(cluster.node("a").counters.cuts, 1);
    expect_equal_states(&cluster, &["a", "b"]);
    expect_again(&mut cluster, "b", session, &answers);
}

#[test]
fn a_number_that_is_older_or_skips_or_is_of_an_unknown_session_is_refused_and_never_executed() {
    let mut cluster = started(&["b"]);
    let session = open(&mut cluster, "a");
    let count = CLIENT_SESSION_WINDOW as u64 + 3;
    let answers = write_all(&mut cluster, "a", session, count);
    let before = cluster.node("a").positions();
    let mut refused = |session: SessionId, number: u64, status: &str, words: &str| {
        let write = WriteOp::Put { key: b"refused", value: b"value" };
        let told = ask(&mut cluster, "a", &Request::Numbered { session, number, write });
        assert!(told.starts_with(status) && told.contains(words), "{told}");
    };
    refused(session, 3, "NumberTooOld, ", "the answers to the last 32 are remembered");
    refused(session, 0, "NumberTooOld, ", "number 0 of session");
    refused(
        session,
        count + 2,
        "NumberSkips, ",
        &format!("skips {}: the last one here is {count}", count + 1),
    );
    refused(session, u64::MAX, "NumberSkips, ", "skips");
    let unknown = "is not known here, or not any more; begin another one";
    refused(SessionId { nonce: session.nonce + 1, ..session }, 1, "SessionExpired, ", unknown);
    refused(SessionId { lsn: Lsn(1), ..session }, 1, "SessionExpired, ", unknown);
    refused(SessionId { lsn: session.lsn.next(), ..session }, 1, "SessionExpired, ", unknown);
    assert_eq!(cluster.node("a").positions(), before, "nothing was written");
    assert_eq!(cluster.node("a").keyspace().get(b"refused"), None);
    let window = &answers[3..];
    for (number, answer) in (4..).zip(window) {
        assert_eq!(ask(&mut cluster, "a", &write(session, number)), *answer);
    }
}
