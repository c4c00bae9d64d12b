//! Opening the log: find, decide, and only then repair.
//!
//! As long as a refusal is possible nothing is changed. After that, in this order: an install or a cut that was
//! under way is completed, the tail is zeroed, what nothing proves to be durable is written again, all of it is synced,
//! files and directory; last, a mark says so, so that the next restart has less to do.

use std::fmt;

use crate::disk::Disk;
use crate::ids::Lsn;

use super::cut::{ASIDE_TMP_NAME, KeptAside, Source, keep_aside, remove_segments, zero_durably};
use super::damage::{DAMAGED_TMP_NAME, put_aside};
use super::entry::Position;
use super::error::{Damage, OpenError, ReadError, WalError};
use super::mark::MARK_SIZE;
use super::reader::{CHUNK_SIZE, ReadFiles};
use super::recovery::Verdict;
use super::segment::{SPARE_NAME, Segment};
use super::start::{Base, Dropped, Identity, Mode, discover, open_file};
use super::survey::{Survey, survey};
use super::zeros::Zeros;
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
    /// The damaged files that were kept aside.
    pub damaged: Vec<String>,
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
        Wal::open_as(disk, identity, base, salt, config, Mode::Cut)
    }

    /// As [`Wal::open`], while the node's record says that the log was cut in front of damage and that this is not
    /// completed. What stands behind the cut is kept aside as it is, and need not read.
    pub fn open_repairing(
        disk: &mut dyn Disk,
        identity: Identity,
        base: &Base,
        salt: u64,
        config: WalConfig,
    ) -> Result<Opened, OpenError> {
        Wal::open_as(disk, identity, base, salt, config, Mode::Repair)
    }

    fn open_as(
        disk: &mut dyn Disk,
        identity: Identity,
        base: &Base,
        salt: u64,
        config: WalConfig,
        mode: Mode,
    ) -> Result<Opened, OpenError> {
        let mut found = discover(disk, &identity, base, mode)?;
        let survey = survey(disk, &mut found, &identity, base)?;
        remove_leftover_files(disk)?;
        if !found.dropped.is_empty() {
            remove_segments(disk, found.dropped.iter().map(|dropped| dropped.file.as_str()))?;
        }
        let mut report = RecoveryReport {
            commit_lsn: survey.commit_lsn,
            dropped: found.dropped,
            ..RecoveryReport::default()
        };
        match mode {
            Mode::Cut => {
                report.completed_cut = complete_cut(disk, &identity, &survey, &found.cut_off)?;
                report.cut_tail = cut_tails(disk, &survey)?;
            }
            Mode::Repair => {
                let generation = identity.generation;
                report.damaged = put_damage_aside(disk, generation, &survey, &found.cut_off, &found.to_keep)?;
                cut_tails(disk, &survey)?;
            }
        }
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
            zeros: Zeros::default(),
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

/// What a process left that was not finished: no name that the log reads.
fn remove_leftover_files(disk: &mut dyn Disk) -> Result<(), WalError> {
    let names = disk.list().map_err(|error| WalError::new(disk, "list", "", 0, error))?;
    for name in
        names.iter().filter(|name| [SPARE_NAME, ASIDE_TMP_NAME, DAMAGED_TMP_NAME].contains(&name.as_str()))
    {
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

/// Keeps aside, as files, what is behind the cut of a repair. The rest of the own segment is zeroed with the tails.
fn put_damage_aside(
    disk: &mut dyn Disk,
    generation: u64,
    survey: &Survey,
    cut_off: &[Segment],
    to_keep: &[Lsn],
) -> Result<Vec<String>, WalError> {
    let own = survey.segments.last().filter(|(own, litter_end)| *litter_end > own.end);
    let own = own.map(|(own, litter_end)| (own.name.as_str(), *litter_end));
    let readable = cut_off.iter().map(|segment| segment.header.first_lsn);
    let mut behind: Vec<Lsn> = readable.chain(to_keep.iter().copied()).collect();
    behind.sort_unstable();
    put_aside(disk, generation, own, &behind)
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
            let whole_lsn = Some(durable_lsn);
            OpenError::Damaged(Damage { file, offset, lsn, durable_lsn, reason, whole_lsn })
        }
        ReadError::NotHeld { .. } => unreachable!("an open reads only what the scan accepted"),
    }
}
