//! An operator moves leadership: planned with everybody there, by force when not, refused where that would
//! lose writes unasked; and what every node says and does before and after a restart.

use kvstore::ids::{ClusterId, NodeId, Term};
use kvstore::wire::client::Status;
use kvstore::wire::peer::{Fence, FenceReply, Hello, PROTOCOL_VERSIONS};
use kvstore::wire::{CMD_TYPES_KNOWN, MessageType};
use rustix::process::Signal;

use crate::cluster::{Cluster, DEADLINE, Node};

/// What `kv_client` printed, wherever.
fn said(node: &Node, arguments: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = node.cli(arguments);
    (code, format!("{stdout}{stderr}"))
}

fn not_leader(node: &Node) -> String {
    let error = node.client().put(b"refused", b"1").unwrap_err();
    assert_eq!(error.status(), Some(Status::NotLeader), "{error}");
    match error {
        kvstore::client::ClientError::Server { message, .. } => message,
        other => panic!("{other}"),
    }
}

#[test]
fn a_planned_hand_over_moves_writes_to_the_promoted_node_and_both_roles_survive_a_restart() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.nodes[0].client().put(b"before", b"1").unwrap();
    let mark = cluster.nodes[0].log.mark();
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("term 1.0"), "{text}");
    // From the moment the promotion is answered, the old leader takes no write and says who leads.
    assert_eq!(not_leader(&cluster.nodes[0]), cluster.nodes[1].address());
    let line = cluster.nodes[0].log.wait_for_line(mark, "stopped leading: met term 1.0", DEADLINE);
    assert!(line.contains("follow"), "it says what to do: {line}");
    assert_eq!(cluster.nodes[0].status()["role"], "deposed");
    let (code, text) = said(&cluster.nodes[0], &["--no-follow", "put", "k", "v"]);
    assert!(code == 5 && text.contains(&cluster.nodes[1].address()), "{code}: {text}");
    assert_eq!(said(&cluster.nodes[0], &["put", "after", "2"]), (0, "OK\n".to_owned()), "the client follows");
    cluster.nodes[2].wait_status("following the new leader", |status| {
        status["leader"] == cluster.nodes[1].address() && status["applied_lsn"] != 0
    });
    assert_eq!(said(&cluster.nodes[0], &["follow", &cluster.nodes[1].address()]).0, 0);
    expect_all_in_sync_behind(&cluster, 1);

    // Restarts with the flags of before: what the operator said last outranks them, in words.
    let marks: Vec<usize> = cluster.nodes.iter().map(|node| node.log.mark()).collect();
    cluster.nodes.iter_mut().for_each(|node| {
        node.kill9();
        node.spawn();
    });
    let promoted = &cluster.nodes[1].log.wait_for_line(marks[1], "W004", DEADLINE);
    assert!(promoted.contains("was promoted to leader"), "{promoted}");
    let demoted = &cluster.nodes[0].log.wait_for_line(marks[0], "W004", DEADLINE);
    assert!(demoted.contains("told this node to follow"), "{demoted}");
    expect_all_in_sync_behind(&cluster, 1);
    assert_eq!(cluster.nodes[1].status()["term_text"], "1.1");
    assert_eq!(said(&cluster.nodes[2], &["put", "again", "3"]).0, 0);
    cluster.expect_equal(&[1, 0, 2]);
}

fn expect_all_in_sync_behind(cluster: &Cluster, leader: usize) {
    cluster.nodes[leader].wait_status("leading with everybody in sync", |status| {
        let peers = status["peers"].as_array().unwrap();
        status["role"] == "leader"
            && peers.len() == 2
            && peers.iter().all(|p| p["state"] == "streaming" && p["in_sync"] == true && p["lag"] == 0)
    });
    let mut indices = vec![leader];
    indices.extend((0..3).filter(|index| *index != leader));
    // A follower learns with the next heartbeat that it is in sync, and is promoted only then.
    for index in &indices[1..] {
        cluster.nodes[*index].wait_status("in sync by its own account", |status| status["in_sync"] == true);
    }
    cluster.expect_equal(&indices);
}

#[test]
fn a_deposed_leader_stays_so_after_a_restart_until_its_operator_decides() {
    let mut cluster = Cluster::start(3, &[]);
    assert_eq!(said(&cluster.nodes[2], &["promote"]).0, 0);
    cluster.nodes[0].kill9();
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].start();
    cluster.nodes[0].log.wait_for_line(mark, "W005", DEADLINE);
    assert_eq!(cluster.nodes[0].status()["role"], "deposed");
    assert_eq!(not_leader(&cluster.nodes[0]), cluster.nodes[2].address());
    // Leading again is the operator's word, too.
    assert_eq!(said(&cluster.nodes[0], &["follow", &cluster.nodes[2].address()]).0, 0);
    expect_all_in_sync_behind(&cluster, 2);
    assert_eq!(said(&cluster.nodes[0], &["promote"]).0, 0);
    assert_eq!(said(&cluster.nodes[2], &["follow", &cluster.nodes[0].address()]).0, 0);
    expect_all_in_sync_behind(&cluster, 0);
    assert_eq!(cluster.nodes[0].status()["term_text"], "2.0");
}

#[test]
fn an_old_leader_that_was_stopped_stops_taking_writes_when_it_meets_the_new_term() {
    let cluster = Cluster::start(3, &["--ack=leader"]);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.expect_equal(&[0, 1, 2]);
    cluster.nodes[0].signal(Signal::STOP);
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert_eq!(code, 0, "the old leader may be silent: {text}");
    let mark = cluster.nodes[0].log.mark();
    cluster.nodes[0].signal(Signal::CONT);
    cluster.nodes[0].log.wait_for_line(mark, "stopped leading: met term 1.0", DEADLINE);
    assert_eq!(not_leader(&cluster.nodes[0]), cluster.nodes[1].address());
}

#[test]
fn a_lagging_node_is_not_promoted_and_names_the_better_one() {
    let mut cluster = Cluster::start(3, &["--insync-timeout-ms=200"]);
    cluster.nodes[2].kill9();
    for number in 0..10_u32 {
        cluster.nodes[0].client().put(&number.to_be_bytes(), b"v").unwrap();
    }
    cluster.expect_equal(&[0, 1]);
    cluster.nodes[0].kill9();
    cluster.nodes[2].start();
    let before = [cluster.nodes[1].status()["term"].clone(), cluster.nodes[2].status()["term"].clone()];
    let (code, text) = said(&cluster.nodes[2], &["promote"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("records") && text.contains("would be lost"), "{text}");
    assert!(text.contains(&format!("promote {}", cluster.nodes[1].address())), "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    let after = [cluster.nodes[1].status()["term"].clone(), cluster.nodes[2].status()["term"].clone()];
    assert_eq!(before, after);
    // The better one is promoted without objection, and the lagging one gets everything from it.
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert_eq!(code, 0, "{text}");
    cluster.expect_equal(&[1, 2]);
}

#[test]
fn a_silent_peer_stops_a_promotion_and_force_says_what_may_be_lost() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.nodes[0].kill9();
    cluster.nodes[2].kill9();
    let silent = cluster.nodes[2].address();
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains(&format!("{silent} is silent")) && text.contains("--force"), "{text}");
    assert_eq!(cluster.nodes[1].status()["role"], "follower");
    let (code, text) = said(&cluster.nodes[1], &["promote", "--force"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("what may be lost") && text.contains(&silent), "{text}");
    assert_eq!(cluster.nodes[1].client().put(b"after", b"1").map(|s| s.term.promotion).unwrap(), 1);
    cluster.nodes[2].start();
    cluster.expect_equal(&[1, 2]);
}

/// A candidate that fences a node and is never heard of again.
fn fence_and_vanish(node: &Node) {
    let status = node.status();
    let text = status["cluster_id"].as_str().unwrap();
    let cluster_id = std::array::from_fn(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap());
    let (candidate, address) = (NodeId([5; 16]), "127.0.0.1:1".to_owned());
    let hello = Hello {
        versions: PROTOCOL_VERSIONS,
        features: 0,
        cmd_types: CMD_TYPES_KNOWN,
        cluster_id: ClusterId(cluster_id),
        node_id: candidate,
        term: Term { promotion: 0, start: 1 },
        address: address.clone(),
        leader: NodeId::NONE,
        leader_address: String::new(),
        auth: Vec::new(),
    };
    let mut bytes = Vec::new();
    hello.encode(false, &mut bytes);
    let term = Term { promotion: 1, start: 0 };
    Fence { probe: false, term, candidate, address }.encode(&mut bytes);
    let mut raw = node.raw();
    raw.write(&bytes);
    assert_eq!(raw.frame().unwrap().0, MessageType::HelloReply);
    let (message_type, body) = raw.frame().unwrap();
    assert_eq!(message_type, MessageType::FenceReply);
    assert!(FenceReply::decode(&body).unwrap().accepted);
}

#[test]
fn a_node_fenced_by_a_candidate_that_vanished_still_asks_its_old_leader() {
    let cluster = Cluster::start(3, &[]);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.nodes[1].wait_status("in sync", |status| status["in_sync"] == true);
    fence_and_vanish(&cluster.nodes[1]);
    // The candidate may lead and acknowledge writes without this node: who knows?
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert!(code == 5 && text.contains("not in sync"), "{code}: {text}");
    let mark = cluster.nodes[1].log.mark();
    let (code, text) = said(&cluster.nodes[1], &["promote", "--force"]);
    assert_eq!(code, 0, "{text}");
    let line = cluster.nodes[1].log.wait_for_line(mark, "promotion asked for", DEADLINE);
    for other in [0, 2] {
        assert!(line.contains(&cluster.nodes[other].address()), "{line}");
    }
    assert_eq!(cluster.nodes[0].status()["role"], "deposed");
    assert_eq!(said(&cluster.nodes[0], &["put", "after", "1"]).0, 0, "the old leader knows who leads");
}

#[test]
fn of_two_promotions_at_once_at_most_one_leads_in_a_term() {
    let cluster = Cluster::start(3, &[]);
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
    cluster.expect_equal(&[0, 1, 2]);
    std::thread::scope(|scope| {
        for node in &cluster.nodes[1..] {
            scope.spawn(|| node.cli(&["promote"]));
        }
    });
    let leading = |status: &serde_json::Value| status["role"] == "leader";
    let leaders: Vec<_> = cluster.nodes.iter().map(Node::status).filter(leading).collect();
    if let [one, two] = &leaders[..] {
        assert_ne!(one["term"], two["term"], "two leaders in one term");
    }
    // Whatever became of it, asking once more settles it: at the end one leads and the others follow it.
    let (code, text) = said(&cluster.nodes[1], &["promote", "--force"]);
    assert_eq!(code, 0, "{text}");
    for index in [0, 2] {
        cluster.nodes[index].wait_status("out of the lead", |status| status["role"] != "leader");
        assert_eq!(said(&cluster.nodes[index], &["follow", &cluster.nodes[1].address()]).0, 0);
    }
    // Nobody was forgotten on the way: the old leader and the other candidate are its peers.
    let status = cluster.nodes[1].status();
    assert_eq!(status["peers"].as_array().unwrap().len(), 2, "{status}");
    expect_all_in_sync_behind(&cluster, 1);
}

#[test]
fn a_follower_that_was_stopped_is_silent_and_not_waited_for_forever() {
    let cluster = Cluster::start(3, &[]);
    cluster.nodes[2].signal(Signal::STOP);
    // A stopped process accepts in the kernel and answers nothing.
    let (code, text) = said(&cluster.nodes[1], &["--timeout-ms", "20000", "promote"]);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("no answer in time"), "{text}");
    assert_eq!(cluster.nodes[0].status()["role"], "leader", "a refused promotion stops nobody");
    cluster.nodes[2].signal(Signal::CONT);
    cluster.wait_streaming();
    cluster.nodes[0].client().put(b"k", b"v").unwrap();
}

#[test]
fn flags_that_contradict_the_stored_role_are_refused_in_words() {
    let mut cluster = Cluster::start(2, &[]);
    for (index, role, belongs) in [(0, "follower", "leader"), (1, "leader", "follower")] {
        let node = &mut cluster.nodes[index];
        node.kill9();
        let args = std::mem::replace(&mut node.args, vec![format!("--role={role}")]);
        let (code, text) = node.start_refused();
        assert_eq!(code, 2, "{text}");
        let expected = format!("belongs to a {belongs} and the flags say --role={role}: nothing was changed");
        assert!(text.contains(&expected) && text.contains("kv_client --port"), "{text}");
        node.args = args;
        node.start();
    }
    cluster.wait_streaming();
    let (code, text) = {
        let node = &mut cluster.nodes[1];
        node.kill9();
        node.args = vec!["--role=auto".to_owned()];
        node.start_refused()
    };
    assert!(code == 2 && text.contains("role was fixed by flags or commands"), "{code}: {text}");
}

#[test]
fn a_node_that_knows_nobody_is_promoted_by_force_only() {
    let mut cluster = Cluster::prepare(2, &[]);
    cluster.nodes[1].args = vec!["--role=follower".to_owned()];
    cluster.nodes[1].start();
    let (code, text) = said(&cluster.nodes[1], &["promote"]);
    assert!(code == 5 && text.contains("never had a session"), "{code}: {text}");
    let (code, text) = said(&cluster.nodes[1], &["promote", "--force"]);
    assert_eq!(code, 0, "{text}");
    cluster.nodes[1].client().put(b"k", b"v").unwrap();
}
