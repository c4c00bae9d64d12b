//! Bytes that wait to be written to a socket.

use crate::limits::PEER_OUTPUT_KEPT;

/// An output buffer: filled at the end, emptied from the front. Memory of a burst is given back once the
/// buffer runs empty.
#[derive(Debug)]
pub struct OutBuf {
    bytes: Vec<u8>,
    head: usize,
    /// Bytes of capacity that an empty buffer keeps.
    kept_capacity: usize,
}

/// Bytes of capacity an empty buffer keeps.
const KEPT_CAPACITY: usize = 64 << 10;

impl Default for OutBuf {
    fn default() -> OutBuf {
        OutBuf { bytes: Vec::new(), head: 0, kept_capacity: KEPT_CAPACITY }
    }
}

impl OutBuf {
    /// The other side is sent batches: to allocate for each one, and give it back, would be a page fault for
    /// every 4 KiB of it.
    pub fn expect_bulk(&mut self) {
        self.kept_capacity = PEER_OUTPUT_KEPT;
    }

    /// Where frames are appended.
    pub fn bytes_mut(&mut self) -> &mut Vec<u8> {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        }
        &mut self.bytes
    }

    /// What is to be written next.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `size` pending bytes were taken by the socket.
    pub fn written(&mut self, size: usize) {
        assert!(size <= self.len(), "more bytes written than waited");
        self.head += size;
        if self.is_empty() {
            self.head = 0;
            self.bytes.clear();
            if self.bytes.capacity() > self.kept_capacity {
                self.bytes = Vec::new();
            }
        } else if self.head >= self.bytes.len() / 2 && self.head >= KEPT_CAPACITY {
            // A reader that is slow for long must not make the buffer grow by what it has taken already.
            // The copy moves at most as many bytes as were written since the last one.
            self.bytes.copy_within(self.head.., 0);
            self.bytes.truncate(self.bytes.len() - self.head);
            self.head = 0;
        }
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
        self.head = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came_whatever_the_socket_takes() {
        let (mut buffer, mut expected, mut seen) = (OutBuf::default(), Vec::new(), Vec::new());
        for round in 0..2_000_u32 {
            let chunk = round.to_be_bytes().repeat(40);
            buffer.bytes_mut().extend_from_slice(&chunk);
            expected.extend_from_slice(&chunk);
            let take = buffer.len().min(150);
            seen.extend_from_slice(&buffer.pending()[..take]);
            buffer.written(take);
            assert!(buffer.bytes.len() <= 2 * (buffer.len() + KEPT_CAPACITY));
        }
        seen.extend_from_slice(buffer.pending());
        let rest = buffer.len();
        buffer.written(rest);
        assert_eq!(seen, expected);
        assert!(buffer.bytes.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn a_buffer_that_is_sent_batches_keeps_the_room_for_the_next_one() {
        for (bulk, kept) in [(false, 0), (true, 1 << 20)] {
            let mut buffer = OutBuf::default();
            if bulk {
                buffer.expect_bulk();
            }
            buffer.bytes_mut().reserve_exact(1 << 20);
            buffer.bytes_mut().push(1);
            buffer.written(1);
            assert_eq!(buffer.bytes.capacity(), kept);
        }
    }
}
