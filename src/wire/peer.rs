//! What nodes say to each other.
//!
//! ```text
//! HELLO, HELLO_REPLY = [version_min u16][version_max u16][features u64][cmd_types u64][cluster_id 16]
//!                      [node_id 16][term u64][address_len u16][address][leader_id 16]
//!                      [leader_address_len u16][leader_address][auth_len u16][auth] trailer
//! REFUSE             = [code u16][term u64][leader_id 16][address_len u16][leader address]
//!                      [message_len u16][message] trailer
//! OPEN               = [term u64][leader_id 16][your_address][address_count u16][address]...
//!                      [first_lsn u64][last_lsn u64][last_chain u32][start_count u32]
//!                      [term u64, leader_id 16, first_lsn u64, chain u32]... trailer
//! OPEN_REPLY         = [term u64][match_lsn u64][match_chain u32][commit_lsn u64][cut_from u64] trailer
//! FENCE              = [probe u8][term u64][candidate_id 16][candidate address] trailer
//! FENCE_REPLY        = [verdict u8][term u64][last_term u64][last_lsn u64][commit_lsn u64][leads u8] trailer
//! APPEND_ENTRIES     = [num_records u32][record]... trailer(flags: bit 0 in sync)
//!                      [commit_lsn u64][round u64][chain u32]
//! APPEND_ENTRIES_ACK = [last_lsn u64] trailer [round u64][decode_ns u32][write_ns u32][sync_ns u32]
//! ```
//!
//! `chain` in APPEND_ENTRIES is the chain checksum at the last record of the frame (of a heartbeat: at the
//! last record sent). A follower compares it before it appends, so a frame that was damaged on its way, or
//! a log that is not the leader's, never reaches a disk.

use super::client::decode_bool;
use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use super::frame::{begin_frame, end_frame};
use super::message_type::MessageType;
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, AUTH_SIZE_MAX, PEERS_MAX, TERM_HISTORY_ENTRY_SIZE, TERM_HISTORY_MAX};
use crate::replication::history::{TermHistory, TermStart};

/// The oldest and newest version of the peer protocol spoken here.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);

/// A node introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest and highest protocol version it speaks.
    pub versions: (u16, u16),
    /// Feature bits; none is defined yet, unknown ones are ignored.
    pub features: u64,
    /// Bit n: it can apply `cmd_type` n.
    pub cmd_types: u64,
    /// Its cluster, or none yet.
    pub cluster_id: ClusterId,
    /// Its identity.
    pub node_id: NodeId,
    /// The highest term it knows.
    pub term: Term,
    /// Where it listens; an empty host (`:PORT`) means "the address you see me come from".
    pub address: String,
    /// Who leads in that term as far as it knows, or none.
    pub leader: NodeId,
    /// Where that one listens, or empty.
    pub leader_address: String,
    /// Opaque authentication data; empty today.
    pub auth: Vec<u8>,
}

/// Why a node refuses another, as a number that code can act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefuseCode {
    /// No protocol version in common.
    Version = 1,
    /// Another cluster.
    Cluster = 2,
    /// The node is its own peer, or two nodes have one id.
    Identity = 3,
    /// A higher term is known; `term` and `leader` say which.
    StaleTerm = 4,
    /// Another leader in the same term.
    TwoLeaders = 5,
    /// The node leads or led, and needs an operator's `follow`.
    NotFollower = 6,
    /// Checksums disagree at a shared LSN.
    Disagreement = 7,
    /// The match LSN lies below what is committed here.
    CutBelowCommit = 8,
    /// The session was replaced or misused.
    Session = 9,
    /// A record type this node cannot apply.
    CmdType = 10,
    /// The log does not reach back to what is needed.
    LogTooShort = 11,
    /// The node is ending.
    ShuttingDown = 12,
    /// Anything a later version adds.
    Other = 0xffff,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why.
    pub code: RefuseCode,
    /// The term of the one who refuses.
    pub term: Term,
    /// Who leads as far as it knows, or none.
    pub leader: NodeId,
    /// Where that one listens, or empty.
    pub leader_address: String,
    /// Why, and what to do next, for a person.
    pub message: String,
}

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
    /// The oldest LSN it holds.
    pub first_lsn: Lsn,
    /// The newest LSN it holds.
    pub last_lsn: Lsn,
    /// The chain checksum there.
    pub last_chain: Chain,
    /// Its term history.
    pub history: TermHistory,
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
}

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

fn framed(out: &mut Vec<u8>, message_type: MessageType, body: impl FnOnce(&mut Vec<u8>)) {
    let start = begin_frame(out, message_type);
    body(out);
    end_frame(out, start);
}

fn finish(mut reader: Reader<'_>) -> Result<(), DecodeError> {
    reader.trailer()?;
    reader.finish()
}

fn decode_address(reader: &mut Reader<'_>, field: &'static str) -> Result<String, DecodeError> {
    Ok(reader.text16(field, ADDRESS_SIZE_MAX)?.to_owned())
}

impl Hello {
    /// Appends HELLO (`reply` false) or HELLO_REPLY.
    pub fn encode(&self, reply: bool, out: &mut Vec<u8>) {
        framed(out, if reply { MessageType::HelloReply } else { MessageType::Hello }, |out| {
            out.put_u16(self.versions.0);
            out.put_u16(self.versions.1);
            out.put_u64(self.features);
            out.put_u64(self.cmd_types);
            out.extend_from_slice(&self.cluster_id.0);
            out.extend_from_slice(&self.node_id.0);
            out.put_u64(self.term.as_u64());
            out.put_bytes16(self.address.as_bytes());
            out.extend_from_slice(&self.leader.0);
            out.put_bytes16(self.leader_address.as_bytes());
            out.put_bytes16(&self.auth);
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of HELLO or HELLO_REPLY. Only the two versions are read first: the rest of another
    /// version's hello may look different, and `Err` then stands beside versions that do not overlap.
    pub fn decode(body: &[u8]) -> Result<Hello, HelloError> {
        let mut reader = Reader::new(body);
        let versions = (
            reader.u16("version_min").map_err(HelloError::Malformed)?,
            reader.u16("version_max").map_err(HelloError::Malformed)?,
        );
        if common_version(versions).is_none() {
            return Err(HelloError::Version { theirs: versions });
        }
        Hello::decode_rest(versions, reader).map_err(HelloError::Malformed)
    }

    fn decode_rest(versions: (u16, u16), mut reader: Reader<'_>) -> Result<Hello, DecodeError> {
        let hello = Hello {
            versions,
            features: reader.u64("features")?,
            cmd_types: reader.u64("cmd_types")?,
            cluster_id: ClusterId(reader.array("cluster_id")?),
            node_id: NodeId(reader.array("node_id")?),
            term: Term::from_u64(reader.u64("term")?),
            address: decode_address(&mut reader, "address")?,
            leader: NodeId(reader.array("leader_id")?),
            leader_address: decode_address(&mut reader, "leader address")?,
            auth: reader.bytes16("auth", AUTH_SIZE_MAX)?.to_vec(),
        };
        finish(reader)?;
        Ok(hello)
    }
}

/// Why a hello is refused before its sender is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// No version in common.
    Version {
        /// Their range.
        theirs: (u16, u16),
    },
    /// Not a hello at all.
    Malformed(DecodeError),
}

/// The highest version both speak.
pub fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let highest = theirs.1.min(PROTOCOL_VERSIONS.1);
    (highest >= theirs.0.max(PROTOCOL_VERSIONS.0)).then_some(highest)
}

impl RefuseCode {
    fn from_u16(raw: u16) -> RefuseCode {
        use RefuseCode::*;
        let all = [
            Version,
            Cluster,
            Identity,
            StaleTerm,
            TwoLeaders,
            NotFollower,
            Disagreement,
            CutBelowCommit,
            Session,
            CmdType,
            LogTooShort,
            ShuttingDown,
        ];
        all.into_iter().find(|code| *code as u16 == raw).unwrap_or(Other)
    }
}

impl Refuse {
    /// Appends REFUSE.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::Refuse, |out| {
            out.put_u16(self.code as u16);
            out.put_u64(self.term.as_u64());
            out.extend_from_slice(&self.leader.0);
            out.put_bytes16(self.leader_address.as_bytes());
            out.put_bytes16(self.message.as_bytes());
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of REFUSE.
    pub fn decode(body: &[u8]) -> Result<Refuse, DecodeError> {
        let mut reader = Reader::new(body);
        let refuse = Refuse {
            code: RefuseCode::from_u16(reader.u16("code")?),
            term: Term::from_u64(reader.u64("term")?),
            leader: NodeId(reader.array("leader_id")?),
            leader_address: decode_address(&mut reader, "leader address")?,
            message: reader.text16("message", usize::from(u16::MAX))?.to_owned(),
        };
        finish(reader)?;
        Ok(refuse)
    }
}

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
            out.put_trailer(0, |_| {});
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
        let first_lsn = Lsn(reader.u64("first_lsn")?);
        let last_lsn = Lsn(reader.u64("last_lsn")?);
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
        finish(reader)?;
        Ok(Open { term, leader, your_address, peers, first_lsn, last_lsn, last_chain, history })
    }
}

/// A counted list of at most `count_max` entries, each of at least `entry_size_min` bytes; nothing is allocated for
/// entries that cannot be there.
fn decode_list<'a, T>(
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
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of OPEN_REPLY.
    pub fn decode(body: &[u8]) -> Result<OpenReply, DecodeError> {
        let mut reader = Reader::new(body);
        let reply = OpenReply {
            term: Term::from_u64(reader.u64("term")?),
            match_lsn: Lsn(reader.u64("match_lsn")?),
            match_chain: Chain(reader.u32("match_chain")?),
            commit_lsn: Lsn(reader.u64("commit_lsn")?),
            cut_from: Lsn(reader.u64("cut_from")?),
        };
        finish(reader)?;
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
            out.put_trailer(0, |_| {});
        });
    }

    /// Reads the body of FENCE_REPLY.
    pub fn decode(body: &[u8]) -> Result<FenceReply, DecodeError> {
        let mut reader = Reader::new(body);
        let reply = FenceReply {
            accepted: decode_bool(&mut reader, "accepted")?,
            term: Term::from_u64(reader.u64("term")?),
            last_term: Term::from_u64(reader.u64("last_term")?),
            last_lsn: Lsn(reader.u64("last_lsn")?),
            commit_lsn: Lsn(reader.u64("commit_lsn")?),
            leads: decode_bool(&mut reader, "leads")?,
        };
        finish(reader)?;
        Ok(reply)
    }
}

impl<'a> AppendEntries<'a> {
    /// Appends the frame around records that are encoded already.
    pub fn encode(&self, out: &mut Vec<u8>) {
        framed(out, MessageType::AppendEntries, |out| {
            out.put_u32(self.record_count);
            out.extend_from_slice(self.records);
            out.put_trailer(self.tail.in_sync.into(), |fields| {
                fields.put_u64(self.tail.commit_lsn.0);
                fields.put_u64(self.tail.round);
                fields.put_u32(self.tail.chain.0);
            });
        });
    }

    /// Reads the body of APPEND_ENTRIES. The records are walked by the caller, record by record, through
    /// `each`; the first error ends it and nothing of the frame counts.
    pub fn decode(
        body: &'a [u8],
        mut each: impl FnMut(super::Record<'a>, &'a [u8]) -> Result<(), DecodeError>,
    ) -> Result<AppendEntries<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let record_count = reader.u32("num_records")?;
        let records_start = reader.position();
        for _ in 0..record_count {
            let start = reader.position();
            let record = super::Record::decode(&mut reader)?;
            each(record, &body[start..reader.position()])?;
        }
        let records = &body[records_start..reader.position()];
        let missing = reader.error("trailer", DecodeProblem::Truncated);
        let (flags, mut fields) = reader.trailer()?.ok_or(missing)?;
        let tail = AppendTail {
            in_sync: flags & 1 != 0,
            commit_lsn: Lsn(fields.u64("commit_lsn")?),
            round: fields.u64("round")?,
            chain: Chain(fields.u32("chain")?),
        };
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
        reader.finish()?;
        Ok(Ack { last_lsn, round, spent })
    }
}
