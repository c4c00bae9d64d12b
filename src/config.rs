//! Flags and environment to a validated configuration.

use clap::{Parser, ValueEnum};

use crate::address::{join_address, parse_address};
use crate::commands::Command;
use crate::limits::{
    CONNECTIONS_MAX, DESCRIPTORS_RESERVED, HEARTBEAT_MS_DEFAULT, INSYNC_TIMEOUT_MS_DEFAULT, PEERS_MAX,
    PIN_LOG_BYTES_DEFAULT, PIN_LOG_BYTES_MIN, RETAIN_LOG_BYTES_DEFAULT, SEGMENT_SIZE_DEFAULT,
    SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN, SNAPSHOT_LOG_BYTES_FLAG_MIN,
};
use crate::node::{ArchiveConfig, FlushMode, NodeConfig, PinConfig, PinOverflow, RoleFlag, SnapshotConfig};
use crate::replication::commit::AckPolicy;
use crate::wal::{Durability, WalConfig};

mod elected;

use elected::refuse_with_auto;
pub use elected::{ElectionFlags, ReadsChoice};

const EXAMPLES: &str = "\
Examples:
  One node, for trying it out (leader, no followers, ./kvstore-data):
    kvstore
  A leader and two followers on one machine:
    kvstore --port 9001 --data-dir ./node1 --role=leader   --peers=9002,9003
    kvstore --port 9002 --data-dir ./node2 --role=follower --leader=9001
    kvstore --port 9003 --data-dir ./node3 --role=follower --leader=9001
  Three nodes that elect their leader (the same on each, with its own port, directory and peers):
    kvstore --port 9001 --data-dir ./node1 --role=auto --peers=9002,9003
  Acknowledge on a majority, and never with fewer than two nodes in sync:
    kvstore --role=leader --peers=10.0.0.2:9001,10.0.0.3:9001 --listen 10.0.0.1 --ack=quorum --min-insync=2

Exit codes: 0 ended in order, 2 usage or a role that contradicts the data directory, 10 data directory not usable,
11 log damaged or unreadable, 12 identity record, 13 log write or fdatasync failed, 14 no room, 15 network,
16 terms used up.";

/// A durable, replicated, in-memory key-value node.
#[derive(Parser, Debug)]
#[command(name = "kvstore", version, after_long_help = EXAMPLES, after_help = EXAMPLES, max_term_width = 110)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub struct Flags {
    /// What to do in the place of running a node
    #[command(subcommand)]
    pub command: Option<Command>,
    /// TCP port for clients and peers
    #[arg(long, default_value_t = 9001, env = "KVSTORE_PORT", help_heading = "Network")]
    pub port: u16,
    /// Address to listen on; beyond loopback nothing authenticates yet
    #[arg(
        long,
        default_value = "127.0.0.1",
        value_name = "HOST",
        env = "KVSTORE_LISTEN",
        help_heading = "Network"
    )]
    pub listen: String,
    /// Address that others reach this node at, if it is not the one it listens on
    #[arg(long, value_name = "HOST[:PORT]", env = "KVSTORE_ADVERTISE", help_heading = "Network")]
    pub advertise: Option<String>,
    /// Connections at most; the descriptor limit (nofile) may bound it further
    #[arg(
        long,
        default_value_t = 1024,
        value_name = "N",
        env = "KVSTORE_CONNECTIONS_MAX",
        help_heading = "Network"
    )]
    pub connections_max: usize,

    /// Role of a new data directory; later `kv_client promote` and `follow` change it
    #[arg(long, value_enum, default_value = "leader", env = "KVSTORE_ROLE", help_heading = "Replication")]
    pub role: RoleChoice,
    /// A leader's followers, or with auto the other members: PORT, HOST:PORT or [IPV6]:PORT, separated by commas
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "ADDR,...",
        env = "KVSTORE_PEERS",
        help_heading = "Replication"
    )]
    pub peers: Vec<String>,
    /// A follower's leader: where writers are sent before the leader has opened its first session
    #[arg(long, value_name = "ADDR", env = "KVSTORE_LEADER", help_heading = "Replication")]
    pub leader: Option<String>,
    /// A write is acknowledged when it is on the disks of: the leader and every follower in sync; the leader and a
    /// majority of all nodes; the leader alone [default: insync; with --role=auto always any majority]
    #[arg(long, value_enum, env = "KVSTORE_ACK", help_heading = "Replication")]
    pub ack: Option<AckChoice>,
    /// Nodes in sync (the leader counts) that must have a write before it is acknowledged [default: 1]
    #[arg(long, value_name = "N", env = "KVSTORE_MIN_INSYNC", help_heading = "Replication")]
    pub min_insync: Option<usize>,
    /// Milliseconds without progress after which a follower is out of sync and writes go on without it
    #[arg(long, default_value_t = INSYNC_TIMEOUT_MS_DEFAULT, value_name = "MS", env = "KVSTORE_INSYNC_TIMEOUT_MS",
        help_heading = "Replication")]
    pub insync_timeout_ms: u64,
    /// Milliseconds between a leader's heartbeats
    #[arg(long, default_value_t = HEARTBEAT_MS_DEFAULT, value_name = "MS", env = "KVSTORE_HEARTBEAT_MS",
        help_heading = "Replication")]
    pub heartbeat_ms: u64,
    /// Of a node whose leader is elected.
    #[command(flatten)]
    pub election: ElectionFlags,

    /// Directory of this node's log and identity
    #[arg(
        long,
        default_value = "./kvstore-data",
        value_name = "DIR",
        env = "KVSTORE_DATA_DIR",
        help_heading = "Storage"
    )]
    pub data_dir: std::path::PathBuf,
    /// fsync: an acknowledged write survives a power failure; os: it survives a crash of the process only
    #[arg(long, value_enum, default_value = "fsync", env = "KVSTORE_DURABILITY", help_heading = "Storage")]
    pub durability: DurabilityChoice,
    /// inline: write and sync in one call, for which the loop waits; beside: the sync runs beside the loop (io_uring),
    /// which gathers the next batch and serves reads meanwhile; auto: beside while there are readers, else inline
    #[arg(long, value_enum, default_value = "auto", env = "KVSTORE_FLUSH", help_heading = "Storage")]
    pub flush: FlushChoice,
    /// Bytes of a log segment, allocated ahead
    #[arg(long, default_value_t = SEGMENT_SIZE_DEFAULT, value_name = "BYTES", env = "KVSTORE_SEGMENT_BYTES",
        help_heading = "Storage")]
    pub segment_bytes: u64,
    /// Bytes of log kept, at most, for a follower that gets a snapshot, until it has caught up
    #[arg(long, default_value_t = PIN_LOG_BYTES_DEFAULT, value_name = "BYTES", env = "KVSTORE_PIN_LOG_BYTES",
        help_heading = "Storage")]
    pub pin_log_bytes: u64,
    /// At that bound: slow writers down for the follower, or drop what is kept for it
    #[arg(long, value_enum, default_value = "slow", env = "KVSTORE_PIN_OVERFLOW", help_heading = "Storage")]
    pub pin_overflow: PinOverflowChoice,
    /// Bytes of log after which a snapshot is made [default: twice the last snapshot, at least 256 MiB]
    #[arg(long, value_name = "BYTES", env = "KVSTORE_SNAPSHOT_LOG_BYTES", help_heading = "Storage")]
    pub snapshot_log_bytes: Option<u64>,
    /// Bytes of log kept for a connected follower that has not got them yet, although a snapshot covers them
    #[arg(long, default_value_t = RETAIN_LOG_BYTES_DEFAULT, value_name = "BYTES", env = "KVSTORE_RETAIN_LOG_BYTES",
        help_heading = "Storage")]
    pub retain_log_bytes: u64,

    /// Where segments are kept aside.
    #[command(flatten)]
    pub archive: archive::ArchiveFlags,
    /// Microseconds to poll without sleeping before blocking: burns a core, saves the wake-up
    #[arg(
        long,
        default_value_t = 0,
        value_name = "US",
        env = "KVSTORE_BUSY_POLL_US",
        help_heading = "Performance"
    )]
    pub busy_poll_us: u64,
    /// Pin the loop to this CPU (numbered from 0)
    #[arg(long, value_name = "N", env = "KVSTORE_CPU", help_heading = "Performance")]
    pub cpu: Option<usize>,

    /// Keep no receipts of writes (only to measure what keeping them costs)
    #[arg(long, env = "KVSTORE_NO_RECEIPTS", help_heading = "Debugging")]
    pub no_receipts: bool,
    /// Write notes for strace between the calls (each is a write that is refused with EBADF)
    #[arg(long, env = "KVSTORE_STRACE_MARKS", help_heading = "Debugging")]
    pub strace_marks: bool,
    /// Least important log lines that are written to stderr
    #[arg(long, value_enum, default_value = "info", env = "KVSTORE_LOG_LEVEL", help_heading = "Logging")]
    pub log_level: LevelChoice,
}

/// `--role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleChoice {
    /// Takes writes
    Leader,
    /// Takes a leader's records
    Follower,
    /// Leads or follows as the nodes elect by majority
    Auto,
}

/// `--ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum AckChoice {
    Insync,
    Quorum,
    Leader,
}

/// `--durability`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum DurabilityChoice {
    Fsync,
    Os,
}

/// `--flush`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum FlushChoice {
    Inline,
    Beside,
    Auto,
}

/// `--pin-overflow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum PinOverflowChoice {
    Slow,
    Drop,
}

/// `--log-level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LevelChoice {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LevelChoice {
    /// For the log facade.
    pub fn filter(self) -> log::LevelFilter {
        match self {
            LevelChoice::Off => log::LevelFilter::Off,
            LevelChoice::Error => log::LevelFilter::Error,
            LevelChoice::Warn => log::LevelFilter::Warn,
            LevelChoice::Info => log::LevelFilter::Info,
            LevelChoice::Debug => log::LevelFilter::Debug,
            LevelChoice::Trace => log::LevelFilter::Trace,
        }
    }
}

/// All a process needs to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// For the node.
    pub node: NodeConfig,
    /// `HOST:PORT` to bind.
    pub listen_address: String,
    /// Connections at most.
    pub connections_max: usize,
    /// Microseconds of polling before blocking.
    pub busy_poll_us: u64,
    /// The CPU to run on.
    pub cpu: Option<usize>,
    /// The data directory.
    pub data_dir: std::path::PathBuf,
    /// The archive.
    pub archive: Option<(std::path::PathBuf, ArchiveConfig)>,
    /// Whether notes for strace are written.
    pub strace_marks: bool,
    /// Whether anybody but this machine can connect.
    pub beyond_loopback: bool,
}

impl Flags {
    /// Checks everything; the error says which flag, which value, and what is allowed.
    pub fn validate(&self) -> Result<Config, String> {
        let role = match self.role {
            RoleChoice::Leader => RoleFlag::Leader,
            RoleChoice::Follower => RoleFlag::Follower,
            RoleChoice::Auto => RoleFlag::Auto,
        };
        let listen_address = join_address(&self.listen, self.port)
            .map_err(|error| format!("--listen {}: {error}", self.listen))?;
        let own_address = self.own_address(&listen_address)?;
        let peers = self.parse_peers(&own_address)?;
        let leader = self.parse_leader(role)?;
        let (min_insync, ack) = (self.min_insync.unwrap_or(1), self.ack_policy());
        in_range("--insync-timeout-ms", self.insync_timeout_ms, 10, 600_000)?;
        in_range("--heartbeat-ms", self.heartbeat_ms, 1, 1_000)?;
        in_range("--segment-bytes", self.segment_bytes, SEGMENT_SIZE_MIN, SEGMENT_SIZE_MAX)?;
        in_range("--pin-log-bytes", self.pin_log_bytes, PIN_LOG_BYTES_MIN, u64::MAX)?;
        in_range("--connections-max", self.connections_max as u64, 1, CONNECTIONS_MAX as u64)?;
        in_range("--min-insync", min_insync as u64, 1, (PEERS_MAX + 1) as u64)?;
        if role == RoleFlag::Leader && !peers.is_empty() && min_insync > peers.len() + 1 {
            return Err(format!(
                "--min-insync {} can never hold with {} node(s): at most {}",
                min_insync,
                peers.len() + 1,
                peers.len() + 1
            ));
        }
        let election = self.election_config(&own_address)?;
        in_range("--busy-poll-us", self.busy_poll_us, 0, 1_000_000)?;
        let beyond_loopback = !is_loopback(&self.listen);
        let snapshot = self.snapshot_config()?;
        let node = NodeConfig {
            port: self.port,
            own_address,
            role,
            peers,
            leader,
            ack,
            min_insync,
            insync_timeout_ms: self.insync_timeout_ms,
            heartbeat_ms: self.heartbeat_ms_for(&election),
            feed: crate::node::FeedLimits::default(),
            pin: PinConfig {
                log_bytes: self.pin_log_bytes,
                overflow: match self.pin_overflow {
                    PinOverflowChoice::Slow => PinOverflow::Slow,
                    PinOverflowChoice::Drop => PinOverflow::Drop,
                },
            },
            snapshot,
            election,
            receipts: !self.no_receipts,
            flush: match self.flush {
                FlushChoice::Inline => FlushMode::Inline,
                FlushChoice::Beside => FlushMode::Beside,
                FlushChoice::Auto => FlushMode::Auto,
            },
            flush_refused: None,
            wal: WalConfig {
                segment_bytes: self.segment_bytes,
                durability: match self.durability {
                    DurabilityChoice::Fsync => Durability::Fsync,
                    DurabilityChoice::Os => Durability::Os,
                },
            },
        };
        Ok(Config {
            node,
            listen_address,
            connections_max: self.connections_max,
            busy_poll_us: self.busy_poll_us,
            cpu: self.cpu,
            data_dir: self.data_dir.clone(),
            archive: self.archive.validate(&self.data_dir)?,
            strace_marks: self.strace_marks,
            beyond_loopback,
        })
    }

    fn snapshot_config(&self) -> Result<SnapshotConfig, String> {
        let bytes = self.snapshot_log_bytes.unwrap_or(u64::MAX);
        in_range("--snapshot-log-bytes", bytes, SNAPSHOT_LOG_BYTES_FLAG_MIN, u64::MAX)?;
        // A person who watches wants to see that it goes on; a log file, that it went.
        let progress_ms = if std::io::IsTerminal::is_terminal(&std::io::stderr()) { 1_000 } else { 5_000 };
        let (log_bytes, retain_log_bytes) = (self.snapshot_log_bytes, self.retain_log_bytes);
        Ok(SnapshotConfig { log_bytes, retain_log_bytes, progress_ms, ..SnapshotConfig::default() })
    }

    /// What this node tells others: `--advertise`, else where it listens, else (listening everywhere) only
    /// the port, and others take the address they see it at.
    fn own_address(&self, listen_address: &str) -> Result<String, String> {
        let explain = |error| format!("--advertise: {error}");
        match &self.advertise {
            Some(text) if text.contains(':') => parse_address(text).map_err(explain),
            Some(host) => join_address(host, self.port).map_err(explain),
            None if ["0.0.0.0", "::", "[::]"].contains(&self.listen.as_str()) => {
                Ok(format!(":{}", self.port))
            }
            None => Ok(listen_address.to_owned()),
        }
    }

    fn parse_peers(&self, own_address: &str) -> Result<Vec<String>, String> {
        let mut peers = Vec::new();
        for text in self.peers.iter().filter(|text| !text.is_empty()) {
            let peer = parse_address(text).map_err(|error| format!("--peers: {error}"))?;
            if peer == own_address {
                return Err(format!("--peers names {peer}, which is this node itself: leave it out"));
            }
            if peers.contains(&peer) {
                return Err(format!("--peers names {peer} twice"));
            }
            peers.push(peer);
        }
        if peers.len() > PEERS_MAX {
            return Err(format!("--peers names {} nodes; at most {PEERS_MAX} are possible", peers.len()));
        }
        Ok(peers)
    }

    fn parse_leader(&self, role: RoleFlag) -> Result<String, String> {
        match (&self.leader, role) {
            (Some(_), RoleFlag::Auto) => Err(refuse_with_auto("--leader", "the members elect one")),
            (Some(_), RoleFlag::Leader) => {
                Err("--leader is for a follower: add --role=follower, or leave it out".to_owned())
            }
            (Some(text), RoleFlag::Follower) => {
                parse_address(text).map_err(|error| format!("--leader: {error}"))
            }
            (None, _) => Ok(String::new()),
        }
    }
}

impl Config {
    /// Descriptors that all connections and the node itself may take.
    pub fn descriptors_needed(&self) -> u64 {
        (self.connections_max + DESCRIPTORS_RESERVED) as u64
    }

    /// What an acknowledgement means with these flags, for the banner.
    pub fn promise(&self) -> String {
        let node = &self.node;
        let nodes = node.peers.len() + 1;
        let disk = match node.wal.durability {
            Durability::Fsync => "on disk (fdatasync)",
            Durability::Os => "in the page cache (survives a crash of the process, not of the machine)",
        };
        if node.role == RoleFlag::Follower {
            return format!(
                "this node tells its leader of a record when it is {disk}; what an acknowledged write means is the \
                 leader's --ack"
            );
        }
        let whom = match (node.ack, node.peers.len()) {
            (_, 0) => "on this node".to_owned(),
            (AckPolicy::InSync, _) => format!("on this node and every follower in sync (of {nodes} nodes)"),
            (AckPolicy::Quorum, _) => {
                format!("on this node and a majority ({} of {nodes} nodes)", nodes / 2 + 1)
            }
            (AckPolicy::Majority, _) => format!("on any majority ({} of {nodes} nodes)", nodes / 2 + 1),
            (AckPolicy::Leader, _) => "on this node alone; followers get it later".to_owned(),
        };
        let least = if node.min_insync > 1 {
            format!(", on {} nodes at least", node.min_insync)
        } else {
            String::new()
        };
        format!("an acknowledged write is {disk} {whom}{least}")
    }
}

fn in_range(flag: &str, value: u64, min: u64, max: u64) -> Result<(), String> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{flag} {value}: allowed are {min} to {max}"))
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_matches(['[', ']']);
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

mod archive;
#[cfg(test)]
mod tests;
