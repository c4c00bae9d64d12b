//! The follower's side of a session: open, match, cut, append, ACK.

use super::fatal::{fence, malformed};
use super::replog::Line;
use super::start::replay;
use super::turn::SyncCost;
use super::{Conn, FatalReason, Node, Role, Stop};
use crate::conn::{Close, ConnId, Io};
use crate::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use crate::time::Time;
use crate::wal::ReserveError;
use crate::wire::peer::{Ack, AckDurations, AppendEntries, Open, OpenReply, RefuseCode};
use crate::wire::{DecodeError, DecodeProblem, Effect};
use crate::{log_debug, log_info, log_warn};

/// What only a follower has.
#[derive(Debug)]
pub struct Follower {
    /// The session with its leader.
    pub session: Option<Session>,
    /// What the leader said last.
    pub in_sync: bool,
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
    ack_due: bool,
    spent: AckDurations,
    /// Records and the moment of the first frame since the last ACK, for the log line.
    received: Option<(Lsn, Time)>,
}

impl Session {
    /// The number of the newest frame heard.
    pub fn round(&self) -> u64 {
        self.round
    }
}

/// Why a session is not opened.
struct Refusal(RefuseCode, String);

impl Follower {
    /// A follower without a session.
    pub fn new(in_sync: bool) -> Follower {
        Follower { session: None, in_sync }
    }
}

impl Node {
    fn session_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        match &mut self.role {
            Role::Follower(Follower { session: Some(session), .. })
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
        }
    }

    /// Ends the session from this side, if there is one.
    pub(super) fn drop_session(&mut self, io: &mut dyn Io, why: &str) {
        if let Role::Follower(follower) = &mut self.role
            && let Some(session) = follower.session.take()
        {
            log_info!("replication", "session with leader {} ends: {why}", session.leader_address);
            if !crate::sabotage::is(crate::sabotage::Variant::DeadSessionFrames) {
                self.close(io, session.conn, Close::Now);
            }
        }
    }

    pub(super) fn on_open(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let open = Open::decode(body).map_err(malformed("OPEN"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        if peer.node_id != open.leader {
            return fence(format!("node {} opens a session for node {}", peer.node_id, open.leader));
        }
        let address = peer.address.clone();
        // Opening it again would close the connection that the new session is to live on.
        if self.session_mut(conn).is_some() {
            return fence("a second OPEN on the connection of a session");
        }
        match self.try_open(io, conn, &open, &address)? {
            Ok(reply) => reply.encode(io.output(conn).bytes_mut()),
            Err(Refusal(code, why)) => {
                self.log_refusal(format!("refused a session of {address} in term {}: {why}", open.term));
                self.refuse(io, conn, code, why);
            }
        }
        Ok(())
    }

    fn try_open(
        &mut self,
        io: &mut dyn Io,
        conn: ConnId,
        open: &Open,
        address: &str,
    ) -> Result<Result<OpenReply, Refusal>, FatalReason> {
        if self.leader().is_some() && open.term > self.meta.get().term {
            self.depose(io, open.term, open.leader, address)?;
        }
        if let Err(refusal) = self.may_follow(open) {
            return Ok(Err(refusal));
        }
        if self.promotion.is_some() {
            let why = "a promotion of this node is under way".to_owned();
            return Ok(Err(Refusal(RefuseCode::NotFollower, why)));
        }
        self.drop_session(io, "a newer one opens");
        let token = self.settle(io)?;
        assert!(token.lsn() == self.wal.last_lsn(), "a settled log is durable to its end");
        let match_lsn = match self.match_lsn(open)? {
            Ok(match_lsn) => match_lsn,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(refusal) = self.may_cut(match_lsn) {
            return Ok(Err(refusal));
        }
        self.accept_leader(open, address, match_lsn)?;
        let cut_from = self.cut_behind(match_lsn)?;
        let match_chain = self.wal.last_chain();
        let durable = self.wal.durable();
        assert!(durable.lsn() == match_lsn, "what is told to match is durable");
        // What was heard about LSNs behind the match LSN was about records that this leader may not have.
        self.commit = self.commit.min(match_lsn);
        let in_sync = self.meta.get().in_sync;
        let session = Session {
            conn,
            leader_address: address.to_owned(),
            term: open.term,
            last_heard: self.now,
            round: 0,
            ack_due: false,
            spent: AckDurations::default(),
            received: None,
        };
        self.role = Role::Follower(Follower { session: Some(session), in_sync });
        self.counters.sessions += 1;
        log_info!(
            "replication",
            "session with leader {address} in term {}: match LSN {match_lsn}",
            open.term
        );
        Ok(Ok(OpenReply {
            term: open.term,
            match_lsn: durable.lsn(),
            match_chain,
            commit_lsn: self.effective_commit(),
            cut_from,
        }))
    }

    /// Terms and roles: may this leader open a session at all?
    fn may_follow(&self, open: &Open) -> Result<(), Refusal> {
        let meta = self.meta.get();
        if open.term < meta.term {
            let why = format!(
                "term {} is known here, led by {} (node {})",
                meta.term, meta.leader_address, meta.leader_id
            );
            return Err(Refusal(RefuseCode::StaleTerm, why));
        }
        let port = self.config.port;
        match self.role {
            Role::Leader(_) => {
                let why = format!("this node leads in term {}; two leaders are configured", meta.term);
                return Err(Refusal(RefuseCode::NotFollower, why));
            }
            Role::Deposed => {
                let why = format!(
                    "this node led until it met term {}, and waits for its operator: `kv_client --port {port} \
                     follow ADDR` there",
                    meta.term
                );
                return Err(Refusal(RefuseCode::NotFollower, why));
            }
            Role::Follower(_) => {}
        }
        let other_leader = !meta.leader_id.is_none() && meta.leader_id != open.leader;
        if open.term == meta.term && other_leader && meta.term > Term::ZERO {
            let why = format!(
                "two leaders in term {}: {} (node {}) and this one (node {}); make one of them follow the other",
                meta.term, meta.leader_address, meta.leader_id, open.leader
            );
            return Err(Refusal(RefuseCode::TwoLeaders, why));
        }
        Ok(())
    }

    /// The last LSN on which both logs agree, with the evidence compared where both know it.
    fn match_lsn(&mut self, open: &Open) -> Result<Result<Lsn, Refusal>, FatalReason> {
        let found = self.wal.history().match_lsn(self.wal.last_lsn(), &open.history, open.last_lsn);
        let match_lsn = match found {
            Ok(_) if crate::sabotage::is(crate::sabotage::Variant::MatchIsOwnLast) => {
                return Ok(Ok(self.wal.last_lsn()));
            }
            Ok(match_lsn) => match_lsn,
            Err(disagreement) => return Ok(Err(Refusal(RefuseCode::Disagreement, disagreement.to_string()))),
        };
        if match_lsn == open.last_lsn && match_lsn > Lsn::ZERO {
            let mine = self.wal.chain_at(self.disk.as_mut(), match_lsn)?.unwrap_or(Chain::ZERO);
            if mine != open.last_chain {
                let theirs = open.last_chain;
                let why =
                    crate::replication::history::Disagreement { lsn: match_lsn, mine, theirs }.to_string();
                return Ok(Err(Refusal(RefuseCode::Disagreement, why)));
            }
        }
        Ok(Ok(match_lsn))
    }

    /// A cut below what is known to be committed never happens by itself.
    fn may_cut(&self, match_lsn: Lsn) -> Result<(), Refusal> {
        let (last, commit) = (self.wal.last_lsn(), self.effective_commit());
        if match_lsn >= last || match_lsn >= commit || self.meta.get().discard_allowed {
            return Ok(());
        }
        let port = self.config.port;
        let why = format!(
            "the logs agree up to LSN {match_lsn} only, and committed records up to LSN {commit} are here that the \
             leader lacks: nothing was cut. To give up records {} to {last} of this node (they are kept aside in a \
             file) run `kv_client --port {port} follow ADDR --discard` there; to keep them, promote that node",
            match_lsn.next()
        );
        Err(Refusal(RefuseCode::CutBelowCommit, why))
    }

    /// Makes the term, the leader, and a cut that is due durable, in one record.
    fn accept_leader(&mut self, open: &Open, address: &str, match_lsn: Lsn) -> Result<(), FatalReason> {
        let cluster_id = self.cluster_of_peer(open.leader);
        let cut = match_lsn < self.wal.last_lsn();
        self.meta.update(self.disk.as_mut(), |meta| {
            if open.term != meta.term || open.leader != meta.leader_id {
                meta.in_sync = false;
            }
            meta.term = open.term;
            meta.leader_id = open.leader;
            meta.leader_address = address.to_owned();
            meta.own_address.clone_from(&open.your_address);
            meta.peers.clone_from(&open.peers);
            meta.discard_allowed = false;
            if meta.cluster_id.is_none() {
                meta.cluster_id = cluster_id;
            }
            if cut {
                meta.log_generation += 1;
                meta.cut_lsn = match_lsn;
            }
        })?;
        self.wal.set_cluster(self.meta.get().cluster_id);
        Ok(())
    }

    fn cluster_of_peer(&self, leader: NodeId) -> ClusterId {
        let hello = self.conns.iter().find_map(|(_, conn)| match conn {
            Conn::PeerIn(peer) if peer.node_id == leader => Some(peer.cluster_id),
            _ => None,
        });
        hello.unwrap_or(ClusterId::NONE)
    }

    /// Cuts the log behind `keep`, durably; the generation is durable already. Returns the first LSN cut.
    fn cut_behind(&mut self, keep: Lsn) -> Result<Lsn, FatalReason> {
        let last = self.wal.last_lsn();
        if keep == last || crate::sabotage::is(crate::sabotage::Variant::NoCut) {
            return Ok(Lsn::ZERO);
        }
        let generation = self.meta.get().log_generation;
        let kept = self.wal.cut(self.disk.as_mut(), keep, generation)?;
        self.counters.cuts += 1;
        self.counters.cut_records += last.0 - keep.0;
        self.commit = self.commit.min(keep);
        let aside = kept.map_or_else(String::new, |kept| format!("; {kept}"));
        log_warn!("wal", "cut records {} to {last}, which the leader does not have{aside}", keep.next());
        if self.applied > keep {
            self.keyspace.clear();
            replay(&mut self.keyspace, &mut self.wal, self.disk.as_mut())?;
            self.applied = keep;
            log_warn!(
                "node",
                "reads went back from LSN {last} to LSN {keep}: the keyspace was rebuilt from the log"
            );
        }
        Ok(keep.next())
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
            Some(session) if session.term == term => session.last_heard = now,
            _ => {
                self.counters.dead_session_frames += 1;
                return Ok(());
            }
        }
        let (first, kept) = (self.wal.last_lsn().next(), self.inflight.current().len());
        let frame = match self.check_records(body) {
            Ok(frame) => frame,
            Err(stop) => {
                self.inflight.truncate(kept);
                return Err(stop);
            }
        };
        for index in kept..self.inflight.current().len() {
            let (bytes, chain) = self.inflight.current().slice(index, index + 1);
            if let Err(error) = self.wal.reserve(self.disk.as_mut(), bytes.len()) {
                self.inflight.truncate(index);
                return self.log_has_no_room(io, conn, error);
            }
            self.wal.append_checked(bytes, chain);
        }
        self.commit = self.commit.max(frame.tail.commit_lsn);
        self.hear_in_sync(frame.tail.in_sync)?;
        let decode_ns = saturate(self.clock.now().since(begin));
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        session.round = session.round.max(frame.tail.round);
        session.ack_due = true;
        session.spent.decode_ns = session.spent.decode_ns.saturating_add(decode_ns);
        if frame.record_count > 0 && session.received.is_none() {
            session.received = Some((first, begin));
        }
        Ok(())
    }

    /// Checks every record of a frame, and the frame as a whole, before anything is appended. They are kept
    /// in the batch already; a frame that fails is taken out of it again.
    fn check_records<'a>(&mut self, body: &'a [u8]) -> Result<AppendEntries<'a>, Stop> {
        let (mut expected, mut chain) = (self.wal.last_lsn().next(), self.wal.last_chain());
        let (mut last_term, session_term) = (self.wal.last_term(), self.meta.get().term);
        let inflight = &mut self.inflight;
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
        Ok(frame)
    }

    fn log_has_no_room(&mut self, io: &mut dyn Io, conn: ConnId, error: ReserveError) -> Result<(), Stop> {
        let error = match error {
            ReserveError::Failed(error) => return Err(error.into()),
            ReserveError::NoRoom(error) => error,
            ReserveError::FlushPending => unreachable!("a turn waits for its sync"),
        };
        self.counters.disk_full += 1;
        let why = format!("no room for a log segment in {}: {error}", self.disk.describe());
        log_warn!("replication", "session ends: {why}");
        if let Role::Follower(follower) = &mut self.role {
            follower.session = None;
        }
        self.refuse(io, conn, RefuseCode::Other, why);
        Ok(())
    }

    fn hear_in_sync(&mut self, in_sync: bool) -> Result<(), FatalReason> {
        let Role::Follower(follower) = &mut self.role else { return Ok(()) };
        follower.in_sync = in_sync;
        // Remembered over a restart, because a promotion asks for it; it changes rarely.
        if self.meta.get().in_sync != in_sync {
            self.meta.update(self.disk.as_mut(), |meta| meta.in_sync = in_sync)?;
            let what = if in_sync { "in sync" } else { "out of sync" };
            log_info!("replication", "the leader counts this node as {what}");
        }
        Ok(())
    }

    /// A sync ended: an ACK is due, with what it cost.
    pub(super) fn note_ack_due(&mut self, cost: SyncCost) {
        if let Role::Follower(Follower { session: Some(session), .. }) = &mut self.role {
            session.ack_due = true;
            session.spent.sync_ns = session.spent.sync_ns.saturating_add(saturate(cost.sync_ns));
        }
    }

    /// Tells the leader what is durable, once this turn's log is.
    pub(super) fn send_due_ack(&mut self, io: &mut dyn Io) {
        if self.wal.batch_bytes() > 0 || self.wal.flush_pending() {
            return;
        }
        let (token, now) = (self.wal.durable(), self.clock.now());
        let Role::Follower(Follower { session: Some(session), .. }) = &mut self.role else { return };
        if !std::mem::take(&mut session.ack_due) {
            return;
        }
        let ack =
            Ack { last_lsn: token.lsn(), round: session.round, spent: std::mem::take(&mut session.spent) };
        ack.encode(io.output(session.conn).bytes_mut());
        if let Some((first, begin)) = session.received.take() {
            let last = token.lsn();
            let count = last.next().0.saturating_sub(first.0);
            let took_us = now.since(begin) / 1_000;
            let line = format_args!(
                "received AppendEntries, applied {count} record(s) lsn={first}..{last} took_us={took_us}"
            );
            match self.received_lines.line(now, count) {
                Line::Info => log_info!("replication", "{line}"),
                Line::Debug => log_debug!("replication", "{line}"),
            }
        }
    }
}

fn saturate(ns: u64) -> u32 {
    u32::try_from(ns).unwrap_or(u32::MAX)
}
