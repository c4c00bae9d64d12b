//! A snapshot that comes in chunks is the one that was sent, however it is cut and interrupted.

use kvstore::ids::ClusterId;
use kvstore::snapshot::{Offer, ReadError, ReceiveError, ReceivedFile, SnapshotInfo};
use proptest::prelude::*;

use crate::mem_disk::MemDisk;
use crate::snapshot_kit::*;

fn offered(entries: &Entries) -> (Offer, Vec<u8>) {
    let disk = MemDisk::new();
    let info = published(&disk, entries, (12, 20));
    let raw = disk.raw(&info.name).expect("it was published")[..info.bytes as usize].to_vec();
    (Offer { id: info.id, bytes: info.bytes, crc: info.crc }, raw)
}

fn begin(disk: &MemDisk, offer: Offer) -> ReceivedFile {
    ReceivedFile::begin(&mut disk.clone(), CLUSTER, offer).expect("the disk is sound")
}

/// Takes a chunk at the right offset, and what it completes.
fn take(received: &mut ReceivedFile, disk: &MemDisk, chunk: &[u8], loaded: &mut Entries) {
    let offset = received.offset();
    received.receive(&mut disk.clone(), offset, chunk).expect("it is the next chunk");
    let mut rest = chunk;
    while let Some(block) = received.next_block(disk, &mut rest).expect("the bytes are good") {
        loaded.extend(block.entries().map(|(key, value)| (key.to_vec(), value.to_vec())));
    }
}

fn publish(received: ReceivedFile, disk: &MemDisk) -> SnapshotInfo {
    let finished = received.finish(&mut disk.clone()).expect("all of it is there");
    finished.publish(&mut disk.clone()).expect("the disk is sound")
}

#[test]
fn single_bytes_make_the_same_file() {
    let sent = entries(40, 50);
    let (offer, raw) = offered(&sent);
    let disk = MemDisk::new();
    let (mut received, mut loaded) = (begin(&disk, offer), Entries::new());
    for byte in &raw {
        take(&mut received, &disk, std::slice::from_ref(byte), &mut loaded);
    }
    assert!(loaded == sent);
    let info = publish(received, &disk);
    assert_eq!((info.id, info.crc, info.entries), (offer.id, offer.crc, 40));
    assert_eq!(disk.raw(&info.name), Some(raw));
}

#[test]
fn entries_are_loaded_before_the_last_byte_is_there() {
    let sent = entries(3000, 100);
    let (offer, raw) = offered(&sent);
    let disk = MemDisk::new();
    let (mut received, mut loaded) = (begin(&disk, offer), Entries::new());
    take(&mut received, &disk, &raw[..raw.len() / 2], &mut loaded);
    assert!(loaded.len() > sent.len() / 3 && sent.starts_with(&loaded));
}

#[test]
fn only_a_block_that_is_cut_by_the_end_of_a_chunk_is_copied() {
    let sent = entries(3000, 100);
    let (offer, raw) = offered(&sent);
    let disk = MemDisk::new();
    let mut received = begin(&disk, offer);
    let (mut in_place, mut copied) = (0, 0);
    for chunk in [&raw[..raw.len() / 2], &raw[raw.len() / 2..]] {
        let offset = received.offset();
        received.receive(&mut disk.clone(), offset, chunk).expect("it is the next chunk");
        let mut rest = chunk;
        while let Some(block) = received.next_block(&disk, &mut rest).expect("the bytes are good") {
            let (key, _) = block.entries().next().expect("a block holds entries");
            let is_in_place = chunk.as_ptr_range().contains(&key.as_ptr());
            *if is_in_place { &mut in_place } else { &mut copied } += 1;
        }
        assert!(rest.is_empty(), "what is left is held until the next chunk");
    }
    assert!(in_place > 3 && copied == 1, "{in_place} in place, {copied} copied");
}

#[test]
fn a_wrong_chunk_changes_nothing_and_the_right_one_is_still_taken() {
    let sent = entries(300, 1000);
    let (offer, raw) = offered(&sent);
    let disk = MemDisk::new();
    let (mut received, mut loaded) = (begin(&disk, offer), Entries::new());
    take(&mut received, &disk, &raw[..100_000], &mut loaded);
    let before = disk.raw("snap-in.kvsnap.tmp");
    for (offset, chunk) in
        [(0, &raw[..10]), (99_999, &raw[..10]), (100_001, &raw[..10]), (u64::MAX, &raw[..0])]
    {
        let error = received.receive(&mut disk.clone(), offset, chunk).unwrap_err();
        assert!(
            matches!(error, ReceiveError::OutOfOrder { expected: 100_000, found } if found == offset),
            "{error}"
        );
    }
    let too_long = [&raw[100_000..], b"x"].concat();
    let error = received.receive(&mut disk.clone(), 100_000, &too_long).unwrap_err();
    assert!(matches!(error, ReceiveError::TooLong { offered, end } if end == offered + 1), "{error}");
    assert_eq!(disk.raw("snap-in.kvsnap.tmp"), before);
    // A reconnect: the sender asks where to go on.
    assert_eq!(received.offset(), 100_000);
    take(&mut received, &disk, &raw[100_000..], &mut loaded);
    assert!(loaded == sent);
    assert_eq!(disk.raw(&publish(received, &disk).name), Some(raw));
}

#[test]
fn an_end_too_early_is_no_snapshot() {
    let (offer, raw) = offered(&entries(10, 10));
    for length in [0, 1, 4095, 4096, 4100, raw.len() - 44, raw.len() - 1] {
        let disk = MemDisk::new();
        let mut received = begin(&disk, offer);
        take(&mut received, &disk, &raw[..length], &mut Entries::new());
        let error = received.finish(&mut disk.clone()).unwrap_err();
        assert!(matches!(error, ReceiveError::Incomplete { received, .. } if received == length as u64));
        assert_eq!(disk.names(), Vec::<String>::new());
    }
}

#[test]
fn another_snapshot_than_the_one_offered_is_refused() {
    let (offer, raw) = offered(&entries(10, 10));
    let wrong = [
        Offer { id: id(12, 21), ..offer },
        Offer { id: id(11, 20), ..offer },
        Offer { bytes: offer.bytes + 1, ..offer },
        Offer { crc: offer.crc ^ 1, ..offer },
    ];
    for offer in wrong {
        let disk = MemDisk::new();
        let mut received = begin(&disk, offer);
        received.receive(&mut disk.clone(), 0, &raw).unwrap();
        let (mut result, mut rest) = (Ok(true), &raw[..]);
        while let Ok(true) = result {
            result = received.next_block(&disk, &mut rest).map(|block| block.is_some());
        }
        let error = received.finish(&mut disk.clone()).unwrap_err();
        assert!(matches!(error, ReceiveError::Invalid(ReadError::Damaged { .. })), "{offer:?}: {error}");
        assert_eq!(disk.names(), Vec::<String>::new());
    }
}

#[test]
fn a_snapshot_of_another_cluster_is_refused_by_its_header() {
    let (offer, raw) = offered(&entries(10, 10));
    let disk = MemDisk::new();
    let mut received = ReceivedFile::begin(&mut disk.clone(), ClusterId([1; 16]), offer).unwrap();
    received.receive(&mut disk.clone(), 0, &raw[..4096]).unwrap();
    let error = received.next_block(&disk, &mut &raw[..4096]).unwrap_err();
    assert!(matches!(error, ReceiveError::Invalid(ReadError::OtherCluster { .. })), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cutting_into_chunks_gives_the_same_entries(
        count in 0..400usize,
        value_size in prop_oneof![4 => 0..400usize, 1 => 60_000..70_000usize],
        sizes in proptest::collection::vec(prop_oneof![1..20usize, 1..5000usize, 1..150_000usize], 1..20),
    ) {
        let sent = entries(count.min(2_000_000 / (value_size + 1)), value_size);
        let (offer, raw) = offered(&sent);
        let disk = MemDisk::new();
        let (mut received, mut loaded) = (begin(&disk, offer), Entries::new());
        for size in sizes.iter().cycle() {
            let at = received.offset() as usize;
            if at == raw.len() {
                break;
            }
            take(&mut received, &disk, &raw[at..raw.len().min(at + size)], &mut loaded);
        }
        prop_assert!(loaded == sent);
        prop_assert_eq!(disk.raw(&publish(received, &disk).name), Some(raw));
    }
}
