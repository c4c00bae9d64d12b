//! From a backup to a data directory.
//!
//! The new directory is made beside its place and renamed (see [`crate::disk::Staged`]): a restore that is killed
//! leaves nothing under the name that was asked for. In it, in this order:
//!
//! 1. the log: records S+1 up to the LSN that is restored, from the tail and behind it from archives. First, because
//!    a gap is found here, before the snapshot, which may be large, is written;
//! 2. the snapshot, block by block with its checksums checked and made anew: they begin with cluster and node;
//! 3. META: the new ids, the last term of the log, and S as the base that the log begins behind.
//!
//! All of it is durable before the rename, and nothing is believed that a checksum does not prove. What does that,
//! [`restore_onto`], knows disks and no paths.

use std::path::PathBuf;

use crate::disk::{Disk, FileId, Staged, ViewedDisk};
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{BATCH_SIZE_MAX, SEGMENT_SIZE_DEFAULT};
use crate::meta::{Meta, MetaStore};
use crate::replication::members::Membership;
use crate::rng::Rng;
use crate::snapshot::{SnapshotId, SnapshotInfo, SnapshotReader, SnapshotWriter, Start};
use crate::wal::{Base, Durability, Identity, ReserveError, Wal, WalConfig};
use crate::wire::Record;

use super::archive::{Archives, Sink};
use super::error::{BackupError, RestoreError};
use super::parser::{Step, TailParser};
use super::tail::TAIL_HEADER_SIZE;

/// Bytes of the backup read at once.
const READ_SIZE: usize = 1 << 20;

/// What is to be restored from what, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A backup, or a snapshot file.
    pub file: PathBuf,
    /// The directory to be made; it is not there, or empty.
    pub data_dir: PathBuf,
    /// The LSN whose state it is to be; `None`: that of the backup.
    pub until: Option<Lsn>,
    /// Directories with segments.
    pub archives: Vec<PathBuf>,
    /// A random number, for the new ids.
    pub seed: u64,
}

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The LSN whose state it is.
    pub last: Lsn,
    /// The LSNs of the snapshot.
    pub id: SnapshotId,
    /// Entries of the snapshot.
    pub entries: u64,
    /// The cluster that the backup is of.
    pub from: ClusterId,
    /// The new one.
    pub cluster_id: ClusterId,
    /// The new node.
    pub node_id: NodeId,
}

/// What a restore reads.
pub struct Sources {
    source: Source,
    archives: Archives,
}

impl Sources {
    /// `name`: the backup or snapshot in this directory. `archives`: directories with segments.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn open(
        disk: Box<dyn Disk>,
        name: &str,
        archives: Vec<Box<dyn Disk>>,
    ) -> Result<Sources, RestoreError> {
        Ok(Sources { source: Source::open(disk, name)?, archives: Archives::of(archives)? })
    }
}

/// Makes the directory.
///
/// # Errors
/// Nothing is there then that was not before.
pub fn restore(plan: &Plan) -> Result<Restored, RestoreError> {
    let io = |source| BackupError::Io { file: plan.file.display().to_string(), offset: 0, source };
    let (disk, name) = ViewedDisk::open_any(&plan.file).map_err(io)?;
    let name = name.ok_or(io(std::io::ErrorKind::IsADirectory.into()))?;
    let view = |path: &PathBuf| match ViewedDisk::open(path) {
        Ok(disk) => Ok(Box::new(disk) as Box<dyn Disk>),
        Err(source) => Err(RestoreError::Archive { path: path.display().to_string(), source }),
    };
    let source = Source::open(Box::new(disk), &name)?;
    source.target(plan.until)?;
    let archives = plan.archives.iter().map(view).collect::<Result<_, _>>()?;
    let mut sources = Sources { source, archives: Archives::of(archives)? };
    let mut staged = Staged::begin(&plan.data_dir, is_left_over)?;
    match restore_onto(&mut sources, plan.until, staged.disk(), plan.seed, SEGMENT_SIZE_DEFAULT) {
        Ok(restored) => {
            staged.finish()?;
            Ok(restored)
        }
        Err(error) => {
            staged.abandon();
            Err(error)
        }
    }
}

/// Makes the files of the data directory on an empty disk, durably.
///
/// # Errors
/// Then what is on that disk is nothing.
pub fn restore_onto(
    sources: &mut Sources,
    until: Option<Lsn>,
    disk: &mut dyn Disk,
    seed: u64,
    segment_bytes: u64,
) -> Result<Restored, RestoreError> {
    let Sources { source, archives } = sources;
    let last = source.target(until)?;
    let mut rng = Rng::new(seed);
    let ids = NewIds { cluster_id: ClusterId(rng.bytes16()), node_id: NodeId(rng.bytes16()) };
    let config = WalConfig { segment_bytes, durability: Durability::Fsync };
    build(source, archives, last, disk, ids, rng.next_u64(), config)?;
    let SnapshotInfo { id, entries, cluster_id: from, .. } = source.info;
    Ok(Restored { last, id, entries, from, cluster_id: ids.cluster_id, node_id: ids.node_id })
}

/// Whether a killed restore may have left a file of this name.
fn is_left_over(name: &str) -> bool {
    ["META.", "wal-", "snap-"].iter().any(|prefix| name.starts_with(prefix))
}

#[derive(Clone, Copy)]
struct NewIds {
    cluster_id: ClusterId,
    node_id: NodeId,
}

/// The backup as it is read.
struct Source {
    disk: Box<dyn Disk>,
    name: String,
    file: FileId,
    length: u64,
    info: SnapshotInfo,
    /// The last record of the tail, if there is one.
    tail_last: Option<Lsn>,
}

impl Source {
    fn open(mut disk: Box<dyn Disk>, name: &str) -> Result<Source, RestoreError> {
        let path = format!("{}/{name}", disk.describe());
        let io = |source| BackupError::Io { file: path.clone(), offset: 0, source };
        let reader = SnapshotReader::open(disk.as_mut(), name, None)?;
        let info = reader.info().clone();
        reader.close(disk.as_mut());
        let file = disk.open(name).map_err(io)?;
        let length = disk.len(file).map_err(io)?;
        let mut source = Source { disk, name: name.to_owned(), file, length, info, tail_last: None };
        source.look_at_tail()?;
        Ok(source)
    }

    /// Behind a snapshot of a data directory there is nothing, or zeros that were allocated and not used.
    fn look_at_tail(&mut self) -> Result<(), BackupError> {
        let mut bytes = [0; TAIL_HEADER_SIZE];
        let size = bytes.len().min((self.length - self.info.bytes) as usize);
        self.read(self.info.bytes, &mut bytes[..size])?;
        if bytes == [0; TAIL_HEADER_SIZE] {
            return Ok(());
        }
        let mut tail = TailParser::new(self.info.clone());
        tail.push(&bytes[..size]);
        tail.step().map_err(|fault| fault.in_file(self.path(), self.info.bytes))?;
        self.tail_last = Some(tail.header().ok_or_else(|| self.ends_early())?.last);
        Ok(())
    }

    fn ends_early(&self) -> BackupError {
        BackupError::Damaged {
            file: self.path(),
            offset: self.length,
            what: "the file ends before the backup does",
        }
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), BackupError> {
        let read = self.disk.read_exact_at(self.file, offset, buffer);
        read.map_err(|source| BackupError::Io { file: self.path(), offset, source })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.disk.describe(), self.name)
    }

    /// Reads the tail to its end.
    fn read_tail(&mut self, tail: &mut TailParser, each: &mut Sink<'_>) -> Result<(), RestoreError> {
        let (mut at, mut buffer) = (self.info.bytes, vec![0; READ_SIZE]);
        loop {
            let size = (self.length - at).min(READ_SIZE as u64) as usize;
            self.read(at, &mut buffer[..size])?;
            at += size as u64;
            tail.push(&buffer[..size]);
            loop {
                let offset = tail.offset();
                match tail.step() {
                    Ok(Step::Record { bytes, record, chain }) => each(&record, bytes, chain)?,
                    Ok(Step::Needs) if at < self.length => break,
                    Ok(Step::Needs) => return Err(self.ends_early().into()),
                    Ok(Step::Done) if at < self.length => break,
                    Ok(Step::Done) => return Ok(()),
                    Err(fault) => return Err(fault.in_file(self.path(), offset).into()),
                }
            }
        }
    }

    /// The LSN to be restored.
    fn target(&self, until: Option<Lsn>) -> Result<Lsn, RestoreError> {
        let e = self.info.id.e;
        match until {
            Some(until) if until < e => Err(RestoreError::BelowE { until, e }),
            Some(until) => Ok(until),
            None => Ok(self.tail_last.unwrap_or(e)),
        }
    }
}

fn build(
    source: &mut Source,
    archives: &mut Archives,
    last: Lsn,
    disk: &mut dyn Disk,
    ids: NewIds,
    salt: u64,
    config: WalConfig,
) -> Result<(), RestoreError> {
    let term = write_log(source, archives, last, disk, ids, salt, config)?;
    write_snapshot(source, disk, ids)?;
    let (log_generation, base_lsn, base_chain) = (1, source.info.id.s, source.info.chain);
    let NewIds { cluster_id, node_id } = ids;
    let meta = Meta { cluster_id, node_id, term, log_generation, base_lsn, base_chain, ..Meta::default() };
    MetaStore::create(disk, meta)?;
    Ok(())
}

/// Writes the log up to `last`, durably. Returns its last term.
fn write_log(
    source: &mut Source,
    archives: &mut Archives,
    last: Lsn,
    disk: &mut dyn Disk,
    ids: NewIds,
    salt: u64,
    config: WalConfig,
) -> Result<Term, RestoreError> {
    let SnapshotInfo { id, chain, history, cluster_id: from, .. } = source.info.clone();
    let identity = Identity {
        cluster_id: ids.cluster_id,
        generation: 1,
        cut_lsn: Lsn::ZERO,
        base_lsn: id.s,
        base_chain: chain,
    };
    let base = Base { lsn: id.s, chain, history, durable_lsn: id.s };
    let mut wal = Wal::open(disk, identity, &base, salt, config)?.wal;
    let mut append = |record: &Record<'_>, bytes: &[u8], chain: Chain| -> Result<(), RestoreError> {
        if record.lsn > last {
            return Ok(());
        }
        wal.reserve(disk, bytes.len())?;
        wal.append_checked(bytes, chain);
        if wal.batch_bytes() >= BATCH_SIZE_MAX {
            let commit = wal.last_lsn();
            wal.write(disk, commit).map_err(ReserveError::Failed)?;
        }
        Ok(())
    };
    let mut at = (id.s, chain);
    if source.tail_last.is_some() {
        let mut tail = TailParser::new(source.info.clone());
        source.read_tail(&mut tail, &mut append)?;
        at = tail.position();
    }
    archives.read(from, at, last, &mut append)?;
    wal.write_mark(disk, last)?;
    let term = wal.last_term();
    wal.close(disk);
    Ok(term)
}

/// Writes the snapshot again, with the new ids in it.
fn write_snapshot(source: &mut Source, disk: &mut dyn Disk, ids: NewIds) -> Result<(), RestoreError> {
    let SnapshotInfo { id, chain, history, bytes, .. } = source.info.clone();
    let NewIds { cluster_id, node_id } = ids;
    let start = Start {
        cluster_id,
        maker: node_id,
        s: id.s,
        chain,
        history,
        peers: Vec::new(),
        members: Membership::default(),
    };
    let mut writer = SnapshotWriter::begin(disk, bytes, start)?;
    let mut reader = SnapshotReader::open(source.disk.as_mut(), &source.name, None)?;
    while let Some(block) = reader.next_block(source.disk.as_mut())? {
        for (key, value) in block.entries() {
            writer.add(key, value);
            if writer.is_full() {
                writer.write_some(disk)?;
            }
        }
        block.sessions().for_each(|session| writer.add_session(&session));
        // Of sessions there is less in a block than makes a write due.
        if writer.is_full() {
            writer.write_some(disk)?;
        }
    }
    reader.close(source.disk.as_mut());
    writer.finish(disk, id.e)?.publish(disk)?;
    Ok(())
}
