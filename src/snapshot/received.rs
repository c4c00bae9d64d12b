//! A snapshot that comes from a peer, in chunks of any size, each at the offset where the one before ended.
//!
//! Bytes are written to [`RECEIVED_NAME`] and judged as they come, so that entries can be loaded while the rest is
//! still on its way, and damage ends the transfer where it stands. After a lost connection the sender goes on at
//! [`ReceivedFile::offset`]. A restart begins anew: the file is a leftover then.
//!
//! Writeback is begun with each chunk, and what is 16 MiB behind leaves the page cache: the sync at the end finds
//! nothing to do, and a file of many GiB takes no more of the cache than that.

use crate::disk::{Disk, FileId};
use crate::ids::ClusterId;
use crate::limits::SNAPSHOT_WRITE_BEHIND;

use super::block::Block;
use super::error::{Fault, ReceiveError, SnapshotError, path};
use super::files::{RECEIVED_NAME, remove_if_there};
use super::parser::{Parser, Step};
use super::{Finished, SnapshotId};

/// What the sender said about the snapshot before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its LSNs.
    pub id: SnapshotId,
    /// Bytes of the file.
    pub bytes: u64,
    /// The checksum of the whole file: [`super::SnapshotInfo::crc`].
    pub crc: u32,
}

/// A snapshot on its way in. There is one at a time.
#[derive(Debug)]
pub struct ReceivedFile {
    offer: Offer,
    file: FileId,
    parser: Parser,
}

impl ReceivedFile {
    /// Creates the file with room for all of it; one that was left over is removed.
    ///
    /// # Errors
    /// If the file cannot be created or the disk has no room for it.
    pub fn begin(
        disk: &mut dyn Disk,
        cluster_id: ClusterId,
        offer: Offer,
    ) -> Result<ReceivedFile, SnapshotError> {
        let failed = |disk: &mut dyn Disk, op, source| SnapshotError::new(disk, op, RECEIVED_NAME, 0, source);
        remove_if_there(disk, RECEIVED_NAME).map_err(|source| failed(disk, "remove", source))?;
        let file =
            disk.create(RECEIVED_NAME, offer.bytes).map_err(|source| failed(disk, "create", source))?;
        Ok(ReceivedFile { offer, file, parser: Parser::new(Some(cluster_id)) })
    }

    /// What was offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Where the next chunk begins: every byte before it was written.
    pub fn offset(&self) -> u64 {
        self.parser.end()
    }

    /// Takes the bytes that come next. The blocks that they complete are to be taken before the next chunk, with
    /// [`ReceivedFile::next_block`], so that memory is bounded by one block.
    ///
    /// # Errors
    /// Bytes that are not the next ones, or more than were offered, change nothing. If the write fails the file is to
    /// be abandoned.
    pub fn receive(&mut self, disk: &mut dyn Disk, offset: u64, bytes: &[u8]) -> Result<(), ReceiveError> {
        let expected = self.offset();
        if offset != expected {
            return Err(ReceiveError::OutOfOrder { expected, found: offset });
        }
        let end = offset + bytes.len() as u64;
        if end > self.offer.bytes {
            return Err(ReceiveError::TooLong { offered: self.offer.bytes, end });
        }
        disk.write_all_at(self.file, offset, bytes).map_err(|source| {
            ReceiveError::Write(SnapshotError::new(disk, "write a chunk to", RECEIVED_NAME, offset, source))
        })?;
        let from = offset.saturating_sub(SNAPSHOT_WRITE_BEHIND);
        disk.start_writeback(self.file, from, end - from);
        Ok(())
    }

    /// The next block that is whole with the chunk that was received, checked; `None` if more bytes are needed, or
    /// everything was taken. `rest` is what of the chunk was not taken yet: all of it at first, nothing behind `None`.
    ///
    /// # Errors
    /// If the bytes are no snapshot of this cluster, or not the one that was offered. The file is to be abandoned,
    /// and what was loaded from it to be forgotten.
    pub fn next_block<'a, 'chunk: 'a>(
        &'a mut self,
        disk: &dyn Disk,
        rest: &mut &'chunk [u8],
    ) -> Result<Option<Block<'a>>, ReceiveError> {
        let bytes = *rest;
        let (step, taken) = self.parser.step_over(bytes).map_err(|fault| invalid(fault, disk))?;
        *rest = &bytes[taken..];
        if let Some(what) = self.contradiction() {
            return Err(invalid(Fault::Damaged { offset: 0, what }, disk));
        }
        match step {
            Step::Block(checked) => Ok(Some(self.parser.block_over(&checked, bytes))),
            Step::Needs(_) | Step::Done => Ok(None),
        }
    }

    /// Makes the whole file durable, still under its temporary name. Blocks that were not taken are checked.
    ///
    /// # Errors
    /// [`ReceiveError::Incomplete`] if bytes are missing. After any error, the file is closed and removed.
    pub fn finish(mut self, disk: &mut dyn Disk) -> Result<Finished, ReceiveError> {
        match self.check_all(disk) {
            Ok(finished) => {
                disk.close(self.file);
                Ok(finished)
            }
            Err(error) => {
                self.abandon(disk);
                Err(error)
            }
        }
    }

    /// Closes and removes the file. Should the latter fail, the file is a leftover, as after a crash.
    pub fn abandon(self, disk: &mut dyn Disk) {
        disk.close(self.file);
        let _ = disk.remove(RECEIVED_NAME);
    }

    fn check_all(&mut self, disk: &mut dyn Disk) -> Result<Finished, ReceiveError> {
        while self.next_block(disk, &mut &[][..])?.is_some() {}
        let (Some(header), Some(footer)) = (self.parser.header(), self.parser.footer()) else {
            return Err(ReceiveError::Incomplete { offered: self.offer.bytes, received: self.offset() });
        };
        let info = header.info(footer, RECEIVED_NAME);
        disk.sync_data(self.file).map_err(|source| {
            ReceiveError::Write(SnapshotError::new(disk, "sync", RECEIVED_NAME, 0, source))
        })?;
        Ok(Finished { info })
    }

    /// How the bytes differ from what was offered, if so.
    fn contradiction(&self) -> Option<&'static str> {
        let header = self.parser.header()?;
        if (header.id(), header.bytes) != (self.offer.id, self.offer.bytes) {
            return Some("the header is of another snapshot than the one offered");
        }
        let footer = self.parser.footer()?;
        (footer.crc() != self.offer.crc).then_some("the file has another checksum than the one offered")
    }
}

fn invalid(fault: Fault, disk: &dyn Disk) -> ReceiveError {
    ReceiveError::Invalid(fault.in_file(path(disk, RECEIVED_NAME)))
}
