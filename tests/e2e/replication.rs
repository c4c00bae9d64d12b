//! What a user does first: nodes started in any order, a write on the leader, a read on every follower; what
//! the log shows of it, and what each acknowledgement policy promises.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Node, Port, Single};

fn put_and_read_everywhere(cluster: &Cluster, key: &str) {
    let (code, stdout, stderr) = cluster.nodes[0].cli(&["put", key, "world"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "OK\n", ""));
    for node in &cluster.nodes {
        assert_eq!(node.cli(&["get", key]), (0, "world\n".to_owned(), String::new()), "port {}", node.port);
    }
}

#[test]
fn nodes_start_in_any_order_and_replicate() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut cluster = Cluster::prepare(3, &[]);
        for index in order {
            cluster.nodes[index].start();
        }
        cluster.wait_streaming();
        put_and_read_everywhere(&cluster, "hello");
        cluster.expect_equal(&[0, 1, 2]);
    }
}

#[test]
fn one_write_is_seen_in_the_log_of_leader_and_follower_at_the_default_level() {
    let cluster = Cluster::start(3, &[]);
    let marks: Vec<usize> = cluster.nodes.iter().map(|node| node.log.mark()).collect();
    put_and_read_everywhere(&cluster, "hello");
    let lsn = cluster.nodes[0].status()["last_lsn"].as_u64().unwrap();
    for index in [1, 2] {
        let pattern = "[replication] received AppendEntries, applied 1 record(s)";
        let line = cluster.nodes[index].log.wait_for_line(marks[index], pattern, DEADLINE);
        assert!(line.contains(&format!("lsn={lsn}..{lsn}")) && line.contains("took_us="), "{line}");
    }
    let leader = &cluster.nodes[0].log;
    leader.wait_for_line(
        marks[0],
        "[replication] sent AppendEntries, 1 record(s) to 2 follower(s)",
        DEADLINE,
    );
    for follower in &cluster.nodes[1..] {
        let pattern = format!("ACK from {} last_lsn={lsn}", follower.address());
        leader.wait_for_line(marks[0], &pattern, DEADLINE);
    }
}

#[test]
fn every_ack_policy_acknowledges_what_it_promises() {
    // With one of two followers stopped: the leader's disk is enough for `leader`, a majority is there for
    // `quorum`, and `insync` waits for the timeout, which is beyond the client's patience here.
    for (ack, answered) in [("leader", true), ("quorum", true), ("insync", false)] {
        let flag = format!("--ack={ack}");
        let cluster = Cluster::start(3, &[&flag, "--insync-timeout-ms=60000"]);
        put_and_read_everywhere_eventually(&cluster);
        cluster.nodes[2].signal(Signal::STOP);
        let mut client = cluster.nodes[0].client();
        client.set_timeout(Duration::from_millis(if answered { 10_000 } else { 700 }));
        let outcome = client.put(b"with one stopped", b"1");
        match answered {
            true => assert!(outcome.is_ok(), "{ack}: {outcome:?}"),
            false => assert!(outcome.unwrap_err().is_outcome_unknown()),
        }
        if ack == "quorum" {
            // Acknowledged means on a majority: the other follower has it by now.
            assert_eq!(
                cluster.nodes[1].client().get(b"with one stopped").unwrap().value,
                Some(b"1".to_vec())
            );
        }
        cluster.nodes[2].signal(Signal::CONT);
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1, 2]);
    }
}

fn put_and_read_everywhere_eventually(cluster: &Cluster) {
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.expect_equal(&[0, 1, 2]);
    assert_eq!(cluster.nodes[2].client().get(b"k").unwrap().value, Some(b"v".to_vec()));
}

#[test]
fn min_insync_holds_a_write_back_until_enough_nodes_have_it() {
    let mut cluster = Cluster::prepare(2, &["--insync-timeout-ms=50"]);
    cluster.nodes[0].args.push("--min-insync=2".to_owned());
    cluster.nodes[0].start();
    let mut client = cluster.nodes[0].client();
    client.set_timeout(Duration::from_millis(500));
    assert!(client.put(b"early", b"1").unwrap_err().is_outcome_unknown());
    cluster.nodes[1].start();
    cluster.wait_streaming();
    cluster.nodes[0].client().put(b"later", b"2").unwrap();
    for key in [&b"early"[..], b"later"] {
        assert!(cluster.nodes[1].client().get(key).unwrap().value.is_some(), "both had an LSN");
    }
}

#[test]
fn without_arguments_it_is_a_usable_single_node() {
    let port = Port::reserve();
    let dir = tempfile::tempdir().unwrap();
    // The port comes from the environment, because 9001 may be somebody's.
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvstore"))
        .current_dir(dir.path())
        .env("KVSTORE_PORT", port.number.to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let node = Node::new(port, dir.path().join("kvstore-data"), &[]);
    let status = node.wait_status("leading", |status| status["role"] == "leader");
    assert_eq!(status["peers"].as_array().map(Vec::len), Some(0));
    assert_eq!(node.cli(&["put", "hello", "world"]).0, 0);
    assert_eq!(node.cli(&["get", "hello"]).1, "world\n");
    assert_eq!(node.cli(&["get", "nothing"]).0, 1);
    assert!(node.dir.is_dir(), "the data directory is in the working directory");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_pipelined_read_sees_the_write_before_it_on_its_connection() {
    let cluster = Cluster::start(3, &[]);
    let mut client = cluster.nodes[0].client();
    for number in 0..500_u32 {
        let value = number.to_be_bytes();
        client.send(&Request::Put { key: b"k", value: &value }).unwrap();
        client.send(&Request::Get { key: b"k" }).unwrap();
    }
    client.flush().unwrap();
    for number in 0..500_u32 {
        assert_eq!(client.receive().unwrap().status, Status::Ok);
        assert_eq!(client.receive().unwrap().payload, number.to_be_bytes());
    }
}

#[test]
fn a_loaded_node_writes_at_most_eleven_lines_of_a_kind_in_a_second() {
    let cluster = Cluster::start(2, &[]);
    let marks = [cluster.nodes[0].log.mark(), cluster.nodes[1].log.mark()];
    let begin = Instant::now();
    let mut client = cluster.nodes[0].client();
    let mut writes = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        client.put(b"k", b"v").unwrap();
        writes += 1;
    }
    let windows = begin.elapsed().as_secs() as usize + 2;
    assert!(writes > 11 * windows, "{writes} writes are not a load");
    // The summary proves that lines were held back, and not that there were none.
    cluster.nodes[1].log.wait_for_line(marks[1], "more batch(es) in the last second", DEADLINE);
    let kinds = [(0, "sent AppendEntries"), (0, "ACK"), (1, "received AppendEntries")];
    for (node, kind) in kinds {
        let lines = cluster.nodes[node].log.count_from(marks[node], kind);
        assert!(lines > 0 && lines <= 11 * windows, "{lines} lines of {kind:?} in {windows} windows");
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_stall_the_node() {
    let mut single = Single::prepare(&["--log-level=debug"]);
    single.node.log_unread = true;
    single.node.start();
    single.node.wait_status("serving", |status| status["role"] == "leader");
    // Each malformed frame costs a line of more than 60 bytes: far beyond a pipe's 64 KiB and the node's own
    // buffer of 256 KiB.
    for _ in 0..8_000 {
        let mut raw = single.node.raw();
        raw.write(b"GET / HTTP/1.1\r\n\r\n");
        assert!(raw.is_closed());
    }
    assert_eq!(single.node.status()["counters"]["fenced"], 8_000);
    single.node.client().put(b"k", b"v").unwrap();
    // Once somebody reads again, the log says what is missing.
    let mut stderr = single.node.take_unread();
    let mut text = Vec::new();
    let mut chunk = [0; 64 << 10];
    let until = Instant::now() + DEADLINE;
    while !String::from_utf8_lossy(&text).contains("were dropped") {
        assert!(Instant::now() < until, "the node never said that lines were dropped");
        // A line drains what waits: make one.
        let mut raw = single.node.raw();
        raw.write(b"GET / HTTP/1.1\r\n\r\n");
        let size = stderr.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..size]);
    }
}
