//! From moments to histograms, later.
//!
//! While a write is under way its moments are only stored. Writes whose replies have left are folded into the
//! histograms, and looked at for being slow, when there are [`FOLD_WRITES`] of them or when somebody asks: one tight
//! loop takes fewer instructions than as many calls for one write each.

use super::{COMMIT, DECODE, QUEUE, REPLY, SLOWEST_SIZE, Trace};
use crate::ids::Lsn;
use crate::time::Time;

/// Writes, and ACKs of a follower, that are folded together. So many take some 2 us, which nobody sees among what a
/// turn takes, and they are few beside those that are kept.
pub(super) const FOLD_WRITES: u64 = 64;
const _: () = assert!(FOLD_WRITES * 16 <= super::RING_SIZE as u64);

/// How far the writes are folded.
#[derive(Debug)]
pub(super) struct Folded {
    /// The first write that is not.
    pub next: Lsn,
    /// The rows that it is in, or some before them.
    read: u64,
    commit: u64,
    reply: u64,
}

impl Folded {
    /// Nothing yet; the next write has this LSN.
    pub fn new(next: Lsn) -> Folded {
        Folded { next, read: 0, commit: 0, reply: 0 }
    }
}

impl Trace {
    /// Folds all writes whose replies have left.
    pub(super) fn fold(&mut self) {
        self.folded.read = self.folded.read.max(self.arrived.oldest());
        self.folded.commit = self.folded.commit.max(self.committed.oldest());
        self.folded.reply = self.folded.reply.max(self.replied.oldest());
        while let Some((first, last)) = self.fold_until_slow() {
            self.keep_slow(first, last);
        }
    }

    /// Folds group after group: writes that rode in one batch, were committed together and answered together. What
    /// a read has for itself is recorded for each read, the rest once for the group. Returns the first and last
    /// write of a group with a slow one.
    fn fold_until_slow(&mut self) -> Option<(Lsn, Lsn)> {
        let (folded, replied_to) = (&mut self.folded, self.replied.last());
        while let Some((_, read)) = self.arrived.row(folded.read) {
            // A leader's first record in its term came from no client.
            let first = folded.next.max(read.first);
            if first > replied_to {
                break;
            }
            let Some(batch) = self.batches.get(read.batch).filter(|batch| batch.last >= first) else {
                // Thousands of batches have gone out since. Of its writes nothing is known any more.
                folded.read += 1;
                continue;
            };
            let (committed_last, committed) = self.committed.row_of(first, &mut folded.commit)?;
            let (replied_last, replied) = self.replied.row_of(first, &mut folded.reply)?;
            let last = (*committed_last).min(*replied_last).min(batch.last);
            // The first began first and all are answered together: none took or waited longer.
            let longest = between(read.started, *replied);
            self.total.reach(longest);
            self.stages[QUEUE].reach(between(read.appended, batch.turn));
            let (mut from, mut all) = (first, 0);
            while let Some((read_last, read)) = self.arrived.row(folded.read)
                && from.max(read.first) <= last
            {
                let end = (*read_last).min(last);
                let count = end.0 + 1 - from.max(read.first).0;
                self.total.add(between(read.started, *replied), count);
                self.stages[DECODE].record_n(between(read.started, read.appended), count);
                self.stages[QUEUE].add(between(read.appended, batch.turn), count);
                all += count;
                from = Lsn(end.0 + 1);
                if end < *read_last {
                    break;
                }
                folded.read += 1;
            }
            folded.next = from;
            self.stages[COMMIT].record_n(committed.since(batch.synced_by(*committed)), all);
            self.stages[REPLY].record_n(replied.since(*committed), all);
            if longest > self.slow_from_ns {
                return Some((first, last));
            }
        }
        None
    }

    /// Keeps those of the writes `first ..= last`, answered together, that are among the slowest.
    #[cold]
    fn keep_slow(&mut self, first: Lsn, last: Lsn) {
        for number in first.0..=last.0 {
            let Some(receipt) = self.receipt(Lsn(number), Time(0)) else { continue };
            if receipt.total_ns <= self.slow_from_ns {
                // All behind it began later.
                return;
            }
            if self.slowest.len() < SLOWEST_SIZE {
                self.slowest.push(receipt);
            } else {
                self.slowest[self.least_slow] = receipt;
            }
            if self.slowest.len() == SLOWEST_SIZE {
                let totals = self.slowest.iter().map(|slow| slow.total_ns).zip(0..);
                (self.slow_from_ns, self.least_slow) = totals.min().expect("it is full");
            }
        }
    }
}

/// Of two moments of which the later one was certainly read later.
#[inline(always)]
fn between(earlier: Time, later: Time) -> u64 {
    debug_assert!(earlier <= later, "{earlier:?} is behind {later:?}");
    later.0.wrapping_sub(earlier.0)
}
