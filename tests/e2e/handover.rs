//! Real nodes: leadership is moved, by an operator or by SIGTERM, and nobody who writes meanwhile loses anything.

use std::time::Duration;

use rustix::process::Signal;

use crate::cluster::DEADLINE;
use crate::elected::{Elected, Writer, expect_all};

/// Acknowledged writes of a writer between two events.
const WRITES: usize = 200;
/// No gap in the writes is as long as this election timeout. (The first leader is waited for as long.)
const LONG_TIMEOUT: &str = "--election-timeout-ms=8000";

/// The follower that is to lead holds everything soon.
#[track_caller]
fn wait_streaming(cluster: &Elected, leader: usize) {
    cluster.nodes[leader].wait_status("streaming to all", |status| {
        status["peers"].as_array().is_some_and(|peers| peers.iter().all(|peer| peer["state"] == "streaming"))
    });
}

#[test]
fn an_operator_moves_leadership_to_the_node_named_or_the_best_one() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    wait_streaming(&cluster, leader);
    let to = (leader + 1) % 3;
    // Whoever is asked: the client goes on to the leader.
    let (code, out, err) = cluster.nodes[(leader + 2) % 3].cli(&["transfer", &cluster.nodes[to].address()]);
    assert!(code == 0 && out.contains(&cluster.nodes[to].address()), "{code}: {out}{err}");
    assert_eq!(cluster.wait_leader(), to);
    wait_streaming(&cluster, to);
    let (code, out, err) = cluster.nodes[to].cli(&["transfer"]);
    assert_eq!(code, 0, "{out}{err}");
    let third = cluster.wait_leader();
    assert_ne!(third, to);
    let (code, _, err) = cluster.nodes[third].cli(&["transfer", "127.0.0.1:1"]);
    assert!(code == 5 && err.contains("none of the other members"), "{code}: {err}");
    cluster.expect_equal();
}

#[test]
fn a_transfer_under_load_fails_no_write_but_with_not_leader() {
    // No election by timeout can be what goes on here.
    let mut cluster = Elected::prepare(3, &[LONG_TIMEOUT]);
    cluster.nodes.iter_mut().for_each(|node| {
        node.start();
    });
    let leader = cluster.wait_leader();
    wait_streaming(&cluster, leader);
    let writers: Vec<Writer> = (0..2).map(|name| Writer::start(cluster.addresses(), name)).collect();
    writers.iter().for_each(|writer| writer.wait_for(WRITES));
    let (code, out, err) = cluster.nodes[leader].cli(&["transfer"]);
    assert_eq!(code, 0, "{out}{err}");
    writers.iter().for_each(|writer| writer.wait_for(WRITES));
    let acked: Vec<_> = writers.into_iter().map(Writer::finish).collect();
    let next = cluster.wait_leader();
    assert_ne!(next, leader);
    for (keys, gaps) in &acked {
        expect_all(&cluster.nodes[next], keys);
        let longest = gaps.iter().max().expect("there were writes");
        assert!(*longest < Duration::from_secs(5), "a gap of {longest:?} is an election by timeout");
    }
}

#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    let mut cluster = Elected::start(3, &[]);
    let writers: Vec<Writer> = (0..2).map(|name| Writer::start(cluster.addresses(), name)).collect();
    for index in 0..3 {
        let leader = cluster.wait_leader();
        wait_streaming(&cluster, leader);
        writers.iter().for_each(|writer| writer.wait_for(WRITES));
        let (was_leader, mark) = (leader == index, cluster.nodes[index].log.mark());
        cluster.nodes[index].signal(Signal::TERM);
        assert!(cluster.nodes[index].wait_exit(DEADLINE).success());
        if was_leader {
            cluster.nodes[index].log.wait_for_line(mark, "handed over", DEADLINE);
        }
        cluster.nodes[index].spawn();
        writers.iter().for_each(|writer| writer.wait_for(WRITES));
    }
    let acked: Vec<_> = writers.into_iter().map(|writer| writer.finish().0).collect();
    cluster.expect_equal();
    let leader = cluster.wait_leader();
    acked.iter().for_each(|keys| expect_all(&cluster.nodes[leader], keys));
}

#[test]
fn of_two_nodes_the_one_that_ends_gives_the_other_its_vote_first() {
    let mut cluster = Elected::start(2, &[]);
    let leader = cluster.wait_leader();
    wait_streaming(&cluster, leader);
    cluster.nodes[leader].client().put(b"key", b"value").unwrap();
    let mark = cluster.nodes[1 - leader].log.mark();
    cluster.nodes[leader].signal(Signal::TERM);
    assert!(cluster.nodes[leader].wait_exit(DEADLINE).success());
    cluster.nodes[1 - leader].log.wait_for_line(mark, "elected: leads", DEADLINE);
    cluster.nodes[leader].spawn();
    assert_eq!(cluster.wait_leader(), 1 - leader);
}
