//! Numbered writes in requests: the options of a PUT or DELETE that say which write of which session it is.
//!
//! ```text
//! options    = flag bit 1, and [session lsn u64][session nonce u64][number u64]
//! session id = [lsn u64][nonce u64]      the payload of the answer to an OPEN_SESSION
//! ```
//!
//! A number that was executed is not executed again: the answer is the first one, with its LSN and term. A numbered
//! write has no receipt in its answer: INSPECT has it.

use super::client::Request;
use super::codec::{DecodeError, Reader, Writer};
use crate::ids::{Lsn, SessionId};

/// The flag of a PUT's or DELETE's options that says that it is numbered.
pub(super) const NUMBERED: u16 = 2;

/// What a numbered write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOp<'a> {
    /// Set a key.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: &'a [u8],
    },
}

/// Appends the body of a numbered write.
pub(super) fn encode_numbered(out: &mut Vec<u8>, session: SessionId, number: u64, write: &WriteOp<'_>) {
    match write {
        WriteOp::Put { key, value } => {
            out.put_bytes32(key);
            out.put_bytes32(value);
        }
        WriteOp::Delete { key } => out.put_bytes32(key),
    }
    out.put_trailer(NUMBERED, |fields| {
        fields.extend_from_slice(&encode_session_id(session));
        fields.put_u64(number);
    });
}

/// The request whose options these are.
pub(super) fn decode_numbered<'a>(
    options: &mut Reader<'_>,
    write: WriteOp<'a>,
) -> Result<Request<'a>, DecodeError> {
    Ok(Request::Numbered { session: session_id(options)?, number: options.u64("number")?, write })
}

/// A session's id as the payload of the answer to an OPEN_SESSION.
pub fn encode_session_id(id: SessionId) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.lsn.0.to_be_bytes());
    bytes[8..].copy_from_slice(&id.nonce.to_be_bytes());
    bytes
}

/// The session's id in such a payload.
pub fn decode_session_id(payload: &[u8]) -> Result<SessionId, DecodeError> {
    let mut reader = Reader::new(payload);
    let id = session_id(&mut reader)?;
    reader.finish()?;
    Ok(id)
}

fn session_id(reader: &mut Reader<'_>) -> Result<SessionId, DecodeError> {
    Ok(SessionId { lsn: Lsn(reader.u64("session lsn")?), nonce: reader.u64("session nonce")? })
}
