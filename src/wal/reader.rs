//! Reading back what was written: for a follower that lags, for replay, and for one chain checksum.
//!
//! Only the active segment's file is always open; a few others are kept open in the order of their use, so
//! that a log of any length costs a bounded number of descriptors.

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, Lsn};
use crate::wire::Record;

use super::Wal;
use super::entry::{Item, Position, Walk, Window};
use super::error::{ReadError, WalError, path};

/// Files of closed segments kept open, at most: one per follower that is fed from the log, about.
const READ_FILES_MAX: usize = 8;
/// Bytes read at once, at most.
pub(super) const CHUNK_SIZE: usize = 1 << 20;
/// Bytes read at once for a single chain checksum: one index stride.
const PROBE_SIZE: usize = 64 << 10;

/// Where a sequential reader stands, so that the next read does not search.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    at: Option<Place>,
}

/// A position in a segment of a generation.
#[derive(Clone, Copy, Debug)]
struct Place {
    generation: u64,
    /// The number of the segment, counted from the first one that the log had when it was opened: a log loses
    /// segments at its front, and those at its end with their generation.
    segment: usize,
    position: Position,
}

/// What a read appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// LSN of the first record.
    pub first: Lsn,
    /// LSN of the last record.
    pub last: Lsn,
    /// How many records.
    pub count: u32,
    /// The chain checksum at the last.
    pub chain: Chain,
}

/// Files of closed segments, the last used last.
#[derive(Debug, Default)]
pub(super) struct ReadFiles {
    open: Vec<(Lsn, FileId)>,
    pub(super) window: Window,
}

impl ReadFiles {
    /// Takes over a file that is open already.
    pub fn adopt(&mut self, disk: &mut dyn Disk, first_lsn: Lsn, file: FileId) {
        if self.open.len() >= READ_FILES_MAX {
            disk.close(self.open.remove(0).1);
        }
        self.open.push((first_lsn, file));
    }

    /// Closes all that begin at or behind `first_lsn`.
    pub fn close_from(&mut self, disk: &mut dyn Disk, first_lsn: Lsn) {
        self.open.retain(|&(first, file)| {
            let keep = first < first_lsn;
            if !keep {
                disk.close(file);
            }
            keep
        });
    }

    /// Gives the file that begins at `first_lsn` away, if it is open.
    pub fn release(&mut self, first_lsn: Lsn) -> Option<FileId> {
        let at = self.open.iter().position(|&(first, _)| first == first_lsn)?;
        Some(self.open.remove(at).1)
    }
}

impl Wal {
    /// The chain checksum at `lsn`; `None` if the log does not hold it, or it is not written yet.
    pub fn chain_at(&mut self, disk: &mut dyn Disk, lsn: Lsn) -> Result<Option<Chain>, ReadError> {
        if lsn == self.last_lsn {
            return Ok(Some(self.last_chain));
        }
        if lsn == self.floor.0 {
            return Ok(Some(self.floor.1));
        }
        if lsn > self.written_lsn || lsn < self.floor.0 {
            return Ok(None);
        }
        let segment = self.segment_of(lsn);
        let next = self.segments.get(segment + 1).map(|next| &next.header);
        if let Some(next) = next.filter(|next| next.first_lsn == lsn.next()) {
            return Ok(Some(next.chain_before));
        }
        self.position_behind(disk, segment, lsn).map(|position| Some(position.chain))
    }

    /// Appends the bytes of the records from `from` on to `out`: as many as fit into `max_bytes`, at least one,
    /// and none that is not written yet. Every one is checked against the chain.
    pub fn read(
        &mut self,
        disk: &mut dyn Disk,
        cursor: &mut Cursor,
        from: Lsn,
        max_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<ReadRange, ReadError> {
        let start = out.len();
        let mut range = ReadRange { first: from, last: from, count: 0, chain: Chain::ZERO };
        let chunk = max_bytes.clamp(4096, CHUNK_SIZE);
        let to = self.written_lsn;
        self.walk(disk, cursor, (from, to), chunk, &mut |record, bytes, chain| {
            if range.count > 0 && out.len() - start + bytes.len() > max_bytes {
                return false;
            }
            out.extend_from_slice(bytes);
            range = ReadRange { first: from, last: record.lsn, count: range.count + 1, chain };
            true
        })
        .inspect_err(|_| out.truncate(start))?;
        Ok(range)
    }

    /// Hands over the records `from ..= to` in order. An empty range does nothing.
    pub fn replay(
        &mut self,
        disk: &mut dyn Disk,
        from: Lsn,
        to: Lsn,
        each: &mut dyn FnMut(&Record<'_>),
    ) -> Result<(), ReadError> {
        if from > to {
            return Ok(());
        }
        self.walk(disk, &mut Cursor::default(), (from, to), CHUNK_SIZE, &mut |record, _, _| {
            each(record);
            true
        })
    }

    /// As [`Wal::replay`], a part at a time: until `each` turns a record down. The cursor then stands before that one,
    /// from which the next call goes on.
    pub fn replay_some(
        &mut self,
        disk: &mut dyn Disk,
        cursor: &mut Cursor,
        (from, to): (Lsn, Lsn),
        each: &mut dyn FnMut(&Record<'_>) -> bool,
    ) -> Result<(), ReadError> {
        self.walk(disk, cursor, (from, to), CHUNK_SIZE, &mut |record, _, _| each(record))
    }

    /// Walks over `from ..= to`, over segment boundaries, until `each` turns a record down. The cursor then
    /// stands before that one.
    fn walk(
        &mut self,
        disk: &mut dyn Disk,
        cursor: &mut Cursor,
        (from, to): (Lsn, Lsn),
        chunk: usize,
        each: &mut dyn FnMut(&Record<'_>, &[u8], Chain) -> bool,
    ) -> Result<(), ReadError> {
        let (first, last) = (self.first_lsn(), self.written_lsn);
        for lsn in [from, to] {
            if lsn < first || lsn > last {
                return Err(ReadError::NotHeld { lsn, first, last });
            }
        }
        let mut place = self.place(disk, cursor, from)?;
        loop {
            let index = place.segment - self.segments_gone;
            let behind_segment = self.segments.get(index + 1).map(|next| next.header.first_lsn);
            let stop_at = behind_segment.map_or(to.next(), |first| first.min(to.next()));
            let went_on = self.walk_segment(disk, &mut place, stop_at, chunk, each)?;
            if !went_on || place.position.next > to {
                break;
            }
            place.segment += 1;
            place.position = self.segments[index + 1].start();
        }
        cursor.at = Some(place);
        Ok(())
    }

    fn place(&mut self, disk: &mut dyn Disk, cursor: &Cursor, from: Lsn) -> Result<Place, ReadError> {
        let known = cursor.at.filter(|at| at.generation == self.generation && at.position.next == from);
        let segment = self.segment_of(from);
        let position = match known {
            Some(at) if at.segment == segment + self.segments_gone => at.position,
            _ if from == self.segments[segment].header.first_lsn => self.segments[segment].start(),
            _ => self.position_behind(disk, segment, from.prev())?,
        };
        Ok(Place { generation: self.generation, segment: segment + self.segments_gone, position })
    }

    /// Walks until the next record would be `stop_at`; false if `each` ended it.
    fn walk_segment(
        &mut self,
        disk: &mut dyn Disk,
        place: &mut Place,
        stop_at: Lsn,
        chunk: usize,
        each: &mut dyn FnMut(&Record<'_>, &[u8], Chain) -> bool,
    ) -> Result<bool, ReadError> {
        let index = place.segment - self.segments_gone;
        let file = self.file_of(disk, index)?;
        let segment = &mut self.segments[index];
        let mut walk = Walk {
            file,
            seed: segment.header.seed(),
            at: place.position,
            end: segment.end,
            chunk,
            window: &mut self.read_files.window,
        };
        walk.window.clear();
        while walk.at.next < stop_at {
            let offset = walk.at.offset;
            let item = walk
                .next(disk)
                .map_err(|error| ReadError::Io(WalError::new(disk, "read", &segment.name, offset, error)))?;
            match item {
                Item::Mark(_) => {}
                Item::Entry { bytes, record, chain } => {
                    if !each(&record, bytes, chain) {
                        return Ok(false);
                    }
                    // One that was not scanned gets its index when it is read.
                    segment.note(place.position);
                }
                Item::Stop(_) => {
                    let file = path(disk, &segment.name);
                    return Err(ReadError::Damaged { file, offset, lsn: walk.at.next });
                }
            }
            place.position = walk.at;
        }
        Ok(true)
    }

    /// The index of the segment that holds `lsn`, or will.
    pub(super) fn segment_of(&self, lsn: Lsn) -> usize {
        let behind = self.segments.partition_point(|segment| segment.header.first_lsn <= lsn);
        behind.checked_sub(1).expect("only LSNs of the log are looked up")
    }

    /// The position behind the record `lsn`, which the segment holds.
    pub(super) fn position_behind(
        &mut self,
        disk: &mut dyn Disk,
        segment: usize,
        lsn: Lsn,
    ) -> Result<Position, ReadError> {
        let position = self.segments[segment].nearest(lsn);
        let number = segment + self.segments_gone;
        let mut place = Place { generation: self.generation, segment: number, position };
        self.walk_segment(disk, &mut place, lsn.next(), PROBE_SIZE, &mut |_, _, _| true)?;
        Ok(place.position)
    }

    /// The open file of a segment.
    pub(super) fn file_of(&mut self, disk: &mut dyn Disk, segment: usize) -> Result<FileId, ReadError> {
        if segment + 1 == self.segments.len() {
            return Ok(self.active.expect("the last segment is open"));
        }
        let first_lsn = self.segments[segment].header.first_lsn;
        let file = match self.read_files.release(first_lsn) {
            Some(file) => file,
            None => {
                let name = &self.segments[segment].name;
                disk.open(name).map_err(|error| ReadError::Io(WalError::new(disk, "open", name, 0, error)))?
            }
        };
        self.read_files.adopt(disk, first_lsn, file);
        Ok(file)
    }
}
