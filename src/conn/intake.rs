//! From bytes to the node: frames of one connection, within a budget, with deadlines and backpressure.
//!
//! This is the state machine of a connection below its transport. The event loop runs it over sockets; the
//! simulator runs the same code over its streams.

use super::{ConnId, Io, OutBuf};
use crate::limits::{FRAME_DEADLINE_MS, INPUT_BUFFER_SIZE, PEER_INPUT_BUFFER_SIZE};
use crate::node::{FatalReason, Fence, Node, Stop};
use crate::time::Time;
use crate::wire::FrameBuffer;

/// The input side of a connection.
#[derive(Debug, Default)]
pub struct Intake {
    buffer: FrameBuffer,
    /// Since when an unfinished frame is waiting for its rest.
    unfinished_since: Option<Time>,
    /// The output passed its high-water mark and has not fallen below the low one.
    throttled: bool,
    /// Bytes arrived that the node has not been told of.
    fresh: bool,
}

/// Why delivering stopped.
#[derive(Debug)]
pub enum Delivered {
    /// No complete frame is left.
    All,
    /// The node or the client's unread output says: later.
    Blocked,
    /// The other side broke the protocol.
    Fenced(String),
}

impl Intake {
    /// Room to read into.
    pub fn space(&mut self) -> &mut [u8] {
        self.buffer.space()
    }

    /// The other side is a peer: batches come in bulk.
    pub fn expect_bulk(&mut self) {
        self.buffer.set_read_size(PEER_INPUT_BUFFER_SIZE);
    }

    /// Bytes arrived in [`Intake::space`].
    pub fn filled(&mut self, size: usize) {
        self.buffer.filled(size);
        self.fresh |= size > 0;
    }

    /// Hands complete frames to the node, as long as it takes them.
    pub fn deliver(
        &mut self,
        node: &mut Node,
        io: &mut dyn Io,
        conn: ConnId,
        now: Time,
    ) -> Result<Delivered, FatalReason> {
        if std::mem::take(&mut self.fresh) {
            node.on_bytes(conn);
        }
        if !self.buffer.has_frame() {
            return Ok(self.drained(now));
        }
        node.begin_frames();
        let delivered = self.deliver_frames(node, io, conn, now);
        node.end_frames();
        delivered
    }

    fn deliver_frames(
        &mut self,
        node: &mut Node,
        io: &mut dyn Io,
        conn: ConnId,
        now: Time,
    ) -> Result<Delivered, FatalReason> {
        loop {
            if !self.may_deliver(node, io.output_if_open(conn), conn) {
                return Ok(if self.buffer.has_frame() { Delivered::Blocked } else { self.drained(now) });
            }
            match self.buffer.next_frame() {
                Ok(Some(frame)) => match node.on_frame(io, conn, frame) {
                    Ok(()) => self.unfinished_since = None,
                    Err(Stop::Fence(Fence(why))) => return Ok(Delivered::Fenced(why)),
                    Err(Stop::Fatal(reason)) => return Err(reason),
                },
                Ok(None) => return Ok(self.drained(now)),
                Err(error) => return Ok(Delivered::Fenced(error.to_string())),
            }
        }
    }

    /// Whether reading more makes sense now.
    pub fn may_deliver(&mut self, node: &Node, output: Option<&OutBuf>, conn: ConnId) -> bool {
        let Some(output) = output else { return false };
        // A follower is never throttled by what we send to it: its ACKs must be read while its feed is full.
        // Whoever dialled us gets answers only, and must read them.
        if !node.is_fed(conn) {
            let budgets = node.budgets();
            let mark = if self.throttled { budgets.output_low_water } else { budgets.output_high_water };
            self.throttled = output.len() > mark;
        }
        !self.throttled && node.wants_input(conn)
    }

    /// Whether its input waits for its other side to read what it was answered.
    pub fn is_throttled(&self) -> bool {
        self.throttled
    }

    /// Whether a complete frame waits.
    pub fn has_frame(&self) -> bool {
        self.buffer.has_frame()
    }

    /// Bytes of memory beyond the first buffer.
    pub fn extra_memory(&self) -> usize {
        self.buffer.capacity().saturating_sub(INPUT_BUFFER_SIZE)
    }

    /// Bytes the frame under way needs beyond the first buffer.
    pub fn extra_wanted(&self) -> usize {
        self.buffer.frame_size().unwrap_or(0).saturating_sub(INPUT_BUFFER_SIZE)
    }

    /// Throws the frame under way away.
    pub fn discard_frame(&mut self) {
        self.buffer.discard_frame();
    }

    /// When the frame under way must be complete (C1).
    pub fn deadline(&self) -> Option<Time> {
        self.unfinished_since.map(|since| since.after_ms(FRAME_DEADLINE_MS))
    }

    fn drained(&mut self, now: Time) -> Delivered {
        if self.buffer.pending() == 0 {
            self.unfinished_since = None;
            self.buffer.shrink();
        } else if self.unfinished_since.is_none() {
            self.unfinished_since = Some(now);
        }
        Delivered::All
    }
}
