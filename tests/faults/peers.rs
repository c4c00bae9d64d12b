//! Peers whose messages come twice, late or out of order, and peers that say what cannot be: one real node on a
//! disk in memory, and the test at the other end of its connections.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, Lsn, NodeId, Term};
use kvstore::limits::PEER_IDLE_MS;
use kvstore::node::RoleFlag;
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{
    Ack, AppendEntries, AppendTail, Fence, FenceReply, Hello, Open, OpenReply, Refuse, RefuseCode, StateNews,
};
use kvstore::wire::{Effect, MessageType, Record};
use proptest::prelude::*;

use crate::leader_log::{Log, TERM, acked, bytes_of, greeted, leaders_hello, session, term_record};
use crate::lone_node::{Answer, LEADER, LoneNode, hello};
use crate::mem_disk::MemDisk;

fn put(lone: &mut LoneNode, client: ConnId, value: &[u8]) -> Answer {
    lone.send(client, &bytes_of(|out| Request::Put { key: b"k", value }.encode(out)))
}

fn status(frames: &[(MessageType, Vec<u8>)]) -> Status {
    Reply::decode(&frames[0].1).expect("a reply").status
}

#[test]
fn a_term_record_that_does_not_rise_or_is_above_the_sessions_fences_its_sender() {
    let lower = Term { start: TERM.start - 1, ..TERM };
    let above = Term { start: TERM.start + 1, ..TERM };
    for wrong in [TERM, lower, Term::ZERO, above, Term { promotion: u32::MAX, start: u32::MAX }] {
        let mut lone = LoneNode::new(RoleFlag::Follower);
        let log = Log::new(2);
        let (conn, _) = session(&mut lone, &log);
        log.frames.iter().for_each(|frame| drop(lone.send(conn, frame)));
        let before = (lone.node.positions(), lone.node.keyspace().state_hash(), lone.node.term());
        assert_eq!(before.0, (Lsn(2), Lsn(2), Lsn(2)));
        // A frame of two records, the first of which is as it should be: all of it or nothing.
        let good = bytes_of(|out| {
            Record { lsn: Lsn(3), effect: Effect::Put { key: b"k", value: b"half" } }.encode(out);
        });
        let mut records = good.clone();
        Record { lsn: Lsn(4), effect: term_record(wrong) }.encode(&mut records);
        let chain = log.chains[2].extend(&good).extend(&records[good.len()..]);
        let tail =
            AppendTail { in_sync: true, commit_lsn: Lsn(4), round: 9, chain, state: StateNews::default() };
        let frame = bytes_of(|out| AppendEntries { record_count: 2, records: &records, tail }.encode(out));
        let answer = lone.send(conn, &frame);
        let why = answer.fenced.unwrap_or_else(|| panic!("term {wrong} is taken"));
        assert!(why.contains("terms rise, up to the session's"), "{why}");
        assert_eq!(answer.frames, [], "term {wrong}: no ACK");
        let after = (lone.node.positions(), lone.node.keyspace().state_hash(), lone.node.term());
        assert_eq!(after, before, "term {wrong}");
        // The log was not moved on behind the scenes either: the next session goes on at LSN 3.
        let log = Log::new(3);
        let (conn, match_lsn) = session(&mut lone, &log);
        assert_eq!(match_lsn, Lsn(2));
        assert_eq!(acked(&lone.send(conn, &log.frames[2])), Lsn(3));
    }
}

#[test]
fn an_open_that_comes_twice_fences_its_sender_and_the_next_session_goes_on() {
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let log = Log::new(3);
    let (conn, _) = session(&mut lone, &log);
    assert_eq!(acked(&lone.send(conn, &log.frames[0])), Lsn(1));
    let answer = lone.send(conn, &log.open());
    assert!(answer.fenced.is_some_and(|why| why.contains("second OPEN")), "one session per connection");
    assert_eq!(answer.frames, []);
    let (conn, match_lsn) = session(&mut lone, &log);
    assert_eq!(match_lsn, Lsn(1));
    assert_eq!(acked(&lone.send(conn, &log.frames[1])), Lsn(2));
    assert_eq!(lone.node.counters.cuts, 0);
}

#[test]
fn a_fence_on_the_sessions_own_connection_moves_the_term_and_ends_the_session() {
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let log = Log::new(2);
    let (conn, _) = session(&mut lone, &log);
    assert_eq!(acked(&lone.send(conn, &log.frames[0])), Lsn(1));
    let term = Term { promotion: 1, start: 0 };
    let answer = lone.send(conn, &fence(term));
    assert!(answer.closed);
    assert_eq!((lone.node.term(), lone.node.positions().0), (term, Lsn(1)));
}

fn fence(term: Term) -> Vec<u8> {
    let fence = Fence { probe: false, term, candidate: LEADER, address: "leader:1".to_owned() };
    bytes_of(|out| fence.encode(out))
}

#[test]
fn a_fence_that_comes_again_or_late_changes_nothing() {
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let (older, newer) = (Term { promotion: 1, start: 0 }, Term { promotion: 2, start: 0 });
    let conn = greeted(&mut lone);
    // In order, twice each, and the older one once more: what was promised last stands.
    for (term, accepted, stands) in [
        (older, true, older),
        (older, true, older),
        (newer, true, newer),
        (newer, true, newer),
        (older, false, newer),
    ] {
        let answer = lone.send(conn, &fence(term));
        let reply = FenceReply::decode(&answer.frames[0].1).expect("a FENCE_REPLY");
        assert_eq!((reply.accepted, reply.term), (accepted, stands), "FENCE of {term}");
        assert_eq!(lone.node.term(), stands);
    }
    // The same term for another candidate would be a second vote.
    let other = Hello { node_id: NodeId([0xbb; 16]), ..leaders_hello() };
    let conn = lone.connect();
    let _ = lone.send(conn, &bytes_of(|out| other.encode(false, out)));
    let second = Fence { probe: false, term: newer, candidate: other.node_id, address: "other:1".to_owned() };
    let answer = lone.send(conn, &bytes_of(|out| second.encode(out)));
    assert!(!FenceReply::decode(&answer.frames[0].1).expect("a FENCE_REPLY").accepted);
    // Nor may it lead this node in that term: the promise was to another.
    let open = Open { term: newer, leader: other.node_id, ..Log::new(1).open_message() };
    let answer = lone.send(conn, &bytes_of(|out| open.encode(out)));
    let refuse = Refuse::decode(&answer.frames[0].1).expect("a REFUSE");
    assert_eq!((refuse.code, refuse.leader), (RefuseCode::TwoLeaders, LEADER), "{}", refuse.message);
}

/// A leader whose only follower is the test: the connection, and the OPEN that came on it.
fn leader_of_test() -> (LoneNode, ConnId, Open) {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &["follower:1"]);
    let (conn, (message_type, body)) = answered_dial(&mut lone, "follower:1");
    assert_eq!(message_type, MessageType::Open);
    (lone, conn, Open::decode(&body).expect("an OPEN"))
}

/// The next dial of the node, answered with a hello, and what the node says to that.
fn answered_dial(lone: &mut LoneNode, address: &str) -> (ConnId, (MessageType, Vec<u8>)) {
    let mut dialled = lone.take_dialled();
    for _ in 0..100 {
        if !dialled.is_empty() {
            break;
        }
        lone.pass_ms(50);
        dialled = lone.take_dialled();
    }
    let (to, conn) = dialled.pop().expect("the node dials");
    assert_eq!((to.as_str(), dialled.len()), (address, 0));
    let frames = lone.said(conn);
    assert_eq!(frames[0].0, MessageType::Hello);
    let theirs = Hello::decode(&frames[0].1).expect("a HELLO");
    let reply = Hello {
        cluster_id: theirs.cluster_id,
        node_id: NodeId([5; 16]),
        term: Term::ZERO,
        leader: NodeId::NONE,
        leader_address: String::new(),
        ..hello(address)
    };
    let mut answer = lone.send(conn, &bytes_of(|out| reply.encode(true, out)));
    assert_eq!(answer.fenced, None);
    (conn, answer.frames.pop().expect("a hello is followed by what the dial was for"))
}

/// An OPEN_REPLY of a follower that has nothing.
fn empty_reply(open: &Open) -> Vec<u8> {
    let reply = OpenReply {
        term: open.term,
        match_lsn: Lsn::ZERO,
        match_chain: Chain::ZERO,
        commit_lsn: Lsn::ZERO,
        cut_from: Lsn::ZERO,
        repair_until: Lsn::ZERO,
    };
    bytes_of(|out| reply.encode(out))
}

fn ack(lsn: u64) -> Vec<u8> {
    bytes_of(|out| Ack { last_lsn: Lsn(lsn), ..Ack::default() }.encode(out))
}

#[test]
fn an_open_reply_or_a_hello_that_comes_twice_is_fenced_and_the_leader_dials_again() {
    for twice in ["OPEN_REPLY", "a second hello"] {
        let (mut lone, conn, open) = leader_of_test();
        assert_eq!(lone.send(conn, &empty_reply(&open)).fenced, None);
        let again = match twice {
            "OPEN_REPLY" => empty_reply(&open),
            _ => bytes_of(|out| Hello { node_id: NodeId([5; 16]), ..hello("follower:1") }.encode(true, out)),
        };
        let before = lone.node.positions();
        let why = lone.send(conn, &again).fenced.unwrap_or_else(|| panic!("{twice} is taken again"));
        assert!(why.contains(twice), "{why}");
        assert_eq!(lone.node.positions(), before);
        assert_eq!(lone.node.role_name(), "leader");
        answered_dial(&mut lone, "follower:1");
    }
}

#[test]
fn an_ack_that_comes_again_counts_once_and_one_that_goes_back_is_fenced() {
    let (mut lone, conn, open) = leader_of_test();
    let _ = lone.send(conn, &empty_reply(&open));
    let client = lone.connect();
    assert_eq!(lone.send(conn, &ack(1)).fenced, None, "the term's first record");
    let _ = put(&mut lone, client, b"v");
    assert_eq!(lone.node.positions().0, Lsn(2));
    for _ in 0..3 {
        assert_eq!(lone.send(conn, &ack(2)).fenced, None, "the same again is no offence");
        assert_eq!(lone.node.positions(), (Lsn(2), Lsn(2), Lsn(2)));
    }
    // A second write is not acknowledged by the old ACK.
    let _ = lone.said(client);
    let _ = put(&mut lone, client, b"v");
    assert_eq!(lone.send(conn, &ack(2)).fenced, None);
    assert_eq!((lone.node.positions().1, lone.said(client).len()), (Lsn(2), 0), "not committed by a replay");
    // What a follower said to be durable does not stop being so: whoever says less is not believed.
    let answer = lone.send(conn, &ack(1));
    assert!(answer.fenced.is_some_and(|why| why.contains("ACK of LSN 1")));
    assert_eq!(lone.node.positions().1, Lsn(2), "what was committed stays so");
}

#[test]
fn an_ack_on_the_connection_before_the_present_one_changes_nothing() {
    let (mut lone, old, open) = leader_of_test();
    let _ = lone.send(old, &empty_reply(&open));
    assert_eq!(lone.send(old, &ack(1)).fenced, None);
    assert!(lone.send(old, &empty_reply(&open)).closed);
    let (new, (_, body)) = answered_dial(&mut lone, "follower:1");
    let open = Open::decode(&body).expect("an OPEN");
    // It holds what it acknowledged; else it would be out of sync, and nobody would wait for it.
    let (match_lsn, match_chain) = (open.last_lsn, open.last_chain);
    let reply = OpenReply {
        term: open.term,
        match_lsn,
        match_chain,
        commit_lsn: Lsn(1),
        cut_from: Lsn::ZERO,
        repair_until: Lsn::ZERO,
    };
    assert_eq!(lone.send(new, &bytes_of(|out| reply.encode(out))).fenced, None);
    let client = lone.connect();
    let _ = put(&mut lone, client, b"v");
    // It left the old connection before that was closed, and arrives when the new session waits for just that.
    let late = lone.send(old, &ack(2));
    assert_eq!((late.frames.len(), lone.node.positions()), (0, (Lsn(2), Lsn(1), Lsn(1))));
    assert_eq!(lone.said(client), []);
    assert_eq!(lone.send(new, &ack(2)).fenced, None);
    assert_eq!(lone.node.positions(), (Lsn(2), Lsn(2), Lsn(2)));
    assert_eq!(status(&lone.said(client)), Status::Ok);
}

#[test]
fn a_follower_that_opens_sessions_and_takes_nothing_is_dialled_ever_more_rarely() {
    let (mut lone, mut conn, mut open) = leader_of_test();
    let mut waits_ms = Vec::new();
    for _ in 0..8 {
        assert_eq!(lone.send(conn, &empty_reply(&open)).fenced, None, "the session stands");
        waits_ms.push(hang_up_and_wait(&mut lone, conn));
        (conn, open) = opened(&mut lone);
    }
    assert!(waits_ms[7] >= 4 * waits_ms[0], "{waits_ms:?}");
    // One that goes on and is lost then is looked for at once.
    let _ = lone.send(conn, &empty_reply(&open));
    assert_eq!(lone.send(conn, &ack(1)).fenced, None);
    assert!(hang_up_and_wait(&mut lone, conn) <= waits_ms[1], "{waits_ms:?}");
}

/// The follower's end breaks; milliseconds until the next dial, which stays unanswered.
fn hang_up_and_wait(lone: &mut LoneNode, conn: ConnId) -> u64 {
    assert!(lone.send(conn, &[0xff; 8]).closed);
    let mut waited_ms = 0;
    while !lone.has_dialled() {
        lone.pass_ms(10);
        waited_ms += 10;
        assert!(waited_ms < 60_000, "the node dials again");
    }
    waited_ms
}

/// The session that the node opens next.
fn opened(lone: &mut LoneNode) -> (ConnId, Open) {
    let (conn, (message_type, body)) = answered_dial(lone, "follower:1");
    assert_eq!(message_type, MessageType::Open);
    (conn, Open::decode(&body).expect("an OPEN"))
}

#[test]
fn a_peer_that_says_hello_and_nothing_more_is_closed_at_its_deadline_and_a_session_is_not() {
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let silent = greeted(&mut lone);
    let asking = greeted(&mut lone);
    lone.pass_ms(PEER_IDLE_MS - 1);
    assert!(!lone.is_closed(silent));
    // Each question is answered, and begins the wait for the next.
    let answer = lone.send(asking, &fence(Term { promotion: 0, start: 1 }));
    assert_eq!((answer.frames[0].0, answer.closed), (MessageType::FenceReply, false));
    lone.pass_ms(1);
    assert!(lone.is_closed(silent) && !lone.is_closed(asking));
    // A session is judged by its heartbeats.
    let log = Log::new(2 + PEER_IDLE_MS / 1_000);
    let (conn, _) = session(&mut lone, &log);
    for frame in &log.frames {
        let _ = acked(&lone.send(conn, frame));
        lone.pass_ms(1_000);
        assert!(!lone.is_closed(conn));
    }
    assert!(lone.is_closed(asking));
}

#[test]
fn a_peer_that_knows_the_last_term_of_all_stops_a_promotion_and_not_the_node() {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Follower, &["other:1"]);
    let operator = lone.connect();
    for force in [false, true] {
        let asked = lone.send(operator, &bytes_of(|out| Request::Promote { force }.encode(out)));
        assert_eq!(asked.frames, [], "it asks its peer first");
        let (conn, (message_type, body)) = answered_dial(&mut lone, "other:1");
        assert_eq!(message_type, MessageType::Fence);
        assert!(Fence::decode(&body).expect("a FENCE").probe);
        let reply = FenceReply {
            accepted: true,
            term: Term { promotion: u32::MAX, start: 0 },
            last_term: Term::ZERO,
            last_lsn: Lsn::ZERO,
            commit_lsn: Lsn::ZERO,
            leads: false,
            repair: (Term::ZERO, Lsn::ZERO),
            complete: true,
        };
        assert_eq!(lone.send(conn, &bytes_of(|out| reply.encode(out))).fenced, None);
        let said = lone.said(operator);
        assert_eq!(status(&said), Status::Refused, "force: {force}");
        let words = String::from_utf8_lossy(&said[0].1).into_owned();
        // Without force a node that never was in sync has an objection of its own, which comes first.
        assert!(words.contains("highest term") || !force, "{words}");
        assert_eq!((lone.node.role_name(), lone.node.term()), ("follower", Term::ZERO));
        assert!(lone.is_closed(conn), "the promotion's connection is given up");
    }
    assert_eq!(lone.send(operator, &bytes_of(|out| Request::Ping.encode(out))).frames.len(), 1, "it serves");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Frames of one log in any order, any of them any number of times, over as many sessions as it takes: the
    /// node's log is always a beginning of that log, never shorter than it was, and the right one at the end.
    #[test]
    fn records_in_any_order_and_number_are_appended_once_in_order_or_fenced(
        order in proptest::collection::vec(0..12_usize, 0..60),
    ) {
        let log = Log::new(12);
        let mut lone = LoneNode::new(RoleFlag::Follower);
        let (mut conn, mut last) = session(&mut lone, &log);
        for index in order.into_iter().chain(0..12) {
            let answer = lone.send(conn, &log.frames[index]);
            if index as u64 == last.0 {
                last = last.next();
                prop_assert_eq!(acked(&answer), last);
            } else {
                prop_assert!(answer.fenced.is_some_and(|why| why.contains("a gap in the session")));
                prop_assert_eq!(answer.frames, []);
                let (new, match_lsn) = session(&mut lone, &log);
                prop_assert_eq!(match_lsn, last);
                conn = new;
            }
            prop_assert_eq!(lone.node.positions(), (last, last, last));
            let value = lone.node.keyspace().get(b"k").map(<[u8]>::to_vec);
            prop_assert_eq!(value, (last.0 >= 2).then(|| last.0.to_be_bytes().to_vec()));
        }
        prop_assert_eq!(last, Lsn(12));
        prop_assert_eq!(lone.node.counters.cuts, 0);
    }
}
