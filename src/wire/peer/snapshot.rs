//! A snapshot on its way to a follower whose log ends before the leader's begins.
//!
//! Every frame names its transfer: the term, and the tag of the snapshot. What does not belong to the transfer under
//! way changes nothing, on either side.

use super::{finish, framed};
use crate::ids::{Chain, Lsn, Term};
use crate::limits::SNAPSHOT_CHUNK_SIZE_MAX;
use crate::wire::frame::{begin_frame, end_frame};
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Writer};

/// Which snapshot: between which LSNs it was scanned, and the checksum of its file, which tells two of the same LSNs
/// from one another (each node writes entries in an order of its own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTag {
    /// The LSN applied when the scan began: the log goes on behind it.
    pub s: Lsn,
    /// The LSN applied when it ended: the state is exact from there on.
    pub e: Lsn,
    /// The checksum of the file.
    pub crc: u32,
}

/// The leader has no log for the follower, and this in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotOffer {
    /// The term of the session.
    pub term: Term,
    /// The snapshot.
    pub tag: SnapshotTag,
    /// Bytes of its file.
    pub bytes: u64,
    /// Entries in it: how large the follower's table will be.
    pub entries: u64,
}

/// A part of the file. One without bytes is the heartbeat of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotChunk<'a> {
    /// The term of the session.
    pub term: Term,
    /// The snapshot.
    pub tag: SnapshotTag,
    /// Where in the file the bytes begin.
    pub offset: u64,
    /// At most [`SNAPSHOT_CHUNK_SIZE_MAX`].
    pub bytes: &'a [u8],
}

/// How far the follower is: where it wants to go on (to an offer), what it has (to a chunk), that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAck {
    /// The term of the session.
    pub term: Term,
    /// The snapshot.
    pub tag: SnapshotTag,
    /// All bytes before it were received.
    pub offset: u64,
    /// The snapshot is the follower's state, durably: its log goes on behind this LSN, with the chain checksum there.
    pub installed: Option<(Lsn, Chain)>,
}

/// The flag in the trailer of SNAPSHOT_ACK: two fields say where the log goes on.
const INSTALLED: u16 = 1;

impl SnapshotTag {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.s.0);
        out.put_u64(self.e.0);
        out.put_u32(self.crc);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<SnapshotTag, DecodeError> {
        let s = Lsn(reader.u64("snapshot s")?);
        let error = reader.error("snapshot e", DecodeProblem::Invalid(0));
        let e = Lsn(reader.u64("snapshot e")?);
        if s == Lsn::ZERO || e < s {
            return Err(DecodeError { problem: DecodeProblem::Invalid(e.0), ..error });
        }
        Ok(SnapshotTag { s, e, crc: reader.u32("snapshot crc")? })
    }
}

impl std::fmt::Display for SnapshotTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{} ({:08x})", self.s, self.e, self.crc)
    }
}

impl SnapshotOffer {
    /// Appends SNAPSHOT_OFFER.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::SnapshotOffer, |out| {
            out.put_u64(self.term.as_u64());
            self.tag.encode(out);
            out.put_u64(self.bytes);
            out.put_u64(self.entries);
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of SNAPSHOT_OFFER.
    pub fn decode(body: &[u8]) -> Result<SnapshotOffer, DecodeError> {
        let mut reader = Reader::new(body);
        let offer = SnapshotOffer {
            term: Term::from_u64(reader.u64("term")?),
            tag: SnapshotTag::decode(&mut reader)?,
            bytes: reader.u64("file bytes")?,
            entries: reader.u64("entries")?,
        };
        finish(reader)?;
        Ok(offer)
    }
}

impl<'a> SnapshotChunk<'a> {
    /// Appends SNAPSHOT_CHUNK.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let SnapshotChunk { term, tag, offset, bytes } = *self;
        let filled = SnapshotChunk::encode_with(out, (term, tag, offset), bytes.len(), |room| {
            room.copy_from_slice(bytes);
            Ok::<(), std::convert::Infallible>(())
        });
        filled.expect("copying does not fail");
    }

    /// Appends SNAPSHOT_CHUNK with `size` bytes that `fill` writes in place, as from a file. If that fails, nothing
    /// was appended.
    pub fn encode_with<E>(
        out: &mut Vec<u8>,
        (term, tag, offset): (Term, SnapshotTag, u64),
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(size <= SNAPSHOT_CHUNK_SIZE_MAX, "a chunk of {size} bytes is taken by nobody");
        let before = out.len();
        let start = begin_frame(out, MessageType::SnapshotChunk);
        out.put_u64(term.as_u64());
        tag.encode(out);
        out.put_u64(offset);
        out.put_u32(size as u32);
        let at = out.len();
        out.resize(at + size, 0);
        if let Err(error) = fill(&mut out[at..]) {
            out.truncate(before);
            return Err(error);
        }
        out.put_trailer(0, |_| {});
        end_frame(out, start);
        Ok(())
    }

    /// Reads the body of SNAPSHOT_CHUNK.
    pub fn decode(body: &'a [u8]) -> Result<SnapshotChunk<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let chunk = SnapshotChunk {
            term: Term::from_u64(reader.u64("term")?),
            tag: SnapshotTag::decode(&mut reader)?,
            offset: reader.u64("offset")?,
            bytes: reader.bytes32("chunk", SNAPSHOT_CHUNK_SIZE_MAX)?,
        };
        finish(reader)?;
        Ok(chunk)
    }
}

impl SnapshotAck {
    /// Appends SNAPSHOT_ACK.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::SnapshotAck, |out| {
            out.put_u64(self.term.as_u64());
            self.tag.encode(out);
            out.put_u64(self.offset);
            let flags = if self.installed.is_some() { INSTALLED } else { 0 };
            out.put_trailer(flags, |fields| {
                if let Some((lsn, chain)) = self.installed {
                    fields.put_u64(lsn.0);
                    fields.put_u32(chain.0);
                }
            });
        });
    }

    /// Reads the body of SNAPSHOT_ACK.
    pub fn decode(body: &[u8]) -> Result<SnapshotAck, DecodeError> {
        let mut reader = Reader::new(body);
        let mut ack = SnapshotAck {
            term: Term::from_u64(reader.u64("term")?),
            tag: SnapshotTag::decode(&mut reader)?,
            offset: reader.u64("offset")?,
            installed: None,
        };
        let missing = reader.error("trailer", DecodeProblem::Truncated);
        let (flags, mut fields) = reader.trailer()?.ok_or(missing)?;
        if flags & INSTALLED != 0 {
            ack.installed = Some((Lsn(fields.u64("match_lsn")?), Chain(fields.u32("match_chain")?)));
        }
        reader.finish()?;
        Ok(ack)
    }
}
