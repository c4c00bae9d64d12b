//! Flags of a node whose leader is elected (`--role=auto`), and which others contradict them.

use clap::{Args, ValueEnum};

use super::{AckChoice, Flags, RoleChoice, in_range};
use crate::limits::{
    ELECTION_TIMEOUT_MS_DEFAULT, ELECTION_TIMEOUT_MS_MAX, ELECTION_TIMEOUT_MS_MIN, PEERS_MAX,
};
use crate::node::{ElectionConfig, RoleFlag};
use crate::replication::commit::AckPolicy;
use crate::replication::election::reads::ReadMode;
use crate::replication::election::timing::ElectionTiming;

/// What can be said of elections.
#[derive(Args, Debug)]
pub struct ElectionFlags {
    /// With --role=auto: milliseconds without a leader after which a member campaigns, 100 at least; the same on all
    /// members. A leader whose disk stalls for longer loses its office [default: 500]
    #[arg(long, value_name = "MS", env = "KVSTORE_ELECTION_TIMEOUT_MS", help_heading = "Replication")]
    pub election_timeout_ms: Option<u64>,
    /// With --role=auto: how reads are answered. lease: by the leader, at once while a majority has heard it lately;
    /// quorum: by the leader, after a round to a majority; local: by any node, may be stale [default: lease]
    #[arg(long, value_enum, env = "KVSTORE_READS", help_heading = "Replication")]
    pub reads: Option<ReadsChoice>,
    /// With --role=auto: read replicas, which whoever leads feeds and which do not vote, separated by commas; the same
    /// on all members. A replica runs with --role=follower and --leader=MEMBER,MEMBER,...
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ADDR,...",
        env = "KVSTORE_REPLICAS",
        help_heading = "Replication"
    )]
    pub replicas: Vec<String>,
    /// With --role=auto and an empty data directory: form no cluster, and wait until `kv_client member add` or
    /// `kv_client replace` brings this node into one that is there. Without effect once it belongs to one
    #[arg(long, env = "KVSTORE_JOIN", help_heading = "Replication")]
    pub join: bool,
}

/// `--reads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ReadsChoice {
    Lease,
    Quorum,
    Local,
}

/// A flag that says what with `--role=auto` something else decides.
fn refuse_with_auto(flag: &str, instead: &str) -> String {
    format!("{flag} has no meaning with --role=auto: {instead}; leave it out")
}

impl Flags {
    /// When a write is acknowledged.
    pub(super) fn ack_policy(&self) -> AckPolicy {
        match self.ack {
            _ if self.role == RoleChoice::Auto => AckPolicy::Majority,
            None | Some(AckChoice::Insync) => AckPolicy::InSync,
            Some(AckChoice::Quorum) => AckPolicy::Quorum,
            Some(AckChoice::Leader) => AckPolicy::Leader,
        }
    }

    /// What a member of an elected cluster goes by; of fixed roles, that nothing was said of elections.
    pub(super) fn election_config(
        &self,
        own_address: &str,
        peers: &[String],
    ) -> Result<ElectionConfig, String> {
        let ElectionFlags { election_timeout_ms, reads, replicas, join } = &self.election;
        let (election_timeout_ms, reads) = (*election_timeout_ms, *reads);
        if self.role != RoleChoice::Auto {
            let given = [
                ("--election-timeout-ms", election_timeout_ms.is_some()),
                ("--reads", reads.is_some()),
                ("--replicas", !replicas.is_empty()),
                ("--join", *join),
            ];
            return match given.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(format!("{flag} is for --role=auto: add that, or leave it out")),
                None => Ok(ElectionConfig::default()),
            };
        }
        if self.ack.is_some() {
            return Err(refuse_with_auto(
                "--ack",
                "a write is acknowledged when any majority has it on disk",
            ));
        }
        if self.min_insync.is_some() {
            return Err(refuse_with_auto("--min-insync", "a majority must have every write"));
        }
        if own_address.starts_with(':') {
            return Err(format!(
                "--role=auto with --listen {}: the members know each other by address, and this node does not know \
                 its own; add --advertise HOST, as the others name it in their --peers",
                self.listen
            ));
        }
        if *join && !self.peers.is_empty() {
            return Err(
                "--join and --peers contradict each other: with --peers the node forms a cluster of those nodes, with \
                 --join it waits to be added to one that is there; leave one of them out"
                    .to_owned(),
            );
        }
        let timeout_ms = election_timeout_ms.unwrap_or(ELECTION_TIMEOUT_MS_DEFAULT);
        in_range("--election-timeout-ms", timeout_ms, ELECTION_TIMEOUT_MS_MIN, ELECTION_TIMEOUT_MS_MAX)?;
        let reads = match reads {
            None | Some(ReadsChoice::Lease) => ReadMode::Lease,
            Some(ReadsChoice::Quorum) => ReadMode::Quorum,
            Some(ReadsChoice::Local) => ReadMode::Local,
        };
        let replicas = self.parse_list("--replicas", replicas, own_address)?;
        let nodes = self.peers.len() + replicas.len();
        if nodes > PEERS_MAX {
            return Err(format!(
                "--peers and --replicas name {nodes} nodes; at most {PEERS_MAX} are possible"
            ));
        }
        if let Some(twice) = replicas.iter().find(|replica| peers.contains(*replica)) {
            return Err(format!("--peers and --replicas both name {twice}: a node votes, or it does not"));
        }
        Ok(ElectionConfig { timeout_ms, reads, replicas, join: *join })
    }

    /// Milliseconds between heartbeats: with elections so few that several fit into a timeout.
    pub(super) fn heartbeat_ms_for(&self, election: &ElectionConfig) -> u64 {
        match self.role {
            RoleChoice::Auto => ElectionTiming::from_ms(election.timeout_ms).heartbeat_ms(self.heartbeat_ms),
            _ => self.heartbeat_ms,
        }
    }

    /// Where writers are sent first. Of a list, which the members of an elected cluster are, it is the first one.
    pub(super) fn parse_leader(&self, role: RoleFlag, own_address: &str) -> Result<String, String> {
        match role {
            _ if self.leader.is_empty() => Ok(String::new()),
            RoleFlag::Auto => Err(refuse_with_auto("--leader", "the members elect one")),
            RoleFlag::Leader => {
                Err("--leader is for a follower: add --role=follower, or leave it out".to_owned())
            }
            RoleFlag::Follower => {
                let leaders = self.parse_list("--leader", &self.leader, own_address)?;
                Ok(leaders.into_iter().next().unwrap_or_default())
            }
        }
    }
}
