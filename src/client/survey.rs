//! The status of several nodes, asked at the same time: one that is silent delays nobody but itself.
//!
//! There is no thread per node. Connecting is done one after the other, each within its share of the time; then all
//! are asked, and then the answers are received under one deadline. One that is looked at after it, because others
//! were waited for, has come by then or not.

use std::time::Duration;

use serde_json::Value;

use super::connection::{Connection, Deadline, OwnedReply};
use super::{ClientError, Loss, each_once};
use crate::wire::client::{Request, Status};

/// For reading an answer that has come before the deadline and is looked at behind it.
const LATE: Duration = Duration::from_millis(20);

/// What one of several nodes said about itself.
#[derive(Debug)]
pub struct Surveyed {
    /// Where it was asked.
    pub address: String,
    /// Its status document.
    pub status: Result<Value, ClientError>,
}

/// Asks each node once. The result is in the order of the addresses, each once; it fails only for what is no address.
pub fn survey(addresses: &[impl AsRef<str>], timeout: Duration) -> Result<Vec<Surveyed>, ClientError> {
    let nodes = each_once(addresses)?;
    let deadline = Deadline::after(timeout);
    // Half of the time is for connecting: an answer must have some left.
    let share = timeout / 2 / u32::try_from(nodes.len().max(1)).unwrap_or(u32::MAX);
    let asked: Vec<Result<Connection, ClientError>> =
        nodes.iter().map(|address| ask(address, deadline, share)).collect();
    let answers = asked.into_iter().map(|connection| document(connection?, deadline.at_least(LATE)));
    Ok(nodes.iter().cloned().zip(answers).map(|(address, status)| Surveyed { address, status }).collect())
}

fn ask(address: &str, deadline: Deadline, share: Duration) -> Result<Connection, ClientError> {
    let mut connection = Connection::dial(address, deadline.at_most(share))?;
    connection.push(&Request::Status);
    connection.flush(deadline)?;
    Ok(connection)
}

fn document(mut connection: Connection, deadline: Deadline) -> Result<Value, ClientError> {
    let OwnedReply { status, lsn, term, payload, .. } = connection.receive(deadline)?;
    let address = connection.address().to_owned();
    if status != Status::Ok {
        let message = String::from_utf8_lossy(&payload).into_owned();
        return Err(ClientError::Server { address, status, lsn, term, message });
    }
    let bad_payload = |why| ClientError::ReadLost { address, why: Loss::BadPayload(why) };
    match serde_json::from_slice(&payload) {
        Ok(document @ Value::Object(_)) => Ok(document),
        Ok(_) => Err(bad_payload("the status is not a JSON object".to_owned())),
        Err(error) => Err(bad_payload(format!("the status is not JSON: {error}"))),
    }
}
