//! A follower that was away for longer than its leader's log goes back gets a snapshot, and then the log. With a crash
//! of either side at every disk operation, a lost connection, a new leader and writes at every turn of it (N9, N11).

use kvstore::limits::TRANSFER_RESUME_MS;
use kvstore::node::{FeedLimits, PinConfig, PinOverflow, RoleFlag, SnapshotConfig};
use kvstore::replication::commit::AckPolicy;
use kvstore::snapshot::{RECEIVED_NAME, parse_snapshot_name};
use kvstore::wire::client::Request;

use crate::logs;
use crate::mem_disk::{EIO, OpKind};
use crate::mini_cluster::MiniCluster;

/// Turns that a whole catch-up may take, and in which something is to happen.
const STEPS_MAX: usize = 400;

fn put(cluster: &mut MiniCluster, name: &str, number: u64) {
    let key = format!("key-{}", number % 40).into_bytes();
    let mut value = vec![number as u8; 1_000];
    value[..8].copy_from_slice(&number.to_be_bytes());
    cluster.send(name, &Request::Put { key: &key, value: &value });
    cluster.run();
}

fn puts(cluster: &mut MiniCluster, name: &str, numbers: std::ops::Range<u64>) {
    numbers.into_iter().for_each(|number| put(cluster, name, number));
}

/// Makes one, and lets what it covers go.
fn snapshot(cluster: &mut MiniCluster, name: &str) {
    let made = cluster.node(name).counters.snapshots;
    cluster.send(name, &Request::Snapshot { wait: false });
    // Written while it is scanned: between S and E.
    for number in 0..6 {
        put(cluster, "a", 7 * number);
        cluster.wait(1, true);
    }
    cluster.wait(400, true);
    let trace = cluster.take_trace();
    assert_eq!(cluster.node(name).counters.snapshots, made + 1, "{trace:#?}");
}

/// Written to `a`; two snapshots of each of the nodes.
fn two_snapshots(cluster: &mut MiniCluster, names: &[&str], first: u64) {
    for round in 0..2 {
        puts(cluster, "a", first + round * 150..first + round * 150 + 150);
        cluster.wait(300, true);
        names.iter().for_each(|name| snapshot(cluster, name));
    }
    puts(cluster, "a", first + 300..first + 310);
}

fn started(others: &[&str]) -> MiniCluster {
    started_with(others, PinConfig::default())
}

fn started_with(others: &[&str], pin: PinConfig) -> MiniCluster {
    logs::capture();
    let mut cluster = MiniCluster::new();
    cluster.pin = pin;
    cluster.feed = FeedLimits { frame_bytes: 6_000, high_water: 12_000, low_water: 5_000 };
    cluster.snapshot = SnapshotConfig {
        log_bytes: Some(u64::MAX),
        settle_ms: 1,
        slice_bytes: 8_000,
        ..SnapshotConfig::default()
    };
    for name in others {
        cluster.start(name, RoleFlag::Follower, &[], AckPolicy::Leader);
    }
    cluster.start("a", RoleFlag::Leader, others, AckPolicy::Leader);
    cluster.wait(200, true);
    puts(&mut cluster, "a", 0..10);
    cluster.wait(200, true);
    cluster
}

/// `a` leads; `b` has a few records and is down, and `a` has two snapshots and no log from there.
fn away() -> MiniCluster {
    let mut cluster = started(&["b"]);
    cluster.kill("b", false);
    two_snapshots(&mut cluster, &["a"], 10);
    cluster.take_trace();
    cluster
}

fn start_follower(cluster: &mut MiniCluster, name: &str) {
    cluster.start(name, RoleFlag::Follower, &[], AckPolicy::Leader);
}

/// Turns and time until both hold the same, and what they hold is what they say.
fn catch_up(cluster: &mut MiniCluster, leader: &str, follower: &str, when: &str) {
    for _ in 0..100 {
        cluster.wait(100, true);
        if cluster.node(leader).positions() == cluster.node(follower).positions() {
            break;
        }
    }
    let (one, other) = (cluster.node(leader), cluster.node(follower));
    assert_eq!(one.positions(), other.positions(), "{when}");
    assert_eq!(one.keyspace().recompute_hash(), other.keyspace().recompute_hash(), "{when}");
    assert_eq!(one.keyspace().state_hash(), other.keyspace().state_hash(), "{when}");
    let names = cluster.disk(follower).names();
    assert!(!names.iter().any(|name| name == RECEIVED_NAME), "{when}: {names:?}");
    cluster.take_trace();
}

fn snapshots_of(cluster: &MiniCluster, name: &str) -> usize {
    cluster.disk(name).names().iter().filter(|name| parse_snapshot_name(name).is_some()).count()
}

#[test]
fn who_was_away_for_longer_than_the_log_goes_back_gets_a_snapshot_and_then_the_log() {
    let mut cluster = away();
    start_follower(&mut cluster, "b");
    catch_up(&mut cluster, "a", "b", "without a fault");
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    assert_eq!((a.counters.snapshots_sent, b.counters.snapshots_installed), (1, 1));
    assert_eq!(snapshots_of(&cluster, "b"), 1);
    // Records go on as to anybody, and what is here is what a restart finds.
    puts(&mut cluster, "a", 400..420);
    catch_up(&mut cluster, "a", "b", "afterwards");
    cluster.kill("b", true);
    start_follower(&mut cluster, "b");
    catch_up(&mut cluster, "a", "b", "after a restart");
    assert_eq!(cluster.node("b").counters.snapshots_installed, 0);
}

/// How many turns a catch-up takes: while it lasts something can happen.
fn steps_of(mut cluster: MiniCluster) -> usize {
    start_follower(&mut cluster, "b");
    let mut steps = 0;
    while cluster.node("b").counters.snapshots_installed == 0 {
        cluster.step();
        steps += 1;
        assert!(steps < STEPS_MAX);
    }
    steps + 6
}

fn run_steps(cluster: &mut MiniCluster, steps: usize) {
    for _ in 0..steps {
        cluster.step();
    }
}

#[test]
fn writes_at_every_turn_of_a_transfer_arrive() {
    for step in 0..steps_of(away()) {
        let mut cluster = away();
        start_follower(&mut cluster, "b");
        run_steps(&mut cluster, step);
        puts(&mut cluster, "a", 500..503);
        catch_up(&mut cluster, "a", "b", &format!("written after turn {step}"));
        assert_eq!(cluster.node("b").counters.snapshots_installed, 1);
    }
}

#[test]
fn a_connection_lost_at_any_turn_twice_is_gone_on_from() {
    let mut resumed = 0;
    for step in 0..steps_of(away()) {
        let mut cluster = away();
        start_follower(&mut cluster, "b");
        run_steps(&mut cluster, step);
        for _ in 0..2 {
            cluster.block("a", "b");
            run_steps(&mut cluster, 4);
            cluster.unblock("a", "b");
            run_steps(&mut cluster, 6);
        }
        let trace = cluster.take_trace();
        let from_the_middle = |line: &String| line.contains("SNAPSHOT_ACK") && line.contains("b -> a");
        resumed += usize::from(trace.iter().filter(|line| from_the_middle(line)).count() > 2);
        catch_up(&mut cluster, "a", "b", &format!("lost after turn {step}"));
        let creates = cluster.disk("b").op_log();
        let creates =
            creates.iter().filter(|op| op.kind == OpKind::Create && op.name == RECEIVED_NAME).count();
        assert_eq!(creates, 1, "lost after turn {step}: the file was begun once");
    }
    assert!(resumed > 0);
}

#[test]
fn a_follower_that_crashes_at_any_operation_of_a_transfer_has_the_old_state_or_the_new_one() {
    let mut whole = away();
    let first = whole.disk("b").op_count();
    start_follower(&mut whole, "b");
    catch_up(&mut whole, "a", "b", "without a crash");
    let last = whole.disk("b").op_count();
    let (mut old, mut new) = (0, 0);
    for op in first..last {
        for power in [false, true] {
            let mut cluster = away();
            cluster.disk("b").crash_before(op);
            start_follower(&mut cluster, "b");
            for _ in 0..50 {
                cluster.wait(if cluster.is_up("b") { 100 } else { 0 }, true);
            }
            let when = format!("crash before operation {op}, power {power}");
            // Where a file could not be removed it is still up, with a disk that does nothing any more.
            assert!(cluster.disk("b").has_crashed(), "{when}: it happened");
            cluster.kill("b", power);
            cluster.take_trace();
            start_follower(&mut cluster, "b");
            assert!(cluster.is_up("b"), "{when}: {:#?}", cluster.take_trace());
            match cluster.node("b").positions().0.0 {
                ..=20 => old += 1,
                _ => new += 1,
            }
            catch_up(&mut cluster, "a", "b", &when);
            cluster.kill("b", true);
            start_follower(&mut cluster, "b");
            catch_up(&mut cluster, "a", "b", &format!("{when}, and another restart"));
        }
    }
    assert!(old > 10 && new > 10, "{old} old states and {new} new ones");
}

#[test]
fn a_leader_that_crashes_at_any_turn_of_a_transfer_goes_on_with_another() {
    for step in 0..steps_of(away()) {
        let mut cluster = away();
        start_follower(&mut cluster, "b");
        run_steps(&mut cluster, step);
        cluster.kill("a", true);
        run_steps(&mut cluster, 3);
        cluster.start("a", RoleFlag::Leader, &["b"], AckPolicy::Leader);
        puts(&mut cluster, "a", 500..503);
        catch_up(&mut cluster, "a", "b", &format!("the leader crashed after turn {step}"));
    }
}

/// `c` has all the log and follows; `b` is away. At every turn of the transfer `a` dies and `c` is promoted.
#[test]
fn a_new_leader_in_the_middle_of_a_transfer_ends_it_or_begins_another() {
    fn with_c(has_snapshots: bool) -> MiniCluster {
        let mut cluster = started(&["b", "c"]);
        cluster.kill("b", false);
        // Not only what to send: without its log neither does `c` reach back.
        two_snapshots(&mut cluster, if has_snapshots { &["a", "c"] } else { &["a"] }, 10);
        cluster.wait(500, true);
        cluster
    }
    for has_snapshots in [false, true] {
        let mut step = 0;
        while step < 60 {
            let mut cluster = with_c(has_snapshots);
            start_follower(&mut cluster, "b");
            run_steps(&mut cluster, step);
            cluster.kill("a", true);
            cluster.wait(200, true);
            cluster.send("c", &Request::Promote { force: true });
            cluster.wait(4_000, true);
            let trace = cluster.take_trace();
            assert_eq!(cluster.node("c").role_name(), "leader", "{trace:#?}");
            puts(&mut cluster, "c", 600..605);
            catch_up(&mut cluster, "c", "b", &format!("new leader after turn {step}, {has_snapshots}"));
            step += 3;
        }
    }
}

#[test]
fn no_room_is_said_in_words_and_the_old_state_is_read_meanwhile() {
    let mut cluster = away();
    let used = cluster.disk("b").used();
    start_follower(&mut cluster, "b");
    let before = cluster.node("b").keyspace().state_hash();
    cluster.disk("b").set_capacity(Some(used + 10_000));
    cluster.wait(2_000, true);
    let trace = cluster.take_trace();
    assert!(trace.iter().any(|line| line.contains("REFUSE") && line.contains("no room")), "{trace:#?}");
    assert_eq!(cluster.node("b").keyspace().state_hash(), before);
    assert!(cluster.node("b").counters.snapshots_refused > 0);
    cluster.disk("b").set_capacity(None);
    catch_up(&mut cluster, "a", "b", "with room");
}

#[test]
fn a_chunk_that_cannot_be_written_ends_the_transfer_and_the_old_state_is_back() {
    let mut cluster = away();
    start_follower(&mut cluster, "b");
    let before = cluster.node("b").keyspace().state_hash();
    while cluster.node("b").keyspace().state_hash() == before {
        run_steps(&mut cluster, 1);
    }
    cluster.disk("b").fail(OpKind::Write, 0, EIO);
    while cluster.node("b").counters.snapshots_refused == 0 {
        cluster.step();
    }
    let trace = cluster.take_trace();
    assert_eq!(cluster.node("b").keyspace().state_hash(), before, "{trace:#?}");
    catch_up(&mut cluster, "a", "b", "with a disk that is well");
    assert_eq!(cluster.node("b").counters.snapshots_refused, 1);
}

#[test]
fn a_damaged_snapshot_is_found_out_by_the_follower_which_gets_the_other_one() {
    let mut cluster = away();
    let names = cluster.disk("a").names();
    let newest = names.iter().rfind(|name| parse_snapshot_name(name).is_some()).expect("it has two").clone();
    cluster.disk("a").corrupt(&newest, 20_000, 3);
    start_follower(&mut cluster, "b");
    catch_up(&mut cluster, "a", "b", "from the older one");
    let b = cluster.node("b");
    assert_eq!((b.counters.snapshots_refused, b.counters.snapshots_installed), (2, 1));
}

#[test]
fn a_leader_that_does_not_come_back_leaves_the_old_state_and_no_file() {
    let mut cluster = away();
    start_follower(&mut cluster, "b");
    let before = cluster.node("b").keyspace().state_hash();
    while cluster.node("b").keyspace().state_hash() == before {
        run_steps(&mut cluster, 1);
    }
    run_steps(&mut cluster, 4);
    cluster.kill("a", true);
    cluster.send("b", &Request::Get { key: b"key-1" });
    cluster.run();
    assert!(cluster.take_trace().iter().any(|line| line.contains("Loading")), "a mixture is not read");
    cluster.wait(TRANSFER_RESUME_MS + 1_000, true);
    assert_eq!(cluster.node("b").keyspace().state_hash(), before);
    assert!(!cluster.disk("b").names().iter().any(|name| name == RECEIVED_NAME));
    cluster.send("b", &Request::Get { key: b"key-1" });
    cluster.run();
    assert!(cluster.take_trace().iter().any(|line| line.contains("REPLY Ok")));
}

/// Every turn brings a write, the log is cut short behind each snapshot, and the follower takes little at a time.
#[test]
fn a_catch_up_under_load_ends() {
    for overflow in [PinOverflow::Slow, PinOverflow::Drop] {
        let mut cluster = started_with(&["b"], PinConfig { log_bytes: 4 << 20, overflow });
        cluster.kill("b", false);
        two_snapshots(&mut cluster, &["a"], 10);
        start_follower(&mut cluster, "b");
        let mut number = 1_000;
        while cluster.node("b").counters.snapshots_installed == 0 || number < 1_400 {
            put(&mut cluster, "a", number);
            cluster.wait(1, true);
            number += 1;
            if number % 100 == 0 {
                cluster.send("a", &Request::Snapshot { wait: false });
            }
            assert!(number < 3_000, "{overflow:?}: it ends");
        }
        catch_up(&mut cluster, "a", "b", "after the load");
        assert_eq!(cluster.node("b").counters.snapshots_installed, 1);
    }
}

/// The transfer has begun, and the follower stands still; the leader keeps up to so many bytes of log.
fn stuck(overflow: PinOverflow) -> MiniCluster {
    let mut cluster = started_with(&["b"], PinConfig { log_bytes: 100_000, overflow });
    cluster.kill("b", false);
    two_snapshots(&mut cluster, &["a"], 10);
    start_follower(&mut cluster, "b");
    let before = cluster.node("b").keyspace().state_hash();
    while cluster.node("b").keyspace().state_hash() == before {
        cluster.step();
    }
    cluster.freeze("b", true);
    cluster.take_trace();
    cluster
}

#[test]
fn at_the_bound_of_what_is_kept_writers_wait_for_the_follower() {
    let mut cluster = stuck(PinOverflow::Slow);
    let (last, _, _) = cluster.node("a").positions();
    for number in 0..400 {
        put(&mut cluster, "a", number);
        cluster.wait(10, true);
    }
    let (stopped, _, _) = cluster.node("a").positions();
    assert!(stopped.0 - last.0 < 200, "{} records of 1,000 bytes were taken", stopped.0 - last.0);
    assert!(cluster.node("a").counters.busy > 100);
    assert!(
        cluster
            .take_trace()
            .iter()
            .any(|line| line.contains("REPLY Busy") && line.contains("--pin-log-bytes"))
    );
    cluster.freeze("b", false);
    catch_up(&mut cluster, "a", "b", "after it stood still");
    put(&mut cluster, "a", 1);
    assert!(cluster.take_trace().iter().any(|line| line.contains("REPLY Ok")));
    assert_eq!(cluster.node("a").counters.transfers_dropped, 0);
}

#[test]
fn at_the_bound_of_what_is_kept_a_follower_loses_it_where_the_operator_wants_that() {
    let mut cluster = stuck(PinOverflow::Drop);
    for number in 0..150 {
        put(&mut cluster, "a", number);
        cluster.wait(10, true);
    }
    assert_eq!((cluster.node("a").counters.busy, cluster.node("a").counters.transfers_dropped), (0, 1));
    let trace = cluster.take_trace();
    let named =
        |line: &&String| line.contains("--pin-log-bytes=100000") && line.contains("--pin-overflow=slow");
    assert_eq!(trace.iter().filter(named).count(), 1);
    cluster.freeze("b", false);
    catch_up(&mut cluster, "a", "b", "with another transfer");
}
