//! Real processes: a follower that was away for longer than the log goes back, killed, or its leader killed, while the
//! leader's snapshot is on its way to it.

use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};

use crate::cluster::{Cluster, Node};

const FLAGS: &[&str] = &[
    "--segment-bytes=65536",
    "--snapshot-log-bytes=1048576",
    "--retain-log-bytes=0",
    "--insync-timeout-ms=50",
    "--ack=leader",
];
const VALUE_SIZE: usize = 4_000;
/// About 20 MB, more than the buffers between two processes hold.
const KEYS: u64 = 5_000;

fn load(node: &Node, numbers: std::ops::Range<u64>) {
    let mut client = node.client();
    let numbers: Vec<u64> = numbers.collect();
    for batch in numbers.chunks(100) {
        for number in batch {
            let (key, value) = (format!("key-{}", number % KEYS), vec![*number as u8; VALUE_SIZE]);
            client.send(&Request::Put { key: key.as_bytes(), value: &value }).unwrap();
        }
        client.flush().unwrap();
        batch.iter().for_each(|_| assert_eq!(client.receive().unwrap().status, Status::Ok));
    }
}

/// The follower is down; the leader's log does not reach back to it afterwards.
fn leave_behind(cluster: &mut Cluster, first: u64) -> u64 {
    let last_lsn = cluster.nodes[1].status()["last_lsn"].as_u64().expect("a number");
    cluster.nodes[1].kill9();
    let leader = &cluster.nodes[0];
    load(leader, first..first + KEYS);
    for _ in 0..2 {
        // One that began by itself may be under way: each is waited for.
        leader.wait_status("no snapshot is being made", |status| {
            status["snapshot"]["state"] != "running" && leader.cli(&["snapshot"]).0 == 0
        });
        load(leader, first..first + 100);
    }
    leader.wait_status("the log goes", |status| status["first_lsn"].as_u64() > Some(last_lsn + 1));
    first + KEYS
}

/// Waits until some of the snapshot has arrived; false if it was all there before that was seen.
fn wait_for_part(node: &Node, deadline: Instant) -> bool {
    let path = node.dir.join("snap-in.kvsnap.tmp");
    loop {
        if path.exists() {
            return true;
        }
        if Instant::now() > deadline || !node.files(".kvsnap").is_empty() {
            return false;
        }
        std::thread::yield_now();
    }
}

#[test]
fn killed_in_the_middle_of_a_transfer_either_side_comes_to_its_end_at_a_restart() {
    let mut cluster = Cluster::start(2, FLAGS);
    load(&cluster.nodes[0], 0..100);
    let (mut next, mut in_the_middle) = (100, 0);
    for round in 0..3 {
        cluster.wait_streaming();
        next = leave_behind(&mut cluster, next);
        for _ in 0..2 {
            for victim in [1, 0] {
                if !cluster.nodes[1].is_running() {
                    cluster.nodes[1].start();
                }
                let found = wait_for_part(&cluster.nodes[1], Instant::now() + Duration::from_secs(5));
                in_the_middle += usize::from(found);
                cluster.nodes[victim].kill9();
                cluster.nodes[victim].start();
            }
        }
        load(&cluster.nodes[0], next..next + 50);
        next += 50;
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1]);
        let status = cluster.nodes[1].status();
        assert!(status["first_lsn"].as_u64() > Some(100), "round {round}: {status}");
    }
    assert!(in_the_middle > 2, "{in_the_middle} kills met a transfer");
    let names = cluster.nodes[1].files(".tmp");
    assert!(names.iter().all(|name| !name.ends_with("snap-in.kvsnap.tmp")), "{names:?}");
}
