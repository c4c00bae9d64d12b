//! The segments that are complete: everything but the last one, which is still written. And copies of them.
//!
//! A closed segment is durable to its last byte, because the next one begins only then. It is never written again but
//! by a cut that goes below its end; what is at or below the commit LSN is not cut unless an operator says so.
//!
//! A copy has the bytes of the file up to the end of the last record, and each of them was checked on its way: the
//! header against the one in memory, marks and records against their places in the chain. So rot between the writing
//! of a segment and its copying does not pass for a copy.

use crate::disk::Disk;
use crate::ids::{Chain, Lsn};

use super::Wal;
use super::entry::{Item, Position, Walk};
use super::error::{ReadError, WalError, path};
use super::segment::HEADER_SIZE;

/// A segment that is not written any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedSegment {
    /// The name of its file.
    pub name: String,
    /// The first record in it.
    pub first_lsn: Lsn,
    /// The last record in it.
    pub last_lsn: Lsn,
    /// The chain checksum at the last record.
    pub chain: Chain,
    /// Bytes of its file, with what was allocated and is not used.
    pub bytes: u64,
}

/// How far the copying of a closed segment has come.
#[derive(Clone, Debug)]
pub struct CopyCursor {
    first_lsn: Lsn,
    last: (Lsn, Chain),
    generation: u64,
    /// `None`: not even the header.
    at: Option<Position>,
}

impl CopyCursor {
    /// Whether the log is still the one that the copying began with.
    pub fn is_of(&self, wal: &Wal) -> bool {
        self.generation == wal.generation
    }
}

impl Wal {
    /// The first closed segment with a record behind `lsn`.
    pub fn closed_behind(&self, lsn: Lsn) -> Option<ClosedSegment> {
        let at = self.closed_at_or_below(lsn);
        let (segment, next) = (self.segments.get(at)?, &self.segments.get(at + 1)?.header);
        Some(ClosedSegment {
            name: segment.name.clone(),
            first_lsn: segment.header.first_lsn,
            last_lsn: next.first_lsn.prev(),
            chain: next.chain_before,
            bytes: segment.size,
        })
    }

    /// Closed segments with a record behind `lsn`, and their bytes.
    pub fn closed_count_behind(&self, lsn: Lsn) -> (usize, u64) {
        let closed = self.segments.len().saturating_sub(1);
        let behind = &self.segments[self.closed_at_or_below(lsn).min(closed)..closed];
        (behind.len(), behind.iter().map(|segment| segment.size).sum())
    }

    /// Segments that are followed by one, and end at or below `lsn`.
    fn closed_at_or_below(&self, lsn: Lsn) -> usize {
        let later = self.segments.get(1..).unwrap_or(&[]);
        later.partition_point(|next| next.header.first_lsn.prev() <= lsn)
    }

    /// Begins the copying of a closed segment.
    pub fn begin_copy(&self, segment: &ClosedSegment) -> CopyCursor {
        CopyCursor {
            first_lsn: segment.first_lsn,
            last: (segment.last_lsn, segment.chain),
            generation: self.generation,
            at: None,
        }
    }

    /// Puts the next bytes of the segment into `out`: about `max_bytes`, and at least one record. True: these were the
    /// last ones. The log is the one that the copying began with ([`CopyCursor::is_of`]).
    ///
    /// # Errors
    /// If they cannot be read, or are not what was written.
    pub fn copy_some(
        &mut self,
        disk: &mut dyn Disk,
        cursor: &mut CopyCursor,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        assert!(cursor.is_of(self), "a copy of a log that was cut or replaced is begun again");
        let (first, last) = (self.first_lsn(), self.written_lsn);
        if cursor.first_lsn < first {
            return Err(ReadError::NotHeld { lsn: cursor.first_lsn, first, last });
        }
        let index = self.segment_of(cursor.first_lsn);
        let from = match cursor.at {
            Some(at) => at,
            None => self.copy_header(disk, index, out)?,
        };
        let to = self.walk_for_copy(disk, index, from, cursor.last, max_bytes)?;
        let start = out.len();
        out.resize(start + (to.offset - from.offset) as usize, 0);
        let file = self.file_of(disk, index)?;
        let read = disk.read_exact_at(file, from.offset, &mut out[start..]);
        read.map_err(|error| self.read_failed(disk, index, from.offset, error))?;
        cursor.at = Some(to);
        // A log that was written past the page cache is not in it.
        disk.read_ahead(file, to.offset, max_bytes as u64);
        Ok(to.next > cursor.last.0)
    }

    /// Returns where the records begin.
    fn copy_header(
        &mut self,
        disk: &mut dyn Disk,
        index: usize,
        out: &mut Vec<u8>,
    ) -> Result<Position, ReadError> {
        let file = self.file_of(disk, index)?;
        let start = out.len();
        out.resize(start + HEADER_SIZE as usize, 0);
        let read = disk.read_exact_at(file, 0, &mut out[start..]);
        read.map_err(|error| self.read_failed(disk, index, 0, error))?;
        let segment = &self.segments[index];
        if out[start..] != segment.header.encode() {
            let lsn = segment.header.first_lsn;
            return Err(ReadError::Damaged { file: path(disk, &segment.name), offset: 0, lsn });
        }
        Ok(segment.start())
    }

    /// Checks marks and records from a position on. Returns where to copy up to.
    fn walk_for_copy(
        &mut self,
        disk: &mut dyn Disk,
        index: usize,
        from: Position,
        last: (Lsn, Chain),
        max_bytes: usize,
    ) -> Result<Position, ReadError> {
        let file = self.file_of(disk, index)?;
        let segment = &self.segments[index];
        let mut walk = Walk {
            file,
            seed: segment.header.seed(),
            at: from,
            end: segment.end,
            chunk: max_bytes,
            window: &mut self.read_files.window,
        };
        walk.window.clear();
        while walk.at.next <= last.0 && walk.at.offset - from.offset < max_bytes as u64 {
            let offset = walk.at.offset;
            let item = walk
                .next(disk)
                .map_err(|error| ReadError::Io(WalError::new(disk, "read", &segment.name, offset, error)))?;
            if matches!(item, Item::Stop(_)) {
                let file = path(disk, &segment.name);
                return Err(ReadError::Damaged { file, offset, lsn: walk.at.next });
            }
        }
        if walk.at.next > last.0 && walk.at.chain != last.1 {
            let file = path(disk, &segment.name);
            return Err(ReadError::Damaged { file, offset: walk.at.offset, lsn: last.0 });
        }
        Ok(walk.at)
    }

    fn read_failed(&self, disk: &dyn Disk, index: usize, offset: u64, error: std::io::Error) -> ReadError {
        ReadError::Io(WalError::new(disk, "read", &self.segments[index].name, offset, error))
    }
}
