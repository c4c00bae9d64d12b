//! What a node shows to those who watch it from outside: its name, its descriptors, its notes, its probes.

mod syscalls_support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use kvstore::client::Client;
use kvstore::ids::Lsn;
use rustix::process::{Pid, Signal, kill_process};
use syscalls_support::{Node, reserve_port, wait_until};

fn name(node: &Node) -> String {
    fs::read_to_string(format!("/proc/{}/comm", node.pid())).unwrap().trim_end().to_owned()
}

#[test]
fn the_name_of_the_process_follows_its_role() {
    let nodes = Node::cluster(1);
    let (leader, follower) = (&nodes[0], &nodes[1]);
    assert_eq!(name(leader), format!("kv-leader:{}", leader.port()));
    assert_eq!(name(follower), format!("kv-follow:{}", follower.port()));
    follower.client().promote(false).unwrap();
    let renamed = |node: &Node, role: &str| name(node) == format!("kv-{role}:{}", node.port());
    wait_until("the names follow", || renamed(follower, "leader") && renamed(leader, "former"));
}

/// What the node's descriptors are, by number.
fn descriptors(node: &Node) -> Vec<(u32, String)> {
    let entries = fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap();
    let mut found: Vec<(u32, String)> = entries
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect();
    found.sort();
    found
}

#[test]
fn what_every_node_has_open_comes_before_what_varies_and_in_one_order() {
    for node in &Node::cluster(1) {
        let open = descriptors(node);
        let place = |wanted: &str| {
            let found = open.iter().position(|(_, what)| what.ends_with(wanted) || what.contains(wanted));
            found.unwrap_or_else(|| panic!("{wanted} is not open: {open:?}"))
        };
        // Numbers below may be shifted by what this test's own parent left open.
        let order = ["/LOCK", "socket:", "anon_inode:[eventpoll]", "/META.a", "/META.b", "/wal-"].map(place);
        assert!(order.is_sorted(), "{open:?}");
        // Where the kernel allows it.
        let ring = open.iter().position(|(_, what)| what.contains("io_uring"));
        assert!(ring.is_none_or(|ring| (order[2]..order[3]).contains(&ring)), "{open:?}");
        // Through the page cache, and past it where the file system allows that.
        let written = open.iter().filter(|(_, what)| what.contains("/wal-")).count();
        assert!((1..=2).contains(&written), "{open:?}");
        assert_eq!(
            open[place("/LOCK") - 1].0 + 1,
            open[place("/LOCK")].0,
            "the directory, then its lock: {open:?}"
        );
    }
}

#[test]
fn one_put_through_three_nodes_is_shown_call_by_call_and_in_the_budget() {
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_kvstore")).parent().unwrap();
    let reserved: Vec<_> = (0..3).map(|_| reserve_port()).collect();
    let ports: Vec<String> = reserved.iter().map(|(number, _held)| number.to_string()).collect();
    let shown = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/strace-put.sh"))
        .env("KVSTORE_BIN_DIR", programs)
        .env("KVSTORE_DEBUG_PORTS", ports.join(" "))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    if shown.status.code() == Some(3) {
        println!("{text}");
        return;
    }
    assert_eq!(shown.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&shown.stderr));
    let lines = |wanted: &str| text.lines().filter(|line| line.contains(wanted)).count();
    assert_eq!(lines("its log: batch and fdatasync in one call (RWF_DSYNC)"), 3, "{text}");
    assert_eq!(
        (lines("the PUT, whole, in one read"), lines("OK to the client: durable on 3 of 3")),
        (1, 1),
        "{text}"
    );
    assert_eq!(lines("  -"), 0, "a call that nobody can say what it is for: {text}");
}

#[test]
fn a_session_whose_port_a_stranger_took_says_so() {
    let stranger = Node::cluster(1).remove(1);
    let reserved: Vec<_> = (0..2).map(|_| reserve_port()).collect();
    let ports = [reserved[0].0, stranger.port(), reserved[1].0].map(|number| number.to_string());
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_kvstore")).parent().unwrap();
    let shown = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/debug/stalled-follower.sh"))
        .env("KVSTORE_BIN_DIR", programs)
        .env("KVSTORE_DEBUG_PORTS", ports.join(" "))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(shown.status.code(), Some(1), "{text}");
    assert!(text.contains("node 2 has ended") && text.contains("Address already in use"), "{text}");
}

#[test]
fn notes_stand_between_the_calls_and_write_nothing() {
    let nodes = Node::cluster_with(1, &["--strace-marks"]);
    let pid = nodes[0].pid().to_string();
    let trace = tempfile::NamedTempFile::new().unwrap();
    let spawned = Command::new("strace")
        .args(["-s", "96", "-e", "trace=write,pwritev2,sendto", "-o"])
        .arg(trace.path())
        .args(["-p", &pid])
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut strace) = spawned else {
        println!("skipped: strace does not start here");
        return;
    };
    let mut words = BufReader::new(strace.stderr.take().unwrap());
    let mut first = String::new();
    words.read_line(&mut first).unwrap();
    if !first.contains("attached") {
        println!("skipped: strace cannot attach: {first}");
        let _ = strace.wait();
        return;
    }
    let mut client = nodes[0].client();
    client.put(b"hello\n", b"world").unwrap();
    client.delete(b"hello\n").unwrap();
    client.ping().unwrap();
    kill_process(Pid::from_raw(strace.id() as i32).unwrap(), Signal::INT).unwrap();
    strace.wait().unwrap();
    let text = fs::read_to_string(trace.path()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let place = |wanted: &str| {
        lines.iter().position(|line| line.contains(wanted)).unwrap_or_else(|| panic!("no {wanted}:\n{text}"))
    };
    let order = [
        "\"lsn=2 put hello\\\\n 5B\"",
        "\"to lsn=2 write and flush\"",
        "pwritev2(",
        "\"to lsn=2 durable here\"",
        "\"to lsn=2 committed\"",
        "\"to lsn=2 answered\"",
        "\"lsn=3 delete hello\\\\n\"",
    ]
    .map(place);
    assert!(order.is_sorted(), "{text}");
    for note in lines.iter().filter(|line| line.starts_with("write(") && line.contains("lsn=")) {
        assert!(note.contains("= -1 EBADF"), "{note}");
    }
}

#[test]
fn the_first_record_of_a_term_is_no_write() {
    let nodes = Node::cluster(1);
    let mut client = nodes[0].client();
    let count = |client: &mut Client| client.latency().unwrap().value["put total"]["count"].as_u64();
    assert_eq!(count(&mut client), Some(0));
    client.put(b"k", b"v").unwrap();
    assert_eq!(count(&mut client), Some(1));
    assert!(client.explain(Lsn(1)).unwrap().value.is_err(), "LSN 1 is the term's");
    assert_eq!(client.explain(Lsn(2)).unwrap().value.unwrap()["lsn"], 2);
}

#[test]
fn the_probes_are_in_the_binary() {
    let binary = fs::read(env!("CARGO_BIN_EXE_kvstore")).unwrap();
    // A note of section .note.stapsdt: addresses, then provider and name, each with a zero behind it.
    for probe in ["put_received", "sync_begins", "synced", "ack_received", "committed", "replied"] {
        let wanted = format!("kvstore\0{probe}\0");
        assert!(binary.windows(wanted.len()).any(|window| window == wanted.as_bytes()), "no probe {probe}");
    }
}
