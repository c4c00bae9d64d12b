//! Checks a backup while it comes: snapshot, tail, end. Holds one block or record and what came behind it.

use crate::ids::{Chain, ClusterId, Lsn};
use crate::snapshot::{SnapshotId, SnapshotStream, StreamStep};

use super::error::BackupError;
use super::parser::{Step, TailParser};

/// What a whole backup is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The LSNs of its snapshot.
    pub id: SnapshotId,
    /// The LSN whose state it is.
    pub last: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
    /// Entries of the snapshot.
    pub entries: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The cluster that it was made in.
    pub cluster_id: ClusterId,
}

#[derive(Debug)]
enum Stage {
    Snapshot(Box<SnapshotStream>),
    Tail(Box<TailParser>, u64),
}

/// A backup on its way, in pieces of any size.
#[derive(Debug)]
pub struct BackupStream {
    /// Its name in messages.
    file: String,
    stage: Stage,
    summary: Option<Summary>,
}

impl BackupStream {
    /// Nothing has come yet.
    pub fn new(file: String) -> BackupStream {
        BackupStream { file, stage: Stage::Snapshot(Box::default()), summary: None }
    }

    /// What it is, once all of it has come and holds.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// Takes the bytes that come next, and checks what they complete.
    ///
    /// # Errors
    /// If this is no backup. Nothing more is to be put in then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        loop {
            match &mut self.stage {
                Stage::Snapshot(stream) => {
                    let taken = stream.push(bytes);
                    bytes = &bytes[taken..];
                    if !self.check_snapshot()? && bytes.is_empty() {
                        return Ok(());
                    }
                }
                Stage::Tail(parser, _) => {
                    parser.push(bytes);
                    return self.check_tail();
                }
            }
        }
    }

    /// True: the snapshot is whole, and the tail follows.
    fn check_snapshot(&mut self) -> Result<bool, BackupError> {
        let Stage::Snapshot(stream) = &mut self.stage else { unreachable!("only called for it") };
        loop {
            match stream.step(&self.file).map_err(BackupError::Snapshot)? {
                StreamStep::Needs => return Ok(false),
                StreamStep::Block(_) => {}
                StreamStep::Done(info) => {
                    let entries = info.entries;
                    self.stage = Stage::Tail(Box::new(TailParser::new(info)), entries);
                    return Ok(true);
                }
            }
        }
    }

    fn check_tail(&mut self) -> Result<(), BackupError> {
        let Stage::Tail(parser, entries) = &mut self.stage else { unreachable!("only called for it") };
        loop {
            let offset = parser.offset();
            match parser.step() {
                Ok(Step::Needs) => return Ok(()),
                Ok(Step::Record { .. }) => {}
                Ok(Step::Done) => break,
                Err(fault) => return Err(fault.in_file(self.file.clone(), offset)),
            }
        }
        let (last, chain) = parser.position();
        let bytes = parser.offset();
        let (id, cluster_id) = parser.snapshot();
        self.summary = Some(Summary { id, last, chain, entries: *entries, bytes, cluster_id });
        Ok(())
    }
}
