//! What the segments say before anything is decided for good: each by its content from the base on, the verdict of the
//! table for each, and at the first refusal the damage in words. Nothing is changed here.

use crate::disk::Disk;
use crate::ids::{Chain, Lsn};
use crate::replication::history::{TermHistory, TermStart};

use super::entry::Position;
use super::error::{Damage, OpenError, path};
use super::mark::Claims;
use super::recovery::{AtBase, Behind, Facts, Later, NextLsn, Verdict, decide};
use super::scan::{Scanned, scan, search};
use super::segment::Segment;
use super::start::{Base, Found, Identity, open_file};

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

/// Scans the segments from the base on, in order, and lets the table judge the base and each of them.
pub(super) fn survey(
    disk: &mut dyn Disk,
    found: &mut Found,
    identity: &Identity,
    base: &Base,
) -> Result<Survey, OpenError> {
    let claims = identity.claims();
    let live = std::mem::take(&mut found.live);
    let mut survey = Survey::new(found, &live, identity, base);
    match live.first().map(|segment| &segment.header).filter(|header| header.first_lsn <= base.lsn) {
        // Up to the base, which it holds, it is read by what its own header says of the terms before.
        Some(holder) => {
            survey.history = TermHistory::from_starts(holder.term_start.into_iter().collect())
                .expect("a header's term start has an LSN")
        }
        None => {
            survey.judge_base(disk, live.first().or(found.cut_off.first()), live.first(), (identity, base))?
        }
    }
    let mut live = live.into_iter().peekable();
    while let Some(segment) = live.next() {
        let holds_base = segment.header.first_lsn <= base.lsn;
        let file = open_file(disk, &segment.name)?;
        let scanned = scan(disk, file, segment, claims, base, &mut survey.history)?;
        disk.close(file);
        survey.durable_lsn = survey.durable_lsn.max(scanned.durable_lsn);
        survey.commit_lsn = survey.commit_lsn.max(scanned.commit_lsn);
        let facts = Facts {
            base: match scanned.at_base.filter(|_| holds_base) {
                Some((true, _)) => AtBase::Agrees,
                Some((false, _)) => AtBase::Differs,
                None if holds_base => AtBase::NotReached,
                None => AtBase::Behind,
            },
            next_lsn: survey.known(scanned.at.next),
            behind: scanned.behind,
            later: later(scanned.at, scanned.generation, survey.history.last(), live.peek()),
        };
        survey.last_verdict = decide(facts);
        let file = path(disk, &scanned.segment.name);
        match survey.last_verdict {
            Verdict::Refuse(reason) => {
                let whole_lsn = whole_before(&scanned, live.peek(), base);
                let durable_lsn = survey.durable_lsn.max(highest_claim(disk, live, claims)?);
                let (offset, lsn) = (scanned.at.offset, scanned.at.next);
                return Err(OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason, whole_lsn }));
            }
            Verdict::DisbelieveBase => {
                let chain = scanned.at_base.map_or(scanned.at.chain, |(_, chain)| chain);
                return Err(OpenError::BaseDisagrees { file, lsn: base.lsn, chain, expected: base.chain });
            }
            _ => {}
        }
        (survey.last_lsn, survey.last_chain) = (scanned.at.next.prev(), scanned.at.chain);
        survey.segments.push((scanned.segment, scanned.litter_end));
    }
    Ok(survey)
}

/// What stands before the damage at the end of a scan, and before a next segment that claims a part of it; at least
/// what the base covers, which is whole in the snapshot.
fn whole_before(scanned: &Scanned, next: Option<&Segment>, base: &Base) -> Option<Lsn> {
    let whole = scanned.at.next.prev();
    let whole = next.map_or(whole, |next| whole.min(next.header.first_lsn.prev()));
    (scanned.behind != Behind::Contradiction).then_some(whole.max(base.lsn))
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

/// How the next segment fits to what ends at `at` in a term that began there.
pub(super) fn later(
    at: Position,
    ended_generation: u64,
    term_start: Option<&TermStart>,
    next: Option<&Segment>,
) -> Later {
    let Some(header) = next.map(|segment| &segment.header) else { return Later::None };
    let agrees = header.chain_before == at.chain
        && header.generation >= ended_generation
        && header.term_start.as_ref() == term_start;
    match header.first_lsn.cmp(&at.next) {
        std::cmp::Ordering::Greater => Later::Skips,
        std::cmp::Ordering::Equal if agrees => Later::Continues,
        _ => Later::Disagrees,
    }
}

/// Nothing of it is to be zeroed.
fn unscanned(segment: Segment) -> (Segment, u64) {
    let end = segment.end;
    (segment, end)
}

impl Survey {
    /// What is known before a segment is scanned: all that the base covers, and what headers claim.
    fn new(found: &mut Found, live: &[Segment], identity: &Identity, base: &Base) -> Survey {
        let claims = identity.claims();
        let claim_of =
            |segment: &Segment| claims.believe(segment.header.generation, segment.header.first_lsn.prev());
        let headers = found.old.iter().chain(live).chain(&found.cut_off).map(claim_of);
        let records = [base.lsn, base.durable_lsn, identity.base_lsn];
        Survey {
            durable_lsn: headers.chain(records).max().unwrap_or(base.lsn),
            segments: found.old.drain(..).map(unscanned).collect(),
            history: base.history.clone(),
            last_lsn: base.lsn,
            last_chain: base.chain,
            commit_lsn: Lsn::ZERO,
            last_verdict: Verdict::EndsClean,
        }
    }

    fn known(&self, next: Lsn) -> NextLsn {
        if next <= self.durable_lsn { NextLsn::KnownDurable } else { NextLsn::Unclaimed }
    }

    /// Judges the base as if it were a segment that ends there. `oldest` is what is there to be named.
    fn judge_base(
        &mut self,
        disk: &dyn Disk,
        oldest: Option<&Segment>,
        next: Option<&Segment>,
        (identity, base): (&Identity, &Base),
    ) -> Result<(), OpenError> {
        let at = Position { offset: 0, next: base.lsn.next(), chain: base.chain };
        let installed = (identity.base_lsn, identity.base_chain);
        self.last_verdict = decide(Facts {
            base: match base.lsn == installed.0 {
                true if base.chain == installed.1 => AtBase::Installed,
                true => AtBase::Differs,
                false => AtBase::Chosen,
            },
            next_lsn: self.known(at.next),
            behind: Behind::Zeros,
            later: later(at, 0, self.history.last(), next),
        });
        let (offset, lsn, durable_lsn) = (0, at.next, self.durable_lsn);
        let file = path(disk, oldest.map_or("wal-*.seg", |segment| &segment.name));
        let reason = match self.last_verdict {
            Verdict::Refuse(reason) => reason,
            Verdict::DisbelieveBase if base.lsn == Lsn::ZERO => "it is not how a log begins",
            Verdict::DisbelieveBase => {
                let chain = next.map_or(installed.1, |segment| segment.header.chain_before);
                return Err(OpenError::BaseDisagrees { file, lsn: base.lsn, chain, expected: base.chain });
            }
            _ => return Ok(()),
        };
        // What the base covers is whole: it is in the snapshot.
        let whole_lsn = Some(base.lsn);
        Err(OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason, whole_lsn }))
    }
}
