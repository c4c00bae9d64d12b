//! Where the time of every write went. Always on.
//!
//! A write passes moments that are read from one clock, so its stages add up to its total exactly:
//!
//! ```text
//! started   the loop turns to the read that brings it
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
//! histogram of each stage. All memory is taken when a node begins to lead, and what a follower needs when one is
//! added.

mod histogram;
mod receipt;
mod rows;

use crate::ids::Lsn;
use crate::time::Time;
use crate::wire::peer::AckDurations;

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
    fn synced_for(&self, committed: Option<Time>, now: Time) -> Time {
        let known = [Some(self.synced).filter(|time| *time != Time(0)), committed];
        known.into_iter().flatten().min().unwrap_or(now)
    }
}

/// A follower's ACK of a batch.
#[derive(Clone, Copy, Debug, Default)]
struct AckMoments {
    at: Time,
    spent: AckDurations,
}

/// A duration of each stage.
pub type StageTimes = [u64; STAGES.len()];

/// The recorder of a leader.
#[derive(Debug)]
pub struct Trace {
    peers: usize,
    arrived: Rows<ReadMoments>,
    committed: Rows<Time>,
    replied: Rows<Time>,
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
            arrived: Rows::new(),
            committed: Rows::new(),
            replied: Rows::new(),
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

    /// One more follower, behind the others. What was kept of their ACKs moves to where it belongs now.
    pub fn add_peer(&mut self) {
        let old = std::mem::take(&mut self.acks);
        let rows = (0..RING_SIZE).map(|row| &old[row * self.peers..(row + 1) * self.peers]);
        self.acks = rows.flat_map(|row| row.iter().copied().chain([AckMoments::default()])).collect();
        self.peers += 1;
        self.unacked.push(self.batch);
        [&mut self.follower_ack, &mut self.follower_sync, &mut self.follower_network]
            .into_iter()
            .for_each(|durations| durations.push(Durations::new()));
    }

    /// The writes `first ..= last` came with one read and have their LSNs. One reading of the clock for all
    /// of them: with 16 requests to a read, one for each was 5 % of the node's instructions.
    pub fn appended(&mut self, first: Lsn, last: Lsn, started: Time, appended: Time) {
        if first <= last {
            self.arrived.push(last, ReadMoments { first, batch: self.batch, started, appended });
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
        if let Some(number) = self.batch_sent(sent) {
            self.syncing = number;
        }
    }

    /// The batch is with the followers' sockets, and its sync is yet to begin: it waits for the one under way. Nobody
    /// waits for it but this node's disk, so it counts in no histogram of syncs.
    pub fn sent_ahead(&mut self, sent: Time) {
        let _number = self.batch_sent(sent);
    }

    fn batch_sent(&mut self, sent: Time) -> Option<u64> {
        let batch = &mut self.batches[slot(self.batch)];
        if batch.number != self.batch {
            return None;
        }
        batch.sent = sent;
        self.stages[2].record_n(sent.since(batch.turn), u64::from(batch.count));
        self.batch += 1;
        Some(batch.number)
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
        if lsn >= self.next_commit {
            self.committed.push(lsn, at);
            self.next_commit = lsn.next();
        }
    }

    /// Whether replies of this turn are still to be timed.
    pub fn has_unreplied(&self) -> bool {
        self.next_reply < self.next_commit
    }

    /// The replies to everything committed have been handed to their sockets.
    pub fn replied(&mut self, at: Time) {
        let last = self.next_commit.prev();
        let mut lsn = self.next_reply;
        self.replied.push(last, at);
        self.next_reply = self.next_commit;
        // Writes that were read and committed together share all their moments.
        let (mut reads, mut commits) = (self.arrived.from(lsn), self.committed.from(lsn));
        let mut slow = None;
        while let (Some((read_last, read)), Some((commit_last, committed))) = (reads.peek(), commits.peek())
            && lsn <= last
        {
            // A leader's first record in its term came from no client.
            let first = lsn.max(read.first);
            let end = (*read_last).min(*commit_last).min(last);
            if first <= end {
                let moments = (read, &self.batches[slot(read.batch)], *committed);
                record(&mut self.total, &mut self.stages, moments, (at, end.0 - first.0 + 1));
                if at.since(read.started) > self.slow_from_ns {
                    slow.get_or_insert(first);
                }
            }
            lsn = end.next();
            reads.next_if(|(read_last, _)| *read_last < lsn);
            commits.next_if(|(commit_last, _)| *commit_last < lsn);
        }
        if let Some(first) = slow {
            self.keep_slow(first, last);
        }
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
        let (_, read) = self.arrived.at(lsn).filter(|(_, read)| lsn >= read.first)?;
        if !self.kept().contains(&lsn.0) {
            return None;
        }
        let batch = Some(&self.batches[slot(read.batch)]).filter(|batch| batch.number == read.batch)?;
        let first_ack = slot(batch.number) * self.peers;
        let followers = self.acks[first_ack..first_ack + self.peers].iter();
        let (committed, left) = (self.committed.at(lsn).map(|(_, at)| at), self.replied.at(lsn));
        let synced = batch.synced_for(committed, now);
        let (committed, replied) = (committed.unwrap_or(now), left.map_or(now, |(_, at)| at));
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
        let answered = self.kept().filter(|number| *number < self.next_reply.0);
        answered.filter_map(|number| self.receipt(Lsn(number), Time(0)))
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

    /// The LSNs of the last [`RING_SIZE`] writes.
    fn kept(&self) -> std::ops::RangeInclusive<u64> {
        let last = self.arrived.last().0;
        last.saturating_sub(RING_SIZE as u64 - 1).max(1)..=last
    }

    /// Keeps those of the writes `first ..= last` that are among the slowest.
    fn keep_slow(&mut self, first: Lsn, last: Lsn) {
        for number in first.0..=last.0 {
            let receipt = self.receipt(Lsn(number), Time(0));
            let Some(receipt) = receipt.filter(|receipt| receipt.total_ns > self.slow_from_ns) else {
                continue;
            };
            if self.slowest.len() < SLOWEST_SIZE {
                self.slowest.push(receipt);
            } else if let Some(fastest) = self.slowest.iter_mut().min_by_key(|slow| slow.total_ns) {
                *fastest = receipt;
            }
            if self.slowest.len() == SLOWEST_SIZE {
                self.slow_from_ns = self.slowest.iter().map(|slow| slow.total_ns).min().unwrap_or(0);
            }
        }
    }
}

/// The stages of so many writes that were read and committed together, but for those that all of a batch share.
fn record(
    total: &mut Durations,
    stages: &mut [Durations; STAGES.len()],
    (read, batch, committed): (&ReadMoments, &BatchMoments, Time),
    (replied, count): (Time, u64),
) {
    let synced = batch.synced_for(Some(committed), committed);
    total.record_n(replied.since(read.started), count);
    stages[0].record_n(read.appended.since(read.started), count);
    stages[1].record_n(batch.turn.since(read.appended), count);
    stages[4].record_n(committed.since(synced), count);
    stages[5].record_n(replied.since(committed), count);
}

fn slot(number: u64) -> usize {
    (number % RING_SIZE as u64) as usize
}

#[cfg(test)]
mod tests;
