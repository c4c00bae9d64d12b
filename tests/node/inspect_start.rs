//! What `kvstore inspect` says of a start is what a start does: both are run on the same directories, whole and damaged
//! in many ways, and compared; and the first of the two leaves every byte as it was.

use kvstore::disk::{Holder, Overlay};
use kvstore::ids::Lsn;
use kvstore::inspect::{Content, document, inspect_directory, text};
use kvstore::meta::{MetaStore, StoredRole};
use kvstore::node::{NodeConfig, Outcome, RoleFlag, SnapshotConfig, dry_run};
use kvstore::wal::{HEADER_SIZE, SegmentState};
use kvstore::wire::client::Request;

use crate::lone_node::{self, LoneNode};
use crate::mem_disk::{self, Keep, MemDisk, OpKind};

/// A value so large that a few dozen fill a segment.
const VALUE_SIZE: usize = 2_000;

fn config(role: RoleFlag) -> NodeConfig {
    let mut config = lone_node::config(role, &[]);
    config.snapshot = SnapshotConfig { log_bytes: Some(u64::MAX), settle_ms: 1, ..SnapshotConfig::default() };
    config
}

fn ask(lone: &mut LoneNode, conn: kvstore::conn::ConnId, request: &Request<'_>) {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    lone.send(conn, &bytes);
}

/// A leader's directory with two snapshots and the segments that the older one needs. The process was killed.
fn leader_directory() -> MemDisk {
    let disk = MemDisk::new();
    let mut lone = LoneNode::with(&disk, config(RoleFlag::Leader)).expect("the disk is well");
    let conn = lone.connect();
    for number in 0..240u64 {
        let key = format!("key-{}", number % 50);
        ask(&mut lone, conn, &Request::Put { key: key.as_bytes(), value: &[number as u8; VALUE_SIZE] });
        if number == 80 || number == 160 {
            ask(&mut lone, conn, &Request::Snapshot { wait: false });
        }
        lone.pass_ms(5);
    }
    assert_eq!(lone.node.counters.snapshots, 2);
    disk.kill_process();
    disk
}

/// The same files as those of a follower that knows its leader.
fn follower_directory() -> MemDisk {
    let disk = leader_directory();
    let mut meta = MetaStore::load(&mut disk.clone()).expect("it is whole").expect("it is there");
    let change = |meta: &mut kvstore::meta::Meta| {
        meta.role = StoredRole::FollowerByCommand;
        meta.leader_address = "127.0.0.1:9".to_owned();
    };
    meta.update(&mut disk.clone(), change).expect("the disk is well");
    disk.kill_process();
    disk
}

/// What a start does: its last LSN and until where it repairs, or its refusal.
type Start = Result<(Lsn, Option<Lsn>), String>;

fn start(disk: &MemDisk, role: RoleFlag) -> Start {
    let lone = LoneNode::with(disk, config(role)).map_err(|reason| reason.to_string())?;
    let (last, ..) = lone.node.positions();
    // Who leads has appended the first record of its term by now.
    let found = if role == RoleFlag::Leader { last.prev() } else { last };
    let until = lone.node.observe().repair_until;
    Ok((found, (until > Lsn::ZERO).then_some(until)))
}

fn foretold(disk: &MemDisk) -> Start {
    let before = disk.op_count();
    let told = dry_run(&mut Overlay::new(&mut disk.clone()));
    assert_eq!(disk.op_count(), before, "nothing was changed");
    match told.outcome {
        Outcome::Opens { last_lsn, repairs_until, .. } => Ok((last_lsn, repairs_until)),
        Outcome::Refuses(why) => Err(why),
        Outcome::Fresh => panic!("there are files"),
    }
}

type Damage = Box<dyn Fn(&MemDisk)>;

/// Every file: gone, and with a flipped bit at several places; and some that belong together.
fn damages(disk: &MemDisk) -> Vec<(String, Damage)> {
    let mut all: Vec<(String, Damage)> = vec![("nothing".to_owned(), Box::new(|_: &MemDisk| {}))];
    for name in disk.names() {
        let size = disk.raw(&name).expect("it is listed").len() as u64;
        let gone = name.clone();
        all.push((format!("{name} is gone"), Box::new(move |disk| disk.remove_raw(&gone))));
        for at in [0, 9, 20, 41, 70, 4_000, HEADER_SIZE + 9, HEADER_SIZE + 60, size / 3, size - 30] {
            let name = name.clone();
            let what = format!("a bit of {name} at byte {at}");
            all.push((
                what,
                Box::new(move |disk| {
                    if at < size {
                        disk.corrupt(&name, at, 3)
                    }
                }),
            ));
        }
    }
    for (one, other) in [("META.", "META."), ("snap-", "snap-"), ("snap-", "wal-"), ("META.a", "wal-")] {
        let both = move |disk: &MemDisk| {
            let names = disk.names();
            let first = names.iter().find(|name| name.starts_with(one)).expect("it is there");
            let last = names.iter().rfind(|name| name.starts_with(other)).expect("it is there");
            disk.corrupt(first, 5_000, 1);
            disk.corrupt(last, 5_000, 1);
        };
        all.push((format!("{one} and {other}"), Box::new(both)));
    }
    all
}

#[test]
fn what_is_said_of_a_start_is_what_a_start_does() {
    let directories = [(leader_directory(), RoleFlag::Leader), (follower_directory(), RoleFlag::Follower)];
    let (mut opens, mut refuses, mut repairs) = (0, 0, 0);
    for (disk, role) in directories {
        for (what, damage) in damages(&disk) {
            let damaged = disk.fork();
            damage(&damaged);
            let told = foretold(&damaged);
            let done = start(&damaged.fork(), role);
            assert_eq!(told, done, "{role:?}: {what}");
            match done {
                Ok((_, Some(_))) => repairs += 1,
                Ok((_, None)) => opens += 1,
                Err(_) => refuses += 1,
            }
        }
    }
    assert!(opens > 20 && refuses > 10 && repairs > 5, "{opens} open, {refuses} refuse, {repairs} repair");
}

/// A file that the disk does not read is not a damaged one: a follower gives up nothing because of it.
#[test]
fn a_read_that_fails_once_makes_neither_a_start_nor_what_is_said_of_it_give_records_up() {
    let disk = follower_directory();
    let names = disk.names();
    let older = names.iter().find(|name| name.starts_with("snap-")).expect("there are two");
    disk.corrupt(older, 5_000, 1);
    let failing_at = |after: u64| {
        let failing = disk.fork();
        failing.fail(OpKind::Read, after, mem_disk::EIO);
        failing
    };
    let well = foretold(&disk);
    assert_eq!(start(&disk.fork(), RoleFlag::Follower), well);
    let says_so = |outcome: &Start| outcome.as_ref().is_err_and(|why| why.contains("os error 5"));
    let (mut told_of, mut done) = (0, 0);
    // A start has a few more reads than what foretells it, so they are not compared one by one.
    for after in 0..200 {
        let told = foretold(&failing_at(after));
        assert!(told == well || says_so(&told), "read {after} fails: {told:?}");
        told_of += u32::from(says_so(&told));
        let outcome = start(&failing_at(after), RoleFlag::Follower);
        assert!(outcome == well || says_so(&outcome), "read {after} fails: {outcome:?}");
        done += u32::from(says_so(&outcome));
    }
    assert!(told_of > 5 && done > 5, "{told_of} refusals told of, {done} refusals");
}

#[test]
fn what_is_said_of_a_start_after_a_loss_of_power_is_what_a_start_does() {
    for seed in 0..12 {
        let disk = leader_directory();
        let mut lone = LoneNode::with(&disk, config(RoleFlag::Leader)).expect("the disk is well");
        let conn = lone.connect();
        // The last batch reaches the page cache and not the disk.
        disk.fail(OpKind::Sync, 0, mem_disk::EIO);
        let mut bytes = Vec::new();
        Request::Put { key: b"torn", value: &[7; 5_000] }.encode(&mut bytes);
        let failed = lone.try_send(conn, &bytes);
        assert!(failed.is_err(), "the sync fails");
        drop(lone);
        disk.heal();
        disk.crash(Keep::Random(seed));
        assert_eq!(foretold(&disk), start(&disk.fork(), RoleFlag::Leader), "seed {seed}");
    }
}

#[test]
fn a_torn_tail_is_named_with_its_bytes_and_is_no_problem() {
    let disk = leader_directory();
    let last = disk.names().into_iter().rfind(|name| name.starts_with("wal-") && name.ends_with(".seg"));
    let last = last.expect("there is a log");
    let used = disk.raw(&last).expect("it is there");
    let end = used.iter().rposition(|&byte| byte != 0).expect("it has records") + 1;
    let mut torn = used;
    torn[end + 100..end + 112].fill(0xee);
    disk.put_raw(&last, &torn);
    let report = inspect_directory(&mut disk.clone(), Holder::Nobody).expect("it can be listed");
    assert_eq!(report.problems(), Vec::<String>::new());
    let told = text(&report);
    assert!(told.contains("would cut a torn tail of 112 B"), "{told}");
    assert!(told.contains("ends with a torn tail of 112 B"), "{told}");
}

#[test]
fn each_damaged_file_is_named_whatever_is_wrong_with_the_others() {
    let disk = leader_directory();
    let is_segment = |name: &&String| name.starts_with("wal-") && name.ends_with(".seg");
    let segments: Vec<String> = disk.names().iter().filter(is_segment).cloned().collect();
    assert!(segments.len() >= 3, "{segments:?}");
    disk.corrupt(&segments[0], HEADER_SIZE + 300, 1);
    disk.corrupt(&segments[1], 20, 1);
    let snapshot = disk.names().into_iter().find(|name| name.ends_with(".kvsnap")).expect("there are two");
    disk.corrupt(&snapshot, 6_000, 1);
    disk.corrupt("META.b", 90, 1);
    let before = disk.op_count();
    let report = inspect_directory(&mut disk.clone(), Holder::Nobody).expect("it can be listed");
    assert_eq!(disk.op_count(), before, "nothing was changed");
    for name in [&segments[0], &segments[1], &snapshot, &"META.b".to_owned()] {
        assert!(report.problems().iter().any(|problem| problem.starts_with(name)), "{name}");
    }
    let state = |name: &str| {
        let file = report.files.iter().find(|file| file.name == name).expect("it is listed");
        let Content::Segment(look) = &file.content else { panic!("{name} is a segment") };
        look.state.clone()
    };
    assert!(matches!(state(&segments[0]), SegmentState::Damaged { byte, .. } if byte >= HEADER_SIZE));
    assert!(matches!(state(&segments[1]), SegmentState::Damaged { byte: 0, .. }));
    let document = document(&report);
    assert_eq!(document["problems"].as_array().expect("a list").len(), report.problems().len());
}

#[test]
fn a_healthy_directory_shows_one_range_and_its_terms() {
    let disk = leader_directory();
    let report = inspect_directory(&mut disk.clone(), Holder::Nobody).expect("it can be listed");
    assert_eq!(report.problems(), Vec::<String>::new());
    let whole = report.whole.as_ref().expect("a directory");
    let [(first, last)] = whole.ranges[..] else { panic!("one range: {:?}", whole.ranges) };
    assert_eq!(Ok((last, None)), foretold(&disk));
    assert_eq!(whole.terms.len(), 1);
    let lsns =
        |look: &kvstore::wal::SegmentLook| look.content.as_ref().map_or(0, |content| content.records());
    let segments = report.files.iter().filter_map(|file| file.segment_of_the_log());
    let records: u64 = segments.map(lsns).sum();
    assert_eq!(records, last.0 - first.0 + 1);
}
