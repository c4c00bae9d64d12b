//! kill -9 under load: whatever was acknowledged is there afterwards, on every node, in the end with equal
//! states (D12). And, because it takes half a minute as well and so costs the suite nothing beside it, the
//! deadline of a frame that is never finished (C1).

use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};

use crate::cluster::{self, Cluster, DEADLINE, Seeded};
use crate::writers::{Known, Writer, look_up, recent, wait_for_acks};

#[test]
fn two_hundred_kills_under_load_lose_nothing_that_was_acknowledged() {
    const KILLS: usize = 200;
    let mut cluster = Cluster::start(3, &["--insync-timeout-ms=200", "--segment-bytes=65536"]);
    // Another seed kills in another order: E2E_SEED=7 cargo test --test e2e crash::.
    let seed = std::env::var("E2E_SEED").map_or(0x5eed, |text| text.parse().expect("E2E_SEED is a number"));
    let mut random = Seeded::new(seed);
    let writers: Vec<Writer> = (0..2).map(|name| Writer::start(cluster.nodes[0].address(), name)).collect();
    let mut leader_kills = 0;
    let mut term = cluster.nodes[0].status()["term"].as_u64().unwrap();
    for kill in 0..KILLS {
        wait_for_acks(&writers, 1 + random.below(24));
        // The leader as often as each follower; now and then two nodes, or all three, at once.
        let first = random.below(3) as usize;
        let count = match random.below(16) {
            0 => 3,
            1..=2 => 2,
            _ => 1,
        };
        let victims: Vec<usize> = (0..count).map(|n| (first + n) % 3).collect();
        let acked = recent(&writers, 300);
        let durable = match victims.contains(&0) {
            true => Vec::new(),
            false => durable_lsns(&cluster),
        };
        victims.iter().for_each(|&victim| cluster.nodes[victim].signal(rustix::process::Signal::KILL));
        for &victim in &victims {
            cluster.nodes[victim].wait_exit(DEADLINE);
        }
        victims.iter().for_each(|&victim| cluster.nodes[victim].spawn());
        if victims.contains(&0) {
            leader_kills += 1;
            let status = cluster.nodes[0].wait_status("leading again", |s| s["role"] == "leader");
            assert!(status["term"].as_u64().unwrap() > term, "kill {kill}: each start raises the term");
            term = status["term"].as_u64().unwrap();
        }
        look_up(&cluster.nodes[0], &acked);
        for (index, durable) in durable {
            // What a follower acknowledged is on its disk, whoever is killed.
            let status = cluster.nodes[index].wait_status("there", |s| s["role"] == "follower");
            let last = status["last_lsn"].as_u64().unwrap();
            assert!(last >= durable, "kill {kill}: follower {index} acknowledged {durable} and holds {last}");
        }
    }
    assert!(leader_kills >= KILLS / 5, "{leader_kills} kills of the leader");
    assert!(cluster.nodes[0].files(".seg").len() > 20, "segments were rotated under it");
    let known: Vec<Known> = writers.into_iter().map(Writer::finish).collect();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1, 2]);
    let all: Vec<(Vec<u8>, u64)> = known.into_iter().flat_map(|known| known.acked).collect();
    for node in &cluster.nodes {
        look_up(node, &all);
    }
}

/// Per follower what the leader knows it to have acknowledged.
fn durable_lsns(cluster: &Cluster) -> Vec<(usize, u64)> {
    let status = cluster.nodes[0].status();
    let peers = status["peers"].as_array().unwrap();
    peers.iter().enumerate().map(|(n, peer)| (n + 1, peer["match_lsn"].as_u64().unwrap())).collect()
}

#[test]
fn a_leader_killed_under_load_has_every_acknowledged_write_when_it_is_back_in_a_higher_term() {
    for ack in ["--ack=insync", "--ack=quorum", "--ack=leader"] {
        let mut cluster = Cluster::start(3, &[ack]);
        let before = cluster.nodes[0].status();
        let writers: Vec<Writer> =
            (0..4).map(|name| Writer::start(cluster.nodes[0].address(), name)).collect();
        wait_for_acks(&writers, 200);
        cluster.nodes[0].kill9();
        let known: Vec<Known> = writers.into_iter().map(Writer::finish).collect();
        cluster.nodes[0].start();
        let after = cluster.nodes[0].status();
        assert_eq!((before["term_text"].as_str(), after["term_text"].as_str()), (Some("0.1"), Some("0.2")));
        let all: Vec<(Vec<u8>, u64)> = known.into_iter().flat_map(|known| known.acked).collect();
        assert!(all.len() >= 800);
        look_up(&cluster.nodes[0], &all);
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1, 2]);
        look_up(&cluster.nodes[2], &all);
    }
}

#[test]
fn a_frame_that_is_never_finished_is_closed_at_its_deadline_and_a_silent_client_is_not() {
    use kvstore::limits::FRAME_DEADLINE_MS;
    let single = cluster::Single::start(&[]);
    let mut silent = single.node.raw();
    let mut slow = single.node.raw();
    let mut bytes = Vec::new();
    Request::Put { key: b"slow", value: b"1" }.encode(&mut bytes);
    let begin = Instant::now();
    slow.stream.set_read_timeout(Some(Duration::from_millis(FRAME_DEADLINE_MS + 10_000))).unwrap();
    slow.write(&bytes[..bytes.len() - 1]);
    assert!(slow.is_closed());
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_millis(FRAME_DEADLINE_MS), "closed after {waited:?}");
    single.node.log.wait_for_line(0, "was not finished in time", DEADLINE);
    silent.request(&Request::Get { key: b"slow" });
    assert_eq!(silent.reply().0, Status::NotFound);
}
