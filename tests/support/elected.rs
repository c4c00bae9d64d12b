//! Real nodes whose leader is elected, and writers that go wherever it is.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvstore::client::Client;
use serde_json::Value;
use tempfile::TempDir;

use super::cluster::{DEADLINE, Node, Port, SMALL_SEGMENTS};

/// Pause between two looks for a leader.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Nodes with `--role=auto`.
pub struct Elected {
    pub nodes: Vec<Node>,
    dir: TempDir,
}

impl Elected {
    /// Nodes that are configured and not started. `extra` goes to all of them.
    pub fn prepare(count: usize, extra: &[&str]) -> Elected {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<Port> = (0..count).map(|_| Port::reserve()).collect();
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let node = |(index, port): (usize, Port)| {
            let others = numbers.iter().filter(|number| **number != port.number);
            let others: Vec<String> = others.map(u16::to_string).collect();
            let peers = format!("--peers={}", others.join(","));
            let mut args = vec!["--role=auto", SMALL_SEGMENTS];
            args.extend((!others.is_empty()).then_some(peers.as_str()));
            args.extend(extra);
            Node::new(port, dir.path().join(format!("node{index}")), &args)
        };
        let nodes = ports.into_iter().enumerate().map(node).collect();
        Elected { nodes, dir }
    }

    /// All nodes up, formed, and with a leader.
    #[track_caller]
    pub fn start(count: usize, extra: &[&str]) -> Elected {
        let mut cluster = Elected::prepare(count, extra);
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_leader();
        cluster
    }

    /// The node that leads and that every node which runs knows as its leader.
    #[track_caller]
    pub fn wait_leader(&mut self) -> usize {
        let until = Instant::now() + DEADLINE;
        loop {
            let statuses: Vec<Option<Value>> = self
                .nodes
                .iter_mut()
                .map(|node| if node.is_running() { node.try_status().ok() } else { None })
                .collect();
            let leads = |status: &Option<Value>| status.as_ref().is_some_and(|s| s["role"] == "leader");
            let leaders: Vec<usize> = (0..statuses.len()).filter(|index| leads(&statuses[*index])).collect();
            if let [leader] = leaders[..] {
                let address = self.nodes[leader].address();
                let agreed = |status: &Value| status["leader"] == address.as_str();
                if statuses.iter().flatten().all(agreed) {
                    return leader;
                }
            }
            assert!(Instant::now() < until, "nobody leads all: {statuses:?}");
            thread::sleep(LOOK_PAUSE);
        }
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// Waits until all have applied the same, and checks that it is the same.
    #[track_caller]
    pub fn expect_equal(&mut self) {
        let leader = self.wait_leader();
        let wanted =
            self.nodes[leader].wait_status("applied to its end", |s| s["applied_lsn"] == s["last_lsn"]);
        for node in &self.nodes {
            let status = node.wait_status("at the same LSN", |s| s["applied_lsn"] == wanted["applied_lsn"]);
            assert_eq!(status["state_hash"], wanted["state_hash"], "states differ at equal LSN");
        }
    }
}

/// A thread that puts keys, each once, at whoever leads, until it is told to stop.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acked: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Writer {
    pub fn start(addresses: Vec<String>, name: u64) -> Writer {
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
        let (told, notes) = (Arc::clone(&stop), Arc::clone(&acked));
        let thread = thread::spawn(move || {
            let (mut number, mut gaps, mut last) = (0, Vec::new(), Instant::now());
            let mut client: Option<Client> = None;
            while !told.load(Ordering::Relaxed) {
                number += 1;
                let place = &addresses[number % addresses.len()];
                let mut connected =
                    match client.take().map_or_else(|| Client::connect(place, Duration::from_secs(1)), Ok) {
                        Ok(connected) => connected,
                        Err(_) => continue,
                    };
                let key = format!("w{name}-{number}");
                if connected.put(key.as_bytes(), b"value").is_ok() {
                    notes.lock().unwrap().insert(key);
                    gaps.push(last.elapsed());
                    last = Instant::now();
                    client = Some(connected);
                }
            }
            gaps
        });
        Writer { stop, acked, thread }
    }

    pub fn acked_count(&self) -> usize {
        self.acked.lock().unwrap().len()
    }

    /// Waits until so many more are acknowledged than now.
    #[track_caller]
    pub fn wait_for(&self, more: usize) {
        let (until, wanted) = (Instant::now() + DEADLINE, self.acked_count() + more);
        while self.acked_count() < wanted {
            assert!(Instant::now() < until, "writes do not go on");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What it knows to be acknowledged, and the times between two acknowledgements.
    pub fn finish(self) -> (BTreeSet<String>, Vec<Duration>) {
        self.stop.store(true, Ordering::Relaxed);
        let gaps = self.thread.join().expect("writers do not panic");
        (Arc::try_unwrap(self.acked).expect("the thread is gone").into_inner().unwrap(), gaps)
    }
}

/// Every one of these keys is there.
#[track_caller]
pub fn expect_all(node: &Node, keys: &BTreeSet<String>) {
    let mut client = node.client();
    for key in keys {
        let found = client.get(key.as_bytes()).unwrap().value;
        assert_eq!(found.as_deref(), Some(&b"value"[..]), "{key} was acknowledged and is gone");
    }
}
