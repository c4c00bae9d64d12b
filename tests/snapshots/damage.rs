//! A snapshot that is not what was written is never accepted, and the error says where.

use kvstore::snapshot::{FOOTER_SIZE, Offer, ReadError, ReceiveError, ReceivedFile, SnapshotInfo};

use crate::mem_disk::{EIO, MemDisk, OpKind};
use crate::snapshot_kit::*;

const HEADER: usize = 4096;

/// A few entries in three blocks, the second of one large entry.
fn three_blocks() -> (MemDisk, SnapshotInfo, Vec<u8>) {
    let mut entries = entries(4, 5);
    entries.insert(2, (b"large".to_vec(), vec![3; 70_000]));
    written(&entries)
}

/// Two entries in one block.
fn one_block() -> (MemDisk, SnapshotInfo, Vec<u8>) {
    written(&entries(2, 5))
}

fn written(entries: &Entries) -> (MemDisk, SnapshotInfo, Vec<u8>) {
    let disk = MemDisk::new();
    let info = published(&disk, entries, (12, 20));
    let raw = disk.raw(&info.name).expect("it was published")[..info.bytes as usize].to_vec();
    (disk, info, raw)
}

/// Where header, blocks and footer begin.
fn parts(raw: &[u8]) -> Vec<usize> {
    let mut parts = vec![0, HEADER];
    let footer_at = raw.len() - FOOTER_SIZE;
    while let at = parts[parts.len() - 1]
        && at < footer_at
    {
        let size = u32::from_be_bytes(raw[at + 4..at + 8].try_into().unwrap());
        parts.push(at + 12 + size as usize);
    }
    assert_eq!(parts.last(), Some(&footer_at));
    parts
}

/// Where the damage is said to be.
fn damaged_at(disk: &MemDisk, name: &str) -> u64 {
    match read(&mut disk.clone(), name) {
        Err(ReadError::Damaged { offset, file, .. }) => {
            assert!(file.ends_with(name), "{file}");
            offset
        }
        other => panic!("not damage: {:?}", other.map(|entries| entries.len())),
    }
}

#[test]
fn every_flipped_bit_is_damage_of_the_part_it_is_in() {
    let (disk, info, raw) = one_block();
    let parts = parts(&raw);
    for bit in 0..raw.len() * 8 {
        disk.corrupt(&info.name, bit as u64 / 8, bit as u8 % 8);
        let part = parts.iter().rposition(|&part| part <= bit / 8).expect("the first begins at 0");
        assert_eq!(damaged_at(&disk, &info.name), parts[part] as u64, "bit {bit}");
        disk.corrupt(&info.name, bit as u64 / 8, bit as u8 % 8);
    }
    read(&mut disk.clone(), &info.name).expect("every bit was flipped back");
}

#[test]
fn a_flipped_bit_in_any_of_many_blocks_is_damage_of_that_block() {
    let (disk, info, raw) = three_blocks();
    let parts = parts(&raw);
    assert_eq!(parts.len(), 5, "header, three blocks, footer");
    let is_tried =
        |byte: &usize| byte.is_multiple_of(97) || parts.iter().any(|&part| (part..part + 14).contains(byte));
    for byte in (HEADER..raw.len()).filter(is_tried) {
        disk.corrupt(&info.name, byte as u64, (byte % 8) as u8);
        let part = parts.iter().rposition(|&part| part <= byte).expect("the first begins at 0");
        assert_eq!(damaged_at(&disk, &info.name), parts[part] as u64, "byte {byte}");
        disk.corrupt(&info.name, byte as u64, (byte % 8) as u8);
    }
}

#[test]
fn a_file_that_ends_too_early_is_damage_at_every_length() {
    let (disk, info, raw) = one_block();
    for length in 0..raw.len() {
        disk.put_raw(&info.name, &raw[..length]);
        let offset = damaged_at(&disk, &info.name);
        assert!(offset <= length as u64, "{length} bytes, damaged at {offset}");
    }
}

#[test]
fn a_block_at_another_place_or_of_another_snapshot_is_damage() {
    // Two blocks of the same size, exchanged.
    let entries = vec![(b"1".to_vec(), vec![1; 65_000]), (b"2".to_vec(), vec![2; 65_000])];
    let (disk, info, raw) = written(&entries);
    let parts = parts(&raw);
    let [first, second, end] = parts[1..] else { panic!("{parts:?}") };
    let mut exchanged = raw.clone();
    exchanged[first..second].copy_from_slice(&raw[second..end]);
    exchanged[second..end].copy_from_slice(&raw[first..second]);
    disk.put_raw(&info.name, &exchanged);
    assert_eq!(damaged_at(&disk, &info.name), first as u64);
    // The same place of a snapshot that began one LSN later.
    let other = published(&MemDisk::new(), &entries, (13, 20));
    let other_disk = MemDisk::new();
    published(&other_disk, &entries, (13, 20));
    let mut mixed = raw.clone();
    mixed[second..end].copy_from_slice(&other_disk.raw(&other.name).unwrap()[second..end]);
    disk.put_raw(&info.name, &mixed);
    assert_eq!(damaged_at(&disk, &info.name), second as u64);
}

#[test]
fn a_part_left_out_is_damage_although_every_checksum_in_it_holds() {
    let (disk, info, raw) = three_blocks();
    let parts = parts(&raw);
    // A footer that follows too early: what it counts is not there. The header is told of the shorter file.
    let mut short = [&raw[..parts[3]], &raw[parts[4]..]].concat();
    let length = short.len() as u64;
    short[72..80].copy_from_slice(&length.to_be_bytes());
    let crc = crc32fast::hash(&short[..HEADER - 4]);
    short[HEADER - 4..HEADER].copy_from_slice(&crc.to_be_bytes());
    let footer_at = short.len() - FOOTER_SIZE;
    short[footer_at + 36..footer_at + 40].copy_from_slice(&crc.to_be_bytes());
    let crc = crc32fast::hash(&short[footer_at..footer_at + 40]);
    short[footer_at + 40..].copy_from_slice(&crc.to_be_bytes());
    disk.put_raw(&info.name, &short);
    assert_eq!(damaged_at(&disk, &info.name), footer_at as u64);
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    let (disk, info, raw) = one_block();
    for (at, what) in [(68, "the header"), (HEADER + 4, "a block"), (HEADER + 8, "the count")] {
        for length in [0u32, 1, 4097, 1 << 30, u32::MAX] {
            let mut bad = raw.clone();
            bad[at..at + 4].copy_from_slice(&length.to_be_bytes());
            disk.put_raw(&info.name, &bad);
            let expected = if at < HEADER { 0 } else { HEADER as u64 };
            assert_eq!(damaged_at(&disk, &info.name), expected, "{what} of {length}");
        }
    }
}

#[test]
fn a_read_that_fails_is_no_damage() {
    let (disk, info, _) = three_blocks();
    for reads in 0..3 {
        disk.fail(OpKind::Read, reads, EIO);
        let error = read(&mut disk.clone(), &info.name).unwrap_err();
        assert!(matches!(error, ReadError::Io { .. }), "{error}");
        assert_eq!(disk.fork().names(), disk.names());
    }
    read(&mut disk.clone(), &info.name).expect("the failures are over");
}

#[test]
fn damage_on_its_way_ends_a_transfer_where_it_stands() {
    let (_, info, raw) = three_blocks();
    let parts = parts(&raw);
    for byte in [3, 100, parts[1] + 20, parts[2] + 9_000, parts[3] + 13, parts[4] + 2] {
        let disk = MemDisk::new();
        let offer = Offer { id: info.id, bytes: info.bytes, crc: info.crc };
        let mut received = ReceivedFile::begin(&mut disk.clone(), CLUSTER, offer).unwrap();
        let mut bad = raw.clone();
        bad[byte] ^= 0x10;
        received.receive(&mut disk.clone(), 0, &bad).unwrap();
        let (mut error, mut rest) = (None, &bad[..]);
        while error.is_none() {
            error = received.next_block(&disk, &mut rest).err();
        }
        let part = parts.iter().rposition(|&part| part <= byte).expect("the first begins at 0");
        let Some(ReceiveError::Invalid(ReadError::Damaged { offset, .. })) = error else {
            panic!("{error:?}")
        };
        assert_eq!(offset, parts[part] as u64);
        assert!(received.next_block(&disk, &mut rest).is_err(), "once bad, always bad");
        assert!(received.finish(&mut disk.clone()).is_err());
        assert_eq!(disk.names(), Vec::<String>::new());
    }
}
