//! A disk in memory that fails, crashes and tells.
//!
//! What it models:
//! - A file has live bytes, which reads show, and durable bytes, which a power loss leaves. A write makes
//!   512-byte sectors unsynced; `sync_data` copies them to the durable bytes. A sector that was written more
//!   than once since has one version per write, and a random crash may leave any of them.
//! - A created, renamed or removed name is an unsynced directory operation until `sync_dir`. A crash keeps any
//!   subset of them, in their order. The data of a file is durable apart from its name, and the other way round.
//! - A file keeps the size it was created with; a size that grew by a write is durable with the write.
//! - A failed `sync_data` drops the dirty marks as the page cache does: reads still show the data, a later sync
//!   that succeeds proves nothing about it, and the crash takes it, but for the sectors that the failed one
//!   wrote after all (none, unless the test says which).
//!
//! Two ways to end: [`MemDisk::crash`] is a power loss, [`MemDisk::kill_process`] leaves the page cache as it
//! is. Both invalidate all handles. Nothing here is random but by a seed that the test gives.
//!
//! A `MemDisk` is a handle: its clones are the same disk, [`MemDisk::fork`] is another one.

#![allow(dead_code, unused_imports)]

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::rc::Rc;

use kvstore::disk::{Disk, FileId, Flush};

mod mem_file;
use mem_file::{Chooser, DirOp, Failing, Failure, File, Inode, Sector};
pub use mem_file::{Keep, SECTOR_SIZE, SimulatedCrash, is_simulated_crash};

/// `errno` values as Linux has them, so that tests need no further crate.
pub const EIO: i32 = 5;
/// Bad file descriptor: a handle of before the crash.
pub const EBADF: i32 = 9;
/// No space left on device.
pub const ENOSPC: i32 = 28;

/// What was done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    Create,
    Open,
    Read,
    Write,
    /// `sync_data`, and `flush_begin` likewise.
    Sync,
    SyncDir,
    Rename,
    Remove,
}

impl OpKind {
    /// Whether it changes what a crash leaves. Only these are logged and counted as crash points.
    pub fn is_mutating(self) -> bool {
        !matches!(self, OpKind::Open | OpKind::Read)
    }
}

/// One entry of the log of mutating operations; failed ones are in it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub kind: OpKind,
    /// The file; for a rename its new name, for `SyncDir` empty.
    pub name: String,
    /// Where a write began.
    pub offset: u64,
    /// Bytes asked to be written, or the size of a created file.
    pub size: u64,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { kind, name, offset, size } = self;
        match kind {
            OpKind::Write => write!(f, "write {name} {offset}+{size}"),
            OpKind::Create => write!(f, "create {name} {size}"),
            OpKind::SyncDir => write!(f, "sync_dir"),
            other => write!(f, "{} {name}", format!("{other:?}").to_lowercase()),
        }
    }
}

/// A flush that was begun and not completed: what it covers is what was written before it began.
#[derive(Clone, Debug)]
struct HeldFlush {
    inode: Inode,
    /// Sectors with the number of their versions at the beginning.
    covers: Vec<(Sector, usize)>,
    failure: Option<Failing>,
}

#[derive(Clone, Debug, Default)]
struct State {
    files: BTreeMap<Inode, File>,
    names: BTreeMap<String, Inode>,
    durable_names: BTreeMap<String, Inode>,
    dir_ops: Vec<DirOp>,
    handles: BTreeMap<u32, Inode>,
    inodes_given: usize,
    handles_given: u32,
    capacity: Option<u64>,
    write_size_max: Option<usize>,
    failures: Vec<Failure>,
    log: Vec<Op>,
    crash_before: Option<u64>,
    crashed: bool,
    hold_flushes: bool,
    held: Option<HeldFlush>,
    flush_result: Option<Result<(), i32>>,
}

fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn outcome(failure: Option<Failing>) -> io::Result<()> {
    failure.map_or(Ok(()), |how| Err(os_error(how.errno)))
}

impl State {
    /// Counts and logs an operation; says how if it is to fail.
    fn begin(&mut self, kind: OpKind, name: &str, offset: u64, size: u64) -> io::Result<Option<Failing>> {
        if kind.is_mutating() && !self.crashed && self.crash_before == Some(self.log.len() as u64) {
            self.crashed = true;
        }
        self.alive()?;
        if kind.is_mutating() {
            self.log.push(Op { kind, name: name.to_owned(), offset, size });
        }
        Ok(self.take_failure(kind))
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(io::Error::other(SimulatedCrash)) } else { Ok(()) }
    }

    fn take_failure(&mut self, kind: OpKind) -> Option<Failing> {
        let mut taken = None;
        self.failures.retain_mut(|failure| {
            if failure.kind != kind {
                return true;
            }
            if failure.after > 0 {
                failure.after -= 1;
                return true;
            }
            taken = Some(failure.how);
            failure.forever
        });
        taken
    }

    fn inode(&self, file: FileId) -> io::Result<Inode> {
        self.handles.get(&file.0).copied().ok_or_else(|| os_error(EBADF))
    }

    fn file(&mut self, inode: Inode) -> &mut File {
        self.files.get_mut(&inode).expect("an inode with a name or a handle exists")
    }

    fn lookup(&self, name: &str) -> io::Result<Inode> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn hand_out(&mut self, inode: Inode) -> FileId {
        let id = self.handles_given;
        self.handles_given += 1;
        self.handles.insert(id, inode);
        FileId(id)
    }

    fn new_file(&mut self, name: &str, content: Vec<u8>) -> Inode {
        let inode = self.inodes_given;
        self.inodes_given += 1;
        let file = File { name: name.to_owned(), durable: content.clone(), live: content, ..File::default() };
        self.files.insert(inode, file);
        inode
    }

    /// Bytes of all files that a name or a handle shows.
    fn used(&self) -> u64 {
        let in_use = |inode: &Inode| {
            self.names.values().any(|named| named == inode) || self.handles.values().any(|open| open == inode)
        };
        self.files.iter().filter(|(inode, _)| in_use(inode)).map(|(_, file)| file.live.len() as u64).sum()
    }

    fn reserve(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => Err(os_error(ENOSPC)),
            _ => Ok(()),
        }
    }

    fn change_names(&mut self, op: DirOp) {
        op.apply(&mut self.names);
        self.dir_ops.push(op);
    }

    /// Ends a flush: the data it covers is durable, or will never be.
    fn finish_flush(&mut self, flush: HeldFlush) -> Result<(), i32> {
        let file = self.file(flush.inode);
        let mut chooser = Chooser::new(flush.failure.map_or(Keep::All, |how| how.keep));
        for (sector, count) in flush.covers {
            // A sync of the same file in between has done it already.
            let Some(versions) = file.dirty.get_mut(&sector) else { continue };
            let covered: Vec<_> = versions.drain(..count.min(versions.len())).collect();
            if versions.is_empty() {
                file.dirty.remove(&sector);
            }
            if let Some(kept) = chooser.next(covered.len()).checked_sub(1) {
                file.persist(sector, &covered[kept]);
            }
        }
        flush.failure.map_or(Ok(()), |how| Err(how.errno))
    }

    /// The process is gone: nothing it held, asked for or was told about remains.
    fn end_process(&mut self) {
        self.handles.clear();
        self.failures.clear();
        self.crash_before = None;
        self.crashed = false;
        self.held = None;
        self.flush_result = None;
    }

    fn crash(&mut self, sectors: Keep, names: Keep) {
        let mut chooser = Chooser::new(names);
        for op in std::mem::take(&mut self.dir_ops) {
            if chooser.next(1) == 1 {
                op.apply(&mut self.durable_names);
            }
        }
        self.names.clone_from(&self.durable_names);
        let mut chooser = Chooser::new(sectors);
        self.files.values_mut().for_each(|file| file.crash(&mut chooser));
        let names = &self.names;
        self.files.retain(|inode, _| names.values().any(|named| named == inode));
        self.end_process();
    }
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct MemDisk(Rc<RefCell<State>>);

impl MemDisk {
    /// An empty directory on a disk without limits that never fails.
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Another disk that is as this one is now, with its handles, injected failures and log.
    #[must_use]
    pub fn fork(&self) -> MemDisk {
        MemDisk(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// Power loss: the same choice for sectors and for directory operations. Handles become invalid,
    /// injected failures and the crash point are forgotten; capacity, short writes and the log stay.
    pub fn crash(&self, keep: Keep) {
        self.crash_with(keep, keep);
    }

    /// Power loss with a choice each.
    pub fn crash_with(&self, sectors: Keep, names: Keep) {
        self.state().crash(sectors, names);
    }

    /// `kill -9`: handles become invalid, but the page cache stays, unsynced and shown.
    pub fn kill_process(&self) {
        self.state().end_process();
    }

    /// The unsynced sectors as (file, sector number), in the order in which a mask counts them.
    pub fn unsynced_sectors(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let of_file = |file: &File| file.dirty.keys().map(|&s| (file.name.clone(), s)).collect::<Vec<_>>();
        state.files.values().flat_map(of_file).collect()
    }

    /// How many directory operations are unsynced.
    pub fn unsynced_names(&self) -> usize {
        self.state().dir_ops.len()
    }

    /// The mutating operations so far, which is also how crash points count.
    pub fn op_count(&self) -> u64 {
        self.state().log.len() as u64
    }

    /// All mutating operations so far.
    pub fn op_log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// The n-th mutating operation of this disk (from 0, as [`MemDisk::op_count`] counts) and everything
    /// after it returns [`SimulatedCrash`] and does nothing, until `crash` or `kill_process`.
    pub fn crash_before(&self, op: u64) {
        self.state().crash_before = Some(op);
    }

    /// Descriptors that the process holds.
    pub fn open_files(&self) -> usize {
        self.state().handles.len()
    }

    /// Whether a crash point is set and not reached.
    pub fn crash_is_armed(&self) -> bool {
        self.state().crash_before.is_some()
    }

    /// Whether the crash point was reached.
    pub fn has_crashed(&self) -> bool {
        self.state().crashed
    }

    /// One operation of the kind fails: the next one after `after` of them went well.
    /// A `Sync` that fails drops the dirty marks.
    pub fn fail(&self, kind: OpKind, after: u64, errno: i32) {
        let how = Failing { errno, keep: Keep::None };
        self.state().failures.push(Failure { kind, after, forever: false, how });
    }

    /// A `Sync` as in [`MemDisk::fail`] that has made some sectors durable before it fails.
    pub fn fail_sync_keeping(&self, after: u64, errno: i32, keep: Keep) {
        let how = Failing { errno, keep };
        self.state().failures.push(Failure { kind: OpKind::Sync, after, forever: false, how });
    }

    /// All operations of the kind fail until [`MemDisk::heal`].
    pub fn fail_always(&self, kind: OpKind, errno: i32) {
        let how = Failing { errno, keep: Keep::None };
        self.state().failures.push(Failure { kind, after: 0, forever: true, how });
    }

    /// No injected failure is left.
    pub fn heal(&self) {
        self.state().failures.clear();
    }

    /// A write takes at most so many bytes.
    pub fn set_write_size_max(&self, bytes: Option<usize>) {
        assert_ne!(bytes, Some(0), "a write is short, never empty");
        self.state().write_size_max = bytes;
    }

    /// The bytes of all files together; above it `create` and growing writes end with ENOSPC. A write that
    /// finds some room is short first.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes of all files that have a name or a handle.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// From now on `flush_begin` is pending until [`MemDisk::complete_flush`].
    pub fn hold_flushes(&self, hold: bool) {
        self.state().hold_flushes = hold;
    }

    /// Whether a flush is under way.
    pub fn flush_is_pending(&self) -> bool {
        self.state().held.is_some()
    }

    /// Ends the flush under way: `flush_poll` gives its result once. Covers what was written before it began.
    pub fn complete_flush(&self) {
        let mut state = self.state();
        let flush = state.held.take().expect("a flush is under way");
        let result = state.finish_flush(flush);
        state.flush_result = Some(result);
    }

    /// The names as reads show them.
    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// The bytes of a file as reads show them; `None` if there is no such name.
    pub fn raw(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(name).map(|inode| state.files[inode].live.clone())
    }

    /// The bytes of a file that a crash with `Keep::None` leaves, whether or not its name is durable.
    pub fn raw_durable(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(name).map(|inode| state.files[inode].durable.clone())
    }

    /// Puts a file there, durably, in place of one of the same name.
    pub fn put_raw(&self, name: &str, content: &[u8]) {
        let mut state = self.state();
        let inode = state.new_file(name, content.to_vec());
        state.names.insert(name.to_owned(), inode);
        state.durable_names.insert(name.to_owned(), inode);
    }

    /// Takes a file away, durably.
    pub fn remove_raw(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name).expect("the file to take away exists");
        state.durable_names.remove(name);
    }

    /// Flips one bit (0 to 7) of a byte: rot on the disk, in what is shown and in what a crash leaves.
    pub fn corrupt(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let inode = state.names[name];
        let file = state.file(inode);
        let at = offset as usize;
        file.live[at] ^= 1 << bit;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= 1 << bit;
        }
        for version in file.dirty.get_mut(&(offset / SECTOR_SIZE as u64)).into_iter().flatten() {
            if let Some(byte) = version.get_mut(at % SECTOR_SIZE) {
                *byte ^= 1 << bit;
            }
        }
    }
}

impl Disk for MemDisk {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        let mut state = self.state();
        outcome(state.begin(OpKind::Create, name, 0, size)?)?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.reserve(size)?;
        let inode = state.new_file(name, vec![0; size as usize]);
        state.change_names(DirOp::Link(name.to_owned(), inode));
        Ok(state.hand_out(inode))
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let mut state = self.state();
        outcome(state.begin(OpKind::Open, name, 0, 0)?)?;
        let inode = state.lookup(name)?;
        Ok(state.hand_out(inode))
    }

    fn close(&mut self, file: FileId) {
        self.state().handles.remove(&file.0);
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        let mut state = self.state();
        state.alive()?;
        let inode = state.inode(file)?;
        Ok(state.file(inode).live.len() as u64)
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        outcome(state.begin(OpKind::Read, "", offset, buffer.len() as u64)?)?;
        let inode = state.inode(file)?;
        let live = &state.file(inode).live;
        let start = live.len().min(offset as usize);
        let size = buffer.len().min(live.len() - start);
        buffer[..size].copy_from_slice(&live[start..start + size]);
        Ok(size)
    }

    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let inode = state.inode(file)?;
        let (name, size_before) = (state.file(inode).name.clone(), state.file(inode).live.len() as u64);
        outcome(state.begin(OpKind::Write, &name, offset, bytes.len() as u64)?)?;
        let mut size = bytes.len().min(state.write_size_max.unwrap_or(usize::MAX));
        let grows = (offset + size as u64).saturating_sub(size_before);
        if state.reserve(grows).is_err() {
            let free = state.capacity.unwrap_or(u64::MAX).saturating_sub(state.used());
            size = (size_before + free).saturating_sub(offset).min(size as u64) as usize;
            if size == 0 {
                return Err(os_error(ENOSPC));
            }
        }
        state.file(inode).write(offset as usize, &bytes[..size]);
        Ok(size)
    }

    fn sync_data(&mut self, file: FileId) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.inode(file)?;
        let name = state.file(inode).name.clone();
        let failure = state.begin(OpKind::Sync, &name, 0, 0)?;
        // The flush under way, if any, has nothing left to cover in this file.
        if let Some(held) = state.held.as_mut().filter(|held| held.inode == inode) {
            held.covers.clear();
        }
        let keep = failure.map_or(Keep::All, |how| how.keep);
        state.file(inode).settle(&mut Chooser::new(keep));
        outcome(failure)
    }

    /// As the real disk: whole blocks are written, with what stands in front and zeros behind, and only their
    /// sectors become durable.
    fn append_sync_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let inode = self.state().inode(file)?;
        let (begin, blocks) = self.state().file(inode).blocks_of(offset, bytes);
        self.write_all_at(file, begin, &blocks)?;
        let mut state = self.state();
        let inode = state.inode(file)?;
        let name = state.file(inode).name.clone();
        let failure = state.begin(OpKind::Sync, &name, offset, bytes.len() as u64)?;
        let keep = failure.map_or(Keep::All, |how| how.keep);
        let sectors = begin / SECTOR_SIZE as u64..(begin + blocks.len() as u64).div_ceil(SECTOR_SIZE as u64);
        state.file(inode).settle_range(sectors, &mut Chooser::new(keep));
        outcome(failure)
    }

    /// Zeros over zeros change nothing; over anything else they would.
    fn zero_ahead(&mut self, file: FileId, offset: u64, len: u64) -> bool {
        let mut state = self.state();
        let Ok(inode) = state.inode(file) else { return false };
        let file = state.file(inode);
        let there = &file.live[offset as usize..(offset + len) as usize];
        assert!(there.iter().all(|&byte| byte == 0), "{}: zeros over what is written at {offset}", file.name);
        true
    }

    fn flush_begin(&mut self, file: FileId) -> io::Result<Flush> {
        if !self.0.borrow().hold_flushes {
            return self.sync_data(file).map(|()| Flush::Done);
        }
        let mut state = self.state();
        assert!(state.held.is_none() && state.flush_result.is_none(), "at most one flush is under way");
        let inode = state.inode(file)?;
        let name = state.file(inode).name.clone();
        let failure = state.begin(OpKind::Sync, &name, 0, 0)?;
        let covers = state.file(inode).dirty.iter().map(|(&sector, versions)| (sector, versions.len()));
        let covers = covers.collect();
        state.held = Some(HeldFlush { inode, covers, failure });
        Ok(Flush::Pending)
    }

    fn flush_poll(&mut self) -> Option<io::Result<()>> {
        let result = self.state().flush_result.take()?;
        Some(result.map_err(os_error))
    }

    fn flush_wait(&mut self) -> io::Result<()> {
        if self.flush_is_pending() {
            self.complete_flush();
        }
        self.flush_poll().expect("a flush is under way")
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.state();
        outcome(state.begin(OpKind::SyncDir, "", 0, 0)?)?;
        for op in std::mem::take(&mut state.dir_ops) {
            op.apply(&mut state.durable_names);
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        outcome(state.begin(OpKind::Rename, to, 0, 0)?)?;
        let inode = state.lookup(from)?;
        state.file(inode).name = to.to_owned();
        state.change_names(DirOp::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        outcome(state.begin(OpKind::Remove, name, 0, 0)?)?;
        let inode = state.lookup(name)?;
        state.change_names(DirOp::Unlink(name.to_owned(), inode));
        Ok(())
    }
}
