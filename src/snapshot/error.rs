//! What can go wrong with a snapshot, in words an operator can act on.

use std::error::Error;
use std::fmt;
use std::io;

use crate::disk::Disk;
use crate::ids::ClusterId;

use super::header::FORMAT_VERSION;

/// Directory and name, for messages.
pub(super) fn path(disk: &dyn Disk, name: &str) -> String {
    format!("{}/{name}", disk.describe())
}

/// Why a snapshot was not made. Unless [`SnapshotError::is_fatal`] says otherwise, nothing else is affected: the
/// snapshots there are and the log stay as they were.
#[derive(Debug)]
pub enum SnapshotError {
    /// The disk or the quota is full.
    NoRoom {
        /// Directory and name.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file operation failed.
    Failed {
        /// What was being done, as "write a block to".
        op: &'static str,
        /// Directory and name.
        file: String,
        /// The byte where; 0 for operations on the whole file.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The directory could not be made durable. What the log has in it may not be either: the process must end.
    Directory {
        /// The directory.
        directory: String,
        /// Why.
        source: io::Error,
    },
}

impl SnapshotError {
    pub(super) fn new(
        disk: &dyn Disk,
        op: &'static str,
        name: &str,
        offset: u64,
        source: io::Error,
    ) -> SnapshotError {
        let file = path(disk, name);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                SnapshotError::NoRoom { file, source }
            }
            _ => SnapshotError::Failed { op, file, offset, source },
        }
    }

    /// Whether the process must end.
    pub fn is_fatal(&self) -> bool {
        matches!(self, SnapshotError::Directory { .. })
    }
}

/// Makes renamed and removed names durable.
pub(super) fn sync_dir(disk: &mut dyn Disk) -> Result<(), SnapshotError> {
    disk.sync_dir().map_err(|source| SnapshotError::Directory { directory: disk.describe(), source })
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::NoRoom { file, source } => write!(
                f,
                "no room for the snapshot {file}: {source}; it is abandoned and the log keeps growing. Free some \
                 space, then start another one"
            ),
            SnapshotError::Failed { op, file, offset, source } => write!(
                f,
                "cannot {op} {file} (byte {offset}): {source}; the operation on this snapshot is given up. Look into \
                 the kernel log for errors of that disk before starting another one"
            ),
            SnapshotError::Directory { directory, source } => write!(
                f,
                "cannot make the names in {directory} durable: {source}; the process ends, because names of the log \
                 may be lost too. Check the disk, then start the node again: it reads what is really there"
            ),
        }
    }
}

impl Error for SnapshotError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SnapshotError::NoRoom { source, .. }
            | SnapshotError::Failed { source, .. }
            | SnapshotError::Directory { source, .. } => Some(source),
        }
    }
}

/// What is wrong with bytes that should be a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Damaged { offset: u64, what: &'static str },
    Version(u32),
    Cluster { found: ClusterId, expected: ClusterId },
}

impl Fault {
    pub fn in_file(self, file: String) -> ReadError {
        match self {
            Fault::Damaged { offset, what } => ReadError::Damaged { file, offset, what },
            Fault::Version(found) => ReadError::Version { file, found },
            Fault::Cluster { found, expected } => ReadError::OtherCluster { file, found, expected },
        }
    }
}

/// Why a file is not read as a snapshot.
#[derive(Debug)]
pub enum ReadError {
    /// A file operation failed.
    Io {
        /// What was being done, as "read".
        op: &'static str,
        /// Directory and name.
        file: String,
        /// The byte where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    Damaged {
        /// Directory and name.
        file: String,
        /// Where the part begins that does not hold: the header, a block, an entry, the footer.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It is whole, and of another version.
    Version {
        /// Directory and name.
        file: String,
        /// The version of its format.
        found: u32,
    },
    /// It is whole, and of another cluster.
    OtherCluster {
        /// Directory and name.
        file: String,
        /// Its cluster.
        found: ClusterId,
        /// This node's.
        expected: ClusterId,
    },
}

impl ReadError {
    pub(super) fn io(
        disk: &dyn Disk,
        op: &'static str,
        name: &str,
        offset: u64,
        source: io::Error,
    ) -> ReadError {
        ReadError::Io { op, file: path(disk, name), offset, source }
    }

    /// Whether the file itself is no good. What the disk does not read now, or another version wrote, may be.
    pub fn is_damage(&self) -> bool {
        matches!(self, ReadError::Damaged { .. })
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io { op, file, offset, source } => {
                write!(
                    f,
                    "cannot {op} {file} (byte {offset}): {source}; look into the kernel log for errors of that disk"
                )
            }
            ReadError::Damaged { file, offset, what } => write!(
                f,
                "{file} is damaged at byte {offset}: {what}; an older snapshot with more of the log, or a peer, has \
                 the same state"
            ),
            ReadError::Version { file, found } => write!(
                f,
                "{file} has format version {found}, this program reads up to {FORMAT_VERSION}; use the version of the \
                 program that wrote it"
            ),
            ReadError::OtherCluster { file, found, expected } => write!(
                f,
                "{file} belongs to cluster {found}, this node to cluster {expected}; put the file back where it \
                 came from, or use another data directory"
            ),
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ReadError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Why a chunk, or the end, of a snapshot that comes from a peer was not taken.
#[derive(Debug)]
pub enum ReceiveError {
    /// Not the bytes that come next. Nothing has changed: the right ones are still welcome.
    OutOfOrder {
        /// Where the next chunk begins.
        expected: u64,
        /// Where this one does.
        found: u64,
    },
    /// More bytes than were offered. Nothing has changed.
    TooLong {
        /// What was offered.
        offered: u64,
        /// Where the chunk would end.
        end: u64,
    },
    /// The end was announced and bytes are missing. Nothing has changed.
    Incomplete {
        /// What was offered.
        offered: u64,
        /// What has come.
        received: u64,
    },
    /// The bytes are no snapshot, or not the one that was offered: abandon the file.
    Invalid(ReadError),
    /// The file could not be written: abandon it.
    Write(SnapshotError),
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReceiveError::OutOfOrder { expected, found } => {
                write!(
                    f,
                    "a chunk of the snapshot begins at byte {found}, the next one is wanted from byte {expected}"
                )
            }
            ReceiveError::TooLong { offered, end } => {
                write!(f, "a chunk of the snapshot ends at byte {end}, and {offered} bytes were offered")
            }
            ReceiveError::Incomplete { offered, received } => {
                write!(f, "the snapshot ends after {received} bytes, and {offered} were offered")
            }
            ReceiveError::Invalid(error) => error.fmt(f),
            ReceiveError::Write(error) => error.fmt(f),
        }
    }
}

impl Error for ReceiveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ReceiveError::Invalid(error) => Some(error),
            ReceiveError::Write(error) => Some(error),
            _ => None,
        }
    }
}
