//! Whether this node's state is that of the others, and is what it applied: asking, answering, looking at itself, and
//! what follows. Who is wrong is decided in [`crate::replication::divergence`].
//!
//! ```text
//! leader    once a second, if the log has grown: names its last LSN in the next frame of each session; keeps the hash
//!           of its state when it has applied that LSN; compares what comes back; tells each follower, in the trailer
//!           of every frame, what it knows of its state
//! follower  keeps the hash when it has applied that LSN; sends it with its next ACK; hears what is known of it
//! each      recomputes the hash from all entries while a snapshot visits them (`snapshot`)
//! ```
//!
//! No frame and no system call is added: a frame is 24 bytes longer, an ACK too, and a record that is applied costs one
//! comparison more.
//!
//! Invariants:
//! - A hash is kept at the very moment its LSN is the applied one, of a complete state, and of no other.
//! - A node that knows its state to be wrong answers nothing from it, makes no snapshot of it, gives none away, and
//!   removes none of the log from which the state can be made anew. It goes on to take records and to acknowledge them:
//!   its log is not in question.
//! - Only a new state (a start, a rebuild after a cut, an installed snapshot) ends that.

use serde_json::{Value, json};

use super::leader::Peer;
use super::{Node, Role};
use crate::ids::{Lsn, SessionId};
use crate::limits::STATE_CHECK_MS;
use crate::replication::divergence::{Fault, Standing, judge};
use crate::time::Time;
use crate::wire::peer::{StateAt, StateNews};
use crate::wire::{Effect, Record};
use crate::{log_error, log_info, log_warn};

/// The question under way, from either side, and what is known of the own state.
#[derive(Debug, Default)]
pub(super) struct StateChecks {
    /// The LSN that was asked for last; 0: none yet.
    pub asked: Lsn,
    /// The hash there, once that LSN is applied; a follower's until it is sent.
    hash: Option<u128>,
    /// When a leader may ask again.
    next_at: Time,
    pub standing: Standing,
    /// The last LSN at which all entries were what was applied.
    scanned: Lsn,
    /// There is a dispute: the next snapshot does not wait for the log to grow.
    pub wants_scan: bool,
}

/// What a leader knows of a follower's state.
#[derive(Debug, Default)]
pub(super) struct PeerState {
    /// The last question that was put to it in its session.
    asked: Lsn,
    /// Its last answer.
    answer: Option<StateAt>,
    standing: Standing,
}

impl PeerState {
    /// Its session begins. What was asked and found in an older one is not told in it: the follower may have been
    /// started anew since, with a state that was made anew.
    pub(super) fn on_session(&mut self) {
        let right = self.standing.right;
        *self = PeerState { standing: Standing { right, ..Standing::default() }, ..PeerState::default() };
    }

    /// What the next frame says. With the question, if the follower cannot be past that LSN: records go in order.
    pub(super) fn news(&mut self, next_lsn: Lsn, question: Lsn) -> StateNews {
        let is_new = question > self.asked && next_lsn.prev() <= question;
        if is_new {
            self.asked = question;
        }
        StateNews {
            ask_lsn: if is_new { question } else { Lsn::ZERO },
            equal_lsn: self.standing.right,
            differs_lsn: self.standing.differs,
            outvoted: self.standing.fault == Some(Fault::Outvoted),
        }
    }

    fn answer_to(&self, question: Lsn) -> Option<u128> {
        self.answer.filter(|answer| answer.lsn == question).map(|answer| answer.hash)
    }
}

impl Node {
    /// The question that frames carry from now on: a new one, if it is time.
    pub(super) fn question(&mut self) -> Lsn {
        let last = self.wal.last_lsn();
        let has_followers = self.leader().is_some_and(|leader| leader.present().next().is_some());
        if last > self.checks.asked && self.now >= self.checks.next_at && has_followers {
            // Whoever has not answered by now is not waited for.
            self.compare_states(true);
            self.checks.next_at = self.now.after_ms(STATE_CHECK_MS);
            self.begin_question(last);
        }
        self.checks.asked
    }

    fn begin_question(&mut self, lsn: Lsn) {
        (self.checks.asked, self.checks.hash) = (lsn, None);
        if lsn == self.applied {
            self.keep_hash();
        }
    }

    /// The LSN that was asked for is the applied one.
    #[cold]
    pub(super) fn keep_hash(&mut self) {
        if self.is_complete() {
            self.checks.hash = Some(self.keyspace.state_hash());
            self.compare_states(false);
        }
    }

    /// The leader's word about this follower's state, and its question.
    pub(super) fn hear_state_news(&mut self, news: &StateNews) {
        if news.ask_lsn > Lsn::ZERO && news.ask_lsn >= self.applied {
            self.begin_question(news.ask_lsn);
        }
        if self.checks.standing.on_told(news.equal_lsn, news.differs_lsn, news.outvoted) {
            self.tell_standing();
        }
    }

    /// The answer that is due, once.
    pub(super) fn state_answer(&mut self) -> Option<StateAt> {
        let hash = self.checks.hash.take()?;
        Some(StateAt { lsn: self.checks.asked, hash })
    }

    /// A follower answers.
    pub(super) fn on_state_answer(&mut self, index: usize, answer: StateAt) {
        let Some(leader) = self.leader_mut() else { return };
        leader.peers[index].state.answer = Some(answer);
        self.compare_states(false);
    }

    /// Compares the answers so far. While they say no more than that somebody is wrong, others may yet tell who: those
    /// who were asked and have not answered, until the last call.
    fn compare_states(&mut self, last_call: bool) {
        let (question, Some(own)) = (self.checks.asked, self.checks.hash) else { return };
        let Role::Leader(leader) = &mut self.role else { return };
        let answers: Vec<u128> =
            leader.peers.iter().filter_map(|peer| peer.state.answer_to(question)).collect();
        let judgement = judge(own, &answers, leader.present().count() + 1);
        let is_waited_for = |peer: &Peer| {
            peer.conn().is_some() && peer.state.asked == question && peer.state.answer_to(question).is_none()
        };
        let waits = judgement.is_open() && leader.peers.iter().any(is_waited_for);
        if answers.is_empty() || waits && !last_call {
            return;
        }
        self.counters.states_compared += answers.len() as u64;
        for peer in &mut leader.peers {
            let Some(hash) = peer.state.answer_to(question) else { continue };
            let fault = judgement.of_follower(hash);
            self.counters.states_differed += u64::from(fault.is_some());
            if peer.state.standing.on_judged(fault, question) {
                tell_of_follower(&peer.address, &peer.state.standing);
            }
        }
        if self.checks.standing.on_judged(judgement.of_leader(), question) {
            self.tell_standing();
        }
    }

    /// The known-bad variant: on one node of four, now and then.
    pub(super) fn apply_another_value(&mut self, record: &Record<'_>) {
        if let Effect::Put { key, value } = record.effect
            && self.node_id().0[0].is_multiple_of(4)
            && record.lsn.0.is_multiple_of(16)
        {
            let value = [value, b"!"].concat();
            let _existed =
                self.keyspace.apply(&Record { effect: Effect::Put { key, value: &value }, ..*record });
        }
    }

    /// Flips a bit of an entry in memory: for tests. False: there is no such key.
    pub fn flip_bit(&mut self, key: &[u8], bit: usize) -> bool {
        self.keyspace.flip_bit(key, bit)
    }

    /// The same of what a numbered write was answered. False: that is not remembered.
    pub fn flip_answer(&mut self, session: SessionId, index: usize) -> bool {
        self.keyspace.flip_answer(session, index)
    }

    /// Whether nothing may be answered from this state.
    pub(super) fn state_is_wrong(&self) -> bool {
        self.checks.standing.stops_serving()
    }

    /// Why, in words for clients.
    pub(super) fn wrong_state_text(&self) -> String {
        let standing = &self.checks.standing;
        let what = match standing.fault {
            Some(Fault::Memory) => "the entries in memory are not those that were applied",
            _ => "a majority of the nodes has another state",
        };
        format!(
            "DIVERGED: {what} ({standing}). This node answers no reads and takes no writes; its log is not in \
             question. Restart it: that makes the state anew from disk. Should it diverge again, stop it, remove its \
             data directory, and start it as a follower"
        )
    }

    /// The state is a new one, of the applied LSN: what was known of another is not known of it.
    pub(super) fn state_is_new(&mut self) {
        self.counters.states_made += 1;
        self.checks =
            StateChecks { next_at: self.checks.next_at, scanned: self.applied, ..StateChecks::default() };
    }

    /// A new session, or a new role: what was asked before is not answered any more.
    pub(super) fn forget_question(&mut self) {
        (self.checks.asked, self.checks.hash) = (Lsn::ZERO, None);
    }

    /// All entries were visited. `good`: they are what the hash was kept of. Returns it.
    pub(super) fn on_scanned(&mut self, good: bool) -> bool {
        self.counters.states_scanned += 1;
        let good = good || crate::sabotage::is(crate::sabotage::Variant::ScanNotCompared);
        if good {
            self.checks.scanned = self.applied;
            if self.checks.standing.fault == Some(Fault::Disputed) {
                log_info!(
                    "state",
                    "all entries here are those that were applied, up to LSN {}",
                    self.applied
                );
            }
            return true;
        }
        self.counters.scans_failed += 1;
        let right = self.checks.scanned;
        self.checks.standing =
            Standing { fault: Some(Fault::Memory), right, differs: self.applied.max(right.next()) };
        self.tell_standing();
        false
    }

    /// The node's own standing is another than before.
    fn tell_standing(&mut self) {
        let standing = self.checks.standing;
        match standing.fault {
            None => log_info!("state", "the state is that of the other nodes again: {standing}"),
            Some(Fault::Disputed) => {
                // Nobody else can say who is right; perhaps one of the two can tell that it is wrong.
                self.checks.wants_scan = true;
                log_error!(
                    "state",
                    "this node's state and another's differ, and no majority says which is right ({standing}). It goes \
                     on serving, and compares all its entries with what was applied; look at `kv_client status` of all \
                     nodes, and restart the one whose values are wrong"
                );
            }
            Some(Fault::Outvoted | Fault::Memory) => log_error!("state", "{}", self.wrong_state_text()),
        }
    }

    /// For `status`.
    pub(super) fn state_check_document(&self) -> Value {
        let checks = &self.checks;
        let mut document = standing_document(&checks.standing);
        document["scanned_lsn"] = checks.scanned.0.into();
        document["text"] = self.state_is_wrong().then(|| self.wrong_state_text()).into();
        document
    }
}

/// What `status` says of a node's state: its own, or a follower's.
fn standing_document(standing: &Standing) -> Value {
    let verdict = match standing.fault {
        Some(fault) => fault.name(),
        None if standing.right > Lsn::ZERO => "equal",
        None => "not compared",
    };
    json!({
        "verdict": verdict,
        "equal_lsn": standing.right.0,
        "differs_lsn": (standing.differs > Lsn::ZERO).then_some(standing.differs.0),
    })
}

impl PeerState {
    /// For `status`.
    pub(super) fn document(&self) -> Value {
        standing_document(&self.standing)
    }
}

fn tell_of_follower(address: &str, standing: &Standing) {
    match standing.fault {
        None => log_info!("state", "the state of follower {address} is right again: {standing}"),
        Some(Fault::Disputed) => {
            log_warn!("state", "the state of follower {address} is another than this node's: {standing}");
        }
        Some(_) => log_error!(
            "state",
            "the state of follower {address} is another than that of a majority: {standing}. It stops serving: \
             restart it"
        ),
    }
}
