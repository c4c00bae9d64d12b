//! How a call may fail, told apart by what the caller knows afterwards.
//!
//! The question behind every variant is: may the write have happened? It may not when the connection was
//! never made ([`ClientError::Connect`]), when the request did not leave whole ([`ClientError::NotSent`]: a
//! node acts on complete frames only), or when the node said so ([`ClientError::Server`]). It may when the
//! request left and no answer came ([`ClientError::OutcomeUnknown`]); nothing here retries that. A numbered write is
//! asked for again; if that gets no answer either, its number still can be asked for ([`ClientError::Unresolved`]).

use std::fmt;
use std::io;
use std::time::Duration;

use super::WriteId;
use crate::address::AddressError;
use crate::ids::{Lsn, Term};
use crate::wire::client::{SizeProblem, Status};
use crate::wire::{DecodeError, FrameError};

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// The text given is not an address. Nothing was sent.
    Address(AddressError),
    /// A key or value is beyond its limit. Nothing was sent.
    TooLarge(SizeProblem),
    /// No connection could be made. Nothing was sent.
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        why: io::Error,
    },
    /// The connection failed before the request had left whole, so it was not executed.
    NotSent {
        /// Where to.
        address: String,
        /// What happened.
        why: Loss,
    },
    /// A write or an operator's command was sent and no answer came: it may have been executed, or may be
    /// later.
    OutcomeUnknown {
        /// Where to.
        address: String,
        /// What happened.
        why: Loss,
    },
    /// A read was sent and no answer came. Nothing was changed by it: asking again is safe.
    ReadLost {
        /// Where to.
        address: String,
        /// What happened.
        why: Loss,
    },
    /// The node answered, and the answer is not the one wanted.
    Server {
        /// Who answered.
        address: String,
        /// How.
        status: Status,
        /// The LSN in the answer.
        lsn: Lsn,
        /// The term in the answer.
        term: Term,
        /// The payload as text: a message, or for `NotLeader` the leader's address.
        message: String,
    },
    /// A write was sent from node to node and found no leader. None of them executed it.
    NoLeader {
        /// The nodes that said they do not lead, in the order asked.
        path: Vec<String>,
        /// The address that the last one named.
        named: String,
        /// What is wrong with that one.
        why: DeadEnd,
    },
    /// None of several nodes served the request before its deadline. None of them executed it.
    NotServed {
        /// Each node, and what it said last.
        asked: Vec<Asked>,
        /// How often all of them were asked.
        rounds: u32,
        /// How long that took: the time of the call.
        waited: Duration,
    },
    /// A numbered write was asked for until the deadline, and whether it was executed is not known. It was once or not
    /// at all, and asking with its number again tells ([`Session::resolve`]).
    ///
    /// [`Session::resolve`]: super::Session::resolve
    Unresolved {
        /// Which one.
        write: WriteId,
        /// Each node, and what it said last.
        asked: Vec<Asked>,
        /// How often it was sent.
        tries: u32,
        /// How long that took: the time of the call.
        waited: Duration,
    },
}

/// A node that was asked and did not serve the request.
#[derive(Debug)]
pub struct Asked {
    /// Its address.
    pub address: String,
    /// What came back.
    pub said: Answer,
}

/// What a node that did not serve a request said. It did nothing, unless its answer to a numbered write was lost, or
/// was that it cannot say.
#[derive(Debug)]
pub enum Answer {
    /// No connection could be made.
    Unreachable(io::Error),
    /// There was a connection and no answer to what changes nothing, or the request did not leave whole.
    Silent(Loss),
    /// A numbered write was sent and no answer came: it may have been executed there.
    Lost(Loss),
    /// It answered that it is not the one, or not now.
    Said {
        /// How.
        status: Status,
        /// The payload as text: a message, or for `NotLeader` the leader's address.
        message: String,
    },
}

/// How an answer got lost.
#[derive(Debug)]
pub enum Loss {
    /// The deadline of the call passed; this is the time it was given.
    TimedOut(Duration),
    /// The other side closed the connection.
    Closed,
    /// The connection broke.
    Io(io::Error),
    /// What came is not a frame.
    NotFrames(FrameError),
    /// What came is a frame of another type.
    NotReply(u8),
    /// What came is a reply that cannot be read.
    BadReply(DecodeError),
    /// The payload is not what the request asked for.
    BadPayload(String),
}

/// Why following NOT_LEADER answers ended.
#[derive(Debug)]
pub enum DeadEnd {
    /// It was asked before.
    Loop,
    /// Asking it would be one hop too many.
    TooManyHops,
    /// It cannot be reached.
    Unreachable(io::Error),
    /// It is not an address.
    NotAnAddress(AddressError),
}

impl ClientError {
    /// Whether a write may have been executed although the call failed.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            ClientError::OutcomeUnknown { .. } | ClientError::Unresolved { .. } => true,
            ClientError::Server { status, .. } => {
                matches!(status, Status::OutcomeUnknown | Status::SessionExpired)
            }
            _ => false,
        }
    }

    /// The status of the node's answer, where one came. Of several, NOT_LEADER outweighs others.
    pub fn status(&self) -> Option<Status> {
        match self {
            ClientError::Server { status, .. } => Some(*status),
            ClientError::NoLeader { .. } => Some(Status::NotLeader),
            ClientError::NotServed { asked, .. } => said_by_one(asked),
            _ => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Address(error) => error.fmt(f),
            ClientError::TooLarge(problem) => write!(f, "{problem}; nothing was sent"),
            ClientError::Connect { address, why } => {
                write!(f, "cannot connect to {address}: {why}. {}", advice_on_connect(why))
            }
            ClientError::NotSent { address, why } => write!(
                f,
                "the request to {address} did not leave whole: {why}. \
                 It was not executed; it is safe to send it again"
            ),
            ClientError::OutcomeUnknown { address, why } => write!(
                f,
                "no answer from {address}: {why}. The request had been sent: its outcome is UNKNOWN, it may \
                 have been executed or may still be. Read the state back before you repeat it"
            ),
            ClientError::ReadLost { address, why } => write!(
                f,
                "no answer from {address}: {why}. The request only reads; it is safe to send it again"
            ),
            ClientError::Server { address, status, message, .. } => {
                fmt_status(f, address, *status, &printable(message))
            }
            ClientError::NoLeader { path, named, why } => fmt_no_leader(f, path, named, why),
            ClientError::NotServed { asked, rounds, waited } => fmt_not_served(f, asked, *rounds, *waited),
            ClientError::Unresolved { write, asked, tries, waited } => {
                fmt_unresolved(f, *write, asked, *tries, *waited)
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Unreachable(why) => write!(f, "cannot connect: {why}"),
            Answer::Silent(why) => write!(f, "no answer: {why}"),
            Answer::Lost(why) => write!(f, "was sent it and did not answer: {why}"),
            Answer::Said { status: Status::NotLeader, message } if message.is_empty() => {
                f.write_str("does not lead and knows no leader")
            }
            Answer::Said { status: Status::NotLeader, message } => {
                write!(f, "does not lead and names {}", printable(message))
            }
            Answer::Said { status, message } => {
                let (what, _) = words(*status);
                f.write_str(what)?;
                if message.is_empty() { Ok(()) } else { write!(f, ": {}", printable(message)) }
            }
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ClientError::Address(error) => Some(error),
            ClientError::Connect { why, .. } => Some(why),
            ClientError::NoLeader { why: DeadEnd::Unreachable(why), .. } => Some(why),
            _ => None,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::TimedOut(timeout) => write!(f, "timed out after {} ms", timeout.as_millis()),
            Loss::Closed => f.write_str("the node closed the connection"),
            Loss::Io(error) => write!(f, "the connection broke: {error}"),
            Loss::NotFrames(error) => write!(f, "no kvstore node answers there: {error}"),
            Loss::NotReply(type_byte) => {
                write!(f, "a frame of type {type_byte:#04x} came instead of a reply")
            }
            Loss::BadReply(error) => write!(f, "the reply cannot be read: {error}"),
            Loss::BadPayload(why) => write!(f, "the reply makes no sense: {why}"),
        }
    }
}

fn said_by_one(asked: &[Asked]) -> Option<Status> {
    let statuses = asked.iter().filter_map(|asked| match asked.said {
        Answer::Said { status, .. } => Some(status),
        Answer::Unreachable(_) | Answer::Silent(_) | Answer::Lost(_) => None,
    });
    statuses.max_by_key(|status| *status == Status::NotLeader)
}

fn advice_on_connect(why: &io::Error) -> &'static str {
    match why.kind() {
        io::ErrorKind::ConnectionRefused => {
            "Nothing was sent. Is a node running there? Look at --host and --port, and at the node's log"
        }
        io::ErrorKind::TimedOut => {
            "Nothing was sent. The host is down, a firewall drops the packets, or --timeout-ms is too short"
        }
        _ => "Nothing was sent. Look at --host and --port, and at the network between here and there",
    }
}

fn fmt_status(f: &mut fmt::Formatter<'_>, address: &str, status: Status, message: &str) -> fmt::Result {
    if status == Status::NotLeader && !message.is_empty() {
        return write!(f, "{address} does not lead. Nothing was written. The leader is {message}");
    }
    let (what, next) = words(status);
    write!(f, "{address} {what}")?;
    if !message.is_empty() {
        write!(f, ": {message}")?;
    }
    if next.is_empty() { Ok(()) } else { write!(f, ". {next}") }
}

/// What a node that answers so does, and what to do next.
fn words(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::NotLeader => (
            "does not lead and knows no leader",
            "Nothing was written. Ask another node, or look at `kv_client status` on each",
        ),
        Status::Ok => ("answered OK where that makes no sense", ""),
        Status::NotFound => ("has no such key", ""),
        Status::BadRequest => ("does not understand the request", "Are client and node of the same version?"),
        Status::TooLarge => ("refuses the size", "Nothing was written"),
        Status::ConditionFailed => ("did not write: the condition does not hold", ""),
        Status::NotEnoughReplicas => (
            "has not enough replicas in sync",
            "Nothing was written. Look at `kv_client status` for who is missing",
        ),
        Status::Busy => ("is busy", "Nothing was written; try again in a moment"),
        Status::DiskFull => ("has no room on its disk", "Nothing was written; make room there"),
        Status::OutcomeUnknown => (
            "began the write and cannot say how it ended",
            "The outcome is UNKNOWN. Read the state back before you repeat it",
        ),
        Status::Refused => ("refuses", ""),
        Status::ShuttingDown => ("is shutting down", "Nothing was written; ask another node"),
        Status::Loading => ("is loading its state", "Nothing was written; try again in a moment"),
        Status::Repairing => {
            ("fetches again what it lost, and answers no reads until then", "Ask its leader")
        }
        Status::Diverged => {
            ("has a state that is known to be wrong, and answers nothing from it", "Ask another node")
        }
        Status::SessionExpired => (
            "does not know the session of this numbered write",
            "This request wrote nothing; whether an earlier one with its number did is not known any more: its outcome \
             is UNKNOWN. Read the state back before you repeat it",
        ),
        Status::NumberTooOld => {
            ("has forgotten the answer to this number", "The write was executed, once, by an earlier request")
        }
        Status::NumberSkips => (
            "was asked for a number out of turn",
            "Nothing was written. Writes of this session that were acknowledged are missing there: after a forced \
             promotion, or in a restored copy",
        ),
    }
}

fn fmt_no_leader(f: &mut fmt::Formatter<'_>, path: &[String], named: &str, why: &DeadEnd) -> fmt::Result {
    let named = printable(named);
    write!(f, "no leader found: {} does not lead and names {named}", path.join(" sent on to "))?;
    match why {
        DeadEnd::Loop => f.write_str(", which was asked before and does not lead either")?,
        DeadEnd::TooManyHops => write!(f, "; gave up after {} nodes", path.len())?,
        DeadEnd::Unreachable(why) => write!(f, ", which cannot be reached: {why}")?,
        DeadEnd::NotAnAddress(error) => write!(f, "; {error}")?,
    }
    f.write_str(
        ". Nothing was written. Look at `kv_client status` on each node; if the leader is gone for good, \
         `kv_client promote` on a follower that is in sync",
    )
}

fn fmt_not_served(f: &mut fmt::Formatter<'_>, asked: &[Asked], rounds: u32, waited: Duration) -> fmt::Result {
    let times = if rounds == 1 { "once" } else { "again and again" };
    match asked.len() {
        1 => f.write_str("the node did not serve it")?,
        several => write!(f, "none of {several} nodes served it")?,
    }
    write!(
        f,
        " within {} ms, asked {times}. Nothing was done; it is safe to try again. What each said last:",
        waited.as_millis()
    )?;
    fmt_asked(f, asked)
}

fn fmt_unresolved(
    f: &mut fmt::Formatter<'_>,
    write: WriteId,
    asked: &[Asked],
    tries: u32,
    waited: Duration,
) -> fmt::Result {
    write!(
        f,
        "the outcome of write {write} is UNKNOWN after {} ms, sent {tries} time{}: it was executed once, or not, or \
         may still be. Do not repeat it as another one. Ask again with its number, which executes it at most once and \
         answers as the first time: the same command with --again {write}. What each said last:",
        waited.as_millis(),
        if tries == 1 { "" } else { "s" }
    )?;
    fmt_asked(f, asked)
}

fn fmt_asked(f: &mut fmt::Formatter<'_>, asked: &[Asked]) -> fmt::Result {
    let width = asked.iter().map(|asked| asked.address.len()).max().unwrap_or(0);
    for Asked { address, said } in asked {
        write!(f, "\n  {address:<width$}  {said}")?;
    }
    Ok(())
}

/// Text from the network as it may be shown on a terminal: control characters could move the cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
