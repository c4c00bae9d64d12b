//! The second half of a turn: send, make durable, release, apply, reply, feed.

use super::{FatalReason, Node, Role};
use crate::conn::{Io, Wire};
use crate::ids::Lsn;
use crate::limits::{FLUSH_SLOW_MS, ZEROS_EVERY_MS, ZEROS_IDLE_AFTER_MS};
use crate::sabotage::Variant::OldGenerationToken;
use crate::time::Time;
use crate::wal::{Durable, ReserveError};

/// Milliseconds between attempts to allocate the next segment ahead on a full disk.
const SPARE_RETRY_MS: u64 = 1_000;

impl Node {
    /// The second half of a turn, once its input is delivered: the same for sockets and for the simulator.
    /// `input_left`: see [`Node::on_timers`].
    pub fn finish_turn(&mut self, wire: &mut impl Wire, input_left: bool) -> Result<(), FatalReason> {
        self.on_timers(wire, input_left)?;
        let ended = self.poll_flush()?;
        let mut ended_at_once = None;
        if self.needs_sync() && self.goes_beside() {
            // All disks first, then what the last flush releases: 50 replies take longer than one flush.
            self.before_sync(wire);
            self.flush_followers(wire)?;
            ended_at_once = self.begin_flush()?;
        } else if self.outruns_own_disk() {
            self.send_ahead(wire)?;
        }
        for token in ended.into_iter().chain(ended_at_once) {
            self.on_durable(wire, token);
        }
        self.before_sync(wire);
        if self.needs_sync() {
            // The followers' disks work while ours does, and while what the ACKs of this turn have committed is
            // applied and answered. Those replies do not wait for this sync, and their receipts must not say so.
            self.flush_followers(wire)?;
            self.advance_commit(wire);
            self.flush(wire)?;
            self.note_replied();
        }
        self.sync(wire)?;
        // Replies and ACKs do not wait for what comes behind: a slice of a snapshot, zeros ahead of the log.
        self.flush(wire)?;
        self.note_replied();
        self.after_sync(wire)
    }

    /// Writes out what waits; a connection that breaks by that is over.
    pub fn flush(&mut self, wire: &mut impl Wire) -> Result<(), FatalReason> {
        self.frames.newest = None;
        for (conn, why) in wire.flush() {
            self.on_closed(wire, conn, &why)?;
            wire.doom(conn);
        }
        Ok(())
    }

    /// Puts this turn's records into the buffers of the followers that are up to date. The loop writes them
    /// out before it calls [`Node::sync`].
    pub fn before_sync(&mut self, io: &mut dyn Io) {
        if self.flush_is_under_way() {
            // The batch gathers behind it, and is sent when its own begins.
            return;
        }
        self.trace_turn();
        if matches!(self.role, Role::Leader(_)) {
            self.raise_commit();
            self.send_current_batch(io);
        }
    }

    /// Whether [`Node::sync`] has something to do beyond looking.
    pub fn needs_sync(&self) -> bool {
        !self.flush_is_under_way() && (self.wal.batch_bytes() > 0 || self.wal.needs_flush())
    }

    /// Makes the turn durable and releases what waited for that.
    pub fn sync(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        if self.needs_sync() {
            let begin = self.clock.now();
            let commit = self.effective_commit();
            self.marks.sync_begins(self.wal.last_lsn());
            self.sync_began(begin);
            let token = self.wal.write_durably(self.disk.as_mut(), commit)?;
            let end = self.clock.now();
            let sync_ns = end.since(begin);
            self.sync_ended(token, sync_ns, end);
            self.on_durable(io, token);
        }
        self.send_due_ack(io)?;
        self.advance_commit(io);
        self.apply_committed(io);
        self.apply_from_log(io)?;
        self.bound_held();
        self.note_freshness();
        Ok(())
    }

    /// A batch goes to the disk: what is appended from now on belongs to the next one.
    pub(super) fn sync_began(&mut self, begin: Time) {
        self.inflight.seal();
        self.note_submitted();
        if let Some(trace) = &mut self.trace {
            trace.sync_began(begin);
        }
    }

    /// The batch is durable.
    pub(super) fn sync_ended(&mut self, token: Durable, sync_ns: u64, end: Time) {
        self.counters.syncs += 1;
        self.frames.newest = Some(end);
        self.marks.synced(token.lsn(), sync_ns);
        self.note_durable(sync_ns);
        if sync_ns >= FLUSH_SLOW_MS * 1_000_000 {
            self.slow_sync_at = Some(end);
        }
        if let Some(trace) = &mut self.trace {
            trace.synced(end);
        }
    }

    /// Feeds followers that are behind, and prepares the next segment when there is time for it.
    pub fn after_sync(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        self.feed_followers(io)?;
        self.feed_transfers(io);
        if self.load.is_some() {
            return self.load_step();
        }
        let had_work = std::mem::take(&mut self.had_work);
        self.snapshot_step(io, had_work)?;
        self.archive_step(had_work);
        if self.wal.wants_spare() && self.now >= self.spare_retry_at {
            // A full disk shows when a record needs the room; trying early is only a courtesy.
            self.spare_retry_at = self.now.after_ms(SPARE_RETRY_MS);
            match self.wal.prepare_spare(self.disk.as_mut()) {
                Ok(()) | Err(ReserveError::NoRoom(_) | ReserveError::FlushPending) => {}
                Err(ReserveError::Failed(error)) => return Err(error.into()),
            }
        }
        self.write_zeros();
        Ok(())
    }

    /// Zeros ahead of the log: what a busy one is about to need, so often that they take a small part of its time, or
    /// whatever is left once nothing came for a while.
    fn write_zeros(&mut self) {
        let idle = self.now >= self.last_work.after_ms(ZEROS_IDLE_AFTER_MS);
        if (idle || self.now >= self.zeros_at) && self.wal.write_zeros(self.disk.as_mut(), idle) {
            self.zeros_at = self.now.after_ms(ZEROS_EVERY_MS);
        }
    }

    /// When zeros are written although nothing happens.
    pub(super) fn zeros_deadline(&self) -> Option<Time> {
        let idle_at = self.last_work.after_ms(ZEROS_IDLE_AFTER_MS);
        self.wal.wants_zeros().then(|| self.now.max(idle_at))
    }

    /// Writes and syncs what is pending now, in the middle of a turn. For the rare steps that must know
    /// where the durable log ends: opening a session, answering a fence, changing the role.
    pub(super) fn settle(&mut self, io: &mut dyn Io) -> Result<Durable, FatalReason> {
        if !crate::sabotage::is(OldGenerationToken) {
            self.await_flush(io)?;
        }
        // What is sealed by the sync must have been given to the followers before.
        self.before_sync(io);
        self.sync(io)?;
        if crate::sabotage::is(OldGenerationToken) && self.wal.flush_pending() {
            let commit = self.effective_commit();
            return Ok(self.wal.write_durably(self.disk.as_mut(), commit)?);
        }
        Ok(self.wal.durable())
    }

    /// A follower, or a node that led, has what is durable: it owes an ACK, and applies that unless its leader is
    /// elected. A leader asks the commit rule at the end of [`Node::sync`], whether something was synced or not.
    pub(super) fn on_durable(&mut self, io: &mut dyn Io, token: Durable) {
        let applies = !matches!(self.role, Role::Leader(_)) && !self.meta.get().is_elected();
        if applies && token.generation() == self.wal.generation() {
            self.apply_up_to(io, token.lsn());
        }
    }

    /// The commit LSN to tell: never beyond this node's own durable log.
    pub(super) fn effective_commit(&self) -> Lsn {
        if crate::sabotage::is(crate::sabotage::Variant::CommitNotClamped) {
            return self.commit;
        }
        self.commit.min(self.wal.durable().lsn())
    }
}
