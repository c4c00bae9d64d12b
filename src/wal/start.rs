//! Where a log begins, and which of the segments found are part of it.
//!
//! A log begins behind its *base*: everything up to that LSN is in a state kept elsewhere (a snapshot), the log only
//! knows the chain checksum and the terms there. The base of a log that holds everything is LSN 0.
//!
//! Two records name a base, and they mean different things:
//!
//! - The *chosen* one ([`Base`]) comes from the snapshot that the node has chosen to start from. It is a wish: the
//!   log must reach it and agree with it, and older segments may be there besides, to feed followers from.
//! - The *installed* one ([`Identity::base_lsn`]) is in the node's own durable record, written when a snapshot
//!   replaced the whole log (or a cut took its very first record). It is a fact: no segment at or below it is part
//!   of the log, and an empty log goes on behind it and nowhere else.
//!
//! Invariants:
//!
//! 1. *Everything up to the base was durable.* A log that ends below it has lost something, unless the base is the
//!    installed one and nothing was appended since.
//! 2. *The record at the base has the base's chain checksum, and its term.* Else the snapshot is not believed
//!    ([`super::OpenError::BaseDisagrees`]): the node tries an older one.
//! 3. *What lies wholly at or below the base is not needed*, only useful. It is not scanned (so that a start costs
//!    what lies behind the base, not what is kept for followers), and damage there shortens the log and nothing else:
//!    the log begins with the first segment from which headers lead without a gap to the base.
//! 4. *A replacement is completed before anything else happens.* An install raises the generation with a cut LSN below
//!    the new base. Every older segment is then no part of the log, and is removed, not kept aside: what diverged
//!    was cut, and kept, when the session opened.
//!
//! A segment's header names the segment before it, so a file that is missing is noticed without reading the one that
//! ought to lead to it.

use std::fmt;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::replication::history::TermHistory;

use super::Wal;
use super::error::{Damage, OpenError, WalError, path};
use super::mark::Claims;
use super::segment::{HeaderFault, RawHeader, Segment, parse_segment_name, segment_name};

/// What the log continues: the state of a snapshot, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The log is needed from the record behind this LSN on.
    pub lsn: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
    /// The terms up to there.
    pub history: TermHistory,
    /// The log is known to have been durable on this disk up to here, at least up to `lsn`: the end E of a snapshot
    /// that this node made. Whoever publishes one makes the log durable up to there before ([`super::Wal::write_mark`]
    /// where a flush does not sync).
    pub durable_lsn: Lsn,
}

/// What the node's own durable record says of its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; [`ClusterId::NONE`] before the first record.
    pub cluster_id: ClusterId,
    /// How often the log was cut or replaced.
    pub generation: u64,
    /// The generation began behind this LSN.
    pub cut_lsn: Lsn,
    /// No segment at or below this LSN is part of the log.
    pub base_lsn: Lsn,
    /// The chain checksum there.
    pub base_chain: Chain,
}

impl Identity {
    pub(super) fn claims(&self) -> Claims {
        Claims { generation: self.generation, cut_lsn: self.cut_lsn }
    }

    /// Whether the generation began with a cut of everything: what was there before is in no state that counts.
    pub fn was_emptied(&self) -> bool {
        self.generation > 1 && self.cut_lsn == Lsn::ZERO && self.base_lsn == Lsn::ZERO
    }

    /// Whether the generation began with a snapshot in the place of the log, and not with a cut.
    pub(super) fn replaced(&self) -> bool {
        self.cut_lsn < self.base_lsn
    }
}

/// A segment that is no part of the log any more, and whose file was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Its name in the data directory.
    pub file: String,
    /// Why.
    pub reason: &'static str,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "removed {}: {}", self.file, self.reason)
    }
}

const REPLACED: &str = "a snapshot was installed in its place";
const UNREADABLE: &str = "its header is damaged; a snapshot covers its records, so the log begins behind it";
const BEHIND_A_GAP: &str = "a segment between it and the rest of the log is missing or damaged; a snapshot covers \
                            its records";

/// What is to become of what a cut took back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// A cut for a leader's sake: its records are kept aside.
    Cut,
    /// A cut in front of damage: whole files are kept aside, whatever they are.
    Repair,
}

/// The segments that were found.
#[derive(Default)]
pub(super) struct Found {
    /// Wholly at or below the base: kept, not scanned.
    pub old: Vec<Segment>,
    /// From the one on that holds the record at the base, or begins behind it.
    pub live: Vec<Segment>,
    /// Taken back by a cut.
    pub cut_off: Vec<Segment>,
    /// Of a repair: files behind its cut whose header does not read, and the one that holds the record at the base.
    pub to_keep: Vec<Lsn>,
    /// To be removed.
    pub dropped: Vec<Dropped>,
}

/// Reads all headers. One file is open at a time: a log may have more segments than a process has descriptors.
pub(super) fn discover(
    disk: &mut dyn Disk,
    identity: &Identity,
    base: &Base,
    mode: Mode,
) -> Result<Found, OpenError> {
    let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
    let mut found = Found::default();
    let mut unreadable = Vec::new();
    for first_lsn in names.iter().filter_map(|name| parse_segment_name(name)) {
        match read_segment(disk, first_lsn, identity.cluster_id) {
            Ok(segment) => found.take(disk, identity, segment)?,
            Err(OpenError::Damaged(_)) if first_lsn <= identity.base_lsn => {
                found.drop_file(segment_name(first_lsn), REPLACED);
            }
            Err(OpenError::Damaged(_)) if mode == Mode::Repair && first_lsn > identity.cut_lsn => {
                found.to_keep.push(first_lsn);
            }
            Err(OpenError::Damaged(damage)) => unreadable.push((first_lsn, damage)),
            Err(other) => return Err(other),
        }
    }
    if mode == Mode::Repair
        && let Some(holder) = found.dropped.pop()
    {
        // The last of them reaches behind the base: what is damaged in it is for a person to look at.
        found.to_keep.extend(parse_segment_name(&holder.file));
    }
    found.set_old_aside(base);
    for (first_lsn, damage) in unreadable {
        found.do_without(base, first_lsn, damage)?;
    }
    Ok(found)
}

impl Found {
    fn drop_file(&mut self, file: String, reason: &'static str) {
        self.dropped.push(Dropped { file, reason });
    }

    /// Puts a segment where the node's own record says that it belongs.
    fn take(&mut self, disk: &dyn Disk, identity: &Identity, segment: Segment) -> Result<(), OpenError> {
        let (generation, first_lsn) = (segment.header.generation, segment.header.first_lsn);
        if generation > identity.generation {
            let (file, expected) = (path(disk, &segment.name), identity.generation);
            return Err(OpenError::LaterGeneration { file, offset: 0, found: generation, expected });
        }
        let was_cut = identity.claims().was_cut(generation, first_lsn);
        if first_lsn <= identity.base_lsn || was_cut && identity.replaced() {
            self.drop_file(segment.name, REPLACED);
        } else if was_cut {
            self.cut_off.push(segment);
        } else {
            self.live.push(segment);
        }
        Ok(())
    }

    /// Parts `live` at the base, and drops what no unbroken row of headers connects to it.
    fn set_old_aside(&mut self, base: &Base) {
        let reaching = |segment: &Segment| segment.header.first_lsn <= base.lsn.next();
        let holder = self.live.partition_point(reaching).saturating_sub(1);
        let live = self.live.split_off(holder);
        let mut old = std::mem::replace(&mut self.live, live);
        let mut connected = old.len();
        let mut next = self.live.first();
        while let Some(segment) = connected.checked_sub(1).map(|index| &old[index]) {
            if !next.is_some_and(|next| next.header.may_follow(&segment.header)) {
                break;
            }
            next = Some(segment);
            connected -= 1;
        }
        for segment in old.drain(..connected) {
            self.drop_file(segment.name, BEHIND_A_GAP);
        }
        // Where it ends is not known: it is read up to where the next one begins.
        self.old = old.into_iter().map(|segment| Segment { end: segment.size, ..segment }).collect();
    }

    /// Judges a segment whose header does not read. Where the base covers all of it, the log begins behind it.
    fn do_without(&mut self, base: &Base, first_lsn: Lsn, damage: Damage) -> Result<(), OpenError> {
        let holder = self.live.first().map_or(Lsn::ZERO, |segment| segment.header.first_lsn);
        if first_lsn >= holder || holder > base.lsn.next() {
            // What the base covers is whole in the snapshot, whatever the log has of it.
            let whole_lsn = damage.whole_lsn.map(|whole| whole.max(base.lsn));
            return Err(OpenError::Damaged(Damage { whole_lsn, ..damage }));
        }
        self.drop_file(segment_name(first_lsn), UNREADABLE);
        let behind = self.old.partition_point(|segment| segment.header.first_lsn < first_lsn);
        for segment in self.old.drain(..behind).collect::<Vec<_>>() {
            self.drop_file(segment.name, BEHIND_A_GAP);
        }
        Ok(())
    }
}

impl Wal {
    /// Whether a segment of the current generation was begun, or may have been: a header that does not read counts.
    ///
    /// # Errors
    /// If the directory or a file cannot be read, or a file is of another cluster or version.
    pub fn has_generation(disk: &mut dyn Disk, identity: &Identity) -> Result<bool, OpenError> {
        let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
        for first_lsn in names.iter().filter_map(|name| parse_segment_name(name)) {
            match read_segment(disk, first_lsn, identity.cluster_id) {
                Ok(segment) if segment.header.generation < identity.generation => {}
                Ok(_) | Err(OpenError::Damaged(_)) => return Ok(true),
                Err(other) => return Err(other),
            }
        }
        Ok(false)
    }
}

fn read_segment(disk: &mut dyn Disk, first_lsn: Lsn, cluster_id: ClusterId) -> Result<Segment, OpenError> {
    let name = segment_name(first_lsn);
    let file = open_file(disk, &name)?;
    let size = disk.len(file).map_err(|error| WalError::new(disk, "measure", &name, 0, error))?;
    let raw = RawHeader::read(disk, file, size)
        .map_err(|error| WalError::new(disk, "read the header of", &name, 0, error))?;
    disk.close(file);
    let file = path(disk, &name);
    match raw.validate(first_lsn, cluster_id) {
        Ok(header) => Ok(Segment::new(header, size)),
        Err(HeaderFault::Version(found)) => Err(OpenError::OtherVersion { file, found }),
        Err(HeaderFault::Cluster(found)) => {
            Err(OpenError::OtherCluster { file, found, expected: cluster_id })
        }
        Err(HeaderFault::Damaged(reason)) => {
            // The header was durable before the file got its name, and everything before it too.
            let durable_lsn = Lsn(first_lsn.0.saturating_sub(1));
            let whole_lsn = Some(durable_lsn);
            Err(OpenError::Damaged(Damage {
                file,
                offset: 0,
                lsn: first_lsn,
                durable_lsn,
                reason,
                whole_lsn,
            }))
        }
    }
}

/// Opens a file of the log.
pub(super) fn open_file(disk: &mut dyn Disk, name: &str) -> Result<FileId, WalError> {
    disk.open(name).map_err(|error| WalError::new(disk, "open", name, 0, error))
}
