//! Who votes is changed: by one member at a time, as a record of the log that counts from the moment it is appended.
//!
//! ```text
//! add     the node is dialled and gets the log, or a snapshot; it has no vote (it *learns*)
//!         it has caught up -> MEMBERS with it in the list; from here on its disk counts, and it votes
//!         committed by the new list -> the operator is answered
//! remove  its session ends -> MEMBERS without it; its disk counts no more
//!         committed by the new list -> the operator is answered
//! ```
//!
//! Invariants:
//! - *One at a time.* Nothing is changed while the change before is not committed: lists that are in use at the same
//!   time differ by one member, so their majorities share a node.
//! - *Not before this leader's own TERM record is committed.* Otherwise a leader of an earlier term may still have a
//!   list in its log that nobody knows of, and the two differ by more than one member.
//! - *The list is durable in the identity record before the record is in the log* (see `list`).
//! - *A leader is in its own list.* It is not removed in office: it hands over first, and its successor removes it. So
//!   it always counts its own disk and voice.
//! - *A node never gets the record that removes it.* It could be the only one besides a dead leader that has it, and
//!   then nobody could be elected: it would have the best log, and no right to lead. As it is, it goes by the old list
//!   until the members tell it, when it asks for their votes, that a committed list is without it.
//! - *Never below a quorum.* After the change a majority must be there of those who are heard now; so a newcomer that
//!   cannot be reached, or does not catch up, never has a vote that others have to wait for.

use super::super::leader::{Peer, PeerKind};
use super::super::{DialPurpose, FatalReason, Node};
use super::learner::Learning;
use crate::address::parse_address;
use crate::conn::{Close, ConnId, Io};
use crate::ids::Lsn;
use crate::limits::MEMBERS_MAX;
use crate::node::flush::ReserveOutcome;
use crate::replication::members::{Member as Listed, Members};
use crate::sabotage::{Variant, is};
use crate::time::Time;
use crate::wire::client::Status;
use crate::wire::{CMD_TYPES_MEMBERS, Effect, put_members, record_size};
use crate::{log_info, log_warn};

/// A change under way.
pub(super) struct Changing {
    pub address: String,
    operator: ConnId,
    pub stage: Stage,
}

pub(super) enum Stage {
    /// A node learns.
    Learning(Learning),
    /// The record is in the log, and not committed.
    Appended { lsn: Lsn, added: bool },
}

impl Node {
    /// An operator adds a member, or removes one.
    pub(in super::super) fn on_change_members(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        add: bool,
        address: &str,
    ) -> Result<(), FatalReason> {
        if !self.is_for_leader(io, conn, "the flag --peers of the leader says who follows it") {
            return Ok(());
        }
        let begun = match parse_address(address).map_err(|error| error.to_string()) {
            Ok(address) if add => self.begin_to_add(conn, address),
            Ok(address) => self.remove_member(io, conn, address)?,
            Err(why) => Err(why),
        };
        if let Err(why) = begun {
            self.reply(io, conn, Status::Refused, why.as_bytes());
        }
        Ok(())
    }

    fn begin_to_add(&mut self, conn: ConnId, address: String) -> Result<(), String> {
        self.may_change(None)?;
        let members = &self.meta.get().members;
        if let Some(member) = members.at_address(&address) {
            return Err(format!(
                "{address} is the address of a member (node {}). If its data directory is lost, remove it first: \
                 `kv_client replace {address} {address}` does both",
                member.node_id
            ));
        }
        if members.len() >= MEMBERS_MAX {
            return Err(format!("the cluster has {MEMBERS_MAX} members, which is the most there can be"));
        }
        let now = self.now;
        let Some(leader) = self.leader_mut() else { return Ok(()) };
        if leader.peers.iter().any(|peer| peer.kind != PeerKind::Gone && peer.address == address) {
            return Err(format!(
                "--replicas names {address}: take it out there first; a node votes, or it does not"
            ));
        }
        let (known, index) = (leader.peers.len(), leader.add_learner(&address, now));
        if index == known
            && let Some(trace) = &mut self.trace
        {
            trace.add_peer();
        }
        log_info!("election", "{address} is to be a member: it learns first");
        self.begin_change(conn, address, Stage::Learning(Learning::new(index, now)));
        Ok(())
    }

    fn remove_member(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        address: String,
    ) -> Result<Result<(), String>, FatalReason> {
        let own = self.node_id();
        let members = &self.meta.get().members;
        let found = members.at_address(&address).map(|member| member.node_id);
        let refusal = match found {
            None => {
                let all: Vec<&str> = members.iter().map(|member| member.address.as_str()).collect();
                Some(format!("{address} is no member: the members are {}", all.join(", ")))
            }
            Some(_) if members.len() == 1 => Some(format!("{address} is the only member")),
            Some(node_id) if node_id == own => Some(format!(
                "{address} leads: `kv_client transfer` moves leadership, and then the new leader can remove it"
            )),
            Some(_) => self.may_change(Some(&address)).err(),
        };
        let (None, Some(node_id)) = (refusal.as_ref(), found) else {
            return Ok(Err(refusal.unwrap_or_default()));
        };
        let left = members.iter().filter(|member| member.node_id != node_id).cloned().collect();
        let list = Members::new(left).expect("a part of a list is one");
        if let Some(why) = self.below_quorum(&list) {
            return Ok(Err(why));
        }
        let lsn = match self.append_members(io, &list)? {
            Ok(lsn) => lsn,
            Err(why) => return Ok(Err(why)),
        };
        self.send_away(io, &address);
        log_info!(
            "election",
            "{address} is removed by the record at LSN {lsn}: {} vote from here on",
            list.len()
        );
        self.begin_change(conn, address, Stage::Appended { lsn, added: false });
        Ok(Ok(()))
    }

    fn begin_change(&mut self, operator: ConnId, address: String, stage: Stage) {
        self.begin_command(operator);
        if let Some(member) = self.member_mut() {
            member.changing = Some(Changing { address, operator, stage });
        }
    }

    /// Whether a change may begin, of which one with this address is not asked.
    fn may_change(&self, but: Option<&str>) -> Result<(), String> {
        let (Some(member), Some(leader)) = (self.member(), self.leader()) else {
            return Err("this node does not lead".to_owned());
        };
        let lsn = self.meta.get().members.lsn();
        if member.handing_over.is_some() {
            return Err("leadership is about to move: try again at the next leader".to_owned());
        }
        if let Some(changing) = &member.changing {
            return Err(format!("the change of {} is under way: one at a time", changing.address));
        }
        if self.commit < leader.term_lsn && !is(Variant::ChangeBeforeFirstCommit) {
            return Err(format!(
                "this leader's first record (LSN {}) is not committed yet: try again",
                leader.term_lsn
            ));
        }
        if self.commit < lsn {
            return Err(format!("the change before, at LSN {lsn}, is not committed yet: try again"));
        }
        // One that this leader has not heard cannot say what it can apply, and is refused at its next hello if that is
        // too little: otherwise nobody could take the place of a dead member.
        let unable = leader.voters().find(|peer| {
            but != Some(peer.address.as_str())
                && peer.cmd_types != 0
                && peer.cmd_types & CMD_TYPES_MEMBERS == 0
        });
        match unable {
            Some(peer) => {
                Err(format!("{} is of a version without changes of members: update it", peer.address))
            }
            None => Ok(()),
        }
    }

    /// Why too few of these members are there to be a majority, if that is so.
    pub(super) fn below_quorum(&self, list: &Members) -> Option<String> {
        let heard_since = Time(self.clock.now().0.saturating_sub(self.election_timing().timeout_ns()));
        let leader = self.leader()?;
        let is_heard = |member: &Listed| {
            let index = leader
                .peers
                .iter()
                .position(|peer| peer.kind != PeerKind::Gone && peer.node_id == Some(member.node_id));
            let echoed = index.and_then(|index| leader.quorum.as_ref()?.echoed_sent_at(index));
            member.node_id == self.node_id() || echoed.is_some_and(|sent_at| sent_at >= heard_since)
        };
        let (heard, silent): (Vec<&Listed>, Vec<&Listed>) = list.iter().partition(|member| is_heard(member));
        (heard.len() < list.majority()).then(|| {
            let silent: Vec<&str> = silent.iter().map(|member| member.address.as_str()).collect();
            format!(
                "of the {} members that there would be {} are heard, and {} are a majority; bring back {} first",
                list.len(),
                heard.len(),
                list.majority(),
                silent.join(", ")
            )
        })
    }

    /// Appends the record with this list, which counts from now on. `Err`: there is no room, and nothing was changed.
    pub(super) fn append_members(
        &mut self,
        io: &mut dyn Io,
        list: &Members,
    ) -> Result<Result<Lsn, String>, FatalReason> {
        let mut bytes = Vec::new();
        put_members(&mut bytes, list);
        let effect = Effect::Members { list: &bytes };
        match self.reserve(io, record_size(&effect)) {
            Ok(()) => {}
            Err(ReserveOutcome::Fatal(reason)) => return Err(reason),
            Err(ReserveOutcome::NoRoom(error)) => {
                return Ok(Err(format!("no room for a log segment in {}: {error}", self.disk.describe())));
            }
        }
        let lsn = self.wal.last_lsn().next();
        self.note_members(lsn, list.clone())?;
        let appended = self.append(effect);
        assert_eq!(appended, lsn, "the record is where the list says it is");
        Ok(Ok(lsn))
    }

    /// Ends what this leader has to do with the follower at this address.
    fn send_away(&mut self, io: &mut dyn Io, address: &str) {
        let Some(leader) = self.leader() else { return };
        let present = |peer: &Peer| {
            peer.kind != PeerKind::Gone && peer.kind != PeerKind::Replica && peer.address == address
        };
        let Some(index) = leader.peers.iter().position(present) else { return };
        self.keep_nothing_for(index);
        self.dials.retain(|(_, purpose)| *purpose != DialPurpose::Session(index));
        let Some(leader) = self.leader_mut() else { return };
        let conn = match is(Variant::RemovedMemberCampaigns) && leader.peers[index].votes() {
            true => {
                leader.peers[index].kind = PeerKind::Replica;
                None
            }
            false => leader.peers[index].send_away(),
        };
        if let Some(quorum) = &mut leader.quorum {
            quorum.set_vote(index, false);
        }
        if let Some(conn) = conn {
            self.close(io, conn, Close::Now);
        }
    }

    /// The learner is not added. Nothing was changed.
    pub(super) fn change_fails(&mut self, io: &mut dyn Io, why: &str) {
        let Some(changing) = self.member_mut().and_then(|member| member.changing.take()) else { return };
        self.send_away(io, &changing.address);
        log_warn!("election", "{} is not added: {why}", changing.address);
        let message = format!("{} was not added, and nothing was changed: {why}", changing.address);
        self.finish_command(io, changing.operator, Status::Refused, &message);
    }

    /// A leader has applied a record with a list of members: the operator who asked for it is answered.
    pub(in super::super) fn members_applied(&mut self, io: &mut dyn Io, applied: Lsn) {
        let changing = self.member_mut().and_then(|member| {
            member
                .changing
                .take_if(|changing| matches!(changing.stage, Stage::Appended { lsn, .. } if lsn == applied))
        });
        let Some(Changing { address, operator, stage: Stage::Appended { lsn, added } }) = changing else {
            return;
        };
        let mut members: Vec<String> =
            self.meta.get().members.iter().map(|member| member.address.clone()).collect();
        members.sort_unstable();
        let what = if added { "is a member" } else { "is no member any more" };
        let message =
            format!("{address} {what}, by the record at LSN {lsn}; members: {}", members.join(", "));
        log_info!("election", "{message}");
        let document = serde_json::json!({ "members": members, "lsn": lsn.0, "message": message });
        self.finish_command(io, operator, Status::Ok, &document.to_string());
    }

    /// This node stops leading: what was not appended is not changed, and what was is as uncertain as a write.
    pub(super) fn change_ends(&mut self, io: &mut dyn Io) {
        let Some(changing) = self.member_mut().and_then(|member| member.changing.take()) else { return };
        let (status, what) = match changing.stage {
            Stage::Learning(_) => (Status::Refused, "nothing was changed; ask the next leader".to_owned()),
            Stage::Appended { lsn, .. } => (
                Status::OutcomeUnknown,
                format!("the record at LSN {lsn} may survive or not; `kv_client member list` shows it"),
            ),
        };
        let message = format!("this node stopped leading while {} was changed: {what}", changing.address);
        self.finish_command(io, changing.operator, status, &message);
    }

    /// When [`Node::change_step`] has something to do although nothing arrives.
    pub(super) fn change_deadline(&self) -> Option<Time> {
        match &self.member()?.changing.as_ref()?.stage {
            Stage::Learning(learning) => Some(learning.silent_at()),
            Stage::Appended { .. } => None,
        }
    }

    /// The address of the node that learns; or of the one that is removed.
    pub(super) fn changing_text(&self) -> Option<String> {
        let changing = self.member()?.changing.as_ref()?;
        Some(match &changing.stage {
            Stage::Learning(learning) => {
                format!("{} learns: it has the log up to LSN {}", changing.address, learning.reached())
            }
            Stage::Appended { lsn, added: true } => {
                format!("{} is added, once LSN {lsn} is committed", changing.address)
            }
            Stage::Appended { lsn, added: false } => {
                format!("{} is removed, once LSN {lsn} is committed", changing.address)
            }
        })
    }
}
