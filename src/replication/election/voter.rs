//! The decision about one vote: a total function of what was asked and what the voter is.

use super::ballot::{Ballot, Phase, Refusal};
use crate::ids::{Lsn, NodeId, Term};
use crate::time::Time;

/// A vote, to be made durable as one record with its term before it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermVote {
    /// The term.
    pub term: Term,
    /// Who gets the vote in it.
    pub vote: NodeId,
}

/// What the voter is. Term and vote as they are durable; the end of its log after it was settled.
#[derive(Clone, Copy, Debug)]
pub struct VoterView {
    /// The highest term met.
    pub term: Term,
    /// Who has its vote in that term, or none.
    pub vote: NodeId,
    /// Until when it refuses because of a leader it heard, or because it was started; see
    /// [`super::timing::ElectionTimer`].
    pub refuse_until: Time,
    /// Whether it leads, and a majority has heard it within the election timeout.
    pub leads_with_quorum: bool,
    /// The term of the last record of its log.
    pub last_term: Term,
    /// The last LSN of its log, on its disk.
    pub last_lsn: Lsn,
    /// The highest commit LSN it has heard of in its life, also from votes and before a repair.
    pub heard_commit: Lsn,
    /// Whether a committed list of members is without the candidate, and its log ends in front of that.
    pub candidate_was_removed: bool,
    /// Whether it repairs, or its state is not complete.
    pub incomplete: bool,
}

/// What is done about a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The vote is given, once this is durable.
    Grant(TermVote),
    /// The candidate has the vote in this term already; the answer to the first question was lost.
    AlreadyGranted,
    /// A pre-vote: yes, and nothing changes.
    WouldGrant,
    /// No vote.
    Refuse {
        /// Why.
        reason: Refusal,
        /// The term to enter all the same, without a vote, durably before the answer: a real vote was asked for in a
        /// higher one.
        adopt_term: Option<Term>,
    },
}

/// Decides. `now` may be an older reading of the clock: it makes the refusal longer.
pub fn decide(now: Time, ballot: &Ballot, voter: &VoterView) -> Decision {
    match refusal(now, ballot, voter) {
        Some(reason) => Decision::Refuse { reason, adopt_term: term_to_adopt(reason, ballot, voter) },
        None if ballot.phase == Phase::Pre => Decision::WouldGrant,
        None if ballot.term == voter.term && voter.vote == ballot.candidate => Decision::AlreadyGranted,
        None => Decision::Grant(TermVote { term: ballot.term, vote: ballot.candidate }),
    }
}

/// The first rule that speaks against a vote.
fn refusal(now: Time, ballot: &Ballot, voter: &VoterView) -> Option<Refusal> {
    let same_term = ballot.term == voter.term;
    let voted_for_another = same_term && !voter.vote.is_none() && voter.vote != ballot.candidate;
    let rules = [
        (Refusal::NotMember, voter.candidate_was_removed),
        (Refusal::StaleTerm, ballot.term < voter.term),
        (Refusal::HearsLeader, !skips_refusal_time(ballot, voter) && hears_leader(now, voter)),
        (Refusal::OlderLog, (ballot.last_term, ballot.last_lsn) < (voter.last_term, voter.last_lsn)),
        (Refusal::BelowCommit, ballot.last_lsn < voter.heard_commit),
        (Refusal::Incomplete, voter.incomplete),
        (Refusal::VotedAlready, voted_for_another),
    ];
    rules.into_iter().find_map(|(reason, applies)| applies.then_some(reason))
}

fn hears_leader(now: Time, voter: &VoterView) -> bool {
    voter.leads_with_quorum || now < voter.refuse_until
}

/// A hand-over's votes are those of the term behind the one whose lease was given up: a voter that is in a higher term
/// by then may have heard *its* leader, whose lease stands.
fn skips_refusal_time(ballot: &Ballot, voter: &VoterView) -> bool {
    let next_after_mine = voter.term.promoted() == Some(ballot.term);
    ballot.phase == Phase::HandOver
        && !voter.leads_with_quorum
        && (next_after_mine || ballot.term == voter.term)
}

/// Who refuses because of a leader, or because the candidate was removed, stays in its term: that is what keeps a
/// leader in office whom the candidate alone does not hear.
fn term_to_adopt(reason: Refusal, ballot: &Ballot, voter: &VoterView) -> Option<Term> {
    let stays = matches!(reason, Refusal::NotMember | Refusal::HearsLeader);
    (!stays && ballot.phase != Phase::Pre && ballot.term > voter.term).then_some(ballot.term)
}

/// Milliseconds for which a refusal because of a leader will last, rounded up; for the answer. 0 for other refusals,
/// and of a voter that leads.
pub fn refuses_for_ms(now: Time, decision: &Decision, voter: &VoterView) -> u32 {
    match decision {
        Decision::Refuse { reason: Refusal::HearsLeader, .. } => {
            u32::try_from(voter.refuse_until.since(now).div_ceil(1_000_000)).unwrap_or(u32::MAX)
        }
        _ => 0,
    }
}

/// Why a node may not campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCandidate {
    /// It repairs, or its state is not complete.
    Incomplete,
    /// It has heard of a commit behind the end of its log.
    BelowCommit(Lsn),
}

/// Whether a node with this log may campaign.
pub fn may_campaign(last_lsn: Lsn, heard_commit: Lsn, incomplete: bool) -> Result<(), NoCandidate> {
    match () {
        () if incomplete => Err(NoCandidate::Incomplete),
        () if last_lsn < heard_commit => Err(NoCandidate::BelowCommit(heard_commit)),
        () => Ok(()),
    }
}

/// Whether HAND_OVER of the leader of `given_up` may begin a campaign of a node that is in `term`: in a later one there
/// may be another leader, whose lease is not given up.
pub fn may_take_over(given_up: Term, term: Term) -> bool {
    given_up == term
}

#[cfg(test)]
mod tests;
