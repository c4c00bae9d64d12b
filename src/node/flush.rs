//! The flush beside the loop: the batch is written, its `fdatasync` is asked for, and the loop goes on.
//!
//! While a flush is under way the next batch gathers, reads are served and ACKs are taken; its end wakes the loop,
//! which hands the next batch to the followers, writes it, asks for its flush, and only then releases what the one
//! before has made durable. Exactly one is under way. What waits for it is bounded like every batch
//! (`BATCH_SIZE_MAX`, then input is left unread) and every unanswered write (`IN_FLIGHT_SIZE_MAX`, then BUSY).
//!
//! What must know where the durable log ends waits for the flush, here and now: [`Node::settle`] (a session, a fence,
//! a change of role, and so every cut), and the begin of a segment. The ring is not asked where nothing could happen
//! meanwhile, or nothing is to be synced: see [`Node::goes_beside`].
//!
//! An elected leader's disk is one among equals (`AckPolicy::Majority`), and must not set the pace of two that are
//! faster. While a flush is under way whose records a majority has committed without it, the next batch leaves and is
//! written at once (`send_ahead`): the followers' disks set the pace then, and one flush here covers all that was
//! written meanwhile. `auto` goes beside the loop for that after a sync of [`FLUSH_SLOW_MS`].
//!
//! A disk that hangs does not stop such a loop, so it must not look well either: a node whose flush is older than
//! [`FLUSH_STALL_MS`] is *stalled*. It says so, sends no heartbeats until the flush has ended, and its followers take
//! it for gone after their limit of silence, as they would if it had waited inline.

use super::leader::Leader;
use super::{FatalReason, Node};
use crate::conn::{Io, Wire};
#[cfg(doc)]
use crate::limits::FLUSH_SLOW_MS;
use crate::limits::{FLUSH_READER_MS, FLUSH_STALL_MS};
use crate::time::Time;
use crate::wal::{Durability, Durable, ReserveError};
use crate::{log_info, log_warn};

/// `--flush`: whether the loop waits for its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushMode {
    /// Write and sync in one call; the loop waits for it.
    Inline,
    /// The sync runs beside the loop.
    Beside,
    /// Beside the loop while there are readers or a follower catches up, inline otherwise: each where it was measured
    /// to be better.
    Auto,
}

impl FlushMode {
    /// The word of the flag.
    pub fn name(self) -> &'static str {
        match self {
            FlushMode::Inline => "inline",
            FlushMode::Beside => "beside",
            FlushMode::Auto => "auto",
        }
    }
}

/// The flush under way as the node sees it.
#[derive(Debug)]
pub(super) struct UnderWay {
    began: Time,
    /// The operator was told that it hangs.
    told: bool,
}

impl Node {
    /// Whether the next batch has to wait. (Never in the simulator's variant that does not wait.)
    pub(super) fn flush_is_under_way(&self) -> bool {
        self.wal.flush_pending() && !crate::sabotage::is(crate::sabotage::Variant::OldGenerationToken)
    }

    /// Whether this turn's batch is flushed beside the loop.
    pub(super) fn goes_beside(&self) -> bool {
        let wanted = match self.config.flush {
            FlushMode::Inline => false,
            FlushMode::Beside => true,
            FlushMode::Auto => {
                self.others_would_wait() || self.is_feeding() || self.need_not_wait_for_own_disk()
            }
        };
        wanted && self.config.wal.durability == Durability::Fsync
    }

    /// Whether a reader would wait for this turn's flush: somebody who has read lately, and is not the one whose write
    /// came last. Writers gain nothing by it (they wait for this flush or for the next one), and a single one loses
    /// the time of two more wake-ups.
    fn others_would_wait(&self) -> bool {
        let Some((reader, at)) = self.last_read else { return false };
        let writer = self.leader().and_then(|leader| leader.writers.back()).map(|(_, conn)| *conn);
        self.now.since(at) < FLUSH_READER_MS * 1_000_000 && writer != Some(reader)
    }

    /// Whether this node's disk was slow a moment ago, and a majority can do without it.
    fn need_not_wait_for_own_disk(&self) -> bool {
        let was_slow = self.slow_sync_at.is_some_and(|at| self.now.since(at) < FLUSH_READER_MS * 1_000_000);
        was_slow && self.leader().is_some_and(Leader::has_majority_beside)
    }

    /// Whether the next batch need not wait for the flush under way: what that is for is committed without it, so the
    /// disks of a majority are faster than this one, and have nothing to do.
    pub(super) fn outruns_own_disk(&self) -> bool {
        let current = self.inflight.current();
        self.flush_is_under_way()
            && !current.is_empty()
            && self.commit >= current.first().prev()
            && self.leader().is_some_and(Leader::has_majority_beside)
    }

    /// The batch to the followers, and into the file; the flush of it comes when the one under way has ended. What is
    /// written and not synced is bounded by the segment: the next one begins only behind a sync.
    pub(super) fn send_ahead(&mut self, wire: &mut impl Wire) -> Result<(), FatalReason> {
        self.trace_turn();
        self.send_current_batch(wire);
        self.flush_followers(wire)?;
        self.inflight.seal();
        if let Some(trace) = &mut self.trace {
            trace.sent_ahead(self.clock.now());
        }
        let commit = self.effective_commit();
        Ok(self.wal.write(self.disk.as_mut(), commit)?)
    }

    /// Writes the batch and asks for its flush. `Some`: it has ended already.
    pub(super) fn begin_flush(&mut self) -> Result<Option<Durable>, FatalReason> {
        let began = self.clock.now();
        let commit = self.effective_commit();
        self.marks.sync_begins(self.wal.last_lsn());
        self.wal.write(self.disk.as_mut(), commit)?;
        let token = self.wal.flush_begin(self.disk.as_mut())?;
        self.sync_began(began);
        self.under_way = Some(UnderWay { began, told: false });
        Ok(token.map(|token| self.flush_ended(token)))
    }

    /// The flush under way, if it has ended.
    pub(super) fn poll_flush(&mut self) -> Result<Option<Durable>, FatalReason> {
        match self.wal.flush_poll(self.disk.as_mut()) {
            Some(token) => Ok(Some(self.flush_ended(token?))),
            None => Ok(None),
        }
    }

    /// Waits for the flush under way, in the middle of a turn, and releases what it made durable.
    pub(super) fn await_flush(&mut self, io: &mut dyn Io) -> Result<(), FatalReason> {
        if let Some(token) = self.wal.flush_wait(self.disk.as_mut()) {
            let token = self.flush_ended(token?);
            self.on_durable(io, token);
        }
        Ok(())
    }

    fn flush_ended(&mut self, token: Durable) -> Durable {
        let now = self.clock.now();
        let under_way = self.under_way.take().expect("what ends has begun");
        let sync_ns = now.since(under_way.began);
        if under_way.told {
            log_info!("wal", "the flush ended after {} ms: heartbeats go on", sync_ns / 1_000_000);
        }
        self.sync_ended(token, sync_ns, now);
        token
    }

    /// Room for a record in the log. A segment begins only when the flush under way has ended.
    pub(super) fn reserve(&mut self, io: &mut dyn Io, record_size: usize) -> Result<(), ReserveOutcome> {
        loop {
            match self.wal.reserve(self.disk.as_mut(), record_size) {
                Ok(()) => return Ok(()),
                Err(ReserveError::NoRoom(error)) => return Err(ReserveOutcome::NoRoom(error)),
                Err(ReserveError::Failed(error)) => return Err(ReserveOutcome::Fatal(error.into())),
                Err(ReserveError::FlushPending) => self.await_flush(io).map_err(ReserveOutcome::Fatal)?,
            }
        }
    }

    /// Writes the followers' buffers out, so that their disks begin with this node's.
    pub(super) fn flush_followers(&mut self, wire: &mut impl Wire) -> Result<(), FatalReason> {
        self.frames.newest = None;
        for index in 0..self.leader().map_or(0, |leader| leader.peers.len()) {
            let Some(conn) = self.leader().and_then(|leader| leader.peers[index].conn()) else { continue };
            if let Some(why) = wire.flush_one(conn) {
                self.on_closed(wire, conn, &why)?;
                wire.doom(conn);
            }
        }
        Ok(())
    }

    /// When the flush under way was asked for.
    pub(super) fn flush_began(&self) -> Option<Time> {
        self.under_way.as_ref().map(|under_way| under_way.began)
    }

    /// Milliseconds that the flush under way has taken.
    pub(super) fn flush_age_ms(&self, now: Time) -> Option<u64> {
        self.flush_began().map(|began| now.since(began) / 1_000_000)
    }

    /// For how long the flush under way has hung, if it is longer than it should.
    pub(super) fn flush_stalled_ms(&self) -> Option<u64> {
        self.flush_age_ms(self.now).filter(|ms| *ms >= FLUSH_STALL_MS)
    }

    /// Tells the operator, once for each flush that hangs.
    pub(super) fn flush_timers(&mut self) {
        let Some(ms) = self.flush_stalled_ms() else { return };
        let under_way = self.under_way.as_mut().expect("it is stalled");
        if !std::mem::replace(&mut under_way.told, true) {
            log_warn!(
                "wal",
                "W008 a flush of the log has taken {ms} ms and has not ended: writes wait, and no heartbeats are \
                 sent until it does; look into the kernel log for errors of the disk under {}",
                self.disk.describe()
            );
        }
    }

    /// When [`Node::flush_timers`] has something to say.
    pub(super) fn flush_deadline(&self) -> Option<Time> {
        let under_way = self.under_way.as_ref().filter(|under_way| !under_way.told)?;
        Some(under_way.began.after_ms(FLUSH_STALL_MS))
    }
}

/// Why there is no room for a record.
#[derive(Debug)]
pub(super) enum ReserveOutcome {
    /// The disk is full, and nothing has changed.
    NoRoom(std::io::Error),
    /// The process must end.
    Fatal(FatalReason),
}
