//! The real directory, and the only place that touches the operating system's files.
//!
//! Everything goes through one descriptor of the directory (`openat` and its kin), so that a directory that
//! is renamed or mounted over while the node runs stays the one that was locked.
//!
//! The lock is a `flock` on the file `LOCK`, held for life. The kernel drops it with the process, however that
//! ends, so there is no stale lock to detect and none is ever broken by force. The file stays; the pid in it
//! is only what a second process names when it is refused.
//!
//! Left out: a mount that is missing while its mount point exists cannot be told from an empty directory.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, Advice, AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2, retry_on_intr};

use super::blocks::{OpenFile, Via};
use super::{Disk, FileId, Flush, FlushRing, OpenError};
use crate::ledger::{Syscall, count};

pub(super) const LOCK_NAME: &str = "LOCK";
/// The pid is written in place with a fixed width: the file never grows again, so a full disk cannot
/// keep a node from starting.
const PID_WIDTH: usize = 10;
/// Readable by the group, for tools that inspect a stopped node; writable by the owner alone.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);
/// Bytes of one write of zeros where the file system cannot allocate.
const ZEROS_SIZE: usize = 1 << 20;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const EXT4_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// What a data directory lies on, as far as durability is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// tmpfs or ramfs: `fdatasync` returns at once and a reboot loses everything.
    Memory,
    /// Anything else, by its magic number.
    Other(u64),
}

/// A locked directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    dir: OwnedFd,
    /// Indexed by [`FileId`]; a closed slot is used again.
    files: Vec<Option<OpenFile>>,
    /// Whether logs are written by whole blocks here. Others than these file systems were not measured; one that
    /// copies on write has no use for zeros.
    by_blocks: bool,
    /// Where flushes go that the loop does not wait for. Without it every flush is answered at once.
    ring: Option<FlushRing>,
    /// Held open for the lock; without one the directory is somebody else's, or nobody's.
    _lock: Option<OwnedFd>,
}

impl RealDisk {
    /// Opens the directory for this process alone, after creating it if its parent exists.
    ///
    /// # Errors
    /// If another process holds it, if it belongs to another user, or if it cannot be written.
    pub fn open(path: &Path) -> Result<RealDisk, OpenError> {
        let failed = |action| {
            move |errno: Errno| OpenError::Io { path: path.to_owned(), action, source: errno.into() }
        };
        let created = create_dir(path).map_err(failed("creating it"))?;
        let dir_flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = fs::open(path, dir_flags, Mode::empty()).map_err(failed("opening it"))?;
        let owner = fs::fstat(&dir).map_err(failed("looking for its owner"))?.st_uid;
        let user = rustix::process::geteuid().as_raw();
        if owner != user {
            return Err(OpenError::WrongOwner { path: path.to_owned(), owner, user });
        }
        // Before the lock file exists: with the lock file there, the parent is known to have been synced.
        let unlocked_before = fs::statat(&dir, LOCK_NAME, AtFlags::SYMLINK_NOFOLLOW).is_err();
        if created || unlocked_before {
            let synced = sync_parent(&dir);
            // A directory that somebody else made, such as a mount, may lie in one we may not read.
            if created {
                synced.map_err(failed("making its name durable in the parent directory"))?;
            }
        }
        let lock_flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = fs::openat(&dir, LOCK_NAME, lock_flags, FILE_MODE)
            .map_err(failed("opening the file LOCK in it for writing"))?;
        match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => write_pid(&lock).map_err(failed("writing the pid to the file LOCK in it"))?,
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse { path: path.to_owned(), pid: read_pid(&lock) });
            }
            Err(errno) => return Err(failed("locking the file LOCK in it")(errno)),
        }
        Ok(RealDisk { _lock: Some(lock), ..RealDisk::over(path, dir) })
    }

    /// As [`RealDisk::open`], for a directory that must be there: a missing one is more likely a missing mount.
    ///
    /// # Errors
    /// As there.
    pub fn open_existing(path: &Path) -> Result<RealDisk, OpenError> {
        if let Err(errno) = fs::stat(path) {
            return Err(OpenError::Io {
                path: path.to_owned(),
                action: "looking for it",
                source: errno.into(),
            });
        }
        RealDisk::open(path)
    }

    /// A directory for single files that are made in it, and which is no data directory: without a lock.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open_any(path: &Path) -> io::Result<RealDisk> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty())?;
        Ok(RealDisk::over(path, dir))
    }

    fn over(path: &Path, dir: OwnedFd) -> RealDisk {
        let magic = fs::fstatfs(&dir).map_or(0, |stat| stat.f_type as u64);
        let by_blocks = [EXT4_MAGIC, XFS_MAGIC].contains(&magic);
        RealDisk { path: path.to_owned(), dir, files: Vec::new(), by_blocks, ring: None, _lock: None }
    }

    /// What the directory lies on.
    ///
    /// # Errors
    /// Those of `fstatfs`.
    pub fn file_system(&self) -> io::Result<FileSystem> {
        let magic = fs::fstatfs(&self.dir)?.f_type as u64;
        let in_memory = magic == TMPFS_MAGIC || magic == RAMFS_MAGIC;
        Ok(if in_memory { FileSystem::Memory } else { FileSystem::Other(magic) })
    }

    /// Flushes go through this ring from now on.
    pub fn flush_through(&mut self, ring: FlushRing) {
        self.ring = Some(ring);
    }

    fn fd(&self, file: FileId) -> &OwnedFd {
        let slot = self.files.get(file.0 as usize).and_then(Option::as_ref);
        &slot.expect("a handle is used only between open and close").fd
    }

    fn open_file(&mut self, file: FileId) -> &mut OpenFile {
        let slot = self.files.get_mut(file.0 as usize).and_then(Option::as_mut);
        slot.expect("a handle is used only between open and close")
    }

    /// For the log, whose appends alone ask for it.
    fn open_log(&mut self, file: FileId) -> &mut OpenFile {
        let by_blocks = self.by_blocks;
        let open = self.open_file(file);
        if by_blocks {
            open.try_blocks();
        }
        open
    }

    fn keep(&mut self, fd: OwnedFd) -> FileId {
        let free = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        self.files[free] = Some(OpenFile::new(fd));
        FileId(u32::try_from(free).expect("descriptors are far fewer than 2^32"))
    }

    /// Closes a file that was removed.
    fn let_go(&mut self, file: OwnedFd) {
        match &mut self.ring {
            Some(ring) => ring.close(file),
            None => count(Syscall::Close),
        }
    }

    fn open_name(&self, name: &str, extra: OFlags) -> io::Result<OwnedFd> {
        assert!(!name.contains('/') && name != LOCK_NAME, "{name} is no plain name of a file");
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
        count(Syscall::Open);
        Ok(fs::openat(&self.dir, name, flags, FILE_MODE)?)
    }
}

impl Disk for RealDisk {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        list_files(&self.dir)
    }

    fn create(&mut self, name: &str, size: u64) -> io::Result<FileId> {
        let fd = self.open_name(name, OFlags::CREATE | OFlags::EXCL)?;
        if let Err(error) = allocate(&fd, size) {
            // Without its space the file is of no use; should even this fail, it is the caller's leftover
            // as after a crash, and the reason to report is still the first error.
            let _ = fs::unlinkat(&self.dir, name, AtFlags::empty());
            return Err(error);
        }
        Ok(self.keep(fd))
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let fd = self.open_name(name, OFlags::empty())?;
        Ok(self.keep(fd))
    }

    fn close(&mut self, file: FileId) {
        self.end_appends(file);
        count(Syscall::Close);
        self.files[file.0 as usize] = None;
    }

    fn len(&mut self, file: FileId) -> io::Result<u64> {
        count(Syscall::Fstat);
        let size = fs::fstat(self.fd(file))?.st_size;
        Ok(u64::try_from(size).expect("the size of a file is not negative"))
    }

    fn read_at(&mut self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = self.fd(file);
        count(Syscall::Pread);
        Ok(retry_on_intr(|| pread(fd, &mut *buffer, offset))?)
    }

    fn zero_ahead(&mut self, file: FileId, offset: u64, len: u64) -> bool {
        self.open_log(file).zero_ahead(offset, len)
    }

    fn end_appends(&mut self, file: FileId) {
        self.open_file(file).end_appends();
    }

    fn write_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.open_file(file).forget_block();
        let fd = self.fd(file);
        count(Syscall::Pwrite);
        Ok(retry_on_intr(|| pwrite(fd, bytes, offset))?)
    }

    fn append_at(&mut self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Only where zeros were written ahead, which decides the way: without them no block is read first.
        match self.open_file(file).append(offset, bytes, Via::Cache)? {
            true => Ok(()),
            false => self.write_all_at(file, offset, bytes),
        }
    }

    fn append_sync_at(&mut self, file: FileId, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        if self.open_log(file).append(offset, bytes, Via::Disk)? {
            return Ok(());
        }
        while !bytes.is_empty() {
            count(Syscall::PwriteSync);
            let slices = [io::IoSlice::new(bytes)];
            // Not retried on EINTR, like a sync: nothing tells how far it came.
            match pwritev2(self.fd(file), &slices, offset, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    bytes = &bytes[written..];
                }
                // A file system without the flag: two calls for the rest.
                Err(Errno::OPNOTSUPP) => {
                    self.write_all_at(file, offset, bytes)?;
                    return self.sync_data(file);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&mut self, file: FileId) -> io::Result<()> {
        count(Syscall::Fdatasync);
        // No retry, not even on EINTR: a second fdatasync may succeed for data that the first one dropped.
        Ok(fs::fdatasync(self.fd(file))?)
    }

    /// By `POSIX_FADV_DONTNEED`: Linux begins asynchronous writeback of the dirty pages in the range
    /// (`mm/fadvise.c`), as `SYNC_FILE_RANGE_WRITE` would, and forgets those that are clean. rustix has the call,
    /// and not `sync_file_range`. Of 64 MiB written 256 KiB at a time, no page was dirty at the end and `fdatasync`
    /// took 0.7 ms (40 without). With the queue of the disk full, the call waits for it (6 ms at most there).
    fn start_writeback(&mut self, file: FileId, offset: u64, len: u64) {
        let Some(len) = NonZeroU64::new(len) else { return };
        count(Syscall::Fadvise);
        // A file system that cannot take the advice writes back when the kernel sees fit.
        let _ = fs::fadvise(self.fd(file), offset, Some(len), Advice::DontNeed);
    }

    fn read_ahead(&mut self, file: FileId, offset: u64, len: u64) {
        let Some(len) = NonZeroU64::new(len) else { return };
        count(Syscall::Fadvise);
        let _ = fs::fadvise(self.fd(file), offset, Some(len), Advice::WillNeed);
    }

    fn flush_begin(&mut self, file: FileId) -> io::Result<Flush> {
        if let Some(mut ring) = self.ring.take() {
            // A ring that does not take the entry has begun nothing, so this is no second try of a sync.
            if ring.begin(self.fd(file).as_fd()).is_ok() {
                self.ring = Some(ring);
                return Ok(Flush::Pending);
            }
        }
        self.sync_data(file).map(|()| Flush::Done)
    }

    fn flush_poll(&mut self) -> Option<io::Result<()>> {
        self.ring.as_mut()?.poll()
    }

    fn flush_wait(&mut self) -> io::Result<()> {
        self.ring.as_mut().expect("a flush under way has its ring").wait()
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        count(Syscall::Fsync);
        Ok(fs::fsync(&self.dir)?)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        count(Syscall::Rename);
        Ok(fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    /// The name goes at once; what the file held is given back by its last close, beside the loop if there is a ring.
    fn remove(&mut self, name: &str) -> io::Result<()> {
        let held = self.ring.is_some().then(|| self.open_name(name, OFlags::empty()));
        count(Syscall::Unlink);
        let removed = fs::unlinkat(&self.dir, name, AtFlags::empty());
        if let Some(Ok(file)) = held {
            self.let_go(file);
        }
        Ok(removed?)
    }
}

/// The names of all files but the lock's, sorted.
pub(super) fn list_files(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        // Directories (`lost+found` of a mount) and names that are not UTF-8 are not ours.
        if entry.file_type() == FileType::Directory {
            continue;
        }
        match entry.file_name().to_str() {
            Ok("." | ".." | LOCK_NAME) | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether the directory had to be created. Its parents are not: a missing one is more likely a missing
/// mount than a wish, and a store that starts empty beside its data is the worse surprise.
fn create_dir(path: &Path) -> rustix::io::Result<bool> {
    match fs::mkdir(path, DIR_MODE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // `mkdir` of an existing directory may report the read-only mount or the right that would be missing
        // to create it; whether it is there decides.
        Err(errno) => fs::stat(path).map(|_| false).map_err(|_| errno),
    }
}

pub(super) fn sync_parent(dir: &OwnedFd) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    fs::fsync(fs::openat(dir, "..", flags, Mode::empty())?)
}

fn write_pid(lock: &OwnedFd) -> rustix::io::Result<()> {
    let pid = format!("{:>PID_WIDTH$}\n", std::process::id());
    retry_on_intr(|| pwrite(lock, pid.as_bytes(), 0)).map(|_| ())
}

/// What the holder of the lock wrote. In the microseconds between its lock and its write that is the pid of
/// the holder before it.
pub(super) fn read_pid(lock: &OwnedFd) -> Option<u32> {
    let mut text = [0; PID_WIDTH];
    let size = retry_on_intr(|| pread(lock, &mut text[..], 0)).ok()?;
    std::str::from_utf8(&text[..size]).ok()?.trim().parse().ok()
}

fn allocate(fd: &OwnedFd, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    count(Syscall::Fallocate);
    match retry_on_intr(|| fs::fallocate(fd, FallocateFlags::empty(), 0, size)) {
        Err(Errno::OPNOTSUPP) => write_zeros(fd, size),
        result => Ok(result?),
    }
}

fn write_zeros(fd: &OwnedFd, size: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_SIZE];
    let mut offset = 0;
    while offset < size {
        let chunk = &zeros[..ZEROS_SIZE.min((size - offset) as usize)];
        offset += retry_on_intr(|| pwrite(fd, chunk, offset))? as u64;
    }
    Ok(())
}
