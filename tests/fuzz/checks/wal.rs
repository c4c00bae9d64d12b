//! A small log on a disk in memory, changed as the input says, then opened: the verdict may be a log or a
//! refusal, and never a panic, a record whose chain is broken, or a second verdict that differs from the first.
//!
//! Input: the kind of log to begin with, then changes, each `[kind][file][offset u16][count][bytes]`. A change of
//! the kind `ENTRY` gets its checksum here, so that what stands behind a valid one is reached too.

use kvstore::disk::Disk;
use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::limits::RECORD_OVERHEAD;
use kvstore::wal::{
    Base, Durability, ENTRY_HEADER_SIZE, HEADER_SIZE, Identity, OpenError, Opened, Wal, WalConfig,
};
use kvstore::wire::{Effect, Reader, Record, record_size};

#[path = "../../support/mem_disk.rs"]
pub mod mem_disk;
use mem_disk::MemDisk;

const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Three batches of the base log fill a segment.
const CONFIG: WalConfig = WalConfig { segment_bytes: HEADER_SIZE + 1280, durability: Durability::Fsync };
/// Bytes of a file after a change that makes it longer, at most.
const FILE_SIZE_MAX: usize = 16 << 10;

const FLIP: u8 = 0;
const OVERWRITE: u8 = 1;
const TRUNCATE: u8 = 2;
const ENTRY: u8 = 3;
const COPY_BLOCK: u8 = 4;
const RENAME: u8 = 5;

thread_local! {
    /// Made once: the forks are what is changed.
    static BASES: [MemDisk; 2] = [base_log(false), base_log(true)];
}

/// See the head of this file.
pub fn check_log(input: &[u8]) {
    let Some((base, mut changes)) = input.split_first() else { return };
    let disk = BASES.with(|bases| bases[usize::from(base & 1)].fork());
    let mut tail = Tail { offset: HEADER_SIZE as usize, chain: Chain::ZERO };
    while let Some((change, rest)) = Change::split(changes) {
        change.apply(&disk, &mut tail);
        changes = rest;
    }
    let Some(records) = open_and_read(&disk) else { return };
    disk.crash(mem_disk::Keep::None);
    // What was told once is durable, and the first open repaired what there was to repair.
    assert_eq!(open_and_read(&disk).as_ref(), Some(&records), "the second open finds what the first one did");
    append_one(&disk);
    let after = open_and_read(&disk).expect("a log that takes records can be opened");
    assert!(after.len() == records.len() + 1 && after.starts_with(&records), "one record more");
}

fn open(disk: &mut MemDisk, salt: u64) -> Result<Opened, OpenError> {
    let identity = Identity { cluster_id: CLUSTER, ..Identity::default() };
    Wal::open(disk, identity, &Base::default(), salt, CONFIG)
}

/// The records of the log, or `None` for a refusal.
fn open_and_read(disk: &MemDisk) -> Option<Vec<Vec<u8>>> {
    let mut disk = disk.clone();
    let Opened { mut wal, report } = match open(&mut disk, 1) {
        Ok(opened) => opened,
        Err(refusal) => {
            assert!(!refusal.to_string().is_empty(), "a refusal says why");
            return None;
        }
    };
    let (mut records, mut chain) = (Vec::new(), Chain::ZERO);
    if wal.last_lsn() >= wal.first_lsn() {
        let (first, last) = (wal.first_lsn(), wal.last_lsn());
        let read = wal.replay(&mut disk, first, last, &mut |record| {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            chain = chain.extend(&bytes);
            records.push(bytes);
            assert_eq!(record.lsn, Lsn(records.len() as u64), "LSNs have no gap");
        });
        read.expect("what was opened can be read");
    }
    assert_eq!(
        (report.last_lsn, wal.last_chain()),
        (Lsn(records.len() as u64), chain),
        "the chain is intact"
    );
    assert_eq!(wal.durable_lsn(), wal.last_lsn(), "what was told is durable");
    disk.kill_process();
    Some(records)
}

fn append(wal: &mut Wal, disk: &mut dyn Disk, effect: Effect<'_>) {
    let record = Record { lsn: wal.last_lsn().next(), effect };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    wal.reserve(disk, record_size(&effect)).expect("the disk has room");
    wal.append(&bytes, &record);
}

fn flush(wal: &mut Wal, disk: &mut dyn Disk) {
    wal.write(disk, Lsn::ZERO).expect("the disk is well");
    wal.flush_begin(disk).expect("the disk is well");
}

fn append_one(disk: &MemDisk) {
    let mut disk = disk.clone();
    let mut wal = open(&mut disk, 2).expect("it was opened before").wal;
    append(&mut wal, &mut disk, Effect::Put { key: b"one", value: b"more" });
    flush(&mut wal, &mut disk);
    disk.kill_process();
}

/// Two segments of several batches; or one that holds nothing but its header.
fn base_log(empty: bool) -> MemDisk {
    let mut disk = MemDisk::new();
    let mut wal = open(&mut disk, 9).expect("a new directory").wal;
    append(
        &mut wal,
        &mut disk,
        Effect::Term { term: Term { promotion: 0, start: 1 }, leader: NodeId([1; 16]) },
    );
    flush(&mut wal, &mut disk);
    for size in [90, 100, 190, 140, 60, 30] {
        append(&mut wal, &mut disk, Effect::Put { key: b"key", value: &vec![size as u8; size] });
        append(&mut wal, &mut disk, Effect::Delete { key: &vec![b'k'; size] });
        flush(&mut wal, &mut disk);
    }
    disk.kill_process();
    if empty {
        let names = segments(&disk);
        let mut first = disk.raw(&names[0]).expect("it was listed");
        first[HEADER_SIZE as usize..].fill(0);
        names.iter().for_each(|name| disk.remove_raw(name));
        disk.put_raw(&names[0], &first);
    }
    disk
}

fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.starts_with("wal-") && name.ends_with(".seg")).collect()
}

/// Where the next entry with a valid checksum goes: behind those that the input has put there.
struct Tail {
    offset: usize,
    chain: Chain,
}

struct Change<'a> {
    kind: u8,
    file: u8,
    offset: usize,
    bytes: &'a [u8],
}

impl<'a> Change<'a> {
    fn split(input: &'a [u8]) -> Option<(Change<'a>, &'a [u8])> {
        let mut reader = Reader::new(input);
        let kind = reader.u8("kind").ok()?;
        let file = reader.u8("file").ok()?;
        let offset = reader.u16("offset").ok()?.into();
        let count = reader.u8("count").ok()?;
        let bytes = reader.bytes("bytes", count.into()).ok()?;
        Some((Change { kind: kind % 6, file, offset, bytes }, &input[reader.position()..]))
    }

    fn apply(&self, disk: &MemDisk, tail: &mut Tail) {
        let names = segments(disk);
        let Some(name) = names.get(usize::from(self.file) % names.len().max(1)) else { return };
        let mut content = disk.raw(name).expect("it was listed");
        match self.kind {
            FLIP if self.offset < content.len() => {
                content[self.offset] ^= 1 << (self.bytes.first().unwrap_or(&0) & 7);
            }
            OVERWRITE => put(&mut content, self.offset, self.bytes),
            TRUNCATE => content.truncate(self.offset),
            ENTRY => self.put_entry(&mut content, tail),
            COPY_BLOCK => {
                let from = usize::from(self.bytes.first().copied().unwrap_or(0)) * 64;
                let block: Vec<u8> = content.iter().skip(from).take(512).copied().collect();
                put(&mut content, self.offset, &block);
            }
            RENAME => {
                disk.remove_raw(name);
                let name = kvstore::wal::segment_name(Lsn(self.offset as u64 + 1));
                return disk.put_raw(&name, &content);
            }
            _ => return,
        }
        disk.put_raw(name, &content);
    }

    /// The bytes as a record, whatever they are, behind the checksum they must have. With an odd offset its LSN and
    /// lengths are made right too.
    fn put_entry(&self, content: &mut Vec<u8>, tail: &mut Tail) {
        let mut record = self.bytes.to_vec();
        if self.offset & 1 == 1 && record.len() >= RECORD_OVERHEAD {
            let key_size = 1 + self.offset % (record.len() - RECORD_OVERHEAD + 1).max(1);
            let key_size = key_size.min(record.len() - RECORD_OVERHEAD);
            let value_size = record.len() - RECORD_OVERHEAD - key_size;
            record[9..13].copy_from_slice(&(key_size as u32).to_be_bytes());
            record[13 + key_size..17 + key_size].copy_from_slice(&(value_size as u32).to_be_bytes());
        }
        let chain = tail.chain.extend(&record);
        let mut entry = chain.0.to_be_bytes().to_vec();
        entry.extend_from_slice(&(record.len() as u32).to_be_bytes());
        entry.extend_from_slice(&record);
        put(content, tail.offset, &entry);
        (tail.offset, tail.chain) = (tail.offset + ENTRY_HEADER_SIZE + record.len(), chain);
    }
}

/// Lays bytes down, over what is there and beyond the end.
fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = (offset + bytes.len()).min(FILE_SIZE_MAX);
    if end > content.len() {
        content.resize(end, 0);
    }
    if let Some(place) = content.get_mut(offset..end) {
        place.copy_from_slice(&bytes[..end - offset]);
    }
}
