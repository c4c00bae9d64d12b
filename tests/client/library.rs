//! The client library itself: typed results, pipelining, and what a failure leaves behind.

use std::time::Duration;

use kvstore::client::{Client, ClientError, DeadEnd, Loss, Served};
use kvstore::ids::Lsn;
use kvstore::wire::client::{Request, Status};

use crate::support::{Answer, FakeNode, Seen, TERM, refusing_address, reply};

const LONG: Duration = Duration::from_secs(20);

fn served<T>(value: T) -> Served<T> {
    Served { value, lsn: Lsn(7), term: TERM }
}

#[test]
fn results_carry_lsn_and_term() {
    let node = FakeNode::start(|request| match request {
        Seen::Get(key) if key == b"absent" => reply(Status::NotFound, ""),
        Seen::Get(_) => reply(Status::Ok, "v"),
        Seen::Delete(_) => reply(Status::NotFound, ""),
        Seen::Status => reply(Status::Ok, r#"{"role":"leader"}"#),
        _ => reply(Status::Ok, ""),
    });
    let mut client = Client::connect(&node.address, LONG).unwrap();
    assert_eq!(client.put(b"k", b"v").unwrap(), served(()));
    assert_eq!(client.get(b"k").unwrap(), served(Some(b"v".to_vec())));
    assert_eq!(client.get(b"absent").unwrap(), served(None));
    assert_eq!(client.delete(b"k").unwrap(), served(false));
    assert_eq!(client.status().unwrap().value["role"], "leader");
    assert_eq!(client.ping().unwrap().lsn, Lsn(7));
}

#[test]
fn pipelined_replies_come_in_order() {
    let node = FakeNode::start(|request| match request {
        Seen::Get(key) => reply(Status::Ok, key.clone()),
        _ => reply(Status::Ok, ""),
    });
    let mut client = Client::connect(&node.address, LONG).unwrap();
    let keys: Vec<String> = (0..1_000).map(|index| format!("key {index}")).collect();
    for key in &keys {
        client.send(&Request::Get { key: key.as_bytes() }).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(client.replies_due(), 1_000);
    for key in &keys {
        assert_eq!(client.receive().unwrap().payload_text(), *key);
    }
    assert_eq!(client.replies_due(), 0);
    client.ping().unwrap();
}

#[test]
fn a_pipeline_that_lost_a_write_says_unknown_and_one_of_reads_does_not() {
    let node = FakeNode::start(|request| match request {
        Seen::Ping => reply(Status::Ok, ""),
        _ => Answer::Silence,
    });
    let timeout = Duration::from_millis(200);
    let mut client = Client::connect(&node.address, LONG).unwrap();
    client.set_timeout(timeout);
    client.send(&Request::Get { key: b"k" }).unwrap();
    client.flush().unwrap();
    let error = client.receive().unwrap_err();
    assert!(
        matches!(error, ClientError::ReadLost { why: Loss::TimedOut(at), .. } if at == timeout),
        "{error}"
    );
    client.send(&Request::Put { key: b"k", value: b"v" }).unwrap();
    client.flush().unwrap();
    assert!(client.receive().unwrap_err().is_outcome_unknown());
    assert_eq!(client.replies_due(), 2);
}

/// The late answer to a request that timed out must not be taken for that to the next one.
#[test]
fn after_a_timeout_the_next_call_has_a_connection_of_its_own() {
    let node = FakeNode::start(|request| match request {
        // Half of a reply: the rest would be read as the start of the next one.
        Seen::Get(key) if key == b"slow" => Answer::Bytes(vec![0, 0, 0, 30, 0x20, 0, 0]),
        Seen::Get(key) => reply(Status::Ok, key.clone()),
        _ => reply(Status::Ok, ""),
    });
    let mut client = Client::connect(&node.address, LONG).unwrap();
    client.set_timeout(Duration::from_millis(200));
    assert!(matches!(client.get(b"slow"), Err(ClientError::ReadLost { .. })));
    client.set_timeout(LONG);
    assert_eq!(client.get(b"fast").unwrap().value.unwrap(), b"fast");
}

#[test]
fn sizes_beyond_the_limits_are_not_sent_unless_asked_for() {
    let node = FakeNode::start(|_| reply(Status::TooLarge, "key of 65536 bytes"));
    let mut client = Client::connect(&node.address, LONG).unwrap();
    let key = vec![0; 65_536];
    assert!(matches!(client.put(&key, b""), Err(ClientError::TooLarge(_))));
    assert_eq!(node.seen(), []);
    client.send(&Request::Get { key: &key }).unwrap();
    client.flush().unwrap();
    assert_eq!(client.receive().unwrap().status, Status::TooLarge);
    let beyond_a_frame = vec![0; 16 << 20];
    let request = Request::Put { key: &key, value: &beyond_a_frame };
    assert!(matches!(client.send(&request), Err(ClientError::TooLarge(_))));
}

#[test]
fn after_a_redirect_the_client_stays_with_the_leader() {
    let leader = FakeNode::start(|_| reply(Status::Ok, "from the leader"));
    let named = leader.address.clone();
    let follower = FakeNode::start(move |request| match request {
        Seen::Put(..) => reply(Status::NotLeader, named.as_str()),
        _ => reply(Status::Ok, "from the follower"),
    });
    let mut client = Client::connect(&follower.address, LONG).unwrap();
    assert_eq!(client.get(b"k").unwrap().value.unwrap(), b"from the follower");
    client.put(b"k", b"v").unwrap();
    assert_eq!(client.address(), leader.address);
    assert_eq!(client.get(b"k").unwrap().value.unwrap(), b"from the leader");
    client.put(b"k", b"v").unwrap();
    assert_eq!(follower.seen().len(), 2);
}

/// A client outlives a failover: it asks the node it was made for who leads now.
#[test]
fn a_leader_that_is_lost_does_not_hold_its_clients() {
    let old_leader = FakeNode::start(|request| match request {
        Seen::Put(key, _) if key == b"last" => Answer::Close,
        _ => reply(Status::Ok, ""),
    });
    let new_leader = FakeNode::start(|_| reply(Status::Ok, ""));
    let (old, new) = (old_leader.address.clone(), new_leader.address.clone());
    let follower = FakeNode::start(move |request| match request {
        Seen::Put(key, _) if key == b"first" => reply(Status::NotLeader, old.as_str()),
        _ => reply(Status::NotLeader, new.as_str()),
    });
    let mut client = Client::connect(&follower.address, LONG).unwrap();
    client.put(b"first", b"").unwrap();
    assert_eq!(client.address(), old_leader.address);
    assert!(client.put(b"last", b"").unwrap_err().is_outcome_unknown());
    assert_eq!(client.address(), follower.address);
    client.put(b"next", b"").unwrap();
    assert_eq!(client.address(), new_leader.address);
}

#[test]
fn after_a_redirect_into_the_void_the_client_is_where_it_was() {
    let (_socket, dead) = refusing_address();
    let follower = FakeNode::start(move |request| match request {
        Seen::Put(..) => reply(Status::NotLeader, dead.as_str()),
        _ => reply(Status::Ok, "v"),
    });
    let mut client = Client::connect(&follower.address, LONG).unwrap();
    let error = client.put(b"k", b"v").unwrap_err();
    assert!(matches!(error, ClientError::NoLeader { why: DeadEnd::Unreachable(_), .. }), "{error}");
    assert_eq!(client.address(), follower.address);
    assert_eq!(client.get(b"k").unwrap().value.unwrap(), b"v");
}

#[test]
fn a_redirect_to_what_is_no_address_is_refused() {
    let follower = FakeNode::start(|_| reply(Status::NotLeader, "nowhere"));
    let mut client = Client::connect(&follower.address, LONG).unwrap();
    let error = client.put(b"k", b"v").unwrap_err();
    assert!(matches!(error, ClientError::NoLeader { why: DeadEnd::NotAnAddress(_), .. }), "{error}");
}
