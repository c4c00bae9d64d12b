//! Memory for small entries: pieces in steps of 8 bytes, cut from chunks of 64 KiB.
//!
//! A general allocator puts 8 bytes in front of each piece and rounds up to 16: an entry of 82 bytes takes 96 there
//! and 88 here. It names a piece by a pointer of 8 bytes and needs a length of 8 more beside it; here a [`Place`] of
//! 40 bits is enough, and the length fits behind it (see `slab`).
//!
//! All pieces of a chunk have the same size, so that a freed one is the next one given out, and nothing is ever
//! searched or joined. A chunk whose last piece was freed serves any size again. So what deletions leave behind is at
//! worst chunks that are used in part, by sizes that nobody asks for any more.
//!
//! A piece never moves. Growing allocates one chunk and, rarely, doubles the two lists of chunks (320 KiB together
//! at ten million entries of 88 bytes). A load has the first chunks in one piece of memory (see `bulk`). Left out:
//! chunks are given back by dropping the arena alone.

use super::bulk::Bulk;

/// Pieces are multiples of it.
const STEP: usize = 8;
/// Bytes of the largest piece. Above it what malloc adds is at most 1.2 %; what is left at the end of a chunk of pieces
/// of this size is 3 %, and of twice the size 6 %.
pub(super) const PIECE_SIZE_MAX: usize = 2048;
/// Bytes of a chunk: below what malloc maps apart, and so many that the list of chunks stays in the L2 cache.
const CHUNK_SIZE: usize = 64 << 10;
const CHUNK_STEPS: usize = CHUNK_SIZE / STEP;
const CLASSES: usize = PIECE_SIZE_MAX / STEP;

/// No chunk, or no piece of one.
const NO_CHUNK: u32 = u32::MAX;
const NO_PIECE: u16 = u16::MAX;

/// Bits of a [`Place`]: 8 TiB of pieces.
pub(super) const PLACE_BITS: u32 = 40;

const CHUNKS_MAX: usize = (1 << PLACE_BITS) / CHUNK_STEPS;

const _: () = {
    assert!(CHUNK_STEPS < NO_PIECE as usize && CHUNK_STEPS.is_power_of_two());
    assert!(CHUNKS_MAX < NO_CHUNK as usize);
};

/// Where a piece is: the number of its chunk, then the step in it where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub u64);

impl Place {
    fn chunk(self) -> usize {
        (self.0 / CHUNK_STEPS as u64) as usize
    }

    fn step(self) -> usize {
        self.0 as usize % CHUNK_STEPS
    }
}

/// What is known about a chunk, apart from its bytes, which a lookup needs without it.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// Steps of its pieces.
    piece_steps: u16,
    /// Pieces given out.
    used: u16,
    /// The piece freed last, whose first bytes name the one freed before it.
    freed: u16,
    /// Where the part begins that was never given out.
    fresh: u16,
    /// Neighbours in the list of chunks with room of its class, or (`next` alone) in the list of empty chunks.
    previous: u32,
    next: u32,
}

impl Chunk {
    fn has_room(&self) -> bool {
        self.freed != NO_PIECE || self.fresh as usize + self.piece_steps as usize <= CHUNK_STEPS
    }
}

/// Invariants: a chunk with pieces given out and room for more is in the list of its class, one without any piece in
/// the list of empty ones, and a full one in none.
pub(super) struct Arena {
    /// The first chunks, whole ones, before and after they are used.
    bulk: Bulk,
    /// The chunks behind them.
    bytes: Vec<Box<[u8; CHUNK_SIZE]>>,
    chunks: Vec<Chunk>,
    /// The first chunk with room for pieces of so many steps less one.
    with_room: [u32; CLASSES],
    empty: u32,
}

impl Arena {
    pub(super) fn new() -> Arena {
        Arena::with_room_for(0)
    }

    /// An arena whose first chunks, for about so many bytes, lie in one piece of memory.
    pub(super) fn with_room_for(bytes: u64) -> Arena {
        let chunks = usize::try_from(bytes.div_ceil(CHUNK_SIZE as u64)).unwrap_or(0).min(CHUNKS_MAX);
        Arena {
            bulk: Bulk::new(chunks * CHUNK_SIZE),
            bytes: Vec::new(),
            chunks: Vec::new(),
            with_room: [NO_CHUNK; CLASSES],
            empty: NO_CHUNK,
        }
    }

    /// Whether pieces for so many bytes are the same.
    pub(super) fn same_piece(one_len: usize, other_len: usize) -> bool {
        steps(one_len) == steps(other_len)
    }

    /// The first `len` bytes of a piece.
    #[inline]
    pub(super) fn get(&self, place: Place, len: usize) -> &[u8] {
        let (number, start) = (place.chunk(), place.step() * STEP);
        match number.checked_sub(self.bulk_chunks()) {
            None => &self.bulk[number * CHUNK_SIZE + start..][..len],
            Some(behind) => &self.bytes[behind][start..start + len],
        }
    }

    /// The first `len` bytes of a piece, to be written.
    pub(super) fn get_mut(&mut self, place: Place, len: usize) -> &mut [u8] {
        let (number, start) = (place.chunk(), place.step() * STEP);
        match number.checked_sub(self.bulk_chunks()) {
            None => &mut self.bulk[number * CHUNK_SIZE + start..][..len],
            Some(behind) => &mut self.bytes[behind][start..start + len],
        }
    }

    fn bulk_chunks(&self) -> usize {
        self.bulk.len() / CHUNK_SIZE
    }

    /// A piece for `len` bytes, which are whatever they were.
    pub(super) fn allocate(&mut self, len: usize) -> Place {
        let piece_steps = steps(len);
        let class = piece_steps - 1;
        if self.with_room[class] == NO_CHUNK {
            self.add_chunk(piece_steps);
        }
        let number = self.with_room[class];
        let chunk = &mut self.chunks[number as usize];
        let step = if chunk.freed == NO_PIECE {
            let step = chunk.fresh;
            chunk.fresh += piece_steps as u16;
            step
        } else {
            let step = chunk.freed;
            let link = self.get(place_of(number, step), 2);
            let freed = u16::from_be_bytes([link[0], link[1]]);
            self.chunks[number as usize].freed = freed;
            step
        };
        let chunk = &mut self.chunks[number as usize];
        chunk.used += 1;
        if !chunk.has_room() {
            self.unlink(number);
        }
        place_of(number, step)
    }

    /// Takes back a piece for `len` bytes.
    pub(super) fn free(&mut self, place: Place, len: usize) {
        let number = place.chunk();
        let chunk = &mut self.chunks[number];
        assert!(
            chunk.used > 0 && chunk.piece_steps as usize == steps(len),
            "{place:?} is no piece of {len} bytes"
        );
        let had_room = chunk.has_room();
        let link = chunk.freed.to_be_bytes();
        chunk.freed = place.step() as u16;
        chunk.used -= 1;
        let is_empty = chunk.used == 0;
        self.get_mut(place, link.len()).copy_from_slice(&link);
        match (had_room, is_empty) {
            (false, false) => self.link(number as u32),
            (true, true) => {
                self.unlink(number as u32);
                self.put_aside(number as u32);
            }
            (false, true) => self.put_aside(number as u32),
            (true, false) => {}
        }
    }

    /// Bytes held, used or not. What was never used of the room for a load is no memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let lists = self.bytes.capacity() * size_of::<Box<[u8; CHUNK_SIZE]>>()
            + self.chunks.capacity() * size_of::<Chunk>();
        (self.chunks.len() * CHUNK_SIZE + lists) as u64
    }

    /// Panics unless the lists hold what they should and `used` pieces are given out.
    pub(super) fn invariants(&self, used: usize) {
        assert_eq!(self.chunks.iter().map(|chunk| usize::from(chunk.used)).sum::<usize>(), used);
        let mut listed = vec![false; self.chunks.len()];
        let mut list = |first: u32, check: &dyn Fn(&Chunk)| {
            let mut number = first;
            while number != NO_CHUNK {
                let chunk = &self.chunks[number as usize];
                check(chunk);
                assert!(
                    !std::mem::replace(&mut listed[number as usize], true),
                    "chunk {number} is listed twice"
                );
                number = chunk.next;
            }
        };
        list(self.empty, &|chunk| assert_eq!(chunk.used, 0));
        for (class, &first) in self.with_room.iter().enumerate() {
            list(first, &|chunk| {
                assert!(chunk.has_room() && chunk.used > 0, "{chunk:?}");
                assert_eq!(usize::from(chunk.piece_steps), class + 1);
            });
        }
        for (chunk, listed) in self.chunks.iter().zip(listed) {
            assert!(listed || !chunk.has_room(), "{chunk:?} is in no list");
        }
    }

    /// Makes a chunk without pieces the first with room for pieces of this size.
    fn add_chunk(&mut self, piece_steps: usize) {
        let number = self.empty;
        let number = if number == NO_CHUNK {
            assert!(self.chunks.len() < CHUNKS_MAX, "a keyspace holds at most 8 TiB of small entries");
            if self.chunks.len() >= self.bulk_chunks() {
                let chunk: Box<[u8]> = vec![0; CHUNK_SIZE].into();
                self.bytes.push(chunk.try_into().expect("a chunk has CHUNK_SIZE bytes"));
            }
            self.chunks.push(Chunk {
                piece_steps: 0,
                used: 0,
                freed: NO_PIECE,
                fresh: 0,
                previous: NO_CHUNK,
                next: NO_CHUNK,
            });
            self.chunks.len() as u32 - 1
        } else {
            self.empty = self.chunks[number as usize].next;
            number
        };
        let chunk = &mut self.chunks[number as usize];
        (chunk.piece_steps, chunk.freed, chunk.fresh) = (piece_steps as u16, NO_PIECE, 0);
        self.link(number);
    }

    fn put_aside(&mut self, number: u32) {
        self.chunks[number as usize].next = self.empty;
        self.empty = number;
    }

    fn link(&mut self, number: u32) {
        let chunk = &mut self.chunks[number as usize];
        let first = &mut self.with_room[chunk.piece_steps as usize - 1];
        (chunk.previous, chunk.next) = (NO_CHUNK, *first);
        let next = std::mem::replace(first, number);
        if next != NO_CHUNK {
            self.chunks[next as usize].previous = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let Chunk { previous, next, piece_steps, .. } = self.chunks[number as usize];
        if next != NO_CHUNK {
            self.chunks[next as usize].previous = previous;
        }
        if previous == NO_CHUNK {
            self.with_room[piece_steps as usize - 1] = next;
        } else {
            self.chunks[previous as usize].next = next;
        }
    }
}

/// The piece that begins at this step of a chunk.
fn place_of(number: u32, step: u16) -> Place {
    Place(u64::from(number) * CHUNK_STEPS as u64 + u64::from(step))
}

/// Steps of the piece for so many bytes.
fn steps(len: usize) -> usize {
    debug_assert!((1..=PIECE_SIZE_MAX).contains(&len), "{len} bytes are no small entry");
    len.div_ceil(STEP)
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;

    #[test]
    fn pieces_never_overlap_and_never_move_whatever_comes_and_goes() {
        // The second arena has its first chunks in one piece, and some of the later ones behind them.
        [0, 40 * CHUNK_SIZE as u64].into_iter().for_each(come_and_go);
    }

    fn come_and_go(room_bytes: u64) {
        let mut random = numbers();
        let mut arena = Arena::with_room_for(room_bytes);
        let mut pieces: Vec<(Place, usize, u8)> = Vec::new();
        for round in 0..60_000 {
            // Grows to some thousand pieces and shrinks to none, three times.
            let grows = round % 20_000 < 10_000;
            if pieces.is_empty() || random(10) < if grows { 8 } else { 2 } {
                let len = [1, 8, 9, 88, 500, 1000, PIECE_SIZE_MAX][random(7)];
                let place = arena.allocate(len);
                arena.get_mut(place, len).fill(round as u8);
                pieces.push((place, len, round as u8));
            } else {
                let (place, len, byte) = pieces.swap_remove(random(pieces.len()));
                assert!(arena.get(place, len).iter().all(|&found| found == byte));
                arena.free(place, len);
            }
            if round % 1000 == 0 {
                arena.invariants(pieces.len());
            }
        }
        for (place, len, byte) in pieces {
            assert!(arena.get(place, len).iter().all(|&found| found == byte));
            arena.free(place, len);
        }
        arena.invariants(0);
        assert!(arena.chunks.len() > 50 && arena.bytes.len() + arena.bulk_chunks() == arena.chunks.len());
    }

    #[test]
    fn room_for_a_load_is_no_memory_before_it_is_used() {
        let mut arena = Arena::with_room_for(10_000_000);
        assert_eq!((arena.memory_bytes(), arena.bulk_chunks()), (0, 153));
        (0..1000).for_each(|_| _ = arena.allocate(PIECE_SIZE_MAX));
        arena.invariants(1000);
        assert!(arena.bytes.is_empty() && arena.memory_bytes() < 1000 * PIECE_SIZE_MAX as u64 * 11 / 10);
    }

    #[test]
    fn memory_of_one_size_serves_another_once_it_is_free() {
        let mut arena = Arena::new();
        let fill = |arena: &mut Arena, len: usize| -> Vec<Place> {
            (0..1_000_000 / len.next_multiple_of(STEP)).map(|_| arena.allocate(len)).collect()
        };
        let places = fill(&mut arena, 82);
        let held = arena.memory_bytes();
        assert!(held < 1_000_000 + 2 * CHUNK_SIZE as u64, "{held} bytes for 1,000,000");
        for len in [40, 1000, 82] {
            let others = fill(&mut arena, len);
            others.into_iter().for_each(|place| arena.free(place, len));
        }
        places.into_iter().for_each(|place| arena.free(place, 82));
        let twice = arena.memory_bytes();
        assert!(twice < 2 * held + CHUNK_SIZE as u64);
        for len in [8, 500, 1024, PIECE_SIZE_MAX] {
            let places = fill(&mut arena, len);
            arena.invariants(places.len());
            places.into_iter().for_each(|place| arena.free(place, len));
            assert_eq!(arena.memory_bytes(), twice, "what is free is used again");
        }
    }

    #[test]
    #[should_panic(expected = "is no piece of")]
    fn freeing_another_size_is_a_bug() {
        let mut arena = Arena::new();
        let place = arena.allocate(8);
        arena.free(place, 9);
    }
}
