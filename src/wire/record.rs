//! The record: `[lsn u64][cmd_type u8][key_len u32][key][value_len u32][value]`, the same bytes on the wire
//! and in the log, so that it is encoded once.
//!
//! The log holds effects. Applying a record never reads state to decide anything, so applying it again at
//! its LSN is harmless.
//!
//! ```text
//! cmd_type        key      value
//! 1 PUT           key      value
//! 2 DELETE        key      -
//! 3 TERM          -        [term u64][leader id 16]
//! 4 SESSION       -        [nonce u64]                                    a client session begins
//! 5 PUT, numbered key      [LSN of the session u64][number u64][value]
//! 6 DELETE, numbered key   [LSN of the session u64][number u64]
//! 7 MEMBERS       -        [member count u16]([node id 16][address_len u16][address])...   who votes from here on
//! ```
//!
//! A numbered write is a write, and says besides whose it is. That it is written once was decided by the leader before
//! it was appended.

use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use super::members::{MEMBERS_SIZE_MAX, read_members};
use crate::ids::{Lsn, NodeId, SessionId, Term, WriteNumber};
use crate::limits::{KEY_SIZE_MAX, KEY_SIZE_MIN, RECORD_OVERHEAD, VALUE_SIZE_MAX, WRITE_NUMBER_SIZE};
use crate::replication::members::Members;

const CMD_PUT: u8 = 1;
const CMD_DELETE: u8 = 2;
const CMD_TERM: u8 = 3;
const CMD_SESSION: u8 = 4;
const CMD_PUT_NUMBERED: u8 = 5;
const CMD_DELETE_NUMBERED: u8 = 6;
const CMD_MEMBERS: u8 = 7;

/// The command types that every log may hold, as a bit mask (bit n = `cmd_type` n).
pub const CMD_TYPES_BASIC: u64 = (1 << CMD_PUT) | (1 << CMD_DELETE) | (1 << CMD_TERM);
/// Those of a log in which a client session was opened.
pub const CMD_TYPES_SESSIONS: u64 = (1 << CMD_SESSION) | (1 << CMD_PUT_NUMBERED) | (1 << CMD_DELETE_NUMBERED);
/// That of a log in which the members of the cluster were changed.
pub const CMD_TYPES_MEMBERS: u64 = 1 << CMD_MEMBERS;
/// Those that this version can apply, as announced in a hello.
pub const CMD_TYPES_KNOWN: u64 = CMD_TYPES_BASIC | CMD_TYPES_SESSIONS | CMD_TYPES_MEMBERS;

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// The key has this value now.
    Put {
        /// 1 to 65,535 bytes.
        key: &'a [u8],
        /// 0 to 8 MiB.
        value: &'a [u8],
    },
    /// The key is absent now.
    Delete {
        /// 1 to 65,535 bytes.
        key: &'a [u8],
    },
    /// A leader's first record in a term. Key empty, value = term and leader id.
    Term {
        /// The term that begins here.
        term: Term,
        /// Who leads in it.
        leader: NodeId,
    },
    /// A client session begins; the record's LSN and this are its id.
    Session {
        /// Drawn by the leader.
        nonce: u64,
    },
    /// As PUT; and this write of that session was executed here.
    PutNumbered {
        /// 1 to 65,535 bytes.
        key: &'a [u8],
        /// 0 to 8 MiB.
        value: &'a [u8],
        /// Which write of which session.
        by: WriteNumber,
    },
    /// As DELETE; and this write of that session was executed here.
    DeleteNumbered {
        /// 1 to 65,535 bytes.
        key: &'a [u8],
        /// Which write of which session.
        by: WriteNumber,
    },
    /// These are the members of the cluster now. Counts from the moment that it is in a log; changes no key.
    Members {
        /// All of them, as [`super::put_members`] writes them; never none.
        list: &'a [u8],
    },
}

impl Effect<'_> {
    /// Whether the answer to it says if the key was there.
    pub fn is_delete(&self) -> bool {
        matches!(self, Effect::Delete { .. } | Effect::DeleteNumbered { .. })
    }

    /// Which write of which session it is, if it is numbered.
    pub fn number(&self) -> Option<WriteNumber> {
        match self {
            Effect::PutNumbered { by, .. } | Effect::DeleteNumbered { by, .. } => Some(*by),
            _ => None,
        }
    }
}

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its position.
    pub lsn: Lsn,
    /// What it does.
    pub effect: Effect<'a>,
}

/// Why bytes are not a record.
pub type RecordError = DecodeError;

/// Bytes of a record with this effect.
pub fn record_size(effect: &Effect<'_>) -> usize {
    RECORD_OVERHEAD
        + match effect {
            Effect::Put { key, value } => key.len() + value.len(),
            Effect::Delete { key } => key.len(),
            Effect::Term { .. } => 8 + 16,
            Effect::Session { .. } => 8,
            Effect::PutNumbered { key, value, .. } => key.len() + WRITE_NUMBER_SIZE + value.len(),
            Effect::DeleteNumbered { key, .. } => key.len() + WRITE_NUMBER_SIZE,
            Effect::Members { list } => list.len(),
        }
}

impl<'a> Record<'a> {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(record_size(&self.effect));
        out.put_u64(self.lsn.0);
        match self.effect {
            Effect::Put { key, value } => {
                out.put_u8(CMD_PUT);
                out.put_bytes32(key);
                out.put_bytes32(value);
            }
            Effect::Delete { key } => {
                out.put_u8(CMD_DELETE);
                out.put_bytes32(key);
                out.put_bytes32(&[]);
            }
            Effect::Term { term, leader } => {
                out.put_u8(CMD_TERM);
                out.put_bytes32(&[]);
                out.put_u32(8 + 16);
                out.put_u64(term.as_u64());
                out.extend_from_slice(&leader.0);
            }
            Effect::Session { nonce } => {
                out.put_u8(CMD_SESSION);
                out.put_bytes32(&[]);
                out.put_u32(8);
                out.put_u64(nonce);
            }
            Effect::PutNumbered { key, value, by } => encode_numbered(out, CMD_PUT_NUMBERED, key, value, by),
            Effect::DeleteNumbered { key, by } => encode_numbered(out, CMD_DELETE_NUMBERED, key, &[], by),
            Effect::Members { list } => {
                out.put_u8(CMD_MEMBERS);
                out.put_bytes32(&[]);
                out.put_bytes32(list);
            }
        }
    }

    /// Who votes from this record on, if it says so.
    pub fn members(&self) -> Option<Members> {
        match self.effect {
            Effect::Members { list } => read_members(&mut Reader::new(list)).ok(),
            _ => None,
        }
    }

    /// The client session that this record opens.
    pub fn opened_session(&self) -> Option<SessionId> {
        match self.effect {
            Effect::Session { nonce } => Some(SessionId { lsn: self.lsn, nonce }),
            _ => None,
        }
    }

    /// The term and leader of an encoded `TERM` record; `None` for any other.
    pub fn term_of(bytes: &[u8]) -> Option<(Term, NodeId)> {
        if bytes.get(8) != Some(&CMD_TERM) {
            return None;
        }
        match Record::decode(&mut Reader::new(bytes)).ok()?.effect {
            Effect::Term { term, leader } => Some((term, leader)),
            _ => None,
        }
    }

    /// Reads one record; the reader then stands behind it. Sizes and the command type are checked here,
    /// once, for records from the wire and from disk alike.
    pub fn decode(reader: &mut Reader<'a>) -> Result<Record<'a>, RecordError> {
        let lsn = Lsn(reader.u64("record lsn")?);
        let cmd_type_error = reader.error("record cmd_type", DecodeProblem::Truncated);
        let cmd_type = reader.u8("record cmd_type")?;
        let key_error = reader.error("record key", DecodeProblem::Invalid(0));
        let key = reader.bytes32("record key", KEY_SIZE_MAX)?;
        let value_error = reader.error("record value", DecodeProblem::Truncated);
        let is_numbered = matches!(cmd_type, CMD_PUT_NUMBERED | CMD_DELETE_NUMBERED);
        let value_size_max = VALUE_SIZE_MAX + if is_numbered { WRITE_NUMBER_SIZE } else { 0 };
        let value = reader.bytes32("record value", value_size_max)?;
        let effect = match cmd_type {
            CMD_PUT | CMD_DELETE | CMD_PUT_NUMBERED | CMD_DELETE_NUMBERED if key.len() < KEY_SIZE_MIN => {
                return Err(key_error);
            }
            CMD_PUT => Effect::Put { key, value },
            CMD_DELETE if value.is_empty() => Effect::Delete { key },
            CMD_TERM if key.is_empty() && value.len() == 8 + 16 => {
                let mut fields = Reader::new(value);
                let term = Term::from_u64(fields.u64("record term")?);
                Effect::Term { term, leader: NodeId(fields.array("record leader id")?) }
            }
            CMD_SESSION if key.is_empty() && value.len() == 8 => {
                Effect::Session { nonce: Reader::new(value).u64("record nonce")? }
            }
            CMD_PUT_NUMBERED if value.len() >= WRITE_NUMBER_SIZE => {
                let (by, value) = split_number(value)?;
                Effect::PutNumbered { key, value, by }
            }
            CMD_DELETE_NUMBERED if value.len() == WRITE_NUMBER_SIZE => {
                Effect::DeleteNumbered { key, by: split_number(value)?.0 }
            }
            CMD_MEMBERS if key.is_empty() && is_members_list(value) => Effect::Members { list: value },
            CMD_DELETE | CMD_TERM | CMD_SESSION | CMD_PUT_NUMBERED | CMD_DELETE_NUMBERED | CMD_MEMBERS => {
                let problem = DecodeProblem::Invalid(value.len() as u64);
                return Err(DecodeError { problem, ..value_error });
            }
            unknown => {
                let problem = DecodeProblem::Invalid(unknown.into());
                return Err(DecodeError { problem, ..cmd_type_error });
            }
        };
        Ok(Record { lsn, effect })
    }
}

fn encode_numbered(out: &mut Vec<u8>, cmd_type: u8, key: &[u8], value: &[u8], by: WriteNumber) {
    out.put_u8(cmd_type);
    out.put_bytes32(key);
    out.put_u32((WRITE_NUMBER_SIZE + value.len()) as u32);
    out.put_u64(by.session.0);
    out.put_u64(by.number);
    out.extend_from_slice(value);
}

/// Whether these bytes are a list of at least one member, and nothing else.
fn is_members_list(value: &[u8]) -> bool {
    let mut reader = Reader::new(value);
    let members = read_members(&mut reader);
    value.len() <= MEMBERS_SIZE_MAX && members.is_ok_and(|members| !members.is_empty()) && reader.left() == 0
}

fn split_number(value: &[u8]) -> Result<(WriteNumber, &[u8]), DecodeError> {
    let mut fields = Reader::new(value);
    let by =
        WriteNumber { session: Lsn(fields.u64("record session")?), number: fields.u64("record number")? };
    Ok((by, &value[WRITE_NUMBER_SIZE..]))
}

#[cfg(test)]
mod tests {
    use super::super::members::put_members;
    use super::*;
    use crate::replication::members::Member;

    #[test]
    fn records_survive_the_round_trip_and_have_the_size_they_promise() {
        let term = Term { promotion: 1, start: 2 };
        let by = WriteNumber { session: Lsn(3), number: 4 };
        let effects = [
            Effect::Put { key: b"k", value: b"" },
            Effect::Put { key: b"\x00\xff", value: b"value" },
            Effect::Delete { key: b"k" },
            Effect::Term { term, leader: NodeId([7; 16]) },
            Effect::Session { nonce: 11 },
            Effect::PutNumbered { key: b"k", value: b"value", by },
            Effect::PutNumbered { key: b"k", value: b"", by },
            Effect::DeleteNumbered { key: b"k", by },
            Effect::Members { list: &members_list(2) },
        ];
        for effect in effects {
            let record = Record { lsn: Lsn(9), effect };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            assert_eq!(bytes.len(), record_size(&effect));
            let mut reader = Reader::new(&bytes);
            assert_eq!(Record::decode(&mut reader), Ok(record));
            reader.finish().unwrap();
        }
    }

    fn members_list(count: u8) -> Vec<u8> {
        let member = |id| Member { node_id: NodeId([id; 16]), address: format!("host:{id}") };
        let mut list = Vec::new();
        put_members(&mut list, &Members::new((1..=count).map(member).collect()).expect("they differ"));
        list
    }

    #[test]
    fn a_record_of_members_names_at_least_one_and_nothing_else() {
        let decoded = |list: &[u8]| {
            let mut bytes = Vec::new();
            Record { lsn: Lsn(1), effect: Effect::Members { list } }.encode(&mut bytes);
            Record::decode(&mut Reader::new(&bytes))
                .map(|record| record.members().expect("it has some").len())
        };
        let list = members_list(3);
        assert_eq!(decoded(&list), Ok(3));
        assert!(decoded(&members_list(0)).is_err());
        assert!(decoded(&[&list[..], b"x"].concat()).is_err());
        assert!(decoded(&list[..list.len() - 1]).is_err());
        assert!(decoded(&[&[0, 2], &list[2..28], &list[2..28]].concat()).is_err(), "one member twice");
    }

    #[test]
    fn the_layout_is_the_published_one() {
        let mut bytes = Vec::new();
        Record { lsn: Lsn(0x0102), effect: Effect::Put { key: b"k", value: b"vv" } }.encode(&mut bytes);
        assert_eq!(bytes, b"\x00\x00\x00\x00\x00\x00\x01\x02\x01\x00\x00\x00\x01k\x00\x00\x00\x02vv");
    }

    #[test]
    fn a_numbered_write_of_the_largest_size_is_a_record_and_one_byte_more_is_none() {
        let by = WriteNumber { session: Lsn(3), number: 4 };
        let (key, value) = (vec![1; KEY_SIZE_MAX], vec![2; VALUE_SIZE_MAX + 1]);
        let decoded = |value| {
            let mut bytes = Vec::new();
            Record { lsn: Lsn(1), effect: Effect::PutNumbered { key: &key, value, by } }.encode(&mut bytes);
            assert!(bytes.len() <= crate::limits::RECORD_SIZE_MAX + 1);
            Record::decode(&mut Reader::new(&bytes)).is_ok()
        };
        assert!(decoded(&value[1..]));
        assert!(!decoded(&value));
    }

    #[test]
    fn an_unknown_command_type_is_refused_by_name() {
        let mut bytes = Vec::new();
        Record { lsn: Lsn(1), effect: Effect::Delete { key: b"k" } }.encode(&mut bytes);
        bytes[8] = 99;
        let error = Record::decode(&mut Reader::new(&bytes)).unwrap_err();
        assert_eq!((error.field, error.problem), ("record cmd_type", DecodeProblem::Invalid(99)));
    }
}
