//! What is applied, and when.
//!
//! | who leads the cluster | a leader applies | a follower applies |
//! |---|---|---|
//! | a node by its flags, or an operator | what is committed | what is on its disk, before its ACK |
//! | an elected node | what is committed, on its own disk or not | what is committed and on its disk, after its ACK |
//!
//! Which row counts is a property of the cluster. A member knows it from META. A read replica, a follower by its flags,
//! is told with OPEN, and remembers it: what its disk holds may be cut there, what it shows must not be.
//!
//! Invariants of every node of an elected cluster:
//! - `applied <= commit`, so a cut of what is not committed never touches the state, and reads go back only where an
//!   operator gave up what was committed (`--discard`).
//! - A leader's own disk is one vote among equals, so it may apply and answer what a majority has and its own disk has
//!   not. All of that is sent and written (in the page cache, so that a snapshot or a backup can read it), and it is
//!   nothing that this node alone answers for: if it crashes, the majority has it, and no log without it is elected.
//!   What this node says of *its* disk never goes beyond that: marks, votes, the end of its log, the name of a snapshot
//!   (E is durable here), and the answer to an OPEN, for which its log is settled first.
//! - A restart knows as committed what the newest mark and the published snapshots say. Up to there the state is
//!   loaded; the records behind wait in the log until a leader says more.
//! - A record that waits is in `inflight` or in the written log. A follower's memory holds the newest ones, up to an
//!   eighth of the budget of a leader's writes. Older ones, and those of before a restart or a cut, are read back from
//!   the log: a slice a turn, so that no heartbeat waits for a long one.

use super::{FatalReason, Node, Role};
use crate::conn::Io;
use crate::ids::Lsn;
use crate::keyspace::AHEAD_MAX;
use crate::limits::{APPEND_BATCH_SIZE, APPLY_SLICE_SIZE};
use crate::sabotage::{Variant, is};
use crate::wal::Cursor;
use crate::wire::{Effect, Reader, Record};

/// The part of `Budgets::in_flight_bytes` that a follower keeps in memory of what it may not apply yet.
const HELD_PART: usize = 8;

/// Records that are to be applied.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Everything up to here may be applied.
    to: Lsn,
    /// Where the log is read for those that are not in memory.
    cursor: Cursor,
}

impl Node {
    /// Up to where the log is applied at a start, or when the state is made anew.
    pub(super) fn state_target(&self) -> Lsn {
        let last = self.wal.last_lsn();
        if self.meta.get().is_elected() { self.commit.min(last) } else { last }
    }

    /// The last LSN that is released with its batch. A segment that is begun in the middle of a turn syncs the records
    /// before it; they wait for their batch all the same, which has been sent by then.
    pub(super) fn releasable(&self) -> Lsn {
        let current = self.inflight.current();
        if current.is_empty() { self.wal.last_lsn() } else { current.first().prev() }
    }

    /// A follower of an elected leader applies what is committed. (That of another one: see [`Node::on_durable`].)
    pub(super) fn apply_committed(&mut self, io: &mut dyn Io) {
        if matches!(self.role, Role::Leader(_)) || !self.meta.get().is_elected() || !self.has_state() {
            return;
        }
        let commit = match is(Variant::FollowerAppliesUncommitted) {
            true => self.wal.durable().lsn(),
            false => self.effective_commit(),
        };
        self.apply_up_to(io, commit.min(self.releasable()));
    }

    /// Whether the keyspace is the state of `applied`.
    fn has_state(&self) -> bool {
        self.load.is_none() && !self.state_is_given_up
    }

    /// Applies the records up to `to`, and answers the writers among them one by one: those in memory now, those that
    /// are only in the log at the end of the turn.
    pub(super) fn apply_up_to(&mut self, io: &mut dyn Io, to: Lsn) {
        if to <= self.applied {
            return;
        }
        assert!(
            !self.meta.get().is_elected() || to <= self.commit || is(Variant::FollowerAppliesUncommitted),
            "LSN {to} is to be applied, and {} is committed",
            self.commit
        );
        assert!(to <= self.releasable(), "LSN {to} is to be applied, and is not written");
        self.due.to = to;
        if self.next_is_held() {
            self.apply_held(io);
        }
    }

    fn next_is_held(&self) -> bool {
        self.inflight.first_held().is_some_and(|first| first <= self.applied.next())
    }

    fn apply_held(&mut self, io: &mut dyn Io) {
        let (mut inflight, to) = (std::mem::take(&mut self.inflight), self.due.to);
        inflight.apply(self.applied.next(), to, |group| self.apply_group(io, group));
        self.inflight = inflight;
        assert!(self.applied == to, "records up to {to} were to be applied, and end at {}", self.applied);
    }

    fn apply_group(&mut self, io: &mut dyn Io, group: &[Record<'_>]) {
        let ahead = self.keyspace.look_ahead(group);
        for (index, record) in group.iter().enumerate() {
            let existed = self.keyspace.apply_ahead(&ahead, index).existed;
            self.applied = record.lsn;
            if is(Variant::WrongValueApplied) {
                self.apply_another_value(record);
            }
            if record.lsn == self.checks.asked {
                self.keep_hash();
            }
            if matches!(self.role, Role::Leader(_)) {
                let found = existed || !record.effect.is_delete();
                self.answer_write(io, record.lsn, found);
                if !matches!(record.effect, Effect::Put { .. } | Effect::Delete { .. }) {
                    self.session_record_applied(io, record, found);
                    if matches!(record.effect, Effect::Members { .. }) {
                        self.members_applied(io, record.lsn);
                    }
                }
                // Now, and not after the loop: a write behind such a read may be applied in the same call.
                self.release_barred_readers(io, record.lsn);
            }
        }
    }

    /// Whether records are to be applied that must be read from the log.
    pub(super) fn applies_from_log(&self) -> bool {
        self.applied < self.due.to && self.has_state()
    }

    /// Applies a slice of the records that are not in memory, and behind the last of them those that are.
    pub(super) fn apply_from_log(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        if !self.applies_from_log() {
            return Ok(());
        }
        let (mut bytes, mut taken) = (Vec::new(), 0);
        while self.applied < self.due.to && !self.next_is_held() && taken < APPLY_SLICE_SIZE {
            bytes.clear();
            let next = self.applied.next();
            let range = self.wal.read(
                self.disk.as_mut(),
                &mut self.due.cursor,
                next,
                APPEND_BATCH_SIZE,
                &mut bytes,
            )?;
            let held = self.inflight.first_held().map_or(Lsn(u64::MAX), Lsn::prev);
            self.apply_encoded(io, &bytes, range.last.min(self.due.to).min(held));
            taken += bytes.len();
        }
        if self.applied < self.due.to && self.next_is_held() {
            self.apply_held(io);
        }
        Ok(())
    }

    fn apply_encoded(&mut self, io: &mut dyn Io, bytes: &[u8], to: Lsn) {
        let mut reader = Reader::new(bytes);
        let mut group = Vec::with_capacity(AHEAD_MAX);
        while self.applied < to {
            group.clear();
            let count = (to.0 - self.applied.0).min(AHEAD_MAX as u64);
            let record = |_| Record::decode(&mut reader).expect("a record of the log is whole");
            group.extend((0..count).map(record));
            self.apply_group(io, &group);
        }
    }

    /// A follower forgets the oldest records that it may not apply yet, once they are too many: they are in the log.
    pub(super) fn bound_held(&mut self) {
        if !matches!(self.role, Role::Leader(_)) {
            self.inflight.forget_beyond(self.budgets.in_flight_bytes / HELD_PART);
        }
    }

    /// The log is cut behind `keep`, or begins anew there: what waited is read from what is left of it.
    pub(super) fn forget_unapplied(&mut self, keep: Lsn) {
        self.inflight.clear();
        self.due = Due { to: self.due.to.min(keep), cursor: Cursor::default() };
    }
}
