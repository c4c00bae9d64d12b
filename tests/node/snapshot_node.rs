//! A node and its snapshots: made while it writes, loaded at a restart, and what goes when they are there. With a
//! crash before every single disk operation of all that (D14), and damage in either of the two that are kept (D15).

use std::collections::BTreeMap;

use kvstore::conn::ConnId;
use kvstore::node::{FatalReason, NodeConfig, RoleFlag, SnapshotConfig};
use kvstore::snapshot::parse_snapshot_name;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::Refuse;

use crate::lone_node::{self, LoneNode, hello};
use crate::mem_disk::{EIO, ENOSPC, Keep, MemDisk, Op, OpKind};

/// A value so large that a few dozen fill a segment.
const VALUE_SIZE: usize = 2_000;

fn config(log_bytes: u64) -> NodeConfig {
    let mut config = lone_node::config(RoleFlag::Leader, &[]);
    config.snapshot = SnapshotConfig {
        log_bytes: Some(log_bytes),
        slice_bytes: 20_000,
        settle_ms: 1,
        ..SnapshotConfig::default()
    };
    config
}

/// Never by itself.
fn by_hand() -> NodeConfig {
    config(u64::MAX)
}

/// A node, one client, and what that client knows to be there.
struct Rig {
    lone: LoneNode,
    conn: ConnId,
    disk: MemDisk,
    acked: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Rig {
    fn start(disk: &MemDisk, config: NodeConfig) -> Result<Rig, FatalReason> {
        let mut lone = LoneNode::with(disk, config)?;
        let conn = lone.connect();
        Ok(Rig { lone, conn, disk: disk.clone(), acked: BTreeMap::new() })
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<(Status, String), FatalReason> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        let answer = self.lone.try_send(self.conn, &bytes)?;
        let (_, body) = answer.frames.last().expect("every request is answered in its turn");
        let reply = Reply::decode(body).expect("a node sends whole replies");
        Ok((reply.status, String::from_utf8_lossy(reply.payload).into_owned()))
    }

    /// Writes, one record a turn.
    fn put(&mut self, number: u64) -> Result<(), FatalReason> {
        let key = format!("key-{}", number % 60).into_bytes();
        let mut value = vec![number as u8; VALUE_SIZE];
        value[..8].copy_from_slice(&number.to_be_bytes());
        let (status, _) = self.ask(&Request::Put { key: &key, value: &value })?;
        assert_eq!(status, Status::Ok);
        self.acked.insert(key, value);
        Ok(())
    }

    fn puts(&mut self, numbers: std::ops::Range<u64>) -> Result<(), FatalReason> {
        numbers.into_iter().try_for_each(|number| self.put(number))
    }

    fn status(&mut self) -> serde_json::Value {
        let (status, text) = self.ask(&Request::Status).expect("the disk is well");
        assert_eq!(status, Status::Ok);
        serde_json::from_str(&text).expect("a status is JSON")
    }

    /// Begins a snapshot and lets time pass until it is there, writing meanwhile.
    fn snapshot(&mut self, first: u64) -> Result<u64, FatalReason> {
        let made = self.lone.node.counters.snapshots;
        let (status, text) = self.ask(&Request::Snapshot { wait: false })?;
        // A snapshot may fail without the node: that the disk is gone shows with the next write.
        assert!(status == Status::Ok || self.disk.has_crashed(), "{text}");
        let mut number = first;
        while self.lone.node.counters.snapshots == made {
            assert!(number < first + 1_000, "the snapshot never ends");
            self.put(number)?;
            number += 1;
            self.lone.try_pass_ms(1)?;
        }
        // What is needless now goes one by one.
        for _ in 0..40 {
            self.lone.try_pass_ms(25)?;
        }
        Ok(number)
    }

    /// Two snapshots, and segments that only the first one needed.
    fn two_snapshots(&mut self) -> Result<u64, FatalReason> {
        self.puts(1..150)?;
        let next = self.snapshot(150)?;
        self.puts(next..next + 100)?;
        let next = self.snapshot(next + 100)?;
        self.puts(next..next + 20)?;
        Ok(next + 20)
    }

    fn check(&mut self) {
        for (key, value) in self.acked.clone() {
            let found = self.lone.node.keyspace().get(&key).map(<[u8]>::to_vec);
            assert_eq!(found, Some(value), "{}", String::from_utf8_lossy(&key));
        }
        self.lone.node.keyspace().invariants();
    }
}

fn snapshots(disk: &MemDisk) -> Vec<String> {
    let mut names: Vec<String> =
        disk.names().into_iter().filter(|name| parse_snapshot_name(name).is_some()).collect();
    names.reverse();
    names
}

fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.starts_with("wal-") && name.ends_with(".seg")).collect()
}

#[test]
fn a_state_loaded_from_a_snapshot_made_under_writes_is_the_state_that_was() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.puts(1..150).unwrap();
    let (last_before, ..) = rig.lone.node.positions();
    rig.snapshot(150).unwrap();
    let id = parse_snapshot_name(&snapshots(&disk)[0]).unwrap();
    assert!(id.s == last_before && id.e > id.s, "written to while it was made: {id}");
    rig.lone.node.close_log().unwrap();
    let hash = rig.lone.node.keyspace().state_hash();
    disk.kill_process();
    let mut again = Rig::start(&disk, by_hand()).unwrap();
    assert_eq!(again.lone.node.counters.loaded_from_snapshot, 1);
    assert_eq!(again.lone.node.keyspace().state_hash(), hash);
    again.acked = rig.acked;
    again.check();
}

/// Where operations of this kind on files like this stand in the log.
fn places(log: &[Op], kind: OpKind, is_file: impl Fn(&str) -> bool) -> Vec<usize> {
    let is_it = |op: &Op| op.kind == kind && is_file(&op.name);
    log.iter().enumerate().filter(|(_, op)| is_it(op)).map(|(at, _)| at).collect()
}

#[test]
fn segments_go_only_after_the_second_snapshot_has_its_name_durably() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.two_snapshots().unwrap();
    let log = disk.op_log();
    let names = places(&log, OpKind::Rename, |name| parse_snapshot_name(name).is_some());
    let removals = places(&log, OpKind::Remove, |name| name.starts_with("wal-"));
    let syncs = places(&log, OpKind::SyncDir, |_| true);
    assert!(names.len() == 2 && removals.len() >= 2, "{names:?} {removals:?}");
    assert!(removals.iter().all(|removal| syncs.iter().any(|sync| *sync > names[1] && sync < removal)));
    assert!(removals.windows(2).all(|pair| syncs.iter().any(|sync| pair[0] < *sync && *sync < pair[1])));
    let older = parse_snapshot_name(&snapshots(&disk)[1]).unwrap();
    let status = rig.status();
    assert!(status["first_lsn"].as_u64().unwrap() <= older.s.0 + 1, "{status}");
    assert_eq!(status["snapshot"]["state"], "done");
}

#[test]
fn a_pin_keeps_the_log_until_it_is_taken_out() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    let pin = rig.lone.node.pin_log(kvstore::ids::Lsn(5));
    rig.two_snapshots().unwrap();
    assert_eq!(rig.status()["first_lsn"], 1, "the first segment holds LSN 6");
    assert!(rig.lone.node.pinned_bytes(pin) > 64 << 10);
    rig.lone.node.unpin_log(pin);
    (0..40).for_each(|_| rig.lone.pass_ms(25));
    assert!(rig.status()["first_lsn"].as_u64().unwrap() > 1);
}

#[test]
fn d14_a_crash_before_any_operation_loses_nothing() {
    let calm = MemDisk::new();
    let mut rig = Rig::start(&calm, by_hand()).unwrap();
    rig.puts(1..150).unwrap();
    let first = rig.snapshot(150).unwrap();
    rig.puts(first..first + 100).unwrap();
    let (acked, begin) = (rig.acked.clone(), calm.op_count());
    // From here on: the second snapshot, the removal of segments, a restart, and what that does.
    let story = |rig: &mut Rig| {
        let next = rig.snapshot(first + 100)?;
        rig.puts(next..next + 5)?;
        rig.lone.node.close_log()
    };
    story(&mut rig).unwrap();
    drop(rig);
    calm.kill_process();
    Rig::start(&calm, by_hand()).unwrap();
    let end = calm.op_count();
    let kinds: Vec<OpKind> = calm.op_log()[begin as usize..].iter().map(|op| op.kind).collect();
    assert!(kinds.contains(&OpKind::Rename) && kinds.contains(&OpKind::Remove), "{kinds:?}");
    for at in (begin..end).step_by(if cfg!(debug_assertions) { 3 } else { 1 }) {
        let disk = MemDisk::new();
        let mut rig = Rig::start(&disk, by_hand()).unwrap();
        rig.puts(1..150).unwrap();
        let _next = rig.snapshot(150).unwrap();
        rig.puts(first..first + 100).unwrap();
        assert_eq!(disk.op_count(), begin, "the same story twice");
        assert_eq!(rig.acked, acked);
        disk.crash_before(at);
        let ended = story(&mut rig);
        let mut acked = rig.acked.clone();
        drop(rig);
        if ended.is_ok() {
            disk.kill_process();
            disk.crash_before(at);
            assert!(Rig::start(&disk, by_hand()).is_err(), "the crash is in the restart");
        }
        for keep in [Keep::None, Keep::All, Keep::Random(at), Keep::Random(!at)] {
            let copy = disk.fork();
            copy.crash(keep);
            let mut again = Rig::start(&copy, by_hand())
                .unwrap_or_else(|error| panic!("crash before {}: {error}", calm.op_log()[at as usize]));
            // The write under way when it crashed may have happened.
            acked.retain(|key, value| {
                let found = again.lone.node.keyspace().get(key).expect("every acknowledged key is there");
                u64::from_be_bytes(found[..8].try_into().unwrap())
                    <= u64::from_be_bytes(value[..8].try_into().unwrap())
            });
            again.acked.clone_from(&acked);
            again.check();
            // And it goes on as if nothing had been.
            again.puts(5_000..5_010).unwrap();
            again.snapshot(5_010).unwrap();
            again.check();
        }
    }
}

#[test]
fn d15_with_the_newest_damaged_the_older_one_and_more_log_give_the_same_state() {
    for damaged_at in [10, 5_000, 20_000] {
        let disk = MemDisk::new();
        let mut rig = Rig::start(&disk, by_hand()).unwrap();
        rig.two_snapshots().unwrap();
        let (acked, hash) = (rig.acked.clone(), rig.lone.node.keyspace().state_hash());
        drop(rig);
        disk.kill_process();
        let names = snapshots(&disk);
        disk.corrupt(&names[0], damaged_at, 3);
        let mut again = Rig::start(&disk, by_hand()).unwrap();
        assert_eq!(again.lone.node.counters.loaded_from_snapshot, 1);
        assert_eq!(again.lone.node.keyspace().state_hash(), hash);
        again.acked = acked;
        again.check();
        // The damaged one goes when the next has its name.
        again.snapshot(9_000).unwrap();
        let now = snapshots(&disk);
        assert!(now.len() == 2 && !now.contains(&names[0]) && now.contains(&names[1]), "{now:?}");
    }
}

#[test]
fn d15_with_both_damaged_the_node_refuses_and_says_what_it_tried() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.two_snapshots().unwrap();
    drop(rig);
    disk.kill_process();
    let names = snapshots(&disk);
    names.iter().for_each(|name| disk.corrupt(name, 20_000, 0));
    let before = disk.names();
    let error = Rig::start(&disk, by_hand()).err().expect("there is no state to be had");
    let text = error.to_string();
    assert_eq!(error.exit_code(), 11);
    assert!(names.iter().all(|name| text.contains(name.as_str())) && text.contains("wal-"), "{text}");
    assert_eq!(disk.names(), before, "nothing was changed");
}

#[test]
fn while_it_loads_a_node_says_how_far_it_is_and_nothing_else() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.two_snapshots().unwrap();
    let (acked, hash) = (rig.acked.clone(), rig.lone.node.keyspace().state_hash());
    drop(rig);
    disk.kill_process();
    let mut slow = by_hand();
    slow.snapshot.load_at_once_bytes = 0;
    slow.snapshot.slice_bytes = 1_000;
    let mut rig = Rig::start(&disk, slow).unwrap();
    assert!(rig.lone.node.is_loading());
    let ping = rig.ask(&Request::Ping).unwrap();
    assert!(ping.0 == Status::Ok && ping.1.starts_with("loading, ") && ping.1.ends_with(" %"), "{ping:?}");
    for request in [
        Request::Get { key: b"key-1" },
        Request::Put { key: b"key-1", value: b"x" },
        Request::Delete { key: b"key-1" },
        Request::Promote { force: true },
        Request::Follow { address: "other:1", discard: true },
        Request::Snapshot { wait: false },
    ] {
        let (status, text) = rig.ask(&request).unwrap();
        assert!(status == Status::Loading && text.starts_with("loading, "), "{request:?}: {status:?} {text}");
    }
    let status = rig.status();
    assert!(status["loading"]["progress"].is_u64() && status["complete"] == false, "{status}");
    let peer = rig.lone.connect();
    let mut bytes = Vec::new();
    hello("other:1").encode(false, &mut bytes);
    let answer = rig.lone.send(peer, &bytes);
    assert!(answer.closed && answer.frames[0].0 == MessageType::Refuse);
    assert!(Refuse::decode(&answer.frames[0].1).unwrap().message.starts_with("loading, "));
    while rig.lone.node.is_loading() {
        rig.lone.pass_ms(0);
    }
    assert_eq!(rig.lone.node.keyspace().state_hash(), hash);
    assert_eq!(rig.ask(&Request::Get { key: b"key-1" }).unwrap().0, Status::Ok);
    assert!(rig.ask(&Request::Ping).unwrap().1.is_empty());
    rig.acked = acked;
    rig.check();
}

#[test]
fn damage_met_in_the_middle_of_a_load_in_slices_costs_the_load_and_not_the_state() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.two_snapshots().unwrap();
    let hash = rig.lone.node.keyspace().state_hash();
    drop(rig);
    disk.kill_process();
    disk.corrupt(&snapshots(&disk)[0], 110_000, 5);
    let mut slow = by_hand();
    slow.snapshot.load_at_once_bytes = 0;
    slow.snapshot.slice_bytes = 1_000;
    let mut rig = Rig::start(&disk, slow).unwrap();
    while rig.lone.node.is_loading() {
        rig.lone.pass_ms(0);
    }
    assert_eq!(rig.lone.node.keyspace().state_hash(), hash);
    rig.puts(1..3).unwrap();
}

#[test]
fn enough_log_begins_one_by_itself_and_the_log_stays_bounded() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, config(200 << 10)).unwrap();
    for number in 1..1_500 {
        rig.put(number).unwrap();
        rig.lone.pass_ms(2);
    }
    let made = rig.lone.node.counters.snapshots;
    assert!(made >= 5, "{made} snapshots of 3 MB of log");
    assert_eq!(snapshots(&disk).len(), 2);
    assert!(segments(&disk).len() <= 12, "{:?}", segments(&disk));
    assert!(rig.status()["log_bytes"].as_u64().unwrap() < 800 << 10);
    rig.check();
}

#[test]
fn a_log_that_grows_by_what_is_not_applied_makes_no_second_snapshot_of_the_same_lsn() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.puts(1..50).unwrap();
    rig.lone.node.close_log().unwrap();
    drop(rig);
    disk.kill_process();
    // From now on nothing is acknowledged, so nothing is applied.
    let mut alone = config(10_000);
    alone.min_insync = 2;
    let mut lone = LoneNode::with(&disk, alone).unwrap();
    let conn = lone.connect();
    let mut bytes = Vec::new();
    Request::Put { key: b"large", value: &[7; 50_000] }.encode(&mut bytes);
    assert!(lone.send(conn, &bytes).frames.is_empty());
    (0..60).for_each(|_| lone.pass_ms(25));
    assert_eq!(lone.node.counters.snapshots, 1);
    assert_eq!(snapshots(&disk).len(), 1);
}

#[test]
fn status_tells_how_far_a_snapshot_is_and_what_it_was() {
    let mut config = by_hand();
    config.snapshot.slice_bytes = 500;
    let mut rig = Rig::start(&MemDisk::new(), config).unwrap();
    assert_eq!(rig.status()["snapshot"]["state"], "idle");
    for number in 0..1_000 {
        let key = format!("key-{number}").into_bytes();
        rig.ask(&Request::Put { key: &key, value: b"a small one" }).unwrap();
    }
    let (s, ..) = rig.lone.node.positions();
    rig.ask(&Request::Snapshot { wait: false }).unwrap();
    let mut seen = Vec::new();
    let done = loop {
        let now = rig.status()["snapshot"].clone();
        if now["state"] == "done" {
            break now;
        }
        assert!(now["state"] == "running" && now["s"] == s.0 && now["bytes"].is_u64(), "{now}");
        seen.push((now["progress"].as_u64().unwrap(), now["eta_s"].is_u64()));
        assert!(seen.len() < 1_000, "{seen:?}");
        rig.lone.pass_ms(10);
    };
    assert!(seen.len() > 5 && seen.is_sorted_by_key(|(progress, _)| *progress), "{seen:?}");
    assert!(seen.iter().any(|(progress, has_eta)| (1..100).contains(progress) && *has_eta), "{seen:?}");
    assert!(done["progress"] == 100 && done["kept"][0]["entries"] == 1_000, "{done}");
}

#[test]
fn one_at_a_time_and_whoever_waits_is_answered_when_it_is_durable() {
    let disk = MemDisk::new();
    let mut follower = lone_node::config(RoleFlag::Follower, &[]);
    follower.snapshot = by_hand().snapshot;
    let mut empty = Rig::start(&MemDisk::new(), follower).unwrap();
    assert!(empty.ask(&Request::Snapshot { wait: true }).unwrap().1.contains("nothing to keep"));
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.puts(1..60).unwrap();
    let waiter = rig.lone.connect();
    let mut bytes = Vec::new();
    Request::Snapshot { wait: true }.encode(&mut bytes);
    assert!(rig.lone.send(waiter, &bytes).frames.is_empty(), "it is not durable yet");
    let (status, why) = rig.ask(&Request::Snapshot { wait: true }).unwrap();
    assert!(status == Status::Refused && why.contains("being made already"), "{why}");
    (0..20).for_each(|_| rig.lone.pass_ms(25));
    let said = rig.lone.said(waiter);
    let reply = Reply::decode(&said[0].1).unwrap();
    assert_eq!((said.len(), reply.status), (1, Status::Ok));
    assert!(disk.names().contains(&snapshots(&disk)[0]));
    // Nothing was written since: there is no other one to be made.
    let (status, text) = rig.ask(&Request::Snapshot { wait: true }).unwrap();
    assert_eq!(status, Status::Ok, "{text}");
    assert_eq!(rig.lone.node.counters.snapshots, 1);
}

#[test]
fn a_snapshot_that_cannot_be_written_is_given_up_and_the_node_goes_on() {
    for (kind, errno) in
        [(OpKind::Create, ENOSPC), (OpKind::Write, ENOSPC), (OpKind::Sync, EIO), (OpKind::Rename, EIO)]
    {
        let disk = MemDisk::new();
        let mut rig = Rig::start(&disk, config(200 << 10)).unwrap();
        rig.puts(1..60).unwrap();
        let (status, _) = rig.ask(&Request::Snapshot { wait: false }).unwrap();
        assert_eq!(status, Status::Ok);
        if kind == OpKind::Create {
            while rig.lone.node.counters.snapshots == 0 {
                rig.lone.pass_ms(25);
            }
        }
        disk.fail(kind, 0, errno);
        if kind == OpKind::Create {
            let (status, text) = {
                rig.put(60).unwrap();
                rig.ask(&Request::Snapshot { wait: false }).unwrap()
            };
            assert!(status == Status::Refused && text.contains("no room"), "{text}");
        }
        (0..20).for_each(|_| rig.lone.pass_ms(25));
        let made = rig.lone.node.counters.snapshots;
        let status = rig.status();
        assert!(status["snapshot"]["last_error"].is_string(), "{kind:?}: {status}");
        assert!(!disk.names().iter().any(|name| name.ends_with("kvsnap.tmp")), "{kind:?}");
        // With more log it is tried again by itself.
        for number in 100..300 {
            rig.put(number).unwrap();
            rig.lone.pass_ms(25);
        }
        assert!(rig.lone.node.counters.snapshots > made, "{kind:?}");
        rig.check();
    }
}

#[test]
fn a_directory_that_cannot_be_synced_ends_the_node() {
    let disk = MemDisk::new();
    let mut rig = Rig::start(&disk, by_hand()).unwrap();
    rig.puts(1..20).unwrap();
    rig.ask(&Request::Snapshot { wait: false }).unwrap();
    disk.fail(OpKind::SyncDir, 0, EIO);
    let ended = (0..40).find_map(|_| rig.lone.try_pass_ms(25).err()).expect("it ends");
    assert_eq!(ended.exit_code(), 13);
}
