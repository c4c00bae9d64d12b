//! One campaign: who has said what, and whether it is won.
//!
//! A campaign asks twice. With the pre-votes of a majority the candidate makes a higher term and its vote for itself
//! durable, as one record, and asks for real votes in that term. One that a leader asked for by HAND_OVER begins there.
//!
//! Invariants: votes are counted by member id; an answer counts for the phase and the term that it names; the term and
//! the phase of a campaign only rise.

use super::ballot::{Ballot, BallotReply, Phase};
use super::voter::TermVote;
use crate::ids::{Lsn, NodeId, Term};
use crate::replication::members::Members;
use crate::sabotage::{Variant, is};

/// A campaign under way.
#[derive(Clone, Debug)]
pub struct Campaign {
    phase: Phase,
    term: Term,
    candidate: NodeId,
    last_term: Term,
    last_lsn: Lsn,
    members: Members,
    granted: Vec<NodeId>,
    refused: Vec<NodeId>,
}

/// Where a campaign stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not decided.
    Waiting,
    /// A majority said yes. After pre-votes: [`Campaign::stand`]; after real ones: lead.
    Won,
    /// It is over.
    Lost(Loss),
}

/// Why it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A member knows this higher term: to be entered, durably.
    HigherTerm(Term),
    /// A member has heard of this commit, behind the end of the candidate's log.
    BelowCommit(Lsn),
    /// So many said no that a majority cannot be reached.
    Refused,
}

impl Campaign {
    /// A campaign for the term behind `term`, with the log that ends there. `None` after 2^32 - 1 elections.
    ///
    /// # Panics
    /// If the candidate is no member.
    pub fn begin(
        members: &Members,
        candidate: NodeId,
        term: Term,
        (last_term, last_lsn): (Term, Lsn),
    ) -> Option<Campaign> {
        assert!(members.contains(candidate) || is(Variant::RemovedMemberCampaigns), "only members campaign");
        let phase = if is(Variant::NoPreVote) { Phase::Real } else { Phase::Pre };
        let term = term.promoted()?;
        let members = members.clone();
        let (granted, refused) = (vec![candidate], Vec::new());
        Some(Campaign { phase, term, candidate, last_term, last_lsn, members, granted, refused })
    }

    /// The campaign that HAND_OVER asks for: see [`super::voter::may_take_over`].
    pub fn take_over(
        members: &Members,
        candidate: NodeId,
        term: Term,
        log_end: (Term, Lsn),
    ) -> Option<Campaign> {
        let campaign = Campaign::begin(members, candidate, term, log_end)?;
        Some(Campaign { phase: Phase::HandOver, ..campaign })
    }

    /// What is asked of every other member. In a phase that is not the pre-votes' it leaves only when
    /// [`Campaign::own_vote`] is durable.
    pub fn ballot(&self) -> Ballot {
        let Campaign { phase, term, candidate, last_term, last_lsn, .. } = *self;
        Ballot { phase, term, candidate, last_term, last_lsn }
    }

    /// What must be durable before real votes are asked for.
    pub fn own_vote(&self) -> Option<TermVote> {
        (self.phase != Phase::Pre).then_some(TermVote { term: self.term, vote: self.candidate })
    }

    /// The pre-votes are won: what to make durable now. The count begins anew, with the candidate's own vote.
    ///
    /// # Panics
    /// If they are not.
    pub fn stand(&mut self) -> TermVote {
        assert!(self.phase == Phase::Pre && self.outcome() == Outcome::Won, "pre-votes come first");
        self.phase = Phase::Real;
        self.granted.truncate(1);
        self.refused.clear();
        TermVote { term: self.term, vote: self.candidate }
    }

    /// A member answered. What was asked earlier, or by an earlier campaign, changes nothing; a higher term counts
    /// whenever it is heard.
    pub fn on_reply(&mut self, from: NodeId, reply: &BallotReply) -> Outcome {
        if !self.members.contains(from) {
            return self.outcome();
        }
        if self.is_higher(reply) {
            return Outcome::Lost(Loss::HigherTerm(reply.term));
        }
        if reply.commit_lsn > self.last_lsn {
            return Outcome::Lost(Loss::BelowCommit(reply.commit_lsn));
        }
        if (reply.phase, reply.asked_term) != (self.phase, self.term) {
            return self.outcome();
        }
        let (counted, other) = match reply.verdict {
            Ok(()) => (&mut self.granted, &self.refused),
            Err(_) => (&mut self.refused, &self.granted),
        };
        if !counted.contains(&from) && !other.contains(&from) {
            counted.push(from);
        }
        self.outcome()
    }

    /// Whether the answer knows a term above the candidate's. With pre-votes the candidate is still in the term below
    /// the one it asks for. A voter that is in that one already may say yes; one that says no because it has voted in
    /// it says no for ever, so the candidate enters the term and asks for the next. (Otherwise two of three can stay
    /// without a leader: the one with the better log asks for a term in which the other one voted for the third, who
    /// is gone.)
    fn is_higher(&self, reply: &BallotReply) -> bool {
        let refused_in_it = self.phase == Phase::Pre && reply.verdict.is_err() && reply.term == self.term;
        reply.term > self.term || refused_in_it
    }

    /// Where it stands. A single member has won before it asked.
    pub fn outcome(&self) -> Outcome {
        if self.granted.len() >= self.members.majority() {
            Outcome::Won
        } else if self.refused.len() > self.members.len() - self.members.majority() {
            Outcome::Lost(Loss::Refused)
        } else {
            Outcome::Waiting
        }
    }

    /// Votes counted, its own among them.
    pub fn votes(&self) -> usize {
        self.granted.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ballot::Refusal;
    use super::*;
    use crate::replication::members::Member;

    fn id(number: usize) -> NodeId {
        NodeId([number as u8; 16])
    }

    fn term(promotion: u32) -> Term {
        Term { promotion, start: 0 }
    }

    fn members(count: usize) -> Members {
        let member = |number| Member { node_id: id(number), address: format!("host:{number}") };
        Members::new((1..=count).map(member).collect()).expect("they differ")
    }

    fn campaign(count: usize) -> Campaign {
        Campaign::begin(&members(count), id(1), term(4), (term(4), Lsn(9))).expect("there are terms left")
    }

    fn yes(campaign: &Campaign) -> BallotReply {
        let Ballot { phase, term, .. } = campaign.ballot();
        let (asked_term, verdict, commit_lsn) = (term, Ok(()), Lsn(9));
        BallotReply { phase, asked_term, verdict, term: Term::ZERO, commit_lsn, refuses_for_ms: 0 }
    }

    fn no(campaign: &Campaign) -> BallotReply {
        BallotReply { verdict: Err(Refusal::HearsLeader), ..yes(campaign) }
    }

    #[test]
    fn a_majority_of_pre_votes_and_then_of_votes_is_needed() {
        let mut campaign = campaign(5);
        assert_eq!((campaign.ballot().phase, campaign.ballot().term), (Phase::Pre, term(5)));
        assert_eq!(campaign.own_vote(), None);
        assert_eq!(campaign.on_reply(id(2), &yes(&campaign)), Outcome::Waiting);
        assert_eq!(campaign.on_reply(id(3), &yes(&campaign)), Outcome::Won);
        let vote = campaign.stand();
        assert_eq!(vote, TermVote { term: term(5), vote: id(1) });
        assert_eq!(campaign.own_vote(), Some(vote));
        assert_eq!((campaign.outcome(), campaign.votes()), (Outcome::Waiting, 1));
        assert_eq!(campaign.on_reply(id(4), &yes(&campaign)), Outcome::Waiting);
        assert_eq!(campaign.on_reply(id(5), &yes(&campaign)), Outcome::Won);
    }

    #[test]
    fn a_member_counts_once_and_nobody_else_counts() {
        let mut campaign = campaign(5);
        for _ in 0..3 {
            assert_eq!(campaign.on_reply(id(2), &yes(&campaign)), Outcome::Waiting);
            assert_eq!(campaign.on_reply(id(1), &yes(&campaign)), Outcome::Waiting, "its own voice again");
            assert_eq!(campaign.on_reply(id(77), &yes(&campaign)), Outcome::Waiting, "no member");
        }
        assert_eq!(campaign.votes(), 2);
    }

    #[test]
    fn answers_to_what_was_asked_before_change_nothing() {
        let mut campaign = campaign(3);
        let pre = yes(&campaign);
        let earlier = BallotReply { asked_term: term(4), ..pre };
        assert_eq!(campaign.on_reply(id(2), &earlier), Outcome::Waiting);
        assert_eq!(campaign.on_reply(id(2), &pre), Outcome::Won);
        campaign.stand();
        assert_eq!(campaign.on_reply(id(3), &pre), Outcome::Waiting, "a pre-vote is no vote");
        assert_eq!(campaign.on_reply(id(3), &yes(&campaign)), Outcome::Won);
    }

    #[test]
    fn it_is_lost_when_no_majority_is_left_to_be_reached() {
        let mut campaign = campaign(5);
        assert_eq!(campaign.on_reply(id(2), &no(&campaign)), Outcome::Waiting);
        assert_eq!(campaign.on_reply(id(3), &no(&campaign)), Outcome::Waiting);
        assert_eq!(campaign.on_reply(id(4), &no(&campaign)), Outcome::Lost(Loss::Refused));
        let mut two = super::tests::campaign(2);
        assert_eq!(two.on_reply(id(2), &no(&two)), Outcome::Lost(Loss::Refused));
    }

    #[test]
    fn a_higher_term_or_a_higher_commit_ends_it_at_once() {
        let mut campaign = campaign(5);
        let higher = BallotReply { term: term(6), asked_term: term(1), ..no(&campaign) };
        assert_eq!(campaign.on_reply(id(2), &higher), Outcome::Lost(Loss::HigherTerm(term(6))));
        let voted_in_it = BallotReply { term: term(5), ..no(&campaign) };
        assert_eq!(campaign.on_reply(id(2), &voted_in_it), Outcome::Lost(Loss::HigherTerm(term(5))));
        let would_vote_in_it = BallotReply { term: term(5), ..yes(&campaign) };
        assert_eq!(campaign.on_reply(id(2), &would_vote_in_it), Outcome::Waiting);
        let committed = BallotReply { commit_lsn: Lsn(10), ..yes(&campaign) };
        assert_eq!(campaign.on_reply(id(2), &committed), Outcome::Lost(Loss::BelowCommit(Lsn(10))));
    }

    #[test]
    fn one_member_wins_alone_and_a_hand_over_begins_with_the_vote() {
        let mut alone = campaign(1);
        assert_eq!(alone.outcome(), Outcome::Won);
        alone.stand();
        assert_eq!(alone.outcome(), Outcome::Won);
        let handed =
            Campaign::take_over(&members(3), id(1), term(4), (term(4), Lsn(9))).expect("terms are left");
        assert_eq!(handed.ballot().phase, Phase::HandOver);
        assert_eq!(handed.own_vote(), Some(TermVote { term: term(5), vote: id(1) }));
        let last = Term { promotion: u32::MAX, start: 3 };
        assert!(Campaign::begin(&members(3), id(1), last, (last, Lsn(9))).is_none());
    }
}
