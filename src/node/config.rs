//! What a node is told when it starts, and the sizes that a simulator makes small.

use super::{FlushMode, PinConfig, RoleFlag, SnapshotConfig};
use crate::limits::ELECTION_TIMEOUT_MS_DEFAULT;
use crate::limits::{
    APPEND_BATCH_SIZE, CLIENT_OUTPUT_HIGH_WATER, CLIENT_OUTPUT_LOW_WATER, CLIENT_REQUESTS_IN_FLIGHT_MAX,
    IN_FLIGHT_SIZE_MAX, PEER_OUTPUT_HIGH_WATER, PEER_OUTPUT_LOW_WATER,
};
use crate::replication::commit::AckPolicy;
use crate::replication::election::reads::ReadMode;
use crate::wal::WalConfig;

/// What a node is told when it starts. Validated; nothing in it is checked again.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The port clients and peers reach it at (for messages to the operator).
    pub port: u16,
    /// Where it says it listens; an empty host means "where you see me".
    pub own_address: String,
    /// The role a new data directory takes.
    pub role: RoleFlag,
    /// The followers of a leader, or the other members of a cluster that is to be formed, as `HOST:PORT`.
    pub peers: Vec<String>,
    /// The leader of a follower, or empty: where to send writers before the first session.
    pub leader: String,
    /// When a write is acknowledged.
    pub ack: AckPolicy,
    /// How many nodes in sync must have a write.
    pub min_insync: usize,
    /// When a follower leaves the in-sync set.
    pub insync_timeout_ms: u64,
    /// Between heartbeats.
    pub heartbeat_ms: u64,
    /// Whether receipts are kept (on; off only to measure what they cost).
    pub receipts: bool,
    /// The log.
    pub wal: WalConfig,
    /// Whether the loop waits for its disk.
    pub flush: FlushMode,
    /// Why it does although it was told not to, if that is so.
    pub flush_refused: Option<String>,
    /// What a follower's connection may cost.
    pub feed: FeedLimits,
    /// What the log may cost while a follower gets a snapshot.
    pub pin: PinConfig,
    /// When snapshots are made, and how they are loaded.
    pub snapshot: SnapshotConfig,
    /// Of a node with `--role=auto`.
    pub election: ElectionConfig,
}

/// What only a node goes by whose leader is elected.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// Milliseconds without a leader after which a member campaigns. The same on all members.
    pub timeout_ms: u64,
    /// How reads are made linearizable.
    pub reads: ReadMode,
    /// Read replicas that this node dials while it leads, as `HOST:PORT`.
    pub replicas: Vec<String>,
    /// A node without a cluster forms none, and waits to be added to one.
    pub join: bool,
}

impl Default for ElectionConfig {
    fn default() -> ElectionConfig {
        ElectionConfig {
            timeout_ms: ELECTION_TIMEOUT_MS_DEFAULT,
            reads: ReadMode::Lease,
            replicas: Vec::new(),
            join: false,
        }
    }
}

/// How much is sent to a follower at once. In production these are the limits of [`crate::limits`]; the
/// simulator makes them small, so that a log of a few KiB takes every path that one of many MiB does.
#[derive(Clone, Copy, Debug)]
pub struct FeedLimits {
    /// Bytes of records in one frame before the next is begun.
    pub frame_bytes: usize,
    /// Bytes waiting to be sent above which a follower is fed from the log files.
    pub high_water: usize,
    /// Bytes waiting to be sent below which it is fed again.
    pub low_water: usize,
}

impl Default for FeedLimits {
    fn default() -> FeedLimits {
        FeedLimits {
            frame_bytes: APPEND_BATCH_SIZE,
            high_water: PEER_OUTPUT_HIGH_WATER,
            low_water: PEER_OUTPUT_LOW_WATER,
        }
    }
}

/// What clients may cost. In production these are the limits of [`crate::limits`]; the simulator makes them small,
/// so that a few hundred writes reach them.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// Bytes of records appended and not applied above which a write is BUSY.
    pub in_flight_bytes: usize,
    /// Requests of one connection that wait for their outcome above which it is not read.
    pub requests_in_flight: usize,
    /// Bytes waiting to be sent to a client above which its requests are not read.
    pub output_high_water: usize,
    /// Bytes waiting to be sent to a client below which they are read again.
    pub output_low_water: usize,
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets {
            in_flight_bytes: IN_FLIGHT_SIZE_MAX,
            requests_in_flight: CLIENT_REQUESTS_IN_FLIGHT_MAX,
            output_high_water: CLIENT_OUTPUT_HIGH_WATER,
            output_low_water: CLIENT_OUTPUT_LOW_WATER,
        }
    }
}
