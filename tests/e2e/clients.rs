//! Clients: slow ones, silent ones, many of them, ones with large keys and values, and ones that never learn
//! how their write ended.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvstore::limits::{KEY_SIZE_MAX, VALUE_SIZE_MAX};
use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Raw, Single};

#[test]
fn idle_clients_and_one_that_sends_a_byte_at_a_time_cost_no_processor_time() {
    let single = Single::start(&[]);
    let mut idle: Vec<Raw> = (0..200).map(|_| single.node.raw()).collect();
    let mut slow = single.node.raw();
    let mut bytes = Vec::new();
    Request::Put { key: b"slow", value: b"1" }.encode(&mut bytes);
    // All of them are accepted once the last one is answered.
    idle[199].request(&Request::Ping);
    assert_eq!(idle[199].reply().0, Status::Ok);
    let ticks = single.node.cpu_ticks();
    let begin = Instant::now();
    for byte in &bytes {
        slow.write(&[*byte]);
        // The pause is what is tested: a client that is slow.
        thread::sleep(Duration::from_millis(2_500) / bytes.len() as u32);
    }
    let used = single.node.cpu_ticks() - ticks;
    assert_eq!(slow.reply().0, Status::Ok);
    assert!(begin.elapsed() > Duration::from_secs(2));
    assert!(used <= 12, "{used} ticks of 10 ms in {:?}", begin.elapsed());
}

#[test]
fn a_follower_and_its_leader_that_have_nothing_to_do_sleep_between_heartbeats() {
    let cluster = Cluster::start(2, &[]);
    let before: Vec<u64> = cluster.nodes.iter().map(|node| node.cpu_ticks()).collect();
    thread::sleep(Duration::from_millis(2_000));
    for (node, before) in cluster.nodes.iter().zip(before) {
        let used = node.cpu_ticks() - before;
        assert!(used <= 12, "{used} ticks of 10 ms in two seconds, 20 heartbeats");
    }
}

#[test]
fn keys_and_values_of_size_0_maximum_and_one_more() {
    let cluster = Cluster::start(2, &["--insync-timeout-ms=20000"]);
    let mut client = cluster.nodes[0].client();
    let longest_key = vec![b'k'; KEY_SIZE_MAX];
    let mut largest = vec![0xfe; VALUE_SIZE_MAX];
    largest[VALUE_SIZE_MAX - 1] = 1;
    client.put(b"empty value", b"").unwrap();
    client.put(b"\x00\xff\n", b"any bytes").unwrap();
    client.put(&longest_key, &largest).unwrap();
    let lsn = cluster.nodes[0].status()["last_lsn"].clone();
    // One more is an outcome with words, before the log, and the connection stays.
    let too_long = vec![b'k'; KEY_SIZE_MAX + 1];
    let too_large = vec![7; VALUE_SIZE_MAX + 1];
    let refused = [
        Request::Put { key: b"", value: b"v" },
        Request::Put { key: &too_long, value: b"v" },
        Request::Put { key: b"k", value: &too_large },
        Request::Get { key: b"" },
        Request::Delete { key: &too_long },
    ];
    for request in &refused {
        client.send(request).unwrap();
        client.flush().unwrap();
        let reply = client.receive().unwrap();
        assert_eq!(reply.status, Status::TooLarge);
        assert!(!reply.payload.is_empty());
    }
    assert_eq!(cluster.nodes[0].status()["last_lsn"], lsn, "nothing of it reached the log");
    cluster.expect_equal(&[0, 1]);
    for node in &cluster.nodes {
        let mut client = node.client();
        assert_eq!(client.get(b"empty value").unwrap().value, Some(Vec::new()));
        assert_eq!(client.get(b"\x00\xff\n").unwrap().value, Some(b"any bytes".to_vec()));
        assert!(client.get(&longest_key).unwrap().value.as_ref() == Some(&largest), "port {}", node.port);
    }
    assert!(client.delete(&longest_key).unwrap().value);
    assert!(!client.delete(&longest_key).unwrap().value, "it is gone");
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_write_without_an_answer_is_an_unknown_outcome_with_exit_code_6() {
    let mut cluster = Cluster::start(2, &["--insync-timeout-ms=60000"]);
    cluster.nodes[1].signal(Signal::STOP);
    let (code, stdout, stderr) = cluster.nodes[0].cli(&["--timeout-ms", "300", "put", "k", "v"]);
    assert_eq!((code, stdout.as_str()), (6, ""), "{stderr}");
    assert!(stderr.contains("UNKNOWN") && stderr.contains("timed out"), "{stderr}");
    // The connection is lost after sending: the same.
    let mut client = cluster.nodes[0].client();
    let (tell, told) = mpsc::channel();
    let waiter = thread::spawn(move || {
        tell.send(()).unwrap();
        client.put(b"k2", b"v").unwrap_err()
    });
    told.recv().unwrap();
    cluster.nodes[0].wait_status("holding both writes", |status| status["last_lsn"] == 3);
    cluster.nodes[0].kill9();
    let error = waiter.join().unwrap();
    assert!(error.is_outcome_unknown(), "{error}");
    // And where nothing could be sent, the exit code says that nothing was done.
    let (code, _, stderr) = cluster.nodes[0].cli(&["put", "k", "v"]);
    assert!(code == 3 && stderr.contains("Nothing was sent"), "{code}: {stderr}");
}

#[test]
fn a_storm_of_connections_does_not_hold_up_a_stream_of_writes() {
    let cluster = Cluster::start(2, &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let address = cluster.nodes[0].address();
    let storm: Vec<_> = (0..2)
        .map(|_| {
            let (stop, address) = (Arc::clone(&stop), address.clone());
            thread::spawn(move || {
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    // Every other one leaves with a reset, unread bytes and all.
                    if let Ok(mut stream) = TcpStream::connect(&address) {
                        if count.is_multiple_of(2) {
                            let mut ping = Vec::new();
                            Request::Ping.encode(&mut ping);
                            let _ = stream.write_all(&ping);
                        }
                        count += 1;
                    }
                }
                count
            })
        })
        .collect();
    let begin = Instant::now();
    let mut client = cluster.nodes[0].client();
    let mut slowest = Duration::ZERO;
    let mut writes = 0_u64;
    while begin.elapsed() < Duration::from_secs(3) {
        let sent = Instant::now();
        client.put(b"k", &writes.to_be_bytes()).unwrap();
        slowest = slowest.max(sent.elapsed());
        writes += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let connections: u64 = storm.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(connections > 2_000, "{connections} connections are no storm");
    assert!(writes > 50 && slowest < Duration::from_secs(2), "{writes} writes, the slowest took {slowest:?}");
    let status = cluster.nodes[0].wait_status("rid of them", |s| s["connections"].as_u64().unwrap() < 10);
    assert_eq!(status["counters"]["insync_left"], 0, "the follower was not starved");
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_client_that_never_reads_its_replies_is_no_longer_read_and_disturbs_nobody() {
    let single = Single::start(&[]);
    single.node.client().put(b"large", &vec![7; 64 << 10]).unwrap();
    let before = single.node.rss_kib();
    let mut flood = single.node.raw();
    flood.stream.set_nonblocking(true).unwrap();
    let mut requests = Vec::new();
    (0..1_000).for_each(|_| Request::Get { key: b"large" }.encode(&mut requests));
    // A million requests would be answered with 64 GiB; the node must stop reading long before.
    let mut sent = 0_u64;
    let mut last_progress = Instant::now();
    while last_progress.elapsed() < Duration::from_millis(700) {
        match flood.stream.write(&requests[(sent % requests.len() as u64) as usize..]) {
            Ok(size) => {
                sent += size as u64;
                last_progress = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("the node closed the connection: {error}"),
        }
        assert!(sent < 64 << 20, "the node goes on reading");
    }
    let after = single.node.rss_kib();
    assert!(after - before < 16 << 10, "resident memory grew from {before} to {after} KiB");
    let ticks = single.node.cpu_ticks();
    let begin = Instant::now();
    for number in 0..50_u32 {
        single.node.client().put(b"k", &number.to_be_bytes()).unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "others took {:?}", begin.elapsed());
    thread::sleep(Duration::from_millis(500));
    assert!(single.node.cpu_ticks() - ticks < 60, "the node does not spin on what it may not read");
    // Once the client reads, what it was owed comes.
    let whole_requests = sent / (requests.len() as u64 / 1_000);
    assert!(whole_requests > 100, "{whole_requests} requests are no flood");
    flood.stream.set_nonblocking(false).unwrap();
    for _ in 0..100 {
        let (status, _, payload) = flood.reply();
        assert_eq!((status, payload.len()), (Status::Ok, 64 << 10));
    }
}

#[test]
fn pipelined_writes_that_are_never_read_are_bounded_too() {
    // Writes that wait for a stopped follower: this client is not read beyond its share, others are served.
    let cluster = Cluster::start(2, &["--insync-timeout-ms=60000"]);
    cluster.nodes[1].signal(Signal::STOP);
    let mut flood = cluster.nodes[0].raw();
    flood.stream.set_nonblocking(true).unwrap();
    let mut requests = Vec::new();
    (0..1_000).for_each(|_| Request::Put { key: b"k", value: b"v" }.encode(&mut requests));
    let (mut sent, mut last_progress) = (0_usize, Instant::now());
    while last_progress.elapsed() < Duration::from_millis(700) {
        match flood.stream.write(&requests[sent % requests.len()..]) {
            Ok(size) => (sent, last_progress) = (sent + size, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("the node closed the connection: {error}"),
        }
        assert!(sent < 64 << 20, "the node goes on reading");
    }
    let status = cluster.nodes[0].status();
    let waiting = status["last_lsn"].as_u64().unwrap() - status["commit_lsn"].as_u64().unwrap();
    assert_eq!(waiting, kvstore::limits::CLIENT_REQUESTS_IN_FLIGHT_MAX as u64);
    assert_eq!(cluster.nodes[0].client().get(b"nothing").unwrap().value, None, "others are served");
    cluster.nodes[1].signal(Signal::CONT);
    flood.stream.set_nonblocking(false).unwrap();
    flood.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    for _ in 0..sent / (requests.len() / 1_000) {
        assert_eq!(flood.reply().0, Status::Ok);
    }
    cluster.expect_equal(&[0, 1]);
}
