//! A small hash table from the stored 32 bits of a hash to a slot: open addressing, linear probing.
//!
//! A place is one u64, hash bits above, slot number below, so a probe reads one cache line (a second one in
//! one of four lookups at full load), and a table is split or grown without touching an entry. Removal shifts
//! what follows back instead of leaving a tombstone: a table is as fast after a million changes as new, and
//! never has to be cleaned up in a step of its own.

/// The bits of a key's hash that the index works with. The directory takes them from above, tables from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyHash(pub u32);

impl KeyHash {
    /// The highest `depth` bits as a number.
    pub(super) fn prefix(self, depth: u8) -> usize {
        (u64::from(self.0) >> (32 - depth)) as usize
    }

    /// The bit behind the highest `depth` ones.
    pub(super) fn bit_behind(self, depth: u8) -> bool {
        (self.0 << depth) >> 31 == 1
    }
}

/// A place that holds nothing: the hash may have all bits set, but no slot has this number.
const EMPTY: u64 = u64::MAX;

/// Invariants: at most three of four places are taken; between an element's home and its place none is empty.
pub(super) struct Table {
    /// A power of two.
    places: Box<[u64]>,
    taken: u32,
    /// How many bits of the hash all elements have in common: those that lead to this table.
    pub depth: u8,
}

impl Table {
    pub(super) fn new(places: usize, depth: u8) -> Table {
        assert!(places.is_power_of_two() && places >= 4, "{places} places");
        Table { places: vec![EMPTY; places].into_boxed_slice(), taken: 0, depth }
    }

    /// Elements it holds.
    pub(super) fn len(&self) -> usize {
        self.taken as usize
    }

    /// Places it has.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Whether it must be split or grown before it takes another element. At three quarters a key that is
    /// there is found at its 2.5th probe on average, and one that is not is missed at the 8.5th (Knuth, The
    /// Art of Computer Programming, volume 3, section 6.4): one or two cache lines of eight places.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= capacity(self.places())
    }

    /// The slot under this hash for which `is_key` holds.
    #[inline]
    pub(super) fn find(&self, hash: KeyHash, mut is_key: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut place = self.home(hash);
        loop {
            let element = self.places[place];
            if element == EMPTY {
                return None;
            }
            if hash_of(element) == hash && is_key(slot_of(element)) {
                return Some(slot_of(element));
            }
            place = self.behind(place);
        }
    }

    /// Adds an element that is not there yet, to a table that is not full.
    pub(super) fn insert(&mut self, hash: KeyHash, slot: u32) {
        assert!(!self.is_full(), "a full table is split or grown first");
        let mut place = self.home(hash);
        while self.places[place] != EMPTY {
            place = self.behind(place);
        }
        self.places[place] = pack(hash, slot);
        self.taken += 1;
    }

    /// Removes an element that is there.
    pub(super) fn remove(&mut self, hash: KeyHash, slot: u32) {
        let mut hole = self.home(hash);
        while self.places[hole] != pack(hash, slot) {
            assert!(self.places[hole] != EMPTY, "slot {slot} is not in the index");
            hole = self.behind(hole);
        }
        let mut place = self.behind(hole);
        while self.places[place] != EMPTY {
            let home = self.home(hash_of(self.places[place]));
            // An element goes back into the hole unless that lies in front of its home.
            if self.distance(home, place) >= self.distance(hole, place) {
                self.places[hole] = self.places[place];
                hole = place;
            }
            place = self.behind(place);
        }
        self.places[hole] = EMPTY;
        self.taken -= 1;
    }

    /// Elements by the hash bit that a split would go by.
    pub(super) fn halves(&self) -> [usize; 2] {
        let ones = self.elements().filter(|(hash, _)| hash.bit_behind(self.depth)).count();
        [self.len() - ones, ones]
    }

    /// Moves the elements with the next bit of their hashes set to a new table; both tables have at least
    /// `places_min` places. `moving` is room to work in, kept by the caller: with it only the new table's
    /// pages are touched for the first time, which takes longer than moving the elements does.
    pub(super) fn split(&mut self, places_min: usize, moving: &mut Vec<u64>) -> Table {
        let [zeros, ones] = self.halves();
        self.take_all(moving);
        let depth = self.depth + 1;
        self.depth = depth;
        self.reset(places_for(zeros, places_min));
        let mut other = Table::new(places_for(ones, places_min), depth);
        for element in moving.drain(..) {
            let hash = hash_of(element);
            // Chosen by an index: a branch would be mispredicted every other time.
            [&mut *self, &mut other][hash.prefix(depth) & 1].insert(hash, slot_of(element));
        }
        other
    }

    /// Doubles the places.
    pub(super) fn grow(&mut self, moving: &mut Vec<u64>) {
        self.take_all(moving);
        self.reset(self.places() * 2);
        moving.drain(..).for_each(|element| self.insert(hash_of(element), slot_of(element)));
    }

    /// Every element, in an order that means nothing.
    pub(super) fn elements(&self) -> impl Iterator<Item = (KeyHash, u32)> {
        let taken = self.places.iter().filter(|&&element| element != EMPTY);
        taken.map(|&element| (hash_of(element), slot_of(element)))
    }

    /// Panics unless every element is where a lookup finds it, and belongs under `prefix`.
    pub(super) fn invariants(&self, prefix: usize) {
        assert!(self.len() <= capacity(self.places()), "{} of {} places taken", self.len(), self.places());
        assert_eq!(self.elements().count(), self.len());
        for (hash, slot) in self.elements() {
            assert_eq!(hash.prefix(self.depth), prefix, "slot {slot} is in the wrong table");
            assert_eq!(self.find(hash, |found| found == slot), Some(slot), "slot {slot} cannot be found");
        }
    }

    fn take_all(&mut self, elements: &mut Vec<u64>) {
        elements.clear();
        elements.extend(self.places.iter().filter(|&&element| element != EMPTY));
    }

    fn reset(&mut self, places: usize) {
        if self.places() == places {
            self.places.fill(EMPTY);
            self.taken = 0;
        } else {
            *self = Table::new(places, self.depth);
        }
    }

    /// Where the search for a hash begins. The lowest bits: at ten million keys the directory uses the
    /// highest thirteen, a table eleven. (They would overlap from three thousand million keys on, and make
    /// searches longer, not wrong.)
    fn home(&self, hash: KeyHash) -> usize {
        hash.0 as usize & (self.places.len() - 1)
    }

    fn behind(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.places.len() - 1)
    }
}

/// Elements that a table of so many places may hold.
pub(super) const fn capacity(places: usize) -> usize {
    places / 4 * 3
}

/// The size of a table for `len` elements and at least one more.
fn places_for(len: usize, places_min: usize) -> usize {
    let mut places = places_min;
    while capacity(places) <= len {
        places *= 2;
    }
    places
}

fn pack(hash: KeyHash, slot: u32) -> u64 {
    u64::from(hash.0) << 32 | u64::from(slot)
}

fn hash_of(element: u64) -> KeyHash {
    KeyHash((element >> 32) as u32)
}

fn slot_of(element: u64) -> u32 {
    element as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_above() {
        let hash = KeyHash(0b1010 << 28 | 1);
        assert_eq!([0, 1, 2, 4].map(|depth| hash.prefix(depth)), [0, 1, 2, 10]);
        assert_eq!([0, 1, 2, 3, 31].map(|depth| hash.bit_behind(depth)), [true, false, true, false, true]);
        assert_eq!(hash.prefix(32), hash.0 as usize);
    }

    #[test]
    fn a_removal_leaves_everything_else_findable_in_every_layout() {
        // Six elements in eight places, homes around the end of the table: every order of their arrival
        // that a permutation index of 6! gives, and each removed first.
        let homes = [6, 7, 7, 0, 6, 1];
        for order in 0..720 {
            for removed in 0..6 {
                let mut table = Table::new(8, 0);
                for slot in permutation(order) {
                    table.insert(KeyHash(homes[slot]), slot as u32);
                }
                table.invariants(0);
                table.remove(KeyHash(homes[removed]), removed as u32);
                table.invariants(0);
                assert_eq!(table.len(), 5);
                assert_eq!(table.find(KeyHash(homes[removed]), |slot| slot == removed as u32), None);
            }
        }
    }

    fn permutation(mut number: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..6).collect();
        let mut take = |count| {
            let taken = left.remove(number % count);
            number /= count;
            taken
        };
        (1..=6).rev().map(&mut take).collect()
    }

    #[test]
    fn a_split_goes_by_the_next_bit_and_a_grown_table_keeps_its_depth() {
        let mut table = Table::new(8, 1);
        for slot in 0..6 {
            table.insert(KeyHash(1 << 31 | (slot % 2) << 30 | slot), slot);
        }
        assert!(table.is_full());
        table.grow(&mut Vec::new());
        table.invariants(1);
        assert_eq!((table.len(), table.places(), table.depth), (6, 16, 1));
        let ones = table.split(8, &mut Vec::new());
        table.invariants(0b10);
        ones.invariants(0b11);
        assert_eq!((table.len(), table.places(), table.depth), (3, 8, 2));
        assert_eq!((ones.len(), ones.places(), ones.depth), (3, 8, 2));
    }

    #[test]
    #[should_panic(expected = "not in the index")]
    fn removing_what_is_not_there_is_a_bug() {
        Table::new(8, 0).remove(KeyHash(1), 1);
    }
}
