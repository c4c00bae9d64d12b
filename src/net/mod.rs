//! The event loop: the only user of mio and of the connection slab. It moves bytes and runs turns; it never
//! reads a term or an LSN.
//!
//! One turn: poll; accept and read, within a budget for each connection; hand frames to the node; timers;
//! write the peers' records out; one sync; write the replies out, one write for each connection; free what
//! was closed.

mod bound;
mod clock;
mod connection;
mod conns;
mod listener;
mod shown;
mod signals;

use std::io;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use crate::conn::{ConnId, Delivered, Io, Wire};
use crate::ledger::{Syscall, count};
use crate::limits::{INPUT_BUDGET, READ_PER_TURN_CLIENT, READ_PER_TURN_PEER};
use crate::node::{FatalReason, Node};
use crate::time::{Clock, Time};
use crate::{log_info, log_warn};

pub use bound::{Bound, bind};
pub use clock::MonotonicClock;
use connection::{Input, Phase};
use conns::Conns;
pub use conns::resolve;
use listener::{Accepted, Listener};
use shown::Shown;
use signals::Signals;

const LISTENER: Token = Token(usize::MAX);
const SIGNALS: Token = Token(usize::MAX - 1);
const FLUSH: Token = Token(usize::MAX - 2);
/// Events taken from the poll at once.
const EVENTS_MAX: usize = 1024;
/// Milliseconds between looks for connections past their deadline.
const SWEEP_MS: u64 = 1_000;

/// What the operator chose for the loop.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    /// Connections at most.
    pub connections_max: usize,
    /// Microseconds of polling without sleep before the loop blocks.
    pub busy_poll_us: u64,
}

/// Runs the node until it is asked to end.
pub fn run(bound: Bound, node: Node, clock: MonotonicClock, options: LoopOptions) -> Result<(), FatalReason> {
    let net = |doing: &str| {
        let doing = doing.to_owned();
        move |source| FatalReason::Net { doing, source }
    };
    let Bound { listener, reserve, poll, registry, signals } = bound;
    let mut listener = Listener::new(listener, reserve, options.connections_max);
    let mut signals = Signals::install(signals).map_err(net("install signal handlers"))?;
    poll.registry()
        .register(listener.source(), LISTENER, Interest::READABLE)
        .map_err(net("watch the listener"))?;
    poll.registry()
        .register(signals.source(), SIGNALS, Interest::READABLE)
        .map_err(net("watch for signals"))?;
    let event_loop = EventLoop {
        poll,
        conns: Conns::new(registry),
        listener: Some(listener),
        signals,
        node,
        clock,
        ready: Vec::new(),
        backlog: Vec::new(),
        extra_memory: 0,
        sweep_at: None,
        shown: Shown::new(),
        busy_poll_ns: options.busy_poll_us * 1_000,
    };
    event_loop.run()
}

struct EventLoop {
    poll: Poll,
    conns: Conns,
    listener: Option<Listener>,
    signals: Signals,
    node: Node,
    clock: MonotonicClock,
    /// Connections with events in this turn.
    ready: Vec<ConnId>,
    /// Connections with input that was not taken in the last turn.
    backlog: Vec<ConnId>,
    /// Bytes of input buffers beyond their first size.
    extra_memory: usize,
    sweep_at: Option<Time>,
    shown: Shown,
    busy_poll_ns: u64,
}

impl EventLoop {
    fn run(mut self) -> Result<(), FatalReason> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        crate::logsink::defer();
        loop {
            self.shown.update(&self.node);
            let timeout = self.timeout();
            crate::logsink::drain();
            self.wait(&mut events, timeout)?;
            let now = self.clock.now();
            self.conns.now = now;
            self.node.begin_turn(now);
            self.note_events(&events);
            self.turn(now)?;
            if self.has_ended() {
                return self.node.close_log();
            }
        }
    }

    /// Waits for events: with `--busy-poll-us` first without sleeping, because waking a processor that has
    /// gone idle costs more than a short fdatasync.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), FatalReason> {
        let mut busy = self.busy_poll_ns > 0 && timeout != Some(Duration::ZERO);
        let give_up = if busy { Time(self.clock.now().0 + self.busy_poll_ns) } else { Time(0) };
        loop {
            count(Syscall::EpollWait);
            match self.poll.poll(events, if busy { Some(Duration::ZERO) } else { timeout }) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(FatalReason::Net { doing: "wait for events".to_owned(), source }),
            }
            if !busy || !events.is_empty() {
                return Ok(());
            }
            busy = self.clock.now() < give_up;
        }
    }

    fn turn(&mut self, now: Time) -> Result<(), FatalReason> {
        if !self.node.takes_connections() {
            self.listener = None;
        }
        self.accept(now)?;
        let input_left = self.take_input(now)?;
        self.node.finish_turn(&mut self.conns, input_left)?;
        self.dial()?;
        self.sweep(now)?;
        self.node.flush(&mut self.conns)?;
        self.node.note_replied();
        let freed = self.conns.free_doomed();
        self.extra_memory -= freed.extra_memory;
        if let (Some(listener), 1..) = (&mut self.listener, freed.connections) {
            listener.on_descriptor_freed();
        }
        Ok(())
    }

    /// Until when the poll may sleep.
    fn timeout(&mut self) -> Option<Duration> {
        let (node, conns) = (&self.node, &mut self.conns);
        let runnable = self.backlog.iter().any(|conn| {
            let Some(connection) = conns.get_mut(*conn) else { return false };
            let mut intake = std::mem::take(&mut connection.intake);
            let may = intake.may_deliver(node, conns.output_if_open(*conn), *conn);
            conns.get_mut(*conn).expect("it was there").intake = intake;
            may
        });
        let conns = &self.conns;
        let feeding =
            self.node.wants_feeding(|conn| conns.output_if_open(conn).map_or(usize::MAX, |out| out.len()));
        if runnable || feeding {
            return Some(Duration::ZERO);
        }
        let now = self.clock.now();
        let accept = self.listener.as_ref().and_then(|listener| listener.deadline(now));
        let deadlines = [self.node.next_deadline(), accept, self.sweep_at, self.node.shutdown_deadline()];
        let earliest = deadlines.into_iter().flatten().min()?;
        // Rounded up to the poll's millisecond, or the loop would spin through the last one.
        Some(Duration::from_millis(earliest.since(now).div_ceil(1_000_000)))
    }

    fn note_events(&mut self, events: &Events) {
        for event in events {
            match event.token() {
                LISTENER => self.listener.iter_mut().for_each(Listener::on_ready),
                // Each turn looks for its end; this only woke the loop.
                FLUSH => {}
                SIGNALS => {
                    self.signals.drain();
                    self.begin_shutdown();
                }
                Token(raw) => {
                    let Some(connection) = self.conns.get_mut(ConnId(raw as u64)) else { continue };
                    connection.readable |= event.is_readable() || event.is_error();
                    connection.read_closed |= event.is_read_closed() || event.is_error();
                    if event.is_writable() {
                        connection.write_blocked = false;
                    }
                    if !connection.listed_ready {
                        connection.listed_ready = true;
                        self.ready.push(connection.id);
                    }
                }
            }
        }
    }

    fn begin_shutdown(&mut self) {
        self.node.begin_shutdown();
    }

    fn has_ended(&self) -> bool {
        let unsent =
            || self.conns.iter().any(|connection| connection.is_open() && !connection.output.is_empty());
        let late = self.node.shutdown_deadline().is_some_and(|deadline| self.clock.now() >= deadline);
        self.node.may_end() && (late || !unsent())
    }

    fn accept(&mut self, now: Time) -> Result<(), FatalReason> {
        let Some(listener) = &mut self.listener else { return Ok(()) };
        listener.on_timer(now);
        let mut accepted = 0;
        loop {
            let open = self.conns.len();
            match listener.accept(accepted, open, now) {
                Ok(Accepted::Enough) => break,
                Ok(Accepted::Stream(stream, address)) => {
                    accepted += 1;
                    // A reply must not wait for the client's delayed ACK. It fails only on a dead socket.
                    count(Syscall::Setsockopt);
                    let _ = stream.set_nodelay(true);
                    let remote_ip = address.ip().to_string();
                    match self.conns.insert(stream, address.to_string(), Phase::Open) {
                        Ok(conn) => self.node.on_accept(conn, remote_ip),
                        Err(error) => log_warn!("net", "cannot watch a connection from {address}: {error}"),
                    }
                }
                Err(source) => {
                    return Err(FatalReason::Net { doing: "accept connections".to_owned(), source });
                }
            }
        }
        self.node.counters.accepts_refused = listener.refused;
        Ok(())
    }

    /// Reads and delivers on every connection that has something. True: a peer's input was left unread.
    fn take_input(&mut self, now: Time) -> Result<bool, FatalReason> {
        let mut todo = std::mem::take(&mut self.ready);
        let backlog = std::mem::take(&mut self.backlog);
        for conn in backlog {
            if self.conns.get_mut(conn).is_some_and(|connection| !connection.listed_ready) {
                todo.push(conn);
            }
        }
        let mut input_left = false;
        for conn in todo.drain(..) {
            let Some(connection) = self.conns.get_mut(conn) else { continue };
            connection.listed_ready = false;
            match connection.phase {
                Phase::Connecting(_) => self.finish_dial(conn)?,
                Phase::Open => {
                    self.write_on_event(conn)?;
                    self.read_and_deliver(conn, now)?;
                }
                Phase::Draining(_) => {
                    self.conns.flush_one(conn);
                }
                Phase::Doomed => {}
            }
            let left =
                self.conns.get(conn).is_some_and(|c| c.is_open() && (c.readable || c.intake.has_frame()));
            if left {
                self.backlog.push(conn);
                let throttled = self.conns.get(conn).is_some_and(|c| c.intake.is_throttled());
                input_left |= self.node.is_peer(conn) && !throttled;
            }
        }
        self.ready = todo;
        Ok(input_left)
    }

    fn write_on_event(&mut self, conn: ConnId) -> Result<(), FatalReason> {
        let waits = self.conns.get(conn).is_some_and(|c| !c.output.is_empty() && !c.write_blocked);
        if waits && let Some(why) = self.conns.flush_one(conn) {
            self.over(conn, &why)?;
        }
        Ok(())
    }

    fn read_and_deliver(&mut self, conn: ConnId, now: Time) -> Result<(), FatalReason> {
        let is_peer = self.node.is_peer(conn);
        let budget = if is_peer { READ_PER_TURN_PEER } else { READ_PER_TURN_CLIENT };
        if let (true, Some(connection)) = (is_peer, self.conns.get_mut(conn)) {
            connection.intake.expect_bulk();
        }
        let mut read = 0;
        loop {
            // What is buffered goes first: it may be all this turn's budget allows.
            if !self.deliver(conn, now)? {
                return Ok(());
            }
            let Some(connection) = self.conns.get_mut(conn).filter(|c| c.is_open()) else { return Ok(()) };
            if !connection.readable || read >= budget {
                return Ok(());
            }
            self.admit(conn);
            let Some(connection) = self.conns.get_mut(conn) else { return Ok(()) };
            let before = connection.intake.extra_memory();
            let input = connection.read();
            let after = connection.intake.extra_memory();
            self.extra_memory = self.extra_memory + after - before;
            match input {
                Input::Bytes(size) => read += size.max(1),
                Input::Nothing => return Ok(()),
                Input::Over(why) => return self.over(conn, &why),
            }
        }
    }

    /// A frame for which the memory budget has no room is refused before anything is allocated (P7).
    fn admit(&mut self, conn: ConnId) {
        let Some(connection) = self.conns.get_mut(conn) else { return };
        let (has, wants) = (connection.intake.extra_memory(), connection.intake.extra_wanted());
        if wants <= has || self.extra_memory + (wants - has) <= INPUT_BUDGET || self.node.is_peer(conn) {
            return;
        }
        connection.intake.discard_frame();
        self.node.refuse_unread(&mut self.conns, conn, wants);
    }

    /// False: nothing more can be delivered on this connection in this turn.
    fn deliver(&mut self, conn: ConnId, now: Time) -> Result<bool, FatalReason> {
        let Some(connection) = self.conns.get_mut(conn) else { return Ok(false) };
        let mut intake = std::mem::take(&mut connection.intake);
        let before = intake.extra_memory();
        let delivered = intake.deliver(&mut self.node, &mut self.conns, conn, now)?;
        self.extra_memory = self.extra_memory + intake.extra_memory() - before;
        if intake.deadline().is_some() && self.sweep_at.is_none() {
            self.sweep_at = Some(now.after_ms(SWEEP_MS));
        }
        if let Some(connection) = self.conns.get_mut(conn) {
            connection.intake = intake;
        }
        match delivered {
            Delivered::All => Ok(true),
            Delivered::Blocked => Ok(false),
            Delivered::Fenced(why) => {
                let remote = self.conns.get(conn).map_or_else(String::new, |c| c.remote.clone());
                self.node.counters.fenced += 1;
                log_warn!("net", "fenced {remote}: {why}");
                self.over(conn, &format!("fenced: {why}"))?;
                Ok(false)
            }
        }
    }

    /// A connection ended, and not by the node's wish.
    fn over(&mut self, conn: ConnId, why: &str) -> Result<(), FatalReason> {
        self.node.on_closed(&mut self.conns, conn, why)?;
        self.conns.doom(conn);
        Ok(())
    }

    fn dial(&mut self) -> Result<(), FatalReason> {
        for (dial, address) in self.conns.take_dials() {
            if let Err(why) = self.conns.begin_dial(dial, &address) {
                self.node.on_dial_failed(&mut self.conns, dial, &why)?;
            }
        }
        Ok(())
    }

    fn finish_dial(&mut self, conn: ConnId) -> Result<(), FatalReason> {
        let Some(connection) = self.conns.get_mut(conn) else { return Ok(()) };
        let Phase::Connecting(dial) = connection.phase else { return Ok(()) };
        let stream = connection.transport.source();
        count(Syscall::Getsockopt);
        count(Syscall::Getpeername);
        let failed = match (stream.take_error(), stream.peer_addr()) {
            (Ok(Some(error)), _) | (Err(error), _) => Some(error),
            (Ok(None), Ok(_)) => None,
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => return Ok(()),
            (Ok(None), Err(error)) => Some(error),
        };
        if let Some(error) = failed {
            self.conns.doom(conn);
            return self.node.on_dial_failed(&mut self.conns, dial, &error.to_string());
        }
        count(Syscall::Setsockopt);
        let _ = stream.set_nodelay(true);
        connection.phase = Phase::Open;
        self.node.on_dialed(&mut self.conns, dial, conn);
        Ok(())
    }

    /// Closes what is past a deadline: an unfinished frame, last words that nobody takes.
    fn sweep(&mut self, now: Time) -> Result<(), FatalReason> {
        let draining = |c: &connection::Connection| matches!(c.phase, Phase::Draining(_));
        if self.conns.take_draining() {
            self.sweep_at.get_or_insert(now.after_ms(SWEEP_MS));
        }
        if self.sweep_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.sweep_at = None;
        let mut late = Vec::new();
        for connection in self.conns.iter() {
            let deadline = match connection.phase {
                Phase::Draining(deadline) => Some(deadline),
                Phase::Open => connection.intake.deadline(),
                Phase::Connecting(_) | Phase::Doomed => None,
            };
            if deadline.is_some_and(|deadline| now >= deadline) {
                late.push((connection.id, draining(connection)));
            } else if deadline.is_some() {
                self.sweep_at = Some(now.after_ms(SWEEP_MS));
            }
        }
        for (conn, draining) in late {
            if draining {
                self.conns.doom(conn);
            } else {
                log_info!("net", "closed a connection whose frame was not finished in time");
                self.node.counters.fenced += 1;
                self.over(conn, "its frame was not finished in time")?;
            }
        }
        Ok(())
    }
}
