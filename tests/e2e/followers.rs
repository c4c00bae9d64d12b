//! Followers that are killed, stopped, or away for long, and leaders that fall silent: what it costs the
//! others, and that everything is as before once they are back.

use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE};

static VALUE: [u8; 32 << 10] = [7; 32 << 10];
/// What a leader may hold for a follower that is behind: its output buffer and the frame it is fed.
const RSS_GROWTH_MAX_KIB: u64 = 20 << 10;

/// Writes `count` values of 32 KiB over the same few keys, so that the keyspace does not grow.
fn write_many(cluster: &Cluster, count: usize) {
    let mut client = cluster.nodes[0].client();
    for number in 0..count {
        let key = format!("key {}", number % 8);
        client.send(&Request::Put { key: key.as_bytes(), value: &VALUE }).unwrap();
        if number % 4 == 3 {
            client.flush().unwrap();
        }
        if number >= 16 {
            assert_eq!(client.receive().unwrap().status, Status::Ok);
        }
    }
    client.flush().unwrap();
    while client.replies_due() > 0 {
        assert_eq!(client.receive().unwrap().status, Status::Ok);
    }
}

fn warnings(cluster: &Cluster, mark: usize, about: &str) -> Vec<String> {
    let lines = cluster.nodes[0].log.lines_from(mark);
    lines.into_iter().filter(|line| line.contains("WARN") && line.contains(about)).collect()
}

#[test]
fn a_killed_follower_costs_one_warning_per_change_of_state_and_one_stall() {
    const TIMEOUT: Duration = Duration::from_millis(1_500);
    let mut cluster = Cluster::start(3, &["--insync-timeout-ms=1500"]);
    let mut client = cluster.nodes[0].client();
    let lost = cluster.nodes[2].address();
    for round in 1..=2 {
        let mark = cluster.nodes[0].log.mark();
        client.put(b"before", b"1").unwrap();
        cluster.nodes[2].kill9();
        let begin = Instant::now();
        client.put(b"stalled", b"2").unwrap();
        let stalled = begin.elapsed();
        assert!(stalled < TIMEOUT + Duration::from_millis(1_500), "stalled for {stalled:?}");
        for number in 0..100_u32 {
            let begin = Instant::now();
            client.put(b"after", &number.to_be_bytes()).unwrap();
            assert!(begin.elapsed() < TIMEOUT, "write {number} stalled again");
        }
        assert_eq!(cluster.nodes[0].status()["counters"]["insync_left"], round);
        cluster.nodes[0].log.wait_for_line(mark, "is out of sync", DEADLINE);
        // The leader has dialled many times while the first write waited, and said so once.
        let lines = warnings(&cluster, mark, &lost);
        assert_eq!(lines.len(), 2, "lost, and out of sync: {lines:#?}");
        assert!(lines[0].contains("is lost") && lines[1].contains("is out of sync"), "{lines:#?}");
        cluster.nodes[2].start();
        cluster.nodes[0].log.wait_for_line(mark, &format!("follower {lost} is in sync again"), DEADLINE);
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1, 2]);
        assert_eq!(warnings(&cluster, mark, &lost).len(), 2, "its return is no warning");
    }
}

#[test]
fn a_follower_that_never_was_there_is_one_warning_too() {
    let mut cluster = Cluster::prepare(2, &["--insync-timeout-ms=300"]);
    cluster.nodes[0].start();
    let mut client = cluster.nodes[0].client();
    client.put(b"k", b"v").unwrap();
    // A node answers first and logs then.
    cluster.nodes[0].log.wait_for_line(0, "is out of sync", DEADLINE);
    let lines = warnings(&cluster, 0, &cluster.nodes[1].address());
    assert_eq!(lines.len(), 2, "not reachable, and out of sync: {lines:#?}");
    cluster.nodes[1].start();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_stopped_follower_costs_the_leader_a_bounded_amount_of_memory_and_catches_up() {
    let cluster = Cluster::start(3, &["--insync-timeout-ms=100"]);
    write_many(&cluster, 64);
    cluster.expect_equal(&[0, 1, 2]);
    let before = cluster.nodes[0].rss_kib();
    cluster.nodes[2].signal(Signal::STOP);
    let mut highest = before;
    for _ in 0..9 {
        write_many(&cluster, 100);
        highest = highest.max(cluster.nodes[0].rss_kib());
    }
    // 28 MiB were written meanwhile, in more than 100 segments.
    assert!(cluster.nodes[0].files(".seg").len() > 100);
    assert!(highest - before < RSS_GROWTH_MAX_KIB, "resident memory grew from {before} to {highest} KiB");
    let status = cluster.nodes[0].status();
    assert_eq!(status["peers"][0]["in_sync"], true, "the other follower is unaffected");
    assert_eq!(status["peers"][0]["match_lsn"], status["last_lsn"]);
    assert_eq!(status["peers"][1]["in_sync"], false);
    cluster.nodes[2].signal(Signal::CONT);
    write_many(&cluster, 100);
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1, 2]);
}

#[test]
fn a_follower_away_for_many_segments_catches_up_while_writes_go_on() {
    let mut cluster = Cluster::start(3, &["--insync-timeout-ms=100"]);
    cluster.nodes[2].kill9();
    write_many(&cluster, 600);
    let mark = cluster.nodes[0].log.mark();
    let lag = cluster.nodes[0].status()["peers"][1]["lag"].as_u64().unwrap();
    assert!(lag >= 600, "{lag}");
    cluster.nodes[2].spawn();
    let again = format!("follower {} is in sync again", cluster.nodes[2].address());
    let until = Instant::now() + DEADLINE;
    while cluster.nodes[0].log.count_from(mark, &again) == 0 {
        assert!(Instant::now() < until, "the catch-up does not end while writes go on");
        write_many(&cluster, 20);
    }
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1, 2]);
}

#[test]
fn a_leader_that_falls_silent_without_closing_is_noticed_by_its_followers() {
    let cluster = Cluster::start(2, &[]);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    let mark = cluster.nodes[1].log.mark();
    let begin = Instant::now();
    cluster.nodes[0].signal(Signal::STOP);
    let pattern = format!("leader {} is silent for 3000 ms", cluster.nodes[0].address());
    cluster.nodes[1].log.wait_for_line(mark, &pattern, DEADLINE);
    assert!(begin.elapsed() >= Duration::from_millis(2_800), "{:?} is too early", begin.elapsed());
    let status = cluster.nodes[1].status();
    assert_eq!(status["in_sync"], false, "without a session it does not call itself in sync");
    assert_eq!(cluster.nodes[1].client().get(b"k").unwrap().value, Some(b"v".to_vec()), "reads go on");
    cluster.nodes[0].signal(Signal::CONT);
    cluster.nodes[0].client().put(b"k", b"v2").unwrap();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_follower_that_falls_silent_without_closing_is_noticed_by_its_leader() {
    let cluster = Cluster::start(2, &[]);
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[1].signal(Signal::STOP);
    let line = cluster.nodes[0].log.wait_for_line(mark, "no answer to heartbeats for 3000 ms", DEADLINE);
    assert!(line.contains(&cluster.nodes[1].address()), "{line}");
    let status = cluster.nodes[0].status();
    assert!(status["peers"][0]["last_error"].as_str().unwrap().contains("heartbeats"), "{status}");
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.nodes[1].signal(Signal::CONT);
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1]);
}
