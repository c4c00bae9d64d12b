//! The disk of a host: `MemDisk` with time and trouble, and the tap that feeds the mirror.
//!
//! Every operation takes virtual time, which the node sees on its own clock within the turn: a sync may
//! stall for seconds. What fails, when the machine crashes and what a crash leaves is decided by the world;
//! here is only what happens by itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use kvstore::disk::{Disk, FileId, Flush};
use kvstore::ids::Chain;
use kvstore::snapshot;
use kvstore::time::{Clock, Time};

use crate::archives::Archive;
use crate::core::{MS, Shared};
use crate::mem_disk::MemDisk;
use crate::mirror::Mirror;

/// The clock of a host: virtual time, the time that this turn has taken so far, and a rate of its own.
#[derive(Clone)]
pub struct HostClock {
    pub core: Shared,
    /// How far the turn under way has come beyond the moment of its event.
    pub ahead: Rc<Cell<u64>>,
    pub rate_ppm: u64,
    pub zero: u64,
}

impl HostClock {
    /// The moment of virtual time at which this clock shows `time`, rounded up.
    pub fn global(&self, time: Time) -> u64 {
        let scaled = (u128::from(time.0) * 1_000_000).div_ceil(u128::from(self.rate_ppm));
        self.zero + scaled as u64
    }
}

impl Clock for HostClock {
    fn now(&self) -> Time {
        let global = self.core.borrow().now + self.ahead.get();
        let run = u128::from(global.saturating_sub(self.zero)) * u128::from(self.rate_ppm) / 1_000_000;
        Time(run as u64 + 1)
    }
}

/// See the head of this file.
pub struct SimDisk {
    pub mem: MemDisk,
    pub core: Shared,
    pub ahead: Rc<Cell<u64>>,
    pub mirror: Rc<RefCell<Mirror>>,
    /// When the flush under way ends, in virtual time.
    pub flush_due: Rc<Cell<Option<u64>>>,
    pub name: String,
    /// The file of the snapshot that is being made or received: what fails there is no failure of the log.
    pub snapshot: Option<FileId>,
    pub site: usize,
    /// Where closed segments are copied to.
    pub archive: Option<Archive>,
    /// Files that are open: who gives up a disk closes them.
    pub open: Vec<FileId>,
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        self.open.iter().for_each(|file| self.mem.close(*file));
    }
}

impl SimDisk {
    /// The same directory, opened anew.
    pub fn another(&self) -> SimDisk {
        SimDisk {
            mem: self.mem.clone(),
            core: self.core.clone(),
            ahead: self.ahead.clone(),
            mirror: self.mirror.clone(),
            flush_due: Rc::default(),
            name: self.name.clone(),
            snapshot: None,
            site: self.site,
            archive: self.archive.clone(),
            open: Vec::new(),
        }
    }

    fn takes(&self, ns: u64) {
        self.ahead.set(self.ahead.get() + ns);
    }

    fn sync_takes(&self) {
        let ns = self.sync_ns();
        self.takes(ns);
    }

    fn sync_ns(&self) -> u64 {
        let mut core = self.core.borrow_mut();
        let mut ns = core.knobs.sync_ns;
        if core.chance_of(|knobs| knobs.slow_disk_ppm) {
            core.stats.count("disk: slow");
            ns *= 10;
        }
        if core.knobs.mishaps.slow_site == Some(self.site) {
            core.stats.count("disk: ten times slower for the whole run");
            ns *= 10;
        }
        if core.chance_of(|knobs| knobs.stall_ppm) {
            let stall_ns = core.between(50 * MS, 10_000 * MS);
            core.stats.count(if stall_ns > 5_000 * MS { "disk: stall beyond 5 s" } else { "disk: stall" });
            ns += stall_ns;
        }
        ns
    }

    fn now(&self) -> u64 {
        self.core.borrow().now + self.ahead.get()
    }
}

impl Disk for SimDisk {
    fn describe(&self) -> String {
        self.name.clone()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.mem.list()
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        self.takes(20_000);
        let result = self.mem.create(name, size);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            self.core.borrow_mut().stats.count("disk: ENOSPC");
        }
        if [snapshot::NEW_NAME, snapshot::RECEIVED_NAME].contains(&name) {
            self.snapshot = result.as_ref().ok().copied();
        }
        self.open.extend(&result);
        result
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let result = self.mem.open(name);
        self.open.extend(&result);
        result
    }

    fn close(&mut self, file: FileId) {
        self.open.retain(|open| *open != file);
        self.mem.close(file);
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        self.mem.len(file)
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.takes(1_000);
        self.mem.read_at(file, offset, buffer)
    }

    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.takes(5_000);
        let mut core = self.core.borrow_mut();
        let short = bytes.len() > 1 && core.chance_of(|knobs| knobs.short_write_ppm);
        let most = if short { core.between(1, bytes.len() as u64 - 1) as usize } else { bytes.len() };
        if short {
            core.stats.count("disk: short write");
        }
        drop(core);
        self.mem.write_at(file, offset, &bytes[..most])
    }

    fn write_all_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            done += self.write_at(file, offset + done as u64, &bytes[done..])?;
        }
        let mut mirror = self.mirror.borrow_mut();
        mirror.on_write(file, bytes);
        if self.core.borrow().knobs.mishaps.os_durability {
            mirror.all_written();
        }
        Ok(())
    }

    /// A step takes as long as it does on a disk that works.
    fn zero_ahead(&mut self, file: FileId, offset: u64, len: u64) -> bool {
        self.takes(300_000);
        self.core.borrow_mut().stats.count("disk: zeros ahead");
        self.mem.zero_ahead(file, offset, len)
    }

    fn append_sync_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sync_takes();
        let result = self.mem.append_sync_at(file, offset, bytes);
        match &result {
            Ok(()) => self.mirror.borrow_mut().on_write_sync(file, bytes),
            Err(_) if self.mem.has_crashed() => {}
            Err(_) => {
                self.core.borrow_mut().stats.count("disk: sync failed");
                self.mirror.borrow_mut().on_write(file, bytes);
                self.mirror.borrow_mut().lost = true;
            }
        }
        result
    }

    fn sync_data(&mut self, file: FileId) -> io::Result<()> {
        self.sync_takes();
        let result = self.mem.sync_data(file);
        match &result {
            Ok(()) => self.mirror.borrow_mut().on_sync(file),
            Err(_) if self.mem.has_crashed() => {}
            Err(error) if !crate::mem_disk::is_simulated_crash(error) => {
                self.core.borrow_mut().stats.count("disk: sync failed");
                self.mirror.borrow_mut().lost |= self.snapshot != Some(file);
            }
            Err(_) => {}
        }
        result
    }

    /// The node goes on; the sync ends when its time has come.
    fn flush_begin(&mut self, file: FileId) -> io::Result<Flush> {
        let mut ns = self.sync_ns();
        self.mem.hold_flushes(true);
        let begun = self.mem.flush_begin(file)?;
        let mut core = self.core.borrow_mut();
        core.stats.count("disk: flush beside the loop");
        if core.chance_of(|knobs| knobs.late_flush_ppm) {
            core.stats.count("disk: late flush");
            ns += core.between(MS, 500 * MS);
        }
        drop(core);
        self.flush_due.set(Some(self.now() + ns));
        self.mirror.borrow_mut().on_flush_begun(file);
        Ok(begun)
    }

    fn flush_poll(&mut self) -> Option<io::Result<()>> {
        if self.now() < self.flush_due.get()? {
            return None;
        }
        self.flush_due.set(None);
        self.mem.complete_flush();
        let result = self.mem.flush_poll().expect("it is complete");
        match &result {
            Ok(()) => self.mirror.borrow_mut().on_flush_ended(),
            Err(_) => {
                self.core.borrow_mut().stats.count("disk: flush failed");
                self.mirror.borrow_mut().lost = true;
            }
        }
        Some(result)
    }

    fn flush_wait(&mut self) -> io::Result<()> {
        let due = self.flush_due.get().expect("there is a flush to wait for");
        self.core.borrow_mut().stats.count("disk: flush waited for");
        self.takes(due.saturating_sub(self.now()));
        self.flush_poll().expect("its time has come")
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.sync_takes();
        self.mem.sync_dir()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.takes(5_000);
        let installing =
            (from == snapshot::RECEIVED_NAME).then(|| self.mem.raw(from)).flatten().and_then(|raw| {
                let chain = u32::from_be_bytes(raw.get(64..68)?.try_into().expect("4 bytes"));
                Some((snapshot::parse_snapshot_name(to)?.s.0, Chain(chain)))
            });
        let result = self.mem.rename(from, to);
        if result.is_ok() && installing.is_some() {
            self.mirror.borrow_mut().installing = installing;
        }
        if let Some(archive) = self.archive.as_ref().filter(|_| result.is_ok() && from == snapshot::NEW_NAME)
        {
            archive.on_snapshot(&mut self.core.borrow_mut(), to, &self.mem);
        }
        result
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.takes(5_000);
        if let Some(archive) = &self.archive {
            archive.on_remove(&self.mem, &self.mirror.borrow(), name);
        }
        self.mem.remove(name)
    }
}
