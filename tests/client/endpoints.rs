//! A client of several nodes: how it finds the one that serves, what it never sends twice, and what it says when it
//! gives up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kvstore::client::{Answer as Said, Client, ClientError, survey};
use kvstore::wire::client::Status;
use serde_json::json;

use crate::support::{
    Answer, FakeNode, Seen, bare_command, kv_client_of, opened, refusing_address, reply, session,
};

const LONG: Duration = Duration::from_secs(20);

fn put() -> Seen {
    Seen::Put(b"k".to_vec(), b"v".to_vec())
}

/// What `kv_client` sends for one write to several nodes.
fn numbered_put() -> [Seen; 2] {
    [Seen::OpenSession, Seen::NumberedPut(session(1), 1, b"k".to_vec(), b"v".to_vec())]
}

fn leader() -> FakeNode {
    FakeNode::start(|request| match request {
        Seen::OpenSession => opened(1),
        _ => reply(Status::Ok, "v"),
    })
}

/// It takes no request but a ping.
fn saying(status: Status, payload: &str) -> FakeNode {
    let payload = payload.to_owned();
    FakeNode::start(move |request| match request {
        Seen::Ping => reply(Status::Ok, ""),
        _ => reply(status, payload.as_str()),
    })
}

/// It answers pings, and to anything else it does this.
fn doing(what: fn() -> Answer) -> FakeNode {
    FakeNode::start(move |request| match request {
        Seen::Ping => reply(Status::Ok, ""),
        _ => what(),
    })
}

/// What came besides pings.
fn asked(node: &FakeNode) -> Vec<Seen> {
    node.seen().into_iter().filter(|seen| *seen != Seen::Ping).collect()
}

#[test]
fn the_leader_that_a_follower_names_is_asked_next_and_the_others_not_at_all() {
    let leader = leader();
    let (first, second) = (saying(Status::NotLeader, &leader.address), saying(Status::NotLeader, ""));
    let nodes = [&first.address, &second.address, &leader.address].map(String::as_str);
    kv_client_of(&nodes, &["put", "k", "v"]).expect(0, "OK\n", "");
    assert_eq!((asked(&first), asked(&second)), (vec![Seen::OpenSession], vec![]));
    assert_eq!(asked(&leader), numbered_put());
    kv_client_of(&nodes, &["get", "k"]).expect(0, "v\n", "");
    kv_client_of(&nodes, &["delete", "k"]).expect(0, "OK\n", "");
}

#[test]
fn a_leader_that_is_named_and_not_in_the_list_is_found() {
    let leader = leader();
    let first = saying(Status::NotLeader, &leader.address);
    let (_socket, dead) = refusing_address();
    kv_client_of(&[&dead, &first.address], &["put", "k", "v"]).expect(0, "OK\n", "");
    assert_eq!(asked(&leader), numbered_put());
}

#[test]
fn nodes_that_know_no_leader_that_are_down_that_load_or_end_are_passed_over() {
    let leader = leader();
    let (_socket, dead) = refusing_address();
    let others = [Status::NotLeader, Status::Loading, Status::Repairing, Status::ShuttingDown]
        .map(|status| saying(status, ""));
    let named = saying(Status::NotLeader, &dead);
    let mut nodes: Vec<&str> = others.iter().map(|node| node.address.as_str()).collect();
    nodes.extend([dead.as_str(), &named.address, &leader.address]);
    for command in [&["put", "k", "v"][..], &["get", "k"]] {
        assert_eq!(kv_client_of(&nodes, command).exit_code, 0);
    }
    for node in others.iter().chain([&named]) {
        assert_eq!(asked(node).len(), 2, "each is asked once per command");
    }
    assert_eq!(asked(&leader).len(), 3);
}

/// An election takes its time: the client asks on, and the write is done once.
#[test]
fn it_asks_again_until_somebody_leads() {
    let questions = AtomicUsize::new(0);
    let elected = FakeNode::start(move |request| match request {
        Seen::Ping => reply(Status::Ok, ""),
        _ if questions.fetch_add(1, Ordering::Relaxed) < 4 => reply(Status::NotLeader, ""),
        _ => reply(Status::Ok, ""),
    });
    let other = saying(Status::NotLeader, "");
    let nodes = [other.address.as_str(), &elected.address];
    kv_client_of(&nodes, &["put", "k", "v", "--no-retry"]).expect(0, "OK\n", "");
    assert_eq!(asked(&elected), vec![put(); 5]);
}

#[test]
fn it_gives_up_at_the_deadline_and_says_what_each_node_answered() {
    let (_socket, dead) = refusing_address();
    let lost = saying(Status::NotLeader, "");
    let behind = saying(Status::NotLeader, &dead);
    let loading = saying(Status::Loading, "43 %");
    let nodes = [&lost, &behind, &loading].map(|node| node.address.as_str());
    let started = Instant::now();
    let ran = kv_client_of(&nodes, &["put", "k", "v", "--timeout-ms", "700"]);
    assert!(started.elapsed() >= Duration::from_millis(600), "{ran:?}");
    assert_eq!(ran.exit_code, 5, "{ran:?}");
    assert!(ran.stderr.starts_with("kv_client: none of 4 nodes served it within 700 ms"), "{ran:?}");
    let says = |address: &str, words: &str| {
        let line = ran.stderr.lines().find(|line| line.starts_with(&format!("  {address}")));
        assert!(line.is_some_and(|line| line.contains(words)), "{address} {words}: {ran:?}");
    };
    says(&lost.address, "does not lead and knows no leader");
    says(&behind.address, &format!("does not lead and names {dead}"));
    says(&loading.address, "is loading its state: 43 %");
    says(&dead, "cannot connect: Connection refused");
    let ran = kv_client_of(&nodes, &["get", "k", "--timeout-ms", "300", "-o", "json"]);
    let document = ran.json();
    assert!(document["error"] == "no_leader" && document["rounds"].as_u64() > Some(1), "{document}");
    assert_eq!(document["said"][&loading.address], "is loading its state: 43 %");
}

#[test]
fn exit_codes_tell_who_was_there() {
    let (_socket, dead) = refusing_address();
    let loading = saying(Status::Loading, "1 %");
    let short = ["put", "k", "v", "--timeout-ms", "300"];
    assert_eq!(kv_client_of(&[&dead, "1"], &short).exit_code, 3, "nobody is there");
    assert_eq!(kv_client_of(&[&dead, &loading.address], &short).exit_code, 8, "try again later");
    let other = saying(Status::NotLeader, "");
    assert_eq!(kv_client_of(&[&other.address, &loading.address], &short).exit_code, 5);
}

/// The one thing that must not happen: a plain write that may have been executed is sent again.
#[test]
fn a_write_whose_answer_is_lost_is_not_sent_again() {
    let other = leader();
    for lose in [|| Answer::Close, || Answer::Silence] {
        let loses = doing(lose);
        let arguments = ["put", "k", "v", "--no-retry", "--timeout-ms", "400"];
        let ran = kv_client_of(&[&loses.address, &other.address], &arguments);
        assert!(ran.exit_code == 6 && ran.stderr.contains("UNKNOWN"), "{ran:?}");
        assert_eq!((asked(&loses), asked(&other)), (vec![put()], vec![]));
    }
}

#[test]
fn a_read_whose_answer_is_lost_is_asked_elsewhere() {
    let other = leader();
    for lose in [|| Answer::Close, || Answer::Silence] {
        let loses = doing(lose);
        kv_client_of(&[&loses.address, &other.address], &["get", "k"]).expect(0, "v\n", "");
    }
}

/// A stopped process takes connections and bytes: a write must not go there, or nobody knows what became of it.
#[test]
fn a_node_that_does_not_answer_a_ping_is_sent_no_write() {
    let stopped = FakeNode::start(|_| Answer::Silence);
    let leader = leader();
    let started = Instant::now();
    kv_client_of(&[&stopped.address, &leader.address], &["put", "k", "v"]).expect(0, "OK\n", "");
    assert!(started.elapsed() < Duration::from_secs(4), "a silent node does not cost the deadline");
    assert_eq!(asked(&stopped), []);
    let ran = kv_client_of(&[&stopped.address, "1"], &["put", "k", "v", "--timeout-ms", "600"]);
    assert!(ran.exit_code == 3 && ran.stderr.contains("no answer: timed out"), "{ran:?}");
}

#[test]
fn an_answer_that_another_node_would_not_change_is_final() {
    for status in [Status::Busy, Status::DiskFull, Status::NotEnoughReplicas, Status::OutcomeUnknown] {
        let (node, other) = (saying(status, "so it is"), leader());
        let ran = kv_client_of(&[&node.address, &other.address], &["put", "k", "v", "--no-retry"]);
        assert!(ran.exit_code != 0 && ran.stderr.contains("so it is"), "{ran:?}");
        assert_eq!((asked(&node).len(), asked(&other).len()), (1, 0), "{status:?}");
    }
}

#[test]
fn nodes_that_name_each_other_are_asked_once_a_round() {
    let listeners = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = [0, 1].map(|i: usize| listeners[i].local_addr().unwrap().to_string());
    let names = addresses.clone();
    let [first, second] = listeners;
    let naming = |named: String| {
        move |request: &Seen| match request {
            Seen::Ping => reply(Status::Ok, ""),
            _ => reply(Status::NotLeader, named.as_str()),
        }
    };
    let first = FakeNode::start_on(first, naming(addresses[1].clone()));
    let second = FakeNode::start_on(second, naming(addresses[0].clone()));
    let mut client = Client::of_cluster(&names, Duration::from_millis(300)).unwrap();
    let error = client.put(b"k", b"v").unwrap_err();
    let ClientError::NotServed { asked: each, rounds, .. } = &error else { panic!("{error}") };
    assert!(each.iter().all(|asked| matches!(&asked.said, Said::Said { status: Status::NotLeader, .. })));
    assert_eq!([asked(&first).len(), asked(&second).len()], [*rounds as usize; 2]);
    assert_eq!(error.status(), Some(Status::NotLeader));
}

#[test]
fn the_client_stays_with_the_leader_and_leaves_it_when_it_is_lost() {
    let old = FakeNode::start(|request| match request {
        Seen::Put(key, _) if key == b"last" => Answer::Close,
        _ => reply(Status::Ok, ""),
    });
    let new = leader();
    let mut client = Client::of_cluster(&[&old.address, &new.address], LONG).unwrap();
    for _ in 0..3 {
        client.put(b"k", b"v").unwrap();
    }
    assert_eq!(client.address(), old.address);
    assert_eq!(old.seen(), [Seen::Ping, put(), put(), put()], "one connection, one ping");
    assert!(client.put(b"last", b"").unwrap_err().is_outcome_unknown());
    client.put(b"k", b"v").unwrap();
    assert_eq!(client.address(), new.address);
    assert_eq!(asked(&new), [put()]);
}

#[test]
fn one_endpoint_is_one_node() {
    let follower = saying(Status::NotLeader, "");
    let ran = kv_client_of(&[&follower.address], &["put", "k", "v"]);
    assert!(ran.exit_code == 5 && ran.stderr.contains("knows no leader. Nothing was written"), "{ran:?}");
    assert_eq!(follower.seen(), [put()], "no search, no ping");
    assert_eq!(kv_client_of(&[&follower.address, &follower.address], &["ping"]).exit_code, 0);
}

#[test]
fn what_is_typed_outweighs_the_environment() {
    let (typed, other) = (leader(), leader());
    let mut command = bare_command();
    let ran = command.env("KV_CLIENT_ENDPOINTS", format!("{},1", other.address)).args(["put", "k", "v"]);
    assert!(ran.output().unwrap().status.success());
    assert_eq!(asked(&other), numbered_put());
    let mut command = bare_command();
    command.env("KV_CLIENT_ENDPOINTS", &other.address).args(["put", "k", "v", "--port", typed.port()]);
    assert!(command.output().unwrap().status.success());
    let mut command = bare_command();
    command.env("KV_CLIENT_PORT", "1").args(["--endpoints", &typed.address, "put", "k", "v"]);
    assert!(command.output().unwrap().status.success());
    assert_eq!((asked(&typed), asked(&other).len()), (vec![put(), put()], 2));
    let ran = kv_client_of(&[&typed.address], &["--port", "9", "put", "k", "v"]);
    assert!(ran.exit_code == 2 && ran.stderr.contains("give one or the other"), "{ran:?}");
}

#[test]
fn what_is_about_one_node_is_refused_for_several() {
    let nodes = [leader(), leader()];
    let addresses = [0, 1].map(|at: usize| nodes[at].address.as_str());
    let commands: [&[&str]; 5] =
        [&["promote"], &["follow", "9001"], &["snapshot"], &["ping"], &["put", "k", "v", "--no-follow"]];
    for arguments in commands {
        let ran = kv_client_of(&addresses, arguments);
        assert!(ran.exit_code == 2 && ran.stderr.contains("--host and --port"), "{ran:?}");
    }
    assert!(nodes.iter().all(|node| node.seen().is_empty()));
    let ran = kv_client_of(&["9001", "nowhere"], &["put", "k", "v"]);
    assert!(ran.exit_code == 2 && ran.stderr.contains("the port is missing"), "{ran:?}");
}

fn with_status(role: &str, term: u64, leader: &str) -> FakeNode {
    let document = json!({
        "role": role, "term": term, "leader": leader, "last_lsn": 1_234, "commit_lsn": 1_230, "applied_lsn": 1_230,
        "state_hash": "8c1f00d2a4b6c8e0", "uptime_s": 61, "in_sync": true, "peers": [{"in_sync": true}, {}],
    });
    FakeNode::start(move |_| reply(Status::Ok, document.to_string()))
}

#[test]
fn the_status_of_several_nodes_is_one_table() {
    let term = 3 << 32;
    let (leader, follower) = (with_status("leader", term, "n:1"), with_status("follower", term, "n:1"));
    let (_socket, dead) = refusing_address();
    let nodes = [leader.address.as_str(), &follower.address, &dead];
    let ran = kv_client_of(&nodes, &["status"]);
    assert_eq!((ran.exit_code, ran.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = ran.stdout_text().lines().collect();
    assert_eq!(lines[0], format!("{} leads in term 3.0 — 2 of 3 nodes answer", leader.address));
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert_eq!(cells(lines[2]), "node role term leader in sync last LSN committed applied state hash up");
    let numbers = "1,234 1,230 1,230 8c1f00d2a4b6c8e0 1 min 1 s";
    assert_eq!(cells(lines[3]), format!("{} leader 3.0 n:1 1 of 2 {numbers}", leader.address));
    assert_eq!(cells(lines[4]), format!("{} follower 3.0 n:1 yes {numbers}", follower.address));
    assert!(lines[5].starts_with(&format!("{dead}  NO ANSWER: cannot connect")), "{lines:?}");
    let document = kv_client_of(&nodes, &["status", "-o", "json"]).json();
    assert!(document["ok"] == true && document["leader"] == leader.address, "{document}");
    assert_eq!(document["nodes"][1]["status"]["role"], "follower");
    assert_eq!(document["nodes"][2]["error"], "cannot_connect");
    let ran = kv_client_of(&[&dead, "1"], &["status"]);
    assert!(ran.exit_code == 3 && ran.stdout_text().starts_with("no node says that it leads — 0 of 2"));
}

#[test]
fn two_nodes_that_say_they_lead_are_both_named_the_newer_one_first() {
    let (old, new) = (with_status("leader", 1 << 32, ""), with_status("leader", 2 << 32, ""));
    let ran = kv_client_of(&[&old.address, &new.address], &["status"]);
    let told =
        format!("2 nodes say that they lead: {} in term 2.0, {} in term 1.0", new.address, old.address);
    assert!(ran.stdout_text().starts_with(&told), "{ran:?}");
}

#[test]
fn a_silent_node_delays_a_survey_by_its_deadline_and_hides_nobody() {
    let (silent, leader) = (FakeNode::start(|_| Answer::Silence), with_status("leader", 1, ""));
    let nodes = survey(&[&silent.address, &leader.address], Duration::from_millis(300)).unwrap();
    assert!(nodes[0].status.is_err() && nodes[1].status.is_ok(), "{nodes:?}");
}
