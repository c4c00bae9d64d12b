//! States compared between nodes, and each with what it applied: a bit flips in memory, and what follows. Whom it
//! stops, what it names, what an operator then does, and what a restart begins with. `golden/12_state_checks.txt` shows
//! the frames.

use kvstore::ids::Lsn;
use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;
use serde_json::Value;

use crate::logs;
use crate::mini_cluster::MiniCluster;

/// `a` leads the others; all hold three keys, and were found to be equal.
fn cluster_of(names: &[&str]) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    for follower in &names[1..] {
        cluster.start(follower, RoleFlag::Follower, &[], AckPolicy::Quorum);
    }
    cluster.start(names[0], RoleFlag::Leader, &names[1..], AckPolicy::Quorum);
    cluster.run();
    for key in ["one", "two", "three"] {
        put(&mut cluster, key, "1");
    }
    cluster.wait(2_500, true);
    for name in names {
        assert_eq!(verdict(&mut cluster, name), verdict_of("equal", 4, None, names.len()), "{name}");
    }
    cluster
}

/// What `status` is to say; a single node has nobody to be compared with.
fn verdict_of(verdict: &str, right: u64, differs: Option<u64>, nodes: usize) -> (String, u64, Option<u64>) {
    let (verdict, right) = if nodes == 1 { ("not compared", 0) } else { (verdict, right) };
    (verdict.to_owned(), right, differs)
}

fn verdict(cluster: &mut MiniCluster, name: &str) -> (String, u64, Option<u64>) {
    let check = &status(cluster, name)["state_check"];
    let verdict = check["verdict"].as_str().expect("a word").to_owned();
    (verdict, check["equal_lsn"].as_u64().expect("an LSN"), check["differs_lsn"].as_u64())
}

fn status(cluster: &mut MiniCluster, name: &str) -> Value {
    let told = ask(cluster, name, &Request::Status);
    let (_, document) = told.split_once(": ").expect("an answer with a document");
    serde_json::from_str(document).expect("it is JSON")
}

/// The request's answer.
fn ask(cluster: &mut MiniCluster, name: &str, request: &Request<'_>) -> String {
    cluster.take_trace();
    cluster.send(name, request);
    cluster.run();
    let to_client = format!("{name} -> client REPLY ");
    let told = cluster.take_trace();
    told.iter().find_map(|line| line.strip_prefix(&to_client)).expect("an answer").to_owned()
}

fn get(cluster: &mut MiniCluster, name: &str, key: &str) -> String {
    ask(cluster, name, &Request::Get { key: key.as_bytes() })
}

fn put(cluster: &mut MiniCluster, key: &str, value: &str) -> String {
    ask(cluster, "a", &Request::Put { key: key.as_bytes(), value: value.as_bytes() })
}

/// A bit flips in the value of `one`, which is then overwritten, and the question behind that is answered.
fn flip_and_overwrite(cluster: &mut MiniCluster, name: &str) {
    assert!(cluster.node_mut(name).flip_bit(b"one", 3 * 8));
    assert!(put(cluster, "one", "11").starts_with("Ok"), "a majority has it on disk");
    cluster.wait(2_500, true);
}

fn snapshots_of(cluster: &MiniCluster, name: &str) -> Vec<String> {
    let names = cluster.disk(name).names();
    names.into_iter().filter(|name| name.starts_with("snap-")).collect()
}

#[test]
fn an_outvoted_follower_answers_nothing_and_goes_on_acknowledging() {
    let mut cluster = cluster_of(&["a", "b", "c"]);
    flip_and_overwrite(&mut cluster, "b");
    assert_eq!(verdict(&mut cluster, "b"), verdict_of("outvoted", 4, Some(5), 3));
    for name in ["a", "c"] {
        assert_eq!(verdict(&mut cluster, name), verdict_of("equal", 5, None, 3), "{name}");
        assert!(get(&mut cluster, name, "one").starts_with("Ok"), "{name}");
    }
    let answer = get(&mut cluster, "b", "two");
    assert!(answer.starts_with("Diverged") && answer.contains("right at LSN 4, wrong at LSN 5"), "{answer}");
    let refused = ask(&mut cluster, "b", &Request::Promote { force: true });
    assert!(refused.starts_with("Refused") && refused.contains("DIVERGED"), "{refused}");
    let refused = ask(&mut cluster, "b", &Request::Snapshot { wait: true });
    assert!(refused.starts_with("Refused") && refused.contains("DIVERGED"), "{refused}");
    // Its log counts: with the third node gone it is the other half of the majority.
    cluster.kill("c", false);
    assert!(put(&mut cluster, "two", "2").starts_with("Ok"));
    let peer = &status(&mut cluster, "a")["peers"][0];
    assert_eq!(
        (peer["state_check"]["verdict"].as_str(), peer["match_lsn"].as_u64()),
        (Some("outvoted"), Some(6))
    );
}

#[test]
fn an_outvoted_leader_takes_no_writes_and_a_follower_is_promoted() {
    let mut cluster = cluster_of(&["a", "b", "c"]);
    flip_and_overwrite(&mut cluster, "a");
    assert_eq!(verdict(&mut cluster, "a"), verdict_of("outvoted", 4, Some(5), 3));
    for answer in [put(&mut cluster, "two", "2"), get(&mut cluster, "a", "two")] {
        assert!(answer.starts_with("Diverged"), "{answer}");
    }
    assert_eq!(cluster.node("a").positions().0, Lsn(5), "what was refused is in no log");
    for name in ["b", "c"] {
        assert_eq!(verdict(&mut cluster, name), verdict_of("equal", 5, None, 3), "{name}");
    }
    assert!(ask(&mut cluster, "b", &Request::Promote { force: false }).starts_with("Ok"));
    assert!(get(&mut cluster, "b", "one").ends_with(": 11"));
}

#[test]
fn an_outvoted_leader_that_was_elected_steps_down_and_does_not_campaign() {
    logs::capture();
    let (names, mut cluster) = (["a", "b", "c"], MiniCluster::new());
    for name in names {
        let peers: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
    }
    cluster.wait(5_000, true);
    let leads = |cluster: &MiniCluster, name: &&str| cluster.node(name).observe().leads;
    let old = names.into_iter().find(|name| leads(&cluster, name)).expect("a leader");
    let write = |cluster: &mut MiniCluster, name: &str, value: &[u8]| {
        cluster.send(name, &Request::Put { key: b"one", value });
        cluster.wait(2_500, true);
    };
    write(&mut cluster, old, b"1");
    assert_eq!(verdict(&mut cluster, old).0, "equal");
    assert!(cluster.node_mut(old).flip_bit(b"one", 3 * 8));
    write(&mut cluster, old, b"11");
    cluster.wait(5_000, true);
    assert_eq!(verdict(&mut cluster, old).0, "outvoted");
    let new = names.into_iter().find(|name| leads(&cluster, name)).expect("another leader");
    assert_ne!(new, old);
    write(&mut cluster, new, b"12");
    assert_eq!(verdict(&mut cluster, new).0, "equal");
    // Alone with one more it is a majority's half, and does not ask for votes.
    let term = cluster.node(old).term();
    cluster.kill(new, false);
    cluster.wait(1_000, true);
    cluster.take_trace();
    cluster.wait(5_000, true);
    let third = names.into_iter().find(|name| ![old, new].contains(name)).expect("three");
    assert!(leads(&cluster, &third) && cluster.node(old).term() > term, "it votes: its log is whole");
}

#[test]
fn what_an_outvoted_node_is_restarted_with_is_compared_anew() {
    let mut cluster = cluster_of(&["a", "b", "c"]);
    flip_and_overwrite(&mut cluster, "b");
    cluster.kill("b", false);
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::Quorum);
    cluster.wait(2_500, true);
    assert_eq!(verdict(&mut cluster, "b"), verdict_of("equal", 5, None, 3), "without a further write");
    assert!(get(&mut cluster, "b", "one").ends_with(": 11"));
    // A connection that breaks makes no new state: what stopped serving stays stopped.
    flip_and_overwrite(&mut cluster, "b");
    cluster.block("a", "b");
    cluster.run();
    cluster.unblock("a", "b");
    cluster.wait(2_500, true);
    assert_eq!(verdict(&mut cluster, "b"), verdict_of("outvoted", 5, Some(6), 3));
}

#[test]
fn of_two_nodes_both_say_so_and_the_one_with_bad_memory_finds_out() {
    let mut cluster = cluster_of(&["a", "b"]);
    flip_and_overwrite(&mut cluster, "a");
    assert_eq!(verdict(&mut cluster, "b"), verdict_of("disputed", 4, Some(5), 2));
    assert!(get(&mut cluster, "b", "one").ends_with(": 11"), "it goes on serving");
    assert_eq!(verdict(&mut cluster, "a").0, "memory");
    assert!(get(&mut cluster, "a", "one").starts_with("Diverged"));
    assert_eq!(snapshots_of(&cluster, "a"), [""; 0], "a state that is wrong gets no file");
    cluster.kill("a", false);
    cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Quorum);
    cluster.wait(2_500, true);
    assert_eq!(verdict(&mut cluster, "b").0, "equal", "the dispute is over");
    assert_eq!(verdict(&mut cluster, "a").0, "equal");
}

#[test]
fn a_single_node_finds_a_flipped_bit_when_it_makes_a_snapshot() {
    let mut cluster = cluster_of(&["a"]);
    assert!(ask_for_snapshot(&mut cluster).starts_with("Ok"));
    let files = snapshots_of(&cluster, "a");
    put(&mut cluster, "four", "4");
    assert!(cluster.node_mut("a").flip_bit(b"two", 3 * 8));
    let refused = ask_for_snapshot(&mut cluster);
    assert!(
        refused.starts_with("Refused") && refused.contains("right at LSN 4, wrong at LSN 5"),
        "{refused}"
    );
    assert_eq!(snapshots_of(&cluster, "a"), files, "what was written of it is gone");
    for answer in [get(&mut cluster, "a", "one"), put(&mut cluster, "one", "2")] {
        assert!(answer.starts_with("Diverged"), "{answer}");
    }
    cluster.wait(5_000, true);
    cluster.kill("a", false);
    cluster.start("a", RoleFlag::Leader, &[], AckPolicy::Quorum);
    cluster.run();
    assert!(get(&mut cluster, "a", "two").ends_with(": 1"), "the state was made anew");
    put(&mut cluster, "five", "5");
    assert!(ask_for_snapshot(&mut cluster).starts_with("Ok"));
}

/// The answer, which comes when the snapshot has its name or is given up.
fn ask_for_snapshot(cluster: &mut MiniCluster) -> String {
    cluster.take_trace();
    cluster.send("a", &Request::Snapshot { wait: true });
    cluster.wait(2_000, true);
    let told = cluster.take_trace();
    told.iter().find_map(|line| line.strip_prefix("a -> client REPLY ")).expect("an answer").to_owned()
}
