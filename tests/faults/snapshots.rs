//! A follower whose snapshots are damaged: the older one and more log give the same state (D15), and with none left it
//! fetches its state again from its leader instead of ending (D2). A leader refuses in words.

use kvstore::ids::Lsn;
use kvstore::node::{FeedLimits, RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::snapshot::parse_snapshot_name;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mem_disk::{EIO, OpKind};
use crate::mini_cluster::MiniCluster;

/// How a snapshot is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// In the header: it is seen when the directory is looked at.
    Head,
    /// In a block: it is seen when that is loaded.
    Block,
    /// The file is gone.
    Missing,
}

const DAMAGES: [Damage; 3] = [Damage::Head, Damage::Block, Damage::Missing];

/// Where the snapshots of the follower come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Own,
    Leader,
}

fn put(cluster: &mut MiniCluster, number: u64) {
    let key = format!("key-{}", number % 40).into_bytes();
    let mut value = vec![number as u8; 1_000];
    value[..8].copy_from_slice(&number.to_be_bytes());
    cluster.send("a", &Request::Put { key: &key, value: &value });
    cluster.run();
}

fn puts(cluster: &mut MiniCluster, numbers: std::ops::Range<u64>) {
    numbers.into_iter().for_each(|number| put(cluster, number));
}

fn snapshot(cluster: &mut MiniCluster, name: &str) {
    let made = cluster.node(name).counters.snapshots;
    cluster.send(name, &Request::Snapshot { wait: false });
    for number in 0..6 {
        put(cluster, 7 * number);
        cluster.wait(1, true);
    }
    cluster.wait(400, true);
    let trace = cluster.take_trace();
    assert_eq!(cluster.node(name).counters.snapshots, made + 1, "{trace:#?}");
}

fn two_snapshots(cluster: &mut MiniCluster, names: &[&str]) {
    for round in 0..2 {
        puts(cluster, 10 + round * 150..160 + round * 150);
        cluster.wait(300, true);
        names.iter().for_each(|name| snapshot(cluster, name));
    }
    puts(cluster, 310..320);
    cluster.wait(300, true);
}

/// `a` leads, `b` follows; neither log begins at LSN 1, and `b` is down. In slices: its state is loaded turn by turn.
fn down(origin: Origin, in_slices: bool, ack: AckPolicy) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.feed = FeedLimits { frame_bytes: 6_000, high_water: 12_000, low_water: 5_000 };
    cluster.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        settle_ms: 1,
        slice_bytes: 8_000,
        load_at_once_bytes: if in_slices { 0 } else { 1 << 20 },
        ..SnapshotConfig::default()
    };
    cluster.start("b", RoleFlag::Follower, &[], ack);
    cluster.start("a", RoleFlag::Leader, &["b"], ack);
    cluster.wait(200, true);
    puts(&mut cluster, 0..10);
    cluster.wait(200, true);
    match origin {
        Origin::Own => two_snapshots(&mut cluster, &["a", "b"]),
        Origin::Leader => {
            cluster.kill("b", false);
            cluster.wait(1_000, true);
            two_snapshots(&mut cluster, &["a"]);
            cluster.start("b", RoleFlag::Follower, &[], ack);
            catch_up(&mut cluster, "the first time");
        }
    }
    cluster.kill("b", false);
    cluster.take_trace();
    cluster
}

fn snapshots_of(cluster: &MiniCluster, name: &str) -> Vec<String> {
    let names = cluster.disk(name).names().into_iter();
    names.filter(|name| parse_snapshot_name(name).is_some()).collect()
}

fn damage(cluster: &MiniCluster, file: &str, how: Damage) {
    match how {
        Damage::Head => cluster.disk("b").corrupt(file, 10, 3),
        Damage::Block => cluster.disk("b").corrupt(file, 20_000, 3),
        Damage::Missing => cluster.disk("b").remove_raw(file),
    }
}

fn start_b(cluster: &mut MiniCluster) {
    cluster.start("b", RoleFlag::Follower, &[], AckPolicy::Leader);
}

/// Time passes until both hold the same.
fn catch_up(cluster: &mut MiniCluster, when: &str) {
    for _ in 0..100 {
        cluster.wait(100, true);
        assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
        if cluster.node("a").positions() == cluster.node("b").positions() {
            break;
        }
    }
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_eq!(a.positions(), b.positions(), "{when}");
    assert_eq!(a.keyspace().recompute_hash(), b.keyspace().recompute_hash(), "{when}");
    assert_eq!(a.keyspace().state_hash(), b.keyspace().state_hash(), "{when}");
}

/// What `b` answers to a read.
fn read_b(cluster: &mut MiniCluster) -> String {
    cluster.take_trace();
    cluster.send("b", &Request::Get { key: b"key-1" });
    cluster.run();
    let trace = cluster.take_trace();
    let reply = trace.iter().find(|line| line.contains("REPLY"));
    reply.unwrap_or_else(|| panic!("no reply in {trace:#?}")).clone()
}

#[test]
fn a_follower_whose_snapshots_are_all_damaged_fetches_its_state_again() {
    for (origin, in_slices, how) in every_case() {
        let when = format!("{origin:?}, in slices {in_slices}, {how:?}");
        let mut cluster = down(origin, in_slices, AckPolicy::Leader);
        let held = cluster.node("a").positions().0;
        for file in snapshots_of(&cluster, "b") {
            damage(&cluster, &file, how);
        }
        start_b(&mut cluster);
        assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
        // Nothing of what it has left is a state, and nobody may take it for one.
        for _ in 0..200 {
            if !cluster.node("b").is_loading() {
                break;
            }
            cluster.pass(1);
            cluster.turn("b", None);
        }
        let seen = cluster.node("b").observe();
        assert_eq!((seen.last, seen.repair_until), (Lsn::ZERO, held), "{when}");
        let reply = read_b(&mut cluster);
        assert!(reply.contains("Repairing"), "{when}: {reply}");
        catch_up(&mut cluster, &when);
        let b = cluster.node("b");
        assert_eq!((b.counters.snapshots_installed, b.observe().repair_until), (1, Lsn::ZERO), "{when}");
        let reply = read_b(&mut cluster);
        assert!(reply.contains("REPLY Ok"), "{when}: {reply}");
        // What it holds now is what a restart finds, and what it had is kept for a person to look at.
        cluster.kill("b", true);
        start_b(&mut cluster);
        catch_up(&mut cluster, &format!("{when}, after a restart"));
        assert_eq!(cluster.node("b").counters.snapshots_installed, 0, "{when}");
        let names = cluster.disk("b").names();
        assert!(names.iter().any(|name| name.starts_with("damaged-g")), "{when}: {names:?}");
    }
}

fn every_case() -> impl Iterator<Item = (Origin, bool, Damage)> {
    [Origin::Own, Origin::Leader].into_iter().flat_map(|origin| {
        [false, true].into_iter().flat_map(move |slices| DAMAGES.map(|how| (origin, slices, how)))
    })
}

/// Segments of `b`, oldest first.
fn segments_of(cluster: &MiniCluster, name: &str) -> Vec<String> {
    let names = cluster.disk(name).names().into_iter();
    names.filter(|name| name.starts_with("wal-") && name.ends_with(".seg")).collect()
}

/// Every place of the log that the start of a follower reads, a byte here and there.
#[test]
fn a_follower_whose_log_is_damaged_anywhere_about_its_snapshot_keeps_the_snapshot_and_fetches_the_rest() {
    let (mut repaired, mut from_snapshot) = (0, 0);
    for origin in [Origin::Own, Origin::Leader] {
        let whole = down(origin, false, AckPolicy::Leader);
        let segments = segments_of(&whole, "b");
        let newest = snapshots_of(&whole, "b").pop().expect("it has one");
        let s = parse_snapshot_name(&newest).expect("it is one").s;
        for (index, file) in segments.iter().enumerate() {
            let size = whole.disk("b").raw(file).map_or(0, |raw| raw.len() as u64);
            for offset in [20, 5_000, 20_000, 33_000, 47_000, 60_000].into_iter().filter(|at| *at < size) {
                let when = format!("{origin:?}, byte {offset} of segment {index}, {file}");
                let mut cluster = down(origin, false, AckPolicy::Leader);
                cluster.disk("b").corrupt(file, offset, 1);
                start_b(&mut cluster);
                assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
                let b = cluster.node("b");
                let repairs = b.observe().repair_until > Lsn::ZERO;
                assert!(b.positions().0 >= s, "{when}: what the snapshot covers stays");
                from_snapshot += b.counters.loaded_from_snapshot;
                repaired += u64::from(repairs);
                if repairs {
                    let reply = read_b(&mut cluster);
                    assert!(reply.contains("Repairing") || reply.contains("Loading"), "{when}: {reply}");
                }
                catch_up(&mut cluster, &when);
                for power in [false, true] {
                    cluster.kill("b", power);
                    start_b(&mut cluster);
                    catch_up(&mut cluster, &format!("{when}, after a restart"));
                    assert_eq!(cluster.node("b").observe().repair_until, Lsn::ZERO, "{when}");
                }
                assert_eq!(cluster.node("b").counters.snapshots_installed, 0, "{when}");
            }
        }
    }
    assert!(repaired > 5 && from_snapshot > 5, "{repaired} repaired, {from_snapshot} from the snapshot");
}

#[test]
fn d15_a_follower_uses_the_older_snapshot_and_more_log_and_asks_nobody() {
    for (in_slices, how) in [false, true].into_iter().flat_map(|slices| DAMAGES.map(|how| (slices, how))) {
        let when = format!("in slices {in_slices}, {how:?}");
        let mut cluster = down(Origin::Own, in_slices, AckPolicy::Leader);
        let files = snapshots_of(&cluster, "b");
        assert_eq!(files.len(), 2);
        damage(&cluster, &files[1], how);
        start_b(&mut cluster);
        catch_up(&mut cluster, &when);
        let b = cluster.node("b");
        let counters = (b.counters.loaded_from_snapshot, b.counters.snapshots_installed);
        assert_eq!((counters, b.observe().repair_until), ((1, 0), Lsn::ZERO), "{when}");
        assert!(read_b(&mut cluster).contains("REPLY Ok"), "{when}");
    }
}

/// The older one is damaged, and some file cannot be opened: that goes away when the disk is well, damage does not.
#[test]
fn a_disk_that_cannot_read_a_snapshot_is_no_reason_to_give_up_the_log() {
    let mut named = 0;
    for opens_before in 0..24 {
        let mut cluster = down(Origin::Own, false, AckPolicy::Leader);
        let before = cluster.disk("b").names();
        let files = snapshots_of(&cluster, "b");
        damage(&cluster, &files[0], Damage::Head);
        cluster.disk("b").fail(OpKind::Open, opens_before, EIO);
        start_b(&mut cluster);
        let trace = cluster.take_trace();
        let refusal = trace.iter().find(|line| line.contains("does not start"));
        named += usize::from(refusal.is_some_and(|line| line.contains(&files[1])));
        if refusal.is_some() {
            assert_eq!(cluster.disk("b").names(), before, "nothing was changed: {trace:#?}");
        }
        cluster.kill("b", false);
        cluster.disk("b").heal();
        start_b(&mut cluster);
        catch_up(&mut cluster, "the disk reads again");
        let b = cluster.node("b").counters.snapshots_installed;
        assert_eq!(b, 0, "after {opens_before} opens: {trace:#?}");
    }
    assert!(named > 0, "it was the snapshot once");
}

#[test]
fn a_leader_without_a_good_snapshot_refuses_in_words_and_changes_nothing() {
    let mut cluster = down(Origin::Own, false, AckPolicy::Leader);
    cluster.kill("a", false);
    let files = snapshots_of(&cluster, "a");
    files.iter().for_each(|file| cluster.disk("a").corrupt(file, 10, 3));
    let before = cluster.disk("a").names();
    cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Leader);
    assert!(!cluster.is_up("a"));
    let trace = cluster.take_trace();
    let line = trace.iter().find(|line| line.contains("does not start")).expect("it says so");
    assert!(files.iter().all(|file| line.contains(file)) && line.contains("wal-"), "{line}");
    assert_eq!(cluster.disk("a").names(), before, "nothing was changed");
}

/// Damages the segment of `b` in which the log goes on behind its newest snapshot. Returns S of that.
fn damage_at_base(cluster: &MiniCluster) -> Lsn {
    let newest = snapshots_of(cluster, "b").pop().expect("it has one");
    let s = parse_snapshot_name(&newest).expect("it is one").s;
    let begins =
        |file: &String| file["wal-".len()..file.len() - ".seg".len()].parse::<u64>().expect("an LSN");
    let mut segments = segments_of(cluster, "b");
    segments.retain(|file| begins(file) <= s.next().0);
    cluster.disk("b").corrupt(segments.last().expect("one holds it"), 20, 1);
    s
}

/// A crash before each operation of the start that gives a log up, with and without the page cache.
#[test]
fn the_start_that_gives_up_what_no_snapshot_leads_to_may_crash_anywhere() {
    for (origin, at_base) in [(Origin::Own, false), (Origin::Leader, false), (Origin::Own, true)] {
        let broken = || {
            let cluster = down(origin, false, AckPolicy::Leader);
            if at_base {
                return (damage_at_base(&cluster), cluster);
            }
            for file in snapshots_of(&cluster, "b") {
                damage(&cluster, &file, Damage::Block);
            }
            (Lsn::ZERO, cluster)
        };
        let (left, mut whole) = broken();
        let first = whole.disk("b").op_count();
        start_b(&mut whole);
        let last = whole.disk("b").op_count();
        assert!(last > first + 5);
        for (op, power) in (first..last).flat_map(|op| [(op, false), (op, true)]) {
            let when =
                format!("{origin:?}, at the base {at_base}, crash before operation {op}, power {power}");
            let (_, mut cluster) = broken();
            cluster.disk("b").crash_before(op);
            start_b(&mut cluster);
            cluster.kill("b", power);
            start_b(&mut cluster);
            assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
            let seen = cluster.node("b").observe();
            assert!(seen.last == left && seen.repair_until > left, "{when}: {seen:?}");
            let reply = read_b(&mut cluster);
            assert!(reply.contains("Repairing") || reply.contains("Loading"), "{when}: {reply}");
            catch_up(&mut cluster, &when);
            let kept = cluster.disk("b").names();
            assert!(kept.iter().any(|name| name.starts_with("damaged-g")), "{when}: {kept:?}");
        }
    }
}
