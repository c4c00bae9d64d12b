//! Where entries are, by slot: 8 bytes each, in chunks of fixed size that are never moved and never given back.
//!
//! A slot's number is valid as long as its entry lives, and a scan from slot 0 to [`Slab::slot_count`] that
//! is interrupted by writes meets every entry that lived through all of it exactly once. Growing allocates
//! one chunk (8 KiB) and, rarely, doubles the list of chunks (80 KiB at ten million entries).
//!
//! An entry of up to [`PIECE_SIZE_MAX`] bytes lies in the arena, and its slot holds where and how long it is; a
//! larger one is boxed. A slot as an enum over `Box<[u8]>` would take 16 bytes, and malloc 8 to 23 besides.

use super::arena::{Arena, PIECE_SIZE_MAX, PLACE_BITS, Place};
use super::boxed::Boxed;
use super::entry;

/// Slots of a chunk: 8 KiB, two pages to touch when a chunk is begun.
const CHUNK_SLOTS: usize = 1024;

/// The end of the free list. Never the number of a slot.
const NO_SLOT: u32 = u32::MAX;

/// A [`Slot`], spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A link of the free list.
    Free { next: u32 },
    /// An entry in the arena.
    Small { place: Place, len: usize },
    /// An entry of its own, by its number among those.
    Large { number: u32 },
}

/// Two bits say what it is; then an entry in the arena has its length above its place.
#[derive(Clone, Copy)]
struct Slot(u64);

const KIND_SHIFT: u32 = 62;
const KIND_FREE: u64 = 0;
const KIND_SMALL: u64 = 1;
const KIND_LARGE: u64 = 2;

const _: () = assert!((PIECE_SIZE_MAX as u64) << PLACE_BITS < 1 << KIND_SHIFT, "a length fits between");

impl Slot {
    fn new(content: Content) -> Slot {
        let (kind, rest) = match content {
            Content::Free { next } => (KIND_FREE, u64::from(next)),
            Content::Small { place, len } => (KIND_SMALL, (len as u64) << PLACE_BITS | place.0),
            Content::Large { number } => (KIND_LARGE, u64::from(number)),
        };
        Slot(kind << KIND_SHIFT | rest)
    }

    #[inline]
    fn content(self) -> Content {
        let rest = self.0 & ((1 << KIND_SHIFT) - 1);
        match self.0 >> KIND_SHIFT {
            KIND_FREE => Content::Free { next: rest as u32 },
            KIND_SMALL => Content::Small {
                place: Place(rest & ((1 << PLACE_BITS) - 1)),
                len: (rest >> PLACE_BITS) as usize,
            },
            _ => Content::Large { number: rest as u32 },
        }
    }
}

type Chunk = Box<[Slot; CHUNK_SLOTS]>;

/// Entries by slot number.
///
/// Invariants: every free slot is on the free list exactly once, no used one is; every piece of the arena and every
/// box belongs to one slot.
pub(super) struct Slab {
    chunks: Vec<Chunk>,
    /// Last freed, first used again: that slot's cache line is the warmest.
    free: u32,
    arena: Arena,
    boxed: Boxed,
}

impl Slab {
    pub(super) fn new() -> Slab {
        Slab { chunks: Vec::new(), free: NO_SLOT, arena: Arena::new(), boxed: Boxed::new() }
    }

    /// Room for entries of about so many bytes, while there is no slot yet.
    pub(super) fn reserve(&mut self, bytes: u64) {
        if self.chunks.is_empty() {
            self.arena = Arena::with_room_for(bytes);
        }
    }

    /// Slots there are, used or free. Never falls.
    pub(super) fn slot_count(&self) -> u32 {
        // Checked when a chunk was added.
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// The entry in a slot; `None` if the slot is free or does not exist.
    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&[u8]> {
        match self.chunks.get(slot as usize / CHUNK_SLOTS)?[slot as usize % CHUNK_SLOTS].content() {
            Content::Small { place, len } => Some(self.arena.get(place, len)),
            Content::Large { number } => Some(self.boxed.get(number)),
            Content::Free { .. } => None,
        }
    }

    /// The entry in a slot that is in use.
    pub(super) fn used(&self, slot: u32) -> &[u8] {
        self.get(slot).unwrap_or_else(|| panic!("slot {slot} holds no entry"))
    }

    /// The same, to be damaged by a test.
    pub(super) fn used_mut(&mut self, slot: u32) -> &mut [u8] {
        match self.slot_mut(slot).content() {
            Content::Small { place, len } => self.arena.get_mut(place, len),
            Content::Large { number } => self.boxed.get_mut(number),
            Content::Free { .. } => panic!("slot {slot} holds no entry"),
        }
    }

    /// Puts an entry into a free slot.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) -> u32 {
        if self.free == NO_SLOT {
            self.add_chunk();
        }
        let slot = self.free;
        let Content::Free { next } = self.slot_mut(slot).content() else {
            panic!("slot {slot} is on the free list and in use")
        };
        self.free = next;
        let content = self.store(key, value);
        *self.slot_mut(slot) = Slot::new(content);
        slot
    }

    /// Puts another value under the key of the entry in a used slot. Values that are counters or states of (nearly)
    /// fixed size stay where they are.
    pub(super) fn replace(&mut self, slot: u32, key: &[u8], value: &[u8]) {
        let content = self.slot_mut(slot).content();
        let new_len = entry::size(key, value);
        match content {
            Content::Small { place, len } if len == new_len => {
                entry::overwrite(self.arena.get_mut(place, len), value);
            }
            Content::Small { place, len } if new_len <= PIECE_SIZE_MAX && Arena::same_piece(len, new_len) => {
                entry::overwrite(self.arena.get_mut(place, new_len), value);
                *self.slot_mut(slot) = Slot::new(Content::Small { place, len: new_len });
            }
            Content::Large { number } if self.boxed.get(number).len() == new_len => {
                entry::overwrite(self.boxed.get_mut(number), value);
            }
            _ => {
                self.discard(slot, content);
                let content = self.store(key, value);
                *self.slot_mut(slot) = Slot::new(content);
            }
        }
    }

    /// Forgets the entry in a used slot, which is free from then on.
    pub(super) fn remove(&mut self, slot: u32) {
        let content = self.slot_mut(slot).content();
        self.discard(slot, content);
        *self.slot_mut(slot) = Slot::new(Content::Free { next: self.free });
        self.free = slot;
    }

    /// Every entry with its slot, in the order of slots.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &[u8])> {
        (0..self.slot_count()).filter_map(|slot| Some((slot, self.get(slot)?)))
    }

    /// Bytes held, for slots and entries.
    pub(super) fn memory_bytes(&self) -> u64 {
        let chunks = self.chunks.len() * size_of::<[Slot; CHUNK_SLOTS]>();
        let slots = (chunks + self.chunks.capacity() * size_of::<Chunk>()) as u64;
        slots + self.arena.memory_bytes() + self.boxed.memory_bytes()
    }

    /// Panics unless the free list holds what is not used, and memory is held for what is.
    pub(super) fn invariants(&self) {
        let mut free_count = 0;
        let mut slot = self.free;
        while slot != NO_SLOT {
            free_count += 1;
            assert!(free_count <= self.slot_count(), "the free list runs in a circle");
            slot = match self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS].content() {
                Content::Free { next } => next,
                _ => panic!("slot {slot} is on the free list and in use"),
            };
        }
        let [mut small_count, mut large_count] = [0, 0];
        for content in self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|slot| slot.content()) {
            match content {
                Content::Free { .. } => {}
                Content::Small { .. } => small_count += 1,
                Content::Large { .. } => large_count += 1,
            }
        }
        let used_count = small_count + large_count;
        assert_eq!(free_count, self.slot_count() - used_count, "a free slot is not on the free list");
        self.arena.invariants(small_count as usize);
        self.boxed.invariants(large_count);
    }

    /// Finds memory for an entry and writes it there.
    fn store(&mut self, key: &[u8], value: &[u8]) -> Content {
        let len = entry::size(key, value);
        if len > PIECE_SIZE_MAX {
            return Content::Large { number: self.boxed.insert(entry::encode(key, value)) };
        }
        let place = self.arena.allocate(len);
        entry::encode_into(self.arena.get_mut(place, len), key, value);
        Content::Small { place, len }
    }

    fn discard(&mut self, slot: u32, content: Content) {
        match content {
            Content::Small { place, len } => self.arena.free(place, len),
            Content::Large { number } => self.boxed.remove(number),
            Content::Free { .. } => panic!("slot {slot} is freed twice"),
        }
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot {
        &mut self.chunks[slot as usize / CHUNK_SLOTS][slot as usize % CHUNK_SLOTS]
    }

    /// Adds a chunk whose slots are used in rising order, so that a loaded keyspace is scanned as it came.
    fn add_chunk(&mut self) {
        let first = self.chunks.len() * CHUNK_SLOTS;
        let end = u32::try_from(first + CHUNK_SLOTS).expect("a keyspace holds at most 2^32 - 1024 entries");
        let next = |slot| if slot + 1 == end { self.free } else { slot + 1 };
        let link = |slot| Slot::new(Content::Free { next: next(slot) });
        let slots: Box<[Slot]> = (first as u32..end).map(link).collect();
        self.chunks.push(slots.try_into().ok().expect("a chunk has CHUNK_SLOTS slots"));
        self.free = first as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> [u8; 4] {
        number.to_be_bytes()
    }

    fn insert(slab: &mut Slab, number: u32) -> u32 {
        slab.insert(&key(number), b"")
    }

    #[test]
    fn contents_survive_being_packed() {
        for content in [
            Content::Free { next: NO_SLOT },
            Content::Free { next: 0 },
            Content::Small { place: Place(0), len: 3 },
            Content::Small { place: Place((1 << PLACE_BITS) - 1), len: PIECE_SIZE_MAX },
            Content::Large { number: u32::MAX },
        ] {
            assert_eq!(Slot::new(content).content(), content);
        }
    }

    #[test]
    fn slots_are_given_out_in_rising_order_and_used_again() {
        let mut slab = Slab::new();
        assert_eq!((slab.slot_count(), slab.get(0)), (0, None));
        for number in 0..1500 {
            assert_eq!(insert(&mut slab, number), number);
        }
        assert_eq!(slab.slot_count(), 2048);
        slab.remove(7);
        slab.remove(1030);
        slab.invariants();
        assert_eq!(slab.get(7), None);
        assert_eq!(insert(&mut slab, 1), 1030);
        assert_eq!(insert(&mut slab, 2), 7);
        assert_eq!(insert(&mut slab, 3), 1500);
        assert_eq!(slab.get(7), Some(&*entry::encode(&key(2), b"")));
        assert_eq!(slab.get(4096), None);
        slab.invariants();
    }

    #[test]
    fn an_entry_does_not_move_while_others_come_and_go() {
        for size in [1, 100, 5000] {
            let mut slab = Slab::new();
            let slot = slab.insert(b"stays", &vec![42; size]);
            let at = slab.used(slot).as_ptr();
            let others: Vec<u32> = (0..5000).map(|number| insert(&mut slab, number)).collect();
            others.iter().for_each(|&other| slab.remove(other));
            assert_eq!(slab.used(slot).as_ptr(), at);
            assert_eq!(slab.entries().map(|(slot, _)| slot).collect::<Vec<_>>(), [slot]);
        }
    }

    #[test]
    fn a_value_of_any_size_takes_the_place_of_any_other() {
        let sizes = [0, 1, 6, 7, 8, 500, PIECE_SIZE_MAX - 5, PIECE_SIZE_MAX - 4, 5000, 100_000];
        for (old, new) in sizes.iter().flat_map(|&old| sizes.map(|new| (old, new))) {
            let mut slab = Slab::new();
            let slot = slab.insert(b"key", &vec![1; old]);
            slab.insert(b"other", &vec![1; old]);
            slab.replace(slot, b"key", &vec![2; new]);
            assert_eq!(slab.used(slot), &*entry::encode(b"key", &vec![2; new]), "{old} to {new}");
            slab.invariants();
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut slab = Slab::new();
        let slot = insert(&mut slab, 1);
        slab.remove(slot);
        slab.remove(slot);
    }
}
