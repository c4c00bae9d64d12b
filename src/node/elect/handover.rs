//! Handing over: a leader that is about to end (SIGTERM), or is told to (`kv_client transfer [ADDR]`), moves its office
//! to a follower that holds everything, within a few milliseconds instead of an election timeout.
//!
//! ```text
//! leader    takes no more writes (NOT_LEADER: nothing was written), and waits until those it has taken are answered
//!           and the follower holds the last record
//!           gives its lease up, for good in this term; sends HAND_OVER on the session; leaves office
//! follower  stands for the next term at once: its votes skip the refusal that a lease needs
//! leader    votes like anybody, follows whoever leads, and then answers its operator, or ends
//! ```
//!
//! The order is the promise. The lease is gone, and the office with it, before HAND_OVER can leave: whoever is elected
//! by it commits nothing that this node could still hide from a reader. If the follower is lost on the way, the others
//! elect somebody after their timeouts, and nothing else is different. A follower that does not catch up in time keeps
//! the leader in office, and it takes writes again.

use super::super::fatal::malformed;
use super::super::leader::Link;
use super::super::{FatalReason, Node, Stop};
use crate::address::parse_address;
use crate::conn::{ConnId, Io};
use crate::limits::HAND_OVER_DEADLINE_MS;
use crate::replication::election::campaign::Campaign;
use crate::replication::election::voter::{may_campaign, may_take_over};
use crate::sabotage::{Variant, is};
use crate::time::Time;
use crate::wire::client::Status;
use crate::wire::peer::HandOver;
use crate::{log_info, log_warn};

/// A hand-over under way.
pub(super) struct HandingOver {
    /// Which follower; by its place among the others.
    to: usize,
    address: String,
    /// Who is told how it ended; nobody, if the node ends.
    operator: Option<ConnId>,
    /// The next step comes by then.
    deadline: Time,
    /// HAND_OVER has left, and this node leads no more.
    left: bool,
}

impl Node {
    /// An operator moves leadership, to the follower at this address, or (empty) to the one that holds most.
    pub(in super::super) fn on_transfer(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        address: &str,
    ) -> Result<(), FatalReason> {
        if !self.is_for_leader(io, conn, "`kv_client promote` on a follower makes it lead") {
            return Ok(());
        }
        match self.successor(address) {
            Ok(to) => {
                self.begin_command(conn);
                self.begin_hand_over(to, Some(conn));
            }
            Err(why) => self.reply(io, conn, Status::Refused, why.as_bytes()),
        }
        Ok(())
    }

    /// The follower to hand over to, or why there is none.
    fn successor(&self, address: &str) -> Result<usize, String> {
        if self.member().is_none_or(|member| member.handing_over.is_some()) {
            return Err("a hand-over is under way already".to_owned());
        }
        if let Some(what) = self.changing_text() {
            return Err(format!("a change of members is under way: {what}"));
        }
        let Some(leader) = self.leader() else { return Err("this node does not lead".to_owned()) };
        let streams = |index: &usize| {
            let peer = &leader.peers[*index];
            peer.votes() && matches!(peer.link, Link::Streaming(_))
        };
        let match_lsn = |index: &usize| leader.peers[*index].progress.match_lsn();
        if address.is_empty() {
            let best = (0..leader.peers.len()).filter(streams).max_by_key(match_lsn);
            return best.ok_or_else(|| "no follower is connected that could lead".to_owned());
        }
        let address = parse_address(address).map_err(|error| error.to_string())?;
        let Some(index) = leader.peers.iter().position(|peer| peer.votes() && peer.address == address) else {
            let others: Vec<&str> = leader.voters().map(|peer| peer.address.as_str()).collect();
            return Err(format!("{address} is none of the other members: {}", others.join(", ")));
        };
        match streams(&index) {
            true => Ok(index),
            false => Err(format!("{address} is not connected: `kv_client status` shows why")),
        }
    }

    fn begin_hand_over(&mut self, to: usize, operator: Option<ConnId>) {
        let deadline = self.now.after_ms(HAND_OVER_DEADLINE_MS);
        let Some(leader) = self.leader() else { return };
        let address = leader.peers[to].address.clone();
        log_info!(
            "election",
            "hands over to {address}: takes no more writes, and waits until it holds the last one"
        );
        if let Some(member) = self.member_mut() {
            member.handing_over = Some(HandingOver { to, address, operator, deadline, left: false });
        }
    }

    /// Whether this leader takes no more writes, because another is about to lead.
    pub(in super::super) fn hands_over(&self) -> bool {
        self.member().is_some_and(|member| member.handing_over.is_some())
    }

    /// A leader that was asked to end hands over first, if there is anybody.
    pub(in super::super) fn hand_over_before_end(&mut self) {
        match self.successor("") {
            Ok(to) => self.begin_hand_over(to, None),
            Err(why) if self.leader().is_some() && self.is_member() => {
                log_info!("election", "ends without handing over: {why}");
            }
            Err(_) => {}
        }
    }

    /// Goes on as soon as it can, in every turn.
    pub(super) fn hand_over_step(&mut self, io: &mut dyn Io) {
        let Some(handing) = self.member().and_then(|member| member.handing_over.as_ref()) else { return };
        let (is_late, left, to) = (self.now >= handing.deadline, handing.left, handing.to);
        if left {
            if self.follows_somebody() {
                self.hand_over_ends(io, Status::Ok);
            } else if is_late || self.leader().is_some() {
                self.hand_over_ends(io, Status::OutcomeUnknown);
            }
        } else if self.leader().is_none() {
            self.hand_over_ends(io, Status::OutcomeUnknown);
        } else if self.holds_everything(to) {
            self.leave_office_to(io, to);
        } else if is_late {
            self.hand_over_ends(io, Status::Refused);
        }
    }

    /// Whether all writes are answered, and that follower has the whole log on its disk.
    fn holds_everything(&self, to: usize) -> bool {
        let Some(leader) = self.leader() else { return false };
        let peer = &leader.peers[to];
        let streams = matches!(&peer.link, Link::Streaming(_));
        streams && leader.writers.is_empty() && peer.progress.match_lsn() == self.wal.last_lsn()
    }

    fn leave_office_to(&mut self, io: &mut dyn Io, to: usize) {
        let (term, last_lsn) = (self.term(), self.wal.last_lsn());
        let Some(leader) = self.leader_mut() else { return };
        if let Some(quorum) = &mut leader.quorum {
            quorum.give_up_lease();
        }
        let Some(conn) = leader.peers[to].conn() else { return };
        HandOver { term, last_lsn }.encode(io.output(conn).bytes_mut());
        let deadline = self.now.after_ms(HAND_OVER_DEADLINE_MS);
        let Some(handing) = self.member_mut().and_then(|member| member.handing_over.as_mut()) else { return };
        (handing.left, handing.deadline) = (true, deadline);
        if is(Variant::LeaseKeptDuringTransfer) {
            return;
        }
        let why =
            format!("it hands over to {}, which holds everything up to LSN {last_lsn}", handing.address);
        self.leave_office_but(io, &why, Some(conn));
    }

    fn hand_over_ends(&mut self, io: &mut dyn Io, status: Status) {
        let Some(handing) = self.member_mut().and_then(|member| member.handing_over.take()) else { return };
        let (address, term) = (handing.address, self.term());
        let message = match status {
            Status::Ok => format!("{} leads in term {term}", self.meta.get().leader_address),
            Status::Refused => format!(
                "{address} did not reach the end of the log in {HAND_OVER_DEADLINE_MS} ms: this node leads on, and \
                 takes writes again"
            ),
            _ if handing.left => format!(
                "handed over to {address}, and no leader has called since: the members elect one after their timeout"
            ),
            _ => "this node stopped leading before it could hand over".to_owned(),
        };
        match status {
            Status::Ok => log_info!("election", "handed over: {message}"),
            _ => log_warn!("election", "hand-over: {message}"),
        }
        let Some(operator) = handing.operator else { return };
        let leader = self.meta.get().leader_address.clone();
        let document = match status {
            Status::Ok => serde_json::json!({
                "leader": leader,
                "term": term.as_u64(),
                "term_text": term.to_string(),
                "message": message,
            })
            .to_string(),
            _ => message,
        };
        self.finish_command(io, operator, status, &document);
    }

    pub(super) fn hand_over_deadline(&self) -> Option<Time> {
        self.member()?.handing_over.as_ref().map(|handing| handing.deadline)
    }

    /// The leader asks this node to lead.
    pub(in super::super) fn on_hand_over(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let HandOver { term: given_up, last_lsn } = HandOver::decode(body).map_err(malformed("HAND_OVER"))?;
        let term = self.term();
        let is_live = self.session_mut(conn).is_some_and(|session| session.term() == term);
        if !is_live || !self.is_member() || !may_take_over(given_up, term) {
            self.counters.dead_session_frames += 1;
            return Ok(());
        }
        self.end_campaign(io);
        self.drop_session(io, "its leader hands over to this node");
        let log_end = self.settled_log_end(io)?;
        let incomplete = self.repair_due().is_some() || !self.is_complete();
        let fit = may_campaign(log_end.1, self.heard_commit(), incomplete).is_ok()
            && log_end.1 >= last_lsn
            && self.has_vote();
        let has_room = self.no_room_to_lead()?.is_none();
        if !fit || !has_room || self.shutdown.is_some() {
            log_warn!(
                "election",
                "was asked to lead, and does not: its log ends at LSN {}, that of the leader at {last_lsn}, or it \
                 ends, repairs, has no room, or no vote",
                log_end.1
            );
            return Ok(());
        }
        let own = self.node_id();
        let campaign = Campaign::take_over(&self.meta.get().members, own, term, log_end);
        let campaign = campaign.ok_or(FatalReason::TermsExhausted)?;
        log_info!(
            "election",
            "the leader hands over to this node: it stands for term {}",
            campaign.ballot().term
        );
        Ok(self.run_campaign(io, campaign)?)
    }
}
