//! Who may say what: every message type on every kind of connection of a real node, and what a peer may not
//! bring about by it.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, Lsn, Term};
use kvstore::node::RoleFlag;
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{AppendEntries, AppendTail, Hello, Open, StateNews};
use kvstore::wire::{Authority, Effect, MESSAGE_TYPES, MessageType, Record};
use proptest::prelude::*;

use crate::lone_node::{LEADER, LoneNode, frame, hello};

const TERM: Term = Term { promotion: 0, start: 1 };

fn encoded(request: Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

fn hello_bytes(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    hello.encode(false, &mut bytes);
    bytes
}

fn of(authority: Authority) -> impl Iterator<Item = MessageType> {
    MESSAGE_TYPES.iter().copied().filter(move |message_type| message_type.authority() == authority)
}

fn client_of(lone: &mut LoneNode) -> ConnId {
    let conn = lone.connect();
    let answer = lone.send(conn, &encoded(Request::Ping));
    assert_eq!(answer.frames.len(), 1, "a ping is answered");
    conn
}

/// A node that has said hello to the follower.
fn peer_of(lone: &mut LoneNode) -> ConnId {
    let conn = lone.connect();
    let answer = lone.send(conn, &hello_bytes(&hello("leader:1")));
    assert_eq!(answer.frames[0].0, MessageType::HelloReply);
    conn
}

/// A session in which the follower was sent the leader's first record, beside this commit LSN.
fn session_with(lone: &mut LoneNode, commit_lsn: Lsn) -> ConnId {
    let conn = peer_of(lone);
    let mut record = Vec::new();
    Record { lsn: Lsn(1), effect: Effect::Term { term: TERM, leader: LEADER } }.encode(&mut record);
    let chain = Chain::ZERO.extend(&record);
    let start = TermStart { term: TERM, leader: LEADER, first_lsn: Lsn(1), chain };
    let open = Open {
        term: TERM,
        leader: LEADER,
        your_address: "lone:1".to_owned(),
        peers: vec!["lone:1".to_owned()],
        first_lsn: Lsn(1),
        last_lsn: Lsn(100),
        last_chain: Chain(1),
        history: TermHistory::from_starts(vec![start]).expect("one start is a history"),
        heard_lsn: Lsn::ZERO,
        elected: false,
    };
    let mut bytes = Vec::new();
    open.encode(&mut bytes);
    assert_eq!(lone.send(conn, &bytes).frames[0].0, MessageType::OpenReply);
    bytes.clear();
    let tail = AppendTail { in_sync: false, commit_lsn, round: 1, chain, state: StateNews::default() };
    AppendEntries { record_count: 1, records: &record, tail }.encode(&mut bytes);
    assert_eq!(lone.send(conn, &bytes).frames[0].0, MessageType::AppendEntriesAck);
    conn
}

#[test]
fn a_client_that_sends_a_peers_message_is_fenced_and_changes_nothing() {
    for role in [RoleFlag::Leader, RoleFlag::Follower] {
        for message_type in of(Authority::Peer) {
            for body in [Vec::new(), hello_bytes(&hello("leader:1"))[5..].to_vec()] {
                let mut lone = LoneNode::new(role);
                let (client, bystander) = (client_of(&mut lone), client_of(&mut lone));
                let before = (lone.node.role_name(), lone.node.term(), lone.node.positions());
                let answer = lone.send(client, &frame(message_type as u8, &body));
                let why = answer.fenced.unwrap_or_else(|| panic!("{message_type:?} is fenced"));
                assert!(why.contains(&format!("{message_type:?}")), "{why} names {message_type:?}");
                assert_eq!(answer.frames, []);
                assert_eq!(before, (lone.node.role_name(), lone.node.term(), lone.node.positions()));
                assert_eq!(lone.send(bystander, &encoded(Request::Ping)).frames.len(), 1);
            }
        }
    }
}

#[test]
fn before_a_hello_no_other_message_of_a_peer_is_taken() {
    for message_type in of(Authority::Peer).filter(|message_type| *message_type != MessageType::Hello) {
        let mut lone = LoneNode::new(RoleFlag::Follower);
        let conn = lone.connect();
        let answer = lone.send(conn, &frame(message_type as u8, &[0; 64]));
        assert!(answer.fenced.is_some_and(|why| why.contains("before a hello")), "{message_type:?}");
    }
}

#[test]
fn a_peers_connection_takes_no_requests_and_no_answers_that_were_not_asked_for() {
    let asked_for_nothing = [
        MessageType::Hello,
        MessageType::HelloReply,
        MessageType::OpenReply,
        MessageType::AppendEntriesAck,
        MessageType::FenceReply,
        MessageType::VoteReply,
        MessageType::FormReply,
    ];
    for message_type in of(Authority::Client).chain(of(Authority::Operator)).chain(asked_for_nothing) {
        let mut lone = LoneNode::new(RoleFlag::Follower);
        let peer = peer_of(&mut lone);
        let answer = lone.send(peer, &frame(message_type as u8, &[0; 64]));
        assert!(answer.fenced.is_some_and(|why| why.contains("not expected here")), "{message_type:?}");
    }
}

#[test]
fn unknown_types_and_a_clients_reply_are_fenced() {
    let known = |raw: u8| MessageType::from_u8(raw).is_some();
    for raw in (0..=u8::MAX).filter(|raw| !known(*raw)).chain([MessageType::Reply as u8]) {
        let mut lone = LoneNode::new(RoleFlag::Leader);
        let conn = lone.connect();
        assert!(lone.send(conn, &frame(raw, &[])).fenced.is_some(), "type 0x{raw:02x}");
    }
}

#[test]
fn a_hello_from_an_address_that_cannot_be_one_is_fenced() {
    // The host left out stands for where the node is seen: with it the longest text is too long to be stored.
    let too_long = format!(":{}", "9".repeat(kvstore::limits::ADDRESS_SIZE_MAX - 1));
    for address in [&too_long, "", ":", "no port", "host:99999", "a:1\n2026 [ERROR] forged:1"] {
        for role in [RoleFlag::Leader, RoleFlag::Follower] {
            let mut lone = LoneNode::new(role);
            let conn = lone.connect();
            let mut hello = hello(address);
            hello.leader_address.clear();
            hello.term = Term { promotion: 9, start: 0 };
            // A new cluster is drawn by a leader, so only the follower gets as far as the address.
            let answer = lone.send(conn, &hello_bytes(&hello));
            assert!(answer.closed, "{role:?} and {address:?}");
            assert!(answer.fenced.is_some() || role == RoleFlag::Leader, "{role:?} and {address:?}");
        }
    }
}

#[test]
fn a_leader_by_force_does_not_take_over_commits_beyond_its_own_log() {
    let mut lone = LoneNode::new(RoleFlag::Follower);
    session_with(&mut lone, Lsn(100));
    let operator = lone.connect();
    let answer = lone.send(operator, &encoded(Request::Promote { force: true }));
    let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
    assert_eq!(reply.status, Status::Ok, "{:?}", std::str::from_utf8(reply.payload));
    // Its first record got LSN 2, and no peer has acknowledged it: only LSN 1 can be called committed.
    let (last, commit, _) = lone.node.positions();
    assert_eq!((lone.node.role_name(), last, commit), ("leader", Lsn(2), Lsn(1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Nothing that arrives as a message, whatever it holds and wherever it comes from, ends the node.
    #[test]
    fn any_body_of_any_type_is_answered_refused_or_fenced(
        kind in 0..4_usize,
        which in prop::sample::select(MESSAGE_TYPES),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let role = if kind == 0 { RoleFlag::Leader } else { RoleFlag::Follower };
        let mut lone = LoneNode::new(role);
        let conn = match kind {
            0 | 1 => lone.connect(),
            2 => peer_of(&mut lone),
            _ => session_with(&mut lone, Lsn(1)),
        };
        lone.send(conn, &frame(which as u8, &body));
        let bystander = lone.connect();
        prop_assert_eq!(lone.send(bystander, &encoded(Request::Ping)).frames.len(), 1);
    }
}
