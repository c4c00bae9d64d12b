//! Clients: their requests in order, their replies in order.
//!
//! A write is answered when it is committed and applied. What a client asks behind its own unanswered
//! write waits for it, so that a connection sees its requests executed in the order it sent them. A read
//! that arrives before the leader's first record of its term is committed waits for that: what was
//! acknowledged before a restart must not be missing after it.

use std::collections::VecDeque;

use super::fatal::{fence, malformed};
use super::flush::ReserveOutcome;
use super::reads::Asked;
use super::{Budgets, Conn, Node, Role, Stop};
use crate::conn::{ConnId, Io};
use crate::ids::{Lsn, SessionId};
use crate::limits::VALUE_SIZE_MAX;
use crate::replication::election::reads::ReadVerdict;
use crate::wire::client::{Reply, Request, Status, encode_session_id};
use crate::wire::{Answer, Effect, MessageType, Record, record_size};

/// A client's unanswered requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct ClientConn {
    waiting: VecDeque<Waiting>,
    /// Bytes that the answers of those that wait will have, at most. All of them may become due in one moment.
    owed_bytes: usize,
    /// While writers are slowed: the window in which it had its request.
    slow_window: Option<u64>,
}

#[derive(Debug)]
enum Waiting {
    /// A write, answered when its LSN is applied.
    Write {
        /// Which.
        lsn: Lsn,
        /// What its reply carries.
        extra: Extra,
    },
    /// A numbered write again, whose answer is due when this LSN is applied.
    Repeat {
        /// Which.
        until: Lsn,
        /// The answer, where it is not that of the record there.
        answer: Option<Answer>,
    },
    /// A read behind a write or behind the term's first record.
    Read {
        /// Of what.
        key: Box<[u8]>,
        /// Bytes of its value, at most: of the present one, or of any that is under way.
        value_size_max: usize,
        /// How it is to be answered.
        asked: Asked,
    },
    /// An operator's command under way.
    Command,
    /// An answer behind an unanswered request: its frame.
    Ready(Vec<u8>),
}

/// What the reply to a write carries besides its LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extra {
    Nothing,
    /// Where its time went.
    Receipt,
    /// The id of the client session that it opened: its LSN, and this nonce.
    SessionId(u64),
}

impl ClientConn {
    /// Whether another request may be taken. A read of a few bytes may owe a value of 8 MiB: a count bounds nothing.
    pub(super) fn takes_more(&self, budgets: &Budgets) -> bool {
        self.waiting.len() < budgets.requests_in_flight && self.owed_bytes < budgets.output_high_water
    }

    fn push(&mut self, waiting: Waiting) {
        self.owed_bytes += waiting.owed_bytes();
        self.waiting.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.owed_bytes -= waiting.owed_bytes();
        Some(waiting)
    }

    /// Whether nothing it asked for is unanswered.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether it had its request in this window.
    pub(super) fn had_turn(&self, window: u64) -> bool {
        self.slow_window == Some(window)
    }
}

impl Waiting {
    fn owed_bytes(&self) -> usize {
        match self {
            Waiting::Write { .. } | Waiting::Repeat { .. } | Waiting::Command => 0,
            Waiting::Read { value_size_max, .. } => *value_size_max,
            Waiting::Ready(frame) => frame.len(),
        }
    }
}

impl Node {
    pub(super) fn on_request(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        message_type: MessageType,
        body: &[u8],
    ) -> Result<(), Stop> {
        let request = match Request::decode(message_type, body).map_err(malformed("request"))? {
            Some(request) => request,
            None => return fence(format!("{message_type:?} is not a request")),
        };
        let window = self.slow_window();
        if let Some(Conn::Client(client)) = self.conns.get_mut(conn) {
            client.slow_window = window;
        }
        if let Some(problem) = request.size_problem() {
            self.reply(io, conn, Status::TooLarge, problem.to_string().as_bytes());
            return Ok(());
        }
        self.had_work |= !matches!(request, Request::Ping | Request::Status);
        if self.bars(&request) {
            let text = self.incomplete_text();
            self.reply(io, conn, Status::Loading, text.as_bytes());
            return Ok(());
        }
        match request {
            Request::Get { key } => self.on_get(io, conn, key, None),
            Request::GetWith { key, reads } => self.on_get(io, conn, key, Some(reads)),
            Request::Put { key, value } => {
                self.on_write(io, conn, Effect::Put { key, value }, Extra::Nothing)?;
            }
            Request::PutExplained { key, value } => {
                self.on_write(io, conn, Effect::Put { key, value }, Extra::Receipt)?;
            }
            Request::Delete { key } => _ = self.on_write(io, conn, Effect::Delete { key }, Extra::Nothing)?,
            Request::Numbered { session, number, write } => {
                return self.on_numbered(io, conn, (session, number), write);
            }
            Request::OpenSession => return self.on_open_session(io, conn),
            Request::Inspect(inspect) => self.on_inspect(io, conn, inspect),
            Request::Ping => {
                let note = if self.is_complete() { String::new() } else { self.incomplete_text() };
                self.reply(io, conn, Status::Ok, note.as_bytes());
            }
            Request::Status => {
                let document = self.status_document(io);
                self.reply(io, conn, Status::Ok, document.as_bytes());
            }
            Request::Promote { force } => return Ok(self.on_promote(io, conn, force)?),
            Request::Snapshot { wait } => return Ok(self.on_snapshot(io, conn, wait)?),
            Request::Backup(step) => return Ok(self.on_backup(io, conn, step)?),
            Request::Transfer { address } => return Ok(self.on_transfer(io, conn, address)?),
            Request::Follow { address, discard } => return Ok(self.on_follow(io, conn, address, discard)?),
            Request::ChangeMembers { add, address: a } => self.on_change_members(io, conn, add, a)?,
        }
        Ok(())
    }

    /// Whether this is not done before the state is that of an LSN: reads would be of none, and who leads must be
    /// read. Before there is a role nothing but looking at the node is.
    fn bars(&self, request: &Request<'_>) -> bool {
        match request {
            Request::Ping | Request::Status | Request::Inspect(_) => false,
            Request::Get { .. } if crate::sabotage::is(crate::sabotage::Variant::ReadsBeforeComplete) => {
                false
            }
            Request::Get { .. } | Request::GetWith { .. } | Request::Promote { .. } => !self.is_complete(),
            _ => self.is_loading(),
        }
    }

    /// A read that waits its turn.
    pub(super) fn push_read(&mut self, conn: ConnId, key: &[u8], asked: Asked) {
        let present = self.keyspace.get(key).map_or(0, <[u8]>::len);
        let largest = if self.applies_from_log() { VALUE_SIZE_MAX } else { self.inflight.largest() };
        let value_size_max = present.max(largest);
        if let Some(Conn::Client(client)) = self.conns.get_mut(conn) {
            client.push(Waiting::Read { key: key.into(), value_size_max, asked });
        }
    }

    /// Returns the effect's LSN, unless it is refused.
    pub(super) fn on_write(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        effect: Effect<'_>,
        extra: Extra,
    ) -> Result<Option<Lsn>, Stop> {
        if let Some((status, message)) = self.write_refusal() {
            self.reply(io, conn, status, message.as_bytes());
            return Ok(None);
        }
        if self.is_stopped_by_pin() {
            self.counters.busy += 1;
            let bound = self.config.pin.log_bytes;
            let message = format!(
                "a follower gets a snapshot, and the log kept for it has reached --pin-log-bytes={bound}; try again"
            );
            self.reply(io, conn, Status::Busy, message.as_bytes());
            return Ok(None);
        }
        let size = record_size(&effect);
        if self.inflight.size() + size > self.budgets.in_flight_bytes {
            self.counters.busy += 1;
            let message =
                format!("{} bytes of writes wait for replicas or disk; try again", self.inflight.size());
            self.reply(io, conn, Status::Busy, message.as_bytes());
            return Ok(None);
        }
        match self.reserve(io, size) {
            Ok(()) => {}
            Err(ReserveOutcome::Fatal(reason)) => return Err(Stop::Fatal(reason)),
            Err(ReserveOutcome::NoRoom(_))
                if crate::sabotage::is(crate::sabotage::Variant::LsnTwiceAfterFullDisk) =>
            {
                let (lsn, term) = (self.wal.last_lsn().next(), self.meta.get().term);
                Reply { status: Status::Ok, lsn, term, payload: b"" }.encode(io.output(conn).bytes_mut());
                return Ok(None);
            }
            Err(ReserveOutcome::NoRoom(error)) => {
                self.counters.disk_full += 1;
                let message = format!("no room for a log segment in {}: {error}", self.disk.describe());
                self.reply(io, conn, Status::DiskFull, message.as_bytes());
                return Ok(None);
            }
        }
        self.marks.put_received(self.wal.last_lsn().next(), &effect);
        let lsn = self.append(effect);
        if let Role::Leader(leader) = &mut self.role {
            leader.writers.push_back((lsn, conn));
        }
        if let Some(Conn::Client(client)) = self.conns.get_mut(conn) {
            client.push(Waiting::Write { lsn, extra });
        }
        Ok(Some(lsn))
    }

    /// Gives the effect the next LSN. Room for it must be reserved.
    pub(super) fn append(&mut self, effect: Effect<'_>) -> Lsn {
        let record = Record { lsn: self.wal.last_lsn().next(), effect };
        let bytes = self.inflight.push(&record);
        let chain = self.wal.append(bytes, &record);
        self.inflight.pushed(chain);
        record.lsn
    }

    /// Appends the newest record once more.
    #[cfg(feature = "sabotage")]
    pub(super) fn append_again(&mut self) {
        let mut bytes = Vec::new();
        self.inflight.last_record().encode(&mut bytes);
        if self.wal.reserve(self.disk.as_mut(), bytes.len()).is_ok() {
            let record = Record::decode(&mut crate::wire::Reader::new(&bytes)).expect("just encoded");
            let _lsn = self.append(record.effect);
        }
    }

    #[cfg(not(feature = "sabotage"))]
    pub(super) fn append_again(&mut self) {}

    pub(super) fn write_refusal(&self) -> Option<(Status, String)> {
        if self.hands_over() || (self.shutdown.is_some() && self.is_member()) {
            return Some((Status::NotLeader, self.leader_address_for_clients()));
        }
        if self.shutdown.is_some() {
            return Some((Status::ShuttingDown, "this node is about to end".to_owned()));
        }
        match self.role {
            Role::Leader(_) if self.state_is_wrong() => Some((Status::Diverged, self.wrong_state_text())),
            Role::Leader(_) => None,
            Role::Follower(_) | Role::Deposed => Some((Status::NotLeader, self.leader_address_for_clients())),
        }
    }

    /// The leader's address as far as this node knows; empty if the only one it knows is its own.
    pub(super) fn leader_address_for_clients(&self) -> String {
        if self.is_elected() {
            return self.elected_leader_address();
        }
        let meta = self.meta.get();
        if meta.leader_id == meta.node_id { String::new() } else { meta.leader_address.clone() }
    }

    /// Answers the write with this LSN, which has just been applied, and what waited behind it.
    pub(super) fn answer_write(&mut self, io: &mut dyn Io, lsn: Lsn, found: bool) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.writers.front().is_none_or(|(first, _)| *first != lsn) {
            return;
        }
        let (_, conn) = leader.writers.pop_front().expect("it was looked at");
        let Some(Conn::Client(client)) = self.conns.get_mut(conn) else { return };
        let first = client.pop();
        let Some(Waiting::Write { lsn: waiting, extra }) = first else {
            panic!("LSN {lsn} was to be answered")
        };
        assert_eq!(waiting, lsn, "replies keep the order of requests");
        self.counters.writes_acked += 1;
        let status = if found { Status::Ok } else { Status::NotFound };
        let term = self.meta.get().term;
        let payload = match extra {
            Extra::Nothing => Vec::new(),
            Extra::Receipt => self.receipt_text(lsn).into_bytes(),
            Extra::SessionId(nonce) => encode_session_id(SessionId { lsn, nonce }).to_vec(),
        };
        Reply { status, lsn, term, payload: &payload }.encode(io.output(conn).bytes_mut());
        self.drain_waiting(io, conn);
    }

    /// Answers what stands in front of a client's queue and waits for nothing any more.
    pub(super) fn drain_waiting(&mut self, io: &mut dyn Io, conn: ConnId) {
        loop {
            let Some(Conn::Client(client)) = self.conns.get(conn) else { return };
            match client.waiting.front() {
                None | Some(Waiting::Write { .. } | Waiting::Repeat { .. } | Waiting::Command) => return,
                Some(Waiting::Read { asked, .. }) => {
                    let asked = *asked;
                    match self.judge_read(asked) {
                        Some(ReadVerdict::Now) => {}
                        Some(verdict) => return self.wait_for(conn, verdict, asked),
                        // Who stops leading answers its clients: see `release_clients`.
                        None => return,
                    }
                }
                Some(Waiting::Ready(_)) => {}
            }
            let Some(Conn::Client(client)) = self.conns.get_mut(conn) else { return };
            match client.pop() {
                Some(Waiting::Ready(frame)) => io.output(conn).bytes_mut().extend_from_slice(&frame),
                Some(Waiting::Read { key, asked, .. }) => self.answer_read(io, conn, &key, asked),
                _ => unreachable!("looked at above"),
            }
        }
    }

    /// This node no longer leads: its unanswered writes may survive or not, its waiting reads are served
    /// from what it has.
    pub(super) fn release_clients(&mut self, io: &mut dyn Io, why: &str) {
        let clients: Vec<ConnId> =
            self.conns.iter().filter(|(_, conn)| matches!(conn, Conn::Client(_))).map(|(id, _)| id).collect();
        let (lsn, term) = (self.applied, self.meta.get().term);
        // Where leaders are elected another one may have gone on already: what is here may be old.
        let reads_end_too = self.is_elected();
        for conn in clients {
            let Some(Conn::Client(client)) = self.conns.get_mut(conn) else { continue };
            for waiting in &mut client.waiting {
                let (status, payload) = match waiting {
                    Waiting::Write { .. } | Waiting::Repeat { .. } => (Status::OutcomeUnknown, why),
                    Waiting::Read { .. } if reads_end_too => (Status::NotLeader, ""),
                    _ => continue,
                };
                let mut frame = Vec::new();
                Reply { status, lsn, term, payload: payload.as_bytes() }.encode(&mut frame);
                client.owed_bytes += frame.len();
                client.owed_bytes -= waiting.owed_bytes();
                *waiting = Waiting::Ready(frame);
            }
            self.drain_waiting(io, conn);
        }
    }

    /// Answers a request that needs no more waiting, behind those that do.
    pub(super) fn reply(&mut self, io: &mut dyn Io, conn: ConnId, status: Status, payload: &[u8]) {
        self.reply_at(io, conn, Reply { status, lsn: self.applied, term: self.meta.get().term, payload });
    }

    /// Gives an answer behind those that are still to come.
    pub(super) fn reply_at(&mut self, io: &mut dyn Io, conn: ConnId, reply: Reply<'_>) {
        let Some(Conn::Client(client)) = self.conns.get_mut(conn) else { return };
        if client.waiting.is_empty() {
            reply.encode(io.output(conn).bytes_mut());
        } else {
            let mut frame = Vec::new();
            reply.encode(&mut frame);
            client.push(Waiting::Ready(frame));
        }
    }

    /// A numbered write is asked for again, and its answer is to come.
    pub(super) fn push_repeat(&mut self, conn: ConnId, until: Lsn, answer: Option<Answer>) {
        if let Some(Conn::Client(client)) = self.conns.get_mut(conn) {
            client.push(Waiting::Repeat { until, answer });
        }
    }

    /// Answers the first repeat that waits for this LSN, in its place: with `own` unless it has an answer already.
    pub(super) fn answer_repeat(&mut self, io: &mut dyn Io, conn: ConnId, until: Lsn, own: Answer) {
        let due = |waiting: &Waiting| match waiting {
            Waiting::Repeat { until: waited, answer } if *waited == until => Some(answer.unwrap_or(own)),
            _ => None,
        };
        let Some(Conn::Client(client)) = self.conns.get(conn) else { return };
        let Some(answer) = client.waiting.iter().find_map(due) else { return };
        let reply = self.reply_of(answer);
        self.fill_in(io, conn, |waiting| due(waiting).is_some(), reply);
    }

    /// A request is refused before it is read, for want of memory.
    pub fn refuse_unread(&mut self, io: &mut dyn Io, conn: ConnId, size: usize) {
        if let Some(known @ Conn::New(_)) = self.conns.get_mut(conn) {
            *known = Conn::Client(ClientConn::default());
        }
        self.counters.busy += 1;
        let message = format!("no memory for a request of {size} bytes now; try again");
        self.reply(io, conn, Status::Busy, message.as_bytes());
    }

    /// An operator's command will be answered with [`Node::finish_command`].
    pub(super) fn begin_command(&mut self, conn: ConnId) {
        if let Some(Conn::Client(client)) = self.conns.get_mut(conn) {
            client.push(Waiting::Command);
        }
    }

    pub(super) fn finish_command(&mut self, io: &mut dyn Io, conn: ConnId, status: Status, payload: &str) {
        let reply =
            Reply { status, lsn: self.applied, term: self.meta.get().term, payload: payload.as_bytes() };
        self.fill_in(io, conn, |waiting| matches!(waiting, Waiting::Command), reply);
    }

    /// Answers the first of this kind that waits, in its place, and what waits for nothing any more by that.
    fn fill_in(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        is_meant: impl Fn(&Waiting) -> bool,
        reply: Reply<'_>,
    ) {
        let Some(Conn::Client(client)) = self.conns.get_mut(conn) else { return };
        if let Some(waiting) = client.waiting.iter_mut().find(|waiting| is_meant(waiting)) {
            let mut frame = Vec::new();
            reply.encode(&mut frame);
            client.owed_bytes += frame.len();
            *waiting = Waiting::Ready(frame);
        }
        self.drain_waiting(io, conn);
    }
}
