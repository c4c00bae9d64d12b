//! File systems that are really full, or read-only (D9, D21): a tmpfs and an ext4 of a few MiB, mounted for the
//! test alone.

use std::time::Instant;

use kvstore::wire::client::Status;

use crate::cluster::{Cluster, DEADLINE, Node, Single};
use crate::mounts::{Kind, Mount};

const KINDS: [(Kind, u64); 2] = [(Kind::Tmpfs, 6), (Kind::Ext4, 16)];
const SEGMENTS: &str = "--segment-bytes=65536";
/// Six of them fill a segment.
const VALUE_SIZE: usize = 10_000;

/// Lets the node run on this file system.
fn put_on(node: &mut Node, mount: &Mount) {
    node.dir = mount.path().join("node");
    node.wrapper = mount.enter();
}

fn value(number: u64) -> Vec<u8> {
    let mut value = vec![number as u8; VALUE_SIZE];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value
}

/// Writes numbers from `first` on to their own keys, until one is refused for want of room. Returns the first one
/// refused, and the LSN of the last one taken.
fn write_until_full(node: &Node, first: u64) -> (u64, u64) {
    let (mut client, mut last_lsn) = (node.client(), None);
    for number in first..first + 5_000 {
        match client.put(&number.to_be_bytes(), &value(number)) {
            Ok(done) => {
                let lsn = done.lsn.0;
                assert!(last_lsn.is_none_or(|last| lsn == last + 1), "LSN {lsn} behind {last_lsn:?}");
                last_lsn = Some(lsn);
            }
            Err(error) => {
                assert_eq!(error.status(), Some(Status::DiskFull), "{error}");
                return (number, last_lsn.expect("some were taken"));
            }
        }
    }
    panic!("the disk never got full");
}

/// Every number below `end` reads as it was written.
fn look_up_below(node: &Node, end: u64) {
    let mut client = node.client();
    for number in 0..end {
        assert_eq!(client.get(&number.to_be_bytes()).unwrap().value, Some(value(number)), "{number}");
    }
}

#[test]
fn a_full_file_system_refuses_writes_serves_reads_and_takes_writes_once_there_is_room() {
    for (kind, mib) in KINDS {
        let Some(mount) = Mount::new(kind, mib) else { continue };
        let mut single = Single::prepare(&[SEGMENTS]);
        let node = &mut single.node;
        put_on(node, &mount);
        node.start();
        let filler = mount.fill(1 << 20);
        let (end, last_lsn) = write_until_full(node, 0);
        assert!(end > 50, "{end} writes fitted");
        // It stays so, for as long as nobody frees anything; reads go on.
        let mut client = node.client();
        for _ in 0..30 {
            let error = client.put(b"refused", &value(0)).unwrap_err();
            assert_eq!(error.status(), Some(Status::DiskFull), "{error}");
            assert!(error.to_string().contains("no room for a log segment"), "{error}");
        }
        look_up_below(node, end);
        let status = node.status();
        assert_eq!(status["last_lsn"], last_lsn, "what was refused has no LSN");
        assert!(status["counters"]["disk_full"].as_u64().unwrap() > 30, "{status}");
        // Room comes back, and the same process takes writes again, at the very next LSN.
        std::fs::remove_file(&filler).unwrap();
        let until = Instant::now() + DEADLINE;
        let lsn = loop {
            match client.put(&end.to_be_bytes(), &value(end)) {
                Ok(done) => break done.lsn.0,
                Err(error) => assert_eq!(error.status(), Some(Status::DiskFull), "{error}"),
            }
            assert!(Instant::now() < until, "there is room, and no write is taken");
        };
        assert_eq!(lsn, last_lsn + 1);
        let (end, last_lsn) = write_until_full(node, end + 1);
        node.kill9();
        // The log is whole, and what was refused is in no log.
        let filler = mount.fill(0);
        std::fs::remove_file(&filler).unwrap();
        node.start();
        look_up_below(node, end);
        assert_eq!(node.client().get(b"refused").unwrap().value, None);
        assert!(node.status()["last_lsn"].as_u64().unwrap() > last_lsn);
    }
}

#[test]
fn a_follower_on_a_full_file_system_serves_reads_keeps_new_terms_and_catches_up_once_there_is_room() {
    for (kind, mib) in KINDS {
        let Some(mount) = Mount::new(kind, mib) else { continue };
        let mut cluster = Cluster::prepare(2, &["--insync-timeout-ms=200", SEGMENTS]);
        put_on(&mut cluster.nodes[1], &mount);
        cluster.nodes.iter_mut().for_each(Node::spawn);
        cluster.wait_streaming();
        let filler = mount.fill(1 << 20);
        let mut client = cluster.nodes[0].client();
        let (mark, until) = (cluster.nodes[0].log.mark(), Instant::now() + DEADLINE);
        let mut count = 0;
        while cluster.nodes[0].log.count_from(mark, "no room for a log segment") == 0 {
            client.put(&u64::to_be_bytes(count), &value(count)).unwrap();
            count += 1;
            assert!(Instant::now() < until, "its disk never got full");
        }
        // The leader knows why, goes on without it, and says so.
        let status = cluster.nodes[0].wait_status("without the follower", |status| {
            status["peers"][0]["in_sync"] == false && status["peers"][0]["state"] == "refused"
        });
        let why = status["peers"][0]["last_error"].as_str().unwrap();
        assert!(why.contains("no room for a log segment"), "{why}");
        client.put(b"alone", b"1").unwrap();
        assert_eq!(cluster.nodes[1].client().get(&u64::to_be_bytes(0)).unwrap().value, Some(value(0)));
        // A new term is written down where not one more segment fits.
        for start in 2..5 {
            cluster.nodes[0].kill9();
            cluster.nodes[0].start();
            let term = format!("0.{start}");
            cluster.nodes[1].wait_status("in the new term", |status| status["term_text"] == term);
        }
        cluster.nodes[1].kill9();
        cluster.nodes[1].start();
        assert_eq!(cluster.nodes[1].status()["term_text"], "0.4");
        std::fs::remove_file(&filler).unwrap();
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1]);
    }
}

#[test]
fn a_node_on_a_read_only_mount_is_refused_before_it_listens() {
    for (kind, mib) in KINDS {
        let Some(mount) = Mount::new(kind, mib) else { continue };
        let mut single = Single::prepare(&[SEGMENTS]);
        put_on(&mut single.node, &mount);
        let mut expect_refused = |mount: &Mount| {
            mount.remount("ro");
            let (code, text) = single.node.start_refused();
            assert_eq!(code, 10, "{text}");
            assert!(text.contains("Read-only file system") && !text.contains("listens on"), "{text}");
            assert!(text.contains(&single.node.dir.display().to_string()), "{text}");
            mount.remount("rw");
            single.node.start();
            single.node.client().put(b"k", b"v").unwrap();
            single.node.kill9();
        };
        // A directory that is to be made; then one that is there.
        expect_refused(&mount);
        expect_refused(&mount);
    }
}

#[test]
fn a_node_that_finds_no_room_to_start_is_refused_and_starts_once_there_is_some() {
    for (kind, mib) in KINDS {
        let Some(mount) = Mount::new(kind, mib) else { continue };
        let mut single = Single::prepare(&["--segment-bytes=1048576"]);
        let node = &mut single.node;
        put_on(node, &mount);
        // Nothing fits; then all but a segment does, and none of it is in the way later.
        for (left, codes, words) in
            [(0, [10, 12], "No space left"), (256 << 10, [14, 14], "no room for a log segment")]
        {
            let filler = mount.fill(left);
            let (code, text) = node.start_refused();
            assert!(
                codes.contains(&code) && text.contains(words),
                "{kind:?}, {left} bytes left: {code}: {text}"
            );
            assert!(!text.contains("ready:"), "{text}");
            if code == 10 {
                assert!(!text.contains("listens on"), "{text}");
            }
            std::fs::remove_file(&filler).unwrap();
        }
        node.start();
        node.client().put(b"k", b"v").unwrap();
        node.kill9();
        // A log is there: a full disk is no reason not to serve what it holds, while its term's record fits.
        let _filler = mount.fill(0);
        node.start();
        assert_eq!(node.client().get(b"k").unwrap().value, Some(b"v".to_vec()));
    }
}
