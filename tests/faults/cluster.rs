//! A few nodes together, with virtual time: directories that are lost or come back as they were long ago, links that
//! carry one direction only, that fail for one node, that flap, and a leader whose disk is full.

use kvstore::ids::{Lsn, Term};
use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mini_cluster::{MemDisk, MiniCluster};

/// `a` leads `b` and `c`; all are in sync.
fn three(ack: AckPolicy) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.start("b", RoleFlag::Follower, &[], ack);
    cluster.start("c", RoleFlag::Follower, &[], ack);
    cluster.start("a", RoleFlag::Leader, &["b", "c"], ack);
    cluster.run();
    put_many(&mut cluster, "a", 5);
    cluster.wait(200, true);
    assert!(cluster.node("b").observe().in_sync && cluster.node("c").observe().in_sync);
    cluster.take_trace();
    cluster
}

fn put_many(cluster: &mut MiniCluster, name: &str, count: usize) {
    for number in 0..count {
        let key = format!("key {number}");
        cluster.send(name, &Request::Put { key: key.as_bytes(), value: &[7; 3_000] });
        cluster.run();
    }
}

fn last(cluster: &MiniCluster, name: &str) -> Lsn {
    cluster.node(name).positions().0
}

fn ask(cluster: &mut MiniCluster, name: &str, request: &Request<'_>) -> Vec<String> {
    cluster.take_trace();
    cluster.send(name, request);
    cluster.run();
    let told = cluster.take_trace();
    told.into_iter().filter(|line| line.starts_with(&format!("{name} -> client"))).collect()
}

fn expect_equal(cluster: &MiniCluster, names: &[&str]) {
    for name in &names[1..] {
        assert_eq!(last(cluster, name), last(cluster, names[0]), "{name}");
        let hash = |name: &str| cluster.node(name).keyspace().state_hash();
        assert_eq!(hash(name), hash(names[0]), "{name}");
    }
}

fn peer(cluster: &MiniCluster, leader: &str, name: &str) -> (Lsn, bool) {
    let peers = cluster.node(leader).observe().peers;
    let found = peers.into_iter().find(|(address, ..)| *address == format!("{name}:1"));
    found.map(|(_, match_lsn, in_sync)| (match_lsn, in_sync)).expect("it is a peer")
}

fn has(trace: &[String], parts: &[&str]) -> bool {
    trace.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// Lets `b` come back with this disk, and its leader hear from it up to the answer of OPEN.
fn come_back(cluster: &mut MiniCluster, disk: MemDisk) -> Vec<String> {
    cluster.kill("b", true);
    put_many(cluster, "a", 20);
    cluster.wait(3_000, true);
    cluster.replace_disk("b", disk);
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::InSync);
    cluster.take_trace();
    // Turn by turn, until the session stands and nothing was sent in it.
    let mut trace = Vec::new();
    for _ in 0..40 {
        cluster.pass(100);
        for name in ["a", "b"] {
            cluster.turn(name, None);
            trace.extend(cluster.take_trace());
            if has(&trace, &["a takes OPEN_REPLY"]) {
                return trace;
            }
        }
    }
    panic!("no session: {trace:#?}");
}

#[test]
fn a_follower_whose_directory_was_wiped_is_noticed_on_both_sides_and_fetches_first() {
    let mut cluster = three(AckPolicy::InSync);
    let before = cluster.node("b").node_id();
    let held = last(&cluster, "b");
    let trace = come_back(&mut cluster, MemDisk::new());
    assert_ne!(cluster.node("b").node_id(), before, "a new directory is another node");
    assert!(has(&trace, &["a warns", "was node", "its data directory was replaced"]), "{trace:#?}");
    assert!(has(&trace, &["a warns", "repairs: not in sync before it holds LSN"]), "{trace:#?}");
    assert!(has(&trace, &["b warns", "this data directory is new", "REPAIRING"]), "{trace:#?}");
    expect_newcomer(&mut cluster, held);
}

#[test]
fn a_follower_restored_from_an_older_copy_is_noticed_on_both_sides_and_fetches_first() {
    let mut cluster = three(AckPolicy::InSync);
    let older = cluster.disk("b").fork();
    let before = cluster.node("b").node_id();
    put_many(&mut cluster, "a", 10);
    cluster.wait(200, true);
    let held = last(&cluster, "b");
    let trace = come_back(&mut cluster, older);
    assert_eq!(cluster.node("b").node_id(), before);
    assert!(has(&trace, &["a warns", &format!("acknowledged LSN {held}"), "older copy"]), "{trace:#?}");
    assert!(has(&trace, &["b warns", "restored from an older copy", "REPAIRING"]), "{trace:#?}");
    expect_newcomer(&mut cluster, held);
}

/// `b` has a session, and nothing was sent in it yet.
fn expect_newcomer(cluster: &mut MiniCluster, held: Lsn) {
    assert_eq!(cluster.node("b").observe().repair_until, held);
    assert!(!peer(cluster, "a", "b").1, "its leader does not count it");
    assert!(!cluster.node("b").observe().in_sync);
    cluster.send("b", &Request::Get { key: b"key 1" });
    cluster.turn("b", None);
    let trace = cluster.take_trace();
    assert!(has(&trace, &["b -> client REPLY Repairing", &format!("of {held}")]), "{trace:#?}");
    cluster.run();
    cluster.wait(300, true);
    expect_equal(cluster, &["a", "b", "c"]);
    assert!(peer(cluster, "a", "b").1 && cluster.node("b").observe().in_sync);
    let told = ask(cluster, "b", &Request::Get { key: b"key 1" });
    assert!(has(&told, &["REPLY Ok"]), "{told:#?}");
}

#[test]
fn a_node_that_repairs_is_promoted_by_force_only_and_says_what_may_be_lost() {
    let mut cluster = three(AckPolicy::InSync);
    let held = last(&cluster, "b");
    come_back(&mut cluster, MemDisk::new());
    // What its leader has sent already is lost on the way.
    cluster.block("a", "b");
    cluster.kill("a", false);
    cluster.run();
    let (lost, has_now) = (format!("held records up to LSN {held}"), last(&cluster, "b"));
    assert!(has_now < held);
    let told = ask(&mut cluster, "b", &Request::Promote { force: false });
    assert!(has(&told, &["REPLY Refused", "this node repairs", &lost]), "{told:#?}");
    let told = ask(&mut cluster, "b", &Request::Promote { force: true });
    assert!(has(&told, &["REPLY Ok", "by force", &lost]), "{told:#?}");
    // It leads now with what it has, and answers for it.
    assert_eq!(cluster.node("b").observe().repair_until, Lsn::ZERO);
    let told = ask(&mut cluster, "b", &Request::Get { key: b"key 1" });
    assert!(!has(&told, &["Repairing"]), "{told:#?}");
}

#[test]
fn a_leader_restored_from_an_older_copy_is_refused_in_words_and_its_follower_promoted() {
    let mut cluster = three(AckPolicy::InSync);
    // A copy of the stopped leader; then it runs once more and begins the term that the copy will begin again.
    cluster.kill("a", false);
    let older = cluster.disk("a").fork();
    cluster.start("a", RoleFlag::Leader, &["b", "c"], AckPolicy::InSync);
    cluster.wait(1_000, true);
    put_many(&mut cluster, "a", 10);
    cluster.wait(300, true);
    let held = last(&cluster, "b");
    let term = cluster.node("a").term();
    cluster.kill("a", false);
    cluster.replace_disk("a", older);
    cluster.start("a", RoleFlag::Leader, &["b", "c"], AckPolicy::InSync);
    assert_eq!(cluster.node("a").term(), term, "it begins the same term again");
    assert!(last(&cluster, "a") < held);
    cluster.take_trace();
    cluster.wait(2_000, true);
    let trace = cluster.take_trace();
    assert!(has(&trace, &["a takes REFUSE"]), "{trace:#?}");
    assert!(has(&trace, &["b warns", "restored from an older copy", "promote"]), "{trace:#?}");
    assert!(has(&trace, &["a warns", "refuses the session", "promote"]), "{trace:#?}");
    for name in ["b", "c"] {
        assert_eq!(
            (last(&cluster, name), cluster.node(name).counters.cuts),
            (held, 0),
            "{name}: nothing is cut"
        );
    }
    cluster.kill("a", false);
    cluster.run();
    let told = ask(&mut cluster, "b", &Request::Promote { force: false });
    assert!(has(&told, &["REPLY Ok"]), "{told:#?}");
    cluster.wait(1_000, true);
    assert!(cluster.node("b").observe().leads);
    expect_equal(&cluster, &["b", "c"]);
}

#[test]
fn a_one_way_partition_ends_the_session_and_raises_no_term() {
    for (from, to) in [("b", "a"), ("a", "b")] {
        let mut cluster = three(AckPolicy::InSync);
        let terms: Vec<Term> = ["a", "b", "c"].map(|name| cluster.node(name).term()).into();
        let mut before = last(&cluster, "b");
        cluster.mute(from, to, true);
        cluster.wait(8_000, true);
        put_many(&mut cluster, "a", 3);
        cluster.wait(12_000, true);
        before = before.max(last(&cluster, "b"));
        let trace = cluster.take_trace();
        let dials = count(&trace, &["a connects to b"]);
        assert!((1..=8).contains(&dials), "{from} to {to}: {dials} dials in 20 s");
        assert!(!peer(&cluster, "a", "b").1 && peer(&cluster, "a", "c").1, "writes go on without b");
        assert_eq!(cluster.node("a").observe().commit, last(&cluster, "a"));
        assert!(cluster.node("a").observe().leads, "a fixed leader leads on");
        expect_equal(&cluster, &["a", "c"]);
        let now: Vec<Term> = ["a", "b", "c"].map(|name| cluster.node(name).term()).into();
        assert_eq!(now, terms, "{from} to {to}: nobody raised a term");
        cluster.mute(from, to, false);
        cluster.wait(8_000, true);
        expect_equal(&cluster, &["a", "b", "c"]);
        assert!(peer(&cluster, "a", "b").1 && last(&cluster, "b") > before);
        assert_eq!(cluster.node("b").counters.cuts, 0);
    }
}

#[test]
fn a_leader_that_one_node_cannot_reach_stays_leader_for_the_others() {
    let mut cluster = three(AckPolicy::InSync);
    let term = cluster.node("a").term();
    let sessions = cluster.node("c").counters.sessions;
    cluster.block("a", "b");
    cluster.wait(10_000, true);
    put_many(&mut cluster, "a", 5);
    cluster.wait(10_000, true);
    assert!(cluster.node("a").observe().leads && peer(&cluster, "a", "c").1);
    assert_eq!(cluster.node("c").counters.sessions, sessions, "its session was not touched");
    assert_eq!(["a", "b", "c"].map(|name| cluster.node(name).term()), [term; 3]);
    expect_equal(&cluster, &["a", "c"]);
    assert!(last(&cluster, "b") < last(&cluster, "a"));
    let told = ask(&mut cluster, "b", &Request::Get { key: b"key 1" });
    assert!(has(&told, &["REPLY Ok"]), "it serves what it has: {told:#?}");
    cluster.unblock("a", "b");
    cluster.wait(3_000, true);
    expect_equal(&cluster, &["a", "b", "c"]);
}

/// How many lines there are; folded ones count as what they stand for.
fn count(trace: &[String], parts: &[&str]) -> usize {
    trace.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

fn folded(trace: &[String], what: &str) -> usize {
    let numbers = trace
        .iter()
        .filter_map(|line| line.strip_prefix("... and ")?.strip_suffix(what)?.trim().parse::<usize>().ok());
    numbers.sum::<usize>()
}

#[test]
fn a_link_that_flaps_is_dialled_with_backoff_and_changes_no_leader() {
    const FLAPS: usize = 50;
    let mut cluster = three(AckPolicy::InSync);
    let term = cluster.node("a").term();
    let mut failed_per_flap = Vec::new();
    let mut connected = 0;
    for _ in 0..FLAPS {
        cluster.block("a", "b");
        cluster.wait(200, true);
        let trace = cluster.take_trace();
        failed_per_flap.push(folded(&trace, "dials that failed"));
        cluster.unblock("a", "b");
        cluster.wait(200, true);
        connected += count(&cluster.take_trace(), &["a connects to b"]);
        put_many(&mut cluster, "a", 1);
    }
    // 20 ms at first and twice as long each time: four or five of them fit into 200 ms.
    assert!(failed_per_flap.iter().all(|dials| *dials <= 8), "{failed_per_flap:?}");
    assert!(connected <= 2 * FLAPS, "{connected} connections in {FLAPS} flaps");
    assert!(cluster.node("a").observe().leads);
    assert_eq!(["a", "b", "c"].map(|name| cluster.node(name).term()), [term; 3]);
    cluster.wait(3_000, true);
    expect_equal(&cluster, &["a", "b", "c"]);
    assert!(peer(&cluster, "a", "b").1 && peer(&cluster, "a", "c").1);
    assert_eq!(cluster.node("b").counters.cuts, 0);
}

#[test]
fn a_leader_whose_disk_is_full_reads_and_beats_on_and_its_term_still_fits() {
    let mut cluster = three(AckPolicy::InSync);
    let disk = cluster.disk("a").clone();
    disk.set_capacity(Some(disk.used()));
    let mut told = Vec::new();
    for _ in 0..60 {
        told.extend(ask(&mut cluster, "a", &Request::Put { key: b"key 1", value: &[9; 3_000] }));
    }
    assert!(has(&told, &["REPLY DiskFull"]) && has(&told, &["REPLY Ok"]), "{told:#?}");
    let full = last(&cluster, "a");
    let told = ask(&mut cluster, "a", &Request::Get { key: b"key 1" });
    assert!(has(&told, &["REPLY Ok"]), "{told:#?}");
    // Far longer than a silence that ends a session.
    cluster.wait(10_000, true);
    let trace = cluster.take_trace();
    assert!(!has(&trace, &["warns"]), "heartbeats go on: {trace:#?}");
    assert!(cluster.node("b").observe().in_sync && peer(&cluster, "a", "b").1);
    // Space returns, and the next LSN is the next one.
    disk.set_capacity(None);
    let told = ask(&mut cluster, "a", &Request::Put { key: b"key 2", value: b"v" });
    assert!(has(&told, &[&format!("REPLY Ok, lsn {}", full.next())]), "{told:#?}");
    // Full again: another node is promoted, and the old leader makes the higher term durable all the same.
    disk.set_capacity(Some(disk.used()));
    cluster.wait(300, true);
    let told = ask(&mut cluster, "b", &Request::Promote { force: false });
    assert!(has(&told, &["REPLY Ok"]), "{told:#?}");
    let term = cluster.node("b").term();
    assert_eq!((cluster.node("a").role_name(), cluster.node("a").term()), ("deposed", term));
    cluster.kill("a", true);
    cluster.start("a", RoleFlag::Leader, &[], AckPolicy::InSync);
    assert_eq!((cluster.node("a").role_name(), cluster.node("a").term()), ("deposed", term));
}
