//! The record itself, and what no change of it may do.

use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, PEERS_MAX};
use crate::replication::members::Membership;

/// The role a node has beyond its restart, and whose word it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredRole {
    /// Never started in a role.
    #[default]
    Unset,
    /// Leader, as its flags said.
    LeaderByFlags,
    /// Follower, as its flags said.
    FollowerByFlags,
    /// Leader since a promotion, whatever the flags say.
    LeaderByPromotion,
    /// Follower since an operator's command, whatever the flags say.
    FollowerByCommand,
    /// A leader that met a higher term.
    Deposed,
    /// A member of a cluster whose nodes elect their leader.
    Elected,
}

/// What this node once held and does not hold any more: its log was damaged and cut in front of the damage, or a leader
/// remembers more of it than is here. Until the log reaches `until` again, as a leader confirms it, the node repairs:
/// it answers no reads, is not in sync and may not be promoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// The last LSN that it held, as far as can be told; 0: there is nothing to repair.
    pub until: Lsn,
    /// No record up to there is of a higher term.
    pub term: Term,
    /// Up to here they were known to be committed.
    pub commit_lsn: Lsn,
    /// The log is cut in this record, and the damaged files may still stand where they were.
    pub files_pending: bool,
}

impl Repair {
    /// Whether the node repairs.
    pub fn is_due(&self) -> bool {
        self.until > Lsn::ZERO
    }
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The cluster; `NONE` until the first leader is met. Set once.
    pub cluster_id: ClusterId,
    /// This node. Never changes.
    pub node_id: NodeId,
    /// The highest term met. Never goes back.
    pub term: Term,
    /// Who got the vote in `term`, or `NONE`. Given once per term; who raises the term sets it anew.
    pub vote: NodeId,
    /// See [`StoredRole`].
    pub role: StoredRole,
    /// The leader last followed.
    pub leader_id: NodeId,
    /// Where it listens.
    pub leader_address: String,
    /// The other nodes, at most `PEERS_MAX`. Empty if there are members, which say it better.
    pub peers: Vec<String>,
    /// Who votes. Empty unless the leader is elected: set with the role and the cluster id, and from then on what the
    /// newest record of the log says that has a list. This node need not be among them: it learns, or was removed.
    pub members: Membership,
    /// The leader it follows is elected by members of whom this node is none: a read replica. Set with the first
    /// session, for life.
    pub follows_elected: bool,
    /// This node, as the leader dials it.
    pub own_address: String,
    /// Whether this node was in sync when it last heard its leader.
    pub in_sync: bool,
    /// Raised by every cut of the log, and by every snapshot in its place. Never goes back.
    pub log_generation: u64,
    /// The generation began behind this LSN.
    pub cut_lsn: Lsn,
    /// Nothing at or below this LSN is in the log; 0 unless a snapshot was installed. Changes with the generation
    /// only, as one step: before it the old log is there, after it the snapshot is in its place.
    pub base_lsn: Lsn,
    /// The chain checksum there.
    pub base_chain: Chain,
    /// Whether an operator allowed a cut below the commit LSN.
    pub discard_allowed: bool,
    /// See [`Repair`].
    pub repair: Repair,
}

impl Meta {
    /// Whether the leader of this cluster is elected: then only what is committed is applied.
    pub fn is_elected(&self) -> bool {
        self.follows_elected || !self.members.is_empty()
    }

    /// Enters a term, if it is a higher one: nobody has this node's vote in it yet, and nobody is known to lead in it.
    pub fn enter_term(&mut self, term: Term) {
        if term > self.term {
            self.term = term;
            self.vote = NodeId::NONE;
            self.leader_id = NodeId::NONE;
            self.leader_address.clear();
        }
    }

    pub(super) fn invariants(&self) {
        assert!(!self.node_id.is_none(), "a record has a node id");
        assert!(self.peers.len() <= PEERS_MAX, "{} peers are too many", self.peers.len());
        for address in self.peers.iter().chain([&self.leader_address, &self.own_address]) {
            assert!(address.len() <= ADDRESS_SIZE_MAX, "address {address} is too long");
        }
        self.member_invariants();
    }

    fn member_invariants(&self) {
        let elected = self.role == StoredRole::Elected;
        assert_eq!(elected, !self.members.is_empty(), "members elect, and nobody else does");
        assert!(!(elected && self.follows_elected), "a member is no replica");
        if elected {
            assert!(!self.cluster_id.is_none(), "members are those of a cluster");
            // The file has room for either list of addresses, not for both.
            assert!(self.peers.is_empty(), "where there are members there is no other list of peers");
        }
    }

    /// What no change may do. Each would break a promise this node made to another one.
    pub(super) fn change_invariants(&self, next: &Meta) {
        next.invariants();
        assert_eq!(self.node_id, next.node_id, "a node keeps its id");
        assert!(
            self.cluster_id.is_none() || self.cluster_id == next.cluster_id,
            "cluster {} does not become {}",
            self.cluster_id,
            next.cluster_id
        );
        assert!(next.term >= self.term, "term {} does not go back to {}", self.term, next.term);
        assert!(
            next.term > self.term || self.vote.is_none() || self.vote == next.vote,
            "the vote of term {} was given to {}",
            self.term,
            self.vote
        );
        // A snapshot in the place of the log brings the list of its log.
        let replaces_log = next.log_generation > self.log_generation;
        let taken_back = self.members.before().is_some_and(|before| before == next.members);
        assert!(
            self.members.is_empty()
                || self.members == next.members
                || self.members.lsn() < next.members.lsn()
                || taken_back
                || replaces_log,
            "the list of members of LSN {} does not become that of LSN {}",
            self.members.lsn(),
            next.members.lsn()
        );
        assert!(
            self.members.is_empty()
                || next.term > self.term
                || self.leader_id.is_none()
                || self.leader_id == next.leader_id,
            "term {} is led by {}",
            self.term,
            self.leader_id
        );
        assert!(
            self.role == next.role || next.role != StoredRole::Elected || self.role == StoredRole::Unset,
            "a node of fixed roles ({:?}) does not begin to vote",
            self.role
        );
        assert!(next.follows_elected || !self.follows_elected, "who leads a replica stays elected");
        assert!(next.log_generation >= self.log_generation, "log generations rise");
        assert!(
            next.log_generation > self.log_generation
                || (next.cut_lsn, next.base_lsn, next.base_chain)
                    == (self.cut_lsn, self.base_lsn, self.base_chain),
            "a cut or a new base begins a log generation"
        );
    }
}
