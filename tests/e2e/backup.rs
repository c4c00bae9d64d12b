//! `kv_client backup` and `kvstore restore` as a person runs them, against real nodes that are written to meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cluster::{self, Cluster, Node, Port, Single};
use crate::numbered::{Writer, Writes, check, write};

/// Exit code, stdout, stderr.
fn restore(file: &Path, data_dir: &Path, more: &[&str]) -> (i32, String, String) {
    let (file, data_dir) = (file.to_str().unwrap(), data_dir.to_str().unwrap());
    cluster::kvstore(&[&["restore", file, "--data-dir", data_dir], more].concat())
}

/// The account of a backup that must succeed.
#[track_caller]
fn backup(node: &Node, file: &Path, more: &[&str]) -> Value {
    let name = file.to_str().unwrap();
    let (code, out, err) = node.cli(&[&["-o", "json", "backup", name], more].concat());
    assert_eq!(code, 0, "{out}{err}");
    let account: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(account["bytes"].as_u64(), Some(fs::metadata(file).unwrap().len()));
    account
}

/// A node on what was restored, which leads.
#[track_caller]
fn restored(file: &Path, data_dir: PathBuf) -> Node {
    let (code, out, err) = restore(file, &data_dir, &[]);
    assert_eq!(code, 0, "{out}{err}");
    let mut node = Node::new(Port::reserve(), data_dir, &[]);
    node.start();
    node
}

#[test]
fn a_backup_under_load_is_the_state_at_its_last_lsn_from_a_leader_and_from_a_follower() {
    let cluster = Cluster::start(2, &[]);
    let mut writes = Writes::new();
    write(&mut cluster.nodes[0].client(), 1..3_000, &mut writes);
    cluster.wait_streaming();
    let writer = Writer::start(cluster.nodes[0].client(), 3_000);
    let mut taken = Vec::new();
    for (round, more) in [&[][..], &["--newest"], &[]].into_iter().enumerate() {
        for (index, node) in cluster.nodes.iter().enumerate() {
            // The newest one of a node must be there before.
            let file = cluster.path().join(format!("backup-{round}-{index}"));
            let account = backup(node, &file, more);
            let lsn = |field: &str| account[field].as_u64().expect("an LSN");
            assert!(lsn("s") <= lsn("e") && lsn("e") <= lsn("last"), "{account}");
            taken.push((file, lsn("last")));
        }
    }
    writes.extend(writer.stop());
    for (file, last) in taken {
        let mut node = restored(&file, file.with_extension("data"));
        let status = node.status();
        assert_eq!(
            status["last_lsn"].as_u64(),
            Some(last + 1),
            "the first record of the new leader is behind it"
        );
        check(&mut node.client(), &writes, last);
        node.kill9();
        fs::remove_dir_all(&node.dir).unwrap();
    }
}

#[test]
fn what_was_acknowledged_before_the_backup_began_is_in_it_also_with_an_old_snapshot() {
    let mut single = Single::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let mut writes = Writes::new();
    let mut client = single.node.client();
    write(&mut client, 1..500, &mut writes);
    client.snapshot(true).unwrap();
    write(&mut client, 500..900, &mut writes);
    let acked = *writes.keys().last().unwrap();
    let file = dir.path().join("backup");
    let account = backup(&single.node, &file, &["--newest"]);
    assert!(account["e"].as_u64() < Some(acked) && account["last"].as_u64() >= Some(acked), "{account}");
    single.node.kill9();
    check(&mut restored(&file, dir.path().join("data")).client(), &writes, acked);
}

#[test]
fn a_restored_node_leads_a_cluster_of_its_own() {
    let single = Single::start(&[]);
    let mut cluster = Cluster::prepare(2, &[]);
    let mut writes = Writes::new();
    write(&mut single.node.client(), 1..800, &mut writes);
    let file = cluster.path().join("backup");
    backup(&single.node, &file, &[]);
    let dir = cluster.nodes[0].dir.clone();
    let (code, out, err) = restore(&file, &dir, &[]);
    assert!(
        code == 0 && out.contains("restored the state at LSN") && out.contains("new cluster"),
        "{out}{err}"
    );
    cluster.nodes.iter_mut().for_each(Node::spawn);
    cluster.wait_streaming();
    cluster.wait_told_in_sync(1);
    let before = *writes.keys().last().unwrap();
    for node in &cluster.nodes {
        check(&mut node.client(), &writes, before);
    }
    let (old, new) = (single.node.status(), cluster.nodes[0].status());
    assert_ne!(old["cluster_id"], new["cluster_id"]);
    assert_ne!(old["node_id"], new["node_id"]);
    write(&mut cluster.nodes[0].client(), 800..1_000, &mut writes);
    assert!(!old["term"].is_null());
    assert_ne!(old["term"], new["term"], "the terms of the restored log are over");
    cluster.nodes[0].kill9();
    cluster.nodes[0].start();
    cluster.wait_streaming();
    check(&mut cluster.nodes[1].client(), &writes, *writes.keys().last().unwrap());
}

#[test]
fn a_file_that_is_there_is_left_alone_and_nothing_else_is_left_behind() {
    let single = Single::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let name = file.to_str().unwrap();
    let (code, _, err) = single.node.cli(&["backup", name]);
    assert!(code == 0, "the first record of the term is something to keep: {err}");
    fs::write(&file, "mine").unwrap();
    let (code, _, err) = single.node.cli(&["backup", name]);
    assert!(code == 2 && err.contains("is there already") && err.contains("--force"), "{code}: {err}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    fs::write(dir.path().join("backup.tmp"), "left by a client that was killed").unwrap();
    backup(&single.node, &file, &["--force"]);
    let (code, _, err) = single.node.cli(&["backup", "-"]);
    assert!(code == 2 && err.contains("Name a file"), "{code}: {err}");
    let nowhere = dir.path().join("none").join("backup");
    let (code, _, err) = single.node.cli(&["backup", nowhere.to_str().unwrap()]);
    assert!(code == 7 && err.contains("none"), "{code}: {err}");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["backup"]);
}

#[test]
fn a_damaged_snapshot_ends_the_backup_with_a_reason_and_without_a_file() {
    let mut single = Single::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    write(&mut single.node.client(), 1..2_000, &mut Writes::new());
    single.node.client().snapshot(true).unwrap();
    let snapshot = single.node.files(".kvsnap").remove(0);
    let mut bytes = fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    fs::write(&snapshot, bytes).unwrap();
    let file = dir.path().join("backup");
    let (code, _, err) = single.node.cli(&["backup", file.to_str().unwrap(), "--newest"]);
    assert!(code == 7 && err.contains("the checksum of the block does not hold"), "{code}: {err}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no file, and none under another name");
    // With nothing written since, the damaged one would be what a second try begins with.
    write(&mut single.node.client(), 2_000..2_001, &mut Writes::new());
    backup(&single.node, &file, &[]);
    single.node.kill9();
}
