//! Writes a snapshot: entries into blocks in memory, blocks into the file, and at last the header.
//!
//! The steps are the caller's, so that each turn of a loop does as much as it can afford: [`SnapshotWriter::add`]
//! touches memory alone, [`SnapshotWriter::write_some`] makes one write. Durability is asked for once, at the end,
//! when writeback has been under way all the time: what is left to sync is about the last second's.

use crate::disk::{Disk, FileId};
use crate::ids::Lsn;
use crate::limits::{
    ADDRESS_SIZE_MAX, CLIENT_SESSION_SIZE_MAX, KEY_SIZE_MAX, KEY_SIZE_MIN, PEERS_MAX, SNAPSHOT_BLOCK_SIZE,
    SNAPSHOT_BUFFER_SIZE_MAX, SNAPSHOT_WRITE_SIZE, VALUE_SIZE_MAX,
};
use crate::wire::ClientSession;

use super::block::{BLOCK_HEADER_SIZE, Kind, entry_size, put_entry, seal};
use super::error::{SnapshotError, sync_dir};
use super::files::{NEW_NAME, remove_if_there};
use super::header::{FOOTER_SIZE, Footer, Header, header_size, identity_crc};
use super::{SnapshotInfo, Start};

/// A snapshot on its way to the disk. There is one at a time: all are written under [`NEW_NAME`].
///
/// Invariants: `buffer[..sealed]` are whole blocks, `buffer[sealed..]` is the open one (a header to be filled in, and
/// entries or sessions) or nothing.
#[derive(Debug)]
pub struct SnapshotWriter {
    start: Start,
    identity_crc: u32,
    file: FileId,
    /// Where in the file the buffer begins.
    offset: u64,
    buffer: Vec<u8>,
    sealed: usize,
    /// What the open block holds, and how much of it.
    open: (Kind, u32),
    crc: crc32fast::Hasher,
    blocks: u64,
    entries: u64,
    data_bytes: u64,
    sessions: u64,
    /// A write failed: all that is left to do is [`SnapshotWriter::abandon`].
    failed: bool,
}

impl SnapshotWriter {
    /// Creates the file, with room for `estimate` bytes of entries; one that was left over is removed.
    ///
    /// # Errors
    /// If the file cannot be created or the disk has no room for it.
    pub fn begin(disk: &mut dyn Disk, estimate: u64, start: Start) -> Result<SnapshotWriter, SnapshotError> {
        assert!(
            start.peers.len() <= PEERS_MAX && start.peers.iter().all(|peer| peer.len() <= ADDRESS_SIZE_MAX)
        );
        assert!(
            start.history.last().is_none_or(|last| last.first_lsn <= start.s),
            "terms begin at or below S"
        );
        let failed = |disk: &mut dyn Disk, op, source| SnapshotError::new(disk, op, NEW_NAME, 0, source);
        remove_if_there(disk, NEW_NAME).map_err(|source| failed(disk, "remove", source))?;
        let offset = header_size(&start) as u64;
        let size = offset + estimate + FOOTER_SIZE as u64;
        let file = disk.create(NEW_NAME, size).map_err(|source| failed(disk, "create", source))?;
        Ok(SnapshotWriter {
            identity_crc: identity_crc(&start),
            start,
            file,
            offset,
            buffer: Vec::with_capacity(SNAPSHOT_WRITE_SIZE + 2 * SNAPSHOT_BLOCK_SIZE),
            sealed: 0,
            open: (Kind::Entries, 0),
            crc: crc32fast::Hasher::new(),
            blocks: 0,
            entries: 0,
            data_bytes: 0,
            sessions: 0,
            failed: false,
        })
    }

    /// Adds an entry, in memory. When [`SnapshotWriter::is_full`] says so, some must be written first.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        assert!(self.buffered() <= SNAPSHOT_BUFFER_SIZE_MAX, "what waits is written before more is added");
        assert!((KEY_SIZE_MIN..=KEY_SIZE_MAX).contains(&key.len()) && value.len() <= VALUE_SIZE_MAX);
        self.open_block(Kind::Entries, entry_size(key, value));
        put_entry(&mut self.buffer, key, value);
        self.entries += 1;
        self.data_bytes += (key.len() + value.len()) as u64;
        // A large entry need not wait for the next one to be written.
        if self.buffer.len() - self.sealed >= SNAPSHOT_BLOCK_SIZE {
            self.seal();
        }
    }

    /// Adds a client session as it is at E: when the last entry was added, and before a record is applied.
    pub fn add_session(&mut self, session: &ClientSession) {
        assert!(self.buffered() <= SNAPSHOT_BUFFER_SIZE_MAX, "what waits is written before more is added");
        self.open_block(Kind::Sessions, CLIENT_SESSION_SIZE_MAX);
        session.encode(&mut self.buffer);
        self.sessions += 1;
    }

    /// Makes sure that a block of this kind is open, with room for `size` bytes unless they are the first.
    fn open_block(&mut self, kind: Kind, size: usize) {
        let payload = (self.buffer.len() - self.sealed).saturating_sub(BLOCK_HEADER_SIZE);
        if kind != self.open.0 || payload > 0 && payload + size > SNAPSHOT_BLOCK_SIZE {
            self.seal();
        }
        if self.open.1 == 0 {
            self.buffer.extend_from_slice(&[0; BLOCK_HEADER_SIZE]);
        }
        self.open = (kind, self.open.1 + 1);
    }

    /// Bytes that wait in memory.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether enough waits for a write. An entry may come on top of it.
    pub fn is_full(&self) -> bool {
        self.buffered() >= SNAPSHOT_WRITE_SIZE
    }

    /// Entries added so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes of the file so far, written or waiting.
    pub fn bytes(&self) -> u64 {
        self.offset + self.buffered() as u64
    }

    /// Writes the blocks that are whole and starts their writeback. Returns how many bytes they have.
    ///
    /// # Errors
    /// If they cannot be written. Then [`SnapshotWriter::abandon`] is all that is left.
    pub fn write_some(&mut self, disk: &mut dyn Disk) -> Result<usize, SnapshotError> {
        assert!(!self.failed, "a snapshot whose write failed is abandoned");
        let size = self.sealed;
        if size == 0 {
            return Ok(0);
        }
        if let Err(source) = disk.write_all_at(self.file, self.offset, &self.buffer[..size]) {
            self.failed = true;
            return Err(SnapshotError::new(disk, "write a block to", NEW_NAME, self.offset, source));
        }
        disk.start_writeback(self.file, self.offset, size as u64);
        self.offset += size as u64;
        // The open block, at most one quarter of what was written.
        self.buffer.copy_within(size.., 0);
        self.buffer.truncate(self.buffer.len() - size);
        self.buffer.shrink_to(2 * SNAPSHOT_BUFFER_SIZE_MAX);
        self.sealed = 0;
        Ok(size)
    }

    /// Writes what is left, the footer and the header, and makes the file durable, still under its temporary name.
    /// `e` is the LSN applied when the last entry was added.
    ///
    /// # Errors
    /// If a write or the sync fails. The file is closed and removed then: after a failed sync its pages in memory
    /// may be marked clean and not be on the disk, so neither another sync nor reading it back would prove anything.
    pub fn finish(mut self, disk: &mut dyn Disk, e: Lsn) -> Result<Finished, SnapshotError> {
        assert!(e >= self.start.s, "a scan does not end before it begins: {e} below {}", self.start.s);
        match self.write_ends(disk, e) {
            Ok(info) => {
                disk.close(self.file);
                Ok(Finished { info })
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
        let _ = disk.remove(NEW_NAME);
    }

    fn write_ends(&mut self, disk: &mut dyn Disk, e: Lsn) -> Result<SnapshotInfo, SnapshotError> {
        self.seal();
        self.write_some(disk)?;
        let failed = |disk: &mut dyn Disk, op, at, source| SnapshotError::new(disk, op, NEW_NAME, at, source);
        let footer_at = self.offset;
        let (has_sessions, start) = (self.sessions > 0, self.start.clone());
        let header = Header { has_sessions, start, e, bytes: footer_at + FOOTER_SIZE as u64 };
        let header_bytes = header.encode();
        let header_crc = header_bytes.last_chunk().expect("a header ends with its checksum");
        let footer = Footer {
            blocks: self.blocks,
            entries: self.entries,
            data_bytes: self.data_bytes,
            body_crc: self.crc.clone().finalize(),
            header_crc: u32::from_be_bytes(*header_crc),
        };
        disk.write_all_at(self.file, footer_at, &footer.encode())
            .map_err(|source| failed(disk, "write the footer of", footer_at, source))?;
        disk.write_all_at(self.file, 0, &header_bytes)
            .map_err(|source| failed(disk, "write the header of", 0, source))?;
        disk.sync_data(self.file).map_err(|source| failed(disk, "sync", 0, source))?;
        Ok(header.info(&footer, NEW_NAME))
    }

    /// Ends the open block, if there is one.
    fn seal(&mut self) {
        let (kind, count) = self.open;
        if count == 0 {
            return;
        }
        let offset = self.offset + self.sealed as u64;
        let block = &mut self.buffer[self.sealed..];
        seal(block, kind, count, self.identity_crc, offset);
        self.crc.update(block);
        self.blocks += 1;
        self.sealed = self.buffer.len();
        self.open.1 = 0;
    }
}

/// A whole and durable snapshot under a temporary name.
#[derive(Debug)]
#[must_use]
pub struct Finished {
    pub(super) info: SnapshotInfo,
}

impl Finished {
    /// What it says about itself; its name is still the temporary one.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// Gives it its final name, durably. Only when E is committed: else what it holds may yet be cut.
    ///
    /// # Errors
    /// If it cannot be renamed (it is removed then), or if the directory cannot be synced: that one is fatal, and
    /// whether the snapshot is there is seen after a restart.
    pub fn publish(self, disk: &mut dyn Disk) -> Result<SnapshotInfo, SnapshotError> {
        let name = self.info.id.file_name();
        if let Err(source) = disk.rename(&self.info.name, &name) {
            let error = SnapshotError::new(disk, "give its final name to", &self.info.name, 0, source);
            self.abandon(disk);
            return Err(error);
        }
        sync_dir(disk)?;
        Ok(SnapshotInfo { name, ..self.info })
    }

    /// Removes it. Should that fail, it is a leftover, as after a crash.
    pub fn abandon(self, disk: &mut dyn Disk) {
        let _ = disk.remove(&self.info.name);
    }
}
