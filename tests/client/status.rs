//! `kv_client status`: the document as it came, or as a table.

use kvstore::client::status_text::render;
use kvstore::wire::client::Status;
use serde_json::{Value, json};

use crate::support::{FakeNode, reply};

fn leader() -> Value {
    let mut document = json!({
        "node_id": "4f1c8a90b2d34e5f60718293a4b5c6d7", "cluster_id": "00112233445566778899aabbccddeeff",
        "role": "leader", "term": 3, "term_text": "0.3",
        "last_lsn": 1_234_567, "durable_lsn": 1_234_560, "commit_lsn": 1_234_500, "applied_lsn": 1_234_500,
        "first_lsn": 1, "keys": 10_000, "data_bytes": 2_621_440, "memory_bytes": 5_000_000,
        "state_hash": "8c1f00d2a4b6c8e0", "leader": "127.0.0.1:9001",
        "leader_id": "4f1c8a90b2d34e5f60718293a4b5c6d7", "in_sync": true, "ack": "insync", "min_insync": 2,
        "durability": "fsync", "read_only_reason": null, "uptime_s": 3_725, "version": "0.1.0",
        "pid": 4242, "address": "127.0.0.1:9001", "connections": 5, "log_generation": 1,
        "counters": {"wal_syncs": 98_765, "writes": 1_234_567},
        "peers": [
            {"address": "127.0.0.1:9002", "node_id": "aa", "state": "streaming", "in_sync": true,
             "match_lsn": 1_234_560, "lag": 7, "lag_bytes": 350, "last_error": null,
             "last_ack_ms_ago": 2, "buffered_bytes": 0},
            {"address": "node-3.example:9003", "node_id": "bb", "state": "catching_up", "in_sync": false,
             "match_lsn": 900, "lag": 1_233_667, "lag_bytes": null,
             "last_error": "connection refused", "last_ack_ms_ago": null, "buffered_bytes": 4_194_304},
        ],
    });
    document["peers"][0]["state_check"] = checked("equal", 1_234_000, None);
    document["peers"][1]["state_check"] = checked("outvoted", 900, Some(1_200));
    document
}

fn checked(verdict: &str, equal_lsn: u64, differs_lsn: Option<u64>) -> Value {
    json!({"verdict": verdict, "equal_lsn": equal_lsn, "differs_lsn": differs_lsn})
}

const LEADER_TABLE: &str = "\
leader in term 0.3 — 2 of 3 nodes in sync — acknowledged means: on disk on every in-sync node

address      127.0.0.1:9001; pid 4242
node id      4f1c8a90b2d34e5f60718293a4b5c6d7
cluster id   00112233445566778899aabbccddeeff
version      0.1.0; up 1 h 2 min
leader       127.0.0.1:9001; id 4f1c8a90b2d34e5f60718293a4b5c6d7
log          LSN 1 to 1,234,567; durable 1,234,560; committed 1,234,500; applied 1,234,500; generation 1
data         10,000 keys; 2.5 MiB of keys and values; 4.8 MiB of memory
state hash   8c1f00d2a4b6c8e0
writes       ack insync; min in-sync 2; durability fsync
connections  5

peer                 state        in sync  match LSN  data                                 lag (records)  lag (bytes)  to send  last ACK  last error
127.0.0.1:9002       streaming    yes      1,234,560  equal at LSN 1,234,000                           7        350 B      0 B  2 ms ago  -
node-3.example:9003  catching up  NO             900  OUTVOTED at LSN 1,200, equal at 900      1,233,667            -  4.0 MiB         -  connection refused

counters
  wal_syncs     98,765
  writes     1,234,567
";

fn first_line(changes: &[(&str, Value)]) -> String {
    let mut document = leader();
    for (field, value) in changes {
        document[*field] = value.clone();
    }
    render(&document).lines().next().unwrap().to_owned()
}

#[test]
fn the_table_of_a_leader() {
    let node = FakeNode::start(|_| reply(Status::Ok, leader().to_string()));
    let ran = node.client(&["status"]);
    assert_eq!((ran.exit_code, ran.stdout_text(), ran.stderr.as_str()), (0, LEADER_TABLE, ""));
}

#[test]
fn json_is_the_document_in_the_nodes_order() {
    let node = FakeNode::start(|_| reply(Status::Ok, leader().to_string()));
    node.client(&["status", "-o", "json"]).expect(0, &format!("{}\n", leader()), "");
}

#[test]
fn a_status_that_is_no_document_is_a_server_error() {
    let node = FakeNode::start(|_| reply(Status::Ok, "[1"));
    let ran = node.client(&["status"]);
    assert!(ran.exit_code == 7 && ran.stderr.contains("the status is not JSON"), "{ran:?}");
}

#[test]
fn the_verdict_says_what_an_acknowledgement_means() {
    let cases: [(&[(&str, Value)], &str); 7] = [
        (&[], "on disk on every in-sync node"),
        (&[("ack", json!("quorum"))], "on disk on a majority, 2 of 3 nodes"),
        (&[("ack", json!("majority"))], "on disk on any majority, 2 of 3 nodes"),
        (&[("ack", json!("leader"))], "on disk on this node alone"),
        (
            &[("durability", json!("os"))],
            "handed to the operating system, not synced to disk, on every in-sync node",
        ),
        (&[("peers", json!([{"address": "x:1"}]))], "on disk on every in-sync node (now this one alone)"),
        (&[("peers", json!([]))], "on disk on this node"),
    ];
    for (changes, meaning) in cases {
        let line = first_line(changes);
        assert!(line.ends_with(&format!("acknowledged means: {meaning}")), "{line}");
    }
}

#[test]
fn the_verdict_names_the_role_and_what_is_wrong() {
    let (follower, deposed) = (("role", json!("follower")), ("role", json!("deposed")));
    let follows = "follower of 127.0.0.1:9001 in term 0.3";
    assert_eq!(
        first_line(std::slice::from_ref(&follower)),
        format!("{follows} — in sync when it last heard its leader")
    );
    assert!(
        first_line(&[follower.clone(), ("in_sync", json!(false))])
            .starts_with(&format!("{follows} — NOT in sync"))
    );
    let elected = ("ack", json!("majority"));
    assert_eq!(first_line(&[follower.clone(), elected, ("in_sync", json!(false))]), follows);
    assert!(first_line(&[follower, ("leader", Value::Null)]).contains("has not heard of a leader"));
    assert!(first_line(&[deposed]).ends_with("next: kv_client follow 127.0.0.1:9001"));
    assert!(first_line(&[("read_only_reason", json!("disk full"))]).ends_with("TAKES NO WRITES: disk full"));
}

#[test]
fn fields_that_are_missing_are_left_out_and_new_ones_are_shown() {
    let document = json!({
        "role": "leader", "term": 4_294_967_296u64, "keys": 1, "shards": 12_000,
        "peers": [{"address": "127.0.0.1:9002"}],
    });
    assert_eq!(
        render(&document),
        "\
leader in term 1.0 — 1 of 2 nodes in sync — acknowledged means: not told

data  1 key

peer            state  in sync  match LSN  data  lag (records)  lag (bytes)  to send  last ACK  last error
127.0.0.1:9002  -      -                -  -                 -            -        -         -  -

other
  shards  12,000
"
    );
}

#[test]
fn control_characters_of_a_node_do_not_reach_the_terminal() {
    let document = json!({"role": "leader", "x\n": "\u{1b}[2J", "read_only_reason": "a\r"});
    assert!(!render(&document).contains(['\u{1b}', '\r']));
}
