//! Closed segments are copied into a directory of the operator's (`--archive-dir`), while the node serves.
//!
//! ```text
//! closed -> idle        the directory is open; what its note says fits the log
//!        -> copying     the oldest closed segment that is not in it and is committed: read, checked, written, a slice
//!                       a turn (as for a snapshot: a tenth of a turn with work, `pace`)
//!        -> settling    all is written; writeback ends by itself
//!        -> flushing    the copy is synced, beside the loop where io_uring is there
//!        -> named       it has its name, durably
//!        -> idle        the note says so, durably
//! ```
//!
//! The invariant: *a segment is removed from the log only when its copy is durable, by content, name and note, or when
//! more than `--archive-log-bytes` of closed segments wait.* At that bound the oldest goes without a copy; that is said
//! with its LSNs, and counted. An archive never ends the process and never refuses a write: whatever fails there is
//! said once, the directory is closed, and tried again after [`ARCHIVE_RETRY_MS_MIN`] to [`ARCHIVE_RETRY_MS_MAX`], so
//! that a disk may come back, or another one be mounted.
//!
//! What was given up is so in the log of one generation only: behind a cut, and where a snapshot has replaced the log,
//! the same LSNs are other records, and wait for their copies like any.
//!
//! Only what is committed is copied. A log that was cut below that all the same (`follow --discard`, an older copy of
//! the data directory) no longer has the note's chain checksum at the note's LSN. Then what is in the archive behind
//! the beginning of the log is put aside there, and the log copied again. As long as the log does not reach that LSN,
//! nothing is known, and nothing is done.
//!
//! Left out: the segment that is still written. What is only in it is lost with the data directory; a follower has it.

use serde_json::{Value, json};

use super::Node;
use super::given_up::GivenUp;
use super::pace::Pace;
use crate::backup::{KeepError, Keeper, Note};
use crate::disk::Disk;
use crate::ids::{Chain, Lsn};
use crate::limits::{
    ARCHIVE_COPY_SIZE, ARCHIVE_LOG_BYTES_DEFAULT, ARCHIVE_LOOK_MS, ARCHIVE_RETRY_MS_MAX,
    ARCHIVE_RETRY_MS_MIN, SNAPSHOT_SETTLE_MS,
};
use crate::time::Time;
use crate::wal::{ClosedSegment, CopyCursor};
use crate::{log_info, log_warn};

/// Opens the directory anew, or says in words why that is not possible.
pub type OpenDirectory = Box<dyn FnMut() -> Result<Box<dyn Disk>, String>>;

/// How the archive is kept.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveConfig {
    /// Bytes of closed segments that wait for it, at most.
    pub log_bytes: u64,
    /// Bytes copied at once.
    pub copy_bytes: usize,
    /// Milliseconds between the last write of a copy and its sync.
    pub settle_ms: u64,
}

impl Default for ArchiveConfig {
    fn default() -> ArchiveConfig {
        ArchiveConfig {
            log_bytes: ARCHIVE_LOG_BYTES_DEFAULT,
            copy_bytes: ARCHIVE_COPY_SIZE,
            settle_ms: SNAPSHOT_SETTLE_MS,
        }
    }
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Closed,
    Idle(Keeper),
    Copying(Keeper, Box<Copy>),
    Settling(Keeper, ClosedSegment, Time),
    Flushing(Keeper, ClosedSegment),
    Named(Keeper, ClosedSegment),
}

#[derive(Debug)]
struct Copy {
    segment: ClosedSegment,
    cursor: CopyCursor,
    pace: Pace,
}

/// The archive of a node.
pub(super) struct Archive {
    open: OpenDirectory,
    place: String,
    config: ArchiveConfig,
    phase: Phase,
    /// Everything up to here is in it, durably, or was given up; and the chain checksum there. `None`: its note was
    /// not read yet, and everything counts as missing.
    at: Option<(Lsn, Chain)>,
    given_up: GivenUp,
    /// The generation of the log that `at` was compared with.
    compared: Option<u64>,
    failures: u32,
    retry_at: Time,
    last_error: Option<String>,
    copied: u64,
    /// Segments that went, or will never come, without a copy.
    missed: u64,
}

impl Node {
    /// Closed segments are copied into the directory that `open` opens. Before the first turn: a turn may remove some.
    pub fn keep_archive(&mut self, place: String, open: OpenDirectory, config: ArchiveConfig) {
        self.archive = Some(Box::new(Archive {
            open,
            place,
            config,
            phase: Phase::Closed,
            at: None,
            given_up: GivenUp::default(),
            compared: None,
            failures: 0,
            retry_at: self.now,
            last_error: None,
            copied: 0,
            missed: 0,
        }));
    }

    /// What is due at the end of a turn that had, or had not, something to do.
    pub(super) fn archive_step(&mut self, had_work: bool) {
        // A log that lacks what it once held gets it again: what the archive has of it is right.
        if !self.is_complete() || self.repair_due().is_some() {
            return;
        }
        let Some(mut archive) = self.archive.take() else { return };
        let phase = std::mem::take(&mut archive.phase);
        match self.archive_phase(&mut archive, phase, had_work) {
            Ok(next) => archive.phase = next,
            Err(error) => archive.failed(self.now, &error),
        }
        self.archive = Some(archive);
    }

    fn archive_phase(
        &mut self,
        archive: &mut Archive,
        phase: Phase,
        had_work: bool,
    ) -> Result<Phase, KeepError> {
        match phase {
            Phase::Closed if self.now >= archive.retry_at => self.open_archive(archive),
            Phase::Idle(keeper) => self.next_copy(archive, keeper),
            Phase::Copying(keeper, copy) => self.copy_slice(archive, keeper, copy, had_work),
            Phase::Settling(mut keeper, segment, until) if self.now >= until => {
                Ok(match keeper.flush_begin()? {
                    true => self.name_copy(keeper, segment)?,
                    false => Phase::Flushing(keeper, segment),
                })
            }
            Phase::Flushing(mut keeper, segment) => Ok(match keeper.flush_poll()? {
                true => self.name_copy(keeper, segment)?,
                false => Phase::Flushing(keeper, segment),
            }),
            Phase::Named(mut keeper, segment) => {
                self.note_copied(archive, &mut keeper, segment.last_lsn, segment.chain)?;
                archive.copied += 1;
                if archive.last_error.take().is_some() {
                    log_info!("archive", "{} takes segments again", archive.place);
                }
                archive.failures = 0;
                log_info!(
                    "archive",
                    "copied {}, LSN {} to {}",
                    segment.name,
                    segment.first_lsn,
                    segment.last_lsn
                );
                Ok(Phase::Idle(keeper))
            }
            waiting => Ok(waiting),
        }
    }

    fn open_archive(&mut self, archive: &mut Archive) -> Result<Phase, KeepError> {
        if self.meta.get().cluster_id.is_none() {
            return Ok(Phase::Closed);
        }
        let floor = self.log_floor()?;
        let disk = (archive.open)().map_err(KeepError::Unreachable)?;
        let (keeper, note) = Keeper::open(disk, self.note_at(floor))?;
        // A note that a failed sync has left in doubt may say more than is known to be durable.
        let at = archive.at.filter(|at| at.0 < note.lsn).unwrap_or((note.lsn, note.chain));
        if archive.at.is_none() {
            log_info!("archive", "{} holds closed segments up to LSN {}", archive.place, at.0);
        }
        archive.at = Some(at);
        archive.compared = None;
        self.removal.due = true;
        Ok(Phase::Idle(keeper))
    }

    /// Where the log begins, and the chain checksum there.
    fn log_floor(&mut self) -> Result<(Lsn, Chain), KeepError> {
        let lsn = self.wal.first_lsn().prev();
        let chain = self.wal.chain_at(self.disk.as_mut(), lsn).map_err(unreadable)?;
        Ok((lsn, chain.expect("a log knows the chain at its base")))
    }

    fn note_at(&self, (lsn, chain): (Lsn, Chain)) -> Note {
        let meta = self.meta.get();
        Note { cluster_id: meta.cluster_id, node_id: meta.node_id, lsn, chain }
    }

    fn note_copied(
        &mut self,
        archive: &mut Archive,
        keeper: &mut Keeper,
        lsn: Lsn,
        chain: Chain,
    ) -> Result<(), KeepError> {
        keeper.put_note(&self.note_at((lsn, chain)))?;
        archive.at = Some((lsn, chain));
        self.removal.due = true;
        Ok(())
    }

    /// Begins the next copy, if a segment is due.
    fn next_copy(&mut self, archive: &mut Archive, mut keeper: Keeper) -> Result<Phase, KeepError> {
        if archive.compared != Some(self.wal.generation()) && !self.compare_archive(archive, &mut keeper)? {
            return Ok(Phase::Idle(keeper));
        }
        let Some(segment) = self.segment_due(archive) else { return Ok(Phase::Idle(keeper)) };
        keeper.begin(segment.bytes)?;
        let cursor = self.wal.begin_copy(&segment);
        let pace = Pace::new(self.now, self.last_work);
        Ok(Phase::Copying(keeper, Box::new(Copy { segment, cursor, pace })))
    }

    /// The oldest closed segment that is committed and not in the archive.
    fn segment_due(&self, archive: &Archive) -> Option<ClosedSegment> {
        let given_up = archive.given_up.of_log(self.wal.generation());
        let segment = self.wal.closed_behind(archive.at?.0.max(given_up))?;
        (segment.last_lsn <= self.effective_commit()).then_some(segment)
    }

    /// Whether the log is the one that was copied, as far as it was; after that it is, in any case. False: the log
    /// does not reach so far, so that cannot be told.
    fn compare_archive(&mut self, archive: &mut Archive, keeper: &mut Keeper) -> Result<bool, KeepError> {
        let (lsn, chain) = archive.at.expect("an open archive has a note");
        if lsn > self.wal.written_lsn() {
            return Ok(false);
        }
        let floor = self.log_floor()?;
        if lsn < floor.0 {
            log_warn!(
                "archive",
                "records {} to {} are not in {}: the log begins behind them. A restore to a later LSN needs a backup \
                 from LSN {} on",
                lsn.next(),
                floor.0,
                archive.place,
                floor.0
            );
            archive.missed += 1;
            self.note_copied(archive, keeper, floor.0, floor.1)?;
        } else if self.wal.chain_at(self.disk.as_mut(), lsn).map_err(unreadable)? != Some(chain) {
            let moved = keeper.put_aside_behind(floor.0, self.wal.generation())?;
            log_warn!(
                "archive",
                "the log of this node went another way than what is in {}: {moved} segment(s) behind LSN {} were put \
                 aside there, and what the log holds is copied again",
                archive.place,
                floor.0
            );
            archive.given_up = GivenUp::default();
            self.note_copied(archive, keeper, floor.0, floor.1)?;
        }
        archive.compared = Some(self.wal.generation());
        Ok(true)
    }

    fn copy_slice(
        &mut self,
        archive: &Archive,
        mut keeper: Keeper,
        mut copy: Box<Copy>,
        had_work: bool,
    ) -> Result<Phase, KeepError> {
        // Cut, replaced, or gone at the bound.
        let is_still_due = self.segment_due(archive).as_ref() == Some(&copy.segment);
        if !copy.cursor.is_of(&self.wal) || !is_still_due {
            keeper.abandon();
            return Ok(Phase::Idle(keeper));
        }
        let begin = self.clock.now();
        let (_, behind) = self.wal.closed_count_behind(copy.segment.first_lsn.prev());
        copy.pace.hurry(behind > archive.config.log_bytes / 4);
        let until = Time(begin.0 + copy.pace.slice_ns(self.now, begin.since(self.now), had_work));
        let (mut at, mut is_whole, mut part) = (begin, false, Vec::new());
        while at < until && copy.pace.may_write() && !is_whole {
            part.clear();
            let (disk, bytes) = (self.disk.as_mut(), archive.config.copy_bytes);
            is_whole = self.wal.copy_some(disk, &mut copy.cursor, bytes, &mut part).map_err(unreadable)?;
            keeper.write(&part)?;
            copy.pace.wrote(part.len());
            at = self.clock.now();
        }
        copy.pace.used_ns(self.now, self.clock.now().since(begin));
        Ok(match is_whole {
            true => Phase::Settling(keeper, copy.segment, self.now.after_ms(archive.config.settle_ms)),
            false => Phase::Copying(keeper, copy),
        })
    }

    fn name_copy(&mut self, mut keeper: Keeper, segment: ClosedSegment) -> Result<Phase, KeepError> {
        keeper.publish(&segment.name)?;
        Ok(Phase::Named(keeper, segment))
    }

    /// As much of `limit` as the archive has, or has to do without: see the invariant at the head of this file.
    pub(super) fn archived_of(&mut self, limit: Lsn) -> Lsn {
        if crate::sabotage::is(crate::sabotage::Variant::ArchivedTooLate) {
            return limit;
        }
        let Some(mut archive) = self.archive.take() else { return limit };
        let limit = self.archived_up_to(&mut archive, limit);
        self.archive = Some(archive);
        limit
    }

    fn archived_up_to(&self, archive: &mut Archive, limit: Lsn) -> Lsn {
        let floor = self.wal.first_lsn().prev();
        // While that is not known, or the log was cut since, nothing counts as copied.
        let is_compared = archive.compared == Some(self.wal.generation());
        let known = archive.at.filter(|_| is_compared).map_or(floor, |at| at.0);
        let generation = self.wal.generation();
        let mut at = known.max(archive.given_up.of_log(generation));
        while let Some(segment) = self.wal.closed_behind(at).filter(|segment| segment.last_lsn <= limit) {
            let (count, bytes) = self.wal.closed_count_behind(at);
            if bytes <= archive.config.log_bytes {
                break;
            }
            log_warn!(
                "archive",
                "{} goes without a copy, records {} to {}: {bytes} bytes in {count} closed segments wait for {}, more \
                 than --archive-log-bytes={}. A restore to a later LSN needs a backup from there",
                segment.name,
                segment.first_lsn,
                segment.last_lsn,
                archive.place,
                archive.config.log_bytes
            );
            archive.missed += 1;
            at = segment.last_lsn;
            archive.given_up = GivenUp::in_log(generation, at);
        }
        at.min(limit)
    }

    /// When [`Node::archive_step`] has something to do.
    pub(super) fn archive_deadline(&self) -> Option<Time> {
        let archive = self.archive.as_ref()?;
        if !self.is_complete() || self.repair_due().is_some() {
            return None;
        }
        match &archive.phase {
            Phase::Closed if self.meta.get().cluster_id.is_none() => None,
            Phase::Closed => Some(archive.retry_at),
            Phase::Idle(_) => {
                let compares = archive.compared != Some(self.wal.generation())
                    && archive.at.is_some_and(|at| at.0 <= self.wal.written_lsn());
                (compares || self.segment_due(archive).is_some()).then_some(self.now)
            }
            Phase::Copying(_, copy) => Some(copy.pace.due(self.now)),
            Phase::Settling(_, _, until) => Some(*until),
            Phase::Flushing(..) => Some(self.now.after_ms(ARCHIVE_LOOK_MS)),
            Phase::Named(..) => Some(self.now),
        }
    }

    /// The process ends: half a copy is nothing.
    pub(super) fn abandon_copy(&mut self) {
        let Some(archive) = &mut self.archive else { return };
        if let Phase::Copying(mut keeper, _) | Phase::Settling(mut keeper, ..) =
            std::mem::take(&mut archive.phase)
        {
            keeper.abandon();
        }
    }

    /// For `status`.
    pub(super) fn archive_document(&self) -> Value {
        let Some(archive) = &self.archive else { return Value::Null };
        let at = archive.at.map(|at| at.0);
        let (segments, bytes) = self.wal.closed_count_behind(at.unwrap_or(Lsn::ZERO));
        let state = match archive.phase {
            _ if archive.last_error.is_some() => "failing",
            Phase::Closed => "closed",
            Phase::Idle(_) => "idle",
            _ => "copying",
        };
        json!({
            "directory": archive.place,
            "state": state,
            "lsn": at.map(|lsn| lsn.0),
            "segments_waiting": segments,
            "bytes_waiting": bytes,
            "bytes_max": archive.config.log_bytes,
            "copied": archive.copied,
            "missed": archive.missed,
            "last_error": archive.last_error,
        })
    }
}

impl Archive {
    /// The directory is closed, with what was half done in it, and opened again later.
    fn failed(&mut self, now: Time, error: &KeepError) {
        let wait_ms = ARCHIVE_RETRY_MS_MIN << self.failures.min(10);
        self.failures += 1;
        self.retry_at = now.after_ms(wait_ms.min(ARCHIVE_RETRY_MS_MAX));
        let text = error.to_string();
        if self.last_error.as_ref() != Some(&text) {
            log_warn!(
                "archive",
                "W009 no closed segment is copied to {} for now: {text}. It is tried again; up to \
                 --archive-log-bytes={} of log is kept meanwhile",
                self.place,
                self.config.log_bytes
            );
        }
        self.last_error = Some(text);
    }
}

fn unreadable(error: crate::wal::ReadError) -> KeepError {
    KeepError::Unreachable(format!("the log cannot be copied: {error}"))
}
