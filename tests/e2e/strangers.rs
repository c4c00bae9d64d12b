//! Bytes that are no kvstore frames, and frames that are no messages: that connection is closed with a line
//! that says what it looked like, a counter goes up, and nobody else notices (N12, N16).

use kvstore::wire::client::Request;

use crate::cluster::{DEADLINE, Seeded, Single};

/// Sends bytes; they must be fenced with a line with `expected`, and a client beside it goes on.
fn expect_fenced(single: &Single, bytes: &[u8], expected: &str) {
    let mut bystander = single.node.client();
    bystander.put(b"k", b"before").unwrap();
    let fenced = single.node.status()["counters"]["fenced"].as_u64().unwrap();
    let mark = single.node.log.mark();
    let mut raw = single.node.raw();
    raw.write(bytes);
    assert!(raw.is_closed(), "{expected}");
    let line = single.node.log.wait_for_line(mark, "fenced 127.0.0.1:", DEADLINE);
    assert!(line.contains("WARN") && line.contains(expected), "{expected}: {line}");
    assert_eq!(single.node.status()["counters"]["fenced"], fenced + 1);
    bystander.put(b"k", b"after").unwrap();
    assert_eq!(bystander.get(b"k").unwrap().value, Some(b"after".to_vec()));
}

#[test]
fn other_protocols_are_named() {
    let single = Single::start(&[]);
    expect_fenced(&single, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n", "an HTTP request");
    expect_fenced(&single, b"POST / HTTP/1.1\r\n\r\n", "an HTTP request");
    expect_fenced(&single, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP request");
    expect_fenced(&single, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "a TLS hello");
    expect_fenced(&single, b"SSH-2.0-OpenSSH_9.6\r\n", "an SSH client");
    expect_fenced(&single, b"*1\r\n$4\r\nPING\r\n", "a Redis command");
    expect_fenced(&single, b"hello world\n", "text");
    expect_fenced(&single, &[0xff, 0xfe, 0x80, 0x81, 0, 1, 2, 3], "bytes of another protocol");
}

#[test]
fn bad_lengths_types_and_trailing_bytes_are_fenced() {
    let single = Single::start(&[]);
    expect_fenced(&single, &[0, 0, 0, 0, 6], "frame length 0");
    expect_fenced(&single, &[0x01, 0, 0, 0, 6], "is above 16777215");
    expect_fenced(&single, &[0, 0, 0, 1, 0x7f], "unknown message type 0x7f");
    expect_fenced(&single, &[0, 0, 0, 1, 0x20], "is not a request");
    expect_fenced(&single, &[0, 0, 0, 1, 0x04], "before a hello");
    expect_fenced(&single, &[0, 0, 0, 1, 0x13], "before a hello");
    // A key that ends beyond its frame, and a request with bytes behind its end.
    expect_fenced(&single, &[0, 0, 0, 7, 2, 0xff, 0xff, 0xff, 0xff, b'k', b'k'], "malformed request");
    let mut bytes = Vec::new();
    Request::Ping.encode(&mut bytes);
    bytes.extend([1, 2, 3]);
    bytes[3] += 3;
    expect_fenced(&single, &bytes, "malformed request");
    expect_fenced(&single, &[0, 0, 0, 3, 0x10, 0, 1], "malformed HELLO");
}

#[test]
fn a_truncated_frame_changes_nothing() {
    let single = Single::start(&[]);
    let mut bytes = Vec::new();
    Request::Put { key: b"truncated", value: b"1" }.encode(&mut bytes);
    for size in 1..bytes.len() {
        let mut raw = single.node.raw();
        raw.write(&bytes[..size]);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(raw.is_closed());
    }
    assert_eq!(single.node.client().get(b"truncated").unwrap().value, None);
    assert_eq!(single.node.status()["last_lsn"], 1, "the term's record alone");
}

#[test]
fn random_bytes_never_harm_the_node() {
    let single = Single::start(&[]);
    let mut random = Seeded::new(16);
    let mut bystander = single.node.client();
    for round in 0..200_u32 {
        let size = 1 + random.below(300) as usize;
        let mut bytes: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
        if round % 2 == 0 {
            // Half of them begin as a frame of some type does, so that decoders are reached too.
            let kinds = [1, 2, 3, 7, 8, 9, 0x10, 0x20];
            let len = (size as u32).to_be_bytes();
            let kind = kinds[random.below(kinds.len() as u64) as usize];
            bytes.splice(0..0, [len[0], len[1], len[2], len[3], kind]);
            bytes.truncate(4 + size);
        }
        let mut raw = single.node.raw();
        raw.write(&bytes);
        let _ = raw.stream.shutdown(std::net::Shutdown::Write);
        while raw.frame().is_some() {}
        bystander.put(b"k", &round.to_be_bytes()).unwrap();
    }
    assert_eq!(bystander.get(b"k").unwrap().value, Some(199_u32.to_be_bytes().to_vec()));
    assert_eq!(single.node.status()["role"], "leader", "no garbage was a command");
}
