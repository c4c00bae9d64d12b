//! Moments that a row of writes shares, found by the LSN of any of them.
//!
//! What came with one read, was committed by one ACK or answered by one turn is one entry, however many writes that
//! are: with 16 requests to a read, an entry for each write was 4.4 % of the node's instructions.

use std::collections::VecDeque;
use std::collections::vec_deque::Iter;
use std::iter::{Copied, Peekable};

use super::RING_SIZE;
use crate::ids::Lsn;

/// The newest [`RING_SIZE`] rows, each named by its last LSN. A row has a write at least, so they hold as many writes.
///
/// Invariant: the LSNs rise.
#[derive(Debug)]
pub(super) struct Rows<T> {
    rows: VecDeque<(Lsn, T)>,
}

impl<T: Copy> Rows<T> {
    /// No rows, and room for all there will be.
    pub fn new() -> Rows<T> {
        Rows { rows: VecDeque::with_capacity(RING_SIZE) }
    }

    /// The next row ends with `last`.
    pub fn push(&mut self, last: Lsn, moments: T) {
        debug_assert!(self.last() < last, "rows rise");
        if self.rows.len() == RING_SIZE {
            self.rows.pop_front();
        }
        self.rows.push_back((last, moments));
    }

    /// The last LSN of the newest row, or 0.
    pub fn last(&self) -> Lsn {
        self.rows.back().map_or(Lsn::ZERO, |(last, _)| *last)
    }

    /// The row that a write is in, or the one that comes next if it is in none; with the row's last LSN.
    pub fn at(&self, lsn: Lsn) -> Option<(Lsn, T)> {
        self.rows.get(self.count_before(lsn)).copied()
    }

    /// How many rows end before a write. Nearly all who ask mean one of the newest, so the search begins there and
    /// doubles its steps: halving all of 4,096 took a fifth of the 2,500 instructions of a lone write's receipt.
    fn count_before(&self, lsn: Lsn) -> usize {
        let (mut low, mut high, mut step) = (0, self.rows.len(), 1);
        while let Some(place) = high.checked_sub(step) {
            if self.rows[place].0 < lsn {
                low = place + 1;
                break;
            }
            high = place;
            step *= 2;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.rows[middle].0 < lsn { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// That row and all behind it, in order.
    pub fn from(&self, lsn: Lsn) -> Peekable<Copied<Iter<'_, (Lsn, T)>>> {
        self.rows.range(self.count_before(lsn)..).copied().peekable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_found_in_the_row_that_ends_at_or_behind_it() {
        let mut rows = Rows::new();
        assert_eq!(rows.at(Lsn(1)), None);
        [3, 4, 9, 20, 21, 22, 30].into_iter().for_each(|last| rows.push(Lsn(last), last * 10));
        let row_of = |lsn| rows.at(Lsn(lsn)).map(|(last, _)| last.0);
        assert_eq!([1, 3, 4, 5, 9, 10].map(row_of), [3, 3, 4, 9, 9, 20].map(Some));
        assert_eq!([21, 22, 23, 30, 31].map(row_of), [Some(21), Some(22), Some(30), Some(30), None]);
        assert_eq!(rows.at(Lsn(7)), Some((Lsn(9), 90)));
    }

    #[test]
    fn every_row_is_found_however_far_back_it_is() {
        for size in 0..70 {
            let mut rows = Rows::new();
            (1..=size).for_each(|row| rows.push(Lsn(row * 2), row));
            for lsn in 0..=size * 2 + 1 {
                let wanted = lsn.div_ceil(2).max(1);
                assert_eq!(
                    rows.at(Lsn(lsn)).map(|(_, row)| row),
                    (wanted <= size).then_some(wanted),
                    "{lsn}"
                );
            }
        }
    }

    #[test]
    fn the_oldest_row_goes_when_the_ring_is_full() {
        let mut rows = Rows::new();
        (1..=RING_SIZE as u64 + 1).for_each(|row| rows.push(Lsn(row * 2), row));
        assert_eq!(rows.at(Lsn(1)), Some((Lsn(4), 2)), "the first is gone");
        assert_eq!(rows.last(), Lsn((RING_SIZE as u64 + 1) * 2));
    }
}
