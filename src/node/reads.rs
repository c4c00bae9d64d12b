//! Reads: from what is applied, and when.
//!
//! | the leader is | this node leads | it follows |
//! |---|---|---|
//! | fixed | at once, when its own TERM record is applied | at once |
//! | elected, `lease` | at once while its lease holds, else as `quorum` | refused, with the leader's address |
//! | elected, `quorum` | when a majority has echoed a frame that was sent after the read came | refused |
//! | elected, `local` | at once | at once: may be stale, and says its LSN and age |
//!
//! `--reads` says which on the nodes of an elected cluster, and a GET may ask for another. The rules, and why they are
//! enough, are `replication::election`'s; here they get their clock. *One* reading serves all requests that came with
//! one read of a socket. It is made behind that read and before the first of them is answered, so a stall anywhere
//! before it is in it; what stalls after it does no harm, since at that moment, after they came, this node led, and
//! knew all that had been acknowledged.
//!
//! What was asked behind an unanswered read on its connection waits for it, and a write is answered as it is applied.
//! So reads are released before a commit is applied: it is of records that left behind them, and proves as much as an
//! echo.
//!
//! A round is a heartbeat that does not wait for its time. Per follower one is under way at most, and what comes
//! meanwhile is served by the next: a thousand reads cost as many rounds as fit into the time they take, and a frame
//! of records serves as one.
//!
//! The age of a local answer is the time since this node knew that it had applied what was committed: since the frame
//! came whose commit LSN it has reached, and on a leader since the sending of what a majority has echoed. The way of
//! that frame is not in it.

use super::{Conn, Node, Role};
use crate::conn::{ConnId, Io};
use crate::ids::Lsn;
use crate::replication::election::reads::{ReadMode, ReadVerdict, judge};
use crate::sabotage::{Variant, is};
use crate::time::Time;
use crate::wire::client::{Reply, Status};

/// How a read was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// As fixed roles serve it.
    Plain,
    /// As an elected leader serves it. When it came, or later, and where the log ended then.
    Linearizable(ReadMode, Time, Lsn),
    /// From what is here.
    Local,
}

/// When what is applied was known to be all that is committed.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// What the leader's newest frame said, and when it came.
    told: Option<(Lsn, Time)>,
    /// The newest such moment that is reached.
    at: Option<Time>,
}

/// Reads of an elected leader that wait for an echo.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    readers: Vec<ConnId>,
    /// When the last of them came.
    newest: Option<Time>,
    /// What a majority had echoed when they were looked at last.
    echoed: Option<Time>,
}

impl Node {
    /// A follower heard what is committed.
    pub(super) fn hear_commit(&mut self, lsn: Lsn, at: Time) {
        self.commit = self.commit.max(lsn);
        self.freshness.told = Some((lsn, at));
    }

    /// The turn has applied what it could.
    pub(super) fn note_freshness(&mut self) {
        if let Some((_, at)) = self.freshness.told.take_if(|(lsn, _)| *lsn <= self.applied) {
            self.freshness.at = Some(at);
        }
    }

    /// A reading of the clock from after the requests came that are being read.
    fn arrived(&mut self) -> Time {
        if is(Variant::StaleReadAfterPause) {
            return self.now;
        }
        *self.read_at.get_or_insert_with(|| self.clock.now())
    }

    /// How a read is served here. `Err`: it is not, and why.
    fn asked(&mut self, wanted: Option<ReadMode>) -> Result<Asked, (Status, String)> {
        if !self.is_elected() && !self.meta.get().is_elected() {
            return match wanted {
                None => Ok(Asked::Plain),
                Some(ReadMode::Local) => Ok(Asked::Local),
                Some(mode) => Err((
                    Status::BadRequest,
                    format!(
                        "reads={} is for clusters that elect their leader; here roles are fixed, and a leader's reads \
                         are of what is committed: leave it out, or say local",
                        mode.name()
                    ),
                )),
            };
        }
        // A read replica has no say in elections: what it has is all that it can give.
        let default = if self.is_elected() { self.config.election.reads } else { ReadMode::Local };
        match wanted.unwrap_or(default) {
            ReadMode::Local => Ok(Asked::Local),
            mode if self.leader().is_some() => {
                Ok(Asked::Linearizable(mode, self.arrived(), self.wal.last_lsn()))
            }
            _ => Err((Status::NotLeader, self.leader_address_for_clients())),
        }
    }

    /// What a read waits for. `None`: this node does not lead any more, and cannot tell.
    pub(super) fn judge_read(&self, asked: Asked) -> Option<ReadVerdict> {
        let leader = self.leader();
        match asked {
            Asked::Local => Some(ReadVerdict::Now),
            Asked::Plain if leader.is_some_and(|leader| self.applied < leader.term_lsn) => {
                Some(ReadVerdict::AfterTermRecord)
            }
            Asked::Plain => Some(ReadVerdict::Now),
            Asked::Linearizable(mode, arrived, log_end) => {
                let leader = leader?;
                let positions = (leader.term_lsn, self.applied);
                let verdict = judge(mode, (arrived, arrived), leader.quorum.as_ref()?, positions);
                // A majority holds a record of this term that left after the read came: an echo that needs no clock.
                let by_commit = verdict == ReadVerdict::AfterRound && self.commit > log_end;
                Some(if by_commit { ReadVerdict::Now } else { verdict })
            }
        }
    }

    pub(super) fn on_get(&mut self, io: &mut dyn Io, conn: ConnId, key: &[u8], wanted: Option<ReadMode>) {
        if let Some(text) = self.repair_text() {
            return self.reply(io, conn, Status::Repairing, text.as_bytes());
        }
        let asked = match self.asked(wanted) {
            Ok(asked) => asked,
            Err((status, text)) => return self.reply(io, conn, status, text.as_bytes()),
        };
        let verdict = self.judge_read(asked).expect("only a leader is asked as one");
        if verdict == ReadVerdict::Now && self.waits_for_nothing(conn) {
            self.answer_read(io, conn, key, asked);
            self.counters.reads += 1;
            self.last_read = Some((conn, self.now));
            return;
        }
        self.push_read(conn, key, asked);
        self.wait_for(conn, verdict, asked);
    }

    /// The connection is drained when this has happened.
    pub(super) fn wait_for(&mut self, conn: ConnId, verdict: ReadVerdict, asked: Asked) {
        let Role::Leader(leader) = &mut self.role else { return };
        match (verdict, asked) {
            (ReadVerdict::Now, _) => {}
            (ReadVerdict::AfterTermRecord, _) => leader.barred_readers.push(conn),
            (ReadVerdict::AfterRound, Asked::Linearizable(_, arrived, _)) => {
                leader.rounds.readers.push(conn);
                leader.rounds.newest = leader.rounds.newest.max(Some(arrived));
            }
            (ReadVerdict::AfterRound, _) => unreachable!("only linearizable reads need a round"),
        }
    }

    /// A follower has echoed a frame: reads that waited for that are answered.
    pub(super) fn echoed(&mut self, io: &mut dyn Io, index: usize, mark: u64) {
        let now = self.now;
        let Some(leader) = self.leader_mut() else { return };
        let Some(quorum) = &mut leader.quorum else { return };
        quorum.echoed(index, mark);
        if leader.rounds.readers.is_empty() {
            return;
        }
        let since = quorum.majority_since(now);
        if since > leader.rounds.echoed {
            let readers = std::mem::take(&mut leader.rounds).readers;
            leader.rounds.echoed = since;
            // Those that came later than that wait again.
            readers.into_iter().for_each(|conn| self.drain_waiting(io, conn));
        }
    }

    /// A commit is about to be applied. It proves what reads from before its records wait for, and they are answered
    /// first: a write behind a read on its connection is answered as it is applied, and must not pass it.
    pub(super) fn release_rounds(&mut self, io: &mut dyn Io) {
        let Some(leader) = self.leader_mut() else { return };
        let readers = std::mem::take(&mut leader.rounds.readers);
        readers.into_iter().for_each(|conn| self.drain_waiting(io, conn));
    }

    /// A reading of the clock for a frame that is about to leave, where somebody waits for its echo; else the turn's.
    pub(super) fn sent_at(&self) -> Time {
        let is_awaited = self.leader().is_some_and(|leader| !leader.rounds.readers.is_empty());
        if is_awaited { self.clock.now() } else { self.now }
    }

    /// Answers a read from what is applied.
    pub(super) fn answer_read(&mut self, io: &mut dyn Io, conn: ConnId, key: &[u8], asked: Asked) {
        let (lsn, term) = (self.applied, self.meta.get().term);
        if self.state_is_wrong() {
            let text = self.wrong_state_text();
            let reply = Reply { status: Status::Diverged, lsn, term, payload: text.as_bytes() };
            return reply.encode(io.output(conn).bytes_mut());
        }
        let (status, payload) = match self.keyspace.get(key) {
            Some(value) => (Status::Ok, value),
            None => (Status::NotFound, &b""[..]),
        };
        let reply = Reply { status, lsn, term, payload };
        let out = io.output(conn).bytes_mut();
        match asked {
            Asked::Local => reply.encode_with_age(self.age_ms(), out),
            Asked::Plain | Asked::Linearizable(..) => reply.encode(out),
        }
    }

    /// For how long there may have been newer values elsewhere, in milliseconds, as far as this node can tell.
    fn age_ms(&self) -> Option<u64> {
        let now = self.clock.now();
        let fresh_at = match &self.role {
            Role::Leader(leader) => match &leader.quorum {
                Some(quorum) => quorum.majority_since(now),
                None => Some(now),
            },
            Role::Follower(_) | Role::Deposed => self.freshness.at,
        };
        fresh_at.map(|at| now.since(at) / 1_000_000)
    }

    fn waits_for_nothing(&self, conn: ConnId) -> bool {
        matches!(self.conns.get(conn), Some(Conn::Client(client)) if client.is_idle())
    }
}

impl Rounds {
    /// When the last read came that waits for a round.
    pub fn newest(&self) -> Option<Time> {
        self.newest
    }
}
