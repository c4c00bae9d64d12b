//! The entry, and the walk over marks and entries of one segment that every reader of the log uses.
//!
//! ```text
//! 0  crc32    u32   the chain checksum at this record: over the record bytes of the whole log up to here
//! 4  length   u32   of the record
//! 8  record         as on the wire
//! ```
//!
//! The chain makes every entry say "and all before me were these": an old record at a new place never reads
//! as valid. A length is checked against the limits and the bytes left before anything is read for it (a
//! record has at least [`RECORD_OVERHEAD`] bytes, so zeros are no entry).

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, Lsn};
use crate::limits::{RECORD_OVERHEAD, RECORD_SIZE_MAX};
use crate::wire::{Reader, Record, Writer};

use super::mark::{MARK_BIT, MARK_LENGTH, MARK_SIZE, Mark, MarkSeed};

/// Bytes of an entry before its record.
pub const ENTRY_HEADER_SIZE: usize = 8;

/// Appends an entry.
pub(super) fn put_entry(out: &mut Vec<u8>, chain: Chain, record_bytes: &[u8]) {
    out.put_u32(chain.0);
    out.put_u32(record_bytes.len() as u32);
    out.extend_from_slice(record_bytes);
}

/// Why a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// No bytes are left, or those that are left begin with zeros.
    End,
    /// Neither a mark nor an entry.
    Invalid,
    /// The chain proves the bytes to be what was written, but the record has another LSN or no known type.
    /// No crash does that.
    Contradiction,
}

/// One step of a walk.
pub(super) enum Item<'a> {
    Mark(Mark),
    Entry { bytes: &'a [u8], record: Record<'a>, chain: Chain },
    Stop(Stop),
}

/// What is found where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub offset: u64,
    /// The next record from `offset` on.
    pub next: Lsn,
    /// The chain before it.
    pub chain: Chain,
}

/// A buffer over a part of a file, filled a chunk at a time.
#[derive(Debug, Default)]
pub(super) struct Window {
    buffer: Vec<u8>,
    filled: usize,
    from: u64,
}

impl Window {
    /// Forgets what was read: another file, or a file that was written since.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// `size` bytes at `offset`; reads up to `chunk` bytes ahead, never beyond `end`.
    pub fn bytes(
        &mut self,
        disk: &mut dyn Disk,
        file: FileId,
        offset: u64,
        size: usize,
        (chunk, end): (usize, u64),
    ) -> io::Result<&[u8]> {
        let held = offset >= self.from && offset + size as u64 <= self.from + self.filled as u64;
        if !held {
            let ahead = (end - offset).min(chunk.max(size) as u64) as usize;
            self.filled = 0;
            if self.buffer.len() < ahead {
                self.buffer.resize(ahead, 0);
            }
            disk.read_exact_at(file, offset, &mut self.buffer[..ahead])?;
            (self.from, self.filled) = (offset, ahead);
        }
        let at = (offset - self.from) as usize;
        Ok(&self.buffer[at..at + size])
    }
}

/// A walk over the marks and entries of a segment, each checked against its place in the chain.
pub(super) struct Walk<'w> {
    pub file: FileId,
    pub seed: MarkSeed,
    pub at: Position,
    /// Nothing is read from here on.
    pub end: u64,
    /// Bytes read at once.
    pub chunk: usize,
    pub window: &'w mut Window,
}

impl Walk<'_> {
    /// The next mark or entry; `self.at` then stands behind it. A stop does not move.
    pub fn next(&mut self, disk: &mut dyn Disk) -> io::Result<Item<'_>> {
        let left = self.end - self.at.offset;
        let ahead = (self.chunk, self.end);
        if left < ENTRY_HEADER_SIZE as u64 {
            let rest = self.window.bytes(disk, self.file, self.at.offset, left as usize, ahead)?;
            let zeros = rest.iter().all(|&byte| byte == 0);
            return Ok(Item::Stop(if zeros { Stop::End } else { Stop::Invalid }));
        }
        let head = self.window.bytes(disk, self.file, self.at.offset, ENTRY_HEADER_SIZE, ahead)?;
        let (crc, length) = head_fields(head);
        match length {
            0 if crc == 0 => Ok(Item::Stop(Stop::End)),
            MARK_LENGTH if left >= MARK_SIZE as u64 => self.mark(disk),
            _ if length & MARK_BIT != 0 => Ok(Item::Stop(Stop::Invalid)),
            _ if !(RECORD_OVERHEAD..=RECORD_SIZE_MAX).contains(&(length as usize)) => {
                Ok(Item::Stop(Stop::Invalid))
            }
            _ if u64::from(length) > left - ENTRY_HEADER_SIZE as u64 => Ok(Item::Stop(Stop::Invalid)),
            _ => self.entry(disk, Chain(crc), length as usize),
        }
    }

    fn mark(&mut self, disk: &mut dyn Disk) -> io::Result<Item<'_>> {
        let Position { offset, next, chain } = self.at;
        let bytes = self.window.bytes(disk, self.file, offset, MARK_SIZE, (self.chunk, self.end))?;
        match Mark::decode(bytes, self.seed, offset) {
            Some(mark) if (mark.next_lsn, mark.chain) == (next, chain) => {
                self.at.offset += MARK_SIZE as u64;
                Ok(Item::Mark(mark))
            }
            _ => Ok(Item::Stop(Stop::Invalid)),
        }
    }

    fn entry(&mut self, disk: &mut dyn Disk, crc: Chain, length: usize) -> io::Result<Item<'_>> {
        let start = self.at.offset + ENTRY_HEADER_SIZE as u64;
        let bytes = self.window.bytes(disk, self.file, start, length, (self.chunk, self.end))?;
        if self.at.chain.extend(bytes) != crc && !crate::sabotage::is(crate::sabotage::Variant::TornTailKept)
        {
            return Ok(Item::Stop(Stop::Invalid));
        }
        let mut reader = Reader::new(bytes);
        let record = match Record::decode(&mut reader) {
            Ok(record) if record.lsn == self.at.next && reader.left() == 0 => record,
            _ => return Ok(Item::Stop(Stop::Contradiction)),
        };
        self.at = Position { offset: start + length as u64, next: record.lsn.next(), chain: crc };
        Ok(Item::Entry { bytes, record, chain: crc })
    }
}

/// Checksum and length in the first bytes of an entry or a mark.
pub(super) fn head_fields(head: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("a word has 4 bytes"));
    (word(0), word(4))
}
