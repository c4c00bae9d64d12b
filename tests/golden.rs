//! Golden scripts: what nodes say to each other, as a text that can be read.
//!
//! Each file in `tests/golden` tells a story in lines that begin with `#`, runs commands in lines that begin
//! with `>`, and holds all that happened below each: every frame with its fields, every disk operation that
//! matters, every warning, and where each node stands after it. `KVSTORE_BLESS=1 cargo test --test golden`
//! writes the files anew; the diff is what changed.

use std::fmt::Write;
use std::path::Path;

use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

#[path = "support/frame_text.rs"]
mod frame_text;
#[path = "support/logs.rs"]
mod logs;
#[path = "support/mem_disk.rs"]
mod mem_disk;
#[path = "support/mini_cluster.rs"]
mod mini_cluster;
#[path = "support/node_io.rs"]
mod node_io;
use mini_cluster::MiniCluster;

#[test]
fn every_script_tells_what_it_told_before() {
    logs::capture();
    let bless = std::env::var_os("KVSTORE_BLESS").is_some();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(&directory)
        .expect("tests/golden is a directory")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "the scripts are there");
    let mut different = String::new();
    for path in paths {
        let expected = std::fs::read_to_string(&path).expect("a script is a text");
        let actual = run_script(&expected);
        if actual == expected {
            continue;
        }
        if bless {
            std::fs::write(&path, &actual).expect("a script can be rewritten");
        } else {
            let line = expected.lines().zip(actual.lines()).take_while(|(old, new)| old == new).count();
            let (old, new) = (expected.lines().nth(line), actual.lines().nth(line));
            writeln!(different, "{}:{}\n  expected {old:?}\n  actual   {new:?}", path.display(), line + 1)
                .expect("a string takes all");
        }
    }
    assert!(
        different.is_empty(),
        "{different}If that is meant, run `KVSTORE_BLESS=1 cargo test --test golden` and read the diff."
    );
}

fn run_script(script: &str) -> String {
    let (mut cluster, mut out) = (MiniCluster::new(), String::new());
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").expect("a string takes all");
            let words: Vec<&str> = command.split_whitespace().collect();
            run_command(&mut cluster, &words);
            for told in cluster.take_trace() {
                writeln!(out, "    {told}").expect("a string takes all");
            }
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(out, "{line}").expect("a string takes all");
        }
    }
    out
}

/// One command and, but for `send` and `turn`, everything that follows from it at this moment.
fn run_command(cluster: &mut MiniCluster, words: &[&str]) {
    match words {
        // Only for the node's next turn, which the script asks for.
        // For what another script shows.
        ["quietly", rest @ ..] => {
            run_command(cluster, rest);
            cluster.take_trace();
            return;
        }
        ["send", node, request @ ..] => return send(cluster, node, request),
        ["turn", node] => return cluster.turn(node, None),
        ["turn", node, "from", sender] => return cluster.turn(node, Some(sender)),
        // Frames leave, and the disk has not been asked yet.
        ["half-turn", node] => return cluster.half_turn(node),
        ["start", node, "leader", rest @ ..] => start(cluster, node, RoleFlag::Leader, rest),
        ["start", node, "follower", rest @ ..] => start(cluster, node, RoleFlag::Follower, rest),
        ["start-only", node, "follower"] => return start(cluster, node, RoleFlag::Follower, &[]),
        ["start-only", node, "leader", rest @ ..] => return start(cluster, node, RoleFlag::Leader, rest),
        ["kill", node] => cluster.kill(node, false),
        ["power-loss", node] => cluster.kill(node, true),
        ["block", a, b] => cluster.block(a, b),
        ["unblock", a, b] => return cluster.unblock(a, b),
        ["run"] => {}
        // A bit of the entry's value, in memory.
        ["flip", node, key] => assert!(cluster.node_mut(node).flip_bit(key.as_bytes(), key.len() * 8)),
        // A node that does not run, and whose connections stay: SIGSTOP.
        ["freeze", node] => return cluster.freeze(node, true),
        ["thaw", node] => cluster.freeze(node, false),
        // As `wait`, with every heartbeat told.
        ["tick", ms] => cluster.wait(ms.parse().expect("milliseconds"), false),
        ["wait", ms] => cluster.wait(ms.parse().expect("milliseconds"), true),
        [node, request @ ..] => send(cluster, node, request),
        [] => panic!("an empty command"),
    }
    cluster.run();
    cluster.tell_state();
}

fn start(cluster: &mut MiniCluster, node: &str, role: RoleFlag, rest: &[&str]) {
    let value = |key: &str| rest.iter().find_map(|word| word.strip_prefix(key));
    let peers: Vec<&str> = value("peers=").map_or_else(Vec::new, |peers| peers.split(',').collect());
    let ack = match value("ack=") {
        None | Some("insync") => AckPolicy::InSync,
        Some("quorum") => AckPolicy::Quorum,
        Some("leader") => AckPolicy::Leader,
        Some(other) => panic!("no policy {other}"),
    };
    cluster.start(node, role, &peers, ack);
}

fn send(cluster: &mut MiniCluster, node: &str, request: &[&str]) {
    let address: String;
    let request = match request {
        ["put", key, value] => Request::Put { key: key.as_bytes(), value: value.as_bytes() },
        ["get", key] => Request::Get { key: key.as_bytes() },
        ["delete", key] => Request::Delete { key: key.as_bytes() },
        ["ping"] => Request::Ping,
        ["promote"] => Request::Promote { force: false },
        ["promote", "--force"] => Request::Promote { force: true },
        ["follow", leader, discard @ ..] => {
            address = format!("{leader}:1");
            Request::Follow { address: &address, discard: *discard == ["--discard"] }
        }
        other => panic!("no such request: {other:?}"),
    };
    cluster.send(node, &request);
}
