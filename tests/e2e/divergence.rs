//! Logs that went different ways (N8), and nodes that do not belong together (N14, N15, N19).

use kvstore::wire::client::Status;

use crate::cluster::{Cluster, DEADLINE, Node};

fn put_numbers(node: &Node, prefix: &str, count: u32) {
    let mut client = node.client();
    for number in 0..count {
        client.put(format!("{prefix} {number}").as_bytes(), &number.to_be_bytes()).unwrap();
    }
}

/// A leader that wrote 7 records nobody else has, while node 1 was promoted and wrote 3 others. The leader
/// calls its records committed (`--ack=leader`), and is stopped.
fn diverged() -> Cluster {
    let mut cluster = Cluster::start(3, &["--ack=leader"]);
    put_numbers(&cluster.nodes[0], "shared", 20);
    cluster.expect_equal(&[0, 1, 2]);
    cluster.nodes[1].kill9();
    cluster.nodes[2].kill9();
    put_numbers(&cluster.nodes[0], "lost", 7);
    cluster.nodes[0].kill9();
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    let (code, stdout, stderr) = cluster.nodes[1].cli(&["promote", "--force"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    put_numbers(&cluster.nodes[1], "kept", 3);
    cluster
}

#[test]
fn a_diverged_node_is_refused_below_its_commit_lsn_in_words_and_cut_only_with_discard() {
    let mut cluster = diverged();
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].spawn();
    cluster.nodes[0].log.wait_for_line(mark, "stopped leading: met term 1.0", DEADLINE);
    let leader = cluster.nodes[1].address();

    let promoted = cluster.nodes[1].log.mark();
    assert_eq!(cluster.nodes[0].cli(&["follow", &leader]).0, 0);
    let own = cluster.nodes[0].log.wait_for_line(mark, "nothing was cut", DEADLINE);
    assert!(own.contains("--discard") && own.contains("kept aside"), "{own}");
    let line = cluster.nodes[1].log.wait_for_line(promoted, "nothing was cut", DEADLINE);
    assert!(line.contains("refuses the session") && line.contains(&cluster.nodes[0].address()), "{line}");
    let peer = cluster.nodes[1].wait_status("showing the refusal", |status| {
        status["peers"].as_array().unwrap().iter().any(|peer| peer["state"] == "refused")
    });
    assert!(peer.to_string().contains("--discard"), "the status says what to do: {peer}");
    // It keeps running, serves reads of what it has, and has cut nothing.
    let value = cluster.nodes[0].client().get(b"lost 6").unwrap().value;
    assert_eq!(value, Some(6_u32.to_be_bytes().to_vec()));
    assert!(cluster.nodes[0].files(".kvcut").is_empty());

    assert_eq!(cluster.nodes[0].cli(&["follow", &leader, "--discard"]).0, 0);
    let cut = cluster.nodes[0].log.wait_for_line(mark, "cut records", DEADLINE);
    assert!(cut.contains(".kvcut"), "{cut}");
    cluster.expect_equal(&[1, 0, 2]);
    assert_eq!(cluster.nodes[0].client().get(b"lost 6").unwrap().value, None);
    assert!(cluster.nodes[0].client().get(b"kept 2").unwrap().value.is_some());
    let status = cluster.nodes[0].status();
    // Seven writes, and the TERM record of the restart as a leader if that came before it met the new term.
    let cut_records = status["counters"]["cut_records"].as_u64().unwrap();
    assert!((7..=8).contains(&cut_records), "{cut_records}");
    let kept = cluster.nodes[0].files(".kvcut");
    assert_eq!(kept.len(), 1);
    let bytes = std::fs::read(&kept[0]).unwrap();
    assert!(bytes.windows(6).any(|window| window == b"lost 6"), "what was cut is kept aside");

    // The permission was for one cut, and everything holds after a restart.
    cluster.nodes[0].kill9();
    cluster.nodes[0].start();
    cluster.expect_equal(&[1, 0, 2]);
}

#[test]
fn a_tail_that_was_never_committed_is_cut_without_asking_and_kept_aside() {
    // With quorum a write that only the leader has is not committed: when the leader comes back as a
    // follower, that tail goes by itself.
    let mut cluster = Cluster::start(3, &["--ack=quorum"]);
    put_numbers(&cluster.nodes[0], "shared", 20);
    cluster.expect_equal(&[0, 1, 2]);
    cluster.nodes[1].kill9();
    cluster.nodes[2].kill9();
    let mut client = cluster.nodes[0].client();
    client.set_timeout(std::time::Duration::from_millis(300));
    assert!(client.put(b"never acknowledged", b"1").unwrap_err().is_outcome_unknown());
    cluster.nodes[0].kill9();
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    assert_eq!(cluster.nodes[1].cli(&["promote"]).0, 0);
    put_numbers(&cluster.nodes[1], "kept", 3);
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].start();
    cluster.nodes[0].log.wait_for_line(mark, "stopped leading", DEADLINE);
    assert_eq!(cluster.nodes[0].cli(&["follow", &cluster.nodes[1].address()]).0, 0);
    cluster.nodes[0].log.wait_for_line(mark, "cut records", DEADLINE);
    cluster.nodes[0].log.wait_for_line(mark, "reads went back", DEADLINE);
    cluster.expect_equal(&[1, 0, 2]);
    assert_eq!(cluster.nodes[0].client().get(b"never acknowledged").unwrap().value, None);
    assert_eq!(cluster.nodes[0].files(".kvcut").len(), 1);
}

#[test]
fn a_node_of_another_cluster_is_refused_in_words_on_both_sides() {
    let ours = Cluster::start(2, &[]);
    let mut theirs = Cluster::prepare(1, &["--insync-timeout-ms=100"]);
    theirs.nodes[0].args.push(format!("--peers={}", ours.nodes[1].port));
    theirs.nodes[0].start();
    let line = theirs.nodes[0].log.wait_for_line(0, "belongs to cluster", DEADLINE);
    assert!(line.contains("refuses the session") && line.contains("cannot change its cluster"), "{line}");
    ours.nodes[1].log.wait_for_line(0, "belongs to cluster", DEADLINE);
    // Neither is disturbed.
    put_numbers(&ours.nodes[0], "ours", 5);
    put_numbers(&theirs.nodes[0], "theirs", 5);
    ours.wait_streaming();
    ours.expect_equal(&[0, 1]);
    assert_eq!(ours.nodes[1].client().get(b"theirs 0").unwrap().value, None);
}

#[test]
fn a_node_that_is_its_own_peer_by_another_name_says_so_and_goes_on() {
    let mut cluster = Cluster::prepare(1, &["--insync-timeout-ms=100"]);
    let port = cluster.nodes[0].port;
    cluster.nodes[0].args.push(format!("--peers=localhost:{port}"));
    cluster.nodes[0].start();
    let line = cluster.nodes[0].log.wait_for_line(0, "is at both ends", DEADLINE);
    assert!(line.contains("is its own peer"), "{line}");
    put_numbers(&cluster.nodes[0], "k", 5);
    let status = cluster.nodes[0].wait_status("refused by itself", |s| s["peers"][0]["state"] == "refused");
    assert_eq!(status["role"], "leader");

    // By the same name it is a usage error before anything is touched.
    cluster.nodes[0].kill9();
    cluster.nodes[0].args.pop();
    cluster.nodes[0].args.push(format!("--peers=127.0.0.1:{port}"));
    let (code, text) = cluster.nodes[0].start_refused();
    assert!(code == 2 && text.contains("this node itself"), "{code}: {text}");
}

#[test]
fn a_copied_data_directory_is_refused_and_the_original_unaffected() {
    let mut cluster = Cluster::prepare(3, &["--insync-timeout-ms=100"]);
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    put_numbers(&cluster.nodes[0], "k", 5);
    cluster.nodes[1].kill9();
    std::fs::create_dir(&cluster.nodes[2].dir).unwrap();
    for file in cluster.nodes[1].files("") {
        std::fs::copy(&file, cluster.nodes[2].dir.join(file.file_name().unwrap())).unwrap();
    }
    cluster.nodes[1].start();
    cluster.nodes[0].wait_status("streaming to the original", |s| s["peers"][0]["state"] == "streaming");
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[2].start();
    let line = cluster.nodes[0].log.wait_for_line(mark, "copied data directory", DEADLINE);
    assert!(
        line.contains(&cluster.nodes[1].address()) && line.contains(&cluster.nodes[2].address()),
        "{line}"
    );
    let copy = cluster.nodes[2].log.wait_for_line(0, "copied data directory", DEADLINE);
    assert!(copy.contains("WARN"), "both sides are told: {copy}");
    put_numbers(&cluster.nodes[0], "after", 5);
    let status = cluster.nodes[0].status();
    assert_eq!(status["peers"][0]["state"], "streaming");
    assert_eq!(status["peers"][1]["state"], "refused");
    cluster.expect_equal(&[0, 1]);
}

#[test]
fn of_two_leaders_for_one_follower_the_higher_term_wins_and_the_other_is_told() {
    // Node 1 was promoted while the old leader was away; both name node 2 as their follower.
    let mut cluster = diverged();
    put_numbers(&cluster.nodes[1], "more", 3);
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].start();
    let line = cluster.nodes[0].log.wait_for_line(mark, "stopped leading", DEADLINE);
    assert!(line.contains(&cluster.nodes[1].address()), "it says who leads: {line}");
    let error = cluster.nodes[0].client().put(b"refused", b"1").unwrap_err();
    assert_eq!(error.status(), Some(Status::NotLeader));
    put_numbers(&cluster.nodes[1], "on", 3);
    cluster.expect_equal(&[1, 2]);
}
