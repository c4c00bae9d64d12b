//! A directory of copies of closed segments, which one node fills as its log grows: `--archive-dir`.
//!
//! What it promises:
//!
//! 1. *A segment under its own name is whole.* It is written under a temporary name, synced, renamed, and the rename
//!    is synced.
//! 2. *What the note says is there, durably.* The file `ARCHIVE` names the LSN up to which everything from where the
//!    archive begins was put into it. It is replaced (written beside, synced, renamed, synced) after that is so. Files
//!    may be moved elsewhere later: the note is what a restart goes by, so nothing is copied twice.
//! 3. *One node, one directory.* It is locked like a data directory, and the note names cluster and node: two nodes
//!    have segments of the same names with other bounds.
//! 4. *Nothing is overwritten by something else.* What another history of the log left in it is put aside under
//!    `replaced-g<generation>-<name>`, which no restore reads.
//!
//! ```text
//! ARCHIVE, 64 bytes; integers are big-endian
//!    0  magic            "KVSTARCH"
//!    8  format version   u32
//!   12  crc32 of bytes 0..12, so that a flipped bit is not taken for another version
//!   16  cluster id       16 bytes
//!   32  node id          16 bytes
//!   48  LSN              u64   copied up to here
//!   56  chain            u32   at this LSN: whether the log that goes on is the one that was copied
//!   60  crc32 of bytes 0..60
//! ```
//!
//! Left out: removing old copies (who keeps them knows how long), and the segment that is still written.

use std::fmt;
use std::io;

use crate::disk::{Disk, FileId, Flush, advice};
use crate::ids::{Chain, ClusterId, Lsn, NodeId};
use crate::meta::COPY_NAMES;
use crate::wal::parse_segment_name;
use crate::wire::{Reader, Writer};

/// The note in an archive.
pub const NOTE_NAME: &str = "ARCHIVE";
/// The next one, before it takes that name.
const NEW_NOTE_NAME: &str = "ARCHIVE.new";
/// A copy, before it is whole.
pub const COPY_NAME: &str = "wal-copy.seg.tmp";

const MAGIC: [u8; 8] = *b"KVSTARCH";
const FORMAT_VERSION: u32 = 1;
/// Bytes of the note.
pub const NOTE_SIZE: usize = 64;

/// Whose archive it is, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node that fills it.
    pub node_id: NodeId,
    /// Copied up to here.
    pub lsn: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
}

impl Note {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(NOTE_SIZE);
        out.extend_from_slice(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        put_crc(&mut out);
        out.extend_from_slice(&self.cluster_id.0);
        out.extend_from_slice(&self.node_id.0);
        out.put_u64(self.lsn.0);
        out.put_u32(self.chain.0);
        put_crc(&mut out);
        out
    }

    /// `Err`: what is wrong with these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Note, String> {
        if bytes.len() != NOTE_SIZE {
            return Err(format!("it has {} bytes in the place of {NOTE_SIZE}", bytes.len()));
        }
        let crc = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..8] != MAGIC || crc(12) != crc32fast::hash(&bytes[..12]) {
            return Err("it does not begin as the note of an archive".to_owned());
        }
        if crc(8) != FORMAT_VERSION {
            return Err(format!("it is of format version {}, this program reads {FORMAT_VERSION}", crc(8)));
        }
        if crc(60) != crc32fast::hash(&bytes[..60]) {
            return Err("its checksum does not hold".to_owned());
        }
        let mut reader = Reader::new(&bytes[16..60]);
        let fields = |reader: &mut Reader<'_>| {
            Ok::<_, crate::wire::DecodeError>(Note {
                cluster_id: ClusterId(reader.array("cluster id")?),
                node_id: NodeId(reader.array("node id")?),
                lsn: Lsn(reader.u64("LSN")?),
                chain: Chain(reader.u32("chain")?),
            })
        };
        Ok(fields(&mut reader).expect("the fields have their place in 44 bytes"))
    }
}

fn put_crc(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.put_u32(crc);
}

/// Why nothing can be put into an archive now.
#[derive(Debug)]
pub enum KeepError {
    /// It cannot be reached at all; why, in words.
    Unreachable(String),
    /// The operating system refused.
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file, with its directory.
        file: String,
        /// Why it failed.
        source: io::Error,
    },
    /// It holds what this node must not mix its own with; what, and what to do.
    Foreign(String),
}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepError::Unreachable(why) | KeepError::Foreign(why) => f.write_str(why),
            KeepError::Io { action, file, source } => {
                write!(f, "cannot {action} {file}: {source}; {}", advice(source))
            }
        }
    }
}

impl std::error::Error for KeepError {}

/// An archive that is open, and the copy that is being put into it.
pub struct Keeper {
    disk: Box<dyn Disk>,
    copy: Option<Copying>,
}

#[derive(Debug)]
struct Copying {
    file: FileId,
    size: u64,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("directory", &self.disk.describe()).field("copy", &self.copy).finish()
    }
}

impl Keeper {
    /// Opens a directory as this node's archive. `begin` is the note of a new one: where the log begins. Returns the
    /// note that is there now, durably.
    ///
    /// # Errors
    /// If the directory is another node's, a data directory, or cannot be used.
    pub fn open(mut disk: Box<dyn Disk>, begin: Note) -> Result<(Keeper, Note), KeepError> {
        let names = disk.list().map_err(|source| failed(disk.as_ref(), "list", "", source))?;
        if let Some(name) = COPY_NAMES.iter().find(|name| names.iter().any(|found| found == *name)) {
            return Err(KeepError::Foreign(format!(
                "{} holds {name}: it is a data directory; name another one",
                disk.describe()
            )));
        }
        for left in [COPY_NAME, NEW_NOTE_NAME] {
            if names.iter().any(|name| name == left) {
                disk.remove(left).map_err(|source| failed(disk.as_ref(), "remove", left, source))?;
            }
        }
        let has_note = names.iter().any(|name| name == NOTE_NAME);
        let segment = names.iter().find(|name| parse_segment_name(name).is_some());
        let mut keeper = Keeper { disk, copy: None };
        let note = match segment {
            _ if has_note => keeper.believed_note(&begin)?,
            Some(name) => {
                return Err(KeepError::Foreign(format!(
                    "{} holds {name} and no file {NOTE_NAME} that says whose it is; name an empty directory",
                    keeper.disk.describe()
                )));
            }
            None => {
                keeper.put_note(&begin)?;
                begin
            }
        };
        Ok((keeper, note))
    }

    fn believed_note(&mut self, own: &Note) -> Result<Note, KeepError> {
        let note = read_note(self.disk.as_mut())?;
        if (note.cluster_id, note.node_id) != (own.cluster_id, own.node_id) {
            return Err(KeepError::Foreign(format!(
                "{} is the archive of node {} of cluster {}, and this is node {} of cluster {}; each needs a directory \
                 of its own",
                self.disk.describe(),
                note.node_id,
                note.cluster_id,
                own.node_id,
                own.cluster_id
            )));
        }
        // The process that wrote it may have ended between the rename and the sync of it. What it names was synced
        // under the temporary name before.
        self.sync_dir()?;
        Ok(note)
    }

    /// Begins a copy of so many bytes.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn begin(&mut self, bytes: u64) -> Result<(), KeepError> {
        assert!(self.copy.is_none(), "one copy at a time");
        let file = self.disk.create(COPY_NAME, bytes);
        let file = file.map_err(|source| failed(self.disk.as_ref(), "allocate", COPY_NAME, source))?;
        self.copy = Some(Copying { file, size: 0 });
        Ok(())
    }

    /// Adds bytes to the copy, and starts their writeback.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), KeepError> {
        let Copying { file, size } = self.copy.as_mut().expect("a copy was begun");
        let written = self.disk.write_all_at(*file, *size, bytes);
        written.map_err(|source| failed(self.disk.as_ref(), "write", COPY_NAME, source))?;
        self.disk.start_writeback(*file, *size, bytes.len() as u64);
        *size += bytes.len() as u64;
        Ok(())
    }

    /// Asks for the copy to be made durable. True: it is; else [`Keeper::flush_poll`] says when.
    ///
    /// # Errors
    /// If it cannot be. Then it is begun anew: after a failed sync nothing is known of the file.
    pub fn flush_begin(&mut self) -> Result<bool, KeepError> {
        let file = self.copy.as_ref().expect("a copy was begun").file;
        match self.disk.flush_begin(file) {
            Ok(flush) => Ok(flush == Flush::Done),
            Err(source) => Err(failed(self.disk.as_ref(), "sync", COPY_NAME, source)),
        }
    }

    /// Whether the flush has ended.
    ///
    /// # Errors
    /// As for [`Keeper::flush_begin`].
    pub fn flush_poll(&mut self) -> Result<bool, KeepError> {
        match self.disk.flush_poll() {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(source)) => Err(failed(self.disk.as_ref(), "sync", COPY_NAME, source)),
        }
    }

    /// Gives the copy, which is durable, its name, durably.
    ///
    /// # Errors
    /// If the name is not durable.
    pub fn publish(&mut self, name: &str) -> Result<(), KeepError> {
        let Copying { file, .. } = self.copy.take().expect("a copy was begun");
        self.disk.close(file);
        let renamed = self.disk.rename(COPY_NAME, name);
        renamed.map_err(|source| failed(self.disk.as_ref(), "give its name to", name, source))?;
        self.sync_dir()
    }

    /// Replaces the note, durably. What it claims is there, durably.
    ///
    /// # Errors
    /// If it is not durable: then the older one or this one is read next time.
    pub fn put_note(&mut self, note: &Note) -> Result<(), KeepError> {
        let disk = self.disk.as_mut();
        let file = disk.create(NEW_NOTE_NAME, NOTE_SIZE as u64);
        let file = file.map_err(|source| failed(disk, "create", NEW_NOTE_NAME, source))?;
        let written = disk.write_all_at(file, 0, &note.encode()).and_then(|()| disk.sync_data(file));
        disk.close(file);
        written.map_err(|source| failed(disk, "write and sync", NEW_NOTE_NAME, source))?;
        disk.rename(NEW_NOTE_NAME, NOTE_NAME).map_err(|source| failed(disk, "replace", NOTE_NAME, source))?;
        self.sync_dir()
    }

    /// Puts aside all copies that begin behind `lsn`: they are of a log that went another way. Returns how many.
    ///
    /// # Errors
    /// If one cannot be renamed, or that is not durable.
    pub fn put_aside_behind(&mut self, lsn: Lsn, generation: u64) -> Result<usize, KeepError> {
        let disk = self.disk.as_mut();
        let names = disk.list().map_err(|source| failed(disk, "list", "", source))?;
        let mut moved = 0;
        for name in names.iter().filter(|name| parse_segment_name(name).is_some_and(|first| first > lsn)) {
            let aside = format!("replaced-g{generation}-{name}");
            disk.rename(name, &aside).map_err(|source| failed(disk, "put aside", name, source))?;
            moved += 1;
        }
        self.sync_dir()?;
        Ok(moved)
    }

    /// Gives up the copy under way. What cannot be removed is removed by the next [`Keeper::open`].
    pub fn abandon(&mut self) {
        if let Some(Copying { file, .. }) = self.copy.take() {
            self.disk.close(file);
            let _ = self.disk.remove(COPY_NAME);
        }
    }

    fn sync_dir(&mut self) -> Result<(), KeepError> {
        self.disk.sync_dir().map_err(|source| failed(self.disk.as_ref(), "sync", "", source))
    }
}

/// The note of the archive in this directory.
///
/// # Errors
/// If there is none, or it cannot be read.
pub fn read_note(disk: &mut dyn Disk) -> Result<Note, KeepError> {
    let cannot = |disk: &dyn Disk, source| failed(disk, "read", NOTE_NAME, source);
    let file = disk.open(NOTE_NAME).map_err(|source| cannot(disk, source))?;
    // One byte more, so that a longer file is seen to be none.
    let mut bytes = vec![0; NOTE_SIZE + 1];
    let read = disk.read_at(file, 0, &mut bytes);
    disk.close(file);
    let size = read.map_err(|source| cannot(disk, source))?;
    Note::decode(&bytes[..size]).map_err(|why| {
        KeepError::Foreign(format!(
            "{}/{NOTE_NAME} is damaged: {why}. What is in this archive is not known; name an empty directory, and keep \
             this one for restores",
            disk.describe()
        ))
    })
}

fn failed(disk: &dyn Disk, action: &'static str, name: &str, source: io::Error) -> KeepError {
    let directory = disk.describe();
    let file = if name.is_empty() { directory } else { format!("{directory}/{name}") };
    KeepError::Io { action, file, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> Note {
        let (cluster_id, node_id) = (ClusterId([3; 16]), NodeId([9; 16]));
        Note { cluster_id, node_id, lsn: Lsn(77), chain: Chain(0xdead_beef) }
    }

    #[test]
    fn a_note_survives_the_round_trip_and_no_flipped_bit() {
        let bytes = note().encode();
        assert_eq!(Note::decode(&bytes), Ok(note()));
        for bit in 0..NOTE_SIZE * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Note::decode(&flipped).is_err(), "bit {bit}");
        }
        assert!(Note::decode(&bytes[..NOTE_SIZE - 1]).is_err());
        assert!(Note::decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = note().encode();
        bytes[8..12].copy_from_slice(&5u32.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
        assert!(Note::decode(&bytes).unwrap_err().contains("version 5"));
    }
}
