//! Real nodes that are stopped and go on (SIGSTOP, SIGCONT): a follower costs the others one wait and is said to be
//! out of sync; a leader's own stall is held against nobody; and one that slept through a promotion acknowledges
//! nothing when it wakes.

use std::thread;
use std::time::Duration;

use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Seeded};
use crate::writers::{Known, Writer, look_up, recent, wait_for_acks};

/// When a follower that acknowledges nothing is out of sync.
const TIMEOUT: Duration = Duration::from_millis(1_000);

#[test]
fn nodes_stopped_under_load_lose_nothing_and_a_leaders_own_stall_puts_nobody_out_of_sync() {
    let mut cluster = Cluster::start(3, &["--insync-timeout-ms=1000", "--segment-bytes=65536"]);
    let seed = std::env::var("E2E_SEED").map_or(0x5eed, |text| text.parse().expect("E2E_SEED is a number"));
    println!("E2E_SEED={seed}");
    let mut random = Seeded::new(seed);
    let writers: Vec<Writer> = (0..3).map(|name| Writer::start(cluster.nodes[0].address(), name)).collect();
    let left = |cluster: &Cluster| cluster.nodes[0].status()["counters"]["insync_left"].as_u64().unwrap();
    for round in 0..6 {
        wait_for_acks(&writers, 20 + random.below(50));
        cluster.wait_streaming_under_load();
        let (victim, left_before) = (round % 3, left(&cluster));
        if victim == 0 {
            // Everybody stands still, while writes wait for the followers. The leader goes on first: it must not
            // take the time in which it did not run itself for theirs.
            (1..3).for_each(|follower| cluster.nodes[follower].signal(Signal::STOP));
            cluster.nodes[0].wait_status("waiting for its followers", |s| s["last_lsn"] != s["commit_lsn"]);
            cluster.nodes[0].signal(Signal::STOP);
            thread::sleep(TIMEOUT + Duration::from_millis(random.below(600)));
            cluster.nodes[0].signal(Signal::CONT);
            assert_eq!(left(&cluster), left_before, "its own stall is nobody else's");
            (1..3).for_each(|follower| cluster.nodes[follower].signal(Signal::CONT));
            wait_for_acks(&writers, 20);
            assert_eq!(left(&cluster), left_before, "its own stall is nobody else's");
        } else {
            let peer = victim - 1;
            cluster.nodes[victim].signal(Signal::STOP);
            let status = cluster.nodes[0].wait_status("without the follower that is stopped", |status| {
                status["peers"][peer]["in_sync"] == false
            });
            assert_eq!(status["peers"][1 - peer]["in_sync"], true, "the other one is unaffected: {status}");
            wait_for_acks(&writers, 20);
            let lag = cluster.nodes[0].status()["peers"][peer]["lag"].as_u64().unwrap();
            assert!(lag > 0, "writes went on without it");
            cluster.nodes[victim].signal(Signal::CONT);
            assert_eq!(left(&cluster), left_before + 1);
        }
        look_up(&cluster.nodes[0], &recent(&writers, 200));
    }
    cluster.wait_streaming_under_load();
    (1..3).for_each(|follower| cluster.wait_told_in_sync(follower));
    // What an acknowledgement means: the leader may go for good now, and a follower in sync has all of it.
    cluster.nodes[0].kill9();
    let known: Vec<Known> = writers.into_iter().map(Writer::finish).collect();
    let account = cluster.nodes[1].client().promote(false);
    let leader = if account.is_ok() { 1 } else { 2 };
    if leader == 2 {
        // The other one may hold a write more that nobody was told of.
        cluster.nodes[2].client().promote(false).expect("one of the two has most");
    }
    let acked: Vec<(Vec<u8>, u64)> = known.into_iter().flat_map(|known| known.acked).collect();
    look_up(&cluster.nodes[leader], &acked);
}

impl Cluster {
    /// As `wait_streaming`, while writes go on: nobody is asked to stand still.
    fn wait_streaming_under_load(&self) {
        self.nodes[0].wait_status("in sync with all followers", |status| {
            let peers = status["peers"].as_array().expect("peers are a list");
            peers.iter().all(|peer| peer["state"] == "streaming" && peer["in_sync"] == true)
        });
    }
}

#[test]
fn a_leader_stopped_while_another_is_promoted_acknowledges_nothing_when_it_goes_on() {
    // It would take a follower for out of sync in 100 ms: it must hear of the new term before that.
    let cluster = Cluster::start(3, &["--insync-timeout-ms=100"]);
    cluster.nodes[0].client().put(b"k", b"before").unwrap();
    cluster.expect_equal(&[0, 1, 2]);
    let mut queued = cluster.nodes[0].client();
    queued.set_timeout(DEADLINE);
    // A connection that the node has taken, so that the request waits in its socket.
    queued.ping().unwrap();
    cluster.nodes[0].signal(Signal::STOP);
    queued.send(&Request::Put { key: b"k", value: b"too late" }).unwrap();
    queued.flush().unwrap();
    cluster.nodes[1].client().promote(false).expect("only the old leader is silent");
    cluster.nodes[1].client().put(b"k", b"after").unwrap();
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].signal(Signal::CONT);
    let reply = queued.receive().expect("it is answered");
    assert!(matches!(reply.status, Status::NotLeader | Status::OutcomeUnknown), "{reply:?}");
    cluster.nodes[0].log.wait_for_line(mark, "stopped leading: met term 1.0", DEADLINE);
    cluster.nodes[0].client().follow(&cluster.nodes[1].address(), false).unwrap();
    cluster.expect_equal(&[1, 0, 2]);
    for node in &cluster.nodes {
        assert_eq!(node.client().get(b"k").unwrap().value, Some(b"after".to_vec()));
    }
}
