//! Reads a tail from bytes as they come: an object that bytes are put into, in order, in pieces of any size.
//!
//! It holds what it cannot judge yet, at most one record and what was put in behind it. A length is checked before
//! memory is taken for it. A record is handed out only when the chain proves it to be the one behind the last.

use crate::ids::{Chain, ClusterId, Lsn};
use crate::limits::{RECORD_OVERHEAD, RECORD_SIZE_MAX};
use crate::snapshot::{SnapshotId, SnapshotInfo};
use crate::wal::ENTRY_HEADER_SIZE;
use crate::wire::{Reader, Record};

use super::error::Fault;
use super::tail::{TAIL_FOOTER_SIZE, TAIL_HEADER_SIZE, TailFooter, TailHeader, word};

/// What the bytes so far allow.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// More bytes are needed before anything can be said.
    Needs,
    /// The next record, checked.
    Record {
        /// As on the wire.
        bytes: &'a [u8],
        /// The same, decoded.
        record: Record<'a>,
        /// The chain checksum at it.
        chain: Chain,
    },
    /// The footer was reached, and everything holds.
    Done,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Header,
    Entries(TailHeader),
    Done(TailHeader),
}

/// Invariant: `buffer[from..]` are the bytes from `offset` of the file on, not judged yet.
#[derive(Debug)]
pub(super) struct TailParser {
    snapshot: SnapshotInfo,
    buffer: Vec<u8>,
    from: usize,
    offset: u64,
    stage: Stage,
    at: Lsn,
    chain: Chain,
    entry_bytes: u64,
}

impl TailParser {
    /// A parser for the tail of this snapshot, which stands right behind it.
    pub fn new(snapshot: SnapshotInfo) -> TailParser {
        let (offset, at, chain) = (snapshot.bytes, snapshot.id.s, snapshot.chain);
        TailParser {
            snapshot,
            buffer: Vec::new(),
            from: 0,
            offset,
            stage: Stage::Header,
            at,
            chain,
            entry_bytes: 0,
        }
    }

    /// The byte of the file where what was not judged begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The snapshot before it, and its cluster.
    pub fn snapshot(&self) -> (SnapshotId, ClusterId) {
        (self.snapshot.id, self.snapshot.cluster_id)
    }

    /// What the header says, once it was read.
    pub fn header(&self) -> Option<&TailHeader> {
        match &self.stage {
            Stage::Header => None,
            Stage::Entries(header) | Stage::Done(header) => Some(header),
        }
    }

    /// The last record handed out, and the chain checksum there.
    pub fn position(&self) -> (Lsn, Chain) {
        (self.at, self.chain)
    }

    /// Takes the bytes that come next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.from);
        self.from = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next step, as far as the bytes so far allow one.
    pub fn step(&mut self) -> Result<Step<'_>, Fault> {
        let header = match self.stage {
            Stage::Done(_) if self.from < self.buffer.len() => {
                return Err(Fault::Damaged("bytes follow the end of the backup"));
            }
            Stage::Done(_) => return Ok(Step::Done),
            Stage::Header => match self.take_header()? {
                Some(header) => header,
                None => return Ok(Step::Needs),
            },
            Stage::Entries(header) => header,
        };
        if self.at == header.last { self.footer(header) } else { self.entry() }
    }

    fn take_header(&mut self) -> Result<Option<TailHeader>, Fault> {
        let held = &self.buffer[self.from..];
        let Some(bytes) = held.first_chunk::<TAIL_HEADER_SIZE>() else {
            return Ok(None);
        };
        let header = TailHeader::decode(bytes)?;
        let info = &self.snapshot;
        let begins = (header.cluster_id, header.s, header.chain, header.snapshot_crc);
        if begins != (info.cluster_id, info.id.s, info.chain, info.crc) || header.last < info.id.e {
            return Err(Fault::Damaged("the tail belongs to another snapshot than the one before it"));
        }
        self.stage = Stage::Entries(header);
        self.take(TAIL_HEADER_SIZE);
        Ok(Some(header))
    }

    fn entry(&mut self) -> Result<Step<'_>, Fault> {
        let held = self.buffer.len() - self.from;
        if held < ENTRY_HEADER_SIZE {
            return Ok(Step::Needs);
        }
        let head = &self.buffer[self.from..self.from + ENTRY_HEADER_SIZE];
        let (crc, length) = (Chain(word(head, 0)), word(head, 4) as usize);
        if !(RECORD_OVERHEAD..=RECORD_SIZE_MAX).contains(&length) {
            return Err(Fault::Damaged("the record has a length that no record has"));
        }
        let size = ENTRY_HEADER_SIZE + length;
        if held < size {
            return Ok(Step::Needs);
        }
        let body = self.from + ENTRY_HEADER_SIZE..self.from + size;
        let chain = self.chain.extend(&self.buffer[body.clone()]);
        if chain != crc {
            return Err(Fault::Damaged("the checksum of the record does not hold"));
        }
        let next = self.at.next();
        self.take(size);
        self.entry_bytes += size as u64;
        let bytes = &self.buffer[body];
        let mut reader = Reader::new(bytes);
        match Record::decode(&mut reader) {
            Ok(record) if record.lsn == next && reader.left() == 0 => {
                (self.at, self.chain) = (next, chain);
                Ok(Step::Record { bytes, record, chain })
            }
            _ => Err(Fault::Damaged("the record has another LSN, or a type that this version does not know")),
        }
    }

    fn footer(&mut self, header: TailHeader) -> Result<Step<'_>, Fault> {
        let held = self.buffer.len() - self.from;
        if held < TAIL_FOOTER_SIZE {
            return Ok(Step::Needs);
        }
        let counted = TailFooter {
            records: header.last.0 - header.s.0,
            entry_bytes: self.entry_bytes,
            chain: self.chain,
            header_crc: header.crc(),
        };
        counted.check(&self.buffer[self.from..self.from + TAIL_FOOTER_SIZE])?;
        self.stage = Stage::Done(header);
        self.take(TAIL_FOOTER_SIZE);
        self.step()
    }

    fn take(&mut self, size: usize) {
        self.from += size;
        self.offset += size as u64;
    }
}
