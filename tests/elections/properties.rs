//! One test for each property of elections, as the interleaving that is known for breaking it: members that are nothing
//! but the pure rules, driven by hand. `tests/elections/model.rs` looks for the interleavings that are not known.

use kvstore::ids::{Lsn, Term};
use kvstore::replication::election::reads::{ReadMode, ReadVerdict, judge};

use crate::election::TIMEOUT_MS;
use crate::election::messages::Message;
use crate::election::node::{Node, Role};
use crate::election::script::Script;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

fn term(promotion: u32) -> Term {
    Term { promotion, start: 0 }
}

fn reads_by_lease(script: &mut Script, node: usize) -> bool {
    let now = script.now;
    script.nodes[node].read(ReadMode::Lease, now, now)
}

fn log(node: &Node) -> Vec<u64> {
    (1..=node.log.last().0).filter_map(|lsn| node.log.entry(Lsn(lsn))).map(|entry| entry.value).collect()
}

/// A leads with B's vote and both have its `TERM` record, committed.
fn led_by_a() -> Script {
    let mut script = Script::new(3);
    script.elect(A, B);
    script.replicate(A, B, 30);
    assert_eq!((script.nodes[A].commit, script.nodes[B].commit), (Lsn(1), Lsn(1)));
    script
}

#[test]
fn election_safety_a_voter_remembers_through_a_crash_whom_it_voted_for() {
    let mut script = Script::new(3);
    // A and C win their pre-votes for the same term with B's word; then both ask B for its vote.
    script.pass_ms(10 * TIMEOUT_MS);
    script.tick(A);
    script.tick(C);
    let is_from = |node: usize| move |from: usize, to: usize, _: &Message| (from, to) == (node, B);
    let answer_to = |node: usize| move |from: usize, to: usize, _: &Message| (from, to) == (B, node);
    for candidate in [A, C] {
        script.deliver_one(is_from(candidate));
        script.deliver_one(answer_to(candidate));
        assert_eq!(script.nodes[candidate].term(), term(1), "{candidate} stands");
    }
    script.deliver_one(is_from(A));
    assert_eq!(script.nodes[B].meta().vote, script.nodes[A].id);
    script.restart(B);
    script.pass_ms(2 * TIMEOUT_MS);
    script.deliver_one(is_from(C));
    script.deliver_one(answer_to(A));
    script.deliver(answer_to(C));
    assert!(script.nodes[A].leader().is_some() && script.nodes[C].leader().is_none());
}

#[test]
fn log_matching_a_tail_that_others_do_not_have_is_cut_when_a_session_opens() {
    let mut script = led_by_a();
    // A writes on, alone, and so does C in a later term.
    script.write(A, 71);
    script.write(A, 72);
    script.sync(A);
    let behind = log(&script.nodes[A]);
    assert_eq!(behind, [0, 71, 72]);
    script.elect(B, C);
    script.write(B, 81);
    script.replicate(B, A, 100);
    script.checks.log_matching(&script.nodes);
    assert_eq!(log(&script.nodes[A]), log(&script.nodes[B]));
    assert_eq!(log(&script.nodes[A]), [0, 0, 81]);
    assert_eq!(script.nodes[A].commit, Lsn(3));
}

#[test]
fn leader_completeness_nobody_leads_who_lacks_what_is_committed() {
    let mut script = led_by_a();
    script.write(A, 71);
    script.replicate(A, B, 30);
    assert_eq!(script.nodes[A].commit, Lsn(2));
    // C has nothing of it, and B's vote is all it could get.
    script.campaign(C, B);
    assert!(script.nodes[C].leader().is_none());
    assert_eq!(script.nodes[B].meta().vote, script.nodes[A].id);
    script.elect(B, C);
    assert_eq!(log(&script.nodes[B]), [0, 71, 0]);
}

#[test]
fn liveness_a_candidate_whose_voter_has_voted_in_the_term_it_asks_for_asks_for_the_next() {
    let mut script = Script::new(3);
    script.elect(C, B);
    script.restart(C);
    // A got B's vote in the next term and is gone for good, with nothing of its own anywhere else. C has the better
    // log.
    script.campaign(A, B);
    script.campaign(A, B);
    script.nodes[A].crash();
    script.campaign(C, B);
    assert_eq!(script.nodes[C].term(), term(2), "it learns the term in which B has voted");
    script.campaign(C, B);
    assert!(script.nodes[C].leader().is_some());
}

/// The interleaving for which Raft commits nothing of earlier terms by count.
#[test]
fn leader_completeness_an_older_terms_record_is_not_committed_because_a_majority_has_it() {
    older_terms_record_on_a_majority();
}

fn older_terms_record_on_a_majority() {
    let mut script = Script::new(3);
    script.elect(A, B);
    script.restart(A);
    // Whoever was away learns first in which term B has voted.
    script.campaign(C, B);
    script.elect(C, B);
    script.restart(C);
    // A leads again, and the record of its first term reaches B: a majority has it. Its newest record does not.
    script.nodes[A].entries_per_frame = 1;
    script.campaign(A, B);
    script.campaign(A, B);
    let between = |from: usize, to: usize| [A, B].contains(&from) && [A, B].contains(&to);
    script.deliver_one(|from, to, message| between(from, to) && matches!(message, Message::Open { .. }));
    script.deliver_one(|from, to, message| between(from, to) && matches!(message, Message::OpenReply { .. }));
    script.deliver_one(|from, to, message| between(from, to) && matches!(message, Message::Append { .. }));
    script.sync(B);
    assert_eq!((log(&script.nodes[B]), script.nodes[B].log.last_term()), (vec![0], term(1)));
    script.deliver(|from, to, message| (from, to) == (B, A) && matches!(message, Message::Ack { .. }));
    script.restart(A);
    // C has a record of a higher term than B, and may lead: it must not miss what was committed.
    script.campaign(C, B);
    script.elect(C, B);
    assert_eq!(script.checks.committed(), Lsn::ZERO);
}

#[test]
fn state_machine_safety_a_follower_applies_what_is_committed_and_not_what_it_has() {
    let mut script = Script::new(3);
    script.elect(A, B);
    script.write(A, 71);
    // C has it on its disk before A hears of it: on two disks, and nobody knows.
    script.deliver(|from, to, message| !matches!(message, Message::Ack { .. }) && from != B && to != B);
    script.sync(C);
    assert_eq!((script.nodes[C].log.durable(), script.nodes[C].applied), (Lsn(2), Lsn::ZERO));
    script.replicate(A, C, 100);
    assert_eq!((script.nodes[C].applied, script.nodes[A].applied), (Lsn(2), Lsn(2)));
}

#[test]
fn n2_n3_a_node_that_is_cut_off_raises_no_term_and_deposes_nobody_when_it_is_back() {
    let mut script = led_by_a();
    for _ in 0..40 {
        script.replicate(A, B, TIMEOUT_MS / 2);
        script.tick(C);
        script.lose();
    }
    assert_eq!(script.nodes[C].term(), Term::ZERO, "twenty timeouts alone");
    // Now C reaches B, but not A (N3): B hears A, and refuses.
    for _ in 0..20 {
        script.replicate(A, B, TIMEOUT_MS / 2);
        script.tick(C);
        script.deliver(|from, to, _| [B, C].contains(&from) && [B, C].contains(&to));
        script.lose();
    }
    assert_eq!((script.nodes[B].term(), script.nodes[C].term()), (term(1), term(1)), "it learns the term");
    script.replicate(A, C, 2 * TIMEOUT_MS);
    assert!(script.nodes[A].leader().is_some());
    assert_eq!(log(&script.nodes[C]), log(&script.nodes[A]));
}

#[test]
fn p1_a_leader_that_stood_still_answers_nothing_from_before_and_steps_down() {
    let mut script = led_by_a();
    assert!(reads_by_lease(&mut script, A));
    // Somebody else leads meanwhile. What comes first when A goes on is a request.
    script.elect(B, C);
    script.write(B, 81);
    script.replicate(B, C, 30);
    assert!(script.checks.committed() > Lsn(1));
    assert!(!reads_by_lease(&mut script, A));
    assert!(script.nodes[A].leader().is_none(), "the clock comes first");
    let before = log(&script.nodes[A]);
    script.write(A, 71);
    assert_eq!(log(&script.nodes[A]), before, "no write is taken either");
}

#[test]
fn check_quorum_a_leader_that_nobody_answers_steps_down_within_a_timeout() {
    let mut script = led_by_a();
    let mut waited_ms = 0;
    while script.nodes[A].leader().is_some() {
        script.pass_ms(1);
        script.tick(A);
        script.lose();
        waited_ms += 1;
    }
    assert!(waited_ms <= TIMEOUT_MS, "{waited_ms} ms");
    assert_eq!(script.nodes[A].term(), term(1), "and no term grows by it");
}

#[test]
fn leases_a_voter_that_was_restarted_does_not_know_whom_it_heard_and_refuses() {
    let mut script = led_by_a();
    script.replicate(A, C, 30);
    // C's clock alone says that A was not heard for long; B, who would know better, is started anew.
    script.restart(B);
    let much_later = script.now.after_ms(10 * TIMEOUT_MS);
    script.nodes[C].on_tick(much_later);
    script.after(C);
    script.deliver(|from, to, _| from != A && to != A);
    assert_eq!((script.nodes[B].term(), script.nodes[C].term()), (term(1), term(1)));
    assert!(reads_by_lease(&mut script, A), "its lease stands, and rightly so");
}

#[test]
fn reads_wait_for_the_leaders_own_term_record() {
    let mut script = led_by_a();
    script.write(A, 71);
    script.replicate(A, B, 10);
    script.elect(B, C);
    // B hears a majority, but not yet that its own record is committed: C's disk is slow.
    script.deliver(|from, to, _| from != A && to != A);
    let now = script.now;
    let Role::Leader(leader) = &script.nodes[B].role else { panic!("B leads") };
    assert!(leader.quorum.lease_holds(now) && leader.term_lsn == Lsn(3));
    assert!(!reads_by_lease(&mut script, B));
    script.replicate(B, C, 10);
    assert!(reads_by_lease(&mut script, B));
}

#[test]
fn a_hand_over_moves_the_lead_at_once_and_the_lease_does_not_outlive_it() {
    let mut script = led_by_a();
    script.replicate(A, C, 60);
    script.replicate(A, B, 10);
    assert!(reads_by_lease(&mut script, A));
    let now = script.now;
    script.nodes[A].hand_over(B, now);
    script.after(A);
    assert!(!reads_by_lease(&mut script, A), "given up before the message leaves");
    script.deliver(|_, _, message| !matches!(message, Message::Open { .. }));
    assert!(script.nodes[B].leader().is_some(), "C has heard A a moment ago, and votes");
    assert_eq!(script.nodes[B].term(), term(2));
}

/// The lease that A gave up before it asked B to campaign, looked at when B already leads and has committed a write: as
/// A would be if its message were quicker than the end of its office.
fn a_lease_given_up_for_a_hand_over() {
    let mut script = led_by_a();
    script.replicate(A, C, 60);
    script.replicate(A, B, 10);
    let Role::Leader(leader) = &script.nodes[A].role else { panic!("A leads") };
    let (mut quorum, positions) = (leader.quorum.clone(), (leader.term_lsn, script.nodes[A].applied));
    assert!(quorum.lease_holds(script.now));
    quorum.give_up_lease();
    let now = script.now;
    script.nodes[A].hand_over(B, now);
    script.after(A);
    script.deliver(|_, to, _| to != A);
    script.write(B, 71);
    script.replicate(B, C, 10);
    assert!(script.nodes[B].applied > positions.1, "B has committed what A does not have");
    let verdict = judge(ReadMode::Lease, (script.now, script.now), &quorum, positions);
    assert_ne!(verdict, ReadVerdict::Now, "stale read: A's lease outlives its hand-over");
}

#[test]
fn a_lease_is_given_up_before_a_hand_over_leaves() {
    a_lease_given_up_for_a_hand_over();
}

#[cfg(feature = "sabotage")]
#[test]
fn a_lease_that_outlives_its_hand_over_is_caught() {
    use kvstore::sabotage::{Variant, set};
    set(Some(Variant::LeaseKeptDuringTransfer));
    let ended = std::panic::catch_unwind(a_lease_given_up_for_a_hand_over);
    set(None);
    let text = *ended.unwrap_err().downcast::<String>().expect("checks panic with words");
    assert!(text.contains("stale read"), "{text}");
}

#[cfg(feature = "sabotage")]
#[test]
fn without_its_rule_an_older_terms_record_is_committed_and_lost() {
    use kvstore::sabotage::{Variant, set};
    set(Some(Variant::OlderTermCommitByCount));
    let ended = std::panic::catch_unwind(older_terms_record_on_a_majority);
    set(None);
    let text = *ended.unwrap_err().downcast::<String>().expect("checks panic with words");
    assert!(text.contains("leader completeness"), "{text}");
}
