//! Disks that fail, directories that cannot be used, and damaged logs, seen from outside: exit codes, words,
//! and that nothing is acknowledged that is not on disk.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kvstore::wire::client::{Request, Status};

use crate::cluster::{Cluster, DEADLINE, Node, Single};
use crate::strace;

/// A file system without RWF_DSYNC: the node falls back to a write and an fdatasync of its own.
const TWO_CALLS: &str = "pwritev2:error=EOPNOTSUPP";

fn with_injections(injections: &[&str]) -> Single {
    let mut single = Single::prepare(&[]);
    single.node.wrapper = strace::injecting(injections, "/dev/null");
    single
}

/// Writes until the node is gone; the numbers acknowledged.
fn put_until_lost(node: &Node) -> u64 {
    let mut client = node.client();
    for number in 0..10_000_u64 {
        if client.put(b"k", &number.to_be_bytes()).is_err() {
            return number;
        }
    }
    panic!("the injected failure never came");
}

fn value_of(node: &Node) -> Option<u64> {
    let value = node.client().get(b"k").unwrap().value?;
    Some(u64::from_be_bytes(value.try_into().unwrap()))
}

/// Runs a node until the injected failure ends it, checks how, and starts it with a whole disk. Returns how
/// many writes were acknowledged, and the number that is there afterwards.
fn fail_and_restart(injections: &[&str]) -> (u64, u64) {
    let mut single = with_injections(injections);
    single.node.start();
    let acked = put_until_lost(&single.node);
    assert!(acked > 0, "some writes were acknowledged before");
    assert_eq!(single.node.wait_exit(DEADLINE).code(), Some(13));
    let line = single.node.log.line("exit code 13");
    assert!(line.contains("wal-") && line.contains("Input/output error"), "{line}");
    single.node.wrapper.clear();
    single.node.start();
    (acked, value_of(&single.node).expect("acknowledged writes are there"))
}

#[test]
fn a_failed_sync_ends_the_process_before_the_write_is_acknowledged() {
    if !strace::works() {
        return;
    }
    // From the 40th call on every sync fails: no retry may be what makes it acknowledge.
    let one_call = &["pwritev2:error=EIO:when=40+"][..];
    let two_calls = &[TWO_CALLS, "fdatasync:error=EIO:when=40+"][..];
    for injections in [one_call, two_calls] {
        let (acked, value) = fail_and_restart(injections);
        // One more may be there, whose outcome the client does not know; none that was acknowledged is missing.
        assert!(value + 1 >= acked && value <= acked, "{injections:?}: {acked} acknowledged, {value} found");
    }
}

#[test]
fn where_the_kernel_forbids_io_uring_each_flush_is_inline_and_the_node_says_so() {
    if !strace::works() {
        return;
    }
    let mut single = Single::prepare(&["--flush=beside"]);
    single.node.wrapper = strace::injecting(&["io_uring_setup:error=EPERM"], "/dev/null");
    single.node.start();
    let line = single.node.log.line("W007");
    assert!(line.contains("--flush=beside") && line.contains("Operation not permitted"), "{line}");
    let mut client = single.node.client();
    client.put(b"k", b"v").unwrap();
    let status = client.status().unwrap().value;
    assert_eq!(status["flush"], "inline");
    assert!(status["flush_refused"].as_str().is_some_and(|why| why.contains("not permitted")), "{status}");
}

#[test]
fn a_failed_write_ends_the_process_and_is_not_acknowledged() {
    if !strace::works() {
        return;
    }
    let (acked, value) = fail_and_restart(&[TWO_CALLS, "pwrite64:error=EIO:when=40+"]);
    assert_eq!(value + 1, acked, "what was not written is not there");
}

#[test]
fn a_follower_whose_sync_fails_acknowledges_nothing_behind_it() {
    if !strace::works() {
        return;
    }
    let mut cluster = Cluster::prepare(2, &["--insync-timeout-ms=60000"]);
    cluster.nodes[1].wrapper = strace::injecting(&["pwritev2:error=EIO:when=40+"], "/dev/null");
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.wait_streaming();
    let mut client = cluster.nodes[0].client();
    client.set_timeout(std::time::Duration::from_secs(2));
    let acked = (0..10_000_u64).take_while(|number| client.put(b"k", &number.to_be_bytes()).is_ok()).count();
    assert!(acked > 0 && acked < 10_000);
    assert_eq!(cluster.nodes[1].wait_exit(DEADLINE).code(), Some(13));
    // With a whole disk it comes back, and what waited is acknowledged at last.
    cluster.nodes[1].wrapper.clear();
    cluster.nodes[1].start();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1]);
    assert!(value_of(&cluster.nodes[1]).unwrap() + 1 >= acked as u64);
}

#[test]
fn a_full_disk_refuses_writes_and_goes_on_when_space_returns() {
    if !strace::works() {
        return;
    }
    // From the sixth to the thirtieth allocation there is no room: what a full disk looks like to a node.
    let mut single = with_injections(&["fallocate:error=ENOSPC:when=6..30"]);
    single.node.start();
    let mut client = single.node.client();
    let value = vec![7; 60 << 10];
    let (mut refused, mut taken_after) = (0, 0);
    for number in 0..2_000_u32 {
        match client.put(&number.to_be_bytes(), &value) {
            Ok(_) if refused > 0 => taken_after += 1,
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.status(), Some(Status::DiskFull), "{error}");
                refused += 1;
                assert_eq!(
                    client.get(&0_u32.to_be_bytes()).unwrap().value.as_ref(),
                    Some(&value),
                    "reads go on"
                );
            }
        }
        if taken_after > 20 {
            break;
        }
    }
    assert!(refused > 0 && taken_after > 20, "{refused} refused, {taken_after} taken afterwards");
    assert_eq!(single.node.status()["counters"]["disk_full"], refused);
}

#[test]
fn a_second_process_on_one_directory_is_refused_and_names_the_first() {
    let single = Single::start(&[]);
    let mut second = Single::prepare(&[]);
    second.node.dir = single.node.dir.clone();
    let (code, text) = second.node.start_refused();
    assert_eq!(code, 10, "{text}");
    assert!(text.contains("in use") && text.contains(&format!("pid {}", single.node.pid())), "{text}");
    single.node.client().put(b"k", b"v").unwrap();
}

#[test]
fn a_directory_of_a_newer_format_is_refused_with_both_versions() {
    let mut single = Single::start(&[]);
    single.node.client().put(b"k", b"v").unwrap();
    single.node.kill9();
    // The identity record: version 7 with a right checksum, in both copies.
    let copies: Vec<_> = fs::read_dir(&single.node.dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"KVSTMETA")))
        .collect();
    assert_eq!(copies.len(), 2);
    let originals: Vec<_> = copies.iter().map(|path| fs::read(path).unwrap()).collect();
    for path in &copies {
        let mut bytes = fs::read(path).unwrap();
        bytes[8..12].copy_from_slice(&7_u32.to_be_bytes());
        let body = bytes.len() - 4;
        let crc = crc32fast::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_be_bytes());
        fs::write(path, &bytes).unwrap();
    }
    let (code, text) = single.node.start_refused();
    assert_eq!(code, 12, "{text}");
    assert!(text.contains("format version 7") && text.contains("up to 4"), "{text}");
    copies.iter().zip(originals).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());

    // The log: the same.
    let segment = single.node.files(".seg").remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8..12].copy_from_slice(&7_u32.to_be_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&crc.to_be_bytes());
    fs::write(&segment, &bytes).unwrap();
    let (code, text) = single.node.start_refused();
    assert_eq!(code, 11, "{text}");
    assert!(text.contains("format version 7") && text.contains("reads version 1"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_before_listening() {
    // Its parent is missing, it is a file, it may not be written.
    let mut single = Single::prepare(&[]);
    let parent = single.node.dir.parent().unwrap().to_owned();
    single.node.dir = parent.join("missing").join("node");
    expect_unusable(&mut single.node);
    single.node.dir = parent.join("file");
    fs::write(&single.node.dir, b"").unwrap();
    expect_unusable(&mut single.node);
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere but where the kernel itself refuses, and not in a directory of others.
        single.node.dir = Path::new("/proc").to_owned();
        expect_unusable(&mut single.node);
        single.node.dir = parent.join("of another user");
        fs::create_dir(&single.node.dir).unwrap();
        std::os::unix::fs::chown(&single.node.dir, Some(12_345), None).unwrap();
        let text = expect_unusable(&mut single.node);
        assert!(text.contains("12345"), "{text}");
    } else {
        single.node.dir = parent.join("read-only");
        fs::create_dir(&single.node.dir).unwrap();
        fs::set_permissions(&single.node.dir, fs::Permissions::from_mode(0o500)).unwrap();
        expect_unusable(&mut single.node);
    }
}

fn expect_unusable(node: &mut Node) -> String {
    let (code, text) = node.start_refused();
    assert_eq!(code, 10, "{}: {text}", node.dir.display());
    assert!(text.contains(&node.dir.display().to_string()), "{text}");
    assert!(!text.contains("listens on"), "refused before listening: {text}");
    text
}

#[test]
fn damage_in_the_middle_of_the_log_is_refused_with_file_byte_and_lsn() {
    let mut single = Single::start(&[]);
    let mut client = single.node.client();
    for number in 0..300_u32 {
        client.put(&number.to_be_bytes(), &[7; 4096]).unwrap();
    }
    single.node.kill9();
    let segments = single.node.files(".seg");
    assert!(segments.len() > 3, "{} segments", segments.len());
    for segment in [0, 1, segments.len() - 2] {
        let path = &segments[segment];
        let (at, old) = flip_byte(path, 100_000);
        let sizes: Vec<u64> = segments.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        let (code, text) = single.node.start_refused();
        assert_eq!(code, 11, "{text}");
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(text.contains(&*name) && text.contains("is damaged at byte"), "{text}");
        assert!(text.contains("from LSN") && text.contains("Nothing was changed"), "{text}");
        let after: Vec<u64> = segments.iter().map(|path| fs::metadata(path).unwrap().len()).collect();
        assert_eq!(sizes, after);
        set_byte(path, at, old);
    }
    // Nothing was changed indeed: with the bytes back the log is whole.
    single.node.start();
    let mut client = single.node.client();
    for number in 0..300_u32 {
        client.send(&Request::Get { key: &number.to_be_bytes() }).unwrap();
    }
    client.flush().unwrap();
    assert!((0..300).all(|_| client.receive().unwrap().status == Status::Ok));
}

#[test]
fn a_follower_whose_log_is_damaged_fetches_it_again_from_its_leader_while_writes_go_on() {
    let mut cluster = Cluster::start(2, &["--insync-timeout-ms=200"]);
    let mut client = cluster.nodes[0].client();
    for number in 0..300_u32 {
        client.put(&number.to_be_bytes(), &[7; 4096]).unwrap();
    }
    cluster.wait_streaming();
    for (segment, at) in [(1, 100_000), (0, 20)] {
        cluster.nodes[1].kill9();
        let segments = cluster.nodes[1].files(".seg");
        let logs: Vec<_> = segments.into_iter().filter(|path| is_segment(path)).collect();
        flip_byte(&logs[segment], at);
        client.put(b"meanwhile", &[8; 4096]).unwrap();
        let mark = cluster.nodes[1].log.mark();
        cluster.nodes[1].start();
        client.put(b"and now", &[9; 4096]).unwrap();
        cluster.nodes[1].log.wait_for_line(mark, "is DAMAGED at byte", DEADLINE);
        cluster.nodes[1].log.wait_for_line(mark, "REPAIRING: holds LSN", DEADLINE);
        cluster.nodes[1].log.wait_for_line(mark, "repaired: LSN", DEADLINE);
        cluster.wait_streaming();
        cluster.wait_told_in_sync(1);
        cluster.expect_equal(&[0, 1]);
        assert_eq!(cluster.nodes[1].client().get(b"and now").unwrap().value, Some(vec![9; 4096]));
    }
    let kept = cluster.nodes[1].files(".seg").into_iter().filter(|path| !is_segment(path)).count();
    assert!(kept > 1, "the damaged files are kept");
}

fn is_segment(path: &Path) -> bool {
    path.file_name().is_some_and(|name| kvstore::wal::parse_segment_name(&name.to_string_lossy()).is_some())
}

fn flip_byte(path: &Path, at: u64) -> (u64, u8) {
    let mut file = fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    set_byte(path, at, byte[0] ^ 0x10);
    (at, byte[0])
}

fn set_byte(path: &Path, at: u64, value: u8) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[value]).unwrap();
}

#[test]
fn a_torn_tail_is_cut_with_a_line_that_says_how_much() {
    let mut single = Single::start(&[]);
    let mut client = single.node.client();
    for number in 0..50_u32 {
        client.put(&number.to_be_bytes(), b"value").unwrap();
    }
    let last = single.node.status()["last_lsn"].as_u64().unwrap();
    single.node.kill9();
    // The last entry begins with its CRC somewhere in front of the zeros; damage its last byte.
    let segment = single.node.files(".seg").pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    set_byte(&segment, end as u64, bytes[end] ^ 1);
    let mark = single.node.log.mark();
    single.node.start();
    let lines = single.node.log.lines_from(mark).join("\n");
    assert!(lines.contains("WARN") && lines.contains("byte"), "{lines}");
    assert_eq!(single.node.client().get(&48_u32.to_be_bytes()).unwrap().value, Some(b"value".to_vec()));
    // The record of the new term took the place of the one that was torn.
    assert_eq!(single.node.status()["last_lsn"].as_u64(), Some(last));
}
