//! A follower is asked for a session: may this leader open one, where do the logs part, what is cut.
//!
//! The order is the promise: the term, the leader and a cut that is due are one durable record before anything
//! is cut; the cut is durable before the answer says where the logs match.

use super::fatal::{fence, malformed};
use super::follower::{Follower, Session};
use super::handshake::PeerIn;
use super::rebuild::NoSource;
use super::{Conn, FatalReason, Node, Role, Stop};
use crate::conn::{ConnId, Io};
use crate::ids::{Chain, Lsn, Term};
use crate::snapshot::SnapshotInfo;
use crate::wal::Base;
use crate::wire::peer::{Open, OpenReply, RefuseCode};
use crate::{log_info, log_warn};

/// Why a session is not opened.
pub(super) struct Refusal(pub RefuseCode, pub String);

/// What is to be cut, and from what the state is made anew.
#[derive(Debug, PartialEq, Eq)]
enum CutPlan {
    /// The log ends where it should.
    Nothing,
    /// The records behind the match LSN; the state comes from this snapshot, or from the whole log.
    Behind { source: Option<SnapshotInfo> },
    /// All of it: there is no state to be had at the match LSN.
    Everything,
}

impl Node {
    pub(super) fn on_open(&mut self, io: &mut dyn Io, conn: ConnId, body: &[u8]) -> Result<(), Stop> {
        let open = Open::decode(body).map_err(malformed("OPEN"))?;
        let Some(Conn::PeerIn(peer)) = self.conns.get(conn) else { return Ok(()) };
        if peer.node_id != open.leader {
            return fence(format!("node {} opens a session for node {}", peer.node_id, open.leader));
        }
        let leader = peer.clone();
        // Opening it again would close the connection that the new session is to live on.
        if self.session_mut(conn).is_some() {
            return fence("a second OPEN on the connection of a session");
        }
        match self.try_open(io, conn, &open, &leader)? {
            Ok(reply) => reply.encode(io.output(conn).bytes_mut()),
            Err(Refusal(code, why)) => {
                self.log_refusal(format!(
                    "refused a session of {} in term {}: {why}",
                    leader.address, open.term
                ));
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
        leader: &PeerIn,
    ) -> Result<Result<OpenReply, Refusal>, FatalReason> {
        let may_follow = match self.is_elected() {
            true => self.may_follow_elected(io, open)?,
            false => self.may_follow_fixed(io, open, leader)?,
        };
        if let Err(refusal) = may_follow {
            return Ok(Err(refusal));
        }
        if self.promotion.is_some() {
            let why = "a promotion of this node is under way".to_owned();
            return Ok(Err(Refusal(RefuseCode::NotFollower, why)));
        }
        self.drop_session(io, "a newer one opens");
        let token = self.settle(io)?;
        assert!(token.lsn() == self.wal.last_lsn(), "a settled log is durable to its end");
        if let Some(why) = self.leader_rolled_back(open) {
            return Ok(Err(Refusal(RefuseCode::RolledBack, why)));
        }
        if let Some(why) = self.leader_lacks_what_was_lost(open) {
            return Ok(Err(Refusal(RefuseCode::CutBelowCommit, why)));
        }
        let match_lsn = match self.match_lsn(open)? {
            Ok(match_lsn) => match_lsn,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(refusal) = self.may_cut(match_lsn) {
            return Ok(Err(refusal));
        }
        let complete_at = self.complete_at;
        let contradicted = self.contradicts_state(open, match_lsn);
        let plan = match self.plan_cut(match_lsn) {
            _ if contradicted => CutPlan::Everything,
            Ok(plan) => plan,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let match_lsn = if plan == CutPlan::Everything { Lsn::ZERO } else { match_lsn };
        self.make_way(io, &plan, match_lsn)?;
        if !contradicted {
            self.tell_of_discard(match_lsn);
        }
        self.accept_leader(open, leader, match_lsn, &plan)?;
        self.tell_set_back(open, match_lsn);
        let cut_from = self.cut_behind(&plan, match_lsn)?;
        if contradicted {
            // Nobody reads the empty state that is left.
            self.complete_at = complete_at;
        }
        self.session_opened_with_log_from(open.first_lsn)?;
        let match_chain = self.wal.last_chain();
        let durable = self.wal.durable();
        assert!(durable.lsn() == match_lsn, "what is told to match is durable");
        if !open.elected {
            // What was heard about LSNs behind the match LSN was about records that this leader may not have. One that
            // is elected has whatever was ever committed.
            self.commit = self.commit.min(match_lsn);
        }
        self.forget_question();
        let session = Session::new(conn, &leader.address, open.term, self.now);
        self.role = Role::Follower(Follower { session: Some(session) });
        self.hear_leader(self.clock.now());
        self.counters.sessions += 1;
        log_info!(
            "replication",
            "session with leader {} in term {}: match LSN {match_lsn}",
            leader.address,
            open.term
        );
        Ok(Ok(OpenReply {
            term: open.term,
            match_lsn: durable.lsn(),
            match_chain,
            commit_lsn: self.effective_commit(),
            cut_from,
            repair_until: self.meta.get().repair.until,
        }))
    }

    /// Terms and roles: may this leader open a session at all? One that leads itself stops for a higher term.
    fn may_follow_fixed(
        &mut self,
        io: &mut dyn Io,
        open: &Open,
        leader: &PeerIn,
    ) -> Result<Result<(), Refusal>, FatalReason> {
        if self.leader().is_some() && open.term > self.meta.get().term {
            self.depose(io, open.term, open.leader, &leader.address)?;
        }
        Ok(self.may_follow(open))
    }

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
        if let Some(why) = self.other_kind_of_cluster(open) {
            return Err(Refusal(RefuseCode::NotFollower, why));
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

    /// What is applied here depends on whether the leader is elected, so that never changes: a state with records that
    /// are not committed could not be taken back.
    fn other_kind_of_cluster(&self, open: &Open) -> Option<String> {
        let (last, elected) = (self.wal.last_lsn(), self.meta.get().is_elected());
        let what = match (elected, open.elected) {
            (true, false) => "is of a cluster that elects its leader, and this one leads by its flags",
            (false, true) if last > Lsn::ZERO => {
                "is of a cluster with fixed roles, and this leader is elected"
            }
            _ => return None,
        };
        Some(format!(
            "the log here, up to LSN {last}, {what}; correct the address, or start this node with an empty --data-dir"
        ))
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
            // Below the first record held there is nothing to compare.
            let mine = self.wal.chain_at(self.disk.as_mut(), match_lsn)?;
            if let Some(mine) = mine.filter(|mine| *mine != open.last_chain) {
                let theirs = open.last_chain;
                let why =
                    crate::replication::history::Disagreement { lsn: match_lsn, mine, theirs }.to_string();
                return Ok(Err(Refusal(RefuseCode::Disagreement, why)));
            }
        }
        Ok(Ok(match_lsn))
    }

    /// Whether the state came from a snapshot that goes beyond this log, and the leader's log may be another one there.
    /// It was committed when it got its name, so that is the work of a forced promotion. What was loaded is no state
    /// of that leader's at any LSN, and all records here are its own too: everything is fetched anew.
    fn contradicts_state(&self, open: &Open, match_lsn: Lsn) -> bool {
        let e = self.complete_at;
        let parts_within = |first_lsn: Lsn| first_lsn > match_lsn && first_lsn <= e;
        e > self.wal.last_lsn()
            && (open.last_lsn < e || open.history.starts().iter().any(|start| parts_within(start.first_lsn)))
    }

    /// A cut below what is known to be committed never happens by itself.
    fn may_cut(&self, match_lsn: Lsn) -> Result<(), Refusal> {
        let (last, commit) = (self.wal.last_lsn(), self.effective_commit());
        if match_lsn >= last || match_lsn >= commit || self.meta.get().discard_allowed {
            return Ok(());
        }
        let port = self.config.port;
        let way_out = self.way_out(format!(
            "To give up records {} to {last} of this node (they are kept aside in a file) run `kv_client --port {port} \
             follow ADDR --discard` there; to keep them, promote that node",
            match_lsn.next()
        ));
        let why = format!(
            "the logs agree up to LSN {match_lsn} only, and committed records up to LSN {commit} are here that the \
             leader lacks: nothing was cut. {way_out}"
        );
        Err(Refusal(RefuseCode::CutBelowCommit, why))
    }

    /// What `follow --discard` gives up is said before it is done: a crash in between completes the cut.
    fn tell_of_discard(&self, match_lsn: Lsn) {
        let (last, commit) = (self.wal.last_lsn(), self.effective_commit());
        if match_lsn < commit {
            log_warn!(
                "wal",
                "--discard gives up records {} to {last} (committed up to LSN {commit}), which the leader lacks; they \
                 are kept aside in a file",
                match_lsn.next()
            );
        }
    }

    /// Makes the term, the leader, and a cut that is due durable, in one record.
    fn accept_leader(
        &mut self,
        open: &Open,
        leader: &PeerIn,
        match_lsn: Lsn,
        plan: &CutPlan,
    ) -> Result<(), FatalReason> {
        let cut = *plan != CutPlan::Nothing;
        // A cut of all records leaves no segment that says behind which LSN the log begins.
        let base = match cut && match_lsn.next() == self.wal.first_lsn() {
            _ if *plan == CutPlan::Everything => Some((Lsn::ZERO, Chain::ZERO)),
            true => self.wal.chain_at(self.disk.as_mut(), match_lsn)?.map(|chain| (match_lsn, chain)),
            false => None,
        };
        let members = self.meta.get().members.at(match_lsn);
        let mut repair = self.repair_with(open, match_lsn);
        if *plan == CutPlan::Everything {
            // What is left is the state of LSN 0, which is nothing to read, in sync or promoted, after a restart too.
            let held = self.wal.last_lsn().max(self.complete_at);
            repair.until = repair.until.max(held).min(open.last_lsn);
            repair.term = repair.term.max(self.meta.get().term);
        }
        self.meta.update(self.disk.as_mut(), |meta| {
            if open.term != meta.term || open.leader != meta.leader_id {
                meta.in_sync = false;
            }
            meta.enter_term(open.term);
            meta.leader_id = open.leader;
            meta.leader_address.clone_from(&leader.address);
            meta.own_address.clone_from(&open.your_address);
            if meta.members.is_empty() {
                meta.peers.clone_from(&open.peers);
                meta.follows_elected |= open.elected;
            }
            // With the record goes the list that it brought.
            meta.members = members;
            meta.discard_allowed = false;
            meta.in_sync &= !repair.is_due();
            meta.repair = repair;
            if meta.cluster_id.is_none() {
                meta.cluster_id = leader.cluster_id;
            }
            if cut {
                meta.log_generation += 1;
                meta.cut_lsn = match_lsn;
            }
            if let Some(base) = base {
                (meta.base_lsn, meta.base_chain) = base;
            }
        })?;
        self.wal.set_cluster(self.meta.get().cluster_id);
        Ok(())
    }

    /// What a cut behind `keep` takes: the state there must be found again, so a snapshot that ends by then, or all of
    /// the log. With neither nothing is left, and only where an operator gave up what was committed.
    fn plan_cut(&mut self, keep: Lsn) -> Result<CutPlan, Refusal> {
        if keep == self.wal.last_lsn() {
            return Ok(CutPlan::Nothing);
        }
        match self.source_for(keep) {
            Ok(source) => Ok(CutPlan::Behind { source }),
            Err(NoSource) if self.meta.get().discard_allowed => Ok(CutPlan::Everything),
            Err(NoSource) => {
                let why = format!(
                    "the logs agree up to LSN {keep} only, and no snapshot here leads to the state there; nothing was \
                     cut. `kv_client --port {} follow ADDR --discard` there gives up all that the node has (it is kept \
                     aside in a file) and starts it anew",
                    self.config.port
                );
                Err(Refusal(RefuseCode::CutBelowCommit, why))
            }
        }
    }

    /// Removes the snapshots that hold what is cut. Before the cut, so that a crash between leaves a log that reaches
    /// every snapshot; only if nothing is left of the log it is the other way round, because a log that begins further
    /// on without a snapshot is nothing that a node can start with.
    fn make_way(&mut self, io: &mut dyn Io, plan: &CutPlan, keep: Lsn) -> Result<(), FatalReason> {
        if *plan != CutPlan::Nothing {
            self.abort_snapshot_behind(io, keep);
        }
        if let CutPlan::Behind { .. } = plan {
            self.drop_snapshots_behind(keep)?;
        }
        Ok(())
    }

    /// Cuts the log behind `keep`, durably; the generation is durable already. Returns the first LSN cut.
    fn cut_behind(&mut self, plan: &CutPlan, keep: Lsn) -> Result<Lsn, FatalReason> {
        let last = self.wal.last_lsn();
        if *plan == CutPlan::Nothing || crate::sabotage::is(crate::sabotage::Variant::NoCut) {
            return Ok(Lsn::ZERO);
        }
        let generation = self.meta.get().log_generation;
        let (kept, source) = match plan {
            CutPlan::Everything => {
                self.drop_snapshots_behind(keep)?;
                (self.wal.reset(self.disk.as_mut(), &Base::default(), generation)?, None)
            }
            CutPlan::Behind { source } => {
                (self.wal.cut(self.disk.as_mut(), keep, generation)?, source.as_ref())
            }
            CutPlan::Nothing => unreachable!("looked at above"),
        };
        self.counters.cuts += 1;
        self.counters.cut_records += last.0 - keep.0;
        self.commit = self.commit.min(keep);
        self.forget_unapplied(keep);
        let aside = kept.map_or_else(String::new, |kept| format!("; {kept}"));
        log_warn!("wal", "cut records {} to {last}, which the leader does not have{aside}", keep.next());
        if self.applied > keep {
            self.rebuild_state(source)?;
            log_warn!(
                "node",
                "reads went back from LSN {last} to LSN {keep}: the keyspace was rebuilt from the log"
            );
        }
        Ok(keep.next())
    }
}
