//! An operator's commands: promote, follow.

use super::fatal::malformed;
use super::follower::Follower;
use super::{Conn, DialPurpose, FatalReason, Node, Role, Stop};
use crate::address::parse_address;
use crate::conn::{Close, ConnId, Io};
use crate::ids::{Lsn, Term};
use crate::limits::{PEERS_MAX, PROMOTION_DEADLINE_MS};
use crate::meta::{Meta, StoredRole};
use crate::replication::promotion::{Answer, Objections, PeerAnswer, Position, judge, term_to_lead_in};
use crate::time::Time;
use crate::wire::client::Status;
use crate::wire::peer::{Fence, FenceReply, RefuseCode};
use crate::{log_info, log_warn};

/// A promotion under way.
#[derive(Debug)]
pub(super) struct PromotionRun {
    operator: ConnId,
    force: bool,
    phase: Phase,
    deadline: Time,
    peers: Vec<PeerAnswer>,
    conns: Vec<Option<ConnId>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Asking, changing nothing.
    Probe,
    /// Making the term durable everywhere.
    Fence(Term),
}

impl PromotionRun {
    fn is_complete(&self) -> bool {
        self.peers.iter().all(|peer| peer.answer != Answer::Waiting)
    }
}

impl Node {
    pub(super) fn on_promote(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        force: bool,
    ) -> Result<(), FatalReason> {
        if let Some(why) = self.refuse_fixed_command("promote") {
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        if self.leader().is_some() {
            let message = self.promoted_document("this node leads already");
            self.reply(io, conn, Status::Ok, message.as_bytes());
            return Ok(());
        }
        if self.promotion.is_some() {
            self.reply(io, conn, Status::Refused, b"a promotion is under way already");
            return Ok(());
        }
        let addresses = self.peers_to_ask();
        if addresses.is_empty() && !force {
            let message = "this node never had a session with a leader, so it knows no peers to compare with; \
                           with --force it leads alone, and what other nodes hold is lost";
            self.reply(io, conn, Status::Refused, message.as_bytes());
            return Ok(());
        }
        log_info!("node", "promotion asked for (force: {force}); asking {}", addresses.join(", "));
        self.begin_command(conn);
        let old_leader = self.meta.get().leader_address.clone();
        let peer = |address: &String| PeerAnswer {
            address: address.clone(),
            is_old_leader: *address == old_leader,
            answer: Answer::Waiting,
        };
        self.promotion = Some(PromotionRun {
            operator: conn,
            force,
            phase: Phase::Probe,
            deadline: self.now.after_ms(PROMOTION_DEADLINE_MS),
            peers: addresses.iter().map(peer).collect(),
            conns: vec![None; addresses.len()],
        });
        for (index, address) in addresses.iter().enumerate() {
            self.dial(io, DialPurpose::Promotion(index), address);
        }
        self.promotion_step(io)
    }

    /// All other nodes as this one knows them: from its leader's session, else from its flags.
    fn peers_to_ask(&self) -> Vec<String> {
        let meta = self.meta.get();
        let mut addresses = meta.peers.clone();
        addresses.extend(self.config.peers.iter().cloned());
        if meta.leader_id != meta.node_id && !meta.leader_address.is_empty() {
            addresses.push(meta.leader_address.clone());
        }
        let own = [&meta.own_address, &self.config.own_address];
        addresses.retain(|address| !own.contains(&address));
        addresses.sort();
        addresses.dedup();
        addresses
    }

    pub(super) fn promotion_address(&self, index: usize) -> String {
        self.promotion.as_ref().map_or_else(String::new, |run| run.peers[index].address.clone())
    }

    pub(super) fn promotion_silent(
        &mut self,
        io: &mut dyn Io,
        index: usize,
        why: &str,
    ) -> Result<(), FatalReason> {
        let Some(run) = &mut self.promotion else { return Ok(()) };
        run.conns[index] = None;
        // In the fence phase the probe's answer must not stand for the fence's.
        if run.peers[index].answer == Answer::Waiting {
            run.peers[index].answer = Answer::Silent(why.to_owned());
        }
        self.promotion_step(io)
    }

    pub(super) fn send_probe(&mut self, io: &mut dyn Io, conn: ConnId, index: usize) {
        let Some(run) = &mut self.promotion else { return self.close(io, conn, Close::Now) };
        run.conns[index] = Some(conn);
        let term = self.meta.get().term;
        self.send_fence(io, conn, true, term);
    }

    fn send_fence(&mut self, io: &mut dyn Io, conn: ConnId, probe: bool, term: Term) {
        let fence = Fence {
            probe,
            term,
            candidate: self.meta.get().node_id,
            address: self.config.own_address.clone(),
        };
        fence.encode(io.output(conn).bytes_mut());
    }

    /// A node about to lead asks where this one stands.
    pub(super) fn on_fence(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let fence = Fence::decode(body).map_err(malformed("FENCE"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        let address = peer.address.clone();
        if self.wants_elections() {
            let why = "this node's leader is elected: nobody is promoted there".to_owned();
            self.refuse(io, conn, RefuseCode::NotFollower, why);
            return Ok(());
        }
        self.expect_more_of(conn);
        let leads = self.leader().is_some();
        let token = self.settle(io)?;
        let meta = self.meta.get();
        let again = fence.term == meta.term && meta.leader_id == fence.candidate;
        let accepted = fence.probe || fence.term > meta.term || again;
        if accepted && !fence.probe && !again {
            self.accept_fence(io, &fence, &address)?;
            // It came on the session that it ended: there is nobody left to answer.
            if self.conns.get(conn).is_none() {
                return Ok(());
            }
        }
        let (repair, repair_commit) = self.repair_position();
        let reply = FenceReply {
            accepted,
            term: self.meta.get().term,
            last_term: self.wal.history().term_at(token.lsn()),
            last_lsn: token.lsn(),
            commit_lsn: self.effective_commit().max(repair_commit),
            leads,
            repair,
            complete: self.is_complete(),
        };
        reply.encode(io.output(conn).bytes_mut());
        Ok(())
    }

    fn accept_fence(&mut self, io: &mut dyn Io, fence: &Fence, address: &str) -> Result<(), FatalReason> {
        if self.leader().is_some() {
            return self.depose(io, fence.term, fence.candidate, address);
        }
        self.meta.update(self.disk.as_mut(), |meta| {
            change_leader(meta, address);
            // The promise: this term is that candidate's and nobody else's, also after a restart.
            meta.term = fence.term;
            meta.leader_id = fence.candidate;
        })?;
        self.drop_session(io, "a promotion moved the term on");
        if self.promotion.is_some() {
            self.promotion_fails(
                io,
                &format!("{address} is being promoted at the same time, in term {}", fence.term),
            );
        }
        log_info!("node", "term {} promised to {address} (node {})", fence.term, fence.candidate);
        Ok(())
    }

    pub(super) fn on_fence_reply(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let reply = FenceReply::decode(body).map_err(malformed("FENCE_REPLY"))?;
        let Some(run) = &mut self.promotion else { return Ok(()) };
        let Some(index) = run.conns.iter().position(|known| *known == Some(conn)) else { return Ok(()) };
        run.peers[index].answer = Answer::Position {
            accepted: reply.accepted,
            term: reply.term,
            position: Position {
                last_term: reply.last_term,
                last_lsn: reply.last_lsn,
                commit_lsn: reply.commit_lsn,
            },
            leads: reply.leads,
            repair: Some(reply.repair).filter(|(_, until)| *until > Lsn::ZERO),
            complete: reply.complete,
        };
        Ok(self.promotion_step(io)?)
    }

    pub(super) fn promotion_timers(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Some(run) = &mut self.promotion else { return Ok(()) };
        if self.now < run.deadline {
            return Ok(());
        }
        for peer in run.peers.iter_mut().filter(|peer| peer.answer == Answer::Waiting) {
            peer.answer = Answer::Silent("no answer in time".to_owned());
        }
        self.promotion_step(io)
    }

    pub(super) fn promotion_deadline(&self) -> Option<Time> {
        self.promotion.as_ref().map(|run| run.deadline)
    }

    /// Goes on once everybody has answered or is silent.
    fn promotion_step(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let Some(run) = &self.promotion else { return Ok(()) };
        if !run.is_complete() {
            return Ok(());
        }
        let (force, phase) = (run.force, run.phase);
        let token = self.settle(io)?;
        let me = Position {
            last_term: self.wal.history().term_at(token.lsn()),
            last_lsn: token.lsn(),
            commit_lsn: self.effective_commit(),
        };
        let in_sync = self.meta.get().in_sync;
        let Some(run) = &self.promotion else { return Ok(()) };
        let mut objections = judge(&me, in_sync, &run.peers);
        self.repair_objection(&mut objections);
        let outranked =
            run.peers.iter().any(|peer| matches!(peer.answer, Answer::Position { accepted: false, .. }));
        if !objections.0.is_empty() && (!force || outranked) {
            let fenced = if phase == Phase::Probe {
                "nothing was changed"
            } else {
                "the old leader is fenced: promote the node named"
            };
            let why =
                format!("refused: {} ({fenced}; `promote --force` leads all the same)", objections.text());
            self.promotion_fails(io, &why);
            return Ok(());
        }
        let Some(term) = term_to_lead_in(self.meta.get().term, &run.peers) else {
            self.promotion_fails(
                io,
                "refused: a peer knows the highest term there is, and none can be above it",
            );
            return Ok(());
        };
        match phase {
            Phase::Probe => self.begin_fence(io, term),
            Phase::Fence(term) => self.promoted(io, term, &objections),
        }
    }

    fn begin_fence(&mut self, io: &mut dyn Io, term: Term) -> Result<(), FatalReason> {
        let deadline = self.now.after_ms(PROMOTION_DEADLINE_MS);
        let Some(run) = &mut self.promotion else { return Ok(()) };
        run.phase = Phase::Fence(term);
        run.deadline = deadline;
        let conns: Vec<(usize, ConnId)> =
            run.conns.iter().enumerate().filter_map(|(index, conn)| conn.map(|conn| (index, conn))).collect();
        for (peer, conn) in run.peers.iter_mut().zip(&run.conns) {
            match (conn, &peer.answer) {
                (Some(_), _) => peer.answer = Answer::Waiting,
                // What it said to the probe may be long past: it may hold acknowledged records by now.
                (None, Answer::Position { .. }) => {
                    peer.answer =
                        Answer::Silent("its connection was lost after the first question".to_owned());
                }
                (None, _) => {}
            }
        }
        conns.iter().for_each(|(_, conn)| self.send_fence(io, *conn, false, term));
        // With every peer silent nobody will answer the fence.
        if conns.is_empty() { self.promotion_step(io) } else { Ok(()) }
    }

    fn promoted(&mut self, io: &mut dyn Io, term: Term, objections: &Objections) -> Result<(), FatalReason> {
        let Some(run) = self.promotion.take() else { return Ok(()) };
        self.close_promotion(io, &run);
        self.drop_session(io, "this node leads now");
        let token = self.settle(io)?;
        self.apply_up_to(io, token.lsn());
        let peers = run.peers.iter().map(|peer| peer.address.clone()).collect();
        if !objections.0.is_empty() {
            // Before it is done: a crash in between must not leave a loss that nobody was told of.
            log_warn!("node", "forced promotion; what may be lost: {}", objections.text());
        }
        self.lead(term, StoredRole::LeaderByPromotion, peers)?;
        let message = if objections.0.is_empty() {
            format!("leads in term {term} from LSN {}", self.wal.last_lsn())
        } else {
            format!("leads in term {term} by force; what may be lost: {}", objections.text())
        };
        let document = self.promoted_document(&message);
        self.finish_command(io, run.operator, Status::Ok, &document);
        Ok(())
    }

    fn promotion_fails(&mut self, io: &mut dyn Io, why: &str) {
        let Some(run) = self.promotion.take() else { return };
        self.close_promotion(io, &run);
        log_warn!("node", "promotion {why}");
        self.finish_command(io, run.operator, Status::Refused, why);
    }

    fn close_promotion(&mut self, io: &mut dyn Io, run: &PromotionRun) {
        self.dials.retain(|(_, purpose)| !matches!(purpose, DialPurpose::Promotion(_)));
        run.conns.iter().flatten().for_each(|conn| self.close(io, *conn, Close::AfterOutput));
        // Connections still in their handshake are not in `conns` of the run yet.
        let strays: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| {
                let Conn::PeerOut(peer) = conn else { return false };
                matches!(peer.purpose, DialPurpose::Promotion(_))
            })
            .map(|(id, _)| id)
            .collect();
        strays.into_iter().for_each(|conn| self.close(io, conn, Close::Now));
    }

    fn promoted_document(&self, message: &str) -> String {
        let term = self.meta.get().term;
        serde_json::json!({
            "term": term.as_u64(),
            "term_text": term.to_string(),
            "lsn": self.wal.last_lsn().0,
            "message": message,
        })
        .to_string()
    }

    /// `follow ADDR [--discard]`: whatever this node was, it is a follower now and waits for that leader.
    pub(super) fn on_follow(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        address: &str,
        discard: bool,
    ) -> Result<(), FatalReason> {
        if let Some(why) = self.refuse_fixed_command("follow") {
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        let address = match parse_address(address) {
            Ok(address) => address,
            Err(error) => {
                self.reply(io, conn, Status::BadRequest, error.to_string().as_bytes());
                return Ok(());
            }
        };
        if address == self.config.own_address {
            let why = format!("{address} is this node itself; name the node that leads");
            self.reply(io, conn, Status::BadRequest, why.as_bytes());
            return Ok(());
        }
        if self.promotion.is_some() {
            self.reply(io, conn, Status::Refused, b"a promotion of this node is under way; wait for its end");
            return Ok(());
        }
        self.step_down(io, "an operator told this node to follow before the write was acknowledged")?;
        self.drop_session(io, "an operator's follow");
        self.meta.update(self.disk.as_mut(), |meta| {
            meta.role = StoredRole::FollowerByCommand;
            change_leader(meta, &address);
            meta.discard_allowed = discard;
            // Its own term no longer names it as leader; a leader of a term not below it may come.
            if meta.leader_id == meta.node_id {
                meta.leader_id = crate::ids::NodeId::NONE;
            }
        })?;
        let token = self.settle(io)?;
        self.apply_up_to(io, token.lsn());
        self.role = Role::Follower(Follower::default());
        log_info!(
            "node",
            "following {address} from now on (discard: {discard}); it must have this node among its peers"
        );
        self.reply(io, conn, Status::Ok, format!("following {address}").as_bytes());
        Ok(())
    }
}

/// Another node is to be followed, which has not opened a session yet. The leader until now stays known: it
/// may hold what nobody else has, and a promotion of this node must ask it. And until the new one says that
/// this node is in sync with it, it is not: writes may be acknowledged there without this node.
fn change_leader(meta: &mut Meta, address: &str) {
    if meta.leader_address == address {
        return;
    }
    let previous = std::mem::replace(&mut meta.leader_address, address.to_owned());
    meta.in_sync = false;
    // Nor is the term bound to that leader: of two in one term the operator has named the other.
    meta.leader_id = crate::ids::NodeId::NONE;
    // A leader's list names this node too, and has room for the leader once that entry is gone.
    let own = meta.own_address.clone();
    let is_new = !previous.is_empty() && previous != own && !meta.peers.contains(&previous);
    meta.peers.retain(|peer| *peer != own);
    if is_new && meta.peers.len() < PEERS_MAX {
        meta.peers.push(previous);
    }
}
