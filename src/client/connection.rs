//! One connection: frames out, replies in, and a deadline for each.
//!
//! The socket blocks, bounded by SO_RCVTIMEO and SO_SNDTIMEO. They are set anew only where they are off by
//! more than [`REARM_SLACK`], so a call that is answered in time costs one send and one recv: what is
//! measured through this client is the node, not the client's own system calls.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::error::{ClientError, Loss};
use crate::ids::{Lsn, Term};
use crate::wire::client::{Reply, Request, Status};
use crate::wire::{Frame, FrameBuffer, MessageType};

/// How far a socket timeout may be off before it is set anew.
const REARM_SLACK: Duration = Duration::from_millis(1);

/// A reply with its own payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedReply {
    /// How the request ended.
    pub status: Status,
    /// The LSN it was served at.
    pub lsn: Lsn,
    /// The node's term.
    pub term: Term,
    /// What the status says it is.
    pub payload: Vec<u8>,
    /// Of a local read: for how many milliseconds there may have been newer values elsewhere, if the node can tell.
    pub age_ms: Option<u64>,
}

impl OwnedReply {
    /// The payload as text; what is not UTF-8 is replaced.
    pub fn payload_text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// The moment by which a call must have ended, on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    started: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Deadline {
        Deadline { started: Instant::now(), timeout }
    }

    /// This one, or one that is `patience` away, whichever is sooner.
    pub(super) fn at_most(self, patience: Duration) -> Deadline {
        if self.left().is_ok_and(|left| left > patience) { Deadline::after(patience) } else { self }
    }

    /// This one, or one that is `time` away, whichever is later.
    pub(super) fn at_least(self, time: Duration) -> Deadline {
        Deadline { timeout: self.timeout.max(self.started.elapsed() + time), ..self }
    }

    /// The time it was given.
    pub(super) fn timeout(self) -> Duration {
        self.timeout
    }

    /// The time left, or `Loss::TimedOut` when there is none.
    pub(super) fn left(&self) -> Result<Duration, Loss> {
        let left = self.timeout.saturating_sub(self.started.elapsed());
        if left.is_zero() { Err(Loss::TimedOut(self.timeout)) } else { Ok(left) }
    }
}

/// A connection to one node.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    address: String,
    input: FrameBuffer,
    output: Vec<u8>,
    /// Bytes of `output` that the system has taken.
    output_sent: usize,
    /// For each request without an answer, in order: whether it changes anything.
    due: VecDeque<bool>,
    read_timeout: Duration,
    write_timeout: Duration,
}

impl Connection {
    /// Connects to an address in normal form. The resolver keeps its own time: the deadline bounds what
    /// comes after it, and an IP address needs none.
    pub(super) fn dial(address: &str, deadline: Deadline) -> Result<Connection, ClientError> {
        let stream = dial(address, deadline)
            .map_err(|why| ClientError::Connect { address: address.to_owned(), why })?;
        Ok(Connection {
            stream,
            address: address.to_owned(),
            input: FrameBuffer::new(),
            output: Vec::new(),
            output_sent: 0,
            due: VecDeque::new(),
            read_timeout: Duration::MAX,
            write_timeout: Duration::MAX,
        })
    }

    /// Where to, in normal form.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Requests that were sent, or are waiting to be, and have no answer yet.
    pub(super) fn replies_due(&self) -> usize {
        self.due.len()
    }

    /// Puts a request behind those that wait to be sent.
    pub(super) fn push(&mut self, request: &Request<'_>) {
        request.encode(&mut self.output);
        self.due.push_back(changes_something(request));
    }

    /// Sends one request and receives its answer.
    pub(super) fn exchange(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
    ) -> Result<OwnedReply, ClientError> {
        assert!(self.due.is_empty(), "receive every pipelined reply before the next call");
        self.push(request);
        // Nothing else waits in `output`: a failure means that this frame did not leave whole.
        self.write_output(deadline)
            .map_err(|why| ClientError::NotSent { address: self.address.clone(), why })?;
        self.receive(deadline)
    }

    /// Sends what waits to be sent. After a timeout the rest still waits, and may be flushed again.
    pub(super) fn flush(&mut self, deadline: Deadline) -> Result<(), ClientError> {
        self.write_output(deadline).map_err(|why| self.lost(why))
    }

    /// Receives the answer to the oldest request without one.
    pub(super) fn receive(&mut self, deadline: Deadline) -> Result<OwnedReply, ClientError> {
        assert!(!self.due.is_empty(), "a reply is received for a request that was sent");
        let reply = self.read_reply(deadline).map_err(|why| self.lost(why))?;
        self.due.pop_front();
        Ok(reply)
    }

    /// The error for an answer that did not come, or made no sense.
    fn lost(&self, why: Loss) -> ClientError {
        let address = self.address.clone();
        if self.due.contains(&true) {
            ClientError::OutcomeUnknown { address, why }
        } else {
            ClientError::ReadLost { address, why }
        }
    }

    fn write_output(&mut self, deadline: Deadline) -> Result<(), Loss> {
        while self.output_sent < self.output.len() {
            let left = deadline.left()?;
            if self.write_timeout.abs_diff(left) > REARM_SLACK {
                self.stream.set_write_timeout(Some(left)).map_err(Loss::Io)?;
                self.write_timeout = left;
            }
            let result = self.stream.write(&self.output[self.output_sent..]);
            self.output_sent += settled(result)?.unwrap_or(0);
        }
        self.output.clear();
        self.output_sent = 0;
        Ok(())
    }

    fn read_reply(&mut self, deadline: Deadline) -> Result<OwnedReply, Loss> {
        loop {
            if let Some(frame) = self.input.next_frame().map_err(Loss::NotFrames)? {
                return owned_reply(&frame);
            }
            self.read_input(deadline)?;
        }
    }

    fn read_input(&mut self, deadline: Deadline) -> Result<(), Loss> {
        let left = deadline.left()?;
        if self.read_timeout.abs_diff(left) > REARM_SLACK {
            self.stream.set_read_timeout(Some(left)).map_err(Loss::Io)?;
            self.read_timeout = left;
        }
        let result = self.stream.read(self.input.space());
        match settled(result)? {
            Some(0) => Err(Loss::Closed),
            Some(size) => {
                self.input.filled(size);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn owned_reply(frame: &Frame<'_>) -> Result<OwnedReply, Loss> {
    if frame.type_byte != MessageType::Reply as u8 {
        return Err(Loss::NotReply(frame.type_byte));
    }
    let (reply, age_ms) = Reply::decode_with_age(frame.body).map_err(Loss::BadReply)?;
    let Reply { status, lsn, term, payload } = reply;
    Ok(OwnedReply { status, lsn, term, payload: payload.to_vec(), age_ms })
}

/// Whether losing the answer to this request leaves something unknown.
fn changes_something(request: &Request<'_>) -> bool {
    match request {
        Request::Put { .. } | Request::PutExplained { .. } | Request::Delete { .. } => true,
        Request::Numbered { .. } => true,
        Request::Promote { .. } | Request::Follow { .. } | Request::Transfer { .. } => true,
        Request::ChangeMembers { .. } => true,
        Request::Snapshot { .. } => true,
        Request::Get { .. }
        | Request::GetWith { .. }
        | Request::Ping
        | Request::Status
        | Request::Inspect(_) => false,
        // At most a snapshot is made by it, or a session that nobody uses.
        Request::Backup(_) | Request::OpenSession => false,
    }
}

/// `None`: nothing happened yet, look at the deadline and try again.
fn settled(result: io::Result<usize>) -> Result<Option<usize>, Loss> {
    match result {
        Ok(size) => Ok(Some(size)),
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(None),
            _ => Err(Loss::Io(error)),
        },
    }
}

fn dial(address: &str, deadline: Deadline) -> io::Result<TcpStream> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in address.to_socket_addrs()? {
        let Ok(left) = deadline.left() else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        match TcpStream::connect_timeout(&candidate, left) {
            // Dialling a free port of this machine can, by chance, meet itself: the system picks that very
            // port as the source, and TCP's simultaneous open succeeds. Nobody listens there.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last_error = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}
