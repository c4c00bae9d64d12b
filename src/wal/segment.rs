//! A segment file and its header block.
//!
//! A segment is `wal-<first LSN, 20 digits>.seg`: a header block of 4096 bytes, then marks and entries, then
//! the zeros of its preallocation. The header is written and synced before the file gets that name, so a
//! header that does not read under that name is damage and never a half-finished rotation.
//!
//! ```text
//!    0  magic                "KVSTOWAL"
//!    8  format version       u32
//!   12  crc32 of bytes 0..12, so that a flipped bit is not taken for another version
//!   16  cluster id           16 bytes
//!   32  first LSN            u64   everything below it was durable before this header was written
//!   40  chain before it      u32
//!   44  zero                 u32
//!   48  log generation       u64
//!   56  salt                 u64   never sent or logged
//!   64  term                 u64   of the record before; zeros in 64..100: there is no term yet
//!   72  leader id            16 bytes
//!   88  first LSN of term    u64
//!   96  chain at that LSN    u32
//!  100  previous segment     u64   its first LSN; 0: there was none, or the writer did not say
//!  108  zeros
//! 4092  crc32 of bytes 0..4092
//! ```
//!
//! Bytes 0..16 mean the same in every version. The whole term start is stored, and not the term alone, so
//! that the term history of a log whose older segments are gone still begins with one complete entry.

use std::io;

use crate::disk::{Disk, FileId};
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::replication::history::TermStart;
use crate::wire::{Reader, Writer};

use super::entry::Position;
use super::mark::MarkSeed;

/// The version of the files of the log this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the header block; marks and entries begin behind it.
pub const HEADER_SIZE: u64 = 4096;
/// The next segment before it is one.
pub const SPARE_NAME: &str = "wal-next.seg.tmp";

const MAGIC: [u8; 8] = *b"KVSTOWAL";
const CLUSTER_AT: usize = 16;
const PREVIOUS_AT: usize = 100;
const CRC_AT: usize = HEADER_SIZE as usize - 4;

/// The name of the segment that begins at `first_lsn`.
pub fn segment_name(first_lsn: Lsn) -> String {
    format!("wal-{:020}.seg", first_lsn.0)
}

/// The first LSN of the segment with this name; `None` if it is not the name of a segment.
pub fn parse_segment_name(name: &str) -> Option<Lsn> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok().map(Lsn)).flatten().filter(|&lsn| lsn != Lsn::ZERO)
}

/// What a segment says about itself, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub cluster_id: ClusterId,
    pub first_lsn: Lsn,
    pub chain_before: Chain,
    pub generation: u64,
    pub salt: u64,
    /// Where the term of the record before begins.
    pub term_start: Option<TermStart>,
    /// The first LSN of the segment before this one, or 0.
    pub previous: Lsn,
}

/// The first block of a file, not believed yet.
pub(super) struct RawHeader {
    bytes: Vec<u8>,
}

/// Why a block is not the header this program expects under that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// The file is too short, or a magic, checksum or field does not hold.
    Damaged(&'static str),
    /// Whole, and written by another version.
    Version(u32),
    /// Whole, and of another cluster.
    Cluster(ClusterId),
}

impl Header {
    /// What the checksums of this segment's marks begin with.
    pub fn seed(&self) -> MarkSeed {
        MarkSeed { salt: self.salt, first_lsn: self.first_lsn }
    }

    /// Whether this one may come right behind `before`: what headers can say of that.
    pub fn may_follow(&self, before: &Header) -> bool {
        let named = self.previous == Lsn::ZERO || self.previous == before.first_lsn;
        named && self.generation >= before.generation
    }

    /// The header block.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_SIZE as usize);
        out.extend_from_slice(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out.extend_from_slice(&self.cluster_id.0);
        out.put_u64(self.first_lsn.0);
        out.put_u32(self.chain_before.0);
        out.put_u32(0);
        out.put_u64(self.generation);
        out.put_u64(self.salt);
        if let Some(start) = &self.term_start {
            out.put_u64(start.term.as_u64());
            out.extend_from_slice(&start.leader.0);
            out.put_u64(start.first_lsn.0);
            out.put_u32(start.chain.0);
        }
        out.resize(PREVIOUS_AT, 0);
        out.put_u64(self.previous.0);
        out.resize(CRC_AT, 0);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }
}

impl RawHeader {
    /// Reads the first block. A shorter file gives a shorter block, which does not validate.
    pub fn read(disk: &mut dyn Disk, file: FileId, size: u64) -> io::Result<RawHeader> {
        let mut bytes = vec![0; size.min(HEADER_SIZE) as usize];
        disk.read_exact_at(file, 0, &mut bytes)?;
        Ok(RawHeader { bytes })
    }

    /// The first LSN and the cluster that stand there, to be believed only if the header holds.
    pub fn claimed(&self) -> (Lsn, ClusterId) {
        let claimed = |reader: &mut Reader<'_>| {
            Ok::<_, crate::wire::DecodeError>((
                ClusterId(reader.array("cluster id")?),
                Lsn(reader.u64("first LSN")?),
            ))
        };
        let fields = self.bytes.get(CLUSTER_AT..).and_then(|bytes| claimed(&mut Reader::new(bytes)).ok());
        fields.map_or((Lsn::ZERO, ClusterId::NONE), |(cluster_id, first_lsn)| (first_lsn, cluster_id))
    }

    /// The header, if it is one of this version and cluster and belongs under the name it has.
    pub fn validate(&self, named: Lsn, cluster_id: ClusterId) -> Result<Header, HeaderFault> {
        if self.bytes.len() < HEADER_SIZE as usize {
            return Err(HeaderFault::Damaged("the file is shorter than a header"));
        }
        let truncated = |_| HeaderFault::Damaged("the header is truncated");
        let mut reader = Reader::new(&self.bytes);
        let magic: [u8; 8] = reader.array("magic").map_err(truncated)?;
        let version = reader.u32("version").map_err(truncated)?;
        let prefix_crc = reader.u32("prefix crc").map_err(truncated)?;
        if magic != MAGIC {
            return Err(HeaderFault::Damaged("the file does not begin as a segment of the log"));
        }
        if crc32fast::hash(&self.bytes[..12]) != prefix_crc {
            return Err(HeaderFault::Damaged("the checksum of magic and version does not hold"));
        }
        if version != FORMAT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        let stored_crc = Reader::new(&self.bytes[CRC_AT..]).u32("crc").map_err(truncated)?;
        if crc32fast::hash(&self.bytes[..CRC_AT]) != stored_crc {
            return Err(HeaderFault::Damaged("the checksum of the header does not hold"));
        }
        let header = Self::fields(&mut reader).map_err(truncated)?;
        if header.first_lsn != named {
            return Err(HeaderFault::Damaged("the header has another first LSN than the file's name"));
        }
        if header.cluster_id != cluster_id {
            return Err(HeaderFault::Cluster(header.cluster_id));
        }
        Ok(header)
    }

    fn fields(reader: &mut Reader<'_>) -> Result<Header, crate::wire::DecodeError> {
        let cluster_id = ClusterId(reader.array("cluster id")?);
        let first_lsn = Lsn(reader.u64("first LSN")?);
        let chain_before = Chain(reader.u32("chain before")?);
        reader.u32("zero")?;
        let generation = reader.u64("generation")?;
        let salt = reader.u64("salt")?;
        let start = TermStart {
            term: Term::from_u64(reader.u64("term")?),
            leader: NodeId(reader.array("leader id")?),
            first_lsn: Lsn(reader.u64("first LSN of term")?),
            chain: Chain(reader.u32("chain at term")?),
        };
        let term_start = (start.first_lsn != Lsn::ZERO).then_some(start);
        let previous = Lsn(reader.u64("previous segment")?);
        Ok(Header { cluster_id, first_lsn, chain_before, generation, salt, term_start, previous })
    }
}

/// Bytes between two positions of an index, at least: 24 bytes of memory for 64 KiB of log.
pub(super) const INDEX_STRIDE: u64 = 64 << 10;

/// A segment of the log as the running node knows it.
#[derive(Debug)]
pub(super) struct Segment {
    pub name: String,
    pub header: Header,
    /// Bytes of the file.
    pub size: u64,
    /// The byte behind the last mark or entry; only zeros follow.
    pub end: u64,
    /// Where records are, about every [`INDEX_STRIDE`] bytes. Rising; the first is the segment's start.
    pub index: Vec<Position>,
}

impl Segment {
    /// A segment without marks and entries.
    pub fn new(header: Header, size: u64) -> Segment {
        let mut index = Vec::with_capacity((size / INDEX_STRIDE) as usize + 1);
        index.push(Position { offset: HEADER_SIZE, next: header.first_lsn, chain: header.chain_before });
        Segment { name: segment_name(header.first_lsn), header, size, end: HEADER_SIZE, index }
    }

    /// The position behind the header.
    pub fn start(&self) -> Position {
        self.index[0]
    }

    /// Remembers a position, unless one nearby is known.
    pub fn note(&mut self, position: Position) {
        if self.index.last().is_none_or(|last| position.offset >= last.offset + INDEX_STRIDE) {
            self.index.push(position);
        }
    }

    /// The known position nearest before the record `lsn`.
    pub fn nearest(&self, lsn: Lsn) -> Position {
        let behind = self.index.partition_point(|position| position.next <= lsn);
        self.index[behind.checked_sub(1).expect("the segment begins at or below the LSN it is asked for")]
    }

    /// Forgets what is behind `end`.
    pub fn cut(&mut self, end: u64) {
        self.end = end;
        self.index.retain(|position| position.offset <= end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let term_start = Some(TermStart {
            term: Term { promotion: 1, start: 2 },
            leader: NodeId([3; 16]),
            first_lsn: Lsn(4),
            chain: Chain(5),
        });
        let cluster_id = ClusterId([9; 16]);
        let (first_lsn, chain_before) = (Lsn(70), Chain(0xdead_beef));
        Header { cluster_id, first_lsn, chain_before, generation: 6, salt: 7, term_start, previous: Lsn(60) }
    }

    fn validate(bytes: Vec<u8>) -> Result<Header, HeaderFault> {
        RawHeader { bytes }.validate(Lsn(70), ClusterId([9; 16]))
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        assert_eq!(validate(header().encode()), Ok(header()));
        let without_term = Header { term_start: None, ..header() };
        assert_eq!(validate(without_term.encode()), Ok(without_term));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_damage_and_not_another_version() {
        for bit in 0..HEADER_SIZE as usize * 8 {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(validate(bytes), Err(HeaderFault::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named_even_if_the_rest_is_unreadable() {
        let mut bytes = header().encode();
        bytes[8..12].copy_from_slice(&7u32.to_be_bytes());
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(validate(bytes), Err(HeaderFault::Version(7)));
    }

    #[test]
    fn names_and_first_lsns_convert_both_ways() {
        assert_eq!(parse_segment_name(&segment_name(Lsn(u64::MAX))), Some(Lsn(u64::MAX)));
        assert_eq!(segment_name(Lsn(12)), "wal-00000000000000000012.seg");
        for other in [
            "wal-12.seg",
            SPARE_NAME,
            "wal-+0000000000000000012.seg",
            "wal-99999999999999999999.seg",
            "wal-00000000000000000000.seg",
        ] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }
}
