//! A follower that is sent a snapshot, frame by frame: what belongs to the transfer under way, and what does not.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, Lsn, Term};
use kvstore::node::RoleFlag;
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::snapshot::SnapshotInfo;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{Open, OpenReply, SnapshotAck, SnapshotChunk, SnapshotOffer, SnapshotTag};

use crate::lone_node::{LEADER, LoneNode, hello};
use crate::mem_disk::{self, MemDisk};
use crate::snapshot_kit::{CLUSTER, entries, history, published};

const TERM: Term = Term { promotion: 1, start: 5 };

/// A snapshot and its bytes.
struct Sent {
    info: SnapshotInfo,
    raw: Vec<u8>,
    tag: SnapshotTag,
}

fn snapshot_of(count: usize, lsns: (u64, u64)) -> Sent {
    let disk = MemDisk::new();
    let info = published(&disk, &entries(count, 100), lsns);
    let mut raw = disk.raw(&info.name).expect("it was published");
    raw.truncate(info.bytes as usize);
    let tag = SnapshotTag { s: info.id.s, e: info.id.e, crc: info.crc };
    Sent { info, raw, tag }
}

impl Sent {
    fn offer(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (term, tag, info) = (TERM, self.tag, &self.info);
        SnapshotOffer { term, tag, bytes: info.bytes, entries: info.entries }.encode(&mut bytes);
        bytes
    }

    fn chunk(&self, term: Term, from: usize, to: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (tag, offset) = (self.tag, from as u64);
        SnapshotChunk { term, tag, offset, bytes: &self.raw[from..to] }.encode(&mut bytes);
        bytes
    }
}

/// A session of a leader whose log begins far above the follower's.
fn session(lone: &mut LoneNode) -> ConnId {
    opened(lone, Lsn(100), history()).0
}

/// A session of a leader with this log, and the answer.
fn opened(lone: &mut LoneNode, last_lsn: Lsn, history: TermHistory) -> (ConnId, OpenReply) {
    let conn = lone.connect();
    let mut bytes = Vec::new();
    let mut hello = hello("leader:1");
    (hello.cluster_id, hello.term) = (CLUSTER, TERM);
    hello.encode(false, &mut bytes);
    let open = Open {
        term: TERM,
        leader: LEADER,
        your_address: "lone:1".to_owned(),
        peers: vec!["lone:1".to_owned()],
        first_lsn: Lsn(61),
        last_lsn,
        last_chain: Chain(1),
        history,
        heard_lsn: Lsn::ZERO,
        elected: false,
    };
    open.encode(&mut bytes);
    let answer = lone.send(conn, &bytes);
    let Some((MessageType::OpenReply, body)) = answer.frames.last() else { panic!("{answer:?}") };
    (conn, OpenReply::decode(body).expect("a node sends whole frames"))
}

fn ack_of(lone: &mut LoneNode, conn: ConnId, bytes: &[u8]) -> SnapshotAck {
    let answer = lone.send(conn, bytes);
    let [(MessageType::SnapshotAck, body)] = &answer.frames[..] else { panic!("{answer:?}") };
    SnapshotAck::decode(body).expect("a node sends whole frames")
}

fn ignored(lone: &mut LoneNode, conn: ConnId, bytes: &[u8]) {
    let (before, hash) = (lone.node.counters.dead_session_frames, lone.node.keyspace().state_hash());
    let positions = lone.node.positions();
    let answer = lone.send(conn, bytes);
    assert!(answer.frames.is_empty() && answer.fenced.is_none() && !answer.closed, "{answer:?}");
    assert_eq!(lone.node.counters.dead_session_frames, before + 1, "it is counted");
    assert_eq!((lone.node.keyspace().state_hash(), lone.node.positions()), (hash, positions));
}

#[test]
fn an_old_transfers_chunk_changes_nothing_and_is_counted() {
    let (old, new) = (snapshot_of(50, (30, 44)), snapshot_of(80, (60, 70)));
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let first = session(&mut lone);
    assert_eq!(ack_of(&mut lone, first, &old.offer()).offset, 0);
    assert_eq!(ack_of(&mut lone, first, &old.chunk(TERM, 0, 5_000)).offset, 5_000);
    // Another session: the same file goes on, another one begins anew.
    let second = session(&mut lone);
    assert!(lone.is_closed(first));
    assert_eq!(ack_of(&mut lone, second, &old.offer()).offset, 5_000);
    assert_eq!(ack_of(&mut lone, second, &new.offer()).offset, 0);
    let earlier = Term { promotion: 1, start: 4 };
    ignored(&mut lone, second, &old.chunk(TERM, 5_000, 6_000));
    ignored(&mut lone, second, &old.chunk(TERM, 0, 1_000));
    ignored(&mut lone, second, &new.chunk(earlier, 0, 1_000));
    assert_eq!(ack_of(&mut lone, second, &new.chunk(TERM, 0, 9_000)).offset, 9_000);
    ignored(&mut lone, second, &old.chunk(TERM, 9_000, old.raw.len().max(9_000)));
    let last = ack_of(&mut lone, second, &new.chunk(TERM, 9_000, new.raw.len()));
    assert_eq!(last.installed, Some((Lsn(60), new.info.chain)));
    assert_eq!(lone.node.positions().0, Lsn(60));
    assert_eq!(lone.node.keyspace().len(), 80);
    // Over is over: neither transfer comes back.
    ignored(&mut lone, second, &new.chunk(TERM, new.raw.len(), new.raw.len()));
    ignored(&mut lone, second, &old.chunk(TERM, 0, 1_000));
}

/// What was deleted between the two is in the first one only.
#[test]
fn nothing_of_a_transfer_that_another_one_replaces_is_in_the_state() {
    let (old, new) = (snapshot_of(80, (30, 44)), snapshot_of(20, (60, 70)));
    for restart in [false, true] {
        let mut lone = LoneNode::new(RoleFlag::Follower);
        let mut conn = session(&mut lone);
        ack_of(&mut lone, conn, &old.offer());
        ack_of(&mut lone, conn, &old.chunk(TERM, 0, old.raw.len() - 1));
        assert_eq!(lone.node.keyspace().len(), 80, "its block is loaded, and its footer not here");
        if restart {
            conn = session(&mut lone);
        }
        ack_of(&mut lone, conn, &new.offer());
        let last = ack_of(&mut lone, conn, &new.chunk(TERM, 0, new.raw.len()));
        assert_eq!(last.installed, Some((Lsn(60), new.info.chain)));
        assert_eq!(lone.node.keyspace().len(), 20);
        assert_eq!(lone.node.keyspace().state_hash(), lone.node.keyspace().recompute_hash());
    }
}

#[test]
fn before_the_end_of_the_snapshot_nothing_is_read_and_nobody_promoted() {
    let new = snapshot_of(80, (60, 70));
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let conn = session(&mut lone);
    let client = lone.connect();
    let asked = |lone: &mut LoneNode, request: Request<'_>| {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        let answer = lone.send(client, &bytes);
        let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
        (reply.status, String::from_utf8_lossy(reply.payload).into_owned())
    };
    ack_of(&mut lone, conn, &new.offer());
    // The old state, empty as it is, is served until the first bytes are here.
    assert_eq!(asked(&mut lone, Request::Get { key: b"key1" }).0, Status::NotFound);
    ack_of(&mut lone, conn, &new.chunk(TERM, 0, 9_000));
    let (status, text) = asked(&mut lone, Request::Get { key: b"key1" });
    assert!(status == Status::Loading && text.contains('%'), "{text}");
    ack_of(&mut lone, conn, &new.chunk(TERM, 9_000, new.raw.len()));
    let (status, text) = asked(&mut lone, Request::Get { key: b"key1" });
    assert!(status == Status::Loading && text.contains("70"), "{text}");
    assert_eq!(asked(&mut lone, Request::Promote { force: true }).0, Status::Loading);
}

/// The snapshot ends at LSN 70 and the log at 60: what was loaded is a state of a leader's log only if that has the
/// records between. One that ends before, or began a term among them, may have others there.
#[test]
fn a_leader_whose_log_may_not_be_that_of_the_state_sends_everything_anew() {
    let parts_at = |first_lsn: u64| {
        let mut starts = history().starts().to_vec();
        let chain = Chain(first_lsn as u32);
        starts.push(TermStart { term: TERM, leader: LEADER, first_lsn: Lsn(first_lsn), chain });
        TermHistory::from_starts(starts).expect("they rise")
    };
    for (last, history, contradicts) in [
        (Lsn(69), history(), true),
        (Lsn(70), history(), false),
        (Lsn(100), parts_at(61), true),
        (Lsn(100), parts_at(70), true),
        (Lsn(100), parts_at(71), false),
    ] {
        let when = format!("a log up to LSN {last}, {history:?}");
        let new = snapshot_of(80, (60, 70));
        let disk = MemDisk::new();
        let mut lone = LoneNode::on(&disk, RoleFlag::Follower, &[]);
        let conn = session(&mut lone);
        ack_of(&mut lone, conn, &new.offer());
        ack_of(&mut lone, conn, &new.chunk(TERM, 0, new.raw.len()));
        assert_eq!((lone.node.positions().0, lone.node.keyspace().len()), (Lsn(60), 80));
        let (_, reply) = opened(&mut lone, last, history);
        if !contradicts {
            assert_eq!((reply.match_lsn, lone.node.keyspace().len()), (Lsn(60), 80), "{when}");
            continue;
        }
        // Everything is to come again, and until it has nobody reads the nothing that is here: not after a restart
        // either.
        assert_eq!((reply.match_lsn, reply.repair_until), (Lsn::ZERO, last.min(Lsn(70))), "{when}");
        for restart in [false, true] {
            if restart {
                drop(lone);
                disk.crash(mem_disk::Keep::None);
                lone = LoneNode::on(&disk, RoleFlag::Follower, &[]);
            }
            let seen = lone.node.observe();
            assert_eq!((seen.last, lone.node.keyspace().len()), (Lsn::ZERO, 0), "{when}");
            assert!(!seen.in_sync && seen.repair_until > Lsn::ZERO, "{when}: {seen:?}");
            let (client, mut bytes) = (lone.connect(), Vec::new());
            Request::Get { key: b"key1" }.encode(&mut bytes);
            let answer = lone.send(client, &bytes);
            let status = Reply::decode(&answer.frames[0].1).expect("a reply").status;
            assert!([Status::Loading, Status::Repairing].contains(&status), "{when}: {status:?}");
        }
    }
}

#[test]
fn chunks_out_of_order_and_offers_of_what_is_here_are_fenced() {
    let new = snapshot_of(80, (60, 70));
    let mut lone = LoneNode::new(RoleFlag::Follower);
    let conn = session(&mut lone);
    ack_of(&mut lone, conn, &new.offer());
    let answer = lone.send(conn, &new.chunk(TERM, 100, 200));
    assert!(answer.fenced.is_some_and(|why| why.contains("byte 100")));
    let conn = session(&mut lone);
    ack_of(&mut lone, conn, &new.offer());
    let last = ack_of(&mut lone, conn, &new.chunk(TERM, 0, new.raw.len()));
    assert!(last.installed.is_some());
    let answer = lone.send(conn, &new.offer());
    assert!(answer.fenced.is_some_and(|why| why.contains("ends at LSN 60")));
}
