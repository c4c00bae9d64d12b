//! Members are added and removed, with virtual time: who counts when, what is refused, and what a change that does not
//! come about leaves behind.

use kvstore::node::RoleFlag;
use kvstore::replication::commit::AckPolicy;
use kvstore::wire::client::Request;

use crate::logs;
use crate::mem_disk::Keep;
use crate::mini_cluster::{MemDisk, MiniCluster};

/// Milliseconds in which a cluster elects: a timeout, half of one at random, and a second try.
const ELECTION_MS: u64 = 1_500;
/// Longer than a newcomer is waited for.
const GIVEN_UP_MS: u64 = 7_000;

struct Changed {
    cluster: MiniCluster,
    /// Those that were started.
    names: Vec<&'static str>,
    /// What happened since the last question.
    told: Vec<String>,
}

impl Changed {
    /// A cluster that was formed of these, and has elected.
    fn formed(names: &[&'static str]) -> Changed {
        logs::capture();
        let mut changed = Changed { cluster: MiniCluster::new(), names: names.to_vec(), told: Vec::new() };
        for name in names {
            let peers: Vec<&str> = names.iter().copied().filter(|other| other != name).collect();
            changed.cluster.start(name, RoleFlag::Auto, &peers, AckPolicy::Majority);
        }
        changed.cluster.wait(ELECTION_MS, true);
        changed.leader();
        changed
    }

    /// A new node that waits to be added.
    fn newcomer(&mut self, name: &'static str) {
        self.cluster.election.join = true;
        self.cluster.start(name, RoleFlag::Auto, &[], AckPolicy::Majority);
        self.names.push(name);
    }

    /// The only one who leads.
    #[track_caller]
    fn leader(&self) -> &'static str {
        let leads = |name: &&&str| self.cluster.is_up(name) && self.cluster.node(name).observe().leads;
        let leaders: Vec<&&str> = self.names.iter().filter(leads).collect();
        assert_eq!(leaders.len(), 1, "who leads: {leaders:?}");
        leaders[0]
    }

    fn others(&self) -> Vec<&'static str> {
        let leader = self.leader();
        self.names.iter().copied().filter(|name| *name != leader).collect()
    }

    /// What the leader answers within a second.
    fn ask(&mut self, request: &Request<'_>) -> String {
        let leader = self.leader();
        self.ask_at(leader, request, 1_000)
    }

    fn ask_at(&mut self, name: &str, request: &Request<'_>, wait_ms: u64) -> String {
        self.cluster.take_trace();
        self.cluster.send(name, request);
        self.cluster.wait(wait_ms, true);
        self.answer(name)
    }

    fn answer(&mut self, name: &str) -> String {
        let prefix = format!("{name} -> client");
        self.told = self.cluster.take_trace();
        let answers = self.told.iter().filter(|line| line.starts_with(&prefix)).cloned();
        answers.collect::<Vec<_>>().join("\n")
    }

    fn add(&mut self, name: &str) -> String {
        self.ask(&Request::ChangeMembers { add: true, address: &format!("{name}:1") })
    }

    fn remove(&mut self, name: &str) -> String {
        self.ask(&Request::ChangeMembers { add: false, address: &format!("{name}:1") })
    }

    #[track_caller]
    fn expect_put(&mut self, key: &str) {
        let answer = self.ask(&Request::Put { key: key.as_bytes(), value: b"value" });
        assert!(answer.contains("Ok"), "{answer}");
    }

    /// Who votes, by what this node goes by.
    fn members(&self, name: &str) -> String {
        let (_, members) = self.cluster.node(name).cluster();
        let mut names: Vec<&str> =
            members.iter().map(|member| member.address.trim_end_matches(":1")).collect();
        names.sort_unstable();
        names.concat()
    }

    #[track_caller]
    fn expect_members(&self, names: &[&str], members: &str) {
        for name in names {
            assert_eq!(self.members(name), members, "{name}");
        }
    }
}

#[test]
fn a_newcomer_learns_and_then_votes() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    changed.expect_put("before");
    changed.newcomer("d");
    changed.cluster.wait(ELECTION_MS, true);
    assert_eq!(changed.members("d"), "", "nobody has asked it");
    let answer = changed.add("d");
    assert!(answer.contains("Ok") && answer.contains("d:1 is a member"), "{answer}");
    changed.expect_members(&["a", "b", "c", "d"], "abcd");
    assert_eq!(changed.cluster.node("d").keyspace().get(b"before"), Some(&b"value"[..]));
    // Three of four: one more than before, and the new vote is one of them.
    let first = changed.leader();
    changed.cluster.kill(first, true);
    changed.cluster.wait(ELECTION_MS, true);
    changed.expect_put("with three of four");
    let second = changed.leader();
    changed.cluster.kill(second, true);
    changed.cluster.wait(2 * ELECTION_MS, true);
    let up: Vec<&str> = changed.names.iter().copied().filter(|name| changed.cluster.is_up(name)).collect();
    assert!(up.iter().all(|name| !changed.cluster.node(name).observe().leads), "two of four elect nobody");
    for name in [first, second] {
        changed.cluster.start(name, RoleFlag::Auto, &[], AckPolicy::Majority);
    }
    changed.cluster.wait(2 * ELECTION_MS, true);
    changed.expect_put("with all");
    changed.expect_members(&["a", "b", "c", "d"], "abcd");
}

#[test]
fn a_newcomer_that_lacks_the_log_gets_a_snapshot_that_names_the_members() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    changed.newcomer("d");
    assert!(changed.add("d").contains("Ok"));
    for round in 0..2 {
        for number in 0..40 {
            let key = format!("{round}-{number}");
            let leader = changed.leader();
            changed.cluster.send(leader, &Request::Put { key: key.as_bytes(), value: &[7; 4_096] });
            changed.cluster.run();
        }
        let answer = changed.ask(&Request::Snapshot { wait: true });
        assert!(answer.contains("Ok"), "{answer}");
    }
    changed.cluster.wait(2_000, true);
    changed.newcomer("e");
    let answer = changed.add("e");
    assert!(answer.contains("Ok"), "{answer}");
    assert_eq!(changed.cluster.node("e").keyspace().get(b"0-0"), Some(&[7; 4_096][..]));
    changed.expect_members(&["a", "b", "c", "d", "e"], "abcde");
    assert!(
        changed.cluster.disk("e").op_log().iter().any(|op| op.name.starts_with("snap-in")),
        "there was no snapshot"
    );
}

#[test]
fn one_node_becomes_three_and_one_again() {
    let mut changed = Changed::formed(&["a"]);
    for name in ["b", "c"] {
        changed.newcomer(name);
        let answer = changed.add(name);
        assert!(answer.contains("Ok"), "{answer}");
        changed.expect_put(name);
    }
    changed.expect_members(&["a", "b", "c"], "abc");
    let refused = changed.remove("a");
    assert!(refused.contains("Refused") && refused.contains("transfer"), "a leader in office: {refused}");
    let moved = changed.ask(&Request::Transfer { address: "b:1" });
    assert!(moved.contains("Ok"), "{moved}");
    for name in ["a", "c"] {
        let answer = changed.remove(name);
        assert!(answer.contains("Ok") && answer.contains("no member any more"), "{answer}");
        changed.expect_put(&format!("without {name}"));
    }
    let last = changed.remove("b");
    assert!(last.contains("Refused") && last.contains("only member"), "{last}");
    for name in ["a", "c"] {
        changed.cluster.kill(name, true);
    }
    changed.cluster.kill("b", true);
    changed.names = vec!["b"];
    changed.cluster.start("b", RoleFlag::Auto, &[], AckPolicy::Majority);
    changed.cluster.wait(ELECTION_MS, true);
    changed.expect_put("alone again");
}

#[test]
fn who_was_removed_is_told_and_disturbs_nobody() {
    let mut changed = Changed::formed(&["a", "b", "c", "d"]);
    let gone = changed.others()[0];
    assert!(changed.remove(gone).contains("Ok"));
    let (leader, term) = (changed.leader(), changed.cluster.node(changed.leader()).term());
    assert_eq!(changed.members(gone), "abcd", "it does not get the record that removes it");
    let mut told = std::mem::take(&mut changed.told);
    changed.cluster.wait(10 * ELECTION_MS, true);
    told.extend(changed.cluster.take_trace());
    let says = |line: &&String| line.starts_with(gone) && line.contains("was removed from cluster");
    assert_eq!(told.iter().filter(says).count(), 1, "{told:#?}");
    assert_eq!((changed.leader(), changed.cluster.node(leader).term()), (leader, term));
    // Back with the directory it has: it learns what it missed, and votes.
    changed.expect_put("meanwhile");
    let answer = changed.add(gone);
    assert!(answer.contains("Ok"), "{answer}");
    changed.expect_members(&["a", "b", "c", "d"], "abcd");
    assert_eq!(changed.cluster.node(gone).keyspace().get(b"meanwhile"), Some(&b"value"[..]));
}

#[test]
fn nobody_waits_for_a_node_that_is_gone() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    let dead = changed.others()[0];
    changed.cluster.kill(dead, true);
    // A leader that has never heard it: the first session of a cluster waits for all who are there.
    let old = changed.leader();
    let moved = changed.ask(&Request::Transfer { address: "" });
    assert!(moved.contains("Ok"), "{moved}");
    assert_ne!(changed.leader(), old);
    let refused = changed.ask(&Request::OpenSession);
    assert!(refused.contains("Refused") && refused.contains(&format!("{dead}:1")), "{refused}");
    assert!(changed.remove(dead).contains("Ok"));
    let answer = changed.ask(&Request::OpenSession);
    assert!(answer.contains("Ok"), "{answer}");
}

#[test]
fn a_newcomer_that_cannot_be_reached_is_refused_and_nothing_is_changed() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    let leader = changed.leader();
    let answer =
        changed.ask_at(leader, &Request::ChangeMembers { add: true, address: "nowhere:1" }, GIVEN_UP_MS);
    assert!(answer.contains("Refused") && answer.contains("nowhere:1 cannot be reached"), "{answer}");
    changed.expect_members(&["a", "b", "c"], "abc");
    // Its place is free again.
    changed.newcomer("d");
    assert!(changed.add("d").contains("Ok"));
    changed.expect_put("key");
}

#[test]
fn only_one_change_at_a_time() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    let leader = changed.leader();
    let other = changed.others()[0];
    changed.cluster.take_trace();
    changed.cluster.send(leader, &Request::ChangeMembers { add: true, address: "nowhere:1" });
    changed.cluster.send(leader, &Request::ChangeMembers { add: false, address: &format!("{other}:1") });
    changed.cluster.wait(GIVEN_UP_MS, true);
    let answers = changed.answer(leader);
    assert!(answers.contains("one at a time") && answers.contains("cannot be reached"), "{answers}");
    changed.expect_members(&["a", "b", "c"], "abc");
}

#[test]
fn what_would_be_below_a_quorum_is_refused() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    let [dead, alive] = changed.others()[..] else { panic!("two others") };
    changed.cluster.kill(dead, true);
    changed.cluster.wait(600, true);
    let refused = changed.remove(alive);
    assert!(refused.contains("Refused") && refused.contains(&format!("bring back {dead}:1")), "{refused}");
    assert!(changed.remove("nobody").contains("is no member"));
    // The dead one may go: of the two that are left both are there.
    let answer = changed.remove(dead);
    assert!(answer.contains("Ok"), "{answer}");
    changed.expect_put("key");
}

#[test]
fn a_member_whose_directory_is_lost_is_replaced_at_its_own_address() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    changed.expect_put("key");
    let lost = changed.others()[0];
    changed.cluster.kill(lost, true);
    changed.cluster.replace_disk(lost, MemDisk::new());
    changed.cluster.start(lost, RoleFlag::Auto, &[], AckPolicy::Majority);
    changed.cluster.wait(ELECTION_MS, true);
    let refused = changed.add(lost);
    assert!(refused.contains("Refused") && refused.contains("kv_client replace"), "{refused}");
    assert!(changed.remove(lost).contains("Ok"));
    let answer = changed.add(lost);
    assert!(answer.contains("Ok"), "{answer}");
    changed.expect_members(&["a", "b", "c"], "abc");
    assert_eq!(changed.cluster.node(lost).keyspace().get(b"key"), Some(&b"value"[..]));
    assert_ne!(changed.cluster.node(lost).observe().applied.0, 0);
}

/// The leader adds `d` while it hears nobody else: the record is in its log and in that of `d`, and on no majority.
fn uncommitted() -> (Changed, &'static str) {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    changed.newcomer("d");
    let leader = changed.leader();
    for other in ["a", "b", "c"] {
        changed.cluster.freeze(other, other != leader);
    }
    changed.cluster.send(leader, &Request::ChangeMembers { add: true, address: "d:1" });
    changed.cluster.wait(50, true);
    changed.expect_members(&[leader, "d"], "abcd");
    for other in ["a", "b", "c"].into_iter().filter(|other| *other != leader) {
        changed.cluster.freeze(other, false);
        changed.cluster.block(other, leader);
        changed.cluster.block(other, "d");
    }
    (changed, leader)
}

#[test]
fn a_change_that_was_not_committed_is_taken_back_with_its_record() {
    let (mut changed, old) = uncommitted();
    changed.cluster.take_trace();
    changed.cluster.wait(2 * ELECTION_MS, true);
    let answer = changed.answer(old);
    assert!(answer.contains("OutcomeUnknown"), "{answer}");
    let leader = changed.leader();
    assert_ne!(leader, old);
    changed.expect_put("without them");
    changed.expect_members(&[old, "d"], "abcd");
    for other in ["a", "b", "c"].into_iter().filter(|other| *other != old) {
        changed.cluster.unblock(other, old);
        changed.cluster.unblock(other, "d");
    }
    changed.cluster.wait(ELECTION_MS, true);
    changed.expect_members(&["a", "b", "c"], "abc");
    let answer = changed.add("d");
    assert!(answer.contains("Ok"), "{answer}");
    changed.expect_members(&["a", "b", "c", "d"], "abcd");
    assert_eq!(changed.cluster.node("d").keyspace().get(b"without them"), Some(&b"value"[..]));
}

#[test]
fn a_change_that_was_not_committed_survives_if_a_leader_is_elected_with_it() {
    let (mut changed, old) = uncommitted();
    changed.cluster.kill(old, true);
    // Three of four, among them the newcomer: only with its log one of them can be elected.
    for other in ["a", "b", "c"].into_iter().filter(|other| *other != old) {
        changed.cluster.unblock(other, "d");
    }
    changed.cluster.wait(3 * ELECTION_MS, true);
    let leader = changed.leader();
    changed.expect_put("key");
    let members = changed.members(leader);
    let up: Vec<&str> = ["a", "b", "c"].into_iter().filter(|name| *name != old).collect();
    changed.expect_members(&up, &members);
}

/// A node crashes before one operation of its disk while `d` is added, and comes back. False: the change was over
/// before that.
fn change_with_crash(role: &str, op: u64) -> bool {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    changed.newcomer("d");
    let leader = changed.leader();
    let name = match role {
        "leader" => leader,
        "follower" => changed.others()[0],
        _ => "d",
    };
    let disk = changed.cluster.disk(name).clone();
    disk.crash_before(disk.op_count() + op);
    changed.cluster.send(leader, &Request::ChangeMembers { add: true, address: "d:1" });
    changed.cluster.wait(1_000, true);
    let crashed = disk.has_crashed();
    if crashed {
        assert!(!changed.cluster.is_up(name));
        disk.crash(Keep::None);
        changed.cluster.start(name, RoleFlag::Auto, &[], AckPolicy::Majority);
    } else {
        disk.crash_before(u64::MAX);
    }
    changed.cluster.wait(3 * ELECTION_MS, true);
    changed.expect_put("after all");
    changed.cluster.wait(500, true);
    let members = changed.members(changed.leader());
    assert!(["abc", "abcd"].contains(&members.as_str()), "{members}");
    changed.expect_members(&["a", "b", "c"], &members);
    if members == "abc" {
        let answer = changed.add("d");
        assert!(answer.contains("Ok"), "{role} {op}: {answer} {:#?}", changed.told);
    }
    changed.expect_members(&["a", "b", "c", "d"], "abcd");
    crashed
}

#[test]
fn a_change_survives_a_crash_of_the_leader_at_every_operation_of_its_disk() {
    let points = (0..).take_while(|op| change_with_crash("leader", *op)).count();
    assert!(points > 5, "{points} operations");
}

#[test]
fn a_change_survives_a_crash_of_a_follower_at_every_operation_of_its_disk() {
    let points = (0..).take_while(|op| change_with_crash("follower", *op)).count();
    assert!(points > 5, "{points} operations");
}

#[test]
fn a_change_survives_a_crash_of_the_newcomer_at_every_operation_of_its_disk() {
    let points = (0..).take_while(|op| change_with_crash("newcomer", *op)).count();
    assert!(points > 10, "{points} operations");
}

/// A leader that hears a majority, and whose first record is on none: the only follower that is up is far behind, and
/// is fed from the log.
fn no_change_before_the_first_commit() {
    let mut changed = Changed::formed(&["a", "b", "c"]);
    let leader = changed.leader();
    let [behind, gone] = changed.others()[..] else { panic!("two others") };
    changed.cluster.kill(behind, true);
    for number in 0..40 {
        changed.cluster.send(leader, &Request::Put { key: &[number], value: &[7; 32 << 10] });
        changed.cluster.run();
    }
    changed.cluster.kill(gone, true);
    changed.cluster.kill(leader, true);
    changed.cluster.start(leader, RoleFlag::Auto, &[], AckPolicy::Majority);
    changed.cluster.start(behind, RoleFlag::Auto, &[], AckPolicy::Majority);
    let has_begun = |changed: &Changed| {
        let (led, fed) = (changed.cluster.node(leader).observe(), changed.cluster.node(behind).observe());
        led.leads && fed.last.0 > 10
    };
    while !has_begun(&changed) {
        changed.cluster.step();
    }
    let (led, fed) = (changed.cluster.node(leader).observe(), changed.cluster.node(behind).observe());
    assert!(fed.last < led.last && led.commit < led.last, "it is still fed");
    changed.cluster.take_trace();
    changed.cluster.send(leader, &Request::ChangeMembers { add: false, address: &format!("{gone}:1") });
    changed.cluster.turn(leader, Some("client"));
    changed.cluster.run();
    let answer = changed.answer(leader);
    assert!(answer.contains("is not committed yet: try again"), "{answer}");
    changed.expect_members(&[leader, behind], "abc");
}

#[test]
fn no_change_comes_before_a_record_of_the_leaders_own_term_is_committed() {
    no_change_before_the_first_commit();
}

/// Four nodes, of which one is removed; then the network falls apart into the leader with one of the three, and the one
/// that was removed with the other.
fn one_leader_whoever_was_removed() {
    let mut changed = Changed::formed(&["a", "b", "c", "d"]);
    let leader = changed.leader();
    let [gone, friend, third] = changed.others()[..] else { panic!("three others") };
    assert!(changed.remove(gone).contains("Ok"));
    for lost in [gone, friend] {
        changed.cluster.block(lost, leader);
        changed.cluster.block(lost, third);
    }
    changed.cluster.wait(4 * ELECTION_MS, true);
    assert_eq!(changed.leader(), leader);
    changed.expect_put("key");
}

#[test]
fn who_was_removed_is_not_elected_by_a_minority() {
    one_leader_whoever_was_removed();
}

#[cfg(feature = "sabotage")]
#[test]
fn broken_rules_of_changes_are_caught() {
    use kvstore::sabotage::{Variant, set};
    for (variant, check) in [
        (Variant::ChangeBeforeFirstCommit, no_change_before_the_first_commit as fn()),
        (Variant::RemovedMemberCampaigns, one_leader_whoever_was_removed),
    ] {
        set(Some(variant));
        let ended = std::panic::catch_unwind(check);
        set(None);
        assert!(ended.is_err(), "{} escaped", variant.name());
    }
}
