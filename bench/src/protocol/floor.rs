//! What the bare leader speaks: requests of one size, replies of one size, no fields at all. The sizes are
//! those of kvstore's PUT and of its reply, so that the floor moves as many bytes and understands none.

use super::{Answers, Found};
use crate::template::{KEY_SIZE, Template, key, value};

/// Bytes of a reply: length, type, status, LSN, term, payload length, trailer.
pub const REPLY_SIZE: usize = 4 + 1 + 1 + 8 + 8 + 4 + 4;
/// Bytes of a request beside key and value: length, type, two lengths.
const REQUEST_OVERHEAD: usize = 4 + 1 + 4 + 4;

/// Bytes of a request.
pub fn request_size(value_size: usize) -> usize {
    REQUEST_OVERHEAD + KEY_SIZE + value_size
}

#[derive(Debug)]
pub struct Floor {
    put: Template,
}

impl Floor {
    pub fn new(value_size: usize) -> Floor {
        let bytes = [&[0; REQUEST_OVERHEAD], &key(0)[..], &value(value_size)].concat();
        assert_eq!(bytes.len(), request_size(value_size));
        Floor { put: Template::new(bytes) }
    }

    pub fn request(&self, out: &mut Vec<u8>, key_index: u64) {
        self.put.append(out, key_index);
    }

    /// All complete replies at once: there is nothing to look at in any of them.
    pub fn find(&self, input: &[u8]) -> Found {
        match (input.len() / REPLY_SIZE) as u32 {
            0 => Found::NeedMore,
            count => Found::Reply {
                size: count as usize * REPLY_SIZE,
                answers: Answers::Oldest(count),
                error: None,
            },
        }
    }
}
