//! Why the record cannot be had, and what was found wrong with it although it can.

use std::fmt;
use std::io;

use super::layout::{CopyProblem, FORMAT_VERSION};
use super::{NAME_A, NAME_B};
use crate::disk::advice;

/// Why there is no record to go on with. The node must not start, or must end.
#[derive(Debug)]
pub enum MetaError {
    /// The disk failed. After a failed write or sync nothing is known about the file.
    Io {
        /// The data directory.
        directory: String,
        /// What was tried.
        action: &'static str,
        /// The file; empty if it was the directory itself.
        file: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Neither copy can be used, but there was a record.
    Damaged {
        /// The data directory.
        directory: String,
        /// What is wrong with the first copy.
        a: CopyProblem,
        /// What is wrong with the second copy.
        b: CopyProblem,
    },
    /// Both copies are whole and of one version, and differ. No crash does this.
    CopiesDiffer {
        /// The data directory.
        directory: String,
        /// The version of both.
        version: u64,
    },
    /// A program of a later format wrote it.
    NewerFormat {
        /// The data directory.
        directory: String,
        /// The file.
        file: &'static str,
        /// The format it has.
        format: u32,
    },
}

const NO_GUESS: &str = "a node that forgot its term or vote could contradict what it promised, so it does \
     not start; put back one of the two files if you have a copy as new as the log, else move this directory \
     away and start the node on an empty one, to be filled by its peers";

impl fmt::Display for MetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaError::Io { directory, action, file, source } => {
                write!(f, "{action} {directory}/{file}: {source}; {}", advice(source))
            }
            MetaError::Damaged { directory, a, b } => write!(
                f,
                "both copies of the identity record are damaged: {directory}/{NAME_A}: {a}; \
                 {directory}/{NAME_B}: {b}; {NO_GUESS}"
            ),
            MetaError::CopiesDiffer { directory, version } => write!(
                f,
                "{directory}/{NAME_A} and {directory}/{NAME_B} are both whole and of version {version}, but \
                 differ, so one of them was put there from elsewhere; remove that one"
            ),
            MetaError::NewerFormat { directory, file, format } => write!(
                f,
                "{directory}/{file} has format version {format}, this program knows versions up to \
                 {FORMAT_VERSION}; start the newer program that wrote it"
            ),
        }
    }
}

impl std::error::Error for MetaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            MetaError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What was wrong with the record when it was read, and is right again. One line of the log each.
#[derive(Debug)]
pub enum MetaNotice {
    /// One copy was damaged and has been written again from the other.
    Repaired {
        /// The file.
        file: &'static str,
        /// What was wrong with it.
        problem: CopyProblem,
        /// The version of the record that is used.
        version: u64,
    },
    /// One copy was older, as an update that was interrupted leaves it.
    CaughtUp {
        /// The file.
        file: &'static str,
        /// The version it had.
        from: u64,
        /// The version of the record that is used.
        version: u64,
    },
}

impl fmt::Display for MetaNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaNotice::Repaired { file, problem, version } => {
                write!(f, "{file} was damaged ({problem}); repaired from the other copy, version {version}")
            }
            MetaNotice::CaughtUp { file, from, version } => write!(
                f,
                "{file} was of version {from}, the other copy of {version}: an update was interrupted, or a write \
                 to {file} was lost; version {version} is used"
            ),
        }
    }
}
