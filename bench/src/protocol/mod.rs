//! The languages the load generator speaks. Each is the state of one connection: it appends requests to an
//! output buffer and finds replies in an input buffer; it does no I/O and knows no clock.
//!
//! Every dialect builds its requests from templates, so that what the generator itself costs is alike for
//! all of them and one store cannot look fast because its client library is slow.

mod etcd;
mod floor;
mod kv;
mod resp;

use std::borrow::Cow;

use crate::args::{LoadArgs, ProtocolName};

pub use floor::{REPLY_SIZE as FLOOR_REPLY_SIZE, request_size as floor_request_size};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Write a key.
    Put,
    /// Read a key.
    Get,
}

/// Why an operation did not succeed, as the report counts it.
pub type ErrorName = Cow<'static, str>;

/// Which operations a reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// So many of the oldest.
    Oldest(u32),
    /// The one with this number.
    Number(u32),
}

/// What was found at the beginning of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing complete.
    NeedMore,
    /// So many bytes that answer nothing yet.
    Skip(usize),
    /// An answer.
    Reply {
        /// Bytes of it.
        size: usize,
        /// To what.
        answers: Answers,
        /// `Some` if the store did not do as asked.
        error: Option<ErrorName>,
    },
}

/// The state of one connection.
#[derive(Debug)]
pub enum Dialect {
    /// kvstore's frames.
    Kv(kv::Kv),
    /// RESP.
    Resp(resp::Resp),
    /// gRPC.
    Etcd(Box<etcd::Etcd>),
    /// The bare leader's.
    Floor(floor::Floor),
}

impl Dialect {
    /// What a connection for these flags speaks.
    pub fn new(args: &LoadArgs) -> Dialect {
        match args.protocol {
            ProtocolName::Kv => Dialect::Kv(kv::Kv::new(args.value_size)),
            ProtocolName::Resp => Dialect::Resp(resp::Resp::new(args.value_size, args.wait, args.wait_batch)),
            ProtocolName::Etcd => Dialect::Etcd(Box::new(etcd::Etcd::new(args.value_size))),
        }
    }

    /// What a connection to the bare leader speaks.
    pub fn floor(value_size: usize) -> Dialect {
        Dialect::Floor(floor::Floor::new(value_size))
    }

    /// Appends what comes before the first request.
    pub fn greet(&mut self, out: &mut Vec<u8>) {
        if let Dialect::Etcd(etcd) = self {
            etcd.greet(out);
        }
    }

    /// Appends a request; returns its number, for [`Answers::Number`].
    #[inline]
    pub fn request(&mut self, out: &mut Vec<u8>, operation: Operation, key_index: u64) -> u32 {
        match self {
            Dialect::Kv(kv) => kv.request(out, operation, key_index),
            Dialect::Resp(resp) => resp.request(out, operation, key_index),
            Dialect::Etcd(etcd) => return etcd.request(out, operation, key_index),
            Dialect::Floor(floor) => floor.request(out, key_index),
        }
        0
    }

    /// Appends what must stand behind the requests of one turn.
    #[inline]
    pub fn end_turn(&mut self, out: &mut Vec<u8>) {
        if let Dialect::Resp(resp) = self {
            resp.end_turn(out);
        }
    }

    /// Looks at the input. `out` takes what the protocol itself must answer (pings, windows).
    #[inline]
    pub fn find(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Found, String> {
        match self {
            Dialect::Kv(kv) => kv.find(input),
            Dialect::Resp(resp) => resp.find(input),
            Dialect::Etcd(etcd) => etcd.find(input, out),
            Dialect::Floor(floor) => Ok(floor.find(input)),
        }
    }
}
