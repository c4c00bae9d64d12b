//! Why a node ends: the environment failed. One reason, one exit code, out in one hop.
//!
//! The other three kinds of failure never end a node and are never mixed with this one: bad bytes from a
//! peer close that connection ([`Fence`]), a client's outcome is a status in its reply, and a bug is an
//! assertion that aborts.

use std::fmt;

use crate::meta::MetaError;
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
            FatalReason::Open(_) | FatalReason::Read(_) => 11,
            FatalReason::Meta(_) => 12,
            FatalReason::Wal(_) => 13,
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
