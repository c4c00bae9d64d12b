//! Records on their way, and their acknowledgement.

use super::framed;
use crate::ids::{Chain, Lsn};
use crate::limits::FRAME_SLACK;
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Record, Writer};

const FLAG_IN_SYNC: u16 = 1;
const FLAG_OUTVOTED: u16 = 2;

/// The frame around records, as the leader sends it. The records stand between head and tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendEntries<'a> {
    /// How many records.
    pub record_count: u32,
    /// Their bytes, one after the other, not yet decoded.
    pub records: &'a [u8],
    /// Trailer.
    pub tail: AppendTail,
}

/// The trailer of APPEND_ENTRIES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendTail {
    /// Whether the follower is in the in-sync set.
    pub in_sync: bool,
    /// The highest LSN the leader knows to be committed.
    pub commit_lsn: Lsn,
    /// Echoed in the ACK.
    pub round: u64,
    /// The chain checksum at the last record sent.
    pub chain: Chain,
    /// About the follower's state.
    pub state: StateNews,
}

/// What a leader asks, and has found, about its follower's state. See [`crate::replication::divergence`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateNews {
    /// The hash of the state at this LSN is wanted; it is not below the last LSN sent. 0: none is.
    pub ask_lsn: Lsn,
    /// The last LSN at which it was equal to the leader's; or 0.
    pub equal_lsn: Lsn,
    /// The first LSN behind that at which it was another; or 0.
    pub differs_lsn: Lsn,
    /// A majority has the same state, and this follower another.
    pub outvoted: bool,
}

/// Every record up to `last_lsn` equals the leader's and is on this disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The last durable LSN.
    pub last_lsn: Lsn,
    /// The newest round received.
    pub round: u64,
    /// What the follower spent on the records acknowledged, in nanoseconds, saturating at 4.29 s.
    pub spent: AckDurations,
    /// The answer to the leader's question for its state.
    pub state: Option<StateAt>,
}

/// The hash of a state, and the LSN whose state it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateAt {
    /// The last record applied; not 0.
    pub lsn: Lsn,
    /// [`crate::keyspace::Keyspace::state_hash`] there.
    pub hash: u128,
}

/// The follower's own share of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckDurations {
    /// Decoding and checking the frame.
    pub decode_ns: u32,
    /// Writing the batch into the log file.
    pub write_ns: u32,
    /// `fdatasync`.
    pub sync_ns: u32,
}

impl<'a> AppendEntries<'a> {
    /// Appends the frame around records that are encoded already.
    pub fn encode(&self, out: &mut Vec<u8>) {
        // All of it at once: records and then a few bytes more would be copied a second time for those few.
        out.reserve(self.records.len() + FRAME_SLACK);
        framed(out, MessageType::AppendEntries, |out| {
            out.put_u32(self.record_count);
            out.extend_from_slice(self.records);
            let state = &self.tail.state;
            let flags =
                u16::from(self.tail.in_sync) * FLAG_IN_SYNC + u16::from(state.outvoted) * FLAG_OUTVOTED;
            out.put_trailer(flags, |fields| {
                fields.put_u64(self.tail.commit_lsn.0);
                fields.put_u64(self.tail.round);
                fields.put_u32(self.tail.chain.0);
                fields.put_u64(state.ask_lsn.0);
                fields.put_u64(state.equal_lsn.0);
                fields.put_u64(state.differs_lsn.0);
            });
        });
    }

    /// Reads the body of APPEND_ENTRIES. The records are walked by the caller, record by record, through
    /// `each`; the first error ends it and nothing of the frame counts.
    pub fn decode(
        body: &'a [u8],
        mut each: impl FnMut(Record<'a>, &'a [u8]) -> Result<(), DecodeError>,
    ) -> Result<AppendEntries<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let record_count = reader.u32("num_records")?;
        let records_start = reader.position();
        for _ in 0..record_count {
            let start = reader.position();
            let record = Record::decode(&mut reader)?;
            each(record, &body[start..reader.position()])?;
        }
        let records = &body[records_start..reader.position()];
        let missing = reader.error("trailer", DecodeProblem::Truncated);
        let (flags, mut fields) = reader.trailer()?.ok_or(missing)?;
        let mut tail = AppendTail {
            in_sync: flags & FLAG_IN_SYNC != 0,
            commit_lsn: Lsn(fields.u64("commit_lsn")?),
            round: fields.u64("round")?,
            chain: Chain(fields.u32("chain")?),
            state: StateNews { outvoted: flags & FLAG_OUTVOTED != 0, ..StateNews::default() },
        };
        if fields.left() > 0 {
            tail.state.ask_lsn = Lsn(fields.u64("ask_lsn")?);
            tail.state.equal_lsn = Lsn(fields.u64("equal_lsn")?);
            tail.state.differs_lsn = Lsn(fields.u64("differs_lsn")?);
        }
        reader.finish()?;
        Ok(AppendEntries { record_count, records, tail })
    }
}

impl Ack {
    /// Appends APPEND_ENTRIES_ACK.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::AppendEntriesAck, |out| {
            out.put_u64(self.last_lsn.0);
            out.put_trailer(0, |fields| {
                fields.put_u64(self.round);
                fields.put_u32(self.spent.decode_ns);
                fields.put_u32(self.spent.write_ns);
                fields.put_u32(self.spent.sync_ns);
                let StateAt { lsn, hash } = self.state.unwrap_or(StateAt { lsn: Lsn::ZERO, hash: 0 });
                fields.put_u64(lsn.0);
                fields.put_u64((hash >> 64) as u64);
                fields.put_u64(hash as u64);
            });
        });
    }

    /// Reads the body of APPEND_ENTRIES_ACK.
    pub fn decode(body: &[u8]) -> Result<Ack, DecodeError> {
        let mut reader = Reader::new(body);
        let last_lsn = Lsn(reader.u64("last_lsn")?);
        let missing = reader.error("trailer", DecodeProblem::Truncated);
        let (_, mut fields) = reader.trailer()?.ok_or(missing)?;
        let round = fields.u64("round")?;
        let spent = AckDurations {
            decode_ns: fields.u32("decode_ns")?,
            write_ns: fields.u32("write_ns")?,
            sync_ns: fields.u32("sync_ns")?,
        };
        let mut state = None;
        if fields.left() > 0 {
            let lsn = Lsn(fields.u64("state_lsn")?);
            let (high, low) = (fields.u64("state_hash")?, fields.u64("state_hash")?);
            let hash = u128::from(high) << 64 | u128::from(low);
            state = (lsn > Lsn::ZERO).then_some(StateAt { lsn, hash });
        }
        reader.finish()?;
        Ok(Ack { last_lsn, round, spent, state })
    }
}
