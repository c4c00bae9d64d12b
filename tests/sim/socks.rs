//! The connections of a simulated process: what `net::Conns` is to sockets, over simulated streams.
//!
//! Everything that leaves is looked at when it is handed to the network: acknowledgements are compared with
//! the disk at that very moment, replies are noted for the checks after the turn, records may get a bit
//! flipped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use kvstore::conn::{Close, ConnId, DialId, Intake, Io, OutBuf, Wire};
use kvstore::ids::Chain;
use kvstore::time::Time;
use kvstore::wire::MessageType;
use kvstore::wire::client::{Reply, Status};
use kvstore::wire::peer::{Ack, FenceReply, OpenReply, Refuse, RefuseCode, SnapshotAck};

use crate::core::Shared;
use crate::mem_disk::MemDisk;
use crate::mirror::{Mirror, value_id};

/// Bytes of an APPEND_ENTRIES body around its records: the count before, the trailer behind.
const APPEND_HEAD: usize = 4;
const APPEND_TAIL: usize = 2 + 2 + 8 + 8 + 4 + 3 * 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    Draining(Time),
    Doomed,
}

/// One connection.
pub struct Sock {
    pub id: ConnId,
    pub conn: usize,
    pub side: usize,
    pub phase: Phase,
    pub intake: Intake,
    pub output: OutBuf,
    pub readable: bool,
    pub write_blocked: bool,
    listed: bool,
    /// Of the pending output, so many bytes were looked at.
    seen: usize,
    /// Bytes handed to the network.
    sent: u64,
    flips: VecDeque<(u64, u8)>,
}

/// A reply on its way to a client.
#[derive(Clone, Debug)]
pub struct Emitted {
    pub conn: usize,
    pub status: Status,
    pub lsn: u64,
    pub term: u64,
    pub value_id: Option<u64>,
    pub text: String,
}

/// See the head of this file.
pub struct Socks {
    pub core: Shared,
    pub site: usize,
    pub ahead: Rc<Cell<u64>>,
    pub mirror: Rc<RefCell<Mirror>>,
    pub slots: Vec<Option<Sock>>,
    generation: u32,
    dirty: Vec<ConnId>,
    doomed: Vec<ConnId>,
    pub dials: Vec<(DialId, String)>,
    pub emitted: Vec<Emitted>,
    /// ACKs and match answers since the last look: connection, LSN and the chain there.
    pub acks: Vec<(usize, u64, Chain)>,
    /// The highest commit LSN that a frame of records has told since the last look.
    pub told_commit: u64,
    /// Votes since the last look.
    pub votes: Vec<crate::elected::Told>,
    /// The connection of the session: the one that the last OPEN_REPLY left on.
    pub session: Option<ConnId>,
    /// The disk, to prove on a copy what is told of it.
    pub mem: MemDisk,
    /// The highest LSN that this process has told anybody to be on its disk.
    pub told: u64,
    pub now: Time,
}

impl Socks {
    pub fn new(
        core: Shared,
        site: usize,
        ahead: Rc<Cell<u64>>,
        mirror: Rc<RefCell<Mirror>>,
        mem: MemDisk,
    ) -> Socks {
        Socks {
            core,
            site,
            ahead,
            mirror,
            slots: Vec::new(),
            generation: 0,
            dirty: Vec::new(),
            doomed: Vec::new(),
            dials: Vec::new(),
            emitted: Vec::new(),
            acks: Vec::new(),
            told_commit: 0,
            votes: Vec::new(),
            session: None,
            mem,
            told: 0,
            now: Time(0),
        }
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Sock> {
        self.slots.get_mut(id.slot())?.as_mut().filter(|sock| sock.id == id)
    }

    pub fn get(&self, id: ConnId) -> Option<&Sock> {
        self.slots.get(id.slot())?.as_ref().filter(|sock| sock.id == id)
    }

    pub fn find(&mut self, conn: usize, side: usize) -> Option<&mut Sock> {
        self.slots.iter_mut().flatten().find(|sock| sock.conn == conn && sock.side == side)
    }

    pub fn insert(&mut self, conn: usize, side: usize) -> ConnId {
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        self.generation += 1;
        let id = ConnId::new(slot, self.generation);
        self.slots[slot] = Some(Sock {
            id,
            conn,
            side,
            phase: Phase::Open,
            intake: Intake::default(),
            output: OutBuf::default(),
            readable: true,
            write_blocked: false,
            listed: false,
            seen: 0,
            sent: 0,
            flips: VecDeque::new(),
        });
        id
    }

    pub fn free_doomed(&mut self) {
        for id in std::mem::take(&mut self.doomed) {
            let sock = self.slots[id.slot()].take().expect("it is doomed once");
            self.core.borrow_mut().close_end(sock.conn, sock.side, self.ahead.get());
        }
    }

    fn list(&mut self, id: ConnId) {
        let Some(sock) = self.get_mut(id) else { return };
        if !sock.listed {
            sock.listed = true;
            self.dirty.push(id);
        }
    }

    /// Writes what waits on one connection; `Some`: it is over.
    pub fn flush_one(&mut self, id: ConnId) -> Option<String> {
        self.inspect(id);
        let (core, ahead) = (self.core.clone(), self.ahead.get());
        let sock = self.get_mut(id)?;
        sock.listed = false;
        if sock.phase == Phase::Doomed {
            return None;
        }
        let mut over = None;
        if !sock.output.is_empty() && !sock.write_blocked {
            let mut bytes = sock.output.pending().to_vec();
            sock.flip(&mut bytes);
            let sent = core.borrow_mut().send(sock.conn, sock.side, &bytes, ahead);
            match sent {
                Ok(size) => {
                    sock.write_blocked = size < bytes.len();
                    sock.output.written(size);
                    sock.seen -= size;
                    sock.sent += size as u64;
                    if sock.flips.front().is_some_and(|(at, _)| *at < sock.sent) {
                        sock.flips.pop_front();
                        core.borrow_mut().stats.count("net: bit flipped");
                    }
                }
                Err(why) => over = Some(why.to_owned()),
            }
        }
        let drained = matches!(sock.phase, Phase::Draining(_)) && (over.is_some() || sock.output.is_empty());
        if drained {
            self.doom(id);
            return None;
        }
        over
    }

    /// Looks at the frames that the node has put into the buffer since the last look.
    fn inspect(&mut self, id: ConnId) {
        let Some(sock) = self.slots.get_mut(id.slot()).and_then(Option::as_mut).filter(|sock| sock.id == id)
        else {
            return;
        };
        // Nothing is said between a snapshot's name and its place as the log.
        self.mirror.borrow_mut().install();
        let pending = sock.output.pending();
        let mut at = sock.seen;
        while at < pending.len() {
            let size = u32::from_be_bytes(pending[at..at + 4].try_into().expect("4 bytes")) as usize;
            let (kind, body) = (pending[at + 4], &pending[at + 5..at + 4 + size]);
            let synced = self.mirror.borrow().synced;
            let mut tells = |lsn: u64, how: &str| {
                assert!(
                    lsn <= synced,
                    "host {} tells LSN {lsn} in {how}, and only {synced} is on its disk",
                    self.site
                );
                self.told = self.told.max(lsn);
            };
            let chain_at = |lsn: u64| self.mirror.borrow().get(lsn).map_or(Chain::ZERO, |entry| entry.chain);
            let mut prove = None;
            let kind = MessageType::from_u8(kind).expect("a node sends known types");
            let vote = crate::elected::Told::in_frame(&self.core, self.site, &self.mem, kind, body);
            self.votes.extend(vote);
            match kind {
                MessageType::AppendEntriesAck => {
                    let lsn = Ack::decode(body).expect("well formed").last_lsn.0;
                    tells(lsn, "an ACK");
                    self.acks.push((sock.conn, lsn, chain_at(lsn)));
                    prove = Some(lsn);
                }
                MessageType::SnapshotAck => {
                    let ack = SnapshotAck::decode(body).expect("well formed");
                    if let Some((lsn, _)) = ack.installed {
                        tells(lsn.0, "a SNAPSHOT_ACK");
                    }
                }
                MessageType::OpenReply => {
                    let lsn = OpenReply::decode(body).expect("well formed").match_lsn.0;
                    tells(lsn, "an OPEN_REPLY");
                    self.acks.push((sock.conn, lsn, chain_at(lsn)));
                    self.session = Some(id);
                    prove = Some(lsn);
                }
                MessageType::FenceReply => {
                    let lsn = FenceReply::decode(body).expect("well formed").last_lsn.0;
                    tells(lsn, "a FENCE_REPLY");
                    prove = Some(lsn);
                }
                MessageType::Reply => {
                    let reply = Reply::decode(body).expect("well formed");
                    // A majority's disks may be without this one's: `replies.rs` looks at theirs.
                    let elected = self.core.borrow().knobs.is_elected();
                    if reply.status == Status::Ok && !elected {
                        tells(reply.lsn.0, "a reply");
                    }
                    self.emitted.push(Emitted {
                        conn: sock.conn,
                        status: reply.status,
                        lsn: reply.lsn.0,
                        term: reply.term.as_u64(),
                        value_id: value_id(reply.payload),
                        text: if reply.status == Status::Ok
                            && !matches!(reply.payload.first(), Some(b'{' | b'['))
                        {
                            String::new()
                        } else {
                            String::from_utf8_lossy(reply.payload).into_owned()
                        },
                    });
                }
                MessageType::HandOver => self.core.borrow_mut().hand_over_left = Some(self.site),
                MessageType::Refuse => {
                    let refuse = Refuse::decode(body).expect("well formed");
                    if refuse.code == RefuseCode::Identity {
                        let text = &refuse.message;
                        let mut core = self.core.borrow_mut();
                        let (word, what) = match core.knobs.is_elected() {
                            true => ("wiped", "node: refused a member whose directory was emptied"),
                            false => ("copied", "node: refused a second node of one identity"),
                        };
                        assert!(text.contains(word), "another identity is refused with: {text}");
                        let says_what_to_do = text.contains("kv_client replace") || !core.knobs.is_elected();
                        assert!(says_what_to_do, "it is not said what to do: {text}");
                        core.stats.count(what);
                    }
                }
                MessageType::AppendEntries if body.len() >= APPEND_HEAD + APPEND_TAIL => {
                    let trailer = &body[body.len() - APPEND_TAIL..];
                    let commit = u64::from_be_bytes(trailer[4..12].try_into().expect("8 bytes"));
                    self.told_commit = self.told_commit.max(commit);
                    if body.len() == APPEND_HEAD + APPEND_TAIL {
                        at += 4 + size;
                        continue;
                    }
                    let mut core = self.core.borrow_mut();
                    if core.chance_of(|knobs| knobs.flip_ppm) {
                        let records = (body.len() - APPEND_HEAD - APPEND_TAIL) as u64;
                        let place = core.rng.below(records);
                        let bit = core.rng.below(8);
                        let start = sock.sent + (at + 5 + APPEND_HEAD) as u64;
                        sock.flips.push_back((start + place, 1 << bit));
                    }
                }
                _ => {}
            }
            if let Some(lsn) = prove.filter(|lsn| *lsn > 0) {
                crate::proof::now_and_then(&self.core, &self.mem, self.site, lsn, chain_at(lsn));
            }
            at += 4 + size;
        }
        sock.seen = at;
    }
}

impl Sock {
    fn flip(&self, bytes: &mut [u8]) {
        for (at, mask) in &self.flips {
            if let Some(byte) = at.checked_sub(self.sent).and_then(|index| bytes.get_mut(index as usize)) {
                *byte ^= mask;
            }
        }
    }
}

impl Io for Socks {
    fn output(&mut self, conn: ConnId) -> &mut OutBuf {
        self.list(conn);
        &mut self.get_mut(conn).expect("a node writes only to connections it was told of").output
    }

    fn output_if_open(&self, conn: ConnId) -> Option<&OutBuf> {
        self.get(conn).filter(|sock| sock.phase == Phase::Open).map(|sock| &sock.output)
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        let deadline = self.now.after_ms(1_000);
        let Some(sock) = self.get_mut(conn) else { return };
        match how {
            Close::AfterOutput if sock.phase == Phase::Open && !sock.output.is_empty() => {
                sock.phase = Phase::Draining(deadline);
                self.list(conn);
            }
            Close::AfterOutput | Close::Now => self.doom(conn),
        }
    }

    fn dial(&mut self, dial: DialId, address: &str) {
        self.dials.push((dial, address.to_owned()));
    }
}

impl Wire for Socks {
    fn flush(&mut self) -> Vec<(ConnId, String)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|id| self.flush_one(id).map(|why| (id, why))).collect()
    }

    fn flush_one(&mut self, conn: ConnId) -> Option<String> {
        Socks::flush_one(self, conn)
    }

    fn doom(&mut self, conn: ConnId) {
        if let Some(sock) = self.get_mut(conn)
            && sock.phase != Phase::Doomed
        {
            sock.phase = Phase::Doomed;
            self.doomed.push(conn);
        }
    }
}
