//! Numbered writes of the client: which number is sent where, what is asked again, and what is said when the outcome
//! stays unknown (C5, C6, C7). The nodes are scripted; `e2e/sessions.rs` has real ones.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvstore::client::{Client, ClientError, Session, WriteId};
use kvstore::ids::Lsn;
use kvstore::wire::client::Status;

use crate::support::{Answer, FakeNode, Ran, Seen, kv_client, kv_client_of, opened, reply, session};

const LONG: Duration = Duration::from_secs(20);
/// Shorter than a silent node is waited for before others are asked.
const SHORT: Duration = Duration::from_millis(200);

/// A leader whose answers to numbered writes are these, one after the other; the last one for good.
fn leader(answers: Vec<fn() -> Answer>) -> FakeNode {
    let (sessions, writes) = (AtomicU64::new(0), AtomicU64::new(0));
    FakeNode::start(move |request| match request {
        Seen::OpenSession => opened(sessions.fetch_add(1, Ordering::Relaxed) + 1),
        Seen::NumberedPut(..) | Seen::NumberedDelete(..) => {
            let at = writes.fetch_add(1, Ordering::Relaxed) as usize;
            answers[at.min(answers.len() - 1)]()
        }
        _ => reply(Status::Ok, ""),
    })
}

fn ok() -> Answer {
    reply(Status::Ok, "")
}

/// A node that does not lead, and knows nobody who does.
fn follower() -> FakeNode {
    FakeNode::start(|request| match request {
        Seen::Ping => ok(),
        _ => reply(Status::NotLeader, ""),
    })
}

/// What came besides pings.
fn asked(node: &FakeNode) -> Vec<Seen> {
    node.seen().into_iter().filter(|seen| *seen != Seen::Ping).collect()
}

fn put_in(of: u64, number: u64) -> Seen {
    Seen::NumberedPut(session(of), number, b"k".to_vec(), b"v".to_vec())
}

fn put(number: u64) -> Seen {
    put_in(1, number)
}

fn session_of(nodes: &[&FakeNode], timeout: Duration) -> Session {
    let addresses: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    Session::new(Client::of_cluster(&addresses, timeout).unwrap())
}

/// `kv_client --port ... put k v` with these flags.
fn put_with(node: &FakeNode, flags: &[&str]) -> Ran {
    kv_client(node.port(), &[&["put", "k", "v"], flags].concat(), b"")
}

#[test]
fn writes_are_numbered_from_one_in_a_session_that_the_first_of_them_opens() {
    let leader = leader(vec![ok, ok, || reply(Status::NotFound, "")]);
    let mut session_ = session_of(&[&leader], LONG);
    assert_eq!(session_.put(b"k", b"v").unwrap().lsn, Lsn(7));
    assert!(session_.delete(b"k").unwrap().value);
    assert!(!session_.delete(b"k").unwrap().value);
    assert_eq!(session_.last_write().map(|last| (last.id.number, last.tries)), Some((3, 1)));
    let delete = |number| Seen::NumberedDelete(session(1), number, b"k".to_vec());
    assert_eq!(asked(&leader), [Seen::OpenSession, put(1), delete(2), delete(3)]);
}

/// However the answer is lost, the same number goes to whoever answers next; also over one endpoint.
#[test]
fn a_write_whose_answer_is_lost_is_sent_again_with_its_number() {
    let lost: [fn() -> Answer; 4] = [
        || Answer::Close,
        || Answer::Silence,
        || reply(Status::OutcomeUnknown, "it stopped leading"),
        || Answer::Bytes(b"\0\0\0\x03not a reply".to_vec()),
    ];
    for lose in lost {
        let leader = leader(vec![lose, ok]);
        let other = follower();
        let mut several = session_of(&[&leader, &other], LONG);
        several.put(b"k", b"v").unwrap();
        assert_eq!(asked(&leader), [Seen::OpenSession, put(1), put(1)]);
        let elsewhere = asked(&other);
        assert!(!elsewhere.is_empty() && elsewhere.iter().all(|seen| *seen == put(1)), "{elsewhere:?}");
        assert_eq!(several.last_write().map(|last| last.tries as usize), Some(2 + elsewhere.len()));
        several.put(b"k", b"v").unwrap();
        assert_eq!(asked(&leader).last(), Some(&put(2)), "the session goes on");
    }
    let alone = leader(vec![|| Answer::Close, || Answer::Close, ok]);
    let document = put_with(&alone, &["--retry", "-o", "json"]).json();
    assert!(document["ok"] == true && document["lsn"] == 7, "{document}");
    assert!(document["session"] == "7-0000000000000001" && document["number"] == 1, "{document}");
    assert!(document["tries"] == 3 && document["in_doubt"] == true, "{document}");
    assert_eq!(asked(&alone), [Seen::OpenSession, put(1), put(1), put(1)]);
}

#[test]
fn the_next_leader_is_asked_for_the_number_of_the_last_one() {
    let new = leader(vec![ok]);
    let named = new.address.clone();
    let old = FakeNode::start(move |request| match request {
        Seen::OpenSession => opened(9),
        Seen::NumberedPut(_, 1, ..) => ok(),
        Seen::NumberedPut(..) => reply(Status::NotLeader, named.as_str()),
        _ => ok(),
    });
    let mut writes = session_of(&[&old], LONG);
    writes.put(b"k", b"v").unwrap();
    writes.put(b"k", b"v").unwrap();
    assert_eq!(asked(&new), [put_in(9, 2)]);
    assert_eq!(writes.client().address(), new.address);
}

#[test]
fn one_request_over_one_endpoint_is_plain_unless_it_is_asked_for() {
    let node = leader(vec![ok]);
    put_with(&node, &[]).expect(0, "OK\n", "");
    let plain = Seen::Put(b"k".to_vec(), b"v".to_vec());
    assert_eq!(node.seen(), [plain], "no ping, no session");
    put_with(&node, &["--retry"]).expect(0, "OK\n", "");
    assert_eq!(asked(&node)[1..], [Seen::OpenSession, put(1)]);
    kv_client(node.port(), &["delete", "k", "--retry"], b"").expect(0, "OK\n", "");
    assert_eq!(asked(&node)[4], Seen::NumberedDelete(session(2), 1, b"k".to_vec()));
    put_with(&node, &["--explain"]);
    assert!(matches!(asked(&node)[5], Seen::PutExplained(..)));
    for flags in [&["--retry", "--no-follow"][..], &["--retry", "--no-retry"], &["--retry", "--explain"]] {
        assert_eq!(put_with(&node, flags).exit_code, 2, "{flags:?}");
    }
}

#[test]
fn the_removal_of_an_absent_key_is_exit_1_with_its_number() {
    let node = leader(vec![|| reply(Status::NotFound, "")]);
    let ran = kv_client(node.port(), &["delete", "k", "--retry", "-o", "json"], b"");
    assert_eq!(ran.exit_code, 1);
    let document = ran.json();
    assert!(document["error"] == "not_found" && document["number"] == 1, "{document}");
}

/// "Not now" is an answer as long as nothing is in doubt; then it is none.
#[test]
fn busy_is_final_for_the_first_request_and_settles_nothing_behind_a_lost_answer() {
    let busy: fn() -> Answer = || reply(Status::Busy, "full");
    let node = leader(vec![busy, ok]);
    let mut writes = session_of(&[&node], LONG);
    let error = writes.put(b"k", b"v").unwrap_err();
    assert!(error.status() == Some(Status::Busy) && !error.is_outcome_unknown(), "{error}");
    assert!(writes.resolve().is_none(), "nothing is in doubt");
    writes.put(b"other", b"v").unwrap();
    assert_eq!(asked(&node).len(), 3);
    let reused = Seen::NumberedPut(session(1), 1, b"other".to_vec(), b"v".to_vec());
    assert_eq!(asked(&node)[2], reused, "nothing was done, so the number is free");

    let node = leader(vec![|| Answer::Close, busy, busy, ok]);
    session_of(&[&node], LONG).put(b"k", b"v").unwrap();
    assert_eq!(asked(&node)[1..], [put(1), put(1), put(1), put(1)]);
}

#[test]
fn what_is_given_up_says_its_number_and_can_be_asked_for_with_it() {
    let node = leader(vec![|| Answer::Close]);
    let other = follower();
    let nodes = [node.address.as_str(), &other.address];
    let ran = kv_client_of(&nodes, &["put", "k", "v", "--timeout-ms", "300"]);
    assert_eq!(ran.exit_code, 6, "{ran:?}");
    for words in [
        "the outcome of write 7-0000000000000001:1 is UNKNOWN after 300 ms",
        "executed once, or not",
        "the same command with --again 7-0000000000000001:1",
        "was sent it and did not answer: the node closed the connection",
        "does not lead and knows no leader",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {ran:?}");
    }
    let ran = kv_client_of(&nodes, &["put", "k", "v", "--timeout-ms", "300", "-o", "json"]);
    let document = ran.json();
    assert!(document["error"] == "outcome_unknown" && document["number"] == 1, "{document}");
    assert!(document["tries"].as_u64() > Some(1) && document["said"].is_object(), "{document}");
    let again = document["again"].as_str().expect("it is text");
    assert_eq!(again, "7-0000000000000002:1");

    let back = leader(vec![ok]);
    let document = put_with(&back, &["--again", again, "-o", "json"]).json();
    assert!(document["ok"] == true && document["session"] == "7-0000000000000002", "{document}");
    assert_eq!(asked(&back), [put_in(2, 1)], "no other session is opened");
    let ran = put_with(&back, &["--again", "what was it"]);
    assert!(ran.exit_code == 2 && ran.stderr.contains("what the failed command printed is meant"), "{ran:?}");
}

#[test]
fn a_session_resolves_what_it_gave_up_and_begins_another_one_if_it_is_not_asked_to() {
    let node = leader(vec![|| Answer::Silence, ok, ok, || Answer::Silence, ok]);
    let mut writes = session_of(&[&node], LONG);
    writes.client().set_timeout(SHORT);
    let error = writes.put(b"k", b"v").unwrap_err();
    let id = WriteId { session: session(1), number: 1 };
    let is_it = matches!(&error, ClientError::Unresolved { write, .. } if *write == id);
    assert!(is_it && error.is_outcome_unknown() && writes.is_unresolved(), "{error}");
    writes.client().set_timeout(LONG);
    assert_eq!(writes.resolve().unwrap().unwrap().lsn, Lsn(7));
    assert!(writes.resolve().is_none());
    writes.put(b"k", b"v").unwrap();
    assert_eq!(asked(&node), [Seen::OpenSession, put(1), put(1), put(2)]);

    writes.client().set_timeout(SHORT);
    writes.put(b"k", b"v").unwrap_err();
    writes.client().set_timeout(LONG);
    writes.put(b"k", b"v").unwrap();
    assert_eq!(asked(&node)[4..], [put(3), Seen::OpenSession, put_in(2, 1)]);
}

#[test]
fn a_session_that_is_forgotten_is_replaced_where_nothing_is_in_doubt_and_named_where_something_is() {
    let expired: fn() -> Answer = || reply(Status::SessionExpired, "session 7-1 is not known here");
    let node = leader(vec![ok, expired, ok]);
    let mut writes = session_of(&[&node], LONG);
    writes.put(b"k", b"v").unwrap();
    writes.put(b"k", b"v").unwrap();
    assert_eq!(asked(&node), [Seen::OpenSession, put(1), put(2), Seen::OpenSession, put_in(2, 1)]);

    let node = leader(vec![ok, || Answer::Close, expired, ok]);
    let mut writes = session_of(&[&node], LONG);
    writes.put(b"k", b"v").unwrap();
    let error = writes.put(b"k", b"v").unwrap_err();
    assert!(error.is_outcome_unknown() && error.to_string().contains("its outcome is UNKNOWN"), "{error}");
    assert!(writes.resolve().is_none(), "nobody knows its number any more");
    writes.put(b"k", b"v").unwrap();
    assert_eq!(asked(&node)[2..], [put(2), put(2), Seen::OpenSession, put_in(2, 1)]);
    let ran = put_with(&leader(vec![expired]), &["--again", "7-1:1"]);
    assert!(ran.exit_code == 6 && ran.stderr.contains("UNKNOWN"), "{ran:?}");
}

#[test]
fn numbers_that_the_cluster_does_not_take_are_told_apart() {
    let told = [
        (Status::NumberTooOld, "The write was executed, once, by an earlier request"),
        (Status::NumberSkips, "Writes of this session that were acknowledged are missing there"),
    ];
    for (status, words) in told {
        let node = FakeNode::start(move |request| match request {
            Seen::NumberedPut(..) => reply(status, "number 4"),
            _ => reply(Status::Ok, ""),
        });
        let ran = put_with(&node, &["--again", "7-1:4"]);
        assert!(ran.exit_code == 4 && ran.stderr.contains(words), "{ran:?}");
    }
}

/// A cluster refuses its first session as long as a node may not be able to apply it.
#[test]
fn where_sessions_are_refused_a_default_falls_back_and_a_wish_fails() {
    let refusing = |answer: fn() -> Answer| {
        FakeNode::start(move |request| match request {
            Seen::OpenSession => reply(Status::Refused, "n:3 has not been heard by this leader"),
            Seen::Ping => reply(Status::Ok, ""),
            _ => answer(),
        })
    };
    let plain = Seen::Put(b"k".to_vec(), b"v".to_vec());
    let (node, other) = (refusing(ok), follower());
    let nodes = [node.address.as_str(), &other.address];
    kv_client_of(&nodes, &["put", "k", "v"]).expect(0, "OK\n", "");
    assert_eq!(asked(&node), [Seen::OpenSession, plain]);
    let document = kv_client_of(&nodes, &["put", "k", "v", "-o", "json"]).json();
    assert!(document["ok"] == true && document["session"].is_null(), "{document}");
    assert_eq!(document["not_numbered"], "n:3 has not been heard by this leader");

    let ran = kv_client_of(&nodes, &["put", "k", "v", "--retry"]);
    assert!(ran.exit_code == 5 && ran.stderr.contains("n:3 has not been heard"), "{ran:?}");
    assert_eq!(asked(&node).len(), 5, "it sends nothing in its place");

    let node = refusing(|| Answer::Close);
    let ran = kv_client_of(&[&node.address, &other.address], &["put", "k", "v"]);
    assert_eq!(ran.exit_code, 6, "{ran:?}");
    let why = "It was sent without a number, so it cannot be asked for again: n:3 has not been heard";
    assert!(ran.stderr.contains(why), "{ran:?}");
    assert_eq!(asked(&node).len(), 2, "a plain write is not repeated");
}

#[test]
fn what_is_too_large_opens_no_session() {
    let node = leader(vec![ok]);
    let mut writes = session_of(&[&node], LONG);
    assert!(matches!(writes.put(b"", b"v"), Err(ClientError::TooLarge(_))));
    assert_eq!(node.seen(), []);
    assert_eq!(writes.last_write(), None);
}
