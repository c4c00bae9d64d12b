//! The ledger of system calls tells what strace sees. Where strace is missing, or may not attach, this says
//! so and checks nothing.

mod syscalls_support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use kvstore::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use syscalls_support::{Counts, Node, ledger, minus, open_connections, wait_until};

/// Calls that no request causes by itself: the allocator's, and what a debugger's arrival restarts.
const NOT_OURS: &[&str] = &["brk", "mmap", "munmap", "mremap", "madvise", "restart_syscall", "rt_sigreturn"];
/// By how much a kind may differ: the moments of attaching and detaching are not those of asking.
const WAKE_UPS_MAX: u64 = 8;
/// Kinds that such a moment, or a heartbeat in it, consists of.
const WAKE_UP: &[&str] = &["epoll_wait", "recvfrom", "sendto"];

struct Strace {
    child: Child,
    words: BufReader<std::process::ChildStderr>,
}

impl Strace {
    /// Attached and counting; `None`, with the reason printed, where that cannot be.
    fn attach(pid: u32) -> Option<Strace> {
        let spawned = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls", "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: strace does not start: {error}");
                return None;
            }
        };
        let mut words = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut first = String::new();
        words.read_line(&mut first).unwrap();
        if !first.contains("attached") {
            println!("skipped: strace cannot attach: {first}");
            let _ = child.wait();
            return None;
        }
        Some(Strace { child, words })
    }

    /// Detaches; what was counted.
    fn counts(mut self) -> Counts {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process has a pid");
        kill_process(pid, Signal::INT).unwrap();
        let mut table = String::new();
        self.words.read_to_string(&mut table).unwrap();
        self.child.wait().unwrap();
        let rows = table.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        let calls = rows.filter_map(|(name, calls)| Some((name.to_owned(), calls.trim().parse().ok()?)));
        calls.filter(|(name, _)| name != "total").collect()
    }
}

/// Every call the loop makes in a node's ordinary life: writes that fill log segments, reads, removals,
/// operators' questions, connections that come and go.
fn known_load(node: &Node) {
    let value = vec![b'v'; 100_000];
    let mut client = node.client();
    for number in 0..100u32 {
        client.put(&number.to_be_bytes(), &value).unwrap();
        client.get(&number.to_be_bytes()).unwrap();
        client.delete(&number.to_be_bytes()).unwrap();
    }
    for _ in 0..20 {
        let mut client = node.client();
        client.ping().unwrap();
        client.status().unwrap();
    }
}

/// Runs the load on the first node while strace watches the given one.
fn compare(nodes: &[Node], watched: usize, sync_call: &str) {
    let mut asking: Client = nodes[watched].client();
    let mut loaded = nodes[0].client();
    // Its sessions with the other nodes, the connection that asks it this, and the one that asks for the ledger.
    let connections = Some(nodes.len() as u64 + u64::from(watched == 0));
    // The first document of a process seeds its hash maps: one getrandom, before anybody looks.
    ledger(&mut asking);
    wait_until("start-up's connections are gone", || open_connections(&mut loaded) == connections);
    let Some(strace) = Strace::attach(nodes[watched].pid()) else { return };
    let before = ledger(&mut asking);
    known_load(&nodes[0]);
    // Its clients have closed; until the node has seen that, the looks would be at different states.
    wait_until("the load's connections are gone", || open_connections(&mut loaded) == connections);
    let after = ledger(&mut asking);
    let seen = strace.counts();
    let counted = minus(&after, &before);
    println!("ledger: {counted:?}\nstrace: {seen:?}");
    assert!(counted[sync_call] >= 200, "the load was written: {counted:?}");
    let of = |counts: &Counts, name: &str| counts.get(name).copied().unwrap_or(0);
    for name in counted.keys().chain(seen.keys()).filter(|name| !NOT_OURS.contains(&name.as_str())) {
        let allowed = match name.as_str() {
            name if WAKE_UP.contains(&name) => WAKE_UPS_MAX,
            // A segment is prepared ahead up to a second after it is wanted: beside a look, perhaps.
            "openat" | "fallocate" => 1,
            // The standard library of an unoptimised build makes sure that what is closed is open.
            "fcntl" if cfg!(debug_assertions) => of(&seen, "close"),
            _ => 0,
        };
        let (ledger, strace) = (of(&counted, name), of(&seen, name));
        assert!(ledger.abs_diff(strace) <= allowed, "{name}: ledger {ledger}, strace {strace}");
    }
}

const SMALL_SEGMENTS: &[&str] = &["--segment-bytes=1048576"];

#[test]
fn the_ledger_of_a_leader_agrees_with_strace() {
    compare(&Node::cluster_with(2, SMALL_SEGMENTS), 0, "pwritev2");
}

#[test]
fn the_ledger_of_a_follower_agrees_with_strace() {
    compare(&Node::cluster_with(2, SMALL_SEGMENTS), 1, "pwritev2");
}

#[test]
fn the_ledger_of_a_node_that_flushes_beside_its_loop_agrees_with_strace() {
    let nodes = Node::cluster_with(2, &[SMALL_SEGMENTS[0], "--flush=beside"]);
    if nodes[0].client().status().unwrap().value["flush"] != "beside" {
        println!("skipped: io_uring is not allowed here");
        return;
    }
    compare(&nodes, 0, "io_uring_enter");
    compare(&nodes, 1, "io_uring_enter");
}
