//! The segments that are complete: everything but the last one, which is still written.
//!
//! A closed segment is durable to its last byte, because the next one begins only then. It is never written again but
//! by a cut that goes below its end; what is at or below the commit LSN is not cut.

use crate::ids::Lsn;

use super::Wal;

/// A segment that is not written any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedSegment {
    /// The name of its file.
    pub name: String,
    /// The first record in it.
    pub first_lsn: Lsn,
    /// The last record in it.
    pub last_lsn: Lsn,
    /// Bytes of its file, with what was allocated and is not used.
    pub bytes: u64,
}

impl Wal {
    /// The first closed segment with a record behind `lsn`.
    pub fn closed_behind(&self, lsn: Lsn) -> Option<ClosedSegment> {
        let ends = self.segments.iter().zip(self.segments.iter().skip(1));
        let mut closed = ends.map(|(segment, next)| ClosedSegment {
            name: segment.name.clone(),
            first_lsn: segment.header.first_lsn,
            last_lsn: next.header.first_lsn.prev(),
            bytes: segment.size,
        });
        closed.find(|segment| segment.last_lsn > lsn)
    }

    /// Closed segments with a record behind `lsn`, and their bytes.
    pub fn closed_count_behind(&self, lsn: Lsn) -> (usize, u64) {
        let later = self.segments.iter().skip(1);
        let at_or_below = later.take_while(|next| next.header.first_lsn.prev() <= lsn).count();
        let closed = self.segments.len().saturating_sub(1);
        let behind = &self.segments[at_or_below.min(closed)..closed];
        (behind.len(), behind.iter().map(|segment| segment.size).sum())
    }
}
