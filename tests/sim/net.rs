//! The network: byte streams in both directions between sites, in chunks, with delay, and with everything
//! that goes wrong between two TCP stacks.
//!
//! A link that is blocked delays (TCP sends again): what is under way arrives after it is unblocked, even
//! if the receiver has given the connection up by then. A connection can also be lost for one side only: a
//! host that lost its power says nothing, and a half-open connection never delivers anything again.

use std::collections::VecDeque;

use crate::core::{Core, Event, MS};

/// Where a connection ends.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub site: usize,
    pub state: EndState,
}

/// Whether somebody is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndState {
    Open,
    /// Closed by its process; whoever sends more gets a reset.
    Closed,
    /// The machine is gone; whoever sends hears nothing.
    Gone,
}

#[derive(Clone, Debug)]
enum Chunk {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    under_way: VecDeque<(u64, Chunk)>,
    /// Arrived and not read.
    pub arrived: VecDeque<u8>,
    /// The sender has closed.
    pub fin: bool,
    /// The connection was reset.
    pub reset: bool,
    queued: usize,
    last_arrival: u64,
    blocked_writer: bool,
    /// Nothing arrives any more.
    dead: bool,
    /// Nothing arrives for a while, whatever else the link carries.
    pub held: bool,
}

impl Pipe {
    /// Bytes that were sent and have not arrived.
    pub fn on_the_way(&self) -> usize {
        self.queued
    }
}

/// A connection; `pipes[side]` carries what `ends[side]` sends.
#[derive(Debug)]
pub struct NetConn {
    pub ends: [End; 2],
    pub pipes: [Pipe; 2],
}

/// All connections, and which links work.
#[derive(Debug)]
pub struct Net {
    pub conns: Vec<NetConn>,
    sites: usize,
    blocked: Vec<u32>,
    /// When a site has read something from another one last.
    heard: Vec<u64>,
    /// Which process of a site is alive now; 0: none.
    pub alive: Vec<u64>,
}

impl Net {
    pub fn new(sites: usize) -> Net {
        Net {
            conns: Vec::new(),
            sites,
            blocked: vec![0; sites * sites],
            heard: vec![0; sites * sites],
            alive: vec![0; sites],
        }
    }

    /// When this site has read something from that one last.
    pub fn heard_at(&self, site: usize, from: usize) -> u64 {
        self.heard[site * self.sites + from]
    }

    /// Whether the link works in this direction.
    pub fn works(&self, from: usize, to: usize) -> bool {
        self.blocked[from * self.sites + to] == 0
    }
}

impl Net {
    /// Blocks a link in one direction for good.
    pub fn cut(&mut self, from: usize, to: usize, really: bool) {
        self.blocked[from * self.sites + to] += u32::from(really);
    }
}

impl Core {
    fn delay(&mut self) -> u64 {
        let (low, high) = (self.knobs.net_delay_min_ns, self.knobs.net_delay_max_ns);
        let delay = self.between(low, high.max(low));
        if self.chance_of(|knobs| knobs.net_slow_ppm) { delay + self.between(0, 300 * MS) } else { delay }
    }

    /// A connection between two processes that exist.
    pub fn connect(&mut self, from: usize, to: usize) -> usize {
        let end = |site: usize| End { site, state: EndState::Open };
        self.net.conns.push(NetConn { ends: [end(from), end(to)], pipes: Default::default() });
        self.net.conns.len() - 1
    }

    /// Takes as many bytes as the socket has room for; 0: it is full. `ahead`: how far the sender's turn
    /// has come beyond the moment it began.
    pub fn send(
        &mut self,
        conn: usize,
        side: usize,
        bytes: &[u8],
        ahead: u64,
    ) -> Result<usize, &'static str> {
        let capacity = self.knobs.socket_buffer;
        if self.net.conns[conn].pipes[1 - side].reset {
            return Err("connection reset by peer");
        }
        let pipe = &mut self.net.conns[conn].pipes[side];
        let room = capacity.saturating_sub(pipe.queued + pipe.arrived.len());
        let size = room.min(bytes.len());
        if size < bytes.len() {
            pipe.blocked_writer = true;
            self.stats.count("net: socket full");
        }
        let mut rest = &bytes[..size];
        let single = size > 0 && size < 5_000 && self.chance_of(|knobs| knobs.single_bytes_ppm);
        if single {
            self.stats.count("net: single bytes");
        }
        while !rest.is_empty() {
            let most = if single { 1 } else { self.between(1, self.knobs.chunk_max) as usize };
            let (chunk, behind) = rest.split_at(most.min(rest.len()));
            rest = behind;
            self.put(conn, side, Chunk::Bytes(chunk.to_vec()), ahead);
        }
        Ok(size)
    }

    fn put(&mut self, conn: usize, side: usize, chunk: Chunk, ahead: u64) {
        let delay = self.delay();
        let now = self.now;
        let pipe = &mut self.net.conns[conn].pipes[side];
        // Chunks of one write mostly travel together.
        let arrival = (now + ahead + delay).max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        if let Chunk::Bytes(bytes) = &chunk {
            pipe.queued += bytes.len();
        }
        pipe.under_way.push_back((arrival, chunk));
        self.at(arrival, Event::Arrive { conn, dir: side });
    }

    /// What is due arrives. True: the receiver has something to look at.
    pub fn arrive(&mut self, conn: usize, dir: usize) -> bool {
        let [from, to] = [self.net.conns[conn].ends[dir], self.net.conns[conn].ends[1 - dir]];
        let pipe = &self.net.conns[conn].pipes[dir];
        if pipe.dead || pipe.held || !self.net.works(from.site, to.site) {
            return false;
        }
        let mut news = false;
        loop {
            let now = self.now;
            let pipe = &mut self.net.conns[conn].pipes[dir];
            if pipe.under_way.front().is_none_or(|(time, _)| *time > now) {
                return news;
            }
            let (_, chunk) = pipe.under_way.pop_front().expect("it was looked at");
            if let Chunk::Bytes(bytes) = &chunk {
                pipe.queued -= bytes.len();
            }
            if to.state != EndState::Open {
                self.nobody_there(conn, dir, to, &chunk);
                continue;
            }
            news = true;
            match chunk {
                Chunk::Bytes(bytes) => pipe.arrived.extend(bytes),
                Chunk::Fin => pipe.fin = true,
                Chunk::Reset => {
                    pipe.reset = true;
                    pipe.arrived.clear();
                }
            }
        }
    }

    fn nobody_there(&mut self, conn: usize, dir: usize, to: End, chunk: &Chunk) {
        let machine_is_up = to.state == EndState::Closed || self.net.alive[to.site] > 0;
        if let Chunk::Bytes(_) = chunk {
            self.stats.count("net: late bytes of a closed connection");
            if machine_is_up {
                self.put(conn, 1 - dir, Chunk::Reset, 0);
            }
        }
    }

    /// Reads up to `buffer.len()` bytes; `Err`: the stream is over.
    pub fn receive(&mut self, conn: usize, side: usize, buffer: &mut [u8]) -> Result<usize, &'static str> {
        let pipe = &mut self.net.conns[conn].pipes[1 - side];
        if pipe.reset {
            return Err("connection reset by peer");
        }
        if pipe.arrived.is_empty() && pipe.fin {
            return Err("the other side closed the connection");
        }
        let size = buffer.len().min(pipe.arrived.len());
        if size > 0 {
            let ends = &self.net.conns[conn].ends;
            self.net.heard[ends[side].site * self.net.sites + ends[1 - side].site] = self.now;
        }
        let pipe = &mut self.net.conns[conn].pipes[1 - side];
        for (to, byte) in buffer.iter_mut().zip(pipe.arrived.drain(..size)) {
            *to = byte;
        }
        if size > 0 && std::mem::take(&mut pipe.blocked_writer) {
            let delay = self.delay();
            self.after(delay, Event::Writable { conn, side: 1 - side });
        }
        Ok(size)
    }

    /// The process on this side closes the connection.
    pub fn close_end(&mut self, conn: usize, side: usize, ahead: u64) {
        if self.net.conns[conn].ends[side].state != EndState::Open {
            return;
        }
        self.net.conns[conn].ends[side].state = EndState::Closed;
        // Closing with unread input resets.
        let unread = !self.net.conns[conn].pipes[1 - side].arrived.is_empty();
        self.put(conn, side, if unread { Chunk::Reset } else { Chunk::Fin }, ahead);
    }

    /// A process ends. With the machine, if it lost its power: then nobody is told.
    pub fn leave(&mut self, site: usize, power: bool) {
        self.net.alive[site] = 0;
        for conn in 0..self.net.conns.len() {
            for side in 0..2 {
                let end = self.net.conns[conn].ends[side];
                if end.site != site || end.state != EndState::Open {
                    continue;
                }
                if power {
                    self.net.conns[conn].ends[side].state = EndState::Gone;
                } else {
                    self.close_end(conn, side, 0);
                }
            }
        }
    }

    /// Both sides of some open connection are told that it is over.
    pub fn reset_some(&mut self) -> bool {
        let Some(conn) = self.pick_open() else { return false };
        self.put(conn, 0, Chunk::Reset, 0);
        self.put(conn, 1, Chunk::Reset, 0);
        true
    }

    /// The same of all open connections between two sites.
    pub fn reset_between(&mut self, one: usize, other: usize) {
        let open = |conn: &NetConn| conn.ends.iter().all(|end| end.state == EndState::Open);
        let theirs = |conn: &NetConn| {
            let sites = (conn.ends[0].site, conn.ends[1].site);
            sites == (one, other) || sites == (other, one)
        };
        for conn in 0..self.net.conns.len() {
            if open(&self.net.conns[conn]) && theirs(&self.net.conns[conn]) {
                self.put(conn, 0, Chunk::Reset, 0);
                self.put(conn, 1, Chunk::Reset, 0);
            }
        }
    }

    /// The other side is told that the connection is over, behind what this one has sent.
    pub fn reset_from(&mut self, conn: usize, side: usize) {
        self.put(conn, side, Chunk::Reset, 0);
    }

    /// Some open connection never delivers anything again, in one direction or both.
    pub fn half_open_some(&mut self) -> bool {
        let Some(conn) = self.pick_open() else { return false };
        let which = self.rng.below(3);
        for dir in 0..2 {
            if which != dir as u64 {
                self.net.conns[conn].pipes[dir].dead = true;
            }
        }
        true
    }

    fn pick_open(&mut self) -> Option<usize> {
        let open = |conn: &NetConn| conn.ends.iter().all(|end| end.state == EndState::Open);
        let open: Vec<usize> =
            (0..self.net.conns.len()).filter(|index| open(&self.net.conns[*index])).collect();
        (!open.is_empty()).then(|| open[self.rng.below(open.len() as u64) as usize])
    }

    /// Blocks a link in one direction for so long.
    pub fn block(&mut self, from: usize, to: usize, for_ns: u64) {
        self.net.blocked[from * self.net.sites + to] += 1;
        self.stats.count("net: blocked link");
        self.after(for_ns, Event::Unblock { from, to });
    }

    /// Undoes one [`Core::block`]; what waited is sent again, a little later.
    pub fn unblock(&mut self, from: usize, to: usize) {
        self.net.blocked[from * self.net.sites + to] -= 1;
        if !self.net.works(from, to) {
            return;
        }
        for conn in 0..self.net.conns.len() {
            for dir in 0..2 {
                let ends = &self.net.conns[conn].ends;
                let here = ends[dir].site == from && ends[1 - dir].site == to;
                if here && !self.net.conns[conn].pipes[dir].under_way.is_empty() {
                    let delay = self.between(0, 200 * MS);
                    self.after(delay, Event::Arrive { conn, dir });
                }
            }
        }
    }

    /// Ends the life of connections that an earlier fault broke for good: TCP gives up in the end. Not of those
    /// with a site that `stays_broken`.
    pub fn give_up_dead(&mut self, stays_broken: impl Fn(usize) -> bool) {
        for conn in 0..self.net.conns.len() {
            let NetConn { ends, pipes } = &self.net.conns[conn];
            let dead = pipes.iter().any(|pipe| pipe.dead);
            if dead && !ends.iter().any(|end| stays_broken(end.site)) {
                for dir in 0..2 {
                    self.net.conns[conn].pipes[dir].dead = false;
                    self.put(conn, dir, Chunk::Reset, 0);
                }
            }
        }
    }

    /// How long a connect takes.
    pub fn connect_delay(&mut self) -> u64 {
        2 * self.delay()
    }
}
