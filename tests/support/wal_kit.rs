//! What the tests of the log share: a small log in memory, its records by LSN, and how to compare.

#![allow(dead_code)]

use kvstore::ids::{Chain, ClusterId, Lsn, NodeId, Term};
use kvstore::wal::{
    Base, Cursor, Durability, Durable, Identity, OpenError, Opened, ReserveError, Wal, WalConfig, WalError,
    segment_name,
};
use kvstore::wire::{Effect, Record};

use super::mem_disk::MemDisk;

pub const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
/// A header and 4 KiB: a few dozen small records.
pub const SEGMENT_BYTES: u64 = 8192;
pub const FIRST_SEGMENT: &str = "wal-00000000000000000001.seg";

pub fn config(segment_bytes: u64) -> WalConfig {
    WalConfig { segment_bytes, durability: Durability::Fsync }
}

pub fn open_at(
    disk: &MemDisk,
    generation: u64,
    cut_lsn: u64,
    segment_bytes: u64,
) -> Result<Opened, OpenError> {
    open_behind(disk, identity(generation, cut_lsn), &Base::default(), segment_bytes)
}

pub fn open_behind(
    disk: &MemDisk,
    identity: Identity,
    base: &Base,
    segment_bytes: u64,
) -> Result<Opened, OpenError> {
    // As the node's random salt: another one at each start.
    let salt = 0x5eed_0000 + disk.op_count();
    Wal::open(&mut disk.clone(), identity, base, salt, config(segment_bytes))
}

/// The node's own record of a log that begins at LSN 1.
pub fn identity(generation: u64, cut_lsn: u64) -> Identity {
    Identity { cluster_id: CLUSTER, generation, cut_lsn: Lsn(cut_lsn), ..Identity::default() }
}

pub fn open(disk: &MemDisk) -> Result<Opened, OpenError> {
    open_at(disk, 0, 0, SEGMENT_BYTES)
}

pub fn opened(disk: &MemDisk) -> Opened {
    open(disk).unwrap_or_else(|error| panic!("the log opens: {error}"))
}

/// The bytes of a record: a value of `size` bytes that depends on `flavour`.
pub fn put_bytes(lsn: u64, flavour: u8, size: usize) -> Vec<u8> {
    let key = format!("key{lsn}");
    let value: Vec<u8> = (0..size).map(|at| flavour ^ (at as u8) ^ (lsn as u8)).collect();
    let mut bytes = Vec::new();
    Record { lsn: Lsn(lsn), effect: Effect::Put { key: key.as_bytes(), value: &value } }.encode(&mut bytes);
    bytes
}

pub fn term_bytes(lsn: u64, start: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let effect = Effect::Term { term: Term { promotion: 0, start }, leader: NodeId([7; 16]) };
    Record { lsn: Lsn(lsn), effect }.encode(&mut bytes);
    bytes
}

pub fn decode(bytes: &[u8]) -> Record<'_> {
    Record::decode(&mut kvstore::wire::Reader::new(bytes)).expect("test records are valid")
}

pub fn append(wal: &mut Wal, disk: &MemDisk, bytes: &[u8]) -> Result<(), ReserveError> {
    wal.reserve(&mut disk.clone(), bytes.len())?;
    wal.append(bytes, &decode(bytes));
    Ok(())
}

/// Appends `count` records of `size` bytes of value, unwritten.
pub fn append_many(wal: &mut Wal, disk: &MemDisk, count: u64, size: usize) {
    for _ in 0..count {
        let bytes = put_bytes(wal.last_lsn().0 + 1, 0, size);
        append(wal, disk, &bytes).unwrap();
    }
}

pub fn write(wal: &mut Wal, disk: &MemDisk) -> Result<(), WalError> {
    wal.write(&mut disk.clone(), Lsn::ZERO)
}

pub fn flush(wal: &mut Wal, disk: &MemDisk) -> Result<Durable, WalError> {
    Ok(wal.flush_begin(&mut disk.clone())?.expect("the disk flushes at once"))
}

/// One batch of `count` records, written and flushed.
pub fn batch(wal: &mut Wal, disk: &MemDisk, count: u64, size: usize) -> Durable {
    append_many(wal, disk, count, size);
    write(wal, disk).unwrap();
    flush(wal, disk).unwrap()
}

/// All records of the log, read back one by one.
pub fn contents(wal: &mut Wal, disk: &MemDisk) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let (first, last) = (wal.first_lsn(), wal.written_lsn());
    wal.replay(&mut disk.clone(), first, last, &mut |record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        records.push(bytes);
    })
    .expect("what is in the log reads");
    records
}

pub fn chain_of(records: &[Vec<u8>]) -> Chain {
    records.iter().fold(Chain::ZERO, |chain, bytes| chain.extend(bytes))
}

/// Everything up to `last`, through `read` with a cursor.
pub fn read_all(wal: &mut Wal, disk: &MemDisk, max_bytes: usize) -> Vec<u8> {
    let (mut out, mut cursor) = (Vec::new(), Cursor::default());
    let mut from = wal.first_lsn();
    while from <= wal.written_lsn() {
        let range = wal.read(&mut disk.clone(), &mut cursor, from, max_bytes, &mut out).unwrap();
        assert_eq!((range.first, range.last.0), (from, from.0 + u64::from(range.count) - 1));
        from = range.last.next();
    }
    out
}

pub fn segments(disk: &MemDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

pub fn segment_of(first_lsn: u64) -> String {
    segment_name(Lsn(first_lsn))
}

/// What a run has promised when it ends, wherever that is.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    /// The records, as they must read, if they are there.
    pub appended: Vec<Vec<u8>>,
    pub durable: usize,
    /// The node's own record: generation and cut LSN.
    pub meta: (u64, u64),
    /// And the base of a log that a snapshot replaced.
    pub installed: (Lsn, Chain),
    /// The snapshot that there is; at LSN 0 there is none.
    pub base: Base,
}

impl Promises {
    /// False: the record has to wait for the flush under way.
    pub fn append(
        &mut self,
        wal: &mut Wal,
        disk: &MemDisk,
        flavour: u8,
        size: usize,
    ) -> Result<bool, WalError> {
        let bytes = put_bytes(wal.last_lsn().0 + 1, flavour, size);
        match append(wal, disk, &bytes) {
            // Once appended it may be written at any later moment.
            Ok(()) => self.appended.push(bytes),
            Err(ReserveError::FlushPending) => return Ok(false),
            Err(ReserveError::Failed(error)) => return Err(error),
            Err(ReserveError::NoRoom(error)) => panic!("there is space: {error}"),
        }
        Ok(true)
    }

    pub fn flush(&mut self, wal: &mut Wal, disk: &MemDisk) -> Result<(), WalError> {
        write(wal, disk)?;
        self.durable = flush(wal, disk)?.lsn().0 as usize;
        Ok(())
    }

    /// The node's own record of a cut is durable.
    pub fn cut_decided(&mut self, wal: &Wal, keep: u64) {
        self.meta = (self.meta.0 + 1, keep);
        if keep + 1 == wal.first_lsn().0 {
            // No segment will be left to tell where the log begins.
            self.installed = (self.base.lsn, self.base.chain);
        }
        self.appended.truncate(keep as usize);
        self.durable = self.durable.min(keep as usize);
    }

    pub fn cut(&mut self, wal: &mut Wal, disk: &MemDisk, keep: u64) -> Result<(), WalError> {
        self.cut_decided(wal, keep);
        wal.cut(&mut disk.clone(), Lsn(keep), self.meta.0)?;
        self.durable = keep as usize;
        Ok(())
    }

    /// A snapshot of these records is durable, which are.
    pub fn snapshot(&mut self, lsn: u64) {
        let chain = chain_of(&self.appended[..lsn as usize]);
        self.base = Base { lsn: Lsn(lsn), chain, durable_lsn: Lsn(lsn), ..Base::default() };
    }

    /// A snapshot of these records is durable, and the node's own record names it in the place of the log.
    pub fn install_decided(&mut self, records: Vec<Vec<u8>>) {
        self.appended = records;
        self.durable = self.appended.len();
        self.snapshot(self.durable as u64);
        (self.meta, self.installed) = ((self.meta.0 + 1, 0), (self.base.lsn, self.base.chain));
    }

    pub fn open(&self, disk: &MemDisk) -> Result<Opened, OpenError> {
        let (base_lsn, base_chain) = self.installed;
        let identity = Identity { base_lsn, base_chain, ..identity(self.meta.0, self.meta.1) };
        open_behind(disk, identity, &self.base, SEGMENT_BYTES)
    }

    /// Opens after a crash and compares; returns how many records there are.
    pub fn check(&self, disk: &MemDisk, context: &str) -> usize {
        let opened = self.open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
        let mut wal = opened.wal;
        self.check_log(&mut wal, disk, context)
    }

    /// Compares an open log; returns how many records there are, and were before it begins.
    pub fn check_log(&self, wal: &mut Wal, disk: &MemDisk, context: &str) -> usize {
        let before = wal.first_lsn().0 as usize - 1;
        assert!(before as u64 <= self.base.lsn.0, "{context}: the log begins at LSN {}", before + 1);
        let found = contents(wal, disk);
        let count = before + found.len();
        assert!(count >= self.durable, "{context}: {count} records of {}", self.durable);
        assert!(self.appended[before..].starts_with(&found), "{context}: the log is not what was appended");
        assert_eq!(wal.durable_lsn().0 as usize, count, "{context}");
        assert_eq!(wal.last_chain(), chain_of(&self.appended[..count]), "{context}");
        count
    }
}
