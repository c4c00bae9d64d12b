//! The nodes of a run as processes: started, killed, stopped, ended in order, and looked at.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kvstore::client::{Surveyed, survey};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::network::Network;

/// How long anything that must happen may take: an election, an orderly end, a catch-up.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// For the answers to a look at all nodes; one that is cut off costs this.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Lines of a log that a failure shows.
const LINES_SHOWN: usize = 15;

/// All of them.
pub struct Nodes {
    kvstore: PathBuf,
    directory: PathBuf,
    flags: Vec<String>,
    pub network: Network,
    pub addresses: Vec<String>,
    children: Vec<Option<Child>>,
}

impl Nodes {
    /// Nodes that are configured and not started. `flags` go to all of them.
    pub fn new(kvstore: &Path, directory: &Path, network: Network, flags: Vec<String>) -> Nodes {
        let addresses = network.addresses();
        Nodes {
            kvstore: kvstore.to_owned(),
            directory: directory.to_owned(),
            flags,
            network,
            children: addresses.iter().map(|_| None).collect(),
            addresses,
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.addresses.len()
    }

    /// Starts one and waits for nothing.
    pub fn start(&mut self, node: usize) -> Result<(), String> {
        let others = (0..self.count()).filter(|other| *other != node);
        let peers: Vec<&str> = others.map(|other| self.addresses[other].as_str()).collect();
        let (host, port) = self.addresses[node].rsplit_once(':').expect("an address has a port");
        let mut command = self.network.command(node, &self.kvstore);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVSTORE_") {
                command.env_remove(name);
            }
        }
        command.args(["--role=auto", "--listen", host, "--port", port, "--peers", &peers.join(",")]);
        command.arg("--data-dir").arg(self.directory.join(format!("node{}", node + 1))).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.log(node)?);
        let child =
            command.spawn().map_err(|why| format!("cannot start {}: {why}", self.kvstore.display()))?;
        self.children[node] = Some(child);
        Ok(())
    }

    fn log_path(&self, node: usize) -> PathBuf {
        self.directory.join(format!("node{}.log", node + 1))
    }

    fn log(&self, node: usize) -> Result<File, String> {
        let path = self.log_path(node);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        log.map_err(|why| format!("cannot write {}: {why}", path.display()))
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, node: usize, signal: Signal) {
        let child = self.children[node].as_ref().expect("it runs");
        let pid = Pid::from_raw(child.id() as i32).expect("a pid is above 0");
        // One that has just ended by itself is found by who waits for it.
        let _ended = kill_process(pid, signal);
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            let _ended = child.kill();
            let _status = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn end(&mut self, node: usize) -> Result<(), String> {
        self.signal(node, Signal::TERM);
        let mut child = self.children[node].take().expect("it runs");
        let until = Instant::now() + DEADLINE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("node {} ended with {status} on SIGTERM", node + 1)),
                Ok(None) if Instant::now() < until => thread::sleep(PAUSE),
                _ => {
                    self.children[node] = Some(child);
                    return Err(format!("node {} did not end on SIGTERM in {DEADLINE:?}", node + 1));
                }
            }
        }
    }

    /// A look at all of them.
    fn look(&self) -> Vec<Surveyed> {
        survey(&self.addresses, LOOK).expect("the addresses are addresses")
    }

    /// The node that leads in the highest term.
    pub fn leader(&self) -> Result<usize, String> {
        self.wait("nobody leads", |nodes| leader_of(nodes).map(|(leader, _)| leader))
    }

    /// Waits until all nodes answer, one leads, and each has applied what the leader holds now.
    pub fn wait_settled(&self) -> Result<(), String> {
        let mut wanted = None;
        self.wait("not all nodes came back", |nodes| {
            let (_, last) = leader_of(nodes)?;
            let wanted = *wanted.get_or_insert(last);
            let has = |node: &Surveyed| number(node.status.as_ref().ok()?, "applied_lsn");
            nodes.iter().all(|node| has(node).is_some_and(|applied| applied >= wanted)).then_some(())
        })
    }

    /// At rest, all nodes hold the same.
    pub fn wait_equal(&self) -> Result<u64, String> {
        self.wait("the nodes do not hold the same", |nodes| {
            let state = |node: &Surveyed| {
                let status = node.status.as_ref().ok()?;
                Some((number(status, "applied_lsn")?, status.get("state_hash")?.clone()))
            };
            let first = state(&nodes[0])?;
            nodes.iter().all(|node| state(node).as_ref() == Some(&first)).then_some(first.0)
        })
    }

    fn wait<T>(&self, what: &str, mut wanted: impl FnMut(&[Surveyed]) -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let nodes = self.look();
            if let Some(found) = wanted(&nodes) {
                return Ok(found);
            }
            if Instant::now() >= until {
                let table = kvstore::client::cluster_text::render(&nodes);
                return Err(format!("{what} in {DEADLINE:?}:\n{table}{}", self.log_ends()));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The last lines of each log.
    pub fn log_ends(&self) -> String {
        let mut text = String::new();
        for node in 0..self.count() {
            let log = fs::read(self.log_path(node)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).into_owned();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LINES_SHOWN);
            text.push_str(&format!(
                "\n--- the end of node {}'s log:\n{}\n",
                node + 1,
                lines[from..].join("\n")
            ));
        }
        text
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        (0..self.children.len()).for_each(|node| self.kill(node));
    }
}

/// The leader, and where its log ends.
fn leader_of(nodes: &[Surveyed]) -> Option<(usize, u64)> {
    let address = kvstore::client::cluster_text::leader_of(nodes)?;
    let leader = nodes.iter().position(|node| node.address == address)?;
    Some((leader, number(nodes[leader].status.as_ref().ok()?, "last_lsn")?))
}

fn number(status: &Value, field: &str) -> Option<u64> {
    status.get(field).and_then(Value::as_u64)
}

/// A program and its arguments, for messages.
pub fn shown(command: &Command) -> String {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    let program = command.get_program().to_string_lossy().into_owned();
    [program].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}
