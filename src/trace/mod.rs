//! Where the time of every write went. Always on.
//!
//! A write passes moments that are read from one clock, so its stages add up to its total exactly:
//!
//! ```text
//! started   the loop turns to the read that brings it (or to an ACK, or a read's request, just before)
//! appended  they are decoded; it has an LSN and stands in the batch   decode = appended - started
//! turn      the turn's requests are all read, and the flush under way    queue = turn - appended
//!           (if any: see `node::flush`) has ended
//! sent      the batch is handed to every follower's socket              send = sent - turn
//! synced    the batch is written and durable here                       sync = synced - sent
//! committed enough followers have it (may come before synced: then 0)   commit = committed - synced
//! replied   its reply is handed to the client's socket                   reply = replied - committed
//! ```
//!
//! A follower's ACK comes back with the durations it measured itself, so no two clocks are compared: what it
//! does not account for of the time between `sent` and its ACK is the network and the wake-ups on the way.
//!
//! Kept: the last [`RING_SIZE`] writes, the [`SLOWEST_SIZE`] slowest since the start or a reset, and a histogram of
//! each stage. While a write is under way its moments are stored and nothing more; see `fold.rs`. All memory is taken
//! when a node begins to lead, and what a follower needs when one is added.

mod batches;
mod fold;
mod follower;
mod histogram;
mod receipt;
mod rows;

use crate::ids::Lsn;
use crate::time::Time;
use crate::wire::peer::AckDurations;

use batches::Batches;
use fold::{FOLD_WRITES, Folded};
use follower::Follower;
pub use histogram::{Durations, us};
pub use receipt::{FollowerShare, Receipt, tail_document};
use rows::Rows;

/// Writes and batches kept.
pub const RING_SIZE: usize = 4096;
/// Slowest writes kept.
pub const SLOWEST_SIZE: usize = 64;

/// The stages of a write on the leader, in order.
pub const STAGES: [&str; 6] = ["decode", "queue", "send", "sync", "commit", "reply"];

/// The moments of the writes that came with one read.
#[derive(Clone, Copy, Debug, Default)]
struct ReadMoments {
    first: Lsn,
    batch: u64,
    started: Time,
    appended: Time,
}

/// A duration of each stage.
pub type StageTimes = [u64; STAGES.len()];

/// Where in [`STAGES`] each of them is.
const DECODE: usize = 0;
const QUEUE: usize = 1;
const SEND: usize = 2;
const SYNC: usize = 3;
const COMMIT: usize = 4;
const REPLY: usize = 5;

/// The recorder of a leader.
#[derive(Debug)]
pub struct Trace {
    arrived: Rows<ReadMoments>,
    committed: Rows<Time>,
    replied: Rows<Time>,
    batches: Batches,
    followers: Vec<Follower>,
    /// The number of the batch that is being synced, or 0.
    syncing: u64,
    /// The first write that was not answered, and the first whose reply has not left.
    next_commit: Lsn,
    next_reply: Lsn,
    folded: Folded,
    slowest: Vec<Receipt>,
    /// The total of the fastest of them, once the list is full, and which that is: what is not above it is not
    /// looked at.
    slow_from_ns: u64,
    least_slow: usize,
    stages: [Durations; STAGES.len()],
    total: Durations,
    reads: Durations,
}

impl Trace {
    /// A recorder for a leader with so many followers whose next LSN is `next`.
    pub fn new(followers: usize, next: Lsn) -> Trace {
        Trace {
            arrived: Rows::new(),
            committed: Rows::new(),
            replied: Rows::new(),
            batches: Batches::new(),
            followers: (0..followers).map(|_| Follower::new(1)).collect(),
            syncing: 0,
            next_commit: next,
            next_reply: next,
            folded: Folded::new(next),
            slowest: Vec::with_capacity(SLOWEST_SIZE),
            slow_from_ns: 0,
            least_slow: 0,
            stages: std::array::from_fn(|_| Durations::new()),
            total: Durations::new(),
            reads: Durations::new(),
        }
    }

    /// One more follower, behind the others.
    pub fn add_peer(&mut self) {
        self.followers.push(Follower::new(self.batches.filling));
    }

    /// The writes `first ..= last` came with one read and have their LSNs. One reading of the clock for all
    /// of them: with 16 requests to a read, one for each was 5 % of the node's instructions.
    #[inline]
    pub fn appended(&mut self, first: Lsn, last: Lsn, started: Time, appended: Time) {
        if first.max(self.next_reply) <= last {
            let batch = self.batches.filling;
            self.arrived.push(last, ReadMoments { first, batch, started, appended });
        }
    }

    /// The turn's batch ends with `last`; it is about to be sent.
    #[inline]
    pub fn turn(&mut self, last: Lsn, count: u32, turn: Time) {
        self.batches.turn(last, count, turn);
    }

    /// The batch is with the followers' sockets, and its sync begins here: the next batch is being filled.
    #[inline]
    pub fn sync_began(&mut self, sent: Time) {
        if let Some(number) = self.batch_sent(sent) {
            self.syncing = number;
        }
    }

    /// The batch is with the followers' sockets, and its sync is yet to begin: it waits for the one under way. Nobody
    /// waits for it but this node's disk, so it counts in no histogram of syncs.
    pub fn sent_ahead(&mut self, sent: Time) {
        let _number = self.batch_sent(sent);
    }

    #[inline]
    fn batch_sent(&mut self, sent: Time) -> Option<u64> {
        let batch = self.batches.get_mut(self.batches.filling)?;
        batch.sent = sent;
        self.stages[SEND].record_n(sent.since(batch.turn), u64::from(batch.count));
        let number = batch.number;
        self.batches.filling += 1;
        Some(number)
    }

    /// The batch is durable here.
    #[inline]
    pub fn synced(&mut self, synced: Time) {
        // There is no batch of number 0.
        let Some(batch) = self.batches.get_mut(std::mem::take(&mut self.syncing)).filter(|b| b.number != 0)
        else {
            return;
        };
        batch.synced = synced;
        self.stages[SYNC].record_n(synced.since(batch.sent), u64::from(batch.count));
    }

    /// A follower has everything up to `last_lsn`.
    #[inline]
    pub fn acked(&mut self, peer: usize, last_lsn: Lsn, at: Time, spent: AckDurations) {
        self.followers[peer].acked(&self.batches, last_lsn, at, spent);
    }

    /// Everything up to `lsn` is committed, and about to be answered.
    #[inline]
    pub fn committed(&mut self, lsn: Lsn, at: Time) {
        if lsn >= self.next_commit {
            self.committed.push(lsn, at);
            self.next_commit = lsn.next();
        }
    }

    /// Whether replies of this turn are still to be timed.
    #[inline]
    pub fn has_unreplied(&self) -> bool {
        self.next_reply < self.next_commit
    }

    /// The replies to everything committed have been handed to their sockets.
    #[inline]
    pub fn replied(&mut self, at: Time) {
        let last = self.next_commit.prev();
        self.replied.push(last, at);
        self.next_reply = self.next_commit;
        if last.0 + 1 - self.folded.next.0 >= FOLD_WRITES {
            self.fold();
        }
    }

    /// So many reads that came together were answered, in this time.
    pub fn reads(&mut self, ns: u64, count: u64) {
        self.reads.record_n(ns, count);
    }

    /// Forgets histograms and slowest writes.
    pub fn reset(&mut self) {
        let _nothing_waits = self.measured();
        self.followers.iter_mut().for_each(Follower::reset);
        self.stages.iter_mut().chain([&mut self.total, &mut self.reads]).for_each(Durations::reset);
        self.slowest.clear();
        self.slow_from_ns = 0;
    }

    /// The receipt of a write, if it is among the last [`RING_SIZE`]. Before its reply has left, the moment
    /// `now` stands for that.
    pub fn receipt(&self, lsn: Lsn, now: Time) -> Option<Receipt> {
        let (_, read) = self.arrived.at(lsn).filter(|(_, read)| lsn >= read.first)?;
        if !self.kept().contains(&lsn.0) {
            return None;
        }
        let batch = self.batches.get(read.batch)?;
        let committed = self.committed.at(lsn).map_or(now, |(_, at)| at);
        let left = self.replied.at(lsn).map(|(_, at)| at);
        let (synced, replied) = (batch.synced_by(committed), left.unwrap_or(now));
        let share = |follower: &Follower| follower.share(batch.number, batch.turn, committed);
        Some(Receipt {
            lsn,
            batch_count: batch.count,
            stages: [
                read.appended.since(read.started),
                batch.turn.since(read.appended),
                batch.sent.since(batch.turn),
                synced.since(batch.sent),
                committed.since(synced),
                replied.since(committed),
            ],
            total_ns: replied.since(read.started),
            answered: left.is_some(),
            followers: self.followers.iter().map(share).collect(),
        })
    }

    /// The receipts of all writes in the ring that were answered.
    pub fn receipts(&self) -> impl Iterator<Item = Receipt> {
        let answered = self.kept().filter(|number| *number < self.next_reply.0);
        answered.filter_map(|number| self.receipt(Lsn(number), Time(0)))
    }

    /// What was measured of everything that was answered so far.
    pub fn measured(&mut self) -> Measured<'_> {
        self.fold();
        self.followers.iter_mut().for_each(|follower| follower.fold(&self.batches));
        Measured { trace: self }
    }

    /// The LSNs of the last [`RING_SIZE`] writes.
    fn kept(&self) -> std::ops::RangeInclusive<u64> {
        let last = self.arrived.last().0;
        last.saturating_sub(RING_SIZE as u64 - 1).max(1)..=last
    }
}

/// Histograms and slowest writes, with nothing left to be folded into them.
#[derive(Debug)]
pub struct Measured<'a> {
    trace: &'a Trace,
}

impl<'a> Measured<'a> {
    /// The slowest writes, slowest first.
    pub fn slowest(&self) -> Vec<Receipt> {
        let mut slowest = self.trace.slowest.clone();
        slowest.sort_by_key(|receipt| std::cmp::Reverse(receipt.total_ns));
        slowest
    }

    /// The histograms: name and durations.
    pub fn histograms(&self) -> impl Iterator<Item = (String, &'a Durations)> {
        let trace = self.trace;
        let stages =
            STAGES.iter().zip(&trace.stages).map(|(stage, durations)| (format!("put {stage}"), durations));
        let whole = [("put total".to_owned(), &trace.total), ("get".to_owned(), &trace.reads)];
        whole.into_iter().chain(stages)
    }

    /// The histograms of a follower: until its ACK, its own sync, and what is left for the network.
    pub fn follower_histograms(&self, peer: usize) -> [(&'static str, &'a Durations); 3] {
        self.trace.followers[peer].histograms()
    }
}

#[cfg(test)]
mod tests;
