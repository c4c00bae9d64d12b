//! The frame buffer under random chunking and mutation.

use kvstore::limits::{FRAME_HEADER_SIZE, INPUT_BUFFER_SIZE};
use kvstore::wire::{FrameBuffer, MessageType, begin_frame, end_frame};
use proptest::prelude::*;

use crate::check_frames::check_frames;

fn stream(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in bodies {
        let start = begin_frame(&mut bytes, MessageType::Put);
        bytes.extend_from_slice(body);
        end_frame(&mut bytes, start);
    }
    bytes
}

/// Mostly small bodies, some that just fit the first buffer, some far beyond it.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let around_the_buffer = INPUT_BUFFER_SIZE - 16..INPUT_BUFFER_SIZE + 16;
    let size = prop_oneof![8 => 0..200_usize, 1 => around_the_buffer, 1 => 0..300_000_usize];
    (size, any::<u8>()).prop_map(|(size, byte)| (0..size).map(|at| byte.wrapping_add(at as u8)).collect())
}

fn bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(body(), 0..12)
}

fn chunks() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![4 => 1..9_usize, 2 => 1..2_000_usize, 1 => Just(usize::MAX)];
    prop::collection::vec(size, 1..20)
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip {
        at: prop::sample::Index,
        bit: u8,
    },
    Truncate {
        at: prop::sample::Index,
    },
    Insert {
        at: prop::sample::Index,
        bytes: Vec<u8>,
    },
    Remove {
        at: prop::sample::Index,
        count: usize,
    },
    /// The length field of some frame says this.
    Length {
        frame: prop::sample::Index,
        len: u32,
    },
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let bytes = prop::collection::vec(any::<u8>(), 1..10);
    let len =
        prop_oneof![Just(0), Just(1), Just(0x00ff_ffff), Just(0x0100_0000), Just(u32::MAX), any::<u32>()];
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip { at, bit }),
        at().prop_map(|at| Mutation::Truncate { at }),
        (at(), bytes).prop_map(|(at, bytes)| Mutation::Insert { at, bytes }),
        (at(), 1..10_usize).prop_map(|(at, count)| Mutation::Remove { at, count }),
        (at(), len).prop_map(|(frame, len)| Mutation::Length { frame, len }),
    ]
}

fn mutate(bytes: &mut Vec<u8>, bodies: &[Vec<u8>], mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    let size = bytes.len();
    match mutation {
        Mutation::Flip { at, bit } => bytes[at.index(size)] ^= 1 << bit,
        Mutation::Truncate { at } => bytes.truncate(at.index(size)),
        Mutation::Insert { at, bytes: more } => {
            let at = at.index(size);
            bytes.splice(at..at, more.iter().copied()).for_each(drop);
        }
        Mutation::Remove { at, count } => {
            let at = at.index(size);
            bytes.drain(at..(at + count).min(size)).for_each(drop);
        }
        Mutation::Length { frame, len } if !bodies.is_empty() => {
            let before = &bodies[..frame.index(bodies.len())];
            let at: usize = before.iter().map(|body| FRAME_HEADER_SIZE + body.len()).sum();
            if let Some(field) = bytes.get_mut(at..at + 4) {
                field.copy_from_slice(&len.to_be_bytes());
            }
        }
        Mutation::Length { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_chunking_gives_exactly_the_frames_that_were_written(bodies in bodies(), chunks in chunks()) {
        check_frames(&chunks, &stream(&bodies));
    }

    #[test]
    fn a_mutated_stream_gives_what_a_slow_parser_finds_in_it_and_then_a_sticky_reason(
        bodies in bodies(),
        mutations in prop::collection::vec(mutation(), 1..4),
        chunks in chunks(),
    ) {
        let mut bytes = stream(&bodies);
        mutations.iter().for_each(|mutation| mutate(&mut bytes, &bodies, mutation));
        check_frames(&chunks, &bytes);
    }

    #[test]
    fn a_discarded_frame_costs_no_memory_and_no_other_frame(
        before in prop::collection::vec(body(), 0..3),
        size in INPUT_BUFFER_SIZE..400_000,
        arrived in 4..INPUT_BUFFER_SIZE,
        behind in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..5),
        chunk in 1..3_000_usize,
    ) {
        let mut buffer = FrameBuffer::new();
        let feed = |buffer: &mut FrameBuffer, mut bytes: &[u8]| {
            let mut seen = Vec::new();
            while !bytes.is_empty() {
                let space = buffer.space();
                let size = space.len().min(bytes.len()).min(chunk);
                space[..size].copy_from_slice(&bytes[..size]);
                buffer.filled(size);
                bytes = &bytes[size..];
                while let Some(frame) = buffer.next_frame().expect("the stream is valid") {
                    seen.push(frame.body.to_vec());
                }
            }
            seen
        };
        prop_assert_eq!(&feed(&mut buffer, &stream(&before)), &before);
        buffer.shrink();
        let large = stream(&[vec![7; size]]);
        // As the loop does: the frame is known by its first bytes, and there is no memory for the rest of it.
        let here = arrived.min(buffer.space().len());
        buffer.space()[..here].copy_from_slice(&large[..here]);
        buffer.filled(here);
        prop_assert!(buffer.next_frame().expect("the stream is valid").is_none());
        buffer.discard_frame();
        prop_assert!(feed(&mut buffer, &large[here..]).is_empty());
        prop_assert!(buffer.capacity() <= INPUT_BUFFER_SIZE);
        prop_assert_eq!(&feed(&mut buffer, &stream(&behind)), &behind);
    }
}
