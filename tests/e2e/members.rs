//! Real nodes whose members change under load, as an operator does it with `kv_client`.

use crate::cluster::{self, DEADLINE, Node, Port, SMALL_SEGMENTS};
use crate::elected::{Elected, Writer, expect_all};

/// Acknowledged writes of each writer between two events.
const WRITES: usize = 200;

/// A node that waits to be added, in a directory beside those of the others.
fn newcomer(cluster: &mut Elected, name: &str) -> usize {
    let dir = cluster.nodes[0].dir.with_file_name(name);
    let mut node = Node::new(Port::reserve(), dir, &["--role=auto", SMALL_SEGMENTS, "--join"]);
    node.spawn();
    node.log.wait_for_line(0, "waits to be a member", DEADLINE);
    cluster.nodes.push(node);
    cluster.nodes.len() - 1
}

/// `kv_client` with all nodes as its endpoints; it must succeed.
#[track_caller]
fn operator(cluster: &Elected, args: &[&str]) -> String {
    let endpoints = cluster.addresses().join(",");
    let (code, out, err) = cluster::kv_client(&[&["--endpoints", &endpoints], args].concat());
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    out
}

#[test]
fn three_nodes_are_replaced_one_after_the_other_under_load_and_nothing_is_lost() {
    let mut cluster = Elected::start(3, &[]);
    let writers: Vec<Writer> = (0..2).map(|name| Writer::start(cluster.addresses(), name)).collect();
    writers.iter().for_each(|writer| writer.wait_for(WRITES));
    // The last one of the old nodes stays up to the end: it is where the writers still find an address that answers.
    for index in 0..2 {
        let new = newcomer(&mut cluster, &format!("new{index}"));
        let (old, new) = (cluster.nodes[index].address(), cluster.nodes[new].address());
        let said = operator(&cluster, &["replace", &old, &new]);
        assert!(said.contains("is a member") && said.contains("no member any more"), "{said}");
        cluster.nodes[index].kill9();
        writers.iter().for_each(|writer| writer.wait_for(WRITES));
    }
    let said = operator(&cluster, &["member", "list"]);
    let members: Vec<String> = cluster.nodes[2..].iter().map(Node::address).collect();
    assert!(members.iter().all(|member| said.contains(member)) && said.contains("majority 2"), "{said}");
    let acked: Vec<_> = writers.into_iter().map(|writer| writer.finish().0).collect();
    cluster.nodes.drain(..2);
    cluster.expect_equal();
    let leader = cluster.wait_leader();
    acked.iter().for_each(|keys| expect_all(&cluster.nodes[leader], keys));
    // All of them have it on their disks.
    cluster.nodes.iter_mut().for_each(Node::kill9);
    cluster.nodes.iter_mut().for_each(Node::spawn);
    let leader = cluster.wait_leader();
    acked.iter().for_each(|keys| expect_all(&cluster.nodes[leader], keys));
    let again = cluster.nodes[0].cli(&["member", "list"]);
    assert!(again.0 == 0 && members.iter().all(|member| again.1.contains(member)), "{again:?}");
}

#[test]
fn a_member_whose_directory_was_lost_is_replaced_at_its_own_address() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    cluster.nodes[leader].client().put(b"key", b"value").unwrap();
    let lost = (leader + 1) % 3;
    let address = cluster.nodes[lost].address();
    let healthy = cluster.nodes[leader].cli(&["replace", &address, &address]);
    assert!(healthy.0 == 5 && healthy.2.contains("is not lost"), "{healthy:?}");
    cluster.nodes[lost].kill9();
    std::fs::remove_dir_all(&cluster.nodes[lost].dir).unwrap();
    cluster.nodes[lost].spawn();
    cluster.nodes[leader].log.wait_for_line(0, "kv_client replace", DEADLINE);
    let (code, out, err) = cluster.nodes[leader].cli(&["replace", &address, &address]);
    assert!(code == 0 && out.contains("is a member"), "{code}: {out}{err}");
    cluster.expect_equal();
}

#[test]
fn the_leader_is_removed_by_its_successor_and_a_newcomer_that_is_not_there_is_refused() {
    let mut cluster = Elected::start(3, &[]);
    let leader = cluster.wait_leader();
    let nowhere = Port::reserve();
    let refused = cluster.nodes[leader].cli(&["member", "add", &nowhere.number.to_string()]);
    assert!(refused.0 == 5 && refused.2.contains("cannot be reached"), "{refused:?}");
    let moved = operator(&cluster, &["transfer"]);
    assert!(moved.contains("leads in term"), "{moved}");
    let leader = cluster.wait_leader();
    let address = cluster.nodes[leader].address();
    let said = operator(&cluster, &["member", "remove", &address]);
    assert!(said.contains("no member any more"), "{said}");
    cluster.nodes[leader].log.wait_for_line(0, "was removed from cluster", DEADLINE);
    cluster.nodes.remove(leader);
    let next = cluster.wait_leader();
    cluster.nodes[next].client().put(b"key", b"value").unwrap();
    let (code, _, err) = cluster.nodes[next].cli(&["member", "remove", &address]);
    assert!(code == 5 && err.contains("is no member"), "{code}: {err}");
}

#[test]
fn fixed_roles_have_no_members_and_flags_that_contradict_are_refused() {
    let mut node = Node::new(
        Port::reserve(),
        tempfile::tempdir().unwrap().keep().join("node"),
        &["--role=leader", SMALL_SEGMENTS],
    );
    node.start();
    for args in [&["member", "list"][..], &["member", "add", "9"], &["member", "remove", "9"]] {
        let (code, out, err) = node.cli(args);
        assert!(code == 5 && err.contains("roles are fixed"), "{args:?} {code}: {out}{err}");
    }
    node.kill9();
    for (flags, part) in [
        (["--role=leader", "--join"], "--join is for --role=auto"),
        (["--role=auto", "--join"], "--join and --peers contradict"),
    ] {
        node.args = flags.iter().map(|flag| (*flag).to_owned()).collect();
        node.args.push("--peers=9".to_owned());
        let (code, said) = node.start_refused();
        assert!(code == 2 && said.contains(part), "{code}: {said}");
    }
    std::fs::remove_dir_all(node.dir.parent().unwrap()).unwrap();
}
