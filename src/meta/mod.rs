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

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, PEERS_MAX};

pub use error::{MetaError, MetaNotice};
pub use layout::CopyProblem;
pub use look::{COPY_NAMES, look_at_copy};

use layout::{COPY_SIZE, Decoded};

const NAME_A: &str = "META.a";
const NAME_B: &str = "META.b";
/// The names under which the copies of a new record are made, before a rename shows them whole.
const NAME_A_NEW: &str = "META.a.new";
const NAME_B_NEW: &str = "META.b.new";
const NEW_NAMES: [&str; 2] = [NAME_A_NEW, NAME_B_NEW];
/// Files with such names are never without a record: segments of the log, and snapshots.
const STATE_PREFIXES: [&str; 2] = ["wal-", "snap-"];

/// The role a node has beyond its restart, and whose word it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredRole {
    /// Never started in a role.
    #[default]
    Unset,
    /// Leader, as its flags said.
    LeaderByFlags,
    /// Follower, as its flags said.
    FollowerByFlags,
    /// Leader since a promotion, whatever the flags say.
    LeaderByPromotion,
    /// Follower since an operator's command, whatever the flags say.
    FollowerByCommand,
    /// A leader that met a higher term.
    Deposed,
}

/// What this node once held and does not hold any more: its log was damaged and cut in front of the damage, or a leader
/// remembers more of it than is here. Until the log reaches `until` again, as a leader confirms it, the node repairs:
/// it answers no reads, is not in sync and may not be promoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// The last LSN that it held, as far as can be told; 0: there is nothing to repair.
    pub until: Lsn,
    /// No record up to there is of a higher term.
    pub term: Term,
    /// Up to here they were known to be committed.
    pub commit_lsn: Lsn,
    /// The log is cut in this record, and the damaged files may still stand where they were.
    pub files_pending: bool,
}

impl Repair {
    /// Whether the node repairs.
    pub fn is_due(&self) -> bool {
        self.until > Lsn::ZERO
    }
}

/// The record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The cluster; `NONE` until the first leader is met. Set once.
    pub cluster_id: ClusterId,
    /// This node. Never changes.
    pub node_id: NodeId,
    /// The highest term met. Never goes back.
    pub term: Term,
    /// Who got the vote in `term`, or `NONE`. Given once per term; who raises the term sets it anew.
    pub vote: NodeId,
    /// See [`StoredRole`].
    pub role: StoredRole,
    /// The leader last followed.
    pub leader_id: NodeId,
    /// Where it listens.
    pub leader_address: String,
    /// The other nodes, at most `PEERS_MAX`.
    pub peers: Vec<String>,
    /// This node, as the leader dials it.
    pub own_address: String,
    /// Whether this node was in sync when it last heard its leader.
    pub in_sync: bool,
    /// Raised by every cut of the log, and by every snapshot in its place. Never goes back.
    pub log_generation: u64,
    /// The generation began behind this LSN.
    pub cut_lsn: Lsn,
    /// Nothing at or below this LSN is in the log; 0 unless a snapshot was installed. Changes with the generation
    /// only, as one step: before it the old log is there, after it the snapshot is in its place.
    pub base_lsn: Lsn,
    /// The chain checksum there.
    pub base_chain: Chain,
    /// Whether an operator allowed a cut below the commit LSN.
    pub discard_allowed: bool,
    /// See [`Repair`].
    pub repair: Repair,
}

impl Meta {
    fn invariants(&self) {
        assert!(!self.node_id.is_none(), "a record has a node id");
        assert!(self.peers.len() <= PEERS_MAX, "{} peers are too many", self.peers.len());
        for address in self.peers.iter().chain([&self.leader_address, &self.own_address]) {
            assert!(address.len() <= ADDRESS_SIZE_MAX, "address {address} is too long");
        }
    }

    /// What no change may do. Each would break a promise this node made to another one.
    fn change_invariants(&self, next: &Meta) {
        next.invariants();
        assert_eq!(self.node_id, next.node_id, "a node keeps its id");
        assert!(
            self.cluster_id.is_none() || self.cluster_id == next.cluster_id,
            "cluster {} does not become {}",
            self.cluster_id,
            next.cluster_id
        );
        assert!(next.term >= self.term, "term {} does not go back to {}", self.term, next.term);
        assert!(
            next.term > self.term || self.vote.is_none() || self.vote == next.vote,
            "the vote of term {} was given to {}",
            self.term,
            self.vote
        );
        assert!(next.log_generation >= self.log_generation, "log generations rise");
        assert!(
            next.log_generation > self.log_generation
                || (next.cut_lsn, next.base_lsn, next.base_chain)
                    == (self.cut_lsn, self.base_lsn, self.base_chain),
            "a cut or a new base begins a log generation"
        );
    }
}

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
    /// another node or cluster id. Also after an error.
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
        let version = self.version.checked_add(1).expect("2^64 versions are never reached");
        if next.term != self.meta.term && crate::sabotage::is(crate::sabotage::Variant::TermNotDurable) {
            (self.meta, self.version) = (next, version);
            return Ok(MetaDurable { version });
        }
        let bytes = layout::encode(version, &next);
        self.failed = true;
        write_durably(disk, NAME_A, self.a, &bytes)?;
        write_durably(disk, NAME_B, self.b, &bytes)?;
        self.failed = false;
        self.meta = next;
        self.version = version;
        Ok(MetaDurable { version })
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
