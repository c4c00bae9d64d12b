//! `kvstore --archive-dir`: a node fills it while it serves, and with it any LSN behind a backup can be restored.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{DEADLINE, Node, Port, Single, kvstore};
use crate::numbered::{Writes, check, write};

/// Segments of 64 KiB: some 130 writes each. Snapshots by hand, so that the log goes when a test wants it.
const FLAGS: &[&str] = &["--segment-bytes=65536", "--snapshot-log-bytes=1000000000"];

struct Archived {
    single: Single,
    dir: TempDir,
    writes: Writes,
    next: u64,
}

impl Archived {
    /// The directory is made, or not yet.
    fn start(make: bool) -> Archived {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        if make {
            fs::create_dir(&archive).unwrap();
        }
        let flag = format!("--archive-dir={}", archive.display());
        let flags: Vec<&str> = FLAGS.iter().copied().chain([flag.as_str()]).collect();
        Archived { single: Single::start(&flags), dir, writes: Writes::new(), next: 1 }
    }

    fn archive(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    fn write(&mut self, count: u64) -> u64 {
        write(&mut self.single.node.client(), self.next..self.next + count, &mut self.writes);
        self.next += count;
        *self.writes.keys().last().unwrap()
    }

    fn status(&self) -> Value {
        self.single.node.status()["archive"].clone()
    }

    /// Waits until every segment but the last one is in it.
    #[track_caller]
    fn all_copied(&self) -> u64 {
        let status = self.single.node.wait_status("all closed segments are copied", |status| {
            status["archive"]["segments_waiting"] == 0 && status["archive"]["state"] == "idle"
        });
        status["archive"]["lsn"].as_u64().unwrap()
    }

    fn snapshot(&self) {
        let (code, _, err) = self.single.node.cli(&["snapshot"]);
        assert_eq!(code, 0, "{err}");
    }

    fn restore(&self, file: &Path, until: u64) -> PathBuf {
        let data_dir = self.dir.path().join(format!("restored-{until}"));
        let (file, to, archive) = (path_text(file), path_text(&data_dir), path_text(&self.archive()));
        let until = until.to_string();
        let (code, _, why) =
            kvstore(&["restore", &file, "--data-dir", &to, "--archive", &archive, "--until", &until]);
        assert_eq!(code, 0, "{until}: {why}");
        data_dir
    }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// What was restored is the state at this LSN.
#[track_caller]
fn check_restored(data_dir: PathBuf, writes: &Writes, until: u64) {
    let mut node = Node::new(Port::reserve(), data_dir, FLAGS);
    node.start();
    check(&mut node.client(), writes, until);
    node.kill9();
}

#[test]
fn any_lsn_is_restored_from_a_backup_and_the_archive_after_kill_9_and_the_loss_of_the_data_directory() {
    let mut node = Archived::start(true);
    node.write(300);
    let file = node.dir.path().join("backup");
    let (code, out, err) = node.single.node.cli(&["-o", "json", "backup", file.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    let backed_up = serde_json::from_str::<Value>(&out).unwrap()["last"].as_u64().unwrap();
    node.write(400);
    node.single.node.kill9();
    node.single.node.start();
    node.write(500);
    // Both of the two snapshots cover most of it: the log loses segments, and the archive has them.
    node.snapshot();
    node.write(200);
    node.snapshot();
    let archived = node.all_copied();
    node.single
        .node
        .wait_status("the log lost its beginning", |status| status["first_lsn"].as_u64() > Some(backed_up));
    node.single.node.kill9();
    fs::remove_dir_all(&node.single.node.dir).unwrap();
    for until in [backed_up + 1, backed_up + 333, archived - 1, archived] {
        check_restored(node.restore(&file, until), &node.writes, until);
    }
}

#[test]
fn a_node_whose_archive_is_not_there_serves_says_so_and_fills_it_when_it_comes() {
    let mut node = Archived::start(false);
    let last = node.write(600);
    let line = node.single.node.log.wait_for_line(0, "W009", DEADLINE);
    assert!(line.contains("archive") && line.contains("create the parent directory"), "{line}");
    node.snapshot();
    node.write(100);
    node.snapshot();
    let status = node.single.node.status();
    assert_eq!(status["first_lsn"], 1, "without a copy nothing goes: {status}");
    assert_eq!(node.status()["state"], "failing");
    check(&mut node.single.node.client(), &node.writes, u64::MAX);
    fs::create_dir(node.archive()).unwrap();
    assert!(node.all_copied() > last / 2);
    assert!(node.single.node.log.lines_from(0).iter().any(|line| line.contains("takes segments again")));
    let (code, text, _) = node.single.node.cli(&["status"]);
    assert!(code == 0 && text.contains("archive") && !text.contains("FAILING"), "{text}");
}

#[test]
fn two_nodes_do_not_share_an_archive_and_inspect_says_whose_it_is() {
    let mut node = Archived::start(true);
    node.write(400);
    node.all_copied();
    let flag = format!("--archive-dir={}", node.archive().display());
    let other = Single::start(&[FLAGS[0], FLAGS[1], flag.as_str()]);
    write(&mut other.node.client(), 1..400, &mut Writes::new());
    let line = other.node.log.wait_for_line(0, "W009", DEADLINE);
    assert!(line.contains("is the archive of node") || line.contains("is in use by the process"), "{line}");
    let (code, text, why) = kvstore(&["inspect", &path_text(&node.archive())]);
    let id = node.single.node.status()["node_id"].as_str().unwrap().to_owned();
    assert!(code == 0 && text.contains(&format!("the archive of node {id}")), "{text}{why}");
    assert!(!text.contains("no file of a node's"), "{text}");
}

#[test]
fn flags_that_make_no_archive_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_text(&dir.path().join("data"));
    let (code, _, why) = kvstore(&["--data-dir", &path, "--archive-dir", &path]);
    assert!(code == 2 && why.contains("--archive-dir and --data-dir are both"), "{code}: {why}");
}
