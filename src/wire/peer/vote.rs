//! Asking for votes, and handing leadership over.

use super::{decode_address, finish, framed};
use crate::ids::{Lsn, NodeId, Term};
use crate::replication::election::ballot::{Ballot, BallotReply, Phase, Refusal};
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Writer};

/// A candidate asks for a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The question.
    pub ballot: Ballot,
    /// Where the candidate listens, for the voter's log.
    pub address: String,
}

/// A voter answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteReply(pub BallotReply);

/// A leader asks its follower, on their session, to campaign now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The leader's term: in this one its lease is given up for good.
    pub term: Term,
    /// Where its log ends: the follower has all of it.
    pub last_lsn: Lsn,
}

/// The verdict of a vote that was given.
const GRANTED: u8 = 0;
const REFUSALS: [(u8, Refusal); 8] = [
    (1, Refusal::NotMember),
    (2, Refusal::StaleTerm),
    (3, Refusal::HearsLeader),
    (4, Refusal::OlderLog),
    (5, Refusal::BelowCommit),
    (6, Refusal::Incomplete),
    (7, Refusal::VotedAlready),
    (0xff, Refusal::Other),
];

fn verdict_to_byte(verdict: Result<(), Refusal>) -> u8 {
    let Err(refusal) = verdict else { return GRANTED };
    let known = REFUSALS.iter().find(|(_, listed)| *listed == refusal);
    known.expect("every refusal is listed").0
}

/// A verdict of a later version is a refusal: only one byte means yes.
fn verdict_from_byte(raw: u8) -> Result<(), Refusal> {
    if raw == GRANTED {
        return Ok(());
    }
    Err(REFUSALS.iter().find(|(byte, _)| *byte == raw).map_or(Refusal::Other, |(_, refusal)| *refusal))
}

fn phase_to_byte(phase: Phase) -> u8 {
    match phase {
        Phase::Pre => 0,
        Phase::Real => 1,
        Phase::HandOver => 2,
    }
}

/// A phase that is not known is no vote: what it would change is not known either.
fn decode_phase(reader: &mut Reader<'_>) -> Result<Phase, DecodeError> {
    let error = reader.error("phase", DecodeProblem::Invalid(0));
    match reader.u8("phase")? {
        0 => Ok(Phase::Pre),
        1 => Ok(Phase::Real),
        2 => Ok(Phase::HandOver),
        other => Err(DecodeError { problem: DecodeProblem::Invalid(other.into()), ..error }),
    }
}

impl Vote {
    /// Appends VOTE.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Ballot { phase, term, candidate, last_term, last_lsn } = self.ballot;
        framed(out, MessageType::Vote, |out| {
            out.put_u8(phase_to_byte(phase));
            out.put_u64(term.as_u64());
            out.extend_from_slice(&candidate.0);
            out.put_u64(last_term.as_u64());
            out.put_u64(last_lsn.0);
            out.put_bytes16(self.address.as_bytes());
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of VOTE.
    pub fn decode(body: &[u8]) -> Result<Vote, DecodeError> {
        let mut reader = Reader::new(body);
        let ballot = Ballot {
            phase: decode_phase(&mut reader)?,
            term: Term::from_u64(reader.u64("term")?),
            candidate: NodeId(reader.array("candidate_id")?),
            last_term: Term::from_u64(reader.u64("last_term")?),
            last_lsn: Lsn(reader.u64("last_lsn")?),
        };
        let address = decode_address(&mut reader, "candidate address")?;
        finish(reader)?;
        Ok(Vote { ballot, address })
    }
}

impl VoteReply {
    /// Appends VOTE_REPLY.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let BallotReply { phase, asked_term, verdict, term, commit_lsn, refuses_for_ms } = self.0;
        framed(out, MessageType::VoteReply, |out| {
            out.put_u8(phase_to_byte(phase));
            out.put_u8(verdict_to_byte(verdict));
            out.put_u64(term.as_u64());
            out.put_u64(asked_term.as_u64());
            out.put_u64(commit_lsn.0);
            out.put_u32(refuses_for_ms);
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of VOTE_REPLY.
    pub fn decode(body: &[u8]) -> Result<VoteReply, DecodeError> {
        let mut reader = Reader::new(body);
        let phase = decode_phase(&mut reader)?;
        let verdict = verdict_from_byte(reader.u8("verdict")?);
        let term = Term::from_u64(reader.u64("term")?);
        let asked_term = Term::from_u64(reader.u64("asked_term")?);
        let commit_lsn = Lsn(reader.u64("commit_lsn")?);
        let refuses_for_ms = reader.u32("refuses_for_ms")?;
        finish(reader)?;
        Ok(VoteReply(BallotReply { phase, asked_term, verdict, term, commit_lsn, refuses_for_ms }))
    }
}

impl HandOver {
    /// Appends HAND_OVER.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::HandOver, |out| {
            out.put_u64(self.term.as_u64());
            out.put_u64(self.last_lsn.0);
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of HAND_OVER.
    pub fn decode(body: &[u8]) -> Result<HandOver, DecodeError> {
        let mut reader = Reader::new(body);
        let term = Term::from_u64(reader.u64("term")?);
        let last_lsn = Lsn(reader.u64("last_lsn")?);
        finish(reader)?;
        Ok(HandOver { term, last_lsn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_byte_of_its_own_and_none_is_a_vote() {
        for (index, (byte, refusal)) in REFUSALS.iter().enumerate() {
            assert_ne!(*byte, GRANTED);
            assert!(REFUSALS[..index].iter().all(|(other, _)| other != byte));
            assert_eq!(verdict_from_byte(verdict_to_byte(Err(*refusal))), Err(*refusal));
        }
        assert_eq!(verdict_from_byte(verdict_to_byte(Ok(()))), Ok(()));
        assert_eq!(verdict_from_byte(0x42), Err(Refusal::Other), "of a later version");
    }
}
