//! What clients and operators ask, and how a node answers.
//!
//! ```text
//! PUT     = [key_len u32][key][value_len u32][value] options
//! GET     = [key_len u32][key] options
//! DELETE  = [key_len u32][key] options
//! PING    = options
//! STATUS  = options
//! PROMOTE = [force u8] options
//! FOLLOW  = [discard u8][address_len u16][address] options
//! INSPECT = [what u8][argument u64] options
//! TRANSFER = [address_len u16][address] options      no address: to the follower that holds most
//! CHANGE_MEMBERS = [what u8][address_len u16][address] options      0: remove, 1: add
//! SNAPSHOT = [wait u8] options
//! BACKUP  = [step u8] options      0: begin, 1: begin with the newest snapshot, 2: the next part
//! OPEN_SESSION = options
//! REPLY   = [status u8][lsn u64][term u64][payload_len u32][payload] trailer
//! ```
//!
//! The LSN of a reply is where it was served: a write's own, for a read the last one applied.
//! Options of a PUT: flag bit 0 asks for its receipt. Of a GET: bit 0, 1 or 2 asks for a way of reading (lease, quorum,
//! local). The answer to a local read has `[age_ms u64]` in its trailer, and flag bit 0 if that is known.
//! Of a PUT or DELETE: flag bit 1 says that it is numbered (see `numbered`).
//! The payload is the value (GET), a JSON document (STATUS, INSPECT, PROMOTE, TRANSFER, CHANGE_MEMBERS, SNAPSHOT, the
//! begin of a BACKUP, a PUT with its receipt), a session's id (OPEN_SESSION), bytes of the file (the parts of a BACKUP;
//! none: that was all), an address (NOT_LEADER), else a message. A node that is loading its state says so in its answer
//! to a PING.

use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use super::frame::{begin_frame, end_frame};
use super::message_type::MessageType;
use super::numbered::{NUMBERED, decode_numbered, encode_numbered};
pub use super::numbered::{WriteOp, decode_session_id, encode_session_id};
pub use super::status::Status;
use crate::ids::{Lsn, SessionId, Term};
use crate::limits::{ADDRESS_SIZE_MAX, FRAME_SIZE_MAX, KEY_SIZE_MAX, KEY_SIZE_MIN, VALUE_SIZE_MAX};
pub use crate::replication::election::reads::ReadMode;

/// A request as it arrived, sizes not yet judged: a key or value beyond its limit is the client's outcome
/// (`TooLarge`), not a reason to close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Set a key.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Set a key, and tell where the time went.
    PutExplained {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Read a key.
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// Read a key, in another way than the node reads by default.
    GetWith {
        /// The key.
        key: &'a [u8],
        /// In which.
        reads: ReadMode,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Are you there?
    Ping,
    /// The node's state.
    Status,
    /// Fence, compare, then lead.
    Promote {
        /// Lead even where writes may be lost by it.
        force: bool,
    },
    /// Stop leading and follow.
    Follow {
        /// Whom.
        address: &'a str,
        /// Allow one cut below the commit LSN.
        discard: bool,
    },
    /// Hand leadership over.
    Transfer {
        /// To whom, or empty: to the follower that holds most.
        address: &'a str,
    },
    /// Change who votes, by one member.
    ChangeMembers {
        /// Add it; else remove it.
        add: bool,
        /// Whom.
        address: &'a str,
    },
    /// Where time and system calls went.
    Inspect(Inspect),
    /// Make a snapshot.
    Snapshot {
        /// Answer when it is durable, not when it is begun.
        wait: bool,
    },
    /// Make a backup, or send a part of the one that this connection has begun.
    Backup(BackupStep),
    /// Begin a session in which writes are numbered.
    OpenSession,
    /// A write that is executed once, however often it is asked for.
    Numbered {
        /// In which session.
        session: SessionId,
        /// Which of its writes: 1, 2, 3, ...
        number: u64,
        /// What to do.
        write: WriteOp<'a>,
    },
}

/// What a BACKUP asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupStep {
    /// One with a snapshot that is made for it; answered when that is durable.
    Begin,
    /// One with the newest snapshot there is.
    BeginNewest,
    /// The bytes that come next. Each is asked for when the one before has come: nothing is read ahead.
    Next,
}

/// The flag of a PUT's options that asks for its receipt.
const PUT_EXPLAIN: u16 = 1;
/// The flags of a GET's options: how it is to be read. None of them: as the node does by default.
const GET_READS: [(u16, ReadMode); 3] = [(1, ReadMode::Lease), (2, ReadMode::Quorum), (4, ReadMode::Local)];
/// The flag in the trailer of a REPLY that tells its age.
const REPLY_AGE: u16 = 1;

/// What an INSPECT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// The receipt of a write among the last 4,096.
    Receipt(Lsn),
    /// The receipts of the slowest writes; how many.
    Slowest(u64),
    /// What the slowest writes have in common: those above this percentile, in millionths (999_000 is p99.9).
    Tail(u64),
    /// The histograms.
    Latency,
    /// The ledger of system calls.
    Syscalls,
    /// Forget histograms and slowest writes.
    Reset,
}

impl Inspect {
    fn code(self) -> (u8, u64) {
        match self {
            Inspect::Receipt(lsn) => (1, lsn.0),
            Inspect::Slowest(count) => (2, count),
            Inspect::Tail(millionths) => (3, millionths),
            Inspect::Latency => (4, 0),
            Inspect::Syscalls => (5, 0),
            Inspect::Reset => (6, 0),
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Inspect, DecodeError> {
        let error = reader.error("what to inspect", DecodeProblem::Truncated);
        let what = reader.u8("what to inspect")?;
        let argument = reader.u64("argument")?;
        match what {
            1 => Ok(Inspect::Receipt(Lsn(argument))),
            2 => Ok(Inspect::Slowest(argument)),
            3 => Ok(Inspect::Tail(argument)),
            4 => Ok(Inspect::Latency),
            5 => Ok(Inspect::Syscalls),
            6 => Ok(Inspect::Reset),
            other => Err(DecodeError { problem: DecodeProblem::Invalid(other.into()), ..error }),
        }
    }
}

impl BackupStep {
    fn decode(reader: &mut Reader<'_>) -> Result<BackupStep, DecodeError> {
        let error = reader.error("step of a backup", DecodeProblem::Truncated);
        match reader.u8("step of a backup")? {
            0 => Ok(BackupStep::Begin),
            1 => Ok(BackupStep::BeginNewest),
            2 => Ok(BackupStep::Next),
            other => Err(DecodeError { problem: DecodeProblem::Invalid(other.into()), ..error }),
        }
    }
}

/// A node's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// How the request ended.
    pub status: Status,
    /// The LSN it was served at.
    pub lsn: Lsn,
    /// The node's term.
    pub term: Term,
    /// What the status says it is.
    pub payload: &'a [u8],
}

/// Why a key or value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeProblem {
    /// "key" or "value".
    pub what: &'static str,
    /// Its size in bytes.
    pub size: usize,
}

impl std::fmt::Display for SizeProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (min, max) = if self.what == "key" { (KEY_SIZE_MIN, KEY_SIZE_MAX) } else { (0, VALUE_SIZE_MAX) };
        write!(f, "{} of {} bytes; allowed are {min} to {max} bytes", self.what, self.size)
    }
}

impl<'a> Request<'a> {
    /// Reads the body of a request. `Ok(None)`: not a request's type.
    pub fn decode(message_type: MessageType, body: &'a [u8]) -> Result<Option<Request<'a>>, DecodeError> {
        let mut reader = Reader::new(body);
        let request = match message_type {
            MessageType::Put => Request::Put {
                key: reader.bytes32("key", FRAME_SIZE_MAX)?,
                value: reader.bytes32("value", FRAME_SIZE_MAX)?,
            },
            MessageType::Get => Request::Get { key: reader.bytes32("key", FRAME_SIZE_MAX)? },
            MessageType::Delete => Request::Delete { key: reader.bytes32("key", FRAME_SIZE_MAX)? },
            MessageType::Ping => Request::Ping,
            MessageType::Status => Request::Status,
            MessageType::Promote => Request::Promote { force: decode_bool(&mut reader, "force")? },
            MessageType::Follow => {
                let discard = decode_bool(&mut reader, "discard")?;
                Request::Follow { address: reader.text16("address", ADDRESS_SIZE_MAX)?, discard }
            }
            MessageType::Transfer => {
                Request::Transfer { address: reader.text16("address", ADDRESS_SIZE_MAX)? }
            }
            MessageType::ChangeMembers => {
                let add = decode_bool(&mut reader, "what")?;
                Request::ChangeMembers { add, address: reader.text16("address", ADDRESS_SIZE_MAX)? }
            }
            MessageType::Inspect => Request::Inspect(Inspect::decode(&mut reader)?),
            MessageType::Snapshot => Request::Snapshot { wait: decode_bool(&mut reader, "wait")? },
            MessageType::Backup => Request::Backup(BackupStep::decode(&mut reader)?),
            MessageType::OpenSession => Request::OpenSession,
            _ => return Ok(None),
        };
        // A client of a later version may send options that are not known here.
        let (flags, mut fields) = reader.trailer()?.unwrap_or((0, Reader::new(&[])));
        reader.finish()?;
        Ok(Some(match request {
            Request::Put { key, value } if flags & NUMBERED != 0 => {
                decode_numbered(&mut fields, WriteOp::Put { key, value })?
            }
            Request::Delete { key } if flags & NUMBERED != 0 => {
                decode_numbered(&mut fields, WriteOp::Delete { key })?
            }
            Request::Get { key } => match GET_READS.iter().find(|(flag, _)| flags & flag != 0) {
                Some((_, reads)) => Request::GetWith { key, reads: *reads },
                None => request,
            },
            Request::Put { key, value } if flags & PUT_EXPLAIN != 0 => Request::PutExplained { key, value },
            request => request,
        }))
    }

    /// Appends the request as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin_frame(out, self.message_type());
        match self {
            Request::Put { key, value } => {
                out.put_bytes32(key);
                out.put_bytes32(value);
            }
            Request::PutExplained { key, value } => {
                out.put_bytes32(key);
                out.put_bytes32(value);
                out.put_trailer(PUT_EXPLAIN, |_| {});
            }
            Request::Get { key } | Request::Delete { key } => out.put_bytes32(key),
            Request::GetWith { key, reads } => {
                out.put_bytes32(key);
                let (flag, _) = GET_READS.iter().find(|(_, mode)| mode == reads).expect("each has a flag");
                out.put_trailer(*flag, |_| {});
            }
            Request::Inspect(inspect) => {
                let (what, argument) = inspect.code();
                out.put_u8(what);
                out.put_u64(argument);
            }
            Request::Ping | Request::Status | Request::OpenSession => {}
            Request::Numbered { session, number, write } => {
                encode_numbered(out, *session, *number, write);
            }
            Request::Backup(step) => out.put_u8(*step as u8),
            Request::Promote { force: flag } | Request::Snapshot { wait: flag } => out.put_u8((*flag).into()),
            Request::Transfer { address } => out.put_bytes16(address.as_bytes()),
            Request::Follow { address, discard: flag } | Request::ChangeMembers { address, add: flag } => {
                out.put_u8((*flag).into());
                out.put_bytes16(address.as_bytes());
            }
        }
        end_frame(out, start);
    }

    /// The key or value that is beyond its limits, if one is.
    pub fn size_problem(&self) -> Option<SizeProblem> {
        let (key, value): (&[u8], &[u8]) = match self {
            Request::Put { key, value }
            | Request::PutExplained { key, value }
            | Request::Numbered { write: WriteOp::Put { key, value }, .. } => (key, value),
            Request::Get { key }
            | Request::GetWith { key, .. }
            | Request::Delete { key }
            | Request::Numbered { write: WriteOp::Delete { key }, .. } => (key, &[]),
            _ => return None,
        };
        if !(KEY_SIZE_MIN..=KEY_SIZE_MAX).contains(&key.len()) {
            return Some(SizeProblem { what: "key", size: key.len() });
        }
        (value.len() > VALUE_SIZE_MAX).then_some(SizeProblem { what: "value", size: value.len() })
    }

    fn message_type(&self) -> MessageType {
        match self {
            Request::Put { .. }
            | Request::PutExplained { .. }
            | Request::Numbered { write: WriteOp::Put { .. }, .. } => MessageType::Put,
            Request::Inspect(_) => MessageType::Inspect,
            Request::Get { .. } | Request::GetWith { .. } => MessageType::Get,
            Request::Delete { .. } | Request::Numbered { write: WriteOp::Delete { .. }, .. } => {
                MessageType::Delete
            }
            Request::OpenSession => MessageType::OpenSession,
            Request::Ping => MessageType::Ping,
            Request::Status => MessageType::Status,
            Request::Promote { .. } => MessageType::Promote,
            Request::Follow { .. } => MessageType::Follow,
            Request::Transfer { .. } => MessageType::Transfer,
            Request::ChangeMembers { .. } => MessageType::ChangeMembers,
            Request::Snapshot { .. } => MessageType::Snapshot,
            Request::Backup(_) => MessageType::Backup,
        }
    }
}

impl<'a> Reply<'a> {
    /// The answer to a connection that is turned away before it asked anything: served at no LSN, in no term.
    pub fn busy_before_request(payload: &'a [u8]) -> Reply<'a> {
        Reply { status: Status::Busy, lsn: Lsn::ZERO, term: Term::ZERO, payload }
    }

    /// Appends the reply as a frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin_frame(out, MessageType::Reply);
        self.put_fields(out);
        out.put_trailer(0, |_| {});
        end_frame(out, start);
    }

    /// Appends the answer to a local read: it may be as old as this. `None`: that is not known.
    pub fn encode_with_age(&self, age_ms: Option<u64>, out: &mut Vec<u8>) {
        let start = begin_frame(out, MessageType::Reply);
        self.put_fields(out);
        let flags = if age_ms.is_some() { REPLY_AGE } else { 0 };
        out.put_trailer(flags, |fields| fields.put_u64(age_ms.unwrap_or(0)));
        end_frame(out, start);
    }

    fn put_fields(&self, out: &mut Vec<u8>) {
        out.put_u8(self.status as u8);
        out.put_u64(self.lsn.0);
        out.put_u64(self.term.as_u64());
        out.put_bytes32(self.payload);
    }

    /// Reads the body of a reply.
    pub fn decode(body: &'a [u8]) -> Result<Reply<'a>, DecodeError> {
        Ok(Reply::decode_with_age(body)?.0)
    }

    /// The same, and how many milliseconds old it says that it may be.
    pub fn decode_with_age(body: &'a [u8]) -> Result<(Reply<'a>, Option<u64>), DecodeError> {
        let mut reader = Reader::new(body);
        let status_error = reader.error("status", DecodeProblem::Truncated);
        let raw = reader.u8("status")?;
        let status = Status::from_u8(raw)
            .ok_or(DecodeError { problem: DecodeProblem::Invalid(raw.into()), ..status_error })?;
        let lsn = Lsn(reader.u64("lsn")?);
        let term = Term::from_u64(reader.u64("term")?);
        let payload = reader.bytes32("payload", FRAME_SIZE_MAX)?;
        let (flags, mut fields) = reader.trailer()?.unwrap_or((0, Reader::new(&[])));
        let age_ms = if flags & REPLY_AGE != 0 { Some(fields.u64("age")?) } else { None };
        reader.finish()?;
        Ok((Reply { status, lsn, term, payload }, age_ms))
    }
}

pub(super) fn decode_bool(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    let error = reader.error(field, DecodeProblem::Truncated);
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError { problem: DecodeProblem::Invalid(other.into()), ..error }),
    }
}

#[cfg(test)]
mod tests;
