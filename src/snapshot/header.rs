//! Header and footer of a snapshot file; the layout stands at the top of the module.

use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, PEERS_MAX, TERM_HISTORY_ENTRY_SIZE, TERM_HISTORY_MAX};
use crate::replication::history::{TermHistory, TermStart};
use crate::replication::members::Membership;
use crate::wire::{DecodeError, MEMBERS_SIZE_MAX, Reader, Writer, put_members, read_members};

use super::error::Fault;
use super::{SnapshotId, SnapshotInfo, Start};

/// The newest version of snapshot files that this program writes and reads: with members.
pub const FORMAT_VERSION: u32 = 3;
/// The version of a file with client sessions and no members.
const FORMAT_VERSION_SESSIONS: u32 = 2;
/// The version of a file with neither, which older programs read too.
pub const FORMAT_VERSION_PLAIN: u32 = 1;
/// Bytes of the footer.
pub const FOOTER_SIZE: usize = 8 + 3 * 8 + 3 * 4;

/// A header is a multiple of this: its last block is no block of the entries.
pub(super) const HEADER_ALIGN: usize = 4096;
/// Bytes in front of the peers; they say how long the header is.
pub(super) const FIXED_SIZE: usize = 88;
/// Bytes of a header, at most.
pub(super) const HEADER_SIZE_MAX: usize = (FIXED_SIZE
    + PEERS_MAX * (2 + ADDRESS_SIZE_MAX)
    + TERM_HISTORY_MAX * TERM_HISTORY_ENTRY_SIZE
    + TAIL_SIZE_MAX
    + 4)
.next_multiple_of(HEADER_ALIGN);
/// What stands behind the terms where there are members: whether there are sessions, the LSN of the list, the list.
const TAIL_SIZE_MAX: usize = 1 + 8 + MEMBERS_SIZE_MAX;

const MAGIC: [u8; 8] = *b"KVSTSNAP";
const FOOTER_MAGIC: [u8; 8] = *b"KVSTSEND";

/// What a header says: what the snapshot began with, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whether there are blocks of client sessions: which version it is.
    pub has_sessions: bool,
    pub start: Start,
    pub e: Lsn,
    /// Bytes of the file up to the end of the footer.
    pub bytes: u64,
}

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub blocks: u64,
    pub entries: u64,
    pub data_bytes: u64,
    /// Of all bytes between header and footer.
    pub body_crc: u32,
    /// The last four bytes of the header.
    pub header_crc: u32,
}

/// Bytes that the header of such a snapshot takes.
pub(super) fn header_size(start: &Start) -> usize {
    let peers: usize = start.peers.iter().map(|peer| 2 + peer.len()).sum();
    let terms = start.history.starts().len() * TERM_HISTORY_ENTRY_SIZE;
    let members: usize = start.members.iter().map(|member| 16 + 2 + member.address.len()).sum();
    let tail = if start.members.is_empty() { 0 } else { 1 + 8 + 2 + members };
    (FIXED_SIZE + peers + terms + tail + 4).next_multiple_of(HEADER_ALIGN)
}

/// What the checksum of every block begins with.
pub(super) fn identity_crc(start: &Start) -> u32 {
    let mut bytes = Vec::with_capacity(44);
    bytes.extend_from_slice(&start.cluster_id.0);
    bytes.extend_from_slice(&start.maker.0);
    bytes.put_u64(start.s.0);
    bytes.put_u32(start.chain.0);
    crc32fast::hash(&bytes)
}

/// How long the header is that begins with these bytes, after what stands before its length was checked.
pub(super) fn header_size_of(fixed: &[u8; FIXED_SIZE]) -> Result<usize, Fault> {
    let mut reader = Reader::new(fixed);
    let magic: [u8; 8] = reader.array("magic").map_err(damaged_field)?;
    let version = reader.u32("version").map_err(damaged_field)?;
    if magic != MAGIC {
        return Err(damaged("the file does not begin as a snapshot"));
    }
    if crc32fast::hash(&fixed[..12]) != reader.u32("prefix crc").map_err(damaged_field)? {
        return Err(damaged("the checksum of magic and version does not hold"));
    }
    if !(FORMAT_VERSION_PLAIN..=FORMAT_VERSION).contains(&version) {
        return Err(Fault::Version(version));
    }
    let size = u32::from_be_bytes([fixed[68], fixed[69], fixed[70], fixed[71]]) as usize;
    if size == 0 || !size.is_multiple_of(HEADER_ALIGN) || size > HEADER_SIZE_MAX {
        return Err(damaged("the header has a length that no header has"));
    }
    Ok(size)
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Start { cluster_id, maker, s, chain, history, peers, members } = &self.start;
        let size = header_size(&self.start);
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(&MAGIC);
        out.put_u32(match (members.is_empty(), self.has_sessions) {
            (false, _) => FORMAT_VERSION,
            (true, true) => FORMAT_VERSION_SESSIONS,
            (true, false) => FORMAT_VERSION_PLAIN,
        });
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out.extend_from_slice(&cluster_id.0);
        out.extend_from_slice(&maker.0);
        out.put_u64(s.0);
        out.put_u64(self.e.0);
        out.put_u32(chain.0);
        out.put_u32(size as u32);
        out.put_u64(self.bytes);
        out.put_u32(peers.len() as u32);
        out.put_u32(history.starts().len() as u32);
        peers.iter().for_each(|peer| out.put_bytes16(peer.as_bytes()));
        for start in history.starts() {
            out.put_u64(start.term.as_u64());
            out.extend_from_slice(&start.leader.0);
            out.put_u64(start.first_lsn.0);
            out.put_u32(start.chain.0);
        }
        if !members.is_empty() {
            out.put_u8(self.has_sessions.into());
            out.put_u64(members.lsn().0);
            put_members(&mut out, members);
        }
        out.resize(size - 4, 0);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    /// The header of these bytes, as many as [`header_size_of`] said, and its checksum.
    pub fn decode(bytes: &[u8], expected: Option<ClusterId>) -> Result<(Header, u32), Fault> {
        let (covered, stored) = bytes.split_at(bytes.len() - 4);
        let crc = crc32fast::hash(covered);
        if crc.to_be_bytes() != stored {
            return Err(damaged("the checksum of the header does not hold"));
        }
        let header = Self::fields(&mut Reader::new(covered)).map_err(damaged_field)?;
        let header = header.ok_or_else(|| damaged("the header contradicts itself"))?;
        match expected {
            Some(expected) if header.start.cluster_id != expected => {
                Err(Fault::Cluster { found: header.start.cluster_id, expected })
            }
            _ => Ok((header, crc)),
        }
    }

    /// Its fields; `None` if their values cannot be.
    fn fields(reader: &mut Reader<'_>) -> Result<Option<Header>, DecodeError> {
        let _checked_magic: [u8; 8] = reader.array("magic")?;
        let version = reader.u32("version")?;
        let _checked_prefix_crc = reader.u32("prefix crc")?;
        let cluster_id = ClusterId(reader.array("cluster id")?);
        let maker = NodeId(reader.array("maker")?);
        let (s, e) = (Lsn(reader.u64("S")?), Lsn(reader.u64("E")?));
        let chain = Chain(reader.u32("chain")?);
        let size = reader.u32("bytes of the header")?;
        let bytes = reader.u64("bytes of the file")?;
        let (peer_count, term_count) = (reader.u32("peers")? as usize, reader.u32("terms")? as usize);
        if peer_count > PEERS_MAX || term_count > TERM_HISTORY_MAX {
            return Ok(None);
        }
        let peers = (0..peer_count).map(|_| reader.text16("peer", ADDRESS_SIZE_MAX).map(str::to_owned));
        let peers = peers.collect::<Result<Vec<String>, DecodeError>>()?;
        let starts = (0..term_count).map(|_| term_start(reader));
        let Some(history) = TermHistory::from_starts(starts.collect::<Result<_, DecodeError>>()?) else {
            return Ok(None);
        };
        let (has_sessions, members) = match version {
            FORMAT_VERSION => {
                let has_sessions = reader.u8("whether there are sessions")? != 0;
                let lsn = Lsn(reader.u64("LSN of the members")?);
                (has_sessions, Membership::settled(read_members(reader)?, lsn))
            }
            _ => (version == FORMAT_VERSION_SESSIONS, Membership::default()),
        };
        let is_below_s = history.last().is_none_or(|last| last.first_lsn <= s);
        let has_footer = bytes >= u64::from(size) + FOOTER_SIZE as u64;
        let start = Start { cluster_id, maker, s, chain, history, peers, members };
        Ok((s <= e && is_below_s && has_footer).then_some(Header { has_sessions, start, e, bytes }))
    }

    pub fn id(&self) -> SnapshotId {
        SnapshotId { s: self.start.s, e: self.e }
    }

    /// Where the footer begins.
    pub fn footer_at(&self) -> u64 {
        self.bytes - FOOTER_SIZE as u64
    }

    /// Both ends of a file put together.
    pub fn info(&self, footer: &Footer, name: &str) -> SnapshotInfo {
        let Start { cluster_id, maker, chain, history, peers, members, .. } = self.start.clone();
        SnapshotInfo {
            id: self.id(),
            chain,
            bytes: self.bytes,
            entries: footer.entries,
            data_bytes: footer.data_bytes,
            history,
            peers,
            members,
            cluster_id,
            maker,
            crc: footer.crc(),
            name: name.to_owned(),
        }
    }
}

impl Footer {
    /// The footer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_SIZE);
        out.extend_from_slice(&FOOTER_MAGIC);
        out.put_u64(self.blocks);
        out.put_u64(self.entries);
        out.put_u64(self.data_bytes);
        out.put_u32(self.body_crc);
        out.put_u32(self.header_crc);
        let crc = crc32fast::hash(&out);
        out.put_u32(crc);
        out
    }

    /// The footer of these bytes, which begin at `offset`; it must belong to the header with this checksum.
    pub fn decode(bytes: &[u8], offset: u64, header_crc: u32) -> Result<Footer, Fault> {
        let fault = |what| Fault::Damaged { offset, what };
        let truncated = |_| fault("the footer is truncated");
        let mut reader = Reader::new(bytes);
        let magic: [u8; 8] = reader.array("magic").map_err(truncated)?;
        let footer = Footer {
            blocks: reader.u64("blocks").map_err(truncated)?,
            entries: reader.u64("entries").map_err(truncated)?,
            data_bytes: reader.u64("data bytes").map_err(truncated)?,
            body_crc: reader.u32("crc of all blocks").map_err(truncated)?,
            header_crc: reader.u32("crc of the header").map_err(truncated)?,
        };
        if crc32fast::hash(&bytes[..FOOTER_SIZE - 4]) != reader.u32("crc").map_err(truncated)? {
            return Err(fault("the checksum of the footer does not hold"));
        }
        if magic != FOOTER_MAGIC || footer.header_crc != header_crc {
            return Err(fault("this is not the footer of that header"));
        }
        Ok(footer)
    }

    /// Its own checksum, which stands for all of the file.
    pub fn crc(&self) -> u32 {
        let bytes = self.encode();
        crc32fast::hash(&bytes[..FOOTER_SIZE - 4])
    }
}

fn term_start(reader: &mut Reader<'_>) -> Result<TermStart, DecodeError> {
    Ok(TermStart {
        term: Term::from_u64(reader.u64("term")?),
        leader: NodeId(reader.array("leader id")?),
        first_lsn: Lsn(reader.u64("first LSN")?),
        chain: Chain(reader.u32("chain at the term")?),
    })
}

fn damaged(what: &'static str) -> Fault {
    Fault::Damaged { offset: 0, what }
}

fn damaged_field(_: DecodeError) -> Fault {
    damaged("the header is truncated")
}
