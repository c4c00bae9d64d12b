//! Moments that a row of writes shares, found by the LSN of any of them.
//!
//! What came with one read, was committed by one ACK or answered by one turn is one entry, however many writes that
//! are: with 16 requests to a read, an entry for each write was 4.4 % of the node's instructions.

use super::RING_SIZE;
use crate::ids::Lsn;

/// The newest [`RING_SIZE`] rows, each named by its last LSN. A row has a write at least, so they hold as many writes.
/// Rows are numbered from 0 on, for who goes through them in order.
///
/// Invariant: the LSNs rise.
#[derive(Debug)]
pub(super) struct Rows<T> {
    rows: Box<[(Lsn, T); RING_SIZE]>,
    /// The number of the next one.
    next: u64,
}

impl<T: Copy + Default> Rows<T> {
    /// No rows, and room for all there will be.
    pub fn new() -> Rows<T> {
        Rows { rows: ring(), next: 0 }
    }

    /// The next row ends with `last`.
    #[inline(always)]
    pub fn push(&mut self, last: Lsn, moments: T) {
        debug_assert!(self.last() < last, "rows rise");
        self.rows[slot(self.next)] = (last, moments);
        self.next += 1;
    }

    /// The last LSN of the newest row, or 0.
    pub fn last(&self) -> Lsn {
        self.next.checked_sub(1).map_or(Lsn::ZERO, |newest| self.rows[slot(newest)].0)
    }

    /// The number of the oldest row that is kept.
    #[inline(always)]
    pub fn oldest(&self) -> u64 {
        self.next.saturating_sub(RING_SIZE as u64)
    }

    /// The row of this number, which is kept or comes next, with its last LSN.
    #[inline(always)]
    pub fn row(&self, number: u64) -> Option<&(Lsn, T)> {
        (number < self.next).then(|| &self.rows[slot(number)])
    }

    /// The row that a write is in, looked for from `place` on, which moves there.
    #[inline(always)]
    pub fn row_of(&self, lsn: Lsn, place: &mut u64) -> Option<&(Lsn, T)> {
        loop {
            let row = self.row(*place)?;
            if row.0 >= lsn {
                return Some(row);
            }
            *place += 1;
        }
    }

    /// The row that a write is in, or the one that comes next if it is in none; with the row's last LSN.
    pub fn at(&self, lsn: Lsn) -> Option<(Lsn, T)> {
        self.row(self.first_that_reaches(lsn)).copied()
    }

    /// The first row that does not end before a write. Nearly all who ask mean one of the newest, so the search begins
    /// there and doubles its steps.
    fn first_that_reaches(&self, lsn: Lsn) -> u64 {
        let (mut low, mut high, mut step) = (self.oldest(), self.next, 1);
        while let Some(place) = high.checked_sub(step).filter(|place| *place >= low) {
            if self.rows[slot(place)].0 < lsn {
                low = place + 1;
                break;
            }
            high = place;
            step *= 2;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.rows[slot(middle)].0 < lsn { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// Where what has this number is kept. There is a power of two of places, so that no index needs a check.
#[inline(always)]
pub(super) fn slot(number: u64) -> usize {
    const { assert!(RING_SIZE.is_power_of_two()) };
    (number % RING_SIZE as u64) as usize
}

/// Room for so many of something as are kept.
pub(super) fn ring<T: Copy + Default>() -> Box<[T; RING_SIZE]> {
    let rows = vec![T::default(); RING_SIZE].into_boxed_slice();
    rows.try_into().unwrap_or_else(|_| unreachable!("it has this length"))
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
