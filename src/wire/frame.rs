//! Frames in a byte stream.
//!
//! A [`FrameBuffer`] is an object that bytes are pushed into and frames come out of; it does no I/O. Once
//! the stream is invalid it stays so: the reason is sticky, and nothing more comes out.

use std::fmt;

use crate::limits::{FRAME_HEADER_SIZE, FRAME_SIZE_MAX, INPUT_BUFFER_SIZE};

/// One complete frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type byte, not yet looked up.
    pub type_byte: u8,
    /// What follows it.
    pub body: &'a [u8],
}

/// Why a byte stream is not a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameError {
    /// The first bytes of the frame.
    pub start: [u8; 8],
    /// How many of them had arrived.
    pub start_size: usize,
}

impl FrameError {
    /// The length field that is out of bounds.
    pub fn len_field(&self) -> u32 {
        u32::from_be_bytes([self.start[0], self.start[1], self.start[2], self.start[3]])
    }

    fn looks_like(&self) -> &'static str {
        let start = &self.start[..self.start_size];
        let http = ["GET ", "POST", "PUT ", "HEAD", "DELE", "OPTI", "PATC", "CONN", "PRI "];
        if http.iter().any(|verb| start.starts_with(verb.as_bytes())) {
            "an HTTP request"
        } else if start.starts_with(&[0x16, 0x03]) {
            "a TLS hello"
        } else if start.starts_with(b"SSH-") {
            "an SSH client"
        } else if start.first() == Some(&b'*') {
            "a Redis command"
        } else if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
            "text"
        } else {
            "bytes of another protocol"
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.len_field();
        if len == 0 {
            return f.write_str("frame length 0 (at least 1)");
        }
        let start = self.start[..self.start_size].escape_ascii();
        write!(
            f,
            "frame length {len} is above {FRAME_SIZE_MAX}; it looks like {}: \"{start}\"",
            self.looks_like()
        )
    }
}

/// Collects bytes and gives out frames.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes offered to a read at least, once the buffer is empty.
    read_size: usize,
    head: usize,
    tail: usize,
    invalid: Option<FrameError>,
    /// Bytes still to come of a frame that is thrown away.
    discard: usize,
}

impl Default for FrameBuffer {
    fn default() -> FrameBuffer {
        FrameBuffer::new()
    }
}

impl FrameBuffer {
    /// An empty buffer that has allocated nothing.
    pub fn new() -> FrameBuffer {
        FrameBuffer {
            bytes: Vec::new(),
            read_size: INPUT_BUFFER_SIZE,
            head: 0,
            tail: 0,
            invalid: None,
            discard: 0,
        }
    }

    /// The other side sends in bulk: offer larger reads from now on.
    pub fn set_read_size(&mut self, read_size: usize) {
        self.read_size = read_size;
    }

    /// Room to read into: at least what the frame under way still needs, and never more than one frame
    /// and one first-size buffer beyond it. Follow with [`FrameBuffer::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
        let wanted = self.frame_size().unwrap_or(0).max(self.read_size);
        if self.bytes.len() - self.head < wanted || self.tail == self.bytes.len() {
            self.bytes.copy_within(self.head..self.tail, 0);
            (self.head, self.tail) = (0, self.tail - self.head);
            if self.bytes.len() < wanted {
                // Fresh zeros come from the system untouched: bytes announced and not sent take no memory.
                let mut grown = vec![0; wanted];
                grown[..self.tail].copy_from_slice(&self.bytes[..self.tail]);
                self.bytes = grown;
            }
        }
        &mut self.bytes[self.tail..]
    }

    /// Says that `size` bytes were read into [`FrameBuffer::space`].
    pub fn filled(&mut self, size: usize) {
        assert!(size <= self.bytes.len() - self.tail, "more bytes filled than there was room");
        self.tail += size;
        let discarded = self.discard.min(self.pending());
        self.head += discarded;
        self.discard -= discarded;
    }

    /// Throws away the frame under way, as far as it is here and as it will come: nothing is allocated
    /// for it, and the frames behind it are read as ever.
    pub fn discard_frame(&mut self) {
        let size = self.frame_size().expect("only a frame of known size is discarded");
        let here = self.pending().min(size);
        self.head += here;
        self.discard = size - here;
    }

    /// The next complete frame, if there is one. Its bytes are consumed with the next call.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some(error) = self.invalid {
            return Err(error);
        }
        let Some(len) = self.len_field() else { return Ok(None) };
        if len == 0 || len > FRAME_SIZE_MAX {
            let mut start = [0; 8];
            let start_size = self.pending().min(start.len());
            start[..start_size].copy_from_slice(&self.bytes[self.head..self.head + start_size]);
            self.invalid = Some(FrameError { start, start_size });
            return Err(FrameError { start, start_size });
        }
        if self.pending() < 4 + len {
            return Ok(None);
        }
        let body_start = self.head + FRAME_HEADER_SIZE;
        let end = self.head + 4 + len;
        self.head = end;
        Ok(Some(Frame { type_byte: self.bytes[body_start - 1], body: &self.bytes[body_start..end] }))
    }

    /// Bytes received and not given out.
    pub fn pending(&self) -> usize {
        self.tail - self.head
    }

    /// Whether [`FrameBuffer::next_frame`] has something to say: a complete frame, or an error.
    pub fn has_frame(&self) -> bool {
        let ready = |len| !(1..=FRAME_SIZE_MAX).contains(&len) || self.pending() >= 4 + len;
        self.invalid.is_some() || self.len_field().is_some_and(ready)
    }

    /// Bytes the frame under way takes in all, once its length is known and valid.
    pub fn frame_size(&self) -> Option<usize> {
        self.len_field().filter(|len| (1..=FRAME_SIZE_MAX).contains(len)).map(|len| 4 + len)
    }

    /// Bytes of memory held.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Gives back memory that a large frame needed.
    pub fn shrink(&mut self) {
        if self.pending() == 0 && self.bytes.len() > self.read_size {
            self.bytes = Vec::new();
            (self.head, self.tail) = (0, 0);
        }
    }

    fn len_field(&self) -> Option<usize> {
        let start = self.bytes[self.head..self.tail].first_chunk::<4>()?;
        Some(u32::from_be_bytes(*start) as usize)
    }
}

/// Begins a frame at the end of `out`; give the result to [`end_frame`] when the body is written.
#[must_use]
pub fn begin_frame(out: &mut Vec<u8>, message_type: super::MessageType) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, message_type as u8]);
    start
}

/// Ends the frame that began at `start`.
pub fn end_frame(out: &mut [u8], start: usize) {
    let len = out.len() - start - 4;
    assert!((1..=FRAME_SIZE_MAX).contains(&len), "a frame of {len} bytes was built");
    out[start..start + 4].copy_from_slice(&(len as u32).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MessageType;

    fn push(buffer: &mut FrameBuffer, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = buffer.space();
            let size = space.len().min(bytes.len());
            space[..size].copy_from_slice(&bytes[..size]);
            buffer.filled(size);
            bytes = &bytes[size..];
        }
    }

    #[test]
    fn a_frame_comes_out_when_its_last_byte_is_in() {
        let mut bytes = Vec::new();
        let start = begin_frame(&mut bytes, MessageType::Ping);
        bytes.extend_from_slice(b"body");
        end_frame(&mut bytes, start);
        let mut buffer = FrameBuffer::new();
        for byte in &bytes[..bytes.len() - 1] {
            push(&mut buffer, &[*byte]);
            assert_eq!(buffer.next_frame(), Ok(None));
        }
        push(&mut buffer, &bytes[bytes.len() - 1..]);
        assert_eq!(buffer.next_frame(), Ok(Some(Frame { type_byte: 6, body: b"body" })));
        assert_eq!(buffer.next_frame(), Ok(None));
    }

    #[test]
    fn a_length_beyond_the_limit_is_fenced_before_allocation_and_stays_so() {
        let mut buffer = FrameBuffer::new();
        push(&mut buffer, b"GET / HTTP/1.1\r\n");
        let error = buffer.next_frame().unwrap_err();
        assert!(error.to_string().contains("an HTTP request"), "{error}");
        assert!(buffer.has_frame(), "an error is something to say");
        assert!(buffer.capacity() <= INPUT_BUFFER_SIZE);
        push(&mut buffer, &[0, 0, 0, 1, 6]);
        assert_eq!(buffer.next_frame(), Err(error));
    }

    #[test]
    fn a_discarded_frame_costs_no_memory_and_the_next_one_is_read() {
        let mut bytes = Vec::new();
        let start = begin_frame(&mut bytes, MessageType::Put);
        bytes.resize(1 << 20, 7);
        end_frame(&mut bytes, start);
        let start = begin_frame(&mut bytes, MessageType::Ping);
        end_frame(&mut bytes, start);
        let mut buffer = FrameBuffer::new();
        push(&mut buffer, &bytes[..100]);
        assert_eq!(buffer.next_frame(), Ok(None));
        buffer.discard_frame();
        push(&mut buffer, &bytes[100..]);
        assert_eq!(buffer.next_frame(), Ok(Some(Frame { type_byte: 6, body: b"" })));
        assert!(buffer.capacity() <= INPUT_BUFFER_SIZE);
    }

    #[test]
    fn length_zero_is_refused() {
        let mut buffer = FrameBuffer::new();
        push(&mut buffer, &[0; 5]);
        assert_eq!(buffer.next_frame().unwrap_err().len_field(), 0);
    }

    #[test]
    fn the_largest_frame_fits() {
        let mut bytes = Vec::new();
        let start = begin_frame(&mut bytes, MessageType::Put);
        bytes.resize(4 + FRAME_SIZE_MAX, 7);
        end_frame(&mut bytes, start);
        let mut buffer = FrameBuffer::new();
        push(&mut buffer, &bytes);
        assert_eq!(buffer.next_frame().unwrap().unwrap().body.len(), FRAME_SIZE_MAX - 1);
        buffer.next_frame().unwrap();
        buffer.shrink();
        assert_eq!(buffer.capacity(), 0);
    }
}
