//! All connections, and what a node may do with them.

use std::net::{SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use slab::Slab;

use super::connection::{Connection, Phase};
use crate::conn::{Close, ConnId, DialId, Io, OutBuf, Wire};
use crate::ledger::{Syscall, count};
use crate::time::Time;

/// Milliseconds in which a refused connection must take its last words.
const DRAIN_MS: u64 = 1_000;

/// The connections of a node. Slots are freed only by [`Conns::free_doomed`], at the end of a turn.
#[derive(Debug)]
pub struct Conns {
    slab: Slab<Connection>,
    generation: u32,
    registry: Registry,
    /// Connections with output to write.
    dirty: Vec<ConnId>,
    doomed: Vec<ConnId>,
    dials: Vec<(DialId, String)>,
    /// A connection began to drain, and has a deadline for that.
    draining: bool,
    /// When this turn began.
    pub now: Time,
}

/// What [`Conns::free_doomed`] gave back.
#[derive(Clone, Copy, Debug)]
pub struct Freed {
    /// Connections.
    pub connections: usize,
    /// Bytes of their input buffers beyond the first size: they no longer count against the budget.
    pub extra_memory: usize,
}

impl Conns {
    /// No connections.
    pub fn new(registry: Registry) -> Conns {
        Conns {
            slab: Slab::new(),
            generation: 0,
            registry,
            dirty: Vec::new(),
            doomed: Vec::new(),
            dials: Vec::new(),
            draining: false,
            now: Time::default(),
        }
    }

    /// Connections, those included that end with this turn.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// A connection by name; `None` once its slot was freed.
    pub fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.slab.get_mut(conn.slot()).filter(|connection| connection.id == conn)
    }

    /// A connection by name.
    pub fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.slab.get(conn.slot()).filter(|connection| connection.id == conn)
    }

    /// All connections.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slab.iter().map(|(_, connection)| connection)
    }

    /// Adds a stream and registers it once, for both directions: with edge-triggered events that costs
    /// nothing later, and no interest is ever changed.
    pub fn insert(&mut self, stream: TcpStream, remote: String, phase: Phase) -> std::io::Result<ConnId> {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.slab.vacant_entry();
        let id = ConnId::new(entry.key(), self.generation);
        let mut connection = Connection::new(id, stream, remote, phase);
        let interest = Interest::READABLE | Interest::WRITABLE;
        count(Syscall::EpollCtl);
        self.registry.register(connection.transport.source(), Token(id.0 as usize), interest)?;
        entry.insert(connection);
        Ok(id)
    }

    /// Dials that the node asked for since the last call.
    pub fn take_dials(&mut self) -> Vec<(DialId, String)> {
        std::mem::take(&mut self.dials)
    }

    /// Whether a connection began to drain since the last call.
    pub fn take_draining(&mut self) -> bool {
        std::mem::take(&mut self.draining)
    }

    /// Begins a dial.
    pub fn begin_dial(&mut self, dial: DialId, address: &str) -> Result<(), String> {
        let socket_address = resolve(address)?;
        count(Syscall::Socket);
        count(Syscall::Connect);
        let stream = TcpStream::connect(socket_address).map_err(|error| error.to_string())?;
        let phase = Phase::Connecting(dial);
        self.insert(stream, address.to_owned(), phase).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Writes what waits on one connection. `Some`: it is over, and why.
    pub fn flush_one(&mut self, conn: ConnId) -> Option<String> {
        let connection = self.get_mut(conn)?;
        connection.listed_dirty = false;
        let over = match connection.phase {
            Phase::Open | Phase::Draining(_) => connection.flush().err(),
            Phase::Connecting(_) | Phase::Doomed => None,
        };
        let drained = matches!(connection.phase, Phase::Draining(_))
            && (over.is_some() || connection.output.is_empty());
        if drained {
            self.doom(conn);
            return None;
        }
        over
    }

    /// Frees the slots of connections that ended.
    pub fn free_doomed(&mut self) -> Freed {
        let doomed = std::mem::take(&mut self.doomed);
        let mut freed = Freed { connections: doomed.len(), extra_memory: 0 };
        for conn in &doomed {
            // Dropping it closes the descriptor, which also takes it out of the poll.
            count(Syscall::Close);
            freed.extra_memory += self.slab.remove(conn.slot()).intake.extra_memory();
        }
        freed
    }

    /// Lists a connection as having output.
    fn list_dirty(&mut self, conn: ConnId) {
        let Some(connection) = self.get_mut(conn) else { return };
        if !connection.listed_dirty {
            connection.listed_dirty = true;
            self.dirty.push(conn);
        }
    }
}

impl Io for Conns {
    fn output(&mut self, conn: ConnId) -> &mut OutBuf {
        self.list_dirty(conn);
        let connection = self.get_mut(conn).expect("a node writes only to connections it was told of");
        &mut connection.output
    }

    fn output_if_open(&self, conn: ConnId) -> Option<&OutBuf> {
        self.get(conn).filter(|connection| connection.is_open()).map(|connection| &connection.output)
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        let deadline = self.now.after_ms(DRAIN_MS);
        let Some(connection) = self.get_mut(conn) else { return };
        match how {
            Close::AfterOutput if connection.is_open() && !connection.output.is_empty() => {
                connection.phase = Phase::Draining(deadline);
                self.draining = true;
                self.list_dirty(conn);
            }
            Close::AfterOutput | Close::Now => self.doom(conn),
        }
    }

    fn dial(&mut self, dial: DialId, address: &str) {
        self.dials.push((dial, address.to_owned()));
    }
}

impl Wire for Conns {
    fn flush(&mut self) -> Vec<(ConnId, String)> {
        let mut over = Vec::new();
        let mut dirty = std::mem::take(&mut self.dirty);
        for conn in dirty.drain(..) {
            over.extend(self.flush_one(conn).map(|why| (conn, why)));
        }
        self.dirty = dirty;
        over
    }

    fn flush_one(&mut self, conn: ConnId) -> Option<String> {
        Conns::flush_one(self, conn)
    }

    fn doom(&mut self, conn: ConnId) {
        if let Some(connection) = self.get_mut(conn)
            && connection.phase != Phase::Doomed
        {
            connection.phase = Phase::Doomed;
            self.doomed.push(conn);
        }
    }
}

/// The socket address of `HOST:PORT`. An IP address costs nothing; a name asks the system's resolver, which
/// blocks the loop for as long as that takes, so names are for convenience and addresses for latency.
pub fn resolve(address: &str) -> Result<SocketAddr, String> {
    if let Ok(parsed) = address.parse() {
        return Ok(parsed);
    }
    let mut found =
        address.to_socket_addrs().map_err(|error| format!("cannot resolve {address}: {error}"))?;
    found.next().ok_or_else(|| format!("{address} resolves to no address"))
}
