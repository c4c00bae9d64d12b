//! A real disk that takes half a write (D8). A limit on the size of files, set while the node runs, falls into the
//! middle of its next batch: the kernel writes up to the limit and says how much that was. With the limit lifted
//! the node goes on where the write stopped; with the limit in force the rest fails, and the node ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use kvstore::wire::client::Request;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::cluster::{DEADLINE, Node, Single};
use crate::strace;

/// Of a write that the limit falls into.
const VALUE: [u8; 9_000] = [7; 9_000];

/// The segment that is written to, and the end of what is written in it.
fn end_of_log(node: &Node) -> (PathBuf, u64) {
    let path = node.files(".seg").pop().expect("there is a log");
    let bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("it has a header") as u64 + 1;
    (path, end)
}

/// Lets no file of the node grow beyond this, or be written to beyond it.
fn limit_files(node: &Node, bytes: Option<u64>) {
    let pid = node.status()["pid"].as_i64().unwrap() as i32;
    limit_files_of(Pid::from_raw(pid).expect("a pid is above 0"), bytes);
}

fn limit_files_of(pid: Pid, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(pid), Resource::Fsize, limit).expect("the process is ours");
}

#[test]
fn a_write_that_stops_at_a_limit_and_fails_behind_it_ends_the_node_with_words() {
    let mut single = Single::start(&[]);
    let mut client = single.node.client();
    client.put(b"before", b"1").unwrap();
    let (path, end) = end_of_log(&single.node);
    limit_files(&single.node, Some(end + 20_000));
    let taken = (0..100_u8).take_while(|number| client.put(&[*number], &VALUE).is_ok()).count() as u8;
    assert!(taken < 3, "{taken} writes of 9,000 bytes do not fit in 20,000");
    assert_eq!(single.node.wait_exit(DEADLINE).code(), Some(13));
    let line = single.node.log.line("exit code 13");
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(line.contains("File too large") && line.contains(name), "{line}");
    // What was written of the failed batch is a torn tail.
    let mark = single.node.log.mark();
    single.node.start();
    let cut = single.node.log.lines_from(mark).into_iter().find(|line| line.contains("WARN"));
    assert!(cut.is_some_and(|line| line.contains(name)), "half a batch was there");
    let mut client = single.node.client();
    assert_eq!(client.get(b"before").unwrap().value, Some(b"1".to_vec()));
    for number in 0..=taken {
        let found = client.get(&[number]).unwrap().value;
        assert_eq!(found, (number < taken).then(|| VALUE.to_vec()), "{number} of {taken}");
    }
}

#[test]
fn a_write_that_is_short_goes_on_where_it_stopped() {
    if !strace::works() {
        return;
    }
    // The third write of the log, after the term's record and one of ours, returns late: time to lift the limit. It is
    // the fourth call, as the part of a block that the limit leaves is refused past the page cache.
    let mut single = Single::prepare(&[]);
    let output = single.node.dir.with_extension("calls");
    single.node.wrapper =
        strace::injecting(&["pwritev2:delay_exit=3000000:when=4"], &output.to_string_lossy());
    single.node.start();
    let mut client = single.node.client();
    client.put(b"before", b"1").unwrap();
    let (path, end) = end_of_log(&single.node);
    let pid = Pid::from_raw(single.node.status()["pid"].as_i64().unwrap() as i32).expect("a pid is above 0");
    limit_files_of(pid, Some(end + 3_000));
    client.send(&Request::Put { key: b"k", value: &VALUE }).unwrap();
    client.flush().unwrap();
    let until = Instant::now() + DEADLINE;
    while fs::read(&path).unwrap()[end as usize + 2_999] != 7 {
        assert!(Instant::now() < until, "nothing is written");
    }
    limit_files_of(pid, None);
    client.receive().expect("the rest is written, and the write acknowledged");
    let written = written_by_last_calls(&output);
    assert!(written[0] < 3_100 && written[0] + written[1] > 9_000, "the kernel took {written:?} bytes");
    single.node.kill9();
    single.node.wrapper.clear();
    single.node.start();
    let mut client = single.node.client();
    assert_eq!(client.get(b"k").unwrap().value, Some(VALUE.to_vec()));
    assert_eq!(client.get(b"before").unwrap().value, Some(b"1".to_vec()));
}

/// What the last two writes of the log returned.
fn written_by_last_calls(output: &Path) -> [u64; 2] {
    let text = fs::read_to_string(output).unwrap();
    let result = |line: &str| {
        let text = line.rsplit_once(") = ")?.1;
        text.split_whitespace().next()?.parse().ok()
    };
    let results: Vec<u64> =
        text.lines().filter(|line| line.contains("pwritev2(")).filter_map(result).collect();
    results[results.len() - 2..].try_into().expect("two")
}
