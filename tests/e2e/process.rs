//! The process itself: signals, descriptors, and flags.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Raw, Single};

#[test]
fn sigterm_and_sigint_end_a_node_in_order_with_exit_code_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut single = Single::start(&[]);
        let mut idle = single.node.raw();
        single.node.client().put(b"k", b"v").unwrap();
        let begin = Instant::now();
        single.node.signal(signal);
        assert_eq!(single.node.wait_exit(Duration::from_secs(5)).code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(idle.is_closed());
        single.node.log.line("ended at last_lsn=2");
        let mark = single.node.log.mark();
        single.node.start();
        let opened = single.node.log.wait_for_line(mark, "log opened", DEADLINE);
        // Of an unclean end the last batch is written again, of an orderly one only the mark of 48 bytes.
        assert!(opened.contains("rewritten_bytes=48"), "the closing mark says that all is durable: {opened}");
        assert_eq!(single.node.client().get(b"k").unwrap().value, Some(b"v".to_vec()));
    }
}

#[test]
fn a_write_under_way_is_finished_before_the_end_and_no_new_one_is_taken() {
    let mut cluster = Cluster::start(2, &["--insync-timeout-ms=1500"]);
    cluster.nodes[1].signal(Signal::STOP);
    let mut waiting = cluster.nodes[0].raw();
    waiting.request(&Request::Put { key: b"under way", value: b"1" });
    cluster.nodes[0].wait_status("holding the write", |status| status["in_flight_bytes"] != 0);
    let mut late = cluster.nodes[0].raw();
    late.request(&Request::Ping);
    assert_eq!(late.reply().0, Status::Ok);
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].signal(Signal::TERM);
    cluster.nodes[0].log.wait_for_line(mark, "ending: no new writes", DEADLINE);
    late.request(&Request::Put { key: b"late", value: b"1" });
    assert_eq!(late.reply().0, Status::ShuttingDown);
    assert!(std::net::TcpStream::connect(cluster.nodes[0].address()).is_err(), "it listens no more");
    assert_eq!(waiting.reply().0, Status::Ok, "the follower left the in-sync set, so it was acknowledged");
    assert_eq!(cluster.nodes[0].wait_exit(Duration::from_secs(6)).code(), Some(0));
}

#[test]
fn a_node_that_waits_for_a_follower_ends_within_five_seconds_all_the_same() {
    let mut cluster = Cluster::start(2, &["--insync-timeout-ms=60000"]);
    cluster.nodes[1].signal(Signal::STOP);
    let mut waiting = cluster.nodes[0].raw();
    waiting.request(&Request::Put { key: b"k", value: b"1" });
    cluster.nodes[0].wait_status("holding the write", |status| status["in_flight_bytes"] != 0);
    let begin = Instant::now();
    cluster.nodes[0].signal(Signal::TERM);
    assert_eq!(cluster.nodes[0].wait_exit(Duration::from_secs(8)).code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(waiting.is_closed(), "no answer: its outcome is unknown");
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_up_the_end() {
    let mut single = Single::prepare(&["--log-level=debug"]);
    single.node.log_unread = true;
    single.node.start();
    single.node.wait_status("serving", |status| status["role"] == "leader");
    // Each is a line of more than 60 bytes, so the pipe's 64 KiB are full.
    for _ in 0..1_500 {
        let mut raw = single.node.raw();
        raw.write(b"GET / HTTP/1.1\r\n\r\n");
        assert!(raw.is_closed());
    }
    single.node.signal(Signal::TERM);
    assert_eq!(single.node.wait_exit(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut cluster = Cluster::start(2, &["--insync-timeout-ms=60000"]);
    cluster.nodes[1].signal(Signal::STOP);
    let mut waiting = cluster.nodes[0].raw();
    waiting.request(&Request::Put { key: b"k", value: b"1" });
    cluster.nodes[0].wait_status("holding the write", |status| status["in_flight_bytes"] != 0);
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].signal(Signal::TERM);
    cluster.nodes[0].log.wait_for_line(mark, "ending: no new writes", DEADLINE);
    let begin = Instant::now();
    cluster.nodes[0].signal(Signal::TERM);
    let status = cluster.nodes[0].wait_exit(DEADLINE);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(status.code() == Some(128 + 15) || status.signal() == Some(15), "{status}");
}

#[test]
fn out_of_descriptors_existing_clients_go_on_and_later_ones_work_after_closes() {
    let mut single = Single::prepare(&[]);
    let shell = ["sh", "-c", "ulimit -n 100; exec \"$0\" \"$@\""];
    single.node.wrapper = shell.into_iter().map(str::to_owned).collect();
    single.node.start();
    let line = single.node.log.wait_for_line(0, "W003", DEADLINE);
    assert!(line.contains("nofile is 100") && line.contains("ulimit -n"), "it says what to do: {line}");
    let mut first = single.node.client();
    first.put(b"k", b"v").unwrap();
    let mut open: Vec<Raw> = Vec::new();
    let refused = loop {
        assert!(open.len() < 200, "100 descriptors cannot hold 200 connections");
        let mut raw = single.node.raw();
        raw.request(&Request::Ping);
        match raw.frame() {
            Some((_, body)) if body[0] == Status::Ok as u8 => open.push(raw),
            Some((_, body)) => break Some(body[0]),
            // The refusal can be lost to the reset that follows it, because the request was not read.
            None => break None,
        }
    };
    assert!(refused.is_none_or(|status| status == Status::Busy as u8));
    // One that says nothing first is always told.
    let (status, _, message) = single.node.raw().reply();
    assert_eq!(status, Status::Busy);
    assert!(String::from_utf8_lossy(&message).contains("try again"));
    first.put(b"k", b"v2").unwrap();
    for raw in &mut open {
        raw.request(&Request::Get { key: b"k" });
        assert_eq!(raw.reply().2, b"v2");
    }
    assert!(first.status().unwrap().value["counters"]["accepts_refused"].as_u64().unwrap() >= 2);
    open.truncate(open.len() / 2);
    let until = Instant::now() + DEADLINE;
    while single.node.client().no_follow().get(b"k").is_err() {
        assert!(Instant::now() < until, "nobody gets in after closes");
    }
}

#[test]
fn when_accept_itself_fails_those_who_wait_are_told_and_the_node_recovers() {
    // The limit is lowered while the node runs, so that accept fails before the node's own bound is reached.
    let single = Single::start(&[]);
    let mut first = single.node.client();
    first.put(b"k", b"v").unwrap();
    let pid = rustix::process::Pid::from_raw(single.node.pid() as i32);
    let nofile = rustix::process::Resource::Nofile;
    let before = rustix::process::getrlimit(nofile);
    let lowered = rustix::process::Rlimit { current: Some(32), maximum: before.maximum };
    rustix::process::prlimit(pid, nofile, lowered).unwrap();
    let mut open = Vec::new();
    let refusal = loop {
        assert!(open.len() < 64, "32 descriptors cannot hold 64 connections");
        let mut raw = single.node.raw();
        raw.stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let mut peeked = [0; 1];
        match raw.stream.peek(&mut peeked) {
            Ok(_) => break raw.reply(),
            Err(_) => open.push(raw),
        }
    };
    assert_eq!(refusal.0, Status::Busy);
    first.put(b"k", b"v2").unwrap();
    for raw in &mut open {
        raw.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        raw.request(&Request::Get { key: b"k" });
        assert_eq!(raw.reply().2, b"v2");
    }
    let ticks = single.node.cpu_ticks();
    std::thread::sleep(Duration::from_millis(1_000));
    assert!(single.node.cpu_ticks() - ticks < 20, "no spinning while descriptors are short");
    open.clear();
    let until = Instant::now() + DEADLINE;
    while single.node.client().get(b"k").is_err() {
        assert!(Instant::now() < until, "nobody gets in after closes");
    }
    rustix::process::prlimit(pid, nofile, before).unwrap();
}

#[test]
fn senseless_flags_are_refused_with_the_flag_the_value_and_what_is_allowed() {
    let cases = [
        (&["--ack=all"][..], "all"),
        (&["--segment-bytes=1"], "--segment-bytes 1: allowed are"),
        (&["--heartbeat-ms=0"], "--heartbeat-ms 0: allowed are"),
        (&["--insync-timeout-ms=1"], "--insync-timeout-ms 1: allowed are"),
        (&["--peers=9001", "--peers=9001"], "twice"),
        (&["--min-insync=5", "--peers=9001"], "can never hold"),
        (&["--leader=9001"], "--leader is for a follower"),
    ];
    for (flags, expected) in cases {
        let mut single = Single::prepare(&[]);
        single.node.args = flags.iter().map(|&flag| flag.to_owned()).collect();
        let (code, text) = single.node.start_refused();
        assert!(code == 2 && text.contains(expected), "{flags:?}: {code}: {text}");
        assert!(!single.node.dir.exists(), "{flags:?}: nothing is touched");
    }
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let single = Single::start(&[]);
    let mut second = Single::prepare(&[]);
    second.node.port = single.node.port;
    let (code, text) = second.node.start_refused();
    assert!(code == 15 && text.contains(&single.node.address()), "{code}: {text}");
    assert!(text.contains("in use"), "{text}");
}

#[test]
fn surroundings_that_weaken_a_promise_are_a_warning_with_a_stable_code() {
    let mut single = Single::prepare(&["--listen=0.0.0.0"]);
    single.node.start();
    let line = single.node.log.line("W001");
    assert!(line.contains("WARN") && line.contains("nothing authenticates yet"), "{line}");
    single.node.kill9();
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: there is no /dev/shm to put a data directory on tmpfs");
        return;
    };
    let mut single = Single::prepare(&[]);
    single.node.dir = memory.path().join("node");
    single.node.start();
    let line = single.node.log.line("W002");
    assert!(line.contains("WARN") && line.contains("tmpfs"), "{line}");
}

#[test]
fn the_banner_says_what_an_acknowledgement_means() {
    let cases = [
        (&[][..], "on disk (fdatasync) on this node"),
        (&["--durability=os"], "in the page cache"),
        (&["--peers=1,2"], "on this node and every follower in sync (of 3 nodes)"),
        (&["--peers=1,2", "--ack=quorum"], "a majority (2 of 3 nodes)"),
        (&["--peers=1,2", "--ack=leader"], "on this node alone"),
        (&["--peers=1,2", "--min-insync=2"], "on 2 nodes at least"),
    ];
    for (flags, promise) in cases {
        let single = Single::start(flags);
        let line = single.node.log.line("an acknowledged write is");
        assert!(line.contains(promise), "{flags:?}: {line}");
    }
}
