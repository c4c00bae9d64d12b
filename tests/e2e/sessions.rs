//! The client's numbered writes against real nodes: an answer that is lost with its leader is asked for again, and each
//! write is executed once (C5).

use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use kvstore::client::{Client, ClientError, Session, WriteId};
use kvstore::ids::Lsn;
use kvstore::limits::CLIENT_SESSIONS_MAX;
use kvstore::wire::client::{Request, Status, WriteOp};
use rustix::process::Signal;
use serde_json::Value;

use crate::cluster::{DEADLINE, Node, Single};
use crate::elected::Elected;
use crate::proxy::Proxy;

/// Three nodes of which each has heard the others, so that none refuses a session.
fn started() -> (Elected, usize) {
    let mut cluster = Elected::start(3, &["--election-timeout-ms=300"]);
    let leader = cluster.wait_leader();
    cluster.nodes[leader].wait_status("heard by all", |status| {
        let peers = status["peers"].as_array().expect("a leader has peers");
        peers.iter().all(|peer| peer["match_lsn"].as_u64() >= Some(1))
    });
    (cluster, leader)
}

fn session_of(addresses: &[String]) -> Session {
    Session::new(Client::of_cluster(addresses, DEADLINE).unwrap())
}

/// Runs `kv_client`: exit code, stdout as a document, stderr.
fn kv_client(arguments: &[&str]) -> (i32, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kv_client"))
        .args(["-o", "json"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("kv_client runs");
    let document = serde_json::from_slice(&output.stdout).expect("stdout is one document");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it ends by itself"), document, error)
}

/// The last LSN of a node, and how many repeats it has answered.
fn counts(node: &Node) -> (u64, u64) {
    let status = node.status();
    let number = |value: &Value| value.as_u64().expect("a number");
    (number(&status["last_lsn"]), number(&status["counters"]["repeats"]))
}

#[test]
fn a_repeat_after_kill_9_of_the_leader_gets_the_first_answer_and_is_not_executed() {
    let (mut cluster, leader) = started();
    let mut writes = session_of(&cluster.addresses());
    writes.put(b"k", b"v").unwrap();
    let first = writes.delete(b"k").unwrap();
    assert!(first.value);
    let id = writes.last_write().unwrap().id;
    cluster.nodes[leader].kill9();
    let next = cluster.wait_leader();
    let before = cluster.nodes[next].wait_status("applied to its end", |s| s["applied_lsn"] == s["last_lsn"]);

    // Another process, which only knows the number.
    let client = Client::of_cluster(&cluster.addresses(), DEADLINE).unwrap();
    let mut again = Session::of_unresolved(client, id, &WriteOp::Delete { key: b"k" });
    assert_eq!(again.resolve().unwrap().unwrap(), first, "status, LSN and term of then");
    let endpoints = cluster.addresses().join(",");
    let arguments = ["--endpoints", &endpoints, "delete", "k", "--again", &id.to_string()];
    let (code, document, error) = kv_client(&arguments);
    assert!(code == 0 && document["lsn"] == first.lsn.0, "{document} {error}");
    assert_eq!(counts(&cluster.nodes[next]), (before["last_lsn"].as_u64().unwrap(), 2));
    let second = writes.delete(b"k").unwrap();
    assert!(!second.value && second.lsn > first.lsn, "the session goes on: {second:?}");
    cluster.nodes[leader].start();
    cluster.expect_equal();
}

/// Its answer is on its way when the leader is killed: the client finds out by itself what became of it.
#[test]
fn a_writer_does_not_notice_that_leaders_die_but_for_the_time_it_takes() {
    let (mut cluster, _) = started();
    let addresses = cluster.addresses();
    let (tell, told) = channel();
    let writer = thread::spawn(move || {
        let mut writes = session_of(&addresses);
        let (mut last, mut resent) = (Lsn(0), 0);
        for round in 0..300u64 {
            let value = round.to_be_bytes();
            let put = writes.put(b"k", &value).unwrap();
            let delete = writes.delete(b"k").unwrap();
            assert!(delete.value, "round {round}: a removal that was executed twice finds nothing");
            assert!(last < put.lsn && put.lsn < delete.lsn, "round {round}: in the order of the calls");
            last = delete.lsn;
            resent += writes.last_write().unwrap().tries - 1;
            tell.send(round).unwrap();
        }
        (last, resent, writes.last_write().unwrap().id)
    });
    for kill_at in [50, 150, 250] {
        while told.recv().expect("the writer goes on") < kill_at {}
        let leader = cluster.wait_leader();
        cluster.nodes[leader].kill9();
        cluster.nodes[leader].start();
    }
    let (last, _resent, id) = writer.join().expect("nothing it was told was wrong");
    assert_eq!(id.number, 600, "one session, and no number was left out");
    let leader = cluster.wait_leader();
    cluster.expect_equal();
    // Of all records, only sessions and the terms of leaders are no writes of it: each number is in the log once.
    let (records, _) = counts(&cluster.nodes[leader]);
    let document = Command::new(env!("CARGO_BIN_EXE_kvstore"))
        .args(["inspect", "-o", "json"])
        .arg(&cluster.nodes[leader].dir)
        .output()
        .expect("kvstore runs");
    let document: Value = serde_json::from_slice(&document.stdout).expect("a document");
    let terms = document["terms"].as_array().expect("the terms of the log").len() as u64;
    assert_eq!(records - terms, 600 + 1, "last answer at LSN {last}");
}

/// One endpoint, a link that loses what comes back: the same node is asked again.
#[test]
fn over_one_endpoint_a_lost_answer_is_asked_for_again_where_it_was_lost() {
    let single = Single::start(&[]);
    let link = Proxy::to(single.node.port);
    let port = link.port.to_string();
    let mut writes = Session::new(Client::new(&link.address(), DEADLINE).unwrap());
    writes.put(b"k", b"1").unwrap();
    let (before, _) = counts(&single.node);
    // The request passes whole, and of its answer not a byte.
    let mut request = Vec::new();
    let id = writes.last_write().unwrap().id.session;
    let put = WriteOp::Put { key: b"k", value: b"2" };
    Request::Numbered { session: id, number: 2, write: put }.encode(&mut request);
    link.cut_after(request.len());
    let served = writes.put(b"k", b"2").unwrap();
    assert_eq!((served.lsn.0, writes.last_write().unwrap().tries), (before + 1, 2));
    assert_eq!(counts(&single.node), (before + 1, 1));
    let (code, document, error) = kv_client(&["--port", &port, "put", "k", "3", "--retry"]);
    assert!(code == 0 && document["tries"] == 1, "{document} {error}");
}

#[test]
fn what_is_given_up_at_the_deadline_is_resolved_when_the_node_is_back() {
    let mut single = Single::start(&[]);
    let mut writes = Session::new(Client::new(&single.node.address(), DEADLINE).unwrap());
    writes.put(b"k", b"1").unwrap();
    single.node.signal(Signal::STOP);
    writes.client().set_timeout(std::time::Duration::from_millis(400));
    let error = writes.put(b"k", b"2").unwrap_err();
    let ClientError::Unresolved { write, tries, .. } = &error else { panic!("{error}") };
    assert_eq!((write.number, *tries), (2, 1), "a node that answers no ping is sent nothing");
    assert!(error.to_string().contains(&format!("--again {write}")), "{error}");
    single.node.kill9();
    single.node.start();
    writes.client().set_timeout(DEADLINE);
    let resolved = writes.resolve().unwrap().unwrap();
    // The leader's own term begins with a record of its own.
    assert_eq!(resolved.lsn.0, counts(&single.node).0, "it had not been executed, and is now");
    assert_eq!(writes.client().get(b"k").unwrap().value.unwrap(), b"2");
}

/// A session of another cluster, or one that was forgotten: what a number did is not known, and is not guessed at.
#[test]
fn a_number_of_an_unknown_session_is_an_unknown_outcome() {
    let single = Single::start(&[]);
    let mut opened = Session::new(Client::new(&single.node.address(), DEADLINE).unwrap());
    let mut session = opened.open().unwrap();
    session.nonce ^= 1;
    let id = WriteId { session, number: 1 };
    let port = single.node.port.to_string();
    let (code, document, error) = kv_client(&["--port", &port, "put", "k", "v", "--again", &id.to_string()]);
    assert!(code == 6 && document["error"] == "session_expired", "{document} {error}");
    assert!(error.contains("its outcome is UNKNOWN"), "{error}");
    let error = Session::of_unresolved(
        Client::new(&single.node.address(), DEADLINE).unwrap(),
        id,
        &WriteOp::Put { key: b"k", value: b"v" },
    )
    .resolve()
    .unwrap()
    .unwrap_err();
    assert!(error.status() == Some(Status::SessionExpired) && error.is_outcome_unknown(), "{error}");
    assert_eq!(opened.client().get(b"k").unwrap().value, None);
}

/// Who is away while thousands of others open theirs finds no session any more.
#[test]
fn a_session_that_others_have_pushed_out_is_replaced_and_what_was_in_doubt_stays_so() {
    let single = Single::start(&[]);
    let mut writes = Session::new(Client::new(&single.node.address(), DEADLINE).unwrap());
    writes.put(b"k", b"1").unwrap();
    let id = writes.last_write().unwrap().id;
    let mut others = Client::new(&single.node.address(), DEADLINE).unwrap();
    for _ in 0..8 {
        (0..CLIENT_SESSIONS_MAX / 8).for_each(|_| others.send(&Request::OpenSession).unwrap());
        others.flush().unwrap();
        while others.replies_due() > 0 {
            assert_eq!(others.receive().unwrap().status, Status::Ok);
        }
    }
    let put = WriteOp::Put { key: b"k", value: b"1" };
    let error = Session::of_unresolved(others, id, &put).resolve().unwrap().unwrap_err();
    assert!(error.status() == Some(Status::SessionExpired) && error.is_outcome_unknown(), "{error}");
    writes.put(b"k", b"2").unwrap();
    let last = writes.last_write().unwrap();
    assert!(last.id.session != id.session && last.id.number == 1 && !last.in_doubt, "{last:?}");
    assert_eq!(writes.client().get(b"k").unwrap().value.unwrap(), b"2");
}

/// The first session of a cluster waits until all nodes can apply one: by default the write is done all the same.
#[test]
fn a_cluster_that_refuses_sessions_takes_a_plain_write_and_says_why_it_has_no_number() {
    let mut cluster = Elected::prepare(3, &["--election-timeout-ms=300"]);
    cluster.nodes.iter_mut().for_each(Node::spawn);
    let leader = cluster.wait_leader();
    // The next leader has never heard this one.
    cluster.nodes[leader].kill9();
    cluster.wait_leader();
    let endpoints = cluster.addresses().join(",");
    let (code, document, error) = kv_client(&["--endpoints", &endpoints, "put", "k", "v"]);
    assert!(code == 0 && document["ok"] == true && document["session"].is_null(), "{document} {error}");
    let why = document["not_numbered"].as_str().expect("it says why");
    assert!(why.contains("has not been heard by this leader"), "{why}");
    let (code, document, _) = kv_client(&["--endpoints", &endpoints, "put", "k", "w", "--retry"]);
    assert!(code == 5 && document["error"] == "refused", "{document}");
    let (_, document, _) = kv_client(&["--endpoints", &endpoints, "get", "k"]);
    assert_eq!(document["value"], "v");
}
