//! From a data directory to a node.

use super::follower::Follower;
use super::leader::Leader;
use super::load::Sources;
use super::replog::LineLimit;
use super::role::{StartRole, start_role};
use super::{
    Budgets, ConnTable, Counters, Elect, FatalReason, Inflight, Node, NodeConfig, Pins, Removal, Role,
    RoleFlag, Snapshots,
};
use crate::disk::Disk;
use crate::ids::{Chain, ClusterId, Lsn, NodeId};
use crate::keyspace::Keyspace;
use crate::marks::Marks;
use crate::meta::{Meta, MetaStore, Repair, StoredRole};
use crate::replication::members::Membership;
use crate::rng::Rng;
use crate::time::{Clock, LoopClock};
use crate::trace::Trace;
use crate::wal::{Identity, Opened, RecoveryReport};
use crate::{log_info, log_warn};

/// The first log generation of a data directory.
const FIRST_GENERATION: u64 = 1;

impl Node {
    /// Opens or creates the node in this directory. What it returns has told nobody anything yet, and all
    /// of its log is durable. `seed` makes ids, salts and jitter.
    pub fn open(
        mut disk: Box<dyn Disk>,
        clock: Box<dyn Clock>,
        seed: u64,
        config: NodeConfig,
    ) -> Result<Node, FatalReason> {
        let mut rng = Rng::new(seed);
        let mut meta = open_meta(disk.as_mut(), &mut rng, &config)?;
        let (start, warning) =
            start_role(meta.get().role, config.role, config.port).map_err(FatalReason::Role)?;
        if let Some(warning) = warning {
            log_warn!("node", "{warning}");
        }
        let salt = rng.next_u64();
        let mut sources = Sources::find(disk.as_mut(), &log_identity(meta.get()))?;
        let follows = start.fetches_again();
        let Opened { wal, report } = sources.open_log(disk.as_mut(), &mut meta, follows, &config, salt)?;
        log_recovery(&report);
        let keyspace = Keyspace::new([rng.next_u64(), rng.next_u64()]);
        let (now, last) = (clock.now(), wal.last_lsn());
        let published_e = sources.chosen().map_or(Lsn::ZERO, |info| info.id.e);
        let credit_max_ns = (config.heartbeat_ms.min(config.insync_timeout_ms / 4)).max(1) * 1_000_000;
        let mut node = Node {
            disk,
            clock,
            rng,
            meta,
            wal,
            under_way: None,
            slow_sync_at: None,
            last_read: None,
            keyspace,
            inflight: Inflight::default(),
            due: super::apply::Due::default(),
            freshness: super::reads::Freshness::default(),
            read_at: None,
            applied: Lsn::ZERO,
            complete_at: Lsn::ZERO,
            // What has its name was committed, whatever the marks of the log that was read can tell.
            commit: report.commit_lsn.max(published_e).min(last),
            heard_commit: report.commit_lsn.max(published_e),
            load: None,
            snapshots: Snapshots::default(),
            backup: super::Backup::default(),
            archive: None,
            pins: Pins::default(),
            removal: Removal::default(),
            had_work: false,
            last_work: now,
            role: Role::Follower(Follower::default()),
            elect: Elect::Fixed,
            conns: ConnTable::new(),
            dials: Vec::new(),
            greeted: Vec::new(),
            next_dial: 1,
            promotion: None,
            loop_clock: LoopClock::new(now, credit_max_ns),
            now,
            started: now,
            sent_lines: LineLimit::default(),
            received_lines: LineLimit::default(),
            ack_lines: LineLimit::default(),
            shutdown: None,
            spare_retry_at: now,
            zeros_at: now,
            install: None,
            checks: super::StateChecks::default(),
            state_is_given_up: false,
            slowness: None,
            trace: config.receipts.then(|| Trace::new(0, last.next())),
            marks: Marks::default(),
            last_refusal: String::new(),
            frames: super::Frames { started: now, first_lsn: last.next(), ..Default::default() },
            counters: Counters::default(),
            budgets: Budgets::default(),
            config,
        };
        if node.begin_load(sources, start)? <= node.config.snapshot.load_at_once_bytes {
            node.load_to_end()?;
        }
        Ok(node)
    }

    /// The state is loaded: the node takes the role that flags and directory give it.
    pub(super) fn take_role(&mut self, start: StartRole) -> Result<(), FatalReason> {
        match start {
            StartRole::Follow => self.start_following()?,
            StartRole::Deposed => self.role = Role::Deposed,
            StartRole::Lead => self.start_leading()?,
            StartRole::Elect => self.start_elected()?,
        }
        Ok(())
    }

    fn start_following(&mut self) -> Result<(), FatalReason> {
        if self.meta.get().role == StoredRole::Unset {
            let leader = self.config.leader.clone();
            self.meta.update(self.disk.as_mut(), |meta| {
                meta.role = StoredRole::FollowerByFlags;
                meta.leader_address = leader;
            })?;
        }
        Ok(())
    }

    fn start_leading(&mut self) -> Result<(), FatalReason> {
        let term = self.meta.get().term.restarted().ok_or(FatalReason::TermsExhausted)?;
        let role = match self.meta.get().role {
            StoredRole::LeaderByPromotion => StoredRole::LeaderByPromotion,
            _ => StoredRole::LeaderByFlags,
        };
        // A promoted node has its peers from its old leader's session, unless the flags name some.
        let promoted = role == StoredRole::LeaderByPromotion && self.config.peers.is_empty();
        let peers = if promoted { self.meta.get().peers.clone() } else { self.config.peers.clone() };
        self.lead(term, role, peers)
    }

    /// Leads in `term` from now on: durable first, then the term's first record.
    pub(super) fn lead(
        &mut self,
        term: crate::ids::Term,
        role: StoredRole,
        peers: Vec<String>,
    ) -> Result<(), FatalReason> {
        let own_address = self.config.own_address.clone();
        let (stored, cluster_id) = (peers.clone(), ClusterId(self.rng.bytes16()));
        self.meta.update(self.disk.as_mut(), |meta| {
            meta.term = term;
            meta.role = role;
            meta.leader_id = meta.node_id;
            meta.leader_address = own_address;
            meta.peers = stored;
            meta.in_sync = true;
            // Who leads has what it has; by force only, as `promote` has said, with what may be lost.
            meta.repair = Repair::default();
            if meta.cluster_id.is_none() {
                meta.cluster_id = cluster_id;
            }
        })?;
        self.wal.set_cluster(self.meta.get().cluster_id);
        // What the old leader knew to be committed beyond this log is not in it. The LSNs will be given out again,
        // and nobody has acknowledged those records.
        self.commit = self.commit.min(self.wal.last_lsn());
        log_info!("node", "leading in term {term} with {} peer(s): {}", peers.len(), peers.join(", "));
        self.role =
            Role::Leader(Box::new(Leader::new(peers, &self.config, self.now, self.wal.last_lsn().next())));
        self.forget_question();
        let next = self.wal.last_lsn().next();
        self.trace =
            self.config.receipts.then(|| Trace::new(self.leader().map_or(0, |l| l.peers.len()), next));
        self.note_unapplied()?;
        self.append_term_record(term)
    }
}

fn open_meta(disk: &mut dyn Disk, rng: &mut Rng, config: &NodeConfig) -> Result<MetaStore, FatalReason> {
    if let Some(loaded) = MetaStore::load(disk)? {
        loaded.notices().iter().for_each(|notice| log_warn!("meta", "{notice}"));
        return Ok(loaded);
    }
    let cluster_id = match config.role {
        RoleFlag::Leader => ClusterId(rng.bytes16()),
        RoleFlag::Follower | RoleFlag::Auto => ClusterId::NONE,
    };
    let fresh = Meta {
        cluster_id,
        node_id: NodeId(rng.bytes16()),
        term: crate::ids::Term::ZERO,
        vote: NodeId::NONE,
        role: StoredRole::Unset,
        leader_id: NodeId::NONE,
        leader_address: String::new(),
        peers: Vec::new(),
        members: Membership::default(),
        follows_elected: false,
        own_address: String::new(),
        in_sync: false,
        log_generation: FIRST_GENERATION,
        cut_lsn: Lsn::ZERO,
        base_lsn: Lsn::ZERO,
        base_chain: Chain::ZERO,
        discard_allowed: false,
        repair: Repair::default(),
    };
    log_info!("node", "new data directory {}, node id {}", disk.describe(), fresh.node_id);
    Ok(MetaStore::create(disk, fresh)?)
}

/// What the record says of the log.
pub(super) fn log_identity(meta: &Meta) -> Identity {
    Identity {
        cluster_id: meta.cluster_id,
        generation: meta.log_generation,
        cut_lsn: meta.cut_lsn,
        base_lsn: meta.base_lsn,
        base_chain: meta.base_chain,
    }
}

pub(super) fn log_recovery(report: &RecoveryReport) {
    if let Some(kept) = &report.completed_cut {
        log_warn!("wal", "completed a cut that was interrupted: {kept}");
    }
    report.dropped.iter().for_each(|dropped| log_warn!("wal", "{dropped}"));
    if let Some(tail) = &report.cut_tail {
        log_warn!("wal", "{tail}");
    }
    log_info!(
        "wal",
        "log opened segments={} lsn={}..{} commit_at_least={} rewritten_bytes={}",
        report.segments,
        report.first_lsn,
        report.last_lsn,
        report.commit_lsn,
        report.rewritten_bytes
    );
}
