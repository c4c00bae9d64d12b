//! What is found before anything is decided for good: the segments by their headers, then each by its content, the
//! verdict of the table for each, and at the first refusal the damage in words. Nothing is changed here.

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::replication::history::TermHistory;

use super::error::{Damage, OpenError, WalError, path};
use super::mark::Claims;
use super::recovery::{Behind, Facts, Later, NextLsn, Verdict, decide};
use super::scan::{Scanned, scan, search};
use super::segment::{Header, HeaderFault, RawHeader, Segment, parse_segment_name, segment_name};

/// The segments that were found: part of the log, or taken back by a cut.
pub(super) struct Found {
    pub live: Vec<Segment>,
    pub cut_off: Vec<Segment>,
    /// Behind the cut of a repair: files whose header does not read.
    pub unreadable: Vec<Lsn>,
}

/// What is to become of what a cut took back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// A cut for a leader's sake: its records are kept aside.
    Cut,
    /// A cut in front of damage: whole files are kept aside, whatever they are.
    Repair,
}

/// All that was learned without changing anything.
pub(super) struct Survey {
    /// Each with the bytes behind it that are to be zeroed.
    pub segments: Vec<(Segment, u64)>,
    pub history: TermHistory,
    pub last_lsn: Lsn,
    pub last_chain: Chain,
    pub durable_lsn: Lsn,
    pub commit_lsn: Lsn,
    pub last_verdict: Verdict,
}

pub(super) fn open_file(disk: &mut dyn Disk, name: &str) -> Result<FileId, WalError> {
    disk.open(name).map_err(|error| WalError::new(disk, "open", name, 0, error))
}

/// Reads all headers. One file is open at a time: a log may have more segments than a process has descriptors.
pub(super) fn discover(
    disk: &mut dyn Disk,
    cluster_id: ClusterId,
    claims: Claims,
    mode: Mode,
) -> Result<Found, OpenError> {
    let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
    let mut found = Found { live: Vec::new(), cut_off: Vec::new(), unreadable: Vec::new() };
    for first_lsn in names.iter().filter_map(|name| parse_segment_name(name)) {
        let segment = match read_segment(disk, first_lsn, cluster_id) {
            Err(OpenError::Damaged(_)) if mode == Mode::Repair && first_lsn > claims.cut_lsn => {
                found.unreadable.push(first_lsn);
                continue;
            }
            read => read?,
        };
        let generation = segment.header.generation;
        if generation > claims.generation {
            let file = path(disk, &segment.name);
            let expected = claims.generation;
            return Err(OpenError::LaterGeneration { file, offset: 0, found: generation, expected });
        }
        let list = if claims.was_cut(generation, first_lsn) { &mut found.cut_off } else { &mut found.live };
        list.push(segment);
    }
    Ok(found)
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

/// Scans the live segments in order and lets the table judge each.
pub(super) fn survey(
    disk: &mut dyn Disk,
    live: Vec<Segment>,
    cut_off: &[Segment],
    claims: Claims,
) -> Result<Survey, OpenError> {
    let claim_of =
        |segment: &Segment| claims.believe(segment.header.generation, segment.header.first_lsn.prev());
    let mut survey = Survey {
        segments: Vec::with_capacity(live.len()),
        history: TermHistory::default(),
        last_lsn: Lsn::ZERO,
        last_chain: Chain::ZERO,
        durable_lsn: live.iter().chain(cut_off).map(claim_of).max().unwrap_or(Lsn::ZERO),
        commit_lsn: Lsn::ZERO,
        last_verdict: Verdict::EndsClean,
    };
    survey.refuse_missing_start(disk, &live, cut_off)?;
    let mut live = live.into_iter().peekable();
    while let Some(segment) = live.next() {
        let file = open_file(disk, &segment.name)?;
        let scanned = scan(disk, file, segment, claims, &mut survey.history)?;
        disk.close(file);
        survey.durable_lsn = survey.durable_lsn.max(scanned.durable_lsn);
        survey.commit_lsn = survey.commit_lsn.max(scanned.commit_lsn);
        let known = scanned.at.next <= survey.durable_lsn;
        let facts = Facts {
            next_lsn: if known { NextLsn::KnownDurable } else { NextLsn::Unclaimed },
            behind: scanned.behind,
            later: survey.later(&scanned, live.peek()),
        };
        survey.last_verdict = decide(facts);
        if let Verdict::Refuse(reason) = survey.last_verdict {
            let whole_lsn = whole_before(&scanned, live.peek());
            let durable_lsn = survey.durable_lsn.max(highest_claim(disk, live, claims)?);
            let (file, offset, lsn) = (path(disk, &scanned.segment.name), scanned.at.offset, scanned.at.next);
            return Err(OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason, whole_lsn }));
        }
        (survey.last_lsn, survey.last_chain) = (scanned.at.next.prev(), scanned.at.chain);
        survey.segments.push((scanned.segment, scanned.litter_end));
    }
    Ok(survey)
}

/// What stands before the damage at the end of a scan, and before a next segment that claims a part of it.
fn whole_before(scanned: &Scanned, next: Option<&Segment>) -> Option<Lsn> {
    let whole = scanned.at.next.prev();
    let whole = next.map_or(whole, |next| whole.min(next.header.first_lsn.prev()));
    (scanned.behind != Behind::Contradiction).then_some(whole)
}

/// The highest durable LSN that marks in segments behind a damaged one name.
fn highest_claim(
    disk: &mut dyn Disk,
    segments: impl Iterator<Item = Segment>,
    claims: Claims,
) -> Result<Lsn, OpenError> {
    let mut highest = Lsn::ZERO;
    for segment in segments {
        let file = open_file(disk, &segment.name)?;
        highest = highest.max(search(disk, file, &segment, segment.end, claims)?.durable_lsn);
        disk.close(file);
    }
    Ok(highest)
}

impl Survey {
    /// How the next segment fits to the one just scanned.
    fn later(&self, scanned: &Scanned, next: Option<&Segment>) -> Later {
        let Some(Header { first_lsn, chain_before, generation, term_start, .. }) =
            next.map(|segment| &segment.header)
        else {
            return Later::None;
        };
        let agrees = *chain_before == scanned.at.chain
            && *generation >= scanned.generation
            && term_start.as_ref() == self.history.last();
        match first_lsn.cmp(&scanned.at.next) {
            std::cmp::Ordering::Greater => Later::Skips,
            std::cmp::Ordering::Equal if agrees => Later::Continues,
            _ => Later::Disagrees,
        }
    }

    /// A log begins at LSN 1. Without that, what is there says at least that something was.
    fn refuse_missing_start(
        &self,
        disk: &dyn Disk,
        live: &[Segment],
        cut_off: &[Segment],
    ) -> Result<(), OpenError> {
        let start = Lsn(1);
        let begins_right = live.first().map_or(self.durable_lsn < start, |first| {
            first.header.first_lsn == start
                && first.header.chain_before == Chain::ZERO
                && first.header.term_start.is_none()
        });
        if begins_right {
            return Ok(());
        }
        let oldest = live.first().or(cut_off.first()).expect("some segment claims that records were durable");
        Err(OpenError::Damaged(Damage {
            file: path(disk, &oldest.name),
            offset: 0,
            lsn: start,
            durable_lsn: self.durable_lsn,
            reason: "it is the oldest segment there is, and does not begin the log; earlier ones are missing",
            whole_lsn: Some(Lsn::ZERO),
        }))
    }
}
