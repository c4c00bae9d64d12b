//! Reads a snapshot file, a block at a time.

use crate::disk::{Disk, FileId};
use crate::ids::ClusterId;
use crate::limits::SNAPSHOT_READ_SIZE;

use super::SnapshotInfo;
use super::block::Block;
use super::error::{Fault, ReadError, path};
use super::files::parse_snapshot_name;
use super::header::{FOOTER_SIZE, Footer};
use super::parser::{Parser, Step};

/// A snapshot that is read from its beginning to its end. To be closed.
#[derive(Debug)]
pub struct SnapshotReader {
    file: FileId,
    info: SnapshotInfo,
    parser: Parser,
}

impl SnapshotReader {
    /// Opens a file and checks both of its ends: that it is a snapshot of this cluster (`None`: of any), belongs
    /// under its name if that is one of a snapshot, and is as long as it should be. Its blocks are yet to be checked.
    ///
    /// # Errors
    /// If it cannot be read or is no such file.
    pub fn open(
        disk: &mut dyn Disk,
        name: &str,
        cluster_id: Option<ClusterId>,
    ) -> Result<SnapshotReader, ReadError> {
        let file = disk.open(name).map_err(|source| ReadError::io(disk, "open", name, 0, source))?;
        let mut parser = Parser::new(cluster_id);
        match read_ends(disk, file, name, &mut parser) {
            Ok(info) => Ok(SnapshotReader { file, info, parser }),
            Err(error) => {
                disk.close(file);
                Err(error)
            }
        }
    }

    /// What it says about itself. The footer's part of it is proven when all blocks were read.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// Bytes of the file that were read and found good.
    pub fn bytes_checked(&self) -> u64 {
        self.parser.offset()
    }

    /// The next block, checked; `None` at the end, when the checksum of everything was checked too. It reads the file
    /// once in so many blocks, and then 1 MiB.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged. What was handed out before is to be forgotten then.
    pub fn next_block(&mut self, disk: &mut dyn Disk) -> Result<Option<Block<'_>>, ReadError> {
        loop {
            let step = self.parser.step().map_err(|fault| in_file(fault, disk, &self.info.name))?;
            match step {
                Step::Block(checked) => return Ok(Some(self.parser.block(&checked))),
                Step::Done => return Ok(None),
                Step::Needs(size) => {
                    // A length that was checked does not reach behind the footer: `size` bytes are there.
                    let left = self.info.bytes - self.parser.end();
                    let size = (size.max(SNAPSHOT_READ_SIZE) as u64).min(left) as usize;
                    read(disk, self.file, &self.info.name, &mut self.parser, size)?;
                }
            }
        }
    }

    /// Reads all that is left.
    ///
    /// # Errors
    /// As [`SnapshotReader::next_block`].
    pub fn verify(&mut self, disk: &mut dyn Disk) -> Result<(), ReadError> {
        while self.next_block(disk)?.is_some() {}
        Ok(())
    }

    /// Closes the file.
    pub fn close(self, disk: &mut dyn Disk) {
        disk.close(self.file);
    }
}

/// Reads the header into the parser, and the footer beside it.
fn read_ends(
    disk: &mut dyn Disk,
    file: FileId,
    name: &str,
    parser: &mut Parser,
) -> Result<SnapshotInfo, ReadError> {
    let length = disk.len(file).map_err(|source| ReadError::io(disk, "look at", name, 0, source))?;
    let damaged = |disk: &mut dyn Disk, offset, what| in_file(Fault::Damaged { offset, what }, disk, name);
    // Exactly the header is read: the step that takes it finds no block behind it.
    loop {
        let step = parser.step().map_err(|fault| in_file(fault, disk, name))?;
        let Step::Needs(size) = step else { unreachable!("nothing behind the header was read") };
        if parser.header().is_some() {
            break;
        }
        if parser.end() + size as u64 > length {
            return Err(damaged(disk, 0, "the file is shorter than its header"));
        }
        read(disk, file, name, parser, size)?;
    }
    let header = parser.header().expect("the loop before ends with a header").clone();
    if parse_snapshot_name(name).is_some_and(|id| id != header.id()) {
        return Err(damaged(disk, 0, "the header is of another snapshot than the file's name"));
    }
    if header.bytes > length {
        return Err(damaged(disk, length, "the file is shorter than its header says"));
    }
    let mut bytes = [0; FOOTER_SIZE];
    let footer_at = header.footer_at();
    disk.read_exact_at(file, footer_at, &mut bytes)
        .map_err(|source| ReadError::io(disk, "read the footer of", name, footer_at, source))?;
    let header_crc = parser.header_crc().expect("it comes with the header");
    let footer = Footer::decode(&bytes, footer_at, header_crc).map_err(|fault| in_file(fault, disk, name))?;
    Ok(header.info(&footer, name))
}

fn read(
    disk: &mut dyn Disk,
    file: FileId,
    name: &str,
    parser: &mut Parser,
    size: usize,
) -> Result<(), ReadError> {
    let offset = parser.end();
    disk.read_exact_at(file, offset, parser.room(size))
        .map_err(|source| ReadError::io(disk, "read", name, offset, source))
}

fn in_file(fault: Fault, disk: &dyn Disk, name: &str) -> ReadError {
    fault.in_file(path(disk, name))
}
