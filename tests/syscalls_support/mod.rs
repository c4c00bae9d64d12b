//! Real nodes of this build as processes with few words, and their ledgers of system calls.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kvstore::client::Client;
use kvstore::limits::SNAPSHOT_CHECK_MS;
use serde_json::Value;

/// How long anything that must happen may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// A deadline for the node that measuring never meets: re-arming it would cost the client calls, not the node.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Milliseconds between heartbeats: the most that is allowed, to keep them out of the counts.
const HEARTBEAT_MS: u64 = 1_000;

/// A node that is killed when the test is over, however it ends.
pub struct Node {
    child: Child,
    port: u16,
    _port_held: OwnedFd,
    _data_dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    pub fn client(&self) -> Client {
        Client::connect(&self.port.to_string(), CLIENT_TIMEOUT).expect("the node listens")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn start(port: (u16, OwnedFd), arguments: &[String]) -> Node {
        let (number, held) = port;
        let data_dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvstore"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVSTORE_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["--port", &number.to_string(), "--heartbeat-ms", &HEARTBEAT_MS.to_string()])
            .args(["--log-level", "warn", "--data-dir"])
            .arg(data_dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("kvstore starts");
        let node = Node { child, port: number, _port_held: held, _data_dir: data_dir };
        wait_until("it listens", || Client::connect(&number.to_string(), CLIENT_TIMEOUT).is_ok());
        node
    }

    /// A leader with this many followers, all of them in sync.
    pub fn cluster(followers: usize) -> Vec<Node> {
        Node::cluster_with(followers, &[])
    }

    /// The same, with more flags for each.
    pub fn cluster_with(followers: usize, flags: &[&str]) -> Vec<Node> {
        let with = |own: String| [vec![own], flags.iter().map(|flag| (*flag).to_owned()).collect()].concat();
        let leader = reserve_port();
        let ports: Vec<_> = (0..followers).map(|_| reserve_port()).collect();
        let peers: Vec<String> = ports.iter().map(|(number, _)| number.to_string()).collect();
        let mut nodes: Vec<Node> =
            ports.into_iter().map(|port| Node::start(port, &with("--role=follower".to_owned()))).collect();
        nodes.insert(0, Node::start(leader, &with(format!("--peers={}", peers.join(",")))));
        let mut client = nodes[0].client();
        wait_until("all are in sync", || {
            let status = client.status().unwrap().value;
            let peers = status["peers"].as_array().unwrap();
            peers
                .iter()
                .all(|peer| peer["in_sync"] == true && peer["state"] == "streaming" && peer["lag"] == 0)
        });
        // A follower that has not heard it yet refuses to be promoted.
        wait_until("all have heard that", || {
            nodes[1..].iter().all(|node| node.client().status().unwrap().value["in_sync"] == true)
        });
        nodes
    }
}

/// A port that is this test's while the descriptor lives: bound and not listening, so that the system gives
/// it to nobody else, while a node (both say SO_REUSEADDR) may listen there.
pub fn reserve_port() -> (u16, OwnedFd) {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
    let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseaddr(&held, true).unwrap();
    bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = getsockname(&held).unwrap().try_into().unwrap();
    (address.port(), held)
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "not after {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Calls by name.
pub type Counts = BTreeMap<String, u64>;

/// The ledger of the node at the other end.
pub fn ledger(client: &mut Client) -> Counts {
    let document = client.syscalls().expect("the node tells its ledger").value;
    let Value::Object(counts) = &document["counts"] else { panic!("no counts in {document}") };
    counts.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect()
}

pub fn minus(later: &Counts, earlier: &Counts) -> Counts {
    let before = |name| earlier.get(name).copied().unwrap_or(0);
    let left = later.iter().map(|(name, count)| (name.clone(), count.saturating_sub(before(name))));
    left.filter(|(_, count)| *count > 0).collect()
}

pub fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// What a node may have done in that time although nobody asked it: of heartbeats with each other node, and their ACKs,
/// a timer's turn, a frame to and one from it, each in a turn of its own; and looks at how much log there is, each a
/// wake-up where it finds the loop asleep.
pub fn by_time(elapsed: Duration, others: u64) -> u64 {
    let times = |every_ms: u64| elapsed.as_millis() as u64 / every_ms + 1;
    let heartbeats = if others > 0 { times(HEARTBEAT_MS) * (1 + 3 * others) } else { 0 };
    heartbeats + times(SNAPSHOT_CHECK_MS)
}

/// How many connections the node has, this one included.
pub fn open_connections(client: &mut Client) -> Option<u64> {
    client.status().unwrap().value["connections"].as_u64()
}

/// What one question for the ledger costs, measured.
pub fn cost_of_asking(client: &mut Client) -> Counts {
    let first = ledger(client);
    minus(&ledger(client), &first)
}
