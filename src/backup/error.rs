//! What can go wrong with a backup, in words an operator can act on.

use std::error::Error;
use std::fmt;
use std::io;

use crate::disk::{StageError, advice};
use crate::ids::{Chain, Lsn};
use crate::meta::MetaError;
use crate::snapshot::{ReadError, SnapshotError};
use crate::wal;

use super::tail::FORMAT_VERSION;

/// What is wrong with bytes that should be a tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Damaged(&'static str),
    Version(u32),
}

impl Fault {
    pub fn in_file(self, file: String, offset: u64) -> BackupError {
        match self {
            Fault::Damaged(what) => BackupError::Damaged { file, offset, what },
            Fault::Version(found) => BackupError::Version { file, found },
        }
    }
}

/// Why a file is no backup.
#[derive(Debug)]
pub enum BackupError {
    /// The snapshot in front.
    Snapshot(ReadError),
    /// The tail is not what was written.
    Damaged {
        /// The file.
        file: String,
        /// The byte where what is damaged begins.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The tail is of another version.
    Version {
        /// The file.
        file: String,
        /// The version.
        found: u32,
    },
    /// It cannot be read.
    Io {
        /// The file.
        file: String,
        /// The byte where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Snapshot(error) => error.fmt(f),
            BackupError::Damaged { file, offset, what } => {
                write!(f, "{file} is damaged at byte {offset}: {what}; use another backup")
            }
            BackupError::Version { file, found } => write!(
                f,
                "{file} has a tail of format version {found}, and this program reads version {FORMAT_VERSION}; use the \
                 version of the program that made it"
            ),
            BackupError::Io { file, offset, source } => {
                write!(f, "cannot read {file} at byte {offset}: {source}; {}", advice(source))
            }
        }
    }
}

impl Error for BackupError {}

/// Why nothing was restored. The directory is not there then.
#[derive(Debug)]
pub enum RestoreError {
    /// The backup cannot be used.
    Backup(BackupError),
    /// An archive cannot be looked through.
    Archive {
        /// The directory, or the segment in it.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The state of this LSN is in no snapshot that ends later.
    BelowE {
        /// What was asked for.
        until: Lsn,
        /// Where the snapshot ends.
        e: Lsn,
    },
    /// Records are missing.
    Missing {
        /// The first of them.
        first: Lsn,
        /// The last of them that is missing for sure.
        last: Lsn,
        /// The LSN to be restored.
        until: Lsn,
        /// What was looked through and what stood in the way there, in words.
        looked: String,
    },
    /// There are such records, and they are those of another log.
    OtherLog {
        /// The segment.
        path: String,
        /// The last LSN that both should share.
        lsn: Lsn,
        /// The chain checksum there, in what was restored so far.
        expected: Chain,
        /// The one in the segment.
        found: Chain,
    },
    /// The directory cannot be made.
    Stage(StageError),
    /// The new snapshot cannot be written.
    Snapshot(SnapshotError),
    /// The new log cannot be begun.
    Log(wal::OpenError),
    /// It cannot be written.
    Append(wal::ReserveError),
    /// Nor the new identity.
    Meta(MetaError),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Backup(error) => error.fmt(f),
            RestoreError::Archive { path, source } => {
                write!(f, "cannot read the archive {path}: {source}; name a directory that can be read")
            }
            RestoreError::BelowE { until, e } => write!(
                f,
                "LSN {until} lies below {e}, where the snapshot of this backup ended: it holds no older state. Use an \
                 older backup with --archive, or an LSN from {e} on"
            ),
            RestoreError::Missing { first, last, until, looked } if first == last => write!(
                f,
                "LSN {until} cannot be restored: record {first} is missing. {looked}; name the directory that has it \
                 with --archive"
            ),
            RestoreError::Missing { first, last, until, looked } => write!(
                f,
                "LSN {until} cannot be restored: records {first} to {last} are missing. {looked}; name the directory \
                 that has them with --archive"
            ),
            RestoreError::OtherLog { path, lsn, expected, found } => write!(
                f,
                "{path} does not continue the backup: at LSN {lsn} its chain checksum is {:08x}, and that of the \
                 backup {:08x}. It is of a log that went another way; leave it out",
                found.0, expected.0
            ),
            RestoreError::Stage(error) => error.fmt(f),
            RestoreError::Snapshot(error) => error.fmt(f),
            RestoreError::Log(error) => error.fmt(f),
            RestoreError::Append(error) => error.fmt(f),
            RestoreError::Meta(error) => error.fmt(f),
        }
    }
}

impl Error for RestoreError {}

impl RestoreError {
    /// Whether the backup holds something else than what was written.
    pub fn is_damage(&self) -> bool {
        match self {
            RestoreError::Backup(BackupError::Snapshot(error)) => error.is_damage(),
            RestoreError::Backup(BackupError::Damaged { .. } | BackupError::Version { .. }) => true,
            _ => false,
        }
    }
}

macro_rules! from {
    ($($variant:ident($source:ty),)*) => {
        $(impl From<$source> for RestoreError {
            fn from(error: $source) -> RestoreError { RestoreError::$variant(error) }
        })*
    };
}

from! {
    Backup(BackupError),
    Stage(StageError),
    Snapshot(SnapshotError),
    Log(wal::OpenError),
    Append(wal::ReserveError),
    Meta(MetaError),
}

impl From<ReadError> for RestoreError {
    fn from(error: ReadError) -> RestoreError {
        RestoreError::Backup(BackupError::Snapshot(error))
    }
}
