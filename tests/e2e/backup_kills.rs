//! kill -9 of everybody who takes part in a backup or a restore, midway: nothing half is ever found under a final name,
//! and the next try succeeds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use crate::cluster::{DEADLINE, Node, Port, Single};
use crate::listing::names;

const KEYS: u8 = 48;
const VALUE_SIZE: usize = 1 << 20;

fn value(number: u8) -> Vec<u8> {
    vec![number; VALUE_SIZE]
}

/// 48 MiB: 192 parts of a backup.
fn filled() -> (Single, TempDir) {
    let single = Single::start(&[]);
    let mut client = single.node.client();
    for number in 0..KEYS {
        client.put(&[b'k', number], &value(number)).unwrap();
    }
    client.snapshot(true).unwrap();
    (single, tempfile::tempdir().unwrap())
}

fn check(node: &Node) {
    let mut client = node.client();
    for number in 0..KEYS {
        let found = client.get(&[b'k', number]).unwrap().value;
        assert!(found == Some(value(number)), "key {number}");
    }
}

fn spawn(program: &str, arguments: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it starts")
}

fn spawn_backup(node: &Node, file: &Path) -> Child {
    let port = node.port.to_string();
    let file = file.to_str().unwrap();
    spawn(env!("CARGO_BIN_EXE_kv_client"), &["--port", &port, "backup", file, "--newest"])
}

/// Waits until this holds. False: the process ended before.
fn wait_until(child: &mut Child, holds: impl Fn() -> bool) -> bool {
    let until = Instant::now() + DEADLINE;
    loop {
        if holds() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < until, "neither in {DEADLINE:?}");
        thread::yield_now();
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn backup(node: &Node, file: &Path) {
    let (code, out, err) = node.cli(&["backup", file.to_str().unwrap(), "--newest"]);
    assert_eq!(code, 0, "{out}{err}");
}

fn restore_arguments<'a>(file: &'a Path, data_dir: &'a Path) -> [&'a str; 4] {
    ["restore", file.to_str().unwrap(), "--data-dir", data_dir.to_str().unwrap()]
}

#[test]
fn a_client_that_is_killed_leaves_no_backup_and_the_node_is_free_for_the_next() {
    let (single, dir) = filled();
    let (file, half) = (dir.path().join("backup"), dir.path().join("backup.tmp"));
    let mut killed_midway = 0;
    for mib in [0, 3, 11, 25, 40] {
        let mark = single.node.log.mark();
        let mut client = spawn_backup(&single.node, &file);
        let is_midway = wait_until(&mut client, || size(&half) > mib << 20);
        client.kill().unwrap();
        client.wait().unwrap();
        if is_midway && !file.exists() {
            killed_midway += 1;
            assert_eq!(names(dir.path()), ["backup.tmp"]);
            single.node.log.wait_for_line(mark, "its client is gone", DEADLINE);
        }
        let _unless_it_was_killed = fs::remove_file(&file);
    }
    assert!(killed_midway >= 3, "{killed_midway} of 5 were killed midway");
    backup(&single.node, &file);
    assert_eq!(names(dir.path()), ["backup"], "the next one takes away what was left");
    check(&single.node);
}

#[test]
fn a_node_that_is_killed_leaves_its_client_with_a_reason_and_without_a_file() {
    let (mut single, dir) = filled();
    let (file, half) = (dir.path().join("backup"), dir.path().join("backup.tmp"));
    let mut killed_midway = 0;
    for mib in [0, 6, 20] {
        let mut client = spawn_backup(&single.node, &file);
        let is_midway = wait_until(&mut client, || size(&half) > mib << 20);
        single.node.kill9();
        let output = client.wait_with_output().unwrap();
        if output.status.code() != Some(0) {
            killed_midway += u32::from(is_midway);
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(
                matches!(output.status.code(), Some(3 | 6)) && !why.is_empty(),
                "{:?}: {why}",
                output.status
            );
            assert_eq!(names(dir.path()), Vec::<String>::new(), "{why}");
        }
        let _unless_it_was_whole = fs::remove_file(&file);
        single.node.start();
    }
    assert!(killed_midway >= 2, "{killed_midway} of 3 were killed midway");
    backup(&single.node, &file);
    check(&single.node);
}

#[test]
fn a_restore_that_is_killed_at_any_moment_leaves_all_of_the_directory_or_none() {
    let (mut single, dir) = filled();
    // Records behind the snapshot, so that the log has something too.
    for number in 0..KEYS / 2 {
        single.node.client().put(&[b'k', number], &value(number)).unwrap();
    }
    let file = dir.path().join("backup");
    backup(&single.node, &file);
    single.node.kill9();
    let data_dir = dir.path().join("data");
    let half = dir.path().join("data.restoring");
    let in_half = |name: &str| half.join(name);
    let snapshot = in_half("snap-new.kvsnap.tmp");
    let meta = in_half("META.a.new");
    let moments: [(&str, &dyn Fn() -> bool); 5] = [
        ("the directory is there", &|| half.exists()),
        ("the log is begun", &|| {
            half.exists() && names_or_none(&half).iter().any(|name| name.ends_with(".seg"))
        }),
        ("the snapshot is begun", &|| snapshot.exists()),
        ("the snapshot is named", &|| names_or_none(&half).iter().any(|name| name.ends_with(".kvsnap"))),
        ("META is begun", &|| meta.exists()),
    ];
    let mut killed_midway = 0;
    for (moment, holds) in moments {
        let mut restore = spawn(env!("CARGO_BIN_EXE_kvstore"), &restore_arguments(&file, &data_dir));
        wait_until(&mut restore, || holds() || data_dir.exists());
        restore.kill().unwrap();
        restore.wait().unwrap();
        if data_dir.exists() {
            check_restored(&data_dir, moment);
            fs::remove_dir_all(&data_dir).unwrap();
        } else {
            killed_midway += 1;
        }
    }
    assert!(killed_midway >= 2, "{killed_midway} of 5 were killed midway");
    let output = spawn(env!("CARGO_BIN_EXE_kvstore"), &restore_arguments(&file, &data_dir));
    let output = output.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(dir.path()), ["backup", "data"], "what was left is taken away");
    check_restored(&data_dir, "in the end");
}

/// The directory may get another name while it is looked at.
fn names_or_none(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[track_caller]
fn check_restored(data_dir: &Path, moment: &str) {
    let mut node = Node::new(Port::reserve(), PathBuf::from(data_dir), &[]);
    node.start();
    assert!(node.status()["last_lsn"].as_u64() > Some(u64::from(KEYS)), "{moment}");
    check(&node);
    node.kill9();
}
