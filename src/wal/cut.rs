//! Cutting records off the end of the log, and keeping them aside.
//!
//! The node first makes its own record of (new generation, cut LSN) durable. From then on what stands behind the
//! cut in an older generation is no part of the log, and the rest is tidying that the next open can complete
//! after a crash at any point: keep the records aside, remove the later segments, zero the rest of the own one,
//! all of it durably, before an LSN is used again.
//!
//! What is cut is kept in `cut-g<new generation>-<first>-<last>.kvcut`, for a person to look at; the program
//! never reads one:
//!
//! ```text
//!  0  magic            "KVSTOCUT"
//!  8  format version   u32
//! 12  generation       u64   begun by the cut
//! 20  cluster id       16 bytes
//! 36  first LSN        u64
//! 44  last LSN         u64
//! 52  chain before     u32   the first record
//! 56  crc32 of bytes 0..56
//! 60  entries          as in a segment: [chain u32][length u32][record]
//! ```

use std::fmt;
use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn};
use crate::wire::{DecodeError, Reader, Writer};

use super::Wal;
use super::entry::{Item, Position, Walk, Window, put_entry};
use super::error::{ReadError, WalError};
use super::mark::{Claims, MarkSeed};
use super::reader::CHUNK_SIZE;
use super::segment::{FORMAT_VERSION, HEADER_SIZE, Segment};
use super::zeros::Zeros;

/// The name of a file of kept records until it is whole.
pub(super) const ASIDE_TMP_NAME: &str = "cut.kvcut.tmp";
const ASIDE_MAGIC: [u8; 8] = *b"KVSTOCUT";
const ASIDE_HEADER_SIZE: usize = 60;

/// Where the records that a cut took back were kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAside {
    /// Its name in the data directory.
    pub file: String,
    /// The first record in it.
    pub first: Lsn,
    /// The last record in it.
    pub last: Lsn,
    /// Bytes of the file.
    pub bytes: u64,
}

impl fmt::Display for KeptAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KeptAside { file, first, last, bytes } = self;
        write!(f, "LSN {first} to {last} were cut off the log and are kept in {file} ({bytes} bytes)")
    }
}

/// A part of a segment whose records are to be kept.
pub(super) struct Source {
    pub name: String,
    pub seed: MarkSeed,
    pub at: Position,
    pub end: u64,
}

impl Source {
    pub fn new(segment: &Segment, at: Position, end: u64) -> Source {
        Source { name: segment.name.clone(), seed: segment.header.seed(), at, end }
    }
}

/// Writes records to the temporary file, a chunk at a time.
struct AsideFile {
    file: FileId,
    offset: u64,
    buffer: Vec<u8>,
}

impl AsideFile {
    fn create(disk: &mut dyn Disk) -> io::Result<AsideFile> {
        let file = disk.create(ASIDE_TMP_NAME, ASIDE_HEADER_SIZE as u64)?;
        Ok(AsideFile { file, offset: ASIDE_HEADER_SIZE as u64, buffer: Vec::new() })
    }

    fn flush(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        disk.write_all_at(self.file, self.offset, &self.buffer)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self, disk: &mut dyn Disk, header: &[u8]) -> io::Result<u64> {
        self.flush(disk)?;
        disk.write_all_at(self.file, 0, header)?;
        disk.sync_data(self.file)?;
        disk.close(self.file);
        Ok(self.offset)
    }
}

fn aside_header(cluster_id: ClusterId, generation: u64, from: Position, last: Lsn) -> Vec<u8> {
    let mut out = Vec::with_capacity(ASIDE_HEADER_SIZE);
    out.extend_from_slice(&ASIDE_MAGIC);
    out.put_u32(FORMAT_VERSION);
    out.put_u64(generation);
    out.extend_from_slice(&cluster_id.0);
    out.put_u64(from.next.0);
    out.put_u64(last.0);
    out.put_u32(from.chain.0);
    let crc = crc32fast::hash(&out);
    out.put_u32(crc);
    out
}

/// What such a file says of itself.
pub(super) struct AsideHeader {
    pub cluster_id: ClusterId,
    pub generation: u64,
    pub first: Lsn,
    pub last: Lsn,
    /// Before the first record.
    pub chain: Chain,
    /// Bytes before it.
    pub size: u64,
}

/// Reads the header of such a file of `len` bytes; the inner error says why it is none.
pub(super) fn read_aside_header(
    disk: &mut dyn Disk,
    file: FileId,
    len: u64,
) -> io::Result<Result<AsideHeader, &'static str>> {
    if len < ASIDE_HEADER_SIZE as u64 {
        return Ok(Err("it is shorter than its header"));
    }
    let mut bytes = [0; ASIDE_HEADER_SIZE];
    disk.read_exact_at(file, 0, &mut bytes)?;
    Ok(decode_aside_header(&bytes).unwrap_or(Err("its header is truncated")))
}

fn decode_aside_header(
    bytes: &[u8; ASIDE_HEADER_SIZE],
) -> Result<Result<AsideHeader, &'static str>, DecodeError> {
    let (covered, crc) = bytes.split_at(ASIDE_HEADER_SIZE - 4);
    let mut reader = Reader::new(covered);
    if reader.array("magic")? != ASIDE_MAGIC {
        return Ok(Err("it does not begin as a file of records that were cut off"));
    }
    if crc32fast::hash(covered).to_be_bytes() != crc {
        return Ok(Err("the checksum of its header does not hold"));
    }
    if reader.u32("version")? != FORMAT_VERSION {
        return Ok(Err("it is of another format version"));
    }
    Ok(Ok(AsideHeader {
        generation: reader.u64("generation")?,
        cluster_id: ClusterId(reader.array("cluster id")?),
        first: Lsn(reader.u64("first LSN")?),
        last: Lsn(reader.u64("last LSN")?),
        chain: Chain(reader.u32("chain")?),
        size: ASIDE_HEADER_SIZE as u64,
    }))
}

/// Keeps the records of these sources, as far as they follow each other. `None`: there is none.
///
/// When a cut is completed after a crash, later segments may be gone already; then an earlier, longer file of the
/// same cut holds all of them, and that one is the answer.
pub(super) fn keep_aside(
    disk: &mut dyn Disk,
    cluster_id: ClusterId,
    claims: Claims,
    sources: &[Source],
) -> Result<Option<KeptAside>, WalError> {
    let fail = |disk: &dyn Disk, error| WalError::new(disk, "keep cut records in", ASIDE_TMP_NAME, 0, error);
    let Some(from) = sources.first().map(|source| source.at) else { return Ok(None) };
    let mut aside = AsideFile::create(disk).map_err(|error| fail(disk, error))?;
    let last = copy_records(disk, &mut aside, claims, sources)?;
    let nothing = last < from.next;
    let header = aside_header(cluster_id, claims.generation, from, last);
    let bytes = aside.finish(disk, &header).map_err(|error| fail(disk, error))?;
    if let Some(longer) =
        longer_file(disk, claims.generation, from.next, last).map_err(|error| fail(disk, error))?
    {
        disk.remove(ASIDE_TMP_NAME).map_err(|error| fail(disk, error))?;
        return Ok(Some(longer));
    }
    if nothing {
        disk.remove(ASIDE_TMP_NAME).map_err(|error| fail(disk, error))?;
        return Ok(None);
    }
    let file = aside_name(claims.generation, from.next, last);
    disk.rename(ASIDE_TMP_NAME, &file).map_err(|error| fail(disk, error))?;
    disk.sync_dir().map_err(|error| fail(disk, error))?;
    Ok(Some(KeptAside { file, first: from.next, last, bytes }))
}

/// Copies what the sources hold; the last LSN copied, or the one before the first.
fn copy_records(
    disk: &mut dyn Disk,
    aside: &mut AsideFile,
    claims: Claims,
    sources: &[Source],
) -> Result<Lsn, WalError> {
    let mut follows = (sources[0].at.next, sources[0].at.chain);
    for source in sources {
        if (source.at.next, source.at.chain) != follows {
            break;
        }
        // One file at a time: a cut may span more segments than a process has descriptors.
        let file =
            disk.open(&source.name).map_err(|error| WalError::new(disk, "open", &source.name, 0, error))?;
        let at = copy_source(disk, aside, claims, source, file);
        disk.close(file);
        let at = at?;
        follows = (at.next, at.chain);
    }
    Ok(follows.0.prev())
}

/// Copies the records of one source; the position behind the last.
fn copy_source(
    disk: &mut dyn Disk,
    aside: &mut AsideFile,
    claims: Claims,
    source: &Source,
    file: FileId,
) -> Result<Position, WalError> {
    let mut window = Window::default();
    let (seed, at, end) = (source.seed, source.at, source.end);
    let mut walk = Walk { file, seed, at, end, chunk: CHUNK_SIZE, window: &mut window };
    loop {
        let at = walk.at;
        let item =
            walk.next(disk).map_err(|error| WalError::new(disk, "read", &source.name, at.offset, error))?;
        match item {
            Item::Mark(mark) if mark.generation >= claims.generation => return Ok(at),
            Item::Mark(_) => {}
            Item::Entry { bytes, chain, .. } => put_entry(&mut aside.buffer, chain, bytes),
            Item::Stop(_) => return Ok(at),
        }
        if aside.buffer.len() >= CHUNK_SIZE {
            aside.flush(disk).map_err(|error| {
                WalError::new(disk, "keep cut records in", ASIDE_TMP_NAME, aside.offset, error)
            })?;
        }
    }
}

fn aside_name(generation: u64, first: Lsn, last: Lsn) -> String {
    format!("cut-g{generation}-{first}-{last}.kvcut")
}

/// A file of this cut that holds all of `first ..= last`.
fn longer_file(disk: &mut dyn Disk, generation: u64, first: Lsn, last: Lsn) -> io::Result<Option<KeptAside>> {
    for name in disk.list()? {
        let Some((its_generation, its_first, its_last)) = parse_aside_name(&name) else { continue };
        if its_generation == generation && its_first <= first && its_last >= last {
            let file = disk.open(&name)?;
            let bytes = disk.len(file);
            disk.close(file);
            return Ok(Some(KeptAside { file: name, first: its_first, last: its_last, bytes: bytes? }));
        }
    }
    Ok(None)
}

fn parse_aside_name(name: &str) -> Option<(u64, Lsn, Lsn)> {
    let mut numbers = name.strip_prefix("cut-g")?.strip_suffix(".kvcut")?.splitn(3, '-').map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some((number()?, Lsn(number()?), Lsn(number()?)))
}

/// Removes segments, the last first: a crash between leaves no gap in what is left.
pub(super) fn remove_segments<'n>(
    disk: &mut dyn Disk,
    names: impl DoubleEndedIterator<Item = &'n str>,
) -> Result<(), WalError> {
    for name in names.rev() {
        disk.remove(name).map_err(|error| WalError::new(disk, "remove", name, 0, error))?;
    }
    disk.sync_dir().map_err(|error| WalError::new(disk, "sync the directory", "", 0, error))
}

/// What stands where the log ends while the zeros behind it are not durable: neither mark nor entry nor zeros.
const POISON: [u8; 8] = [0xff; 8];

/// Zeroes `from .. to` of a file, durably; the log ends at `from`.
///
/// In two steps. If the sync of the zeros failed and they alone stood there, the next process would read zeros from
/// the page cache, go on, and the bytes of an older generation would come back with the next loss of power. So
/// a poison stands at the end of the log until the zeros behind it are durable; who finds it zeroes again. What a
/// failure of the second sync can leave is overwritten by the next batch, as a mark is longer than the poison.
pub(super) fn zero_durably(
    disk: &mut dyn Disk,
    file: FileId,
    name: &str,
    from: u64,
    to: u64,
) -> Result<(), WalError> {
    let poison = &POISON[..(POISON.len() as u64).min(to - from) as usize];
    let behind_poison = from + poison.len() as u64;
    disk.write_all_at(file, from, poison)
        .and_then(|()| write_zeros(disk, file, behind_poison, to))
        .and_then(|()| disk.sync_data(file))
        .and_then(|()| write_zeros(disk, file, from, behind_poison))
        .and_then(|()| disk.sync_data(file))
        .map_err(|error| WalError::new(disk, "zero durably the end of", name, from, error))
}

fn write_zeros(disk: &mut dyn Disk, file: FileId, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; (to - from).min(CHUNK_SIZE as u64) as usize];
    let mut offset = from;
    while offset < to {
        let size = (to - offset).min(zeros.len() as u64) as usize;
        disk.write_all_at(file, offset, &zeros[..size])?;
        offset += size as u64;
    }
    Ok(())
}

const _: () = assert!(POISON.len() < super::mark::MARK_SIZE, "the next batch must cover the poison");

impl Wal {
    /// Takes back every record behind `keep` and begins `new_generation`. The caller has made its record of
    /// both durable before, and no flush is under way. When this returns, the LSNs may be used again.
    ///
    /// A cut right before the first LSN leaves no segment to tell where the log begins. The caller's record then names
    /// `keep` as the base too, with the chain there ([`Wal::chain_at`]). Below that there is [`Wal::reset`].
    ///
    /// What is taken back is kept in a file, if it is anything.
    pub fn cut(
        &mut self,
        disk: &mut dyn Disk,
        keep: Lsn,
        new_generation: u64,
    ) -> Result<Option<KeptAside>, WalError> {
        self.assert_no_flush("a cut waits for the flush under way");
        assert!(new_generation > self.generation, "a cut begins a later generation");
        assert!(keep <= self.last_lsn && keep.next() >= self.first_lsn(), "the log does not hold LSN {keep}");
        let result = self.cut_files(disk, keep, Claims { generation: new_generation, cut_lsn: keep });
        match result {
            Ok(_) => self.generation = new_generation,
            Err(_) => self.failed = true,
        }
        result
    }

    fn cut_files(
        &mut self,
        disk: &mut dyn Disk,
        keep: Lsn,
        claims: Claims,
    ) -> Result<Option<KeptAside>, WalError> {
        if self.batch_bytes() > 0 {
            self.write_batch(disk)?;
        }
        // A segment that begins behind the cut goes even if it holds no record: what a later generation wrote
        // into it would pass for cut off, as its header is of an older one.
        let survivors = self.segments.partition_point(|segment| segment.header.first_lsn <= keep);
        let at = self.cut_position(disk, survivors, keep)?;
        let kept = match keep < self.last_lsn {
            true => keep_aside(disk, self.cluster_id, claims, &self.sources(survivors, at))?,
            false => None,
        };
        self.drop_segments(disk, survivors)?;
        if let Some(file) = self.active {
            let segment = self.segments.last_mut().expect("an active file has a segment");
            zero_durably(disk, file, &segment.name, at.offset, segment.end)?;
            segment.cut(at.offset);
        }
        self.reset_to(keep, at.chain);
        Ok(kept)
    }

    /// Where the log will end: behind the record `keep` of the last surviving segment.
    fn cut_position(
        &mut self,
        disk: &mut dyn Disk,
        survivors: usize,
        keep: Lsn,
    ) -> Result<Position, WalError> {
        let Some(own) = survivors.checked_sub(1) else {
            return Ok(Position { offset: HEADER_SIZE, next: keep.next(), chain: self.floor.1 });
        };
        if keep == self.last_lsn {
            // A mark at the end stays: what it claims is kept.
            let offset = self.segments[own].end;
            return Ok(Position { offset, next: keep.next(), chain: self.last_chain });
        }
        self.position_behind(disk, own, keep).map_err(as_wal_error)
    }

    /// Everything behind `at`, which is in the last survivor, or begins the first segment.
    fn sources(&self, survivors: usize, at: Position) -> Vec<Source> {
        let own = survivors.saturating_sub(1);
        let mut sources: Vec<Source> = self.segments[own..]
            .iter()
            .map(|segment| Source::new(segment, segment.start(), segment.end))
            .collect();
        sources[0].at = at;
        sources
    }

    /// Removes all but the first `survivors` segments; the last of these becomes the active one.
    fn drop_segments(&mut self, disk: &mut dyn Disk, survivors: usize) -> Result<(), WalError> {
        if survivors == self.segments.len() {
            return Ok(());
        }
        remove_segments(disk, self.segments[survivors..].iter().map(|segment| segment.name.as_str()))?;
        let removed_from = self.segments[survivors].header.first_lsn;
        self.read_files.close_from(disk, removed_from);
        if let Some(file) = self.active.take() {
            disk.close(file);
        }
        self.zeros = Zeros::default();
        if survivors > 0 {
            let file = self.file_of(disk, survivors - 1).map_err(as_wal_error)?;
            self.read_files.release(self.segments[survivors - 1].header.first_lsn);
            self.active = Some(file);
        }
        self.segments.truncate(survivors);
        Ok(())
    }

    pub(super) fn reset_to(&mut self, keep: Lsn, chain: Chain) {
        (self.last_lsn, self.last_chain) = (keep, chain);
        (self.written_lsn, self.written_chain) = (keep, chain);
        (self.synced_lsn, self.told_lsn) = (keep, keep);
        self.commit_lsn = self.commit_lsn.min(keep);
        self.reserved = 0;
        self.history.cut(keep);
        self.invariants();
    }
}

fn as_wal_error(error: ReadError) -> WalError {
    match error {
        ReadError::Io(error) => error,
        ReadError::Damaged { file, offset, .. } => {
            WalError { op: "read the records of", file, offset, source: io::ErrorKind::InvalidData.into() }
        }
        ReadError::NotHeld { .. } => unreachable!("a cut reads only what the log holds"),
    }
}
