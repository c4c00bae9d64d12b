//! What a leader decides about numbered writes before it appends: what is under way counts, a repeat waits for it,
//! nothing is answered before the leader may, and no session begins before every node can apply one.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, SessionId, Term};
use kvstore::limits::{CLIENT_SESSION_WINDOW, CLIENT_SESSIONS_MAX};
use kvstore::node::{NodeConfig, RoleFlag};
use kvstore::wire::client::{Reply, Request, Status, WriteOp, decode_session_id};
use kvstore::wire::peer::{Ack, AckDurations, Hello, Open, OpenReply, Refuse, RefuseCode};
use kvstore::wire::{CMD_TYPES_BASIC, CMD_TYPES_KNOWN, MessageType};

use crate::lone_node::{self, LoneNode, config, hello};
use crate::mem_disk::MemDisk;

const FOLLOWER: &str = "one:1";

fn bytes_of(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    fill(&mut bytes);
    bytes
}

fn bytes(request: &Request<'_>) -> Vec<u8> {
    bytes_of(|out| request.encode(out))
}

/// Status, LSN and term of every reply among these frames.
fn told(frames: &[(MessageType, Vec<u8>)]) -> Vec<(Status, u64, Term)> {
    let replies = frames.iter().map(|(_, body)| Reply::decode(body).expect("a reply"));
    replies.map(|reply| (reply.status, reply.lsn.0, reply.term)).collect()
}

fn put(session: SessionId, number: u64) -> Vec<u8> {
    bytes(&Request::Numbered {
        session,
        number,
        write: WriteOp::Put { key: b"k", value: &number.to_be_bytes() },
    })
}

fn delete(session: SessionId, number: u64) -> Vec<u8> {
    bytes(&Request::Numbered { session, number, write: WriteOp::Delete { key: b"k" } })
}

/// A session of a node that answers at once.
fn open(lone: &mut LoneNode, client: ConnId) -> SessionId {
    let frames = lone.send(client, &bytes(&Request::OpenSession)).frames;
    let reply = Reply::decode(&frames[0].1).expect("a reply");
    assert_eq!(reply.status, Status::Ok);
    let session = decode_session_id(reply.payload).expect("an id");
    assert_eq!(session.lsn, reply.lsn);
    session
}

/// The follower of a leader, played by the test, which can apply these records. The connection, and what the leader
/// says to its hello.
fn greeted(lone: &mut LoneNode, cmd_types: u64) -> (ConnId, (MessageType, Vec<u8>)) {
    let (_, conn) = lone.take_dialled().pop().expect("it dials its follower");
    let hello = Hello {
        node_id: NodeId([1; 16]),
        cluster_id: ClusterId::NONE,
        term: Term::ZERO,
        leader: NodeId::NONE,
        cmd_types,
        ..hello(FOLLOWER)
    };
    let answer = lone.send(conn, &bytes_of(|out| hello.encode(true, out)));
    (conn, answer.frames.last().expect("an OPEN or a REFUSE").clone())
}

/// The same, with an empty log.
fn follower(lone: &mut LoneNode, cmd_types: u64) -> ConnId {
    let (conn, (message_type, body)) = greeted(lone, cmd_types);
    assert_eq!(message_type, MessageType::Open);
    let reply = OpenReply {
        term: Open::decode(&body).expect("an OPEN").term,
        match_lsn: Lsn::ZERO,
        match_chain: Chain::ZERO,
        commit_lsn: Lsn::ZERO,
        cut_from: Lsn::ZERO,
        repair_until: Lsn::ZERO,
    };
    lone.send(conn, &bytes_of(|out| reply.encode(out)));
    ack(lone, conn, 1);
    conn
}

fn ack(lone: &mut LoneNode, conn: ConnId, lsn: u64) {
    let spent = AckDurations::default();
    lone.send(conn, &bytes_of(|out| Ack { last_lsn: Lsn(lsn), round: lsn, spent, state: None }.encode(out)));
}

/// A leader whose writes wait for the test, and a session.
fn led_with_session() -> (LoneNode, ConnId, ConnId, SessionId) {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &[FOLLOWER]);
    let follower = follower(&mut lone, CMD_TYPES_KNOWN);
    let client = lone.connect();
    assert_eq!(lone.send(client, &bytes(&Request::OpenSession)).frames, []);
    ack(&mut lone, follower, 2);
    let reply = lone.said(client);
    let session = decode_session_id(Reply::decode(&reply[0].1).expect("a reply").payload).expect("an id");
    (lone, follower, client, session)
}

#[test]
fn a_repeat_of_a_write_under_way_is_answered_with_it_and_appends_nothing() {
    let (mut lone, follower, first, session) = led_with_session();
    let pipeline = [put(session, 1), delete(session, 2), delete(session, 3)].concat();
    assert_eq!(lone.send(first, &pipeline).frames, []);
    assert_eq!(lone.node.positions().0, Lsn(5));
    // Another connection, and the same one behind its own: everything again, and a new one between.
    let second = lone.connect();
    let again = [put(session, 1), delete(session, 3), put(session, 4), delete(session, 2)].concat();
    lone.send(second, &again);
    lone.send(first, &put(session, 1));
    assert_eq!(lone.node.positions().0, Lsn(6), "one new number, one record");
    assert_eq!((lone.said(first), lone.said(second)), (vec![], vec![]));
    let term = lone.node.term();
    ack(&mut lone, follower, 3);
    assert_eq!(told(&lone.said(first)), [(Status::Ok, 3, term)]);
    assert_eq!(told(&lone.said(second)), [(Status::Ok, 3, term)]);
    ack(&mut lone, follower, 5);
    let rest = [(Status::Ok, 4, term), (Status::NotFound, 5, term), (Status::Ok, 3, term)];
    assert_eq!(told(&lone.said(first)), rest);
    assert_eq!(told(&lone.said(second)), [(Status::NotFound, 5, term)]);
    ack(&mut lone, follower, 6);
    assert_eq!(told(&lone.said(second)), [(Status::Ok, 6, term), (Status::Ok, 4, term)]);
    lone.node.keyspace().invariants();
}

#[test]
fn a_number_behind_one_under_way_is_executed_and_one_that_skips_it_is_not() {
    let (mut lone, follower, client, session) = led_with_session();
    lone.send(client, &put(session, 1));
    let other = lone.connect();
    assert_eq!(told(&lone.send(other, &put(session, 3)).frames)[0].0, Status::NumberSkips);
    assert_eq!(lone.send(other, &put(session, 2)).frames, []);
    assert_eq!(lone.node.positions().0, Lsn(4));
    ack(&mut lone, follower, 4);
    let term = lone.node.term();
    assert_eq!(told(&lone.said(client)), [(Status::Ok, 3, term)]);
    assert_eq!(told(&lone.said(other)), [(Status::Ok, 4, term)]);
}

#[test]
fn a_client_that_comes_and_goes_while_nothing_is_acknowledged_leaves_nothing_behind() {
    let (mut lone, follower, client, session) = led_with_session();
    lone.send(client, &put(session, 1));
    for _ in 0..10 {
        let other = lone.connect();
        assert_eq!(lone.send(other, &put(session, 1)).frames, []);
        let answer = lone.send(other, &lone_node::frame(0xee, b""));
        assert!(answer.closed);
    }
    let last = lone.connect();
    lone.send(last, &put(session, 1));
    ack(&mut lone, follower, 3);
    let answer = [(Status::Ok, 3, lone.node.term())];
    assert_eq!((told(&lone.said(client)), told(&lone.said(last))), (answer.to_vec(), answer.to_vec()));
}

#[test]
fn a_leader_that_has_just_begun_answers_no_repeat_before_its_own_term_is_committed() {
    let disk = MemDisk::new();
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    let client = lone.connect();
    let session = open(&mut lone, client);
    let first = [put(session, 1), delete(session, 2), delete(session, 3)]
        .map(|write| told(&lone.send(client, &write).frames)[0]);
    drop(lone);
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[FOLLOWER]);
    let client = lone.connect();
    let again = [delete(session, 3), delete(session, 2), put(session, 4), put(session, 1)].concat();
    assert_eq!(lone.send(client, &again).frames, [], "what it began with may not be committed");
    // Its follower leaves the set.
    (0..20).for_each(|_| lone.pass_ms(100));
    let said = told(&lone.said(client));
    assert_eq!(said[..2], [first[2], first[1]], "with the LSN and the term of then");
    assert_eq!((said[2].0, said[3]), (Status::Ok, first[0]));
    assert!(said[2].2 > first[0].2);
}

#[test]
fn a_leader_that_is_deposed_does_not_know_the_outcome_of_what_is_under_way() {
    let (mut lone, follower, client, session) = led_with_session();
    lone.send(client, &put(session, 1));
    let other = lone.connect();
    lone.send(other, &put(session, 1));
    let higher = Hello { term: Term { promotion: 1, start: 0 }, node_id: NodeId([9; 16]), ..hello("new:1") };
    let peer = lone.connect();
    let hello = Hello { cluster_id: ClusterId::NONE, ..higher };
    lone.send(peer, &bytes_of(|out| hello.encode(false, out)));
    assert_eq!(told(&lone.said(client))[0].0, Status::OutcomeUnknown);
    assert_eq!(told(&lone.said(other))[0].0, Status::OutcomeUnknown);
    assert_eq!(told(&lone.send(other, &put(session, 1)).frames)[0].0, Status::NotLeader);
    assert!(lone.is_closed(follower));
}

#[test]
fn no_session_begins_before_every_node_has_said_that_it_can_apply_one() {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &[FOLLOWER]);
    let client = lone.connect();
    let refusal = |lone: &mut LoneNode| {
        let frames = lone.send(client, &bytes(&Request::OpenSession)).frames;
        let reply = Reply::decode(&frames[0].1).expect("a reply");
        assert_eq!(reply.status, Status::Refused);
        String::from_utf8_lossy(reply.payload).into_owned()
    };
    let text = refusal(&mut lone);
    assert!(text.contains("one:1 has not been heard by this leader"), "{text}");
    // An older follower follows as ever, as long as the log holds nothing that it cannot apply.
    follower(&mut lone, CMD_TYPES_BASIC);
    let text = refusal(&mut lone);
    assert!(text.contains("one:1 is of a version that cannot apply them: update it"), "{text}");
    assert_eq!(lone.node.positions().0, Lsn(1), "nothing was written");
}

#[test]
fn a_log_with_a_session_goes_to_no_node_that_cannot_apply_it() {
    let disk = MemDisk::new();
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    let client = lone.connect();
    open(&mut lone, client);
    drop(lone);
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[FOLLOWER]);
    let (_, (message_type, body)) = greeted(&mut lone, CMD_TYPES_BASIC);
    assert_eq!(message_type, MessageType::Refuse);
    let refuse = Refuse::decode(&body).expect("a REFUSE");
    assert_eq!(refuse.code, RefuseCode::CmdType);
    assert!(refuse.message.contains("update it first"), "{}", refuse.message);
}

#[test]
fn with_one_session_more_than_fits_the_one_used_longest_ago_goes_and_no_other() {
    let disk = MemDisk::new();
    let mut lone = LoneNode::with(&disk, NodeConfig { receipts: false, ..config(RoleFlag::Leader, &[]) })
        .expect("it starts");
    let client = lone.connect();
    let (oldest, used) = (open(&mut lone, client), open(&mut lone, client));
    let first = told(&lone.send(client, &put(oldest, 1)).frames);
    lone.send(client, &put(used, 1));
    // Used again, behind `oldest`'s last write and before that of all others.
    let many = bytes(&Request::OpenSession).repeat(CLIENT_SESSIONS_MAX - 2);
    assert_eq!(lone.send(client, &many).frames.len(), CLIENT_SESSIONS_MAX - 2);
    assert_eq!(lone.node.keyspace().sessions().len(), CLIENT_SESSIONS_MAX);
    assert_eq!(told(&lone.send(client, &put(oldest, 1)).frames), first, "the table is full, and it is in it");
    open(&mut lone, client);
    assert_eq!(lone.node.keyspace().sessions().len(), CLIENT_SESSIONS_MAX);
    assert_eq!(told(&lone.send(client, &put(oldest, 1)).frames)[0].0, Status::SessionExpired);
    assert_eq!(told(&lone.send(client, &put(used, 1)).frames)[0].0, Status::Ok);
    lone.node.keyspace().invariants();
    // The same after a restart, from the log alone.
    let hash = lone.node.keyspace().state_hash();
    drop(lone);
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    assert_eq!(lone.node.keyspace().state_hash(), hash);
    let client = lone.connect();
    assert_eq!(told(&lone.send(client, &put(oldest, 2)).frames)[0].0, Status::SessionExpired);
}

#[test]
fn a_session_forgotten_while_its_write_is_under_way_takes_the_answer_with_it_and_not_the_write() {
    let (mut lone, follower, client, session) = led_with_session();
    let other = lone.connect();
    lone.send(client, &put(session, 1));
    ack(&mut lone, follower, 3);
    assert_eq!(told(&lone.said(client))[0].0, Status::Ok);
    let many = bytes(&Request::OpenSession).repeat(CLIENT_SESSIONS_MAX);
    lone.send(other, &many);
    // Decided when the session is known, applied when it is not.
    assert_eq!(lone.send(client, &put(session, 2)).frames, []);
    let lsn = lone.node.positions().0.0;
    ack(&mut lone, follower, lsn);
    assert_eq!(told(&lone.said(client)), [(Status::Ok, lsn, lone.node.term())]);
    assert_eq!(lone.node.keyspace().get(b"k"), Some(&2u64.to_be_bytes()[..]));
    assert_eq!(told(&lone.send(client, &put(session, 2)).frames)[0].0, Status::SessionExpired);
    lone.node.keyspace().invariants();
}

#[test]
fn a_whole_window_in_one_pipeline_can_be_asked_for_again() {
    let mut lone = LoneNode::new(RoleFlag::Leader);
    let client = lone.connect();
    let session = open(&mut lone, client);
    let window = CLIENT_SESSION_WINDOW as u64;
    for round in 0..3 {
        let numbers = round * window + 1..=(round + 1) * window;
        let pipeline: Vec<u8> = numbers.flat_map(|number| put(session, number)).collect();
        let first = told(&lone.send(client, &pipeline).frames);
        assert_eq!(first.len(), CLIENT_SESSION_WINDOW);
        assert!(first.iter().all(|(status, ..)| *status == Status::Ok), "{first:?}");
        let last = lone.node.positions();
        assert_eq!(told(&lone.send(client, &pipeline).frames), first);
        assert_eq!(lone.node.positions(), last);
    }
}
