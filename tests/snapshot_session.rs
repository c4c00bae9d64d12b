//! A follower that is sent a snapshot, frame by frame: what belongs to the transfer under way, and what does not.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, Lsn, Term};
use kvstore::node::RoleFlag;
use kvstore::snapshot::SnapshotInfo;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{Open, SnapshotAck, SnapshotChunk, SnapshotOffer, SnapshotTag};

#[path = "support/lone_node.rs"]
mod lone_node;
#[path = "support/mem_disk.rs"]
mod mem_disk;
#[path = "support/snapshot_kit.rs"]
mod snapshot_kit;
use lone_node::{LEADER, LoneNode, hello};
use mem_disk::MemDisk;
use snapshot_kit::{CLUSTER, entries, history, published};

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
        last_lsn: Lsn(100),
        last_chain: Chain(1),
        history: history(),
        heard_lsn: Lsn::ZERO,
    };
    open.encode(&mut bytes);
    let answer = lone.send(conn, &bytes);
    assert_eq!(answer.frames.last().map(|(kind, _)| *kind), Some(MessageType::OpenReply), "{answer:?}");
    conn
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
