//! The status document: the node as its operator sees it.

use serde_json::{Value, json};

use super::leader::{Leader, Link, Peer};
use super::{Node, Role};
use crate::conn::Io;
use crate::ids::{Lsn, Term};
use crate::ledger::{Syscall, count};
use crate::replication::divergence::Fault;

/// What the simulator compares after every turn; the same facts as in the status document, without the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The highest term met.
    pub term: Term,
    /// Whether it leads.
    pub leads: bool,
    /// Last LSN appended.
    pub last: Lsn,
    /// Last LSN on disk.
    pub durable: Lsn,
    /// Highest LSN known to be committed and held.
    pub commit: Lsn,
    /// Last LSN in the keyspace.
    pub applied: Lsn,
    /// Whether the state is that of `applied`, and not a part of a snapshot or a mixture before its end.
    pub complete: bool,
    /// Log generation.
    pub generation: u64,
    /// A cut below the commit LSN is allowed by an operator.
    pub discard_allowed: bool,
    /// Of a follower: the leader's last word about it. Kept over a restart.
    pub in_sync: bool,
    /// Of a follower: it repairs until this LSN; or 0.
    pub repair_until: Lsn,
    /// The term and round of the newest frame of a leader's: sent, or heard in the session.
    pub round: (Term, u64),
    /// Bytes of records appended and not applied.
    pub in_flight_bytes: usize,
    /// Connections that are neither closed nor about to be.
    pub connections: usize,
    /// Of a leader: address, match LSN and whether it is in sync, for each follower.
    pub peers: Vec<(String, Lsn, bool)>,
    /// Of a leader: the followers that repair.
    pub repairing: Vec<String>,
    /// What is known to be wrong with its state.
    pub state_fault: Option<Fault>,
}

impl Node {
    /// See [`Observed`].
    pub fn observe(&self) -> Observed {
        let meta = self.meta.get();
        let round = match &self.role {
            Role::Leader(leader) => leader.round(),
            Role::Follower(follower) => follower.session.as_ref().map_or(0, |session| session.round()),
            Role::Deposed => 0,
        };
        let leader = self.leader();
        let repairing = leader.into_iter().flat_map(|leader| &leader.peers);
        let repairing = repairing.filter(|peer| peer.progress.repairs_until().is_some());
        let of = |peer: &Peer| (peer.address.clone(), peer.progress.match_lsn(), peer.progress.in_sync());
        Observed {
            term: meta.term,
            leads: self.leader().is_some(),
            last: self.wal.last_lsn(),
            durable: self.wal.durable().lsn(),
            commit: self.effective_commit(),
            applied: self.applied,
            complete: self.is_complete(),
            generation: self.wal.generation(),
            discard_allowed: meta.discard_allowed,
            in_sync: meta.in_sync,
            repair_until: meta.repair.until,
            round: (meta.term, round),
            in_flight_bytes: self.inflight.size(),
            connections: self.conns.len(),
            peers: leader.map_or_else(Vec::new, |leader| leader.peers.iter().map(of).collect()),
            repairing: repairing.map(|peer| peer.address.clone()).collect(),
            state_fault: self.checks.standing.fault,
        }
    }

    /// The document as JSON text. LSNs, terms and counts are numbers; the term of a u64 is also given as
    /// text, `PROMOTION.START`.
    pub(super) fn status_document(&mut self, io: &mut dyn Io) -> String {
        let meta = self.meta.get();
        let leader_id = (!meta.leader_id.is_none()).then(|| meta.leader_id.to_string());
        let leads = self.leader().is_some();
        let in_sync = match &self.role {
            Role::Leader(_) => true,
            Role::Follower(follower) => follower.session.is_some() && (meta.in_sync || self.is_member()),
            Role::Deposed => false,
        };
        let known = self.leader_address_for_clients();
        let address = match leads {
            true => &self.config.own_address,
            false if self.is_elected() => &known,
            false => &meta.leader_address,
        };
        let durability = match self.config.wal.durability {
            crate::wal::Durability::Fsync => "fsync",
            crate::wal::Durability::Os => "os",
        };
        let node = json!({
            "node_id": meta.node_id.to_string(),
            "cluster_id": (!meta.cluster_id.is_none()).then(|| meta.cluster_id.to_string()),
            "address": self.config.own_address,
            "role": self.role.name(),
            "term": meta.term.as_u64(),
            "term_text": meta.term.to_string(),
            "leader": (!address.is_empty()).then_some(address),
            "leader_id": leader_id,
            "in_sync": in_sync,
            "in_sync_nodes": self.leader().map(super::leader::Leader::in_sync_count),
        });
        let log = json!({
            "first_lsn": self.wal.first_lsn().0,
            "last_lsn": self.wal.last_lsn().0,
            "durable_lsn": self.wal.durable().lsn().0,
            "commit_lsn": self.commit_to_tell().0,
            "applied_lsn": self.applied.0,
            "log_generation": self.wal.generation(),
            "log_bytes": self.wal.log_bytes_from(self.wal.first_lsn()),
            "snapshot": self.snapshot_document(),
            "archive": self.archive_document(),
            "loading": self.loading_document(),
            "complete": self.is_complete(),
        });
        let state = json!({
            "keys": self.keyspace.len(),
            "client_sessions": self.keyspace.sessions().len(),
            "data_bytes": self.keyspace.data_bytes(),
            "memory_bytes": self.keyspace.memory_bytes(),
            "overhead_bytes": self.keyspace.memory_bytes().saturating_sub(self.keyspace.data_bytes()),
            "bytes_per_key": self.keyspace.memory_bytes().checked_div(self.keyspace.len()),
            "state_hash": format!("{:032x}", self.keyspace.state_hash()),
            "state_check": self.state_check_document(),
            "in_flight_bytes": self.inflight.size(),
        });
        let rest = json!({
            "election": self.election_document(),
            "ack": self.config.ack.name(),
            "min_insync": self.config.min_insync,
            "insync_timeout_ms": self.config.insync_timeout_ms,
            "durability": durability,
            "flush": self.config.flush.name(),
            "flush_refused": self.config.flush_refused,
            "flush_stalled_ms": self.flush_stalled_ms(),
            "read_only_reason": self.read_only_reason(),
            "repair": self.repair_due().map(|repair| json!({
                "lsn": self.wal.last_lsn().0,
                "until_lsn": repair.until.0,
            })),
            "uptime_s": self.now.since(self.started) / 1_000_000_000,
            "version": env!("CARGO_PKG_VERSION"),
            "pid": own_pid(),
            "connections": self.conns.len(),
            "counters": self.counters.document(),
            "peers": self.peers_document(io),
            "latency": self.latency_document(),
        });
        joined([node, log, state, rest]).to_string()
    }

    fn read_only_reason(&self) -> Option<String> {
        if self.is_loading() {
            return Some(self.incomplete_text());
        }
        if self.state_is_wrong() {
            return Some(self.wrong_state_text());
        }
        match &self.role {
            Role::Leader(_) if self.shutdown.is_some() => Some("the node is about to end".to_owned()),
            Role::Leader(_) => None,
            Role::Follower(_) => {
                Some(self.repair_text().unwrap_or_else(|| "follower: writes go to the leader".to_owned()))
            }
            Role::Deposed => Some(format!(
                "deposed: it led until it met term {}; `kv_client --port {} follow ADDR` makes it a follower",
                self.meta.get().term,
                self.config.port
            )),
        }
    }

    fn peers_document(&self, io: &mut dyn Io) -> Value {
        let last = self.wal.last_lsn();
        let present = self.leader().into_iter().flat_map(Leader::present);
        present.map(|peer| self.peer_document(io, peer, last)).collect()
    }

    fn peer_document(&self, io: &mut dyn Io, peer: &Peer, last: Lsn) -> Value {
        let match_lsn = peer.progress.match_lsn();
        let buffered_bytes = match &peer.link {
            Link::Streaming(stream) => io.output(stream.conn).len(),
            Link::Sending(transfer) => io.output(transfer.conn).len(),
            _ => 0,
        };
        let snapshot = match &peer.link {
            Link::Sending(transfer) => transfer.document(),
            _ => Value::Null,
        };
        json!({
            "address": peer.address,
            "node_id": peer.node_id.map(|id| id.to_string()),
            "state": peer.state_name(),
            "votes": peer.votes(),
            "in_sync": peer.progress.in_sync(),
            "match_lsn": match_lsn.0,
            "repair_until_lsn": peer.progress.repairs_until().map(|until| until.0),
            "lag": last.0.saturating_sub(match_lsn.0),
            "lag_bytes": Value::Null,
            "buffered_bytes": buffered_bytes,
            "last_ack_ms_ago": peer.last_ack.map(|time| self.now.since(time) / 1_000_000),
            "last_error": peer.last_error,
            // Objects come last: the scripts of this project read fields up to the first brace.
            "snapshot": snapshot,
            "state_check": peer.state.document(),
        })
    }
}

fn own_pid() -> u32 {
    count(Syscall::Getpid);
    std::process::id()
}

/// The fields of all of them in one document, in order.
fn joined<const N: usize>(parts: [Value; N]) -> Value {
    let fields = parts.into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(fields.flatten().collect())
}
