//! The follower's side of a session: check, append, ACK. How one is opened stands in `session_open`.

use super::fatal::{fence, malformed};
use super::flush::ReserveOutcome;
use super::{FatalReason, Node, Role, Stop};
use crate::conn::{Close, ConnId, Io};
use crate::ids::{Lsn, Term};
use crate::replication::members::Members;
use crate::sabotage::Variant;
use crate::time::Time;
use crate::wire::peer::{Ack, AckDurations, AppendEntries, RefuseCode};
use crate::wire::{DecodeError, DecodeProblem, Effect};
use crate::{log_at, log_info, log_warn};

/// What only a follower has.
#[derive(Debug, Default)]
pub struct Follower {
    /// The session with its leader.
    pub session: Option<Session>,
}

/// A session from the follower's side.
#[derive(Debug)]
pub struct Session {
    /// Its connection.
    pub conn: ConnId,
    /// Where the leader listens.
    pub leader_address: String,
    term: Term,
    pub(super) last_heard: Time,
    round: u64,
    /// A frame waits for its ACK.
    ack_due: bool,
    /// Something became durable that no ACK has told.
    durable_untold: bool,
    /// What arrived and was not given to the disk; what the disk is busy with; what it has.
    arrived: Share,
    submitted: Share,
    durable: Share,
}

/// What is told with an ACK of the frames that it is for.
#[derive(Debug, Default)]
struct Share {
    spent: AckDurations,
    /// The first record and the moment of its frame, for the log line.
    received: Option<(Lsn, Time)>,
}

impl Share {
    fn add(&mut self, later: Share) {
        let (spent, more) = (&mut self.spent, later.spent);
        spent.decode_ns = spent.decode_ns.saturating_add(more.decode_ns);
        spent.write_ns = spent.write_ns.saturating_add(more.write_ns);
        spent.sync_ns = spent.sync_ns.saturating_add(more.sync_ns);
        self.received = self.received.or(later.received);
    }
}

impl Session {
    /// A session that was just opened.
    pub fn new(conn: ConnId, leader_address: &str, term: Term, now: Time) -> Session {
        Session {
            conn,
            leader_address: leader_address.to_owned(),
            term,
            last_heard: now,
            round: 0,
            ack_due: false,
            durable_untold: false,
            arrived: Share::default(),
            submitted: Share::default(),
            durable: Share::default(),
        }
    }

    /// The term that it was opened in.
    pub(super) fn term(&self) -> Term {
        self.term
    }

    /// The number of the newest frame heard.
    pub fn round(&self) -> u64 {
        self.round
    }
}

impl Node {
    /// Whether a session with a leader stands.
    pub(super) fn follows_somebody(&self) -> bool {
        matches!(&self.role, Role::Follower(Follower { session: Some(_) }))
    }

    pub(super) fn session_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        match &mut self.role {
            Role::Follower(Follower { session: Some(session) })
                if session.conn == conn
                    || crate::sabotage::is(crate::sabotage::Variant::DeadSessionFrames) =>
            {
                Some(session)
            }
            _ => None,
        }
    }

    /// The connection of a session, or of a node that never opened one, is gone.
    pub(super) fn session_lost(&mut self, conn: ConnId, why: &str) {
        let Some(session) = self.session_mut(conn) else { return };
        log_warn!("replication", "session with leader {} is lost: {why}", session.leader_address);
        if let Role::Follower(follower) = &mut self.role {
            follower.session = None;
        }
    }

    /// Bytes arrived: who sends them is not silent, even if they are not a whole frame yet.
    pub fn on_bytes(&mut self, conn: ConnId) {
        let now = self.now;
        if let Some(session) = self.session_mut(conn) {
            session.last_heard = now;
            self.hear_leader(now);
        }
    }

    /// Ends the session from this side, if there is one.
    pub(super) fn drop_session(&mut self, io: &mut dyn Io, why: &str) {
        if let Role::Follower(follower) = &mut self.role
            && let Some(session) = follower.session.take()
        {
            log_info!("replication", "session with leader {} ends: {why}", session.leader_address);
            let chunks_count = crate::sabotage::is(Variant::OldTransferChunk) && self.install.is_some();
            if !crate::sabotage::is(Variant::DeadSessionFrames) && !chunks_count {
                self.close(io, session.conn, Close::Now);
            }
        }
    }

    pub(super) fn on_append_entries(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        body: &[u8],
    ) -> Result<(), Stop> {
        let begin = self.clock.now();
        let now = self.now;
        let term = self.meta.get().term;
        match self.session_mut(conn) {
            Some(session) if session.term == term => {
                session.last_heard = now;
                self.hear_leader(begin);
            }
            _ => {
                self.counters.dead_session_frames += 1;
                return Ok(());
            }
        }
        if self.install.is_some() {
            return fence("APPEND_ENTRIES in the middle of a snapshot transfer");
        }
        let (first, kept) = (self.wal.last_lsn().next(), self.inflight.current().len());
        let frame = match self.check_records(body) {
            Ok(frame) => frame,
            Err(stop) => {
                self.inflight.truncate(kept);
                return Err(stop);
            }
        };
        let (frame, mut lists) = frame;
        // Before any of its records can be applied.
        self.hear_state_news(&frame.tail.state);
        for index in kept..self.inflight.current().len() {
            let record_size = self.inflight.current().slice(index, index + 1).0.len();
            match self.reserve(io, record_size) {
                Ok(()) => {}
                Err(ReserveOutcome::Fatal(reason)) => return Err(Stop::Fatal(reason)),
                Err(ReserveOutcome::NoRoom(error)) => {
                    self.inflight.truncate(index);
                    self.log_has_no_room(io, conn, &error);
                    return Ok(());
                }
            }
            if let Some((lsn, list)) = lists.pop_if(|(lsn, _)| *lsn == self.wal.last_lsn().next()) {
                self.note_members(lsn, list)?;
            }
            let (bytes, chain) = self.inflight.current().slice(index, index + 1);
            self.wal.append_checked(bytes, chain);
        }
        self.hear_commit(frame.tail.commit_lsn, begin);
        self.had_work |= frame.record_count > 0;
        self.hear_in_sync(frame.tail.in_sync)?;
        let decode_ns = saturate(self.clock.now().since(begin));
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        session.round = session.round.max(frame.tail.round);
        session.ack_due = true;
        let received = (frame.record_count > 0).then_some((first, begin));
        session.arrived.add(Share { spent: AckDurations { decode_ns, ..AckDurations::default() }, received });
        Ok(())
    }

    /// Checks every record of a frame, and the frame as a whole, before anything is appended. They are kept
    /// in the batch already; a frame that fails is taken out of it again. With it come the lists of members in it, the
    /// last one first.
    #[allow(clippy::type_complexity)]
    fn check_records<'a>(
        &mut self,
        body: &'a [u8],
    ) -> Result<(AppendEntries<'a>, Vec<(Lsn, Members)>), Stop> {
        let (mut expected, mut chain) = (self.wal.last_lsn().next(), self.wal.last_chain());
        let (mut last_term, session_term) = (self.wal.last_term(), self.meta.get().term);
        let (inflight, mut lists) = (&mut self.inflight, Vec::new());
        let wrong = |field, value| DecodeError { field, at: 0, problem: DecodeProblem::Invalid(value) };
        let frame = AppendEntries::decode(body, |record, bytes| {
            if record.lsn != expected {
                return Err(wrong("record lsn (a gap in the session)", record.lsn.0));
            }
            if let Effect::Term { term, .. } = record.effect {
                if term <= last_term || term > session_term {
                    return Err(wrong("record term (terms rise, up to the session's)", term.as_u64()));
                }
                last_term = term;
            }
            lists.extend(record.members().map(|list| (record.lsn, list)));
            expected = expected.next();
            chain = chain.extend(bytes);
            inflight.push_encoded(bytes, record.lsn);
            inflight.pushed(chain);
            Ok(())
        })
        .map_err(malformed("APPEND_ENTRIES"))?;
        if frame.tail.chain != chain {
            return fence(format!(
                "chain checksum {} at LSN {} in the frame, {chain} here: damaged on its way",
                frame.tail.chain,
                expected.prev()
            ));
        }
        lists.reverse();
        Ok((frame, lists))
    }

    fn log_has_no_room(&mut self, io: &mut dyn Io, conn: ConnId, error: &std::io::Error) {
        self.counters.disk_full += 1;
        let why = format!("no room for a log segment in {}: {error}", self.disk.describe());
        log_warn!("replication", "session ends: {why}");
        if let Role::Follower(follower) = &mut self.role {
            follower.session = None;
        }
        self.refuse(io, conn, RefuseCode::Other, why);
    }

    pub(super) fn hear_in_sync(&mut self, in_sync: bool) -> Result<(), FatalReason> {
        if self.is_elected() {
            // Nobody asks for it there: a majority decides who may lead.
            return Ok(());
        }
        let in_sync = in_sync && self.repair_due().is_none();
        // Remembered over a restart, because a promotion asks for it; it changes rarely.
        if self.meta.get().in_sync != in_sync {
            self.meta.update(self.disk.as_mut(), |meta| meta.in_sync = in_sync)?;
            let what = if in_sync { "in sync" } else { "out of sync" };
            log_info!("replication", "the leader counts this node as {what}");
        }
        Ok(())
    }

    /// A sync begins, of all that has arrived.
    pub(super) fn note_submitted(&mut self) {
        if let Role::Follower(Follower { session: Some(session) }) = &mut self.role {
            session.submitted.add(std::mem::take(&mut session.arrived));
        }
    }

    /// It ended: an ACK is due, with what it cost, the write of the batch included.
    pub(super) fn note_durable(&mut self, sync_ns: u64) {
        if let Role::Follower(Follower { session: Some(session) }) = &mut self.role {
            session.durable_untold = true;
            session.durable.add(std::mem::take(&mut session.submitted));
            let spent = &mut session.durable.spent;
            spent.sync_ns = spent.sync_ns.saturating_add(saturate(sync_ns));
        }
    }

    /// Tells the leader what is durable. A frame that waits for a sync is answered behind it, a heartbeat too.
    pub(super) fn send_due_ack(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        let settled = self.wal.batch_bytes() == 0 && !self.wal.flush_pending();
        let token = self.wal.durable();
        self.finish_repair(token.lsn())?;
        let Role::Follower(Follower { session: Some(session) }) = &mut self.role else { return Ok(()) };
        let due = session.durable_untold || (session.ack_due && settled);
        if !due {
            return Ok(());
        }
        session.durable_untold = false;
        let mut share = std::mem::take(&mut session.durable);
        if settled {
            session.ack_due = false;
            share.add(std::mem::take(&mut session.arrived));
        }
        let (conn, round) = (session.conn, session.round);
        let ack = Ack { last_lsn: token.lsn(), round, spent: share.spent, state: self.state_answer() };
        ack.encode(io.output(conn).bytes_mut());
        if let Some((first, begin)) = share.received {
            let (last, now) = (token.lsn(), self.clock.now());
            let count = last.next().0.saturating_sub(first.0);
            let took_us = now.since(begin) / 1_000;
            log_at!(
                self.received_lines.level(now, count),
                "replication",
                "received AppendEntries, applied {count} record(s) lsn={first}..{last} took_us={took_us}"
            );
        }
        Ok(())
    }
}

fn saturate(ns: u64) -> u32 {
    u32::try_from(ns).unwrap_or(u32::MAX)
}
