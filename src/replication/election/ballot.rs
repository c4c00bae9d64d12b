//! What a candidate asks for, and what a voter answers.

use crate::ids::{Lsn, NodeId, Term};

/// What kind of vote is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Would you vote for me? Changes nothing anywhere.
    Pre,
    /// Vote for me.
    Real,
    /// Vote for me: the leader has given its lease up and asked me to campaign.
    HandOver,
}

/// A candidate asks for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// What is asked for.
    pub phase: Phase,
    /// The term it wants to lead in.
    pub term: Term,
    /// Who asks.
    pub candidate: NodeId,
    /// The term of the last record of its log.
    pub last_term: Term,
    /// The last LSN of its log, on its disk.
    pub last_lsn: Lsn,
}

/// Why a vote is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The candidate is no member of the cluster.
    NotMember,
    /// A higher term is known.
    StaleTerm,
    /// The voter leads, has heard a leader a moment ago, or was started a moment ago and may have heard one before.
    HearsLeader,
    /// The voter's log ends in a higher term, or further in the same one.
    OlderLog,
    /// The voter has heard of a commit behind the candidate's last LSN.
    BelowCommit,
    /// The voter repairs, or its state is not complete.
    Incomplete,
    /// Somebody else has its vote in this term.
    VotedAlready,
    /// Anything a later version adds.
    Other,
}

impl Refusal {
    /// For the log: `refused, because …`.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::NotMember => "the candidate is no member of the cluster",
            Refusal::StaleTerm => "a higher term is known",
            Refusal::HearsLeader => "it leads or has heard a leader, or was started, a moment ago",
            Refusal::OlderLog => "its log has more than the candidate's",
            Refusal::BelowCommit => "it has heard of a commit behind the end of the candidate's log",
            Refusal::Incomplete => "it repairs or its state is not complete",
            Refusal::VotedAlready => "another node has its vote in this term",
            Refusal::Other => "of a reason that is not known here",
        }
    }
}

/// A voter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BallotReply {
    /// What was asked for.
    pub phase: Phase,
    /// In which term.
    pub asked_term: Term,
    /// The vote, or why there is none.
    pub verdict: Result<(), Refusal>,
    /// The highest term the voter knows now.
    pub term: Term,
    /// The highest commit LSN it has heard of.
    pub commit_lsn: Lsn,
    /// Milliseconds for which it will still refuse because of a leader; 0: that is not why.
    pub refuses_for_ms: u32,
}
