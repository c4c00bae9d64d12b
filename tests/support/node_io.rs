//! What stands around a node in tests that run it without sockets: its clock, and its side of connections.

#![allow(dead_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use kvstore::conn::{Close, ConnId, Delivered, DialId, Intake, Io, OutBuf, Wire};
use kvstore::node::{FatalReason, Node};
use kvstore::time::{Clock, Time};

/// A clock that a test moves. Its clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl VirtualClock {
    /// A clock that stands at so many milliseconds.
    pub fn at_ms(ms: u64) -> VirtualClock {
        VirtualClock(Rc::new(Cell::new(ms * 1_000_000)))
    }

    /// Moves it.
    pub fn set(&self, time: Time) {
        assert!(time >= self.now(), "a monotonic clock does not go back");
        self.0.set(time.0);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Time {
        Time(self.0.get())
    }
}

/// What a node did with its connections and nobody has carried out yet.
#[derive(Debug, Default)]
pub struct NodeIo {
    pub outputs: BTreeMap<ConnId, OutBuf>,
    pub closes: Vec<(ConnId, Close)>,
    pub dials: Vec<(DialId, String)>,
}

impl Io for NodeIo {
    fn output(&mut self, conn: ConnId) -> &mut OutBuf {
        assert!(self.is_open(conn), "a node writes only to connections that are open");
        self.outputs.get_mut(&conn).expect("it is open")
    }

    fn output_if_open(&self, conn: ConnId) -> Option<&OutBuf> {
        self.outputs.get(&conn).filter(|_| self.is_open(conn))
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        if how == Close::Now {
            self.outputs.get_mut(&conn).expect("only open connections are closed").clear();
        }
        self.closes.push((conn, how));
    }

    fn dial(&mut self, dial: DialId, address: &str) {
        self.dials.push((dial, address.to_owned()));
    }
}

/// What is written out stays in the outputs, for the test to take.
impl Wire for NodeIo {
    fn flush(&mut self) -> Vec<(ConnId, String)> {
        Vec::new()
    }

    fn flush_one(&mut self, _conn: ConnId) -> Option<String> {
        None
    }

    fn doom(&mut self, _conn: ConnId) {}
}

impl NodeIo {
    /// Whether the node may still write to it.
    pub fn is_open(&self, conn: ConnId) -> bool {
        self.outputs.contains_key(&conn) && !self.closes.iter().any(|(closed, _)| *closed == conn)
    }
}

/// Bytes arrive on a connection.
pub fn push(
    intake: &mut Intake,
    mut bytes: &[u8],
    node: &mut Node,
    io: &mut NodeIo,
    conn: ConnId,
    now: Time,
) -> Result<Delivered, FatalReason> {
    loop {
        let space = intake.space();
        let size = space.len().min(bytes.len());
        space[..size].copy_from_slice(&bytes[..size]);
        intake.filled(size);
        bytes = &bytes[size..];
        let delivered = intake.deliver(node, io, conn, now)?;
        if bytes.is_empty() || !matches!(delivered, Delivered::All) {
            return Ok(delivered);
        }
    }
}

/// The frames of an output, each with its length field.
pub fn split_frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
        let (frame, rest) = bytes.split_at(4 + len);
        bytes = rest;
        Some(frame)
    })
}
