//! Writes that are executed once, however often their answer is lost.
//!
//! A session is opened at the leader by a record of the log, and numbers its writes 1, 2, 3, ... in it. A write whose
//! answer is lost (connection broken, timeout, a leader that stopped leading) is sent again with the same number, to
//! whoever leads by then, until the answer comes or the call's deadline passes: a cluster executes a number once, and
//! answers it each time as the first time. What is decided there is in `node/client_sessions.rs`, whom to ask next in
//! `route.rs`.
//!
//! - A number is used for one write alone, until that is surely executed or surely not. So a write that was given up
//!   keeps its number: [`Session::resolve`] asks for it again. The next write begins another session; the one that was
//!   given up may be executed before it, after it, or never.
//! - A session that the cluster has forgotten (4,096 are kept; the one used longest ago goes) is replaced by another
//!   one where nothing is in doubt: the write was sent once, and that request was refused. Else the call fails, and
//!   says that the outcome is unknown.
//! - A cluster in which not every node can apply sessions, or was heard by its leader, refuses the first one
//!   ([`Status::Refused`]). Nothing is written then, and nothing is sent without a number in its place: who called must
//!   decide.
//!
//! Left out: one write at a time, though a cluster takes 32 in flight; and sessions are not closed, they are forgotten.

use std::fmt;
use std::str::FromStr;

use super::connection::Deadline;
use super::route::Search;
use super::{Client, ClientError, OwnedReply, Served, served};
use crate::ids::{Lsn, SessionId};
use crate::wire::client::{Request, Status, WriteOp, decode_session_id};

/// A numbered write: its session, and its number there. As text `LSN-NONCE:NUMBER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId {
    /// The session.
    pub session: SessionId,
    /// 1, 2, 3, ... within the session.
    pub number: u64,
}

/// What it took to have a write answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrite {
    /// Which one.
    pub id: WriteId,
    /// How often it was sent.
    pub tries: u32,
    /// Whether an answer was lost on the way, so that its outcome was unknown for a time.
    pub in_doubt: bool,
}

/// A client whose writes are executed once.
#[derive(Debug)]
pub struct Session {
    client: Client,
    /// `None`: the next write opens one.
    id: Option<SessionId>,
    /// The highest number that was answered.
    last_number: u64,
    /// The write behind that one, if it was given up.
    unresolved: Option<OwnedWrite>,
    last_write: Option<LastWrite>,
}

#[derive(Debug)]
struct OwnedWrite {
    key: Box<[u8]>,
    /// `None`: it removes the key.
    value: Option<Box<[u8]>>,
}

impl Session {
    /// Writes of this client from now on. The first one opens the session, within its own deadline. The client goes
    /// where leaders are, also one that was told not to.
    pub fn new(mut client: Client) -> Session {
        client.follow_leader = true;
        Session { client, id: None, last_number: 0, unresolved: None, last_write: None }
    }

    /// The session of a write that was given up, by this process or another one. [`Session::resolve`] asks for it
    /// again, with this key and value, which must be those of then.
    pub fn of_unresolved(client: Client, write: WriteId, op: &WriteOp<'_>) -> Session {
        let unresolved = Some(OwnedWrite::of(op));
        let (id, last_number) = (Some(write.session), write.number.saturating_sub(1));
        Session { id, last_number, unresolved, ..Session::new(client) }
    }

    /// Opens the session now, unless one is open, so that the first write need not.
    pub fn open(&mut self) -> Result<SessionId, ClientError> {
        self.opened(Deadline::after(self.client.timeout))
    }

    /// Sets a key.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Served<()>, ClientError> {
        let Served { lsn, term, .. } = self.write(&WriteOp::Put { key, value })?;
        Ok(Served { value: (), lsn, term })
    }

    /// Removes a key; says whether it was there when that was executed.
    pub fn delete(&mut self, key: &[u8]) -> Result<Served<bool>, ClientError> {
        self.write(&WriteOp::Delete { key })
    }

    /// Executes a write; of a removal it says whether the key was there.
    pub fn write(&mut self, op: &WriteOp<'_>) -> Result<Served<bool>, ClientError> {
        let deadline = Deadline::after(self.client.timeout);
        check_size(op)?;
        if self.unresolved.take().is_some() {
            self.id = None;
        }
        let was_open = self.id.is_some();
        self.opened(deadline)?;
        let mut search = Search::default();
        match self.ask(op, deadline, &mut search) {
            // It was sent once, to a node that executed nothing.
            Err(error) if was_open && is_expired(&error) && !search.may_be_done => {
                self.opened(deadline)?;
                self.ask(op, deadline, &mut Search::default())
            }
            result => result,
        }
    }

    /// Asks again for the write that the last call gave up ([`ClientError::Unresolved`]), under a deadline of its own.
    /// The answer is the first one; if it was not executed before, it is now. `None`: the outcome of each write is
    /// known.
    pub fn resolve(&mut self) -> Option<Result<Served<bool>, ClientError>> {
        let write = self.unresolved.take()?;
        let deadline = Deadline::after(self.client.timeout);
        let checked = check_size(&write.op());
        Some(checked.and_then(|()| self.ask(&write.op(), deadline, &mut Search::of_unresolved())))
    }

    /// Whether the outcome of the last write is unknown, and can be asked for.
    pub fn is_unresolved(&self) -> bool {
        self.unresolved.is_some()
    }

    /// The last write that was asked for, whatever came of it; `None`: none was sent.
    pub fn last_write(&self) -> Option<LastWrite> {
        self.last_write
    }

    /// The client, for reads.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn opened(&mut self, deadline: Deadline) -> Result<SessionId, ClientError> {
        if let Some(id) = self.id {
            return Ok(id);
        }
        let reply = self.client.search(&Request::OpenSession, deadline, &mut Search::default())?;
        self.client.expect(&[Status::Ok], &reply)?;
        let id = decode_session_id(&reply.payload)
            .map_err(|why| self.client.bad_payload(format!("the id of a session: {why}")))?;
        (self.id, self.last_number) = (Some(id), 0);
        Ok(id)
    }

    /// Sends the next number until it is answered.
    fn ask(
        &mut self,
        op: &WriteOp<'_>,
        deadline: Deadline,
        search: &mut Search,
    ) -> Result<Served<bool>, ClientError> {
        let session = self.id.expect("it is open");
        let number = self.last_number + 1;
        let request = Request::Numbered { session, number, write: *op };
        let result = self.client.search(&request, deadline, search);
        let (id, tries) = (WriteId { session, number }, search.tries);
        self.last_write = Some(LastWrite { id, tries, in_doubt: search.may_be_done });
        let result = result.and_then(|reply| self.answer(&reply));
        match &result {
            Ok(_) => self.last_number = number,
            Err(ClientError::Unresolved { .. }) => self.unresolved = Some(OwnedWrite::of(op)),
            Err(error) if ends_session(error) => self.id = None,
            // Nothing was done: the number is free.
            Err(_) => {}
        }
        result
    }

    fn answer(&self, reply: &OwnedReply) -> Result<Served<bool>, ClientError> {
        self.client.expect(&[Status::Ok, Status::NotFound], reply)?;
        Ok(served(reply.status == Status::Ok, reply))
    }
}

impl OwnedWrite {
    fn of(op: &WriteOp<'_>) -> OwnedWrite {
        match *op {
            WriteOp::Put { key, value } => OwnedWrite { key: key.into(), value: Some(value.into()) },
            WriteOp::Delete { key } => OwnedWrite { key: key.into(), value: None },
        }
    }

    fn op(&self) -> WriteOp<'_> {
        match &self.value {
            Some(value) => WriteOp::Put { key: &self.key, value },
            None => WriteOp::Delete { key: &self.key },
        }
    }
}

/// Before a session is opened for it.
fn check_size(op: &WriteOp<'_>) -> Result<(), ClientError> {
    let request = match *op {
        WriteOp::Put { key, value } => Request::Put { key, value },
        WriteOp::Delete { key } => Request::Delete { key },
    };
    request.size_problem().map_or(Ok(()), |problem| Err(ClientError::TooLarge(problem)))
}

fn is_expired(error: &ClientError) -> bool {
    matches!(error, ClientError::Server { status: Status::SessionExpired, .. })
}

/// Whether no further number can be used: the session is gone, or is not where this client left it.
fn ends_session(error: &ClientError) -> bool {
    let ends = |status: &Status| matches!(status, Status::NumberTooOld | Status::NumberSkips);
    is_expired(error) || matches!(error, ClientError::Server { status, .. } if ends(status))
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.session, self.number)
    }
}

impl FromStr for WriteId {
    type Err = String;

    fn from_str(text: &str) -> Result<WriteId, String> {
        let parse = || {
            let (session, number) = text.split_once(':')?;
            let (lsn, nonce) = session.split_once('-')?;
            let session =
                SessionId { lsn: Lsn(lsn.parse().ok()?), nonce: u64::from_str_radix(nonce, 16).ok()? };
            let number = number.parse().ok().filter(|number| *number > 0)?;
            Some(WriteId { session, number })
        };
        parse()
            .ok_or_else(|| "what the failed command printed is meant, as in 57-8c1f00d2a4b6c8e0:1".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_named_as_it_is_read() {
        let id = WriteId { session: SessionId { lsn: Lsn(57), nonce: 0x8c1f }, number: 3 };
        assert_eq!(id.to_string(), "57-0000000000008c1f:3");
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in
            ["", "57", "57-8c1f", "57-8c1f:", "57-8c1f:0", "57:3", "x-8c1f:3", "57-xyz:3", "57-8c1f:3:4"]
        {
            text.parse::<WriteId>().expect_err(text);
        }
    }
}
