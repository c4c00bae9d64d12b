//! One run of a load: all connections on one thread and one poll loop, like the node, so that the generator
//! is not what is measured.
//!
//! One turn: poll, then for each connection that is readable: read until the socket is drained, take the
//! time once, find the replies, ask for as much as was answered, write once. Nothing is allocated per
//! operation and there are two syscalls per connection and turn.
//!
//! Closed loop: every connection keeps its pipeline full. Open loop: request k is due at k / rate, whatever
//! the store does; it goes to the next connection with a free place, and if there is none it waits and its
//! response time grows. Waiting for the due time is left to a timerfd, because poll's own timeout is in
//! milliseconds, and spinning would take the processor from the store on the same machine.
//!
//! Nothing is dropped: what is never answered and what was due but never sent are counted as errors, a lost
//! connection too. Left out: reconnecting. A connection that is lost stays lost and the report says so.

mod connection;
mod pace;

use std::io;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use crate::clock::{Clock, seconds_ns};
use crate::measure::Run;
use crate::protocol::{Dialect, Operation};
use crate::template::Random;
use connection::{Connection, Progress};
use pace::Pace;

/// What is asked of whom, and for how long.
pub struct Load<'a> {
    /// HOST:PORT.
    pub endpoint: &'a str,
    /// A fresh dialect for every connection.
    pub dialect: Box<dyn Fn() -> Dialect + 'a>,
    /// Connections.
    pub connections: usize,
    /// Requests under way on each, at most.
    pub pipeline: usize,
    /// Which requests.
    pub source: Source,
    /// Requests per second; `None` in a closed loop.
    pub rate: Option<f64>,
    /// Seconds before the measured time.
    pub warmup: f64,
    /// Seconds measured. A source that ends, ends the run earlier.
    pub duration: f64,
}

/// Where the next request comes from.
#[derive(Debug)]
pub enum Source {
    /// Keys drawn evenly.
    Drawn {
        /// Of so many.
        keys: u64,
        /// Of a hundred requests so many are GET.
        get_percent: u8,
        /// The draw.
        random: Random,
    },
    /// A PUT of every key below `keys`, in order, then nothing.
    Fill {
        /// The key that is next.
        next: u64,
        /// How many.
        keys: u64,
    },
}

impl Source {
    #[inline]
    fn next(&mut self) -> Option<(Operation, u64)> {
        match self {
            Source::Drawn { keys, get_percent, random } => {
                // No draw is spent on what is certain.
                let is_get = match *get_percent {
                    0 => false,
                    100 => true,
                    percent => random.below(100) < u64::from(percent),
                };
                let operation = if is_get { Operation::Get } else { Operation::Put };
                Some((operation, random.below(*keys)))
            }
            Source::Fill { next, keys } => {
                let key = *next;
                *next += 1;
                (key < *keys).then_some((Operation::Put, key))
            }
        }
    }
}

/// Edge-triggered: asked for once, and a writable event comes only after a write that did not fit.
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);
const TOKEN_TIMER: Token = Token(usize::MAX);
/// Seconds after the measured time in which what was due or sent in it is still sent and waited for.
const GRACE_SECONDS: f64 = 2.0;

/// Runs it. `progress` is called about ten times a second with the seconds gone and the successes so far.
pub fn run(mut load: Load<'_>, progress: &mut dyn FnMut(f64, u64)) -> Result<Run, String> {
    let describe = |error: io::Error| format!("{}: {error}", load.endpoint);
    let mut poll = Poll::new().map_err(describe)?;
    let mut connections = Vec::with_capacity(load.connections);
    for index in 0..load.connections {
        let mut connection =
            Connection::open(load.endpoint, (load.dialect)(), load.pipeline).map_err(describe)?;
        connection.register(poll.registry(), Token(index)).map_err(describe)?;
        connections.push(connection);
    }
    let clock = Clock::start();
    let begin_ns = seconds_ns(load.warmup);
    let window = Window {
        begin_ns,
        end_ns: begin_ns + seconds_ns(load.duration),
        run: Run::new(load.rate.is_some(), load.duration),
        clock,
    };
    let pace = match load.rate {
        Some(rate) => Some(Pace::new(rate, poll.registry(), TOKEN_TIMER).map_err(describe)?),
        None => None,
    };
    let source = std::mem::replace(&mut load.source, Source::Fill { next: 0, keys: 0 });
    let mut generator = Generator { connections, window, pace, source, cursor: 0, exhausted: false };
    generator.run(&mut poll, progress).map_err(describe)?;
    Ok(generator.finish())
}

/// The measured time, and what fell into it.
struct Window {
    begin_ns: u64,
    end_ns: u64,
    run: Run,
    clock: Clock,
}

struct Generator {
    connections: Vec<Connection>,
    window: Window,
    pace: Option<Pace>,
    source: Source,
    /// Open loop: where the search for a free place goes on.
    cursor: usize,
    /// The source has ended.
    exhausted: bool,
}

impl Generator {
    fn run(&mut self, poll: &mut Poll, progress: &mut dyn FnMut(f64, u64)) -> io::Result<()> {
        let mut events = Events::with_capacity(self.connections.len() + 1);
        let grace_end_ns = self.window.end_ns + seconds_ns(GRACE_SECONDS);
        let mut progress_due_ns = 0;
        for index in 0..self.connections.len() {
            self.turn(index, false);
        }
        loop {
            let now_ns = self.window.clock.now_ns();
            let sending = self.is_sending(now_ns);
            let quiet = self.connections.iter().all(Connection::is_quiet);
            let lost = self.connections.iter().all(|connection| !connection.is_open());
            if lost || now_ns >= grace_end_ns || (!sending && quiet) {
                return Ok(());
            }
            if now_ns >= progress_due_ns {
                progress(now_ns as f64 / 1e9, self.window.run.response_ns().len());
                progress_due_ns = now_ns + 100_000_000;
            }
            if sending {
                self.send_due(now_ns)?;
            }
            match poll.poll(&mut events, Some(Duration::from_millis(20))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in events.iter().filter(|event| event.token() != TOKEN_TIMER) {
                self.turn(event.token().0, true);
            }
        }
    }

    /// Whether there is something to ask still. What was due in the measured time is sent even after it.
    fn is_sending(&self, now_ns: u64) -> bool {
        match &self.pace {
            Some(pace) => pace.due_ns() < self.window.end_ns,
            None => now_ns < self.window.end_ns && !self.exhausted,
        }
    }

    /// One connection's turn.
    #[inline]
    fn turn(&mut self, index: usize, ready: bool) {
        let connection = &mut self.connections[index];
        if !connection.is_open() {
            return;
        }
        let mut progress = Progress::Open;
        if ready {
            progress = connection.receive(&mut self.window);
        }
        let now_ns = self.window.clock.now_ns();
        if self.pace.is_none() && now_ns < self.window.end_ns {
            while connection.has_place() {
                let Some((operation, key)) = self.source.next() else {
                    self.exhausted = true;
                    break;
                };
                connection.ask(operation, key, now_ns);
            }
        }
        if progress == Progress::Open {
            progress = connection.send(now_ns);
        }
        if let Progress::Lost(why) = progress {
            connection.lose(&why, &mut self.window.run);
        }
    }

    /// Open loop: sends what is due to whoever has a place, and sets the timer for the next.
    fn send_due(&mut self, now_ns: u64) -> io::Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let count = self.connections.len();
        let mut full = 0;
        while pace.due_ns() <= now_ns && pace.due_ns() < self.window.end_ns && full < count {
            let connection = &mut self.connections[self.cursor];
            self.cursor = (self.cursor + 1) % count;
            if !connection.has_place() {
                full += 1;
                continue;
            }
            full = 0;
            let (operation, key) = self.source.next().expect("an open loop draws from an endless source");
            connection.ask(operation, key, pace.take());
        }
        pace.arm(self.window.clock)?;
        for connection in &mut self.connections {
            if let Progress::Lost(why) = connection.send(now_ns) {
                connection.lose(&why, &mut self.window.run);
            }
        }
        Ok(())
    }

    /// Counts what is still open, and gives the result.
    fn finish(mut self) -> Run {
        for connection in &mut self.connections {
            self.window.run.record_error("no reply until the end", connection.under_way() as u64);
        }
        if let Some(pace) = &self.pace {
            let unsent = pace.due_count(self.window.end_ns);
            self.window.run.record_error("due but never sent", unsent);
        }
        if self.exhausted {
            self.window.run.seconds = self.window.clock.now_ns() as f64 / 1e9;
        }
        self.window.run
    }
}

#[cfg(test)]
mod tests;
