//! The moments that the writes of a batch share.

use super::RING_SIZE;
use super::rows::{ring, slot};
use crate::ids::Lsn;
use crate::time::Time;

/// One batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Batch {
    pub number: u64,
    pub last: Lsn,
    pub count: u32,
    pub turn: Time,
    pub sent: Time,
    /// 0: its sync has not ended.
    pub synced: Time,
}

impl Batch {
    /// When a write of it was durable that was committed at `committed`, or is not yet and that is the present. A
    /// segment that begins behind it makes it durable before the rest of its batch, and then it may be committed while
    /// the flush of the rest is under way.
    #[inline(always)]
    pub fn synced_by(&self, committed: Time) -> Time {
        if self.synced == Time(0) { committed } else { self.synced.min(committed) }
    }
}

/// The last [`RING_SIZE`] batches; numbers begin with 1.
#[derive(Debug)]
pub(super) struct Batches {
    batches: Box<[Batch; RING_SIZE]>,
    /// The one that is being filled; it is here once its turn has come.
    pub filling: u64,
}

impl Batches {
    /// None yet.
    pub fn new() -> Batches {
        Batches { batches: ring(), filling: 1 }
    }

    /// The turn of the one that is being filled.
    #[inline(always)]
    pub fn turn(&mut self, last: Lsn, count: u32, turn: Time) {
        let number = self.filling;
        self.batches[slot(number)] = Batch { number, last, count, turn, sent: turn, synced: Time(0) };
    }

    /// The number of the oldest that is kept.
    #[inline(always)]
    pub fn oldest(&self) -> u64 {
        self.filling.saturating_sub(RING_SIZE as u64 - 1).max(1)
    }

    /// The batch of this number, if it is kept and its turn has come.
    #[inline(always)]
    pub fn get(&self, number: u64) -> Option<&Batch> {
        Some(&self.batches[slot(number)]).filter(|batch| batch.number == number)
    }

    /// The same, to be changed.
    #[inline(always)]
    pub fn get_mut(&mut self, number: u64) -> Option<&mut Batch> {
        Some(&mut self.batches[slot(number)]).filter(|batch| batch.number == number)
    }
}
