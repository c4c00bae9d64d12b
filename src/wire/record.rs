//! The record: `[lsn u64][cmd_type u8][key_len u32][key][value_len u32][value]`, the same bytes on the wire
//! and in the log, so that it is encoded once.
//!
//! The log holds effects. Applying a record never reads state to decide anything, so applying it again at
//! its LSN is harmless.

use super::codec::{DecodeError, DecodeProblem, Reader, Writer};
use crate::ids::{Lsn, NodeId, Term};
use crate::limits::{KEY_SIZE_MAX, KEY_SIZE_MIN, RECORD_OVERHEAD, VALUE_SIZE_MAX};

const CMD_PUT: u8 = 1;
const CMD_DELETE: u8 = 2;
const CMD_TERM: u8 = 3;

/// The command types this version can apply, as a bit mask (bit n = `cmd_type` n), as announced in a hello.
pub const CMD_TYPES_KNOWN: u64 = (1 << CMD_PUT) | (1 << CMD_DELETE) | (1 << CMD_TERM);

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
        let value = reader.bytes32("record value", VALUE_SIZE_MAX)?;
        let effect = match cmd_type {
            CMD_PUT | CMD_DELETE if key.len() < KEY_SIZE_MIN => return Err(key_error),
            CMD_PUT => Effect::Put { key, value },
            CMD_DELETE if value.is_empty() => Effect::Delete { key },
            CMD_TERM if key.is_empty() && value.len() == 8 + 16 => {
                let mut fields = Reader::new(value);
                let term = Term::from_u64(fields.u64("record term")?);
                Effect::Term { term, leader: NodeId(fields.array("record leader id")?) }
            }
            CMD_DELETE | CMD_TERM => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_round_trip_and_have_the_size_they_promise() {
        let term = Term { promotion: 1, start: 2 };
        let effects = [
            Effect::Put { key: b"k", value: b"" },
            Effect::Put { key: b"\x00\xff", value: b"value" },
            Effect::Delete { key: b"k" },
            Effect::Term { term, leader: NodeId([7; 16]) },
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

    #[test]
    fn the_layout_is_the_published_one() {
        let mut bytes = Vec::new();
        Record { lsn: Lsn(0x0102), effect: Effect::Put { key: b"k", value: b"vv" } }.encode(&mut bytes);
        assert_eq!(bytes, b"\x00\x00\x00\x00\x00\x00\x01\x02\x01\x00\x00\x00\x01k\x00\x00\x00\x02vv");
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
