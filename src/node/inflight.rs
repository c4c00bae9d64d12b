//! Records that were appended and not yet applied, encoded once, in the batches they were appended in.
//!
//! The log file, the followers' frames and the keyspace all take a record from here. A batch is what one
//! turn of the loop appended; the one that is being filled is *current*.

use std::collections::VecDeque;

use crate::ids::{Chain, Lsn};
use crate::keyspace::AHEAD_MAX;
use crate::wire::{Reader, Record};

/// Records of consecutive LSNs.
#[derive(Debug, Default)]
pub struct Batch {
    first: Lsn,
    bytes: Vec<u8>,
    /// Where each record ends, and the chain checksum at it.
    ends: Vec<(usize, Chain)>,
    /// Bytes of the largest record.
    largest: usize,
}

impl Batch {
    /// Records.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The first LSN; meaningless when empty.
    pub fn first(&self) -> Lsn {
        self.first
    }

    /// The last LSN.
    pub fn last(&self) -> Lsn {
        Lsn(self.first.0 + self.ends.len() as u64).prev()
    }

    /// The bytes of records `from..to` (indices), and the chain checksum at the last of them.
    pub fn slice(&self, from: usize, to: usize) -> (&[u8], Chain) {
        (&self.bytes[self.start(from)..self.ends[to - 1].0], self.ends[to - 1].1)
    }

    /// The index behind the records from `from` on that fit into `size` bytes; at least one is taken.
    pub fn fitting(&self, from: usize, size: usize) -> usize {
        let limit = self.start(from) + size;
        let behind = self.ends.partition_point(|(end, _)| *end <= limit);
        behind.max(from + 1)
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before].0)
    }

    fn record(&self, index: usize) -> Record<'_> {
        let (bytes, _) = self.slice(index, index + 1);
        Record::decode(&mut Reader::new(bytes)).expect("records are checked before they are kept")
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.largest = 0;
    }
}

/// Bytes of capacity that a batch kept for reuse may hold.
const REUSED_CAPACITY: usize = 256 << 10;
/// Batches kept for reuse.
const REUSED_COUNT: usize = 8;

/// The records between applied and last.
#[derive(Debug, Default)]
pub struct Inflight {
    sealed: VecDeque<Batch>,
    current: Batch,
    reuse: Vec<Batch>,
    size: usize,
    /// The last record sealed, and the chain checksum at it.
    last_sealed: Option<(Lsn, Chain)>,
}

impl Inflight {
    /// Adds a record to the current batch; returns its bytes for the log.
    pub fn push(&mut self, record: &Record<'_>) -> &[u8] {
        if self.current.is_empty() {
            self.current.first = record.lsn;
        }
        let start = self.current.bytes.len();
        record.encode(&mut self.current.bytes);
        &self.current.bytes[start..]
    }

    /// Adds a record that is encoded already.
    pub fn push_encoded(&mut self, bytes: &[u8], lsn: Lsn) {
        if self.current.is_empty() {
            self.current.first = lsn;
        }
        self.current.bytes.extend_from_slice(bytes);
    }

    /// The log took the record just pushed; this is the chain checksum at it.
    pub fn pushed(&mut self, chain: Chain) {
        let end = self.current.bytes.len();
        let size = end - self.current.start(self.current.len());
        self.size += size;
        self.current.largest = self.current.largest.max(size);
        self.current.ends.push((end, chain));
    }

    /// The last record that this turn appended.
    #[cfg(feature = "sabotage")]
    pub fn last_record(&self) -> Record<'_> {
        self.current.record(self.current.len() - 1)
    }

    /// Takes the records behind the first `len` out of the current batch again.
    pub fn truncate(&mut self, len: usize) {
        let batch = &mut self.current;
        let end = batch.start(len);
        // A record that was pushed and not finished with `pushed` counts for nothing yet.
        self.size -= batch.start(batch.len()) - end;
        batch.bytes.truncate(end);
        batch.ends.truncate(len);
    }

    /// What this turn appended.
    pub fn current(&self) -> &Batch {
        &self.current
    }

    /// The first LSN held.
    pub fn first_held(&self) -> Option<Lsn> {
        let current = Some(&self.current).filter(|batch| !batch.is_empty());
        self.sealed.front().or(current).map(Batch::first)
    }

    /// Forgets the oldest sealed batches while more bytes are held than these.
    pub fn forget_beyond(&mut self, bytes: usize) {
        while self.size > bytes && !self.sealed.is_empty() {
            self.retire();
        }
    }

    /// Forgets everything.
    ///
    /// # Panics
    /// If a batch is being filled: its records are nowhere else yet.
    pub fn clear(&mut self) {
        assert!(self.current.is_empty(), "records that are not written cannot be forgotten");
        self.forget_beyond(0);
        self.last_sealed = None;
    }

    /// The chain checksum before a record of the current batch, as far as that is known.
    pub fn chain_before(&self, lsn: Lsn) -> Option<Chain> {
        if self.current.is_empty() {
            return None;
        }
        match lsn.0.checked_sub(self.current.first.0)? {
            0 => self.last_sealed.filter(|(last, _)| last.next() == lsn).map(|(_, chain)| chain),
            index => self.current.ends.get(index as usize - 1).map(|(_, chain)| *chain),
        }
    }

    /// Bytes of records held.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes of the largest record held, at least.
    pub fn largest(&self) -> usize {
        self.sealed.iter().chain([&self.current]).map(|batch| batch.largest).max().unwrap_or(0)
    }

    /// The turn is written: the next record begins a new batch.
    pub fn seal(&mut self) {
        if let Some((_, chain)) = self.current.ends.last() {
            self.last_sealed = Some((self.current.last(), *chain));
            let next = self.reuse.pop().unwrap_or_default();
            self.sealed.push_back(std::mem::replace(&mut self.current, next));
        }
    }

    /// Gives the sealed records of `from..=to` to `apply`, in groups of at most [`AHEAD_MAX`], and forgets the
    /// batches that are through. `from` is the LSN after the last applied one.
    pub fn apply(&mut self, from: Lsn, to: Lsn, mut apply: impl FnMut(&[Record<'_>])) {
        let mut next = from;
        while let Some(batch) = self.sealed.front() {
            if batch.first > to {
                break;
            }
            assert!(batch.first <= next && next <= batch.last().next(), "a record between was never kept");
            let end = batch.last().min(to);
            let behind = (end.next().0 - batch.first.0) as usize;
            let mut at = (next.0 - batch.first.0) as usize;
            let mut group = Vec::with_capacity((behind - at).min(AHEAD_MAX));
            while at < behind {
                group.clear();
                group.extend((at..behind.min(at + AHEAD_MAX)).map(|index| batch.record(index)));
                apply(&group);
                at += group.len();
            }
            next = end.next();
            if end < batch.last() {
                break;
            }
            self.retire();
        }
    }

    fn retire(&mut self) {
        let mut batch = self.sealed.pop_front().expect("there is a front batch");
        self.size -= batch.bytes.len();
        if batch.bytes.capacity() <= REUSED_CAPACITY && self.reuse.len() < REUSED_COUNT {
            batch.clear();
            self.reuse.push(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Effect;

    fn push(inflight: &mut Inflight, lsn: u64) {
        let effect = Effect::Put { key: b"key", value: &[7; 10] };
        let chain = Chain(inflight.push(&Record { lsn: Lsn(lsn), effect }).len() as u32);
        inflight.pushed(chain);
    }

    fn applied(inflight: &mut Inflight, from: u64, to: u64) -> Vec<u64> {
        let mut seen = Vec::new();
        inflight.apply(Lsn(from), Lsn(to), |group| seen.extend(group.iter().map(|record| record.lsn.0)));
        seen
    }

    #[test]
    fn records_are_applied_once_and_in_order_across_batches() {
        let mut inflight = Inflight::default();
        (1..=3).for_each(|lsn| push(&mut inflight, lsn));
        inflight.seal();
        (4..=5).for_each(|lsn| push(&mut inflight, lsn));
        assert_eq!(applied(&mut inflight, 1, 2), [1, 2]);
        assert_eq!(applied(&mut inflight, 3, 9), [3]);
        inflight.seal();
        assert_eq!(applied(&mut inflight, 4, 9), [4, 5]);
        assert_eq!(inflight.size(), 0);
    }

    #[test]
    fn records_that_fail_their_check_leave_the_batch_as_it_was() {
        let mut inflight = Inflight::default();
        (1..=2).for_each(|lsn| push(&mut inflight, lsn));
        let size = inflight.size();
        (3..=5).for_each(|lsn| push(&mut inflight, lsn));
        inflight.push_encoded(b"half a frame", Lsn(6));
        inflight.truncate(2);
        assert_eq!((inflight.current().len(), inflight.size()), (2, size));
        push(&mut inflight, 3);
        inflight.seal();
        assert_eq!(applied(&mut inflight, 1, 9), [1, 2, 3]);
    }

    #[test]
    fn a_batch_is_cut_into_frames_of_at_least_one_record() {
        let mut inflight = Inflight::default();
        (1..=4).for_each(|lsn| push(&mut inflight, lsn));
        let record_size = inflight.size() / 4;
        let batch = inflight.current();
        assert_eq!(batch.fitting(0, 0), 1);
        assert_eq!(batch.fitting(0, 2 * record_size), 2);
        assert_eq!(batch.fitting(2, 100 * record_size), 4);
        assert_eq!(batch.slice(1, 3).0.len(), 2 * record_size);
    }
}
