//! The write-ahead log: what makes a record durable, and what decides after a crash which records there are.
//!
//! What it promises:
//!
//! 1. *No LSN without room.* [`Wal::append`] takes only what [`Wal::reserve`] made room for, in a segment whose
//!    bytes are allocated. A full disk is an answer ([`ReserveError::NoRoom`]), never a failed write.
//! 2. *A token is a proof.* A [`Durable`] is made here alone, after the sync that it names; it carries the log
//!    generation, so that one from before a cut releases nothing.
//! 3. *Damage is never cut.* What a mark or a header of this generation (or, up to the cut, of an older one) says
//!    was durable must read after a restart, or the log does not open. Above that there is only a tail: it is
//!    cut whatever survived behind it, zeroed, and reported. [`Wal::open_repairing`] alone begins with what is whole
//!    before the damage, after the node has noted durably what it gives up; the damaged files are kept aside.
//! 4. *A restart tells nothing that a power loss can take back.* What the scan accepts may come from a page cache
//!    that never reached the disk: everything above the last durable claim is written again in place and synced,
//!    files and directory, before [`Wal::open`] returns.
//! 5. *No old byte is read as valid.* The checksum of an entry is the chain over all records up to it; the checksum
//!    of a mark begins with the segment's secret salt and the mark's own place.
//! 6. *An LSN is used again only behind a cut that is durable*, or above everything that was known durable.
//!    A cut is a new generation: the node's own record of (generation, cut LSN) is durable first, then
//!    [`Wal::cut`] works, then the LSNs are used again. A crash between is completed by the next open.
//! 7. *A segment is durable before the next one begins.* So only the last segment has a tail, and the header
//!    of a segment is itself a claim: everything before its first LSN was durable. The sync that proves it never
//!    runs beside another flush, whose failure it could swallow ([`ReserveError::FlushPending`]).
//! 8. *A log begins where a state ends.* What is missing at its start must be covered by a [`Base`]; `start` has the
//!    invariants. Segments are removed whole, oldest first, and never the one that is written.
//!
//! How a batch is written: `reserve` and `append` for each record, then one `write` (one system call, with the
//! mark in front), then one flush for all. Nothing is allocated per record once the batch buffer has its size.
//!
//! Files: `segment` (header block), `mark`, `entry` (and the walk over both) hold the format, byte by byte;
//! `start`, `scan` and `survey` find, `recovery` decides, `open` repairs, `damage` keeps aside what cannot be repaired;
//! `writer`, `zeros`, `reader`, `cut`, `closed` and `remove` are the running log; `look` is for a person;
//! `archived` reads segments of a log that is not open here.
//!
//! What is deliberately absent: no knowledge of snapshots beyond the base that one gives, no compression, no
//! recycling of segment files (zeros written ahead give the same without old records in the way), no thread, no
//! clock, and no retry of a failed sync: the first failure of a write or sync ends the process, and using the log after
//! one is a bug (asserted).

mod archived;
mod closed;
mod cut;
mod damage;
mod entry;
mod error;
mod look;
mod mark;
mod open;
mod reader;
mod recovery;
mod remove;
mod scan;
mod segment;
mod start;
mod survey;
mod writer;
mod zeros;

use crate::disk::FileId;
use crate::ids::{Chain, ClusterId, Lsn, Term};
use crate::replication::history::TermHistory;

pub use archived::{ArchivedEnd, archived_segments, read_archived};
pub use closed::{ClosedSegment, CopyCursor};
pub use cut::KeptAside;
pub use damage::{Seen, highest_seen};
pub use entry::ENTRY_HEADER_SIZE;
pub use error::{Damage, OpenError, ReadError, ReserveError, WalError};
pub use look::{KeptLook, SegmentContent, SegmentLook, SegmentState, look_at_kept, look_at_segments};
pub use mark::MARK_SIZE;
pub use open::{CutTail, Opened, RecoveryReport};
pub use reader::{Cursor, ReadRange};
pub use segment::{FORMAT_VERSION, HEADER_SIZE, SPARE_NAME, parse_segment_name, segment_name};
pub use start::{Base, Dropped, Identity};
pub use writer::Durable;

use reader::ReadFiles;
use segment::{Header, Segment};
use zeros::Zeros;

/// What a flush means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A flush is an `fdatasync`: what has a token survives a loss of power.
    Fsync,
    /// A flush is nothing: what has a token survives the process, not the machine. Rotation, cut and open sync
    /// all the same (once per segment), so that a loss of power costs a tail and never the log.
    Os,
}

/// How the log is kept.
#[derive(Clone, Copy, Debug)]
pub struct WalConfig {
    /// Bytes of a segment file; one record larger than that gets a file of its own size.
    pub segment_bytes: u64,
    /// What a flush means.
    pub durability: Durability,
}

/// The log of a node, open for appending.
///
/// Invariants, checked by `invariants()` where state changes:
/// - `synced_lsn <= written_lsn <= last_lsn`, `told_lsn <= written_lsn`;
/// - the batch holds exactly the records `written_lsn + 1 ..= last_lsn`, behind room for its mark;
/// - segments are in LSN order without gaps, and all but the last are durable;
/// - the floor is right below the first segment; without segments it is the last LSN.
#[derive(Debug)]
pub struct Wal {
    config: WalConfig,
    cluster_id: ClusterId,
    generation: u64,
    salt: u64,
    /// The LSN before the first one held, and the chain there.
    floor: (Lsn, Chain),
    /// Oldest first. Those at or below the base were not scanned: their `end` is the end of the file.
    segments: Vec<Segment>,
    /// Segments removed from the front, or replaced, since the log was opened.
    segments_gone: usize,
    /// The last segment's file.
    active: Option<FileId>,
    /// Up to where zeros were written ahead in the active segment.
    zeros: Zeros,
    /// A file allocated ahead, under [`SPARE_NAME`].
    spare: Option<Spare>,
    /// Room for the mark, then entries.
    batch: Vec<u8>,
    /// Bytes of the batch for which room is reserved in the active segment.
    reserved: u64,
    history: TermHistory,
    last_lsn: Lsn,
    last_chain: Chain,
    /// Handed to the operating system, and the chain there.
    written_lsn: Lsn,
    written_chain: Chain,
    /// On the disk itself: what marks may claim.
    synced_lsn: Lsn,
    /// The highest LSN of a token.
    told_lsn: Lsn,
    /// The highest commit LSN that was to be written into a mark.
    commit_lsn: Lsn,
    /// What the flush under way will prove.
    in_flight: Option<Durable>,
    /// A write or sync failed: the process must end.
    failed: bool,
    read_files: ReadFiles,
}

#[derive(Clone, Copy, Debug)]
struct Spare {
    file: FileId,
    bytes: u64,
    zeros: Zeros,
}

impl Wal {
    /// The first LSN held; the one after `last_lsn` if there is none.
    pub fn first_lsn(&self) -> Lsn {
        self.floor.0.next()
    }

    /// The last LSN appended.
    pub fn last_lsn(&self) -> Lsn {
        self.last_lsn
    }

    /// The chain checksum at [`Wal::last_lsn`].
    pub fn last_chain(&self) -> Chain {
        self.last_chain
    }

    /// The last LSN handed to the operating system; reads end here.
    pub fn written_lsn(&self) -> Lsn {
        self.written_lsn
    }

    /// The last LSN that is durable in the sense of [`WalConfig::durability`].
    pub fn durable_lsn(&self) -> Lsn {
        match self.config.durability {
            Durability::Fsync => self.synced_lsn,
            Durability::Os => self.synced_lsn.max(self.told_lsn),
        }
    }

    /// The generation of the log: how often it was cut.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The terms of the log.
    pub fn history(&self) -> &TermHistory {
        &self.history
    }

    /// The term of the last record.
    pub fn last_term(&self) -> Term {
        self.history.last().map_or(Term::ZERO, |start| start.term)
    }

    /// Names the cluster, before the first record of an empty log. A cluster is never changed.
    pub fn set_cluster(&mut self, cluster_id: ClusterId) {
        let unset = self.cluster_id.is_none() && self.segments.is_empty();
        assert!(unset || self.cluster_id == cluster_id, "the log belongs to cluster {}", self.cluster_id);
        self.cluster_id = cluster_id;
    }

    /// The segments at the front changed: where the log begins now.
    fn note_floor(&mut self) {
        if let Some(Header { first_lsn, chain_before, .. }) = self.segments.first().map(|first| &first.header)
        {
            self.floor = (first_lsn.prev(), *chain_before);
        }
    }

    fn invariants(&self) {
        assert!(self.synced_lsn <= self.written_lsn && self.written_lsn <= self.last_lsn);
        assert!(self.told_lsn <= self.written_lsn);
        assert!(self.batch.len() >= MARK_SIZE);
        assert!((self.batch.len() == MARK_SIZE) == (self.written_lsn == self.last_lsn));
        assert!(self.segments.is_empty() == self.active.is_none());
        let floor_below = self.segments.first().map_or(self.last_lsn, |first| first.header.first_lsn.prev());
        assert!(self.floor.0 == floor_below);
    }
}
