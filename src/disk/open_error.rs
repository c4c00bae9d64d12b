//! Why a data directory cannot be used, in words.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::advice;
use super::real::LOCK_NAME;

/// Why a data directory cannot be used.
#[derive(Debug)]
pub enum OpenError {
    /// Another process holds it.
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if its pid could be read.
        pid: Option<u32>,
    },
    /// It belongs to another user. Files created in it would keep that user's node from starting again.
    WrongOwner {
        /// The directory.
        path: PathBuf,
        /// The uid of its owner.
        owner: u32,
        /// The uid of this process.
        user: u32,
    },
    /// The operating system refused.
    Io {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::InUse { path, pid } => {
                write!(f, "data directory {} is in use by ", path.display())?;
                match pid {
                    Some(pid) => write!(f, "the process with pid {pid}")?,
                    None => write!(f, "another process")?,
                }
                write!(f, ", which holds {LOCK_NAME} in it; stop it, or name another directory")
            }
            OpenError::WrongOwner { path, owner, user } => write!(
                f,
                "data directory {} belongs to uid {owner} and this process runs as uid {user}; run it as \
                 uid {owner}, give the directory away with chown, or name a directory inside of it",
                path.display()
            ),
            OpenError::Io { path, action, source } => {
                write!(f, "data directory {}: {action}: {source}; {}", path.display(), advice(source))
            }
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io { source, .. } => Some(source),
            OpenError::InUse { .. } | OpenError::WrongOwner { .. } => None,
        }
    }
}
