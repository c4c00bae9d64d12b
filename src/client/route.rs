//! Where a request goes: on to the leader that a node names, and, for a client of several nodes, to whoever serves it.
//!
//! A client of *one* node follows the addresses in its NOT_LEADER answers and ends where they end. A client of
//! *several* searches until its deadline, in rounds:
//!
//! - A round asks every node once: the one in use first, then whomever a NOT_LEADER names, else the next of the list.
//! - Between two rounds it waits, with jitter, so that the clients of a cluster that votes do not ask in step.
//! - A new connection is pinged before a request is sent on it. A process that is stopped has a kernel that takes
//!   connections and bytes all the same: a write sent there would have an outcome that nobody knows, though another
//!   node would have served it.
//! - A node that is silent costs a round its *patience*, not the deadline. The patience doubles with every round, so
//!   that a node far away, or a slow one, is reached as well.
//!
//! What is never done: a plain write that left, and may have been executed, is not sent again. Only an answer that says
//! that nothing was done, or a connection that was never made, leads to another node. A read is asked again.
//!
//! A write that is *numbered* (`session.rs`) is asked again as well, with the same number, however its answer was
//! lost: whoever executed it answers as the first time. It searches in rounds like a client of several nodes, though
//! it be of one. From the moment its outcome is unknown, an answer that only says "not now" (BUSY, DISK_FULL) settles
//! nothing: the first request may still arrive. So it is asked until there is the answer to that number, or the
//! deadline passes.

use std::thread;
use std::time::Duration;

use super::connection::{Connection, Deadline, OwnedReply};
use super::error::{Answer, Asked, ClientError, DeadEnd};
use super::{Client, HOPS_MAX, WriteId};
use crate::address::parse_address;
use crate::rng::Rng;
use crate::wire::client::{ReadMode, Request, Status, WriteOp};

/// How long a silent node is waited for in the first round. On one machine an answer takes 0.1 ms and an election
/// some 100 ms; this is long enough for a round trip of a tenth of a second to a node that is busy as well.
const PATIENCE_MIN: Duration = Duration::from_millis(250);
/// The wait between the first two rounds, at most. It doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The wait between two rounds, at most: what a search adds to the time in which a cluster has no leader.
const PAUSE_MAX: Duration = Duration::from_millis(64);
/// The patience, and the wait, stop growing after this many rounds.
const DOUBLINGS_MAX: u32 = 12;

/// Added to the patience for each KiB that a request carries: a link of 8 Mbit/s takes that long.
const PATIENCE_PER_KIB: Duration = Duration::from_millis(1);

/// What came of asking one node.
enum Step {
    /// This is the answer.
    Done(OwnedReply),
    /// None of the node's: ask another one, the one named first.
    Elsewhere { why: Answer, named: Option<String> },
}

/// What is known of a request while nodes are asked for it.
#[derive(Debug, Default)]
pub(super) struct Search {
    asked: Vec<Asked>,
    rounds: u32,
    /// How often it left whole.
    pub(super) tries: u32,
    /// Of a numbered write: one of those may have been executed, or may be yet.
    pub(super) may_be_done: bool,
}

impl Client {
    /// Goes where NOT_LEADER points. Each node on the way said that it wrote nothing, so asking the next
    /// one is no repetition.
    pub(super) fn call_leader(
        &mut self,
        request: &Request<'_>,
        mut reply: OwnedReply,
        deadline: Deadline,
    ) -> Result<OwnedReply, ClientError> {
        let mut path = vec![self.address.clone()];
        loop {
            let named = reply.payload_text();
            let next = match next_hop(&path, &named) {
                Ok(next) => next,
                Err(why) => return Err(self.no_leader(path, named, why)),
            };
            match Connection::dial(&next, deadline) {
                Ok(connection) => self.connection = Some(connection),
                Err(ClientError::Connect { why, .. }) => {
                    return Err(self.no_leader(path, named, DeadEnd::Unreachable(why)));
                }
                Err(other) => return Err(other),
            }
            self.address = next;
            reply = self.exchange(request, deadline)?;
            if !points_elsewhere(&reply) {
                return Ok(reply);
            }
            path.push(self.address.clone());
        }
    }

    fn no_leader(&mut self, path: Vec<String>, named: String, why: DeadEnd) -> ClientError {
        if self.address != self.homes[0] {
            self.go_home();
        }
        ClientError::NoLeader { path, named, why }
    }

    /// Asks all nodes, again and again, until one serves the request or the deadline passes.
    pub(super) fn search(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
        search: &mut Search,
    ) -> Result<OwnedReply, ClientError> {
        loop {
            let patience = doubled(PATIENCE_MIN, search.rounds);
            if let Some(reply) = self.round(request, deadline, patience, search)? {
                return Ok(reply);
            }
            search.rounds += 1;
            let pause = doubled(PAUSE_MIN, search.rounds - 1).min(PAUSE_MAX);
            let pause = jittered(&mut self.rng, pause);
            // A round takes time too: a write that is sent at the last moment has an unknown outcome, for nothing.
            if deadline.left().is_ok_and(|left| left > 2 * pause) {
                thread::sleep(pause);
            } else {
                return Err(search.given_up(request, deadline.timeout()));
            }
        }
    }

    /// Asks every node once; `None` if none of them served it.
    fn round(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
        patience: Duration,
        search: &mut Search,
    ) -> Result<Option<OwnedReply>, ClientError> {
        let mut in_round: Vec<String> = Vec::new();
        let mut next = Some(self.address.clone());
        while let Some(address) = next {
            if deadline.left().is_err() {
                break;
            }
            self.go_to(&address);
            let (why, named) = match self.ask(request, deadline, patience, search)? {
                Step::Done(reply) => return Ok(Some(reply)),
                Step::Elsewhere { why, named } => (why, named),
            };
            // What the deadline cut short says less than what was said before.
            let is_new = deadline.left().is_ok() || search.asked.iter().all(|asked| asked.address != address);
            if is_new {
                note(&mut search.asked, &address, why);
            }
            in_round.push(address);
            let is_new = |address: &String| !in_round.contains(address);
            next = named.filter(is_new).or_else(|| self.homes.iter().find(|home| is_new(home)).cloned());
        }
        Ok(None)
    }

    fn go_to(&mut self, address: &str) {
        if self.address != address {
            self.connection = None;
            address.clone_into(&mut self.address);
        }
    }

    /// Asks the node in use. An error is an outcome for the caller: the request may have been executed.
    fn ask(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
        patience: Duration,
        search: &mut Search,
    ) -> Result<Step, ClientError> {
        let asked = self.address.clone();
        if let Err(why) = self.reach(deadline.at_most(patience)) {
            self.connection = None;
            return Ok(Step::elsewhere(why));
        }
        let until = match is_safe_to_repeat(request) {
            true => deadline.at_most(patience + time_to_carry(request)),
            false => deadline,
        };
        let result = self.exchange(request, until);
        // Whoever failed is asked again in its turn, not because it is where the client was.
        self.address.clone_from(&asked);
        search.tries += u32::from(!matches!(result, Err(ClientError::NotSent { .. })));
        match result {
            Ok(reply) => Ok(search.step(request, reply)),
            Err(ClientError::ReadLost { why, .. }) => Ok(Step::elsewhere(Answer::Silent(why))),
            Err(ClientError::NotSent { why, .. }) => Ok(Step::elsewhere(Answer::Silent(why))),
            Err(ClientError::OutcomeUnknown { why, .. }) if is_numbered(request) => {
                search.may_be_done = true;
                Ok(Step::elsewhere(Answer::Lost(why)))
            }
            Err(error) => {
                self.go_home();
                Err(error)
            }
        }
    }

    /// Has a connection on which the node has answered.
    fn reach(&mut self, until: Deadline) -> Result<(), Answer> {
        if self.connection.is_some() {
            return Ok(());
        }
        let mut connection = match Connection::dial(&self.address, until) {
            Ok(connection) => connection,
            Err(ClientError::Connect { why, .. }) => return Err(Answer::Unreachable(why)),
            Err(other) => unreachable!("dialling fails to connect or not at all: {other}"),
        };
        let pong = match connection.exchange(&Request::Ping, until) {
            Ok(pong) => pong,
            Err(ClientError::ReadLost { why, .. } | ClientError::NotSent { why, .. }) => {
                return Err(Answer::Silent(why));
            }
            Err(other) => unreachable!("a ping changes nothing: {other}"),
        };
        if pong.status != Status::Ok {
            return Err(Answer::of(&pong));
        }
        self.connection = Some(connection);
        Ok(())
    }

    /// After a loss: a client of one node goes back to it, one of several to the next one.
    pub(super) fn go_home(&mut self) {
        self.connection = None;
        let at = self.homes.iter().position(|home| *home == self.address);
        let next = at.map_or(0, |at| (at + 1) % self.homes.len());
        self.address.clone_from(&self.homes[next]);
    }
}

impl Search {
    /// Of a request that may have been executed already.
    pub(super) fn of_unresolved() -> Search {
        Search { may_be_done: true, ..Search::default() }
    }

    /// An answer that says "not here" or "not now" is none; nor is "I cannot say", of what can be asked again.
    fn step(&mut self, request: &Request<'_>, reply: OwnedReply) -> Step {
        match reply.status {
            Status::NotLeader => {
                let named = parse_address(&reply.payload_text()).ok();
                Step::Elsewhere { why: Answer::of(&reply), named }
            }
            Status::ShuttingDown | Status::Loading | Status::Repairing | Status::Diverged => {
                Step::elsewhere(Answer::of(&reply))
            }
            Status::OutcomeUnknown if is_safe_to_repeat(request) => {
                self.may_be_done |= is_numbered(request);
                Step::elsewhere(Answer::of(&reply))
            }
            Status::Busy | Status::DiskFull | Status::NotEnoughReplicas if self.may_be_done => {
                Step::elsewhere(Answer::of(&reply))
            }
            _ => Step::Done(reply),
        }
    }

    /// The deadline has passed.
    fn given_up(&mut self, request: &Request<'_>, waited: Duration) -> ClientError {
        let (asked, rounds, tries) = (std::mem::take(&mut self.asked), self.rounds, self.tries);
        match *request {
            Request::Numbered { session, number, .. } if self.may_be_done => {
                ClientError::Unresolved { write: WriteId { session, number }, asked, tries, waited }
            }
            _ => ClientError::NotServed { asked, rounds, waited },
        }
    }
}

impl Step {
    fn elsewhere(why: Answer) -> Step {
        Step::Elsewhere { why, named: None }
    }
}

impl Answer {
    fn of(reply: &OwnedReply) -> Answer {
        Answer::Said { status: reply.status, message: reply.payload_text() }
    }
}

/// What a node said last stands in the place of what it said before.
fn note(asked: &mut Vec<Asked>, address: &str, said: Answer) {
    match asked.iter_mut().find(|asked| asked.address == address) {
        Some(asked) => asked.said = said,
        None => asked.push(Asked { address: address.to_owned(), said }),
    }
}

/// Whether a request is for the leader, and goes where NOT_LEADER points. A read does where a node serves leaders'
/// reads only; others answer it themselves.
pub(super) fn is_for_the_leader(request: &Request<'_>) -> bool {
    match request {
        Request::Put { .. }
        | Request::PutExplained { .. }
        | Request::Delete { .. }
        | Request::Get { .. }
        | Request::OpenSession
        | Request::Numbered { .. }
        | Request::Transfer { .. }
        | Request::ChangeMembers { .. } => true,
        Request::GetWith { reads, .. } => *reads != ReadMode::Local,
        _ => false,
    }
}

/// Whether asking twice is the same as asking once. A session that is opened twice is one that nobody uses.
fn is_safe_to_repeat(request: &Request<'_>) -> bool {
    matches!(request, Request::Get { .. } | Request::GetWith { .. } | Request::OpenSession)
        || is_numbered(request)
}

fn is_numbered(request: &Request<'_>) -> bool {
    matches!(request, Request::Numbered { .. })
}

fn time_to_carry(request: &Request<'_>) -> Duration {
    let size = match request {
        Request::Numbered { write: WriteOp::Put { value, .. }, .. } => value.len(),
        _ => 0,
    };
    PATIENCE_PER_KIB * u32::try_from(size / 1024).unwrap_or(u32::MAX)
}

pub(super) fn points_elsewhere(reply: &OwnedReply) -> bool {
    reply.status == Status::NotLeader && !reply.payload.is_empty()
}

fn next_hop(path: &[String], named: &str) -> Result<String, DeadEnd> {
    let next = parse_address(named).map_err(DeadEnd::NotAnAddress)?;
    if path.contains(&next) {
        Err(DeadEnd::Loop)
    } else if path.len() > HOPS_MAX {
        Err(DeadEnd::TooManyHops)
    } else {
        Ok(next)
    }
}

fn doubled(least: Duration, times: u32) -> Duration {
    least * (1 << times.min(DOUBLINGS_MAX))
}

/// Between half of it and all of it.
fn jittered(rng: &mut Rng, pause: Duration) -> Duration {
    let half_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX) / 2;
    Duration::from_micros(half_us + rng.below(half_us + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_and_pauses_grow_to_a_bound() {
        assert_eq!([0, 1, 3].map(|round| doubled(PATIENCE_MIN, round).as_millis()), [250, 500, 2_000]);
        assert_eq!(doubled(PATIENCE_MIN, u32::MAX), doubled(PATIENCE_MIN, DOUBLINGS_MAX));
        let mut rng = Rng::new(4711);
        for _ in 0..1_000 {
            let pause = jittered(&mut rng, PAUSE_MAX);
            assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&pause), "{pause:?}");
        }
    }
}
