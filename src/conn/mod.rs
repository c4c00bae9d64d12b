//! A connection without its socket: what has been read and not yet understood, what is to be written, how
//! it is closed. The event loop moves bytes in and out of it; so does the simulator.

mod intake;
mod outbuf;

pub use intake::{Delivered, Intake};
pub use outbuf::OutBuf;

/// Names a connection for as long as the process lives: the slot in the low half, a generation in the
/// high one, so that an event for a closed connection never reaches the one that has its slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl ConnId {
    /// The id of a slot's `generation`-th tenant.
    pub fn new(slot: usize, generation: u32) -> ConnId {
        ConnId((u64::from(generation) << 32) | u64::from(u32::try_from(slot).expect("slots are bounded")))
    }

    /// The slot.
    pub fn slot(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }
}

/// Names a dial that a node asked for, until it succeeds or fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub u64);

/// How to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Once what is in the output buffer has been handed to the socket.
    AfterOutput,
    /// At the end of the turn, whatever waits.
    Now,
}

/// What a node may do with connections. Everything else about them is the loop's business.
pub trait Io {
    /// The output buffer of a connection that the node has not closed and was not told closed.
    fn output(&mut self, conn: ConnId) -> &mut OutBuf;
    /// The output buffer of a connection, if it is open.
    fn output_if_open(&self, conn: ConnId) -> Option<&OutBuf>;
    /// Closes it. The node hears nothing more of it.
    fn close(&mut self, conn: ConnId, how: Close);
    /// Connects to `HOST:PORT`; answered by `on_dialed` or `on_dial_failed`, later.
    fn dial(&mut self, dial: DialId, address: &str);
}

/// What the second half of a turn needs besides: to write out what waits, and to end a connection.
pub trait Wire: Io + Sized {
    /// Writes out what waits. Returns the connections that are over by that, and why.
    fn flush(&mut self) -> Vec<(ConnId, String)>;
    /// Writes out what waits on one connection. `Some`: it is over by that, and why.
    fn flush_one(&mut self, conn: ConnId) -> Option<String>;
    /// Ends a connection with this turn.
    fn doom(&mut self, conn: ConnId);
}
