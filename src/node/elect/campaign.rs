//! A campaign as a node runs it: when no leader is heard, the others are called and asked, first whether they would
//! vote, then for their vote. What is counted and what it leads to is `replication::election::campaign`'s.
//!
//! The order is the promise: the log is durable to its end before a question names that end, and the vote for itself
//! is durable, in one record with its term, before the first real question leaves. Who is called late is asked what
//! the campaign asks by then.
//!
//! A campaign ends when it is won or lost, when a leader opens a session, when the term moves on, after an election
//! timeout, or when everybody has answered or cannot be reached: waiting on would only let clients wait.

use super::super::fatal::{fence, malformed};
use super::super::{FatalReason, Node, Stop};
use super::calls::Calls;
use super::{Elect, Member};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::meta::MetaDurable;
use crate::replication::election::ballot::{BallotReply, Refusal};
use crate::replication::election::campaign::{Campaign, Loss, Outcome};
use crate::replication::election::voter::{NoCandidate, TermVote, may_campaign};
use crate::sabotage::{Variant, is};
use crate::time::Time;
use crate::wal::ReserveError;
use crate::wire::peer::{Vote, VoteReply};
use crate::wire::{Effect, record_size};
use crate::{log_debug, log_info, log_warn};

/// A campaign, and the calls that it is run by.
pub(super) struct Canvass {
    pub campaign: Campaign,
    /// It is over by then.
    pub deadline: Time,
    pub calls: Calls,
    /// Why the last one who said no did.
    refusal: Option<String>,
    /// From then on nobody is waited for whose connection does not stand, if somebody says no for the moment only.
    /// Packets to a leader that is cut off are lost without a word, and the other one of three, who heard it a little
    /// later, may say yes by the next campaign: waiting for the deadline cost clients a second more, in the worst case.
    patience_until: Time,
    refused_for_now: bool,
}

/// The part of the election timeout that makes up [`Canvass::patience_until`].
const PATIENCE_PART: u64 = 4;

impl Canvass {
    /// Whether somebody says no for the moment only, and nobody else is there to answer.
    fn only_waits_for_the_dead(&self) -> bool {
        self.refused_for_now && self.calls.open_ones_answered()
    }
}

impl Member {
    /// When the timers have something to do.
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.canvass {
            Some(canvass) => {
                let patience = canvass.only_waits_for_the_dead().then_some(canvass.patience_until);
                [Some(canvass.deadline), canvass.calls.deadline(), patience].into_iter().flatten().min()
            }
            None => Some(self.timer.campaign_at()),
        }
    }
}

impl Node {
    pub(super) fn campaign_timers(&mut self, io: &mut dyn Io, input_left: bool) -> Result<(), FatalReason> {
        let now = self.now;
        let Some(member) = self.member() else { return Ok(()) };
        match &member.canvass {
            Some(canvass) if now >= canvass.deadline => {
                self.campaign_over(io, "not enough of them answered in time");
                Ok(())
            }
            Some(canvass) if now >= canvass.patience_until && canvass.only_waits_for_the_dead() => {
                let why = self.refusal_text();
                self.campaign_over(io, &why);
                Ok(())
            }
            Some(_) => self.place_calls(io),
            None if self.leader().is_some() || input_left || now < member.timer.campaign_at() => Ok(()),
            None => self.campaign_if_fit(io),
        }
    }

    /// No leader is heard. A node that should not lead does not ask, and looks again later.
    fn campaign_if_fit(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        // A disk that hangs holds the end of the log back: who waited for it here would hear nobody meanwhile.
        if self.shutdown.is_some() || self.flush_is_under_way() {
            self.try_later();
            return Ok(());
        }
        self.drop_session(io, "the leader is not heard any more");
        if let Some(why) = self.no_vote_text() {
            self.tell_not_asking(&why);
            self.try_later();
            return Ok(());
        }
        let log_end = self.settled_log_end(io)?;
        let unfit = self.repair_due().is_some() || !self.is_complete() || self.state_is_wrong();
        if let Err(why) = may_campaign(log_end.1, self.heard_commit(), unfit) {
            self.tell_no_candidate(why);
            self.try_later();
            return Ok(());
        }
        if let Some(why) = self.no_room_to_lead()? {
            self.tell_not_asking(&why);
            self.try_later();
            return Ok(());
        }
        let (own, term) = (self.node_id(), self.term());
        let members = &self.meta.get().members;
        let campaign = Campaign::begin(members, own, term, log_end).ok_or(FatalReason::TermsExhausted)?;
        let (others, ballot) = (self.meta.get().members.others(own).count(), campaign.ballot());
        self.member_mut().expect("only members campaign").campaigns += 1;
        self.tell_campaign(format!(
            "no leader heard: asks {others} other member(s) whether they would vote for it in term {} (last LSN {})",
            ballot.term, ballot.last_lsn
        ));
        self.run_campaign(io, campaign)
    }

    /// Why this node does not ask for votes, if it is none of those who vote.
    fn no_vote_text(&self) -> Option<String> {
        let told = self.member().is_some_and(|member| member.told_removed);
        if is(Variant::RemovedMemberCampaigns) {
            return None;
        }
        if told {
            return Some(format!(
                "the members say that it was removed from cluster {}. Stop it; to have it back, give it an empty \
                 --data-dir and run `kv_client member add {}`",
                self.meta.get().cluster_id,
                self.config.own_address
            ));
        }
        let lsn = self.meta.get().members.lsn();
        (!self.has_vote()).then(|| {
            format!(
                "it is none of the members by the list of LSN {lsn}: it was not added yet, or was removed"
            )
        })
    }

    /// Why there is no room for the first record of a term, if there is none: who cannot write it does not lead (D9).
    pub(super) fn no_room_to_lead(&mut self) -> Result<Option<String>, FatalReason> {
        let effect = Effect::Term { term: self.term(), leader: self.node_id() };
        match self.wal.reserve(self.disk.as_mut(), record_size(&effect)) {
            Ok(()) | Err(ReserveError::FlushPending) => Ok(None),
            Err(ReserveError::NoRoom(error)) => {
                Ok(Some(format!("no room for a log segment in {}: {error}", self.disk.describe())))
            }
            Err(ReserveError::Failed(error)) => Err(error.into()),
        }
    }

    /// The end of the log, once it is durable to there.
    pub(super) fn settled_log_end(
        &mut self,
        io: &mut dyn Io,
    ) -> Result<(crate::ids::Term, Lsn), FatalReason> {
        let token = self.settle(io)?;
        Ok((self.wal.history().term_at(token.lsn()), token.lsn()))
    }

    pub(super) fn run_campaign(&mut self, io: &mut dyn Io, campaign: Campaign) -> Result<(), FatalReason> {
        let now = self.now;
        let addresses: Vec<String> = self.other_members().into_iter().map(|(_, address)| address).collect();
        let own_vote = campaign.own_vote();
        let Elect::Member(member) = &mut self.elect else { return Ok(()) };
        let timeout_ns = member.timer.timing().timeout_ns();
        member.canvass = Some(Canvass {
            campaign,
            deadline: Time(now.0 + timeout_ns),
            calls: Calls::new(addresses, now),
            refusal: None,
            patience_until: Time(now.0 + timeout_ns / PATIENCE_PART),
            refused_for_now: false,
        });
        if let Some(vote) = own_vote {
            let _own: MetaDurable = self.vote_for(vote)?;
        }
        self.place_calls(io)?;
        self.campaign_moves(io, None)
    }

    /// Makes a vote durable, in one record with its term.
    pub(super) fn vote_for(&mut self, vote: TermVote) -> Result<MetaDurable, FatalReason> {
        Ok(self.meta.update(self.disk.as_mut(), |meta| {
            meta.enter_term(vote.term);
            meta.vote = vote.vote;
        })?)
    }

    /// Asks one who is called what the campaign asks now.
    pub(super) fn ask_for_vote(&mut self, io: &mut dyn Io, conn: ConnId) {
        let Some(canvass) = self.member().and_then(|member| member.canvass.as_ref()) else { return };
        if let Some(vote) = canvass.campaign.own_vote() {
            let meta = self.meta.get();
            assert_eq!(
                (meta.term, meta.vote),
                (vote.term, vote.vote),
                "its own vote is durable before it asks"
            );
        }
        Vote { ballot: canvass.campaign.ballot(), address: self.config.own_address.clone() }
            .encode(io.output(conn).bytes_mut());
    }

    pub(in super::super) fn on_vote_reply(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let VoteReply(reply) = VoteReply::decode(body).map_err(malformed("VOTE_REPLY"))?;
        let own = self.node_id();
        let Elect::Member(member) = &mut self.elect else { return Ok(()) };
        let Some(canvass) = &mut member.canvass else { return Ok(()) };
        let Some((_, _, from)) = canvass.calls.open().find(|(_, open, _)| *open == conn) else {
            return fence("VOTE_REPLY that was not asked for");
        };
        assert_ne!(from, own, "a node does not call itself");
        let asked = canvass.campaign.ballot();
        if let Some(call) = canvass.calls.on(conn)
            && (reply.phase, reply.asked_term) == (asked.phase, asked.term)
        {
            call.answered = true;
            note_refusal(&mut canvass.refusal, &call.address, &reply);
            canvass.refused_for_now |= reply.verdict == Err(Refusal::HearsLeader) && reply.refuses_for_ms > 0;
        }
        let was_removed = reply.verdict == Err(Refusal::NotMember);
        let outcome = canvass.campaign.on_reply(from, &reply);
        if was_removed {
            member.told_removed = true;
            member.campaigns = 0;
        }
        Ok(self.campaign_moves(io, Some(outcome))?)
    }

    fn campaign_moves(&mut self, io: &mut dyn Io, outcome: Option<Outcome>) -> Result<(), FatalReason> {
        let Some(canvass) = self.member().and_then(|member| member.canvass.as_ref()) else { return Ok(()) };
        match outcome.unwrap_or(canvass.campaign.outcome()) {
            Outcome::Waiting => self.canvass_heard(io),
            Outcome::Won if canvass.campaign.own_vote().is_none() => self.stand(io),
            Outcome::Won => self.take_office(io),
            Outcome::Lost(Loss::HigherTerm(term)) => {
                self.campaign_over(io, &format!("a member knows term {term}"));
                self.enter_term(io, term, "a campaign met a higher term")
            }
            Outcome::Lost(Loss::BelowCommit(lsn)) => {
                self.heard_commit = self.heard_commit.max(lsn);
                self.campaign_over(io, &format!("a member has heard of a commit at LSN {lsn}"));
                Ok(())
            }
            Outcome::Lost(Loss::Refused) => {
                let why = self.refusal_text();
                self.campaign_over(io, &why);
                Ok(())
            }
        }
    }

    /// The pre-votes are won: it stands for the term, with its own vote first.
    fn stand(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Some(canvass) = self.member_mut().and_then(|member| member.canvass.as_mut()) else {
            return Ok(());
        };
        let vote = canvass.campaign.stand();
        canvass.calls.nothing_answered();
        (canvass.refusal, canvass.refused_for_now) = (None, false);
        let open: Vec<ConnId> = canvass.calls.open().map(|(_, conn, _)| conn).collect();
        let _own: MetaDurable = self.vote_for(vote)?;
        log_info!("election", "a majority would vote for this node: it stands for term {}", vote.term);
        open.into_iter().for_each(|conn| self.ask_for_vote(io, conn));
        self.campaign_moves(io, None)
    }

    /// Somebody answered or is not there. With nobody left to wait for, it is over.
    pub(super) fn canvass_heard(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Some(canvass) = self.member().and_then(|member| member.canvass.as_ref()) else { return Ok(()) };
        if canvass.campaign.outcome() == Outcome::Waiting && canvass.calls.all_heard() {
            let why = self.refusal_text();
            self.campaign_over(io, &why);
        }
        Ok(())
    }

    /// The campaign did not lead to office; the next one comes soon.
    fn campaign_over(&mut self, io: &mut dyn Io, why: &str) {
        let Some(ballot) = self.end_campaign(io) else { return };
        self.try_later();
        self.tell_campaign(format!("no majority for term {}: {why}; asks again", ballot.term));
    }

    /// Ends the campaign, if there is one, whatever has come of it.
    pub(super) fn end_campaign(
        &mut self,
        io: &mut dyn Io,
    ) -> Option<crate::replication::election::ballot::Ballot> {
        let canvass = self.member_mut()?.canvass.take()?;
        self.hang_up(io, &canvass.calls);
        Some(canvass.campaign.ballot())
    }

    fn try_later(&mut self) {
        let now = self.now;
        if let Elect::Member(member) = &mut self.elect {
            member.timer.campaign_over(now, &mut self.rng);
        }
    }

    fn refusal_text(&self) -> String {
        let canvass = self.member().and_then(|member| member.canvass.as_ref());
        let refusal = canvass.and_then(|canvass| canvass.refusal.clone());
        refusal.unwrap_or_else(|| "the others cannot be reached".to_owned())
    }

    /// The first campaign since a leader was heard is told; a node that is cut off goes on for long.
    fn tell_campaign(&self, what: String) {
        match self.member().map_or(0, |member| member.campaigns) {
            1 => log_info!("election", "{what}"),
            _ => log_debug!("election", "{what}"),
        }
    }

    fn tell_no_candidate(&mut self, why: NoCandidate) {
        let why = match why {
            NoCandidate::Incomplete => "it repairs, or its state is not complete or wrong".to_owned(),
            NoCandidate::BelowCommit(lsn) => {
                format!("LSN {lsn} is committed, and its log ends at {}", self.wal.last_lsn())
            }
        };
        self.tell_not_asking(&why);
    }

    fn tell_not_asking(&mut self, why: &str) {
        let what = format!("no leader heard, and this node does not campaign: {why}");
        let member = self.member_mut().expect("only members think of it");
        member.campaigns += 1;
        match member.campaigns {
            1 => log_warn!("election", "{what}"),
            _ => log_debug!("election", "{what}"),
        }
    }
}

fn note_refusal(known: &mut Option<String>, address: &str, reply: &BallotReply) {
    if let Err(refusal) = reply.verdict {
        *known = Some(format!("{address} says no, {}", refusal.text()));
    }
}
