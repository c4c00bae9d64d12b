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
//! - *The list is durable in the identity record before the record is in the log.* A restart that finds the list and not
//!   the record goes by the one before (see `Membership::at`).
//! - *A leader is in its own list.* It is not removed in office: it hands over first, and its successor removes it. So
//!   it always counts its own disk and voice.
//! - *A node never gets the record that removes it.* It could be the only one besides a dead leader that has it, and
//!   then nobody could be elected: it would have the best log, and no right to lead. As it is, it goes by the old list
//!   until the members tell it, when it asks for their votes, that a committed list is without it.
//! - *Never below a quorum.* After the change a majority must be there of those who are heard now; so a newcomer that
//!   cannot be reached, or does not catch up, never has a vote that others have to wait for.

use super::super::leader::{Leader, Link, PeerKind};
use super::super::{DialPurpose, FatalReason, Node};
use crate::address::parse_address;
use crate::conn::{Close, ConnId, Io};
use crate::ids::Lsn;
use crate::limits::{LEARNER_REACHED_MS, LEARNER_SILENCE_MS, MEMBERS_MAX};
use crate::node::flush::ReserveOutcome;
use crate::replication::members::{Member as Listed, Members};
use crate::sabotage::{Variant, is};
use crate::time::Time;
use crate::wire::client::Status;
use crate::wire::{CMD_TYPES_MEMBERS, Effect, put_members, record_size};
use crate::{log_info, log_warn};

/// A change under way.
pub(super) struct Changing {
    address: String,
    operator: ConnId,
    stage: Stage,
}

enum Stage {
    /// A node learns.
    Learning(Learning),
    /// The record is in the log, and not committed.
    Appended { lsn: Lsn, added: bool },
}

struct Learning {
    /// Its place among the followers.
    index: usize,
    /// How much of the log, or of a snapshot, it had when it last got ahead, and when that was.
    reached: (Lsn, u64),
    reached_at: Time,
    was_reached: bool,
    /// The end of the log when it was first fed from memory. Once it has that it has caught up.
    target: Option<Lsn>,
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
        if !self.wants_elections() {
            let why = "roles are fixed here: the flag --peers of the leader says who follows it";
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        if self.leader().is_none() {
            let leader = self.leader_address_for_clients();
            self.reply(io, conn, Status::NotLeader, leader.as_bytes());
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
            return Err(format!("--replicas names {address}: take it out there first; a node votes, or it does not"));
        }
        let (known, index) = (leader.peers.len(), leader.add_learner(&address, now));
        if index == known && let Some(trace) = &mut self.trace {
            trace.add_peer();
        }
        log_info!("election", "{address} is to be a member: it learns first");
        let learning = Learning {
            index,
            reached: (Lsn::ZERO, 0),
            reached_at: now,
            was_reached: false,
            target: None,
        };
        self.begin_change(conn, address, Stage::Learning(learning));
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
        let (None, Some(node_id)) = (refusal.as_ref(), found) else { return Ok(Err(refusal.unwrap_or_default())) };
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
        log_info!("election", "{address} is removed by the record at LSN {lsn}: {} vote from here on", list.len());
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
        // One that this leader has not heard cannot say what it can apply. It is refused at its next hello if it cannot:
        // otherwise nobody could take the place of a dead member.
        let unable = leader.voters().find(|peer| {
            but != Some(peer.address.as_str()) && peer.cmd_types != 0 && peer.cmd_types & CMD_TYPES_MEMBERS == 0
        });
        match unable {
            Some(peer) => Err(format!("{} is of a version without changes of members: update it", peer.address)),
            None => Ok(()),
        }
    }

    /// Why too few of these members are there to be a majority, if that is so.
    fn below_quorum(&self, list: &Members) -> Option<String> {
        let heard_since = Time(self.clock.now().0.saturating_sub(self.election_timing().timeout_ns()));
        let leader = self.leader()?;
        let is_heard = |member: &Listed| {
            let index = leader.peers.iter().position(|peer| {
                peer.kind != PeerKind::Gone && peer.node_id == Some(member.node_id)
            });
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
    fn append_members(
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

    /// A record of the log with a list of members is about to be appended: the list counts, durably, before it is.
    pub(in super::super) fn note_members(&mut self, lsn: Lsn, list: Members) -> Result<(), FatalReason> {
        let meta = self.meta.get();
        // A read replica goes by no list. One that is known is read again behind a snapshot, or by a node that learns.
        if meta.members.is_empty() || lsn <= meta.members.lsn() {
            return Ok(());
        }
        let (before, own) = (meta.members.clone(), meta.node_id);
        let next = before.changed(lsn, list);
        let addresses: Vec<&str> = next.iter().map(|member| member.address.as_str()).collect();
        log_info!("election", "the members are, from LSN {lsn} on: {}", addresses.join(", "));
        match (before.contains(own), next.contains(own)) {
            (false, true) => log_info!("election", "this node is a member now, and votes"),
            (true, false) => log_warn!("election", "this node is no member any more"),
            _ => {}
        }
        self.meta.update(self.disk.as_mut(), |meta| meta.members = next)?;
        Ok(())
    }

    /// The log that a restart found may end in front of the record that brought the list.
    pub(super) fn forget_unlogged_members(&mut self) -> Result<(), FatalReason> {
        let members = self.meta.get().members.at(self.wal.last_lsn());
        if members != self.meta.get().members {
            log_info!(
                "election",
                "the change of members at LSN {} never was in the log: the list of LSN {} counts",
                self.meta.get().members.lsn(),
                members.lsn()
            );
            self.meta.update(self.disk.as_mut(), |meta| meta.members = members)?;
        }
        Ok(())
    }

    /// Goes on with a node that learns, in every turn.
    pub(super) fn change_step(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let now = self.now;
        let Some(Changing { address, stage: Stage::Learning(learning), .. }) =
            self.member().and_then(|member| member.changing.as_ref())
        else {
            return Ok(());
        };
        let Some(leader) = self.leader() else { return Ok(()) };
        let (index, address) = (learning.index, address.clone());
        let silent_at = learning.silent_at();
        let (has, refused) = look_at(leader, index);
        if let Some(why) = refused {
            return Ok(self.change_fails(io, &why));
        }
        if now >= silent_at && has <= learning.reached {
            let last_error = leader.peers[index].last_error.clone().unwrap_or_default();
            let why = match learning.was_reached {
                true => format!("{address} has got no further for {LEARNER_SILENCE_MS} ms: {last_error}"),
                false => format!("{address} cannot be reached: {last_error}"),
            };
            return Ok(self.change_fails(io, &why));
        }
        let last = self.wal.last_lsn();
        if self.has_caught_up(index, last, has) {
            return self.promote_learner(io, index);
        }
        Ok(())
    }

    /// Whether the learner has what the log held when it was first fed from memory. Notes how far it is.
    fn has_caught_up(&mut self, index: usize, last: Lsn, has: (Lsn, u64)) -> bool {
        let now = self.now;
        let Some(leader) = self.leader() else { return false };
        let up_to_date = matches!(&leader.peers[index].link, Link::Streaming(stream) if stream.behind.is_none());
        let streams = matches!(&leader.peers[index].link, Link::Streaming(_) | Link::Sending(_));
        let match_lsn = leader.peers[index].progress.match_lsn();
        let echoes = leader.quorum.as_ref().and_then(|quorum| quorum.echoed_sent_at(index));
        let half_timeout_ns = self.election_timing().timeout_ns() / 2;
        let is_heard = echoes.is_some_and(|sent_at| now.since(sent_at) < half_timeout_ns);
        let changing = self.member_mut().and_then(|member| member.changing.as_mut());
        let Some(Changing { stage: Stage::Learning(learning), .. }) = changing else { return false };
        if has > learning.reached || (streams && !learning.was_reached) {
            (learning.reached, learning.reached_at) = (has, now);
            learning.was_reached = true;
        }
        learning.target = if up_to_date { learning.target.or(Some(last)) } else { None };
        is_heard && learning.target.is_some_and(|target| match_lsn >= target)
    }

    fn promote_learner(&mut self, io: &mut dyn Io, index: usize) -> Result<(), FatalReason> {
        let Some(leader) = self.leader() else { return Ok(()) };
        let peer = &leader.peers[index];
        let node_id = peer.node_id.expect("who streams has said hello");
        let listed = Listed { node_id, address: peer.address.clone() };
        let list = Members::new(self.meta.get().members.iter().cloned().chain([listed]).collect());
        let Some(list) = list else {
            return Ok(self.change_fails(io, &format!("node {node_id} is a member already, at another address")));
        };
        if let Some(why) = self.below_quorum(&list) {
            return Ok(self.change_fails(io, &why));
        }
        let lsn = match self.append_members(io, &list)? {
            Ok(lsn) => lsn,
            Err(why) => return Ok(self.change_fails(io, &why)),
        };
        // No client waits for the record: it has no receipt.
        self.frames.first_lsn = lsn.next();
        let Some(leader) = self.leader_mut() else { return Ok(()) };
        leader.peers[index].kind = PeerKind::Member;
        if let Some(quorum) = &mut leader.quorum {
            quorum.set_vote(index, true);
        }
        if let Some(changing) = self.member_mut().and_then(|member| member.changing.as_mut()) {
            log_info!(
                "election",
                "{} has caught up and is added by the record at LSN {lsn}: {} vote from here on",
                changing.address,
                list.len()
            );
            changing.stage = Stage::Appended { lsn, added: true };
        }
        Ok(())
    }

    /// Ends what this leader has to do with the follower at this address.
    fn send_away(&mut self, io: &mut dyn Io, address: &str) {
        let Some(leader) = self.leader() else { return };
        let present = |peer: &super::super::leader::Peer| {
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
    fn change_fails(&mut self, io: &mut dyn Io, why: &str) {
        let Some(changing) = self.member_mut().and_then(|member| member.changing.take()) else { return };
        self.send_away(io, &changing.address);
        log_warn!("election", "{} is not added: {why}", changing.address);
        let message = format!("{} was not added, and nothing was changed: {why}", changing.address);
        self.finish_command(io, changing.operator, Status::Refused, &message);
    }

    /// A leader has applied a record with a list of members: the operator who asked for it is answered.
    pub(in super::super) fn members_applied(&mut self, io: &mut dyn Io, applied: Lsn) {
        let changing = self.member_mut().and_then(|member| {
            member.changing.take_if(|changing| matches!(changing.stage, Stage::Appended { lsn, .. } if lsn == applied))
        });
        let Some(Changing { address, operator, stage: Stage::Appended { lsn, added } }) = changing else { return };
        let members: Vec<String> =
            self.meta.get().members.iter().map(|member| member.address.clone()).collect();
        let what = if added { "is a member" } else { "is no member any more" };
        let message = format!("{address} {what}, by the record at LSN {lsn}; members: {}", members.join(", "));
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
                format!("{} learns: it has the log up to LSN {}", changing.address, learning.reached.0)
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

impl Learning {
    fn silent_at(&self) -> Time {
        self.reached_at.after_ms(if self.was_reached { LEARNER_SILENCE_MS } else { LEARNER_REACHED_MS })
    }
}

/// How much a follower has, of the log and of a snapshot; and why it refuses, if it does.
fn look_at(leader: &Leader, index: usize) -> ((Lsn, u64), Option<String>) {
    let peer = &leader.peers[index];
    let match_lsn = peer.progress.match_lsn();
    match &peer.link {
        Link::Down { refused: true, .. } => ((match_lsn, 0), peer.last_error.clone()),
        Link::Sending(transfer) => ((match_lsn, transfer.acked), None),
        _ => ((match_lsn, 0), None),
    }
}
