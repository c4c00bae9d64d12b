//! Input: the type, then a body.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/messages.rs"]
mod messages;

fuzz_target!(|input: &[u8]| messages::check_message(input));
