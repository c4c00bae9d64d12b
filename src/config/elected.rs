//! Flags of a node whose leader is elected (`--role=auto`), and which others contradict them.

use clap::{Args, ValueEnum};

use super::{AckChoice, Flags, RoleChoice, in_range};
use crate::limits::{ELECTION_TIMEOUT_MS_DEFAULT, ELECTION_TIMEOUT_MS_MAX, ELECTION_TIMEOUT_MS_MIN};
use crate::node::ElectionConfig;
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
pub(super) fn refuse_with_auto(flag: &str, instead: &str) -> String {
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
    pub(super) fn election_config(&self, own_address: &str) -> Result<ElectionConfig, String> {
        let ElectionFlags { election_timeout_ms, reads } = self.election;
        if self.role != RoleChoice::Auto {
            let given =
                [("--election-timeout-ms", election_timeout_ms.is_some()), ("--reads", reads.is_some())];
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
        let timeout_ms = election_timeout_ms.unwrap_or(ELECTION_TIMEOUT_MS_DEFAULT);
        in_range("--election-timeout-ms", timeout_ms, ELECTION_TIMEOUT_MS_MIN, ELECTION_TIMEOUT_MS_MAX)?;
        let reads = match reads {
            None | Some(ReadsChoice::Lease) => ReadMode::Lease,
            Some(ReadsChoice::Quorum) => ReadMode::Quorum,
            Some(ReadsChoice::Local) => ReadMode::Local,
        };
        Ok(ElectionConfig { timeout_ms, reads })
    }

    /// Milliseconds between heartbeats: with elections so few that several fit into a timeout.
    pub(super) fn heartbeat_ms_for(&self, election: &ElectionConfig) -> u64 {
        match self.role {
            RoleChoice::Auto => ElectionTiming::from_ms(election.timeout_ms).heartbeat_ms(self.heartbeat_ms),
            _ => self.heartbeat_ms,
        }
    }
}
