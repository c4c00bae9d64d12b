//! What is committed: the one place that turns durable LSNs into a commit LSN.

use crate::ids::Lsn;
use crate::limits::MEMBERS_MAX;
use crate::wal::Durable;

/// When a write of a fixed leader is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// On the leader's disk and on every in-sync follower's.
    InSync,
    /// On the leader's disk and on enough followers' to make a majority of all nodes.
    Quorum,
    /// On the leader's disk alone.
    Leader,
    /// On the disks of any majority of the members, the leader's one among equals: what two fast followers have is
    /// committed before a slow leader has it. An elected leader's rule.
    Majority,
}

impl AckPolicy {
    /// The flag's word.
    pub fn name(self) -> &'static str {
        match self {
            AckPolicy::InSync => "insync",
            AckPolicy::Quorum => "quorum",
            AckPolicy::Leader => "leader",
            AckPolicy::Majority => "majority",
        }
    }
}

/// The rule in force.
#[derive(Clone, Copy, Debug)]
pub struct CommitRule {
    /// The policy.
    pub policy: AckPolicy,
    /// Nodes in sync, the leader among them, that must have a write on disk.
    pub min_insync: usize,
    /// The LSN of the leader's own `TERM` record. With [`AckPolicy::Majority`] nothing below it is committed by count:
    /// a record of an earlier term may be on a majority and still be cut by a leader that does not have it. Once the
    /// `TERM` record is on a majority, no such leader can be elected.
    pub term_lsn: Lsn,
}

/// Proof that everything up to an LSN is committed. Only [`CommitRule::committed`] makes one, so a write's
/// reply cannot leave before the rule was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed(Lsn);

impl Committed {
    /// The commit LSN.
    pub fn lsn(self) -> Lsn {
        self.0
    }
}

/// What counts of a follower.
#[derive(Clone, Copy, Debug)]
pub struct FollowerState {
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Whether it is coming back: commits wait for it, and nobody counts on it yet.
    pub joining: bool,
    /// The last LSN known to be on its disk.
    pub match_lsn: Lsn,
}

impl CommitRule {
    /// The highest LSN that is acknowledged with the leader's own disk at `own` and these followers.
    pub fn committed(&self, own: &Durable, followers: &[FollowerState]) -> Committed {
        let own = own.lsn();
        if self.policy == AckPolicy::Majority {
            return self.committed_by_majority(own, followers);
        }
        let in_sync = followers.iter().filter(|follower| follower.in_sync);
        let by_policy = match self.policy {
            AckPolicy::Leader | AckPolicy::Majority => own,
            AckPolicy::InSync if crate::sabotage::is(crate::sabotage::Variant::ReplyBeforeInSync) => own,
            AckPolicy::InSync => {
                let waited_for = followers.iter().filter(|follower| follower.in_sync || follower.joining);
                waited_for.map(|follower| follower.match_lsn).min().unwrap_or(own)
            }
            AckPolicy::Quorum => {
                let followers_needed = followers.len().div_ceil(2);
                nth_highest(followers.iter().map(|follower| follower.match_lsn), followers_needed)
                    .unwrap_or(own)
            }
        };
        let min_followers = self.min_insync.saturating_sub(1);
        let by_min_insync = match min_followers {
            0 => own,
            needed => nth_highest(in_sync.map(|follower| follower.match_lsn), needed).unwrap_or(Lsn::ZERO),
        };
        Committed(own.min(by_policy).min(by_min_insync))
    }

    fn committed_by_majority(&self, own: Lsn, followers: &[FollowerState]) -> Committed {
        // An array on the stack: this is asked in every turn with an ACK.
        let mut lsns = [own; MEMBERS_MAX];
        let lsns = &mut lsns[..1 + followers.len()];
        lsns[1..].iter_mut().zip(followers).for_each(|(lsn, follower)| *lsn = follower.match_lsn);
        Committed(majority_lsn(self.term_lsn, lsns))
    }
}

/// What is committed with these LSNs on the disks of all members: as much as a majority has, or [`Lsn::ZERO`] while
/// that is below the first record of the leader's own term. It may be above what is on the leader's disk. Sorts them.
pub fn majority_lsn(term_lsn: Lsn, lsns: &mut [Lsn]) -> Lsn {
    lsns.sort_unstable();
    // Of so many rising values a majority is at or above this one.
    let on_majority = lsns[(lsns.len() - 1) / 2];
    if on_majority < term_lsn && !crate::sabotage::is(crate::sabotage::Variant::OlderTermCommitByCount) {
        return Lsn::ZERO;
    }
    on_majority
}

/// The `n`-th highest (n = 1: the highest); `None` if there are fewer, or n is 0.
fn nth_highest(lsns: impl Iterator<Item = Lsn>, n: usize) -> Option<Lsn> {
    let mut sorted: Vec<Lsn> = lsns.collect();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted.get(n.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(policy: AckPolicy, min_insync: usize, own: u64, followers: &[(bool, u64)]) -> u64 {
        let followers: Vec<_> = followers
            .iter()
            .map(|&(in_sync, lsn)| FollowerState { in_sync, joining: false, match_lsn: Lsn(lsn) })
            .collect();
        let own = Durable::for_tests(1, Lsn(own));
        CommitRule { policy, min_insync, term_lsn: Lsn(1) }.committed(&own, &followers).lsn().0
    }

    #[test]
    fn insync_waits_for_every_follower_in_the_set_and_for_no_other() {
        assert_eq!(committed(AckPolicy::InSync, 1, 10, &[(true, 8), (true, 9)]), 8);
        assert_eq!(committed(AckPolicy::InSync, 1, 10, &[(false, 3), (true, 9)]), 9);
        assert_eq!(committed(AckPolicy::InSync, 1, 10, &[(false, 3), (false, 4)]), 10);
        assert_eq!(committed(AckPolicy::InSync, 1, 7, &[(true, 8), (true, 9)]), 7);
    }

    #[test]
    fn insync_waits_for_a_follower_that_joins_but_does_not_count_it() {
        let own = Durable::for_tests(1, Lsn(10));
        let joining = [FollowerState { in_sync: false, joining: true, match_lsn: Lsn(7) }];
        let rule = |min_insync| CommitRule { policy: AckPolicy::InSync, min_insync, term_lsn: Lsn(1) };
        assert_eq!(rule(1).committed(&own, &joining).lsn(), Lsn(7));
        assert_eq!(rule(2).committed(&own, &joining).lsn(), Lsn(0));
    }

    #[test]
    fn quorum_is_the_leader_and_enough_followers_for_a_majority() {
        assert_eq!(committed(AckPolicy::Quorum, 1, 10, &[(true, 4), (true, 9)]), 9);
        assert_eq!(committed(AckPolicy::Quorum, 1, 10, &[(true, 4)]), 4);
        assert_eq!(committed(AckPolicy::Quorum, 1, 10, &[(true, 4), (true, 5), (true, 6)]), 5);
        assert_eq!(committed(AckPolicy::Quorum, 1, 10, &[(true, 4), (true, 5), (true, 6), (true, 7)]), 6);
        assert_eq!(committed(AckPolicy::Quorum, 1, 3, &[(true, 4), (true, 9)]), 3);
    }

    #[test]
    fn leader_alone_needs_only_its_own_disk() {
        assert_eq!(committed(AckPolicy::Leader, 1, 10, &[(true, 0), (true, 0)]), 10);
        assert_eq!(committed(AckPolicy::InSync, 1, 10, &[]), 10);
        assert_eq!(committed(AckPolicy::Quorum, 1, 10, &[]), 10);
    }

    #[test]
    fn min_insync_holds_writes_back_that_too_few_nodes_have() {
        assert_eq!(committed(AckPolicy::InSync, 2, 10, &[(false, 9), (false, 9)]), 0);
        assert_eq!(committed(AckPolicy::InSync, 2, 10, &[(true, 9), (false, 3)]), 9);
        assert_eq!(committed(AckPolicy::Leader, 3, 10, &[(true, 4), (true, 5)]), 4);
        assert_eq!(committed(AckPolicy::InSync, 2, 10, &[]), 0);
    }

    fn majority(term_lsn: u64, own: u64, followers: &[u64]) -> u64 {
        let follower = |lsn: &u64| FollowerState { in_sync: false, joining: false, match_lsn: Lsn(*lsn) };
        let followers: Vec<_> = followers.iter().map(follower).collect();
        let rule = CommitRule { policy: AckPolicy::Majority, min_insync: 1, term_lsn: Lsn(term_lsn) };
        rule.committed(&Durable::for_tests(1, Lsn(own)), &followers).lsn().0
    }

    #[test]
    fn majority_is_the_fastest_one_and_the_leader_need_not_be_in_it() {
        assert_eq!(majority(1, 10, &[]), 10);
        assert_eq!(majority(1, 10, &[4]), 4);
        assert_eq!(majority(1, 3, &[4]), 3);
        assert_eq!(majority(1, 10, &[4, 9]), 9);
        assert_eq!(majority(1, 3, &[8, 9]), 8, "two fast followers commit past a slow leader");
        assert_eq!(majority(1, 10, &[4, 5, 6]), 5, "three of four");
        assert_eq!(majority(1, 10, &[4, 5, 6, 7]), 6);
        assert_eq!(majority(1, 1, &[4, 5, 6, 7]), 5);
    }

    #[test]
    fn nothing_below_the_leaders_own_term_record_is_committed_by_count() {
        assert_eq!(majority(8, 10, &[7, 7]), 0);
        assert_eq!(majority(8, 10, &[7, 8]), 8);
        assert_eq!(majority(8, 7, &[8, 9]), 8);
    }
}
