//! The flush beside the loop, on a disk in memory whose flushes end when the test says so: what goes on meanwhile,
//! what waits, and what its end releases.

use kvstore::conn::ConnId;
use kvstore::ids::{Lsn, NodeId, Term};
use kvstore::node::{FatalReason, FlushMode, RoleFlag};
use kvstore::replication::history::{TermHistory, TermStart};
use kvstore::time::Time;
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{
    Ack, AppendEntries, AppendTail, Fence, FenceReply, Hello, Open, OpenReply, StateNews,
};
use kvstore::wire::{Effect, MessageType, Record};

use crate::lone_node::{Answer, LEADER, LoneNode, hello};
use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};

const TERM: Term = Term { promotion: 0, start: 3 };

fn bytes_of(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

fn put(lone: &mut LoneNode, client: ConnId, value: &[u8]) -> Answer {
    lone.send(client, &bytes_of(|out| Request::Put { key: b"k", value }.encode(out)))
}

fn get(lone: &mut LoneNode, client: ConnId) -> (Status, Lsn) {
    reply(&lone.send(client, &bytes_of(|out| Request::Get { key: b"k" }.encode(out))).frames)
}

fn reply(frames: &[(MessageType, Vec<u8>)]) -> (Status, Lsn) {
    assert_eq!(frames.len(), 1, "one reply");
    let reply = Reply::decode(&frames[0].1).expect("a reply");
    (reply.status, reply.lsn)
}

/// A leader without followers, whose next flush is pending until the test ends it.
fn leader(mode: FlushMode) -> (MemDisk, LoneNode) {
    let disk = MemDisk::new();
    let lone = LoneNode::flushing(mode, &disk, RoleFlag::Leader, &[]);
    disk.hold_flushes(true);
    (disk, lone)
}

fn end_flush(disk: &MemDisk, lone: &mut LoneNode) {
    disk.complete_flush();
    lone.wake().expect("the disk is well");
}

#[test]
fn reads_are_served_and_the_next_batch_gathers_while_a_flush_runs() {
    let (disk, mut lone) = leader(FlushMode::Beside);
    let (first, second, third, reader) = (lone.connect(), lone.connect(), lone.connect(), lone.connect());
    assert_eq!(put(&mut lone, first, b"1").frames, [], "it is not durable");
    assert!(disk.flush_is_pending());
    assert_eq!(get(&mut lone, reader), (Status::NotFound, Lsn(1)), "nor shown");
    assert_eq!(put(&mut lone, second, b"2").frames, []);
    assert_eq!(put(&mut lone, third, b"3").frames, []);
    let synced = lone.node.counters.syncs;
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(first)), (Status::Ok, Lsn(2)));
    assert_eq!((lone.said(second), lone.said(third)), (vec![], vec![]));
    assert_eq!(get(&mut lone, reader), (Status::Ok, Lsn(2)));
    assert!(disk.flush_is_pending(), "what had gathered is flushed next");
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(second)), (Status::Ok, Lsn(3)));
    assert_eq!(reply(&lone.said(third)), (Status::Ok, Lsn(4)));
    assert_eq!(lone.node.counters.syncs, synced + 2, "one flush for both");
    // But to look, later, whether the log has grown enough for a snapshot.
    assert!(
        lone.node.next_deadline().is_none_or(|at| at > Time::default().after_ms(1)),
        "nothing is due now"
    );
}

#[test]
fn auto_goes_beside_the_loop_while_somebody_else_reads() {
    let (disk, mut lone) = leader(FlushMode::Auto);
    let (writer, reader) = (lone.connect(), lone.connect());
    assert_eq!(reply(&put(&mut lone, writer, b"1").frames).0, Status::Ok, "nobody reads: inline");
    assert_eq!(get(&mut lone, writer).0, Status::Ok);
    assert_eq!(
        reply(&put(&mut lone, writer, b"2").frames).0,
        Status::Ok,
        "who writes has read itself: inline"
    );
    assert_eq!(get(&mut lone, reader).0, Status::Ok);
    assert_eq!(put(&mut lone, writer, b"3").frames, [], "beside");
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(writer)).0, Status::Ok);
    lone.pass_ms(2_000);
    assert_eq!(reply(&put(&mut lone, writer, b"4").frames).0, Status::Ok, "the reader has gone: inline");
}

#[test]
fn a_power_loss_under_a_flush_takes_what_was_not_acknowledged() {
    let (disk, mut lone) = leader(FlushMode::Beside);
    let client = lone.connect();
    let _ = put(&mut lone, client, b"acknowledged");
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(client)), (Status::Ok, Lsn(2)));
    assert_eq!(put(&mut lone, client, b"pending").frames, []);
    disk.crash(Keep::None);
    disk.hold_flushes(false);
    let again = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    assert_eq!(again.node.keyspace().get(b"k"), Some(&b"acknowledged"[..]));
}

#[test]
fn a_failed_flush_ends_the_process_and_answers_nobody() {
    let (disk, mut lone) = leader(FlushMode::Beside);
    let client = lone.connect();
    disk.fail(OpKind::Sync, 0, EIO);
    assert_eq!(put(&mut lone, client, b"v").frames, []);
    disk.complete_flush();
    let reason = lone.wake().expect_err("the flush failed");
    assert!(matches!(&reason, FatalReason::Wal(error) if error.op == "sync"), "{reason}");
    assert_eq!((reason.exit_code(), lone.said(client)), (13, vec![]));
}

#[test]
fn a_segment_begins_when_the_flush_under_way_has_ended() {
    let (disk, mut lone) = leader(FlushMode::Beside);
    let (first, second) = (lone.connect(), lone.connect());
    let half = vec![7; 40_000];
    assert_eq!(put(&mut lone, first, &half).frames, []);
    // It has no room beside the other in a segment of 64 KiB. The one before is released in the same turn.
    assert_eq!(put(&mut lone, second, &half).frames, []);
    assert_eq!(reply(&lone.said(first)), (Status::Ok, Lsn(2)));
    assert_eq!(disk.names().iter().filter(|name| name.ends_with(".seg")).count(), 2);
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(second)), (Status::Ok, Lsn(3)));
}

#[test]
fn a_node_that_ends_waits_for_its_flush_until_its_deadline() {
    for hangs in [false, true] {
        let (disk, mut lone) = leader(FlushMode::Beside);
        let client = lone.connect();
        let _ = put(&mut lone, client, b"v");
        lone.node.begin_shutdown();
        assert!(!lone.node.may_end());
        match hangs {
            false => end_flush(&disk, &mut lone),
            true => lone.pass_ms(5_000),
        }
        assert!(lone.node.may_end());
        assert_eq!(lone.said(client).len(), usize::from(!hangs));
        lone.node.close_log().expect("without its mark at worst");
    }
}

/// A leader's log of three records: its term and two puts, as frames.
fn log_of_three() -> (TermHistory, Vec<(Lsn, Vec<u8>)>) {
    let (mut history, mut chain, mut frames) = (TermHistory::default(), Default::default(), Vec::new());
    for lsn in 1..=3 {
        let effect = match lsn {
            1 => Effect::Term { term: TERM, leader: LEADER },
            _ => Effect::Put { key: b"k", value: b"v" },
        };
        let record = bytes_of(|out| Record { lsn: Lsn(lsn), effect }.encode(out));
        chain = kvstore::ids::Chain::extend(chain, &record);
        if lsn == 1 {
            history.push(TermStart { term: TERM, leader: LEADER, first_lsn: Lsn(1), chain });
        }
        let tail = AppendTail {
            in_sync: true,
            commit_lsn: Lsn(lsn),
            round: lsn,
            chain,
            state: StateNews::default(),
        };
        let frame = AppendEntries { record_count: 1, records: &record, tail };
        frames.push((Lsn(lsn), bytes_of(|out| frame.encode(out))));
    }
    (history, frames)
}

/// A session of this follower with a leader, who has these terms.
fn session(lone: &mut LoneNode, history: &TermHistory) -> (ConnId, Lsn) {
    let conn = lone.connect();
    let greeting = Hello { term: TERM, ..hello("leader:1") };
    let _ = lone.send(conn, &bytes_of(|out| greeting.encode(false, out)));
    let open = Open {
        term: TERM,
        leader: LEADER,
        your_address: "lone:1".to_owned(),
        peers: vec!["lone:1".to_owned()],
        first_lsn: Lsn(1),
        last_lsn: Lsn(3),
        last_chain: Default::default(),
        history: history.clone(),
        heard_lsn: Lsn::ZERO,
        elected: false,
    };
    let answer = lone.send(conn, &bytes_of(|out| open.encode(out)));
    (conn, OpenReply::decode(&answer.frames[0].1).expect("an OPEN_REPLY").match_lsn)
}

fn applied(lone: &LoneNode) -> Lsn {
    lone.node.positions().2
}

fn acks(frames: &[(MessageType, Vec<u8>)]) -> Vec<(Lsn, u64)> {
    let ack = |(_, body): &(MessageType, Vec<u8>)| Ack::decode(body).expect("an ACK");
    frames.iter().map(ack).map(|ack| (ack.last_lsn, ack.round)).collect()
}

#[test]
fn a_follower_acknowledges_each_flush_and_nothing_that_waits_for_the_next() {
    let (disk, (history, frames)) = (MemDisk::new(), log_of_three());
    let mut lone = LoneNode::flushing(FlushMode::Beside, &disk, RoleFlag::Follower, &[]);
    let (conn, _) = session(&mut lone, &history);
    disk.hold_flushes(true);
    for (lsn, frame) in &frames {
        assert_eq!(lone.send(conn, frame).frames, [], "LSN {lsn} is not durable");
    }
    assert_eq!(applied(&lone), Lsn(0));
    end_flush(&disk, &mut lone);
    assert_eq!(acks(&lone.said(conn)), [(Lsn(1), 3)]);
    assert_eq!(applied(&lone), Lsn(1), "it shows what it has told");
    end_flush(&disk, &mut lone);
    assert_eq!(acks(&lone.said(conn)), [(Lsn(3), 3)]);
}

#[test]
fn what_must_know_the_end_of_the_durable_log_waits_for_the_flush() {
    let (disk, (history, frames)) = (MemDisk::new(), log_of_three());
    let mut lone = LoneNode::flushing(FlushMode::Beside, &disk, RoleFlag::Follower, &[]);
    let (conn, _) = session(&mut lone, &history);
    disk.hold_flushes(true);
    frames.iter().for_each(|(_, frame)| drop(lone.send(conn, frame)));
    // One record is being flushed, two have gathered behind it.
    let candidate = lone.connect();
    let greeting = Hello { node_id: NodeId([9; 16]), term: TERM, ..hello("candidate:1") };
    let _ = lone.send(candidate, &bytes_of(|out| greeting.encode(false, out)));
    let probe =
        Fence { probe: true, term: TERM, candidate: NodeId([9; 16]), address: "candidate:1".to_owned() };
    let answer = lone.send(candidate, &bytes_of(|out| probe.encode(out)));
    let told = FenceReply::decode(&answer.frames.last().expect("an answer").1).expect("a FENCE_REPLY");
    assert_eq!(told.last_lsn, Lsn(3));
    assert!(!disk.flush_is_pending() && disk.unsynced_sectors().is_empty(), "it is durable");
}

/// A leader with one follower, both of whose first records are acknowledged; the follower's connection.
fn leader_with_follower(disk: &MemDisk) -> (LoneNode, ConnId) {
    let mut lone = LoneNode::flushing(FlushMode::Beside, disk, RoleFlag::Leader, &["follower:1"]);
    let conn = follow(&mut lone);
    lone.pass_ms(1);
    let _ = lone.send(conn, &bytes_of(|out| Ack { last_lsn: Lsn(1), ..Ack::default() }.encode(out)));
    assert_eq!(lone.node.positions(), (Lsn(1), Lsn(1), Lsn(1)));
    let _ = lone.said(conn);
    (lone, conn)
}

/// The follower that the leader dials opens a session, with nothing in its log.
fn follow(lone: &mut LoneNode) -> ConnId {
    let (_, conn) = lone.take_dialled().pop().expect("it dials at once");
    let theirs = Hello::decode(&lone.said(conn)[0].1).expect("a HELLO");
    let greeting = Hello {
        cluster_id: theirs.cluster_id,
        node_id: NodeId([5; 16]),
        term: Term::ZERO,
        leader: NodeId::NONE,
        leader_address: String::new(),
        ..hello("follower:1")
    };
    let answer = lone.send(conn, &bytes_of(|out| greeting.encode(true, out)));
    let open = Open::decode(&answer.frames[0].1).expect("an OPEN");
    let reply = OpenReply {
        term: open.term,
        match_lsn: Lsn::ZERO,
        match_chain: Default::default(),
        commit_lsn: Lsn::ZERO,
        cut_from: Lsn::ZERO,
        repair_until: Lsn::ZERO,
    };
    let _ = lone.send(conn, &bytes_of(|out| reply.encode(out)));
    conn
}

#[test]
fn auto_goes_beside_the_loop_while_a_follower_catches_up() {
    let disk = MemDisk::new();
    let mut lone = LoneNode::flushing(FlushMode::Auto, &disk, RoleFlag::Leader, &["follower:1"]);
    let client = lone.connect();
    for _ in 0..3 {
        let _ = put(&mut lone, client, &[7; 1 << 20]);
    }
    disk.hold_flushes(true);
    assert!(!disk.flush_is_pending(), "nobody catches up: inline");
    let conn = follow(&mut lone);
    let _ = put(&mut lone, client, b"1");
    assert!(disk.flush_is_pending(), "there is more to be sent meanwhile: beside");
    end_flush(&disk, &mut lone);
    let frame_counts = (0..8).map(|_| {
        lone.pass_ms(1);
        sent(&lone.said(conn)).len()
    });
    assert!(frame_counts.sum::<usize>() > 0, "frames of the log");
    let synced = lone.node.counters.syncs;
    let _ = put(&mut lone, client, b"2");
    assert!(!disk.flush_is_pending(), "it has everything: inline");
    assert_eq!(lone.node.counters.syncs, synced + 1);
}

/// What a follower is sent in these frames: how many records each has.
fn sent(frames: &[(MessageType, Vec<u8>)]) -> Vec<u32> {
    let count = |(_, body): &(MessageType, Vec<u8>)| {
        AppendEntries::decode(body, |_, _| Ok(())).expect("an APPEND_ENTRIES").record_count
    };
    frames.iter().map(count).collect()
}

fn status_of(lone: &mut LoneNode) -> serde_json::Value {
    let client = lone.connect();
    let answer = lone.send(client, &bytes_of(|out| Request::Status.encode(out)));
    serde_json::from_slice(Reply::decode(&answer.frames[0].1).expect("a reply").payload).expect("JSON")
}

#[test]
fn a_flush_that_hangs_stops_the_heartbeats_and_nothing_else_until_then() {
    let disk = MemDisk::new();
    let (mut lone, conn) = leader_with_follower(&disk);
    let client = lone.connect();
    disk.hold_flushes(true);
    let _ = put(&mut lone, client, b"1");
    assert_eq!(sent(&lone.said(conn)), [1], "sent when its flush begins");
    let _ = put(&mut lone, client, b"2");
    assert_eq!(sent(&lone.said(conn)).len(), 0, "it gathers");
    let _ = lone.send(conn, &bytes_of(|out| Ack { last_lsn: Lsn(2), ..Ack::default() }.encode(out)));
    for _ in 0..15 {
        lone.pass_ms(100);
        assert_eq!(sent(&lone.said(conn)), [0], "a heartbeat goes on in front of what waits");
    }
    assert_eq!(status_of(&mut lone)["flush_stalled_ms"], serde_json::Value::Null);
    lone.pass_ms(600);
    let _ = lone.said(conn);
    for _ in 0..5 {
        lone.pass_ms(100);
        assert_eq!(sent(&lone.said(conn)).len(), 0, "who cannot write is not well");
    }
    let status = status_of(&mut lone);
    assert!(status["flush_stalled_ms"].as_u64().is_some_and(|ms| ms >= 2_000), "{status}");
    assert_eq!(status["in_sync_nodes"], 2, "nor is the follower blamed for it");
    let late = lone.node.next_deadline().expect("the follower may fall silent");
    assert!(late > kvstore::time::Time(0) && lone.said(client).is_empty());
    end_flush(&disk, &mut lone);
    assert_eq!(reply(&lone.said(client)), (Status::Ok, Lsn(2)));
    assert_eq!(sent(&lone.said(conn)), [1], "what had gathered");
    assert_eq!(status_of(&mut lone)["flush_stalled_ms"], serde_json::Value::Null);
}

/// A member that is alone, elected, and has a client.
fn elected() -> (MemDisk, LoneNode) {
    let disk = MemDisk::new();
    let mut lone = LoneNode::flushing(FlushMode::Beside, &disk, RoleFlag::Auto, &[]);
    (0..100).for_each(|_| lone.pass_ms(10));
    assert_eq!(lone.node.role_name(), "leader");
    (disk, lone)
}

#[test]
fn an_elected_leader_whose_flush_hangs_for_an_election_timeout_steps_down_without_waiting_for_it() {
    let (disk, mut lone) = elected();
    let (writer, other) = (lone.connect(), lone.connect());
    disk.hold_flushes(true);
    assert_eq!(put(&mut lone, writer, b"1").frames, []);
    lone.pass_ms(499);
    assert_eq!(lone.node.role_name(), "leader", "an odd stall costs nobody leadership");
    lone.pass_ms(2);
    assert_eq!(lone.node.role_name(), "follower");
    assert_eq!(reply(&lone.said(writer)).0, Status::OutcomeUnknown, "it may be on the disk or not");
    assert!(disk.flush_is_pending(), "nobody has waited for it");
    assert_eq!(reply(&put(&mut lone, other, b"2").frames).0, Status::NotLeader);
    (0..300).for_each(|_| lone.pass_ms(10));
    assert_eq!(lone.node.role_name(), "follower", "nor does one campaign whose disk hangs");
    disk.hold_flushes(false);
    end_flush(&disk, &mut lone);
    (0..100).for_each(|_| lone.pass_ms(10));
    assert_eq!(lone.node.role_name(), "leader");
    assert_eq!(get(&mut lone, other).0, Status::Ok, "what was on the disk is in the log");
}
