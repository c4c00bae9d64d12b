//! Making snapshots while the node serves: when one begins, its slices, when it gets its name.
//!
//! ```text
//! idle -> scanning       S is the LSN applied at the end of this turn
//!      -> settling       all slots were visited, E is the LSN applied now; writeback ends by itself
//!      -> waiting        the file is synced under its temporary name, and E is not committed yet
//!      -> idle           it has its name, durably; what the two newest make needless goes
//! ```
//!
//! Every role makes its own, and each step is one at the end of a turn (`pace` says how long a slice may take). A turn
//! applies records before its slice, so all that a slice reads is the state at one LSN.
//!
//! A snapshot that cannot be written ends with a warning and is begun again later: the log goes on as the only copy.
//! Only a directory that cannot be synced ends the process (see [`crate::snapshot`]).
//!
//! The scan also compares all entries with what was applied (see `divergence`): a snapshot of something else is given
//! up, as is one that is being made when a majority turns out to have another state.
//!
//! A cut below E takes a snapshot with it before it happens: `session_open` asks [`Node::drop_snapshots_behind`].

use std::mem;

use super::pace::Pace;
use super::snapshot_ask::published_document;
use super::snapshot_scan::Scan;
use super::{FatalReason, Node};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::limits::{
    LOAD_AT_ONCE_BYTES, RETAIN_LOG_BYTES_DEFAULT, SNAPSHOT_CHECK_MS, SNAPSHOT_RETRY_MS_MAX,
    SNAPSHOT_RETRY_MS_MIN, SNAPSHOT_SETTLE_MS, SNAPSHOTS_KEPT,
};
use crate::snapshot::{self, Finished, SnapshotError, SnapshotId, SnapshotInfo, SnapshotWriter, Start};
use crate::time::Time;
use crate::wal::{Durability, ReserveError};
use crate::wire::client::Status;
use crate::{log_info, log_warn};

/// When snapshots are made, and how a state is loaded.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotConfig {
    /// Bytes of log since the last one after which the next is made; `None`: twice the size of the last one, at
    /// least [`crate::limits::SNAPSHOT_LOG_BYTES_MIN`].
    pub log_bytes: Option<u64>,
    /// Bytes of log kept for a connected follower, at most.
    pub retain_log_bytes: u64,
    /// Bytes of snapshot and log up to which a state is loaded before the node serves.
    pub load_at_once_bytes: u64,
    /// Bytes of a slice, of making one and of loading, at most: what bounds it where the clock stands still.
    pub slice_bytes: u64,
    /// Milliseconds between the last write of a snapshot and its sync.
    pub settle_ms: u64,
    /// Milliseconds between two lines about the progress of a load.
    pub progress_ms: u64,
}

impl Default for SnapshotConfig {
    fn default() -> SnapshotConfig {
        SnapshotConfig {
            log_bytes: None,
            retain_log_bytes: RETAIN_LOG_BYTES_DEFAULT,
            load_at_once_bytes: LOAD_AT_ONCE_BYTES,
            slice_bytes: 64 << 20,
            settle_ms: SNAPSHOT_SETTLE_MS,
            progress_ms: 5_000,
        }
    }
}

#[derive(Debug, Default)]
pub(super) enum Phase {
    #[default]
    Idle,
    Scanning(Scan),
    Settling {
        scan: Scan,
        e: Lsn,
        until: Time,
    },
    Waiting(Finished),
}

/// The snapshots of this node, and the one that is being made.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Newest first.
    kept: Vec<SnapshotInfo>,
    /// Files under names of snapshots that cannot be used; they go when the next one has its name.
    unusable: Vec<SnapshotId>,
    pub phase: Phase,
    /// Who is answered when the one that is being made has its name.
    pub waiters: Vec<ConnId>,
    failures: u32,
    pub(super) retry_at: Time,
    check_at: Time,
    /// The last LSN when log bytes were looked at.
    checked: Lsn,
    pub last_error: Option<String>,
    began: Time,
}

impl Snapshots {
    pub fn new(kept: Vec<SnapshotInfo>, unusable: Vec<SnapshotId>) -> Snapshots {
        Snapshots { kept, unusable, ..Snapshots::default() }
    }

    /// The published ones, newest first.
    pub fn kept(&self) -> &[SnapshotInfo] {
        &self.kept
    }

    /// S of the one that is written and has no name yet.
    pub fn unpublished_s(&self) -> Option<Lsn> {
        match &self.phase {
            Phase::Waiting(finished) => Some(finished.info().id.s),
            _ => None,
        }
    }

    /// This one turned out to be damaged.
    pub fn disbelieve(&mut self, id: SnapshotId) {
        self.kept.retain(|info| info.id != id);
        self.unusable.push(id);
    }
}

impl Node {
    /// Begins one at what is applied now. `Err`: why it cannot be.
    pub(super) fn begin_snapshot(&mut self) -> Result<Result<(), String>, FatalReason> {
        let s = self.applied;
        let chain =
            self.wal.chain_at(self.disk.as_mut(), s)?.expect("what is applied is in the log or its base");
        let mut history = self.wal.history().clone();
        history.cut(s);
        let meta = self.meta.get();
        let mut peers = meta.peers.clone();
        peers.truncate(crate::limits::PEERS_MAX);
        let members = meta.members.at(s);
        let start =
            Start { cluster_id: meta.cluster_id, maker: meta.node_id, s, chain, history, peers, members };
        let estimate = self.snapshot_bytes_expected();
        match SnapshotWriter::begin(self.disk.as_mut(), estimate, start) {
            Ok(writer) => {
                let pace = Pace::new(self.now, self.last_work);
                self.snapshots.phase = Phase::Scanning(Scan { writer, s, began: self.now, pace });
                self.keyspace.begin_check();
                self.snapshots.began = self.now;
                log_info!("snapshot", "begins at LSN {s}: {} key(s)", self.keyspace.len());
                Ok(Ok(()))
            }
            Err(error) => {
                self.note_snapshot_failure(&error);
                if error.is_fatal() { Err(error.into()) } else { Ok(Err(error.to_string())) }
            }
        }
    }

    /// What is due at the end of a turn that had, or had not, something to do.
    pub(super) fn snapshot_step(&mut self, io: &mut dyn Io, had_work: bool) -> Result<(), FatalReason> {
        if had_work {
            self.last_work = self.now;
        }
        if !self.is_complete() {
            return Ok(());
        }
        if self.state_is_wrong() {
            self.give_up_snapshot(io);
            return Ok(());
        }
        self.begin_if_due()?;
        match mem::take(&mut self.snapshots.phase) {
            Phase::Idle => {}
            Phase::Scanning(scan) => self.scan_slice(io, scan, had_work)?,
            Phase::Settling { scan, e, until } if self.now >= until => self.finish_snapshot(io, scan, e)?,
            Phase::Waiting(finished) if self.effective_commit() >= finished.info().id.e => {
                self.publish_snapshot(io, finished)?;
            }
            waiting => self.snapshots.phase = waiting,
        }
        self.removal_step()
    }

    /// When [`Node::snapshot_step`] has something to do.
    pub(super) fn snapshot_deadline(&self) -> Option<Time> {
        if !self.is_complete() || self.state_is_wrong() {
            return None;
        }
        let snapshots = &self.snapshots;
        let own = match &snapshots.phase {
            Phase::Idle if self.scans_now() => Some(snapshots.retry_at),
            Phase::Idle if snapshots.checked == self.wal.last_lsn() => {
                (snapshots.failures > 0).then_some(snapshots.retry_at.max(snapshots.check_at))
            }
            Phase::Idle => Some(snapshots.check_at),
            Phase::Scanning(scan) => Some(scan.pace.due(self.now)),
            Phase::Settling { until, .. } => Some(*until),
            Phase::Waiting(finished) => (self.effective_commit() >= finished.info().id.e).then_some(self.now),
        };
        own.into_iter().chain(self.removal_deadline()).min()
    }

    fn begin_if_due(&mut self) -> Result<(), FatalReason> {
        let now = self.now;
        if self.scans_now() && now >= self.snapshots.retry_at {
            self.checks.wants_scan = self.begin_snapshot()?.is_err();
            return Ok(());
        }
        let snapshots = &mut self.snapshots;
        let retry_is_due = snapshots.failures > 0 && now >= snapshots.retry_at;
        let looked_at = snapshots.checked == self.wal.last_lsn() && !retry_is_due;
        if !matches!(snapshots.phase, Phase::Idle) || looked_at || now < snapshots.check_at {
            return Ok(());
        }
        snapshots.check_at = now.after_ms(SNAPSHOT_CHECK_MS);
        snapshots.checked = self.wal.last_lsn();
        self.removal.due = true;
        // The log may have grown by records that are not applied: a second one of this LSN would be the same file.
        let newest_s = self.snapshots.kept.first().map(|newest| newest.id.s);
        if newest_s == Some(self.applied) || self.log_bytes_since_snapshot() <= self.log_bytes_wanted() {
            self.snapshots.failures = 0;
            return Ok(());
        }
        if now >= self.snapshots.retry_at && self.snapshot_refusal().is_none() {
            // Why it cannot be was noted, and is tried again.
            let _noted = self.begin_snapshot()?;
        }
        Ok(())
    }

    fn finish_snapshot(&mut self, io: &mut dyn Io, scan: Scan, e: Lsn) -> Result<(), FatalReason> {
        match scan.writer.finish(self.disk.as_mut(), e) {
            Ok(finished) => {
                self.removal.due |= crate::sabotage::is(crate::sabotage::Variant::RemovalBeforePublish);
                self.snapshots.phase = Phase::Waiting(finished);
                Ok(())
            }
            Err(error) => self.snapshot_failed(io, error),
        }
    }

    fn publish_snapshot(&mut self, io: &mut dyn Io, finished: Finished) -> Result<(), FatalReason> {
        // The log up to E must survive whatever the name of the snapshot survives.
        if self.config.wal.durability == Durability::Os {
            let commit = self.effective_commit();
            match self.wal.write_mark(self.disk.as_mut(), commit) {
                Ok(()) => {}
                Err(ReserveError::Failed(error)) => return Err(error.into()),
                Err(ReserveError::FlushPending) => {
                    unreachable!("with `os` nothing is flushed beside the loop")
                }
                Err(ReserveError::NoRoom(source)) => {
                    let file = finished.info().name.clone();
                    finished.abandon(self.disk.as_mut());
                    return self.snapshot_failed(io, SnapshotError::NoRoom { file, source });
                }
            }
        }
        let info = match finished.publish(self.disk.as_mut()) {
            Ok(info) => info,
            Err(error) => return self.snapshot_failed(io, error),
        };
        let took_ms = self.now.since(self.snapshots.began) / 1_000_000;
        log_info!(
            "snapshot",
            "{} is durable: {} entries, {} bytes, LSN {}, after {took_ms} ms",
            info.name,
            info.entries,
            info.bytes,
            info.id
        );
        let text = published_document(&info, "durable");
        let snapshots = &mut self.snapshots;
        snapshots.kept.insert(0, info);
        (snapshots.failures, snapshots.last_error) = (0, None);
        self.counters.snapshots += 1;
        let waiters = mem::take(&mut snapshots.waiters);
        waiters.into_iter().for_each(|conn| self.finish_command(io, conn, Status::Ok, &text));
        self.begin_waiting_backup(io)?;
        self.remove_old_snapshots()?;
        self.removal.due = true;
        Ok(())
    }

    /// All but the newest go, before the log that they would need does.
    fn remove_old_snapshots(&mut self) -> Result<(), FatalReason> {
        let snapshots = &mut self.snapshots;
        let kept = snapshots.kept.len().min(SNAPSHOTS_KEPT);
        let old = snapshots.kept.split_off(kept);
        let mut gone: Vec<SnapshotId> = snapshots.unusable.drain(..).collect();
        for info in old {
            // It goes when the next one has its name.
            match self.is_being_sent(info.id) {
                true => self.snapshots.kept.push(info),
                false => gone.push(info.id),
            }
        }
        for id in gone {
            if let Err(error) = snapshot::remove(self.disk.as_mut(), id) {
                self.note_snapshot_failure(&error);
                self.snapshots.unusable.push(id);
                if error.is_fatal() {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// The snapshot that a leader sent is the state now: nothing that was before leads to it.
    pub(super) fn adopt_snapshot(&mut self, info: SnapshotInfo) -> Result<(), FatalReason> {
        let snapshots = &mut self.snapshots;
        let before = snapshots.kept.drain(..).map(|before| before.id);
        snapshots.unusable.extend(before);
        snapshots.unusable.retain(|id| *id != info.id);
        snapshots.kept.push(info);
        self.remove_old_snapshots()
    }

    pub(super) fn snapshot_failed(
        &mut self,
        io: &mut dyn Io,
        error: SnapshotError,
    ) -> Result<(), FatalReason> {
        self.note_snapshot_failure(&error);
        if error.is_fatal() {
            return Err(error.into());
        }
        self.answer_snapshot_waiters(io, &error.to_string());
        Ok(())
    }

    fn note_snapshot_failure(&mut self, error: &SnapshotError) {
        let snapshots = &mut self.snapshots;
        let wait_ms = SNAPSHOT_RETRY_MS_MIN << snapshots.failures.min(20);
        snapshots.failures += 1;
        snapshots.retry_at = self.now.after_ms(wait_ms.min(SNAPSHOT_RETRY_MS_MAX));
        let text = error.to_string();
        if snapshots.last_error.as_ref() != Some(&text) {
            log_warn!("snapshot", "{text}");
        }
        snapshots.last_error = Some(text);
    }

    pub(super) fn answer_snapshot_waiters(&mut self, io: &mut dyn Io, why: &str) {
        let waiters = mem::take(&mut self.snapshots.waiters);
        waiters.into_iter().for_each(|conn| self.finish_command(io, conn, Status::Refused, why));
        self.refuse_waiting_backup(io, why);
    }

    /// Gives up the one that is being made, if it may hold records behind `keep`.
    pub(super) fn abort_snapshot_behind(&mut self, io: &mut dyn Io, keep: Lsn) {
        let disk = self.disk.as_mut();
        match mem::take(&mut self.snapshots.phase) {
            Phase::Scanning(scan) if self.applied > keep => scan.writer.abandon(disk),
            Phase::Settling { scan, e, .. } if e > keep => scan.writer.abandon(disk),
            Phase::Waiting(finished) if finished.info().id.e > keep => finished.abandon(disk),
            unaffected => {
                self.snapshots.phase = unaffected;
                return;
            }
        }
        let why = format!("the snapshot was given up: the log is cut behind LSN {keep}");
        log_info!("snapshot", "{why}");
        self.answer_snapshot_waiters(io, &why);
    }

    /// Removes every snapshot that holds records behind `keep`, durably.
    pub(super) fn drop_snapshots_behind(&mut self, keep: Lsn) -> Result<(), FatalReason> {
        let (gone, kept) = mem::take(&mut self.snapshots.kept).into_iter().partition(|info| info.id.e > keep);
        self.snapshots.kept = kept;
        let gone: Vec<SnapshotInfo> = gone;
        let unusable = self.snapshots.unusable.iter().filter(|id| id.e > keep);
        let ids: Vec<SnapshotId> = gone.iter().map(|info| info.id).chain(unusable.copied()).collect();
        self.snapshots.unusable.retain(|id| id.e <= keep);
        // Where nothing is kept, the newest one is all there is of the records before the log's first.
        let aside = ids.first().copied().filter(|_| keep == Lsn::ZERO);
        for id in ids {
            if aside == Some(id) {
                let generation = self.meta.get().log_generation;
                let file = snapshot::set_aside(self.disk.as_mut(), id, generation)?;
                log_warn!("snapshot", "the snapshot of LSN {id} is given up, and kept as {file}");
                continue;
            }
            snapshot::remove(self.disk.as_mut(), id)?;
            log_warn!("snapshot", "removed the snapshot of LSN {id}: the log is cut behind LSN {keep}");
        }
        Ok(())
    }

    /// The process ends: what is half done is nothing.
    pub(super) fn abandon_snapshot(&mut self) {
        match mem::take(&mut self.snapshots.phase) {
            Phase::Scanning(scan) | Phase::Settling { scan, .. } => scan.writer.abandon(self.disk.as_mut()),
            Phase::Waiting(finished) => finished.abandon(self.disk.as_mut()),
            Phase::Idle => {}
        }
    }
}
