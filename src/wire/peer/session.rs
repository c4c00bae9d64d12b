//! Opening a session, and asking everybody before a promotion.

use super::{decode_address, finish, finish_with, finish_with_flags, framed};
use crate::ids::{Chain, Lsn, NodeId, Term};
use crate::limits::{PEERS_MAX, TERM_HISTORY_ENTRY_SIZE, TERM_HISTORY_MAX};
use crate::replication::history::{TermHistory, TermStart};
use crate::wire::client::decode_bool;
use crate::wire::{DecodeError, DecodeProblem, MessageType, Reader, Writer};

/// A leader opens a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Its term.
    pub term: Term,
    /// Its identity.
    pub leader: NodeId,
    /// The follower's address as the leader dials it.
    pub your_address: String,
    /// All followers as the leader dials them.
    pub peers: Vec<String>,
    /// The oldest LSN it holds, or the one after `last_lsn` if it holds none. Below it nothing can be sent as records;
    /// the history knows older terms.
    pub first_lsn: Lsn,
    /// The newest LSN it holds.
    pub last_lsn: Lsn,
    /// The chain checksum there.
    pub last_chain: Chain,
    /// Its term history.
    pub history: TermHistory,
    /// The highest LSN that the node at this address has acknowledged to it, in the time it leads.
    pub heard_lsn: Lsn,
    /// Whether it was elected. Then the follower applies what is committed, else what it has on its disk.
    pub elected: bool,
}

/// The follower's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// Its term, equal to the leader's.
    pub term: Term,
    /// The last LSN on which the logs agree; everything up to it is on the follower's disk.
    pub match_lsn: Lsn,
    /// The chain checksum there.
    pub match_chain: Chain,
    /// The highest commit LSN it knows.
    pub commit_lsn: Lsn,
    /// The first LSN it cut away for this session, or 0.
    pub cut_from: Lsn,
    /// It repairs: once it held everything up to here. Or 0.
    pub repair_until: Lsn,
}

/// A node about to lead asks where everybody stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Only ask; change nothing.
    pub probe: bool,
    /// The term it wants to lead in.
    pub term: Term,
    /// Its identity.
    pub candidate: NodeId,
    /// Where it listens.
    pub address: String,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceReply {
    /// Whether the term was made durable (of a probe: could be).
    pub accepted: bool,
    /// The highest term known now.
    pub term: Term,
    /// The term of the last record.
    pub last_term: Term,
    /// The last LSN, on disk.
    pub last_lsn: Lsn,
    /// The highest commit LSN known.
    pub commit_lsn: Lsn,
    /// Whether the node led until now.
    pub leads: bool,
    /// It repairs: once it held everything up to here, in no higher a term than this. Or 0 in term 0.
    pub repair: (Term, Lsn),
    /// Whether its state is exact. One that came from a snapshot is from the snapshot's end on, and before that it is
    /// nobody to promote.
    pub complete: bool,
}

/// The flag in the trailer of OPEN of a leader that was elected.
const LEADER_ELECTED: u16 = 1;
/// The flag in the trailer of FENCE_REPLY of a node whose state is not complete.
const STATE_INCOMPLETE: u16 = 1;

impl Open {
    /// Appends OPEN.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Open, |out| {
            out.put_u64(self.term.as_u64());
            out.extend_from_slice(&self.leader.0);
            out.put_bytes16(self.your_address.as_bytes());
            out.put_u16(self.peers.len() as u16);
            self.peers.iter().for_each(|peer| out.put_bytes16(peer.as_bytes()));
            out.put_u64(self.first_lsn.0);
            out.put_u64(self.last_lsn.0);
            out.put_u32(self.last_chain.0);
            out.put_u32(self.history.starts().len() as u32);
            for start in self.history.starts() {
                out.put_u64(start.term.as_u64());
                out.extend_from_slice(&start.leader.0);
                out.put_u64(start.first_lsn.0);
                out.put_u32(start.chain.0);
            }
            let flags = if self.elected { LEADER_ELECTED } else { 0 };
            out.put_trailer(flags, |fields| fields.put_u64(self.heard_lsn.0));
        });
    }

    /// Reads the body of OPEN.
    pub fn decode(body: &[u8]) -> Result<Open, DecodeError> {
        let mut reader = Reader::new(body);
        let term = Term::from_u64(reader.u64("term")?);
        let leader = NodeId(reader.array("leader_id")?);
        let your_address = decode_address(&mut reader, "your address")?;
        let peers = decode_list(
            &mut reader,
            "peers",
            (PEERS_MAX, 2),
            |reader, _| reader.u16("peer count").map(u32::from),
            |reader| decode_address(reader, "peer"),
        )?;
        let log_error = reader.error("first_lsn", DecodeProblem::Invalid(0));
        let first_lsn = Lsn(reader.u64("first_lsn")?);
        let last_lsn = Lsn(reader.u64("last_lsn")?);
        if first_lsn.0.saturating_sub(1) > last_lsn.0 {
            return Err(DecodeError { problem: DecodeProblem::Invalid(first_lsn.0), ..log_error });
        }
        let last_chain = Chain(reader.u32("last_chain")?);
        let history_error = reader.error("term history", DecodeProblem::Invalid(0));
        let limits = (TERM_HISTORY_MAX, TERM_HISTORY_ENTRY_SIZE);
        let starts = decode_list(&mut reader, "term history", limits, Reader::u32, |reader| {
            Ok(TermStart {
                term: Term::from_u64(reader.u64("history term")?),
                leader: NodeId(reader.array("history leader")?),
                first_lsn: Lsn(reader.u64("history lsn")?),
                chain: Chain(reader.u32("history chain")?),
            })
        })?;
        let history = TermHistory::from_starts(starts).ok_or(history_error)?;
        if history.last().is_some_and(|last| last.first_lsn > last_lsn || last.term > term) {
            return Err(history_error);
        }
        let (flags, [heard_lsn]) = finish_with_flags(reader, ["heard_lsn"])?;
        let (heard_lsn, elected) = (Lsn(heard_lsn), flags & LEADER_ELECTED != 0);
        Ok(Open {
            term,
            leader,
            your_address,
            peers,
            first_lsn,
            last_lsn,
            last_chain,
            history,
            heard_lsn,
            elected,
        })
    }
}

/// A counted list of at most `count_max` entries, each of at least `entry_size_min` bytes; nothing is allocated for
/// entries that cannot be there.
pub(super) fn decode_list<'a, T>(
    reader: &mut Reader<'a>,
    field: &'static str,
    (count_max, entry_size_min): (usize, usize),
    read_count: impl FnOnce(&mut Reader<'a>, &'static str) -> Result<u32, DecodeError>,
    mut read_entry: impl FnMut(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let error = reader.error(field, DecodeProblem::Truncated);
    let count = read_count(reader, field)? as usize;
    if count > count_max {
        let problem = DecodeProblem::TooLarge { value: count as u64, limit: count_max as u64 };
        return Err(DecodeError { problem, ..error });
    }
    let mut entries = Vec::with_capacity(count.min(reader.left() / entry_size_min));
    for _ in 0..count {
        entries.push(read_entry(reader)?);
    }
    Ok(entries)
}

impl OpenReply {
    /// Appends OPEN_REPLY.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::OpenReply, |out| {
            out.put_u64(self.term.as_u64());
            out.put_u64(self.match_lsn.0);
            out.put_u32(self.match_chain.0);
            out.put_u64(self.commit_lsn.0);
            out.put_u64(self.cut_from.0);
            out.put_trailer(0, |fields| fields.put_u64(self.repair_until.0));
        });
    }

    /// Reads the body of OPEN_REPLY.
    pub fn decode(body: &[u8]) -> Result<OpenReply, DecodeError> {
        let mut reader = Reader::new(body);
        let mut reply = OpenReply {
            term: Term::from_u64(reader.u64("term")?),
            match_lsn: Lsn(reader.u64("match_lsn")?),
            match_chain: Chain(reader.u32("match_chain")?),
            commit_lsn: Lsn(reader.u64("commit_lsn")?),
            cut_from: Lsn(reader.u64("cut_from")?),
            repair_until: Lsn::ZERO,
        };
        let [repair_until] = finish_with(reader, ["repair_until"])?;
        reply.repair_until = Lsn(repair_until);
        Ok(reply)
    }
}

impl Fence {
    /// Appends FENCE.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Fence, |out| {
            out.put_u8(self.probe.into());
            out.put_u64(self.term.as_u64());
            out.extend_from_slice(&self.candidate.0);
            out.put_bytes16(self.address.as_bytes());
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of FENCE.
    pub fn decode(body: &[u8]) -> Result<Fence, DecodeError> {
        let mut reader = Reader::new(body);
        let fence = Fence {
            probe: decode_bool(&mut reader, "probe")?,
            term: Term::from_u64(reader.u64("term")?),
            candidate: NodeId(reader.array("candidate_id")?),
            address: decode_address(&mut reader, "candidate address")?,
        };
        finish(reader)?;
        Ok(fence)
    }
}

impl FenceReply {
    /// Appends FENCE_REPLY.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::FenceReply, |out| {
            out.put_u8(self.accepted.into());
            out.put_u64(self.term.as_u64());
            out.put_u64(self.last_term.as_u64());
            out.put_u64(self.last_lsn.0);
            out.put_u64(self.commit_lsn.0);
            out.put_u8(self.leads.into());
            out.put_trailer(if self.complete { 0 } else { STATE_INCOMPLETE }, |fields| {
                fields.put_u64(self.repair.1.0);
                fields.put_u64(self.repair.0.as_u64());
            });
        });
    }

    /// Reads the body of FENCE_REPLY.
    pub fn decode(body: &[u8]) -> Result<FenceReply, DecodeError> {
        let mut reader = Reader::new(body);
        let mut reply = FenceReply {
            accepted: decode_bool(&mut reader, "accepted")?,
            term: Term::from_u64(reader.u64("term")?),
            last_term: Term::from_u64(reader.u64("last_term")?),
            last_lsn: Lsn(reader.u64("last_lsn")?),
            commit_lsn: Lsn(reader.u64("commit_lsn")?),
            leads: decode_bool(&mut reader, "leads")?,
            repair: (Term::ZERO, Lsn::ZERO),
            complete: true,
        };
        let (flags, [until, term]) = finish_with_flags(reader, ["repair_until", "repair_term"])?;
        reply.complete = flags & STATE_INCOMPLETE == 0;
        reply.repair = (Term::from_u64(term), Lsn(until));
        Ok(reply)
    }
}
