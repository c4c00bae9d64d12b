//! Looking at files of a log one by one, for a person: what each holds and where it is damaged. Nothing is changed.
//!
//! The reading is that of a start (`segment`, `scan`), and so is the verdict on each segment (`recovery`), with one
//! difference: a start goes no further than the first damage, and does not read what lies wholly below its snapshot.
//! Here all of it is read, and each file is judged, whatever is the matter with the one before. What a start would do
//! with the whole directory is not decided here.
//!
//! Without the node's own record (an archive, a file that was put aside) every generation is believed as it stands.

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::replication::history::{TermHistory, TermStart};

use super::cut::{AsideHeader, read_aside_header};
use super::entry::{Item, Position, Walk, Window};
use super::error::OpenError;
use super::mark::{Claims, MarkSeed};
use super::reader::CHUNK_SIZE;
use super::recovery::{AtBase, Facts, NextLsn, Verdict, decide};
use super::scan::{Scanned, scan};
use super::segment::{HeaderFault, RawHeader, Segment, parse_segment_name};
use super::start::{Base, Identity};
use super::survey::later;

/// What a segment file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLook {
    /// The name of the file.
    pub name: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// What could be read; `None` if its header could not.
    pub content: Option<SegmentContent>,
    /// How it ends.
    pub state: SegmentState,
}

/// What a segment says and holds, up to the first thing that does not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentContent {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The log generation that it was begun in.
    pub generation: u64,
    /// The first LSN, whether there is a record yet or not.
    pub first_lsn: Lsn,
    /// The chain checksum before it.
    pub chain_before: Chain,
    /// The LSN before the first that does not read.
    pub last_lsn: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
    /// Bytes up to there: header, marks, entries.
    pub bytes: u64,
    /// The term of the record before the first.
    pub term_before: Option<TermStart>,
    /// The terms that begin in it.
    pub terms: Vec<TermStart>,
    /// The highest LSN that a mark in it says was durable.
    pub durable_lsn: Lsn,
    /// The highest LSN that a mark in it says was committed.
    pub commit_lsn: Lsn,
}

impl SegmentContent {
    /// How many records read.
    pub fn records(&self) -> u64 {
        self.last_lsn.next().0 - self.first_lsn.0
    }
}

/// How a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// All of it reads, and the next segment, if there is one, continues it.
    Whole,
    /// As `Whole`, with bytes in its unused rest that mean nothing.
    Litter {
        /// Where they begin.
        byte: u64,
        /// How many.
        bytes: u64,
    },
    /// The log ends in it with what a crash tore, above everything that was known to be durable.
    Torn {
        /// Where it begins.
        byte: u64,
        /// How many bytes, up to the last one that is not zero.
        bytes: u64,
    },
    /// It holds records that a cut took back and that were not zeroed yet.
    CutPending {
        /// Where they begin.
        byte: u64,
    },
    /// All of it was taken back by a cut that was not completed.
    TakenBack,
    /// A snapshot was installed in its place.
    Replaced,
    /// Something that was durable does not read.
    Damaged {
        /// Where.
        byte: u64,
        /// The first record that is not there.
        lsn: Lsn,
        /// What is wrong.
        reason: String,
    },
}

/// What a file of records that a cut took back holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLook {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The generation that the cut began.
    pub generation: u64,
    /// The first record in it.
    pub first_lsn: Lsn,
    /// The last record in it, as its header says.
    pub last_lsn: Lsn,
    /// Where its records end before that, and the first that does not read.
    pub damaged: Option<(u64, Lsn)>,
}

/// A segment on its way to a verdict.
enum Looked {
    Scanned(Box<Scanned>, TermHistory),
    Judged(SegmentState, Option<Box<Segment>>),
}

/// Looks at segment files, which are in the order of their LSNs. `identity` is the node's own record, if there is one.
///
/// # Errors
/// If a file cannot be opened. One that cannot be read is damaged.
pub fn look_at_segments(
    disk: &mut dyn Disk,
    names: &[String],
    identity: Option<&Identity>,
) -> io::Result<Vec<SegmentLook>> {
    let mut looked = Vec::new();
    for name in names {
        let file = disk.open(name)?;
        let size = disk.len(file);
        let result = size.map(|size| (size, look_at(disk, file, name, size, identity)));
        disk.close(file);
        let (size, one) = result?;
        looked.push((name.clone(), size, one));
    }
    Ok(judge(looked, identity))
}

fn damaged(byte: u64, lsn: Lsn, reason: impl Into<String>) -> Looked {
    Looked::Judged(SegmentState::Damaged { byte, lsn, reason: reason.into() }, None)
}

fn look_at(disk: &mut dyn Disk, file: FileId, name: &str, size: u64, identity: Option<&Identity>) -> Looked {
    let named = parse_segment_name(name);
    let raw = match RawHeader::read(disk, file, size) {
        Ok(raw) => raw,
        Err(error) => return damaged(0, named.unwrap_or(Lsn::ZERO), format!("it cannot be read: {error}")),
    };
    let (claimed_lsn, claimed_cluster) = raw.claimed();
    let first_lsn = named.unwrap_or(claimed_lsn);
    let cluster_id = identity.map_or(claimed_cluster, |identity| identity.cluster_id);
    let header = match raw.validate(first_lsn, cluster_id) {
        Ok(header) => header,
        Err(HeaderFault::Damaged(reason)) => return damaged(0, first_lsn, reason),
        Err(HeaderFault::Version(found)) => {
            return damaged(0, first_lsn, format!("it is of format version {found}"));
        }
        Err(HeaderFault::Cluster(found)) => {
            return damaged(
                0,
                first_lsn,
                format!("it belongs to cluster {found}, this node to {cluster_id}"),
            );
        }
    };
    let segment = Segment { name: name.to_owned(), ..Segment::new(header, size) };
    if let Some(state) = identity.and_then(|identity| given_up(identity, &segment)) {
        return Looked::Judged(state, Some(Box::new(segment)));
    }
    let before = segment.header.term_start.into_iter().collect();
    let mut history = TermHistory::from_starts(before).expect("a header's term start has an LSN");
    match scan(disk, file, segment, claims_of(identity), &Base::default(), &mut history) {
        Ok(scanned) => Looked::Scanned(Box::new(scanned), history),
        Err(OpenError::Io(error)) => {
            damaged(error.offset, first_lsn, format!("it cannot be read: {}", error.source))
        }
        Err(error) => damaged(0, first_lsn, error.to_string()),
    }
}

/// Whether the node's own record says that this segment is no part of the log.
fn given_up(identity: &Identity, segment: &Segment) -> Option<SegmentState> {
    let (generation, first_lsn) = (segment.header.generation, segment.header.first_lsn);
    let was_cut = identity.claims().was_cut(generation, first_lsn);
    match was_cut {
        _ if first_lsn <= identity.base_lsn => Some(SegmentState::Replaced),
        true if identity.replaced() => Some(SegmentState::Replaced),
        true => Some(SegmentState::TakenBack),
        false => None,
    }
}

/// Without a record of cuts nothing was cut.
fn claims_of(identity: Option<&Identity>) -> Claims {
    identity.map_or(Claims { generation: u64::MAX, cut_lsn: Lsn(u64::MAX) }, Identity::claims)
}

/// All files were read: the table says what each is.
fn judge(looked: Vec<(String, u64, Looked)>, identity: Option<&Identity>) -> Vec<SegmentLook> {
    let claims = claims_of(identity);
    let claim = |(_, _, one): &(String, u64, Looked)| match one {
        Looked::Scanned(scanned, _) => {
            let header = &scanned.segment.header;
            scanned.durable_lsn.max(claims.believe(header.generation, header.first_lsn.prev()))
        }
        // It got its name when all before it was durable.
        Looked::Judged(SegmentState::Damaged { lsn, .. }, None) => Lsn(lsn.0.saturating_sub(1)),
        Looked::Judged(..) => Lsn::ZERO,
    };
    let durable_lsn = looked.iter().map(claim).max().unwrap_or(Lsn::ZERO);
    let mut judged: Vec<SegmentLook> = Vec::new();
    let mut next: Option<Segment> = None;
    for (name, file_bytes, one) in looked.into_iter().rev() {
        let look = match one {
            Looked::Judged(state, segment) => {
                let content = segment.map(|segment| content_of_header(&segment));
                SegmentLook { name, file_bytes, content, state }
            }
            Looked::Scanned(scanned, history) => {
                let state = state_of(&scanned, &history, durable_lsn, next.as_ref());
                let content = Some(content_of(&scanned, history));
                next = Some(scanned.segment);
                SegmentLook { name, file_bytes, content, state }
            }
        };
        judged.push(look);
    }
    judged.reverse();
    judged
}

fn state_of(
    scanned: &Scanned,
    history: &TermHistory,
    durable_lsn: Lsn,
    next: Option<&Segment>,
) -> SegmentState {
    let (byte, lsn) = (scanned.at.offset, scanned.at.next);
    let bytes = scanned.litter_end.saturating_sub(byte);
    let verdict = decide(Facts {
        base: AtBase::Behind,
        next_lsn: if lsn <= durable_lsn { NextLsn::KnownDurable } else { NextLsn::Unclaimed },
        behind: scanned.behind,
        later: later(scanned.at, scanned.generation, history.last(), next),
    });
    match verdict {
        Verdict::EndsClean | Verdict::GoesOn => SegmentState::Whole,
        Verdict::GoesOnOverLitter => SegmentState::Litter { byte, bytes },
        Verdict::CutTail => SegmentState::Torn { byte, bytes },
        Verdict::CompleteCut => SegmentState::CutPending { byte },
        Verdict::Refuse(reason) => SegmentState::Damaged { byte, lsn, reason: reason.to_owned() },
        Verdict::DisbelieveBase => unreachable!("there is no base to be believed"),
    }
}

fn content_of_header(segment: &Segment) -> SegmentContent {
    let header = &segment.header;
    SegmentContent {
        cluster_id: header.cluster_id,
        generation: header.generation,
        first_lsn: header.first_lsn,
        chain_before: header.chain_before,
        last_lsn: header.first_lsn.prev(),
        chain: header.chain_before,
        bytes: segment.end,
        term_before: header.term_start,
        terms: Vec::new(),
        durable_lsn: Lsn::ZERO,
        commit_lsn: Lsn::ZERO,
    }
}

fn content_of(scanned: &Scanned, history: TermHistory) -> SegmentContent {
    let first_lsn = scanned.segment.header.first_lsn;
    SegmentContent {
        last_lsn: scanned.at.next.prev(),
        chain: scanned.at.chain,
        terms: history.starts().iter().filter(|start| start.first_lsn >= first_lsn).cloned().collect(),
        durable_lsn: scanned.durable_lsn,
        commit_lsn: scanned.commit_lsn,
        ..content_of_header(&scanned.segment)
    }
}

/// Looks at a file of records that a cut took back.
///
/// # Errors
/// In words, if it cannot be read or does not begin as such a file.
pub fn look_at_kept(disk: &mut dyn Disk, name: &str) -> Result<KeptLook, String> {
    let file = disk.open(name).map_err(|error| format!("it cannot be opened: {error}"))?;
    let result = read_kept(disk, file);
    disk.close(file);
    result.map_err(|error| format!("it cannot be read: {error}"))?
}

fn read_kept(disk: &mut dyn Disk, file: FileId) -> io::Result<Result<KeptLook, String>> {
    let end = disk.len(file)?;
    let AsideHeader { cluster_id, generation, first, last, chain, size } =
        match read_aside_header(disk, file, end)? {
            Ok(header) => header,
            Err(why) => return Ok(Err(why.to_owned())),
        };
    let at = Position { offset: size, next: first, chain };
    let (seed, mut window) = (MarkSeed { salt: 0, first_lsn: first }, Window::default());
    let mut walk = Walk { file, seed, at, end, chunk: CHUNK_SIZE, window: &mut window };
    while let Item::Entry { .. } = walk.next(disk)? {}
    let damaged = (walk.at.next <= last || walk.at.offset < end).then_some((walk.at.offset, walk.at.next));
    Ok(Ok(KeptLook { cluster_id, generation, first_lsn: first, last_lsn: last, damaged }))
}
