//! Clients that ask for much with few bytes: what a connection may cost in one turn is bounded by what is answered, not
//! by what is asked.

use kvstore::limits::{CLIENT_OUTPUT_HIGH_WATER, FRAME_SLACK, VALUE_SIZE_MAX};
use kvstore::node::RoleFlag;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};

use crate::lone_node::LoneNode;
use crate::mem_disk::MemDisk;

/// The most that may wait for one client: what was below the mark, and one answer more.
const OUTPUT_MAX: usize = CLIENT_OUTPUT_HIGH_WATER + VALUE_SIZE_MAX + FRAME_SLACK;

fn bytes_of(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode(&mut bytes);
    bytes
}

fn size(frames: &[(MessageType, Vec<u8>)]) -> usize {
    frames.iter().map(|(_, body)| 5 + body.len()).sum()
}

fn count_ok(frames: &[(MessageType, Vec<u8>)]) -> usize {
    let statuses = frames.iter().map(|(_, body)| Reply::decode(body).expect("a reply").status);
    statuses.inspect(|status| assert_eq!(*status, Status::Ok)).count()
}

#[test]
fn reads_of_a_large_value_that_wait_for_a_write_are_answered_in_bounded_pieces() {
    const READS: usize = 60;
    // A follower that never answers: the leader's writes wait until it leaves the in-sync set.
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &["nobody:1"]);
    let client = lone.connect();
    let value = vec![7; VALUE_SIZE_MAX];
    assert_eq!(lone.send(client, &bytes_of(&Request::Put { key: b"k", value: &value })).frames, []);
    let reads = bytes_of(&Request::Get { key: b"k" }).repeat(READS);
    assert_eq!(lone.send(client, &reads).frames, [], "they wait behind the write");
    assert!(!lone.node.wants_input(client), "and no more are taken than may be answered at once");
    // Another client is served meanwhile.
    let other = lone.connect();
    assert_eq!(lone.send(other, &bytes_of(&Request::Ping)).frames.len(), 1);
    (0..20).for_each(|_| lone.pass_ms(100));
    let (mut answered, mut turns) = (0, 0);
    let mut frames = lone.said(client);
    while answered < READS + 1 {
        assert!(size(&frames) <= OUTPUT_MAX, "{} bytes in turn {turns}", size(&frames));
        answered += count_ok(&frames);
        turns += 1;
        assert!(turns <= 2 * READS, "every turn answers something: {answered} in {turns}");
        frames = lone.send(client, &[]).frames;
    }
    assert_eq!(answered, READS + 1);
}

#[test]
fn small_reads_behind_small_writes_are_taken_by_the_thousand() {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &["nobody:1"]);
    let client = lone.connect();
    // Less than what one read of a socket brings.
    let mut bytes = bytes_of(&Request::Put { key: b"k", value: b"v" });
    bytes.extend(bytes_of(&Request::Get { key: b"k" }).repeat(1_000));
    assert_eq!(lone.send(client, &bytes).frames, []);
    assert!(lone.node.wants_input(client));
    (0..20).for_each(|_| lone.pass_ms(100));
    assert_eq!(count_ok(&lone.said(client)), 1_001);
}

#[test]
fn long_answers_behind_a_write_are_bounded_too() {
    let mut lone = LoneNode::on(&MemDisk::new(), RoleFlag::Leader, &["nobody:1"]);
    let client = lone.connect();
    lone.send(client, &bytes_of(&Request::Put { key: b"k", value: b"v" }));
    let asked = bytes_of(&Request::Status).repeat(100);
    for _ in 0..100 {
        lone.send(client, &asked);
    }
    assert!(!lone.node.wants_input(client));
    (0..20).for_each(|_| lone.pass_ms(100));
    let frames = lone.said(client);
    assert!(size(&frames) <= OUTPUT_MAX && frames.len() > 10, "{} in {}", size(&frames), frames.len());
}
