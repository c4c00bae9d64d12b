//! `kv_client put --explain`, `explain`, `slowest`, `tail`, `latency`, `syscalls`, `reset`: what is asked, and
//! how fixed documents are shown.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstore::client::measured_text::{Ledger, render_latency};
use kvstore::client::receipt_text::{render, render_slowest, render_tail};
use kvstore::ids::Lsn;
use kvstore::wire::client::{Inspect, Status};
use serde_json::{Value, json};

use crate::support::{Answer, FakeNode, Seen, command, reply};

/// A write whose second follower had the slower disk, and which a client saw in 480 us.
fn receipt() -> Value {
    json!({
        "lsn": 1_042, "term": 4_294_967_297u64, "nodes": 3,
        "durable_on": ["127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003"],
        "batch_writes": 1, "total_us": 400.0,
        "stages_us": {"decode": 2.0, "queue": 8.0, "send": 30.0, "sync": 120.0, "commit": 220.0, "reply": 20.0},
        "residue_us": 0.0, "answered": false,
        "followers": [
            {"address": "127.0.0.1:9002", "ack_us": 180.0, "before_commit": true,
             "decode_us": 4.0, "sync_us": 96.0, "network_us": 80.0},
            {"address": "127.0.0.1:9003", "ack_us": 368.0, "before_commit": true,
             "decode_us": 4.0, "sync_us": 300.0, "network_us": 64.0},
        ],
    })
}

const RECEIPT: &str = "\
LSN 1,042 in term 1.1 — durable on 3 of 3 nodes: 127.0.0.1:9001, 127.0.0.1:9002, 127.0.0.1:9003 — 1 write in its group commit

                                                   us    share  0.0                                       480.0 us
client's round trip                             480.0           |~~~~----------------------------------------~~~~|
leader 127.0.0.1:9001                           400.0  100.0 %  |    ----------------------------------------    |
  decode  request to record                       2.0    0.5 %  |    =                                           |
  queue   rest of the turn's requests             8.0    2.0 %  |    =                                           |
  send    records to the followers' sockets      30.0    7.5 %  |     ===                                        |
  sync    write and flush of the log, one call  120.0   30.0 %  |        ############                            |
  commit  wait for followers                    220.0   55.0 %  |                    ......................      |
  reply   reply to its socket                    20.0    5.0 %  |                                          ==    |
  residue not in any stage                        0.0    0.0 %
follower 127.0.0.1:9002                         180.0  100.0 %  |     ~~~~##########~~~~                         |
  decode  records to its log's buffer             4.0    2.2 %
  sync    write and flush of its log             96.0   53.3 %
  network and wake-ups: the rest                 80.0   44.4 %
follower 127.0.0.1:9003                         368.0  100.0 %  |     ~~~=##############################~~~      |
  decode  records to its log's buffer             4.0    1.1 %
  sync    write and flush of its log            300.0   81.5 %
  network and wake-ups: the rest                 64.0   17.4 %

- the leader's total   = a processor   # a disk   . waiting   ~ network and wake-ups, both ways together
A node tells durations, never times of its clock: its share is drawn in the middle of the bar around it.
Longest: commit, 220.0 us, 55.0 % of the leader's time, waiting for 127.0.0.1:9003, most of it for its disk.
Not the node's: 80.0 us of the client's 480.0 us, for both system calls, both wake-ups and the network.
";

const RECEIPT_LATER: &str = "\
LSN 1,042 in term 1.1 — durable on 2 of 3 nodes: 127.0.0.1:9001, 127.0.0.1:9002 — 12 writes in its group commit

                                                   us    share  0.0                                       190.0 us
leader 127.0.0.1:9001                           180.0  100.0 %  |---------------------------------------------   |
  decode  request to record                       2.0    1.1 %  |=                                               |
  queue   rest of the turn's requests             8.0    4.4 %  | ==                                             |
  send    records to the followers' sockets      30.0   16.7 %  |   =======                                      |
  sync    write and flush of the log, one call  120.0   66.7 %  |          ##############################        |
  commit  wait for followers                      0.0    0.0 %  |                                                |
  reply   reply to its socket                    20.0   11.1 %  |                                        =====   |
  residue not in any stage                        0.0    0.0 %
follower 127.0.0.1:9002, not waited for         180.0  100.0 %  |   ~~~~~~~~~~=########################~~~~~~~~~~|
  decode  records to its log's buffer             4.0    2.2 %
  sync    write and flush of its log             96.0   53.3 %
  network and wake-ups: the rest                 80.0   44.4 %
follower 127.0.0.1:9003                             -           no ACK when this was written

- the leader's total   = a processor   # a disk   . waiting   ~ network and wake-ups, both ways together
A node tells durations, never times of its clock: its share is drawn in the middle of the bar around it.
Longest: sync, 120.0 us, 66.7 % of the leader's time.
";

#[test]
fn the_waterfall_of_a_write_that_waited_for_a_slow_disk() {
    assert_eq!(render(&receipt(), Some(480.0)), RECEIPT);
}

#[test]
fn a_follower_that_was_not_waited_for_and_one_that_never_answered() {
    let mut document = receipt();
    document["durable_on"] = json!(["127.0.0.1:9001", "127.0.0.1:9002"]);
    document["batch_writes"] = json!(12);
    document["stages_us"]["commit"] = json!(0.0);
    document["total_us"] = json!(180.0);
    document["followers"][0]["before_commit"] = json!(false);
    document["followers"][1]["ack_us"] = Value::Null;
    assert_eq!(render(&document, None), RECEIPT_LATER);
}

#[test]
fn a_wait_in_vain_is_not_blamed_on_the_follower_that_answered() {
    let mut document = receipt();
    document["stages_us"]["commit"] = json!(500_000.0);
    document["total_us"] = json!(500_180.0);
    document["followers"][1]["ack_us"] = Value::Null;
    document["followers"][1]["before_commit"] = json!(false);
    let text = render(&document, None);
    assert!(text.contains("waiting for 127.0.0.1:9003 until it left the in-sync set.\n"), "{text}");
    let text = render_slowest(&[document]);
    assert!(text.ends_with("commit 100.0 %: 127.0.0.1:9003, no ACK\n"), "{text}");
}

#[test]
fn put_explain_asks_for_the_receipt_and_prints_it() {
    let node = FakeNode::start(|_| reply(Status::Ok, receipt().to_string()));
    let ran = node.client(&["put", "--explain", "hello", "world"]);
    let text = ran.stdout_text();
    assert_eq!((ran.exit_code, ran.stderr.as_str()), (0, ""));
    assert!(
        text.starts_with("LSN 1,042 in term 1.1 — durable on 3 of 3 nodes") && text.contains("client's"),
        "{text}"
    );
    assert_eq!(node.seen(), [Seen::PutExplained(b"hello".to_vec(), b"world".to_vec())]);
    let document = node.client(&["put", "--explain", "k", "v", "-o", "json"]).json();
    assert!(document["round_trip_us"].as_f64().is_some_and(|us| us > 0.0), "{document}");
    assert_eq!(
        (&document["ok"], &document["lsn"], &document["receipt"]),
        (&json!(true), &json!(7), &receipt())
    );
}

#[test]
fn put_explain_goes_to_the_leader_and_says_so() {
    let leader = FakeNode::start(|_| reply(Status::Ok, receipt().to_string()));
    let address = leader.address.clone();
    let follower = FakeNode::start(move |_| reply(Status::NotLeader, address.clone()));
    let ran = follower.client(&["put", "--explain", "k", "v"]);
    let last =
        format!("That includes being sent on to the leader, {}, and connecting to it.\n", leader.address);
    assert!(ran.exit_code == 0 && ran.stdout_text().ends_with(&last), "{ran:?}");
}

#[test]
fn a_write_without_a_receipt_is_done_all_the_same() {
    let node = FakeNode::start(|_| reply(Status::Ok, ""));
    let ran = node.client(&["put", "--explain", "k", "v"]);
    assert!(ran.exit_code == 0 && ran.stdout_text() == "OK\n", "{ran:?}");
    assert!(ran.stderr.contains("the node keeps no receipts"), "{ran:?}");
    assert_eq!(node.client(&["put", "--explain", "k", "v", "-o", "json"]).json()["receipt"], Value::Null);
}

#[test]
fn explain_prints_an_earlier_receipt_or_why_there_is_none() {
    let node = FakeNode::start(|request| match request {
        Seen::Inspect(Inspect::Receipt(Lsn(1_042))) => reply(Status::Ok, receipt().to_string()),
        _ => reply(Status::NotFound, "no receipt of LSN 9: kept are the last 4096 writes"),
    });
    node.client(&["explain", "1042"]).expect(0, &render(&receipt(), None), "");
    let document = node.client(&["explain", "1042", "-o", "json"]).json();
    assert_eq!(document, json!({"ok": true, "receipt": receipt()}));
    node.client(&["explain", "9"]).expect(
        1,
        "",
        "kv_client: no receipt of LSN 9: kept are the last 4096 writes\n",
    );
    let document = node.client(&["explain", "9", "-o", "json"]).json();
    assert_eq!((&document["ok"], &document["error"]), (&json!(false), &json!("not_found")));
}

#[test]
fn a_node_without_receipts_refuses_in_words() {
    let node = FakeNode::start(|_| reply(Status::Refused, "this node keeps no receipts"));
    for arguments in [&["explain", "1"][..], &["slowest"], &["tail"], &["latency"], &["latency", "--watch"]] {
        let ran = node.client(arguments);
        assert!(ran.exit_code == 5 && ran.stderr.contains("keeps no receipts"), "{ran:?}");
    }
}

const SLOWEST: &str = "  LSN  total us  decode  queue  send   sync  commit  reply  writes  longest
1,042     400.0     2.0    8.0  30.0  120.0   220.0   20.0       1  commit 55.0 %: 127.0.0.1:9003, its sync 300.0 us
    7     310.0     1.0    1.0   3.0  300.0     0.0    5.0      64  sync 96.8 %
";

#[test]
fn the_slowest_writes_are_a_line_each() {
    let mut second = receipt();
    second["stages_us"] =
        json!({"decode": 1.0, "queue": 1.0, "send": 3.0, "sync": 300.0, "commit": 0.0, "reply": 5.0});
    (second["lsn"], second["total_us"], second["batch_writes"]) = (json!(7), json!(310.0), json!(64));
    let list = [receipt(), second];
    assert_eq!(render_slowest(&list), SLOWEST);
    assert!(render_slowest(&[]).starts_with("no writes"));

    let node = FakeNode::start(move |_| reply(Status::Ok, json!(list).to_string()));
    node.client(&["slowest"]).expect(0, SLOWEST, "");
    assert_eq!(node.client(&["slowest", "3", "-o", "json"]).json()["slowest"][1]["lsn"], 7);
    assert_eq!(node.seen(), [10, 3].map(|count| Seen::Inspect(Inspect::Slowest(count))));
    assert_eq!(node.client(&["slowest", "65"]).exit_code, 2);
}

const TAIL: &str = "\
In the slowest 5 of the last 4,096 writes (above p99.9, 20,110.5 to 24,001.0 us) most time went to 127.0.0.1:9003 sync: 97.1 %, 20,900.0 us on average.

what                                 share   mean us
127.0.0.1:9003 sync                 97.1 %  20,900.0  #######################################
127.0.0.1:9001 sync                  2.5 %     538.0  #
127.0.0.1:9003 network and wake-up   0.4 %      86.1

The slowest of them, LSN 812 3021 44 90 2000. See one: kv_client explain 812
";

#[test]
fn the_tail_names_the_culprit() {
    let tail = json!({
        "percentile": 99.9, "writes_known": 4096, "writes_slowest": 5,
        "fastest_of_them_us": 20_110.5, "slowest_us": 24_001.0,
        "shares": [
            {"what": "127.0.0.1:9003 sync", "percent": 97.1, "mean_us": 20_900.0},
            {"what": "127.0.0.1:9001 sync", "percent": 2.5, "mean_us": 538.0},
            {"what": "127.0.0.1:9003 network and wake-up", "percent": 0.4, "mean_us": 86.1},
        ],
        "lsns": [812, 3_021, 44, 90, 2_000],
    });
    assert_eq!(render_tail(&tail), TAIL);
    assert!(render_tail(&json!({"writes_known": 0, "shares": []})).starts_with("no writes"));

    let node = FakeNode::start(move |_| reply(Status::Ok, tail.to_string()));
    node.client(&["tail"]).expect(0, TAIL, "");
    assert_eq!(node.client(&["tail", "--percentile", "99.99", "-o", "json"]).json()["lsns"][1], 3_021);
    assert_eq!(node.client(&["tail", "--percentile", "0"]).exit_code, 0);
    let asked = [999_000, 999_900, 0].map(|millionths| Seen::Inspect(Inspect::Tail(millionths)));
    assert_eq!(node.seen(), asked);
    for wrong in ["100", "-1", "p99", "nan"] {
        assert_eq!(node.client(&["tail", &format!("--percentile={wrong}")]).exit_code, 2);
    }
}

const LATENCY: &str = "\
microseconds         count    p50    p90      p99    p99.9       max
put total           41,200  231.4  260.0  1,402.9  4,100.0  20,316.2
get                      0      -      -        -        -         -
127.0.0.1:9002 ack  41,200  231.4  260.0  1,402.9  4,100.0  20,316.2
";

#[test]
fn the_latency_table() {
    let durations = json!({"count": 41_200, "p50_us": 231.4, "p90_us": 260.0, "p99_us": 1_402.9, "p999_us": 4_100.0, "max_us": 20_316.2});
    let none =
        json!({"count": 0, "p50_us": 0.0, "p90_us": 0.0, "p99_us": 0.0, "p999_us": 0.0, "max_us": 0.0});
    let stages = json!({"put total": durations, "get": none, "127.0.0.1:9002 ack": durations});
    assert_eq!(render_latency(&stages), LATENCY);
    let node = FakeNode::start(move |_| reply(Status::Ok, stages.to_string()));
    node.client(&["latency"]).expect(0, LATENCY, "");
    assert_eq!(node.client(&["latency", "-o", "json"]).json()["stages"]["put total"]["count"], 41_200);
}

const SYSCALLS: &str = "\
leader: 200 writes and 0 reads answered since its start

system call  count  per operation
epoll_wait     600           3.00
recvfrom       600           3.00
sendto         600           3.00
pwritev2       200           1.00
openat           5           0.03
total        2,005          10.03
";

const SYSCALLS_RATE: &str = "\
leader: 100 writes and 20 reads answered in the last second

system call  per second  per operation
epoll_wait          200           1.67
pwritev2            100           0.83
total               300           2.50
";

fn ledger(role: &str, writes: u64, reads: u64, counts: Value) -> Value {
    json!({"role": role, "writes": writes, "reads": reads, "records": writes + 1, "counts": counts})
}

#[test]
fn the_ledger_since_the_start_and_in_the_last_second() {
    let counts = json!({"epoll_wait": 600, "recvfrom": 600, "sendto": 600, "pwritev2": 200, "openat": 5});
    let first = ledger("leader", 200, 0, counts);
    let counts = json!({"epoll_wait": 800, "recvfrom": 600, "sendto": 600, "pwritev2": 300, "openat": 5});
    let second = ledger("leader", 300, 20, counts);
    assert_eq!(Ledger::new(&first).render(), SYSCALLS);
    assert_eq!(Ledger::new(&second).since(&Ledger::new(&first)).render_rate(), SYSCALLS_RATE);
    // A node that was started anew counts from zero.
    assert_eq!(Ledger::new(&first).since(&Ledger::new(&second)).total(), 0);
}

#[test]
fn a_follower_counts_by_the_records_it_applied() {
    let (first, second) = (json!({"epoll_wait": 10}), json!({"epoll_wait": 410}));
    let (first, second) = (ledger("follower", 100, 0, first), ledger("follower", 200, 0, second));
    let text = Ledger::new(&first).render();
    assert!(
        text.starts_with("follower: 0 reads answered since its start; records up to LSN 101\n"),
        "{text}"
    );
    let text = Ledger::new(&second).since(&Ledger::new(&first)).render_rate();
    assert!(
        text.starts_with("follower: 100 records applied and 0 reads answered in the last second\n"),
        "{text}"
    );
    assert!(text.contains("epoll_wait          400           4.00\n"), "{text}");
}

/// A node whose ledger grows by 50 calls and 10 writes with every look.
fn growing() -> FakeNode {
    let looks = AtomicU64::new(0);
    FakeNode::start(move |_| -> Answer {
        let look = looks.fetch_add(1, Ordering::Relaxed);
        reply(Status::Ok, ledger("leader", look * 10, 0, json!({"sendto": look * 50})).to_string())
    })
}

#[test]
fn watching_shows_the_difference_and_ends_with_its_reader() {
    let node = growing();
    let mut child =
        command(node.port()).args(["syscalls", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let second = lines.by_ref().find(|line| line.contains("in the last second")).unwrap();
    assert_eq!(second, "leader: 10 writes and 0 reads answered in the last second");
    assert!(lines.by_ref().any(|line| line == "sendto               50           5.00"));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn watching_in_json_is_a_document_per_line_and_a_node_that_goes_ends_it() {
    let looks = AtomicU64::new(0);
    let node = FakeNode::start(move |_| match looks.fetch_add(1, Ordering::Relaxed) {
        0 => reply(Status::Ok, ledger("leader", 1, 0, json!({"sendto": 2})).to_string()),
        _ => Answer::Close,
    });
    let ran = node.client(&["syscalls", "--watch", "-o", "json"]);
    let lines: Vec<Value> =
        ran.stdout_text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["counts"]["sendto"], &lines[1]["ok"]), (&json!(2), &json!(false)));
    assert_eq!(ran.exit_code, 6);
}

#[test]
fn reset_prints_ok() {
    let node = FakeNode::start(|_| reply(Status::Ok, "{\"reset\":true}"));
    node.client(&["reset"]).expect(0, "OK\n", "");
    node.client(&["reset", "-o", "json"]).expect(0, "{\"ok\":true}\n", "");
    assert_eq!(node.seen()[0], Seen::Inspect(Inspect::Reset));
}
