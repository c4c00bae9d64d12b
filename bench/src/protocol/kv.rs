//! kvstore's frames, through the node's own wire module: what it means by its bytes is written once.

use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Request, Status};

use super::{Answers, Found, Operation};
use crate::template::{Template, key, value};

/// Requests are answered in order, so a connection has no state but its templates.
#[derive(Debug)]
pub struct Kv {
    put: Template,
    get: Template,
}

impl Kv {
    pub fn new(value_size: usize) -> Kv {
        let build = |request: Request<'_>| {
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            Template::new(bytes)
        };
        Kv {
            put: build(Request::Put { key: &key(0), value: &value(value_size) }),
            get: build(Request::Get { key: &key(0) }),
        }
    }

    pub fn request(&self, out: &mut Vec<u8>, operation: Operation, key_index: u64) {
        match operation {
            Operation::Put => self.put.append(out, key_index),
            Operation::Get => self.get.append(out, key_index),
        };
    }

    pub fn find(&self, input: &[u8]) -> Result<Found, String> {
        let Some(header) = input.first_chunk::<5>() else { return Ok(Found::NeedMore) };
        let [len @ .., type_byte] = *header;
        let size = 4 + u32::from_be_bytes(len) as usize;
        if size > 4 + kvstore::limits::FRAME_SIZE_MAX || type_byte != MessageType::Reply as u8 {
            return Err(format!("not a reply of kvstore: \"{}\"", header.escape_ascii()));
        }
        if input.len() < size {
            return Ok(Found::NeedMore);
        }
        let reply = Reply::decode(&input[5..size]).map_err(|error| error.to_string())?;
        Ok(Found::Reply { size, answers: Answers::Oldest(1), error: error_name(reply.status) })
    }
}

fn error_name(status: Status) -> Option<super::ErrorName> {
    (status != Status::Ok).then(|| format!("{status:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvstore::ids::{Lsn, Term};

    #[test]
    fn a_reply_is_found_when_its_last_byte_is_in() {
        let mut bytes = Vec::new();
        Reply { status: Status::Busy, lsn: Lsn(7), term: Term::ZERO, payload: b"later" }.encode(&mut bytes);
        let kv = Kv::new(64);
        for size in 0..bytes.len() {
            assert_eq!(kv.find(&bytes[..size]), Ok(Found::NeedMore));
        }
        let error = Some("Busy".into());
        assert_eq!(
            kv.find(&bytes),
            Ok(Found::Reply { size: bytes.len(), answers: Answers::Oldest(1), error })
        );
    }

    #[test]
    fn another_protocol_is_refused() {
        assert!(Kv::new(64).find(b"HTTP/1.1 400 Bad Request").is_err());
    }
}
