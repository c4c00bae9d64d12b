//! A running node on a disk that takes a write in many small pieces, is full, stands still, is slower than others, or
//! loses its power right after a restart.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use kvstore::conn::ConnId;
use kvstore::disk::{Disk, FileId};
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::node::{NodeConfig, RoleFlag};
use kvstore::replication::commit::AckPolicy;
use kvstore::time::Clock;
use kvstore::wal::{Durability, WalConfig};
use kvstore::wire::MessageType;
use kvstore::wire::client::{Inspect, Reply, Request, Status};
use kvstore::wire::peer::{Ack, AckDurations, Hello, Open, OpenReply};

use crate::leader_log::{Log, acked, bytes_of, session};
use crate::lone_node::{self, LoneNode, VirtualClock, config, hello};
use crate::mem_disk::{Keep, MemDisk, OpKind};

#[test]
fn a_node_whose_disk_takes_a_few_bytes_at_a_time_acknowledges_only_whole_records() {
    for size_max in [1, 7, 100, 511] {
        let disk = MemDisk::new();
        let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
        let client = lone.connect();
        disk.set_write_size_max(Some(size_max));
        let writes = || disk.op_log().iter().filter(|op| op.kind == OpKind::Write).count();
        let mut values = Vec::new();
        for number in 0..5_u8 {
            let (before, value) = (writes(), vec![number; 1_000]);
            let mut bytes = Vec::new();
            Request::Put { key: &[number], value: &value }.encode(&mut bytes);
            let answer = lone.send(client, &bytes);
            assert_eq!(answer.frames[0].0, MessageType::Reply);
            assert_eq!(Reply::decode(&answer.frames[0].1).expect("a reply").status, Status::Ok);
            assert!(writes() - before >= 1_000 / size_max, "it went on where each write stopped");
            values.push(value);
        }
        let last = lone.node.positions().0;
        // Every acknowledged record is durable whole: the power fails and takes all that was not synced.
        disk.crash(Keep::None);
        disk.set_write_size_max(None);
        let lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
        assert_eq!(lone.node.positions().0, Lsn(last.0 + 1), "the old records and the new term's");
        for (number, value) in values.iter().enumerate() {
            assert_eq!(lone.node.keyspace().get(&[number as u8]), Some(value.as_slice()), "{size_max}");
        }
    }
}

/// A disk on which one sync takes long: the clock has moved when it returns.
struct StallingDisk {
    disk: MemDisk,
    clock: VirtualClock,
    stall_ms: Rc<Cell<u64>>,
}

impl StallingDisk {
    fn stall(&self) {
        self.clock.set(self.clock.now().after_ms(self.stall_ms.take()));
    }
}

impl Disk for StallingDisk {
    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        self.disk.create(name, size)
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        self.disk.open(name)
    }

    fn close(&mut self, file: FileId) {
        self.disk.close(file);
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        self.disk.len(file)
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(file, offset, buffer)
    }

    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write_at(file, offset, bytes)
    }

    fn sync_data(&mut self, file: FileId) -> io::Result<()> {
        self.stall();
        self.disk.sync_data(file)
    }

    fn append_sync_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.stall();
        self.disk.append_sync_at(file, offset, bytes)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
}

/// A node on a stalling disk, and how long its next sync takes.
fn stalling(config: NodeConfig) -> (LoneNode, Rc<Cell<u64>>) {
    let (clock, stall_ms) = (VirtualClock::at_ms(1), Rc::new(Cell::new(0)));
    let disk = StallingDisk { disk: MemDisk::new(), clock: clock.clone(), stall_ms: Rc::clone(&stall_ms) };
    (LoneNode::open(Box::new(disk), clock, config).expect("the disk is well"), stall_ms)
}

const FOLLOWERS: [&str; 2] = ["one:1", "two:1"];

/// What a follower says that has everything up to here.
fn ack(lsn: u64, round: u64, sync_ns: u32) -> Vec<u8> {
    let spent = AckDurations { sync_ns, ..AckDurations::default() };
    bytes_of(|out| Ack { last_lsn: Lsn(lsn), round, spent, state: None }.encode(out))
}

/// Both followers of a new leader, played by the test, in sync at LSN 1.
fn followers(lone: &mut LoneNode) -> Vec<ConnId> {
    let dialled = lone.take_dialled();
    let conns: Vec<ConnId> = dialled.into_iter().map(|(_, conn)| conn).collect();
    assert_eq!(conns.len(), FOLLOWERS.len());
    for (number, conn) in conns.iter().enumerate() {
        let hello = Hello {
            node_id: NodeId([number as u8 + 1; 16]),
            cluster_id: ClusterId::NONE,
            term: Term::ZERO,
            leader: NodeId::NONE,
            ..hello(FOLLOWERS[number])
        };
        let answer = lone.send(*conn, &bytes_of(|out| hello.encode(true, out)));
        let (_, open) = answer.frames.last().expect("an OPEN");
        let reply = OpenReply {
            term: Open::decode(open).expect("an OPEN").term,
            match_lsn: Lsn::ZERO,
            match_chain: Chain::ZERO,
            commit_lsn: Lsn::ZERO,
            cut_from: Lsn::ZERO,
            repair_until: Lsn::ZERO,
        };
        lone.send(*conn, &bytes_of(|out| reply.encode(out)));
        lone.send(*conn, &ack(1, 1, 100_000));
    }
    assert!(lone.node.observe().peers.iter().all(|(_, lsn, in_sync)| *lsn == Lsn(1) && *in_sync));
    conns
}

fn put(lone: &mut LoneNode, client: ConnId) -> lone_node::Answer {
    lone.send(client, &bytes_of(|out| Request::Put { key: b"k", value: b"v" }.encode(out)))
}

#[test]
fn a_leader_whose_sync_took_ten_seconds_reads_what_waits_before_it_judges_anybody() {
    let (mut lone, stall_ms) = stalling(config(RoleFlag::Leader, &FOLLOWERS));
    let conns = followers(&mut lone);
    let client = lone.connect();
    stall_ms.set(10_000);
    assert_eq!(put(&mut lone, client).frames, [], "its followers have not answered");
    // The ACKs came while it stood, and are read with the clock of now, ten seconds later.
    let late = ack(2, 2, 100_000);
    lone.send_all(&[(conns[0], &late), (conns[1], &late)]);
    assert_eq!(Reply::decode(&lone.said(client)[0].1).expect("a reply").status, Status::Ok);
    let seen = lone.node.observe();
    assert!(seen.peers.iter().all(|(_, lsn, in_sync)| *lsn == Lsn(2) && *in_sync), "{seen:?}");
    assert_eq!(lone.node.counters.insync_left, 0, "its own stall is held against nobody");
    assert!(conns.iter().all(|conn| !lone.is_closed(*conn)), "and no session ends by it");
    assert!(lone.take_dialled().is_empty());
    // It judges by the clock after the stall: who is silent from now on is silent three seconds from now.
    (0..29).for_each(|_| lone.pass_ms(100));
    assert!(conns.iter().all(|conn| !lone.is_closed(*conn)));
    (0..3).for_each(|_| lone.pass_ms(100));
    assert!(conns.iter().all(|conn| lone.is_closed(*conn)));
}

#[test]
fn a_reply_that_leaves_in_front_of_a_slow_sync_is_not_said_to_have_waited_for_it() {
    let (mut lone, stall_ms) = stalling(config(RoleFlag::Leader, &FOLLOWERS));
    let conns = followers(&mut lone);
    let (first, second) = (lone.connect(), lone.connect());
    assert_eq!(put(&mut lone, first).frames, [], "LSN 2 waits for its followers");
    // Its ACKs come in the turn in which another write begins a sync of a second.
    stall_ms.set(1_000);
    let acks = ack(2, 2, 100_000);
    let other = bytes_of(|out| Request::Put { key: b"o", value: b"v" }.encode(out));
    lone.send_all(&[(conns[0], &acks), (conns[1], &acks), (second, &other)]);
    assert_eq!(Reply::decode(&lone.said(first)[0].1).expect("a reply").status, Status::Ok);
    let ask = bytes_of(|out| Request::Inspect(Inspect::Receipt(Lsn(2))).encode(out));
    let answer = lone.send(first, &ask).frames;
    let receipt: serde_json::Value =
        serde_json::from_slice(Reply::decode(&answer[0].1).expect("a reply").payload).expect("a receipt");
    assert_eq!(receipt["answered"], true, "{receipt}");
    assert!(receipt["total_us"].as_f64().expect("a total") < 1_000_000.0, "{receipt}");
}

#[test]
fn a_follower_whose_sync_took_ten_seconds_reads_what_waits_before_it_judges_its_leader() {
    let (mut lone, stall_ms) = stalling(config(RoleFlag::Follower, &[]));
    let log = Log::new(4);
    let (conn, _) = session(&mut lone, &log);
    assert_eq!(acked(&lone.send(conn, &log.frames[0])), Lsn(1));
    stall_ms.set(10_000);
    let answer = lone.send(conn, &log.frames[1]);
    assert_eq!(acked(&answer), Lsn(2), "late, and true");
    let spent = Ack::decode(&answer.frames.last().expect("an ACK").1).expect("an ACK").spent;
    assert_eq!(spent.sync_ns, u32::MAX, "it says how long that took, as far as the field goes");
    // What its leader sent meanwhile was there before the deadline is looked at.
    assert_eq!(acked(&lone.send(conn, &log.frames[2])), Lsn(3));
    assert!(!lone.is_closed(conn), "the leader was not silent, this node was");
    lone.pass_ms(2_900);
    assert!(!lone.is_closed(conn));
    lone.pass_ms(200);
    assert!(lone.is_closed(conn), "silence is counted from the clock after the stall");
}

#[test]
fn a_follower_with_a_slow_disk_is_shown_and_a_quorum_goes_on_without_it() {
    let config = NodeConfig { ack: AckPolicy::Quorum, ..config(RoleFlag::Leader, &FOLLOWERS) };
    let mut lone =
        LoneNode::open(Box::new(MemDisk::new()), VirtualClock::at_ms(1), config).expect("it starts");
    let conns = followers(&mut lone);
    let client = lone.connect();
    for lsn in 2..40_u64 {
        assert_eq!(put(&mut lone, client).frames, []);
        lone.send(conns[0], &ack(lsn, lsn, 100_000));
        let said = lone.said(client);
        assert_eq!(
            Reply::decode(&said[0].1).expect("a reply").status,
            Status::Ok,
            "one other disk is enough"
        );
        // Every tenth write: that is how fast the other disk is.
        if lsn % 10 == 0 {
            lone.send(conns[1], &ack(lsn - 8, lsn, 20_000_000));
        }
    }
    let said = lone.send(client, &bytes_of(|out| Request::Status.encode(out))).frames;
    let reply = Reply::decode(&said[0].1).expect("a reply");
    let status: serde_json::Value = serde_json::from_slice(reply.payload).expect("JSON");
    assert_eq!((&status["peers"][0]["lag"], &status["peers"][1]["lag"]), (&0.into(), &17.into()), "{status}");
    let p50 = |who: &str| status["latency"][format!("{who} its sync")]["p50_us"].as_f64().expect("a number");
    assert!(p50("two:1") > 10.0 * p50("one:1"), "{}", status["latency"]);
}

#[test]
fn a_full_disk_refuses_writes_and_gives_no_lsn_twice() {
    let disk = MemDisk::new();
    let mut lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    let client = lone.connect();
    let (mut expected, mut full, mut done) = (Lsn(2), 0, 0);
    for number in 0..400_u32 {
        // Space comes and goes: whole segments of it, parts of one, none.
        if number % 40 == 0 {
            disk.set_capacity((number % 80 == 0).then(|| disk.used() + u64::from(number) * 300));
        }
        let value = vec![number as u8; 2_000 + number as usize * 7];
        let answer =
            lone.send(client, &bytes_of(|out| Request::Put { key: b"k", value: &value }.encode(out)));
        let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
        match reply.status {
            Status::Ok => {
                assert_eq!(reply.lsn, expected, "each LSN once, and none left out");
                (expected, done) = (expected.next(), done + 1);
            }
            Status::DiskFull => full += 1,
            other => panic!("{other:?}"),
        }
        let read = lone.send(client, &bytes_of(|out| Request::Get { key: b"k" }.encode(out)));
        assert_ne!(Reply::decode(&read.frames[0].1).expect("a reply").status, Status::DiskFull);
    }
    assert!(full > 20 && done > 100, "{full} refused, {done} done");
    disk.crash(Keep::None);
    disk.set_capacity(None);
    let lone = LoneNode::on(&disk, RoleFlag::Leader, &[]);
    assert_eq!(lone.node.positions().0, expected, "all of them, and the new term's first record");
}

#[test]
fn a_power_loss_right_after_a_restart_takes_nothing_that_the_restart_told() {
    let log = Log::new(30);
    let page_cache = WalConfig { durability: Durability::Os, ..config(RoleFlag::Follower, &[]).wal };
    for keep in [Keep::None, Keep::Random(3), Keep::Random(4)] {
        let disk = MemDisk::new();
        let os = NodeConfig { wal: page_cache, ..config(RoleFlag::Follower, &[]) };
        let mut lone = LoneNode::open(Box::new(disk.clone()), VirtualClock::at_ms(1), os).expect("it starts");
        let (conn, _) = session(&mut lone, &log);
        log.frames.iter().for_each(|frame| drop(lone.send(conn, frame)));
        drop(lone);
        // The process ends; nothing of this has reached the disk, and all of it can be read.
        disk.kill_process();
        assert!(!disk.unsynced_sectors().is_empty());
        let mut lone = LoneNode::on(&disk, RoleFlag::Follower, &[]);
        let (_, told) = session(&mut lone, &log);
        assert_eq!(told, log.last(), "it tells its leader that it has them");
        let hash = lone.node.keyspace().state_hash();
        drop(lone);
        disk.crash(keep);
        let lone = LoneNode::on(&disk, RoleFlag::Follower, &[]);
        assert_eq!((lone.node.positions().0, lone.node.keyspace().state_hash()), (told, hash), "{keep:?}");
    }
}

#[test]
fn d9_a_member_without_room_for_a_terms_first_record_does_not_campaign_and_does_not_end() {
    let disk = MemDisk::new();
    let lead = |lone: &mut LoneNode| (0..100).for_each(|_| lone.pass_ms(10));
    let mut lone = LoneNode::on(&disk, RoleFlag::Auto, &[]);
    lead(&mut lone);
    let client = lone.connect();
    disk.set_capacity(Some(disk.used()));
    // Smaller and smaller, until not even the smallest record has room.
    for size in [3_000, 300, 30, 0] {
        let put = bytes_of(|out| Request::Put { key: b"k", value: &vec![7; size] }.encode(out));
        let status = |answer: lone_node::Answer| Reply::decode(&answer.frames[0].1).expect("a reply").status;
        while status(lone.send(client, &put)) == Status::Ok {}
    }
    drop(lone);
    disk.kill_process();
    let mut lone = LoneNode::on(&disk, RoleFlag::Auto, &[]);
    lead(&mut lone);
    assert_eq!(lone.node.role_name(), "follower");
    disk.set_capacity(None);
    lead(&mut lone);
    assert_eq!(lone.node.role_name(), "leader");
}
