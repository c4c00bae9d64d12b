//! Looking at a snapshot file that may be whole or not: what is being made, what came from a peer before the node
//! ended, a copy that was cut short. Nothing of it is believed; a person is told how far it holds.

use crate::disk::{Disk, FileId};
use crate::ids::ClusterId;
use crate::limits::SNAPSHOT_READ_SIZE;

use super::SnapshotId;
use super::error::{Fault, ReadError, path};
use super::parser::{Parser, Step};

/// How far a file holds as a snapshot.
#[derive(Debug, Default)]
pub struct PartLook {
    /// What its header says, if there is one: while a snapshot is made there is none.
    pub id: Option<SnapshotId>,
    /// The cluster that its header names.
    pub cluster_id: Option<ClusterId>,
    /// Bytes that it ought to have, as its header says.
    pub declared_bytes: u64,
    /// Bytes up to the first that is missing or does not hold.
    pub whole_bytes: u64,
    /// Entries up to there.
    pub entries: u64,
    /// What is wrong, or missing; `None`: all of it holds.
    pub problem: Option<String>,
}

/// Reads a file up to its end, or to the first thing that does not hold.
///
/// # Errors
/// If it cannot be read.
pub fn look_at_part(disk: &mut dyn Disk, name: &str) -> Result<PartLook, ReadError> {
    let file = disk.open(name).map_err(|source| ReadError::io(disk, "open", name, 0, source))?;
    let result = read_part(disk, file, name);
    disk.close(file);
    result
}

fn read_part(disk: &mut dyn Disk, file: FileId, name: &str) -> Result<PartLook, ReadError> {
    let length = disk.len(file).map_err(|source| ReadError::io(disk, "look at", name, 0, source))?;
    let (mut parser, mut look) = (Parser::new(None), PartLook::default());
    look.problem = loop {
        let step = parser.step();
        if let Some(header) = parser.header() {
            (look.id, look.cluster_id) = (Some(header.id()), Some(header.start.cluster_id));
            look.declared_bytes = header.bytes;
            look.whole_bytes = parser.offset();
        }
        match step {
            Ok(Step::Block(checked)) => look.entries += parser.block(&checked).entry_count() as u64,
            Ok(Step::Done) => break None,
            Err(fault) => break Some(in_words(fault, disk, name)),
            Ok(Step::Needs(size)) if parser.end() + size as u64 > length => {
                break Some(format!("it ends at byte {length}"));
            }
            Ok(Step::Needs(size)) => {
                // What stands behind the footer is room that was allocated: nothing is read of it.
                let end = if look.declared_bytes > 0 { length.min(look.declared_bytes) } else { length };
                let more = (size.max(SNAPSHOT_READ_SIZE) as u64).min(end - parser.end()).max(size as u64);
                let offset = parser.end();
                disk.read_exact_at(file, offset, parser.room(more as usize))
                    .map_err(|source| ReadError::io(disk, "read", name, offset, source))?;
            }
        }
    };
    Ok(look)
}

fn in_words(fault: Fault, disk: &dyn Disk, name: &str) -> String {
    match fault {
        Fault::Damaged { offset, what } => format!("byte {offset}: {what}"),
        other => other.in_file(path(disk, name)).to_string(),
    }
}
