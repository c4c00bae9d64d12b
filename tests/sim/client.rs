//! Clients: what they ask, when they give up, and what they were answered.

use std::collections::VecDeque;

use kvstore::ids::SessionId;
use kvstore::wire::FrameBuffer;
use kvstore::wire::client::{Inspect, ReadMode, Reply, Request, Status, WriteOp, decode_session_id};

use crate::core::{Core, MS};
use crate::numbered::{By, Numbering};

/// Requests of all clients in the first phase of a run, about.
const REQUESTS_PER_RUN: u64 = 1_200;
/// So many of a million requests ask where the time went.
const INSPECT_PPM: u64 = 20_000;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Put {
        key: Vec<u8>,
        id: u64,
        size: usize,
    },
    /// `local`: from what the node has, where leaders are elected.
    Get {
        key: Vec<u8>,
        local: bool,
    },
    Delete {
        key: Vec<u8>,
        id: u64,
    },
    Promote {
        force: bool,
    },
    /// A member is added, or removed.
    ChangeMembers {
        add: bool,
        site: usize,
    },
    /// An elected leader hands over, to this host or to any.
    Transfer {
        to: Option<usize>,
    },
    Follow {
        site: usize,
        discard: bool,
    },
    Inspect(Inspect),
    Snapshot,
    OpenSession,
}

/// A request that was sent on a connection.
#[derive(Clone, Debug)]
pub struct Sent {
    pub ask: Ask,
    pub at: u64,
    /// Filled in when the node hands the reply to the network: whether a leader gave it.
    pub by_leader: bool,
    /// The answer was that nobody knows whether it happened.
    pub unknown: bool,
    /// Of a numbered write.
    pub by: Option<By>,
}

impl Sent {
    /// When the client asked for this the first time.
    pub fn began(&self) -> u64 {
        self.by.filter(|by| by.tries > 1).map_or(self.at, |by| by.first_at)
    }
}

/// All requests of one connection; the n-th reply answers the n-th request.
#[derive(Debug, Default)]
pub struct Dialogue {
    pub site: usize,
    pub sent: Vec<Sent>,
    pub emitted: usize,
    pub received: usize,
}

/// A client. The last one of a run is the operator.
pub struct Client {
    pub site: usize,
    pub conn: Option<usize>,
    pub target: usize,
    buffer: FrameBuffer,
    to_send: VecDeque<u8>,
    pub next_id: u64,
    /// Reads nothing until then.
    pub lazy_until: u64,
    /// The newest write that was acknowledged to it.
    pub last_lsn: u64,
    /// Sends nothing new any more.
    pub quiet: bool,
    /// It numbers its writes.
    pub numbering: Option<Numbering>,
}

/// A reply as a client got it.
#[derive(Clone, Debug)]
pub struct Got {
    pub status: Status,
    pub lsn: u64,
    pub term: u64,
    /// The number of the write whose value it is.
    pub value_id: Option<u64>,
    /// Of a session that was opened.
    pub session: Option<SessionId>,
    pub text: String,
}

impl Client {
    pub fn new(site: usize, number: u64) -> Client {
        Client {
            site,
            conn: None,
            target: 0,
            buffer: FrameBuffer::new(),
            to_send: VecDeque::new(),
            next_id: (number + 1) << 40,
            lazy_until: 0,
            last_lsn: 0,
            quiet: false,
            numbering: None,
        }
    }

    /// Forgets the connection.
    pub fn reset(&mut self) {
        self.conn = None;
        self.buffer = FrameBuffer::new();
        self.to_send.clear();
    }

    /// Draws the next request.
    pub fn draw(&mut self, core: &mut Core) -> Ask {
        if self.last_lsn > 0 && core.chance(INSPECT_PPM) {
            return Ask::Inspect(crate::receipts::draw(core, self.last_lsn));
        }
        let hot = core.chance_of(|knobs| knobs.hot_ppm);
        let keys = if hot { core.knobs.keys_hot } else { core.knobs.keys_cold };
        if hot {
            core.stats.count("client: hot key");
        }
        let key = format!("{}{}", if hot { "hot" } else { "cold" }, core.rng.below(keys)).into_bytes();
        if core.chance_of(|knobs| knobs.read_ppm) {
            let local = core.knobs.is_elected() && core.chance_of(|knobs| knobs.local_read_ppm);
            return Ask::Get { key, local };
        }
        self.next_id += 1;
        if core.chance_of(|knobs| knobs.delete_ppm) {
            return Ask::Delete { key, id: self.next_id };
        }
        let large = core.chance_of(|knobs| knobs.large_ppm);
        if large {
            core.stats.count("client: large value");
        }
        // A few are larger than a segment.
        let most = if core.chance(100_000) { 120_000 } else { 30_000 };
        let size = if large { core.between(3_000, most) } else { core.between(8, 200) };
        Ask::Put { key, id: self.next_id, size: size as usize }
    }

    /// Encodes a request behind what waits to be sent.
    pub fn push(&mut self, ask: &Ask, by: Option<By>, address: impl Fn(usize) -> String) {
        let mut out = Vec::new();
        let write = |write: WriteOp<'_>, plain: Request<'_>, out: &mut Vec<u8>| match by {
            Some(By { session, number, .. }) => Request::Numbered { session, number, write }.encode(out),
            None => plain.encode(out),
        };
        match ask {
            Ask::Put { key, id, size } => {
                let mut value = id.to_be_bytes().to_vec();
                value.resize((*size).max(8), *id as u8);
                let plain = match crate::receipts::wants_receipt(*id) {
                    true => Request::PutExplained { key, value: &value },
                    false => Request::Put { key, value: &value },
                };
                write(WriteOp::Put { key, value: &value }, plain, &mut out);
            }
            Ask::Get { key, local: false } => Request::Get { key }.encode(&mut out),
            Ask::Get { key, local: true } => {
                Request::GetWith { key, reads: ReadMode::Local }.encode(&mut out);
            }
            Ask::Delete { key, .. } => write(WriteOp::Delete { key }, Request::Delete { key }, &mut out),
            Ask::OpenSession => Request::OpenSession.encode(&mut out),
            Ask::Promote { force } => Request::Promote { force: *force }.encode(&mut out),
            Ask::ChangeMembers { add, site } => {
                Request::ChangeMembers { add: *add, address: &address(*site) }.encode(&mut out);
            }
            Ask::Transfer { to } => {
                Request::Transfer { address: &to.map_or_else(String::new, address) }.encode(&mut out);
            }
            Ask::Inspect(inspect) => Request::Inspect(*inspect).encode(&mut out),
            Ask::Snapshot => Request::Snapshot { wait: false }.encode(&mut out),
            Ask::Follow { site, discard } => {
                Request::Follow { address: &address(*site), discard: *discard }.encode(&mut out);
            }
        }
        self.to_send.extend(out);
    }

    /// Writes what the socket takes. `Err`: the connection is over.
    pub fn write(&mut self, core: &mut Core) -> Result<(), &'static str> {
        let Some(conn) = self.conn else { return Ok(()) };
        let bytes = self.to_send.make_contiguous();
        if bytes.is_empty() {
            return Ok(());
        }
        let size = core.send(conn, 0, bytes, 0)?;
        self.to_send.drain(..size);
        Ok(())
    }

    /// Reads what has arrived; the replies in it. The flag: the connection is over.
    pub fn read(&mut self, core: &mut Core) -> (Vec<Got>, bool) {
        let mut replies = Vec::new();
        let Some(conn) = self.conn else { return (replies, false) };
        if core.now < self.lazy_until {
            return (replies, false);
        }
        loop {
            let space = self.buffer.space();
            let size = match core.receive(conn, 0, space) {
                Ok(0) => return (replies, false),
                Ok(size) => size,
                Err(_) => return (replies, true),
            };
            self.buffer.filled(size);
            while let Some(frame) = self.buffer.next_frame().expect("a node sends whole frames") {
                let reply = Reply::decode(frame.body).expect("a node sends whole replies");
                replies.push(Got {
                    status: reply.status,
                    lsn: reply.lsn.0,
                    term: reply.term.as_u64(),
                    value_id: crate::mirror::value_id(reply.payload),
                    session: decode_session_id(reply.payload).ok(),
                    text: String::from_utf8_lossy(reply.payload).into_owned(),
                });
            }
        }
    }

    /// When this client acts next. All clients together ask about as often as the run can afford.
    pub fn think(core: &mut Core, healed: bool) -> u64 {
        let knobs = &core.knobs;
        let afford = knobs.chaos_ns / REQUESTS_PER_RUN * knobs.clients as u64 * (knobs.pipeline_max / 2 + 1);
        let mean = if healed { 400 * MS } else { knobs.think_ns.max(afford) };
        core.between(mean / 4, mean * 2)
    }

    /// After so long without an answer a client gives up.
    pub const PATIENCE: u64 = 6_000 * MS;
}
