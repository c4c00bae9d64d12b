//! Real nodes that elect their leader: they form a cluster, go on when the leader is killed or stopped, and lose
//! nothing that was acknowledged.

use std::fs;

use rustix::process::Signal;

use crate::cluster::{DEADLINE, Node};
use crate::elected::{Elected, Writer, expect_all};

/// Acknowledged writes of each writer between two events.
const WRITES: usize = 200;

#[test]
fn three_nodes_form_a_cluster_and_come_back_after_all_of_them_end() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    let (code, out, err) = cluster.nodes[(leader + 1) % 3].cli(&["put", "hello", "world"]);
    assert_eq!((code, out.as_str()), (0, "OK\n"), "{err}");
    cluster.expect_equal();
    let id = cluster.nodes[0].status()["cluster_id"].clone();
    assert!(cluster.nodes.iter().all(|node| node.status()["cluster_id"] == id && id.is_string()));
    cluster.nodes.iter_mut().for_each(Node::kill9);
    cluster.nodes.iter_mut().for_each(Node::spawn);
    let leader = cluster.wait_leader();
    assert_eq!(cluster.nodes[leader].client().get(b"hello").unwrap().value.as_deref(), Some(&b"world"[..]));
    cluster.expect_equal();
    assert_eq!(cluster.nodes[leader].status()["cluster_id"], id);
}

#[test]
fn the_name_of_a_process_follows_elections() {
    let mut cluster = Elected::start(3, &[]);
    let first = cluster.wait_leader();
    expect_names(&cluster.nodes.iter().collect::<Vec<_>>(), first);
    cluster.nodes[first].kill9();
    let second = cluster.wait_leader();
    let left: Vec<&Node> =
        cluster.nodes.iter().filter(|node| node.port != cluster.nodes[first].port).collect();
    let place = left.iter().position(|node| node.port == cluster.nodes[second].port).unwrap();
    expect_names(&left, place);
}

/// Asked once more, a node is a turn behind the one that changed its role: its name has followed.
#[track_caller]
fn expect_names(nodes: &[&Node], leader: usize) {
    for (index, node) in nodes.iter().enumerate() {
        node.status();
        let name = fs::read_to_string(format!("/proc/{}/comm", node.pid())).unwrap();
        let role = if index == leader { "leader" } else { "follow" };
        assert_eq!(name.trim_end(), format!("kv-{role}:{}", node.port));
    }
}

#[test]
fn a_node_alone_elects_itself_and_takes_no_other_role_later() {
    let mut cluster = Elected::start(1, &[]);
    cluster.nodes[0].client().put(b"key", b"value").unwrap();
    cluster.nodes[0].kill9();
    cluster.nodes[0].args[0] = "--role=leader".to_owned();
    let (code, said) = cluster.nodes[0].start_refused();
    assert!(
        code == 2 && said.contains("nothing was changed") && said.contains("--role=auto"),
        "{code}: {said}"
    );
    cluster.nodes[0].args[0] = "--role=auto".to_owned();
    cluster.nodes[0].spawn();
    let leader = cluster.wait_leader();
    assert_eq!(cluster.nodes[leader].client().get(b"key").unwrap().value.as_deref(), Some(&b"value"[..]));
}

#[test]
fn leaders_are_killed_under_load_and_nothing_acknowledged_is_lost() {
    let mut cluster = Elected::start(3, &[]);
    let writers: Vec<Writer> = (0..3).map(|name| Writer::start(cluster.addresses(), name)).collect();
    for _ in 0..3 {
        writers.iter().for_each(|writer| writer.wait_for(WRITES));
        let leader = cluster.wait_leader();
        cluster.nodes[leader].kill9();
        writers.iter().for_each(|writer| writer.wait_for(WRITES));
        assert_ne!(cluster.wait_leader(), leader);
        cluster.nodes[leader].spawn();
        cluster.wait_leader();
    }
    let acked: Vec<_> = writers.into_iter().map(|writer| writer.finish().0).collect();
    cluster.expect_equal();
    let leader = cluster.wait_leader();
    acked.iter().for_each(|keys| expect_all(&cluster.nodes[leader], keys));
}

#[test]
fn a_leader_that_is_stopped_is_replaced_and_answers_nothing_from_before_when_it_goes_on() {
    let mut cluster = Elected::start(3, &[]);
    let old = cluster.wait_leader();
    let writer = Writer::start(cluster.addresses(), 0);
    writer.wait_for(WRITES);
    let mark = cluster.nodes[old].log.mark();
    cluster.nodes[old].signal(Signal::STOP);
    writer.wait_for(WRITES);
    // It is asked while it stands still, and answers when others lead.
    let mut raw = cluster.nodes[old].raw();
    raw.request(&kvstore::wire::client::Request::Put { key: b"late", value: b"1" });
    cluster.nodes[old].signal(Signal::CONT);
    let (status, ..) = raw.reply();
    assert_eq!(status, kvstore::wire::client::Status::NotLeader);
    cluster.nodes[old].log.wait_for_line(mark, "stopped leading", DEADLINE);
    assert_ne!(cluster.wait_leader(), old);
    let (acked, _) = writer.finish();
    cluster.expect_equal();
    let leader = cluster.wait_leader();
    expect_all(&cluster.nodes[leader], &acked);
}

#[test]
fn a_wiped_node_is_refused_in_words_and_the_others_go_on() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    let wiped = (leader + 1) % 3;
    cluster.nodes[leader].client().put(b"key", b"value").unwrap();
    cluster.nodes[wiped].kill9();
    std::fs::remove_dir_all(&cluster.nodes[wiped].dir).unwrap();
    let marks = [wiped, leader].map(|index| (index, cluster.nodes[index].log.mark()));
    cluster.nodes[wiped].spawn();
    for (index, mark) in marks {
        let line = cluster.nodes[index].log.wait_for_line(mark, "was wiped", DEADLINE);
        assert!(line.contains("does not vote"), "{line}");
    }
    assert!(cluster.nodes[wiped].status()["cluster_id"].is_null());
    cluster.nodes[leader].client().put(b"key", b"again").unwrap();
}

#[test]
fn status_tells_who_votes_who_leads_and_what_comes_when() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    let led = cluster.nodes[leader].status();
    assert_eq!((&led["election"]["state"], &led["ack"]), (&"leading".into(), &"majority".into()));
    assert!(led["election"]["timer"]["steps_down_in_ms"].as_i64().is_some_and(|ms| (1..=500).contains(&ms)));
    let follower = (leader + 1) % 3;
    let follows = cluster.nodes[follower].wait_status("following", |s| s["election"]["state"] == "following");
    assert_eq!(follows["election"]["members"].as_array().map(Vec::len), Some(3));
    assert_eq!(follows["election"]["members"], {
        let own =
            |member: &serde_json::Value| member["address"] == cluster.nodes[follower].address().as_str();
        let mut members = led["election"]["members"].clone();
        members.as_array_mut().unwrap().iter_mut().for_each(|member| member["is_self"] = own(member).into());
        members
    });
    let (code, text, _) = cluster.nodes[follower].cli(&["status"]);
    assert!(
        code == 0 && text.contains(&format!("follower of {}", cluster.nodes[leader].address())),
        "{text}"
    );
    assert!(text.contains("majority 2") && text.contains("unheard it campaigns in"), "{text}");
    let (code, _, text) = cluster.nodes[follower].cli(&["promote"]);
    assert!(code == 5 && text.contains("transfer"), "{code}: {text}");
}
