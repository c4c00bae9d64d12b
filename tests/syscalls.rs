//! The budget of system calls, kept by real nodes. The numbers are the ledger's; that the ledger tells the
//! truth is checked against strace in `syscalls_strace.rs`.

mod syscalls_support;

use std::time::{Duration, Instant};

use kvstore::client::Client;
use kvstore::wire::client::Request;
use syscalls_support::{
    Counts, Node, by_time, cost_of_asking, ledger, minus, open_connections, total, wait_until,
};

/// Operations measured.
const OPERATIONS: u64 = 200;
/// Calls for one PUT on the leader: epoll_wait, recvfrom, two sends to followers, pwritev2, then for each ACK an
/// epoll_wait and a recvfrom, sendto. One less when both ACKs are there in one turn.
const PUT_LEADER_MAX: f64 = 10.0;
/// On a follower: epoll_wait, recvfrom, pwritev2, sendto.
const PUT_FOLLOWER_MAX: f64 = 4.0;
/// epoll_wait, recvfrom, sendto.
const GET_MAX: f64 = 3.0;
/// With 50 clients that wait together: recvfrom and sendto for each, and an epoll_wait for at least five.
const GET_50_CLIENTS_MAX: f64 = 2.2;

/// Zeros ahead of the log are one write for each MiB of it, and as many as are left once nothing came for a while: the
/// cost of a log, and of no operation. With a segment of one MiB all of them are written before anything is measured.
const SMALL_SEGMENTS: &[&str] = &["--segment-bytes=1048576"];

/// Calls that a node makes while `work` runs, those for asking left out.
struct Measured {
    counts: Counts,
    elapsed: Duration,
}

/// `connections`: how many each node has meanwhile, the asking one included. An earlier one may still be about to end
/// although its client has let go of it: whoever starts a process at that moment, as the test beside this one does,
/// has a copy of its descriptor until that process runs. Its end would be three calls that no operation made.
fn measure(asking: &mut [Client], connections: &[u64], work: impl FnOnce()) -> Vec<Measured> {
    for (client, connections) in asking.iter_mut().zip(connections) {
        wait_until("earlier connections are gone", || open_connections(client) == Some(*connections));
    }
    let cost: Vec<Counts> = asking.iter_mut().map(cost_of_asking).collect();
    let before: Vec<Counts> = asking.iter_mut().map(ledger).collect();
    let started = Instant::now();
    work();
    let elapsed = started.elapsed();
    let after = asking.iter_mut().map(ledger);
    let spent = after.zip(&before).zip(&cost);
    spent
        .map(|((after, before), cost)| Measured { counts: minus(&minus(&after, before), cost), elapsed })
        .collect()
}

impl Measured {
    /// Calls per operation, after what goes by the clock, with so many other nodes, is taken off.
    fn per_operation(&self, operations: u64, others: u64) -> f64 {
        total(&self.counts).saturating_sub(by_time(self.elapsed, others)) as f64 / operations as f64
    }

    #[track_caller]
    fn expect(&self, what: &str, operations: u64, others: u64, budget: f64) {
        let calls = self.per_operation(operations, others);
        println!(
            "{what}: {calls:.2} calls per operation, budget {budget}; {:?} in {:?}",
            self.counts, self.elapsed
        );
        assert!(
            calls <= budget,
            "{what}: {calls:.2} calls per operation, budget {budget}: {:?}",
            self.counts
        );
        assert!(calls > 0.5, "{what}: {calls:.2} calls per operation cannot be: {:?}", self.counts);
    }
}

#[test]
fn a_put_acknowledged_by_two_followers_costs_the_leader_10_calls_and_a_follower_4() {
    let nodes = Node::cluster_with(2, SMALL_SEGMENTS);
    let mut writer = nodes[0].client();
    writer.put(b"k", b"the first write takes what is taken once").unwrap();
    let mut asking: Vec<Client> = nodes.iter().map(Node::client).collect();
    // The leader's: two sessions, the writer, the one that asks. A follower's: its session, and the one that asks.
    let measured = measure(&mut asking, &[4, 2, 2], || {
        for _ in 0..OPERATIONS {
            writer.put(b"hello", b"world").unwrap();
        }
    });
    measured[0].expect("PUT on the leader", OPERATIONS, 2, PUT_LEADER_MAX);
    assert_eq!(measured[0].counts["pwritev2"], OPERATIONS, "one sync for each write");
    for follower in &measured[1..] {
        follower.expect("PUT on a follower", OPERATIONS, 1, PUT_FOLLOWER_MAX);
    }
}

#[test]
fn a_get_costs_3_calls() {
    let nodes = Node::cluster_with(0, SMALL_SEGMENTS);
    let mut reader = nodes[0].client();
    reader.put(b"hello", b"world").unwrap();
    let measured = measure(&mut [nodes[0].client()], &[2], || {
        for _ in 0..OPERATIONS {
            reader.get(b"hello").unwrap();
        }
    });
    measured[0].expect("GET", OPERATIONS, 0, GET_MAX);
}

#[test]
fn with_50_clients_a_get_costs_less_than_2_2_calls() {
    const ROUNDS: u64 = 40;
    // Node and clients share one processor: how many requests wait together must not depend on which of the
    // two was compiled to run faster. (Unpinned, optimised: 2.04 to 2.08; unoptimised the clients are so slow
    // that the node serves five at a time, 2.2.)
    let here = rustix::thread::sched_getcpu();
    let mut one = rustix::thread::CpuSet::new();
    one.set(here);
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let nodes = Node::cluster_with(0, SMALL_SEGMENTS);
    let mut readers: Vec<Client> = (0..50).map(|_| nodes[0].client()).collect();
    readers[0].put(b"hello", b"world").unwrap();
    let measured = measure(&mut [nodes[0].client()], &[51], || {
        for _ in 0..ROUNDS {
            for reader in &mut readers {
                reader.send(&Request::Get { key: b"hello" }).unwrap();
                reader.flush().unwrap();
            }
            for reader in &mut readers {
                reader.receive().unwrap();
            }
        }
    });
    measured[0].expect("GET with 50 clients", ROUNDS * 50, 0, GET_50_CLIENTS_MAX);
}
