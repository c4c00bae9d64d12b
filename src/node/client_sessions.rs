//! Numbered writes: what a leader decides before it appends, so that each is executed once.
//!
//! A client opens a session with a record of the log, and numbers its writes in it. It may send several before the
//! first is answered, in order. When an answer is lost, it asks again with the same number, this node or the next
//! leader:
//!
//! | the number is | then |
//! |---|---|
//! | the one behind the last | it is executed: a record that carries session and number |
//! | under way: appended, not applied | the answer to that record, when it is applied |
//! | executed, and its answer remembered | the first answer again: its status, its LSN, its term |
//! | executed longer ago than the window | refused, NUMBER_TOO_OLD |
//! | further on than the one behind the last | refused, NUMBER_SKIPS: what it skips may yet be lost |
//! | of a session that is not known (any more) | refused, SESSION_EXPIRED |
//!
//! *The last* counts what is applied and what is under way. Nothing refused is ever executed by that request. Why once:
//! a record with a number is appended only behind the number before it, by a leader that has every record which may yet
//! be acknowledged, and within a log `applied, then under way` is all there is. A leader that begins with records that
//! are not applied reads them first ([`Node::note_unapplied`]).
//!
//! A session that is forgotten while a write of it is under way (thousands of others were opened in between) takes that
//! write's answer with it: it is executed and answered, and cannot be asked for again.
//!
//! A leader may answer from what it has applied only once a record of its own term is: what it began with may not be
//! committed before. Repeats wait for that like reads.
//!
//! No node writes records of sessions before every other one has said that it can apply them. Once the log holds a
//! session, nobody who cannot is let in (`leader_open`), and nothing more is asked.

use std::collections::{BTreeMap, VecDeque};

use super::leader::Leader;
use super::requests::Extra;
use super::snapshot_scan::Scan;
use super::{FatalReason, Node, Role, Stop};
use crate::conn::{ConnId, Io};
use crate::ids::{Lsn, SessionId, WriteNumber};
use crate::keyspace::Sessions;
use crate::limits::CLIENT_SESSION_WINDOW;
use crate::snapshot::SnapshotError;
use crate::wal::Cursor;
use crate::wire::client::{Reply, Status, WriteOp};
use crate::wire::{Answer, CMD_TYPES_SESSIONS, Effect, Record};

/// Records of client sessions between applied and last, and who waits for one of them besides its writer.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    flights: BTreeMap<Lsn, Flight>,
    waiters: Vec<(Lsn, ConnId)>,
}

/// What is under way of one session.
#[derive(Debug, Default)]
struct Flight {
    /// Its own record is: with this nonce.
    opens: Option<u64>,
    first_number: u64,
    /// Of consecutive numbers.
    lsns: VecDeque<Lsn>,
}

impl Flight {
    fn lsn_of(&self, number: u64) -> Option<Lsn> {
        self.lsns.get(usize::try_from(number.checked_sub(self.first_number)?).ok()?).copied()
    }

    fn last_number(&self) -> Option<u64> {
        (!self.lsns.is_empty()).then(|| self.first_number + self.lsns.len() as u64 - 1)
    }
}

impl UnderWay {
    /// A record was appended.
    fn appended(&mut self, record: &Record<'_>) {
        if let Effect::Session { nonce } = record.effect {
            self.flights.entry(record.lsn).or_default().opens = Some(nonce);
        } else if let Some(by) = record.effect.number() {
            let flight = self.flights.entry(by.session).or_default();
            if flight.lsns.is_empty() {
                flight.first_number = by.number;
            }
            flight.lsns.push_back(record.lsn);
        }
    }

    /// It was applied: from now on the table says it. Returns who waited for it.
    fn applied(&mut self, record: &Record<'_>) -> Vec<ConnId> {
        let session = record.effect.number().map_or(record.lsn, |by| by.session);
        if let Some(flight) = self.flights.get_mut(&session) {
            match record.effect.number() {
                Some(_) => {
                    let first = flight.lsns.pop_front();
                    assert_eq!(first, Some(record.lsn), "numbered writes are applied in their order");
                    flight.first_number += 1;
                }
                None => flight.opens = None,
            }
            if flight.opens.is_none() && flight.lsns.is_empty() {
                self.flights.remove(&session);
            }
        }
        let due = self.waiters.extract_if(.., |(lsn, _)| *lsn == record.lsn);
        due.map(|(_, conn)| conn).collect()
    }

    /// Whether there is a session that the table does not hold yet.
    fn opens_any(&self) -> bool {
        self.flights.values().any(|flight| flight.opens.is_some())
    }
}

/// What becomes of a numbered write.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Execute,
    /// It is appended: this record's answer is its own.
    IsUnderWay(Lsn),
    Executed(Answer),
    Refuse(Status, String),
}

/// Decides from what is applied and what is under way. Changes nothing.
fn decide(table: &Sessions, under_way: &UnderWay, id: SessionId, number: u64) -> Decision {
    let (known, flight) = (table.get(id), under_way.flights.get(&id.lsn));
    if known.is_none() && flight.and_then(|flight| flight.opens) != Some(id.nonce) {
        let text = format!("session {id} is not known here, or not any more; begin another one");
        return Decision::Refuse(Status::SessionExpired, text);
    }
    if let Some(lsn) = flight.and_then(|flight| flight.lsn_of(number)) {
        if crate::sabotage::is(crate::sabotage::Variant::NumberUnderWayAgain) {
            return Decision::Execute;
        }
        return Decision::IsUnderWay(lsn);
    }
    if let Some(answer) = known.and_then(|session| session.answer(number)) {
        return Decision::Executed(answer);
    }
    let applied = known.map_or(0, |session| session.last_number());
    let last = flight.and_then(Flight::last_number).unwrap_or(applied);
    if number <= last {
        let text = format!(
            "number {number} of session {id} was executed, and of {last} the answers to the last \
             {CLIENT_SESSION_WINDOW} are remembered"
        );
        return Decision::Refuse(Status::NumberTooOld, text);
    }
    if number - 1 > last {
        let text = format!("number {number} of session {id} skips {}: the last one here is {last}", last + 1);
        return Decision::Refuse(Status::NumberSkips, text);
    }
    Decision::Execute
}

impl Node {
    /// A client begins a session.
    pub(super) fn on_open_session(&mut self, io: &mut dyn Io, conn: ConnId) -> Result<(), Stop> {
        if let Some(why) = self.who_cannot_apply_sessions() {
            self.reply(io, conn, Status::Refused, why.as_bytes());
            return Ok(());
        }
        let nonce = self.rng.next_u64();
        let effect = Effect::Session { nonce };
        let lsn = self.on_write(io, conn, effect, Extra::SessionId(nonce))?;
        self.note_appended(lsn, effect);
        Ok(())
    }

    /// A client sends a numbered write, for the first time or again.
    pub(super) fn on_numbered(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        (session, number): (SessionId, u64),
        write: WriteOp<'_>,
    ) -> Result<(), Stop> {
        if let Some((status, message)) = self.write_refusal() {
            self.reply(io, conn, status, message.as_bytes());
            return Ok(());
        }
        let Some(leader) = self.leader() else { return Ok(()) };
        let term_lsn = leader.term_lsn;
        match decide(self.keyspace.sessions(), &leader.under_way, session, number) {
            Decision::Execute => {
                let by = WriteNumber { session: session.lsn, number };
                let effect = match write {
                    WriteOp::Put { key, value } => Effect::PutNumbered { key, value, by },
                    WriteOp::Delete { key } => Effect::DeleteNumbered { key, by },
                };
                let lsn = self.on_write(io, conn, effect, Extra::Nothing)?;
                self.note_appended(lsn, effect);
            }
            Decision::IsUnderWay(lsn) => self.wait_for_answer(conn, lsn, None),
            Decision::Executed(answer) if self.applied < term_lsn => {
                self.wait_for_answer(conn, term_lsn, Some(answer));
            }
            Decision::Executed(answer) => self.answer_again(io, conn, answer),
            Decision::Refuse(status, text) => self.reply(io, conn, status, text.as_bytes()),
        }
        Ok(())
    }

    fn note_appended(&mut self, lsn: Option<Lsn>, effect: Effect<'_>) {
        if let (Some(lsn), Some(leader)) = (lsn, self.leader_mut()) {
            leader.under_way.appended(&Record { lsn, effect });
        }
    }

    /// A repeat waits for `until` to be applied; then its answer is this one, or that of the record there.
    fn wait_for_answer(&mut self, conn: ConnId, until: Lsn, answer: Option<Answer>) {
        self.counters.repeats += 1;
        if let Some(leader) = self.leader_mut() {
            leader.under_way.waiters.push((until, conn));
        }
        self.push_repeat(conn, until, answer);
    }

    /// The first answer again.
    fn answer_again(&mut self, io: &mut dyn Io, conn: ConnId, answer: Answer) {
        self.counters.repeats += 1;
        let reply = self.reply_of(answer);
        self.reply_at(io, conn, reply);
    }

    /// The reply that a numbered write had, or will have had.
    pub(super) fn reply_of(&self, answer: Answer) -> Reply<'static> {
        let status = if answer.found { Status::Ok } else { Status::NotFound };
        Reply { status, lsn: answer.lsn, term: self.wal.history().term_at(answer.lsn), payload: b"" }
    }

    /// A leader has applied a record that is neither a plain PUT nor a plain DELETE, and its writer was answered.
    pub(super) fn session_record_applied(&mut self, io: &mut dyn Io, record: &Record<'_>, found: bool) {
        let Some(leader) = self.leader_mut() else { return };
        for conn in leader.under_way.applied(record) {
            self.answer_repeat(io, conn, record.lsn, Answer { lsn: record.lsn, found });
        }
    }

    /// A client is gone: what it repeated waits for nothing.
    pub(super) fn forget_repeats(&mut self, conn: ConnId) {
        if let Role::Leader(leader) = &mut self.role
            && !leader.under_way.waiters.is_empty()
        {
            leader.under_way.waiters.retain(|(_, waiter)| *waiter != conn);
        }
    }

    /// A leader begins: what its log holds and its state does not counts as under way.
    pub(super) fn note_unapplied(&mut self) -> Result<(), FatalReason> {
        let (applied, last) = (self.applied, self.wal.last_lsn());
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let Leader { under_way, .. } = leader.as_mut();
        if applied < last && !crate::sabotage::is(crate::sabotage::Variant::UnappliedNumbersForgotten) {
            let (mut cursor, wanted) = (Cursor::default(), (applied.next(), last));
            self.wal.replay_some(self.disk.as_mut(), &mut cursor, wanted, &mut |record| {
                under_way.appended(record);
                true
            })?;
        }
        Ok(())
    }

    /// Why no record of a session may be written: not every other node has said that it can apply one. Once the log
    /// holds a session this was asked, and whoever comes must.
    fn who_cannot_apply_sessions(&self) -> Option<String> {
        let leader = self.leader()?;
        if self.holds_sessions() {
            return None;
        }
        let unsure =
            leader.present().find(|peer| peer.cmd_types & CMD_TYPES_SESSIONS != CMD_TYPES_SESSIONS)?;
        let what = match unsure.cmd_types {
            0 => "has not been heard by this leader",
            _ => "is of a version that cannot apply them: update it",
        };
        Some(format!(
            "the first session of this cluster waits until every node can apply them, and {} {what}",
            unsure.address
        ))
    }

    /// The scan of a snapshot ends: all sessions at once, the file says what they are at E. A full table has 1.2 MB.
    pub(super) fn add_client_sessions(&mut self, scan: &mut Scan) -> Result<(), SnapshotError> {
        for session in self.keyspace.sessions().iter() {
            if scan.writer.is_full() {
                scan.pace.wrote(scan.writer.write_some(self.disk.as_mut())?);
            }
            scan.writer.add_session(session);
        }
        Ok(())
    }

    /// Whether the log holds records of client sessions: a table that held one is never empty again.
    pub(super) fn holds_sessions(&self) -> bool {
        let opens = self.leader().is_some_and(|leader| leader.under_way.opens_any());
        opens || !self.keyspace.sessions().is_empty()
    }
}
