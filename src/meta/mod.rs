//! What a node must never forget: who it is, its term, whom it gave its vote, on which side of a cut its log is, and
//! behind which LSN the log begins since a snapshot was installed in its place.
//!
//! It is one record, checksummed, in two files of the same version that are written in place, one after
//! the other, each synced before the next is touched:
//!
//! - At any moment at least one copy on the disk is whole: a tear, a lost sector or rot in one of them costs
//!   nothing but a repair.
//! - [`MetaStore::update`] returns a [`MetaDurable`] only after both are durable. Whatever may leave the node
//!   only after that (a vote, the acknowledgement of a term) asks for the token, and nobody else makes one.
//! - Both files have their full size from the beginning, so that a term and a vote fit on a full disk.
//!
//! Reading proves nothing about durability: after `kill -9`, or after a failed sync, the page cache shows what
//! the disk may not hold. So [`MetaStore::load`] writes the record it chose to both files again. It always
//! begins with the first: an update that was cut short may have left that one on no disk, while the second
//! one is then whole; and if it was the second, the first is rewritten with the bytes it has.
//!
//! Left out: a directory that was restored from an older backup looks like one that is merely old; only peers
//! can tell.

mod error;
mod layout;
mod look;
mod record;

use std::borrow::Cow;

use crate::disk::{Disk, FileId};
use crate::ids::NodeId;

pub use error::{MetaError, MetaNotice};
pub use layout::CopyProblem;
pub use look::{COPY_NAMES, look_at_copy};
pub use record::{Meta, Repair, StoredRole};

use layout::{COPY_SIZE, Decoded};

const NAME_A: &str = "META.a";
const NAME_B: &str = "META.b";
/// The names under which the copies of a new record are made, before a rename shows them whole.
const NAME_A_NEW: &str = "META.a.new";
const NAME_B_NEW: &str = "META.b.new";
const NEW_NAMES: [&str; 2] = [NAME_A_NEW, NAME_B_NEW];
/// Files with such names are never without a record: segments of the log, and snapshots.
const STATE_PREFIXES: [&str; 2] = ["wal-", "snap-"];

/// Proof that a version of the record is durable in both copies.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaDurable {
    version: u64,
}

impl MetaDurable {
    /// The version that is durable, and with it every older one.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// The record and its two files. Both stay open: a change of term needs no descriptor.
///
/// Invariant: between calls both copies are durable and hold `meta` as `version`.
#[derive(Debug)]
pub struct MetaStore {
    meta: Meta,
    version: u64,
    a: FileId,
    b: FileId,
    notices: Vec<MetaNotice>,
    failed: bool,
}

impl MetaStore {
    /// Reads the record, repairs what is damaged or not durable, and tells about it in
    /// [`MetaStore::notices`]. `None` if the directory is fresh.
    ///
    /// # Errors
    /// If neither copy can be used, although there is one or there is a log; if a newer program wrote it; if
    /// the disk fails.
    pub fn load(disk: &mut dyn Disk) -> Result<Option<MetaStore>, MetaError> {
        let directory = disk.describe();
        let names = disk.list().map_err(io_error(&directory, "listing", ""))?;
        let a = Copy::read(disk, NAME_A)?;
        let b = Copy::read(disk, NAME_B)?;
        let has_state = names.iter().any(|name| STATE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)));
        if a.file.is_none() && b.file.is_none() && !has_state {
            return Ok(None);
        }
        let (version, meta, notices) = choose(&directory, a.content, b.content)?;
        let bytes = layout::encode(version, &meta);
        let a = rewrite(disk, NAME_A, a.file, &bytes)?;
        let b = rewrite(disk, NAME_B, b.file, &bytes)?;
        remove_unfinished(disk, &names)?;
        disk.sync_dir().map_err(io_error(&directory, "syncing directory", ""))?;
        Ok(Some(MetaStore { meta, version, a, b, notices, failed: false }))
    }

    /// Makes the first version of the record, durably. Only for a directory for which `load` said `None`. A
    /// crash at any point leaves it either as fresh as that or with the complete record.
    ///
    /// # Errors
    /// If the disk fails or is full.
    pub fn create(disk: &mut dyn Disk, meta: Meta) -> Result<MetaStore, MetaError> {
        meta.invariants();
        let directory = disk.describe();
        let names = disk.list().map_err(io_error(&directory, "listing", ""))?;
        assert!(!names.iter().any(|name| name == NAME_A || name == NAME_B), "there is a record to load");
        remove_unfinished(disk, &names)?;
        let bytes = layout::encode(1, &meta);
        let a = rewrite(disk, NAME_A_NEW, None, &bytes)?;
        let b = rewrite(disk, NAME_B_NEW, None, &bytes)?;
        // Both are whole and durable before either has its name: whichever of the renames a crash keeps,
        // `load` finds a copy that needs no other.
        for (from, to) in [(NAME_A_NEW, NAME_A), (NAME_B_NEW, NAME_B)] {
            disk.rename(from, to).map_err(io_error(&directory, "renaming", from))?;
        }
        disk.sync_dir().map_err(io_error(&directory, "syncing directory", ""))?;
        Ok(MetaStore { meta, version: 1, a, b, notices: Vec::new(), failed: false })
    }

    /// The record.
    pub fn get(&self) -> &Meta {
        &self.meta
    }

    /// How often it was changed, and 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What `load` found and repaired, for the log.
    pub fn notices(&self) -> &[MetaNotice] {
        &self.notices
    }

    /// Changes the record and returns when both copies are durable: two writes and two `fdatasync`. Without
    /// any if nothing changed.
    ///
    /// # Errors
    /// If the disk fails. Then either version may come back after a restart, and the process must end.
    ///
    /// # Panics
    /// If the change breaks a promise: a term or log generation that goes back, a second vote in a term,
    /// another node or cluster id, other members. Also after an error.
    pub fn update(
        &mut self,
        disk: &mut dyn Disk,
        change: impl FnOnce(&mut Meta),
    ) -> Result<MetaDurable, MetaError> {
        assert!(!self.failed, "after a failed update the process ends");
        let mut next = self.meta.clone();
        change(&mut next);
        if next == self.meta {
            return Ok(MetaDurable { version: self.version });
        }
        self.meta.change_invariants(&next);
        if crate::sabotage::is(crate::sabotage::Variant::VoteApartFromTerm) {
            self.write_vote_first(disk, &next)?;
        }
        let version = self.version.checked_add(1).expect("2^64 versions are never reached");
        if next.term != self.meta.term && crate::sabotage::is(crate::sabotage::Variant::TermNotDurable) {
            (self.meta, self.version) = (next, version);
            return Ok(MetaDurable { version });
        }
        self.write(disk, version, &without_vote_if_sabotaged(&next))?;
        self.meta = next;
        Ok(MetaDurable { version })
    }

    /// Writes both copies, one after the other, durably.
    fn write(&mut self, disk: &mut dyn Disk, version: u64, meta: &Meta) -> Result<(), MetaError> {
        let bytes = layout::encode(version, meta);
        self.failed = true;
        write_durably(disk, NAME_A, self.a, &bytes)?;
        write_durably(disk, NAME_B, self.b, &bytes)?;
        (self.failed, self.version) = (false, version);
        Ok(())
    }

    /// A known-bad variant: the next vote in the term of before, durably. A crash behind it leaves a second vote there.
    fn write_vote_first(&mut self, disk: &mut dyn Disk, next: &Meta) -> Result<(), MetaError> {
        if next.term == self.meta.term || next.vote.is_none() {
            return Ok(());
        }
        self.write(disk, self.version + 1, &Meta { vote: next.vote, ..self.meta.clone() })
    }
}

fn without_vote_if_sabotaged(meta: &Meta) -> Cow<'_, Meta> {
    match crate::sabotage::is(crate::sabotage::Variant::VoteNotDurable) {
        true => Cow::Owned(Meta { vote: NodeId::NONE, ..meta.clone() }),
        false => Cow::Borrowed(meta),
    }
}

/// One of the two files as it was found.
struct Copy {
    file: Option<FileId>,
    content: Result<Found, CopyProblem>,
}

/// A whole copy.
struct Found {
    version: u64,
    meta: Meta,
}

impl Copy {
    fn read(disk: &mut dyn Disk, name: &'static str) -> Result<Copy, MetaError> {
        let file = match disk.open(name) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Copy { file: None, content: Err(CopyProblem::Missing) });
            }
            Err(error) => return Err(io_error(&disk.describe(), "opening", name)(error)),
        };
        let content = match read_bytes(disk, file).and_then(|bytes| layout::decode(&bytes)) {
            Ok(Decoded::Record { version, meta }) => Ok(Found { version, meta: *meta }),
            Ok(Decoded::NewerFormat { format }) => {
                return Err(MetaError::NewerFormat { directory: disk.describe(), file: name, format });
            }
            Err(problem) => Err(problem),
        };
        Ok(Copy { file: Some(file), content })
    }
}

/// A copy that cannot be read is as good as a damaged one: writing it again gives it other sectors.
fn read_bytes(disk: &mut dyn Disk, file: FileId) -> Result<Box<[u8; COPY_SIZE]>, CopyProblem> {
    let size = disk.len(file).map_err(CopyProblem::Unreadable)?;
    if size < COPY_SIZE as u64 {
        return Err(CopyProblem::Short { size });
    }
    let mut bytes = Box::new([0; COPY_SIZE]);
    disk.read_exact_at(file, 0, &mut bytes[..]).map_err(CopyProblem::Unreadable)?;
    Ok(bytes)
}

/// The record to go on with, and what is to be told. Never an older one than a whole copy holds.
fn choose(
    directory: &str,
    a: Result<Found, CopyProblem>,
    b: Result<Found, CopyProblem>,
) -> Result<(u64, Meta, Vec<MetaNotice>), MetaError> {
    let directory = directory.to_owned();
    let (file, from, chosen) = match (a, b) {
        (Err(a), Err(b)) => return Err(MetaError::Damaged { directory, a, b }),
        (Ok(chosen), Err(problem)) => return Ok(repaired(chosen, NAME_B, problem)),
        (Err(problem), Ok(chosen)) => return Ok(repaired(chosen, NAME_A, problem)),
        (Ok(a), Ok(b)) if a.version == b.version => {
            if a.meta != b.meta {
                return Err(MetaError::CopiesDiffer { directory, version: a.version });
            }
            return Ok((a.version, a.meta, Vec::new()));
        }
        (Ok(a), Ok(b)) if a.version > b.version => (NAME_B, b.version, a),
        (Ok(a), Ok(b)) => (NAME_A, a.version, b),
    };
    let notice = MetaNotice::CaughtUp { file, from, version: chosen.version };
    Ok((chosen.version, chosen.meta, vec![notice]))
}

fn repaired(chosen: Found, file: &'static str, problem: CopyProblem) -> (u64, Meta, Vec<MetaNotice>) {
    let notice = MetaNotice::Repaired { file, problem, version: chosen.version };
    (chosen.version, chosen.meta, vec![notice])
}

/// Writes a copy durably, after creating its file if there is none. Its name is not durable by this.
fn rewrite(
    disk: &mut dyn Disk,
    name: &'static str,
    file: Option<FileId>,
    bytes: &[u8],
) -> Result<FileId, MetaError> {
    let file = match file {
        Some(file) => file,
        None => {
            disk.create(name, bytes.len() as u64).map_err(io_error(&disk.describe(), "creating", name))?
        }
    };
    write_durably(disk, name, file, bytes)?;
    Ok(file)
}

fn write_durably(
    disk: &mut dyn Disk,
    name: &'static str,
    file: FileId,
    bytes: &[u8],
) -> Result<(), MetaError> {
    let directory = disk.describe();
    disk.write_all_at(file, 0, bytes).map_err(io_error(&directory, "writing", name))?;
    disk.sync_data(file).map_err(io_error(&directory, "syncing", name))
}

/// Removes what an interrupted `create` left under the names nothing is ever read from.
fn remove_unfinished(disk: &mut dyn Disk, names: &[String]) -> Result<(), MetaError> {
    let directory = disk.describe();
    for name in NEW_NAMES.into_iter().filter(|new| names.iter().any(|name| name == new)) {
        disk.remove(name).map_err(io_error(&directory, "removing", name))?;
    }
    Ok(())
}

fn io_error(
    directory: &str,
    action: &'static str,
    file: &'static str,
) -> impl FnOnce(std::io::Error) -> MetaError {
    let directory = directory.to_owned();
    move |source| MetaError::Io { directory, action, file, source }
}
