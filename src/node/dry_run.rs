//! What a start would make of a directory: the same steps as [`Node::open`](super::Node::open), in the same order,
//! up to a state that can be loaded. No table and no choice is made a second time.
//!
//! A start repairs as it goes, so this is run on a disk whose changes stay in memory ([`crate::disk::Overlay`]).
//!
//! Left out: the keyspace. The blocks of the chosen snapshot are checked as a load checks them, and the records behind
//! it were read when the log was opened; neither is applied. The role is the one that the directory remembers.

use super::load::Sources;
use super::role::start_role;
use super::start::log_identity;
use super::{
    ElectionConfig, FatalReason, FeedLimits, FlushMode, NodeConfig, PinConfig, RoleFlag, SnapshotConfig,
};
use crate::disk::Disk;
use crate::ids::Lsn;
use crate::limits::{HEARTBEAT_MS_DEFAULT, INSYNC_TIMEOUT_MS_DEFAULT, SEGMENT_SIZE_DEFAULT};
use crate::meta::{MetaStore, StoredRole};
use crate::replication::commit::AckPolicy;
use crate::snapshot::{ReadError, SnapshotInfo, SnapshotReader};
use crate::wal::{Durability, Opened, RecoveryReport, WalConfig};

/// How a start would end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The directory is fresh: a new node would begin.
    Fresh,
    /// A node would start with this log.
    Opens {
        /// The first LSN held.
        first_lsn: Lsn,
        /// The last one.
        last_lsn: Lsn,
        /// The file name of the snapshot it would load.
        snapshot: Option<String>,
        /// It would fetch from its leader what it held up to this LSN, and serve nothing before.
        repairs_until: Option<Lsn>,
    },
    /// It would refuse, in these words.
    Refuses(String),
}

/// What a start would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// How it would end.
    pub outcome: Outcome,
    /// What it would change or leave unused on the way, in words.
    pub notes: Vec<String>,
}

/// Runs a start on `disk`, which is changed as by a start.
pub fn dry_run(disk: &mut dyn Disk) -> DryRun {
    let mut notes = Vec::new();
    let outcome = run(disk, &mut notes).unwrap_or_else(|reason| Outcome::Refuses(reason.to_string()));
    DryRun { outcome, notes }
}

fn run(disk: &mut dyn Disk, notes: &mut Vec<String>) -> Result<Outcome, FatalReason> {
    let Some(mut meta) = MetaStore::load(disk)? else { return Ok(Outcome::Fresh) };
    notes.extend(meta.notices().iter().map(|notice| format!("would write META again: {notice}")));
    let config = config_of(meta.get().role);
    let (start, _) = start_role(meta.get().role, config.role, config.port).map_err(FatalReason::Role)?;
    let mut sources = Sources::find(disk, &log_identity(meta.get()))?;
    loop {
        let follows = start.fetches_again();
        let Opened { wal, report } = sources.open_log(disk, &mut meta, follows, &config, 0)?;
        note_report(&report, notes);
        wal.close(disk);
        match verify(disk, sources.chosen()) {
            Ok(()) => {
                notes.extend(sources.tried().iter().map(|why| format!("would not use a snapshot: {why}")));
                let repair = meta.get().repair;
                return Ok(Outcome::Opens {
                    first_lsn: report.first_lsn,
                    last_lsn: report.last_lsn,
                    snapshot: sources.chosen().map(|info| info.name.clone()),
                    repairs_until: repair.is_due().then_some(repair.until),
                });
            }
            Err(error) => sources.on_unreadable(&error),
        }
    }
}

/// Reads every block, as a load does.
fn verify(disk: &mut dyn Disk, chosen: Option<&SnapshotInfo>) -> Result<(), ReadError> {
    let Some(info) = chosen else { return Ok(()) };
    let mut reader = SnapshotReader::open(disk, &info.name, Some(info.cluster_id))?;
    let result = reader.verify(disk);
    reader.close(disk);
    result
}

fn note_report(report: &RecoveryReport, notes: &mut Vec<String>) {
    if let Some(kept) = &report.completed_cut {
        notes.push(format!(
            "would complete a cut: LSN {} to {} go aside to {}",
            kept.first, kept.last, kept.file
        ));
    }
    if let Some(tail) = &report.cut_tail {
        notes.push(format!(
            "would cut a torn tail of {} B off {} at byte {}, behind LSN {}",
            tail.bytes, tail.file, tail.offset, tail.behind
        ));
    }
    let dropped = report.dropped.iter();
    notes.extend(dropped.map(|dropped| format!("would remove {}: {}", dropped.file, dropped.reason)));
    let damaged = report.damaged.iter();
    notes
        .extend(damaged.map(|file| format!("would cut in front of damage, and keep a file aside as {file}")));
}

/// What the node would be told, as far as the steps here ask.
fn config_of(stored: StoredRole) -> NodeConfig {
    let role = match stored {
        StoredRole::FollowerByFlags | StoredRole::FollowerByCommand => RoleFlag::Follower,
        StoredRole::Elected => RoleFlag::Auto,
        _ => RoleFlag::Leader,
    };
    NodeConfig {
        port: 0,
        own_address: String::new(),
        role,
        peers: Vec::new(),
        leader: String::new(),
        ack: AckPolicy::InSync,
        min_insync: 1,
        insync_timeout_ms: INSYNC_TIMEOUT_MS_DEFAULT,
        heartbeat_ms: HEARTBEAT_MS_DEFAULT,
        receipts: false,
        wal: WalConfig { segment_bytes: SEGMENT_SIZE_DEFAULT, durability: Durability::Fsync },
        flush: FlushMode::Inline,
        flush_refused: None,
        feed: FeedLimits::default(),
        pin: PinConfig::default(),
        snapshot: SnapshotConfig::default(),
        election: ElectionConfig::default(),
    }
}
