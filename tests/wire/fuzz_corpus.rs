//! The fuzz targets' checks on stable: over every committed corpus file, and over random inputs of their shape.
//! `tests/fuzz/README.md` says how to run the real thing.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::check_frames;
use crate::check_messages;
use crate::check_wal;

/// Bytes of all corpora together, at most: they are checked out with the sources.
const CORPORA_SIZE_MAX: u64 = 200 << 10;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// Files in a directory: those with a name, and below `found` those that a fuzzer made and reduced.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("it can be listed").path()).filter(|path| path.is_file()).collect()
}

fn for_each_file_of(target: &str, check: impl Fn(&[u8])) {
    for (directory, count_min) in [(corpus(target), 5), (corpus(target).join("found"), 20)] {
        let files = files_in(&directory);
        assert!(files.len() >= count_min, "{} holds {} file(s)", directory.display(), files.len());
        for path in files {
            println!("{}", path.display());
            check(&std::fs::read(&path).expect("a corpus file can be read"));
        }
    }
}

#[test]
fn the_corpora_are_small() {
    let directories = ["frame_decoder", "messages", "wal_open"]
        .map(|target| [corpus(target), corpus(target).join("found")]);
    let files = directories.iter().flatten().flat_map(|directory| files_in(directory));
    let size: u64 = files.map(|path| path.metadata().expect("it was listed").len()).sum();
    assert!(size <= CORPORA_SIZE_MAX, "{size} bytes: reduce them as tests/fuzz/README.md says");
}

#[test]
fn every_frame_stream_of_the_corpus_passes() {
    for_each_file_of("frame_decoder", check_frames::check_input);
}

#[test]
fn every_message_of_the_corpus_passes() {
    for_each_file_of("messages", check_messages::check_message);
}

#[test]
fn every_log_of_the_corpus_passes() {
    for_each_file_of("wal_open", check_wal::check_log);
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
        check_wal::check_log(&[&[base], &changes.concat()[..]].concat());
    }

    #[test]
    fn frame_inputs_of_the_fuzzers_shape_pass(input in prop::collection::vec(any::<u8>(), 0..200)) {
        check_frames::check_input(&input);
    }
}
