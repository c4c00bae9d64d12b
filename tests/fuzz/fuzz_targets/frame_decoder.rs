//! Input: the number of chunk sizes, the chunk sizes, then the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/frames.rs"]
mod frames;

fuzz_target!(|input: &[u8]| frames::check_input(input));
