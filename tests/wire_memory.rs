//! A count or a length is believed only as far as bytes have arrived for it.
//!
//! It looks at the address space that the process ever had (`VmPeak`), which a large allocation raises even if
//! nothing is written to it. So it is a program of its own without the test harness, whose threads reserve more
//! than that.

use kvstore::limits::{FRAME_SIZE_MAX, TERM_HISTORY_MAX, VALUE_SIZE_MAX};
use kvstore::wire::peer::{AppendEntries, Open};
use kvstore::wire::{FrameBuffer, MessageType, Reader, Writer, client::Request};

/// Kilobytes that the tables and buffers of the test itself may take.
const SLACK_KB: u64 = 1_024;

fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).expect("the kernel reports it");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// An OPEN that announces so many peers and terms, and ends in `filling` zeros.
fn open_with_counts(peers: u16, terms: u32, filling: usize) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_u64(1);
    body.extend_from_slice(&[1; 16]);
    body.put_bytes16(b"");
    body.put_u16(peers);
    body.put_u64(1);
    body.put_u64(1);
    body.put_u32(0);
    body.put_u32(terms);
    body.resize(body.len() + filling, 0);
    body
}

fn main() {
    // Enough bytes behind the count that a byte for each entry is there, and not an entry.
    let terms = TERM_HISTORY_MAX as u32;
    let crowded = open_with_counts(0, terms, TERM_HISTORY_MAX);
    let mut frame = FrameBuffer::new();
    let before = peak_kb();
    assert!(Open::decode(&open_with_counts(u16::MAX, 0, 0)).is_err());
    assert!(Open::decode(&open_with_counts(0, u32::MAX, 0)).is_err());
    assert!(Open::decode(&open_with_counts(0, terms, 100)).is_err());
    assert!(Open::decode(&crowded).is_err());
    assert!(AppendEntries::decode(&u32::MAX.to_be_bytes(), |_, _| Ok(())).is_err());
    let mut huge_value = Vec::new();
    huge_value.put_bytes32(b"key");
    huge_value.put_u32(VALUE_SIZE_MAX as u32);
    assert!(Request::decode(MessageType::Put, &huge_value).is_err());
    assert!(Reader::new(&[0xff; 8]).bytes32("value", usize::MAX).is_err());
    for len in [0, FRAME_SIZE_MAX as u32 + 1, u32::MAX] {
        frame = FrameBuffer::new();
        frame.space()[..4].copy_from_slice(&len.to_be_bytes());
        frame.filled(4);
        assert!(frame.next_frame().is_err());
        // Room for the next read of a connection that is about to be closed.
        assert!(!frame.space().is_empty());
    }
    let grown = peak_kb() - before;
    assert!(grown <= SLACK_KB, "{grown} kB were allocated for what is not there");

    // The measure works: one frame of the largest size that is allowed is seen in it.
    let mut largest = FrameBuffer::new();
    largest.space()[..4].copy_from_slice(&(FRAME_SIZE_MAX as u32).to_be_bytes());
    largest.filled(4);
    assert!(largest.space().len() >= FRAME_SIZE_MAX);
    assert!(peak_kb() - before > 8 * SLACK_KB);
    drop(frame);
    println!("what is announced and not there is not allocated: ok");
}
