//! One connection of the generator: what is under way on it, what is to be sent, what was received.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Registry, Token};

use super::{INTEREST, Window};
use crate::measure::Run;
use crate::protocol::{Answers, Dialect, Found, Operation};

/// Bytes read at once, and of the input buffer to begin with.
const INPUT_SIZE: usize = 64 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the connection lives on.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It does.
    Open,
    /// It does not, because.
    Lost(String),
}

/// One request under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u32,
    due_ns: u64,
    sent_ns: u64,
}

pub struct Connection {
    stream: Option<TcpStream>,
    dialect: Dialect,
    pipeline: usize,
    under_way: VecDeque<Asked>,
    /// Of those, so many at the back are not stamped as sent.
    unstamped: usize,
    input: Vec<u8>,
    input_end: usize,
    output: Vec<u8>,
    output_sent: usize,
}

impl Connection {
    /// Connects, blocking; from then on nothing blocks.
    pub fn open(endpoint: &str, mut dialect: Dialect, pipeline: usize) -> io::Result<Connection> {
        let mut output = Vec::with_capacity(INPUT_SIZE);
        dialect.greet(&mut output);
        Ok(Connection {
            stream: Some(connect(endpoint)?),
            dialect,
            pipeline,
            under_way: VecDeque::with_capacity(pipeline),
            unstamped: 0,
            input: vec![0; INPUT_SIZE],
            input_end: 0,
            output,
            output_sent: 0,
        })
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let stream = self.stream.as_mut().expect("a connection is registered when it was opened");
        registry.register(stream, token, INTEREST)
    }

    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    pub fn is_quiet(&self) -> bool {
        self.under_way.is_empty()
    }

    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    #[inline]
    pub fn has_place(&self) -> bool {
        self.under_way.len() < self.pipeline && self.stream.is_some()
    }

    /// Appends a request; [`Connection::send`] sends it.
    #[inline]
    pub fn ask(&mut self, operation: Operation, key_index: u64, due_ns: u64) {
        let number = self.dialect.request(&mut self.output, operation, key_index);
        self.under_way.push_back(Asked { number, due_ns, sent_ns: 0 });
        self.unstamped += 1;
    }

    /// Writes what is there, once. What the socket does not take goes with its next writable event.
    #[inline]
    pub fn send(&mut self, now_ns: u64) -> Progress {
        if self.unstamped > 0 {
            self.dialect.end_turn(&mut self.output);
            let first = self.under_way.len() - self.unstamped;
            self.under_way.range_mut(first..).for_each(|asked| asked.sent_ns = now_ns);
            self.unstamped = 0;
        }
        let Some(stream) = &mut self.stream else { return Progress::Open };
        while self.output_sent < self.output.len() {
            match stream.write(&self.output[self.output_sent..]) {
                Ok(size) => self.output_sent += size,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Progress::Lost(error.to_string()),
            }
        }
        self.output.clear();
        self.output_sent = 0;
        Progress::Open
    }

    /// Reads until the socket is drained and takes the replies.
    #[inline]
    pub fn receive(&mut self, window: &mut Window) -> Progress {
        loop {
            let Some(stream) = &mut self.stream else { return Progress::Open };
            if self.input_end == self.input.len() {
                // Only a reply larger than the buffer gets here.
                self.input.resize(self.input.len() * 2, 0);
            }
            let space = &mut self.input[self.input_end..];
            let space_size = space.len();
            match stream.read(space) {
                Ok(0) => return Progress::Lost("closed by the server".to_owned()),
                Ok(size) => {
                    self.input_end += size;
                    if let Err(why) = self.take_replies(window) {
                        return Progress::Lost(why);
                    }
                    // A short read has drained the socket: no read that only ends in EAGAIN.
                    if size < space_size {
                        return Progress::Open;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Open,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Progress::Lost(error.to_string()),
            }
        }
    }

    fn take_replies(&mut self, window: &mut Window) -> Result<(), String> {
        let now_ns = window.clock.now_ns();
        let mut at = 0;
        loop {
            match self.dialect.find(&self.input[at..self.input_end], &mut self.output)? {
                Found::NeedMore => break,
                Found::Skip(size) => at += size,
                Found::Reply { size, answers, error } => {
                    at += size;
                    match answers {
                        Answers::Oldest(count) => {
                            for _ in 0..count {
                                let asked = self.under_way.pop_front().ok_or("a reply to no request")?;
                                window.on_reply(asked, now_ns, error.as_deref());
                            }
                        }
                        Answers::Number(number) => {
                            let place = self.under_way.iter().position(|asked| asked.number == number);
                            let asked = place.and_then(|place| self.under_way.remove(place));
                            window.on_reply(asked.ok_or("a reply to no request")?, now_ns, error.as_deref());
                        }
                    }
                }
            }
        }
        self.input.copy_within(at..self.input_end, 0);
        self.input_end -= at;
        Ok(())
    }

    /// Gives the connection up and counts what was under way on it.
    pub fn lose(&mut self, why: &str, run: &mut Run) {
        self.stream = None;
        run.record_error(&format!("connection lost: {why}"), 1);
        run.record_error("under way on a lost connection", self.under_way.len() as u64);
        self.under_way.clear();
        self.unstamped = 0;
    }
}

impl Window {
    #[inline]
    fn on_reply(&mut self, asked: Asked, now_ns: u64, error: Option<&str>) {
        if let Some(error) = error {
            // Errors of the warm-up count too: there is no harmless time for them.
            self.run.record_error(error, 1);
            return;
        }
        if asked.due_ns >= self.begin_ns {
            self.run.record(now_ns - asked.sent_ns, now_ns - asked.due_ns);
        }
        if (self.begin_ns..self.end_ns).contains(&now_ns) {
            self.run.completed += 1;
        }
    }
}

fn connect(endpoint: &str) -> io::Result<TcpStream> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in std::net::ToSocketAddrs::to_socket_addrs(endpoint)? {
        match std::net::TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                return Ok(TcpStream::from_std(stream));
            }
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}
