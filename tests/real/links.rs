//! Links between real nodes, and between clients and nodes, that are slow, cut in the middle of frames, closed to
//! whoever dials, or half-open (N5): whatever was acknowledged is there afterwards, nobody dials in a tight loop,
//! and a peer that is gone without a FIN is noticed by its missing heartbeats.

use std::time::{Duration, Instant};

use kvstore::client::Client;
use kvstore::limits::REDIAL_MS_MAX;

use crate::cluster::{self, Cluster, DEADLINE, Node, Seeded};
use crate::proxy::Proxy;
use crate::writers::{Known, Writer, look_up, wait_for_acks};

/// A leader, and followers that it reaches over proxies; all in sync.
fn cluster_over_proxies(count: usize, extra: &[&str]) -> (Cluster, Vec<Proxy>) {
    let mut cluster = Cluster::prepare(count, extra);
    let proxies: Vec<Proxy> = cluster.nodes[1..].iter().map(|node| Proxy::to(node.port)).collect();
    let ports: Vec<String> = proxies.iter().map(|proxy| proxy.port.to_string()).collect();
    let peers = cluster.nodes[0].args.iter_mut().find(|arg| arg.starts_with("--peers=")).expect("it leads");
    *peers = format!("--peers={}", ports.join(","));
    cluster.nodes.iter_mut().for_each(Node::spawn);
    cluster.wait_streaming();
    (1..count).for_each(|follower| cluster.wait_told_in_sync(follower));
    (cluster, proxies)
}

#[test]
fn links_that_are_slow_and_cut_in_the_middle_of_frames_lose_no_acknowledged_write() {
    const ROUNDS: usize = 60;
    let (cluster, proxies) = cluster_over_proxies(3, &["--insync-timeout-ms=200", "--segment-bytes=65536"]);
    let clients = Proxy::to(cluster.nodes[0].port);
    let seed = std::env::var("E2E_SEED").map_or(0x5eed, |text| text.parse().expect("E2E_SEED is a number"));
    println!("E2E_SEED={seed}");
    let mut random = Seeded::new(seed);
    let writers = [Writer::start(cluster.nodes[0].address(), 0), Writer::start(clients.address(), 1)];
    for _ in 0..ROUNDS {
        let proxy = [&proxies[0], &proxies[1], &clients][random.below(3) as usize];
        proxy.delay(Duration::from_millis(random.below(4) * 5));
        match random.below(4) {
            0 => proxy.cut(),
            // Somewhere within the next few frames of either direction.
            _ => proxy.cut_after(random.below(6_000) as usize),
        }
        wait_for_acks(&writers, 1 + random.below(24));
    }
    let sessions = cluster.nodes[0].status()["counters"]["sessions"].as_u64().unwrap();
    assert!(sessions > 12, "{sessions} sessions: the links were not cut");
    proxies.iter().for_each(|proxy| proxy.delay(Duration::ZERO));
    let known: Vec<Known> = writers.into_iter().map(Writer::finish).collect();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1, 2]);
    let acked: Vec<(Vec<u8>, u64)> = known.into_iter().flat_map(|known| known.acked).collect();
    cluster.nodes.iter().for_each(|node| look_up(node, &acked));
    let fenced: u64 =
        cluster.nodes.iter().map(|node| node.status()["counters"]["fenced"].as_u64().unwrap()).sum();
    assert_eq!(fenced, 0, "half a frame and an end is no offence");
}

#[test]
fn a_peer_that_hangs_up_is_dialled_ever_more_rarely_and_found_again() {
    let (cluster, proxies) = cluster_over_proxies(2, &["--insync-timeout-ms=100"]);
    proxies[0].refuse(true);
    let (before, begin) = (proxies[0].accepted(), Instant::now());
    proxies[0].cut();
    let until = begin + DEADLINE;
    while proxies[0].accepted() < before + 9 {
        assert!(Instant::now() < until, "it is no longer dialled");
        cluster.nodes[0].client().put(b"meanwhile", b"1").unwrap();
    }
    // Steps of 20 ms, doubled up to a second, of each of which a quarter is random: 0.75 * 3.26 s before the ninth.
    let took = begin.elapsed();
    assert!(took > 2 * Duration::from_millis(REDIAL_MS_MAX), "nine dials in {took:?}");
    cluster.nodes[0].wait_status("without the peer", |status| {
        status["peers"][0]["in_sync"] == false && status["peers"][0]["state"] == "down"
    });
    proxies[0].refuse(false);
    cluster.nodes[0].client().put(b"after", b"2").unwrap();
    cluster.wait_streaming();
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn a_peer_gone_without_a_fin_is_noticed_by_heartbeats_and_writes_go_on_without_it() {
    // Lost: what the leader says, what the follower says, both. The connection stays open for either side.
    for (to_follower, from_follower) in [(true, true), (true, false), (false, true)] {
        let (cluster, proxies) = cluster_over_proxies(2, &["--insync-timeout-ms=100"]);
        let marks = [0, 1].map(|node| cluster.nodes[node].log.mark());
        cluster.nodes[0].client().put(b"before", b"1").unwrap();
        proxies[0].lose(to_follower, from_follower);
        let mut client = cluster.nodes[0].client();
        for number in 0..100_u32 {
            client.put(b"meanwhile", &number.to_be_bytes()).unwrap();
        }
        let peer = &cluster.nodes[0].status()["peers"][0];
        assert_eq!(peer["in_sync"], false, "its ACKs do not arrive: {peer}");
        // Who still hears the other side may hear it hang up first.
        let noticed = if from_follower { "no answer to heartbeats for 3000 ms" } else { "is lost" };
        cluster.nodes[0].log.wait_for_line(marks[0], noticed, DEADLINE);
        let ended = if to_follower { "is silent for 3000 ms" } else { "is lost" };
        cluster.nodes[1].log.wait_for_line(marks[1], ended, DEADLINE);
        let status = cluster.nodes[1].status();
        assert_eq!(status["in_sync"], false, "without a session it does not call itself in sync");
        assert!(cluster.nodes[1].client().get(b"before").unwrap().value.is_some(), "reads go on");
        proxies[0].lose(false, false);
        cluster.wait_streaming();
        cluster.expect_equal(&[0, 1]);
    }
}

#[test]
fn a_client_on_a_half_open_connection_has_an_unknown_outcome_and_disturbs_nobody() {
    let single = cluster::Single::start(&[]);
    for (to_node, from_node) in [(true, false), (false, true)] {
        let proxy = Proxy::to(single.node.port);
        let mut client = Client::connect(&proxy.address(), Duration::from_secs(1)).unwrap();
        client.put(b"sure", b"1").unwrap();
        proxy.lose(to_node, from_node);
        let error = client.put(b"unsure", &[u8::from(to_node)]).unwrap_err();
        assert!(error.is_outcome_unknown(), "{error}");
        // Whether it was executed only others can tell: the request was lost, or the answer.
        let found = single.node.client().get(b"unsure").unwrap().value;
        assert_eq!(found, (!to_node).then(|| vec![u8::from(to_node)]));
        proxy.lose(false, false);
        // A new connection is a new chance; the old one stays with the node, which is not disturbed by it.
        client.put(b"sure", b"2").unwrap();
        assert_eq!(client.get(b"sure").unwrap().value, Some(b"2".to_vec()));
        single.node.client().put(b"other", b"3").unwrap();
    }
}
