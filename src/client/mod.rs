//! The blocking client: what `kv_client`, tests and benchmarks speak to a node with.
//!
//! A call sends one request and waits for its answer under one deadline, which also covers connecting
//! again and going where a NOT_LEADER answer points. What a failed call means for a write is in
//! [`ClientError`]: nothing is ever sent a second time unless the first one was surely not executed.
//!
//! A client of one node goes from there; one of several ([`Client::of_cluster`]) finds the leader among them and goes
//! on finding it through failovers, until a call's deadline (the rules are in `route.rs`).
//!
//! [`Client::send`], [`Client::flush`] and [`Client::receive`] pipeline: requests are answered in order.
//!
//! A [`Session`] numbers its writes: an answer that is lost is asked for again, and each write is executed once.
//!
//! What is left out: no pool, no threads, no retry of a lost answer to a write that is not numbered. A caller that
//! wants those knows better which of its writes may be repeated.

#![allow(clippy::disallowed_methods, reason = "a blocking client waits by the clock of its machine")]

mod backup;
mod connection;
mod doctor;
mod election_text;
mod error;
mod failure;
mod member_commands;
mod members;
mod once;
mod place;
mod progress;
mod route;
mod session;
mod survey;
mod table;
mod watch;

pub mod cli;
pub mod cluster_text;
pub mod measured_text;
pub mod output;
pub mod receipt_text;
pub mod status_text;

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::address::parse_address;
use crate::ids::{Lsn, Term};
use crate::limits::{FRAME_SIZE_MAX, FRAME_SLACK};
use crate::rng::Rng;
use crate::wire::client::{Inspect, ReadMode, Request, SizeProblem, Status};
pub use backup::{Fetch, FetchError};
pub use connection::OwnedReply;
use connection::{Connection, Deadline};
pub use error::{Answer, Asked, ClientError, DeadEnd, Loss};
pub use members::ListedMember;
use route::{Search, is_for_the_leader, points_elsewhere};
pub use session::{LastWrite, Session, WriteId};
pub use survey::{Surveyed, survey};

/// NOT_LEADER answers that one call follows, at most. Two are usual while leadership moves.
pub const HOPS_MAX: usize = 5;

/// A result, and where in the log it was served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served<T> {
    /// The result.
    pub value: T,
    /// A write's own LSN, for a read the last one applied.
    pub lsn: Lsn,
    /// The term of the node that answered.
    pub term: Term,
}

/// What a read found that asked for a way of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The value; `None`: there is none.
    pub value: Option<Vec<u8>>,
    /// Of a local read: for how long there may have been newer values elsewhere, as far as the node can tell.
    pub age: Option<Duration>,
}

/// A write with the node's account of where its time went.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// The receipt; `Null` from a node that keeps none.
    pub receipt: Value,
    /// From the request's first byte to the reply's last one as this client saw it, connecting not counted.
    pub round_trip: Duration,
    /// The node that the write was sent on to, whose connecting is in the round trip, if it was.
    pub sent_on_to: Option<String>,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pong {
    /// How long it took, connecting not counted.
    pub round_trip: Duration,
    /// What the node says besides: how far it is with loading its state. Else empty.
    pub note: String,
}

/// A client of one node, and of the leader that node names; or of several, and of whoever leads them.
///
/// A request that was sent on to the leader leaves the client there: later calls, reads too, go to
/// [`Client::address`]. After a lost connection the next call connects again, to the node the client was
/// made for, or to the next one of several: a leader that is gone must not hold its clients.
#[derive(Debug)]
pub struct Client {
    /// The nodes it was made for, each once; at least one.
    homes: Vec<String>,
    /// That of `connection`; without one it is one of `homes`.
    address: String,
    /// For pauses of a search.
    rng: Rng,
    timeout: Duration,
    follow_leader: bool,
    connection: Option<Connection>,
}

impl Client {
    /// Connects to `PORT`, `HOST:PORT` or `[IPV6]:PORT`. `timeout` bounds this and every later call.
    pub fn connect(address: &str, timeout: Duration) -> Result<Client, ClientError> {
        let mut client = Client::new(address, timeout)?;
        client.connected(Deadline::after(timeout))?;
        Ok(client)
    }

    /// A client that connects with its first call, under that call's deadline.
    pub fn new(address: &str, timeout: Duration) -> Result<Client, ClientError> {
        Client::of_cluster(&[address], timeout)
    }

    /// A client of all these nodes: PUT, DELETE and GET go to whoever serves them, until the call's deadline.
    /// Every other call goes to the node in use. With one node it is a client of that node. Panics without any.
    pub fn of_cluster(addresses: &[impl AsRef<str>], timeout: Duration) -> Result<Client, ClientError> {
        assert!(!addresses.is_empty(), "a client has a node to ask");
        let homes = each_once(addresses)?;
        // A hasher of the standard library is keyed by the system's randomness. Nothing here is a secret: clients
        // that were started together must only not ask in step.
        let rng = Rng::new(RandomState::new().hash_one(0));
        Ok(Client { address: homes[0].clone(), homes, rng, timeout, follow_leader: true, connection: None })
    }

    /// The same client, which returns NOT_LEADER instead of going to the leader, or to another node.
    #[must_use]
    pub fn no_follow(mut self) -> Client {
        self.follow_leader = false;
        self
    }

    /// Bounds later calls anew.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The node that the next call goes to, in normal form.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets a key.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Served<()>, ClientError> {
        let reply = self.call(&Request::Put { key, value })?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served((), &reply))
    }

    /// Reads a key; `None` if it is absent.
    pub fn get(&mut self, key: &[u8]) -> Result<Served<Option<Vec<u8>>>, ClientError> {
        let mut reply = self.call(&Request::Get { key })?;
        self.expect(&[Status::Ok, Status::NotFound], &reply)?;
        let value = (reply.status == Status::Ok).then(|| std::mem::take(&mut reply.payload));
        Ok(served(value, &reply))
    }

    /// Reads a key in another way than the node does by default.
    pub fn get_with(&mut self, key: &[u8], reads: ReadMode) -> Result<Served<Read>, ClientError> {
        let mut reply = self.call(&Request::GetWith { key, reads })?;
        self.expect(&[Status::Ok, Status::NotFound], &reply)?;
        let value = (reply.status == Status::Ok).then(|| std::mem::take(&mut reply.payload));
        Ok(served(Read { value, age: reply.age_ms.map(Duration::from_millis) }, &reply))
    }

    /// Removes a key; says whether it was there. The removal of an absent key has an LSN as well.
    pub fn delete(&mut self, key: &[u8]) -> Result<Served<bool>, ClientError> {
        let reply = self.call(&Request::Delete { key })?;
        self.expect(&[Status::Ok, Status::NotFound], &reply)?;
        Ok(served(reply.status == Status::Ok, &reply))
    }

    /// Asks whether the node is there; says how long the answer took, connecting not counted.
    pub fn ping(&mut self) -> Result<Served<Pong>, ClientError> {
        let deadline = Deadline::after(self.timeout);
        self.connected(deadline)?;
        let started = Instant::now();
        let reply = self.call_by(&Request::Ping, deadline)?;
        let round_trip = started.elapsed();
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(Pong { round_trip, note: reply.payload_text() }, &reply))
    }

    /// Sets a key, and returns where the time went.
    pub fn put_explained(&mut self, key: &[u8], value: &[u8]) -> Result<Served<Explained>, ClientError> {
        let deadline = Deadline::after(self.timeout);
        self.connected(deadline)?;
        let asked = self.address.clone();
        let started = Instant::now();
        let reply = self.call_by(&Request::PutExplained { key, value }, deadline)?;
        let round_trip = started.elapsed();
        self.expect(&[Status::Ok], &reply)?;
        // The write is done: a receipt that cannot be read is no reason to call it failed.
        let receipt = serde_json::from_slice(&reply.payload).unwrap_or(Value::Null);
        let sent_on_to = (self.address != asked).then(|| self.address.clone());
        Ok(served(Explained { receipt, round_trip, sent_on_to }, &reply))
    }

    /// The node's state as a JSON object.
    pub fn status(&mut self) -> Result<Served<Value>, ClientError> {
        let reply = self.call(&Request::Status)?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(self.document("the status", &reply)?, &reply))
    }

    /// The receipt of a write among the last 4,096 of this leader; `Err` with the node's words if it has none.
    pub fn explain(&mut self, lsn: Lsn) -> Result<Served<Result<Value, String>>, ClientError> {
        let reply = self.call(&Request::Inspect(Inspect::Receipt(lsn)))?;
        self.expect(&[Status::Ok, Status::NotFound], &reply)?;
        if reply.status == Status::NotFound {
            return Ok(served(Err(reply.payload_text()), &reply));
        }
        Ok(served(Ok(self.document("the receipt", &reply)?), &reply))
    }

    /// The receipts of the slowest writes since the start or a reset, slowest first: an array. At most 64.
    pub fn slowest(&mut self, count: u64) -> Result<Served<Value>, ClientError> {
        let reply = self.call(&Request::Inspect(Inspect::Slowest(count)))?;
        self.expect(&[Status::Ok], &reply)?;
        match serde_json::from_slice(&reply.payload) {
            Ok(receipts @ Value::Array(_)) => Ok(served(receipts, &reply)),
            Ok(_) => Err(self.bad_payload("the list of slowest writes is not a JSON array".to_owned())),
            Err(error) => Err(self.bad_payload(format!("the list of slowest writes is not JSON: {error}"))),
        }
    }

    /// What the writes above this percentile (in millionths: 999,000 is p99.9) have in common.
    pub fn tail(&mut self, millionths: u64) -> Result<Served<Value>, ClientError> {
        self.inspect(Inspect::Tail(millionths), "the tail")
    }

    /// Percentiles of every stage: an object with one object for each.
    pub fn latency(&mut self) -> Result<Served<Value>, ClientError> {
        self.inspect(Inspect::Latency, "the latency table")
    }

    /// The node's ledger of system calls.
    pub fn syscalls(&mut self) -> Result<Served<Value>, ClientError> {
        self.inspect(Inspect::Syscalls, "the ledger of system calls")
    }

    /// Makes the node forget its histograms and its slowest writes. The ledger goes on.
    pub fn reset_measurements(&mut self) -> Result<Served<()>, ClientError> {
        let reset = self.inspect(Inspect::Reset, "the answer")?;
        Ok(Served { value: (), lsn: reset.lsn, term: reset.term })
    }

    /// Makes the node make a snapshot; with `wait` the answer comes when it is durable, and a terminal on stderr shows
    /// how far it is. Returns the node's account.
    pub fn snapshot(&mut self, wait: bool) -> Result<Served<Value>, ClientError> {
        let request = Request::Snapshot { wait };
        let reply = if wait { self.call_for_snapshot(&request)? } else { self.call(&request)? };
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Makes the node fence, compare, then lead; with `force` even where writes may be lost by it. Returns
    /// the node's account of it: an object, or the text where it is none.
    pub fn promote(&mut self, force: bool) -> Result<Served<Value>, ClientError> {
        let reply = self.call(&Request::Promote { force })?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Makes the elected leader hand over, to the member at this address or (empty) to the one that holds most. Goes
    /// where NOT_LEADER points. The answer comes when another node leads.
    pub fn transfer(&mut self, to: &str) -> Result<Served<Value>, ClientError> {
        let to =
            if to.is_empty() { String::new() } else { parse_address(to).map_err(ClientError::Address)? };
        let reply = self.call(&Request::Transfer { address: &to })?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Makes the node stop leading and follow another; with `discard` it may cut below its commit LSN once.
    pub fn follow(&mut self, leader: &str, discard: bool) -> Result<Served<Value>, ClientError> {
        let leader = parse_address(leader).map_err(ClientError::Address)?;
        let reply = self.call(&Request::Follow { address: &leader, discard })?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(account(&reply), &reply))
    }

    /// Sends one request and returns its answer, whatever the status. A PUT, DELETE or GET goes where NOT_LEADER
    /// points. Panics if pipelined replies are still to be received: whose answer would it be?
    pub fn call(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError> {
        self.call_by(request, Deadline::after(self.timeout))
    }

    /// Puts a request behind those that wait to be sent. Its sizes may be beyond the limits as long as it
    /// fits into a frame, so that a node's answer to that can be seen.
    pub fn send(&mut self, request: &Request<'_>) -> Result<(), ClientError> {
        if let Some(problem) = request.size_problem().filter(|problem| !fits_into_a_frame(problem, request)) {
            return Err(ClientError::TooLarge(problem));
        }
        self.connected(Deadline::after(self.timeout))?.push(request);
        Ok(())
    }

    /// Sends what waits to be sent. It does not receive meanwhile: a node reads no further while a client
    /// takes no replies ([`crate::limits::CLIENT_OUTPUT_HIGH_WATER`]), so receive before that many are due.
    /// After a timeout the rest still waits.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let deadline = Deadline::after(self.timeout);
        self.connected(deadline)?.flush(deadline)
    }

    /// Receives the answer to the oldest request sent. Panics if none is due. After a timeout it is still
    /// due.
    pub fn receive(&mut self) -> Result<OwnedReply, ClientError> {
        let deadline = Deadline::after(self.timeout);
        self.connected(deadline)?.receive(deadline)
    }

    /// Requests sent, or waiting to be sent, that have no answer yet.
    pub fn replies_due(&self) -> usize {
        self.connection.as_ref().map_or(0, Connection::replies_due)
    }

    fn call_by(&mut self, request: &Request<'_>, deadline: Deadline) -> Result<OwnedReply, ClientError> {
        if let Some(problem) = request.size_problem() {
            return Err(ClientError::TooLarge(problem));
        }
        let is_routed = self.follow_leader && is_for_the_leader(request);
        if is_routed && self.homes.len() > 1 {
            return self.search(request, deadline, &mut Search::default());
        }
        let reply = self.exchange(request, deadline)?;
        if is_routed && points_elsewhere(&reply) {
            return self.call_leader(request, reply, deadline);
        }
        Ok(reply)
    }

    fn connected(&mut self, deadline: Deadline) -> Result<&mut Connection, ClientError> {
        match &mut self.connection {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(Connection::dial(&self.address, deadline)?)),
        }
    }

    /// On failure the connection is dropped: a late answer must not be taken for that to another request.
    fn exchange(&mut self, request: &Request<'_>, deadline: Deadline) -> Result<OwnedReply, ClientError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::dial(&self.address, deadline)?,
        };
        let result = connection.exchange(request, deadline);
        match result {
            Ok(_) => self.connection = Some(connection),
            Err(_) => self.go_home(),
        }
        result
    }

    fn expect(&self, wanted: &[Status], reply: &OwnedReply) -> Result<(), ClientError> {
        if wanted.contains(&reply.status) {
            return Ok(());
        }
        Err(ClientError::Server {
            address: self.address.clone(),
            status: reply.status,
            lsn: reply.lsn,
            term: reply.term,
            message: reply.payload_text(),
        })
    }

    fn inspect(&mut self, what: Inspect, name: &str) -> Result<Served<Value>, ClientError> {
        let reply = self.call(&Request::Inspect(what))?;
        self.expect(&[Status::Ok], &reply)?;
        Ok(served(self.document(name, &reply)?, &reply))
    }

    fn document(&self, what: &str, reply: &OwnedReply) -> Result<Value, ClientError> {
        match serde_json::from_slice(&reply.payload) {
            Ok(document @ Value::Object(_)) => Ok(document),
            Ok(_) => Err(self.bad_payload(format!("{what} is not a JSON object"))),
            Err(error) => Err(self.bad_payload(format!("{what} is not JSON: {error}"))),
        }
    }

    fn bad_payload(&self, why: String) -> ClientError {
        ClientError::ReadLost { address: self.address.clone(), why: Loss::BadPayload(why) }
    }
}

/// Addresses in normal form, in their order.
fn each_once(addresses: &[impl AsRef<str>]) -> Result<Vec<String>, ClientError> {
    let mut nodes = Vec::with_capacity(addresses.len());
    for address in addresses {
        let node = parse_address(address.as_ref()).map_err(ClientError::Address)?;
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

fn served<T>(value: T, reply: &OwnedReply) -> Served<T> {
    Served { value, lsn: reply.lsn, term: reply.term }
}

fn account(reply: &OwnedReply) -> Value {
    match serde_json::from_slice(&reply.payload) {
        Ok(document @ Value::Object(_)) => document,
        _ => Value::String(reply.payload_text()),
    }
}

fn fits_into_a_frame(problem: &SizeProblem, request: &Request<'_>) -> bool {
    let other = match request {
        Request::Put { key, value } | Request::PutExplained { key, value } => {
            key.len() + value.len() - problem.size
        }
        _ => 0,
    };
    problem.size + other + FRAME_SLACK <= FRAME_SIZE_MAX
}
