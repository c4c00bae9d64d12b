//! Entries too large for the arena, each in an allocation of its own, by number.
//!
//! The list of them grows by chunks of 4 KiB that never move.

/// Slots of a chunk.
const CHUNK_SLOTS: usize = 256;

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
pub(super) struct Boxed {
    chunks: Vec<Chunk>,
    free: u32,
    /// What malloc takes for the entries.
    heap_bytes: u64,
}

impl Boxed {
    pub(super) fn new() -> Boxed {
        Boxed { chunks: Vec::new(), free: NO_SLOT, heap_bytes: 0 }
    }

    /// Slots there are, used or free.
    fn slot_count(&self) -> u32 {
        // Checked when a chunk was added.
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// The entry in a used slot.
    pub(super) fn get(&self, slot: u32) -> &[u8] {
        match &self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS] {
            Slot::Used(entry) => entry,
            Slot::Free { .. } => panic!("slot {slot} holds no entry"),
        }
    }

    /// The entry in a used slot, to be written over.
    pub(super) fn get_mut(&mut self, slot: u32) -> &mut [u8] {
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
        self.heap_bytes += heap_size(&entry);
        match std::mem::replace(self.slot_mut(slot), Slot::Used(entry)) {
            Slot::Free { next } => self.free = next,
            Slot::Used(_) => panic!("slot {slot} is on the free list and in use"),
        }
        slot
    }

    /// Drops the entry in a used slot, which is free from then on.
    pub(super) fn remove(&mut self, slot: u32) {
        let next = self.free;
        match std::mem::replace(self.slot_mut(slot), Slot::Free { next }) {
            Slot::Used(entry) => {
                self.free = slot;
                self.heap_bytes -= heap_size(&entry);
            }
            Slot::Free { .. } => panic!("slot {slot} is freed twice"),
        }
    }

    /// Bytes held, with what malloc adds.
    pub(super) fn memory_bytes(&self) -> u64 {
        let chunks = self.chunks.len() * size_of::<[Slot; CHUNK_SLOTS]>();
        self.heap_bytes + (chunks + self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    /// Panics unless the free list holds all but `used_count` slots.
    pub(super) fn invariants(&self, used_count: u32) {
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
        assert_eq!(free_count, self.slot_count() - used_count, "a free slot is not on the free list");
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS]
    }

    fn add_chunk(&mut self) {
        let first = self.chunks.len() * CHUNK_SLOTS;
        let end =
            u32::try_from(first + CHUNK_SLOTS).expect("there are at most as many as slots of the keyspace");
        let link = |slot| Slot::Free { next: if slot + 1 == end { self.free } else { slot + 1 } };
        let slots: Box<[Slot]> = (first as u32..end).map(link).collect();
        self.chunks.push(slots.try_into().ok().expect("a chunk has CHUNK_SLOTS slots"));
        self.free = first as u32;
    }
}

/// What malloc takes for an entry: 64-bit glibc puts 8 bytes in front, rounds up to 16 and gives at least 32.
/// (From 128 KiB on it may map whole pages; a page more or less does not show there.)
fn heap_size(entry: &[u8]) -> u64 {
    (entry.len() as u64 + 8).next_multiple_of(16).max(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32) -> Box<[u8]> {
        number.to_be_bytes().into()
    }

    #[test]
    fn what_is_freed_is_used_again_and_its_memory_given_back() {
        let mut boxed = Boxed::new();
        let slots: Vec<u32> = (0..1000).map(|number| boxed.insert(entry(number))).collect();
        let held = boxed.memory_bytes();
        assert_eq!(slots, (0..1000).collect::<Vec<_>>());
        boxed.remove(7);
        boxed.remove(900);
        boxed.invariants(998);
        assert_eq!(boxed.memory_bytes(), held - 2 * 32);
        assert_eq!((boxed.insert(entry(1)), boxed.insert(entry(2))), (900, 7));
        assert_eq!(
            (boxed.get(7), boxed.get(900), boxed.get(8)),
            (&entry(2)[..], &entry(1)[..], &entry(8)[..])
        );
        boxed.invariants(1000);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut boxed = Boxed::new();
        let slot = boxed.insert(entry(1));
        boxed.remove(slot);
        boxed.remove(slot);
    }
}
