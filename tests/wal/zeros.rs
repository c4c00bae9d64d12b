//! Zeros ahead of the log: where they are written, and when.

use std::io;

use kvstore::disk::{BLOCK_SIZE, Disk, FileId};
use kvstore::ids::{ClusterId, Lsn};
use kvstore::limits::{ZEROS_AHEAD, ZEROS_PER_TURN};
use kvstore::wal::{
    Base, Durability, HEADER_SIZE, Identity, Opened, SPARE_NAME, Wal, WalConfig, segment_name,
};
use kvstore::wire::{Effect, Record};

use crate::mem_disk::{self, MemDisk};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const SEGMENT: u64 = 16 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// A disk that notes where zeros are written. The one below fails a test that writes them over anything else.
struct Noting {
    mem: MemDisk,
    wanted: bool,
    names: Vec<(FileId, String)>,
    zeros: Vec<(String, u64, u64)>,
}

impl Noting {
    fn new(mem: MemDisk) -> Noting {
        Noting { mem, wanted: true, names: Vec::new(), zeros: Vec::new() }
    }

    fn named(&mut self, name: &str, file: io::Result<FileId>) -> io::Result<FileId> {
        let file = file?;
        self.names.push((file, name.to_owned()));
        Ok(file)
    }

    /// Up to where zeros were written without a gap, from the first step in this file on.
    fn zeros_of(&self, name: &str) -> Option<(u64, u64)> {
        let mut steps = self.zeros.iter().filter(|(file, ..)| file == name);
        let (_, from, len) = steps.next()?;
        let end = steps.fold(from + len, |end, (_, offset, len)| {
            assert_eq!(*offset, end, "zeros are written from front to back");
            end + len
        });
        Some((*from, end))
    }
}

impl Disk for Noting {
    fn describe(&self) -> String {
        self.mem.describe()
    }
    fn list(&mut self) -> io::Result<Vec<String>> {
        self.mem.list()
    }
    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        let file = self.mem.create(name, size);
        self.named(name, file)
    }
    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let file = self.mem.open(name);
        self.named(name, file)
    }
    fn close(&mut self, file: FileId) {
        self.mem.close(file);
    }
    fn len(&mut self, file: FileId) -> io::Result<u64> {
        self.mem.len(file)
    }
    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.mem.read_at(file, offset, buffer)
    }
    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.mem.write_at(file, offset, bytes)
    }
    fn sync_data(&mut self, file: FileId) -> io::Result<()> {
        self.mem.sync_data(file)
    }
    fn append_sync_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.mem.append_sync_at(file, offset, bytes)
    }
    fn zero_ahead(&mut self, file: FileId, offset: u64, len: u64) -> bool {
        let name = self.names.iter().rev().find(|(id, _)| *id == file).expect("it was opened").1.clone();
        self.zeros.push((name, offset, len));
        self.wanted && self.mem.zero_ahead(file, offset, len)
    }
    fn sync_dir(&mut self) -> io::Result<()> {
        self.mem.sync_dir()
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        for (_, name) in self.names.iter_mut().filter(|(_, name)| name == from) {
            to.clone_into(name);
        }
        for (name, ..) in self.zeros.iter_mut().filter(|(name, ..)| name == from) {
            to.clone_into(name);
        }
        self.mem.rename(from, to)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.mem.remove(name)
    }
}

fn open(disk: &mut Noting, durability: Durability) -> Wal {
    let config = WalConfig { segment_bytes: SEGMENT, durability };
    let identity = Identity { cluster_id: CLUSTER, generation: 1, ..Identity::default() };
    let Opened { wal, .. } = Wal::open(disk, identity, &Base::default(), 42, config).unwrap();
    wal
}

/// Appends one record, durably, as a turn does, and lets the log write zeros as a busy node does.
fn busy_turn(wal: &mut Wal, disk: &mut Noting, value_size: usize) {
    append(wal, disk, value_size);
    if wal.wants_spare() {
        wal.prepare_spare(disk).unwrap();
    }
    wal.write_zeros(disk, false);
}

fn append(wal: &mut Wal, disk: &mut Noting, value_size: usize) {
    let value = vec![7; value_size];
    let record = Record { lsn: wal.last_lsn().next(), effect: Effect::Put { key: b"key", value: &value } };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    wal.reserve(disk, bytes.len()).unwrap();
    wal.append(&bytes, &record);
    wal.write_durably(disk, Lsn::ZERO).unwrap();
}

fn idle(wal: &mut Wal, disk: &mut Noting) {
    let mut steps = 0;
    while wal.wants_zeros() {
        wal.write_zeros(disk, true);
        steps += 1;
        assert!(steps <= 2 * SEGMENT / ZEROS_PER_TURN, "it comes to an end");
    }
}

#[test]
fn a_busy_log_has_zeros_a_few_steps_ahead_of_it_and_no_more() {
    let mut disk = Noting::new(MemDisk::new());
    let mut wal = open(&mut disk, Durability::Fsync);
    for _ in 0..20 {
        busy_turn(&mut wal, &mut disk, 1_000);
    }
    let (from, to) = disk.zeros_of(&segment_name(Lsn(1))).unwrap();
    assert_eq!(from, HEADER_SIZE + BLOCK, "behind the block that the first record ends in");
    assert!((ZEROS_AHEAD..ZEROS_AHEAD + 2 * ZEROS_PER_TURN).contains(&to), "up to {to}");
    assert_eq!(disk.zeros_of(SPARE_NAME), None);
}

#[test]
fn the_next_segment_is_full_of_zeros_when_a_busy_log_comes_to_it() {
    let mut disk = Noting::new(MemDisk::new());
    let mut wal = open(&mut disk, Durability::Fsync);
    let mut turns = 0;
    while wal.last_lsn() == Lsn::ZERO
        || !disk.mem.list().unwrap().contains(&segment_name(wal.last_lsn()))
        || turns < 2
    {
        busy_turn(&mut wal, &mut disk, 200_000);
        turns += 1;
    }
    let second = segment_name(wal.last_lsn());
    assert_eq!(disk.zeros_of(&second), Some((0, SEGMENT)));
}

#[test]
fn an_idle_log_has_the_rest_written_and_then_asks_for_nothing() {
    let mut disk = Noting::new(MemDisk::new());
    let mut wal = open(&mut disk, Durability::Fsync);
    assert!(!wal.wants_zeros(), "there is no segment yet");
    append(&mut wal, &mut disk, 1_000);
    idle(&mut wal, &mut disk);
    assert_eq!(disk.zeros_of(&segment_name(Lsn(1))), Some((HEADER_SIZE + BLOCK, SEGMENT)));
    wal.prepare_spare(&mut disk).unwrap();
    idle(&mut wal, &mut disk);
    assert_eq!(disk.zeros_of(SPARE_NAME), Some((0, SEGMENT)));
}

#[test]
fn after_a_restart_zeros_begin_behind_the_log_and_what_was_acknowledged_is_there() {
    let mut disk = Noting::new(MemDisk::new());
    let mut wal = open(&mut disk, Durability::Fsync);
    for _ in 0..3 {
        busy_turn(&mut wal, &mut disk, 3_000);
    }
    disk.mem.crash(mem_disk::Keep::None);
    let mut disk = Noting::new(disk.mem);
    let mut wal = open(&mut disk, Durability::Fsync);
    idle(&mut wal, &mut disk);
    assert_eq!(disk.zeros_of(&segment_name(Lsn(1))), Some((HEADER_SIZE + 3 * BLOCK, SEGMENT)));
    append(&mut wal, &mut disk, 3_000);
    disk.mem.crash(mem_disk::Keep::None);
    assert_eq!(open(&mut Noting::new(disk.mem), Durability::Fsync).last_lsn(), Lsn(4));
}

#[test]
fn nothing_is_written_ahead_where_it_is_of_no_use() {
    let mut disk = Noting::new(MemDisk::new());
    let mut wal = open(&mut disk, Durability::Os);
    append(&mut wal, &mut disk, 1_000);
    assert!(!wal.wants_zeros(), "without syncs there is nothing to make cheaper");

    let mut disk = Noting { wanted: false, ..Noting::new(MemDisk::new()) };
    let mut wal = open(&mut disk, Durability::Fsync);
    append(&mut wal, &mut disk, 1_000);
    idle(&mut wal, &mut disk);
    assert_eq!(disk.zeros.len(), 1, "a disk that refuses is asked once for each file");
}
