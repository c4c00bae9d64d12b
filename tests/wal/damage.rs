//! Damage is refused in words or is a tail above everything durable, bit by bit; it is never a silently
//! shorter log.

use kvstore::ids::{ClusterId, Lsn};
use kvstore::wal::{Base, Damage, HEADER_SIZE, Identity, MARK_SIZE, OpenError};

use crate::mem_disk::MemDisk;
use crate::wal_kit::*;

const SMALL: u64 = HEADER_SIZE + 1280;

/// Two segments of three batches each; the last batch was flushed, and no later mark says so.
fn small_log() -> (MemDisk, Vec<Vec<u8>>) {
    let disk = MemDisk::new();
    let mut wal = open_at(&disk, 0, 0, SMALL).unwrap().wal;
    append(&mut wal, &disk, &term_bytes(1, 1)).unwrap();
    batch(&mut wal, &disk, 2, 90);
    for size in [100, 190, 140, 60, 30] {
        batch(&mut wal, &disk, 2, size);
    }
    let records = contents(&mut wal, &disk);
    disk.kill_process();
    assert_eq!(segments(&disk).len(), 2);
    (disk, records)
}

/// The LSN up to which the marks of `small_log` claim durability: all but the last batch.
fn claimed(records: &[Vec<u8>]) -> usize {
    records.len() - 2
}

fn damage(disk: &MemDisk) -> Damage {
    match open_at(disk, 0, 0, SMALL) {
        Err(OpenError::Damaged(damage)) => damage,
        Err(other) => panic!("another refusal: {other}"),
        Ok(opened) => panic!("opened with {:?}", opened.report),
    }
}

/// The byte where each record begins, by file.
fn places(disk: &MemDisk, records: &[Vec<u8>]) -> Vec<(String, usize)> {
    let find = |record: &Vec<u8>| {
        segments(disk).into_iter().find_map(|name| {
            let raw = disk.raw(&name).unwrap();
            let at = raw.windows(record.len()).position(|window| window == record)?;
            Some((name, at))
        })
    };
    records.iter().map(|record| find(record).expect("each record is in a segment")).collect()
}

#[test]
fn every_flipped_bit_gives_the_same_log_a_refusal_or_a_tail_above_what_was_durable() {
    let (disk, records) = small_log();
    let places = places(&disk, &records);
    let (mut same, mut refused, mut cut) = (0, 0, 0);
    for name in segments(&disk) {
        // Every bit of a header is flipped in the tests of `segment`; here the refusal is checked, on some.
        let bits = (0..HEADER_SIZE * 8).step_by(251).chain(HEADER_SIZE * 8..SMALL * 8);
        for bit in bits {
            let disk = disk.fork();
            disk.corrupt(&name, bit / 8, (bit % 8) as u8);
            let raw = disk.raw(&name);
            match open_at(&disk, 0, 0, SMALL) {
                Ok(opened) => {
                    let mut wal = opened.wal;
                    let found = contents(&mut wal, &disk);
                    assert!(records.starts_with(&found), "bit {bit} of {name}");
                    assert!(found.len() >= claimed(&records), "bit {bit} of {name} took {}", found.len());
                    let tail = opened.report.cut_tail.expect("a flipped bit is no clean end");
                    assert_eq!(tail.behind.0 as usize, found.len());
                    if found.len() == records.len() { same += 1 } else { cut += 1 }
                }
                Err(OpenError::Damaged(damage)) => {
                    refused += 1;
                    assert!(damage.file.ends_with(&name) && damage.lsn <= damage.durable_lsn.next());
                    let (lsn, durable) = (damage.lsn.0 as usize, damage.durable_lsn.0 as usize);
                    assert!(durable <= claimed(&records) && lsn <= claimed(&records), "{damage:?}");
                    if bit >= HEADER_SIZE * 8 {
                        // The named record is the one that holds the bit, or the next one behind a mark that does.
                        let (file, at) = &places[lsn - 1];
                        let end = at + records[lsn - 1].len();
                        assert!(file == &name && (bit / 8) < end as u64, "{damage:?}");
                        assert!(
                            damage.offset <= bit / 8
                                && bit / 8 < damage.offset + 8 + (end - at) as u64 + MARK_SIZE as u64
                        );
                    }
                    assert_eq!(disk.raw(&name), raw, "a refusal changes nothing");
                }
                Err(other) => panic!("bit {bit} of {name}: {other}"),
            }
        }
    }
    assert!(same > 1000 && refused > 5000 && cut > 500, "same {same}, refused {refused}, cut {cut}");
}

#[test]
fn after_a_clean_end_every_flipped_bit_of_a_record_is_refused() {
    let (disk, records) = small_log();
    let mut wal = open_at(&disk, 0, 0, SMALL).unwrap().wal;
    wal.write_mark(&mut disk.clone(), Lsn::ZERO).unwrap();
    disk.kill_process();
    for (index, (name, at)) in places(&disk, &records).into_iter().enumerate() {
        for bit in (at - 8) * 8..(at + records[index].len()) * 8 {
            let disk = disk.fork();
            disk.corrupt(&name, bit as u64 / 8, (bit % 8) as u8);
            assert_eq!(damage(&disk).lsn.0 as usize, index + 1);
        }
    }
}

#[test]
fn a_refusal_names_file_byte_lsn_and_a_way_out() {
    let (disk, records) = small_log();
    let (name, at) = places(&disk, &records)[4].clone();
    disk.corrupt(&name, at as u64 + 30, 0);
    let text = open_at(&disk, 0, 0, SMALL).unwrap_err().to_string();
    for part in
        [name.as_str(), &format!("byte {}", at - 8), "LSN 5", "Restore the file", "start the node empty"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn huge_tiny_and_zero_lengths_are_judged_like_any_damage() {
    let (disk, records) = small_log();
    let places = places(&disk, &records);
    for length in [0u32, 1, 16, 17, 2000, 9 << 20, 0x7fff_ffff, 0x8000_0000, 0x8000_0028, u32::MAX] {
        for (index, (name, at)) in places.iter().enumerate() {
            let disk = disk.fork();
            let mut raw = disk.raw(name).unwrap();
            raw[at - 4..*at].copy_from_slice(&length.to_be_bytes());
            disk.put_raw(name, &raw);
            if index < claimed(&records) {
                assert_eq!(damage(&disk).lsn.0 as usize, index + 1, "length {length}");
            } else {
                assert_eq!(open_at(&disk, 0, 0, SMALL).unwrap().report.last_lsn.0 as usize, index);
            }
        }
    }
}

#[test]
fn zeros_over_durable_records_are_damage_and_zeros_behind_the_log_are_nothing() {
    let (disk, records) = small_log();
    let (name, at) = places(&disk, &records)[2].clone();
    let mut raw = disk.raw(&name).unwrap();
    raw[at - 8..].fill(0);
    disk.put_raw(&name, &raw);
    assert_eq!(damage(&disk).lsn, Lsn(3));

    let (disk, _) = small_log();
    let name = segments(&disk)[1].clone();
    let raw = disk.raw(&name).unwrap();
    assert_eq!(raw[raw.len() - 64..], [0; 64], "the segment is preallocated");
    assert_eq!(open_at(&disk, 0, 0, SMALL).unwrap().report.cut_tail, None);
}

#[test]
fn a_valid_entry_at_another_place_is_no_entry() {
    let (disk, records) = small_log();
    let places = places(&disk, &records);
    // Entries 6 and 7 are in one batch and of one size: a misdirected write puts one over the other.
    let (name, (from, to)) = (&places[5].0, (places[5].1, places[6].1));
    assert_eq!((&places[6].0, records[5].len()), (name, records[6].len()));
    let mut raw = disk.raw(name).unwrap();
    raw.copy_within(from - 8..from + records[5].len(), to - 8);
    disk.put_raw(name, &raw);
    assert_eq!(damage(&disk).lsn, Lsn(7));
}

#[test]
fn a_whole_batch_copied_behind_the_log_adds_nothing() {
    let (disk, records) = small_log();
    let name = segments(&disk)[1].clone();
    let mut raw = disk.raw(&name).unwrap();
    let end = raw.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let first = HEADER_SIZE as usize;
    raw.copy_within(first..first + 300, end);
    disk.put_raw(&name, &raw);
    let opened = open_at(&disk, 0, 0, SMALL).unwrap();
    assert_eq!(opened.report.last_lsn.0 as usize, records.len());
    assert_eq!(opened.report.cut_tail.unwrap().offset as usize, end);
}

#[test]
fn a_missing_segment_is_damage_that_names_the_missing_lsn() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    for _ in 0..3 {
        batch(&mut wal, &disk, 1, 3500);
    }
    disk.kill_process();
    for (missing, lsn) in [(1, 1), (2, 2)] {
        let disk = disk.fork();
        disk.remove_raw(&segment_of(missing));
        match open(&disk).unwrap_err() {
            OpenError::Damaged(damage) => assert_eq!(damage.lsn, Lsn(lsn), "{damage:?}"),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_segment_of_another_log_or_under_another_name_is_refused() {
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    for _ in 0..3 {
        batch(&mut wal, &disk, 1, 3500);
    }
    let other = MemDisk::new();
    let mut other_wal = opened(&other).wal;
    append(&mut other_wal, &other, &put_bytes(1, 9, 3500)).unwrap();
    batch(&mut other_wal, &other, 1, 3500);
    disk.kill_process();

    let swapped = disk.fork();
    swapped.put_raw(&segment_of(2), &other.raw(&segment_of(2)).unwrap());
    assert!(open(&swapped).unwrap_err().to_string().contains("does not agree"));
    disk.put_raw(&segment_of(3), &disk.raw(&segment_of(2)).unwrap());
    assert!(open(&disk).unwrap_err().to_string().contains("another first LSN than the file's name"));
}

#[test]
fn another_version_and_another_cluster_are_refused_in_words() {
    let disk = MemDisk::new();
    batch(&mut opened(&disk).wal, &disk, 1, 10);
    disk.kill_process();
    let other = Identity { cluster_id: ClusterId([2; 16]), ..identity(0, 0) };
    let found = open_behind(&disk, other, &Base::default(), SEGMENT_BYTES);
    let text = found.unwrap_err().to_string();
    assert!(text.contains("c1c1") && text.contains("0202"), "{text}");

    let mut raw = disk.raw(FIRST_SEGMENT).unwrap();
    raw[8..12].copy_from_slice(&2u32.to_be_bytes());
    let crc = crc32fast::hash(&raw[..12]);
    raw[12..16].copy_from_slice(&crc.to_be_bytes());
    disk.put_raw(FIRST_SEGMENT, &raw);
    let text = open(&disk).unwrap_err().to_string();
    assert!(text.contains("format version 2") && text.contains("reads version 1"), "{text}");
}

#[test]
fn a_file_that_is_shorter_than_its_header_is_damage() {
    let disk = MemDisk::new();
    batch(&mut opened(&disk).wal, &disk, 1, 10);
    disk.kill_process();
    for size in [0, 100, HEADER_SIZE as usize - 1] {
        let mut raw = disk.raw(FIRST_SEGMENT).unwrap();
        raw.truncate(size);
        disk.put_raw(FIRST_SEGMENT, &raw);
        assert!(matches!(open(&disk), Err(OpenError::Damaged(Damage { lsn: Lsn(1), .. }))));
    }
}

#[test]
fn a_client_cannot_forge_a_mark() {
    // A value that holds the bytes of a real mark, torn so that recovery searches it.
    let disk = MemDisk::new();
    let mut wal = opened(&disk).wal;
    batch(&mut wal, &disk, 3, 50);
    batch(&mut wal, &disk, 1, 50);
    let raw = disk.raw(FIRST_SEGMENT).unwrap();
    let mark = raw[HEADER_SIZE as usize..][..MARK_SIZE].to_vec();
    let forged: Vec<u8> = (0..20u64)
        .flat_map(|durable| {
            let mut bytes = mark.clone();
            bytes[8..16].copy_from_slice(&(100 + durable).to_be_bytes());
            bytes[32..40].copy_from_slice(&1000u64.to_be_bytes());
            let crc = crc32fast::hash(&bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_be_bytes());
            bytes
        })
        .collect();
    let mut record = Vec::new();
    let effect = kvstore::wire::Effect::Put { key: b"k", value: &forged };
    kvstore::wire::Record { lsn: Lsn(5), effect }.encode(&mut record);
    append(&mut wal, &disk, &record).unwrap();
    write(&mut wal, &disk).unwrap();
    disk.kill_process();
    let end = disk.raw(FIRST_SEGMENT).unwrap().iter().rposition(|&byte| byte != 0).unwrap();
    disk.corrupt(FIRST_SEGMENT, end as u64, 1);
    assert_eq!(opened(&disk).report.last_lsn, Lsn(4));
}
