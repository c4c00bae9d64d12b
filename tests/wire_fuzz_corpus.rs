//! The fuzz targets' checks on stable: over every committed corpus file, and over random inputs of their shape.
//! `tests/fuzz/README.md` says how to run the real thing.

use std::path::Path;

use proptest::prelude::*;

#[path = "fuzz/checks/frames.rs"]
mod frames;
#[path = "fuzz/checks/messages.rs"]
mod messages;
#[path = "fuzz/checks/wal.rs"]
mod wal;

fn for_each_file_of(target: &str, check: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&directory).expect("each target has a corpus") {
        let path = entry.expect("it can be listed").path();
        println!("{}", path.display());
        check(&std::fs::read(&path).expect("a corpus file can be read"));
        count += 1;
    }
    assert!(count >= 5, "{} holds {count} file(s)", directory.display());
}

#[test]
fn every_frame_stream_of_the_corpus_passes() {
    for_each_file_of("frame_decoder", frames::check_input);
}

#[test]
fn every_message_of_the_corpus_passes() {
    for_each_file_of("messages", messages::check_message);
}

#[test]
fn every_log_of_the_corpus_passes() {
    for_each_file_of("wal_open", wal::check_log);
}

fn change() -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), any::<u8>(), 0..6_000_u16, prop::collection::vec(any::<u8>(), 0..60)).prop_map(
        |(kind, file, offset, bytes)| {
            let [high, low] = offset.to_be_bytes();
            [&[kind, file, high, low, bytes.len() as u8], &bytes[..]].concat()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_log_changed_at_random_is_opened_or_refused(
        base in any::<u8>(),
        changes in prop::collection::vec(change(), 0..5),
    ) {
        wal::check_log(&[&[base], &changes.concat()[..]].concat());
    }

    #[test]
    fn frame_inputs_of_the_fuzzers_shape_pass(input in prop::collection::vec(any::<u8>(), 0..200)) {
        frames::check_input(&input);
    }
}
