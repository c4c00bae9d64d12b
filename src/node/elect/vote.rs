//! The other side of a campaign: a member is asked for its vote. What it answers is `replication::election::voter`'s.
//!
//! Its log is settled first, so that what it compares and tells is durable; a vote and its term are durable, as one
//! record, before the answer is built, which asks for the proof.

use super::super::fatal::{fence, malformed};
use super::super::{Conn, FatalReason, Node, Stop};
use super::Elect;
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::log_info;
use crate::meta::MetaDurable;
use crate::replication::election::ballot::{Ballot, BallotReply, Phase};
use crate::replication::election::voter::{Decision, VoterView, decide, refuses_for_ms};
use crate::wire::peer::{RefuseCode, Vote, VoteReply};

impl Node {
    pub(in super::super) fn on_vote(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let Vote { ballot, address } = Vote::decode(body).map_err(malformed("VOTE"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        if peer.node_id != ballot.candidate {
            return fence(format!("node {} asks for votes for node {}", peer.node_id, ballot.candidate));
        }
        self.expect_more_of(conn);
        if !self.is_member() {
            let why = format!("node {} at {} does not vote: {}", self.node_id(), self.config.own_address, {
                if self.is_elected() { "it is no member of a cluster yet" } else { "its role is fixed" }
            });
            self.refuse(io, conn, RefuseCode::NotFollower, why);
            return Ok(());
        }
        let (last_term, last_lsn) = self.settled_log_end(io)?;
        let meta = self.meta.get();
        let voter = VoterView {
            term: meta.term,
            vote: meta.vote,
            refuse_until: self.member().expect("looked at above").timer.refuse_until(),
            leads_with_quorum: self.leads_with_quorum(),
            last_term,
            last_lsn,
            heard_commit: self.heard_commit(),
            candidate_was_removed: self.was_removed(&ballot),
            incomplete: self.repair_due().is_some() || !self.is_complete(),
        };
        let decision = decide(self.now, &ballot, &voter);
        let proof = self.carry_out(io, &decision, &address)?;
        // The campaign of its own leader may have come on the session that just ended with the term.
        if self.conns.get(conn).is_none() {
            return Ok(());
        }
        let refuses_for_ms = refuses_for_ms(self.now, &decision, &voter);
        self.answer_ballot(io, conn, &ballot, (&decision, refuses_for_ms), &proof);
        Ok(())
    }

    /// Whether a committed list is without the candidate, and it does not know that: it will never be elected.
    fn was_removed(&self, ballot: &Ballot) -> bool {
        let members = &self.meta.get().members;
        let is_committed = members.lsn() <= self.heard_commit() && members.lsn() > Lsn::ZERO;
        is_committed && ballot.last_lsn < members.lsn() && !members.contains(ballot.candidate)
    }

    /// Makes durable what a decision promises.
    fn carry_out(
        &mut self,
        io: &mut dyn Io,
        decision: &Decision,
        address: &str,
    ) -> Result<MetaDurable, FatalReason> {
        match decision {
            Decision::Grant(vote) => {
                self.end_what_was_before(io, vote.term, "a candidate got this node's vote")?;
                let token = self.vote_for(*vote)?;
                log_info!("election", "votes for {address} (node {}) in term {}", vote.vote, vote.term);
                let now = self.now;
                if let Elect::Member(member) = &mut self.elect {
                    member.timer.stand_back(now, &mut self.rng);
                }
                Ok(token)
            }
            Decision::Refuse { adopt_term: Some(term), .. } => {
                self.enter_term(io, *term, "a candidate was refused in a higher one")?;
                Ok(self.meta.update(self.disk.as_mut(), |_| {})?)
            }
            Decision::AlreadyGranted | Decision::WouldGrant | Decision::Refuse { adopt_term: None, .. } => {
                // Between its updates the record is what is durable.
                Ok(self.meta.update(self.disk.as_mut(), |_| {})?)
            }
        }
    }

    fn answer_ballot(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        ballot: &Ballot,
        (decision, refuses_for_ms): (&Decision, u32),
        _term_and_vote: &MetaDurable,
    ) {
        let verdict = match decision {
            Decision::Refuse { reason, .. } => Err(*reason),
            Decision::Grant(_) | Decision::AlreadyGranted | Decision::WouldGrant => Ok(()),
        };
        if let (Err(reason), true) = (verdict, ballot.phase != Phase::Pre) {
            log_info!(
                "election",
                "no vote for node {} in term {}: {}",
                ballot.candidate,
                ballot.term,
                reason.text()
            );
        }
        VoteReply(BallotReply {
            phase: ballot.phase,
            asked_term: ballot.term,
            verdict,
            term: self.meta.get().term,
            commit_lsn: self.heard_commit(),
            refuses_for_ms,
        })
        .encode(io.output(conn).bytes_mut());
    }
}
