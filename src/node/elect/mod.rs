//! A node whose leader is elected (`--role=auto`): it forms a cluster with the others, votes, campaigns, leads, and
//! steps down. The rules are `replication::election`'s, which says why this is Raft; here they get a clock, a record
//! on disk, and connections.
//!
//! ```text
//! form      from flags to members: one record, the same on all (`form`)
//! calls     connections to the other members, for forming and for campaigns (`calls`)
//! campaign  no leader heard: pre-votes, votes (`campaign`); the other side of that (`vote`)
//! office    leading begins and ends; a leader that is met (`office`, `meet`); leadership is moved (`handover`)
//! change    a member is added or removed (`change`, `learner`); which list counts (`list`)
//! ```
//!
//! Records go over the same sessions as with fixed roles: the leader dials, opens, streams. What differs is who leads,
//! and that a majority's disks decide what is committed (`AckPolicy::Majority`).
//!
//! Invariants:
//! - Term and vote are one durable record before either is told: what tells them asks for a `MetaDurable`.
//! - The clock comes first. Before anything is done in a turn, a leader that no majority has heard for an election
//!   timeout steps down, and so does one whose flush is older than that: whatever it was asked before a stall, it
//!   does not answer as a leader.
//! - A term that rises ends what belongs to the one before: office, session and campaign.
//! - A node campaigns, and votes, with a log that is durable to its end.
//! - A write that was taken and is not committed when its leader steps down has an unknown outcome, and is answered
//!   so: it is in a log that the next leader may have.

mod calls;
mod campaign;
mod change;
mod form;
mod handover;
mod learner;
mod list;
mod meet;
mod office;
mod status;
mod vote;

use super::follower::Follower;
use super::{FatalReason, Node, Role, RoleFlag};
use crate::conn::{ConnId, Io};
use crate::ids::{Lsn, NodeId};
use crate::log_info;
use crate::replication::election::timing::{ElectionTimer, ElectionTiming};
use crate::time::Time;
use crate::wire::client::Status;

use campaign::Canvass;
use change::Changing;
use form::Forming;
use handover::HandingOver;

/// What a node has to do with elections.
pub(super) enum Elect {
    /// Nothing: flags and commands fix the roles.
    Fixed,
    /// It is to be a member of a cluster that is not formed yet.
    Forming(Box<Forming>),
    /// It is a member, or learns to be one, or was one: see [`Node::has_vote`].
    Member(Box<Member>),
}

/// A member's own view.
pub(super) struct Member {
    timer: ElectionTimer,
    canvass: Option<Canvass>,
    /// The clock was looked at in this turn.
    clock_seen: bool,
    handing_over: Option<HandingOver>,
    changing: Option<Changing>,
    /// A member said that a committed list is without this node, and no leader was heard since.
    told_removed: bool,
    /// Campaigns since a leader was heard: only the first is told at info.
    campaigns: u64,
}

impl Node {
    /// Whether the leader is elected, here and everywhere in this cluster.
    pub(super) fn is_elected(&self) -> bool {
        !matches!(self.elect, Elect::Fixed)
    }

    /// Whether this node belongs to a cluster that elects its leader. It grants votes then, whatever list it goes by:
    /// whoever counts them knows better whether they count.
    pub(super) fn is_member(&self) -> bool {
        matches!(self.elect, Elect::Member(_))
    }

    /// Whether the list that this node goes by has it. Only then it campaigns.
    pub(super) fn has_vote(&self) -> bool {
        self.meta.get().members.contains(self.node_id())
    }

    /// The flags say `--role=auto`, whatever has become of it so far.
    pub(super) fn wants_elections(&self) -> bool {
        self.config.role == RoleFlag::Auto
    }

    fn member(&self) -> Option<&Member> {
        match &self.elect {
            Elect::Member(member) => Some(member),
            _ => None,
        }
    }

    fn member_mut(&mut self) -> Option<&mut Member> {
        match &mut self.elect {
            Elect::Member(member) => Some(member),
            _ => None,
        }
    }

    fn election_timing(&self) -> ElectionTiming {
        ElectionTiming::from_ms(self.config.election.timeout_ms)
    }

    /// The state is loaded: the node is a member, or begins to form its cluster.
    pub(super) fn start_elected(&mut self) -> Result<(), FatalReason> {
        self.role = Role::Follower(Follower::default());
        if self.meta.get().members.is_empty() {
            return self.start_forming();
        }
        self.forget_unlogged_members()?;
        self.warn_about_flags();
        self.become_member();
        Ok(())
    }

    /// From now on it votes, a timeout from now at the earliest: whom it heard before a restart is not known.
    fn become_member(&mut self) {
        let now = self.clock.now();
        let timer = ElectionTimer::new(self.election_timing(), now, &mut self.rng);
        self.elect = Elect::Member(Box::new(Member {
            timer,
            canvass: None,
            clock_seen: false,
            handing_over: None,
            changing: None,
            told_removed: false,
            campaigns: 0,
        }));
        let members = &self.meta.get().members;
        let addresses: Vec<&str> = members.iter().map(|member| member.address.as_str()).collect();
        log_info!(
            "election",
            "{} of cluster {} with {} node(s): {}; election timeout {} ms",
            if self.has_vote() { "member" } else { "without a vote: learns from the leader" },
            self.meta.get().cluster_id,
            addresses.len(),
            addresses.join(", "),
            self.config.election.timeout_ms
        );
    }

    /// A turn begins: whatever it brings, the clock comes first.
    pub(super) fn election_turn_begins(&mut self) {
        if let Some(member) = self.member_mut() {
            member.clock_seen = false;
        }
    }

    /// What is due because time passed. `input_left`: what a leader sent may still be unread.
    pub(super) fn election_timers(&mut self, io: &mut dyn Io, input_left: bool) -> Result<(), FatalReason> {
        self.clock_first(io)?;
        match &self.elect {
            Elect::Fixed => Ok(()),
            Elect::Forming(_) => self.forming_timers(io),
            Elect::Member(_) => {
                self.hand_over_step(io);
                self.change_step(io)?;
                self.campaign_timers(io, input_left)
            }
        }
    }

    /// When [`Node::election_timers`] has something to do.
    pub(super) fn election_deadline(&self) -> Option<Time> {
        match &self.elect {
            Elect::Fixed => None,
            Elect::Forming(forming) => forming.deadline(),
            Elect::Member(_) if self.leader().is_some() => {
                let deadlines = [self.office_deadline(), self.hand_over_deadline(), self.change_deadline()];
                deadlines.into_iter().flatten().min()
            }
            Elect::Member(member) => {
                [member.deadline(), self.hand_over_deadline()].into_iter().flatten().min()
            }
        }
    }

    /// The leader was heard in the live session. `read_at`: see [`ElectionTimer::heard_leader`].
    pub(super) fn hear_leader(&mut self, read_at: Time) {
        if let Some(member) = self.member_mut() {
            member.timer.heard_leader(read_at);
            member.campaigns = 0;
            member.told_removed = false;
        }
    }

    /// The highest LSN that this node has heard to be committed, whatever its own log holds.
    pub(super) fn heard_commit(&self) -> Lsn {
        self.heard_commit.max(self.commit).max(self.meta.get().repair.commit_lsn)
    }

    /// Keeps what was heard of commits: the commit LSN in use is about to be lowered.
    pub(super) fn remember_commit(&mut self) {
        self.heard_commit = self.heard_commit.max(self.commit);
    }

    /// The ids of all other members, in the order in which a leader counts its followers.
    fn other_members(&self) -> Vec<(NodeId, String)> {
        let meta = self.meta.get();
        meta.members.others(meta.node_id).map(|member| (member.node_id, member.address.clone())).collect()
    }

    /// What an operator can do about a leader that lacks what is committed here. `fixed` is for fixed roles.
    pub(super) fn way_out(&self, fixed: String) -> String {
        if !self.is_elected() {
            return fixed;
        }
        let own = &self.config.own_address;
        format!(
            "Stop that leader, so that the members elect one that has them. Or give up what is here: stop this node, \
             put its data directory aside, start it with --join in place of --peers, and run \
             `kv_client replace {own} {own}` against the others"
        )
    }

    /// Whether this node is the elected leader that an operator's command is for. Else the operator is answered: where
    /// roles are fixed with what is done there `instead`.
    fn is_for_leader(&mut self, io: &mut dyn Io, conn: ConnId, instead: &str) -> bool {
        if !self.wants_elections() {
            let why = format!("roles are fixed here: {instead}");
            self.reply(io, conn, Status::Refused, why.as_bytes());
        } else if self.leader().is_none() {
            let leader = self.leader_address_for_clients();
            self.reply(io, conn, Status::NotLeader, leader.as_bytes());
        }
        self.wants_elections() && self.leader().is_some()
    }

    /// For a command that has no meaning where leaders are elected: what to do instead.
    pub(super) fn refuse_fixed_command(&self, command: &str) -> Option<String> {
        (self.wants_elections() || self.meta.get().is_elected()).then(|| {
            format!(
                "this node's leader is elected (--role=auto on the members): `{command}` is for fixed roles, and \
                 changes nothing here; `kv_client --port {} transfer [ADDR]` on a member moves leadership",
                self.config.port
            )
        })
    }
}
