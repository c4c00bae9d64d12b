//! Accepting: a budget per turn, a limit on connections, and what to do when descriptors run out.
//!
//! With edge-triggered events a connection that stays in the queue brings no further event. So when accept
//! fails for want of descriptors (P6) the listener tries again on a timer and after every close; meanwhile
//! a reserve descriptor is given up for a moment so that those in the queue are told rather than left.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::net::{TcpListener, TcpStream};

use crate::ledger::{Syscall, count};
use crate::limits::ACCEPTS_PER_TURN;
use crate::time::Time;
use crate::wire::client::Reply;

/// Milliseconds until accepting is tried again without descriptors.
const RETRY_MS: u64 = 100;

/// The listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    reserve: Option<OwnedFd>,
    connections_max: usize,
    /// Connections may be waiting in the queue.
    pending: bool,
    retry_at: Option<Time>,
    /// Connections turned away.
    pub refused: u64,
}

/// What accepting brought.
#[derive(Debug)]
pub enum Accepted {
    /// A connection.
    Stream(TcpStream, SocketAddr),
    /// The queue is empty, or this turn's budget is used up, or descriptors are.
    Enough,
}

impl Listener {
    /// A listener for at most `connections_max` connections, with a descriptor kept in reserve.
    pub fn new(socket: TcpListener, reserve: Option<OwnedFd>, connections_max: usize) -> Listener {
        Listener { socket, reserve, connections_max, pending: true, retry_at: None, refused: 0 }
    }

    /// The socket, for the poll.
    pub fn source(&mut self) -> &mut TcpListener {
        &mut self.socket
    }

    /// The poll says that connections wait.
    pub fn on_ready(&mut self) {
        self.pending = true;
    }

    /// A descriptor was closed: there may be room now.
    pub fn on_descriptor_freed(&mut self) {
        if self.retry_at.take().is_some() {
            self.pending = true;
            self.reserve = self.reserve.take().or_else(|| reserve_descriptor(&self.socket));
        }
    }

    /// The timer.
    pub fn on_timer(&mut self, now: Time) {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.on_descriptor_freed();
        }
    }

    /// When [`Listener::on_timer`] has something to do; now, if the last budget was used up.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        if self.pending { Some(now) } else { self.retry_at }
    }

    /// The next connection, the `accepted`-th of this turn with `open` others open.
    pub fn accept(&mut self, accepted: usize, open: usize, now: Time) -> io::Result<Accepted> {
        if !self.pending || accepted >= ACCEPTS_PER_TURN {
            return Ok(Accepted::Enough);
        }
        count(Syscall::Accept);
        match self.socket.accept() {
            Ok((stream, _)) if open >= self.connections_max => {
                self.turn_away(stream);
                self.accept(accepted + 1, open, now)
            }
            Ok((stream, address)) => Ok(Accepted::Stream(stream, address)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.pending = false;
                Ok(Accepted::Enough)
            }
            Err(error) if is_transient(&error) => self.accept(accepted + 1, open, now),
            Err(error) if is_out_of_descriptors(&error) => {
                self.without_descriptors(now);
                Ok(Accepted::Enough)
            }
            Err(error) => Err(error),
        }
    }

    fn without_descriptors(&mut self, now: Time) {
        self.pending = false;
        self.retry_at = Some(now.after_ms(RETRY_MS));
        if let Some(reserve) = self.reserve.take() {
            count(Syscall::Close);
            drop(reserve);
            // A handful per turn: the rest is told when the timer comes round.
            for _ in 0..ACCEPTS_PER_TURN {
                count(Syscall::Accept);
                let Ok((stream, _)) = self.socket.accept() else { break };
                self.turn_away(stream);
            }
            self.reserve = reserve_descriptor(&self.socket);
        }
    }

    /// Tells a connection that there is no room for it. The socket is new, so its buffer takes the words.
    fn turn_away(&mut self, mut stream: TcpStream) {
        self.refused += 1;
        let mut frame = Vec::new();
        let payload = b"this node has no room for another connection; try again later";
        Reply::busy_before_request(payload).encode(&mut frame);
        count(Syscall::Send);
        let _ = stream.write(&frame);
        count(Syscall::Close);
    }
}

/// A descriptor to give up in need.
pub fn reserve_descriptor(socket: &TcpListener) -> Option<OwnedFd> {
    count(Syscall::Fcntl);
    rustix::io::fcntl_dupfd_cloexec(socket, 0).ok()
}

/// The connection was gone before it was accepted, or a signal came: the next one may be fine.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|raw| exhausted.iter().any(|errno| errno.raw_os_error() == raw))
}
