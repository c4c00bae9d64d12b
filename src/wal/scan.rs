//! Finding what a segment holds: a walk to the first thing that is neither mark nor entry, then a search of all
//! bytes behind it for marks. The scan reads in chunks, changes nothing and decides nothing.

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, Lsn};
use crate::replication::history::{TermHistory, TermStart};
use crate::wire::Effect;

use super::entry::{Item, Position, Stop, Walk, Window};
use super::error::{OpenError, WalError, path};
use super::mark::{Claims, MARK_LENGTH, MARK_SIZE, Mark, MarkSeed};
use super::reader::CHUNK_SIZE;
use super::recovery::Behind;
use super::segment::Segment;
use super::start::Base;

/// What a segment holds.
#[derive(Debug)]
pub(super) struct Scanned {
    /// With its index, and `end` behind the last mark or entry accepted.
    pub segment: Segment,
    /// Where the walk stopped.
    pub at: Position,
    pub behind: Behind,
    /// The byte behind the last one that is not zero; `segment.end` if all that follows is zero.
    pub litter_end: u64,
    /// The highest LSN that a mark, accepted or found behind, says was durable.
    pub durable_lsn: Lsn,
    /// The highest commit LSN of the marks accepted.
    pub commit_lsn: Lsn,
    /// The generation of the last mark accepted, or of the header.
    pub generation: u64,
    /// Whether the record at the base agrees with it, if it was met, and the chain there.
    pub at_base: Option<(bool, Chain)>,
}

/// Where a walk ended, and why.
struct Walked {
    at: Position,
    stop: Option<Behind>,
    durable_lsn: Lsn,
    commit_lsn: Lsn,
    generation: u64,
    at_base: Option<(bool, Chain)>,
}

/// Scans one segment; adds the terms that begin in it to `history`. Where it passes the base, the history becomes
/// that of the base, which knows the terms of segments that are gone or not scanned.
pub(super) fn scan(
    disk: &mut dyn Disk,
    file: FileId,
    mut segment: Segment,
    claims: Claims,
    base: &Base,
    history: &mut TermHistory,
) -> Result<Scanned, OpenError> {
    let mut window = Window::default();
    let walked = walk_all(disk, file, &mut segment, (claims, base), history, &mut window)?;
    segment.end = walked.at.offset;
    let rest = search(disk, file, &segment, walked.at.offset, claims)?;
    let litter = if rest.litter_end > segment.end { Behind::Bytes } else { Behind::Zeros };
    Ok(Scanned {
        at: walked.at,
        behind: walked.stop.unwrap_or(litter),
        litter_end: rest.litter_end,
        durable_lsn: walked.durable_lsn.max(rest.durable_lsn),
        commit_lsn: walked.commit_lsn,
        generation: walked.generation,
        at_base: walked.at_base,
        segment,
    })
}

fn walk_all(
    disk: &mut dyn Disk,
    file: FileId,
    segment: &mut Segment,
    (claims, base): (Claims, &Base),
    history: &mut TermHistory,
    window: &mut Window,
) -> Result<Walked, OpenError> {
    let (seed, at, end) = (segment.header.seed(), segment.start(), segment.size);
    let mut walk = Walk { file, seed, at, end, chunk: CHUNK_SIZE, window };
    let mut found = Walked {
        at,
        stop: None,
        durable_lsn: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
        generation: segment.header.generation,
        at_base: None,
    };
    // Every entry belongs to a batch, and a batch is as long as its mark says. So what an older batch left behind
    // a shorter one is no entry, even where the chain would fit because the same record came again.
    let mut batch_end = 0;
    loop {
        let before = walk.at;
        let item = walk
            .next(disk)
            .map_err(|error| WalError::new(disk, "read", &segment.name, before.offset, error))?;
        match item {
            Item::Mark(mark) if mark.generation < found.generation => break,
            Item::Mark(mark) => {
                refuse_later_generation(disk, segment, before.offset, &mark, claims)?;
                batch_end = before.offset + (MARK_SIZE as u64) + u64::from(mark.entry_bytes);
                found.generation = mark.generation;
                found.durable_lsn = found.durable_lsn.max(claims.believe(mark.generation, mark.durable_lsn));
                found.commit_lsn = found.commit_lsn.max(claims.believe(mark.generation, mark.commit_lsn));
            }
            Item::Entry { .. } if before.offset >= batch_end => break,
            Item::Entry { record, .. } if claims.was_cut(found.generation, record.lsn) => {
                found.stop = Some(Behind::CutOff);
                break;
            }
            Item::Entry { record, chain, .. } => {
                if let Effect::Term { term, leader } = record.effect {
                    if !history.accepts(term, record.lsn) {
                        found.stop = Some(Behind::Contradiction);
                        break;
                    }
                    history.push(TermStart { term, leader, first_lsn: record.lsn, chain });
                }
                segment.note(before);
                if record.lsn == base.lsn {
                    // Whoever has the newest term's first record has all before it, so that one entry decides.
                    let agrees = chain == base.chain && history.last() == base.history.last();
                    found.at_base = Some((agrees, chain));
                    if !agrees {
                        break;
                    }
                    history.clone_from(&base.history);
                }
            }
            Item::Stop(Stop::Contradiction) => {
                found.stop = Some(Behind::Contradiction);
                break;
            }
            Item::Stop(Stop::End | Stop::Invalid) => break,
        }
        found.at = walk.at;
    }
    Ok(found)
}

fn refuse_later_generation(
    disk: &dyn Disk,
    segment: &Segment,
    offset: u64,
    mark: &Mark,
    claims: Claims,
) -> Result<(), OpenError> {
    if mark.generation <= claims.generation {
        return Ok(());
    }
    let file = path(disk, &segment.name);
    Err(OpenError::LaterGeneration { file, offset, found: mark.generation, expected: claims.generation })
}

/// What a search found.
pub(super) struct Rest {
    pub litter_end: u64,
    pub durable_lsn: Lsn,
}

/// Searches all bytes of a segment from `from` on for marks, at any offset.
pub(super) fn search(
    disk: &mut dyn Disk,
    file: FileId,
    segment: &Segment,
    from: u64,
    claims: Claims,
) -> Result<Rest, OpenError> {
    let mut rest = Rest { litter_end: from, durable_lsn: Lsn::ZERO };
    let mut buffer = vec![0; CHUNK_SIZE];
    let mut offset = from;
    while offset < segment.size {
        let size = (segment.size - offset).min(CHUNK_SIZE as u64) as usize;
        let chunk = &mut buffer[..size];
        read_chunk(disk, file, segment, offset, chunk)?;
        if let Some(last) = last_nonzero(chunk) {
            rest.litter_end = offset + last as u64 + 1;
            for (at, mark) in marks_in(chunk, segment.header.seed(), offset) {
                refuse_later_generation(disk, segment, offset + at as u64, &mark, claims)?;
                rest.durable_lsn = rest.durable_lsn.max(claims.believe(mark.generation, mark.durable_lsn));
            }
        }
        if size < CHUNK_SIZE {
            break;
        }
        // Chunks overlap, so that a mark across a boundary is whole in one of them.
        offset += (size - MARK_SIZE) as u64;
    }
    Ok(rest)
}

pub(super) fn read_chunk(
    disk: &mut dyn Disk,
    file: FileId,
    segment: &Segment,
    offset: u64,
    chunk: &mut [u8],
) -> Result<(), WalError> {
    disk.read_exact_at(file, offset, chunk)
        .map_err(|error: io::Error| WalError::new(disk, "read", &segment.name, offset, error))
}

/// Most of a preallocated segment is zeros: whole words first, 64 bytes at a time.
fn last_nonzero(chunk: &[u8]) -> Option<usize> {
    let blocks = chunk.chunks(64).enumerate().rev();
    let mut used = blocks.filter(|(_, block)| block.iter().fold(0, |any, byte| any | byte) != 0);
    let (index, block) = used.next()?;
    let last = block.iter().rposition(|&byte| byte != 0).expect("the block is not zero");
    Some(index * 64 + last)
}

/// The marks in a part of a segment that begins at `offset` of it.
pub(super) fn marks_in(
    chunk: &[u8],
    seed: MarkSeed,
    offset: u64,
) -> impl Iterator<Item = (usize, Mark)> + use<'_> {
    let wanted = MARK_LENGTH.to_be_bytes();
    chunk
        .windows(MARK_SIZE)
        .enumerate()
        .filter(move |(_, window)| window[4..8] == wanted)
        .filter_map(move |(at, window)| Some((at, Mark::decode(window, seed, offset + at as u64)?)))
}
