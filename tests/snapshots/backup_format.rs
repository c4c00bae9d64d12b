//! The bytes of a backup: what is written is read, in pieces of any size, and nothing else is.

use kvstore::backup::{BackupStream, Summary, TAIL_FOOTER_SIZE, TAIL_HEADER_SIZE};
use kvstore::ids::Lsn;

use crate::backup_kit::*;
use crate::mem_disk;
use crate::snapshot_kit::{self, CLUSTER};

/// What the bytes are, put in `piece` at a time: the summary, or what is wrong.
fn read(bytes: &[u8], piece: usize) -> Result<Option<Summary>, String> {
    let mut stream = BackupStream::new("file".to_owned());
    for piece in bytes.chunks(piece) {
        stream.push(piece).map_err(|error| error.to_string())?;
    }
    Ok(stream.summary().cloned())
}

fn refusal(bytes: &[u8]) -> String {
    match read(bytes, 1000) {
        Err(why) => why,
        Ok(summary) => panic!("read as {summary:?}"),
    }
}

#[test]
fn a_backup_is_read_as_it_was_written_in_pieces_of_any_size() {
    let (bytes, _) = backup();
    let (_, info) = snapshot();
    let expected = Summary {
        id: info.id,
        last: Lsn(LAST),
        chain: chain_at(&info, LAST),
        entries: ENTRIES as u64,
        bytes: bytes.len() as u64,
        cluster_id: CLUSTER,
    };
    for piece in [1, 7, 63, 1000, 1 << 20] {
        assert_eq!(read(&bytes, piece), Ok(Some(expected.clone())), "{piece} at a time");
    }
}

#[test]
fn a_tail_without_a_record_ends_a_snapshot_of_one_moment() {
    let mut disk = mem_disk::MemDisk::new();
    let info = snapshot_kit::published(&disk, &snapshot_kit::entries(3, 5), (S, S));
    let file = kvstore::disk::Disk::open(&mut disk, &info.name).unwrap();
    let mut bytes = vec![0; info.bytes as usize];
    kvstore::disk::Disk::read_exact_at(&mut disk, file, 0, &mut bytes).unwrap();
    bytes.extend_from_slice(&tail(&info, S));
    let summary = read(&bytes, 100).unwrap().expect("it is whole");
    assert_eq!((summary.last, summary.chain), (Lsn(S), info.chain));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (bytes, _) = backup();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(!matches!(read(&damaged, 4096), Ok(Some(_))), "byte {at}");
    }
}

#[test]
fn a_backup_that_ends_early_is_none_and_nothing_may_follow_it() {
    let (bytes, _) = backup();
    for size in 0..bytes.len() {
        assert!(!matches!(read(&bytes[..size], 4096), Ok(Some(_))), "{size} bytes");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(refusal(&longer).contains("bytes follow the end of the backup"));
}

#[test]
fn each_kind_of_damage_is_named() {
    let (bytes, tail_at) = backup();
    let flipped = |at: usize| {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        refusal(&damaged)
    };
    let first_entry = tail_at + TAIL_HEADER_SIZE;
    let footer = bytes.len() - TAIL_FOOTER_SIZE;
    for (at, what) in [
        (0, "the file does not begin as a snapshot"),
        (100, "the checksum of the header does not hold"),
        (4096 + 20, "the checksum of the block does not hold"),
        (tail_at, "what follows the snapshot does not begin as a tail"),
        (tail_at + 9, "the checksum of the tail's magic and version does not hold"),
        (tail_at + 45, "the checksum of the tail's header does not hold"),
        (first_entry + 1, "the checksum of the record does not hold"),
        (first_entry + 4, "the record has a length that no record has"),
        (first_entry + 20, "the checksum of the record does not hold"),
        (footer + 10, "the checksum of the tail's footer does not hold"),
    ] {
        let why = flipped(at);
        assert!(why.contains(what) && why.contains("file"), "byte {at}: {why}");
    }
}

#[test]
fn a_tail_of_another_snapshot_or_version_is_refused_by_name() {
    let (bytes, info) = snapshot();
    let other = kvstore::snapshot::SnapshotInfo { crc: info.crc ^ 1, ..info.clone() };
    let swapped = [&bytes[..], &tail(&other, LAST)].concat();
    assert!(refusal(&swapped).contains("belongs to another snapshot"));
    let short = [&bytes[..], &tail(&info, E - 1)].concat();
    assert!(refusal(&short).contains("belongs to another snapshot"), "it must reach E");
    let mut newer = tail(&info, LAST);
    newer[8..12].copy_from_slice(&9u32.to_be_bytes());
    let crc = crc32fast::hash(&newer[..12]);
    newer[12..16].copy_from_slice(&crc.to_be_bytes());
    assert!(refusal(&[&bytes[..], &newer].concat()).contains("format version 9"));
}

#[test]
fn records_are_counted_by_the_footer() {
    let (bytes, info) = snapshot();
    let (long, short) = (tail(&info, LAST), tail(&info, LAST - 1));
    let footer = &short[short.len() - TAIL_FOOTER_SIZE..];
    let mixed = [&bytes[..], &long[..long.len() - TAIL_FOOTER_SIZE], footer].concat();
    assert!(refusal(&mixed).contains("counts other records"), "the footer of another tail");
}
