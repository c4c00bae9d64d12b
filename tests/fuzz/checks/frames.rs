//! Bytes in chunks into a frame buffer, against the shortest parser there is.

use kvstore::limits::{FRAME_SIZE_MAX, INPUT_BUFFER_SIZE};
use kvstore::wire::FrameBuffer;

/// The frames of a stream, and whether it ends in one that cannot be.
fn reference(mut bytes: &[u8]) -> (Vec<(u8, &[u8])>, bool) {
    let mut frames = Vec::new();
    while let Some(len) = bytes.first_chunk::<4>() {
        let len = u32::from_be_bytes(*len) as usize;
        if !(1..=FRAME_SIZE_MAX).contains(&len) {
            return (frames, true);
        }
        let Some(frame) = bytes.get(4..4 + len) else { break };
        frames.push((frame[0], &frame[1..]));
        bytes = &bytes[4 + len..];
    }
    (frames, false)
}

/// Pushes `bytes` in chunks whose sizes are `chunks`, over and over, and compares all that comes out. Panics on
/// any difference, and on memory beyond the largest frame that was announced and allowed.
pub fn check_frames(chunks: &[usize], bytes: &[u8]) {
    let (expected, ends_invalid) = reference(bytes);
    let (mut buffer, mut seen, mut error) = (FrameBuffer::new(), 0, None);
    let (mut rest, mut allowed) = (bytes, INPUT_BUFFER_SIZE);
    let mut sizes = chunks.iter().map(|size| (*size).max(1)).cycle();
    while !rest.is_empty() {
        let space = buffer.space();
        assert!(!space.is_empty(), "with every complete frame taken there is room to read into");
        let size = sizes.next().unwrap_or(usize::MAX).min(space.len()).min(rest.len());
        space[..size].copy_from_slice(&rest[..size]);
        buffer.filled(size);
        rest = &rest[size..];
        let had_frame = buffer.has_frame();
        let before = (seen, error.is_some());
        loop {
            match buffer.next_frame() {
                Ok(Some(frame)) => {
                    assert_eq!(Some(&(frame.type_byte, frame.body)), expected.get(seen), "frame {seen}");
                    seen += 1;
                }
                Ok(None) => break,
                Err(new) => {
                    assert!(error.is_none_or(|old| old == new), "the reason is sticky");
                    error = Some(new);
                    break;
                }
            }
        }
        assert_eq!(
            had_frame,
            seen > before.0 || error.is_some(),
            "has_frame says whether there is something to take"
        );
        assert!(!before.1 || seen == before.0, "nothing comes out behind an invalid frame");
        allowed = allowed.max(buffer.frame_size().unwrap_or(0));
        assert!(buffer.capacity() <= allowed, "{} bytes held, {allowed} announced", buffer.capacity());
        if error.is_some() && rest.len() > INPUT_BUFFER_SIZE {
            // The node closes such a connection; the rest only has to find the reason unchanged.
            rest = &rest[rest.len() - 64..];
        }
        if error.is_some() && buffer.space().is_empty() {
            break;
        }
    }
    assert_eq!((seen, error.is_some()), (expected.len(), ends_invalid), "every frame, and nothing else");
}

/// The check of one input: how many chunk sizes there are, the chunk sizes, then the stream.
#[allow(dead_code, reason = "tests/wire/frames.rs makes its own chunks")]
pub fn check_input(input: &[u8]) {
    let Some((count, rest)) = input.split_first() else { return };
    let (sizes, bytes) = rest.split_at(usize::from(*count).min(rest.len()));
    let chunks: Vec<usize> = sizes.iter().map(|size| usize::from(*size) * usize::from(*size)).collect();
    check_frames(&chunks, bytes);
}
