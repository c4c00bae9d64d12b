//! `kvstore inspect` as a person runs it: beside a running node, on a stopped one, on a damaged one, and on single
//! files. Before and after, every file is the same: content, size, inode and times.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::cluster::{self, Node, Single};

const FLAGS: &[&str] = &["--segment-bytes=65536"];

/// Exit code, stdout, stderr.
fn inspect(path: &Path, more: &[&str]) -> (i32, String, String) {
    cluster::kvstore(&[&["inspect", path.to_str().unwrap()], more].concat())
}

fn inspect_json(path: &Path) -> (i32, Value) {
    let (code, out, err) = inspect(path, &["-o", "json"]);
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
}

/// All that can be told of a directory from outside: of each file its name, content and status.
fn state_of(dir: &Path) -> Vec<(String, Vec<u8>, [i64; 8])> {
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let status = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        let (ino, size) = (meta.ino() as i64, meta.size() as i64);
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        [ino, size, i64::from(meta.mode()), meta.nlink() as i64, times[0], times[1], times[2], times[3]]
    };
    let own = (".".to_owned(), Vec::new(), status(dir));
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let files = paths.iter().map(|path| (name(path), fs::read(path).unwrap(), status(path)));
    std::iter::once(own).chain(files).collect()
}

fn fill(node: &Node, keys: u64) {
    let mut client = node.client();
    for number in 0..keys {
        client.put(format!("key-{number}").as_bytes(), &[number as u8; 2_000]).unwrap();
    }
}

/// A node that has several segments and two snapshots.
fn filled() -> Single {
    let single = Single::start(FLAGS);
    for _ in 0..2 {
        fill(&single.node, 100);
        let (code, _, err) = single.node.cli(&["snapshot"]);
        assert_eq!(code, 0, "{err}");
    }
    fill(&single.node, 100);
    single
}

#[test]
fn beside_a_running_node_it_says_so_and_finds_everything_in_order() {
    let single = filled();
    let (code, document) = inspect_json(&single.node.dir);
    assert_eq!(code, 0, "{document:#}");
    assert_eq!(document["held_by_pid"], single.node.pid());
    assert_eq!(document["start"]["outcome"], "opens");
    assert_eq!(document["start"]["last_lsn"], single.node.status()["last_lsn"], "nobody writes now");
    assert_eq!(document["identity"]["node_id"], single.node.status()["node_id"]);
    let (_, told, _) = inspect(&single.node.dir, &[]);
    assert!(told.contains(&format!("by the process with pid {}", single.node.pid())), "{told}");
    // And the node was not kept from anything.
    fill(&single.node, 1);
}

#[test]
fn of_a_stopped_node_no_byte_and_no_time_changes() {
    let mut single = filled();
    single.node.kill9();
    let dir = single.node.dir.clone();
    let before = state_of(&dir);
    let (code, document) = inspect_json(&dir);
    assert_eq!((code, &document["held_by_pid"]), (0, &Value::Null));
    let files = document["files"].as_array().unwrap();
    assert_eq!(files.iter().filter(|file| file["kind"] == "snapshot").count(), 2, "{document:#}");
    assert!(files.iter().filter(|file| file["kind"] == "segment").count() >= 2);
    for file in files.iter().filter(|file| file["live"] == true) {
        let (code, told, err) = inspect(&dir.join(file["name"].as_str().unwrap()), &[]);
        assert!(code == 0 && !told.contains("DAMAGED"), "{told}{err}");
    }
    assert!(state_of(&dir) == before, "a file, or the time of one, has changed");
    let foretold = document["start"]["last_lsn"].as_u64().unwrap();
    single.node.start();
    assert_eq!(single.node.status()["last_lsn"], foretold + 1, "and the first record of its term");
}

#[test]
fn of_a_damaged_node_it_says_what_the_start_then_says() {
    let mut single = filled();
    single.node.kill9();
    let dir = single.node.dir.clone();
    let last = single.node.files(".seg").into_iter().max().expect("there is a log");
    let path = dir.join(&last);
    let mut bytes = fs::read(&path).unwrap();
    bytes[4_096 + 300] ^= 4;
    fs::write(&path, &bytes).unwrap();
    let before = state_of(&dir);
    let (code, document) = inspect_json(&dir);
    assert_eq!(code, 1, "{document:#}");
    assert!(state_of(&dir) == before, "a file, or the time of one, has changed");
    let why = document["start"]["why"].as_str().expect("it would refuse");
    let (_, said) = single.node.start_refused();
    assert!(said.contains(why), "inspect: {why}\nstart: {said}");
    let (code, told, _) = inspect(&path, &[]);
    assert!(code == 1 && told.contains("DAMAGED at byte"), "a single segment: {told}");
}

#[test]
fn what_is_not_there_and_what_is_no_file_of_a_nodes_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = inspect(&dir.path().join("nowhere"), &[]);
    assert!(code == 10 && err.contains("nowhere"), "{code} {err}");
    let (code, told, _) = inspect(dir.path(), &[]);
    assert!(code == 0 && told.contains("would begin a new node"), "{told}");
    fs::write(dir.path().join("notes.txt"), "hello").unwrap();
    let (code, told, _) = inspect(&dir.path().join("notes.txt"), &[]);
    assert!(code == 0 && told.contains("no file of a node's"), "{told}");
}
