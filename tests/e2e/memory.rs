//! Memory budgets: what does not fit is refused with a status before anything is allocated for it, and once
//! there is room again everything goes on (P7).

use kvstore::limits::{IN_FLIGHT_SIZE_MAX, INPUT_BUDGET, INPUT_BUFFER_SIZE, VALUE_SIZE_MAX};
use kvstore::wire::client::{Request, Status};
use rustix::process::Signal;

use crate::cluster::{Cluster, Raw, Single};

/// A PUT of the largest value.
fn largest_put() -> Vec<u8> {
    let value = vec![0; VALUE_SIZE_MAX];
    let mut bytes = Vec::new();
    Request::Put { key: b"large", value: &value }.encode(&mut bytes);
    bytes
}

#[test]
fn frames_beyond_the_input_budget_are_refused_as_busy_and_room_comes_back() {
    let single = Single::start(&["--segment-bytes=1048576"]);
    let bytes = largest_put();
    // Each announces 8 MiB and sends 64 KiB of it: that fills the budget, and must not fill the machine.
    let fitting = INPUT_BUDGET / (bytes.len() - INPUT_BUFFER_SIZE);
    let before = single.node.rss_kib();
    for round in 0..2 {
        let mut unfinished: Vec<Raw> = Vec::new();
        for _ in 0..fitting {
            let mut raw = single.node.raw();
            raw.write(&bytes[..64 << 10]);
            unfinished.push(raw);
        }
        // One more than fits, as soon as the others were read: it is answered although it is not complete.
        let mut refused = single.node.raw();
        let mut bystander = single.node.client();
        bystander.put(b"small", b"1").unwrap();
        refused.write(&bytes[..64 << 10]);
        let (status, _, message) = refused.reply();
        assert_eq!(status, Status::Busy, "round {round}");
        assert!(String::from_utf8_lossy(&message).contains("try again"));
        let grown = single.node.rss_kib() - before;
        assert!(grown < 64 << 10, "what was announced and not sent takes {grown} KiB");
        // What it sends of that frame is thrown away, and the connection lives.
        refused.write(&bytes[64 << 10..]);
        refused.request(&Request::Get { key: b"small" });
        let (status, _, value) = refused.reply();
        assert_eq!((status, value.as_slice()), (Status::Ok, &b"1"[..]));
        bystander.put(b"small", b"1").unwrap();
        assert!(bystander.status().unwrap().value["counters"]["busy"].as_u64().unwrap() > round);
        // All of them leave in the middle of their frames: their share of the budget is free again.
        drop(unfinished);
        single.node.wait_status("rid of them", |status| status["connections"].as_u64().unwrap() < 10);
    }
    let mut raw = single.node.raw();
    raw.write(&bytes);
    assert_eq!(raw.reply().0, Status::Ok, "a large write is taken again");
}

#[test]
fn writes_beyond_the_in_flight_budget_are_refused_as_busy_until_the_follower_is_back() {
    let cluster =
        Cluster::start(2, &["--insync-timeout-ms=60000", "--segment-bytes=67108864", "--durability=os"]);
    cluster.nodes[1].signal(Signal::STOP);
    let bytes = largest_put();
    let fitting = IN_FLIGHT_SIZE_MAX / bytes.len();
    let mut waiting = Vec::new();
    for _ in 0..fitting {
        let mut raw = cluster.nodes[0].raw();
        raw.write(&bytes);
        waiting.push(raw);
    }
    let all = 1 + fitting as u64;
    cluster.nodes[0].wait_status("holding them all", |status| status["last_lsn"] == all);
    let mut refused = cluster.nodes[0].raw();
    refused.write(&bytes);
    let (status, _, message) = refused.reply();
    assert_eq!(status, Status::Busy);
    assert!(String::from_utf8_lossy(&message).contains("wait for replicas"));
    assert_eq!(cluster.nodes[0].status()["last_lsn"], all, "what is refused has no LSN");
    assert_eq!(
        cluster.nodes[0].cli(&["--timeout-ms", "300", "put", "k", "v"]).0,
        6,
        "a small one fits, and waits"
    );
    cluster.nodes[1].signal(Signal::CONT);
    for raw in &mut waiting {
        assert_eq!(raw.reply().0, Status::Ok);
    }
    refused.write(&bytes);
    assert_eq!(refused.reply().0, Status::Ok);
    cluster.expect_equal(&[0, 1]);
}
