//! Opening the log: find, decide, and only then repair.
//!
//! As long as a refusal is possible nothing is changed. After that, in this order: an install or a cut that was
//! under way is completed, the tail is zeroed, what nothing proves to be durable is written again, all of it is synced,
//! files and directory; last, a mark says so, so that the next restart has less to do.

use std::fmt;

use crate::disk::Disk;
use crate::ids::{Chain, Lsn};
use crate::replication::history::TermHistory;

use super::cut::{ASIDE_TMP_NAME, KeptAside, Source, keep_aside, remove_segments, zero_durably};
use super::entry::Position;
use super::error::{Damage, OpenError, ReadError, WalError, path};
use super::mark::{Claims, MARK_SIZE};
use super::reader::{CHUNK_SIZE, ReadFiles};
use super::recovery::{AtBase, Behind, Facts, Later, NextLsn, Verdict, decide};
use super::scan::{scan, search};
use super::segment::{Header, SPARE_NAME, Segment};
use super::start::{Base, Dropped, Found, Identity, discover, open_file};
use super::{Wal, WalConfig};

/// A log that was opened, and what was found.
#[derive(Debug)]
pub struct Opened {
    /// The log.
    pub wal: Wal,
    /// What was found and done.
    pub report: RecoveryReport,
}

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The first LSN held.
    pub first_lsn: Lsn,
    /// The last LSN held; all of them are durable now.
    pub last_lsn: Lsn,
    /// Committed at least, as the marks tell.
    pub commit_lsn: Lsn,
    /// Segment files.
    pub segments: usize,
    /// Bytes of marks and entries; a segment below the base, which is not scanned, counts as full.
    pub bytes: u64,
    /// The tail that was cut. What it held was never known to be durable here; rot in the last batch
    /// cannot be told from that.
    pub cut_tail: Option<CutTail>,
    /// The records of a cut that a crash had interrupted.
    pub completed_cut: Option<KeptAside>,
    /// Segments that are no part of the log and were removed: what an installed snapshot replaced, and what is
    /// damaged, or cut off by damage, below the base.
    pub dropped: Vec<Dropped>,
    /// Bytes written again because nothing proved that they were on the disk; after a clean end a mark or two.
    pub rewritten_bytes: u64,
}

/// A tail that was cut: zeroed, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// Its file's name.
    pub file: String,
    /// Where it began.
    pub offset: u64,
    /// Bytes up to the last one that was not zero.
    pub bytes: u64,
    /// The last LSN before it.
    pub behind: Lsn,
}

impl fmt::Display for CutTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CutTail { file, offset, bytes, behind } = self;
        write!(
            f,
            "cut a tail of {bytes} byte(s) off {file} at byte {offset}, behind LSN {behind}: a write that a crash \
             tore. Nothing in it was known to be durable (rot in the last batch cannot be told from a tear)"
        )
    }
}

/// All that was learned without changing anything.
struct Survey {
    /// Each with the bytes behind it that are to be zeroed.
    segments: Vec<(Segment, u64)>,
    history: TermHistory,
    last_lsn: Lsn,
    last_chain: Chain,
    durable_lsn: Lsn,
    commit_lsn: Lsn,
    last_verdict: Verdict,
}

impl Wal {
    /// Opens the log in `disk`, to go on behind `base`. `identity` is the node's own durable record of its log,
    /// `salt` is random and new.
    ///
    /// Refuses what it cannot vouch for; a refusal changes nothing, so after [`OpenError::BaseDisagrees`] an older
    /// base may be tried. When it returns, every record up to `report.last_lsn` is durable, even if the power fails
    /// at once, and a cut or an install that a crash interrupted is completed. Without segments the log is empty and
    /// nothing is created before the first record; the cluster may be [`ClusterId::NONE`] then.
    ///
    /// [`ClusterId::NONE`]: crate::ids::ClusterId::NONE
    pub fn open(
        disk: &mut dyn Disk,
        identity: Identity,
        base: &Base,
        salt: u64,
        config: WalConfig,
    ) -> Result<Opened, OpenError> {
        let mut found = discover(disk, &identity, base)?;
        let survey = survey(disk, &mut found, &identity, base)?;
        remove_leftover_files(disk)?;
        if !found.dropped.is_empty() {
            remove_segments(disk, found.dropped.iter().map(|dropped| dropped.file.as_str()))?;
        }
        let mut report = RecoveryReport {
            commit_lsn: survey.commit_lsn,
            completed_cut: complete_cut(disk, &identity, &survey, &found.cut_off)?,
            cut_tail: cut_tails(disk, &survey)?,
            dropped: found.dropped,
            ..RecoveryReport::default()
        };
        let durable_lsn = survey.durable_lsn;
        let mut wal = Wal::surveyed(disk, &identity, base, salt, config, survey)?;
        report.rewritten_bytes = wal.make_durable(disk, durable_lsn)?;
        (report.first_lsn, report.last_lsn) = (wal.first_lsn(), wal.last_lsn);
        report.segments = wal.segments.len();
        report.bytes = wal.segments.iter().map(|segment| segment.end).sum();
        Ok(Opened { wal, report })
    }

    /// Lets go of a log that nothing was appended to, so that it can be opened again with another base.
    pub fn close(mut self, disk: &mut dyn Disk) {
        assert!(self.batch_bytes() == 0 && self.in_flight.is_none(), "a log with work under way stays open");
        self.read_files.close_from(disk, Lsn::ZERO);
        let spare = self.spare.map(|spare| spare.file);
        self.active.into_iter().chain(spare).for_each(|file| disk.close(file));
    }

    fn surveyed(
        disk: &mut dyn Disk,
        identity: &Identity,
        base: &Base,
        salt: u64,
        config: WalConfig,
        survey: Survey,
    ) -> Result<Wal, OpenError> {
        let (last_lsn, last_chain) = (survey.last_lsn, survey.last_chain);
        let mut wal = Wal {
            config,
            cluster_id: identity.cluster_id,
            generation: identity.generation,
            salt,
            floor: (base.lsn, base.chain),
            segments_gone: 0,
            segments: survey.segments.into_iter().map(|(segment, _)| segment).collect(),
            active: None,
            spare: None,
            batch: vec![0; MARK_SIZE],
            reserved: 0,
            history: survey.history,
            last_lsn,
            last_chain,
            written_lsn: last_lsn,
            written_chain: last_chain,
            synced_lsn: survey.durable_lsn.min(last_lsn),
            told_lsn: Lsn::ZERO,
            commit_lsn: survey.commit_lsn,
            in_flight: None,
            failed: false,
            read_files: ReadFiles::default(),
        };
        if let Some(last) = wal.segments.last() {
            wal.active = Some(open_file(disk, &last.name)?);
        }
        wal.note_floor();
        wal.invariants();
        Ok(wal)
    }

    /// Makes what was accepted durable, whatever the page cache pretends. Returns the bytes written again.
    ///
    /// That begins behind the last record that is known durable and includes the marks there, be it one that says
    /// so of the last record: after a failed sync it may stand in the page cache alone, and a hole in its place is
    /// damage as soon as records behind it are durable.
    fn make_durable(&mut self, disk: &mut dyn Disk, durable_lsn: Lsn) -> Result<u64, OpenError> {
        let mut rewritten = 0;
        let told_at_once = crate::sabotage::is(crate::sabotage::Variant::RecoveredTailTold);
        if let Some(own) = self.segments.len().checked_sub(1).filter(|_| !told_at_once) {
            // All segments but the last are durable: the header of the next one says so.
            let known = durable_lsn.min(self.last_lsn);
            let from = match known < self.segments[own].header.first_lsn {
                true => self.segments[own].start(),
                false => self.position_behind(disk, own, known).map_err(as_open_error)?,
            };
            rewritten = self.rewrite(disk, from.offset)?;
        }
        self.sync_written(disk)?;
        disk.sync_dir().map_err(|error| WalError::new(disk, "sync the directory", "", 0, error))?;
        self.told_lsn = self.last_lsn;
        let room = self.segments.last().map_or(0, |segment| segment.size - segment.end);
        if durable_lsn < self.last_lsn && room >= MARK_SIZE as u64 {
            self.write_batch(disk)?;
            self.sync_written(disk)?;
        }
        Ok(rewritten)
    }

    /// Writes the active segment again, in place, from `from` to its end.
    fn rewrite(&self, disk: &mut dyn Disk, from: u64) -> Result<u64, WalError> {
        let segment = self.segments.last().expect("there is something to write again");
        let file = self.active.expect("the last segment is open");
        let mut buffer = vec![0; CHUNK_SIZE];
        let mut offset = from;
        while offset < segment.end {
            let size = (segment.end - offset).min(CHUNK_SIZE as u64) as usize;
            let chunk = &mut buffer[..size];
            disk.read_exact_at(file, offset, chunk)
                .and_then(|()| disk.write_all_at(file, offset, chunk))
                .map_err(|error| {
                    WalError::new(disk, "write again a part of", &segment.name, offset, error)
                })?;
            offset += size as u64;
        }
        Ok(segment.end - from)
    }
}

/// Scans the segments from the base on, in order, and lets the table judge the base and each of them.
fn survey(
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
            later: survey.later(scanned.at, scanned.generation, live.peek()),
        };
        survey.last_verdict = decide(facts);
        let file = path(disk, &scanned.segment.name);
        match survey.last_verdict {
            Verdict::Refuse(reason) => {
                let durable_lsn = survey.durable_lsn.max(highest_claim(disk, live, claims)?);
                let (offset, lsn) = (scanned.at.offset, scanned.at.next);
                return Err(OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason }));
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

    /// How the next segment fits to what ends at `at`.
    fn later(&self, at: Position, ended_generation: u64, next: Option<&Segment>) -> Later {
        let Some(Header { first_lsn, chain_before, generation, term_start, .. }) =
            next.map(|segment| &segment.header)
        else {
            return Later::None;
        };
        let agrees = *chain_before == at.chain
            && *generation >= ended_generation
            && term_start.as_ref() == self.history.last();
        match first_lsn.cmp(&at.next) {
            std::cmp::Ordering::Greater => Later::Skips,
            std::cmp::Ordering::Equal if agrees => Later::Continues,
            _ => Later::Disagrees,
        }
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
            later: self.later(at, 0, next),
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
        Err(OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason }))
    }
}

/// What a process left that was not finished: no name that the log reads.
fn remove_leftover_files(disk: &mut dyn Disk) -> Result<(), WalError> {
    let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
    for name in names.iter().filter(|name| [SPARE_NAME, ASIDE_TMP_NAME].contains(&name.as_str())) {
        disk.remove(name).map_err(|error| WalError::new(disk, "remove", name, 0, error))?;
    }
    Ok(())
}

/// Keeps aside and removes what a cut took back. The rest of the own segment is zeroed with the tails.
fn complete_cut(
    disk: &mut dyn Disk,
    identity: &Identity,
    survey: &Survey,
    cut_off: &[Segment],
) -> Result<Option<KeptAside>, OpenError> {
    let mut sources = Vec::new();
    if let (Verdict::CompleteCut, Some((own, litter_end))) = (survey.last_verdict, survey.segments.last()) {
        let at = Position { offset: own.end, next: survey.last_lsn.next(), chain: survey.last_chain };
        sources.push(Source::new(own, at, *litter_end));
    }
    sources.extend(cut_off.iter().map(|segment| Source::new(segment, segment.start(), segment.size)));
    let kept = keep_aside(disk, identity.cluster_id, identity.claims(), &sources)?;
    if !cut_off.is_empty() {
        remove_segments(disk, cut_off.iter().map(|segment| segment.name.as_str()))?;
    }
    Ok(kept)
}

/// Zeroes the rest of every segment in which something stands behind the accepted part. All of the rest, up to
/// 64 MiB by default: after a failed sync, zeros that are read may not be on the disk.
fn cut_tails(disk: &mut dyn Disk, survey: &Survey) -> Result<Option<CutTail>, OpenError> {
    let mut tail = None;
    for (segment, litter_end) in survey.segments.iter().filter(|(segment, end)| *end > segment.end) {
        let file = open_file(disk, &segment.name)?;
        zero_durably(disk, file, &segment.name, segment.end, segment.size)?;
        disk.close(file);
        let (offset, bytes) = (segment.end, *litter_end - segment.end);
        tail = Some(CutTail { file: segment.name.clone(), offset, bytes, behind: survey.last_lsn });
    }
    Ok(tail.filter(|_| survey.last_verdict != Verdict::CompleteCut))
}

fn as_open_error(error: ReadError) -> OpenError {
    match error {
        ReadError::Io(error) => OpenError::Io(error),
        ReadError::Damaged { file, offset, lsn } => {
            let (durable_lsn, reason) = (lsn.prev(), "it was whole a moment ago");
            OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason })
        }
        ReadError::NotHeld { .. } => unreachable!("an open reads only what the scan accepted"),
    }
}
