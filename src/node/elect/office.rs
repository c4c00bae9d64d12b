//! Office: a campaign that was won makes a leader; a majority that is not heard any more, a disk that hangs, or a
//! higher term ends that.
//!
//! A new leader's first record is its TERM record, and what is committed by count is committed through it. Its
//! sessions are those of any leader, to every other member.
//!
//! One that steps down closes its sessions and follows whoever is elected. It waits for no disk. Its unanswered
//! writes may survive or not, and are answered so; what is read of it, it does not answer.

use super::super::follower::Follower;
use super::super::leader::{Leader, Link, Peer, PeerKind};
use super::super::{FatalReason, Node, Role};
use super::Elect;
use crate::conn::{Close, ConnId, Io};
use crate::ids::{NodeId, Term};
use crate::replication::election::quorum_clock::QuorumClock;
use crate::time::Time;
use crate::trace::Trace;
use crate::{log_info, log_warn};

impl Node {
    /// The votes of a majority are there: this node leads in the term of its vote.
    pub(super) fn take_office(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Some(canvass) = self.member_mut().and_then(|member| member.canvass.take()) else { return Ok(()) };
        self.hang_up(io, &canvass.calls);
        let (ballot, votes) = (canvass.campaign.ballot(), canvass.campaign.votes());
        let meta = self.meta.get();
        assert_eq!((meta.term, meta.vote), (ballot.term, meta.node_id), "it leads in the term of its vote");
        assert_eq!(self.wal.durable().lsn(), ballot.last_lsn, "the log is the one that was voted for");
        assert_eq!(self.wal.last_lsn(), ballot.last_lsn, "a candidate's log does not grow");
        let own_address = self.config.own_address.clone();
        self.meta.update(self.disk.as_mut(), |meta| {
            meta.leader_id = meta.node_id;
            meta.leader_address = own_address;
        })?;
        let others = self.other_members();
        let addresses: Vec<String> = others.iter().map(|(_, address)| address.clone()).collect();
        let next = self.wal.last_lsn().next();
        // After the votes, which may have taken long: what is judged from here on begins here.
        let now = self.clock.now();
        let mut leader = Leader::new(addresses, &self.config, self.now, next);
        for (peer, (node_id, _)) in leader.peers.iter_mut().zip(&others) {
            peer.node_id = Some(*node_id);
        }
        leader.add_replicas(&self.config.election.replicas, self.now);
        leader.quorum = Some(QuorumClock::new(self.election_timing(), now, others.len()));
        log_info!(
            "election",
            "elected: leads in term {} from LSN {next} on, with {votes} of {} votes",
            ballot.term,
            others.len() + 1
        );
        self.role = Role::Leader(Box::new(leader));
        let followers = others.len() + self.config.election.replicas.len();
        self.trace = self.config.receipts.then(|| Trace::new(followers, next));
        if let Some(member) = self.member_mut() {
            member.campaigns = 0;
        }
        self.note_unapplied()?;
        self.append_term_record(ballot.term)
    }

    /// The first thing in a turn, whatever it brings.
    pub(in super::super) fn clock_first(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Elect::Member(member) = &mut self.elect else { return Ok(()) };
        if std::mem::replace(&mut member.clock_seen, true) {
            return Ok(());
        }
        let Role::Leader(leader) = &self.role else { return Ok(()) };
        let now = self.clock.now();
        if leader.quorum.as_ref().is_some_and(|quorum| !quorum.has_quorum(now)) {
            let ms = self.config.election.timeout_ms;
            self.leave_office(io, &format!("no majority has answered this leader for {ms} ms"));
        } else if let Some(ms) = self.flush_older_than_timeout(now) {
            self.leave_office(io, &format!("a flush of its log has taken {ms} ms"));
        } else if self.state_is_wrong() {
            self.leave_office(io, "its state is wrong, and it answers nothing from it");
        }
        Ok(())
    }

    /// Whether this node leads, and a majority has heard it.
    pub(super) fn leads_with_quorum(&self) -> bool {
        let quorum = self.leader().and_then(|leader| leader.quorum.as_ref());
        quorum.is_some_and(|quorum| quorum.has_quorum(self.clock.now()))
    }

    /// For how long the flush under way has lasted, if that is longer than an election timeout.
    fn flush_older_than_timeout(&self, now: Time) -> Option<u64> {
        let ms = self.flush_age_ms(now)?;
        (ms >= self.config.election.timeout_ms).then_some(ms)
    }

    /// When a leader looks at the clock at the latest.
    pub(super) fn office_deadline(&self) -> Option<Time> {
        let quorum = self.leader()?.quorum.as_ref()?;
        let flush = self.flush_began().map(|began| began.after_ms(self.config.election.timeout_ms));
        let at_once = self.state_is_wrong().then_some(self.now);
        [Some(quorum.steps_down_at(self.now)), flush, at_once].into_iter().flatten().min()
    }

    /// Stops leading, in the same term or before a higher one is entered.
    pub(in super::super) fn leave_office(&mut self, io: &mut dyn Io, why: &str) {
        self.leave_office_but(io, why, None);
    }

    /// The same; what is in the buffer of `told` still leaves.
    pub(super) fn leave_office_but(&mut self, io: &mut dyn Io, why: &str, told: Option<ConnId>) {
        for index in 0..self.leader().map_or(0, |leader| leader.peers.len()) {
            self.keep_nothing_for(index);
        }
        self.slowness = None;
        self.change_ends(io);
        let Role::Leader(leader) = &self.role else { return };
        let conns = leader.connections();
        for conn in conns {
            self.close(io, conn, if told == Some(conn) { Close::AfterOutput } else { Close::Now });
        }
        self.dials.retain(|(_, purpose)| !matches!(purpose, super::super::DialPurpose::Session(_)));
        self.role = Role::Follower(Follower::default());
        let now = self.now;
        if let Elect::Member(member) = &mut self.elect {
            member.timer.stand_back(now, &mut self.rng);
        }
        self.release_clients(
            io,
            "this node stopped leading before the write was committed; it may be in the next \
                                  leader's log or not",
        );
        log_warn!(
            "election",
            "stopped leading in term {}: {why}; log ends at LSN {}, committed are {}. It follows whoever is elected",
            self.term(),
            self.wal.last_lsn(),
            self.commit
        );
    }

    /// What belongs to a lower term ends.
    pub(super) fn end_what_was_before(
        &mut self,
        io: &mut dyn Io,
        term: Term,
        why: &str,
    ) -> Result<(), FatalReason> {
        if term > self.term() {
            self.leave_office(io, &format!("term {term} has begun, {why}"));
            self.end_campaign(io);
            self.drop_session(io, why);
        }
        Ok(())
    }

    /// Enters a higher term, durably, with nobody's vote given and no leader known in it.
    pub(in super::super) fn enter_term(
        &mut self,
        io: &mut dyn Io,
        term: Term,
        why: &str,
    ) -> Result<(), FatalReason> {
        if term <= self.term() {
            return Ok(());
        }
        self.end_what_was_before(io, term, why)?;
        self.meta.update(self.disk.as_mut(), |meta| meta.enter_term(term))?;
        Ok(())
    }

    /// A member that this leader has no connection to has just said hello: it is there, and dialled at once.
    pub(in super::super) fn dial_soon(&mut self, node_id: NodeId) {
        let now = self.now;
        let Some(leader) = self.leader_mut().filter(|leader| leader.quorum.is_some()) else { return };
        let is_it = |peer: &&mut Peer| peer.node_id == Some(node_id) && peer.kind != PeerKind::Gone;
        for peer in leader.peers.iter_mut().filter(is_it) {
            if let Link::Down { retry_at, .. } = &mut peer.link {
                *retry_at = now.min(*retry_at);
            }
        }
    }
}
