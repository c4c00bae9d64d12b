//! The tail's header and footer, and the writer; the layout stands at the top of the module.

use crate::ids::{Chain, ClusterId, Lsn};
use crate::wal::ENTRY_HEADER_SIZE;
use crate::wire::{Reader, Record, Writer, record_size};

use super::error::Fault;

/// The version of the tail that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the tail's header.
pub const TAIL_HEADER_SIZE: usize = 64;
/// Bytes of its footer.
pub const TAIL_FOOTER_SIZE: usize = 36;

const MAGIC: [u8; 8] = *b"KVSTTAIL";
const FOOTER_MAGIC: [u8; 8] = *b"KVSTTEND";

/// What a tail goes on from, and how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailHeader {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// S of the snapshot: the record before the first.
    pub s: Lsn,
    /// The chain checksum there.
    pub chain: Chain,
    /// The last record.
    pub last: Lsn,
    /// The checksum of the snapshot's file.
    pub snapshot_crc: u32,
}

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TailFooter {
    pub records: u64,
    pub entry_bytes: u64,
    pub chain: Chain,
    pub header_crc: u32,
}

impl TailHeader {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TAIL_HEADER_SIZE);
        out.extend_from_slice(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        put_crc(&mut out);
        out.extend_from_slice(&self.cluster_id.0);
        out.put_u64(self.s.0);
        out.put_u64(self.last.0);
        out.put_u32(self.chain.0);
        out.put_u32(self.snapshot_crc);
        out.put_u32(0);
        put_crc(&mut out);
        out
    }

    /// The header of these bytes.
    pub(super) fn decode(bytes: &[u8; TAIL_HEADER_SIZE]) -> Result<TailHeader, Fault> {
        let truncated = |_| Fault::Damaged("the header of the tail is truncated");
        let mut reader = Reader::new(bytes);
        let magic: [u8; 8] = reader.array("magic").map_err(truncated)?;
        let version = reader.u32("version").map_err(truncated)?;
        let prefix_crc = reader.u32("prefix crc").map_err(truncated)?;
        if magic != MAGIC {
            return Err(Fault::Damaged("what follows the snapshot does not begin as a tail"));
        }
        if crc32fast::hash(&bytes[..12]) != prefix_crc {
            return Err(Fault::Damaged("the checksum of the tail's magic and version does not hold"));
        }
        if version != FORMAT_VERSION {
            return Err(Fault::Version(version));
        }
        if crc32fast::hash(&bytes[..TAIL_HEADER_SIZE - 4]) != word(bytes, TAIL_HEADER_SIZE - 4) {
            return Err(Fault::Damaged("the checksum of the tail's header does not hold"));
        }
        let cluster_id = ClusterId(reader.array("cluster id").map_err(truncated)?);
        let (s, last) = (reader.u64("S").map_err(truncated)?, reader.u64("last LSN").map_err(truncated)?);
        let chain = Chain(reader.u32("chain").map_err(truncated)?);
        let snapshot_crc = reader.u32("snapshot crc").map_err(truncated)?;
        if last < s || last == u64::MAX {
            return Err(Fault::Damaged("the header of the tail contradicts itself"));
        }
        Ok(TailHeader { cluster_id, s: Lsn(s), chain, last: Lsn(last), snapshot_crc })
    }

    /// Its own checksum.
    pub(super) fn crc(&self) -> u32 {
        word(&self.encode(), TAIL_HEADER_SIZE - 4)
    }
}

impl TailFooter {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut bytes = Vec::with_capacity(TAIL_FOOTER_SIZE);
        bytes.extend_from_slice(&FOOTER_MAGIC);
        bytes.put_u64(self.records);
        bytes.put_u64(self.entry_bytes);
        bytes.put_u32(self.chain.0);
        bytes.put_u32(self.header_crc);
        put_crc(&mut bytes);
        out.extend_from_slice(&bytes);
    }

    /// Whether these bytes are the footer with these fields.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Fault> {
        let mut wanted = Vec::with_capacity(TAIL_FOOTER_SIZE);
        self.encode(&mut wanted);
        if bytes == wanted {
            return Ok(());
        }
        let own_crc = crc32fast::hash(&bytes[..TAIL_FOOTER_SIZE - 4]) == word(bytes, TAIL_FOOTER_SIZE - 4);
        Err(Fault::Damaged(match own_crc {
            true => "the footer of the tail counts other records or bytes than there are",
            false => "the checksum of the tail's footer does not hold",
        }))
    }
}

/// Writes a tail, a part at a time, into the buffers of its caller.
#[derive(Debug)]
pub struct TailWriter {
    header: TailHeader,
    at: Lsn,
    chain: Chain,
    entry_bytes: u64,
}

impl TailWriter {
    /// Begins with the header.
    pub fn begin(header: TailHeader, out: &mut Vec<u8>) -> TailWriter {
        out.extend_from_slice(&header.encode());
        TailWriter { header, at: header.s, chain: header.chain, entry_bytes: 0 }
    }

    /// The record that comes next; `None` after the last.
    pub fn next(&self) -> Option<Lsn> {
        (self.at < self.header.last).then(|| self.at.next())
    }

    /// The last one it is to hold.
    pub fn last(&self) -> Lsn {
        self.header.last
    }

    /// The chain checksum at what was added last.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// Bytes that the record would take.
    pub fn size_of(record: &Record<'_>) -> usize {
        ENTRY_HEADER_SIZE + record_size(&record.effect)
    }

    /// Adds the next record.
    pub fn add(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        assert_eq!(Some(record.lsn), self.next(), "records are added in order");
        let start = out.len();
        out.extend_from_slice(&[0; ENTRY_HEADER_SIZE]);
        record.encode(out);
        let bytes = &out[start + ENTRY_HEADER_SIZE..];
        self.chain = self.chain.extend(bytes);
        let length = bytes.len() as u32;
        out[start..start + 4].copy_from_slice(&self.chain.0.to_be_bytes());
        out[start + 4..start + 8].copy_from_slice(&length.to_be_bytes());
        self.at = record.lsn;
        self.entry_bytes += (out.len() - start) as u64;
    }

    /// Ends with the footer, behind the last record.
    pub fn finish(self, out: &mut Vec<u8>) {
        assert_eq!(self.next(), None, "a tail ends with its last record");
        TailFooter {
            records: self.header.last.0 - self.header.s.0,
            entry_bytes: self.entry_bytes,
            chain: self.chain,
            header_crc: self.header.crc(),
        }
        .encode(out);
    }
}

fn put_crc(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.put_u32(crc);
}

pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("a word has 4 bytes"))
}
