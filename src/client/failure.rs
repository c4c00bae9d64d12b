//! What a failed call is called: its exit code, its name for programs, and the fields beside it.
//!
//! Exit codes keep apart what a script must keep apart: nothing was done (3, 5, 8: try again), the outcome is unknown
//! (6: look first), and an answer that trying again does not change (2, 4).

use serde_json::{Map, Value};

use super::{Asked, ClientError, Loss};
use crate::wire::client::Status;

/// What `kv_client --help` says below the options.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the key was not found
  2  usage: a bad argument, or a key or value beyond its limit
  3  cannot connect, or the request did not leave whole: nothing was done
  4  a condition failed: nothing was written
  5  no leader, not enough replicas, or refused: nothing was written
  6  timed out or connection lost after sending: for a write the outcome is unknown; where the
     message names its number, --again asks for it, and executes it at most once
  7  server error: busy, disk full, shutting down, no sensible answer, no backup;
     or the command was done and its result cannot be printed; doctor did not measure
  8  the node is loading its state: nothing was done, try again when `ping` says no more of it

Examples:
  kv_client put hello world
  kv_client --port 9002 get hello
  kv_client put photo - < photo.jpg
  kv_client -o json status
  kv_client --endpoints 9001,9002,9003 put hello world
  kv_client --endpoints node1:9001,node2:9001,node3:9001 status
  kv_client --port 9001 put hello world --retry
  kv_client put hello world --explain
  kv_client tail --percentile 99
  kv_client syscalls --watch
  kv_client backup ./kv.backup
  kv_client doctor --data-dir ./node1
  kv_client get -- -key-that-begins-with-a-dash";

/// Exit code: done.
pub(super) const EXIT_DONE: u8 = 0;
/// Exit code: the key was not found.
pub(super) const EXIT_NOT_FOUND: u8 = 1;
/// Exit code: a bad argument, or a key or value beyond its limit.
pub(super) const EXIT_USAGE: u8 = 2;
/// Exit code: nothing reached the node whole.
pub(super) const EXIT_CANNOT_CONNECT: u8 = 3;
/// Exit code: a condition failed.
pub(super) const EXIT_CONDITION_FAILED: u8 = 4;
/// Exit code: no leader, not enough replicas, or an operator's command was refused.
pub(super) const EXIT_NO_LEADER: u8 = 5;
/// Exit code: no answer to what was sent.
pub(super) const EXIT_OUTCOME_UNKNOWN: u8 = 6;
/// Exit code: the node is there and cannot do it, or makes no sense; or the result cannot be printed.
pub(super) const EXIT_SERVER_ERROR: u8 = 7;
/// Exit code: the node loads its state; the same command works when that is done.
pub(super) const EXIT_LOADING: u8 = 8;

/// The exit code of a failed call.
pub(super) fn exit_code(error: &ClientError) -> u8 {
    match error {
        ClientError::Address(_) | ClientError::TooLarge(_) => EXIT_USAGE,
        ClientError::Connect { .. } | ClientError::NotSent { .. } => EXIT_CANNOT_CONNECT,
        ClientError::OutcomeUnknown { .. } | ClientError::Unresolved { .. } => EXIT_OUTCOME_UNKNOWN,
        ClientError::ReadLost { why: Loss::TimedOut(_) | Loss::Closed | Loss::Io(_), .. } => {
            EXIT_OUTCOME_UNKNOWN
        }
        ClientError::ReadLost { .. } => EXIT_SERVER_ERROR,
        ClientError::NoLeader { .. } => EXIT_NO_LEADER,
        ClientError::NotServed { .. } => match error.status() {
            None => EXIT_CANNOT_CONNECT,
            Some(Status::Loading | Status::Repairing) => EXIT_LOADING,
            Some(_) => EXIT_NO_LEADER,
        },
        ClientError::Server { status, .. } => match status {
            Status::NotFound => EXIT_NOT_FOUND,
            Status::BadRequest | Status::TooLarge => EXIT_USAGE,
            Status::ConditionFailed | Status::NumberTooOld | Status::NumberSkips => EXIT_CONDITION_FAILED,
            Status::NotLeader | Status::NotEnoughReplicas | Status::Refused => EXIT_NO_LEADER,
            Status::OutcomeUnknown | Status::SessionExpired => EXIT_OUTCOME_UNKNOWN,
            Status::Ok | Status::Busy | Status::DiskFull | Status::ShuttingDown | Status::Diverged => {
                EXIT_SERVER_ERROR
            }
            Status::Loading | Status::Repairing => EXIT_LOADING,
        },
    }
}

/// The name of a failure, for programs.
pub(super) fn error_code(error: &ClientError) -> &'static str {
    match error {
        ClientError::Address(_) => "usage",
        ClientError::TooLarge(_) => "too_large",
        ClientError::Connect { .. } => "cannot_connect",
        ClientError::NotSent { .. } => "not_sent",
        ClientError::OutcomeUnknown { .. } | ClientError::Unresolved { .. } => "outcome_unknown",
        ClientError::ReadLost { .. } => "no_answer",
        ClientError::NoLeader { .. } => "no_leader",
        ClientError::NotServed { .. } => match error.status() {
            None => "cannot_connect",
            Some(Status::Loading | Status::Repairing) => "loading",
            Some(_) => "no_leader",
        },
        ClientError::Server { status, .. } => match status {
            Status::Ok => "unexpected_ok",
            Status::NotFound => "not_found",
            Status::BadRequest => "bad_request",
            Status::TooLarge => "too_large",
            Status::ConditionFailed => "condition_failed",
            Status::NotLeader => "not_leader",
            Status::NotEnoughReplicas => "not_enough_replicas",
            Status::Busy => "busy",
            Status::DiskFull => "disk_full",
            Status::OutcomeUnknown => "outcome_unknown",
            Status::Refused => "refused",
            Status::ShuttingDown => "shutting_down",
            Status::Loading => "loading",
            Status::Repairing => "repairing",
            Status::Diverged => "diverged",
            Status::SessionExpired => "session_expired",
            Status::NumberTooOld => "number_too_old",
            Status::NumberSkips => "number_skips",
        },
    }
}

/// What else programs may want to know of it.
pub(super) fn error_fields(error: &ClientError) -> Map<String, Value> {
    let mut fields = Map::new();
    match error {
        ClientError::Connect { address, .. }
        | ClientError::NotSent { address, .. }
        | ClientError::OutcomeUnknown { address, .. }
        | ClientError::ReadLost { address, .. } => {
            fields.insert("address".to_owned(), address.as_str().into());
        }
        ClientError::Server { address, status, lsn, term, message } => {
            fields.insert("address".to_owned(), address.as_str().into());
            fields.insert("lsn".to_owned(), lsn.0.into());
            fields.insert("term".to_owned(), term.as_u64().into());
            if *status == Status::NotLeader {
                let leader = Some(message.as_str()).filter(|leader| !leader.is_empty());
                fields.insert("leader".to_owned(), leader.into());
            }
        }
        ClientError::NoLeader { path, named, .. } => {
            fields.insert("asked".to_owned(), path.as_slice().into());
            fields.insert("leader".to_owned(), named.as_str().into());
        }
        ClientError::NotServed { asked, rounds, .. } => {
            fields.insert("said".to_owned(), said_by_each(asked));
            fields.insert("rounds".to_owned(), (*rounds).into());
        }
        ClientError::Unresolved { write, asked, tries, .. } => {
            fields.insert("session".to_owned(), write.session.to_string().into());
            fields.insert("number".to_owned(), write.number.into());
            fields.insert("tries".to_owned(), (*tries).into());
            fields.insert("again".to_owned(), write.to_string().into());
            fields.insert("said".to_owned(), said_by_each(asked));
        }
        ClientError::Address(_) | ClientError::TooLarge(_) => {}
    }
    fields
}

fn said_by_each(asked: &[Asked]) -> Value {
    asked.iter().map(|asked| (asked.address.clone(), Value::from(asked.said.to_string()))).collect()
}
