//! Reading segments that are no part of a log that is open here: copies kept aside, or another node's directory.
//!
//! They are read forwards from a record that is known, and a record counts only if the chain leads to it from there.
//! So it does not matter who wrote the file, in which generation, or whether its end is torn: what fits is what was
//! written behind that record. Where a segment ends nothing is decided but that; whether more is needed is for the
//! caller to say.
//!
//! What is deliberately absent: the marks. Whether a record was committed is not asked; who names an LSN has decided.

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::wire::Record;

use super::entry::{Item, Position, Stop, Walk, Window};
use super::reader::CHUNK_SIZE;
use super::segment::{Header, HeaderFault, RawHeader, Segment, parse_segment_name};

/// How the reading of a segment ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArchivedEnd {
    /// Its records do not follow the known one; the chain checksum that it has there.
    OtherLog(Chain),
    /// It ends, or the last wanted record was read.
    Whole,
    /// Something in it does not read; what, and where.
    Damaged(String),
}

/// The first LSNs of the segments in a directory, as their names say, rising.
///
/// # Errors
/// If it cannot be listed.
pub fn archived_segments(disk: &mut dyn Disk) -> io::Result<Vec<Lsn>> {
    let mut first_lsns: Vec<Lsn> = disk.list()?.iter().filter_map(|name| parse_segment_name(name)).collect();
    first_lsns.sort_unstable();
    Ok(first_lsns)
}

/// Hands over the records of the segment `name` behind `known`, which has this chain checksum, up to `to`; fewer if
/// `each` turns one down, or if the segment ends.
///
/// # Errors
/// If the file cannot be read.
pub fn read_archived(
    disk: &mut dyn Disk,
    name: &str,
    cluster_id: ClusterId,
    (known, chain): (Lsn, Chain),
    to: Lsn,
    each: &mut dyn FnMut(&Record<'_>, &[u8], Chain) -> bool,
) -> io::Result<ArchivedEnd> {
    let file = disk.open(name)?;
    let result = read(disk, file, name, cluster_id, (known, chain), to, each);
    disk.close(file);
    result
}

fn read(
    disk: &mut dyn Disk,
    file: FileId,
    name: &str,
    cluster_id: ClusterId,
    (known, chain): (Lsn, Chain),
    to: Lsn,
    each: &mut dyn FnMut(&Record<'_>, &[u8], Chain) -> bool,
) -> io::Result<ArchivedEnd> {
    let end = disk.len(file)?;
    let header = match header_of(disk, file, name, cluster_id, end)? {
        Ok(header) => header,
        Err(why) => return Ok(ArchivedEnd::Damaged(why)),
    };
    let segment = Segment::new(header, end);
    let seed = segment.header.seed();
    let mut window = Window::default();
    let mut walk = Walk { file, seed, at: segment.start(), end, chunk: CHUNK_SIZE, window: &mut window };
    loop {
        let Position { offset, next, chain: found } = walk.at;
        if next == known.next() && found != chain {
            return Ok(ArchivedEnd::OtherLog(found));
        }
        if next > to {
            return Ok(ArchivedEnd::Whole);
        }
        match walk.next(disk)? {
            Item::Entry { bytes, record, chain } => {
                if record.lsn > known && !each(&record, bytes, chain) {
                    return Ok(ArchivedEnd::Whole);
                }
            }
            Item::Mark(_) => {}
            Item::Stop(Stop::End) => return Ok(ArchivedEnd::Whole),
            Item::Stop(Stop::Invalid | Stop::Contradiction) => {
                return Ok(ArchivedEnd::Damaged(format!("record {next} does not read at byte {offset}")));
            }
        }
    }
}

fn header_of(
    disk: &mut dyn Disk,
    file: FileId,
    name: &str,
    cluster_id: ClusterId,
    size: u64,
) -> io::Result<Result<Header, String>> {
    let raw = RawHeader::read(disk, file, size)?;
    let named = parse_segment_name(name).unwrap_or(Lsn::ZERO);
    Ok(raw.validate(named, cluster_id).map_err(|fault| match fault {
        HeaderFault::Damaged(why) => why.to_owned(),
        HeaderFault::Version(found) => format!("it is of format version {found}"),
        HeaderFault::Cluster(found) => format!("it is of cluster {found}, and the backup of {cluster_id}"),
    }))
}
