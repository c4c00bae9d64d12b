//! Why a node ends: the environment failed. One reason, one exit code, out in one hop.
//!
//! The other three kinds of failure never end a node and are never mixed with this one: bad bytes from a
//! peer close that connection ([`Fence`]), a client's outcome is a status in its reply, and a bug is an
//! assertion that aborts.

use std::fmt;

use crate::meta::MetaError;
use crate::snapshot::SnapshotError;
use crate::wal::{OpenError, ReadError, WalError};

/// The reason.
#[derive(Debug)]
pub enum FatalReason {
    /// The log cannot be opened.
    Open(OpenError),
    /// A log write or sync failed: the page cache can no longer be trusted, and a retry proves nothing.
    Wal(WalError),
    /// The log cannot be read back.
    Read(ReadError),
    /// No snapshot can be used, and the log alone does not reach back to its beginning.
    NoState {
        /// Why each snapshot is not used.
        tried: Vec<String>,
        /// Why the log is not enough.
        error: OpenError,
    },
    /// The old state was given up for a snapshot that did not come, and cannot be made anew from the disk.
    StateLost {
        /// The end of the log.
        last: crate::ids::Lsn,
    },
    /// The snapshots of the data directory cannot be listed.
    NoSnapshots {
        /// The directory.
        directory: String,
        /// Why.
        source: std::io::Error,
    },
    /// A snapshot that was whole cannot be read any more.
    Snapshot(crate::snapshot::ReadError),
    /// A snapshot could not be removed, or the names in the directory not be made durable.
    SnapshotFile(SnapshotError),
    /// The identity record cannot be read or written.
    Meta(MetaError),
    /// The flags contradict the data directory.
    Role(String),
    /// 2^32 - 1 starts or promotions.
    TermsExhausted,
    /// No room on disk where none may be missing (before the node serves anybody).
    NoRoom(std::io::Error),
    /// The node's own socket or poll failed.
    Net {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl FatalReason {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            FatalReason::Role(_) => 2,
            FatalReason::Open(_)
            | FatalReason::Read(_)
            | FatalReason::NoState { .. }
            | FatalReason::StateLost { .. }
            | FatalReason::NoSnapshots { .. }
            | FatalReason::Snapshot(_) => 11,
            FatalReason::Meta(_) => 12,
            FatalReason::Wal(_) | FatalReason::SnapshotFile(_) => 13,
            FatalReason::NoRoom(_) => 14,
            FatalReason::Net { .. } => 15,
            FatalReason::TermsExhausted => 16,
        }
    }
}

impl fmt::Display for FatalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FatalReason::Open(error) => error.fmt(f),
            FatalReason::Wal(error) => error.fmt(f),
            FatalReason::NoState { tried, error } => write!(
                f,
                "no state can be loaded. Snapshots that are not used: {}. Without one: {error}",
                tried.join("; ")
            ),
            FatalReason::StateLost { last } => write!(
                f,
                "a leader's snapshot did not come to its end, and no snapshot of this node leads to the state at LSN \
                 {last}; start it again: what its leader sends takes the place of all it has"
            ),
            FatalReason::NoSnapshots { directory, source } => {
                write!(f, "cannot list {directory}: {source}; {}", crate::disk::advice(source))
            }
            FatalReason::Snapshot(error) => error.fmt(f),
            FatalReason::SnapshotFile(error) => error.fmt(f),
            FatalReason::Read(error) => error.fmt(f),
            FatalReason::Meta(error) => error.fmt(f),
            FatalReason::Role(text) => f.write_str(text),
            FatalReason::TermsExhausted => {
                f.write_str("the terms of this promotion are used up: promote another node")
            }
            FatalReason::NoRoom(error) => {
                write!(
                    f,
                    "no room for a log segment before the node could start: {error}; free space and start again"
                )
            }
            FatalReason::Net { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl std::error::Error for FatalReason {}

impl From<WalError> for FatalReason {
    fn from(error: WalError) -> FatalReason {
        FatalReason::Wal(error)
    }
}

impl From<SnapshotError> for FatalReason {
    fn from(error: SnapshotError) -> FatalReason {
        FatalReason::SnapshotFile(error)
    }
}

impl From<MetaError> for FatalReason {
    fn from(error: MetaError) -> FatalReason {
        FatalReason::Meta(error)
    }
}

impl From<ReadError> for FatalReason {
    fn from(error: ReadError) -> FatalReason {
        FatalReason::Read(error)
    }
}

/// Why a connection is closed by this node: what its other side did.
#[derive(Debug)]
pub struct Fence(pub String);

/// What ends the handling of a frame early.
#[derive(Debug)]
pub enum Stop {
    /// Close this connection, count it, go on.
    Fence(Fence),
    /// End the process.
    Fatal(FatalReason),
}

impl<E: Into<FatalReason>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Fatal(error.into())
    }
}

/// Closes the connection whose frame is being handled.
pub fn fence<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fence(Fence(why.into())))
}

/// As [`fence`], for bytes that are not the message they claim to be.
pub fn malformed(message: &str) -> impl Fn(crate::wire::DecodeError) -> Stop {
    move |error| Stop::Fence(Fence(format!("malformed {message}: {error}")))
}
