//! An elected leader and its own disk, which is one vote among equals. One real node on a disk in memory whose flushes
//! end when the test says so; the test is the other two members, elects it, and acknowledges for them.

use kvstore::conn::ConnId;
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::meta::{Meta, MetaStore, StoredRole};
use kvstore::node::{FlushMode, NodeConfig, RoleFlag};
use kvstore::replication::commit::AckPolicy;
use kvstore::replication::election::ballot::{Ballot, BallotReply};
use kvstore::replication::members::{Member, Members, Membership};
use kvstore::wire::client::{ReadMode, Reply, Request, Status};
use kvstore::wire::peer::{Ack, AppendEntries, Hello, Open, OpenReply, Vote, VoteReply};
use kvstore::wire::{MessageType, Record};

use crate::lone_node::{LoneNode, VirtualClock, config, hello};
use crate::mem_disk::{Keep, MemDisk};

/// What a node said on a connection.
type Frames = Vec<(MessageType, Vec<u8>)>;

const OTHERS: [(u8, &str); 2] = [(2, "b:1"), (3, "c:1")];

fn id(number: u8) -> NodeId {
    NodeId([number; 16])
}

fn bytes_of(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

/// The directory of a member of three that has never led.
fn member_disk() -> MemDisk {
    let mut disk = MemDisk::new();
    let all = [(1, "lone:1"), OTHERS[0], OTHERS[1]];
    let member = |(number, address): (u8, &str)| Member { node_id: id(number), address: address.to_owned() };
    let meta = Meta {
        node_id: id(1),
        cluster_id: ClusterId([0xcc; 16]),
        role: StoredRole::Elected,
        members: Membership::settled(Members::new(all.map(member).to_vec()).expect("they differ"), Lsn::ZERO),
        log_generation: 1,
        ..Meta::default()
    };
    MetaStore::create(&mut disk, meta).expect("the disk takes all");
    disk.crash(Keep::None);
    disk
}

/// Another member, whom the test plays.
struct Follower {
    conn: ConnId,
    /// The last LSN and the last round that came, and the highest commit LSN that was told.
    last: u64,
    round: u64,
    commit: u64,
}

impl Follower {
    /// Takes what the leader has sent. True if there was something.
    fn take(&mut self, lone: &mut LoneNode) -> bool {
        let frames = lone.said(self.conn);
        self.take_frames(&frames)
    }

    fn take_frames(&mut self, frames: &[(MessageType, Vec<u8>)]) -> bool {
        for (message_type, body) in frames {
            assert_eq!(*message_type, MessageType::AppendEntries);
            let last = &mut self.last;
            let take = |record: Record<'_>, _: &[u8]| {
                assert_eq!(record.lsn.0, *last + 1, "no gap");
                *last = record.lsn.0;
                Ok(())
            };
            let frame = AppendEntries::decode(body, take).expect("a frame");
            (self.round, self.commit) = (frame.tail.round, frame.tail.commit_lsn.0);
        }
        !frames.is_empty()
    }

    /// All that came is on its disk.
    fn ack(&mut self, lone: &mut LoneNode) {
        self.take(lone);
        let ack = Ack { last_lsn: Lsn(self.last), round: self.round, ..Ack::default() };
        let _answer = lone.send(self.conn, &bytes_of(|out| ack.encode(out)));
    }
}

struct Cluster {
    disk: MemDisk,
    lone: LoneNode,
    followers: Vec<Follower>,
    client: ConnId,
}

fn start(disk: &MemDisk, flush: FlushMode) -> LoneNode {
    let peers = OTHERS.map(|(_, address)| address);
    let config = NodeConfig { flush, ack: AckPolicy::Majority, ..config(RoleFlag::Auto, &peers) };
    LoneNode::open(Box::new(disk.clone()), VirtualClock::at_ms(1), config).expect("the disk is well")
}

/// The node is elected with the votes of the others, has sessions with both, and its TERM record is committed.
fn elected(flush: FlushMode) -> Cluster {
    let disk = member_disk();
    let mut lone = start(&disk, flush);
    lone.pass_ms(800);
    for (conn, question) in greeted(&mut lone) {
        vote(&mut lone, conn, question);
    }
    assert_eq!(lone.node.role_name(), "leader");
    lone.pass_ms(1);
    let open = |(conn, opening): (ConnId, Frames)| {
        let open = Open::decode(&opening[1].1).expect("an OPEN");
        let none = (Lsn::ZERO, Chain::ZERO);
        let reply = OpenReply {
            term: open.term,
            match_lsn: none.0,
            match_chain: none.1,
            commit_lsn: none.0,
            cut_from: none.0,
            repair_until: none.0,
        };
        (conn, reply)
    };
    let opened: Vec<(ConnId, OpenReply)> = greeted(&mut lone).into_iter().map(open).collect();
    let mut followers = Vec::new();
    for (conn, reply) in opened {
        let answer = lone.send(conn, &bytes_of(|out| reply.encode(out)));
        let mut follower = Follower { conn, last: 0, round: 0, commit: 0 };
        follower.take_frames(&answer.frames);
        followers.push(follower);
    }
    lone.pass_ms(1);
    followers.iter_mut().for_each(|follower| follower.ack(&mut lone));
    assert_eq!(lone.node.positions(), (Lsn(1), Lsn(1), Lsn(1)), "the TERM record is committed");
    let client = lone.connect();
    Cluster { disk, lone, followers, client }
}

/// Answers the hellos on whatever was dialled: for each connection the frames that came then, and before.
fn greeted(lone: &mut LoneNode) -> Vec<(ConnId, Frames)> {
    let dialled = lone.take_dialled();
    assert_eq!(dialled.len(), 2, "{dialled:?}");
    let greet = |(address, conn): (String, ConnId)| {
        let (number, _) =
            OTHERS.into_iter().find(|(_, known)| *known == address).expect("a member's address");
        let hello = Hello { node_id: id(number), term: Term::ZERO, ..hello(&address) };
        (conn, lone.send(conn, &bytes_of(|out| hello.encode(true, out))).frames)
    };
    dialled.into_iter().map(greet).collect()
}

/// Says yes to whatever is asked, until nothing is.
fn vote(lone: &mut LoneNode, conn: ConnId, mut said: Frames) {
    said.extend(lone.said(conn));
    while let Some((MessageType::Vote, body)) = said.last().filter(|_| !lone.is_closed(conn)) {
        let Ballot { phase, term: asked_term, .. } = Vote::decode(body).expect("a VOTE").ballot;
        let (term, commit_lsn) = (Term::ZERO, Lsn::ZERO);
        let reply = BallotReply { phase, asked_term, verdict: Ok(()), term, commit_lsn, refuses_for_ms: 0 };
        said = lone.send(conn, &bytes_of(|out| VoteReply(reply).encode(out))).frames;
    }
}

impl Cluster {
    fn put(&mut self, value: &[u8]) {
        let request = bytes_of(|out| Request::Put { key: b"k", value }.encode(out));
        let answer = self.lone.send(self.client, &request);
        assert_eq!(answer.frames, [], "nobody has acknowledged it");
    }

    /// LSNs of the writes that were answered since this was asked last.
    fn answered(&mut self) -> Vec<u64> {
        let lsn = |(_, body): &(MessageType, Vec<u8>)| {
            let reply = Reply::decode(body).expect("a reply");
            assert_eq!(reply.status, Status::Ok);
            reply.lsn.0
        };
        self.lone.said(self.client).iter().map(lsn).collect()
    }

    fn read(&mut self) -> (Lsn, Vec<u8>) {
        let request = bytes_of(|out| Request::GetWith { key: b"k", reads: ReadMode::Lease }.encode(out));
        let answer = self.lone.send(self.client, &request);
        let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
        (reply.lsn, reply.payload.to_vec())
    }

    fn ack_all(&mut self) {
        let Cluster { lone, followers, .. } = self;
        followers.iter_mut().for_each(|follower| follower.ack(lone));
    }

    fn durable(&self) -> u64 {
        self.lone.node.observe().durable.0
    }
}

#[test]
fn two_followers_commit_past_the_leaders_own_disk() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.disk.hold_flushes(true);
    cluster.put(b"1");
    assert!(cluster.disk.flush_is_pending());
    cluster.followers[0].ack(&mut cluster.lone);
    assert_eq!(cluster.answered(), [0; 0], "one disk of three");
    cluster.followers[1].ack(&mut cluster.lone);
    assert_eq!((cluster.answered(), cluster.durable()), (vec![2], 1), "answered, and not on the own disk");
    assert_eq!(cluster.read(), (Lsn(2), b"1".to_vec()));
}

#[test]
fn the_next_batches_do_not_wait_for_a_disk_that_is_slower_than_a_majority() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.disk.hold_flushes(true);
    cluster.put(b"1");
    cluster.ack_all();
    assert_eq!(cluster.answered(), [2]);
    for lsn in 3..=20 {
        cluster.put(b"n");
        assert!(cluster.followers[0].take(&mut cluster.lone), "LSN {lsn} has left");
        cluster.ack_all();
        assert_eq!((cluster.answered(), cluster.durable()), (vec![lsn], 1));
    }
    let syncs = cluster.lone.node.counters.syncs;
    cluster.disk.complete_flush();
    cluster.lone.wake().expect("the disk is well");
    assert_eq!(cluster.durable(), 2, "what it was asked for");
    cluster.disk.complete_flush();
    cluster.lone.wake().expect("the disk is well");
    assert_eq!(
        (cluster.durable(), cluster.lone.node.counters.syncs),
        (20, syncs + 2),
        "one flush for all the rest"
    );
}

#[test]
fn while_the_own_disk_is_needed_the_next_batch_gathers() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.disk.hold_flushes(true);
    cluster.put(b"1");
    cluster.followers[0].ack(&mut cluster.lone);
    cluster.put(b"2");
    cluster.followers.iter_mut().skip(1).for_each(|follower| {
        follower.take(&mut cluster.lone);
    });
    assert!(
        !cluster.followers[0].take(&mut cluster.lone),
        "it waits for the flush, or for the other follower"
    );
    cluster.disk.complete_flush();
    cluster.lone.wake().expect("the disk is well");
    assert_eq!(cluster.answered(), [2]);
    assert!(cluster.followers[0].take(&mut cluster.lone), "and leaves with its own");
}

#[test]
fn what_was_answered_and_is_not_on_the_own_disk_is_claimed_nowhere_after_a_crash() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.put(b"1");
    cluster.ack_all();
    assert_eq!((cluster.answered(), cluster.durable()), (vec![2], 2));
    cluster.disk.hold_flushes(true);
    for lsn in 3..=10 {
        cluster.put(b"n");
        cluster.ack_all();
        assert_eq!((cluster.answered(), cluster.durable()), (vec![lsn], 2));
    }
    assert_eq!(cluster.followers.iter().map(|follower| follower.last).collect::<Vec<_>>(), [10, 10]);
    let Cluster { disk, lone, .. } = cluster;
    drop(lone);
    for keep in [Keep::None, Keep::All, Keep::Random(5)] {
        let disk = disk.fork();
        disk.crash(keep);
        let lone = start(&disk, FlushMode::Beside);
        let (last, commit, applied) = lone.node.positions();
        assert!(
            (2..=10).contains(&last.0) && applied <= commit && commit <= last,
            "{last} {commit} {applied}"
        );
    }
}

#[test]
fn a_snapshot_of_what_the_own_disk_does_not_have_gets_its_name_when_it_has() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.disk.hold_flushes(true);
    for lsn in 2..=4 {
        cluster.put(b"n");
        cluster.ack_all();
        assert_eq!((cluster.answered(), cluster.durable()), (vec![lsn], 1));
    }
    let operator = cluster.lone.connect();
    cluster.lone.send(operator, &bytes_of(|out| Request::Snapshot { wait: true }.encode(out)));
    let named = |disk: &MemDisk| disk.names().iter().any(|name| name.ends_with(".kvsnap"));
    for _ in 0..12 {
        // The flush is younger than the election timeout, and the followers hear the leader.
        cluster.lone.pass_ms(40);
        cluster.ack_all();
    }
    assert!(!named(&cluster.disk), "{:?}", cluster.disk.names());
    cluster.disk.hold_flushes(false);
    cluster.disk.complete_flush();
    for _ in 0..12 {
        cluster.lone.pass_ms(40);
        cluster.ack_all();
    }
    assert!(named(&cluster.disk), "{:?}", cluster.disk.names());
}

#[test]
fn a_leader_that_steps_down_before_its_own_disk_has_what_it_applied_keeps_that() {
    let mut cluster = elected(FlushMode::Beside);
    cluster.disk.hold_flushes(true);
    cluster.put(b"1");
    cluster.ack_all();
    assert_eq!((cluster.answered(), cluster.durable()), (vec![2], 1));
    cluster.lone.pass_ms(600);
    assert_eq!(cluster.lone.node.role_name(), "follower");
    assert_eq!(cluster.lone.node.positions(), (Lsn(2), Lsn(2), Lsn(2)));
    assert_eq!(cluster.lone.node.keyspace().get(b"k"), Some(&b"1"[..]));
    cluster.disk.complete_flush();
    cluster.lone.wake().expect("the disk is well");
    assert_eq!((cluster.durable(), cluster.lone.node.positions().2), (2, Lsn(2)));
}

#[test]
fn a_commit_that_no_record_takes_along_is_told_soon() {
    let mut cluster = elected(FlushMode::Inline);
    cluster.put(b"1");
    cluster.followers[0].ack(&mut cluster.lone);
    assert_eq!(cluster.answered(), [2]);
    assert!(!cluster.followers[0].take(&mut cluster.lone), "no frame for each write");
    let next = cluster.lone.node.next_deadline().expect("it is to be told");
    cluster.lone.pass_ms(10);
    assert!(cluster.followers[0].take(&mut cluster.lone));
    assert_eq!(cluster.followers[0].commit, 2);
    assert!(next.0 <= 13_000_000 + 800_000_000, "{next:?}");
    cluster.lone.pass_ms(20);
    assert!(!cluster.followers[0].take(&mut cluster.lone), "once");
}

#[test]
fn under_load_commits_are_told_with_the_records_alone() {
    let mut cluster = elected(FlushMode::Inline);
    for lsn in 2..=50 {
        cluster.put(b"n");
        cluster.lone.pass_ms(1);
        let frames = cluster.lone.said(cluster.followers[0].conn);
        assert_eq!(frames.len(), 1, "LSN {lsn}: one frame for one write");
        let mut last = 0;
        let frame = AppendEntries::decode(&frames[0].1, |record, _| {
            last = record.lsn.0;
            Ok(())
        });
        let round = frame.expect("a frame").tail.round;
        let ack = Ack { last_lsn: Lsn(last), round, ..Ack::default() };
        let _answer = cluster.lone.send(cluster.followers[0].conn, &bytes_of(|out| ack.encode(out)));
        assert_eq!(cluster.answered(), [lsn]);
    }
}
