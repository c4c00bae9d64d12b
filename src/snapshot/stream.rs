//! Checks a snapshot's bytes as they come, for whoever writes them somewhere else than into a data directory.

use super::error::ReadError;
use super::parser::{Parser, Step};
use super::{Block, SnapshotInfo};

/// Checks the bytes of one snapshot, in order, in pieces of any size. It knows where the snapshot ends and takes
/// nothing from behind that.
#[derive(Debug)]
pub struct SnapshotStream {
    parser: Parser,
    wanted: usize,
}

/// What the bytes so far allow.
#[derive(Debug)]
pub enum StreamStep<'a> {
    /// More bytes are needed.
    Needs,
    /// The next block, checked.
    Block(Block<'a>),
    /// The footer was reached, and everything holds.
    Done(SnapshotInfo),
}

impl Default for SnapshotStream {
    fn default() -> SnapshotStream {
        SnapshotStream { parser: Parser::new(None), wanted: super::header::FIXED_SIZE }
    }
}

impl SnapshotStream {
    /// Takes bytes from the front of `bytes`, and returns how many. To be called when a step needs some.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let wanted = match self.parser.header() {
            // With the header it is known where the snapshot ends; before it, only how much belongs to the header.
            Some(header) => usize::try_from(header.bytes - self.parser.end()).unwrap_or(usize::MAX),
            None => self.wanted,
        };
        let size = wanted.min(bytes.len());
        self.parser.room(size).copy_from_slice(&bytes[..size]);
        size
    }

    /// Bytes that were judged.
    pub fn offset(&self) -> u64 {
        self.parser.offset()
    }

    /// Bytes of the whole snapshot, once its header was read.
    pub fn total_bytes(&self) -> Option<u64> {
        self.parser.header().map(|header| header.bytes)
    }

    /// Takes the next step. `file` is its name in messages.
    ///
    /// # Errors
    /// If the bytes are no snapshot.
    pub fn step(&mut self, file: &str) -> Result<StreamStep<'_>, ReadError> {
        match self.parser.step().map_err(|fault| fault.in_file(file.to_owned()))? {
            Step::Needs(size) => {
                self.wanted = size;
                Ok(StreamStep::Needs)
            }
            Step::Block(checked) => Ok(StreamStep::Block(self.parser.block(&checked))),
            Step::Done => {
                let header = self.parser.header().expect("a snapshot ends behind its header");
                let footer = self.parser.footer().expect("it ends with its footer");
                Ok(StreamStep::Done(header.info(footer, file)))
            }
        }
    }
}
