//! What the log loses at its front: segments that no snapshot needs, or all of it for a snapshot.
//!
//! A segment is removed whole and only when every record in it is covered by a state that is durable; who calls
//! vouches for that. The names go oldest first and are synced once, so that a power loss may bring any of them back.
//! That is harmless: what lies below the base is only useful, and the next open keeps of it what leads to the base
//! without a gap.

use crate::disk::Disk;
use crate::ids::Lsn;

use super::Wal;
use super::cut::{KeptAside, Source, keep_aside, remove_segments};
use super::error::WalError;
use super::mark::{Claims, MARK_SIZE};
use super::segment::Segment;
use super::start::Base;

impl Wal {
    /// Removes segments whose records are all at or below `lsn`, oldest first and at most `segments_max`, durably.
    /// Returns their names; none if there is nothing to remove. The segment that is written is never removed.
    ///
    /// The snapshot that covers these records is durable, file and name, before. Cursors that stand in later segments
    /// stay good; one that stands in a removed one finds that its LSN is not held.
    pub fn remove_before(
        &mut self,
        disk: &mut dyn Disk,
        lsn: Lsn,
        segments_max: usize,
    ) -> Result<Vec<String>, WalError> {
        assert!(!self.failed, "the log failed; the process must end");
        let later = self.segments.iter().skip(1);
        let covered = later.take_while(|next| next.header.first_lsn.prev() <= lsn).count().min(segments_max);
        if covered == 0 {
            return Ok(Vec::new());
        }
        self.remove_files(disk, covered).inspect_err(|_| self.failed = true)?;
        let removed = self.segments.drain(..covered).map(|segment| segment.name).collect();
        self.segments_gone += covered;
        self.note_floor();
        self.invariants();
        Ok(removed)
    }

    fn remove_files(&mut self, disk: &mut dyn Disk, count: usize) -> Result<(), WalError> {
        for segment in &self.segments[..count] {
            if let Some(file) = self.read_files.release(segment.header.first_lsn) {
                disk.close(file);
            }
            let name = &segment.name;
            disk.remove(name).map_err(|error| WalError::new(disk, "remove", name, 0, error))?;
        }
        disk.sync_dir().map_err(|error| WalError::new(disk, "sync the directory", "", 0, error))
    }

    /// Bytes of marks and entries from the record `lsn` on, or from the first one held if that is later. Exact to
    /// about 64 KiB; of a segment that was not scanned, the unused rest counts too.
    pub fn log_bytes_from(&self, lsn: Lsn) -> u64 {
        if self.segments.is_empty() {
            return 0;
        }
        let lsn = lsn.max(self.first_lsn());
        let own = self.segment_of(lsn);
        let in_own = self.segments[own].end - self.segments[own].nearest(lsn).offset;
        let behind = self.segments[own + 1..].iter().map(|segment| segment.end - segment.start().offset);
        in_own + behind.sum::<u64>()
    }

    /// Puts an empty log behind `base` in the place of this one, and begins `new_generation`. No flush is under way.
    ///
    /// The caller has made its own record durable before: the new generation, cut LSN 0, and the base. From then on
    /// no segment of an older generation is part of the log, and what this does is tidying, which the next open
    /// completes after a crash at any point. When it returns, the LSNs behind the base may be used.
    ///
    /// For an installed snapshot nothing is kept of the old log: where it diverged it was cut before. A base of LSN 0
    /// is what is left to a follower that must cut below the first record it holds and has no state from there: that
    /// is a cut of everything, and what is taken back is kept in a file.
    pub fn reset(
        &mut self,
        disk: &mut dyn Disk,
        base: &Base,
        new_generation: u64,
    ) -> Result<Option<KeptAside>, WalError> {
        assert!(self.in_flight.is_none(), "an install waits for the flush under way");
        assert!(new_generation > self.generation, "an install begins a later generation");
        let claims = Claims { generation: new_generation, cut_lsn: Lsn::ZERO };
        let kept = self.remove_all(disk, base, claims).inspect_err(|_| self.failed = true)?;
        self.segments_gone += self.segments.len();
        self.segments.clear();
        self.batch.truncate(MARK_SIZE);
        (self.generation, self.floor) = (new_generation, (base.lsn, base.chain));
        self.history.clone_from(&base.history);
        self.reset_to(base.lsn, base.chain);
        self.commit_lsn = base.lsn;
        Ok(kept)
    }

    fn remove_all(
        &mut self,
        disk: &mut dyn Disk,
        base: &Base,
        claims: Claims,
    ) -> Result<Option<KeptAside>, WalError> {
        let kept = if base.lsn == Lsn::ZERO { self.keep_all_aside(disk, claims)? } else { None };
        self.read_files.close_from(disk, Lsn::ZERO);
        if let Some(file) = self.active.take() {
            disk.close(file);
        }
        remove_segments(disk, self.segments.iter().map(|segment| segment.name.as_str()))?;
        Ok(kept)
    }

    fn keep_all_aside(&mut self, disk: &mut dyn Disk, claims: Claims) -> Result<Option<KeptAside>, WalError> {
        if self.batch_bytes() > 0 {
            self.write_batch(disk)?;
        }
        let source = |segment: &Segment| Source::new(segment, segment.start(), segment.end);
        let sources: Vec<Source> = self.segments.iter().map(source).collect();
        keep_aside(disk, self.cluster_id, claims, &sources)
    }
}
