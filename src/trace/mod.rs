//! Where the time of every write went. Always on.
//!
//! A write passes moments that are read from one clock, so its stages add up to its total exactly:
//!
//! ```text
//! started   the frames read together with it are about to be decoded
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
//! Kept: the last [`RING_SIZE`] writes, the [`SLOWEST_SIZE`] slowest since the start or a reset, and a
//! histogram of each stage. All memory is taken when a node begins to lead.

mod histogram;
mod receipt;

use crate::ids::Lsn;
use crate::time::Time;
use crate::wire::peer::AckDurations;

pub use histogram::{Durations, us};
pub use receipt::{FollowerShare, Receipt, tail_document};

/// Writes and batches kept.
pub const RING_SIZE: usize = 4096;
/// Slowest writes kept.
pub const SLOWEST_SIZE: usize = 64;

/// The stages of a write on the leader, in order.
pub const STAGES: [&str; 6] = ["decode", "queue", "send", "sync", "commit", "reply"];

/// One write's own moments.
#[derive(Clone, Copy, Debug, Default)]
struct WriteMoments {
    lsn: Lsn,
    batch: u64,
    started: Time,
    appended: Time,
    committed: Time,
    replied: Time,
}

/// The moments that the writes of a batch share.
#[derive(Clone, Copy, Debug, Default)]
struct BatchMoments {
    number: u64,
    last: Lsn,
    count: u32,
    turn: Time,
    sent: Time,
    synced: Time,
}

impl BatchMoments {
    /// When this write of it was durable; `now`, if it is not yet. A segment that begins behind it makes it durable
    /// before the rest of its batch, and then it may be committed while the flush of the rest is under way.
    fn synced_for(&self, write: &WriteMoments, now: Time) -> Time {
        let known = [self.synced, write.committed].into_iter().filter(|time| *time != Time(0));
        known.min().unwrap_or(now)
    }
}

/// A follower's ACK of a batch.
#[derive(Clone, Copy, Debug, Default)]
struct AckMoments {
    at: Time,
    spent: AckDurations,
}

/// So many writes with the moments of this one.
#[derive(Clone, Copy, Debug, Default)]
struct Shared {
    write: WriteMoments,
    batch: BatchMoments,
    count: u64,
}

/// A duration of each stage.
pub type StageTimes = [u64; STAGES.len()];

/// The recorder of a leader.
#[derive(Debug)]
pub struct Trace {
    peers: usize,
    writes: Vec<WriteMoments>,
    batches: Vec<BatchMoments>,
    /// `RING_SIZE` times `peers`.
    acks: Vec<AckMoments>,
    /// The number of the batch that is being filled; numbers begin with 1.
    batch: u64,
    /// The number of the batch that is being synced, or 0.
    syncing: u64,
    /// For each peer the first batch it has not acknowledged.
    unacked: Vec<u64>,
    /// The first write that was not answered, and the first whose reply has not left.
    next_commit: Lsn,
    next_reply: Lsn,
    slowest: Vec<Receipt>,
    /// The total of the fastest of them, once the list is full: what is not above it is not looked at.
    slow_from_ns: u64,
    stages: [Durations; STAGES.len()],
    total: Durations,
    reads: Durations,
    follower_ack: Vec<Durations>,
    follower_sync: Vec<Durations>,
    follower_network: Vec<Durations>,
}

impl Trace {
    /// A recorder for a leader with so many followers whose next LSN is `next`.
    pub fn new(peers: usize, next: Lsn) -> Trace {
        let histograms = || (0..peers).map(|_| Durations::new()).collect::<Vec<_>>();
        Trace {
            peers,
            writes: vec![WriteMoments::default(); RING_SIZE],
            batches: vec![BatchMoments::default(); RING_SIZE],
            acks: vec![AckMoments::default(); RING_SIZE * peers],
            batch: 1,
            syncing: 0,
            unacked: vec![1; peers],
            next_commit: next,
            next_reply: next,
            slowest: Vec::with_capacity(SLOWEST_SIZE),
            slow_from_ns: 0,
            stages: std::array::from_fn(|_| Durations::new()),
            total: Durations::new(),
            reads: Durations::new(),
            follower_ack: histograms(),
            follower_sync: histograms(),
            follower_network: histograms(),
        }
    }

    /// The writes `first ..= last` came with one read and have their LSNs. One reading of the clock for all
    /// of them: with 16 requests to a read, one for each was 5 % of the node's instructions.
    pub fn appended(&mut self, first: Lsn, last: Lsn, started: Time, appended: Time) {
        let batch = self.batch;
        for number in self.ring_range(first, last) {
            let lsn = Lsn(number);
            self.writes[slot(number)] =
                WriteMoments { lsn, batch, started, appended, ..WriteMoments::default() };
        }
    }

    /// The turn's batch ends with `last`; it is about to be sent.
    pub fn turn(&mut self, last: Lsn, count: u32, turn: Time) {
        let number = self.batch;
        self.batches[slot(number)] = BatchMoments { number, last, count, turn, sent: turn, synced: Time(0) };
        let first_ack = slot(number) * self.peers;
        self.acks[first_ack..first_ack + self.peers].fill(AckMoments::default());
    }

    /// The batch is with the followers' sockets, and its sync begins here: the next batch is being filled.
    pub fn sync_began(&mut self, sent: Time) {
        let batch = &mut self.batches[slot(self.batch)];
        if batch.number != self.batch {
            return;
        }
        batch.sent = sent;
        self.stages[2].record_n(sent.since(batch.turn), u64::from(batch.count));
        self.syncing = self.batch;
        self.batch += 1;
    }

    /// The batch is durable here.
    pub fn synced(&mut self, synced: Time) {
        let number = std::mem::take(&mut self.syncing);
        let batch = &mut self.batches[slot(number)];
        if number == 0 || batch.number != number {
            return;
        }
        batch.synced = synced;
        self.stages[3].record_n(synced.since(batch.sent), u64::from(batch.count));
    }

    /// A follower has everything up to `last_lsn`.
    pub fn acked(&mut self, peer: usize, last_lsn: Lsn, at: Time, spent: AckDurations) {
        let oldest = self.batch.saturating_sub(RING_SIZE as u64 - 1).max(1);
        let mut number = self.unacked[peer].max(oldest);
        while number <= self.batch {
            let batch = &self.batches[slot(number)];
            if batch.number != number || batch.last > last_lsn {
                break;
            }
            self.acks[slot(number) * self.peers + peer] = AckMoments { at, spent };
            let own = u64::from(spent.decode_ns) + u64::from(spent.write_ns) + u64::from(spent.sync_ns);
            let after = at.since(batch.turn);
            self.follower_ack[peer].record(after);
            self.follower_sync[peer].record(u64::from(spent.sync_ns));
            self.follower_network[peer].record(after.saturating_sub(own));
            number += 1;
        }
        self.unacked[peer] = number;
    }

    /// Everything up to `lsn` is committed, and about to be answered.
    pub fn committed(&mut self, lsn: Lsn, at: Time) {
        for number in self.ring_range(self.next_commit, lsn) {
            let write = &mut self.writes[slot(number)];
            if write.lsn == Lsn(number) {
                write.committed = at;
            }
        }
        self.next_commit = self.next_commit.max(lsn.next());
    }

    /// Whether replies of this turn are still to be timed.
    pub fn has_unreplied(&self) -> bool {
        self.next_reply < self.next_commit
    }

    /// The replies to everything committed have been handed to their sockets.
    pub fn replied(&mut self, at: Time) {
        // Writes that were read, made durable and committed together share all their moments.
        let mut shared = Shared::default();
        for number in self.ring_range(self.next_reply, self.next_commit.prev()) {
            let write = &mut self.writes[slot(number)];
            if write.lsn != Lsn(number) {
                continue;
            }
            write.replied = at;
            let write = *write;
            let known = &shared.write;
            if (write.batch, write.started, write.committed) != (known.batch, known.started, known.committed)
            {
                self.record_shared(&shared, at);
                shared = Shared { write, batch: self.batches[slot(write.batch)], count: 0 };
            }
            shared.count += 1;
            let total_ns = at.since(write.started);
            if total_ns > self.slow_from_ns {
                self.keep_slow(write.lsn, total_ns);
            }
        }
        self.record_shared(&shared, at);
        self.next_reply = self.next_commit;
    }

    fn record_shared(&mut self, shared: &Shared, at: Time) {
        let Shared { write, batch, count } = shared;
        if *count == 0 {
            return;
        }
        let (committed, synced) = (write.committed, batch.synced_for(write, write.committed));
        self.total.record_n(at.since(write.started), *count);
        self.stages[0].record_n(write.appended.since(write.started), *count);
        self.stages[1].record_n(batch.turn.since(write.appended), *count);
        self.stages[4].record_n(committed.since(synced), *count);
        self.stages[5].record_n(at.since(committed), *count);
    }

    /// So many reads that came together were answered, in this time.
    pub fn reads(&mut self, ns: u64, count: u64) {
        self.reads.record_n(ns, count);
    }

    /// Forgets histograms and slowest writes.
    pub fn reset(&mut self) {
        let followers = [&mut self.follower_ack, &mut self.follower_sync, &mut self.follower_network];
        followers.into_iter().flatten().chain(&mut self.stages).for_each(Durations::reset);
        self.total.reset();
        self.reads.reset();
        self.slowest.clear();
        self.slow_from_ns = 0;
    }

    /// The receipt of a write, if it is among the last [`RING_SIZE`]. Before its reply has left, the moment
    /// `now` stands for that.
    pub fn receipt(&self, lsn: Lsn, now: Time) -> Option<Receipt> {
        let write = self.writes[slot(lsn.0)];
        if write.lsn != lsn || lsn == Lsn::ZERO {
            return None;
        }
        let batch = self.batch_of(&write)?;
        let first_ack = slot(batch.number) * self.peers;
        let followers = self.acks[first_ack..first_ack + self.peers].iter();
        let or_now = |time: Time| if time == Time(0) { now } else { time };
        let (committed, replied) = (or_now(write.committed), or_now(write.replied));
        let synced = batch.synced_for(&write, now);
        Some(Receipt {
            lsn,
            batch_count: batch.count,
            stages: [
                write.appended.since(write.started),
                batch.turn.since(write.appended),
                batch.sent.since(batch.turn),
                synced.since(batch.sent),
                committed.since(synced),
                replied.since(committed),
            ],
            total_ns: replied.since(write.started),
            answered: write.replied != Time(0),
            followers: followers
                .map(|ack| FollowerShare {
                    ack_ns: (ack.at != Time(0)).then(|| ack.at.since(batch.turn)),
                    in_time: ack.at != Time(0) && ack.at <= committed,
                    spent: ack.spent,
                })
                .collect(),
        })
    }

    /// The receipts of all writes in the ring that were answered.
    pub fn receipts(&self) -> impl Iterator<Item = Receipt> {
        let answered = self.writes.iter().filter(|write| write.replied != Time(0));
        answered.filter_map(|write| self.receipt(write.lsn, write.replied))
    }

    /// The slowest writes, slowest first.
    pub fn slowest(&self) -> Vec<Receipt> {
        let mut slowest = self.slowest.clone();
        slowest.sort_by_key(|receipt| std::cmp::Reverse(receipt.total_ns));
        slowest
    }

    /// The histograms: name and durations.
    pub fn histograms(&self) -> impl Iterator<Item = (String, &Durations)> {
        let stages =
            STAGES.iter().zip(&self.stages).map(|(stage, durations)| (format!("put {stage}"), durations));
        let whole = [("put total".to_owned(), &self.total), ("get".to_owned(), &self.reads)];
        whole.into_iter().chain(stages)
    }

    /// The histograms of a follower: until its ACK, its own sync, and what is left for the network.
    pub fn follower_histograms(&self, peer: usize) -> [(&'static str, &Durations); 3] {
        [
            ("ack", &self.follower_ack[peer]),
            ("its sync", &self.follower_sync[peer]),
            ("network", &self.follower_network[peer]),
        ]
    }

    fn batch_of(&self, write: &WriteMoments) -> Option<BatchMoments> {
        let batch = self.batches[slot(write.batch)];
        (batch.number == write.batch).then_some(batch)
    }

    /// The LSNs of a range that the ring still holds.
    fn ring_range(&self, from: Lsn, to: Lsn) -> std::ops::RangeInclusive<u64> {
        from.0.max(to.0.saturating_sub(RING_SIZE as u64 - 1))..=to.0
    }

    fn keep_slow(&mut self, lsn: Lsn, total_ns: u64) {
        let Some(receipt) = self.receipt(lsn, Time(0)) else { return };
        if self.slowest.len() < SLOWEST_SIZE {
            self.slowest.push(receipt);
        } else if let Some(fastest) = self.slowest.iter_mut().min_by_key(|slow| slow.total_ns) {
            debug_assert!(fastest.total_ns < total_ns);
            *fastest = receipt;
        }
        if self.slowest.len() == SLOWEST_SIZE {
            self.slow_from_ns = self.slowest.iter().map(|slow| slow.total_ns).min().unwrap_or(0);
        }
    }
}

fn slot(number: u64) -> usize {
    (number % RING_SIZE as u64) as usize
}

#[cfg(test)]
mod tests;
