//! Extendible hashing: a directory of 2^depth references to small tables.
//!
//! No step of growth is long. A full table splits in two by one more bit of the stored hashes, moving at most
//! [`capacity`]`(`[`TABLE_PLACES`]`)` elements; where the directory has no room for the two, it doubles, four
//! bytes per reference: 32 KiB at ten million keys. On a virtual Xeon the median split takes 25 us, and one
//! with a doubling 30 to 100. A single large table would move all ten million elements at once; what it saves
//! is one load per lookup, from a directory that stays in the L2 cache.
//!
//! A split that would leave nearly everything on one side is of no use: the hashes are (nearly) equal, and to
//! go on would double the directory until memory is gone. Such a table grows instead. With hashes of a secret
//! seed that does not happen: of 1,536 elements each half gets 768 +- 20.
//!
//! Left out: tables are never merged, nor the directory halved. After a mass deletion the index keeps its
//! size (at most 22 bytes per key there was) for the keys to come.

use super::table::{KeyHash, Table, capacity};

/// Places of a table that never had to grow: 16 KiB, so that both tables of a split and the elements on their
/// way between them fit into an L1 of 48 KiB. With half the size the median split took 12 us, but the directory
/// and the list of tables, which double at once, were twice as long.
pub(super) const TABLE_PLACES: usize = 2048;

/// Bits that the directory may use. What is left of the hash tells apart the places of a table. At two
/// million tables, that is three thousand million keys, tables begin to grow instead of splitting.
const DEPTH_MAX: u8 = 32 - TABLE_PLACES.ilog2() as u8;

/// A split must move at least one of so many elements to the smaller half.
const MINORITY_DIVISOR: usize = 8;

/// How the index grew and stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Tables split in two.
    pub splits: u64,
    /// Doublings of the directory.
    pub doublings: u64,
    /// Tables that grew because a split would not have helped. Stays 0 unless somebody knows the seed.
    pub tables_grown: u64,
    /// Elements moved in one step, at most.
    pub moved_max: usize,
    /// Tables there are.
    pub tables: usize,
    /// References in the directory.
    pub directory_size: usize,
    /// Places of the largest table.
    pub table_places_max: usize,
}

/// Slots by hash.
///
/// Invariants: the directory has 2^depth references; a table of depth t stands under all 2^(depth - t)
/// numbers that begin with its t bits, and nowhere else.
pub(super) struct Index {
    directory: Vec<u32>,
    depth: u8,
    tables: Vec<Table>,
    /// Places of a table to begin with.
    table_places: usize,
    /// Places of all tables.
    places: usize,
    /// Where elements wait while their table is split.
    moving: Vec<(KeyHash, u32)>,
    growth: Growth,
}

impl Index {
    /// An index of tables with so many places; tests take few.
    pub(super) fn new(table_places: usize) -> Index {
        Index {
            directory: vec![0],
            depth: 0,
            tables: vec![Table::new(table_places, 0)],
            table_places,
            places: table_places,
            moving: Vec::with_capacity(capacity(table_places)),
            growth: Growth { table_places_max: table_places, ..Growth::default() },
        }
    }

    /// The slot under this hash for which `is_key` holds.
    #[inline]
    pub(super) fn find(&self, hash: KeyHash, is_key: impl FnMut(u32) -> bool) -> Option<u32> {
        self.tables[self.table_of(hash)].find(hash, is_key)
    }

    /// Reads a word of the line where the search for a hash begins.
    #[inline]
    pub(super) fn touch(&self, hash: KeyHash) -> u32 {
        self.tables[self.table_of(hash)].touch(hash)
    }

    /// Adds an element that is not there yet.
    pub(super) fn insert(&mut self, hash: KeyHash, slot: u32) {
        if self.tables[self.table_of(hash)].is_full() {
            self.make_room(hash);
        }
        let table = self.table_of(hash);
        self.tables[table].insert(hash, slot);
    }

    /// Removes an element that is there.
    pub(super) fn remove(&mut self, hash: KeyHash, slot: u32) {
        let table = self.table_of(hash);
        self.tables[table].remove(hash, slot);
    }

    /// How it grew and stands.
    pub(super) fn growth(&self) -> Growth {
        Growth { tables: self.tables.len(), directory_size: self.directory.len(), ..self.growth }
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> u64 {
        let directory = self.directory.capacity() * size_of::<u32>();
        let tables = self.tables.capacity() * size_of::<Table>();
        (directory + tables + (self.places + self.moving.capacity()) * size_of::<u64>()) as u64
    }

    /// Every element, in an order that means nothing.
    pub(super) fn elements(&self) -> impl Iterator<Item = (KeyHash, u32)> {
        self.tables.iter().flat_map(Table::elements)
    }

    /// Panics unless directory and tables fit together.
    pub(super) fn invariants(&self) {
        assert_eq!(self.directory.len(), 1 << self.depth);
        assert_eq!(self.places, self.tables.iter().map(Table::places).sum::<usize>());
        let mut reached = vec![false; self.tables.len()];
        let mut at = 0;
        while at < self.directory.len() {
            let number = self.directory[at];
            let table = &self.tables[number as usize];
            let references = 1 << (self.depth - table.depth);
            assert_eq!(at % references, 0, "table {number} begins between two prefixes");
            assert!(self.directory[at..at + references].iter().all(|&other| other == number));
            assert!(!std::mem::replace(&mut reached[number as usize], true), "table {number} stands twice");
            table.invariants(at / references);
            at += references;
        }
        assert!(reached.iter().all(|&reached| reached), "a table has no reference");
    }

    #[inline]
    fn table_of(&self, hash: KeyHash) -> usize {
        self.directory[hash.prefix(self.depth)] as usize
    }

    #[cold]
    fn make_room(&mut self, hash: KeyHash) {
        let number = self.table_of(hash);
        let table = &self.tables[number];
        let [zeros, ones] = table.halves();
        self.growth.moved_max = self.growth.moved_max.max(table.len());
        if table.depth == DEPTH_MAX || zeros.min(ones) * MINORITY_DIVISOR < table.len() {
            self.grow(number);
        } else {
            self.split(number, hash);
        }
    }

    fn split(&mut self, number: usize, hash: KeyHash) {
        let depth = self.tables[number].depth;
        if depth == self.depth {
            self.double_directory();
        }
        let table = &mut self.tables[number];
        self.places -= table.places();
        let ones = table.split(self.table_places, &mut self.moving);
        self.places += table.places() + ones.places();
        let new_number = u32::try_from(self.tables.len()).expect("DEPTH_MAX bounds the number of tables");
        self.tables.push(ones);
        let half = 1 << (self.depth - depth - 1);
        let first = hash.prefix(depth) * half * 2;
        self.directory[first + half..first + 2 * half].fill(new_number);
        self.growth.splits += 1;
    }

    fn grow(&mut self, number: usize) {
        let table = &mut self.tables[number];
        self.places += table.places();
        table.grow(&mut self.moving);
        self.growth.table_places_max = self.growth.table_places_max.max(table.places());
        self.growth.tables_grown += 1;
    }

    fn double_directory(&mut self) {
        let mut doubled = vec![0; self.directory.len() * 2];
        for (pair, &number) in doubled.chunks_exact_mut(2).zip(&self.directory) {
            pair.fill(number);
        }
        self.directory = doubled;
        self.depth += 1;
        self.growth.doublings += 1;
    }
}

const _: () = {
    assert!(TABLE_PLACES.is_power_of_two());
    assert!(capacity(TABLE_PLACES) / MINORITY_DIVISOR > 1, "the larger half of a split has room");
};

#[cfg(test)]
mod tests {
    use super::*;

    fn insert_all(index: &mut Index, hashes: impl Iterator<Item = u32>) {
        hashes.zip(0..).for_each(|(hash, slot)| index.insert(KeyHash(hash), slot));
    }

    #[test]
    fn evenly_spread_hashes_split_and_never_grow() {
        let mut index = Index::new(64);
        insert_all(&mut index, (0..10_000u32).map(|number| number.wrapping_mul(0x9e37_79b1)));
        index.invariants();
        let growth = index.growth();
        assert_eq!((growth.tables_grown, growth.table_places_max, growth.moved_max), (0, 64, 48));
        assert_eq!(growth.tables as u64, growth.splits + 1);
        assert_eq!(growth.directory_size, 1 << growth.doublings);
        assert_eq!(index.elements().count(), 10_000);
    }

    #[test]
    fn equal_hashes_make_a_table_grow_and_leave_the_directory_alone() {
        let mut index = Index::new(64);
        insert_all(&mut index, std::iter::repeat_n(0xdead_beef, 5_000));
        index.invariants();
        let growth = index.growth();
        assert_eq!((growth.splits, growth.directory_size, growth.table_places_max), (0, 1, 8192));
        assert_eq!(index.find(KeyHash(0xdead_beef), |slot| slot == 4_999), Some(4_999));
        (0..5_000).rev().for_each(|slot| index.remove(KeyHash(0xdead_beef), slot));
        index.invariants();
        assert_eq!(index.elements().count(), 0);
    }

    #[test]
    fn a_grown_table_splits_once_that_helps() {
        let mut index = Index::new(8);
        // Twelve equal hashes fill a table of 16 places, twelve with another first bit one of 32.
        insert_all(&mut index, std::iter::repeat_n(1, 12).chain(std::iter::repeat_n(1 << 31, 13)));
        index.invariants();
        let growth = index.growth();
        assert_eq!((growth.splits, growth.tables), (1, 2));
        assert!(growth.tables_grown >= 2);
        assert_eq!(index.memory_bytes() % 8, 0);
    }

    #[test]
    fn a_table_at_the_greatest_depth_grows() {
        let mut index = Index::new(8);
        // Every split takes one hash off and leaves the others, whose highest bits are all zero, together.
        insert_all(&mut index, (0..32).rev().map(|bit| 1 << bit));
        index.invariants();
        let growth = index.growth();
        assert_eq!((index.depth, growth.directory_size), (DEPTH_MAX, 1 << DEPTH_MAX));
        assert!(growth.tables_grown > 0);
        assert!((0..32).all(|bit| index.find(KeyHash(1 << bit), |_| true) == Some(31 - bit)));
    }
}
