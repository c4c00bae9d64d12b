//! A follower whose log is damaged, and one whose data directory is new or an older copy: it begins with what is whole,
//! fetches the rest, and until it has that it serves nothing and leads nobody. One real node on a disk in memory,
//! and the test as its leader.

use kvstore::conn::ConnId;
use kvstore::ids::{Lsn, Term};
use kvstore::meta::MetaStore;
use kvstore::node::{FatalReason, Node, RoleFlag};
use kvstore::wal::{HEADER_SIZE, parse_segment_name, segment_name};
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{Fence, FenceReply, Open, OpenReply, Refuse, RefuseCode};
use kvstore::wire::{Effect, MessageType};

use crate::leader_log::{Log, TERM, acked, bytes_of, greeted, session};
use crate::lone_node::{LEADER, LoneNode, VirtualClock, config};
use crate::mem_disk::{self, Keep, MemDisk};

const RECORDS: u64 = 52;

/// Records of 4 KiB: three segments and a part of a fourth one.
fn leaders_log(records: u64) -> Log {
    let mut log = Log::new(1);
    (2..=records).for_each(|lsn| {
        let (key, value) = (format!("key {}", lsn % 7), vec![lsn as u8; 4 << 10]);
        log.push(Effect::Put { key: key.as_bytes(), value: &value });
    });
    log
}

fn start(disk: &MemDisk, role: RoleFlag) -> Result<LoneNode, FatalReason> {
    LoneNode::open(Box::new(disk.clone()), VirtualClock::at_ms(1), config(role, &[]))
}

/// Everything from the match LSN on, a record at a time; each must be acknowledged as what is held then.
fn feed(lone: &mut LoneNode, conn: ConnId, log: &Log, from: Lsn) {
    for frame in &log.frames[from.0 as usize..] {
        let answer = lone.send(conn, frame);
        assert_eq!(acked(&answer), lone.node.positions().0);
    }
}

/// The disk of a follower that has all of the log and was killed, and the hash of its state.
fn healthy(log: &Log) -> (MemDisk, u128) {
    let disk = MemDisk::new();
    let mut lone = start(&disk, RoleFlag::Follower).expect("a new disk is well");
    let (conn, match_lsn) = session(&mut lone, log);
    feed(&mut lone, conn, log, match_lsn);
    let hash = lone.node.keyspace().state_hash();
    drop(lone);
    disk.kill_process();
    (disk, hash)
}

fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| parse_segment_name(name).is_some()).collect()
}

/// One way to damage a log, and its name.
type Damage = (&'static str, fn(&MemDisk));

/// A place in the middle of a segment's records.
fn middle(disk: &MemDisk, segment: usize) -> (String, u64) {
    (segments(disk)[segment].clone(), HEADER_SIZE + 30_000)
}

const DAMAGES: [Damage; 9] = [
    ("a bit of a record in the middle of the log", |disk| {
        let (name, at) = middle(disk, 1);
        disk.corrupt(&name, at, 3);
    }),
    ("a bit of the first record", |disk| disk.corrupt(&segments(disk)[0], HEADER_SIZE + 70, 0)),
    ("a bit of the last segment", |disk| disk.corrupt(&segments(disk)[3], HEADER_SIZE + 4_500, 0)),
    ("the header of a segment in the middle", |disk| disk.corrupt(&segments(disk)[2], 20, 1)),
    ("the header of the last segment", |disk| disk.corrupt(&segments(disk)[3], 20, 1)),
    ("the first segment is missing", |disk| disk.remove_raw(&segments(disk)[0])),
    ("a segment in the middle is missing", |disk| disk.remove_raw(&segments(disk)[2])),
    ("zeros over a part of a segment, and a header", |disk| {
        let (name, at) = middle(disk, 0);
        let mut raw = disk.raw(&name).expect("it is there");
        raw[at as usize..].fill(0);
        disk.put_raw(&name, &raw);
        disk.corrupt(&segments(disk)[2], 5, 5);
    }),
    ("a valid entry at another place", |disk| {
        let name = segments(disk)[1].clone();
        let mut raw = disk.raw(&name).expect("it is there");
        // Records of one size in batches of their own: mark, entry, mark, entry.
        let step = 48 + 8 + 17 + 5 + (4 << 10);
        let first = HEADER_SIZE as usize;
        raw.copy_within(first..first + step, first + 3 * step);
        disk.put_raw(&name, &raw);
    }),
];

fn damaged(damage: &Damage, log: &Log) -> (MemDisk, u128) {
    let (disk, hash) = healthy(log);
    (damage.1)(&disk);
    (disk, hash)
}

fn get(lone: &mut LoneNode, key: &[u8]) -> (Status, String) {
    let client = lone.connect();
    let answer = lone.send(client, &bytes_of(|out| Request::Get { key }.encode(out)));
    let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
    (reply.status, String::from_utf8_lossy(reply.payload).into_owned())
}

fn status(lone: &mut LoneNode) -> serde_json::Value {
    let client = lone.connect();
    let answer = lone.send(client, &bytes_of(|out| Request::Status.encode(out)));
    serde_json::from_slice(Reply::decode(&answer.frames[0].1).expect("a reply").payload).expect("JSON")
}

fn open_with(lone: &mut LoneNode, open: &Open) -> (ConnId, OpenReply) {
    let conn = greeted(lone);
    let answer = lone.send(conn, &bytes_of(|out| open.encode(out)));
    assert_eq!(answer.frames[0].0, MessageType::OpenReply, "{:?}", answer.fenced);
    (conn, OpenReply::decode(&answer.frames[0].1).expect("an OPEN_REPLY"))
}

fn probe(lone: &mut LoneNode) -> FenceReply {
    let conn = greeted(lone);
    let fence = Fence { probe: true, term: TERM, candidate: LEADER, address: "leader:1".to_owned() };
    let answer = lone.send(conn, &bytes_of(|out| fence.encode(out)));
    FenceReply::decode(&answer.frames[0].1).expect("a FENCE_REPLY")
}

/// An unforced promotion of a node whose peers are all silent; what it is told.
fn refused_promotion(lone: &mut LoneNode) -> String {
    let client = lone.connect();
    let mut answer = lone.send(client, &bytes_of(|out| Request::Promote { force: false }.encode(out)));
    if answer.frames.is_empty() {
        answer.frames = lone.said(client);
    }
    let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
    assert_eq!(reply.status, Status::Refused);
    String::from_utf8_lossy(reply.payload).into_owned()
}

/// All that must be so while a node repairs.
fn expect_repairing(lone: &mut LoneNode, until: u64, context: &str) {
    let last = lone.node.positions().0;
    let (status_of_get, text) = get(lone, b"key 3");
    assert_eq!(status_of_get, Status::Repairing, "{context}");
    assert!(text.contains(&format!("LSN {last} of {until}")), "{context}: {text}");
    let status = status(lone);
    assert_eq!(status["repair"], serde_json::json!({ "lsn": last.0, "until_lsn": until }), "{context}");
    assert_eq!(status["in_sync"], false, "{context}");
    let text = refused_promotion(lone);
    assert!(text.contains(&format!("held records up to LSN {until} and holds them to {last}")), "{text}");
    assert_eq!(probe(lone).repair, (TERM, Lsn(until)), "{context}");
}

fn expect_repaired(lone: &mut LoneNode, hash: u128, context: &str) {
    assert_eq!(get(lone, b"key 3").0, Status::Ok, "{context}");
    assert_eq!(status(lone)["repair"], serde_json::Value::Null, "{context}");
    assert_eq!(lone.node.keyspace().state_hash(), hash, "{context}");
    assert_eq!(probe(lone).repair, (Term::ZERO, Lsn::ZERO), "{context}");
}

#[test]
fn a_follower_with_a_damaged_log_fetches_it_again_and_serves_nothing_until_it_has() {
    let log = leaders_log(RECORDS);
    for damage in &DAMAGES {
        let context = damage.0;
        let (disk, hash) = damaged(damage, &log);
        let mut lone = start(&disk, RoleFlag::Follower).unwrap_or_else(|why| panic!("{context}: {why}"));
        let whole = lone.node.positions().0;
        assert!(whole < Lsn(RECORDS), "{context}");
        expect_repairing(&mut lone, RECORDS, context);
        let (conn, reply) = open_with(&mut lone, &log.open_message());
        assert_eq!((reply.match_lsn, reply.repair_until), (whole, Lsn(RECORDS)), "{context}");
        for frame in &log.frames[whole.0 as usize..RECORDS as usize - 1] {
            // Every frame says that this node is in sync. It knows better.
            assert_eq!(acked(&lone.send(conn, frame)), lone.node.positions().0);
            assert!(!lone.node.observe().in_sync, "{context}");
        }
        expect_repairing(&mut lone, RECORDS, context);
        assert_eq!(acked(&lone.send(conn, &log.frames[RECORDS as usize - 1])), Lsn(RECORDS));
        expect_repaired(&mut lone, hash, context);
        let (_, reply) = open_with(&mut lone, &log.open_message());
        assert_eq!((reply.match_lsn, reply.repair_until), (Lsn(RECORDS), Lsn::ZERO), "{context}");
    }
}

#[test]
fn the_damaged_files_are_kept_as_they_were() {
    let log = leaders_log(RECORDS);
    for damage in &DAMAGES {
        let (disk, _) = damaged(damage, &log);
        let before: Vec<(String, Vec<u8>)> =
            segments(&disk).into_iter().map(|name| (name.clone(), disk.raw(&name).expect("there"))).collect();
        start(&disk, RoleFlag::Follower).expect("it repairs");
        let mut kept = 0;
        for (name, raw) in before {
            let aside = disk.raw(&format!("damaged-g2-{name}")).or(disk.raw(&format!("damaged-g3-{name}")));
            match aside {
                Some(aside) => {
                    let (same, rest) = raw.split_at(aside.len());
                    assert!(aside == same, "{}: {name} is kept as it was", damage.0);
                    assert!(
                        rest.iter().all(|byte| *byte == 0),
                        "{}: nothing of {name} is left out",
                        damage.0
                    );
                    kept += 1;
                }
                // One that is the last now got a mark behind its end.
                None => {
                    let used = raw.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                    let same = disk.raw(&name).is_some_and(|now| now[..used] == raw[..used]);
                    assert!(same, "{}: {name} was whole", damage.0);
                }
            }
        }
        assert!(kept > 0, "{}", damage.0);
    }
}

/// Runs a start that crashes before its n-th disk operation, then a whole one. False: it did not come so far.
fn crash_in_start(disk: &MemDisk, at: u64, keep: Option<Keep>, context: &str) -> bool {
    let files: Vec<_> = segments(disk).into_iter().map(|name| (name.clone(), disk.raw(&name))).collect();
    disk.crash_before(disk.op_count() + at);
    let clock = Box::new(VirtualClock::at_ms(1));
    let started = Node::open(Box::new(disk.clone()), clock, 7, config(RoleFlag::Follower, &[])).is_ok();
    let crashed = disk.has_crashed();
    assert!(started != crashed, "{context}: nothing but the crash keeps it from starting");
    match keep {
        Some(keep) => disk.crash(keep),
        None => disk.kill_process(),
    }
    // Nothing is given up that is not noted.
    let mut copy = disk.fork();
    let meta = MetaStore::load(&mut copy).expect("META is whole").expect("it is there").get().clone();
    if !meta.repair.is_due() {
        for (name, raw) in files {
            assert!(disk.raw(&name) == raw, "{context}: {name} was changed before the note was durable");
        }
    }
    crashed
}

#[test]
fn a_repair_survives_a_crash_at_every_step_of_the_start() {
    let log = leaders_log(RECORDS);
    for damage in [&DAMAGES[0], &DAMAGES[3], &DAMAGES[6], &DAMAGES[7]] {
        let (damaged, hash) = damaged(damage, &log);
        let mut steps = 0;
        for keep in [None, Some(Keep::None), Some(Keep::All), Some(Keep::Random(7))] {
            for at in 0.. {
                let (disk, context) = (damaged.fork(), format!("{}, {keep:?}, step {at}", damage.0));
                let crashed = crash_in_start(&disk, at, keep, &context);
                let mut lone =
                    start(&disk, RoleFlag::Follower).unwrap_or_else(|why| panic!("{context}: {why}"));
                expect_repairing(&mut lone, RECORDS, &context);
                let (conn, reply) = open_with(&mut lone, &log.open_message());
                assert_eq!(reply.repair_until, Lsn(RECORDS), "{context}");
                if at % 4 == 0 {
                    feed(&mut lone, conn, &log, reply.match_lsn);
                    expect_repaired(&mut lone, hash, &context);
                }
                let kept = disk.names().iter().filter(|name| name.starts_with("damaged-g")).count();
                assert!(kept > 0, "{context}: the damaged files are kept");
                if !crashed {
                    break;
                }
                steps += 1;
            }
        }
        assert!(steps > 20, "{}: {steps} crashes", damage.0);
    }
}

#[test]
fn what_a_repairing_follower_acknowledged_survives_a_power_loss_and_the_note_with_it() {
    let log = leaders_log(RECORDS);
    let (damaged, hash) = damaged(&DAMAGES[0], &log);
    for stop in 0..=8 {
        let disk = damaged.fork();
        let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs");
        let (conn, reply) = open_with(&mut lone, &log.open_message());
        let held = reply.match_lsn.0 as usize;
        let fed = held + (RECORDS as usize - held) * stop / 8;
        for frame in &log.frames[held..fed] {
            assert_eq!(acked(&lone.send(conn, frame)), lone.node.positions().0);
        }
        drop(lone);
        disk.crash(Keep::None);
        let mut lone = start(&disk, RoleFlag::Follower).expect("what was fetched is whole");
        assert_eq!(lone.node.positions().0, Lsn(fed as u64));
        if stop < 8 {
            expect_repairing(&mut lone, RECORDS, "after a power loss");
        }
        let (conn, reply) = open_with(&mut lone, &log.open_message());
        feed(&mut lone, conn, &log, reply.match_lsn);
        expect_repaired(&mut lone, hash, "in the end");
    }
}

#[test]
fn a_log_that_is_damaged_again_while_it_is_repaired_is_repaired_from_there() {
    let log = leaders_log(RECORDS);
    let (disk, hash) = damaged(&DAMAGES[3], &log);
    let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs");
    let (conn, reply) = open_with(&mut lone, &log.open_message());
    let held = reply.match_lsn.0 as usize;
    log.frames[held..held + 5].iter().for_each(|frame| drop(lone.send(conn, frame)));
    drop(lone);
    disk.kill_process();
    // A file of the new generation, behind the first cut: it must not pass for what that cut took back.
    let newest = segments(&disk).pop().expect("there is one");
    assert_eq!(newest, segment_name(reply.match_lsn.next()));
    disk.corrupt(&newest, 20, 1);
    let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs again");
    assert_eq!(lone.node.positions().0, reply.match_lsn);
    expect_repairing(&mut lone, RECORDS, "again");
    assert!(disk.names().iter().any(|name| name.starts_with("damaged-g3-")), "{:?}", disk.names());
    let (conn, reply) = open_with(&mut lone, &log.open_message());
    feed(&mut lone, conn, &log, reply.match_lsn);
    expect_repaired(&mut lone, hash, "in the end");
}

#[test]
fn a_leader_and_a_disk_that_fails_are_refused_and_nothing_is_changed() {
    let disk = MemDisk::new();
    let mut lone = start(&disk, RoleFlag::Leader).expect("a new disk is well");
    let client = lone.connect();
    for number in 0..40_u8 {
        let value = vec![number; 4 << 10];
        lone.send(client, &bytes_of(|out| Request::Put { key: b"k", value: &value }.encode(out)));
    }
    drop(lone);
    disk.kill_process();
    let (name, at) = middle(&disk, 1);
    disk.corrupt(&name, at, 3);
    let before: Vec<_> = segments(&disk).iter().map(|name| disk.raw(name)).collect();
    let why = start(&disk, RoleFlag::Leader).err().expect("a leader has nobody to ask").to_string();
    for part in [name.as_str(), "is damaged at byte", "LSN", "Nothing was changed", "Restore the file"] {
        assert!(why.contains(part), "{part:?} in {why}");
    }
    assert!(segments(&disk).iter().map(|name| disk.raw(name)).eq(before), "nothing is changed");

    let (disk, _) = healthy(&leaders_log(RECORDS));
    let before: Vec<_> = segments(&disk).iter().map(|name| disk.raw(name)).collect();
    disk.fail(mem_disk::OpKind::Read, 8, mem_disk::EIO);
    let why = start(&disk, RoleFlag::Follower).err().expect("an error is no damage").to_string();
    assert!(why.contains("os error 5"), "{why}");
    assert!(segments(&disk).iter().map(|name| disk.raw(name)).eq(before), "nothing is changed");
}

#[test]
fn committed_records_that_were_damaged_here_and_that_the_leader_lacks_are_not_given_up_silently() {
    let log = leaders_log(RECORDS);
    let (disk, _) = damaged(&DAMAGES[0], &log);
    let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs");
    // A leader that ends before what was committed here: a mark has told that before the damage.
    let short = leaders_log(RECORDS - 10);
    let conn = greeted(&mut lone);
    let answer = lone.send(conn, &short.open());
    let refuse = Refuse::decode(&answer.frames[0].1).expect("a REFUSE");
    assert_eq!(refuse.code, RefuseCode::CutBelowCommit);
    assert!(refuse.message.contains("held committed records up to LSN"), "{}", refuse.message);
    expect_repairing(&mut lone, RECORDS, "still");
    // The operator gives them up.
    let client = lone.connect();
    let follow = Request::Follow { address: "leader:1", discard: true };
    lone.send(client, &bytes_of(|out| follow.encode(out)));
    let (conn, reply) = open_with(&mut lone, &short.open_message());
    assert_eq!(reply.repair_until, short.last());
    feed(&mut lone, conn, &short, reply.match_lsn);
    assert_eq!(get(&mut lone, b"key 3").0, Status::Ok);
}

#[test]
fn a_follower_that_its_leader_has_heard_more_from_repairs_even_if_its_log_is_whole() {
    let log = leaders_log(RECORDS);
    for held in [0, 1, 20, RECORDS - 1] {
        // A wiped directory, or an older copy.
        let older = leaders_log(held.max(1));
        let (disk, _) = if held == 0 { (MemDisk::new(), 0) } else { healthy(&older) };
        let mut lone = start(&disk, RoleFlag::Follower).expect("its log is whole");
        assert_ne!(get(&mut lone, b"key 3").0, Status::Repairing, "nobody has told it yet");
        let open = Open { heard_lsn: Lsn(RECORDS), ..log.open_message() };
        let (conn, reply) = open_with(&mut lone, &open);
        assert_eq!((reply.match_lsn, reply.repair_until), (Lsn(held), Lsn(RECORDS)));
        expect_repairing(&mut lone, RECORDS, "told by its leader");
        // Also over a restart, and with a leader that remembers nothing.
        drop(lone);
        disk.crash(Keep::None);
        let mut lone = start(&disk, RoleFlag::Follower).expect("its log is whole");
        expect_repairing(&mut lone, RECORDS, "after a restart");
        let (again, reply) = open_with(&mut lone, &log.open_message());
        assert_ne!(again, conn);
        assert_eq!(reply.repair_until, Lsn(RECORDS));
        feed(&mut lone, again, &log, reply.match_lsn);
        assert_eq!(get(&mut lone, b"key 3").0, Status::Ok);
        assert!(lone.node.observe().repair_until == Lsn::ZERO);
    }
}

#[test]
fn a_repair_ends_at_the_leaders_end_if_that_is_before_what_was_held_once() {
    let log = leaders_log(RECORDS);
    let (disk, _) = damaged(&DAMAGES[0], &log);
    let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs");
    // The last record was never committed, and its leader lost it with its own power.
    let shorter = leaders_log(RECORDS - 1);
    let (conn, reply) = open_with(&mut lone, &shorter.open_message());
    assert_eq!(reply.repair_until, shorter.last());
    feed(&mut lone, conn, &shorter, reply.match_lsn);
    assert_eq!(get(&mut lone, b"key 3").0, Status::Ok);
}

#[test]
fn a_leader_with_less_of_its_own_term_than_its_follower_is_refused_in_words() {
    let log = leaders_log(RECORDS);
    let (disk, _) = healthy(&log);
    let mut lone = start(&disk, RoleFlag::Follower).expect("its log is whole");
    for held in [1, 20, RECORDS - 1] {
        let older = leaders_log(held);
        let conn = greeted(&mut lone);
        let answer = lone.send(conn, &older.open());
        let refuse = Refuse::decode(&answer.frames[0].1).expect("a REFUSE");
        assert_eq!(refuse.code, RefuseCode::RolledBack);
        assert!(
            refuse.message.contains("promote") && refuse.message.contains("older copy"),
            "{}",
            refuse.message
        );
        assert_eq!((lone.node.positions().0, lone.node.counters.cuts), (Lsn(RECORDS), 0), "nothing is cut");
    }
    let (_, reply) = open_with(&mut lone, &log.open_message());
    assert_eq!(reply.match_lsn, Lsn(RECORDS), "the leader that has it all is followed");
}

#[test]
fn a_repair_that_finds_the_disk_full_gives_nothing_up_and_goes_on_when_there_is_room() {
    let log = leaders_log(RECORDS);
    let (disk, hash) = damaged(&DAMAGES[0], &log);
    disk.set_capacity(Some(disk.used()));
    let before: Vec<_> = segments(&disk).iter().map(|name| disk.raw(name)).collect();
    let why = start(&disk, RoleFlag::Follower).err().expect("there is no room for the copy").to_string();
    assert!(why.contains("keep aside a copy of"), "{why}");
    disk.kill_process();
    assert!(segments(&disk).iter().map(|name| disk.raw(name)).eq(before), "nothing is changed");
    disk.set_capacity(None);
    let mut lone = start(&disk, RoleFlag::Follower).expect("it repairs");
    let (conn, reply) = open_with(&mut lone, &log.open_message());
    feed(&mut lone, conn, &log, reply.match_lsn);
    expect_repaired(&mut lone, hash, "in the end");
}
