//! What `kv_client` says when a call fails: above all, whether a write may have happened (C7).

use std::net::TcpListener;
use std::time::{Duration, Instant};

use kvstore::wire::client::Status;
use serde_json::json;

use crate::support::{Answer, FakeNode, Ran, Seen, command, kv_client, refusing_address, reply};

fn put() -> Seen {
    Seen::Put(b"k".to_vec(), b"v".to_vec())
}

fn port_of(address: &str) -> &str {
    address.rsplit_once(':').unwrap().1
}

#[test]
fn a_refused_connection_is_exit_3_and_nothing_was_sent() {
    let (_socket, address) = refusing_address();
    let ran = kv_client(port_of(&address), &["put", "k", "v"], b"");
    assert_eq!(ran.exit_code, 3);
    let start = format!("kv_client: cannot connect to {address}: Connection refused");
    assert!(ran.stderr.starts_with(&start) && ran.stderr.contains("Is a node running there?"), "{ran:?}");
    let document = kv_client(port_of(&address), &["put", "k", "v", "-o", "json"], b"").json();
    assert!(document["error"] == "cannot_connect" && document["address"] == address, "{document}");
}

#[test]
fn a_write_without_an_answer_has_an_unknown_outcome() {
    let node = FakeNode::start(|_| Answer::Silence);
    for arguments in [&["put", "k", "v"][..], &["delete", "k"], &["promote"], &["follow", "9001"]] {
        let started = Instant::now();
        let ran = node.client(&[arguments, &["--timeout-ms", "300"]].concat());
        assert!(started.elapsed() >= Duration::from_millis(300));
        assert!(ran.exit_code == 6 && ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains("timed out after 300 ms") && ran.stderr.contains("UNKNOWN"), "{ran:?}");
    }
    assert_eq!(node.seen().len(), 4, "nothing is sent twice");
}

#[test]
fn a_connection_lost_after_a_write_was_sent_leaves_its_outcome_unknown() {
    let node = FakeNode::start(|_| Answer::Close);
    let ran = node.client(&["put", "k", "v", "-o", "json"]);
    assert!(ran.exit_code == 6 && ran.json()["error"] == "outcome_unknown", "{ran:?}");
    assert!(ran.stderr.contains("the node closed the connection"), "{ran:?}");
    assert_eq!(node.seen(), [put()], "the write is not repeated");
}

#[test]
fn a_lost_read_says_that_it_is_safe_to_repeat() {
    let node = FakeNode::start(|_| Answer::Silence);
    let ran = node.client(&["get", "k", "--timeout-ms", "300"]);
    assert!(ran.exit_code == 6 && ran.stderr.contains("safe to send it again"), "{ran:?}");
    assert!(!ran.stderr.contains("UNKNOWN"), "{ran:?}");
}

/// A node acts on complete frames only, so a write that did not leave whole was not executed.
#[test]
fn a_write_that_did_not_leave_whole_was_not_executed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Inherited by what is accepted, so that 8 MiB surely do not fit into the buffers on the way.
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let value = vec![0; 8 << 20];
    let ran = kv_client(port_of(&address), &["put", "k", "-", "--timeout-ms", "300"], &value);
    assert_eq!(ran.exit_code, 3, "{ran:?}");
    assert!(ran.stderr.contains("did not leave whole") && ran.stderr.contains("not executed"), "{ran:?}");
}

#[test]
fn something_that_is_no_node_is_named() {
    let node = FakeNode::start(|_| Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    let ran = node.client(&["get", "k"]);
    assert!(ran.exit_code == 7 && ran.stderr.contains("no kvstore node answers there"), "{ran:?}");
    // After a write, even that proves nothing about what was executed.
    assert_eq!(node.client(&["put", "k", "v"]).exit_code, 6);
}

#[test]
fn frames_that_are_no_replies_are_refused() {
    let frames: [&[u8]; 3] = [&[0, 0, 0, 1, 0x06], &[0, 0, 0, 2, 0x20, 99], &[0, 0, 0, 0]];
    for frame in frames {
        let node = FakeNode::start(|_| Answer::Bytes(frame.to_vec()));
        let ran = node.client(&["ping"]);
        assert!(ran.exit_code == 7 && ran.stderr.starts_with("kv_client: no answer from"), "{ran:?}");
    }
}

#[test]
fn control_characters_of_a_node_do_not_reach_the_terminal() {
    let node = FakeNode::start(|_| reply(Status::Refused, "no\x1b[2J\n"));
    assert!(node.client(&["promote"]).stderr.ends_with("refuses: no [2J \n"));
}

#[test]
fn a_write_to_a_follower_goes_to_the_leader_it_names() {
    let leader = FakeNode::start(|_| reply(Status::Ok, ""));
    let named = leader.address.clone();
    let follower = FakeNode::start(move |_| reply(Status::NotLeader, named.as_str()));
    follower.client(&["put", "k", "v"]).expect(0, "OK\n", "");
    follower.client(&["delete", "k"]).expect(0, "OK\n", "");
    assert_eq!(leader.seen(), [put(), Seen::Delete(b"k".to_vec())]);
    assert_eq!(follower.seen(), leader.seen());
}

#[test]
fn no_follow_shows_the_leader_instead() {
    let follower = FakeNode::start(|_| reply(Status::NotLeader, "127.0.0.1:1"));
    let told = format!(
        "kv_client: {} does not lead. Nothing was written. The leader is 127.0.0.1:1\n",
        follower.address
    );
    follower.client(&["--no-follow", "put", "k", "v"]).expect(5, "", &told);
    let by_variable =
        command(follower.port()).env("KV_CLIENT_NO_FOLLOW", "1").args(["delete", "k"]).output().unwrap();
    Ran::from(by_variable).expect(5, "", &told);
    let document = follower.client(&["--no-follow", "put", "k", "v", "-o", "json"]).json();
    assert!(document["error"] == "not_leader" && document["leader"] == "127.0.0.1:1", "{document}");
}

#[test]
fn a_follower_without_a_leader_is_exit_5() {
    let follower = FakeNode::start(|_| reply(Status::NotLeader, ""));
    let ran = follower.client(&["put", "k", "v"]);
    assert!(ran.exit_code == 5 && ran.stderr.contains("knows no leader"), "{ran:?}");
}

#[test]
fn a_named_leader_that_is_down_is_exit_5() {
    let (_socket, dead) = refusing_address();
    let named = dead.clone();
    let follower = FakeNode::start(move |_| reply(Status::NotLeader, named.as_str()));
    let ran = follower.client(&["put", "k", "v"]);
    let words = format!("names {dead}, which cannot be reached: Connection refused");
    assert!(ran.exit_code == 5 && ran.stderr.contains(&words), "{ran:?}");
}

#[test]
fn nodes_that_name_each_other_are_asked_once_each() {
    let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap().to_string());
    let [first, second] = listeners;
    let [first_address, second_address] = addresses.clone();
    let first = FakeNode::start_on(first, move |_| reply(Status::NotLeader, second_address.as_str()));
    let second = FakeNode::start_on(second, move |_| reply(Status::NotLeader, first_address.as_str()));
    let ran = first.client(&["put", "k", "v", "-o", "json"]);
    assert_eq!(ran.exit_code, 5);
    assert!(ran.stderr.contains("which was asked before"), "{ran:?}");
    assert_eq!(ran.json()["asked"], json!(addresses));
    assert_eq!((first.seen(), second.seen()), (vec![put()], vec![put()]));
}

#[test]
fn a_write_makes_five_hops_at_most() {
    let leader = FakeNode::start(|_| reply(Status::Ok, ""));
    let mut chain = vec![leader];
    for _ in 0..6 {
        let named = chain.last().unwrap().address.clone();
        chain.push(FakeNode::start(move |_| reply(Status::NotLeader, named.as_str())));
    }
    chain[5].client(&["put", "k", "v"]).expect(0, "OK\n", "");
    let ran = chain[6].client(&["put", "k", "v"]);
    assert!(ran.exit_code == 5 && ran.stderr.contains("gave up after 6 nodes"), "{ran:?}");
    assert_eq!(chain[0].seen(), [put()]);
}

#[test]
fn a_leader_that_falls_silent_behind_a_redirect_leaves_the_outcome_unknown() {
    let leader = FakeNode::start(|_| Answer::Silence);
    let named = leader.address.clone();
    let follower = FakeNode::start(move |_| reply(Status::NotLeader, named.as_str()));
    let ran = follower.client(&["put", "k", "v", "--timeout-ms", "500"]);
    assert!(ran.exit_code == 6 && ran.stderr.contains(&leader.address), "{ran:?}");
}
