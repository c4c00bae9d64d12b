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
//! What is never done: a write that left, and may have been executed, is not sent again. Only an answer that says
//! that nothing was done, or a connection that was never made, leads to another node. A read is asked again.

use std::thread;
use std::time::Duration;

use super::connection::{Connection, Deadline, OwnedReply};
use super::error::{Answer, Asked, ClientError, DeadEnd};
use super::{Client, HOPS_MAX};
use crate::address::parse_address;
use crate::rng::Rng;
use crate::wire::client::{ReadMode, Request, Status};

/// How long a silent node is waited for in the first round. On one machine an answer takes 0.1 ms and an election
/// some 100 ms; this is long enough for a round trip of a tenth of a second to a node that is busy as well.
const PATIENCE_MIN: Duration = Duration::from_millis(250);
/// The wait between the first two rounds, at most. It doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The wait between two rounds, at most: what a search adds to the time in which a cluster has no leader.
const PAUSE_MAX: Duration = Duration::from_millis(64);
/// The patience, and the wait, stop growing after this many rounds.
const DOUBLINGS_MAX: u32 = 12;

/// What came of asking one node.
enum Step {
    /// This is the answer.
    Done(OwnedReply),
    /// Nothing was done there: ask another one, the one named first.
    Elsewhere { why: Answer, named: Option<String> },
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
    ) -> Result<OwnedReply, ClientError> {
        let mut asked = Vec::new();
        let mut rounds = 0;
        loop {
            if let Some(reply) = self.round(request, deadline, doubled(PATIENCE_MIN, rounds), &mut asked)? {
                return Ok(reply);
            }
            rounds += 1;
            let pause = doubled(PAUSE_MIN, rounds - 1).min(PAUSE_MAX);
            let pause = jittered(&mut self.rng, pause);
            if deadline.left().is_ok_and(|left| left > pause) {
                thread::sleep(pause);
            } else {
                return Err(ClientError::NotServed { asked, rounds, waited: deadline.timeout() });
            }
        }
    }

    /// Asks every node once; `None` if none of them served it.
    fn round(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
        patience: Duration,
        asked: &mut Vec<Asked>,
    ) -> Result<Option<OwnedReply>, ClientError> {
        let mut in_round: Vec<String> = Vec::new();
        let mut next = Some(self.address.clone());
        while let Some(address) = next {
            if deadline.left().is_err() {
                break;
            }
            self.go_to(&address);
            let (why, named) = match self.ask(request, deadline, patience)? {
                Step::Done(reply) => return Ok(Some(reply)),
                Step::Elsewhere { why, named } => (why, named),
            };
            note(asked, &address, why);
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
    ) -> Result<Step, ClientError> {
        let asked = self.address.clone();
        if let Err(why) = self.reach(deadline.at_most(patience)) {
            self.connection = None;
            return Ok(Step::elsewhere(why));
        }
        let until = if is_safe_to_repeat(request) { deadline.at_most(patience) } else { deadline };
        let result = self.exchange(request, until);
        // Whoever failed is asked again in its turn, not because it is where the client was.
        self.address.clone_from(&asked);
        match result {
            Ok(reply) => Ok(Step::of(reply)),
            Err(ClientError::ReadLost { why, .. }) => Ok(Step::elsewhere(Answer::Silent(why))),
            Err(ClientError::NotSent { why, .. }) => Ok(Step::elsewhere(Answer::Silent(why))),
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

impl Step {
    fn elsewhere(why: Answer) -> Step {
        Step::Elsewhere { why, named: None }
    }

    /// An answer that says "not here" or "not now" is none.
    fn of(reply: OwnedReply) -> Step {
        match reply.status {
            Status::NotLeader => {
                let named = parse_address(&reply.payload_text()).ok();
                Step::Elsewhere { why: Answer::of(&reply), named }
            }
            Status::ShuttingDown | Status::Loading | Status::Repairing | Status::Diverged => {
                Step::elsewhere(Answer::of(&reply))
            }
            _ => Step::Done(reply),
        }
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
        | Request::Transfer { .. }
        | Request::ChangeMembers { .. } => true,
        Request::GetWith { reads, .. } => *reads != ReadMode::Local,
        _ => false,
    }
}

/// Whether asking twice is the same as asking once.
fn is_safe_to_repeat(request: &Request<'_>) -> bool {
    matches!(request, Request::Get { .. } | Request::GetWith { .. })
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
