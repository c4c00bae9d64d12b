//! kill -9 at one system call of a real node while it makes snapshots, removes what they cover, and copies segments
//! into its archive. After each kill archive and log together hold every record that was ever acknowledged, and the
//! node starts with all of them. How the calls are drawn, and how to go on for longer, stands in `kills_anywhere.rs`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use kvstore::disk::{Disk, ViewedDisk};
use serde_json::Value;

use crate::cluster::{DEADLINE, Node, Single};
use crate::kills::{Hunt, Notes, OWN_BEGIN, SEGMENTS, start_or_die};
use crate::reach::reach;
use crate::strace::{self, Recorded};

/// Two snapshots, each behind some segments: the second one lets the log before the first one go. Whatever fails,
/// fails: the node may die.
fn live(node: &Node, notes: &mut Notes, timeout: Duration) {
    for _ in 0..2 {
        notes.write(node, 60, timeout);
        let mut client = node.client();
        client.set_timeout(timeout);
        let _dead = client.snapshot(true);
    }
    notes.write(node, 12, timeout);
    let mut client = node.client();
    client.set_timeout(timeout);
    let until = Instant::now() + timeout;
    let waits = |status: &Value| status["archive"]["segments_waiting"] != 0;
    while Instant::now() < until && client.status().is_ok_and(|status| waits(&status.value)) {}
}

/// How far the records reach that are on either disk.
fn held(archive: &Path, data_dir: &Path) -> u64 {
    let open = |path| ViewedDisk::open(path).expect("a directory can be read");
    let (mut archive, mut log) = (open(archive), open(data_dir));
    reach(&mut [&mut archive as &mut dyn Disk, &mut log])
}

#[test]
fn a_node_killed_at_any_call_of_snapshots_removals_and_copies_loses_no_record_of_its_history() {
    if !strace::works() {
        return;
    }
    let mut hunt = Hunt::new("snapshots and copies", 30);
    let dir = tempfile::tempdir().unwrap();
    let (archive, path) = (dir.path().join("archive"), dir.path().join("calls"));
    fs::create_dir(&archive).unwrap();
    let flag = format!("--archive-dir={}", archive.display());
    let mut single = Single::prepare(&[SEGMENTS, "--snapshot-log-bytes=1000000000", &flag]);
    let mut notes = Notes::default();
    let node = &mut single.node;
    // The second life is recorded: it begins with the log of the first.
    for recorder in [Vec::new(), strace::recording(&path)] {
        node.wrapper = recorder;
        node.start();
        live(node, &mut notes, DEADLINE);
        node.kill9();
    }
    let recorded = Recorded::read(&path, OWN_BEGIN, 0);
    let text = fs::read_to_string(&path).unwrap();
    for wanted in [".kvsnap", "wal-copy.seg.tmp", "ARCHIVE.new"] {
        assert!(text.contains(wanted), "{wanted} is in what was recorded");
    }
    let is_removal = |line: &str| line.contains("unlinkat") && line.contains("wal-0");
    assert!(text.lines().any(is_removal), "segments go");
    while hunt.goes_on() {
        let call = hunt.draw(&recorded);
        node.wrapper = strace::killing_at(&call);
        if start_or_die(node) {
            live(node, &mut notes, Duration::from_secs(5));
        }
        hunt.end_life(node, &call);
        let held = held(&archive, &node.dir);
        assert!(
            held >= notes.last_lsn,
            "both hold records up to {held}, {} was acknowledged",
            notes.last_lsn
        );
        node.start();
        notes.check(node);
        node.kill9();
    }
    hunt.report();
}
