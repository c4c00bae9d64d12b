//! One socket with its buffers.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

use crate::conn::{ConnId, DialId, Intake, OutBuf};
use crate::ledger::{Syscall, count};
use crate::time::Time;

/// How bytes travel. One more kind (TLS, a Unix socket) is one more variant.
#[derive(Debug)]
pub enum Transport {
    /// TCP, as it is.
    Plain(TcpStream),
}

impl Transport {
    /// The socket, for the poll.
    pub fn source(&mut self) -> &mut TcpStream {
        match self {
            Transport::Plain(stream) => stream,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        count(Syscall::Recv);
        match self {
            Transport::Plain(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        count(Syscall::Send);
        match self {
            Transport::Plain(stream) => stream.write(bytes),
        }
    }
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A dial that has not been answered.
    Connecting(DialId),
    /// Open both ways.
    Open,
    /// Nothing more is read; closed when the output is out, or at this time.
    Draining(Time),
    /// Freed at the end of the turn.
    Doomed,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub id: ConnId,
    /// Its life.
    pub phase: Phase,
    /// Its socket.
    pub transport: Transport,
    /// What came in. Taken out while the node is handed frames from it.
    pub intake: Intake,
    /// What goes out.
    pub output: OutBuf,
    /// The other side, for messages.
    pub remote: String,
    /// The socket may have bytes that were not read yet.
    pub readable: bool,
    /// The other side has closed its half: reading goes on until the end of the stream is seen.
    pub read_closed: bool,
    /// The socket took less than was offered: wait for the event before the next write.
    pub write_blocked: bool,
    /// It is in the list of connections with output.
    pub listed_dirty: bool,
    /// It is in the list of connections with input.
    pub listed_ready: bool,
}

/// What one read brought.
#[derive(Debug)]
pub enum Input {
    /// Bytes.
    Bytes(usize),
    /// None now.
    Nothing,
    /// The connection is over; why.
    Over(String),
}

impl Connection {
    /// A connection over this stream.
    pub fn new(id: ConnId, stream: TcpStream, remote: String, phase: Phase) -> Connection {
        Connection {
            id,
            phase,
            transport: Transport::Plain(stream),
            intake: Intake::default(),
            output: OutBuf::default(),
            remote,
            readable: false,
            read_closed: false,
            write_blocked: false,
            listed_dirty: false,
            listed_ready: false,
        }
    }

    /// One read. A short one means that the socket is drained: with edge-triggered events new bytes bring
    /// a new event, so no read is made only to be told EAGAIN.
    pub fn read(&mut self) -> Input {
        let space = self.intake.space();
        let wanted = space.len();
        let result = match &mut self.transport {
            transport @ Transport::Plain(_) => transport.read(space),
        };
        match result {
            Ok(0) => Input::Over("the other side closed the connection".to_owned()),
            Ok(size) => {
                self.intake.filled(size);
                if size < wanted && !self.read_closed {
                    self.readable = false;
                }
                Input::Bytes(size)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Input::Nothing
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Input::Bytes(0),
            Err(error) => Input::Over(error.to_string()),
        }
    }

    /// Writes what waits, in one call where the socket takes it. `Err`: the connection is over.
    pub fn flush(&mut self) -> Result<(), String> {
        while !self.output.is_empty() && !self.write_blocked {
            match self.transport.write(self.output.pending()) {
                Ok(size) => {
                    // A short write fills the socket's buffer: the event tells when there is room again.
                    self.write_blocked = size < self.output.len();
                    self.output.written(size);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.write_blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Whether it is open both ways.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }
}
