//! A client of several nodes against real ones, with roles that an operator moves: it finds who leads, waits while
//! nobody does, and tells a write that was not done from one whose outcome is unknown.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kvstore::client::Client;
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Node};

fn endpoints(cluster: &Cluster) -> Vec<String> {
    // The leader last: it must be found.
    cluster.nodes.iter().rev().map(Node::address).collect()
}

/// Exit code and both outputs of `kv_client --endpoints`.
fn said(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kv_client"))
        .args(["--endpoints", &endpoints(cluster).join(",")])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("kv_client runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().expect("it ends by itself"), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn it_finds_the_leader_goes_on_without_a_follower_and_says_who_answered_what_when_nobody_leads() {
    let mut cluster = Cluster::start(3, &[]);
    assert_eq!(said(&cluster, &["put", "hello", "world"]), (0, "OK\n".to_owned()));
    assert_eq!(said(&cluster, &["get", "hello"]), (0, "world\n".to_owned()));
    let (code, table) = said(&cluster, &["status"]);
    let leads = format!("{} leads in term 0.1 — all 3 nodes answer", cluster.nodes[0].address());
    assert!(code == 0 && table.starts_with(&leads), "{table}");

    cluster.nodes[2].kill9();
    assert_eq!(said(&cluster, &["put", "hello", "again"]).0, 0, "the first in the list is down");

    cluster.nodes[0].kill9();
    let (code, text) = said(&cluster, &["put", "hello", "lost", "--timeout-ms", "600"]);
    assert_eq!(code, 5, "{text}");
    let refused = |node: &Node| format!("{}  cannot connect: Connection refused", node.address());
    assert!(text.contains(&refused(&cluster.nodes[0])), "{text}");
    assert!(text.contains(&refused(&cluster.nodes[2])), "{text}");
    assert!(text.contains(&format!("{}  does not lead", cluster.nodes[1].address())), "{text}");

    cluster.nodes[1].kill9();
    assert_eq!(said(&cluster, &["put", "hello", "lost", "--timeout-ms", "300"]).0, 3);
    assert_eq!(said(&cluster, &["status"]).0, 3);
}

/// The client waits through a failover: it is asked for a write while nobody leads, and an operator promotes.
#[test]
fn a_write_that_finds_no_leader_waits_for_the_next_one() {
    let mut cluster = Cluster::start(3, &[]);
    let mut client = Client::of_cluster(&endpoints(&cluster), DEADLINE).unwrap();
    client.put(b"k", b"1").unwrap();
    cluster.nodes[0].kill9();
    assert!(client.put(b"k", b"2").unwrap_err().is_outcome_unknown(), "it was sent to a leader that died");
    let waiting = thread::spawn(move || client.put(b"k", b"3").map(|served| (served, client)));
    let (code, _, error) = cluster.nodes[1].cli(&["promote"]);
    assert_eq!(code, 0, "{error}");
    let (_, mut client) = waiting.join().expect("it does not panic").expect("the new leader takes it");
    assert_eq!(client.address(), cluster.nodes[1].address());
    assert_eq!(client.get(b"k").unwrap().value.unwrap(), b"3");
}

/// A stopped leader: its kernel takes the connection, and nothing may be sent into it.
#[test]
fn a_leader_that_stands_still_leaves_no_outcome_unknown() {
    let cluster = Cluster::start(3, &[]);
    cluster.nodes[0].signal(Signal::STOP);
    let started = Instant::now();
    let (code, text) = said(&cluster, &["put", "k", "v", "--timeout-ms", "1500"]);
    cluster.nodes[0].signal(Signal::CONT);
    assert!(code == 5 && text.contains("no answer: timed out"), "nothing was sent: {code}, {text}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let (code, text) = said(&cluster, &["get", "k"]);
    assert_eq!((code, text.as_str()), (1, "not found: \"k\"\n"));
    assert_eq!(said(&cluster, &["put", "k", "v"]).0, 0);
}
