//! Members meet: who is at the other end of a connection, and which leader is followed.

use super::super::leader::{Link, PeerKind};
use super::super::session_open::Refusal;
use super::super::{DialPurpose, FatalReason, Node};
use super::Elect;
use crate::conn::{Close, ConnId, Io};
use crate::log_warn;
use crate::wire::peer::{FEATURE_ELECTED, FormKind, FormReply, Hello, Open, RefuseCode};

impl Node {
    /// Whether the node that answered is the member that is listed there. It is refused in words otherwise: a wiped
    /// directory has another id, and its node no vote (D17).
    pub(in super::super) fn member_greeted(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        address: &str,
        hello: &Hello,
    ) -> bool {
        let meta = self.meta.get();
        let Some(expected) = meta.members.at_address(address).map(|member| member.node_id) else {
            return false;
        };
        if hello.node_id == expected {
            return true;
        }
        let why = format!(
            "the node at {address} has the id {}, and the member of cluster {} there is node {expected}: its data \
             directory was wiped, or is another one. It is no member and does not vote. Start it with the directory it \
             had; if that is lost for good, `kv_client replace {address} NEW` has a node at NEW, or this one at the \
             same address, learn and take its place",
            hello.node_id, meta.cluster_id
        );
        self.refuse_called(io, conn, RefuseCode::Identity, why);
        false
    }

    /// A leader's dial was answered: whether a session can be opened now.
    pub(in super::super) fn may_open_session(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        index: usize,
        hello: &Hello,
    ) -> bool {
        if !self.is_member() {
            return true;
        }
        let Some(leader) = self.leader() else { return false };
        let (kind, address) = (leader.peers[index].kind, leader.peers[index].address.clone());
        match kind {
            PeerKind::Replica => return self.replica_greeted(io, conn, index, hello),
            PeerKind::Learner => return self.learner_greeted(io, conn, index, hello),
            PeerKind::Gone => return false,
            PeerKind::Member => {}
        }
        if !self.member_greeted(io, conn, &address, hello) {
            self.peer_refused(io, index, "it is not the member that it should be");
            return false;
        }
        !self.tell_newcomer(io, conn, hello)
    }

    /// Whether the node at a read replica's address may be one: it follows, and is none of those who vote.
    fn replica_greeted(&mut self, io: &mut dyn Io, conn: ConnId, index: usize, hello: &Hello) -> bool {
        let is_member = self.meta.get().members.contains(hello.node_id);
        if !is_member && hello.features & FEATURE_ELECTED == 0 {
            return true;
        }
        let what = if is_member { "is a member, and votes" } else { "runs with --role=auto, and is to vote" };
        let why = format!(
            "--replicas names a node that {what} (node {}): a read replica runs with --role=follower and has a data \
             directory of its own",
            hello.node_id
        );
        self.refuse_called(io, conn, RefuseCode::Identity, why.clone());
        self.peer_refused(io, index, &why);
        false
    }

    /// Whether the node that an operator wants to be a member may learn. One that belongs to no cluster is told of this
    /// one first, and greeted again.
    fn learner_greeted(&mut self, io: &mut dyn Io, conn: ConnId, index: usize, hello: &Hello) -> bool {
        let meta = self.meta.get();
        let listed = meta.members.get(hello.node_id).map(|member| member.address.clone());
        let why = match listed {
            Some(address) => format!("node {} is a member already, at {address}", hello.node_id),
            None if hello.features & FEATURE_ELECTED == 0 => format!(
                "node {} does not run with --role=auto: start it with --role=auto --join and an empty --data-dir",
                hello.node_id
            ),
            None if !hello.cluster_id.is_none() => return true,
            None => {
                self.own_form(FormKind::Learn).encode(io.output(conn).bytes_mut());
                return false;
            }
        };
        self.refuse_called(io, conn, RefuseCode::Identity, why.clone());
        self.peer_refused(io, index, &why);
        false
    }

    /// A member that had not heard of its cluster has answered FORM.
    pub(super) fn newcomer_replied(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        purpose: DialPurpose,
        reply: &FormReply,
    ) -> Result<(), FatalReason> {
        match (purpose, reply.accepted) {
            (DialPurpose::Call(_), true) => self.ask_for_vote(io, conn),
            (DialPurpose::Call(index), false) => self.call_failed(io, index, &reply.message)?,
            (DialPurpose::Session(index), false) => self.peer_refused(io, index, &reply.message),
            (DialPurpose::Session(index), true) => {
                // Its next hello says that it is a member.
                let now = self.now;
                self.close(io, conn, Close::Now);
                if let Some(leader) = self.leader_mut() {
                    leader.peers[index].link = Link::Down { retry_at: now, refused: false };
                }
            }
            (DialPurpose::Promotion(_), _) => {}
        }
        Ok(())
    }

    /// Whether a member follows the leader that opens a session. Its term is entered, in the record that names it, only
    /// when nothing else speaks against it; a leader of a lower term stops leading here.
    pub(in super::super) fn may_follow_elected(
        &mut self,
        io: &mut dyn Io,
        open: &Open,
    ) -> Result<Result<(), Refusal>, FatalReason> {
        let meta = self.meta.get();
        let (own, port) = (meta.node_id, self.config.port);
        if !self.is_member() {
            let why =
                format!("node {own} on port {port} is no member of a cluster yet: it is told by FORM first");
            return Ok(Err(Refusal(RefuseCode::NotFollower, why)));
        }
        if open.term < meta.term {
            let why = format!("term {} is known here", meta.term);
            return Ok(Err(Refusal(RefuseCode::StaleTerm, why)));
        }
        // Who leads, and with whom, is not compared with the list here: it may be older, or newer and not to stay.
        if open.term == meta.term && !meta.leader_id.is_none() && meta.leader_id != open.leader {
            let why = format!(
                "term {} is led by node {}, and node {} says that it leads in it: two leaders in one term cannot be \
                 elected; one of the data directories was copied or restored",
                meta.term, meta.leader_id, open.leader
            );
            log_warn!("election", "{why}");
            return Ok(Err(Refusal(RefuseCode::TwoLeaders, why)));
        }
        if self.leader().is_some() {
            self.enter_term(io, open.term, "its leader opens a session")?;
        }
        self.end_campaign(io);
        self.remember_commit();
        Ok(Ok(()))
    }

    /// A session was refused or asked to be refused in a higher term: a leader of a lower one steps down and enters it,
    /// for that node follows nobody below it.
    pub(in super::super) fn refused_in_term(
        &mut self,
        io: &mut dyn Io,
        code: RefuseCode,
        term: crate::ids::Term,
    ) -> Result<(), FatalReason> {
        if code == RefuseCode::StaleTerm && self.is_member() {
            self.enter_term(io, term, "a member knows it")?;
        }
        Ok(())
    }

    /// What the flags say beside the members that the directory remembers.
    pub(super) fn warn_about_flags(&self) {
        let meta = self.meta.get();
        let Some(own) = meta.members.get(meta.node_id) else { return };
        if own.address != self.config.own_address {
            log_warn!(
                "election",
                "W010 this node listens at {}, and the members know it at {}: they will not reach it; start it there",
                self.config.own_address,
                own.address
            );
        }
        let listed = |peer: &String| meta.members.at_address(peer).is_some();
        if !self.config.peers.is_empty() && !self.config.peers.iter().all(listed)
            || (!self.config.peers.is_empty() && self.config.peers.len() + 1 != meta.members.len())
        {
            log_warn!(
                "election",
                "W011 --peers does not apply: the data directory remembers the members, and `kv_client member` changes \
                 them"
            );
        }
    }

    /// The address that writers are sent to, where leaders are elected; empty while none is known.
    pub(in super::super) fn elected_leader_address(&self) -> String {
        let meta = self.meta.get();
        let Elect::Member(member) = &self.elect else { return String::new() };
        let follows = self.follows_somebody() || self.now < member.timer.refuse_until();
        match meta.leader_id {
            id if id == meta.node_id || id.is_none() => String::new(),
            _ if follows && member.canvass.is_none() => meta.leader_address.clone(),
            _ => String::new(),
        }
    }
}
