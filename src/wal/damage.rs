//! A log that is damaged below what was durable: how far it once reached, and where its files go when a node begins
//! again with what is whole before the damage, to fetch the rest from its leader.
//!
//! Nothing here decides. [`highest_seen`] looks at every byte of every segment for what proves that a record was there
//! once, and changes nothing; it says too much rather than too little. `put_aside` runs only after the node's own
//! record of the cut is durable, and can be run again after a crash at any point: a copy has its name only when it is
//! whole, and a file that was renamed is not found again.
//!
//! What is kept is kept as it was, headers and salt included, in `damaged-g<generation of the cut>-<segment>`, for a
//! person to look at. The program never reads one, and never removes one.

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::limits::{RECORD_OVERHEAD, RECORD_SIZE_MAX};
use crate::wire::{Reader, Record};

use super::entry::{ENTRY_HEADER_SIZE, Item, Position, Walk, Window, head_fields};
use super::error::WalError;
use super::mark::{Claims, MARK_LENGTH, MARK_SIZE};
use super::reader::CHUNK_SIZE;
use super::scan::{marks_in, read_chunk};
use super::segment::{HEADER_SIZE, HeaderFault, RawHeader, Segment, parse_segment_name, segment_name};

/// Bytes read at once behind a mark: most batches are small, and each is found by a mark of its own.
const LOOK_SIZE: usize = 4096;
/// The name of a copy until it is whole.
pub(super) const DAMAGED_TMP_NAME: &str = "damaged.seg.tmp";

/// How far a damaged log once reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest LSN that a mark, a header or a record whose chain holds speaks of.
    pub lsn: Lsn,
    /// The highest commit LSN of any mark.
    pub commit_lsn: Lsn,
}

impl Seen {
    fn note(&mut self, lsn: Lsn) {
        self.lsn = self.lsn.max(lsn);
    }
}

/// Looks for the end that the log in `disk` once had, whatever is damaged in it. What a cut took back does not count.
///
/// # Errors
/// If a file cannot be read. Damage is none.
pub fn highest_seen(
    disk: &mut dyn Disk,
    cluster_id: ClusterId,
    generation: u64,
    cut_lsn: Lsn,
) -> Result<Seen, WalError> {
    let claims = Claims { generation, cut_lsn };
    let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
    let mut seen = Seen::default();
    for first_lsn in names.iter().filter_map(|name| parse_segment_name(name)) {
        let name = segment_name(first_lsn);
        let failed = |disk: &dyn Disk, error| WalError::new(disk, "read", &name, 0, error);
        let file = disk.open(&name).map_err(|error| failed(disk, error))?;
        let size = disk.len(file).map_err(|error| failed(disk, error))?;
        let raw = RawHeader::read(disk, file, size).map_err(|error| failed(disk, error))?;
        match raw.validate(first_lsn, cluster_id) {
            Ok(header) => {
                seen.note(claims.believe(header.generation, first_lsn.prev()));
                look_behind_marks(disk, file, &Segment::new(header, size), claims, &mut seen)?;
            }
            Err(HeaderFault::Damaged(_)) => {
                // A file gets its name when all before it is durable.
                seen.note(first_lsn.prev());
                let last = last_in_chain(disk, file, size).map_err(|error| failed(disk, error))?;
                seen.note(last);
            }
            // Of another version or cluster: the log is not opened, and not repaired either.
            Err(HeaderFault::Version(_) | HeaderFault::Cluster(_)) => {}
        }
        disk.close(file);
    }
    Ok(seen)
}

/// Finds the marks at any place of a segment, and the records that follow each.
fn look_behind_marks(
    disk: &mut dyn Disk,
    file: FileId,
    segment: &Segment,
    claims: Claims,
    seen: &mut Seen,
) -> Result<(), WalError> {
    let mut buffer = vec![0; CHUNK_SIZE];
    let mut offset = HEADER_SIZE;
    while offset < segment.size {
        let size = (segment.size - offset).min(CHUNK_SIZE as u64) as usize;
        read_chunk(disk, file, segment, offset, &mut buffer[..size])?;
        let marks: Vec<_> = marks_in(&buffer[..size], segment.header.seed(), offset).collect();
        for (at, mark) in marks {
            seen.commit_lsn = seen.commit_lsn.max(claims.believe(mark.generation, mark.commit_lsn));
            let behind = offset + (at + MARK_SIZE) as u64;
            let from = Position { offset: behind, next: mark.next_lsn, chain: mark.chain };
            let last = last_of_batch(disk, file, segment, from)
                .map_err(|error| WalError::new(disk, "read", &segment.name, behind, error))?;
            seen.note(claims.believe(mark.generation, last.max(mark.durable_lsn)));
        }
        if size < CHUNK_SIZE {
            break;
        }
        // Chunks overlap, so that a mark across a boundary is whole in one of them.
        offset += (size - MARK_SIZE) as u64;
    }
    Ok(())
}

/// The last record that follows a mark without a break.
fn last_of_batch(disk: &mut dyn Disk, file: FileId, segment: &Segment, at: Position) -> io::Result<Lsn> {
    let (seed, end, mut window) = (segment.header.seed(), segment.size, Window::default());
    let mut walk = Walk { file, seed, at, end, chunk: LOOK_SIZE, window: &mut window };
    while let Item::Entry { .. } = walk.next(disk)? {}
    // A mark moves the walk on, and no LSN.
    Ok(walk.at.next.prev())
}

/// The last record of a file whose header, and so its marks, cannot be checked: entries prove each other by their
/// chain, all but the first.
fn last_in_chain(disk: &mut dyn Disk, file: FileId, size: u64) -> io::Result<Lsn> {
    let (mut window, ahead) = (Window::default(), (CHUNK_SIZE, size));
    let (mut offset, mut chain, mut last) = (HEADER_SIZE, None, Lsn::ZERO);
    while offset + ENTRY_HEADER_SIZE as u64 <= size {
        let (crc, length) = head_fields(window.bytes(disk, file, offset, ENTRY_HEADER_SIZE, ahead)?);
        let left = size - offset - ENTRY_HEADER_SIZE as u64;
        if length == MARK_LENGTH {
            offset += MARK_SIZE as u64;
            continue;
        }
        let plausible = (RECORD_OVERHEAD..=RECORD_SIZE_MAX).contains(&(length as usize));
        if !plausible || u64::from(length) > left {
            break;
        }
        let start = offset + ENTRY_HEADER_SIZE as u64;
        let bytes = window.bytes(disk, file, start, length as usize, ahead)?;
        let follows = chain.is_none_or(|before: Chain| before.extend(bytes) == Chain(crc));
        let Some(record) = Record::decode(&mut Reader::new(bytes)).ok().filter(|_| follows) else { break };
        if chain.is_some() {
            last = last.max(record.lsn);
        }
        chain = Some(Chain(crc));
        offset = start + u64::from(length);
    }
    Ok(last)
}

/// Copies the own segment, up to `end`, and renames the segments behind the cut, the last first: a crash between leaves
/// no gap. Returns the names under which they are kept now.
pub(super) fn put_aside(
    disk: &mut dyn Disk,
    generation: u64,
    own: Option<(&str, u64)>,
    behind: &[Lsn],
) -> Result<Vec<String>, WalError> {
    let mut kept = Vec::new();
    if let Some((name, end)) = own {
        let aside = aside_name(generation, name);
        let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
        // One that is there was made before anything was zeroed; now a part may be.
        if !names.contains(&aside) {
            copy(disk, name, end, &aside)
                .map_err(|error| WalError::new(disk, "keep aside a copy of", name, 0, error))?;
        }
        kept.push(aside);
    }
    for &first_lsn in behind.iter().rev() {
        let name = segment_name(first_lsn);
        let aside = aside_name(generation, &name);
        disk.rename(&name, &aside).map_err(|error| WalError::new(disk, "keep aside", &name, 0, error))?;
        kept.push(aside);
    }
    disk.sync_dir().map_err(|error| WalError::new(disk, "sync the directory", "", 0, error))?;
    kept.sort_unstable();
    Ok(kept)
}

fn aside_name(generation: u64, segment: &str) -> String {
    format!("damaged-g{generation}-{segment}")
}

fn copy(disk: &mut dyn Disk, name: &str, end: u64, aside: &str) -> io::Result<()> {
    let from = disk.open(name)?;
    let to = disk.create(DAMAGED_TMP_NAME, end)?;
    let mut buffer = vec![0; CHUNK_SIZE];
    let mut offset = 0;
    while offset < end {
        let chunk = &mut buffer[..(end - offset).min(CHUNK_SIZE as u64) as usize];
        disk.read_exact_at(from, offset, chunk)?;
        disk.write_all_at(to, offset, chunk)?;
        offset += chunk.len() as u64;
    }
    disk.sync_data(to)?;
    disk.close(from);
    disk.close(to);
    disk.rename(DAMAGED_TMP_NAME, aside)?;
    disk.sync_dir()
}
