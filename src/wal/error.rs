//! What can go wrong with the log, in words an operator can act on.

use std::error::Error;
use std::fmt;
use std::io;

use crate::disk::Disk;
use crate::ids::{Chain, ClusterId, Lsn};

use super::segment::FORMAT_VERSION;

/// A file operation of the log failed. The process must end: after a failed write or sync the page cache
/// may hold what the disk does not, and a second sync that succeeds proves nothing.
#[derive(Debug)]
pub struct WalError {
    /// What was being done, as "write a batch to".
    pub op: &'static str,
    /// Directory and name.
    pub file: String,
    /// The byte where it was being done; 0 for operations on the whole file.
    pub offset: u64,
    /// Why.
    pub source: io::Error,
}

impl WalError {
    pub(super) fn new(
        disk: &dyn Disk,
        op: &'static str,
        name: &str,
        offset: u64,
        source: io::Error,
    ) -> WalError {
        WalError { op, file: path(disk, name), offset, source }
    }
}

/// Directory and name, for messages.
pub(super) fn path(disk: &dyn Disk, name: &str) -> String {
    format!("{}/{name}", disk.describe())
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WalError { op, file, offset, source } = self;
        write!(
            f,
            "cannot {op} {file} (byte {offset}): {source}; the process ends, because the page cache may now \
             hold what the disk does not. Check the disk and the space on it, then start the node again: it \
             reads what is really there"
        )
    }
}

impl Error for WalError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

/// Why there is no room for a record now. Its LSN is not used, and what was reserved before stays so.
#[derive(Debug)]
pub enum ReserveError {
    /// The disk or the quota is full. Nothing has failed: ask again later.
    NoRoom(io::Error),
    /// The next segment may begin only when the flush under way has ended: a sync beside it could take its failure
    /// for success, as the kernel reports an error once. Ask again after [`super::Wal::flush_poll`] gave its token.
    FlushPending,
    /// The log failed; the process must end.
    Failed(WalError),
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReserveError::NoRoom(error) => write!(
                f,
                "no room for another segment of the log: {error}; writes are refused until space is freed"
            ),
            ReserveError::FlushPending => {
                f.write_str("the next segment of the log waits for the flush under way")
            }
            ReserveError::Failed(error) => error.fmt(f),
        }
    }
}

impl Error for ReserveError {}

/// Why records could not be read back.
#[derive(Debug)]
pub enum ReadError {
    /// The log does not hold that LSN.
    NotHeld {
        /// What was asked for.
        lsn: Lsn,
        /// The first LSN held.
        first: Lsn,
        /// The last LSN written.
        last: Lsn,
    },
    /// A file could not be read.
    Io(WalError),
    /// What was written does not read as such any more.
    Damaged {
        /// Directory and name.
        file: String,
        /// Where.
        offset: u64,
        /// The record that should be there.
        lsn: Lsn,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::NotHeld { lsn, first, last } => {
                write!(f, "LSN {lsn} is not in the log, which holds {first} to {last}")
            }
            ReadError::Io(WalError { op, file, offset, source }) => {
                write!(f, "cannot {op} {file} (byte {offset}): {source}")
            }
            ReadError::Damaged { file, offset, lsn } => write!(
                f,
                "{file} is damaged at byte {offset}, where the record of LSN {lsn} should be; restore the file, \
                 or replace the data directory by an empty one so that the node fetches its state again"
            ),
        }
    }
}

impl Error for ReadError {}

/// Why the log cannot be opened. No file was changed, except in the case of `Io`.
#[derive(Debug)]
pub enum OpenError {
    /// A file operation failed.
    Io(WalError),
    /// Something that was durable does not read any more, or files contradict each other.
    Damaged(Damage),
    /// The log and the snapshot that it should continue tell of different records. The log proves itself record by
    /// record, so the snapshot is not believed.
    BaseDisagrees {
        /// The segment that says otherwise, with its directory.
        file: String,
        /// The last LSN of which the snapshot is the state.
        lsn: Lsn,
        /// The chain checksum there, as the log has it.
        chain: Chain,
        /// As the snapshot has it; equal only if the terms differ.
        expected: Chain,
    },
    /// The file is of another version of the format.
    OtherVersion {
        /// Directory and name.
        file: String,
        /// The version it has.
        found: u32,
    },
    /// The file is of another cluster.
    OtherCluster {
        /// Directory and name.
        file: String,
        /// The cluster it names.
        found: ClusterId,
        /// The cluster of this node.
        expected: ClusterId,
    },
    /// The log is of a later generation than the node's own record says: that record is an older one.
    LaterGeneration {
        /// Directory and name.
        file: String,
        /// Where the generation is named.
        offset: u64,
        /// The generation there.
        found: u64,
        /// The generation of the node's record.
        expected: u64,
    },
}

/// Where the log is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Directory and name.
    pub file: String,
    /// Where.
    pub offset: u64,
    /// The first record that cannot be read.
    pub lsn: Lsn,
    /// The last record that was durable, as far as the rest of the log tells.
    pub durable_lsn: Lsn,
    /// What is wrong.
    pub reason: &'static str,
    /// Up to here the log is whole: what a repair keeps. `None`: fetching the rest again would not help, as a record
    /// is whole and cannot be read by this version.
    pub whole_lsn: Option<Lsn>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io(error) => error.fmt(f),
            OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason, .. }) => write!(
                f,
                "{file} is damaged at byte {offset}: {reason}. The log cannot be read from LSN {lsn} on, and was \
                 durable up to LSN {durable_lsn} at least. Nothing was changed. Restore the file from a backup of \
                 this node, or move the data directory aside and start the node empty as a follower, so that it \
                 fetches everything from its leader"
            ),
            OpenError::BaseDisagrees { file, lsn, chain, expected } => write!(
                f,
                "the snapshot of LSN {lsn} is not of this log: {file} has chain checksum {chain} there, the snapshot \
                 {expected} (or another term). Nothing was changed. Move that snapshot away, so that the node starts \
                 from an older one, or start the node empty as a follower"
            ),
            OpenError::OtherVersion { file, found } => write!(
                f,
                "{file} is of format version {found}, this program reads version {FORMAT_VERSION}; start the \
                 version of the program that wrote it"
            ),
            OpenError::OtherCluster { file, found, expected } => write!(
                f,
                "{file} belongs to cluster {found}, this node to cluster {expected}; put the file back where it \
                 came from, or use another data directory"
            ),
            OpenError::LaterGeneration { file, offset, found, expected } => write!(
                f,
                "{file} (byte {offset}) is of log generation {found}, the node's own record says {expected}: the \
                 record is older than the log. Restore both from the same moment, or start the node empty as a \
                 follower"
            ),
        }
    }
}

impl Error for OpenError {}

impl From<WalError> for OpenError {
    fn from(error: WalError) -> OpenError {
        OpenError::Io(error)
    }
}
