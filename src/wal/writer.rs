//! Appending: room, batch, write, flush.

use std::io;

use crate::disk::{Disk, Flush};
use crate::ids::{Chain, Lsn};
use crate::limits::RECORD_SIZE_MAX;
use crate::replication::history::TermStart;
use crate::wire::Record;

use super::entry::{ENTRY_HEADER_SIZE, Position, put_entry};
use super::error::{ReserveError, WalError};
use super::mark::{MARK_SIZE, Mark};
use super::segment::{HEADER_SIZE, Header, SPARE_NAME, Segment};
use super::zeros::Zeros;
use super::{Durability, Spare, Wal};
use crate::sabotage::Variant::OldGenerationToken;

/// Proof that the log was durable up to an LSN, in a generation. Only a finished flush makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    generation: u64,
    lsn: Lsn,
}

impl Durable {
    /// The generation of the log that was flushed. A token of an older one proves nothing any more.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every record up to this one is durable.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// A token out of thin air, for unit tests of what takes tokens.
    #[cfg(test)]
    pub(crate) fn for_tests(generation: u64, lsn: Lsn) -> Durable {
        Durable { generation, lsn }
    }
}

impl Wal {
    /// Makes room for one more record of `record_size` bytes in the batch. Where the segment is full, the batch is
    /// written and synced and the next segment begun, with the spare file if there is one.
    ///
    /// After `NoRoom` and `FlushPending` everything is as before, and asking again later is right.
    pub fn reserve(&mut self, disk: &mut dyn Disk, record_size: usize) -> Result<(), ReserveError> {
        assert!(record_size <= RECORD_SIZE_MAX, "a record of {record_size} bytes passed the limits");
        self.reserve_bytes(disk, ENTRY_HEADER_SIZE + record_size)
    }

    /// Room is counted with one mark more than the batch has: the one of a clean end, or of the next open.
    fn reserve_bytes(&mut self, disk: &mut dyn Disk, more: usize) -> Result<(), ReserveError> {
        assert!(!self.failed, "the log failed; the process must end");
        let needed = (self.batch.len() + more + MARK_SIZE) as u64;
        let left = self.segments.last().map_or(0, |segment| segment.size - segment.end);
        if needed > left {
            self.rotate(disk, HEADER_SIZE + (MARK_SIZE + more + MARK_SIZE) as u64)?;
        }
        self.reserved = (self.batch.len() + more) as u64;
        Ok(())
    }

    /// Adds a record to the batch and returns the chain checksum at it. The record takes part in the next
    /// [`Wal::write`].
    ///
    /// `record_bytes` are those of `record`. It must have the next LSN, and its room reserved: to append
    /// otherwise is a bug.
    pub fn append(&mut self, record_bytes: &[u8], record: &Record<'_>) -> Chain {
        assert_eq!(record.lsn, self.last_lsn.next(), "records are appended in order");
        let chain = self.last_chain.extend(record_bytes);
        self.append_checked(record_bytes, chain);
        chain
    }

    /// As [`Wal::append`], for a record that was decoded and whose chain checksum was computed to check it:
    /// a follower would do both twice for each record.
    pub fn append_checked(&mut self, record_bytes: &[u8], chain: Chain) {
        assert!(!self.failed, "the log failed; the process must end");
        let lsn = self.last_lsn.next();
        debug_assert_eq!(chain, self.last_chain.extend(record_bytes), "checked records carry their chain");
        let offset = self.batch.len() as u64;
        let behind = offset + (ENTRY_HEADER_SIZE + record_bytes.len()) as u64;
        assert!(behind <= self.reserved, "no room was reserved for LSN {lsn}");
        let segment = self.segments.last_mut().expect("room is reserved in a segment");
        segment.note(Position { offset: segment.end + offset, next: lsn, chain: self.last_chain });
        put_entry(&mut self.batch, chain, record_bytes);
        if let Some((term, leader)) = Record::term_of(record_bytes) {
            self.history.push(TermStart { term, leader, first_lsn: lsn, chain });
        }
        (self.last_lsn, self.last_chain) = (lsn, chain);
    }

    /// Bytes that the next [`Wal::write`] writes; 0 if there is no record to write.
    pub fn batch_bytes(&self) -> usize {
        if self.batch.len() == MARK_SIZE { 0 } else { self.batch.len() }
    }

    /// Writes the batch, its mark in front, with one `write`. An empty batch writes nothing.
    pub fn write(&mut self, disk: &mut dyn Disk, commit_lsn: Lsn) -> Result<(), WalError> {
        self.commit_lsn = self.commit_lsn.max(commit_lsn);
        if self.batch_bytes() == 0 {
            return Ok(());
        }
        self.write_batch(disk)
    }

    /// Writes whatever the batch holds, be it a mark alone.
    pub(super) fn write_batch(&mut self, disk: &mut dyn Disk) -> Result<(), WalError> {
        self.put_batch(disk, false)
    }

    fn put_batch(&mut self, disk: &mut dyn Disk, sync: bool) -> Result<(), WalError> {
        assert!(!self.failed, "the log failed; the process must end");
        let segment = self.segments.last_mut().expect("a batch has its room in a segment");
        let file = self.active.expect("the last segment is open");
        let mark = Mark {
            durable_lsn: self.synced_lsn,
            commit_lsn: self.commit_lsn,
            generation: self.generation,
            next_lsn: self.written_lsn.next(),
            chain: self.written_chain,
            entry_bytes: (self.batch.len() - MARK_SIZE) as u32,
        };
        let mark = match crate::sabotage::is(crate::sabotage::Variant::MarkClaimsTooMuch) {
            true => Mark { durable_lsn: self.last_lsn, ..mark },
            false => mark,
        };
        self.batch[..MARK_SIZE].copy_from_slice(&mark.encode(segment.header.seed(), segment.end));
        let result = match sync && !crate::sabotage::is(crate::sabotage::Variant::AckBeforeFdatasync) {
            true => disk.append_sync_at(file, segment.end, &self.batch),
            false => disk.append_at(file, segment.end, &self.batch),
        };
        let retried = crate::sabotage::is(crate::sabotage::Variant::RetryFailedFdatasync)
            && disk.sync_data(file).is_ok();
        if let Err(error) = result
            && !retried
        {
            self.failed = true;
            let op = if sync { "write and sync a batch to" } else { "write a batch to" };
            return Err(WalError::new(disk, op, &segment.name, segment.end, error));
        }
        segment.end += self.batch.len() as u64;
        self.batch.truncate(MARK_SIZE);
        self.reserved = 0;
        (self.written_lsn, self.written_chain) = (self.last_lsn, self.last_chain);
        self.invariants();
        Ok(())
    }

    /// Writes the batch and makes it durable in one call, where nothing written before is still unsynced;
    /// else with two. For a node whose loop waits for its disk anyway.
    pub fn write_durably(&mut self, disk: &mut dyn Disk, commit_lsn: Lsn) -> Result<Durable, WalError> {
        self.assert_no_flush("a sync of the newest bytes must not overtake that of older ones");
        // The one call syncs only its own bytes, so it proves nothing about what was written before them.
        let one_call = self.config.durability == Durability::Fsync && self.synced_lsn == self.written_lsn;
        if one_call && self.batch_bytes() > 0 {
            self.commit_lsn = self.commit_lsn.max(commit_lsn);
            self.put_batch(disk, true)?;
            self.synced_lsn = self.written_lsn;
            return Ok(self.token(self.written_lsn));
        }
        self.write(disk, commit_lsn)?;
        if self.config.durability == Durability::Fsync && self.synced_lsn < self.written_lsn {
            self.sync_written(disk)?;
        }
        Ok(self.token(self.written_lsn))
    }

    /// Ends the log cleanly: writes and syncs what is there, then a mark that says so, synced too. The next
    /// open then knows every record to be durable. Syncs under [`Durability::Os`] as well.
    pub fn write_mark(&mut self, disk: &mut dyn Disk, commit_lsn: Lsn) -> Result<(), ReserveError> {
        if self.in_flight.is_some() {
            return Err(ReserveError::FlushPending);
        }
        self.write(disk, commit_lsn).map_err(ReserveError::Failed)?;
        if self.segments.is_empty() {
            return Ok(());
        }
        self.sync_written(disk).map_err(ReserveError::Failed)?;
        // The room for one mark that every reservation counts may have been taken by an earlier one.
        let segment = self.segments.last().expect("there is a segment");
        if segment.size - segment.end < MARK_SIZE as u64 {
            self.reserve_bytes(disk, 0)?;
        }
        self.write_batch(disk).map_err(ReserveError::Failed)?;
        self.sync_written(disk).map_err(ReserveError::Failed)
    }

    /// Syncs the active segment here and now: for rotation, cut, open and a clean end.
    pub(super) fn sync_written(&mut self, disk: &mut dyn Disk) -> Result<(), WalError> {
        self.assert_no_flush("a sync beside a flush could take its failure for success");
        let Some(file) = self.active else { return Ok(()) };
        if let Err(error) = disk.sync_data(file) {
            return Err(self.fail(disk, "sync", error));
        }
        self.synced_lsn = self.written_lsn;
        Ok(())
    }

    fn fail(&mut self, disk: &dyn Disk, op: &'static str, error: io::Error) -> WalError {
        self.failed = true;
        let (name, offset) = self.segments.last().map_or(("", 0), |segment| (&segment.name, segment.end));
        WalError::new(disk, op, name, offset, error)
    }

    /// Whether there are records written that no token names, and no flush is under way.
    pub fn needs_flush(&self) -> bool {
        self.told_lsn < self.written_lsn && self.in_flight.is_none()
    }

    /// Whether a flush is under way.
    pub fn flush_pending(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The newest token: what is known to be durable now.
    pub fn durable(&self) -> Durable {
        Durable { generation: self.generation, lsn: self.durable_lsn() }
    }

    /// Whether the active segment is half full and no file is allocated for the next one.
    pub fn wants_spare(&self) -> bool {
        self.spare.is_none() && self.segments.last().is_some_and(|segment| segment.end >= segment.size / 2)
    }

    /// Asks that everything written be made durable. `None`: the answer comes from [`Wal::flush_poll`]. At most
    /// one flush is under way.
    pub fn flush_begin(&mut self, disk: &mut dyn Disk) -> Result<Option<Durable>, WalError> {
        assert!(!self.failed, "the log failed; the process must end");
        if self.in_flight.is_some() && crate::sabotage::is(OldGenerationToken) {
            return Ok(None);
        }
        self.assert_no_flush("one flush at a time");
        let Some(file) = self.active else { return Ok(Some(self.token(self.written_lsn))) };
        if self.config.durability == Durability::Os || self.synced_lsn == self.written_lsn {
            return Ok(Some(self.token(self.written_lsn)));
        }
        match disk.flush_begin(file) {
            Ok(Flush::Done) => {
                self.synced_lsn = self.written_lsn;
                Ok(Some(self.token(self.written_lsn)))
            }
            Ok(Flush::Pending) => {
                self.in_flight = Some(Durable { generation: self.generation, lsn: self.written_lsn });
                Ok(None)
            }
            Err(error) => Err(self.fail(disk, "sync", error)),
        }
    }

    /// The token of the flush under way, once it has ended; `None` before that, and if there is none.
    pub fn flush_poll(&mut self, disk: &mut dyn Disk) -> Option<Result<Durable, WalError>> {
        let asked = self.in_flight?;
        let result = disk.flush_poll()?;
        Some(self.end_flush(disk, asked, result))
    }

    /// Waits for the flush under way; `None`: there is none.
    pub fn flush_wait(&mut self, disk: &mut dyn Disk) -> Option<Result<Durable, WalError>> {
        let asked = self.in_flight?;
        let result = disk.flush_wait();
        Some(self.end_flush(disk, asked, result))
    }

    fn end_flush(
        &mut self,
        disk: &dyn Disk,
        asked: Durable,
        result: io::Result<()>,
    ) -> Result<Durable, WalError> {
        self.in_flight = None;
        if let Err(error) = result {
            return Err(self.fail(disk, "sync", error));
        }
        let lsn = match asked.generation == self.generation {
            true => asked.lsn,
            false if crate::sabotage::is(OldGenerationToken) => asked.lsn.min(self.written_lsn),
            // What it covered may have been cut off and written anew: it says nothing about this log.
            false => return Ok(asked),
        };
        self.synced_lsn = self.synced_lsn.max(lsn);
        Ok(self.token(lsn))
    }

    /// Cut, rotation and inline sync come after the flush under way, never beside it.
    pub(super) fn assert_no_flush(&self, why: &str) {
        assert!(self.in_flight.is_none() || crate::sabotage::is(OldGenerationToken), "{why}");
    }

    fn token(&mut self, lsn: Lsn) -> Durable {
        self.told_lsn = self.told_lsn.max(lsn);
        self.invariants();
        Durable { generation: self.generation, lsn }
    }

    /// Allocates the next segment's file if that is still to be done: for an idle moment, so that a rotation
    /// only writes a header and renames.
    pub fn prepare_spare(&mut self, disk: &mut dyn Disk) -> Result<(), ReserveError> {
        self.spare_of(disk, self.config.segment_bytes).map(|_| ())
    }

    fn spare_of(&mut self, disk: &mut dyn Disk, bytes: u64) -> Result<Spare, ReserveError> {
        assert!(!self.failed, "the log failed; the process must end");
        if let Some(spare) = self.spare.filter(|spare| spare.bytes >= bytes) {
            return Ok(spare);
        }
        if let Some(too_small) = self.spare.take() {
            disk.close(too_small.file);
            disk.remove(SPARE_NAME).map_err(|error| no_room(disk, "remove", error))?;
        }
        match disk.create(SPARE_NAME, bytes) {
            Ok(file) => Ok(*self.spare.insert(Spare { file, bytes, zeros: Zeros::default() })),
            Err(error) => {
                // What a failed allocation left is in the way of the next attempt. If it cannot be removed
                // (or there is nothing), that attempt says so.
                let _ = disk.remove(SPARE_NAME);
                Err(no_room(disk, "allocate", error))
            }
        }
    }

    /// Begins the next segment, for a batch that needs a file of `bytes` at least. The file is allocated first,
    /// so that a full disk changes nothing. Then, in this order: the batch is written and synced, the header
    /// written and synced, the file renamed, the name synced.
    fn rotate(&mut self, disk: &mut dyn Disk, bytes: u64) -> Result<(), ReserveError> {
        assert!(!self.cluster_id.is_none(), "a log belongs to a cluster before its first record");
        if self.in_flight.is_some() {
            return Err(ReserveError::FlushPending);
        }
        let spare = self.spare_of(disk, bytes.max(self.config.segment_bytes))?;
        if self.batch_bytes() > 0 {
            self.write_batch(disk).map_err(ReserveError::Failed)?;
        }
        self.sync_written(disk).map_err(ReserveError::Failed)?;
        let segment = Segment::new(self.next_header(), spare.bytes);
        self.begin_segment(disk, spare, &segment).map_err(|(op, error)| {
            self.failed = true;
            ReserveError::Failed(WalError::new(disk, op, &segment.name, 0, error))
        })?;
        self.spare = None;
        self.retire_active(disk, segment.header.first_lsn);
        (self.active, self.zeros) = (Some(spare.file), spare.zeros);
        self.segments.push(segment);
        self.invariants();
        Ok(())
    }

    /// Lets go of the segment before. One without a record has the very name of the new one, which has taken its
    /// place: a record too large for an empty segment, after a restart or a cut.
    fn retire_active(&mut self, disk: &mut dyn Disk, next_first_lsn: Lsn) {
        let Some(file) = self.active.take() else { return };
        let first_lsn = self.segments.last().expect("an active file has a segment").header.first_lsn;
        if first_lsn == next_first_lsn {
            self.segments.pop();
            disk.close(file);
        } else {
            disk.end_appends(file);
            self.read_files.adopt(disk, first_lsn, file);
        }
    }

    fn begin_segment(
        &self,
        disk: &mut dyn Disk,
        spare: Spare,
        segment: &Segment,
    ) -> Result<(), (&'static str, io::Error)> {
        let header = segment.header.encode();
        disk.write_all_at(spare.file, 0, &header).map_err(|error| ("write the header of", error))?;
        disk.sync_data(spare.file).map_err(|error| ("sync the header of", error))?;
        disk.rename(SPARE_NAME, &segment.name).map_err(|error| ("rename the spare file to", error))?;
        if crate::sabotage::is(crate::sabotage::Variant::RenameWithoutDirSync) {
            return Ok(());
        }
        disk.sync_dir().map_err(|error| ("sync the directory for", error))
    }

    fn next_header(&self) -> Header {
        let first_lsn = self.last_lsn.next();
        let previous = self.segments.last().map_or(Lsn::ZERO, |segment| match segment.header.first_lsn {
            // An empty one gives its place to this one, and its name.
            replaced if replaced == first_lsn => segment.header.previous,
            before => before,
        });
        Header {
            cluster_id: self.cluster_id,
            first_lsn,
            chain_before: self.last_chain,
            generation: self.generation,
            salt: segment_salt(self.salt, self.generation, first_lsn),
            term_start: self.history.last().copied(),
            previous,
        }
    }
}

/// A salt of its own for each segment: the node's random one, mixed with what never comes twice in a process.
fn segment_salt(salt: u64, generation: u64, first_lsn: Lsn) -> u64 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&generation.to_be_bytes());
    place[8..].copy_from_slice(&first_lsn.0.to_be_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(&place, salt)
}

/// A full disk or quota is no failure of the log.
fn no_room(disk: &dyn Disk, op: &'static str, error: io::Error) -> ReserveError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ReserveError::NoRoom(error),
        _ => ReserveError::Failed(WalError::new(disk, op, SPARE_NAME, 0, error)),
    }
}
