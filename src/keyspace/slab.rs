//! Where entries live: slots in chunks of fixed size that are never moved and never given back.
//!
//! A slot's number is valid as long as its entry lives, and a scan from slot 0 to [`Slab::slot_count`] that
//! is interrupted by writes meets every entry that lived through all of it exactly once. Growing allocates
//! one chunk (16 KiB) and, rarely, doubles the list of chunks (80 KiB at ten million entries).

/// Slots of a chunk: 16 KiB, four pages to touch when a chunk is begun (7 to 14 us).
const CHUNK_SLOTS: usize = 1024;

/// The end of the free list. Never the number of a slot.
const NO_SLOT: u32 = u32::MAX;

enum Slot {
    Used(Box<[u8]>),
    /// A link of the free list.
    Free {
        next: u32,
    },
}

// The box's pointer is never null, which leaves room to tell the two apart for nothing.
const _: () = assert!(size_of::<Slot>() == 16);

type Chunk = Box<[Slot; CHUNK_SLOTS]>;

/// Entries by slot number.
///
/// Invariants: every free slot is on the free list exactly once, no used one is.
pub(super) struct Slab {
    chunks: Vec<Chunk>,
    /// Last freed, first used again: that slot's cache line is the warmest.
    free: u32,
}

impl Slab {
    pub(super) fn new() -> Slab {
        Slab { chunks: Vec::new(), free: NO_SLOT }
    }

    /// Slots there are, used or free. Never falls.
    pub(super) fn slot_count(&self) -> u32 {
        // Checked when a chunk was added.
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// The entry in a slot; `None` if the slot is free or does not exist.
    pub(super) fn get(&self, slot: u32) -> Option<&[u8]> {
        match self.chunks.get(slot as usize / CHUNK_SLOTS)?[slot as usize % CHUNK_SLOTS] {
            Slot::Used(ref entry) => Some(entry),
            Slot::Free { .. } => None,
        }
    }

    /// The entry in a used slot, to be changed or replaced.
    pub(super) fn used_mut(&mut self, slot: u32) -> &mut Box<[u8]> {
        match self.slot_mut(slot) {
            Slot::Used(entry) => entry,
            Slot::Free { .. } => panic!("slot {slot} holds no entry"),
        }
    }

    /// Puts an entry into a free slot.
    pub(super) fn insert(&mut self, entry: Box<[u8]>) -> u32 {
        if self.free == NO_SLOT {
            self.add_chunk();
        }
        let slot = self.free;
        match std::mem::replace(self.slot_mut(slot), Slot::Used(entry)) {
            Slot::Free { next } => self.free = next,
            Slot::Used(_) => panic!("slot {slot} is on the free list and in use"),
        }
        slot
    }

    /// Takes the entry out of a used slot, which is free from then on.
    pub(super) fn remove(&mut self, slot: u32) -> Box<[u8]> {
        let next = self.free;
        match std::mem::replace(self.slot_mut(slot), Slot::Free { next }) {
            Slot::Used(entry) => {
                self.free = slot;
                entry
            }
            Slot::Free { .. } => panic!("slot {slot} is freed twice"),
        }
    }

    /// Every entry with its slot, in the order of slots.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &[u8])> {
        (0..self.slot_count()).filter_map(|slot| Some((slot, self.get(slot)?)))
    }

    /// Bytes held besides the entries.
    pub(super) fn memory_bytes(&self) -> u64 {
        let chunks = self.chunks.len() * size_of::<[Slot; CHUNK_SLOTS]>();
        (chunks + self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    /// Panics unless the free list holds what is not used.
    pub(super) fn invariants(&self) {
        let mut free_count = 0;
        let mut slot = self.free;
        while slot != NO_SLOT {
            free_count += 1;
            assert!(free_count <= self.slot_count(), "the free list runs in a circle");
            slot = match self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS] {
                Slot::Free { next } => next,
                Slot::Used(_) => panic!("slot {slot} is on the free list and in use"),
            };
        }
        let used_count = self.entries().count() as u32;
        assert_eq!(free_count, self.slot_count() - used_count, "a free slot is not on the free list");
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS]
    }

    /// Adds a chunk whose slots are used in rising order, so that a loaded keyspace is scanned as it came.
    fn add_chunk(&mut self) {
        let first = self.chunks.len() * CHUNK_SLOTS;
        let end = u32::try_from(first + CHUNK_SLOTS).expect("a keyspace holds at most 2^32 - 1024 entries");
        let link = |slot| Slot::Free { next: if slot + 1 == end { self.free } else { slot + 1 } };
        let slots: Box<[Slot]> = (first as u32..end).map(link).collect();
        self.chunks.push(slots.try_into().ok().expect("a chunk has CHUNK_SLOTS slots"));
        self.free = first as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32) -> Box<[u8]> {
        number.to_be_bytes().into()
    }

    #[test]
    fn slots_are_given_out_in_rising_order_and_used_again() {
        let mut slab = Slab::new();
        assert_eq!((slab.slot_count(), slab.get(0)), (0, None));
        for number in 0..1500 {
            assert_eq!(slab.insert(entry(number)), number);
        }
        assert_eq!(slab.slot_count(), 2048);
        assert_eq!(slab.remove(7), entry(7));
        assert_eq!(slab.remove(1030), entry(1030));
        slab.invariants();
        assert_eq!(slab.get(7), None);
        assert_eq!(slab.insert(entry(1)), 1030);
        assert_eq!(slab.insert(entry(2)), 7);
        assert_eq!(slab.insert(entry(3)), 1500);
        assert_eq!(slab.get(7), Some(&entry(2)[..]));
        assert_eq!(slab.get(4096), None);
        slab.invariants();
    }

    #[test]
    fn an_entry_does_not_move_while_others_come_and_go() {
        let mut slab = Slab::new();
        let slot = slab.insert(entry(42));
        let at = slab.get(slot).unwrap().as_ptr();
        let others: Vec<u32> = (0..5000).map(|number| slab.insert(entry(number))).collect();
        others.iter().for_each(|&other| drop(slab.remove(other)));
        assert_eq!(slab.get(slot).unwrap().as_ptr(), at);
        assert_eq!(slab.entries().collect::<Vec<_>>(), [(slot, &entry(42)[..])]);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut slab = Slab::new();
        let slot = slab.insert(entry(1));
        slab.remove(slot);
        slab.remove(slot);
    }
}
