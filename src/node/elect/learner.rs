//! A node that is to be a member: it gets the log, or a snapshot, without a vote, until it has caught up.
//!
//! It has caught up when it is fed from memory, holds what the log held when that began, and is heard now: from then
//! on it is as far behind as any follower is. Until then nobody waits for its disk. One that cannot be reached,
//! refuses, or gets no further is given up, and nothing was changed.

use super::super::leader::{Leader, Link, PeerKind};
use super::super::{FatalReason, Node};
use super::change::{Changing, Stage};
use crate::conn::Io;
use crate::ids::Lsn;
use crate::limits::{LEARNER_REACHED_MS, LEARNER_SILENCE_MS};
use crate::log_info;
use crate::replication::members::{Member as Listed, Members};
use crate::time::Time;

/// A node that learns, as its leader sees it.
pub(super) struct Learning {
    /// Its place among the followers.
    index: usize,
    /// How much of the log, or of a snapshot, it had when it last got ahead, and when that was.
    reached: (Lsn, u64),
    reached_at: Time,
    was_reached: bool,
    /// The end of the log when it was first fed from memory. Once it has that it has caught up.
    target: Option<Lsn>,
}

impl Learning {
    /// One that is dialled now, at this place among the followers.
    pub fn new(index: usize, now: Time) -> Learning {
        Learning { index, reached: (Lsn::ZERO, 0), reached_at: now, was_reached: false, target: None }
    }

    /// The log is there up to this LSN.
    pub fn reached(&self) -> Lsn {
        self.reached.0
    }

    /// When it is given up, unless it gets ahead before.
    pub fn silent_at(&self) -> Time {
        self.reached_at.after_ms(if self.was_reached { LEARNER_SILENCE_MS } else { LEARNER_REACHED_MS })
    }
}

impl Node {
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
            self.change_fails(io, &why);
            return Ok(());
        }
        if now >= silent_at && has <= learning.reached {
            let last_error = leader.peers[index].last_error.clone().unwrap_or_default();
            let why = match learning.was_reached {
                true => format!("{address} has got no further for {LEARNER_SILENCE_MS} ms: {last_error}"),
                false => format!("{address} cannot be reached: {last_error}"),
            };
            self.change_fails(io, &why);
            return Ok(());
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
        let up_to_date =
            matches!(&leader.peers[index].link, Link::Streaming(stream) if stream.behind.is_none());
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
            self.change_fails(io, &format!("node {node_id} is a member already, at another address"));
            return Ok(());
        };
        if let Some(why) = self.below_quorum(&list) {
            self.change_fails(io, &why);
            return Ok(());
        }
        let lsn = match self.append_members(io, &list)? {
            Ok(lsn) => lsn,
            Err(why) => {
                self.change_fails(io, &why);
                return Ok(());
            }
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
