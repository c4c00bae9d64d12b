//! A follower of an elected leader: it acknowledges what it has on its disk, and shows what is committed. One real node
//! on a disk in memory, and the test as its leader.

use kvstore::conn::ConnId;
use kvstore::ids::{Lsn, Term};
use kvstore::node::{Budgets, RoleFlag};
use kvstore::wire::client::{Reply, Request, Status};
use kvstore::wire::peer::{OpenReply, Refuse, RefuseCode};
use kvstore::wire::{Effect, MessageType};

use crate::leader_log::{Log, acked, bytes_of, greeted, session, term_record};
use crate::lone_node::{LoneNode, config};
use crate::mem_disk::MemDisk;

fn elected(records: u64) -> Log {
    Log { elected: true, ..Log::new(records) }
}

/// The same log up to `keep`, and then that of a leader elected later.
fn parted_from(keep: u64, records: u64) -> Log {
    let mut log = elected(keep);
    log.push(term_record(Term { promotion: 1, start: 0 }));
    (keep + 2..=records)
        .for_each(|lsn| log.push(Effect::Put { key: b"k", value: &(lsn + 1000).to_be_bytes() }));
    log
}

fn follower(disk: &MemDisk) -> LoneNode {
    LoneNode::on(disk, RoleFlag::Follower, &[])
}

fn applied(lone: &LoneNode) -> u64 {
    let (last, commit, applied) = lone.node.positions();
    assert!(applied <= commit.min(last), "applied {applied}, committed {commit}, last {last}");
    applied.0
}

/// What a client reads: at which LSN, and the number that was put there.
fn read(lone: &mut LoneNode) -> (u64, u64) {
    let conn = lone.connect();
    let answer = lone.send(conn, &bytes_of(|out| Request::Get { key: b"k" }.encode(out)));
    let reply = Reply::decode(&answer.frames[0].1).expect("a reply");
    let value = reply.payload.try_into().map_or(0, u64::from_be_bytes);
    assert!(matches!(reply.status, Status::Ok | Status::NotFound), "{reply:?}");
    (reply.lsn.0, value)
}

/// Until the node has nothing left to do at this moment.
fn rest(lone: &mut LoneNode) -> usize {
    let turns = (0..1_000).take_while(|_| {
        let before = lone.node.positions();
        lone.wake().expect("the disk is well");
        lone.node.positions() != before
    });
    turns.count()
}

#[test]
fn a_follower_shows_what_is_committed_and_acknowledges_what_it_has() {
    let (log, mut lone) = (elected(6), follower(&MemDisk::new()));
    let (conn, _) = session(&mut lone, &log);
    assert_eq!(acked(&lone.send(conn, &log.frame(1, 5, 3))), Lsn(5));
    assert_eq!((applied(&lone), read(&mut lone)), (3, (3, 3)));
    lone.send(conn, &log.frame(6, 5, 4));
    assert_eq!((applied(&lone), read(&mut lone)), (4, (4, 4)), "a heartbeat tells of a commit");
    assert_eq!(acked(&lone.send(conn, &log.frame(6, 6, 9))), Lsn(6));
    assert_eq!((applied(&lone), read(&mut lone)), (6, (6, 6)), "no more than it has");
}

#[test]
fn a_follower_of_a_fixed_leader_shows_what_is_on_its_disk() {
    let (log, mut lone) = (Log::new(5), follower(&MemDisk::new()));
    let (conn, _) = session(&mut lone, &log);
    assert_eq!(acked(&lone.send(conn, &log.frame(1, 5, 3))), Lsn(5));
    assert_eq!(read(&mut lone), (5, 5));
}

#[test]
fn a_restart_shows_what_was_known_to_be_committed_and_the_rest_waits_in_the_log() {
    let (log, disk) = (elected(8), MemDisk::new());
    let mut lone = follower(&disk);
    let (conn, _) = session(&mut lone, &log);
    lone.send(conn, &log.frame(1, 4, 3));
    // The mark in front of this batch says that 3 is committed.
    lone.send(conn, &log.frame(5, 7, 3));
    drop(lone);
    disk.kill_process();
    let mut lone = follower(&disk);
    assert_eq!((lone.node.positions().0, applied(&lone), read(&mut lone)), (Lsn(7), 3, (3, 3)));
    let (conn, match_lsn) = session(&mut lone, &log);
    assert_eq!((match_lsn, applied(&lone)), (Lsn(7), 3), "a session alone commits nothing");
    lone.send(conn, &log.frame(8, 7, 6));
    assert_eq!((applied(&lone), read(&mut lone)), (6, (6, 6)));
    lone.send(conn, &log.frame(8, 8, 8));
    assert_eq!((applied(&lone), read(&mut lone)), (8, (8, 8)));
}

/// A tail that no majority has is cut under a follower that holds it; the state it shows is never taken back.
fn a_cut_of_what_is_not_committed() {
    let (log, mut lone) = (elected(8), follower(&MemDisk::new()));
    let (conn, _) = session(&mut lone, &log);
    lone.send(conn, &log.frame(1, 8, 4));
    let shown = read(&mut lone);
    let later = parted_from(4, 7);
    let (conn, match_lsn) = session(&mut lone, &later);
    assert_eq!((match_lsn, lone.node.counters.cuts), (Lsn(4), 1));
    assert_eq!(shown, (4, 4), "what was read is committed");
    assert_eq!(read(&mut lone), shown, "the cut has not touched the state");
    lone.send(conn, &later.frame(5, 7, 4));
    assert_eq!(read(&mut lone), (4, 4));
    lone.send(conn, &later.frame(8, 7, 7));
    assert_eq!(read(&mut lone), (7, 1007));
}

#[test]
fn a_cut_of_what_is_not_committed_never_touches_the_state() {
    a_cut_of_what_is_not_committed();
}

#[cfg(feature = "sabotage")]
#[test]
fn a_follower_that_applies_what_is_on_its_disk_is_caught() {
    use kvstore::sabotage::{Variant, set};
    set(Some(Variant::FollowerAppliesUncommitted));
    let ended = std::panic::catch_unwind(a_cut_of_what_is_not_committed);
    set(None);
    assert!(ended.is_err(), "{} escaped", Variant::FollowerAppliesUncommitted.name());
}

#[test]
fn what_was_heard_of_a_commit_outlives_a_session_whose_log_ends_below_it() {
    let (log, mut lone) = (elected(8), follower(&MemDisk::new()));
    let (conn, _) = session(&mut lone, &log);
    lone.send(conn, &log.frame(1, 4, 8));
    assert_eq!(lone.node.positions(), (Lsn(4), Lsn(8), Lsn(4)));
    let (conn, match_lsn) = session(&mut lone, &log);
    assert_eq!((match_lsn, lone.node.positions().1), (Lsn(4), Lsn(8)));
    lone.send(conn, &log.frame(5, 7, 4));
    assert_eq!(applied(&lone), 7, "they were committed when their leader did not know yet");
}

#[test]
fn records_that_wait_take_bounded_memory_and_come_back_from_the_log() {
    const RECORDS: u64 = 600;
    const IN_FLIGHT: usize = 16 << 10;
    let (log, mut lone) = (elected(RECORDS), follower(&MemDisk::new()));
    lone.node.set_budgets(Budgets { in_flight_bytes: IN_FLIGHT, ..Budgets::default() });
    let (conn, _) = session(&mut lone, &log);
    for lsn in 1..=RECORDS {
        lone.send(conn, &log.frame(lsn, lsn, 1));
        assert!(lone.node.observe().in_flight_bytes <= IN_FLIGHT / 8);
    }
    assert_eq!(applied(&lone), 1);
    lone.send(conn, &log.frame(RECORDS + 1, RECORDS, 100));
    assert_eq!((applied(&lone), read(&mut lone)), (100, (100, 100)), "from the log");
    lone.send(conn, &log.frame(RECORDS + 1, RECORDS, RECORDS - 1));
    assert_eq!(read(&mut lone), (RECORDS - 1, RECORDS - 1), "from the log, and then from memory");
    lone.send(conn, &log.frame(RECORDS + 1, RECORDS, RECORDS));
    assert_eq!((read(&mut lone), lone.node.observe().in_flight_bytes), ((RECORDS, RECORDS), 0));
}

#[test]
fn a_long_log_is_applied_in_slices_between_which_the_node_answers() {
    const RECORDS: u64 = 24;
    let mut log = elected(1);
    (2..=RECORDS).for_each(|_| log.push(Effect::Put { key: b"large", value: &vec![7; 1 << 20] }));
    log.push(Effect::Put { key: b"k", value: &1_u64.to_be_bytes() });
    let disk = MemDisk::new();
    let mut lone = follower(&disk);
    let (conn, _) = session(&mut lone, &log);
    (1..=RECORDS + 1).for_each(|lsn| assert_eq!(acked(&lone.send(conn, &log.frame(lsn, lsn, 1))), Lsn(lsn)));
    drop(lone);
    disk.kill_process();
    let mut lone = follower(&disk);
    assert_eq!(applied(&lone), 1);
    let (conn, _) = session(&mut lone, &log);
    lone.send(conn, &log.frame(RECORDS + 2, RECORDS + 1, RECORDS + 1));
    let first = applied(&lone);
    // Two slices of 4 MiB: the test syncs once more than a turn does.
    assert!((5..=10).contains(&first), "{first} records of 1 MiB were applied");
    assert_eq!(acked(&lone.send(conn, &log.frame(RECORDS + 2, RECORDS + 1, RECORDS + 1))), Lsn(RECORDS + 1));
    let turns = rest(&mut lone);
    assert!((1..=6).contains(&turns), "{turns} turns");
    assert_eq!(read(&mut lone), (RECORDS + 1, 1));
}

#[test]
fn a_snapshot_is_of_what_is_committed() {
    let (log, disk) = (elected(9), MemDisk::new());
    let mut lone = follower(&disk);
    let (conn, _) = session(&mut lone, &log);
    lone.send(conn, &log.frame(1, 8, 5));
    let operator = lone.connect();
    lone.send(operator, &bytes_of(|out| Request::Snapshot { wait: true }.encode(out)));
    (0..20).for_each(|_| lone.pass_ms(50));
    assert!(
        disk.names().iter().any(|name| name.starts_with("snap-") && name.contains("5-")),
        "{:?}",
        disk.names()
    );
    drop(lone);
    disk.kill_process();
    let mut lone = LoneNode::with(&disk, config(RoleFlag::Follower, &[])).expect("the disk is well");
    assert_eq!((lone.node.counters.loaded_from_snapshot, applied(&lone), read(&mut lone)), (1, 5, (5, 5)));
}

fn refused(lone: &mut LoneNode, log: &Log) -> String {
    let conn: ConnId = greeted(lone);
    let answer = lone.send(conn, &log.open());
    assert_eq!(answer.frames[0].0, MessageType::Refuse, "{:?}", OpenReply::decode(&answer.frames[0].1));
    let refuse = Refuse::decode(&answer.frames[0].1).expect("a REFUSE");
    assert_eq!(refuse.code, RefuseCode::NotFollower);
    refuse.message
}

#[test]
fn a_log_is_of_one_kind_of_cluster_for_life() {
    let (fixed, elect) = (Log::new(3), elected(3));
    let disk = MemDisk::new();
    let mut lone = follower(&disk);
    let (conn, _) = session(&mut lone, &elect);
    lone.send(conn, &elect.frame(1, 3, 3));
    assert!(refused(&mut lone, &fixed).contains("leads by its flags"));
    drop(lone);
    disk.kill_process();
    assert!(refused(&mut follower(&disk), &fixed).contains("leads by its flags"), "after a restart too");

    let mut lone = follower(&MemDisk::new());
    let (conn, _) = session(&mut lone, &fixed);
    lone.send(conn, &fixed.frame(1, 3, 1));
    assert!(refused(&mut lone, &elect).contains("this leader is elected"));
    assert_eq!(read(&mut lone), (3, 3));
}
