//! recv, send to the followers, write, fdatasync, and a reply when enough disks have it.
//!
//! All that is read in one turn is one write and one fdatasync. It is on its way to the followers before
//! that, so their disks work while ours does. Replies that acks have made due leave before our own
//! fdatasync too: they need not wait for it.

use std::collections::VecDeque;
use std::io;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::bare_follower::{INPUT_SIZE, TOKEN_LISTENER, TOKEN_STDIN, announce, listen, read_some};
use super::file::LogFile;
use super::outbox::Outbox;
use crate::args::LeaderArgs;
use crate::protocol::FLOOR_REPLY_SIZE;

/// Tokens from here on are followers.
const TOKEN_FOLLOWERS: usize = 1 << 32;
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

struct Client {
    stream: TcpStream,
    /// The part of a request that has come.
    partial: Vec<u8>,
    outbox: Outbox,
}

struct Follower {
    stream: TcpStream,
    outbox: Outbox,
    /// Acks that have come in part.
    partial: Vec<u8>,
    /// Bytes of the stream on its disk.
    durable: u64,
}

/// So many requests of a client that are answered when the stream is committed up to `end`.
struct Waiting {
    end: u64,
    client: usize,
    count: usize,
}

struct Leader {
    file: LogFile,
    request_size: usize,
    followers_needed: usize,
    followers: Vec<Follower>,
    clients: Vec<Option<Client>>,
    waiting: VecDeque<Waiting>,
    batch: Vec<u8>,
    /// Bytes of the stream received, and on our disk.
    received: u64,
    durable: u64,
    input: Vec<u8>,
    /// Clients with replies to send in this turn.
    answered: Vec<usize>,
}

/// The process.
pub fn main(args: &LeaderArgs) -> Result<(), String> {
    let file = LogFile::create(&args.file.file)?;
    let serve = || -> io::Result<()> {
        let (mut poll, listener) = listen()?;
        let mut followers = Vec::new();
        for (index, address) in args.followers.iter().enumerate() {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(TOKEN_FOLLOWERS + index), INTEREST)?;
            followers.push(Follower { stream, outbox: Outbox::default(), partial: Vec::new(), durable: 0 });
        }
        announce(&listener)?;
        let leader = Leader {
            file,
            request_size: args.request_size,
            followers_needed: args.ack.followers_needed(followers.len()),
            followers,
            clients: Vec::new(),
            waiting: VecDeque::new(),
            batch: Vec::with_capacity(INPUT_SIZE),
            received: 0,
            durable: 0,
            input: vec![0; INPUT_SIZE],
            answered: Vec::new(),
        };
        leader.serve(&mut poll, &listener)
    };
    serve().map_err(|error| format!("bare leader: {error}"))
}

impl Leader {
    fn serve(mut self, poll: &mut Poll, listener: &TcpListener) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    TOKEN_STDIN => return Ok(()),
                    TOKEN_LISTENER => self.accept(poll, listener)?,
                    Token(token) if token >= TOKEN_FOLLOWERS => {
                        self.receive_acks(token - TOKEN_FOLLOWERS)?;
                    }
                    Token(client) => self.receive(client),
                }
            }
            self.forward()?;
            self.answer();
            if !self.batch.is_empty() {
                self.file.append_durably(&self.batch)?;
                self.batch.clear();
                self.durable = self.received;
                // With followers their acks come next; alone, this is what the replies wait for.
                self.answer();
            }
        }
    }

    fn accept(&mut self, poll: &Poll, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            poll.registry().register(&mut stream, Token(self.clients.len()), INTEREST)?;
            self.clients.push(Some(Client { stream, partial: Vec::new(), outbox: Outbox::default() }));
        }
    }

    /// Takes whole requests into the batch.
    fn receive(&mut self, index: usize) {
        let Some(client) = &mut self.clients[index] else { return };
        let mut taken = 0;
        loop {
            let size = match read_some(&mut client.stream, &mut self.input) {
                Ok(None) => break,
                Ok(Some(size)) if size > 0 => size,
                // A generator that is done: its number is not given out again.
                _ => {
                    self.clients[index] = None;
                    return;
                }
            };
            let begin = self.batch.len();
            self.batch.append(&mut client.partial);
            self.batch.extend_from_slice(&self.input[..size]);
            let count = (self.batch.len() - begin) / self.request_size;
            let end = begin + count * self.request_size;
            client.partial.extend_from_slice(&self.batch[end..]);
            self.batch.truncate(end);
            taken += count;
            if size < self.input.len() {
                break;
            }
        }
        self.received += (taken * self.request_size) as u64;
        if taken > 0 {
            self.waiting.push_back(Waiting { end: self.received, client: index, count: taken });
        }
        if !client.outbox.is_empty() {
            self.answered.push(index);
        }
    }

    fn receive_acks(&mut self, index: usize) -> io::Result<()> {
        let follower = &mut self.followers[index];
        let mut space = [0; 4096];
        while let Some(size) = read_some(&mut follower.stream, &mut space)? {
            if size == 0 {
                return Err(io::Error::other("a follower has ended"));
            }
            follower.partial.extend_from_slice(&space[..size]);
            let whole = follower.partial.len() / 8 * 8;
            if let Some(last) = follower.partial[..whole].last_chunk::<8>() {
                follower.durable = u64::from_be_bytes(*last);
            }
            follower.partial.drain(..whole);
            if size < space.len() {
                break;
            }
        }
        Ok(())
    }

    fn forward(&mut self) -> io::Result<()> {
        for follower in &mut self.followers {
            follower.outbox.append(&self.batch);
            follower.outbox.send(&mut follower.stream)?;
        }
        Ok(())
    }

    fn committed(&self) -> u64 {
        if self.followers_needed == 0 {
            return self.durable;
        }
        // There are two followers at most: the quickest is the quorum's, the slowest makes all.
        let acks = self.followers.iter().map(|follower| follower.durable);
        let enough = if self.followers_needed == 1 { acks.max() } else { acks.min() };
        self.durable.min(enough.unwrap_or(0))
    }

    /// One write per client whose requests are committed.
    fn answer(&mut self) {
        let committed = self.committed();
        while self.waiting.front().is_some_and(|waiting| waiting.end <= committed) {
            let waiting = self.waiting.pop_front().expect("the front was looked at");
            if let Some(client) = &mut self.clients[waiting.client] {
                if client.outbox.is_empty() {
                    self.answered.push(waiting.client);
                }
                client.outbox.append_zeros(waiting.count * FLOOR_REPLY_SIZE);
            }
        }
        for index in self.answered.drain(..) {
            let lost = self.clients[index]
                .as_mut()
                .is_some_and(|client| client.outbox.send(&mut client.stream).is_err());
            if lost {
                self.clients[index] = None;
            }
        }
    }
}
