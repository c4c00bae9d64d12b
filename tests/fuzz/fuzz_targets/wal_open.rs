//! Input: changes to a small log, see `checks/wal.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/wal.rs"]
mod wal;

fuzz_target!(|input: &[u8]| wal::check_log(input));
