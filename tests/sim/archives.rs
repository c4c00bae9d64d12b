//! Directories into which nodes copy their closed segments (`--archive-dir`): one for each host of a run that has them,
//! on a disk of its own, which breaks like the other one and loses its power with it.
//!
//! Two things are checked here, and what the copies are good for in `drills`:
//!
//! - When a segment leaves the log because it is not needed any more, the archive holds its records, to the last
//!   one, also if the power fails in that very moment: a copy of the archive is crashed, and its bytes are read. Or
//!   the node has said, with the LSNs, that the segment goes without a copy, in a run whose bound is low.
//! - What the note in the archive speaks of was committed by some leader.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::rc::Rc;

use kvstore::backup::{NOTE_NAME, NOTE_SIZE, Note};
use kvstore::disk::Disk;
use kvstore::ids::Chain;
use kvstore::meta::MetaStore;
use kvstore::node::{ArchiveConfig, FeedLimits};
use kvstore::rng::Rng;
use kvstore::wal::{HEADER_SIZE, MARK_SIZE, parse_segment_name};

use crate::core::{Core, Event, MS};
use crate::disk::SimDisk;
use crate::host::Host;
use crate::knobs::Knobs;
use crate::library;
use crate::mem_disk::{EIO, Keep, MemDisk, OpKind};
use crate::mirror::{Entry, Mirror};
use crate::oracle::Oracle;
use crate::world::World;

/// A bound that no run reaches.
const UNBOUNDED: u64 = 1 << 40;
/// What a node says of a segment that goes without a copy, in front of its LSNs.
const GIVEN_UP: &str = " goes without a copy, records ";

/// An archive, and what was seen of it. Clones are the same one.
#[derive(Clone)]
pub struct Archive {
    pub mem: MemDisk,
    /// Whether the directory can be opened.
    pub there: Rc<Cell<bool>>,
    pub config: ArchiveConfig,
    seen: Rc<RefCell<Seen>>,
}

/// See [`Archive`].
#[derive(Default)]
struct Seen {
    /// Of the host's log: a segment that goes in another generation was cut off, or replaced by a snapshot.
    generation: u64,
    /// Segments that have gone and were not in the archive in that moment.
    bare: Vec<(String, RangeInclusive<u64>)>,
    /// Records that the process has given up.
    given_up: Vec<RangeInclusive<u64>>,
    /// The note, and how many operations the disk had seen when it was read.
    note: Option<(u64, Chain)>,
    operations: u64,
    /// From here on the copies are without gaps, and of the history that the note names.
    floor: u64,
    /// A snapshot that an operator has put aside: its name and bytes.
    aside: Option<(String, Vec<u8>)>,
}

/// Draws what only runs with fixed roles have: whether nodes keep archives, and how.
pub fn draw(rng: &mut Rng, knobs: &mut Knobs) {
    let mut pick = |from: &[u64]| from[rng.below(from.len() as u64) as usize];
    let drawn = pick(if knobs.removal { &[0, 1] } else { &[0, 0, 0, 0, 0, 0, 0, 1] }) == 1;
    let config = ArchiveConfig {
        log_bytes: pick(&[UNBOUNDED, UNBOUNDED, UNBOUNDED, 20_000]),
        copy_bytes: pick(&[500, 4_000, 64 << 10]) as usize,
        settle_ms: pick(&[0, 5, 50]),
    };
    if knobs.transfers && knobs.feed.frame_bytes > 2_000 && pick(&[0, 1]) == 1 {
        // A snapshot that comes in one frame is not broken off in its middle.
        knobs.feed = FeedLimits { frame_bytes: 2_000, high_water: 20_000, low_water: 5_000 };
    }
    knobs.mishaps.archive_gone = pick(&[0, 0, 1, 3]) * u64::from(drawn);
    knobs.archive = drawn.then_some(config);
}

/// The chain checksums of the records in a segment, by LSN, as far as they follow each other.
fn records_in(segment: &[u8]) -> BTreeMap<u64, Chain> {
    let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("4 bytes"));
    let (mut at, mut records) = (HEADER_SIZE as usize, BTreeMap::new());
    while at + 16 <= segment.len() {
        let length = word(at + 4);
        if length == 0x8000_0000 | (MARK_SIZE as u32 - 8) {
            at += MARK_SIZE;
        } else if length == 0 || length >= 0x8000_0000 || at + 8 + length as usize > segment.len() {
            break;
        } else {
            let lsn = u64::from_be_bytes(segment[at + 8..at + 16].try_into().expect("8 bytes"));
            records.insert(lsn, Chain(word(at)));
            at += 8 + length as usize;
        }
    }
    records
}

/// The first LSNs of the segments on a disk, rising.
fn first_lsns(mem: &MemDisk) -> Vec<u64> {
    let mut lsns: Vec<u64> =
        mem.names().iter().filter_map(|name| parse_segment_name(name)).map(|lsn| lsn.0).collect();
    lsns.sort_unstable();
    lsns
}

fn note_on(mem: &MemDisk) -> Option<(u64, Chain)> {
    let raw = mem.raw(NOTE_NAME)?;
    let note = Note::decode(raw.get(..NOTE_SIZE)?).expect("a node writes whole notes");
    Some((note.lsn.0, note.chain))
}

impl Archive {
    pub fn new(config: ArchiveConfig) -> Archive {
        Archive { mem: MemDisk::new(), there: Rc::new(Cell::new(true)), config, seen: Rc::default() }
    }

    /// What a loss of power in this moment leaves of it.
    pub fn after_power_loss(&self) -> MemDisk {
        let copy = self.mem.fork();
        copy.crash(Keep::None);
        copy
    }

    /// The note on this copy, and the LSN from which on nothing is missing.
    pub fn reach(&self, copy: &MemDisk) -> Option<(u64, Chain, u64)> {
        let (lsn, chain) = note_on(copy)?;
        Some((lsn, chain, self.seen.borrow().floor))
    }

    /// The snapshot that an operator has put aside.
    pub fn aside(&self) -> Option<(String, Vec<u8>)> {
        self.seen.borrow().aside.clone()
    }

    /// A snapshot has its name: now and then an operator copies it.
    pub fn on_snapshot(&self, core: &mut Core, name: &str, main: &MemDisk) {
        let mut seen = self.seen.borrow_mut();
        if seen.aside.is_none() || core.chance(200_000) {
            seen.aside = main.raw(name).map(|bytes| (name.to_owned(), bytes));
        }
    }

    /// The node is about to remove a file.
    pub fn on_remove(&self, main: &MemDisk, mirror: &Mirror, name: &str) {
        let Some(first) = parse_segment_name(name).filter(|_| mirror.on && !main.has_crashed()) else {
            return;
        };
        let mut copy = main.fork();
        copy.kill_process();
        copy.heal();
        let meta = MetaStore::load(&mut copy).expect("META is readable").expect("a log has one");
        let mut seen = self.seen.borrow_mut();
        let next = first_lsns(main).into_iter().find(|lsn| *lsn > first.0);
        let Some(next) = next.filter(|_| meta.get().log_generation == seen.generation) else { return };
        let records = first.0..=next - 1;
        let copy = self.after_power_loss();
        let noted = note_on(&copy).is_some_and(|(lsn, _)| lsn >= *records.end());
        if !noted || !holds(&copy, &mirror.entries, &records) {
            seen.bare.push((name.to_owned(), records));
        }
    }

    /// A turn has ended, or crashed, with these warnings.
    pub fn after_turn(&self, site: usize, warnings: &[String]) {
        let mut seen = self.seen.borrow_mut();
        for line in warnings {
            let Some((_, rest)) = line.split_once(GIVEN_UP) else { continue };
            let mut numbers = rest.split([' ', ':']).filter_map(|word| word.parse::<u64>().ok());
            let (Some(first), Some(last)) = (numbers.next(), numbers.next()) else { continue };
            assert!(
                self.config.log_bytes < UNBOUNDED,
                "host {site} gives up records {first} to {last}, and its archive may have everything"
            );
            seen.given_up.push(first..=last);
        }
        for (name, records) in std::mem::take(&mut seen.bare) {
            let said = |given_up: &RangeInclusive<u64>| {
                given_up.contains(records.start()) && given_up.contains(records.end())
            };
            assert!(
                seen.given_up.iter().any(said),
                "host {site} removes {name}, and after a power loss its archive would not have records {} to {}",
                records.start(),
                records.end()
            );
        }
    }
}

/// Whether these records are there, as this log has them: each segment counts up to where the next one begins, as
/// for a restore.
fn holds(archive: &MemDisk, log: &[Rc<Entry>], records: &RangeInclusive<u64>) -> bool {
    let (mut at, segments) = (records.start() - 1, first_lsns(archive));
    while at < *records.end() {
        let behind = segments.partition_point(|first| *first <= at + 1);
        let Some(first) = behind.checked_sub(1).map(|index| segments[index]) else { return false };
        let stop = segments.get(behind).map_or(u64::MAX, |next| next - 1).min(*records.end());
        let name = kvstore::wal::segment_name(kvstore::ids::Lsn(first));
        let found = records_in(&archive.raw(&name).expect("it is listed"));
        let Some((last, chain)) = found.range(at + 1..=stop).next_back() else { return false };
        if log.get(*last as usize - 1).is_none_or(|entry| entry.chain != *chain) {
            return false;
        }
        at = *last;
    }
    true
}

impl Oracle {
    /// The archive after a turn of its host, or after a start.
    pub fn check_archive(&self, core: &mut Core, host: &Host, generation: u64) {
        let Some(archive) = &host.archive else { return };
        let mut seen = archive.seen.borrow_mut();
        seen.generation = generation;
        if archive.mem.op_count() == seen.operations || archive.mem.has_crashed() {
            return;
        }
        seen.operations = archive.mem.op_count();
        let note = note_on(&archive.mem);
        let Some((lsn, chain)) = note.filter(|_| note != seen.note) else { return };
        assert!(
            lsn == 0 || self.was_committed(lsn, chain),
            "host {}: its archive has records up to LSN {lsn}, and no leader committed that one",
            host.site
        );
        let front = library::front(lsn, chain).expect("somebody wrote what was copied");
        let of_history = |(before, chain): (u64, Chain)| {
            before < lsn && (before == 0 || front[before as usize - 1].chain == chain)
        };
        let before = seen.note.filter(|before| of_history(*before)).map(|(before, _)| before);
        // The segment that was copied last begins where the note was, or behind a gap; or there is none.
        let newest = first_lsns(&archive.mem).into_iter().rfind(|first| *first <= lsn);
        let newest = newest.filter(|first| holds(&archive.mem, &front, &(*first..=lsn)));
        if before.is_some_and(|before| holds(&archive.mem, &front, &(before + 1..=lsn))) {
            core.stats.count("archive: a segment is copied");
        } else {
            core.stats.count("archive: begins anew, or behind a gap");
            seen.floor = newest.map_or(lsn, |first| first - 1);
        }
        seen.note = Some((lsn, chain));
    }
}

impl Host {
    /// The archive as its process opens it.
    pub fn archive_disk(&self, archive: &Archive) -> SimDisk {
        let mut disk = self.disk();
        disk.mem = archive.mem.clone();
        (disk.mirror, disk.flush_due) = (Rc::default(), Rc::default());
        (disk.name, disk.archive) = (format!("archive{}", self.site), None);
        disk
    }

    /// Its process keeps the archive from now on.
    pub fn keep_archive(&self, node: &mut kvstore::node::Node) {
        let Some(archive) = &self.archive else { return };
        archive.seen.borrow_mut().given_up.clear();
        let (there, disk) = (archive.there.clone(), self.archive_disk(archive));
        let open = move || -> Result<Box<dyn Disk>, String> {
            if there.get() { Ok(Box::new(disk.another())) } else { Err("it is not mounted".to_owned()) }
        };
        node.keep_archive("archive".to_owned(), Box::new(open), archive.config);
    }

    /// All segments that are closed are in the archive, once nothing breaks any more.
    pub fn check_archive_came_to_rest(&self) {
        let (Some(archive), mirror) = (&self.archive, self.mirror.borrow()) else { return };
        let closed = first_lsns(&self.mem).last().map_or(0, |first| first - 1);
        let (lsn, _) = note_on(&archive.mem).unwrap_or_default();
        // Of a log that once was longer it knows only in time whether that was this one.
        assert!(
            lsn >= closed || lsn > mirror.last(),
            "host {}: LSN {closed} is in a closed segment, and its archive ends at {lsn}",
            self.site
        );
    }
}

impl World {
    /// The disk that a fault befalls: now and then that of the archive.
    pub fn some_disk(&self, site: usize) -> MemDisk {
        let host = &self.hosts[site];
        let archive = host.archive.as_ref().filter(|_| self.core.borrow_mut().chance(400_000));
        let Some(archive) = archive else { return host.mem.clone() };
        self.core.borrow_mut().stats.count("disk: a fault of an archive");
        archive.mem.clone()
    }

    /// The directory is not there for a while, and what is open of it fails.
    pub fn archive_goes(&mut self, site: usize) {
        let Some(archive) = &self.hosts[site].archive else { return };
        archive.there.set(false);
        archive.mem.fail(OpKind::Sync, 0, EIO);
        let mut core = self.core.borrow_mut();
        core.stats.count("disk: an archive is not there");
        let for_ns = core.between(100 * MS, 8_000 * MS);
        core.after(for_ns, Event::SpaceBack(site));
    }

    /// Nothing is the matter with its archive any more.
    pub fn heal_archive(&mut self, site: usize) {
        if let Some(archive) = &self.hosts[site].archive {
            archive.there.set(true);
            archive.mem.heal();
            archive.mem.set_capacity(None);
        }
    }
}
