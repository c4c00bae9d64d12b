//! What members say to each other, and what they tell the checks.

use kvstore::ids::{Lsn, NodeId, Term};
use kvstore::replication::election::ballot::{Ballot, BallotReply, Phase};
use kvstore::replication::history::TermHistory;

use super::log::Entry;

/// What members say. Those with a session come in order, or not at all.
#[derive(Clone, Debug)]
pub enum Message {
    Vote(Ballot),
    VoteReply(BallotReply),
    Open { session: u64, term: Term, history: TermHistory, last: Lsn },
    OpenReply { session: u64, match_lsn: Lsn },
    Refuse { session: u64, term: Term },
    Append { session: u64, first: Lsn, entries: Vec<Entry>, commit: Lsn, round: u64 },
    Ack { session: u64, last: Lsn, round: u64 },
    HandOver { session: u64, term: Term },
}

/// What a member did that the world looks at.
#[derive(Clone, Debug)]
pub enum Told {
    /// It raised its term to campaign in it.
    Stood(Term, Phase),
    /// It gave its vote.
    Voted(Term, NodeId),
    /// It answered a pre-vote with yes.
    WouldVote(Term, NodeId),
    Leads(Term),
    /// Committed up to there, as the leader.
    Committed(Lsn),
    Applied(Lsn, Entry),
    Heard(usize),
}

impl Message {
    /// The session it belongs to: its messages come in order, or none of them does.
    pub fn session(&self) -> Option<u64> {
        match self {
            Message::Vote(_) | Message::VoteReply(_) => None,
            Message::Open { session, .. }
            | Message::OpenReply { session, .. }
            | Message::Refuse { session, .. }
            | Message::Append { session, .. }
            | Message::Ack { session, .. }
            | Message::HandOver { session, .. } => Some(*session),
        }
    }
}
