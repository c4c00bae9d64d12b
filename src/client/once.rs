//! How `kv_client` writes: with a number, so that a lost answer is asked for again, or plain.
//!
//! A plain write is one request and one record. A numbered one is two, and a ping: a process that writes once opens a
//! session for it. So over one endpoint a write is plain unless `--retry` is given; over several, where leaders change
//! and answers get lost, it is numbered unless `--no-retry` is.
//!
//! A cluster may refuse sessions: before its first one each node must have told the leader that it can apply them, and
//! one may be down. Where the number was only a default the write is then done plain, as good as ever, and what failed
//! or what was printed says so; where it was asked for, nothing is written.

use super::{Client, ClientError, LastWrite, Served, Session, WriteId};
use crate::wire::client::{Status, WriteOp};

/// Flags of `put` and `delete`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Asking {
    /// Number the write in a session, and ask again with that number, until --timeout-ms, when an answer is lost: it is
    /// executed once, whoever leads by then. One request and one record more; the default with several --endpoints.
    #[arg(long)]
    retry: bool,
    /// With several --endpoints too: one plain write, whose outcome is unknown when its answer is lost.
    #[arg(long, conflicts_with = "retry")]
    no_retry: bool,
    /// Ask again for a write whose outcome is unknown, by the number that the failed command named, with the same key
    /// and value. It is executed at most once, and the answer is that of the first time.
    #[arg(long, value_name = "SESSION:NUMBER", conflicts_with_all = ["retry", "no_retry"])]
    again: Option<WriteId>,
}

/// What came of a write, and how it was asked for.
#[derive(Debug)]
pub(super) struct Wrote {
    /// Of a removal, whether the key was there.
    pub(super) result: Result<Served<bool>, ClientError>,
    /// How.
    pub(super) how: Numbering,
}

/// How a write was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Numbering {
    /// As one plain request.
    Plain,
    /// With a number; `None`: it did not come to that.
    Numbered(Option<LastWrite>),
    /// As one plain request, because the cluster refuses sessions, in these words.
    Refused(String),
}

impl Asking {
    /// Whether `--no-follow` makes no sense: the same question at one node alone answers nothing.
    pub(super) fn needs_to_follow(&self) -> bool {
        self.retry || self.again.is_some()
    }
}

/// Does it, at one node or several.
pub(super) fn write(mut client: Client, op: &WriteOp<'_>, asking: &Asking, of_several: bool) -> Wrote {
    if let Some(id) = asking.again {
        let mut session = Session::of_unresolved(client, id, op);
        let result = session.resolve().expect("it has one to resolve");
        return Wrote { result, how: Numbering::Numbered(session.last_write()) };
    }
    if !asking.retry && (asking.no_retry || !of_several) {
        return Wrote { result: plain(&mut client, op), how: Numbering::Plain };
    }
    let mut session = Session::new(client);
    let result = session.write(op);
    match result {
        Err(ClientError::Server { status: Status::Refused, message, .. }) if !asking.retry => {
            Wrote { result: plain(session.client(), op), how: Numbering::Refused(message) }
        }
        result => Wrote { result, how: Numbering::Numbered(session.last_write()) },
    }
}

fn plain(client: &mut Client, op: &WriteOp<'_>) -> Result<Served<bool>, ClientError> {
    match *op {
        WriteOp::Put { key, value } => {
            client.put(key, value).map(|Served { lsn, term, .. }| Served { value: true, lsn, term })
        }
        WriteOp::Delete { key } => client.delete(key),
    }
}
